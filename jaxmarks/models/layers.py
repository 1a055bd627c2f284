"""Convolution, pooling and dropout for every model: the one place that knows how they are lowered.

XLA's convolution is the right choice on an accelerator. On the CPU its kernel gradient and the gradient of
`reduce_window` are slow (several times, measured on network 3), so there a stride-1 convolution is one matmul over
concatenated shifted slices, and 2x2 pooling the maximum of a reshape. The results agree to float32 rounding.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

# The name that the steps give to the axis of devices under pmap.
DEVICES = "devices"


def conv(x, kernel, *, strides=(1, 1), padding="VALID"):
    """2-D convolution of x (B, H, W, C) with a kernel (h, w, C, F) -> (B, H', W', F)."""
    if jax.default_backend() == "cpu" and strides == (1, 1) and kernel.shape[0] * kernel.shape[1] * x.shape[3] <= 512:
        return _shifted_matmul(x, kernel, padding)
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _shifted_matmul(x, kernel, padding):
    h, w, _, features = kernel.shape
    pads = lax.padtype_to_pads(x.shape[1:3], (h, w), (1, 1), padding) if isinstance(padding, str) else padding
    if any(p != (0, 0) for p in map(tuple, pads)):
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows, columns = x.shape[1] - h + 1, x.shape[2] - w + 1
    patches = [x[:, i : i + rows, j : j + columns] for i in range(h) for j in range(w)]
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, features)


def max_pool(x):
    """Maximum over 2x2 windows with stride 2; an odd last row or column is dropped (valid padding)."""
    b, h, w, c = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))


class Conv(nn.Module):
    """A 2-D convolution with bias, its parameters named as in `nn.Conv`."""

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    padding: str = "VALID"
    strides: tuple[int, int] = (1, 1)
    kernel_init: nn.initializers.Initializer = nn.initializers.glorot_uniform()

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", self.kernel_init, (*self.kernel_size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return conv(x, kernel, strides=self.strides, padding=self.padding) + bias


class Dropout(nn.Module):
    """Sets a share `rate` of the values to zero in training and scales up the rest.

    The mask of a sample depends on its row in the whole batch alone, so that a batch split over devices by pmap draws
    the same masks as on one device.
    """

    rate: float

    @nn.compact
    def __call__(self, x, *, train):
        if not train or self.rate == 0:
            return x
        keep = jnp.uint16(round((1 - self.rate) * 2**16))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("dropout"), global_rows(len(x)))
        # 16 random bits decide to within 1/65536 of the rate at half the cost of a float32 uniform.
        bits = jax.vmap(lambda key: jax.random.bits(key, x.shape[1:], jnp.uint16))(keys)
        return jnp.where(bits < keep, x / (1 - self.rate), 0)


def global_rows(batch):
    """The rows (B,) of this device's part of the batch in the whole batch, counted from 0."""
    try:
        return jnp.arange(batch) + lax.axis_index(DEVICES) * batch
    except NameError:  # no such axis: one device
        return jnp.arange(batch)
