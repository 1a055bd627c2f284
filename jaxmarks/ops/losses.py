"""Losses: elementwise penalties of residuals, and heatmap losses, which return one number per landmark.

The penalties are functions (...,) -> (...,). Their default widths are meant for coordinates normalised to [-1, 1],
where one pixel of a frame of 256 is 0.0078.
"""

import jax
import jax.numpy as jnp

from jaxmarks.ops import names
from jaxmarks.ops.floats import at_least_float32


def mse(residual):
    """Returns the squared error."""
    return residual**2


def l1(residual):
    """Returns the absolute error."""
    return jnp.abs(residual)


def smooth_l1(residual, *, beta=0.05):
    """Returns Huber's penalty divided by beta: quadratic within `beta` of zero, linear with slope 1 beyond."""
    size = jnp.abs(residual)
    return jnp.where(size < beta, 0.5 * size**2 / beta, size - 0.5 * beta)


def wing(residual, *, width=0.08, epsilon=0.016):
    """Returns w log(1 + |r| / epsilon) for |r| < w = width, else |r| - C (Feng et al. 2018: 10 and 2 px of 256)."""
    size = jnp.abs(residual)
    constant = width - width * jnp.log1p(width / epsilon)
    return jnp.where(size < width, width * jnp.log1p(size / epsilon), size - constant)


def soft_wing(residual, *, inner=0.016, outer=0.16, epsilon=0.004):
    """Returns |r| for |r| < inner, else outer log(1 + |r| / epsilon) + B (Lin et al. 2021: 2, 20 and 0.5 px of 256)."""
    size = jnp.abs(residual)
    constant = inner - outer * jnp.log1p(inner / epsilon)
    return jnp.where(size < inner, size, outer * jnp.log1p(size / epsilon) + constant)


def heatmap_mse(maps, targets):
    """Returns the mean squared error of each map: two arrays (..., H, W, K) -> (..., K)."""
    return jnp.mean((at_least_float32(maps) - targets) ** 2, axis=(-3, -2))


def heatmap_l1(maps, targets):
    """Returns each map's mean absolute error (Flat-net, Eslami et al. 2020); mostly-0 targets favour predicting 0."""
    return jnp.mean(jnp.abs(at_least_float32(maps) - targets), axis=(-3, -2))


def heatmap_weighted_mse(maps, targets, *, weight=20.0):
    """Returns the mean of (1 + weight t) (f - t)^2, so that the landmark's few pixels count against the background."""
    targets = at_least_float32(targets)
    return jnp.mean((1 + weight * targets) * (maps - targets) ** 2, axis=(-3, -2))


def heatmap_adaptive_wing(maps, targets, *, alpha=2.1, omega=14.0, epsilon=1.0, theta=0.5):
    """Returns each map's mean adaptive wing loss (Wang et al. 2019): sharp where the target is 1, smooth where 0."""
    targets = at_least_float32(targets)
    size, power = jnp.abs(maps - targets), alpha - targets
    ratio = theta / epsilon
    slope = omega * power * ratio ** (power - 1) / (epsilon * (1 + ratio**power))
    constant = theta * slope - omega * jnp.log1p(ratio**power)
    # The power's gradient at 0 is 0, but float32's x^(p - 1) does not give that: stay away from 0.
    near = omega * jnp.log1p((jnp.maximum(size, 1e-6) / epsilon) ** power)
    return jnp.mean(jnp.where(size < theta, near, slope * size - constant), axis=(-3, -2))


def heatmap_cross_entropy(logits, targets):
    """Returns the cross-entropy of each map's softmax with the normalised target, whose entropy is not subtracted."""
    return -jnp.sum(_distribution(targets) * _log_softmax(logits), axis=(-3, -2))


def heatmap_jensen_shannon(logits, targets):
    """Returns the Jensen-Shannon divergence, in [0, log 2], between each map's softmax and the normalised target."""
    log_p = _log_softmax(logits)
    p, q = jnp.exp(log_p), _distribution(targets)
    log_mean = jnp.log((p + q) / 2 + 1e-30)  # where both are 0, so are this term and its gradient
    return jnp.sum((p * (log_p - log_mean) + q * (jnp.log(q + 1e-30) - log_mean)) / 2, axis=(-3, -2))


def _log_softmax(logits):
    """Returns the log-softmax over each map, at least -1e30: masked pixels (-inf) add 0 to a sum, not 0 * inf = NaN.

    NaN stays NaN, so that training stops. jnp.maximum would not keep it: compiled for the CPU by JAX 0.12, it may
    return -1e30.
    """
    log_softmax = jax.nn.log_softmax(at_least_float32(logits), axis=(-3, -2))
    return jnp.where(log_softmax < -1e30, -1e30, log_softmax)


def _distribution(targets):
    targets = at_least_float32(targets)
    return targets / (targets.sum((-3, -2), keepdims=True) + 1e-12)


def named(text, *, prefix=""):
    """Returns the penalty, or with the prefix "heatmap_" the heatmap loss, for a name with options: "wing:width=0.1".

    See `names.resolve`.
    """
    penalties = (mse, l1, smooth_l1, wing, soft_wing)
    heatmap_losses = (
        heatmap_mse,
        heatmap_l1,
        heatmap_weighted_mse,
        heatmap_adaptive_wing,
        heatmap_cross_entropy,
        heatmap_jensen_shannon,
    )
    return names.resolve(text, heatmap_losses if prefix else penalties, key="head.loss", prefix=prefix)
