"""U-Net (Ronneberger et al. 2015) with same-size convolutions, and its encoder alone for the direct head (fish paper)."""

import flax.linen as nn
import jax.numpy as jnp

from jaxmarks.models import layers

# The options of a network for tests.
TINY = {"width": 4, "depth": 2}


class DoubleConv(nn.Module):
    """Twice: 3x3 convolution, normalisation, ReLU."""

    features: int
    norm: str

    @nn.compact
    def __call__(self, x, *, train):
        for i in (1, 2):
            x = nn.relu(layers.ConvNorm(self.features, norm=self.norm, name=f"conv{i}")(x, train=train))
        return x


class UNet(nn.Module):
    """Images (B, H, W, C) -> a map (B, H / stride, W / stride, width), or the encoder's deepest features (B, F)."""

    width: int = 64
    depth: int = 4
    stride: int = 1
    output: str = "map"
    norm: str = "batch"
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, *, train=False):
        x = fold(x, self.stride)
        skips = []
        for level in range(self.depth):
            x = DoubleConv(self.width * 2**level, self.norm, name=f"down{level}")(x, train=train)
            skips.append(x)
            x = layers.max_pool(x)
        x = DoubleConv(self.width * 2**self.depth, self.norm, name="bottom")(x, train=train)
        x = layers.Dropout(self.dropout, name="dropout")(x, train=train)
        if self.output == "vector":
            return x.reshape(x.shape[0], -1)
        for level in reversed(range(self.depth)):
            skip = skips[level]
            x = layers.UpConv(self.width * 2**level, name=f"up{level}")(x)
            missing = [(0, s - n) for s, n in zip(skip.shape[1:3], x.shape[1:3], strict=True)]
            x = jnp.pad(x, ((0, 0), *missing, (0, 0)), mode="edge")  # pooling drops an odd row or column
            x = jnp.concatenate([skip, x], axis=-1)
            x = DoubleConv(self.width * 2**level, self.norm, name=f"merge{level}")(x, train=train)
        return x


def fold(x, stride):
    """Images (B, H, W, C) -> (B, ceil(H / s), ceil(W / s), C s^2): each square of s x s pixels becomes one pixel.

    No pixel is lost, and the convolutions run on s^2 times fewer. The last ones are repeated where s does not divide.
    """
    if stride == 1:
        return x
    b, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (0, -h % stride), (0, -w % stride), (0, 0)), mode="edge")
    rows, columns = x.shape[1] // stride, x.shape[2] // stride
    x = x.reshape(b, rows, stride, columns, stride, c).swapaxes(2, 3)
    return x.reshape(b, rows, columns, stride * stride * c)


def build(*, width=64, depth=4, stride=1, output="map", norm="batch", dropout=0.0):
    """U-Net: 31 M parameters with the paper's width and depth.

    Args:
      width: channels of the first level, doubled on each.
      depth: how often the map is halved.
      stride: 1, 2, 4: how much coarser than the frame the first level, and with it the output, is.
      output: `map`, or `vector`: the encoder alone, its deepest map as a vector (the paper's direct network).
      norm: `batch`, `group` or `none`.
      dropout: rate at the bottom.
    """
    if output not in ("map", "vector"):
        raise ValueError(f"model.output={output!r}: there are map and vector")
    if stride & (stride - 1) or stride < 1:
        raise ValueError(f"model.stride={stride}: a power of two")
    return UNet(width=width, depth=depth, stride=stride, output=output, norm=norm, dropout=dropout)
