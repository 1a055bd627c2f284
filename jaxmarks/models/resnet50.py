"""ResNet50 (He et al. 2016, with the stride in the 3x3 convolution: "v1.5") and, for heatmaps, a decoder."""

import math

import flax.linen as nn

from jaxmarks.models import encoders, layers
from jaxmarks.models.encoders import resnet50

# The options of a network for tests.
TINY = resnet50.TINY


class ResNet50(nn.Module):
    """Images (B, H, W, C) in [0, 1] -> a map (B, H, W, width), or the flattened map at stride 32 (B, F)."""

    encoder: resnet50.ResNet
    output: str = "map"

    @nn.compact
    def __call__(self, x, *, train=False):
        if self.output == "vector":
            x = self.encoder(x, train=train)[-1]
            return x.reshape(x.shape[0], math.prod(x.shape[1:]))
        size = x.shape[1:3]
        # A multiple of 32, so that each upsampling by 2 puts features back in their places.
        x = layers.pad_to(x, 32)
        x = self.encoder(x, train=train)[-1]
        for i, features in enumerate((16, 8, 4, 2, 1), 1):
            x = layers.resize(x, (2 * x.shape[1], 2 * x.shape[2]))
            features, norm = features * self.encoder.width, self.encoder.norm
            x = nn.relu(layers.ConvNorm(features, norm=norm, name=f"up{i}")(x, train=train))
        return layers.crop(x, size, 1)


def build(*, width=64, depths=(3, 4, 6, 3), output="map", norm="batch"):
    """Builds ResNet50 for heatmaps (51 M parameters in the fish paper) or for direct regression (30 M).

    The paper says of its decoder only that upsampling layers restore the input's size. Here it is, five times, bilinear
    upsampling by 2, 3x3 convolution, norm and ReLU, with 1024, 512, 256, 128 and 64 channels.

    Args:
      width: channels of the stem; all others are multiples of it.
      depths: bottlenecks of each of the four stages.
      output: "map", features (B, H, W, width), or "vector", the flattened map at stride 32.
      norm: "batch", "group" or "none".
    """
    if output not in ("map", "vector"):
        raise ValueError(f"model.output={output!r}: choose map or vector")
    return ResNet50(encoders.build({"name": "resnet50", "width": width, "depths": depths, "norm": norm}), output)


def read_weights(source, *, channels=3, output="map", **options):
    """Reads the encoder's variables from ImageNet weights, see `encoders.read_weights`; `output` does not matter."""
    return encoders.in_body(encoders.read_weights({"name": "resnet50", **options}, source, channels=channels))
