"""Builds the network of a stage from its settings, and the task that the steps are made of."""

import functools
import math
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmarks import augment, baselines, checkpoint, closer, heads, models, optim, processes, steps
from jaxmarks import config as configs
from jaxmarks.data.fitting import STEP
from jaxmarks.data.loading import known_facts
from jaxmarks.ops import boxes as box_ops
from jaxmarks.ops import shape


def check(config) -> None:
    """Raises ValueError if a config cannot be trained, as far as can be checked before its data are read."""
    configs.check(config)
    for name in config.stages:
        settings = configs.stage(config, name)
        models.build(settings.model)
        if settings.weights:
            models.check_weights(settings.model, settings.weights)
        heads.build(settings.head, size=tuple(settings.data.size) or (64, 64), **placeholder_facts(settings))
        augment.build(settings.augment, channels=settings.channels)
        optim.build(settings.optimizer, epochs=1, steps_per_epoch=1)
    baselines.check(settings.baselines, objects="boxes" in settings.data)  # or scoring would fail after the training


def placeholder_facts(settings) -> dict:
    """Returns `facts` with which a head can be built while the data are unknown."""
    if "boxes" not in settings.data:
        return {"landmarks": 1}
    return {"classes": 1, "sizes": (16.0, 16.0), "anchors": [(16.0, 16.0)]}


def build(settings, facts: dict, flip=None, size=None):
    """Builds the network (linen module) and the task for the steps from a stage's settings and its data's facts.

    With a `size` (H, W), the task trains on frames shown at that size. For the second look, see `second_look`.
    """
    head = heads.build(settings.head, size=size or tuple(settings.data.size), **facts)
    network = models.Network(models.build(settings.model), head.layer)
    shown_size = size if settings.train.sizes or settings.train.coarse else None
    augmentation = augment.build(settings.augment, channels=settings.channels, flip=flip, size=shown_size)
    plain = lambda batch: augment.plain(batch, channels=settings.channels)
    apply = steps.computing_in(settings.train.dtype, network.apply)
    task = steps.Task(apply, head, augmentation.apply, plain, augmentation.versions)
    return network, second_look(task, settings.data, facts.get("shape"))


def second_look(task, data, fitted_shape):
    """Adds a second look (`closer`) to the task if a config's `data` ask for one.

    If `data.zoom` is above 1, frames are that many times larger, and the network sees all or a part of them. If
    `data.pose` is "turned" or "mirrored" and there is a `fitted_shape` (mean, spread), that part is turned to its pose.
    """
    zoom, pose = data.get("zoom", 1), data.get("pose")
    fitted_shape = fitted_shape if pose in configs.TURNED_POSES else None
    if fitted_shape is None and zoom <= 1:
        return task
    return closer.with_second_look(task, tuple(data.size), zoom, fitted_shape=fitted_shape, mirror=pose == "mirrored")


# The size, relative to the frame's, of the coarse frames in the first steps (`train.coarse`), before rounding.
COARSE = 2 / 3


def sizes(settings) -> list[tuple[int, int]]:
    """Returns the sizes (H, W) at which training shows the frame; [] if it shows the frame's own size alone.

    `train.sizes` names their heights, and each batch has one of them. With `train.coarse`, the smaller one comes first,
    then the frame's own.
    """
    (height, width), heights, coarse = settings.data.size, tuple(settings.train.sizes), settings.train.coarse
    if heights and coarse:
        raise ValueError(
            f"--config.train.sizes={heights} --config.train.coarse={coarse}: they cannot be combined; leave one"
            " of them () or 0"
        )
    if heights and not min(heights) <= height <= max(heights):
        raise ValueError(
            f"--config.train.sizes={heights}: their range leaves out the frame's height,"
            f" --config.data.size={(height, width)}; extend it, or give ()"
        )
    if not (heights or coarse):
        return []
    if heights:
        setting, off = f"--config.train.sizes={heights}", "()"
        shown_sizes = [(side, round(side * width / height)) for side in heights]
    else:
        setting, off = f"--config.train.coarse={coarse}", "0"
        shown_sizes = [tuple(STEP * math.ceil(COARSE * side / STEP) for side in (height, width)), (height, width)]
    body, images = models.build(settings.model), jnp.zeros((1, *min(shown_sizes), settings.channels), jnp.float32)
    try:
        features = jax.eval_shape(lambda: body.init_with_output(jax.random.key(0), images)[0])
    except ValueError as error:
        raise ValueError(f"{setting} shows frames of {min(shown_sizes)}: {error}; or leave it {off}") from None
    if features.ndim < 4:
        raise ValueError(
            f"{setting}: {settings.model.name} ends in fully connected layers, which take one size only; leave it {off}"
        )
    return shown_sizes


