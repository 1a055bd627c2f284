"""The colours that encoders were trained on."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np


class Colours(NamedTuple):
    """Mean and standard deviation of red, green and blue, of images in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# Torchvision's, of ImageNet.
IMAGENET = Colours((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# EfficientNet-Lite's: (value - 127) / 128 of values up to 255.
LITE = Colours((127 / 255,) * 3, (128 / 255,) * 3)


def standardise(images, colours: Colours):
    """Images (B, H, W, C) in [0, 1] as the encoder knows them; a single channel stands for all three.

    Where there are two or more than three channels, each is taken for the mean of the colours.
    """
    if images.shape[-1] == 1:
        images = jnp.repeat(images, 3, axis=-1)
    mean, std = (np.asarray(c if images.shape[-1] == 3 else np.mean(c), np.float32) for c in colours)
    return ((images - mean) / std).astype(images.dtype)
