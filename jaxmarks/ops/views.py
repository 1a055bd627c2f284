"""Views: what a network sees of a frame, all of it or the part around the landmarks.

A view is a window of a frame, upright or rotated and mirrored like the specimen, resampled to a network's size. It is
represented by the affine map (..., 2, 3) from its pixels to the frame's.
"""

import math

import jax
import jax.numpy as jnp

from jaxmarks.ops import geometry
from jaxmarks.ops.frames import FILL


def whole(frame, size):
    """Returns the view (2, 3) of `size` (H, W) that shows all of a `frame` (H, W)."""
    return jnp.asarray(geometry.frame(frame, size, "stretch"), jnp.float32)


def close(points, visible, frame, size, *, most):
    """Returns the views (B, 2, 3) of `size` (H, W) around the `visible` (B, K) points (B, K, 2) in a `frame` (H, W).

    The landmarks' bounding box fills the share `FILL` of a view's width or height, whichever share is larger. A view
    has the frame's proportions, lies inside the frame, and shows at least 1 / `most` of its width and height. It is the
    whole frame if fewer than half of the landmarks are visible, since their extent is then unknown.
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
    """Returns the views (B, 2, 3) of `size` (H, W) in which each specimen has the pose of the mean shape.

    The mean's bounding box fills the share `FILL` of a view's width or height, whichever share is larger.

    Args:
      lies: (B, 2, 3), the maps from the mean shape to each frame (`shape.fit_pose`), possibly mirroring.
      mean: (K, 2).
      least, most: the smallest and largest scale of a view, in frame pixels per view pixel.
    """
    low, high, sides = mean.min(0), mean.max(0), jnp.array([size[1], size[0]], jnp.float32)
    unit = geometry.scale(lies)[:, None]
    step = jnp.clip(jnp.max((high - low) / sides) / FILL, least / unit, most / unit)  # mean-shape units per pixel
    return geometry.compose(lies, _window((low + high) / 2 - step * sides / 2, step))


def _window(start, step):
    """Returns upright views (..., 2, 3) with corner `start` (..., 2) and a pixel spacing of `step` (..., 1 or 2)."""
    return step[..., None] * jnp.eye(2, 3) + start[..., None] * jnp.array([0.0, 0.0, 1.0])


def resample(images, views, size, *, turned=False):
    """Resamples frames (B, H, W, C) through `views` (B, 2, 3), antialiased: (B, h, w, C) of the same dtype.

    The view of the whole frame equals `geometry.resize`. Integer images are rounded.

    Args:
      images: (B, H, W, C).
      views: (B, 2, 3), which stay inside the frames unless they are `turned`.
      size: (h, w).
      turned: whether views may be rotated or mirrored. They are then sampled bilinearly from upright views of the same
        scale, and repeat a frame's edge outside it.
    """
    resampled = (_turned if turned else _upright)(images.astype(jnp.float32), views, size)
    return (jnp.round(resampled) if jnp.issubdtype(images.dtype, jnp.integer) else resampled).astype(images.dtype)


def _upright(images, views, size):
    def resample_one(image, view):
        scale = 1 / jnp.stack([view[1, 1], view[0, 0]])
        shift = -jnp.stack([view[1, 2], view[0, 2]]) * scale
        return jax.image.scale_and_translate(
            image, (*size, image.shape[-1]), (0, 1), scale, shift, "linear", antialias=True
        )

    return jax.vmap(resample_one)(images, views)


def _turned(images, views, size):
    count, *frame, _ = images.shape
    sides = jnp.array(frame[::-1], jnp.float32)
    side = 2 * math.ceil(math.hypot(*size) / 2)  # even like most sizes, so unrotated views are not blurred
    step = geometry.scale(views)[:, None]
    middle = jnp.broadcast_to(jnp.array([[size[1] / 2, size[0] / 2]]), (count, 1, 2))
    upright_views = _window(geometry.affine(views, middle)[:, 0] - step * side / 2, step)
    centres = jnp.broadcast_to(geometry.pixel_centres(size).reshape(-1, 2), (count, size[0] * size[1], 2))
    # Upright views are empty outside the frame, and bilinear sampling reads pixels up to one away.
    positions = jnp.clip(geometry.affine(views, centres), step[..., None], sides - step[..., None])
    positions = geometry.affine(geometry.invert(upright_views), positions).reshape(count, *size, 2)
    return geometry.sample(_upright(images, upright_views, (side, side)), positions)
