"""What one would do without a network: predict the mean shape, register images and compare SIFT descriptors, find blobs."""

from collections.abc import Sequence

LANDMARKS = ("mean_shape", "registration")
OBJECTS = ("blobs",)


def check(names: Sequence[str], *, objects: bool) -> None:
    """Raises ValueError where one of the names is no baseline, for landmarks or for objects."""
    known = OBJECTS if objects else LANDMARKS
    for name in names:
        if name not in known:
            raise ValueError(
                f"--config.baselines: no {name} for {'objects' if objects else 'landmarks'}; there are {', '.join(known)}"
            )
