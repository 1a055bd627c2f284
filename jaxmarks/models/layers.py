"""Convolution, pooling, normalisation and dropout for every model: the only module concerned with how they are lowered.

On an accelerator XLA's convolution is the right choice. On the CPU it is, for some shapes, several times slower than
the same sum as one matmul over concatenated shifted slices, so there `conv` chooses by shape; never by the batch size,
which may be symbolic. XLA's convolution is fastest where the output is as large as the input; and, in prediction, where
images with short rows are laid side by side. Most often only the gradient with respect to the kernel is slow, and only
that is then computed by matmuls. The gradient of `reduce_window` is slow, too, so pooling is the maximum of slices, for
2x2 windows with its own gradient. Grouped convolutions, whose gradients XLA computes up to a hundred times slower on
the CPU, become sums of shifted slices or dense convolutions. The results agree to float32 rounding.

Operations with their own gradient (`jax.custom_vjp`) cannot be differentiated in forward mode (`jax.jvp`,
`jax.hessian`): convolutions on the CPU, and 2x2 pooling on every platform unless traced for "plain". Reverse mode can
be nested.
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

# Name of the device axis in the steps' pmap, and in any other pmap or shard_map that trains these networks.
DEVICE_AXIS = "devices"
# Decay of the running batch statistics: the share of them that a training step keeps.
MOMENTUM = 0.9


def conv(x, kernel, *, strides=(1, 1), padding="SAME", dilation=1, groups=1):
    """2-D convolution of x (B, H, W, C) with a kernel (h, w, C / groups, F) -> (B, H', W', F).

    Group g maps the g-th C / groups input channels to the g-th F / groups output channels.
    """
    settings = {"strides": strides, "padding": padding, "dilation": dilation, "groups": groups}
    return chosen(functools.partial(_conv_on_cpu, **settings), functools.partial(_lax_conv, **settings), x, kernel)


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
    """Returns the padding ((top, bottom), (left, right)) of a convolution with kernels of this size (h, w)."""
    pads = lax.padtype_to_pads(x.shape[1:3], size, strides, padding) if isinstance(padding, str) else padding
    return tuple(map(tuple, pads))


def _matmul_is_faster(images, kernel):
    """Whether one matmul over shifted slices takes less time than `lax.conv`, forward and both gradients on two cores.

    It does for maps of few pixels (2x2: 40 times less, 4x4: 1.3), 1x1 kernels (1.1-3), and channel counts above 16 that
    are no multiple of 16 (2); for others `lax.conv` was 1.0-2.2 times faster.
    """
    _, rows, columns, channels = images
    h, w, _, _ = kernel
    few_patches = h * w * channels <= 512  # the patches are copies, h w times the size of the map
    return rows * columns <= 36 or (h, w) == (1, 1) or (few_patches and channels > 16 and channels % 16 > 0)


def _kernel_gradient(images, kernel):
    """Returns the function for the kernel's gradient, or None where XLA's is as fast, as with few output channels.

    GFLOP/s on two cores, XLA's -> this one's, for images x rows x columns x input -> output channels. With AVX-512, by
    half the CPU time of both cores (forward: 180-390):

      3x3  32x192x256x1->32     34 -> 103      2x2  32x95x127x32->64  51 -> 125
           4x256x256x3->64      87 -> 177           32x47x63x64->128  47 -> 168
           4x256x256x64->64     87 -> 181      3x3  4x64x64x256->256  165 -> 282
           4x128x128x128->128   42 -> 215           4x32x32x512->512  235 -> 275

    With AVX2, by wall-clock time (forward: 60-140); for many of these XLA keeps only one core busy:

      3x3  16x96x128x32->32      8 -> 48       3x3  16x24x32x128->64  20 -> 88
           16x48x64x16->32      24 -> 49            16x12x16x256->128 70 -> 114
           16x48x64x64->32      25 -> 74            16x40x40x64->32   21 -> 66
           16x24x32x64->64      20 -> 75            16x20x20x128->64  23 -> 86
    """
    _, rows, columns, channels = images
    h, w, _, features = kernel
    if channels <= 4:
        return _by_patches_channels_first
    if h * w * channels <= 512 and (h % 2 == 0 or w % 2 == 0):
        return _by_patches
    if channels >= 16 and features >= 32:
        return _by_images if rows * columns >= 16 * max(channels, features) else _by_rows
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _conv(gradient, pads, x, kernel):
    """Convolves with stride 1; the kernel's gradient is `gradient(padded x, cotangent, (h, w))`, or XLA's if None."""
    del gradient
    return (_side_by_side if _short_rows(x.shape, kernel.shape) else _conv_same_size)(x, kernel, pads)


def _conv_same_size(x, kernel, pads):
    """Convolves with padding `pads` by a same-size convolution, XLA's fastest: pads x before it, or crops its output.

    XLA takes 1.4-2.2 times as long for other paddings: 32x95x127x32->64 by 2x2, valid: 66 ms instead of 36, its
    gradient with respect to x 38 instead of 28. With at most 4 input channels the padding is left as it is.
    """
    if x.shape[-1] <= 4:
        return _lax_conv(x, kernel, pads)
    same = _same(kernel)
    more = [[max(0, a - b) for a, b in zip(*pair, strict=True)] for pair in zip(pads, same, strict=True)]
    less = [[max(0, b - a) for a, b in zip(*pair, strict=True)] for pair in zip(pads, same, strict=True)]
    return _cropped(_lax_conv(jnp.pad(x, ((0, 0), *more, (0, 0))), kernel, same), less)


def _short_rows(images, kernel):
    """Whether rows are too short: XLA makes each a matmul, and such small ones keep one core busy, not two."""
    return math.prod(kernel) * images[2] < 4.5e6


def _side_by_side(x, kernel, pads):
    """Convolves a batch as one wide image of its images side by side, each with its own padding: the same sums.

    32x192x256x1->32 by 3x3: 18 ms, side by side 10; 32x95x127x32->64 by 2x2: 31 and 17; 32x47x63x64->128: 31 and 15.
    The transpositions are free where XLA fuses them with the operations before and after. For prediction only: the
    kernel's gradient is slower this way, and training was not faster.
    """
    same = _same(kernel)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    images, rows, columns, channels = x.shape
    wide = x.swapaxes(0, 1).reshape(1, rows, images * columns, channels)
    y = _lax_conv(wide, kernel, same).reshape(rows, images, columns, kernel.shape[-1]).swapaxes(0, 1)
    return _cropped(y, same)


def _same(kernel):
    """Returns the padding, in the form of `_pads`, with which the output is as large as the input."""
    return [((size - 1) // 2, size // 2) for size in kernel.shape[:2]]


def _cropped(y, less):
    rows, columns = (slice(low, size - high) for size, (low, high) in zip(y.shape[1:3], less, strict=True))
    return y[:, rows, columns]


def _conv_forward(gradient, pads, x, kernel):
    return (_conv_same_size if gradient else _lax_conv)(x, kernel, pads), (x, kernel)


def _conv_backward(gradient, pads, saved, g):
    x, kernel = saved
    if gradient is None:
        return jax.vjp(functools.partial(_lax_conv, padding=pads), x, kernel)[1](g)
    h, w = kernel.shape[:2]
    # The cotangent is padded so that its convolution with the flipped kernel is as large as x.
    cotangent_pads = [(size - 1 - low, size - 1 - high) for size, (low, high) in zip((h, w), pads, strict=True)]
    x_gradient = _conv_same_size(g, kernel[::-1, ::-1].swapaxes(2, 3), cotangent_pads)
    padded = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*pair, 0) for pair in pads), (0, 0, 0)))
    return x_gradient, gradient(padded, g, (h, w)).astype(kernel.dtype)


_conv.defvjp(_conv_forward, _conv_backward)


def _patches(x, h, w, rows, columns):
    return [x[:, i : i + rows, j : j + columns] for i in range(h) for j in range(w)]


def _by_patches(x, g, size):
    """Computes the kernel's gradient by one matmul of all patches.

    Takes the padded x (B, H, W, C), the cotangent g (B, rows, columns, F) and the kernel's size (h, w); returns the
    gradient (h, w, C, F).
    """
    patches = jnp.concatenate(_patches(x, *size, *g.shape[1:3]), axis=-1)
    return _contract("bhwc,bhwf->cf", patches, g).reshape(*size, x.shape[-1], g.shape[-1])


def _by_patches_channels_first(x, g, size):
    """Computes the same as `_by_patches` with the channels first, which is faster if they are few."""
    channels_first = x.transpose(3, 0, 1, 2)
    (h, w), (rows, columns) = size, g.shape[1:3]
    slices = [channels_first[:, :, i : i + rows, j : j + columns] for i in range(h) for j in range(w)]
    patches = jnp.concatenate(slices, axis=0)
    return _contract("cbhw,bhwf->cf", patches, g).reshape(*size, x.shape[-1], g.shape[-1])


def _by_rows(x, g, size):
    """Computes the same by one matmul per kernel row, with g shifted for each of its columns, side by side."""
    (h, w), rows, spare = size, g.shape[1], x.shape[2] - g.shape[2]
    side_by_side = [jnp.pad(g, ((0, 0), (0, 0), (j, spare - j), (0, 0))) for j in range(w)]
    wide = jnp.concatenate(side_by_side, axis=-1)
    row_gradients = [_contract("bhwf,bhwc->fc", wide, x[:, i : i + rows]) for i in range(h)]
    return jnp.stack(row_gradients).reshape(h, w, g.shape[-1], x.shape[-1]).swapaxes(2, 3)


def _by_images(x, g, size):
    """Computes the same as `_by_rows` image by image, with the cotangent's channels first."""
    (h, w), rows, spare = size, g.shape[1], x.shape[2] - g.shape[2]
    channels_first = g.transpose(0, 3, 1, 2)
    side_by_side = [jnp.pad(channels_first, ((0, 0), (0, 0), (0, 0), (j, spare - j))) for j in range(w)]
    wide = jnp.concatenate(side_by_side, axis=1)
    row_gradients = [_contract("bfhw,bhwc->bfc", wide, x[:, i : i + rows]).sum(0) for i in range(h)]
    return jnp.stack(row_gradients).reshape(h, w, g.shape[-1], x.shape[-1]).swapaxes(2, 3)


