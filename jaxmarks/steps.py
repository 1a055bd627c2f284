"""The pure steps of training and evaluation, and how they run: jit on one device, pmap on several, scan over an epoch.

All data of a run lie on the device; a step receives the row numbers of its batch and gathers the rows there. The data
are a dict of arrays, the first axis of each the samples: "images" (N, H, W, C), and for landmarks "points" (N, K, 2),
in pixels of the images, and "visible" (N, K) bool, or for objects "boxes" (N, M, 4), corners x0, y0, x1, y1, and
"labels" (N, M) int32, -1 for padding; other arrays are passed on to the augmentation and the head. Images that do not
fit are streamed: a step's data then hold the images of its rows, as "streamed". Rows number the versions
(`augment.Augmentation.versions`) of all samples: row // versions is the sample, row % versions its version. A negative
row ~r is padding that fills the last batch: it shows row r, so that batch statistics remain those of real images, but
has no weight.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxmarks.models.layers import DEVICE_AXIS, MOMENTUM
from jaxmarks.ops import metrics


@flax.struct.dataclass
class TrainState:
    """Everything that training changes, and a checkpoint must hold.

    `variables` are the network's: "params", and "batch_stats" if it has batch normalisation.
    """

    step: jax.Array
    variables: Any
    opt_state: Any


class Task(NamedTuple):
    """The functions that a step consists of.

    Attributes:
      apply: as of a linen module: (variables, images, train=, rngs=, mutable=) -> outputs.
      head: a `heads.Head`.
      augment: (keys (B,), batch) -> batch, for training.
      plain: batch -> batch, for evaluation.
      versions: the number of versions of a sample.
      training_views: like `plain`, but with the views of the images that training shows, if `plain` shows others.
      predict: (networks, images) -> predictions; if given, `predict_jointly` calls it instead of `apply` and `decode`.
    """

    apply: Callable
    head: Any
    augment: Callable
    plain: Callable
    versions: int = 1
    training_views: Callable | None = None
    predict: Callable | None = None


def computing_in(dtype: str, apply: Callable) -> Callable:
    """Returns a task's `apply` as it is for float32; for bfloat16 only the body computes in bfloat16.

    Images and the body's parameters are cast on the way in, outputs and updated statistics on the way out. The head's
    layer stays in float32, because bfloat16 resolves a coordinate near 256 only to half a pixel; so do the loss, the
    gradient, the optimiser's parameters and the batch statistics.

    Raises:
      ValueError: any other dtype.
    """
    if dtype == "float32":
        return apply
    if dtype != "bfloat16":
        raise ValueError(f"train.dtype={dtype!r}: choose float32 or bfloat16")

    def cast(tree, to):
        return jax.tree.map(lambda x: x.astype(to) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)

    def applied(variables, images, **options):
        params = variables["params"]
        variables = variables | {"params": params | {"body": cast(params["body"], jnp.bfloat16)}}
        return cast(apply(variables, cast(images, jnp.bfloat16), **options), jnp.float32)

    return applied


def create(variables, tx: optax.GradientTransformation) -> TrainState:
    """Returns a fresh state with a copy of the network's variables, since a step donates its state's buffers."""

    def fresh(variables):
        copy = jax.tree.map(jnp.copy, variables)
        return TrainState(step=jnp.zeros((), jnp.int32), variables=copy, opt_state=tx.init(variables["params"]))

    return jax.jit(fresh)(variables)


def gather(data, rows, versions):
    """Gathers the batch of rows (B,), with "real" (B,), False in padding, "index" and "version".

    "visible", if the data have it, is False in padding; "marked" is then what it is in the row shown.
    """
    shown = jnp.where(rows < 0, ~rows, rows)
    sample = shown // versions
    batch = {name: array[sample] for name, array in data.items() if name != "streamed"} | {"real": rows >= 0}
    if "streamed" in data:
        batch["images"] = data["streamed"]
    if "visible" in batch:
        batch["marked"] = batch["visible"]
        batch["visible"] = batch["visible"] & batch["real"][:, None]
    return batch | {"index": sample.astype(jnp.int32), "version": (shown % versions).astype(jnp.int32)}


@jax.jit
def keys_of(key, numbers):
    """Returns a key for each of the numbers (N,), folded into `key`."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


