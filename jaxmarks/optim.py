"""Optimisers with readable schedules: the beetle paper's ramps, and modern ones from Optax."""

import numbers
import re
from collections.abc import Callable, Mapping, Sequence
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
        velocity = jax.tree.map(lambda v, g: (momentum * v - learning_rate * g).astype(v.dtype), state.trace, grads)
        updates = jax.tree.map(lambda v, g: momentum * v - learning_rate * g, velocity, grads)
        return updates, optax.TraceState(trace=velocity)

    return optax.GradientTransformation(init, update)


def per_epoch(start: float, stop: float, *, epochs: int, steps_per_epoch: int, accumulate: int = 1) -> Callable:
    """Returns a schedule over updates: `linspace(start, stop, epochs)`, one value per epoch, then the last value.

    An update takes `accumulate` of the `steps_per_epoch` batches, and has the value of the epoch in which it begins.
    """
    values = np.linspace(start, stop, epochs).astype(np.float32)

    def value(count):
        whole, rest = jnp.divmod(jnp.asarray(count, jnp.int32), steps_per_epoch)
        epoch = whole * accumulate + rest * accumulate // steps_per_epoch  # count * accumulate might overflow
        return jnp.asarray(values)[jnp.minimum(epoch, epochs - 1)]

    return value


def ramps(
    learning_rate: tuple[float, float] = (0.03, 0.00001),
    momentum: tuple[float, float] = (0.9, 0.9999),
    *,
    epochs: int = 5000,
    steps_per_epoch: int = 1,
    accumulate: int = 1,
) -> optax.GradientTransformation:
    """Returns the paper's optimiser: `nesterov` with rate and momentum set once per epoch along two linspaces.

    For `accumulate` see `per_epoch`.
    """
    length = {"epochs": epochs, "steps_per_epoch": steps_per_epoch, "accumulate": accumulate}
    return optax.inject_hyperparams(nesterov)(
        learning_rate=per_epoch(*learning_rate, **length), momentum=per_epoch(*momentum, **length)
    )


class PlateauState(NamedTuple):
    """State of `plateau`: the updates' scale, the lowest loss, the epochs since it or a reduction, the arguments."""

    scale: jax.Array
    best: jax.Array
    waited: jax.Array
    factor: jax.Array
    patience: jax.Array


def plateau(factor: float, patience: int) -> optax.GradientTransformation:
    """Scales updates, by `factor` more whenever `observe` has seen no lower loss for `patience` epochs (fish paper)."""

    def init(params):
        del params
        # Not weakly typed, or a step compiled for the first state would be recompiled for the next.
        return PlateauState(*(jnp.asarray(x, jnp.float32) for x in (1, jnp.inf, 0, factor, patience)))

    def update(updates, state, params=None):
        del params
        return jax.tree.map(lambda u: u * state.scale, updates), state

    return optax.GradientTransformation(init, update)


def observe(opt_state, loss):
    """Returns the optimiser's state after an epoch with validation loss `loss`; it changes only in `plateau`."""

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


class AverageState(NamedTuple):
    """State of `average`: the number of updates so far, and the parameters' moving average."""

    step: jax.Array
    params: Any


def average(decay: float) -> optax.GradientTransformation:
    """Keeps an exponential moving average of the parameters for `averaged`; must be the last part of an optimiser.

    Update t gives the new parameters a weight of 1 - min(`decay`, (1 + t) / (10 + t)), so that even a short run's
    average forgets the initial parameters.
    """

    def init(params):
        # Copies, since a step that donates its state's buffers must not get the same array twice.
        return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

    def update(updates, state, params=None):
        step = state.step + 1
        share = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
        new = optax.apply_updates(params, updates)
        mixed = optax.incremental_update(new, state.params, share)
        return updates, AverageState(step, jax.tree.map(lambda m, old: m.astype(old.dtype), mixed, state.params))

    return optax.GradientTransformation(init, update)


