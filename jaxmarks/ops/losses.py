"""Losses: penalties of a residual, element by element, and losses of heatmaps, a number for each landmark.

The penalties are functions (...,) -> (...,). Their widths are given for coordinates normalised to [-1, 1], where 0.0078
is a pixel of a frame of 256.
"""

import jax
import jax.numpy as jnp

from jaxmarks.ops import names
from jaxmarks.ops.floats import single


def mse(residual):
    """Squared error."""
    return residual**2


def l1(residual):
    """Absolute error."""
    return jnp.abs(residual)


def smooth_l1(residual, *, beta=0.05):
    """Huber's penalty over beta: quadratic within `beta` of zero, linear beyond, its slope 1."""
    size = jnp.abs(residual)
    return jnp.where(size < beta, 0.5 * size**2 / beta, size - 0.5 * beta)


def wing(residual, *, width=0.08, epsilon=0.016):
    """w log(1 + |r| / epsilon) within w = `width` of zero, |r| - C beyond (Feng et al. 2018, 10 and 2 px of 256)."""
    size = jnp.abs(residual)
    constant = width - width * jnp.log1p(width / epsilon)
    return jnp.where(size < width, width * jnp.log1p(size / epsilon), size - constant)


def soft_wing(residual, *, inner=0.016, outer=0.16, epsilon=0.004):
    """|r| within `inner` of zero, outer log(1 + |r| / epsilon) + B beyond (Lin et al. 2021, 2, 20 and 0.5 px of 256)."""
    size = jnp.abs(residual)
    constant = inner - outer * jnp.log1p(inner / epsilon)
    return jnp.where(size < inner, size, outer * jnp.log1p(size / epsilon) + constant)


def heatmap_mse(maps, targets):
    """Mean squared error of each map: (..., H, W, K) twice -> (..., K)."""
    return jnp.mean((single(maps) - targets) ** 2, axis=(-3, -2))


def heatmap_l1(maps, targets):
    """Mean absolute error of each map (Flat-net, Eslami et al. 2020): of a map that is nearly all 0 the best guess is 0."""
    return jnp.mean(jnp.abs(single(maps) - targets), axis=(-3, -2))


def heatmap_weighted_mse(maps, targets, *, weight=20.0):
    """Mean of (1 + weight t) (f - t)^2: the few pixels of the landmark count beside the many of the background."""
    targets = single(targets)
    return jnp.mean((1 + weight * targets) * (maps - targets) ** 2, axis=(-3, -2))


def heatmap_adaptive_wing(maps, targets, *, alpha=2.1, omega=14.0, epsilon=1.0, theta=0.5):
    """The adaptive wing loss, mean over each map (Wang et al. 2019): sharp where the target is 1, smooth where it is 0."""
    targets = single(targets)
    size, power = jnp.abs(maps - targets), alpha - targets
    ratio = theta / epsilon
    slope = omega * power * ratio ** (power - 1) / (epsilon * (1 + ratio**power))
    constant = theta * slope - omega * jnp.log1p(ratio**power)
    # The power's gradient at 0 is 0, but not by the formula x^(p - 1) in float32: keep away from it.
    near = omega * jnp.log1p((jnp.maximum(size, 1e-6) / epsilon) ** power)
    return jnp.mean(jnp.where(size < theta, near, slope * size - constant), axis=(-3, -2))


def heatmap_cross_entropy(logits, targets):
    """Cross-entropy of the softmax over each map against the target as a distribution: its entropy is not taken off."""
    return -jnp.sum(_distribution(targets) * _log_softmax(logits), axis=(-3, -2))


def heatmap_jensen_shannon(logits, targets):
    """Jensen-Shannon divergence, in [0, log 2], between the softmax over each map and the target as a distribution."""
    found = _log_softmax(logits)
    p, q = jnp.exp(found), _distribution(targets)
    middle = jnp.log((p + q) / 2 + 1e-30)  # where both are 0 so is their part, and its gradient
    return jnp.sum((p * (found - middle) + q * (jnp.log(q + 1e-30) - middle)) / 2, axis=(-3, -2))


def _log_softmax(logits):
    """At least -1e30: a pixel that is left out (-inf) has no part in a sum, and not 0 times infinity.

    What is no number stays so, and ends a training: the CPU's compiler of JAX 0.12 may make a maximum of it.
    """
    found = jax.nn.log_softmax(single(logits), axis=(-3, -2))
    return jnp.where(found < -1e30, -1e30, found)


def _distribution(targets):
    targets = single(targets)
    return targets / (targets.sum((-3, -2), keepdims=True) + 1e-12)


def named(text, *, prefix=""):
    """The penalty of a name, or the loss of heatmaps with the prefix "heatmap_", with its options, as "wing:width=0.1".

    See `names.function`.
    """
    penalties = (mse, l1, smooth_l1, wing, soft_wing)
    of_heatmaps = (
        heatmap_mse,
        heatmap_l1,
        heatmap_weighted_mse,
        heatmap_adaptive_wing,
        heatmap_cross_entropy,
        heatmap_jensen_shannon,
    )
    return names.function(text, of_heatmaps if prefix else penalties, key="head.loss", prefix=prefix)
