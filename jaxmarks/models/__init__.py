"""Bodies (backbones): each file with a `build(**options)`, which returns a linen module, is one architecture.

Its `TINY` are the options of a network small enough to train in a test.

A body maps images (B, H, W, C) float32 in [0, 1] to features: a vector (B, F) or a dense map (B, h, w, F).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from jaxmarks import find
from jaxmarks.models import encoders


class Network(nn.Module):
    """A body followed by a head's output layer; the parameters are {"body": ..., "head": ...}."""

    body: nn.Module
    head: nn.Module

    def __call__(self, images, *, train=False):
        return self.head(self.body(images, train=train))


def build(spec: Mapping[str, Any]) -> nn.Module:
    """Builds the body named `spec["name"]`, with the rest of the spec as its options."""
    return find.build(__name__, spec, key="model")


def read_weights(spec: Mapping[str, Any], source: str, *, channels: int) -> dict:
    """Reads the pretrained variables of a body.

    If `spec` has an encoder these are the encoder's, otherwise those that the body's own `read_weights` gives.

    Args:
      spec: the body, as in `build`; its key "encoder" is the encoder's spec, for bodies whose encoder can be chosen.
      source: as for `encoders.read_weights`; for yolo_tiny a Darknet file.
      channels: number of channels of the images.

    Returns:
      {"params": {"body": ...}, "batch_stats": {"body": ...}}.

    Raises:
      FileNotFoundError: the weights are not here and cannot be fetched.
      ValueError: as `check_weights`, or the weights cannot be read or do not fit.
    """
    check_weights(spec, source)
    options = dict(spec)
    name = options.pop("name")
    if options.get("encoder"):
        return encoders.in_body(encoders.read_weights(options["encoder"], source, channels=channels))
    body = find.module(__name__, name, needs="read_weights")
    return body.read_weights(source, channels=channels, **options)


def check_weights(spec: Mapping[str, Any], source: str) -> None:
    """Raises ValueError if the body of `spec`, or its encoder, has no pretrained weights; it lists those that have."""
    if spec.get("encoder"):
        encoders.check_weights(spec["encoder"], source)
    elif spec["name"] not in (bodies := find.names(__name__, needs="read_weights")):
        encoder_names = ", ".join(find.names(encoders.__name__, needs="COLOURS"))
        raise ValueError(
            f"--config.weights={source}: {spec['name']} has no pretrained weights; they exist for the bodies"
            f" {', '.join(bodies)} and the encoders {encoder_names}"
        )
