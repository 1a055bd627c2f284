"""Convolution, pooling, normalisation and dropout for every model: the one place that knows how they are lowered.

XLA's convolution is the right choice on an accelerator. On the CPU some shapes run several times slower than the same
sum as one matmul over concatenated shifted slices, and so does the gradient of `reduce_window`, so there `conv` chooses
by shape, and pooling is the maximum of a reshape. Convolutions in groups, whose gradients XLA computes there up to a
hundred times slower, become sums of shifted slices or dense convolutions. The results agree to float32 rounding.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

# The name that the steps give to the axis of devices under pmap.
DEVICES = "devices"
# What a step keeps of the running statistics of batches.
MOMENTUM = 0.9


def conv(x, kernel, *, strides=(1, 1), padding="SAME", dilation=1, groups=1):
    """2-D convolution of x (B, H, W, C) with a kernel (h, w, C / groups, F) -> (B, H', W', F).

    With groups the g-th of them, of C / groups input channels, makes the g-th F / groups output channels.
    """
    plain = strides == (1, 1) and dilation == 1
    if jax.default_backend() == "cpu":
        if groups > 1 and kernel.shape[2:] == (1, groups):
            return _shifted_sum(x, kernel, strides, padding, dilation)
        if groups > 1:
            return _grouped_as_dense(x, kernel, groups, strides=strides, padding=padding, dilation=dilation)
        if plain and _matmul_is_faster(x.shape, kernel.shape):
            return _shifted_matmul(x, kernel, padding)
    return lax.conv_general_dilated(
        x, kernel, strides, padding, rhs_dilation=(dilation, dilation), dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )  # fmt: skip


def _matmul_is_faster(images, kernel):
    """By forward and both gradients on two cores: maps of few pixels (2x2: 40 times, 4x4: 1.3), 1x1 kernels (1.1-3) and
    those of even size (1.3-1.9), one input channel (1.3), and channel counts above 16 that are no multiple of 16 (2);
    for others `lax.conv` was 1.0-2.2 times faster.
    """
    _, rows, columns, channels = images
    h, w, _, _ = kernel
    few_patches = h * w * channels <= 512  # they are copied, h w times the size of the map
    odd_shape = h % 2 == 0 or w % 2 == 0 or channels == 1 or (channels > 16 and channels % 16 > 0)
    return rows * columns <= 36 or (h, w) == (1, 1) or (few_patches and odd_shape)


def _shifted_matmul(x, kernel, padding):
    h, w, _, features = kernel.shape
    pads = lax.padtype_to_pads(x.shape[1:3], (h, w), (1, 1), padding) if isinstance(padding, str) else padding
    if any(p != (0, 0) for p in map(tuple, pads)):
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows, columns = x.shape[1] - h + 1, x.shape[2] - w + 1
    patches = [x[:, i : i + rows, j : j + columns] for i in range(h) for j in range(w)]
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, features)


def _shifted_sum(x, kernel, strides, padding, dilation):
    """A convolution of each channel for itself: on two cores 10-40 times faster than XLA's, its gradients 2-9 times."""
    h, w = kernel.shape[:2]
    spread = [(n - 1) * dilation + 1 for n in (h, w)]
    pads = lax.padtype_to_pads(x.shape[1:3], spread, strides, padding) if isinstance(padding, str) else padding
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows, columns = (x.shape[1] - spread[0]) // strides[0] + 1, (x.shape[2] - spread[1]) // strides[1] + 1

    def shifted(i, j):
        down, right = i * dilation, j * dilation
        ends = down + (rows - 1) * strides[0] + 1, right + (columns - 1) * strides[1] + 1
        return x[:, down : ends[0] : strides[0], right : ends[1] : strides[1]]

    return sum(shifted(i, j) * kernel[i, j, 0] for i in range(h) for j in range(w))


