"""FCN8 (Long, Shelhamer and Darrell 2015): VGG16's convolutions; scores at strides 8, 16 and 32 fused at stride 8."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxmarks.models import layers

# The options of a network for tests.
TINY = {"width": 4}


def bilinear(key, shape, dtype=jnp.float32):
    """Initialises a transposed convolution's kernel (C, n, n, F) to bilinear upsampling of each channel."""
    channels, n, _, features = shape
    ramp = 1 - np.abs((np.arange(n) + 0.5) / (n / 2) - 1)
    return jnp.asarray(np.einsum("i,j,cf->cijf", ramp, ramp, np.eye(channels, features)), dtype)


class Upsample(nn.Module):
    """A transposed convolution with stride s and a 2s x 2s kernel: x (B, h, w, C) -> (B, s h, s w, C).

    Computed as one matmul and a sum of four shifted maps, since 2x2 input pixels contribute to each output pixel.
    """

    stride: int

    @nn.compact
    def __call__(self, x):
        b, h, w, c = x.shape
        s = self.stride
        kernel = self.param("kernel", bilinear, (c, 2 * s, 2 * s, c))
        x = (x @ kernel.reshape(c, -1)).reshape(b, h, w, 2, s, 2, s, c).transpose(3, 5, 0, 1, 4, 2, 6, 7)
        # Quarter (i, j) of an input pixel's 2s x 2s square falls into the s x s cell i rows down and j columns right.
        shift = lambda i, j: jnp.pad(x[i, j], ((0, 0), (i, 1 - i), (0, 0), (j, 1 - j), (0, 0), (0, 0)))
        x = shift(0, 0) + shift(0, 1) + shift(1, 0) + shift(1, 1)
        return x.reshape(b, (h + 1) * s, (w + 1) * s, c)[:, s // 2 : s // 2 + h * s, s // 2 : s // 2 + w * s]


class FCN8(nn.Module):
    """Images (B, H, W, C) in [0, 1] -> a map (B, H, W, score)."""

    width: int = 64
    score: int = 32
    norm: str = "batch"

    @nn.compact
    def __call__(self, x, *, train=False):
        def block(x, features, name, size=3):
            return nn.relu(layers.ConvNorm(features, size, norm=self.norm, name=name)(x, train=train))

        size = x.shape[1:3]
        # A multiple of 32, so that each pooling halves exactly and each upsampling puts features back in their places.
        x = layers.pad_to(x, 32)
        pooled = []
        for i, (depth, factor) in enumerate(((2, 1), (2, 2), (3, 4), (3, 8), (3, 8)), 1):
            for j in range(1, depth + 1):
                x = block(x, factor * self.width, f"conv{i}_{j}")
            x = layers.max_pool(x)
            pooled.append(x)
        x = block(x, 8 * self.width, "fc6")
        x = block(x, 8 * self.width, "fc7", size=1)

        x = layers.Conv(self.score, (1, 1), name="score_fc7")(x)
        x = Upsample(2, name="up_fc7")(x) + layers.Conv(self.score, (1, 1), name="score_pool4")(pooled[3])
        x = Upsample(2, name="up_pool4")(x) + layers.Conv(self.score, (1, 1), name="score_pool3")(pooled[2])
        return layers.crop(Upsample(8, name="up_pool3")(x), size, 1)


def build(*, width=64, score=0, norm="batch"):
    """Builds FCN8 with 17.7 M parameters; the fish paper's has 17 M.

    The paper gives only that count, which rules out VGG16's own classifier of 4,096 channels (a 7x7 convolution of
    103 M parameters). Here fc6 is a 3x3 and fc7 a 1x1 convolution of 8 `width` = 512 channels. As in FCN8 the
    transposed convolutions start as bilinear upsampling; but here the last one is learned too, because with bilinear
    interpolation a peak could lie only at the centres of the 8x8 cells. FCN8 has one score channel per class; here the
    head maps the score channels to the landmarks.

    Args:
      width: channels of VGG16's first block; all others are multiples of it.
      score: channels of the fused maps and of the output; 0 means half of `width`, but at least 8. Independent heatmaps
        need more of them than there are landmarks.
      norm: "batch", "group" or "none".
    """
    return FCN8(width=width, score=score or max(8, width // 2), norm=norm)
