"""Augmentation on the device: pure functions of a batch and one key per sample.

A batch has "images" (B, H, W, C) uint8, "version" (B,) and "index" (B,), and for landmarks "points" (B, K, 2) in pixels
of their frame and "visible" (B, K), for objects "boxes" (B, M, 4) and "labels" (B, M). The result has float32 images in
[0, 1] with the channels that the network takes; entries that an augmentation does not change are passed on. The random
numbers of a sample come from its own key, so they depend neither on the rest of the batch nor on how many devices share
it.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxmarks import find
from jaxmarks.augment import colour, modern, paper


class Augmentation(NamedTuple):
    """The number of versions of each sample, and `apply(keys (B,), batch) -> batch`."""

    versions: int
    apply: Callable


def build(
    spec: Mapping[str, Any],
    *,
    channels: int,
    flip: tuple[int, ...] | None = None,
    size: tuple[int, int] | None = None,
) -> Augmentation:
    """Builds the augmentation that `spec` describes by a "name" (none, paper_x7, modern) and options.

    Args:
      spec: the name and the options. Options of other augmentations are ignored, so that changing `augment.name` alone
        switches between them.
      channels: the number that the network takes, 1 (luminance) or 3.
      flip: the landmarks' order after horizontal mirroring, or None if images must not be mirrored. -1 marks a landmark
        without a counterpart in a mirrored image; images in which it is visible are not mirrored.
      size: (H, W) of the output, to which the whole frame is resized (modern only); None: the input's size.

    Raises:
      ValueError: an unknown name or option (the message lists those that exist), a `flip` that is not its own inverse,
        other channels than 1 or 3, or a `size` for an augmentation that cannot resize.
    """
    name, (versions, builder) = spec.get("name"), _known(spec)
    facts: dict[str, Any] = {"channels": channels, "flip": flip, "size": size}
    if channels not in (1, 3):
        raise ValueError(f"channels={channels}: choose 1 (luminance) or 3")
    if flip is not None and not all(k == -1 or (k < len(flip) and flip[k] == i) for i, k in enumerate(flip)):
        raise ValueError(f"flip={flip}: mirroring twice must bring every landmark back to its place")
    if size is not None and name != "modern":
        raise ValueError(
            f"augment.name={name} cannot resize frames: set --config.train.sizes='()' and --config.train.coarse=0, or"
            " augment.name=modern"
        )
    allowed = options(spec)
    all_options = {option for other in KNOWN for option in options({"name": other})}
    if unknown := [option for option in spec if option not in {"name", *all_options}]:
        raise ValueError(f"augment.{unknown[0]}: unknown option; {name} has {', '.join(allowed) or 'no options'}")
    accepts = inspect.signature(builder).parameters
    settings = {key: spec[key] for key in allowed if key in spec} | {key: facts[key] for key in facts if key in accepts}
    return Augmentation(versions, builder(**settings))


def options(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options (strengths and others) of the augmentation that `spec` names, with their defaults."""
    _, builder = _known(spec)
    return {key: default for key, default in find.options(builder).items() if key not in ("flip", "size")}


def plain(batch, *, channels: int):
    """Returns the batch without augmentation, with float32 images in [0, 1] of `channels` channels: for evaluation."""
    return batch | {"images": colour.to_channels(colour.to_float(batch["images"]), channels)}


def _unchanged(*, channels):
    return lambda keys, batch: plain(batch, channels=channels)


# The number of versions of each sample, and the builder of `apply`.
KNOWN = {"none": (1, _unchanged), "paper_x7": (paper.VERSIONS, paper.build), "modern": (1, modern.build)}


def _known(spec) -> tuple[int, Callable]:
    if (name := spec.get("name")) not in KNOWN:
        raise ValueError(f"augment.name={name!r}: choose one of {', '.join(KNOWN)}")
    return KNOWN[name]
