"""KNEEL's hourglass (Tiulpin, Melekhov and Saarakkala 2019), made of hierarchical multi-scale residual blocks."""

import flax.linen as nn
import jax.numpy as jnp

from jaxmarks.models import layers

# The options of a network for tests.
TINY = {"width": 2, "depth": 1, "norm": "none"}


class MultiScale(nn.Module):
    """Hierarchical multi-scale residual block (Bulat and Tzimiropoulos 2017): x (B, h, w, C) -> (B, h, w, features).

    Three successive 3x3 convolutions have a half, a quarter and a quarter of the channels; their maps are concatenated
    and added to the shortcut. As in KNEEL each is followed by a normalisation, and all but the last by ReLU.
    """

    features: int
    norm: str = "batch"

    @nn.compact
    def __call__(self, x, *, train):
        # Without normalisation the branch starts small: otherwise the variance doubles with each of the many blocks.
        scale = nn.initializers.variance_scaling(0.1 if self.norm == "none" else 2.0, "fan_in", "truncated_normal")
        half, quarter = self.features // 2, self.features // 4
        maps, y = [], x
        for i, features in enumerate((half, quarter, self.features - half - quarter), 1):
            y = layers.ConvNorm(features, norm=self.norm, kernel_init=scale, name=f"conv{i}")(y, train=train)
            y = nn.relu(y) if i < 3 else y
            maps.append(y)
        if x.shape[-1] != self.features:
            x = layers.ConvNorm(self.features, 1, norm=self.norm, name="shortcut")(x, train=train)
        return x + jnp.concatenate(maps, axis=-1)


class Hourglass(nn.Module):
    """One level and, nested in it, those below: x (B, h, w, C) -> (B, h, w, features), h and w multiples of 2^depth.

    The sum of two paths: three blocks at full size; and at half size three blocks, the next level (a block at the last
    level) and a block, upsampled again.
    """

    depth: int
    width: int
    features: int
    norm: str = "batch"

    @nn.compact
    def __call__(self, x, *, train):
        def block(x, features, name):
            return MultiScale(features, self.norm, name=name)(x, train=train)

        size = x.shape[1:3]
        low = layers.max_pool(x)
        for i in (1, 2, 3):
            low = block(low, self.width, f"low{i}")
        if self.depth > 1:
            low = Hourglass(self.depth - 1, self.width, self.features, self.norm, name="inner")(low, train=train)
        else:
            low = block(low, self.features, "low4")
        low = block(low, self.features, "low5")
        for i, features in enumerate((self.width, self.width, self.features), 1):
            x = block(x, features, f"high{i}")
        return x + layers.resize(low, size)


class HourglassNet(nn.Module):
    """Images (B, H, W, C) in [0, 1] -> a map (B, ceil(H / 4), ceil(W / 4), 4 width)."""

    width: int = 24
    depth: int = 6
    stacks: int = 1
    norm: str = "batch"
    dropout: float = 0.25

    @nn.compact
    def __call__(self, x, *, train=False):
        def block(x, features, name):
            return MultiScale(features, self.norm, name=name)(x, train=train)

        size, n = x.shape[1:3], self.width
        x = layers.pad_to(x, 4 * 2**self.depth)
        x = nn.relu(layers.ConvNorm(n, 7, 2, self.norm, name="entry")(x, train=train))
        x = layers.max_pool(block(x, 2 * n, "entry1"))
        for i, features in enumerate((2 * n, 2 * n, 4 * n), 2):
            x = block(x, features, f"entry{i}")
        out = None
        for stack in range(self.stacks):
            x = x if out is None else x + out
            out = Hourglass(self.depth, 4 * n, 8 * n, self.norm, name=f"hourglass{stack}")(x, train=train)
            for i, features in enumerate((8 * n, 4 * n), 1):
                out = layers.Dropout(self.dropout, name=f"dropout{stack}_{i}")(out, train=train)
                mix = layers.ConvNorm(features, 1, norm=self.norm, name=f"mix{stack}_{i}")
                out = nn.relu(mix(out, train=train))
        return layers.crop(out, size, 4)


def build(*, width=24, depth=6, stacks=1, norm="batch", dropout=0.25):
    """Builds KNEEL's network without its last 1x1 convolution to M maps and soft-argmax (see the head `softargmax`).

    An entry block to stride 4, the hourglass, and twice dropout and a 1x1 convolution. The frame is padded to a
    multiple of 4 * 2^depth pixels, so that every level halves exactly: with the paper's depth 6 to a multiple of 256,
    which frames of 256x256 fill. A depth of 3 or 4 is enough for smaller frames, and cheaper where they need padding.

    Args:
      width: N, the channels of the first convolution; the hourglass has 4 N, its output 8 N and the features 4 N.
      depth: how often the hourglass halves the map.
      stacks: number of successive hourglasses; each takes the previous one's input plus its output (Newell et al. 2016,
        without their intermediate outputs); KNEEL has one.
      norm: `batch`, `group` or `none`.
      dropout: rate before each of the last two convolutions.
    """
    for name, value in (("depth", depth), ("stacks", stacks)):
        if value < 1:
            raise ValueError(f"model.{name}={value}: give at least 1")
    return HourglassNet(width=width, depth=depth, stacks=stacks, norm=norm, dropout=dropout)
