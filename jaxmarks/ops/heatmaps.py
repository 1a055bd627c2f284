"""Target heatmaps of landmarks, drawn where they are needed: pure functions of points, exact at sub-pixel positions.

A map's pixel i has its centre at i + 0.5, and a landmark's map has amplitude 1 at the landmark. Both kinds are products
of a function of x and one of y, so drawing costs H + W exponentials a landmark and one multiplication a pixel.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarks.ops.floats import single


def gaussian(points, shape, sigma):
    """exp(-((x - mx)^2 + (y - my)^2) / (2 sigma^2)) (fish paper, Section 4.3).

    Args:
      points: (..., K, 2) landmarks (x, y) in pixels of the map.
      shape: (H, W) of the map.
      sigma: standard deviation in pixels of the map.

    Returns:
      (..., H, W, K), in (0, 1].
    """
    return _outer(points, shape, lambda d: jnp.exp(-0.5 * (d / sigma) ** 2))


def exponential(points, shape, sigma):
    """exp(-(log 2 / (2 sigma)) (|x - mx| + |y - my|)) (fish paper, Section 4.3): half at 2 sigma along an axis.

    Arguments and result are those of `gaussian`.
    """
    return _outer(points, shape, lambda d: jnp.exp(-jnp.log(2) / (2 * sigma) * jnp.abs(d)))


def _outer(points, shape, profile):
    """profile(x - mx) profile(y - my) at the pixels of a map of `shape` (H, W).

    Points of NumPy's are subtracted in their own precision: a coordinate of 200 has an error of 1e-5 in single.
    """
    if not isinstance(points, jax.Array):
        points = np.asarray(points)
        points = points.astype(np.promote_types(points.dtype, np.float32))
    points = single(points) if isinstance(points, jax.Array) else points
    height, width = (np.arange(side, dtype=points.dtype) + np.array(0.5, points.dtype) for side in shape)
    across = profile(single(width[:, None] - points[..., None, :, 0]))
    down = profile(single(height[:, None] - points[..., None, :, 1]))
    return down[..., :, None, :] * across[..., None, :, :]


def largest_of_class(maps, labels, classes):
    """The largest value of each class's objects: maps (B, H, W, M) of M objects with labels (B, M) -> (B, H, W, classes).

    A label below 0 is no object; a class without objects is 0. Class by class, for a map of each object in each class
    would not fit in memory.
    """
    mine = jax.nn.one_hot(labels, classes, dtype=maps.dtype)
    each = [jnp.max(maps * mine[:, None, None, :, c], axis=-1, initial=0.0) for c in range(classes)]
    return jnp.stack(each, axis=-1)
