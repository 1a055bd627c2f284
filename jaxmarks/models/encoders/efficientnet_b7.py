"""EfficientNet-B7 (Tan and Le 2019) as published for TensorFlow: padding "SAME", batch norm with an epsilon of 1e-3.

Of timm's weights use those whose names begin with tf_. The others have the same array names and shapes, but were
trained with symmetric padding, an epsilon of 1e-5 and, for efficientnet_lite0, other colours: they load, but compute
something else. Torchvision's array names of EfficientNets are not supported.
"""

import math

import flax.linen as nn
import jax.numpy as jnp

from jaxmarks.models import layers
from jaxmarks.models.encoders import colours

# The options of a network for tests.
TINY = {"width": 0.25, "depth": 0.3}
# Source of its ImageNet weights, the colours they expect, and prefixes of their arrays that are not the encoder's.
IMAGENET = "hf:timm/tf_efficientnet_b7.ns_jft_in1k"
COLOURS = colours.IMAGENET
CLASSIFIER = ("conv_head.", "bn2.", "classifier.", "_conv_head.", "_bn1.", "_fc.")

# B0's seven stages (table 1 of the paper): blocks, kernel, stride, expansion, channels.
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip


def scaled(channels, width):
    """Returns the channels times `width`, rounded to a multiple of 8 (at least 8) that is at most a tenth smaller."""
    exact = channels * width
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * exact else rounded + 8


class Block(nn.Module):
    """An inverted residual block (MBConv).

    1x1 to `expansion` times the channels, depthwise, squeeze-and-excitation, 1x1 to `features`, and a shortcut.
    `lite` has no squeeze-and-excitation, and ReLU6 instead of swish. In training the branch beside a shortcut is
    dropped for a share `drop` of the images (stochastic depth).
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

        def conv(x, features, name, size=1, **options):
            return layers.ConvNorm(
                features, size, norm=self.norm, padding="SAME", epsilon=1e-3, name=name, **options
            )(x, train=train)  # fmt: skip

        y = x
        if self.expansion > 1:
            y = act(conv(y, self.expansion * channels, "expand"))
        y = act(conv(y, y.shape[-1], "depthwise", self.size, stride=self.stride, groups=y.shape[-1]))
        if not self.lite:
            mean = y.mean((1, 2), keepdims=True)
            # A quarter of the block's input channels, not of the expanded ones that are squeezed.
            mean = layers.ConvNorm(max(1, channels // 4), 1, norm="none", name="squeeze")(mean, train=train)
            gate = layers.ConvNorm(y.shape[-1], 1, norm="none", name="excite")(act(mean), train=train)
            y = y * nn.sigmoid(gate)
        if self.stride > 1 or channels != self.features:
            return conv(y, self.features, "project")
        y = conv(y, self.features, "project", kernel_init=layers.last_init(self.norm))
        return x + y * layers.Dropout(self.drop)(jnp.ones((y.shape[0], 1, 1, 1), y.dtype), train=train)


class EfficientNet(nn.Module):
    """Images (B, H, W, C) in [0, 1] -> the stem's map at stride 2, and the last maps at strides 4, 8, 16 and 32."""

    width: float
    depth: float
    colours: colours.Colours
    norm: str = "batch"
    lite: bool = False
    drop_path: float = 0.0

    def blocks(self):
        """Returns (stage from 1, number in the stage from 0) of each block."""
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
        """Returns the names of each layer's convolution and normalisation, in two schemes.

        The first is timm's, the second that of files which number all blocks consecutively.
        """
        timm, numbered = {"stem": ("conv_stem", "bn1")}, {"stem": ("_conv_stem", "_bn0")}
        for n, (stage, i) in enumerate(self.blocks()):
            parts = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
            if STAGES[stage - 1][3] == 1:
                parts = {"depthwise": "conv_dw", "project": "conv_pw"}
            block, timm_block, nth_block = f"block{stage}_{i}", f"blocks.{stage - 1}.{i}", f"_blocks.{n}"
            for k, (part, name) in enumerate(parts.items(), 1):
                timm[f"{block}/{part}"] = (f"{timm_block}.{name}", f"{timm_block}.bn{k}")
                numbered[f"{block}/{part}"] = (f"{nth_block}._{part}_conv", f"{nth_block}._bn{k + 2 - len(parts)}")
            for part, name in (("squeeze", "reduce"), ("excite", "expand")):
                timm[f"{block}/{part}"] = (f"{timm_block}.se.conv_{name}", "")
                numbered[f"{block}/{part}"] = (f"{nth_block}._se_{name}", "")
        return [timm, numbered]


def build(*, width=2.0, depth=3.1, norm="batch", drop_path=0.0):
    """Builds EfficientNet-B7's convolutions, 62.1 M parameters.

    Args:
      width: factor on B0's channels.
      depth: factor on B0's number of blocks per stage, rounded up.
      norm: "batch" (as published), "group" or "none".
      drop_path: stochastic depth: in training block n of N, counted from 0, drops its branch for a share
        `drop_path` * n / N of the images (0.2 as published).
    """
    return EfficientNet(width=width, depth=depth, colours=COLOURS, norm=norm, drop_path=drop_path)
