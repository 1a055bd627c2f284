"""VGG16's thirteen convolutions (Simonyan and Zisserman 2015) as a dense map: Faster R-CNN's first body."""

import flax.linen as nn

from jaxmarks.models import encoders, layers
from jaxmarks.models.encoders import vgg16

# The options of a network for tests.
TINY = vgg16.TINY


class VGG16(nn.Module):
    """Images (B, H, W, C) in [0, 1] -> a map (B, ceil(H / stride), ceil(W / stride), 8 width)."""

    encoder: vgg16.VGG

    @nn.compact
    def __call__(self, x, *, train=False):
        # A multiple of the stride, so that each pooling halves exactly.
        return self.encoder(layers.pad_to(x, self.encoder.stride), train=train)[3]


def build(*, width=64, stride=16, norm="batch"):
    """Builds VGG16 without its classifier and fifth pooling, 14.7 M parameters: the layers that Faster R-CNN shares.

    Args:
      width: channels of the first block; all others are multiples of it.
      stride: 16, or 8 without the last of the four poolings, or 4 without the last two.
      norm: `batch`, `group` or `none` (as published).
    """
    if stride not in (4, 8, 16):
        raise ValueError(f"model.stride={stride}: choose 4, 8 or 16")
    return VGG16(encoders.build({"name": "vgg16", "width": width, "norm": norm}).clone(stride=stride))


def read_weights(source, *, channels=3, stride=16, norm="batch", **options):
    """Reads the variables from ImageNet weights (see `encoders.read_weights`); `stride` does not affect them."""
    spec = {"name": "vgg16", "norm": norm, **options}
    return encoders.in_body(encoders.read_weights(spec, source, channels=channels))
