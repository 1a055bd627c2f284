"""Optimisers with readable schedules: the beetle paper's ramps, and modern ones from Optax."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


def nesterov(learning_rate, momentum) -> optax.GradientTransformation:
    """Nesterov momentum with the rate inside the velocity: v <- m v - r g; p <- p + m v - r g.

    This is how the paper's library applies it. `optax.sgd` keeps the rate outside the velocity, which is another
    method as soon as the rate changes.
    """

    def init(params):
        return optax.TraceState(trace=jax.tree.map(jnp.zeros_like, params))

    def update(grads, state, params=None):
        del params
        velocity = jax.tree.map(lambda v, g: momentum * v - learning_rate * g, state.trace, grads)
        updates = jax.tree.map(lambda v, g: momentum * v - learning_rate * g, velocity, grads)
        return updates, optax.TraceState(trace=velocity)

    return optax.GradientTransformation(init, update)


def per_epoch(start: float, stop: float, *, epochs: int, steps_per_epoch: int) -> Callable:
    """A schedule of steps: `linspace(start, stop, epochs)`, one value an epoch, the last one kept after the end."""
    values = np.linspace(start, stop, epochs).astype(np.float32)
    return lambda count: jnp.asarray(values)[jnp.minimum(count // steps_per_epoch, epochs - 1)]


def ramps(
    learning_rate: tuple[float, float] = (0.03, 0.00001),
    momentum: tuple[float, float] = (0.9, 0.9999),
    *,
    epochs: int = 5000,
    steps_per_epoch: int = 1,
) -> optax.GradientTransformation:
    """The paper's optimiser: `nesterov` with the rate and the momentum set once an epoch along two linspaces."""
    return optax.inject_hyperparams(nesterov)(
        learning_rate=per_epoch(*learning_rate, epochs=epochs, steps_per_epoch=steps_per_epoch),
        momentum=per_epoch(*momentum, epochs=epochs, steps_per_epoch=steps_per_epoch),
    )


class PlateauState(NamedTuple):
    """Of `plateau`: the factor of the updates, the lowest loss so far, and the epochs since then."""

    scale: jax.Array
    best: jax.Array
    waited: jax.Array
    factor: jax.Array
    patience: jax.Array


def plateau(factor: float, patience: int) -> optax.GradientTransformation:
    """Scales updates, by `factor` more whenever `observe` has seen no lower loss for `patience` epochs (fish paper)."""

    def init(params):
        del params
        return PlateauState(
            jnp.ones(()), jnp.asarray(jnp.inf), jnp.zeros(()), jnp.asarray(factor), jnp.asarray(patience)
        )

    def update(updates, state, params=None):
        del params
        return jax.tree.map(lambda u: u * state.scale, updates), state

    return optax.GradientTransformation(init, update)


def observe(opt_state, loss):
    """The optimiser's state after an epoch whose validation loss was `loss`; one without `plateau` stays as it is."""

    def see(state):
        if not isinstance(state, PlateauState):
            return state
        better = loss < state.best
        waited = jnp.where(better, 0, state.waited + 1)
        due = waited >= state.patience
        return state._replace(
            best=jnp.where(better, loss, state.best),
            waited=jnp.where(due, 0, waited),
            scale=jnp.where(due, state.scale * state.factor, state.scale),
        )

    return jax.tree.map(see, opt_state, is_leaf=lambda node: isinstance(node, PlateauState))


def build(spec: Mapping[str, Any], *, epochs: int, steps_per_epoch: int) -> optax.GradientTransformation:
    """The optimiser that `spec` describes.

    Args:
      spec: `name` is `nesterov` (with `learning_rate` and `momentum` as (start, stop), equal for constants),
        `rmsprop` (with a constant `learning_rate`, as in Keras), or `adam` / `adamw` (with `learning_rate`, the peak
        of a one-cycle cosine, `warmup` as a share of the steps, and `weight_decay` for adamw). `clip` bounds the
        gradient's norm where it is above 0. `plateau` is the number of epochs without a lower validation loss after
        which the rate is multiplied by `plateau_factor`; 0 is never.
      epochs: the length of the schedules.
      steps_per_epoch: steps in an epoch.
    """
    steps = epochs * steps_per_epoch
    name = spec["name"]
    if name == "nesterov":
        tx = ramps(
            tuple(spec["learning_rate"]), tuple(spec["momentum"]), epochs=epochs, steps_per_epoch=steps_per_epoch
        )
    elif name == "rmsprop":
        tx = optax.inject_hyperparams(optax.rmsprop, static_args=("eps_in_sqrt", "momentum"))(
            learning_rate=spec["learning_rate"], decay=0.9, eps=1e-7, eps_in_sqrt=False
        )
    elif name in ("adam", "adamw"):
        peak = spec["learning_rate"]
        warmup = round(spec["warmup"] * steps)
        rate = optax.warmup_cosine_decay_schedule(peak / 25, peak, warmup, max(steps, warmup + 1), peak / 1000)
        decay = {"weight_decay": spec["weight_decay"]} if name == "adamw" else {}
        tx = optax.inject_hyperparams(getattr(optax, name))(learning_rate=rate, b1=0.9, **decay)
    else:
        raise ValueError(f"optimizer.name={name!r}: there are nesterov, rmsprop, adam, adamw")
    parts = [tx]
    if spec.get("clip", 0) > 0:
        parts.insert(0, optax.clip_by_global_norm(spec["clip"]))
    if spec.get("plateau", 0) > 0:
        parts.append(plateau(spec["plateau_factor"], spec["plateau"]))
    return optax.chain(*parts) if len(parts) > 1 else tx


def freeze(tx: optax.GradientTransformation, params, frozen: Callable[[str], bool]) -> optax.GradientTransformation:
    """`tx` for the parameters whose path ("body/block1/conv/kernel") is not `frozen`; the others never change."""
    labels = jax.tree_util.tree_map_with_path(
        lambda path, _: "frozen" if frozen(jax.tree_util.keystr(path, simple=True, separator="/")) else "free", params
    )
    return optax.multi_transform({"free": tx, "frozen": optax.set_to_zero()}, labels)


def hyperparameters(opt_state) -> dict[str, jax.Array]:
    """The learning rate and momentum that the last update used (Adam's b1 is its momentum; RMSProp has none, 0)."""
    read = lambda key: optax.tree_utils.tree_get(opt_state, key, filtering=_is_hyperparameter)
    rate, momentum, b1 = read("learning_rate"), read("momentum"), read("b1")
    scale = optax.tree_utils.tree_get(opt_state, "PlateauState", PlateauState(*[jnp.ones(())] * 5)).scale
    momentum = b1 if momentum is None else momentum
    return {"learning_rate": rate * scale, "momentum": jnp.zeros(()) if momentum is None else momentum}


def _is_hyperparameter(path, value):
    del value
    return any(getattr(part, "name", None) == "hyperparams" for part in path)
