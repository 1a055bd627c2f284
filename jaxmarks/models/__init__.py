"""Bodies: each file is one architecture with a `build(**options)` that returns a linen module, and the options `TINY`
of one that trains in a test.

A body maps images (B, H, W, C) float32 in [0, 1] to features: a vector (B, F) or a dense map (B, h, w, F).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from jaxmarks import find
from jaxmarks.models import encoders


class Network(nn.Module):
    """A body with a head's output layer on it; the parameters are {"body": ..., "head": ...}."""

    body: nn.Module
    head: nn.Module

    def __call__(self, images, *, train=False):
        return self.head(self.body(images, train=train))


def build(spec: Mapping[str, Any]) -> nn.Module:
    """The body that `spec["name"]` names, built with the rest of the spec."""
    return find.build(__name__, spec, key="model")


def read_weights(spec: Mapping[str, Any], source: str, *, channels: int) -> dict:
    """The variables that the body of `spec` takes from pretrained weights: of its encoder, or of all of it.

    Args:
      spec: the body, as in `build`; its key "encoder" names the encoder, where it has one to choose.
      source: what `encoders.read_weights` takes; for yolo_tiny Darknet's file.
      channels: of the images.

    Returns:
      {"params": {"body": ...}, "batch_stats": {"body": ...}}.

    Raises:
      ValueError: as `check_weights`, or weights that cannot be read or do not fit.
    """
    check_weights(spec, source)
    options = dict(spec)
    name = options.pop("name")
    if options.get("encoder"):
        return encoders.in_body(encoders.read_weights(options["encoder"], source, channels=channels))
    body = find.module(__name__, name, needs="read_weights")
    return body.read_weights(source, channels=channels, **options)


def check_weights(spec: Mapping[str, Any], source: str) -> None:
    """Raises ValueError where neither the body of `spec` nor its encoder takes pretrained weights; it names those that do."""
    if spec.get("encoder"):
        encoders.check_weights(spec["encoder"], source)
    elif spec["name"] not in (bodies := find.names(__name__, needs="read_weights")):
        others = ", ".join(find.names(encoders.__name__, needs="COLOURS"))
        raise ValueError(
            f"--config.weights={source}: {spec['name']} has none; there are those of the bodies {', '.join(bodies)} and of"
            f" the encoders {others}"
        )
