"""Chooses between two implementations of the same function by the platform that it is compiled for."""

import contextlib
import contextvars

import jax
from jax import lax

# The target of tracing: "mine", this process's device; "any" of several platforms; or "plain", one way for all.
_target: contextvars.ContextVar[str] = contextvars.ContextVar("target", default="mine")


@contextlib.contextmanager
def tracing_for(what: str):
    """Sets the target of the tracing in the block, for artefacts that run on other platforms than this process.

    With "any", each platform gets the implementation that is fastest there. It is meant for predictions: gradients
    work, but are slow. With "plain", all platforms get the implementation for those other than the CPU.
    """
    token = _target.set(what)
    try:
        yield
    finally:
        _target.reset(token)


def target() -> str:
    """Returns the target of tracing: "mine", "any" or "plain"."""
    return _target.get()


def chosen(on_cpu, elsewhere, *operands):
    """Calls one of two functions that compute the same, by the target of tracing."""
    if target() == "any":
        return lax.platform_dependent(*operands, cpu=on_cpu, default=elsewhere)
    return (on_cpu if target() == "mine" and jax.default_backend() == "cpu" else elsewhere)(*operands)
