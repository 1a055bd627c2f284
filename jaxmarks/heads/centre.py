"""Centre heatmaps: detects objects as the peaks of one map per class (Zhou et al. 2019, CenterNet).

The target maps are Gaussians as in the landmark heads (`ops.heatmaps`), drawn at the middle of the pixel in which an
object's centre lies. The network also predicts the centre's offset from that pixel's corner and the size of the box.
Where the 3x3 peak test leaves two peaks on one object, non-maximum suppression removes one.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxmarks.heads import Head, candidate_count, detection_merger, need_map, objects, stride_of, suppressed
from jaxmarks.ops import boxes as box_ops
from jaxmarks.ops import geometry, heatmaps


class CentreMaps(nn.Module):
    """Features (B, h, w, F) -> (B, h, w, C + 4): class logits, offset (x, y), log width and log height."""

    classes: int

    @nn.compact
    def __call__(self, features):
        need_map(features)
        # The bias makes initial scores about 0.1, so that the many background pixels do not dominate the first steps.
        logits = nn.Dense(self.classes, bias_init=nn.initializers.constant(-math.log(9)), name="classes")(features)
        return jnp.concatenate([logits, nn.Dense(4, name="boxes")(features)], axis=-1)


def build(*, classes, sizes, size, sigma=3.0, overlap=None, limit=300, size_weight=1.0):
    """Builds the centre head.

    Args:
      classes: the number of classes C.
      sizes: (width, height) of a typical box in pixels of the frame; the network predicts sizes as log ratios to it.
      size: (H, W) of the frame.
      sigma: standard deviation of the target peaks, in pixels of the frame.
      overlap: IoU up to which two boxes count as two objects; by default the fact, estimated from the data.
      limit: the maximum number of objects in an image.
      size_weight: weight of the size loss; the class and offset losses have weight 1.
    """
    typical_size = jnp.asarray(sizes, jnp.float32)

    def loss(outputs, targets):
        boxes, labels, real = targets
        stride = stride_of(outputs, size)
        shape = outputs.shape[1:3]
        centred = box_ops.to_centres(boxes)
        is_object = real[:, None] & (labels >= 0) & geometry.inside(centred[..., :2], size)
        centre = centred[..., :2] / stride
        column, row = (jnp.clip(jnp.floor(centre[..., i]).astype(jnp.int32), 0, shape[1 - i] - 1) for i in (0, 1))
        gaussians = heatmaps.gaussian(jnp.stack([column, row], -1) + 0.5, shape, sigma / stride)
        target = heatmaps.largest_of_class(gaussians, jnp.where(is_object, labels, -1), classes)
        logits = outputs[..., :classes]
        total = jnp.sum(focal(logits, target) * real[:, None, None, None])

        at_centres = jax.vmap(lambda maps, r, c: maps[r, c])(outputs[..., classes:], row, column)  # (B, M, 4)
        box_targets = jnp.concatenate(
            [centre - jnp.stack([column, row], -1), jnp.log(jnp.maximum(centred[..., 2:], 1.0) / typical_size)], axis=-1
        )
        weights = jnp.array([1.0, 1.0, size_weight, size_weight])
        total += jnp.sum(jnp.abs(at_centres - box_targets) * weights * is_object[..., None])
        return total, jnp.sum(is_object.astype(outputs.dtype))

    def decode(outputs):
        stride = stride_of(outputs, size)
        logits = outputs[..., :classes]
        b, _, width, _ = logits.shape
        peaks = jnp.where(is_peak(logits), jax.nn.sigmoid(logits), 0).reshape(b, -1)
        top_scores, top_indices = lax.top_k(peaks, candidate_count(limit, 1, peaks.shape[1]))
        pixel, label = top_indices // classes, top_indices % classes
        at_peaks = jnp.take_along_axis(outputs[..., classes:].reshape(b, -1, 4), pixel[..., None], axis=1)
        corner = jnp.stack([pixel % width, pixel // width], axis=-1)
        centre = (corner + at_peaks[..., :2]) * stride
        extent = typical_size * jnp.exp(jnp.clip(at_peaks[..., 2:], -3.0, 3.0))
        boxes = box_ops.to_corners(jnp.concatenate([centre, extent], axis=-1))
        return jax.vmap(functools.partial(suppressed, limit=limit, overlap=overlap))(boxes, top_scores, label)

    return Head(CentreMaps(classes), objects, loss, decode, detection_merger(overlap))


def focal(logits, target, *, alpha=2.0, beta=4.0):
    """Returns CenterNet's focal loss per pixel: -(1 - p)^a log p where target t = 1, else -(1 - t)^b p^a log(1 - p)."""
    p = jax.nn.sigmoid(logits)
    positive = -((1 - p) ** alpha) * jax.nn.log_sigmoid(logits)
    negative = -((1 - target) ** beta) * p**alpha * jax.nn.log_sigmoid(-logits)
    return jnp.where(target >= 1 - 1e-6, positive, negative)


def is_peak(maps):
    """Whether each pixel of maps (B, h, w, C) is the first maximum of its 3x3 neighbourhood.

    Pass logits, not their sigmoids, which XLA may compute twice and round differently.
    """
    local_maximum = nn.max_pool(maps, (3, 3), padding="SAME")
    padded = jnp.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    h, w = maps.shape[1:3]
    earlier = ((0, 0), (0, 1), (0, 2), (1, 0))  # the row above, and the pixel to the left
    ties_earlier = functools.reduce(jnp.logical_or, [padded[:, y : y + h, x : x + w] == maps for y, x in earlier])
    return (maps >= local_maximum) & ~ties_earlier
