"""Penalties of a residual, element by element: pure functions (...,) -> (...,)."""

import jax.numpy as jnp


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


def named(name):
    """The penalty of that name; an unknown name lists those that exist."""
    known = {f.__name__: f for f in (mse, l1, smooth_l1)}
    if name not in known:
        raise ValueError(f"head.loss={name!r}: there are {', '.join(known)}")
    return known[name]