def averaged(opt_state, params):
    """Returns the moving average of the parameters if the optimiser keeps one (`average`), else `params`."""
    return optax.tree_utils.tree_get(opt_state, "AverageState", AverageState(jnp.zeros(()), params)).params


def rates(factors: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    """Scales the updates of each parameter by the factor of the first pattern that matches its path, else by 1.

    Args:
      factors: pairs of a regular expression, which a path ("body/block1/conv/kernel") matches from its start, and the
        factor of its learning rate.

    Raises:
      ValueError: from the transformation's `init`, if a pattern matches no parameter.
    """

    def factor(name):
        return next((factor for pattern, factor in factors if re.match(pattern, name)), 1.0)

    def init(params):
        frozen = lambda node: isinstance(node, optax.MaskedNode)
        names = [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params, is_leaf=frozen)]
        for pattern, _ in factors:
            if not any(re.match(pattern, name) for name in names):
                raise ValueError(
                    f"optimizer.rates: {pattern!r} matches no parameter; the parameters are {', '.join(names)}"
                )
        return optax.EmptyState()

    def update(updates, state, params=None):
        del params
        return jax.tree_util.tree_map_with_path(lambda path, u: u * factor(name_of(path)), updates), state

    return optax.GradientTransformation(init, update)


# The keys that a spec for `build` may have.
KEYS = (
    "name",
    "learning_rate",
    "momentum",
    "schedule",
    "warmup",
    "weight_decay",
    "clip",
    "plateau",
    "plateau_factor",
    "rates",
)


def build(
    spec: Mapping[str, Any], *, epochs: int, steps_per_epoch: int, accumulate: int = 1
) -> optax.GradientTransformation:
    """Builds the optimiser that `spec` describes.

    Args:
      spec: `name` is `nesterov` (with `learning_rate` and `momentum` as (start, stop), or a number for a constant; the
        momentum is 0.9 by default), `rmsprop` (with a constant `learning_rate`; as in Keras before 2.11, epsilon is
        outside the root), or `adam` / `adamw` (with `learning_rate`, the peak of a one-cycle cosine, and `warmup`, a
        share of the steps, by default 0.1; or with `schedule` set to `constant`; adamw also with `weight_decay`, which
        applies to all parameters, including those of normalisations). `clip`, if above 0, bounds the gradient's norm.
        `plateau` is the number of epochs without a lower validation loss after which the rate is multiplied by
        `plateau_factor`; 0 is never. `rates` holds the pairs for the function `rates`.
      epochs: the length of the schedules.
      steps_per_epoch: batches in an epoch.
      accumulate: the number of batches per update.

    Raises:
      ValueError: an unknown name, key or schedule, a missing or malformed rate, or a weight decay or momentum that the
        optimiser does not have.
    """
    steps = round(epochs * steps_per_epoch / accumulate)
    name = spec["name"]
    if name not in ("nesterov", "rmsprop", "adam", "adamw"):
        raise ValueError(f"optimizer.name={name!r}: choose one of nesterov, rmsprop, adam, adamw")
    if unknown := [key for key in spec if key not in KEYS]:
        raise ValueError(f"optimizer.{unknown[0]}={spec[unknown[0]]!r}: no such key; the keys are {', '.join(KEYS)}")
    advice = f"""give the whole section, as --config.optimizer="{{'name': '{name}', 'learning_rate': 0.001}}\""""
    if "learning_rate" not in spec:
        raise ValueError(f"optimizer: the key 'learning_rate' is missing; {advice}")
    if "momentum" in spec and name != "nesterov":
        raise ValueError(f"optimizer.momentum={spec['momentum']}: a momentum is for nesterov, not for {name}; {advice}")
    peak, schedule = spec["learning_rate"], spec.get("schedule", "one_cycle")
    if schedule not in ("one_cycle", "constant"):
        raise ValueError(f"optimizer.schedule={schedule!r}: choose one_cycle or constant")
    if spec.get("weight_decay") and name != "adamw":
        raise ValueError(
            f"optimizer.weight_decay={spec['weight_decay']}: {name} has no weight decay; set optimizer.name=adamw"
        )
    if name != "nesterov" and not isinstance(peak, numbers.Real):
        raise ValueError(
            f"optimizer.learning_rate={peak}: {name} takes one number; only nesterov takes a (start, stop) pair"
        )
    if name == "nesterov":
        pair = lambda value: (value, value) if isinstance(value, numbers.Real) else tuple(value)
        length = {"epochs": epochs, "steps_per_epoch": steps_per_epoch, "accumulate": accumulate}
        tx = ramps(pair(peak), pair(spec.get("momentum", 0.9)), **length)
    elif name == "rmsprop":
        tx = optax.inject_hyperparams(optax.rmsprop, static_args=("eps_in_sqrt", "momentum"))(
            learning_rate=peak, decay=0.9, eps=1e-7, eps_in_sqrt=False
        )
    else:
        warmup = round(spec.get("warmup", 0.1) * steps)
        cycle = optax.warmup_cosine_decay_schedule(peak / 25, peak, warmup, max(steps, warmup + 1), peak / 1000)
        rate = cycle if schedule == "one_cycle" else peak
        decay = {"weight_decay": spec.get("weight_decay", 0.0)} if name == "adamw" else {}
        tx = optax.inject_hyperparams(getattr(optax, name))(learning_rate=rate, b1=0.9, **decay)
    parts = [tx]
    if spec.get("clip", 0) > 0:
        parts.insert(0, optax.clip_by_global_norm(spec["clip"]))
    if spec.get("plateau", 0) > 0:
        parts.append(plateau(spec.get("plateau_factor", 0.2), spec["plateau"]))
    if spec.get("rates"):
        parts.append(rates(spec["rates"]))
    return optax.chain(*parts) if len(parts) > 1 else tx