def train_step(state, data, rows, key, *, task, tx, mixup=0.0, axis=None):
    """Makes one update on the batch of `rows` (B,) of `data`: -> (state, (total, count)); total / count is its loss.

    `data` holds "images", and "points" and "visible", or "boxes" and "labels", as described above. The total may be a
    dict of the loss's terms by name. Under pmap `axis` is the name of the device axis, `DEVICE_AXIS`; total, count and
    the gradient are then those of the whole batch. `mixup`, if above 0, is the alpha of `mix`.
    """
    augment_key, dropout_key, mixup_key = jax.random.split(key, 3)
    batch = gather(data, rows, task.versions)
    batch = task.augment(keys_of(augment_key, rows), batch)
    targets, images, loss = task.head.targets(batch), batch["images"], task.head.loss
    if mixup:
        images, loss = mix(images, loss, jax.random.beta(mixup_key, mixup, mixup, dtype=images.dtype))

    def total_loss(params):
        variables = state.variables | {"params": params}
        outputs, changed = task.apply(
            variables, images, train=True, rngs={"dropout": dropout_key}, mutable=["batch_stats"]
        )
        total, count = loss(outputs, targets)
        return sum(jax.tree.leaves(total)), (total, count, changed)

    (_, (total, count, changed)), grads = jax.value_and_grad(total_loss, has_aux=True)(state.variables["params"])
    total, count, grads = lax.psum((total, count, grads), axis or ())  # over no axis: as they are
    # Without a visible landmark count and gradient are 0; max(count, 1) prevents 0 / 0.
    grads = jax.tree.map(lambda g: g / jnp.maximum(count, 1), grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.variables["params"])
    variables = changed | {"params": optax.apply_updates(state.variables["params"], updates)}
    return TrainState(step=state.step + 1, variables=variables, opt_state=opt_state), (total, count)


def mix(images, loss, share):
    """Mixes images (B, H, W, C) with their neighbours, and the losses of both targets alike (mixup; KNEEL).

    Rows 0 and 1 are neighbours, 2 and 3, and so on; if B is odd, the last row is its own neighbour. Batches are drawn
    at random, so the pairs are random; devices that share a batch in even parts mix the same pairs as one device.

    Args:
      images: those of the batch.
      loss: a head's (outputs, targets) -> (total, count).
      share: weight of the image itself, in [0, 1], drawn from Beta(alpha, alpha) (Zhang et al. 2018).

    Returns:
      The mixed images, and the mixed loss, which takes the original targets.
    """
    neighbour = jnp.minimum(jnp.arange(len(images)) ^ 1, len(images) - 1)
    blend = lambda own, other: share * own + (1 - share) * other

    def mixed_loss(outputs, targets):
        neighbour_targets = jax.tree.map(lambda target: target[neighbour], targets)
        return jax.tree.map(blend, loss(outputs, targets), loss(outputs, neighbour_targets))

    return blend(images, images[neighbour]), mixed_loss


def valid_step(variables, data, rows, *, task, prepare, axis=None):
    """Validates on the batch of `rows`, without dropout: -> (total, count) by name; total / count is the mean.

    Args:
      variables: the network's.
      data: as for `train_step`; for landmarks with "delta" (N,), the size of a frame pixel in the photograph's pixels.
      rows: (B,).
      task: the task.
      prepare: maps the batch to the network's input.
      axis: as for `train_step`; the sums are those of the whole batch.

    Returns:
      "loss", and for landmarks "distance_px", the distance of the prediction from the ground truth in the photograph's
      pixels; a stretched photograph counts as scaled evenly.
    """
    batch = prepare(gather(data, rows, task.versions))
    outputs = task.apply(variables, batch["images"], train=False)
    sums = {"loss": task.head.loss(outputs, task.head.targets(batch))}
    visible = batch.get("visible")
    if visible is not None and visible.shape[1]:
        distances = metrics.distances(task.head.decode(outputs)[0], batch["points"]) * batch["delta"][:, None]
        sums["distance_px"] = (jnp.sum(jnp.where(visible, distances, 0)), jnp.sum(visible.astype(distances.dtype)))
    return lax.psum(sums, axis or ())


