"""Convolution, pooling, normalisation and dropout for every model: the one place that knows how they are lowered.

XLA's convolution is the right choice on an accelerator. On the CPU some shapes run several times slower than the same
sum as one matmul over concatenated shifted slices, so there `conv` chooses by shape, never by the batch, which may be
symbolic. XLA's own is fastest where the output is as large as the input, and for predictions of images with short rows
where these stand side by side. Most often it is the gradient to the kernel that is slow, and then that alone is made of
matmuls. The gradient of `reduce_window` is slow, too, so pooling is the maximum of slices with a gradient of its own.
Convolutions in groups, whose gradients XLA computes there up to a hundred times slower, become sums of shifted slices or
dense convolutions. The results agree to float32 rounding. What has a gradient of its own (`jax.custom_vjp`) cannot be
differentiated forwards (`jax.jvp`, `jax.hessian`), convolutions on the CPU, pooling nowhere; reverse mode can be repeated.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import random

from jaxmarks.platforms import chosen, target

# The name that the steps give to the axis of devices under pmap.
DEVICES = "devices"
# What a step keeps of the running statistics of batches.
MOMENTUM = 0.9


def conv(x, kernel, *, strides=(1, 1), padding="SAME", dilation=1, groups=1):
    """2-D convolution of x (B, H, W, C) with a kernel (h, w, C / groups, F) -> (B, H', W', F).

    With groups the g-th of them, of C / groups input channels, makes the g-th F / groups output channels.
    """
    how = {"strides": strides, "padding": padding, "dilation": dilation, "groups": groups}
    return chosen(functools.partial(_conv_on_cpu, **how), functools.partial(_lax_conv, **how), x, kernel)


def _lax_conv(x, kernel, padding, *, strides=(1, 1), dilation=1, groups=1):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, rhs_dilation=(dilation, dilation), dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )  # fmt: skip


def _conv_on_cpu(x, kernel, *, strides, padding, dilation, groups):
    plain = strides == (1, 1) and dilation == 1
    if groups > 1 and kernel.shape[2:] == (1, groups):
        return _shifted_sum(x, kernel, strides, padding, dilation)
    if groups > 1:
        return _grouped_as_dense(x, kernel, groups, strides=strides, padding=padding, dilation=dilation)
    if plain and _matmul_is_faster(x.shape, kernel.shape):
        return _shifted_matmul(x, kernel, padding)
    gradient = _kernel_gradient(x.shape, kernel.shape)
    if plain and (gradient or _short_rows(x.shape, kernel.shape)):
        return _conv(gradient, _pads(x, kernel.shape[:2], (1, 1), padding), x, kernel)
    return _lax_conv(x, kernel, padding, strides=strides, dilation=dilation, groups=groups)


def _pads(x, size, strides, padding):
    """What a convolution by kernels of this (h, w) adds before and after rows and columns: ((top, bottom), (left, right))."""
    pads = lax.padtype_to_pads(x.shape[1:3], size, strides, padding) if isinstance(padding, str) else padding
    return tuple(map(tuple, pads))


def _matmul_is_faster(images, kernel):
    """By forward and both gradients on two cores: maps of few pixels (2x2: 40 times, 4x4: 1.3), 1x1 kernels (1.1-3), and
    channel counts above 16 that are no multiple of 16 (2); for others `lax.conv` was 1.0-2.2 times faster.
    """
    _, rows, columns, channels = images
    h, w, _, _ = kernel
    few_patches = h * w * channels <= 512  # they are copied, h w times the size of the map
    return rows * columns <= 36 or (h, w) == (1, 1) or (few_patches and channels > 16 and channels % 16 > 0)


def _kernel_gradient(images, kernel):
    """The function that computes the gradient to the kernel, or None where XLA's is as fast, as to few output channels.

    GFLOP/s on two cores, XLA's and this one's, for images x rows x columns x input -> output channels. By the CPU time of
    both, halved, with AVX-512 (forward: 180-390):

      3x3  32x192x256x1->32     34 -> 103      2x2  32x95x127x32->64  51 -> 125
           4x256x256x3->64      87 -> 177           32x47x63x64->128  47 -> 168
           4x256x256x64->64     87 -> 181      3x3  4x64x64x256->256  165 -> 282
           4x128x128x128->128   42 -> 215           4x32x32x512->512  235 -> 275

    By the clock, with AVX2 (forward: 60-140), where XLA keeps one core alone busy with many of these:

      3x3  16x96x128x32->32      8 -> 48       3x3  16x24x32x128->64  20 -> 88
           16x48x64x16->32      24 -> 49            16x12x16x256->128 70 -> 114
           16x48x64x64->32      25 -> 74            16x40x40x64->32   21 -> 66
           16x24x32x64->64      20 -> 75            16x20x20x128->64  23 -> 86
    """
    _, rows, columns, channels = images
    h, w, _, features = kernel
    if channels <= 4:
        return _by_turned_patches
    if h * w * channels <= 512 and (h % 2 == 0 or w % 2 == 0):
        return _by_patches
    if channels >= 16 and features >= 32:
        return _by_images if rows * columns >= 16 * max(channels, features) else _by_rows
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _conv(gradient, pads, x, kernel):
    """`lax.conv` with stride 1 whose gradient to the kernel is gradient(padded x, cotangent, kernel's (h, w)), or XLA's."""
    del gradient
    return (_side_by_side if _short_rows(x.shape, kernel.shape) else _as_large)(x, kernel, pads)


def _as_large(x, kernel, pads):
    """The convolution by one whose output is as large as its input, which is then padded, or its output cropped.

    XLA takes 1.4-2.2 times as long for others: 32x95x127x32->64 by 2x2, valid: 66 ms in place of 36, its gradient to x, 38
    in place of 28.
    """
    if x.shape[-1] <= 4:
        return _lax_conv(x, kernel, pads)
    same = _same(kernel)
    more = [[max(0, a - b) for a, b in zip(*pair, strict=True)] for pair in zip(pads, same, strict=True)]
    less = [[max(0, b - a) for a, b in zip(*pair, strict=True)] for pair in zip(pads, same, strict=True)]
    return _cropped(_lax_conv(jnp.pad(x, ((0, 0), *more, (0, 0))), kernel, same), less)


def _short_rows(images, kernel):
    """Whether a row is too short: XLA makes a matmul of each, which then keeps one core busy, not two."""
    return math.prod(kernel) * images[2] < 4.5e6


def _side_by_side(x, kernel, pads):
    """The convolution of a batch as one of a single wide image, each padded for itself: the same sums.

    32x192x256x1->32 by 3x3: 18 ms, side by side 10; 32x95x127x32->64 by 2x2: 31 and 17; 32x47x63x64->128: 31 and 15. The
    transpositions are free where XLA joins them with what comes before and after. It is for predictions alone: of
    gradients the kernel's is slower so, and training was not faster.
    """
    same = _same(kernel)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    images, rows, columns, channels = x.shape
    wide = x.swapaxes(0, 1).reshape(1, rows, images * columns, channels)
    y = _lax_conv(wide, kernel, same).reshape(rows, images, columns, kernel.shape[-1]).swapaxes(0, 1)
    return _cropped(y, same)


def _same(kernel):
    """The padding with which the output is as large as the input, as `_pads`."""
    return [((size - 1) // 2, size // 2) for size in kernel.shape[:2]]


def _cropped(y, less):
    rows, columns = (slice(low, size - high) for size, (low, high) in zip(y.shape[1:3], less, strict=True))
    return y[:, rows, columns]


def _conv_forward(gradient, pads, x, kernel):
    return (_as_large if gradient else _lax_conv)(x, kernel, pads), (x, kernel)


def _conv_backward(gradient, pads, saved, g):
    x, kernel = saved
    if gradient is None:
        return jax.vjp(functools.partial(_lax_conv, padding=pads), x, kernel)[1](g)
    h, w = kernel.shape[:2]
    # A cotangent is padded so that its convolution with the kernel turned about is as large as x.
    turned = [(size - 1 - low, size - 1 - high) for size, (low, high) in zip((h, w), pads, strict=True)]
    to_x = _as_large(g, kernel[::-1, ::-1].swapaxes(2, 3), turned)
    padded = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*pair, 0) for pair in pads), (0, 0, 0)))
    return to_x, gradient(padded, g, (h, w)).astype(kernel.dtype)


_conv.defvjp(_conv_forward, _conv_backward)


def _patches(x, h, w, rows, columns):
    return [x[:, i : i + rows, j : j + columns] for i in range(h) for j in range(w)]


def _by_patches(x, g, size):
    """One matmul of all patches: x (B, H, W, C), g (B, rows, columns, F) -> (h, w, C, F)."""
    patches = jnp.concatenate(_patches(x, *size, *g.shape[1:3]), axis=-1)
    return _contract("bhwc,bhwf->cf", patches, g).reshape(*size, x.shape[-1], g.shape[-1])


def _by_turned_patches(x, g, size):
    """The same with the channels first, which suits few of them."""
    turned = x.transpose(3, 0, 1, 2)
    (h, w), (rows, columns) = size, g.shape[1:3]
    each = [turned[:, :, i : i + rows, j : j + columns] for i in range(h) for j in range(w)]
    patches = jnp.concatenate(each, axis=0)
    return _contract("cbhw,bhwf->cf", patches, g).reshape(*size, x.shape[-1], g.shape[-1])


def _by_rows(x, g, size):
    """A matmul for each row of the kernel, of the cotangents of all its columns side by side."""
    (h, w), rows, spare = size, g.shape[1], x.shape[2] - g.shape[2]
    side_by_side = [jnp.pad(g, ((0, 0), (0, 0), (j, spare - j), (0, 0))) for j in range(w)]
    wide = jnp.concatenate(side_by_side, axis=-1)
    found = [_contract("bhwf,bhwc->fc", wide, x[:, i : i + rows]) for i in range(h)]
    return jnp.stack(found).reshape(h, w, g.shape[-1], x.shape[-1]).swapaxes(2, 3)


def _by_images(x, g, size):
    """The same for each image, its channels first."""
    (h, w), rows, spare = size, g.shape[1], x.shape[2] - g.shape[2]
    turned = g.transpose(0, 3, 1, 2)
    side_by_side = [jnp.pad(turned, ((0, 0), (0, 0), (0, 0), (j, spare - j))) for j in range(w)]
    wide = jnp.concatenate(side_by_side, axis=1)
    found = [_contract("bfhw,bhwc->bfc", wide, x[:, i : i + rows]).sum(0) for i in range(h)]
    return jnp.stack(found).reshape(h, w, g.shape[-1], x.shape[-1]).swapaxes(2, 3)


def _contract(formula, x, g):
    """einsum, summed in float32 at least."""
    return jnp.einsum(formula, x, g, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))


def _shifted_matmul(x, kernel, padding):
    h, w, _, features = kernel.shape
    pads = _pads(x, (h, w), (1, 1), padding)
    if any(pair != (0, 0) for pair in pads):
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows, columns = x.shape[1] - h + 1, x.shape[2] - w + 1
    return jnp.concatenate(_patches(x, h, w, rows, columns), axis=-1) @ kernel.reshape(-1, features)


def _shifted_sum(x, kernel, strides, padding, dilation):
    """A convolution of each channel for itself: on two cores 10-40 times faster than XLA's, its gradients 2-9 times."""
    h, w = kernel.shape[:2]
    spread = [(n - 1) * dilation + 1 for n in (h, w)]
    x = jnp.pad(x, ((0, 0), *_pads(x, spread, strides, padding), (0, 0)))
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
        [_conv_on_cpu(part, k, groups=1, **how) for part, k in zip(jnp.split(x, blocks, -1), kernels, strict=True)], -1
    )


