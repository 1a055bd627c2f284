"""Soft-argmax regression: the expected position under the softmax of each map, trained with a coordinate loss.

The step from map to point is differentiable, so the coordinate loss trains the map (Luvizon et al. 2019, KNEEL's
hourglass). Adding the divergence between the map and a Gaussian at the landmark keeps maps to one narrow peak (DSNT,
Nibali et al. 2018).
"""

import jax
import jax.numpy as jnp

from jaxmarks.heads import Head, stride_of, visible_points
from jaxmarks.heads.heatmap import TARGETS, Maps
from jaxmarks.ops import decode as decoders
from jaxmarks.ops import geometry, losses, names


def build(*, landmarks, size, loss="wing", divergence=1.0, sigma=3.0):
    """Builds the soft-argmax head.

    Args:
      landmarks: K.
      size: (H, W) of the frame.
      loss: the name of a penalty in `ops.losses`, optionally with options: "wing" or "wing:width=0.1,epsilon=0.02". It
        is applied to coordinates normalised to [-1, 1].
      divergence: weight of the Jensen-Shannon divergence between the map and a Gaussian; 0 turns it off.
      sigma: standard deviation of that Gaussian, in pixels of the frame. A map equal to it has a score of 1.
    """
    penalty = losses.named(loss)
    draw, mass = TARGETS["gaussian"]

    def decode(outputs):
        probabilities, stride = jax.nn.softmax(outputs, axis=(1, 2)), stride_of(outputs, size)
        points, peaks = decoders.soft_argmax(probabilities, temperature=1.0)
        return points * stride, peaks * mass(sigma / stride)

    def masked_loss(outputs, targets):
        points, visible = targets
        residual = geometry.normalise(decode(outputs)[0], size) - geometry.normalise(points, size)
        terms = {names.base_name(loss): penalty(residual).mean(-1)}
        if divergence:
            stride = stride_of(outputs, size)
            target = draw(points / stride, outputs.shape[1:3], sigma / stride)
            terms[f"{divergence:g} divergence"] = divergence * losses.heatmap_jensen_shannon(outputs, target)
        totals = {name: jnp.sum(jnp.where(visible, each, 0)) for name, each in terms.items()}
        return totals, jnp.sum(visible.astype(outputs.dtype))

    return Head(Maps(landmarks), visible_points, masked_loss, decode)
