"""Target heatmaps of landmarks, drawn on the fly: pure functions of points, exact at sub-pixel positions.

A map's pixel i has its centre at i + 0.5, and a landmark's map has amplitude 1 at the landmark. Both kinds are products
of a function of x and one of y, so drawing costs H + W exponentials per landmark and one multiplication per pixel.
"""

import jax
import jax.numpy as jnp

from jaxmarks.ops.floats import at_least_float32


def gaussian(points, shape, sigma):
    """Draws Gaussians exp(-((x - mx)^2 + (y - my)^2) / (2 sigma^2)) (fish paper, Section 4.3).

    Args:
      points: (..., K, 2) landmarks (x, y) in pixels of the map.
      shape: (H, W) of the map.
      sigma: standard deviation in pixels of the map.

    Returns:
      (..., H, W, K), in (0, 1].
    """
    return _outer(points, shape, lambda d: jnp.exp(-0.5 * (d / sigma) ** 2))


def exponential(points, shape, sigma):
    """Draws exponentials exp(-(log 2 / (2 sigma)) (|x - mx| + |y - my|)) (fish paper, Section 4.3).

    They fall to one half at 2 sigma along an axis. Arguments and result are those of `gaussian`.
    """
    return _outer(points, shape, lambda d: jnp.exp(-jnp.log(2) / (2 * sigma) * jnp.abs(d)))


def _outer(points, shape, profile):
    """Evaluates profile(x - mx) profile(y - my) at the pixels of a map of `shape` (H, W).

    NumPy points are split into a whole pixel and the remainder: one float32 number stores a double-precision coordinate
    of 200 to 1e-5, two store it to 1e-8.
    """
    points = points if hasattr(points, "dtype") else jnp.asarray(points)
    remainder = jnp.zeros_like(points) if isinstance(points, jax.Array) else points % 1
    pixel, remainder = at_least_float32(points - remainder), at_least_float32(remainder)
    height, width = (jnp.arange(side, dtype=pixel.dtype) + 0.5 for side in shape)
    offset = lambda centres, axis: centres[:, None] - pixel[..., None, :, axis] - remainder[..., None, :, axis]
    across, down = profile(offset(width, 0)), profile(offset(height, 1))
    return down[..., :, None, :] * across[..., None, :, :]


def largest_of_class(maps, labels, classes):
    """Takes each class's maximum over objects: maps (B, H, W, M) of M objects, labels (B, M) -> (B, H, W, classes).

    A label below 0 is padding; a class without objects is 0. Computed class by class, since a map per object and class
    would not fit in memory.
    """
    one_hot = jax.nn.one_hot(labels, classes, dtype=maps.dtype)
    class_maxima = [jnp.max(maps * one_hot[:, None, None, :, c], axis=-1, initial=0.0) for c in range(classes)]
    return jnp.stack(class_maxima, axis=-1)
