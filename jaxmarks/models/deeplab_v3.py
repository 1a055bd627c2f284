"""DeepLabV3 (Chen et al. 2017) on any encoder: one of its maps at several dilation rates, and bilinear upsampling."""

import flax.linen as nn
import jax.numpy as jnp

from jaxmarks.models import decoders, encoders, layers

# The options of a network for tests.
TINY = {"width": 4, "source": 32, "rates": (2,), "encoder": {"name": "plain", "width": 4, "norm": "none"}}
# Stride -> index of the encoder's map at that stride.
SOURCES = {8: 2, 16: 3, 32: 4}


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: x (B, h, w, C) -> (B, h, w, features).

    Concatenates a 1x1 convolution, 3x3 convolutions at the dilation rates and a 1x1 convolution of the map's global
    mean, each with `features` channels; another 1x1 convolution merges them.
    """

    features: int
    rates: tuple[int, ...]
    norm: str
    dropout: float

    @nn.compact
    def __call__(self, x, *, train):
        def block(x, name, size=1, rate=1):
            conv = layers.ConvNorm(self.features, size, norm=self.norm, dilation=rate, name=name)
            return nn.relu(conv(x, train=train))

        branches = [block(x, "point"), *(block(x, f"rate{rate}", 3, rate) for rate in self.rates)]
        mean = block(x.mean((1, 2), keepdims=True), "mean")
        branches.append(jnp.broadcast_to(mean, branches[0].shape))
        x = block(jnp.concatenate(branches, axis=-1), "project")
        return layers.Dropout(self.dropout, name="dropout")(x, train=train)


class DeepLabV3(nn.Module):
    """Images (B, H, W, C) in [0, 1] -> a map (B, ceil(H / stride), ceil(W / stride), width)."""

    encoder: nn.Module
    width: int = 256
    rates: tuple[int, ...] = (6, 12, 18)
    source: int = 16
    stride: int = 4
    norm: str = "batch"
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, *, train=False):
        size = x.shape[1:3]
        x = layers.pad_to(x, 32)
        padded_size = [side // self.stride for side in x.shape[1:3]]
        x = self.encoder(x, train=train)[SOURCES[self.source]]
        x = ASPP(self.width, self.rates, self.norm, self.dropout, name="aspp")(x, train=train)
        x = nn.relu(layers.ConvNorm(self.width, norm=self.norm, name="conv")(x, train=train))
        return layers.crop(layers.resize(x, padded_size), size, self.stride)


def build(*, encoder=None, width=256, rates=(6, 12, 18), source=16, stride=4, norm="batch", dropout=0.0):
    """Builds DeepLabV3; by default with the paper's 256 channels, rates 6, 12 and 18, and the pyramid at stride 16.

    The paper dilates the encoder's last stages to keep its last map at stride 16, or at 8 with the rates doubled. Here
    the encoder is unchanged: its map at that stride is used, and its later stages are not. A head's linear layer and
    bilinear upsampling commute, so upsampling the features is the same as upsampling the output, as in the paper.

    Args:
      encoder: the spec of an encoder, as {"name": "resnet50"}; None means `plain` with its defaults and this `norm`.
      width: channels of each of the pyramid's branches and of the output.
      rates: dilation rates of the pyramid's 3x3 convolutions.
      source: stride of the encoder's map: 8, 16 or 32; a finer map locates landmarks more precisely.
      stride: stride of the output: 1, 2 or 4.
      norm: `batch`, `group` or `none`.
      dropout: rate after the pyramid.
    """
    decoders.check_stride(stride)
    if source not in SOURCES:
        raise ValueError(f"model.source={source}: choose 8, 16 or 32")
    encoder = encoders.build(encoder or {"name": "plain", "norm": norm})
    return DeepLabV3(encoder, width, tuple(rates), source, stride, norm, dropout)
