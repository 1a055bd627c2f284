"""Heads: each file has a `build(landmarks=K, size=(H, W), **options)` that returns a `Head`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn

from jaxmarks import find


class Head(NamedTuple):
    """The last layer and three pure functions.

    Attributes:
      layer: linen module, features -> outputs.
      targets: batch with "points" (B, K, 2) in pixels of the network's frame and "visible" (B, K) -> targets, which say
        what of them counts.
      loss: (outputs, targets) -> (total, count); the loss is total / count, so that parts of a batch add.
      decode: outputs -> (points (B, K, 2) in pixels of the network's frame, scores (B, K)).
    """

    layer: nn.Module
    targets: Callable
    loss: Callable
    decode: Callable


def build(spec: Mapping[str, Any], *, landmarks: int, size: tuple[int, int]) -> Head:
    """The head that `spec["name"]` names for `landmarks` points in frames of `size` (H, W)."""
    options = dict(spec)
    found = find.module("jaxmarks.heads", options.pop("name"), needs="build")
    return found.build(landmarks=landmarks, size=tuple(size), **options)