def _contract(formula, x, g):
    """Computes an einsum that accumulates in float32 at least."""
    return jnp.einsum(formula, x, g, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))


def _shifted_matmul(x, kernel, padding):
    h, w, _, features = kernel.shape
    pads = _pads(x, (h, w), (1, 1), padding)
    if any(pair != (0, 0) for pair in pads):
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows, columns = x.shape[1] - h + 1, x.shape[2] - w + 1
    return jnp.concatenate(_patches(x, h, w, rows, columns), axis=-1) @ kernel.reshape(-1, features)


def _shifted_sum(x, kernel, strides, padding, dilation):
    """Computes a depthwise convolution: on two cores 10-40 times faster than XLA's, its gradients 2-9 times."""
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
    """Computes a grouped convolution as at most eight dense ones, each of several groups, with zeros in its kernel.

    Each has at least 64 of the input channels, or all of them. On two cores their gradients are 20-100 times faster
    than XLA's of groups; more than eight dense convolutions take long to compile.
    """
    h, w, into, out = kernel.shape
    blocks = math.gcd(groups, max(1, min(8, x.shape[-1] // 64)))
    block_groups = groups // blocks
    kernels = kernel.reshape(h, w, into, blocks, block_groups, out // groups)
    kernels = jnp.einsum("hwibgf,dg->bhwdigf", kernels, jnp.eye(block_groups, dtype=kernel.dtype))
    kernels = kernels.reshape(blocks, h, w, block_groups * into, out // blocks)
    return jnp.concatenate(
        [_conv_on_cpu(part, k, groups=1, **how) for part, k in zip(jnp.split(x, blocks, -1), kernels, strict=True)], -1
    )


def max_pool(x):
    """Takes the maximum over 2x2 windows with stride 2; an odd last row or column is dropped (valid padding).

    Equal maxima of a window share its gradient.

    Raises:
      ValueError: the map has only one row or column, so that nothing would be left of it.
    """
    if min(x.shape[1:3]) < 2:
        raise ValueError(
            f"a map of {x.shape[1]}x{x.shape[2]} cannot be halved: the frame (--config.data.size) is too small for so"
            " many pooling layers; enlarge it, or lower --config.model.depth or --config.model.stride"
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
    """Returns the four pixels of each 2x2 window as four maps (B, h // 2, w // 2, C).

    By slices, not windows: XLA would fuse windows with the convolution before them, which then takes four times longer.
    """
    h, w = (size // 2 * 2 for size in x.shape[1:3])
    return [x[:, i:h:2, j:w:2] for i in (0, 1) for j in (0, 1)]


def _max_pool_backward(x, g):
    """Computes the gradient that JAX would derive, in one pass over x: 2.5 times faster on two cores.

    JAX's can become NaN: XLA may compute x twice, for the pooling and for its gradient, and round it differently. Then
    no value of a window equals the saved maximum, and the gradient is 0 / 0. Here x is compared with its own maximum.
    """
    b, h, w, c = x.shape
    corners = _corners(x)
    largest = functools.reduce(jnp.maximum, corners)
    equal = [corner == largest for corner in corners]
    share = g / sum(each.astype(g.dtype) for each in equal)
    parts = [jnp.where(each, share, 0) for each in equal]
    rows = [jnp.stack(parts[i : i + 2], axis=3) for i in (0, 2)]
    x_gradient = jnp.stack(rows, axis=2).reshape(b, h // 2 * 2, w // 2 * 2, c)
    return (jnp.pad(x_gradient, ((0, 0), (0, h % 2), (0, w % 2), (0, 0))),)


_max_pool.defvjp(lambda x: (_max_pool(x), x), _max_pool_backward)


def max_pool_3x3(x):
    """Max pooling over 3x3 windows, stride 2, one pixel of padding: (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), C).

    Computed as the maximum of three strided slices along each axis.
    """
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    x = jnp.maximum(jnp.maximum(x[:, 0:-2:2], x[:, 1:-1:2]), x[:, 2::2])
    return jnp.maximum(jnp.maximum(x[:, :, 0:-2:2], x[:, :, 1:-1:2]), x[:, :, 2::2])


def pad_to(x, multiple):
    """Pads images (B, H, W, C) by repeating their last row and column until H and W are multiples of `multiple`."""
    return extend(x, [side + -side % multiple for side in x.shape[1:3]])


def extend(x, size):
    """Pads images (B, h, w, C) by repeating their last row and column until they have `size` (H, W)."""
    for axis, side in enumerate(size, 1):
        if missing := side - x.shape[axis]:
            x = jnp.concatenate([x, jnp.repeat(lax.slice_in_dim(x, -1, None, axis=axis), missing, axis)], axis)
    return x


def crop(x, size, stride):
    """Crops a map (B, h, w, C) at this stride to the part that shows the frame of `size` (H, W), without padding."""
    return x[:, : -(-size[0] // stride), : -(-size[1] // stride)]


def space_to_depth(x, stride):
    """Space to depth, (B, H, W, C) -> (B, ceil(H / s), ceil(W / s), C s^2): each s x s square becomes one pixel.

    Nothing is lost, and convolutions run on s^2 times fewer pixels. If s does not divide H or W, the images are padded.
    """
    if stride == 1:
        return x
    b, _, _, c = x.shape
    x = pad_to(x, stride)
    rows, columns = x.shape[1] // stride, x.shape[2] // stride
    x = x.reshape(b, rows, stride, columns, stride, c).swapaxes(2, 3)
    return x.reshape(b, rows, columns, stride * stride * c)


def resize(x, size):
    """Resizes x (B, h, w, C) bilinearly to (B, *size, C), with half-pixel centres and without antialiasing.

    `jax.image.resize` does the same, but does not take a batch of unknown size when it is traced for ONNX.
    """
    rows, columns = (
        jnp.asarray(_interpolation_weights(*sides), x.dtype) for sides in zip(x.shape[1:3], size, strict=True)
    )
    return jnp.einsum("bhwc,Hh,Ww->bHWc", x, rows, columns, precision=lax.Precision.HIGHEST)


def _interpolation_weights(old, new):
    """Returns the weights (new, old) of linear interpolation along an axis from `old` to `new` pixels."""
    position = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(old)))


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
        return biased(x, self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32))


def biased(x, bias):
    """Adds the bias (F,) to x (..., F), in float32 at least.

    The bias's gradient is a sum over all pixels; in bfloat16, it would stop growing at 256 times a pixel's share.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return (x.astype(wide) + bias.astype(wide)).astype(x.dtype)


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
        return biased(x.swapaxes(2, 3).reshape(b, 2 * h, 2 * w, self.features), bias)


class Norm(nn.Module):
    """Normalisation by its name: "batch", "group" (at least 8 channels per group, if there are so many) or "none".

    Batch statistics are those of the whole batch, even if pmap splits it over devices. Group normalisation needs no
    batch and no running statistics, which suits a handful of images.
    """

    kind: str = "batch"
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x, *, train):
        if self.kind == "batch":
            return nn.BatchNorm(
                use_running_average=not train, momentum=MOMENTUM, epsilon=self.epsilon, name="batch",
                axis_name=DEVICE_AXIS if train and _on_several_devices() else None,
            )(x)  # fmt: skip
        if self.kind == "group":
            return nn.GroupNorm(math.gcd(x.shape[-1], max(1, x.shape[-1] // 8)), epsilon=self.epsilon, name="group")(x)
        if self.kind == "none":
            return x
        raise ValueError(f"norm={self.kind!r}: choose batch, group or none")


class ConvNorm(nn.Module):
    """A convolution and its normalisation; padded equally on both sides, as in PyTorch, unless `padding` is given."""

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
    """Returns the initialiser of a residual branch's last convolution.

    Without normalisation it is zero, so that each block starts as its shortcut: else the variance doubles with each.
    """
    return nn.initializers.zeros_init() if norm == "none" else nn.initializers.he_normal()


class Dropout(nn.Module):
    """Sets a share `rate` of the values to zero in training and scales up the rest.

    Under a given key a sample's mask depends only on its row in the whole batch, so a batch that pmap splits over
    devices gets the same masks as on one device.
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
    """Draws 16 random bits, as uint32 (B, *shape), for each value of each row, by Threefry-2x32 under the row's key.

    16 bits resolve a dropout rate to 1/65536. A block of Threefry has 64 bits and serves four values; with
    `jax.random.bits` it would serve one.
    """
    count = math.prod(shape)
    counters = jnp.arange(2 * -(-count // 4), dtype=jnp.uint32)

    def row(key):
        words = random.threefry_2x32(jax.random.bits(key, (2,), jnp.uint32), counters)
        return jnp.stack([words & 0xFFFF, words >> 16]).reshape(-1)[:count].reshape(shape)

    return jax.vmap(row)(keys)


def global_rows(batch):
    """Returns the indices (B,) in the whole batch of the rows in this device's part of it."""
    rows = jnp.arange(batch)
    return rows + lax.axis_index(DEVICE_AXIS) * batch if _on_several_devices() else rows


def _on_several_devices():
    """Whether this is traced under the device axis, which splits the batch in training.

    Raises:
      ValueError: it is traced under a pmap or shard_map, but none of their axes has that name.
    """
    try:
        lax.axis_index(DEVICE_AXIS)
    except NameError:  # no such axis
        if others := jax.sharding.get_abstract_mesh().manual_axes:
            raise ValueError(
                f"training under a pmap or shard_map whose axis is {', '.join(map(repr, others))}: name it"
                f" {DEVICE_AXIS!r} (jaxmarks.steps.DEVICE_AXIS), or each device would have batch statistics of its own"
                " and repeat the dropout masks of the others; networks that train independently belong in a jax.vmap"
            ) from None
        return False
    return True
