"""Edge-preserving smoothing and edge detection: the bilateral filter and Canny's detector, for batches of grey images.

Images are padded by repeating their outermost pixels.
"""

import math

import jax.numpy as jnp
from jax import lax

from jaxmarks.ops import filters
from jaxmarks.ops.floats import at_least_float32


def bilateral(image, *, sigma_space, sigma_colour):
    """Applies the bilateral filter: a mean weighted by spatial and grey-value similarity (Tomasi and Manduchi 1998).

    The weights are exp(-d^2 / (2 sigma_space^2)) exp(-c^2 / (2 sigma_colour^2)), with distance d and grey-value
    difference c, within a square of 3 sigma_space to each side.

    Args:
      image: (..., H, W).
      sigma_space: in pixels.
      sigma_colour: in the image's own grey values.

    Returns:
      (..., H, W), within the image's range of values.
    """
    image, radius = at_least_float32(image), math.ceil(3 * sigma_space)
    side = 2 * radius + 1
    padded = _pad(image, radius)

    def add(k, sums):
        down, across = k // side, k % side
        shifted = lax.dynamic_slice_in_dim(padded, down, image.shape[-2], -2)
        shifted = lax.dynamic_slice_in_dim(shifted, across, image.shape[-1], -1)
        squared_distance = ((down - radius) ** 2 + (across - radius) ** 2) / sigma_space**2
        weight = jnp.exp(-0.5 * (squared_distance + ((shifted - image) / sigma_colour) ** 2))
        return sums[0] + weight * shifted, sums[1] + weight

    # A loop, since unrolled it would be thousands of operations to compile.
    total, weights = lax.fori_loop(0, side**2, add, (jnp.zeros_like(image), jnp.zeros_like(image)))
    return total / weights


def canny(image, *, sigma, low, high):
    """Detects edges one pixel wide (Canny 1986), like `skimage.feature.canny` with mode "nearest".

    The image is smoothed by a Gaussian. A pixel is an edge if its gradient is maximal along the gradient's direction
    (with linear interpolation between neighbours), at least `low`, and connected (8 neighbours) to an edge pixel with
    at least `high`. The outermost pixels are never edges.

    Args:
      image: (..., H, W) float.
      sigma: standard deviation of the Gaussian, in pixels.
      low: minimum gradient magnitude, with Sobel kernels, which give 8 for a slope of 1 per pixel.
      high: minimum gradient magnitude of at least one pixel of each edge.

    Returns:
      (..., H, W) bool.
    """
    image = at_least_float32(image)
    height, width = image.shape[-2:]
    weights = filters.gaussian_weights(sigma, int(4 * sigma + 0.5))
    smooth = filters.separable(image, weights, (-2, -1), mode="edge")
    gy, gx = _sobel(smooth)
    magnitude = jnp.hypot(gx, gy)
    padded = _pad(magnitude, 1)
    at = lambda down, across: padded[..., 1 + down : 1 + down + height, 1 + across : 1 + across + width]

    steep = jnp.abs(gy) > jnp.abs(gx)
    same_sign = (gy > 0) == (gx > 0)  # y is down: the gradient lies along the diagonal from the top left
    larger, smaller = jnp.maximum(jnp.abs(gx), jnp.abs(gy)), jnp.minimum(jnp.abs(gx), jnp.abs(gy))
    share = smaller / jnp.where(larger > 0, larger, 1)

    def ahead(sign):
        """Interpolates the magnitude one step along the gradient, between the straight and the diagonal neighbour."""
        straight = jnp.where(steep, at(sign, 0), jnp.where(same_sign, at(0, sign), at(0, -sign)))
        diagonal = jnp.where(same_sign, at(sign, sign), at(sign, -sign))
        return share * diagonal + (1 - share) * straight

    ridge = (magnitude > 0) & (ahead(1) <= magnitude) & (ahead(-1) <= magnitude)
    inside = jnp.zeros((height, width), bool).at[1:-1, 1:-1].set(True)
    weak = ridge & inside & (magnitude >= low)
    return hysteresis(weak & (magnitude >= high), weak)


def hysteresis(strong, weak):
    """Keeps the pixels of `weak` that are connected within it to one of `strong`; both are (..., H, W) bool."""

    def grow(state):
        count, _, current = state
        return count + 1, current, weak & _dilate(current)

    def unfinished(state):
        count, previous, current = state
        return (count < weak.shape[-2] * weak.shape[-1]) & (previous != current).any()  # no path is longer than this

    return lax.while_loop(unfinished, grow, (0, jnp.zeros_like(weak), strong & weak))[2]


def _dilate(mask):
    """Dilates the mask (..., H, W) bool by one pixel, diagonals included."""
    for axis in (-2, -1):
        side = mask.shape[axis]
        padded = jnp.pad(mask, [(0, 0)] * (mask.ndim - 2) + [(1, 1) if axis == a else (0, 0) for a in (-2, -1)])
        before, after = (lax.slice_in_dim(padded, i, i + side, axis=axis % mask.ndim) for i in (0, 2))
        mask = mask | before | after
    return mask


def _sobel(image):
    """Returns the vertical and horizontal gradients by unscaled Sobel kernels, each (..., H, W)."""
    p = _pad(image, 1)
    along_x = p[..., :, :-2] + 2 * p[..., :, 1:-1] + p[..., :, 2:]
    along_y = p[..., :-2, :] + 2 * p[..., 1:-1, :] + p[..., 2:, :]
    return along_x[..., 2:, :] - along_x[..., :-2, :], along_y[..., :, 2:] - along_y[..., :, :-2]


def _pad(image, radius):
    return jnp.pad(image, [(0, 0)] * (image.ndim - 2) + [(radius, radius)] * 2, mode="edge")