def freeze(tx: optax.GradientTransformation, params, pattern: str) -> optax.GradientTransformation:
    """Freezes the parameters whose path ("body/block1/conv/kernel") matches `pattern`; `tx` updates the others.

    The pattern matches from the path's start. Frozen batch normalisations keep their parameters, but still take their
    statistics from the new images.

    Raises:
      ValueError: no parameter is frozen, or all are.
    """
    frozen = lambda name: re.match(pattern, name) is not None
    names = [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    if not any(map(frozen, names)):
        raise ValueError(f"freeze={pattern!r} matches no parameter; the parameters are {', '.join(names)}")
    if all(map(frozen, names)):
        raise ValueError(f"freeze={pattern!r} matches every parameter: there is nothing to train")
    labels = jax.tree_util.tree_map_with_path(lambda path, _: "frozen" if frozen(name_of(path)) else "free", params)
    return optax.multi_transform({"free": tx, "frozen": optax.set_to_zero()}, labels)


def name_of(path) -> str:
    """Returns a parameter's path as regular expressions see it: "body/block1/conv/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def hyperparameters(opt_state) -> dict[str, jax.Array]:
    """Returns the learning rate and momentum of the last update (for Adam b1; for RMSProp, which has none, 0)."""
    read = lambda key: optax.tree_utils.tree_get(opt_state, key, filtering=_is_hyperparameter)
    rate, momentum, b1 = read("learning_rate"), read("momentum"), read("b1")
    scale = optax.tree_utils.tree_get(opt_state, "PlateauState", PlateauState(*[jnp.ones(())] * 5)).scale
    momentum = b1 if momentum is None else momentum
    return {"learning_rate": rate * scale, "momentum": jnp.zeros(()) if momentum is None else momentum}


def _is_hyperparameter(path, value):
    del value
    return any(getattr(part, "name", None) == "hyperparams" for part in path)
