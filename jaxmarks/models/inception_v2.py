"""Inception-v2 (Ioffe and Szegedy 2015, "BN-Inception") as a dense map: the spine paper's body of Faster R-CNN."""

import flax.linen as nn
import jax.numpy as jnp

from jaxmarks.models import layers

# The options of a network for tests.
TINY = {"width": 0.125}

# The blocks up to the end of stride 16; the RPN of the paper's TensorFlow model takes the map of the last one. Channels
# of four branches: 1x1; 1x1 and 3x3; 1x1 and twice 3x3; 1x1 after pooling. (0: none; such a block halves the map.)
BLOCKS = {
    "mixed3b": (64, (64, 64), (64, 96), 32),
    "mixed3c": (64, (64, 96), (64, 96), 64),
    "mixed4a": (0, (128, 160), (64, 96), 0),
    "mixed4b": (224, (64, 96), (96, 128), 128),
    "mixed4c": (192, (96, 128), (96, 128), 128),
    "mixed4d": (160, (128, 160), (128, 160), 96),
    "mixed4e": (96, (128, 192), (160, 192), 96),
}


def average_3x3(x):
    """Averages over each pixel's 3x3 neighbourhood, at the border over its part inside the map; x (B, h, w, C)."""

    def total(x):
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
        return x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]

    return total(x) / total(jnp.ones((1, *x.shape[1:3], 1), x.dtype))


class Mixed(nn.Module):
    """Four parallel branches, concatenated.

    If the 1x1 branch has no channels, only the others remain: they take `stride`, and the last is max pooling (at
    stride 1 the input itself) without a convolution.
    """

    single: int
    double: tuple[int, int]
    triple: tuple[int, int]
    pooled: int
    stride: int = 1
    norm: str = "batch"

    @nn.compact
    def __call__(self, x, *, train):
        def block(x, features, size, name, stride=1):
            return nn.relu(layers.ConvNorm(features, size, stride, self.norm, name=name)(x, train=train))

        double = block(x, self.double[0], 1, "double1")
        triple = block(block(x, self.triple[0], 1, "triple1"), self.triple[1], 3, "triple2")
        branches = [
            block(double, self.double[1], 3, "double2", self.stride),
            block(triple, self.triple[1], 3, "triple3", self.stride),
        ]
        if self.single:
            branches += [block(x, self.single, 1, "single"), block(average_3x3(x), self.pooled, 1, "pooled")]
        else:
            branches.append(layers.max_pool_3x3(x) if self.stride == 2 else x)
        return jnp.concatenate(branches, axis=-1)


class InceptionV2(nn.Module):
    """Images (B, H, W, C) in [0, 1] -> a map (B, ceil(H / stride), ceil(W / stride), 576 width)."""

    width: float = 1.0
    stride: int = 16
    norm: str = "batch"

    @nn.compact
    def __call__(self, x, *, train=False):
        scaled = lambda channels: channels and max(1, round(channels * self.width))

        def block(x, features, size, name, stride=1):
            return nn.relu(layers.ConvNorm(scaled(features), size, stride, self.norm, name=name)(x, train=train))

        # A multiple of the stride, so that each step halves exactly.
        x = layers.pad_to(x, self.stride)
        x = layers.max_pool_3x3(block(x, 64, 7, "conv1", stride=2))
        x = layers.max_pool_3x3(block(block(x, 64, 1, "conv2_reduce"), 192, 3, "conv2"))
        for name, (single, double, triple, pooled) in BLOCKS.items():
            x = Mixed(
                scaled(single), tuple(map(scaled, double)), tuple(map(scaled, triple)), scaled(pooled),
                2 if not single and self.stride == 16 else 1, self.norm, name=name,
            )(x, train=train)  # fmt: skip
        return x


def build(*, width=1.0, stride=16, norm="batch"):
    """Builds Inception-v2 up to its block 4e, 4.3 M parameters.

    The first layer is Ioffe and Szegedy's plain 7x7 convolution, in place of which the TensorFlow model has a separable
    one. 3x3 max pooling with stride 2 is padded symmetrically, as in PyTorch.

    Args:
      width: factor on the number of channels of every layer.
      stride: 16, or 8: then block 4a does not halve the map, and small objects keep four times the cells.
      norm: `batch`, `group` or `none`.
    """
    if stride not in (8, 16):
        raise ValueError(f"model.stride={stride}: choose 8 or 16")
    return InceptionV2(width=width, stride=stride, norm=norm)