# Boxes of one class with a higher IoU are one object that was marked twice.
TWICE = 0.7


def fitted_facts(settings, samples, training) -> dict:
    """Returns the facts that are fitted to the data.

    For landmarks, this is their mean shape in the samples `training`, if it is needed (`shape_of`). For boxes (of all
    samples), it is "overlap", the IoU up to which two are two objects, and "anchors", their typical sizes, if the head
    has an `anchor_count`.

    The overlap is the 99th percentile of each object's largest IoU with another of its class, taken as 0 for objects
    that were marked twice (`TWICE`). It is at least 0.2, since predicted boxes of adjacent objects may overlap, and at
    most 0.5. A `head.overlap` replaces it.
    """
    is_box = samples.labels >= 0
    if not is_box.any():
        return shape_of(settings, samples, training)
    ious = jax.jit(lambda *all: lax.map(lambda one: box_ops.crowding(*one), all))(samples.boxes, samples.labels, is_box)
    ious = np.asarray(ious)[is_box]
    fitted = float(np.clip(np.quantile(np.where(ious > TWICE, 0, ious), 0.99), 0.2, 0.5))
    configured = settings.head.get("overlap")
    facts = {"overlap": fitted if configured is None else configured}
    if "anchor_count" in settings.head:
        boxes = samples.boxes[is_box]
        extents, key = jnp.asarray(boxes[:, 2:] - boxes[:, :2]), jax.random.key(settings.seed)
        anchors, _ = box_ops.kmeans_anchors(extents, key, count=settings.head.anchor_count)
        facts["anchors"] = np.asarray(anchors).tolist()
    return facts


# Landmarks with this mean standard deviation or more, relative to the shape's size, do not predict each other.
LOOSE = 0.2


def shape_of(settings, samples, training) -> dict:
    """Returns the fact "shape": the mean and spread of the landmarks in the samples `training`; {} if there is none.

    If views are turned, the mean shape has the pose in which they show it. There is no shape for several datasets, if
    neither turned views nor the head (`leap`) use one, if no image shows two landmarks, or if views are upright and the
    landmarks stray too far (`LOOSE`).
    """
    pose = settings.data.get("pose")
    if (
        settings.data.get("sets")
        or not len(training)
        or not (pose in configs.TURNED_POSES or settings.head.get("leap"))
    ):
        return {}
    points, visible, start = samples.points, samples.visible, None
    if pose in configs.TURNED_POSES:
        height, width = settings.data.size
        distinct_counts = [len(np.unique(p[v], axis=0)) for p, v in zip(points, visible, strict=True)]
        fullest = np.argmax(distinct_counts)  # among all images, so that every fold's shape has the same pose
        start = shape.align_principal_axis(points[fullest], visible[fullest], tall=height > width), visible[fullest]
    fit = jax.jit(functools.partial(shape.procrustes, mirror=pose == "mirrored"))
    mean, spread = fit(points[training], visible[training], start=start)
    is_loose = pose not in configs.TURNED_POSES and spread.mean() >= LOOSE
    return {"shape": [mean.tolist(), spread.tolist()]} if mean.any() and not is_loose else {}


