"""U-Net (Ronneberger et al. 2015) with same-size convolutions, on its own encoder or another one; also its encoder
alone, for the direct head (fish paper)."""

import math

import flax.linen as nn
import jax.numpy as jnp

from jaxmarks.models import decoders, encoders, layers

# The options of a network for tests.
TINY = {"width": 4, "depth": 2}


class UNet(nn.Module):
    """Images (B, H, W, C) -> a map (B, ceil(H / stride), ceil(W / stride), width), or the encoder's deepest map (B, F).

    On another encoder the map at stride 1 has half of `width`.
    """

    width: int = 64
    depth: int = 4
    stride: int = 1
    output: str = "map"
    norm: str = "batch"
    dropout: float = 0.0
    encoder: nn.Module | None = None

    @nn.compact
    def __call__(self, x, *, train=False):
        size = x.shape[1:3]
        if self.encoder is None:
            x = layers.space_to_depth(x, self.stride)
            skips = []
            for level in range(self.depth):
                x = layers.DoubleConv(self.width * 2**level, self.norm, name=f"down{level}")(x, train=train)
                skips.append(x)
                x = layers.max_pool(x)
            x = layers.DoubleConv(self.width * 2**self.depth, self.norm, name="bottom")(x, train=train)
        else:
            *skips, x = decoders.encode(self.encoder, x, stride=self.stride, train=train)
        x = layers.Dropout(self.dropout, name="dropout")(x, train=train)
        if self.output == "vector":
            return x.reshape(x.shape[0], math.prod(x.shape[1:]))
        for level, skip in reversed(list(enumerate(skips))):
            x = layers.UpConv(self.width * 2**level, name=f"up{level}")(x)
            x = layers.extend(x, skip.shape[1:3])  # pooling drops an odd row or column
            x = jnp.concatenate([skip, x], axis=-1)
            x = layers.DoubleConv(self.width * 2**level, self.norm, name=f"merge{level}")(x, train=train)
        if self.encoder is not None:
            x = decoders.OutputStage(self.stride, self.norm, name="finish")(x, size, train=train)
        return x


def build(*, width=64, depth=4, stride=1, output="map", norm="batch", dropout=0.0, encoder=None):
    """Builds U-Net: 31 M parameters with the paper's width and depth.

    Args:
      width: channels of the first level, doubled on each further one.
      depth: how often the map is halved.
      stride: stride of the first level and so of the output, a power of two.
      output: `map`, or `vector`: the encoder alone, with its deepest map as a vector (the paper's direct network).
      norm: `batch`, `group` or `none`.
      dropout: rate at the bottom.
      encoder: the spec of an encoder that replaces the U-Net's own, as {"name": "resnet50"}; its maps at strides 2 to
        32 are the levels. At stride 1 a last upsampling, to half of `width`, has no skip connection; at stride 4 the
        map at stride 2 is not used. On a laptop choose stride 2 or 4.
    """
    if encoder is not None:
        decoders.check_stride(stride)
        if depth != 4:
            raise ValueError(f"model.depth={depth}: set it to 4 with an encoder, which has five maps")
        encoder = encoders.build(encoder)
    if output not in ("map", "vector"):
        raise ValueError(f"model.output={output!r}: choose map or vector")
    if stride & (stride - 1) or stride < 1:
        raise ValueError(f"model.stride={stride}: give a power of two")
    return UNet(width=width, depth=depth, stride=stride, output=output, norm=norm, dropout=dropout, encoder=encoder)
