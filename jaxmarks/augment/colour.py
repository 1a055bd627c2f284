"""Colour augmentation: pure functions of a key and one float image (H, W, C) in [0, 1].

They do not clip, except `gamma`: a chain of them is clipped once, at its end.
"""

import math
import statistics

import jax
import jax.numpy as jnp
from jax import lax

from jaxmarks import platforms
from jaxmarks.ops import filters

# ITU-R BT.601: the weights of red, green and blue in the luminance.
LUMINANCE = (0.299, 0.587, 0.114)
# The normal distribution as 1,024 equally likely values, of variance 0.999: ten random bits select one.
NORMAL = [statistics.NormalDist().inv_cdf((i + 0.5) / 1024) for i in range(1024)]


def to_float(images):
    """Converts uint8 images (..., C) to float32 in [0, 1]; returns float images unchanged."""
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images of type {images.dtype}: give uint8, or floats in [0, 1]")
    return images


def mix(images, weights):
    """Sums the channels of images (..., 3) with three weights, in full precision on every device: (..., 1)."""
    return sum(images[..., c : c + 1] * weights[c] for c in range(3))


def to_channels(images, channels):
    """Converts images (..., C) with C of 1 or 3 to (..., channels): luminance, or the grey channel repeated."""
    if images.shape[-1] == channels:
        return images
    if {images.shape[-1], channels} != {1, 3}:
        raise ValueError(
            f"images of {images.shape[-1]} channels cannot be converted to {channels}: only 1 and 3 are possible"
        )
    return mix(images, LUMINANCE) if channels == 1 else jnp.repeat(images, 3, axis=-1)


def brightness(key, image, *, strength):
    """Adds one number drawn from U[-strength, strength]."""
    return image + jax.random.uniform(key, (), minval=-strength, maxval=strength)


def contrast(key, image, *, strength):
    """Scales the deviation from the image's mean by a factor drawn from U[1 - strength, 1 + strength]."""
    mean = image.mean()
    return (image - mean) * jax.random.uniform(key, (), minval=1 - strength, maxval=1 + strength) + mean


def gamma(key, image, *, strength):
    """Raises the image, clipped to [0, 1], to the power of 2 ** U[-strength, strength]."""
    power = 2 ** jax.random.uniform(key, (), minval=-strength, maxval=strength)
    # Takes a quarter of the time of `**` on a CPU. Clipped above 0, where the logarithm has no finite gradient.
    return jnp.exp(power * jnp.log(jnp.clip(image, 1e-8, 1)))


def channel(key, image, *, strength):
    """Scales each channel by its own factor drawn from U[1 - strength, 1 + strength]."""
    return image * jax.random.uniform(key, image.shape[-1:], minval=1 - strength, maxval=1 + strength)


def noise(key, image, *, strength):
    """Adds Gaussian noise, independent for each value, with a standard deviation drawn from U[0, strength]."""
    sigma_key, noise_key = jax.random.split(key)
    return image + jax.random.uniform(sigma_key) * strength * normal(noise_key, image.shape)


def normal(key, shape):
    """Draws numbers of `shape` from the normal distribution, as one of the 1,024 values of `NORMAL` each.

    Each random 32-bit word gives three numbers, so an image takes a tenth of the time of `jax.random.normal` on a CPU.
    """
    count = math.prod(shape)
    words = jax.random.bits(key, (-(-count // 3),), jnp.uint32)
    indices = (words[:, None] >> jnp.array([0, 10, 20], jnp.uint32) & 1023).reshape(-1)[:count].reshape(shape)
    return platforms.chosen(_looked_up, _computed, indices)


def _looked_up(indices):
    return jnp.array(NORMAL, jnp.float32).at[indices].get(mode="promise_in_bounds")


def _computed(indices):
    """Computes the same without a gather, which is slow on TPUs."""
    return math.sqrt(2) * lax.erf_inv((2 * indices.astype(jnp.float32) + 1) / 1024 - 1)


def blur(key, image, *, strength):
    """Blurs with a Gaussian whose sigma in pixels is drawn from U[0, strength]; the edge is repeated.

    The kernel is truncated at three times `strength`, which is a Python number and so gives it a static size.
    """
    sigma = jnp.maximum(jax.random.uniform(key) * strength, 1e-3)
    radius = max(1, round(3 * strength))
    weights = jnp.exp(-0.5 * (jnp.arange(-radius, radius + 1) / sigma) ** 2)
    return filters.separable(image, weights / weights.sum(), (0, 1), mode="edge")


def cutout(key, image, *, strength):
    """Fills one box, whose sides are up to the share `strength` of the image's, with each channel's mean."""
    h, w = image.shape[:2]
    side, centre = jax.random.uniform(key, (2, 2))
    covers = lambda at, axis: jnp.abs(at - centre[axis]) < side[axis] * strength / 2
    x, y = (jnp.arange(w) + 0.5) / w, (jnp.arange(h) + 0.5) / h
    box = covers(y, 0)[:, None] & covers(x, 1)[None, :]
    return jnp.where(box[..., None], image.mean((0, 1)), image)