def initial(network, settings, key):
    """Initialises a network's variables for images of the settings' size."""
    images = jnp.zeros((1, *settings.data.size, settings.channels), jnp.float32)
    # This runs once: compiling its many random generators with full optimisation takes four times as long, for the same
    # numbers.
    compiler_options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    return jax.jit(network.init, compiler_options=compiler_options)(key, images)


def pretrained(settings, source: Path | None):
    """Returns the variables to start from, another run's (`source`) or pretrained ones, and their name."""
    if source:
        variables, note = checkpoint.restore(source)
        return variables, f"{source} (epoch {note['best_epoch']})"
    return models.read_weights(settings.model, settings.weights, channels=settings.channels), settings.weights


def initialise_from(variables, theirs, about: str, skip: str):
    """Initialises variables from the matching ones of `theirs`; prints which were adapted, new or unused.

    `about` names `theirs` in messages. Parameters whose path matches the regular expression `skip` from its start stay
    new.

    Raises:
      ValueError: nothing matches, or `skip` matches no parameter.
    """
    params, names_by_kind = checkpoint.merge(variables["params"], theirs["params"], skip=skip)
    if skip and not any(name.endswith("(skipped)") for name in names_by_kind["new"]):
        raise ValueError(
            f"--config.init_skip={skip!r} matches no parameter from its start; the parameters are"
            f" {', '.join(names_by_kind['loaded'])}"
        )
    if not names_by_kind["loaded"]:
        raise ValueError(f"{about}: none of its parameters fits this network: {'; '.join(names_by_kind['new'])}")
    processes.tell(f"initialised from {about}: {len(names_by_kind['loaded'])} arrays")
    for kind in ("adapted", "new", "unused"):
        if names_by_kind[kind]:
            processes.tell(f"  {kind}: {', '.join(names_by_kind[kind])}")
    merged = variables | {"params": params}
    if "batch_stats" in variables:
        merged["batch_stats"], _ = checkpoint.merge(variables["batch_stats"], theirs.get("batch_stats", {}), skip=skip)
    return merged


def inputs(settings, task):
    """Returns the functions that turn a batch into the network's input for validation, and for batch statistics.

    If versions are split at random, both augment the batch as training does.
    """
    if settings.split.by == "random" and task.versions > 1:
        augmented = lambda batch: task.augment(steps.keys_of(jax.random.key(settings.seed), batch["index"]), batch)
        return augmented, augmented
    return task.plain, task.training_views or task.plain


def check_trainable(settings, facts: dict, flip) -> None:
    """Raises ValueError if a stage cannot be trained on data with these facts; traces its networks without training."""
    network, images = untrained(settings, facts, flip)
    for size in sizes(settings):
        untrained(settings, facts, flip, size)
    params = jax.eval_shape(network.init, jax.random.key(0), images)["params"]
    tx = optim.build(settings.optimizer, epochs=1, steps_per_epoch=1)
    jax.eval_shape((optim.freeze(tx, params, settings.freeze) if settings.freeze else tx).init, params)


def untrained(settings, facts: dict, flip=None, size=None):
    """Builds a stage's network, with placeholders for its anchors, and blank images of the settings' size.

    `size` is as in `build`.
    """
    if "anchor_count" in settings.head:
        facts = facts | {"anchors": [facts["sizes"]] * settings.head.anchor_count}
    network, _ = build(settings, facts, flip, size)
    return network, jnp.zeros((1, *settings.data.size, settings.channels), jnp.float32)


def describe(config, stage: str) -> str:
    """Returns a table of a stage's network: each layer with its shapes and parameters, and the number of parameters."""
    settings = configs.stage(config, stage)
    network, images = untrained(settings, known_facts(settings.data))
    table = nn.tabulate(network, jax.random.key(0), console_kwargs={"width": 130, "force_terminal": False})(images)
    params = jax.eval_shape(network.init, jax.random.key(0), images)["params"]
    return f"stage {stage}\n{table.strip()}\nparameters: {sum(x.size for x in jax.tree.leaves(params)):,}"
