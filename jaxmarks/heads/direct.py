"""Direct regression: a linear layer predicts normalised landmark coordinates (beetle paper, fish paper)."""

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
            raise ValueError("the direct head needs a vector of features, not a map: set --config.model.output=vector")
        outputs = nn.Dense(2 * self.landmarks, kernel_init=nn.initializers.glorot_uniform(), name="fc3")(features)
        return outputs.reshape(-1, self.landmarks, 2)


def build(*, landmarks, size, loss="mse", interval="symmetric"):
    """Builds the direct head.

    Regression gives no confidence, so the score of a landmark is 1. A prediction outside the frame must be wrong, since
    landmarks lie inside: it is moved to the nearest point of the border, which reduces its error, and scores 0.

    Args:
      landmarks: K.
      size: (H, W) of the frame.
      loss: the name of a penalty in `ops.losses`, optionally with options: "wing" or "wing:width=0.1,epsilon=0.02". It
        is applied to normalised coordinates; the default widths are meant for [-1, 1] and span twice as many pixels
        with [0, 1].
      interval: the range of normalised coordinates: `symmetric`, [-1, 1] (beetle paper), or `unit`, [0, 1] (fish
        paper).
    """
    penalty = losses.named(loss)
    if interval not in ("symmetric", "unit"):
        raise ValueError(f"head.interval={interval!r}: choose symmetric or unit")
    unit = interval == "unit"

    def targets(batch):
        points, visible = visible_points(batch)
        points = geometry.normalise(points, size)
        return (points + 1) / 2 if unit else points, visible

    def masked_loss(outputs, targets):
        points, visible = targets
        mask = visible[..., None].astype(outputs.dtype)
        return jnp.sum(penalty(outputs - points) * mask), 2 * jnp.sum(mask)

    def decode(outputs):
        points = geometry.denormalise(2 * outputs - 1 if unit else outputs, size)
        nearest = jnp.clip(points, 0, jnp.array([size[1], size[0]], points.dtype))
        return nearest, jnp.all(points == nearest, axis=-1).astype(points.dtype)

    return Head(Coordinates(landmarks), targets, masked_loss, decode)
