"""What of a frame a network sees: the whole, or the part around the landmarks.

A view is an upright window of a frame, shown at a network's size: the affine map (..., 2, 3) from its pixels to the
frame's.
"""

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
    return step[..., None] * jnp.eye(2, 3) + start[..., None] * jnp.array([0.0, 0.0, 1.0])


def look(images, views, size):
    """Frames (B, H, W, C) as the `views` (B, 2, 3) show them, (B, h, w, C) of the same dtype, antialiased.

    That of the whole is `geometry.resize`'s. Beyond a frame's border there is nothing but its edge. Integer images are
    rounded.
    """

    def one(image, view):
        scale = 1 / jnp.stack([view[1, 1], view[0, 0]])
        shift = -jnp.stack([view[1, 2], view[0, 2]]) * scale
        return jax.image.scale_and_translate(
            image, (*size, image.shape[-1]), (0, 1), scale, shift, "linear", antialias=True
        )

    seen = jax.vmap(one)(images.astype(jnp.float32), views)
    return (jnp.round(seen) if jnp.issubdtype(images.dtype, jnp.integer) else seen).astype(images.dtype)
