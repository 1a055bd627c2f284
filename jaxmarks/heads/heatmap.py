"""Heatmap regression: one map per landmark, whose target is a Gaussian or an exponential (fish paper)."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxmarks.heads import Head, need_map, stride_of, visible_points
from jaxmarks.ops import decode as decoders
from jaxmarks.ops import heatmaps, losses, names
from jaxmarks.ops import shape as shapes

# Targets by name: the drawing function, and the sum over the pixels as a function of sigma.
TARGETS = {
    "gaussian": (heatmaps.gaussian, lambda sigma: 2 * math.pi * sigma**2),
    "exponential": (heatmaps.exponential, lambda sigma: (4 * sigma / math.log(2)) ** 2),
}
# Losses that compare distributions: the network's outputs are logits of a softmax over the map's pixels.
DISTRIBUTIONS = ("cross_entropy", "jensen_shannon")
# A replacement peak (`leap`) must be at least this share as high as the peak that it replaces.
FAINT = 0.2


class Maps(nn.Module):
    """Features (B, h, w, F) -> one map per landmark (B, h, w, K), by a 1x1 convolution."""

    landmarks: int
    tanh: bool = False

    @nn.compact
    def __call__(self, features):
        need_map(features)
        maps = nn.Dense(self.landmarks, name="maps")(features)
        return jnp.tanh(maps) if self.tanh else maps


def build(
    *,
    landmarks,
    size,
    target="gaussian",
    sigma=5.0,
    loss="mse",
    decoder="local_soft_argmax",
    tanh=False,
    leap=0.0,
    shape=None,
):
    """Builds the heatmap head.

    The maps may be coarser than the frame by a power of two, which is inferred from the size of the body's features.

    Args:
      landmarks: K.
      size: (H, W) of the frame.
      target: `gaussian` or `exponential`.
      sigma: width of the target, in pixels of the network's frame.
      loss: the name of a heatmap loss in `ops.losses` without its prefix, optionally with options: "weighted_mse" or
        "weighted_mse:weight=50".
      decoder: the name of a function in `ops.decode`, in the same form.
      tanh: whether to apply tanh to the maps, as in Flat-net; not with a loss of distributions, whose logits it bounds.
      leap: how many standard deviations of the `shape` a landmark may lie from where the other landmarks predict it.
        Farther out it is moved to the highest peak of its map near that prediction, if the peak is at least `FAINT`
        times as high as the original one. 0 turns this off.
      shape: (mean, spread) from `ops.shape.procrustes` over the training images; ignored for fewer than four landmarks.
    """
    if target not in TARGETS:
        raise ValueError(f"head.target={target!r}: choose one of {', '.join(TARGETS)}")
    distribution = names.base_name(loss) in DISTRIBUTIONS
    if tanh and distribution:
        raise ValueError(f"head.tanh=True: head.loss={loss} needs unbounded maps; set head.tanh=False")
    draw, mass = TARGETS[target]
    penalty = losses.named(loss, prefix="heatmap_")
    decode_maps = decoders.named(decoder)
    sets_window = names.base_name(decoder) == "local_soft_argmax" and "window=" not in decoder  # sigma sets the window
    uses_shape = shape and leap > 0 and landmarks >= 4

    def masked_loss(outputs, targets):
        points, visible = targets
        stride = stride_of(outputs, size)
        each = penalty(outputs, draw(points / stride, outputs.shape[1:3], sigma / stride))
        return jnp.sum(jnp.where(visible, each, 0)), jnp.sum(visible.astype(outputs.dtype))

    def decode(outputs):
        stride = stride_of(outputs, size)
        if distribution:  # scaled to the target's sum, so that scores are comparable between losses
            outputs = jax.nn.softmax(outputs, axis=(1, 2)) * mass(sigma / stride)
        finder = functools.partial(decode_maps, window=max(1.0, sigma / stride)) if sets_window else decode_maps
        points, scores = finder(outputs)
        if uses_shape:
            points, scores = consistent(outputs, points, scores, finder, stride)
        return points * stride, scores

    def consistent(maps, points, scores, finder, stride):
        """Returns points and scores, with points too far from where the others predict them decoded again."""
        mean, spread = map(jnp.asarray, shape)
        predicted, deviation = jax.vmap(lambda each: shapes.expected(each, mean, spread))(lax.stop_gradient(points))
        deviation = jnp.maximum(deviation, 1 / stride)  # at least a pixel of the frame
        errors = jnp.sum((points - predicted) ** 2, -1) / deviation**2
        fits = jnp.median(errors, -1, keepdims=True) <= shapes.SURE**2  # False for example for a mirrored specimen
        leapt = fits & (errors > leap**2)

        def decode_again():
            near = heatmaps.gaussian(
                jnp.where(leapt[..., None], predicted, points), maps.shape[1:3], 2 * deviation[:, None]
            )
            peak, _ = decoders.argmax(jnp.maximum(maps, 0) * near)
            # Decodes the map itself around the peak: the maximum of map times `near` is shifted towards `predicted`.
            moved, heights = finder(jnp.where(around(peak, maps.shape[1:3], 3 * max(1.0, sigma / stride)), maps, 0))
            better = leapt & (heights >= FAINT * scores)
            return jnp.where(better[..., None], moved, points), jnp.where(better, heights, scores)

        return lax.cond(leapt.any(), decode_again, lambda: (points, scores))

    def blend(outputs):
        if not distribution:
            return jnp.mean(jnp.stack(outputs), axis=0)
        logs = jax.nn.log_softmax(jnp.stack(outputs), axis=(2, 3))
        return jax.nn.logsumexp(logs, axis=0)  # of the networks' mean probabilities, up to a constant

    return Head(Maps(landmarks, tanh), visible_points, masked_loss, decode, blend=blend)


def around(points, shape, radius):
    """Marks (B, H, W, K) the pixels of a map of `shape` (H, W) within `radius` of points (B, K, 2) along both axes."""
    rows, columns = (jnp.arange(side) + 0.5 for side in shape)
    near_rows = jnp.abs(rows[:, None] - points[:, None, :, 1]) <= radius
    near_columns = jnp.abs(columns[:, None] - points[:, None, :, 0]) <= radius
    return near_rows[:, :, None] & near_columns[:, None]
