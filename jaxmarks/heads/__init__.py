"""Heads: each file has a `build(size=(H, W), **facts, **options)` that returns a `Head`.

Facts are what the data say: `landmarks`, their number, and `shape`, how they lie to each other; or of objects `classes`,
their number, `sizes`, the median width and height of their boxes, `anchors`, typical ones, and `overlap`, the IoU up to
which two boxes are two objects. A head takes those that its `build` names; an option of the same name that is not None
goes before the fact. Of several datasets `sets` says which of the landmarks are whose, and each has a head of its own
(`several`).
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

# The IoU up to which two boxes are two objects, where no data say it.
OVERLAP = 0.4


def average(found):
    """The mean of what T networks find, arrays (B, T, ...)."""
    return jax.tree.map(lambda each: jnp.mean(each, axis=1), found)


class Head(NamedTuple):
    """The last layer and four pure functions.

    Attributes:
      layer: linen module, features -> outputs.
      targets: batch with "points" (B, K, 2) in pixels of the network's frame and "visible" (B, K), or "boxes" (B, M, 4)
        and "labels" (B, M), and "real" (B,), False for padding -> targets, which say what of them counts.
      loss: (outputs, targets) -> (total, count); the loss is total / count, so that parts of a batch add. The total may be
        a dict of weighted terms by name, whose sum it is: each has its own line in the log.
      decode: outputs -> (points (B, K, 2) in pixels of the network's frame, scores (B, K)), or `Detections`.
      join: what T networks decode, arrays (B, T, ...) -> that of all together: of landmarks the mean, of objects those on
        which they agree.
    """

    layer: nn.Module
    targets: Callable
    loss: Callable
    decode: Callable
    join: Callable = average


class Detections(NamedTuple):
    """L objects of each image, the best first: corners in pixels of the network's frame; a score of 0 is no object."""

    boxes: jax.Array  # (B, L, 4)
    scores: jax.Array  # (B, L)
    classes: jax.Array  # (B, L) int32


def build(spec: Mapping[str, Any], *, size: tuple[int, int], **facts) -> Head:
    """The head that `spec["name"]` names for frames of `size` (H, W) and data of these facts."""
    if sets := facts.pop("sets", None):
        one = lambda landmarks: build(spec, size=size, **facts | {"landmarks": landmarks})
        return find.module(__name__, "several", needs="join").join(sets, one)
    return find.build(__name__, spec, key="head", size=tuple(size), **facts)


def objects(batch):
    """The targets of the heads that find objects: boxes (B, M, 4), 0 where there is none, labels (B, M), and "real" (B,)."""
    boxes, labels = batch["boxes"], batch["labels"]
    return jnp.where(labels[..., None] >= 0, boxes, 0), labels, batch["real"]


def visible_points(batch):
    """The targets of the heads that find landmarks: points (B, K, 2), 0 where not visible, and visible (B, K).

    What is missing may be no number, and a loss that leaves it out would still have no number for a gradient.
    """
    points, visible = batch["points"], batch["visible"] != 0
    return jnp.where(visible[..., None], points, 0), visible


def with_none(boxes, labels):
    """Boxes (B, M, 4) and labels (B, M) with one more that is no object, so that images without any have an index, too."""
    return jnp.pad(boxes, ((0, 0), (0, 1), (0, 0))), jnp.pad(labels, ((0, 0), (0, 1)), constant_values=-1)


def need_map(features) -> None:
    """Refuses features that are no map."""
    if features.ndim != 4:
        raise ValueError("this head takes a map of features: set --config.model.output=map")


def stride_of(maps, size):
    """How much coarser maps (B, h, w, K) are than the frame of `size`: the power of two that its sides were divided by.

    A frame of less than twice that is too small to tell.
    """
    return 2 ** math.ceil(math.log2(max(size[0] / maps.shape[1], size[1] / maps.shape[2])))


def agreement(overlap: float | None) -> Callable:
    """The `join` of heads that find objects: boxes of two networks that overlap more (by default `OVERLAP`) are one object."""
    overlap = OVERLAP if overlap is None else overlap

    def join(found: Detections) -> Detections:
        return Detections(*jax.vmap(functools.partial(box_ops.agreed, iou=overlap))(*found))

    return join


def candidates(limit: int, each: int, count: int) -> int:
    """How many of `count` boxes, the best, are looked at for `limit` objects: `each` for one, but not few in all.

    Before non-maximum suppression several may be of one object.
    """
    return min(each * max(limit, 300), count)


def suppressed(boxes, scores, classes, *, limit: int, overlap: float | None, vote: bool = False) -> Detections:
    """One image's detections of N candidates (N, 4), (N,), (N,): at most `limit`, by non-maximum suppression.

    `overlap` is `OVERLAP` by default. With a `vote` the boxes that give way have a say in where the one that stays is:
    where each was trained to be right, not where only that at a peak was.
    """
    overlap = OVERLAP if overlap is None else overlap
    some, place = lax.top_k(scores, candidates(limit, 4, len(scores)))
    boxes, classes = boxes[place], classes[place].astype(jnp.int32)
    chosen, kept = box_ops.nms(boxes, some, limit=min(limit, len(place)), iou=overlap, classes=classes)
    placed = boxes[chosen]
    if vote:
        weights = jnp.where(kept[:, None] & (classes[chosen][:, None] == classes), some, 0)
        placed = box_ops.vote(placed, boxes, weights, iou=overlap)
    return Detections(placed, jnp.where(kept, some[chosen], 0), classes[chosen])
