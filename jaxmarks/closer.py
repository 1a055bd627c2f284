"""The second look: predicts landmarks in the whole frame, and once more in a view around the landmarks found there.

The view is enlarged if frames hold more pixels than the network takes, and rotated to a common pose if specimens lie at
any angle. One network does both looks: in training it sees some images whole, and of the others the view of the second
look. Validation uses the second look alone, around the true landmarks.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxmarks import steps
from jaxmarks.augment import spatial
from jaxmarks.ops import geometry, shape, views

# The share of training images that are shown whole.
WHOLE = 0.25


def posed_views(size: tuple[int, int], most: float, mean, spread, *, mirror: bool) -> Callable:
    """Returns a function like `views.close` whose views of `size` (H, W) show each specimen in the mean shape's pose.

    Args:
      size, most: as in `views.close`.
      mean, spread: (K, 2) and (K,), from `shape.procrustes`.
      mirror: whether a specimen may be the mirror image of others.
    """
    mean, spread = jnp.asarray(mean), jnp.asarray(spread)

    def near(points, visible, frame):
        pose = jax.vmap(lambda *one: shape.fit_pose(*one, mean, spread, mirror=mirror))(points, visible)
        # Too few landmarks, or coinciding ones, determine no pose: these frames are shown whole.
        valid = (visible.sum(-1) > (2 if mirror else 1)) & (geometry.scale(pose) > 1e-3)
        posed = views.posed(jnp.where(valid[:, None, None], pose, jnp.eye(2, 3)), mean, size, least=0.5, most=most)
        return jnp.where(valid[:, None, None], posed, views.whole(frame, size))

    return near


def with_second_look(
    task: steps.Task, size: tuple[int, int], zoom: float, *, fitted_shape=None, mirror: bool = False
) -> steps.Task:
    """Adds a second look to a task; it then takes whole frames, with points in their pixels.

    Args:
      task: the task of a network that looks once.
      size: (H, W) that the network takes.
      zoom: frames are so many times as high and wide. A view magnifies the whole frame up to 2 `zoom` times: an
        unusually small specimen is shown with enlarged pixels.
      fitted_shape: if specimens lie at any angle, the mean shape to whose pose views are turned, and its spread
        (`posed_views`). Images that training shows whole are then turned (and mirrored, if `mirror`) at random.
      mirror: whether specimens may be mirror images of each other.
    """
    turned = fitted_shape is not None
    near: Callable = functools.partial(views.close, size=size, most=2 * zoom)
    if fitted_shape is not None:
        near = posed_views(size, 2 * zoom, *fitted_shape, mirror=mirror)

    def whole_views(keys, frame):
        """Returns views of the whole frames, turned (and mirrored) at random if specimens lie at any angle."""
        whole = views.whole(frame, size)
        if not turned:
            return whole

        def turned_view(key):
            angle_key, mirror_key = jax.random.split(key)
            middle = jnp.array([frame[1], frame[0]]) / 2
            angle = jax.random.uniform(angle_key, minval=-math.pi, maxval=math.pi)
            view = geometry.compose(geometry.similarity(angle, 1.0, jnp.zeros(2), middle), whole)
            mirrored = mirror & jax.random.bernoulli(mirror_key)
            return jnp.where(mirrored, geometry.compose(view, spatial.mirror(size)), view)

        return jax.vmap(turned_view)(keys)

    def show(batch, view):
        """Returns the batch as these views show it to the network."""
        return batch | {
            "images": views.resample(batch["images"], view, size, turned=turned),
            "points": geometry.affine(geometry.invert(view), batch["points"]),
            "delta": batch["delta"] * geometry.scale(view),
        }

    def near_views(batch):
        # Not "visible", which is False in padding rows: they must get the view of the row that they repeat.
        return near(batch["points"], batch["marked"], frame=batch["images"].shape[1:3])

    def mixed_views(keys, batch):
        """Draws views that show some frames whole, and the others around their landmarks."""
        whole = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, 4), WHOLE))(keys)
        view_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 5)
        return jnp.where(whole[:, None, None], whole_views(view_keys, batch["images"].shape[1:3]), near_views(batch))

    def augment(keys, batch):
        return task.augment(keys, show(batch, mixed_views(keys, batch)))

    def plain(batch):
        return task.plain(show(batch, near_views(batch)))

    def training_views(batch):
        return task.plain(show(batch, mixed_views(steps.keys_of(jax.random.key(0), batch["index"]), batch)))

    def predict(networks, images):
        frame = images.shape[1:3]

        def look(view, *, turned):
            shown = views.resample(images, view, size, turned=turned)
            points, scores = steps.predict_jointly(networks, shown, task=task)
            there = geometry.affine(view, points)
            return jnp.clip(there, 0, jnp.array(frame[::-1])), scores  # a turned view may leave the frame

        points, scores = look(jnp.broadcast_to(views.whole(frame, size), (images.shape[0], 2, 3)), turned=False)
        median = jnp.median(scores, axis=-1, keepdims=True)
        there = scores >= jnp.minimum(median, median / 2)  # absent landmarks are found anywhere, at low scores
        view = near(lax.stop_gradient(points), there, frame=frame)
        second_points, second_scores = look(view, turned=turned)
        is_inside = geometry.inside(geometry.affine(geometry.invert(view), points), size)
        return jnp.where(is_inside[..., None], second_points, points), jnp.where(is_inside, second_scores, scores)

    return task._replace(augment=augment, plain=plain, training_views=training_views, predict=predict)
