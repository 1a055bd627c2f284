"""What the bodies on an encoder share: its maps for images of any size, and the way from its finest one to the frame."""

import flax.linen as nn

from jaxmarks.models import layers


def check_stride(stride):
    """Raises a ValueError where a body on an encoder cannot have this stride."""
    if stride not in (1, 2, 4):
        raise ValueError(f"model.stride={stride}: with an encoder there are 1, 2 and 4")


def encode(encoder, images, *, stride, train):
    """An encoder's maps at strides 2 (4, if that is the output's) to 32, of images (B, H, W, C) continued to 32's multiples."""
    maps = encoder(layers.pad_to(images, 32), train=train)
    return maps[1:] if stride == 4 else maps


class Finish(nn.Module):
    """The finest map of `encode`'s, decoded, x (B, h, w, F) -> the output (B, ceil(H / stride), ceil(W / stride), F').

    An encoder has no map at stride 1: there a last step up without a skip leads, to half the channels.
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
