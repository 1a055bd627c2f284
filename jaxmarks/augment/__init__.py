"""Augmentation on the device: pure functions of a batch and of one key a sample.

A batch has "images" (B, H, W, C) uint8, "points" (B, K, 2) in pixels of their frame, "visible" (B, K), "version" (B,)
and "index" (B,); what comes out has float32 images in [0, 1] of the channels that the network takes, and everything
else that was in it. The random numbers of a sample come from its own key, so they depend neither on what else is in
the batch nor on how many devices share it.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxmarks import find
from jaxmarks.augment import colour, modern, paper


class Augmentation(NamedTuple):
    """How many versions a sample has, and `apply(keys (B,), batch) -> batch`."""

    versions: int
    apply: Callable


def build(
    spec: Mapping[str, Any],
    *,
    channels: int,
    flip: tuple[int, ...] | None = None,
    size: tuple[int, int] | None = None,
) -> Augmentation:
    """The augmentation that `spec` describes: a "name" (none, paper_x7, modern) and that one's options.

    Args:
      spec: the name and the options. Those that another augmentation has are passed over, so that `augment.name` alone
        switches from one to another.
      channels: what the network takes, 1 (luminance) or 3.
      flip: the landmarks' order after a horizontal mirror, or None where images must not be mirrored. -1 stands for a
        landmark that has no place in a mirrored image: one that shows it is not mirrored.
      size: (H, W) of what comes out, the whole frame shown larger or smaller (modern alone); None: that of what goes in.

    Raises:
      ValueError: an unknown name or option (the message lists those that exist), or a `flip` that no mirror makes.
    """
    name, chosen = _named(spec)
    facts: dict[str, Any] = {"channels": channels, "flip": flip, "size": size}
    if channels not in (1, 3):
        raise ValueError(f"channels={channels}: a network takes 1 (luminance) or 3")
    if flip is not None and not all(k == -1 or (k < len(flip) and flip[k] == i) for i, k in enumerate(flip)):
        raise ValueError(f"flip={flip}: mirroring twice must bring every landmark back to its place")
    if size is not None and name != "modern":
        raise ValueError(
            f"augment.name={name} keeps the frame's size: set --config.train.sizes='()' and --config.train.coarse=0, or"
            " augment.name=modern"
        )
    mine = options(spec)
    others = {option for other in KNOWN for option in options({"name": other})}
    if unknown := [option for option in spec if option not in {"name", *others}]:
        raise ValueError(f"augment.{unknown[0]}: {name} has {', '.join(mine) or 'no options'}")
    taken = inspect.signature(chosen.build).parameters
    given = {key: spec[key] for key in mine if key in spec} | {key: facts[key] for key in facts if key in taken}
    return Augmentation(chosen.versions, chosen.build(**given))


def options(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The strengths, and what else can be chosen, of the augmentation that `spec` names, with the defaults."""
    _, chosen = _named(spec)
    return {key: default for key, default in find.options(chosen.build).items() if key not in ("flip", "size")}


def plain(batch, *, channels: int):
    """The batch as it is, its images float32 in [0, 1] of `channels` channels: for evaluation."""
    return batch | {"images": colour.to_channels(colour.to_float(batch["images"]), channels)}


def _unchanged(*, channels):
    return lambda keys, batch: plain(batch, channels=channels)


class _Known(NamedTuple):
    versions: int
    build: Callable


KNOWN = {
    "none": _Known(1, _unchanged),
    "paper_x7": _Known(paper.VERSIONS, paper.build),
    "modern": _Known(1, modern.build),
}


def _named(spec):
    name = spec.get("name")
    if name not in KNOWN:
        raise ValueError(f"augment.name={name!r}: there are {', '.join(KNOWN)}")
    return name, KNOWN[name]
