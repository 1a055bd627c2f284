"""The U-Net's own encoder (Ronneberger et al. 2015) with the interface of the others, to be trained from scratch."""

import flax.linen as nn

from jaxmarks.models import layers

# The options of a network for tests.
TINY = {"width": 4}


class Plain(nn.Module):
    """Images (B, H, W, C) in [0, 1] -> five maps at strides 2 to 32 with 1, 2, 4, 8 and 16 times `width` channels."""

    width: int = 32
    norm: str = "batch"

    @nn.compact
    def __call__(self, images, train=False):
        x, maps = layers.space_to_depth(images, 2), []
        for level in range(5):
            x = layers.max_pool(x) if level else x
            x = layers.DoubleConv(self.width * 2**level, self.norm, name=f"down{level}")(x, train=train)
            maps.append(x)
        return maps


def build(*, width=32, norm="batch"):
    """Builds double convolutions, 4.7 M parameters; first each 2x2 square of pixels is folded into one of 4 C channels.

    Args:
      width: channels at stride 2, doubled on each further level.
      norm: `batch`, `group` or `none`.
    """
    return Plain(width=width, norm=norm)