def _grouped_as_dense(x, kernel, groups, **how):
    """Several groups together are a dense convolution with zeros in its kernel, of 64 channels, or of an eighth of all.

    Its gradients are 20-100 times faster than XLA's of groups on two cores; more than eight take long to compile.
    """
    h, w, into, out = kernel.shape
    blocks = math.gcd(groups, max(1, min(8, x.shape[-1] // 64)))
    each = groups // blocks
    kernels = kernel.reshape(h, w, into, blocks, each, out // groups)
    kernels = jnp.einsum("hwibgf,dg->bhwdigf", kernels, jnp.eye(each, dtype=kernel.dtype))
    kernels = kernels.reshape(blocks, h, w, each * into, out // blocks)
    return jnp.concatenate(
        [conv(part, k, **how) for part, k in zip(jnp.split(x, blocks, -1), kernels, strict=True)], -1
    )


def max_pool(x):
    """Maximum over 2x2 windows with stride 2; an odd last row or column is dropped (valid padding)."""
    b, h, w, c = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))


def max_pool_3x3(x):
    """Maximum over 3x3 windows with stride 2 and one pixel of padding: (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C).

    The maximum of three strided slices along each axis.
    """
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    x = jnp.maximum(jnp.maximum(x[:, 0:-2:2], x[:, 1:-1:2]), x[:, 2::2])
    return jnp.maximum(jnp.maximum(x[:, :, 0:-2:2], x[:, :, 1:-1:2]), x[:, :, 2::2])


def pad_to(x, multiple):
    """Images (B, H, W, C), their last row and column repeated until H and W are multiples of `multiple`."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple), (0, -x.shape[2] % multiple), (0, 0)), mode="edge")


def crop(x, size, stride):
    """The part of a map (B, h, w, C) at this stride that shows the frame of `size` (H, W), without what was padded."""
    return x[:, : -(-size[0] // stride), : -(-size[1] // stride)]


def fold(x, stride):
    """Images (B, H, W, C) -> (B, ceil(H / s), ceil(W / s), C s^2): each square of s x s pixels becomes one pixel.

    No pixel is lost, and the convolutions run on s^2 times fewer. The last ones are repeated where s does not divide.
    """
    if stride == 1:
        return x
    b, _, _, c = x.shape
    x = pad_to(x, stride)
    rows, columns = x.shape[1] // stride, x.shape[2] // stride
    x = x.reshape(b, rows, stride, columns, stride, c).swapaxes(2, 3)
    return x.reshape(b, rows, columns, stride * stride * c)


def resize(x, size):
    """Bilinear resizing of x (B, h, w, C) to (B, *size, C), half-pixel exact, without antialiasing."""
    return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), "bilinear", antialias=False)


class Conv(nn.Module):
    """A 2-D convolution, its parameters named as in `nn.Conv`."""

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    padding: str | tuple = "SAME"
    strides: tuple[int, int] = (1, 1)
    dilation: int = 1
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.he_normal()
    groups: int = 1

    @nn.compact
    def __call__(self, x):
        shape = (*self.kernel_size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        x = conv(x, kernel, strides=self.strides, padding=self.padding, dilation=self.dilation, groups=self.groups)
        return x + self.param("bias", nn.initializers.zeros_init(), (self.features,)) if self.use_bias else x


class UpConv(nn.Module):
    """A transposed convolution of 2x2 with stride 2: every pixel becomes four, x (B, h, w, C) -> (B, 2h, 2w, F)."""

    features: int
    kernel_init: Callable = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x):
        b, h, w, c = x.shape
        kernel = self.param("kernel", self.kernel_init, (c, 2, 2, self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        x = (x @ kernel.reshape(c, -1)).reshape(b, h, w, 2, 2, self.features)
        return x.swapaxes(2, 3).reshape(b, 2 * h, 2 * w, self.features) + bias


class Norm(nn.Module):
    """Normalisation by its name: "batch", "group" (8 channels a group, at least) or "none".

    Batch statistics are those of the whole batch, also where pmap splits it over devices. Groups need no batch and
    no running statistics, which suits a handful of images.
    """

    kind: str = "batch"
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x, *, train):
        if self.kind == "batch":
            return nn.BatchNorm(
                use_running_average=not train, momentum=MOMENTUM, epsilon=self.epsilon, name="batch",
                axis_name=DEVICES if _on_several_devices() else None,
            )(x)  # fmt: skip
        if self.kind == "group":
            return nn.GroupNorm(math.gcd(x.shape[-1], max(1, x.shape[-1] // 8)), epsilon=self.epsilon, name="group")(x)
        if self.kind == "none":
            return x
        raise ValueError(f"norm={self.kind!r}: there are batch, group and none")


class ConvNorm(nn.Module):
    """A convolution and its normalisation, padded evenly on both sides as in PyTorch, or by `padding`."""

    features: int
    size: int = 3
    stride: int = 1
    norm: str = "batch"
    kernel_init: Callable = nn.initializers.he_normal()
    groups: int = 1
    padding: str | None = None
    epsilon: float = 1e-5
    dilation: int = 1

    @nn.compact
    def __call__(self, x, *, train):
        even = (self.size // 2 * self.dilation,) * 2
        x = Conv(
            self.features, (self.size, self.size), self.padding or (even, even), (self.stride, self.stride), self.dilation,
            use_bias=self.norm != "batch", kernel_init=self.kernel_init, groups=self.groups, name="conv",
        )(x)  # fmt: skip
        return Norm(self.norm, self.epsilon, name="norm")(x, train=train)


class DoubleConv(nn.Module):
    """Twice: 3x3 convolution, normalisation, ReLU."""

    features: int
    norm: str

    @nn.compact
    def __call__(self, x, *, train):
        for i in (1, 2):
            x = nn.relu(ConvNorm(self.features, norm=self.norm, name=f"conv{i}")(x, train=train))
        return x


def last_init(norm):
    """The initialisation of a residual branch's last convolution.

    Without normalisation it is zero, so that each block begins as its shortcut: else the variance doubles with each.
    """
    return nn.initializers.zeros_init() if norm == "none" else nn.initializers.he_normal()


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
    rows = jnp.arange(batch)
    return rows + lax.axis_index(DEVICES) * batch if _on_several_devices() else rows


def _on_several_devices():
    """Whether this is traced under the steps' pmap."""
    try:
        lax.axis_index(DEVICES)
    except NameError:  # no such axis
        return False
    return True
