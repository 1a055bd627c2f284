"""Encoders: each file is one network with a `build(**options)`, and the options `TINY` of one that trains in a test.

An encoder maps images (B, H, W, C) float32 in [0, 1], H and W multiples of 32, to a list of five maps at strides 2, 4,
8, 16 and 32.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from jaxmarks import find


def build(spec: Mapping[str, Any]) -> nn.Module:
    """The encoder that `spec["name"]` names, built with the rest of the spec."""
    options = dict(spec)
    return find.module("jaxmarks.models.encoders", options.pop("name"), needs="build").build(**options)
