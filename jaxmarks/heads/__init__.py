"""Heads: each file has a `build(size=(H, W), **facts, **options)` that returns a `Head`.

Facts are what the data say: `landmarks`, their number; or of objects `classes`, their number, `sizes`, the median width and
height of their boxes, and `anchors`, typical ones. A head takes those that its `build` names.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from jaxmarks import find


class Head(NamedTuple):
    """The last layer and three pure functions.

    Attributes:
      layer: linen module, features -> outputs.
      targets: batch with "points" (B, K, 2) in pixels of the network's frame and "visible" (B, K), or "boxes" (B, M, 4)
        and "labels" (B, M), and "real" (B,), False for padding -> targets, which say what of them counts.
      loss: (outputs, targets) -> (total, count); the loss is total / count, so that parts of a batch add. The total may be
        a dict of weighted terms by name, whose sum it is: each has its own line in the log.
      decode: outputs -> (points (B, K, 2) in pixels of the network's frame, scores (B, K)), or `Detections`.
    """

    layer: nn.Module
    targets: Callable
    loss: Callable
    decode: Callable


class Detections(NamedTuple):
    """L objects of each image, the best first: corners in pixels of the network's frame; a score of 0 is no object."""

    boxes: jax.Array  # (B, L, 4)
    scores: jax.Array  # (B, L)
    classes: jax.Array  # (B, L) int32


def build(spec: Mapping[str, Any], *, size: tuple[int, int], **facts) -> Head:
    """The head that `spec["name"]` names for frames of `size` (H, W) and data of these facts."""
    options = dict(spec)
    name = options.pop("name")
    builder = find.module("jaxmarks.heads", name, needs="build").build
    wanted = inspect.signature(builder).parameters
    missing = [key for key, p in wanted.items() if p.default is p.empty and key not in {"size", *facts, *options}]
    if missing:
        raise ValueError(f"--config.head.name={name} needs {', '.join(missing)}; the data have {', '.join(facts)}")
    return builder(size=tuple(size), **{key: value for key, value in facts.items() if key in wanted}, **options)
