"""Feeds samples to the steps: all on the devices, or with the images streamed if they are `Records`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxmarks import steps
from jaxmarks.data.records import Records
from jaxmarks.data.samples import Samples

# The fields of `Samples` that steps need.
NAMES = ("images", "points", "visible", "boxes", "labels", "delta")


def data_of(samples: Samples) -> dict[str, np.ndarray]:
    """Returns the arrays that steps take, on the host, without the images if those are streamed.

    Empty arrays (boxes of landmarks, points of objects) are left out: XLA of JAX 0.11 crashes on them if several
    processes train.
    """
    arrays = {name: getattr(samples, name) for name in NAMES}
    return {name: array for name, array in arrays.items() if np.size(array) and not isinstance(array, Records)}


def stream_of(samples: Samples, *, versions: int) -> Callable | None:
    """Returns the stream that a `steps.Runner` takes, an iterable of rows (...) -> an iterator of images (..., H, W, C).

    Returns None if the images are in memory. `versions` is the number of versions of a sample, as in `steps`.
    """
    images: Any = samples.images
    if not isinstance(images, Records):
        return None
    return lambda parts: images.stream(steps.samples_of(rows, versions) for rows in parts)
