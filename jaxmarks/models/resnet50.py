"""ResNet50 (He et al. 2016, with the stride in the 3x3 convolution: "v1.5") and, for heatmaps, an upsampling decoder.

The encoder computes what torchvision's does, and weights in its naming map onto it by four rules:

    conv1, bn1                -> stem/conv, stem/norm
    layerS.B.convI            -> layerS_B/convI/conv
    layerS.B.bnI              -> layerS_B/convI/norm
    layerS.B.downsample.0, .1 -> layerS_B/downsample/conv, layerS_B/downsample/norm

with kernels transposed from (F, C, h, w) to (h, w, C, F) and a batch norm's parameters one level deeper, in norm/batch.
"""

import flax.linen as nn
import jax.numpy as jnp

from jaxmarks.models import layers

# The options of a network for tests.
TINY = {"width": 4, "depths": (1, 1, 1, 1)}


def max_pool_3x3(x):
    """Maximum over 3x3 windows with stride 2 and one pixel of padding: (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C).

    The maximum of three strided slices along each axis; the gradient of `reduce_window` is slow on the CPU.
    """
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    x = jnp.maximum(jnp.maximum(x[:, 0:-2:2], x[:, 1:-1:2]), x[:, 2::2])
    return jnp.maximum(jnp.maximum(x[:, :, 0:-2:2], x[:, :, 1:-1:2]), x[:, :, 2::2])


class Bottleneck(nn.Module):
    """1x1 to `width` channels, 3x3, 1x1 to 4 `width`, added to the shortcut."""

    width: int
    stride: int = 1
    norm: str = "batch"

    @nn.compact
    def __call__(self, x, *, train):
        y = nn.relu(layers.ConvNorm(self.width, 1, norm=self.norm, name="conv1")(x, train=train))
        y = nn.relu(layers.ConvNorm(self.width, 3, self.stride, self.norm, name="conv2")(y, train=train))
        y = layers.ConvNorm(4 * self.width, 1, 1, self.norm, layers.last_init(self.norm), name="conv3")(y, train=train)
        if x.shape != y.shape:
            x = layers.ConvNorm(4 * self.width, 1, self.stride, self.norm, name="downsample")(x, train=train)
        return nn.relu(x + y)


class ResNet50Encoder(nn.Module):
    """Images (B, H, W, C) -> five maps at strides 2, 4, 8, 16, 32 with width, 4, 8, 16 and 32 times width channels."""

    width: int = 64
    depths: tuple[int, ...] = (3, 4, 6, 3)
    norm: str = "batch"

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.relu(layers.ConvNorm(self.width, 7, 2, self.norm, name="stem")(x, train=train))
        maps = [x]
        x = max_pool_3x3(x)
        for stage, depth in enumerate(self.depths, 1):
            for i in range(depth):
                stride = 2 if stage > 1 and i == 0 else 1
                name = f"layer{stage}_{i}"
                x = Bottleneck(self.width * 2 ** (stage - 1), stride, self.norm, name=name)(x, train=train)
            maps.append(x)
        return maps


class ResNet50(nn.Module):
    """Images (B, H, W, C) in [0, 1] -> a map (B, H, W, width), or the flattened map at stride 32 (B, F)."""

    width: int = 64
    depths: tuple[int, ...] = (3, 4, 6, 3)
    output: str = "map"
    norm: str = "batch"

    @nn.compact
    def __call__(self, x, *, train=False):
        encoder = ResNet50Encoder(self.width, self.depths, self.norm, name="encoder")
        if self.output == "vector":
            return encoder(x, train=train)[-1].reshape(x.shape[0], -1)
        height, width = x.shape[1:3]
        # A multiple of 32, so that each upsampling by 2 brings a feature back to its place.
        x = jnp.pad(x, ((0, 0), (0, -height % 32), (0, -width % 32), (0, 0)), mode="edge")
        x = encoder(x, train=train)[-1]
        for i, features in enumerate((16, 8, 4, 2, 1), 1):
            x = layers.resize(x, (2 * x.shape[1], 2 * x.shape[2]))
            x = nn.relu(layers.ConvNorm(features * self.width, norm=self.norm, name=f"up{i}")(x, train=train))
        return x[:, :height, :width]


def build(*, width=64, depths=(3, 4, 6, 3), output="map", norm="batch"):
    """ResNet50 for heatmaps (51 M in the fish paper) or for direct regression (30 M).

    The paper says of its decoder that upsampling layers reach the size of the input; here five times bilinear by 2,
    3x3 convolution, norm and ReLU, with 1024, 512, 256, 128 and 64 channels.

    Args:
      width: channels of the stem; all others are multiples of it.
      depths: bottlenecks of each of the four stages.
      output: "map", features (B, H, W, width), or "vector", the map at stride 32 flattened.
      norm: "batch", "group" or "none".
    """
    if output not in ("map", "vector"):
        raise ValueError(f"model.output={output!r}: there are map and vector")
    if len(depths) != 4:
        raise ValueError(f"model.depths={depths}: give the number of bottlenecks of four stages")
    return ResNet50(width=width, depths=tuple(depths), output=output, norm=norm)