def max_pool(x):
    """Maximum over 2x2 windows with stride 2; an odd last row or column is dropped (valid padding).

    Equal maxima of a window share its gradient.

    Raises:
      ValueError: a map of one row or column, of which nothing would be left.
    """
    if min(x.shape[1:3]) < 2:
        raise ValueError(
            f"a map of {x.shape[1]}x{x.shape[2]} cannot be halved: the frame (--config.data.size) is too small for so"
            " many poolings; enlarge it, or lower --config.model.depth or --config.model.stride"
        )
    if target() == "plain":
        b, h, w, c = x.shape
        return x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))
    return _max_pool(x)


@jax.custom_vjp
def _max_pool(x):
    a, b, c, d = _corners(x)
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


def _corners(x):
    """The four pixels of each 2x2 window, maps (B, h // 2, w // 2, C).

    By slices, not windows: XLA would join those with the convolution before them, which then takes four times longer.
    """
    h, w = (size // 2 * 2 for size in x.shape[1:3])
    return [x[:, i:h:2, j:w:2] for i in (0, 1) for j in (0, 1)]


def _max_pool_backward(x, g):
    """The gradient that JAX derives, in one pass over x: 2.5 times faster on two cores.

    And without what JAX's can end in: XLA may compute x twice, for the pooling and for its gradient, and round it
    differently. Then none of a window equals the maximum that was saved, and 0 / 0 is NaN. This one compares x with itself.
    """
    b, h, w, c = x.shape
    corners = _corners(x)
    largest = functools.reduce(jnp.maximum, corners)
    equal = [corner == largest for corner in corners]
    share = g / sum(each.astype(g.dtype) for each in equal)
    parts = [jnp.where(each, share, 0) for each in equal]
    rows = [jnp.stack(parts[i : i + 2], axis=3) for i in (0, 2)]
    to_x = jnp.stack(rows, axis=2).reshape(b, h // 2 * 2, w // 2 * 2, c)
    return (jnp.pad(to_x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0))),)


