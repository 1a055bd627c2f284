"""Separable filters."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax


def separable(images, weights, axes, *, mode):
    """Correlates images along each of `axes` with the same weights.

    Args:
      images: an array.
      weights: a sequence or array of odd length; the middle weight is that of the pixel itself.
      axes: integers.
      mode: the padding mode at the border, as in `jnp.pad`.

    Returns:
      an array of the same shape.
    """
    radius = len(weights) // 2
    for axis in axes:
        axis, side = axis % images.ndim, images.shape[axis]
        padded = jnp.pad(images, [(radius, radius) if a == axis else (0, 0) for a in range(images.ndim)], mode=mode)
        shifted = (lax.slice_in_dim(padded, i, i + side, axis=axis) for i in range(len(weights)))
        images = sum(weight * part for weight, part in zip(weights, shifted, strict=True))
    return images


def gaussian_weights(sigma: float, radius: int) -> Sequence[float]:
    """Returns the 2 radius + 1 weights, with sum 1, of a Gaussian of `sigma` pixels."""
    weights = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(-radius, radius + 1)]
    return [weight / sum(weights) for weight in weights]
