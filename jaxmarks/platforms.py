"""What computes the same in two ways, by the platform that it is compiled for."""

import contextlib
import contextvars

import jax
from jax import lax

# For what is traced: this process's device, "any" of several platforms, or "plain" everywhere.
_target: contextvars.ContextVar[str] = contextvars.ContextVar("target", default="mine")


@contextlib.contextmanager
def tracing_for(what: str):
    """What is traced within is for "any" platform, each with what is fastest there, or "plain", as off the CPU, for all.

    For artefacts, whose platform is not this process's. "any" is for predictions; it has gradients, but not fast ones.
    """
    token = _target.set(what)
    try:
        yield
    finally:
        _target.reset(token)


def target() -> str:
    """What is traced for."""
    return _target.get()


def chosen(on_cpu, elsewhere, *operands):
    """One of two functions that compute the same, by the platform that is traced for."""
    if target() == "any":
        return lax.platform_dependent(*operands, cpu=on_cpu, default=elsewhere)
    return (on_cpu if target() == "mine" and jax.default_backend() == "cpu" else elsewhere)(*operands)
