"""Baselines without a network: the mean shape, image registration with SIFT descriptors, and blob detection."""

from collections.abc import Sequence

LANDMARKS = ("mean_shape", "registration")
OBJECTS = ("blobs",)


def check(names: Sequence[str], *, objects: bool) -> None:
    """Raises ValueError if one of the names is not a baseline for landmarks, or for objects if `objects` is set."""
    choices = OBJECTS if objects else LANDMARKS
    for name in names:
        if name not in choices:
            raise ValueError(
                f"--config.baselines: {'objects' if objects else 'landmarks'} have no baseline {name}; choose from"
                f" {', '.join(choices)}"
            )
