"""Several datasets on one body: one head per dataset, with the landmarks of all datasets concatenated.

A batch mixes images of all datasets; in each image only the landmarks of its own dataset are visible. So each head
learns from its own dataset's images and the body from all, without a label of the dataset.
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax.numpy as jnp

from jaxmarks.heads import Head


class Beside(nn.Module):
    """Features -> a dict of each layer's outputs by name; the parameters have the same names."""

    layers: Mapping[str, nn.Module]

    @nn.compact
    def __call__(self, features):
        return {name: layer.copy(parent=self, name=name)(features) for name, layer in self.layers.items()}


def join(sets: Mapping[str, tuple[int, int]], one: Callable[[int], Head]) -> Head:
    """Combines one head per dataset into a head for the K landmarks of all datasets.

    The loss is the mean over the visible landmarks of all datasets. Its terms are each dataset's part of the sum, named
    after the dataset, or "dataset/term" where a dataset's head names its own terms.

    Args:
      sets: the range (start, stop) of each dataset's landmarks among the K.
      one: builds a landmark head from a dataset's number of landmarks. The counts of all heads must have the same unit.
    """
    heads = {name: one(stop - start) for name, (start, stop) in sets.items()}

    def targets(batch):
        own_landmarks = lambda start, stop: {key: batch[key][:, start:stop] for key in ("points", "visible")}
        return {name: head.targets(batch | own_landmarks(*sets[name])) for name, head in heads.items()}

    def loss(outputs, targets):
        terms, counts = {}, []
        for name, head in heads.items():
            total, count = head.loss(outputs[name], targets[name])
            named_terms = {f"{name}/{term}": part for term, part in total.items()} if isinstance(total, dict) else {}
            terms |= named_terms or {name: total}
            counts.append(count)
        return terms, sum(counts)

    def decode(outputs):
        points, scores = zip(*(head.decode(outputs[name]) for name, head in heads.items()), strict=True)
        return jnp.concatenate(points, axis=1), jnp.concatenate(scores, axis=1)

    def blend(outputs):
        return {name: head.blend([each[name] for each in outputs]) for name, head in heads.items()}

    layer = Beside({name: head.layer for name, head in heads.items()})
    return Head(layer, targets, loss, decode, blend=blend if all(head.blend for head in heads.values()) else None)