_max_pool.defvjp(lambda x: (_max_pool(x), x), _max_pool_backward)


def max_pool_3x3(x):
    """Maximum over 3x3 windows with stride 2 and one pixel of padding: (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C).

    The maximum of three strided slices along each axis.
    """
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    x = jnp.maximum(jnp.maximum(x[:, 0:-2:2], x[:, 1:-1:2]), x[:, 2::2])
    return jnp.maximum(jnp.maximum(x[:, :, 0:-2:2], x[:, :, 1:-1:2]), x[:, :, 2::2])


def pad_to(x, multiple):
    """Images (B, H, W, C), their last row and column repeated until H and W are multiples of `multiple`."""
    return extend(x, [side + -side % multiple for side in x.shape[1:3]])


def extend(x, size):
    """Images (B, h, w, C), their last row and column repeated until they are of `size` (H, W)."""
    for axis, side in enumerate(size, 1):
        if missing := side - x.shape[axis]:
            x = jnp.concatenate([x, jnp.repeat(lax.slice_in_dim(x, -1, None, axis=axis), missing, axis)], axis)
    return x


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
    """Bilinear resizing of x (B, h, w, C) to (B, *size, C), half-pixel exact, without antialiasing.

    `jax.image.resize`, which does the same, takes no batch of unknown size when it is traced for ONNX.
    """
    rows, columns = (jnp.asarray(_between(*sides), x.dtype) for sides in zip(x.shape[1:3], size, strict=True))
    return jnp.einsum("bhwc,Hh,Ww->bHWc", x, rows, columns, precision=lax.Precision.HIGHEST)


