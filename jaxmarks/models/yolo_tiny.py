"""YOLOv2-tiny (Redmon and Farhadi 2017; the spine paper): eight convolutions and five poolings, the head's is the ninth."""

import flax.linen as nn

from jaxmarks.models import layers

# The options of a network for tests.
TINY = {"width": 4}


class YoloTiny(nn.Module):
    """Images (B, H, W, C) in [0, 1] -> features (B, H/32, W/32, 64 width); sides that are multiples of 32."""

    width: int = 16
    norm: str = "batch"

    @nn.compact
    def __call__(self, x, *, train=False):
        if x.shape[1] % 32 or x.shape[2] % 32:
            raise ValueError(f"a frame of {x.shape[1]}x{x.shape[2]}: YOLO's grid needs sides that are multiples of 32")
        for i, factor in enumerate((1, 2, 4, 8, 16, 32, 64, 64), 1):
            x = layers.ConvNorm(factor * self.width, norm=self.norm, name=f"conv{i}")(x, train=train)
            x = nn.leaky_relu(x, 0.1)
            if i <= 5:
                x = layers.max_pool(x)
        return x


def build(*, width=16, norm="batch"):
    """YOLOv2-tiny's features, 15.8 M parameters without the head's convolution.

    Darknet's network has a sixth pooling, of stride 1, which the spine paper's five leave out.

    Args:
      width: channels of the first convolution; the others are multiples of it.
      norm: `batch`, `group` or `none`.
    """
    return YoloTiny(width=width, norm=norm)
