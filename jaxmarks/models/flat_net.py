"""Flat-net (Eslami, Neuschaefer-Rube and Serrurier 2020): no pooling; parallel convolutions at five dilation rates."""

import flax.linen as nn
import jax.numpy as jnp

from jaxmarks.models import layers

# The options of a network for tests.
TINY = {"width": 4, "rates": (1, 2), "stride": 4}


class FlatNet(nn.Module):
    """Images (B, H, W, C) in [0, 1] -> a map (B, ceil(H / stride), ceil(W / stride), 2 width)."""

    width: int = 32
    rates: tuple[int, ...] = (1, 2, 3, 4, 5)
    stride: int = 1
    norm: str = "batch"

    @nn.compact
    def __call__(self, x, *, train=False):
        def block(x, features, name, size, rate=1):
            conv = layers.ConvNorm(features, size, norm=self.norm, dilation=rate, name=name)
            return nn.relu(conv(x, train=train))

        x = layers.space_to_depth(x, self.stride)
        branches = []
        for rate in self.rates:
            branch = block(x, self.width, f"L1_{rate}", 9, rate)
            branches.append(block(branch, 2 * self.width, f"L2_{rate}", 9, rate))
        x = jnp.concatenate(branches, axis=-1)
        x = block(x, 8 * self.width, "L4", 5)
        x = block(x, 4 * self.width, "L5", 1)
        return block(x, 2 * self.width, "L6", 1)


def build(*, width=32, rates=(1, 2, 3, 4, 5), stride=1, norm="batch"):
    """Builds layers L1 to L6 of Flat-net's seven; the seventh is the head's 1x1 convolution.

    L1 and L2 are 9x9 convolutions at each of the dilation rates, L3 concatenates their maps, L4 is a 5x5 and L5 to L7
    are 1x1 convolutions. The thesis does not give widths and rates; these are those of the authors' own program:
    `width` and 2 `width` per rate, then 8, 4 and 2 `width`. The network of the paper is `norm=none` with a heatmap head
    of `tanh=True`, `loss=l1`, sigma 10 and decoder argmax, in frames of 256x256; for that head see `heads/heatmap.py`.

    The receptive field is 16 max(rates) + 5 pixels of the folded map along each axis, 85 by default. With stride 4 that
    is 340 pixels of the frame, so folding makes the network cheaper and widens its receptive field.

    Args:
      width: channels of L1; all others are multiples of it.
      rates: dilation rates of L1 and L2.
      stride: a power of two: before L1 each stride x stride square of pixels is folded into one pixel of more channels.
      norm: `batch`, `group` or `none` (as published).
    """
    if stride & (stride - 1) or stride < 1:
        raise ValueError(f"model.stride={stride}: give a power of two")
    return FlatNet(width=width, rates=tuple(rates), stride=stride, norm=norm)
