"""ResNeXt101 32x8d (Xie et al. 2017): ResNet101 with 3x3 convolutions in 32 groups, in stage 1 of 8 channels each."""

from jaxmarks.models.encoders import resnet50

# The options of a network for tests.
TINY = {"width": 8, "depths": (1, 1, 1, 1)}
IMAGENET = "hf:timm/resnext101_32x8d.tv_in1k"
COLOURS = resnet50.COLOURS
CLASSIFIER = resnet50.CLASSIFIER


def build(*, width=64, depths=(3, 4, 23, 3), norm="batch"):
    """Builds ResNeXt101's convolutions, 86.7 M parameters.

    Args:
      width: channels of the stem, a multiple of 8; all others are multiples of it.
      depths: number of bottlenecks in each of the four stages.
      norm: "batch" (as published), "group" or "none".
    """
    if len(depths) != 4:
        raise ValueError(f"model.depths={depths}: give four numbers of bottlenecks, one for each stage")
    if width % 8:
        raise ValueError(f"model.width={width}: give a multiple of 8, which the 32 groups need")
    return resnet50.ResNet(width=width, depths=tuple(depths), norm=norm, groups=32, expansion=1)