def _between(old, new):
    """How much of each of `old` pixels is in each of `new` (new, old) along an axis, by linear interpolation."""
    place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(old)))


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
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        x = conv(x, kernel, strides=self.strides, padding=self.padding, dilation=self.dilation, groups=self.groups)
        if not self.use_bias:
            return x
        return x + self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)


class UpConv(nn.Module):
    """A transposed convolution of 2x2 with stride 2: every pixel becomes four, x (B, h, w, C) -> (B, 2h, 2w, F)."""

    features: int
    kernel_init: Callable = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x):
        b, h, w, c = x.shape
        kernel = self.param("kernel", self.kernel_init, (c, 2, 2, self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
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
        if self.rate == 1:
            return jnp.zeros_like(x)
        keep = round((1 - self.rate) * 2**16)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("dropout"), global_rows(x.shape[0]))
        return jnp.where(random_bits(keys, x.shape[1:]) < keep, x / (1 - self.rate), 0)


def random_bits(keys, shape):
    """16 random bits, as uint32 (B, *shape), for each of a row's values: Threefry-2x32 under the row's key.

    They decide to within 1/65536 of a rate. A block of Threefry has 64 bits and serves four values, with
    `jax.random.bits` it would serve one.
    """
    count = math.prod(shape)
    counters = jnp.arange(2 * -(-count // 4), dtype=jnp.uint32)

    def row(key):
        words = random.threefry_2x32(jax.random.bits(key, (2,), jnp.uint32), counters)
        return jnp.stack([words & 0xFFFF, words >> 16]).reshape(-1)[:count].reshape(shape)

    return jax.vmap(row)(keys)


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
