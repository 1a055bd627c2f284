"""Direct regression: a linear layer gives the coordinates of the landmarks, normalised to [-1, 1] (beetle paper)."""

import flax.linen as nn
import jax.numpy as jnp

from jaxmarks.heads import Head
from jaxmarks.ops import geometry, losses


class Coordinates(nn.Module):
    """Features (B, F) -> normalised coordinates (B, K, 2)."""

    landmarks: int

    @nn.compact
    def __call__(self, features):
        outputs = nn.Dense(2 * self.landmarks, kernel_init=nn.initializers.glorot_uniform(), name="fc3")(features)
        return outputs.reshape(-1, self.landmarks, 2)


def build(*, landmarks, size, loss="mse"):
    """The direct head; `loss` is the name of a function in `ops.losses`.

    Its scores are 1: a regressed coordinate carries no confidence of its own.
    """
    penalty = losses.named(loss)

    def masked(outputs, targets, mask):
        mask = mask[..., None].astype(outputs.dtype)
        return jnp.sum(penalty(outputs - targets) * mask), 2 * jnp.sum(mask)

    def decode(outputs):
        points = geometry.denormalise(outputs, size)
        return points, jnp.ones(points.shape[:-1], points.dtype)

    return Head(Coordinates(landmarks), lambda batch: geometry.normalise(batch["points"], size), masked, decode)
