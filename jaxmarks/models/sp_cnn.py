"""SP-CNN's body (the spine paper after Tofighi et al. 2018): five full-resolution convolutions; the head is the sixth.

The paper says of the network only that it has six layers, is fully convolutional, and has no pooling, dropout or
normalisation. The rest is chosen here: 64 channels in each layer, ReLU, and 5x5 kernels, which give an output pixel a
receptive field of 21x21 pixels, a spine's 15x15 box and what it stands on.
"""

import flax.linen as nn

from jaxmarks.models import layers

# The options of a network for tests.
TINY = {"width": 4}


class SPCNN(nn.Module):
    """Images (B, H, W, C) -> a map (B, ceil(H / stride), ceil(W / stride), width)."""

    width: int = 64
    kernel: int = 5
    stride: int = 1
    norm: str = "none"

    @nn.compact
    def __call__(self, x, *, train=False):
        x = layers.space_to_depth(x, self.stride)
        for i in range(1, 6):
            x = nn.relu(layers.ConvNorm(self.width, self.kernel, norm=self.norm, name=f"conv{i}")(x, train=train))
        return x


def build(*, width=64, kernel=5, stride=1, norm="none"):
    """Builds SP-CNN's body, 0.4 M parameters with the defaults.

    Args:
      width: channels of each convolution.
      kernel: side of each kernel, odd.
      stride: stride of the map, a power of two; the paper's is 1.
      norm: `batch`, `group` or `none` (the paper's).
    """
    if stride & (stride - 1) or stride < 1:
        raise ValueError(f"model.stride={stride}: give a power of two")
    if kernel % 2 == 0:
        raise ValueError(f"model.kernel={kernel}: give an odd number, so that maps keep their size")
    return SPCNN(width=width, kernel=kernel, stride=stride, norm=norm)
