"""EfficientNet-B7 (Tan and Le 2019) as published for TensorFlow: padding "SAME", batch norm with an epsilon of 1e-3.

Of timm's weights these are the ones called tf_. Those without it have the same names and shapes, but were trained with
symmetric padding, an epsilon of 1e-5 and, efficientnet_lite0's, other colours: they load, and compute something else.
Torchvision's names of an EfficientNet are not known.
"""

import math

import flax.linen as nn
import jax.numpy as jnp

from jaxmarks.models import layers
from jaxmarks.models.encoders import colours

# The options of a network for tests.
TINY = {"width": 0.25, "depth": 0.3}
# Where its ImageNet weights are, the colours they expect, and what they hold beside the encoder.
IMAGENET = "hf:timm/tf_efficientnet_b7.ns_jft_in1k"
COLOURS = colours.IMAGENET
CLASSIFIER = ("conv_head.", "bn2.", "classifier.", "_conv_head.", "_bn1.", "_fc.")

# B0's seven stages (table 1 of the paper): blocks, kernel, stride, expansion, channels.
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip


def scaled(channels, width):
    """The channels times `width`, as a multiple of 8 that is not more than a tenth smaller."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8


class Block(nn.Module):
    """1x1 to `expansion` times the channels, depthwise, squeeze and excitation, 1x1 to `features`, and the shortcut.

    `lite` has no squeeze and excitation, and ReLU6 for swish. In training the whole branch is left out of a share
    `drop` of the images.
    """

    features: int
    size: int
    stride: int
    expansion: int
    norm: str
    lite: bool
    drop: float

    @nn.compact
    def __call__(self, x, *, train):
        channels = x.shape[-1]
        act = nn.relu6 if self.lite else nn.swish

        def conv(x, features, name, size=1, **how):
            return layers.ConvNorm(
                features, size, norm=self.norm, padding="SAME", epsilon=1e-3, name=name, **how
            )(x, train=train)  # fmt: skip

        y = x
        if self.expansion > 1:
            y = act(conv(y, self.expansion * channels, "expand"))
        y = act(conv(y, y.shape[-1], "depthwise", self.size, stride=self.stride, groups=y.shape[-1]))
        if not self.lite:
            mean = y.mean((1, 2), keepdims=True)
            # A quarter of the block's input, not of what the squeeze sees.
            mean = layers.ConvNorm(max(1, channels // 4), 1, norm="none", name="squeeze")(mean, train=train)
            gate = layers.ConvNorm(y.shape[-1], 1, norm="none", name="excite")(act(mean), train=train)
            y = y * nn.sigmoid(gate)
        if self.stride > 1 or channels != self.features:
            return conv(y, self.features, "project")
        y = conv(y, self.features, "project", kernel_init=layers.last_init(self.norm))
        return x + y * layers.Dropout(self.drop)(jnp.ones((y.shape[0], 1, 1, 1), y.dtype), train=train)


class EfficientNet(nn.Module):
    """Images (B, H, W, C) in [0, 1] -> the stem's map at stride 2 and the stages' last at strides 4, 8, 16 and 32."""

    width: float
    depth: float
    colours: colours.Colours
    norm: str = "batch"
    lite: bool = False
    drop_path: float = 0.0

    def blocks(self):
        """The stage, from 1, and the number in it, from 0, of each block."""
        return [(s, i) for s, (count, *_) in enumerate(STAGES, 1) for i in range(math.ceil(count * self.depth))]

    @nn.compact
    def __call__(self, images, train=False):
        x = colours.standardise(images, self.colours)
        x = layers.ConvNorm(
            scaled(32, self.width), 3, 2, self.norm, padding="SAME", epsilon=1e-3, name="stem"
        )(x, train=train)  # fmt: skip
        x = nn.relu6(x) if self.lite else nn.swish(x)
        maps, blocks = [x], self.blocks()
        for n, (stage, i) in enumerate(blocks):
            _, size, stride, expansion, channels = STAGES[stage - 1]
            if i == 0 and stride == 2 and stage > 2:
                maps.append(x)
            x = Block(
                scaled(channels, self.width), size, stride if i == 0 else 1, expansion, self.norm, self.lite,
                self.drop_path * n / len(blocks), name=f"block{stage}_{i}",
            )(x, train=train)  # fmt: skip
        return [*maps, x]

    def namings(self):
        """The name of each layer's convolution and normalisation, in timm's files and in those that number all blocks."""
        timm, numbered = {"stem": ("conv_stem", "bn1")}, {"stem": ("_conv_stem", "_bn0")}
        for n, (stage, i) in enumerate(self.blocks()):
            parts = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
            if STAGES[stage - 1][3] == 1:
                parts = {"depthwise": "conv_dw", "project": "conv_pw"}
            mine, theirs, there = f"block{stage}_{i}", f"blocks.{stage - 1}.{i}", f"_blocks.{n}"
            for k, (part, name) in enumerate(parts.items(), 1):
                timm[f"{mine}/{part}"] = (f"{theirs}.{name}", f"{theirs}.bn{k}")
                numbered[f"{mine}/{part}"] = (f"{there}._{part}_conv", f"{there}._bn{k + 2 - len(parts)}")
            for part, name in (("squeeze", "reduce"), ("excite", "expand")):
                timm[f"{mine}/{part}"] = (f"{theirs}.se.conv_{name}", "")
                numbered[f"{mine}/{part}"] = (f"{there}._se_{name}", "")
        return [timm, numbered]


def build(*, width=2.0, depth=3.1, norm="batch", drop_path=0.0):
    """EfficientNet-B7's convolutions, 62.1 M parameters.

    Args:
      width: factor of B0's channels.
      depth: factor of B0's blocks in each stage, rounded up.
      norm: "batch" (as published), "group" or "none".
      drop_path: in training the n-th of N blocks, from 0, leaves its branch out of a share n / N of `drop_path` of the
        images (0.2 as published).
    """
    return EfficientNet(width=width, depth=depth, colours=COLOURS, norm=norm, drop_path=drop_path)
