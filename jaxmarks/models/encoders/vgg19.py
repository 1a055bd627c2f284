"""VGG19's sixteen convolutions (Simonyan and Zisserman 2015)."""

from jaxmarks.models.encoders import vgg16

# The options of a network for tests.
TINY = {"width": 4}
IMAGENET = "hf:timm/vgg19.tv_in1k"
COLOURS = vgg16.COLOURS
CLASSIFIER = vgg16.CLASSIFIER


def build(*, width=64, norm="none"):
    """Builds VGG19's convolutions, 20.0 M parameters.

    Args:
      width: channels of the first block; all others are multiples of it.
      norm: "none" (as published), "batch" (its weights are "hf:timm/vgg19_bn.tv_in1k") or "group".
    """
    return vgg16.VGG(depths=(2, 2, 4, 4, 4), width=width, norm=norm)
