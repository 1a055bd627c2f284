"""What arithmetic on coordinates needs of its numbers."""

import jax.numpy as jnp


def single(x):
    """An array in float32 at least: half precision tells no half pixels beyond 128, and squares of integers overflow."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def root(squares):
    """The square root, whose gradient at 0 is 0 and not infinite: a distance of nothing has no direction."""
    none = squares == 0
    return jnp.where(none, 0, jnp.sqrt(jnp.where(none, 1, squares)))
