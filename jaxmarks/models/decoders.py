"""Steps shared by the bodies on an encoder: encoding images of any size, and turning the finest map into the output."""

import flax.linen as nn

from jaxmarks.models import layers


def check_stride(stride):
    """Raises ValueError if a body on an encoder cannot have this output stride."""
    if stride not in (1, 2, 4):
        raise ValueError(f"model.stride={stride}: choose 1, 2 or 4 with an encoder")


def encode(encoder, images, *, stride, train):
    """Encodes images (B, H, W, C), padded to multiples of 32: maps at strides 2 (4 if the output's is 4) to 32."""
    maps = encoder(layers.pad_to(images, 32), train=train)
    return maps[1:] if stride == 4 else maps


class OutputStage(nn.Module):
    """Decoded finest map x (B, h, w, F) -> the output (B, ceil(H / stride), ceil(W / stride), F'), without the padding.

    An encoder has no map at stride 1: to reach it, a last upsampling without a skip connection halves the channels.
    """

    stride: int
    norm: str

    @nn.compact
    def __call__(self, x, size, *, train):
        if self.stride == 1:
            features = x.shape[-1] // 2
            x = layers.UpConv(features, name="up")(x)
            x = layers.DoubleConv(features, self.norm, name="merge")(x, train=train)
        return layers.crop(x, size, self.stride)
