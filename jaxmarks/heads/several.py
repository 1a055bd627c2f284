"""One head for each of several datasets on one body, the landmarks of all of them side by side.

A batch holds images of any of the datasets, and shows of each image the landmarks of its own dataset alone. So every
head learns from its own images, the body from all; nothing needs to know which dataset an image is of.
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax.numpy as jnp

from jaxmarks.heads import Head


class Beside(nn.Module):
    """Features -> the outputs of each layer by its name, which is also that of its parameters."""

    layers: Mapping[str, nn.Module]

    @nn.compact
    def __call__(self, features):
        return {name: layer.copy(parent=self, name=name)(features) for name, layer in self.layers.items()}


def join(sets: Mapping[str, tuple[int, int]], one: Callable[[int], Head]) -> Head:
    """A head of the K landmarks of several datasets, made of one for each.

    Its loss is the mean over the visible landmarks of all datasets; its terms are the datasets' parts of that sum, by
    name (where a head names terms itself, by "dataset/term").

    Args:
      sets: the first landmark of each dataset, and that after its last, of K.
      one: the number of a dataset's landmarks -> its head, of landmarks, whose losses count alike.
    """
    each = {name: one(stop - start) for name, (start, stop) in sets.items()}

    def targets(batch):
        mine = lambda start, stop: {key: batch[key][:, start:stop] for key in ("points", "visible")}
        return {name: head.targets(batch | mine(*sets[name])) for name, head in each.items()}

    def loss(outputs, targets):
        terms, counts = {}, []
        for name, head in each.items():
            total, count = head.loss(outputs[name], targets[name])
            named = {f"{name}/{term}": part for term, part in total.items()} if isinstance(total, dict) else {}
            terms |= named or {name: total}
            counts.append(count)
        return terms, sum(counts)

    def decode(outputs):
        points, scores = zip(*(head.decode(outputs[name]) for name, head in each.items()), strict=True)
        return jnp.concatenate(points, axis=1), jnp.concatenate(scores, axis=1)

    return Head(Beside({name: head.layer for name, head in each.items()}), targets, loss, decode)