def statistics_step(variables, data, rows, *, task, prepare, axis=None):
    """Takes the statistics ("batch_stats") of this batch alone, not a running mean; arguments as for `valid_step`.

    Returns:
      (total, count): the statistics times the number of rows without padding, and that number. The totals of several
      batches over their counts are means to which each row contributes equally.
    """
    batch = gather(data, rows, task.versions)
    zeroed = variables | {"batch_stats": jax.tree.map(jnp.zeros_like, variables["batch_stats"])}
    dropout = {"dropout": jax.random.key(0)}
    _, changed = task.apply(zeroed, prepare(batch)["images"], train=True, rngs=dropout, mutable=["batch_stats"])
    count = lax.psum(jnp.sum(batch["real"].astype(jnp.float32)), axis or ())
    return jax.tree.map(lambda value: count * value / (1 - MOMENTUM), changed["batch_stats"]), count


def predict_step(variables, images, *, task):
    """Predicts (points (B, K, 2), scores (B, K)), or Detections, in the frame of the images (B, H, W, C) uint8."""
    return predict_jointly([variables], images, task=task)


def predict_jointly(networks, images, *, task):
    """Predicts like `predict_step` with several networks together, given as a list of their variables."""
    if task.predict is not None:
        return task.predict(networks, images)
    head, images = task.head, task.plain({"images": images})["images"]
    outputs = [task.apply(variables, images, train=False) for variables in networks]
    if len(outputs) == 1:
        return head.decode(outputs[0])
    if head.blend:
        return head.decode(head.blend(outputs))
    return head.join(jax.tree.map(lambda *each: jnp.stack(each, axis=1), *map(head.decode, outputs)))


def predictor(task: Task) -> Callable:
    """Returns `predict_jointly` of a task, jitted: (networks, images uint8 in their frame) -> their prediction."""
    return jax.jit(functools.partial(predict_jointly, task=task))


def predict(call: Callable, networks, images, *, batch_size: int):
    """Returns a `predictor`'s predictions for images (N, H, W, C), which may be `Records`, as arrays on the host."""
    parts = []
    for rows in batches(np.arange(len(images)), batch_size):
        predictions = call(networks, jnp.asarray(images[samples_of(rows, 1)]))
        parts.append(jax.tree.map(lambda x, real=rows >= 0: np.asarray(x)[real], predictions))
    return jax.tree.map(lambda *each: np.concatenate(each), *parts)


class Runner(NamedTuple):
    """One way of running the steps of training and evaluation.

    Attributes:
      put: places a state, variables or the data, which may lie on the host, on the devices.
      get: returns what `put` placed, or what a compiled function returned, as on one device.
      compiled: compiles a function of what `put` placed; its results stay on the devices.
      run: (state, data, rows (steps, batch) int32 on the host, key, first=0, stream=None, task_index=None) -> (state,
        losses), where `losses` are the batches' (total, count), for `summed`, not waited for. `key` is the epoch's;
        `first` is the position of the first batch in the epoch. `stream` maps an iterable of rows (...) to an iterator
        of their images (..., H, W, C), which the data then lack. `task_index` (steps,) holds the index of each batch's
        task.
      evaluator: (`valid_step` or `statistics_step`, all but its first three arguments and `axis` bound) -> a function
        (variables, data, rows (steps, batch), stream=None) -> list of the batches' results, on the devices.
    """

    put: Callable
    get: Callable
    compiled: Callable
    run: Callable
    evaluator: Callable


