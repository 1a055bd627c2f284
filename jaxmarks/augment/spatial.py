"""Spatial augmentation: random maps of a frame, for pixels and points alike. The key is the first argument.

The maps go from the augmented (new) image to the original (old) one, as resampling needs; points, which go the other
way, use the inverse.
"""

import jax
import jax.numpy as jnp

from jaxmarks.ops import geometry


def random_affine(key, size, *, rotation=0.0, scale=0.0, aspect=0.0, shear=0.0, translation=0.0):
    """Draws a map (2, 3) from the new frame to the old one, about the frame's centre. A strength of 0 turns it off.

    Args:
      key: random key.
      size: (H, W).
      rotation: degrees; the angle is drawn from U[-rotation, rotation].
      scale: the factor is (1 + scale) ** U[-1, 1], so that growing and shrinking are equally likely.
      aspect: the factor of width relative to height is (1 + aspect) ** U[-1, 1].
      shear: degrees; the angle is drawn from U[-shear, shear].
      translation: the shifts are U[-translation, translation] times the frame's width and height.
    """
    draw = jax.random.uniform(key, (6,), minval=-1, maxval=1)
    sides = jnp.array([size[1], size[0]], jnp.float32)
    return geometry.similarity(
        jnp.deg2rad(rotation) * draw[0],
        (1 + scale) ** draw[1],
        translation * sides * draw[4:],
        sides / 2,
        shear=jnp.deg2rad(shear) * draw[3],
        aspect=(1 + aspect) ** draw[2],
    )


def quarter_turn(key, size):
    """Draws a map (2, 3) that rotates a frame (H, W) by 0, 90, 180 or 270 degrees about its centre, equally likely."""
    turns = jax.random.randint(key, (), 0, 4)
    cos, sin = jnp.array([1.0, 0.0, -1.0, 0.0])[turns], jnp.array([0.0, 1.0, 0.0, -1.0])[turns]
    cx, cy = size[1] / 2, size[0] / 2
    return jnp.array([[cos, -sin, cx - cos * cx + sin * cy], [sin, cos, cy - sin * cx - cos * cy]])


def mirror(size):
    """Returns the map (2, 3) that mirrors a frame (H, W) left to right; it is its own inverse."""
    return jnp.array([[-1.0, 0.0, size[1]], [0.0, 1.0, 0.0]])


def elastic(key, size, *, strength, grid=4):
    """Draws a smooth random flow (H, W, 2) in pixels: new pixel p shows the old image at p + flow[p].

    Args:
      key: random key.
      size: (H, W).
      strength: standard deviation in pixels of the displacements, drawn on a coarse grid and interpolated cubically.
      grid: rows of the coarse grid; its columns follow from the frame's aspect. A flow whose slope reaches 1 folds the
        image and has no inverse: keep `strength` below a tenth of H / grid.
    """
    coarse = strength * jax.random.normal(key, (grid, max(1, round(grid * size[1] / size[0])), 2))
    return jax.image.resize(coarse, (*size, 2), "cubic")


def through_flow(flow, points, *, iterations=8):
    """Maps points (K, 2) of the old image to the new one, whose pixel p shows the old image at p + flow[p].

    Solves q + flow(q) = p by the fixed-point iteration q <- p - flow(q), which converges where the flow's slope is
    below 1, by that factor in each of the `iterations`.
    """
    estimate = points
    for _ in range(iterations):
        estimate = points - geometry.sample(flow[None], estimate[None, None])[0, 0]
    return estimate
