"""What feeds a fold's steps: its samples, on the device whole or, where they are `Records`, their images streamed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarks import steps
from jaxmarks.data.records import Records
from jaxmarks.data.samples import Samples

# What steps need of samples.
NAMES = ("images", "points", "visible", "boxes", "labels", "delta")


class Feed:
    """The samples for steps.

    Attributes:
      data: the arrays on the device, without the images where those are streamed.
      stream: None, or as `steps.Runner` takes it: an iterable of rows (...) -> an iterator of images (..., H, W, C).

    Args:
      samples: all that the rows refer to.
      versions: of a sample, as in `steps`.
      batch: how many rows a step takes.
    """

    def __init__(self, samples: Samples, *, versions: int, batch: int):
        self.batch, self.stream = batch, None
        images: Any = samples.images
        streamed = isinstance(images, Records)
        if streamed:
            self.stream = lambda parts: images.stream(steps.samples_of(rows, versions) for rows in parts)
        self.data = jax.device_put({n: getattr(samples, n) for n in NAMES if n != "images" or not streamed})

    def each(self, function: Callable, variables, rows: np.ndarray) -> list:
        """What `function` (variables, data, rows) gives of each batch of the rows."""
        parts = steps.batches(rows, self.batch)
        return [
            function(variables, data, jnp.asarray(part)) for data, part in zip(self.shown(parts), parts, strict=True)
        ]

    def shown(self, parts):
        """For each of the parts, rows (...), the data that show them."""
        if self.stream is None:
            return [self.data] * len(parts)
        return (self.data | {"streamed": jnp.asarray(images)} for images in self.stream(parts))

    def mean(self, function: Callable, variables, rows: np.ndarray):
        """The mean over the rows of the trees that `function` gives of batches, as in `each`: a short one counts less."""
        shares = (np.sum(steps.batches(rows, self.batch) >= 0, axis=1) / len(rows)).tolist()
        weighted = lambda *values: sum(share * value for share, value in zip(shares, values, strict=True))
        return jax.tree.map(weighted, *self.each(function, variables, rows))
