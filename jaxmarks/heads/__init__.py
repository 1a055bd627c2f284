"""Heads: each file has a `build(size=(H, W), **facts, **options)` that returns a `Head`.

Facts are properties of the data. For landmarks: `landmarks`, their number, and `shape`, their mean shape and its
spread. For objects: `classes`, the number of classes; `sizes`, the median width and height of the boxes; `anchors`,
typical widths and heights; and `overlap`, the IoU up to which two boxes count as two objects. A head receives the facts
that its `build` names as parameters; an option of the same name that is not None overrides the fact. With several
datasets the fact `sets` gives each dataset's range of landmarks, and each dataset has its own head (`several`).
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxmarks import find
from jaxmarks.ops import boxes as box_ops

# The IoU up to which two boxes count as two objects, where it is not estimated from the data.
OVERLAP = 0.4


def average(found):
    """Averages the decoded arrays (B, T, ...) of T networks."""
    return jax.tree.map(lambda each: jnp.mean(each, axis=1), found)


class Head(NamedTuple):
    """A network's last layer and its pure functions.

    Attributes:
      layer: linen module, features -> outputs.
      targets: batch with "points" (B, K, 2) in pixels of the network's frame and "visible" (B, K), or "boxes" (B, M, 4)
        and "labels" (B, M), and "real" (B,), False for padding -> targets, including masks of what counts in the loss.
      loss: (outputs, targets) -> (total, count); the loss is total / count, so totals and counts of parts of a batch
        add up. The total may be a dict of named, weighted terms, which are summed and logged separately.
      decode: outputs -> (points (B, K, 2) in pixels of the network's frame, scores (B, K)), or `Detections`.
      join: decoded arrays (B, T, ...) of T networks -> the ensemble's: the mean for landmarks, merged detections for
        objects.
      blend: outputs of T networks for the same images (a list) -> outputs to decode in their place, so that evidence is
        averaged, not points; None: each network's outputs are decoded, and then joined.
    """

    layer: nn.Module
    targets: Callable
    loss: Callable
    decode: Callable
    join: Callable = average
    blend: Callable | None = None


class Detections(NamedTuple):
    """L detections per image, best first: box corners in pixels of the network's frame; a score of 0 is padding."""

    boxes: jax.Array  # (B, L, 4)
    scores: jax.Array  # (B, L)
    classes: jax.Array  # (B, L) int32


def build(spec: Mapping[str, Any], *, size: tuple[int, int], **facts) -> Head:
    """Builds the head `spec["name"]` for frames of `size` (H, W), with the spec's options and the data's facts."""
    if sets := facts.pop("sets", None):
        build_one = lambda landmarks: build(spec, size=size, **facts | {"landmarks": landmarks})
        return find.module(__name__, "several", needs="join").join(sets, build_one)
    return find.build(__name__, spec, key="head", size=tuple(size), **facts)


def objects(batch):
    """Returns the targets of object heads: boxes (B, M, 4), 0 for padding, labels (B, M), and "real" (B,)."""
    boxes, labels = batch["boxes"], batch["labels"]
    return jnp.where(labels[..., None] >= 0, boxes, 0), labels, batch["real"]


def visible_points(batch):
    """Returns the targets of landmark heads: points (B, K, 2), 0 where not visible, and visible (B, K).

    Missing points may be NaN, and a loss that only masks its result would still have a NaN gradient.
    """
    points, visible = batch["points"], batch["visible"] != 0
    return jnp.where(visible[..., None], points, 0), visible


def with_padding_box(boxes, labels):
    """Appends a padding box to boxes (B, M, 4) and labels (B, M), so that indexing works in images without objects."""
    return jnp.pad(boxes, ((0, 0), (0, 1), (0, 0))), jnp.pad(labels, ((0, 0), (0, 1)), constant_values=-1)


def need_map(features) -> None:
    """Raises ValueError unless the features are a map (B, h, w, F)."""
    if features.ndim != 4:
        raise ValueError("this head needs a map of features, not a vector: set --config.model.output=map")


def stride_of(maps, size):
    """Returns the stride of maps (B, h, w, K) relative to the frame of `size` (H, W), a power of two.

    It is ambiguous for frames smaller than twice the stride.
    """
    return 2 ** math.ceil(math.log2(max(size[0] / maps.shape[1], size[1] / maps.shape[2])))


def detection_merger(overlap: float | None) -> Callable:
    """Returns the `join` of object heads: boxes with a larger IoU than this (default `OVERLAP`) are one object."""
    overlap = OVERLAP if overlap is None else overlap

    def join(detections: Detections) -> Detections:
        return Detections(*jax.vmap(functools.partial(box_ops.merge_networks, iou=overlap))(*detections))

    return join


def candidate_count(limit: int, each: int, count: int) -> int:
    """Returns how many of `count` boxes, those with the best scores, are kept as candidates for `limit` objects.

    That is `each` per object, for at least 300 objects: an object may have several boxes before non-maximum
    suppression.
    """
    return min(each * max(limit, 300), count)


def suppressed(boxes, scores, classes, *, limit: int, overlap: float | None, vote: bool = False) -> Detections:
    """Reduces N candidates of one image, (N, 4), (N,), (N,), to at most `limit` detections by non-maximum suppression.

    `overlap` is the IoU up to which two boxes count as two objects, by default `OVERLAP`. With `vote` a remaining box
    is averaged with those that it suppressed (`ops.boxes.vote`); this suits heads that train every box to be accurate,
    not only the one at a peak.
    """
    overlap = OVERLAP if overlap is None else overlap
    top_scores, top_indices = lax.top_k(scores, candidate_count(limit, 4, len(scores)))
    boxes, classes = boxes[top_indices], classes[top_indices].astype(jnp.int32)
    chosen, kept = box_ops.nms(boxes, top_scores, limit=min(limit, len(top_indices)), iou=overlap, classes=classes)
    chosen_boxes = boxes[chosen]
    if vote:
        weights = jnp.where(kept[:, None] & (classes[chosen][:, None] == classes), top_scores, 0)
        chosen_boxes = box_ops.vote(chosen_boxes, boxes, weights, iou=overlap)
    return Detections(chosen_boxes, jnp.where(kept, top_scores[chosen], 0), classes[chosen])
