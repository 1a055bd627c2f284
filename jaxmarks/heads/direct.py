"""Direct regression: a linear layer gives the coordinates of the landmarks, normalised (beetle paper, fish paper)."""

import flax.linen as nn
import jax.numpy as jnp

from jaxmarks.heads import Head, visible_points
from jaxmarks.ops import geometry, losses


class Coordinates(nn.Module):
    """Features (B, F) -> normalised coordinates (B, K, 2)."""

    landmarks: int

    @nn.compact
    def __call__(self, features):
        if features.ndim != 2:
            raise ValueError("the direct head takes a vector of features: set --config.model.output=vector")
        outputs = nn.Dense(2 * self.landmarks, kernel_init=nn.initializers.glorot_uniform(), name="fc3")(features)
        return outputs.reshape(-1, self.landmarks, 2)


def build(*, landmarks, size, loss="mse", interval="symmetric"):
    """The direct head.

    A regressed coordinate carries no confidence of its own: its score is 1. One outside the frame is wrong, for landmarks
    lie inside: it is put on the border, which is nearer to wherever the landmark is, and scores 0.

    Args:
      landmarks: K.
      size: (H, W) of the frame.
      loss: the name of a penalty in `ops.losses`, of normalised coordinates, as "wing" or with options of its own
        "wing:width=0.1,epsilon=0.02": the widths, which are given for [-1, 1], are twice as many pixels in [0, 1].
      interval: what a frame's width and height are scaled to: `symmetric`, [-1, 1] (beetle paper), or `unit`, [0, 1]
        (fish paper).
    """
    penalty = losses.named(loss)
    if interval not in ("symmetric", "unit"):
        raise ValueError(f"head.interval={interval!r}: there are symmetric and unit")
    unit = interval == "unit"

    def targets(batch):
        points, visible = visible_points(batch)
        points = geometry.normalise(points, size)
        return (points + 1) / 2 if unit else points, visible

    def masked(outputs, targets):
        points, visible = targets
        mask = visible[..., None].astype(outputs.dtype)
        return jnp.sum(penalty(outputs - points) * mask), 2 * jnp.sum(mask)

    def decode(outputs):
        points = geometry.denormalise(2 * outputs - 1 if unit else outputs, size)
        nearest = jnp.clip(points, 0, jnp.array([size[1], size[0]], points.dtype))
        return nearest, jnp.all(points == nearest, axis=-1).astype(points.dtype)

    return Head(Coordinates(landmarks), targets, masked, decode)
