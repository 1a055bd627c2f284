"""Augmentation on the device: pure functions of a batch and of one key a sample.

A batch has "images" (B, H, W, C) uint8, "points" (B, K, 2) in pixels of their frame, "visible" (B, K), "version" (B,)
and "index" (B,); what comes out has float32 images in [0, 1] of the channels that the network takes, and everything
else that was in it. The random numbers of a sample come from its own key, so they depend neither on what else is in
the batch nor on how many devices share it.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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
    known: dict[str, tuple[int, Callable]] = {
        "none": (1, _unchanged),
        "paper_x7": (paper.VERSIONS, paper.build),
        "modern": (1, functools.partial(modern.build, flip=flip, size=size)),
    }
    options = dict(spec)
    name = options.pop("name", None)
    if name not in known:
        raise ValueError(f"augment.name={name!r}: there are {', '.join(known)}")
    if channels not in (1, 3):
        raise ValueError(f"channels={channels}: a network takes 1 (luminance) or 3")
    if flip is not None and not all(k == -1 or (k < len(flip) and flip[k] == i) for i, k in enumerate(flip)):
        raise ValueError(f"flip={flip}: mirroring twice must bring every landmark back to its place")
    if size is not None and name != "modern":
        raise ValueError(
            f"augment.name={name} keeps the frame's size: set --config.train.sizes='()' or augment.name=modern"
        )
    versions, builder = known[name]
    allowed = options_of(builder)
    others = {option for _, other in known.values() for option in options_of(other)}
    if unknown := [option for option in options if option not in others]:
        raise ValueError(f"augment.{unknown[0]}: {name} has {', '.join(allowed) or 'no options'}")
    return Augmentation(
        versions, builder(channels=channels, **{key: options[key] for key in allowed if key in options})
    )


def options_of(builder) -> list[str]:
    """The strengths that an augmentation has."""
    return [option for option in inspect.signature(builder).parameters if option not in ("channels", "flip", "size")]


def plain(batch, *, channels: int):
    """The batch as it is, its images float32 in [0, 1] of `channels` channels: for evaluation."""
    return batch | {"images": colour.to_channels(colour.to_float(batch["images"]), channels)}


def _unchanged(*, channels):
    return lambda keys, batch: plain(batch, channels=channels)
