"""Feeds a fold's samples to the steps: all on the device, or with the images streamed if they are `Records`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarks import steps
from jaxmarks.data.records import Records
from jaxmarks.data.samples import Samples

# The fields of `Samples` that steps need.
NAMES = ("images", "points", "visible", "boxes", "labels", "delta")


class Feed:
    """The samples, in the form that steps take.

    Attributes:
      data: the arrays on the device, without the images if those are streamed, and without empty arrays: boxes of
        landmarks or points of objects, with which XLA of JAX 0.11 crashes if several processes train.
      stream: as `steps.Runner` takes it: an iterable of rows (...) -> an iterator of images (..., H, W, C); None if
        the images are in `data`.

    Args:
      samples: all samples that rows refer to.
      versions: the number of versions of a sample, as in `steps`.
      batch: the number of rows in a batch.
    """

    def __init__(self, samples: Samples, *, versions: int, batch: int):
        self.batch, self.stream = batch, None
        images: Any = samples.images
        streamed = isinstance(images, Records)
        if streamed:
            self.stream = lambda parts: images.stream(steps.samples_of(rows, versions) for rows in parts)
        kept = [n for n in NAMES if not (streamed and n == "images") and np.size(getattr(samples, n))]
        self.data = jax.device_put({n: getattr(samples, n) for n in kept})

    def each(self, function: Callable, variables, rows: np.ndarray) -> list:
        """Returns `function(variables, data, rows)` of each batch of the rows."""
        parts = steps.batches(rows, self.batch)
        return [
            function(variables, data, jnp.asarray(part)) for data, part in zip(self.shown(parts), parts, strict=True)
        ]

    def shown(self, parts):
        """Returns, for each of the parts, rows (...), the data from which a step can gather them."""
        if self.stream is None:
            return [self.data] * len(parts)
        return (self.data | {"streamed": jnp.asarray(images)} for images in self.stream(parts))

    def mean(self, function: Callable, variables, rows: np.ndarray):
        """Returns the mean of `function`'s trees over batches (see `each`), weighted by their shares of the rows."""
        shares = (np.sum(steps.batches(rows, self.batch) >= 0, axis=1) / len(rows)).tolist()
        weighted = lambda *values: sum(share * value for share, value in zip(shares, values, strict=True))
        return jax.tree.map(weighted, *self.each(function, variables, rows))
