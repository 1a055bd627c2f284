"""The three networks of the beetle paper: images -> a vector of features, for the direct head (Section 3).

1. conv 32 (3x3), pool, conv 64 (2x2), pool, conv 128 (2x2), pool, FC 500, FC 500
2. the same with FC 1000, FC 1000
3. three elementary blocks (conv, pool, dropout .1, .2, .3), FC 1000, dropout .5, FC 1000
"""

import math

import flax.linen as nn

from jaxmarks.models import layers

# The options of a network for tests.
TINY = {"width": 16}


class ElementaryBlock(nn.Module):
    """Convolution, ReLU, 2x2 pooling and dropout."""

    features: int
    kernel_size: tuple[int, int]
    dropout: float

    @nn.compact
    def __call__(self, x, *, train=False):
        x = layers.Conv(
            self.features, self.kernel_size, "VALID", kernel_init=nn.initializers.glorot_uniform(), name="conv"
        )(x)
        # ReLU and max pooling commute; after pooling there are four times fewer values.
        return layers.Dropout(self.dropout, name="dropout")(nn.relu(layers.max_pool(x)), train=train)


class Beetle(nn.Module):
    """Images (B, H, W, C) in [0, 1] -> features (B, width). Weights are Glorot-uniform, as in the authors' library."""

    width: int = 1000
    dropout: tuple[float, float, float, float] = (0.1, 0.2, 0.3, 0.5)
    standardise: bool = False

    @nn.compact
    def __call__(self, x, *, train=False):
        if self.standardise:
            x = (x - x.mean((1, 2), keepdims=True)) / (x.std((1, 2), keepdims=True) + 1e-3)
        shapes = zip((32, 64, 128), ((3, 3), (2, 2), (2, 2)), self.dropout[:3], strict=True)
        for i, (features, kernel_size, rate) in enumerate(shapes, 1):
            x = ElementaryBlock(features, kernel_size, rate, name=f"block{i}")(x, train=train)
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        glorot = nn.initializers.glorot_uniform()
        x = nn.relu(nn.Dense(self.width, kernel_init=glorot, name="fc1")(x))
        x = layers.Dropout(self.dropout[3], name="dropout")(x, train=train)
        return nn.relu(nn.Dense(self.width, kernel_init=glorot, name="fc2")(x))


def build(*, version=3, width=0, dropout=(), standardise=False):
    """Builds the paper's network 1, 2 or 3.

    Args:
      version: 1, 2 or 3.
      width: units of the fully connected layers; 0 means the paper's.
      dropout: four rates, after each block and between the fully connected layers; empty means the paper's.
      standardise: whether to bring each image and channel to mean 0 and deviation 1 first (the paper does not).
    """
    if version not in (1, 2, 3):
        raise ValueError(f"model.version={version}: choose 1, 2 or 3, the paper's networks")
    no_dropout = (0.0, 0.0, 0.0, 0.0)
    return Beetle(
        width=width or (500 if version == 1 else 1000),
        dropout=tuple(dropout) or (Beetle.dropout if version == 3 else no_dropout),
        standardise=standardise,
    )
