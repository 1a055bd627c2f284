"""Small specimens in large photographs: a network looks at each whole, and then closely at the part that it found.

The frame holds more pixels than the network takes. One network does both: in training it sees some images whole, and of
the others what the second look will show it. Validation is of the second look alone, around the true landmarks.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxmarks import steps
from jaxmarks.ops import geometry, views

# The share of the training images that are shown whole.
WHOLE = 0.25


def looking(task: steps.Task, size: tuple[int, int], zoom: float) -> steps.Task:
    """The task of a network that takes `size` (H, W), for frames `zoom` times as high and wide, and points in these.

    A specimen that is smaller than most is looked at up to twice as closely, its pixels made larger.
    """

    def near(points, visible, frame):
        return views.close(points, visible, frame, size, most=2 * zoom)

    def shown(batch, whole):
        """A batch as the network sees it, the images of which `whole` (B,) is true whole."""
        frame = batch["images"].shape[1:3]
        # A padding row has no visible landmarks, and is to be seen as the row that it repeats.
        part = near(batch["points"], batch["marked"], frame)
        view = jnp.where(whole[:, None, None], views.whole(frame, size), part)
        return batch | {
            "images": views.look(batch["images"], view, size),
            "points": geometry.affine(geometry.invert(view), batch["points"]),
            "delta": batch["delta"] * jnp.sqrt(view[:, 0, 0] * view[:, 1, 1]),
        }

    def some(keys):
        return jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, 4), WHOLE))(keys)

    def augment(keys, batch):
        return task.augment(keys, shown(batch, some(keys)))

    def plain(batch):
        return task.plain(shown(batch, jnp.zeros(len(batch["images"]), bool)))

    def usual(batch):
        return task.plain(shown(batch, some(steps.keys_of(jax.random.key(0), batch["index"]))))

    def predict(variables, images):
        frame = images.shape[1:3]

        def find(view):
            points, scores = steps.predict_step(variables, views.look(images, view, size), task=task)
            return geometry.affine(view, points), scores

        points, scores = find(jnp.broadcast_to(views.whole(frame, size), (images.shape[0], 2, 3)))
        typical = jnp.median(scores, axis=-1, keepdims=True)
        there = scores >= jnp.minimum(typical, typical / 2)  # what an image does not show is found anywhere
        view = near(lax.stop_gradient(points), there, frame)
        closer, sure = find(view)
        seen = geometry.inside(geometry.affine(geometry.invert(view), points), size)
        return jnp.where(seen[..., None], closer, points), jnp.where(seen, sure, scores)

    return task._replace(augment=augment, plain=plain, usual=usual, predict=predict)
