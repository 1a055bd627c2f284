"""What of a frame a network sees: the whole, or the part around the landmarks.

A view is a window of a frame, upright or turned and mirrored as a specimen lies, shown at a network's size: the affine
map (..., 2, 3) from its pixels to the frame's.
"""

import math

import jax
import jax.numpy as jnp

from jaxmarks.ops import geometry
from jaxmarks.ops.frames import FILL


def whole(frame, size):
    """The view (2, 3) of `size` (H, W) that shows all of a `frame` (H, W)."""
    return jnp.asarray(geometry.frame(frame, size, "stretch"), jnp.float32)


def close(points, visible, frame, size, *, most):
    """The views (B, 2, 3) of `size` (H, W) around the `visible` (B, K) of landmarks (B, K, 2) in a `frame` (H, W).

    The box around the landmarks takes `FILL` of a view's width or height, whichever is more. A view has the frame's
    proportions, shows a `most`-th of its width and height or more, and does not leave it. It is the whole where fewer
    than half of the landmarks are visible, for then nobody knows how far they reach.
    """
    sides = jnp.array([frame[1], frame[0]], jnp.float32)
    enough = 2 * visible.sum(-1, keepdims=True) >= max(1, visible.shape[-1])
    shown = (visible & enough)[..., None]
    low = jnp.where(enough, jnp.min(jnp.where(shown, points, jnp.inf), axis=-2), 0)
    high = jnp.where(enough, jnp.max(jnp.where(shown, points, -jnp.inf), axis=-2), sides)
    share = jnp.clip(jnp.max((high - low) / sides, axis=-1, keepdims=True) / FILL, 1 / most, 1)
    start = jnp.clip((low + high) / 2 - share * sides / 2, 0, (1 - share) * sides)
    step = share * sides / jnp.array([size[1], size[0]], jnp.float32)
    return _window(start, step)


def posed(lies, mean, size, *, least, most):
    """The views (B, 2, 3) of `size` (H, W) that show each specimen as the mean shape stands, however it lies in its frame.

    The box around the mean takes `FILL` of a view's width or height, whichever is more.

    Args:
      lies: (B, 2, 3), from the mean shape to each frame: where it lies there (`shape.laid`), maybe mirrored.
      mean: (K, 2).
      least, most: pixels of the frame in one of a view, at least and at most.
    """
    low, high, sides = mean.min(0), mean.max(0), jnp.array([size[1], size[0]], jnp.float32)
    large = geometry.scale(lies)[:, None]
    step = jnp.clip(jnp.max((high - low) / sides) / FILL, least / large, most / large)  # of the mean, in a pixel
    return geometry.compose(lies, _window((low + high) / 2 - step * sides / 2, step))


def _window(start, step):
    """The upright views (..., 2, 3) that begin at `start` (..., 2) and whose pixels are `step` (..., 1 or 2) apart."""
    return step[..., None] * jnp.eye(2, 3) + start[..., None] * jnp.array([0.0, 0.0, 1.0])


def look(images, views, size, *, turned=False):
    """Frames (B, H, W, C) as the `views` (B, 2, 3) show them, (B, h, w, C) of the same dtype, antialiased.

    That of the whole is `geometry.resize`'s. Integer images are rounded.

    Args:
      images: (B, H, W, C).
      views: (B, 2, 3), which do not leave the frames unless they are `turned`.
      size: (h, w).
      turned: whether views may be turned or mirrored: they are then taken bilinearly from upright ones of their scale, and
        show a frame's edge beyond it.
    """
    seen = (_turned if turned else _upright)(images.astype(jnp.float32), views, size)
    return (jnp.round(seen) if jnp.issubdtype(images.dtype, jnp.integer) else seen).astype(images.dtype)


def _upright(images, views, size):
    def one(image, view):
        scale = 1 / jnp.stack([view[1, 1], view[0, 0]])
        shift = -jnp.stack([view[1, 2], view[0, 2]]) * scale
        return jax.image.scale_and_translate(
            image, (*size, image.shape[-1]), (0, 1), scale, shift, "linear", antialias=True
        )

    return jax.vmap(one)(images, views)


def _turned(images, views, size):
    count, *frame, _ = images.shape
    sides = jnp.array(frame[::-1], jnp.float32)
    side = 2 * math.ceil(math.hypot(*size) / 2)  # even, as most sizes are: what is not turned is not blurred
    step = geometry.scale(views)[:, None]
    middle = jnp.broadcast_to(jnp.array([[size[1] / 2, size[0] / 2]]), (count, 1, 2))
    around = _window(geometry.affine(views, middle)[:, 0] - step * side / 2, step)
    centres = jnp.broadcast_to(geometry.pixel_centres(size).reshape(-1, 2), (count, size[0] * size[1], 2))
    # An upright view has nothing beyond the frame, and a bilinear value is of pixels up to one away.
    there = jnp.clip(geometry.affine(views, centres), step[..., None], sides - step[..., None])
    there = geometry.affine(geometry.invert(around), there).reshape(count, *size, 2)
    return geometry.sample(_upright(images, around, (side, side)), there)