def runner(*tasks: Task, tx: optax.GradientTransformation, devices: int = 1, mixup: float = 0.0) -> Runner:
    """Returns the steps on one device (jit) or several (pmap), with equal results; `mixup` as in `train_step`.

    Several `tasks` share the state and the data, and each batch is for one of them. `devices` counts the devices of all
    processes; if there are several, each process calls this and does the part of its own devices. On the CPU the steps
    are called one by one, since XLA runs convolutions inside a loop several times slower there; so are steps with
    streamed images and batches for different tasks. All others are scanned in one call.
    """

    axis = DEVICE_AXIS if devices > 1 else None
    task_steps = [functools.partial(train_step, task=task, tx=tx, mixup=mixup, axis=axis) for task in tasks]

    def scan(step, state, data, rows, keys):
        return lax.scan(lambda state, x: step(state, data, *x), state, (rows, keys))

    if devices == 1:
        compiled: Callable = jax.jit
        compiled_training: Callable = functools.partial(jax.jit, donate_argnums=0)
        put: Callable = jax.device_put
        as_array: Callable = jax.device_put
        get = spread = lambda tree: tree
    else:
        as_array = np.asarray  # pmap moves each part to its device
        local = min(jax.local_device_count(), devices)
        chosen = jax.local_devices()[:local] if jax.process_count() == 1 else None  # several processes use all devices
        compiled = functools.partial(jax.pmap, axis_name=DEVICE_AXIS, devices=chosen)
        compiled_training = functools.partial(compiled, in_axes=(0, 0, 0, None), donate_argnums=0)
        # Placed by pmap, like the states that steps return: `replicate` names the axis differently, so that the second
        # step would be recompiled.
        place_on_each = compiled(lambda _, tree: tree, in_axes=(0, None))
        put = functools.partial(place_on_each, np.zeros(local))
        # In one call, not one for each array, of which a state has hundreds.
        first = jax.jit(lambda shards: jax.tree.map(lambda x: x[0], shards))
        get = lambda tree: first(jax.tree.map(lambda x: x.addressable_data(0), tree))
        own_devices = slice(jax.process_index() * local, (jax.process_index() + 1) * local)
        # (..., batch) -> (devices, ..., batch / devices): each device takes a contiguous part.
        spread = lambda rows: np.moveaxis(rows.reshape(*rows.shape[:-1], devices, -1), -2, 0)[own_devices]
    one_by_one = [compiled_training(step) for step in task_steps]
    all_at_once = [compiled_training(functools.partial(scan, step)) for step in task_steps]

    def shown(data, parts, stream, results):
        """Yields the data from which a step gathers each of the parts, rows (...); the caller appends the results."""
        for images in stream(parts) if stream else [None] * len(parts):
            if stream and len(results) > 2:
                jax.block_until_ready(results[-3])  # no more than two batches wait on the device
            yield data if images is None else data | {"streamed": as_array(images)}

    def run(state, data, rows, key, first=0, stream=None, task_index=None):
        keys = keys_of(key, np.arange(first, first + len(rows)))
        task_index = np.zeros(len(rows), int) if task_index is None else task_index
        if scanned(stream) and len(set(task_index.tolist())) == 1:
            state, loss = all_at_once[task_index[0]](state, data, spread(rows), keys)
            return state, [get(loss)]
        losses: list = []
        parts = [spread(batch) for batch in rows]
        batches_data = shown(data, parts, stream, losses)
        for index, part_data, part, batch_key in zip(task_index, batches_data, parts, keys, strict=True):
            state, loss = one_by_one[index](state, part_data, part, batch_key)
            losses.append(get(loss))
        return state, losses

    def evaluator(step):
        step = compiled(functools.partial(step, axis=axis))

        def evaluate(variables, data, rows, stream=None):
            parts, results = [spread(batch) for batch in rows], []
            for part_data, part in zip(shown(data, parts, stream, results), parts, strict=True):
                results.append(step(variables, part_data, part))
            return results

        return evaluate

    return Runner(put, get, compiled, run, evaluator)


def scanned(stream) -> bool:
    """Whether a `Runner` scans the steps of one call, if all are for one task, rather than calling them one by one."""
    return jax.default_backend() != "cpu" and stream is None


def summed(losses: list):
    """Sums the (total, count) of all batches that a `Runner` has run: floats, or dicts of floats."""
    total = lambda *each: float(np.sum(np.concatenate([np.ravel(x) for x in each]), dtype=np.float64))
    return jax.tree.map(total, *jax.device_get(losses))


def samples_of(rows: np.ndarray, versions: int) -> np.ndarray:
    """Returns the samples that rows, of any shape, show."""
    return np.where(rows < 0, ~rows, rows) // versions


def batches(rows: np.ndarray, size: int) -> np.ndarray:
    """Splits rows (N,) into batches (steps, size) int32, the last one filled with padding that repeats its own rows."""
    count = -(-len(rows) // size) * size
    padded = np.concatenate([rows, np.zeros(count - len(rows), rows.dtype)]).astype(np.int32).reshape(-1, size)
    if count > len(rows):
        real = len(rows) - (count - size)
        padded[-1, real:] = ~np.resize(padded[-1, :real], size - real)
    return padded
