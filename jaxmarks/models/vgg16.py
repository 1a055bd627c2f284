"""VGG16's thirteen convolutions (Simonyan and Zisserman 2015) as a dense map: Faster R-CNN's first body."""

import flax.linen as nn
import jax.numpy as jnp

from jaxmarks.models import layers

# The options of a network for tests.
TINY = {"width": 4}


class VGG16(nn.Module):
    """Images (B, H, W, C) in [0, 1] -> a map (B, ceil(H / stride), ceil(W / stride), 8 width)."""

    width: int = 64
    stride: int = 16
    norm: str = "batch"

    @nn.compact
    def __call__(self, x, *, train=False):
        # A multiple of the stride, so that each pooling halves exactly.
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % self.stride), (0, -x.shape[2] % self.stride), (0, 0)), mode="edge")
        for i, (depth, factor) in enumerate(((2, 1), (2, 2), (3, 4), (3, 8), (3, 8)), 1):
            if 1 < i and 2 ** (i - 1) <= self.stride:
                x = layers.max_pool(x)
            for j in range(1, depth + 1):
                x = layers.ConvNorm(factor * self.width, norm=self.norm, name=f"conv{i}_{j}")(x, train=train)
                x = nn.relu(x)
        return x


def build(*, width=64, stride=16, norm="batch"):
    """VGG16 without its classifier and its fifth pooling, 14.7 M parameters: what Faster R-CNN shares of it.

    Args:
      width: channels of the first block; all others are multiples of it.
      stride: 16, or 8 or 4 without the last pooling or the last two.
      norm: `batch`, `group` or `none` (as published).
    """
    if stride not in (4, 8, 16):
        raise ValueError(f"model.stride={stride}: there are 4, 8 and 16")
    return VGG16(width=width, stride=stride, norm=norm)
