"""The colour statistics with which encoders were trained."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np


class Colours(NamedTuple):
    """Mean and standard deviation of red, green and blue, of images in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# ImageNet's, as in torchvision.
IMAGENET = Colours((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# EfficientNet-Lite's: (value - 127) / 128 of values from 0 to 255.
LITE = Colours((127 / 255,) * 3, (128 / 255,) * 3)


def standardise(images, colours: Colours):
    """Standardises images (B, H, W, C) in [0, 1] as the encoder expects; a single channel is repeated three times.

    With two or more than three channels, each is standardised by the mean of the three colours' statistics.
    """
    if images.shape[-1] == 1:
        images = jnp.repeat(images, 3, axis=-1)
    mean, std = (np.asarray(c if images.shape[-1] == 3 else np.mean(c), np.float32) for c in colours)
    return ((images - mean) / std).astype(images.dtype)
