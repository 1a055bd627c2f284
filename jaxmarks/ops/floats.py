"""Floating-point helpers for arithmetic on coordinates."""

import jax.numpy as jnp


def at_least_float32(x):
    """Promotes to float32 at least: bfloat16 has no half pixels beyond 128, and squares of integers overflow."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def root(squares):
    """Returns the square root, with gradient 0 at 0 instead of infinity: a distance of 0 has no direction."""
    is_zero = squares == 0
    return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, squares)))
