"""Baselines without a network: the mean shape, registration with SIFT descriptors, regression trees, and blobs."""

import importlib.util
from collections.abc import Sequence

LANDMARKS = ("mean_shape", "registration", "regression_trees")
OBJECTS = ("blobs",)


def check(names: Sequence[str], *, objects: bool) -> None:
    """Raises ValueError for a name that is not a baseline for landmarks, or for objects if `objects` is set.

    The same for a baseline that needs a library which is not installed.
    """
    choices = OBJECTS if objects else LANDMARKS
    for name in names:
        if name not in choices:
            raise ValueError(
                f"--config.baselines: {'objects' if objects else 'landmarks'} have no baseline {name}; choose from"
                f" {', '.join(choices)}"
            )
        if name == "regression_trees" and importlib.util.find_spec("dlib") is None:
            raise ValueError("--config.baselines: regression_trees needs dlib: pip install 'jaxmarks[dlib]'")
