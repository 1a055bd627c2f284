"""ResNet50 (He et al. 2016) with the stride in the 3x3 convolution ("v1.5"), as in torchvision."""

import flax.linen as nn

from jaxmarks.models import layers
from jaxmarks.models.encoders import colours

# The options of a network for tests.
TINY = {"width": 4, "depths": (1, 1, 1, 1)}
# Source of its ImageNet weights, the colours they expect, and prefixes of their arrays that are not the encoder's.
IMAGENET = "hf:timm/resnet50.tv_in1k"
COLOURS = colours.IMAGENET
CLASSIFIER = ("fc.",)


class Bottleneck(nn.Module):
    """1x1 to `width` channels, 3x3 (in groups), 1x1 to `expansion` times `width`, added to the shortcut."""

    width: int
    stride: int = 1
    norm: str = "batch"
    groups: int = 1
    expansion: int = 4

    @nn.compact
    def __call__(self, x, *, train):
        out = self.expansion * self.width
        y = nn.relu(layers.ConvNorm(self.width, 1, norm=self.norm, name="conv1")(x, train=train))
        y = layers.ConvNorm(self.width, 3, self.stride, self.norm, groups=self.groups, name="conv2")(y, train=train)
        y = layers.ConvNorm(out, 1, 1, self.norm, layers.last_init(self.norm), name="conv3")(nn.relu(y), train=train)
        if x.shape != y.shape:
            x = layers.ConvNorm(out, 1, self.stride, self.norm, name="downsample")(x, train=train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Images (B, H, W, C) in [0, 1] -> five maps at strides 2 to 32 with 1, 4, 8, 16 and 32 times `width` channels."""

    width: int = 64
    depths: tuple[int, ...] = (3, 4, 6, 3)
    norm: str = "batch"
    groups: int = 1
    expansion: int = 4

    @nn.compact
    def __call__(self, images, train=False):
        x = colours.standardise(images, COLOURS)
        x = nn.relu(layers.ConvNorm(self.width, 7, 2, self.norm, name="stem")(x, train=train))
        maps = [x]
        x = layers.max_pool_3x3(x)
        for stage, depth in enumerate(self.depths, 1):
            width = 4 * self.width * 2 ** (stage - 1) // self.expansion
            for i in range(depth):
                stride = 2 if stage > 1 and i == 0 else 1
                name = f"layer{stage}_{i}"
                x = Bottleneck(width, stride, self.norm, self.groups, self.expansion, name=name)(x, train=train)
            maps.append(x)
        return maps

    def namings(self):
        """Returns the names of each layer's convolution and normalisation in torchvision's files (and timm's)."""
        names = {"stem": ("conv1", "bn1")}
        for stage, depth in enumerate(self.depths, 1):
            for i in range(depth):
                for n in (1, 2, 3):
                    names[f"layer{stage}_{i}/conv{n}"] = (f"layer{stage}.{i}.conv{n}", f"layer{stage}.{i}.bn{n}")
                shortcut = f"layer{stage}.{i}.downsample"
                names[f"layer{stage}_{i}/downsample"] = (f"{shortcut}.0", f"{shortcut}.1")
        return [names]


def build(*, width=64, depths=(3, 4, 6, 3), norm="batch"):
    """Builds ResNet50's convolutions, 23.5 M parameters.

    Args:
      width: channels of the stem; all others are multiples of it.
      depths: number of bottlenecks in each of the four stages.
      norm: "batch" (as published), "group" or "none".
    """
    if len(depths) != 4:
        raise ValueError(f"model.depths={depths}: give four numbers of bottlenecks, one for each stage")
    return ResNet(width=width, depths=tuple(depths), norm=norm)
