"""A second look, at small specimens closely, and at those that lie at any angle as if all lay alike.

The network looks at each frame whole, and then at the part around what it found there: closely where frames hold more
pixels than it takes, and turned where specimens lie at any angle. One network does both: in training it sees some images
whole, and of the others what the second look will show it. Validation is of the second look alone, around the true
landmarks.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxmarks import steps
from jaxmarks.augment import spatial
from jaxmarks.ops import geometry, shape, views

# The share of the training images that are shown whole.
WHOLE = 0.25


class Look(NamedTuple):
    """What a second look shows.

    Attributes:
      near: (points (B, K, 2), visible (B, K), frame=(H, W)) -> the views (B, 2, 3) around landmarks.
      turned, mirror: whether specimens lie at any angle, and are mirrored.
    """

    near: Callable
    turned: bool = False
    mirror: bool = False


def around(size: tuple[int, int], zoom: float) -> Look:
    """Upright views of `size` (H, W) around landmarks, in frames `zoom` times as high and wide.

    A specimen that is smaller than most is looked at up to twice as closely as `zoom` times, its pixels made larger.
    """
    return Look(functools.partial(views.close, size=size, most=2 * zoom))


def laid(size: tuple[int, int], zoom: float, *, mean, spread, mirror: bool) -> Look:
    """Views of `size` (H, W) in which specimens lie as their mean shape.

    Args:
      size, zoom: as in `around`.
      mean, spread: (K, 2) and (K,), of `shape.procrustes`.
      mirror: whether a specimen may be the mirror image of others.
    """
    mean, spread = jnp.asarray(mean), jnp.asarray(spread)

    def near(points, visible, frame):
        lies = jax.vmap(lambda *one: shape.laid(*one, mean, spread, mirror=mirror))(points, visible)
        # Of too few landmarks, or of ones in one place, nobody knows how they lie.
        known = (visible.sum(-1) > (2 if mirror else 1)) & (geometry.scale(lies) > 1e-3)
        posed = views.posed(jnp.where(known[:, None, None], lies, jnp.eye(2, 3)), mean, size, least=0.5, most=2 * zoom)
        return jnp.where(known[:, None, None], posed, views.whole(frame, size))

    return Look(near, turned=True, mirror=mirror)


def looking(task: steps.Task, size: tuple[int, int], second: Look) -> steps.Task:
    """The task of a network that takes `size` (H, W), for larger frames, or ones of that size, and points in these.

    Args:
      task: that of a network that looks once.
      size: (H, W).
      second: what the second look shows, `around` or `laid`. Where specimens lie at any angle, and are mirrored, what is
        shown whole in training is turned at random, and mirrored, too.
    """
    near, turned, mirror = second

    def wholes(keys, frame):
        """The frames whole, some as specimens may lie."""
        whole = views.whole(frame, size)
        if not turned:
            return whole

        def one(key):
            angle_key, mirror_key = jax.random.split(key)
            middle = jnp.array([frame[1], frame[0]]) / 2
            angle = jax.random.uniform(angle_key, minval=-math.pi, maxval=math.pi)
            view = geometry.compose(geometry.similarity(angle, 1.0, jnp.zeros(2), middle), whole)
            mirrored = mirror & jax.random.bernoulli(mirror_key)
            return jnp.where(mirrored, geometry.compose(view, spatial.mirror(size)), view)

        return jax.vmap(one)(keys)

    def shown(batch, view):
        """A batch as the network sees it in these views."""
        return batch | {
            "images": views.look(batch["images"], view, size, turned=turned),
            "points": geometry.affine(geometry.invert(view), batch["points"]),
            "delta": batch["delta"] * geometry.scale(view),
        }

    def part(batch):
        # A padding row has no visible landmarks, and is to be seen as the row that it repeats.
        return near(batch["points"], batch["marked"], frame=batch["images"].shape[1:3])

    def some(keys, batch):
        """Some whole, the others in part."""
        whole = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, 4), WHOLE))(keys)
        others = jax.vmap(jax.random.fold_in, (0, None))(keys, 5)
        return jnp.where(whole[:, None, None], wholes(others, batch["images"].shape[1:3]), part(batch))

    def augment(keys, batch):
        return task.augment(keys, shown(batch, some(keys, batch)))

    def plain(batch):
        return task.plain(shown(batch, part(batch)))

    def usual(batch):
        return task.plain(shown(batch, some(steps.keys_of(jax.random.key(0), batch["index"]), batch)))

    def predict(variables, images):
        frame = images.shape[1:3]

        def find(view, *, turned):
            points, scores = steps.predict_step(variables, views.look(images, view, size, turned=turned), task=task)
            there = geometry.affine(view, points)
            return jnp.clip(there, 0, jnp.array(frame[::-1])), scores  # a turned view may leave the frame

        points, scores = find(jnp.broadcast_to(views.whole(frame, size), (images.shape[0], 2, 3)), turned=False)
        typical = jnp.median(scores, axis=-1, keepdims=True)
        there = scores >= jnp.minimum(typical, typical / 2)  # what an image does not show is found anywhere
        view = near(lax.stop_gradient(points), there, frame=frame)
        closer, sure = find(view, turned=turned)
        seen = geometry.inside(geometry.affine(geometry.invert(view), points), size)
        return jnp.where(seen[..., None], closer, points), jnp.where(seen, sure, scores)

    return task._replace(augment=augment, plain=plain, usual=usual, predict=predict)
