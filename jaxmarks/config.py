"""Helpers for configs: the variants after the colon, a stage's settings, and configs as JSON."""

import itertools
import json
import math
import re
from collections.abc import Container
from pathlib import Path

import ml_collections
import numpy as np
from ml_collections import config_dict

from jaxmarks import atomic, augment, find

# The values of `data.pose` for which the second look is rotated to the specimen.
TURNED_POSES = ("turned", "mirrored")
# The range of each key's numbers, both ends included.
MANY = math.inf
LIMITS = {
    "seed": (0, MANY), "split.seed": (0, MANY), "data.source_size": (1, MANY), "model.width": (0, MANY),
    "split.folds": (1, MANY), "split.few": (0, MANY), "split.valid": (0, 1),
    "augment.scale": (0, 1), "augment.aspect": (0, 1), "augment.mirror": (0, 1), "augment.cutout": (0, 1),
    "augment.noise": (0, MANY), "augment.blur": (0, MANY), "augment.elastic": (0, MANY), "augment.rotation": (0, 360),
    "optimizer.learning_rate": (0, MANY), "optimizer.momentum": (0, 1), "optimizer.warmup": (0, 1),
    "optimizer.weight_decay": (0, MANY), "optimizer.clip": (0, MANY), "optimizer.plateau": (0, MANY),
    "optimizer.plateau_factor": (0, 1),
    "train.batch_size": (1, MANY), "train.steps": (0, MANY), "train.epochs": (0, MANY), "train.accumulate": (1, MANY),
    "train.ensemble": (1, MANY), "train.coarse": (0, 1), "train.ema": (0, 1), "train.mixup": (0, MANY),
    "train.patience": (0, MANY), "train.devices": (0, MANY), "train.span": (1, MANY),
    "data.scale": (0.01, 100), "data.side": (1, MANY), "data.overlap": (0, MANY), "data.curves": (0, MANY),
    "data.min_overlap": (0, MANY),
    "data.count": (1, MANY), "data.spacing": (0.1, MANY),
    "data.pixels": (1024, MANY), "data.zoom": (1, 16), "data.share": (0.05, 1), "data.turn": (0, 180),
    "head.sigma": (0.1, MANY), "head.overlap": (0, 1), "head.proposal_overlap": (0, 1),
    "head.ignore": (0, 1), "head.limit": (1, MANY), "head.leap": (0, MANY), "head.anchor_count": (1, MANY),
}  # fmt: skip

# Keys that are adapted to the data if they are 0, which they may be for all stages only.
ADAPTED = {"data.scale": "the objects", "data.zoom": "the photographs"}


def variants(text: str | None, *, flags: tuple[str, ...], options: dict[str, tuple[str, ...]] | None = None) -> dict:
    """Parses "smoke,part=elytra" into {"smoke": True, "part": "elytra"}.

    Args:
      text: what stands after the colon of `--config=file.py:TEXT`.
      flags: the variants that take no value.
      options: the variants that take one, with the values allowed (an empty tuple allows all).

    Raises:
      ValueError: an unknown variant or value; the message lists those that exist. The same if two values are given.
    """
    options = options or {}
    chosen: dict = {}
    for word in filter(None, (text or "").split(",")):
        key, separator, value = word.partition("=")
        if not separator and key in flags:
            chosen[key] = True
        elif separator and key in options:
            if options[key] and value not in options[key]:
                raise ValueError(f"config variant {word!r}: {key} must be one of {', '.join(options[key])}")
            if chosen.get(key, value) != value:
                raise ValueError(f"config variant {word!r}: {key}={chosen[key]} is given, too; leave one of them out")
            chosen[key] = value
        else:
            choices = [*flags, *(f"{name}=..." for name in options)]
            raise ValueError(f"unknown config variant {word!r}: choose from {', '.join(choices)}")
    return chosen


def complete(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Adds the defaults of all options of the body, head and augmentation that the config does not name.

    This lets flags set each option, and records each in the run's `config.json`.

    Raises:
      ValueError: there is no such body, head or augmentation.
    """
    for section in ("model", "head", "augment"):
        for option, default in options(config, section).items() if section in config else ():
            if option not in config[section]:
                # A flag needs a type, which None lacks; a placeholder accepts any.
                config[section][option] = config_dict.placeholder(object) if default is None else default
    return config


def options(config, section: str) -> dict:
    """Returns the options of a config's body ("model"), "head" or augmentation ("augment"), with their defaults.

    Raises:
      ValueError: there is no such body, head or augmentation.
    """
    if section == "augment":
        return augment.options(config[section])
    return find.options(find.module(f"jaxmarks.{section}s", config[section]["name"], needs="build").build)


def stage(config: ml_collections.ConfigDict, name: str) -> ml_collections.ConfigDict:
    """Returns the settings of one stage: the config with the changes in `config.stage[name]`.

    Raises:
      ValueError: the stage changes a key that the config does not have, or gives one a value of the wrong type.
    """
    settings = ml_collections.ConfigDict(json.loads(config.to_json()))
    changes = ml_collections.ConfigDict(json.loads(config.to_json()))["stage"].get(name, {})
    if not hasattr(changes, "items"):
        raise ValueError(
            f"config.stage.{name}={changes}: give the keys that the stage changes, such as"
            " {'train': {'steps': 100}}"
        )
    for path, value in _leaves(changes):
        target = settings
        for key in path:
            if key not in target:
                raise ValueError(f"config.stage.{name}.{'.'.join(path)}: the config has no such key to change")
            parent, target = target, target[key]
        try:
            parent[key] = value
        except TypeError:
            old = parent[key]
            hint = f"some of its keys, {', '.join(old)}" if hasattr(old, "items") else f"a value like {old!r}"
            raise ValueError(f"config.stage.{name}.{'.'.join(path)}={value!r}: give {hint}") from None
    return settings


def check(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError, naming the key, if a config is invalid whatever its data are."""
    if not config.stages or len(set(config.stages)) < len(config.stages):
        raise ValueError(f"--config.stages={tuple(config.stages)}: name at least one stage, and none twice")
    for name in config.stages:
        settings, changed = stage(config, name), {".".join(path) for path, _ in _leaves(config.stage.get(name) or {})}
        flag = lambda key, changed=changed, name=name: (
            f"--config.stage.{name}.{key}" if key in changed else f"--config.{key}"
        )
        for section in ("model", "head", "optimizer", "augment"):
            if "name" not in settings[section]:
                raise ValueError(
                    f"{flag(section)}={settings[section].to_dict()}: the key 'name' is missing; give the whole section"
                )
        _check_numbers(settings, flag)
        _check_patterns(settings, flag)
    start, weights, skip = config.init_from, config.weights, config.init_skip
    if start and weights:
        raise ValueError(
            f"--config.init_from={start} --config.weights={weights}: a network can start from only one of"
            " them; leave the other empty"
        )
    if skip and len(config.stages) == 1 and not (start or weights):
        raise ValueError(
            f"--config.init_skip={skip}: it has no effect without --config.init_from or --config.weights;"
            " leave it empty"
        )


def check_given(config: ml_collections.ConfigDict, text: str, given: Container[str]) -> None:
    """Raises ValueError if the command line names no data for a config that needs it, or if a key has no effect.

    Args:
      config: the config.
      text: its variants, as `variants` parses them. With `own`, it must not train on phantoms.
      given: the keys that `--config.KEY=VALUE` sets.
    """
    data, marks = config.data, "boxes" if "boxes" in config.data else "landmarks"
    is_own = any(word.partition("=")[0] == "own" for word in text.split(","))
    for name in (data.get("sets") or ("",)) if is_own else ():
        key, section = (f"data.sets.{name}", data.sets[name]) if name else ("data", data)
        if not section.get("images"):
            raise ValueError(
                f"the variant {text} is for your own data: give --config.{key}.images=DIR --config.{key}.{marks}=FILE"
            )
    if config.train.epochs and config.train.steps and "train.steps" in given:
        raise ValueError(
            f"--config.train.steps={config.train.steps} has no effect, as --config.train.epochs={config.train.epochs}"
            " sets the length: give --config.train.epochs=0, too"
        )
    if len(config.data.size) and "data.pixels" in given:
        raise ValueError(
            f"--config.data.pixels={config.data.pixels} has no effect, as --config.data.size={tuple(config.data.size)}"
            ' sets the size: give --config.data.size="()", too'
        )


def _check_numbers(settings, flag):
    leaves = {".".join(path): value for path, value in _leaves(settings) if value is not None}
    for key, leaf in leaves.items():
        limit_key = re.sub(r"^data\.sets\.[^.]+\.", "data.", key)
        if limit_key not in LIMITS:
            continue
        low, high = LIMITS[limit_key]
        adapts = ADAPTED.get(limit_key) if flag(key) == f"--config.{key}" else None
        for value in np.ravel(leaf):
            if not (isinstance(value, int | float | np.number) and (low <= value <= high or (adapts and value == 0))):
                allowed = f"at least {low}" if high == MANY else f"from {low} to {high}"
                allowed += f", or 0, which adapts it to {adapts}" if adapts else ""
                raise ValueError(f"{flag(key)}={leaf}: it must be {allowed}")
    if settings.model.get("width") == 0 and options(settings, "model")["width"]:
        raise ValueError(f"{flag('model.width')}=0: it must be at least 1")
    size, key = tuple(settings.data.size), flag("data.size")
    # An empty size follows the photographs, except in a stage.
    open_size = not size and "pixels" in settings.data and key == "--config.data.size"
    if not open_size and (len(size) != 2 or not all(isinstance(side, int | np.integer) and side > 0 for side in size)):
        raise ValueError(f"{key}={size}: give height and width of the frame, as one pair: (192, 256)")
    zoom = settings.data.get("zoom", 1)
    if zoom > 1 and settings.data.get("sets"):
        raise ValueError(
            f"{flag('data.zoom')}={zoom}: with several data.sets there is no second, closer look; set it to 1"
        )
    pose, poses = settings.data.get("pose", "upright"), ("upright", *TURNED_POSES)
    if pose not in poses and (pose or flag("data.pose") != "--config.data.pose"):
        raise ValueError(f"{flag('data.pose')}={pose}: choose one of {', '.join(poses)}, or, for all stages only, ''")
    if pose in TURNED_POSES and settings.data.get("sets"):
        raise ValueError(
            f"{flag('data.pose')}={pose}: with several data.sets there is no second look; set it to upright"
        )
    if not settings.train.epochs and not settings.train.steps:
        raise ValueError(f"{flag('train.steps')}=0 {flag('train.epochs')}=0: set one of them above 0")
    fits = ("tile", "pad", "stretch") if "boxes" in settings.data else ("pad", "stretch")
    if (fit := settings.data.get("fit", "pad")) not in fits:
        raise ValueError(f"{flag('data.fit')}={fit}: choose one of {', '.join(fits)}")
    chosen, folds = tuple(settings.split.run), settings.split.folds
    if not all(isinstance(fold, int) and 0 <= fold < folds for fold in chosen) or len({*chosen}) < len(chosen):
        raise ValueError(
            f"{flag('split.run')}={chosen}: folds are numbered from 0 to {folds - 1}; give each at most once"
        )


def _check_patterns(settings, flag):
    rates = settings.optimizer.get("rates") or ()
    pairs = [tuple(pair) for pair in rates if isinstance(pair, tuple | list) and len(pair) == 2]
    if len(pairs) < len(rates) or not all(
        isinstance(p, str) and isinstance(r, int | float) and r >= 0 for p, r in pairs
    ):
        raise ValueError(
            f"{flag('optimizer.rates')}={rates}: give pairs of a pattern and a factor, such as (('body/', 0.1),)"
        )
    patterns = [("freeze", settings.freeze), ("init_skip", settings.init_skip)]
    for key, pattern in [*patterns, *(("optimizer.rates", pattern) for pattern, _ in pairs)]:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{flag(key)}={pattern!r} is not a regular expression: {error}") from error


def _leaves(tree, path=()):
    for key, value in tree.items():
        if isinstance(value, ml_collections.ConfigDict) and len(value):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def save(config: ml_collections.ConfigDict, path: Path) -> None:
    """Writes the config as JSON."""
    atomic.write_json(path, json.loads(config.to_json()))


def load(path: Path) -> ml_collections.ConfigDict:
    """Reads a config that `save` wrote, and adds keys that are newer than the config, at their defaults.

    Added are keys of `split`, of `train`, and of `data` if these are landmarks in photographs.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file, so this is not a run's folder; name one with --workdir, or train the run first"
        )
    try:
        config = ml_collections.ConfigDict(json.loads(path.read_text()))
        _ = config.split, config.train
        sections = ("split", "train", "data") if "part" in config.data else ("split", "train")
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: the file is damaged ({error}); copy the run's folder again, or delete it") from None
    for section in sections:
        for key, value in base()[section].items():
            if key not in config[section]:
                config[section][key] = value
    return config


def differences(one: ml_collections.ConfigDict, other: ml_collections.ConfigDict) -> list[str]:
    """Returns the keys in which two configs differ, each with both values.

    A key that one config lacks counts as its default, or, for a stage's key, as the value outside the stages. Options
    of augmentations that neither config names have no effect and are not compared.
    """
    one, other = (complete(ml_collections.ConfigDict(c.to_dict())) for c in (one, other))
    default, *flat = [{".".join(path): value for path, value in _leaves(c)} for c in (base(), one, other)]
    named = {value for each in flat for key, value in each.items() if re.fullmatch(r"(stage\..+\.)?augment\.name", key)}
    effective = {"name", *(option for name in named for option in augment.options({"name": name}))}
    idle = [key for each in (default, *flat) for key in each if key.startswith("augment.") and key[8:] not in effective]
    default, *flat = [{key: value for key, value in each.items() if key not in idle} for each in (default, *flat)]
    fallback = {key: value for key, value in default.items() if key in flat[0] or key in flat[1]}
    flat = [fallback | each for each in flat]
    origins = {"data.side", "data.pixels", "data.min_overlap"}  # `scale`, `size` and `overlap` derive from them
    compared = (set(flat[0]) | set(flat[1])) - origins
    as_json = lambda value: json.dumps(value, default=list)
    value = lambda leaves, key: leaves.get(key, leaves.get(re.sub(r"^stage\.[^.]+\.", "", key)))
    return [
        f"{key}: {value(flat[0], key)} / {value(flat[1], key)}"
        for key in sorted(compared)
        if as_json(value(flat[0], key)) != as_json(value(flat[1], key))
    ]


def product(**axes: dict[str, dict | str]) -> list[dict]:
    """Returns every combination of the axes' choices, as the cells of a grid for `launch/ablate.py`.

        product(
            optimiser={"adam": {}, "nesterov": {"optimizer": {...}}},
            part={"head": "part=head", "elytra": "part=elytra"},
        )

    Args:
      axes: each maps a label to what it changes: a dict of overrides ({"train.steps": 300}), or variants as after the
        colon. The last axis gives the columns, the others, joined, the rows. A single axis gives rows.

    Returns:
      The cells, dicts of "row", "column", "config" (variants) and "overrides"; the last axis varies fastest.

    Raises:
      ValueError: two axes set the same key, so that one of them would have no effect.
    """
    *_, last = axes
    cells = []
    for choices in itertools.product(*(axis.items() for axis in axes.values())):
        labels = dict(zip(axes, (label for label, _ in choices), strict=True))
        column = labels.pop(last) if len(axes) > 1 else ""
        cell = {"column": column, "row": ", ".join(map(str, labels.values())), "config": ""}
        overrides: dict = {}
        for axis, (label, change) in zip(axes, choices, strict=True):
            if isinstance(change, str):
                cell["config"] = ",".join(filter(None, [cell["config"], change]))
                continue
            # A later axis may change a key inside a section that an earlier one replaced, but not the reverse.
            lost = [old for old in overrides for key in change if f"{old}.".startswith(f"{key}.")]
            if lost:
                raise ValueError(f"{axis}={label!r} sets {', '.join(lost)} again, which an earlier axis has set")
            overrides |= change
        cells.append(cell | {"overrides": overrides})
    return cells


def smoke(config, *, size=(64, 64), count=24, width=8, batch_size=8, steps=6) -> None:
    """Shrinks a config of landmarks so that a run takes less than a minute."""
    config.data.size, config.data.count = size, count
    config.split.folds, config.split.run, config.split.valid = 3, (0, 1), 0.2
    config.model.width = width
    config.train.batch_size, config.train.steps, config.train.epochs = batch_size, steps, 0


def base() -> ml_collections.ConfigDict:
    """Returns the keys that every config has, for a laptop; each config adds its `model`, `head` and changes.

    Unless the user's own files are named, the data are phantoms: drawn beetle pronota.
    """
    data = {
        "images": "",  # folder of the user's photographs; if this and `landmarks` are empty, phantoms are drawn
        "landmarks": "",  # a TPS, CSV, COCO or LabelMe file (or several annotators', separated by commas)
        "curves": 0,  # points per curve of a TPS file, appended to its landmarks; 0: its curves are left out
        "group_by": "",  # regular expression, matched in a file's name; its first group is the specimen
        "keep": "",  # folder to store images in and stream them from, if they do not fit in memory
        "size": (96, 128),  # height and width of the network's frame; (): in the photographs' proportions, with about
        "pixels": 192 * 256,  # this many pixels, but above 192 * 256 no more than the median photograph has
        "zoom": 1.0,  # magnification of a second look, at what the first, at the whole frame, found; 1: no second look;
        # 0: chosen from the user's photographs
        "pose": "upright",  # how specimens lie; if turned (by any angle) or mirrored (also turned), the second look
        # shows all in one pose; "": chosen from the user's photographs
        "fit": "pad",  # or stretch: how photographs are brought to the frame's proportions
        "flip": (),  # the landmarks' order, from 0, after horizontal mirroring; empty: no mirroring
        "part": "pronotum",  # of the beetle that the phantoms show
        "drop": (),  # phantoms' landmarks to leave out, as "part/landmark"
        "seed": 0,
        "count": 293,
        "source_size": (192, 256),  # height and width of the phantoms' photographs; errors are given in their pixels
        "share": 1.0,  # share of the photograph's width and height that a phantom takes
        "turn": 0.0,  # maximum rotation of the phantoms in degrees, in addition to the usual 15
        "sets": {},  # several datasets for one network: name -> the keys of data in which it differs, such as images
    }
    split = {
        "by": "group",  # whole specimens; or image, each photograph by itself (spine paper), optimistic if some are
        # near-duplicates; or random, over the versions of all images (beetle paper)
        "folds": 5,
        "run": (0,),  # folds to train, from 0; empty: all
        "valid": 0.1,  # share of what is not in the test that is held out for validation, which chooses the best epoch
        "few": 0,  # number of training specimens, drawn by `config.seed`; 0: all that are left
        "seed": 0,
    }
    optimizer = {
        "name": "adam",
        "learning_rate": 5e-4,  # the peak of the one-cycle cosine, or the constant rate
        "schedule": "one_cycle",  # or constant; for adam and adamw
        "warmup": 0.1,  # share of the steps
        "weight_decay": 0.0,
        "clip": 0.0,  # maximum norm of the gradient; 0: no clipping
        "plateau": 0,  # epochs (not coarse ones) without a lower validation loss until the rate is multiplied by
        "plateau_factor": 0.2,  # this; `plateau` 0: never
        "rates": (),  # (regular expression, factor) pairs: (("body/", 0.1),) trains the body at a tenth of the rate
    }
    train = {
        "batch_size": 16,
        "dtype": "float32",  # or bfloat16, for the network's body only; parameters, statistics and loss stay float32
        "steps": 1000,  # length of the training if `epochs` is 0
        "epochs": 0,
        "accumulate": 1,  # batches whose mean gradient makes one update; an epoch's shorter last batch has equal weight
        "ensemble": 1,  # networks of each fold, each with its own seed and validation images, that predict together
        "ema": 0.0,  # decay of the parameters' moving average, which is validated and saved in their place; 0: none
        "mixup": 0.0,  # alpha of the Beta distribution of mixup's weights; 0: no mixup
        "patience": 0,  # epochs (not coarse ones) without a lower validation loss until training stops; 0: never
        # What training shows equally often: each of several data.sets (set), each group, each image, or (object) images
        # with objects and images without, if most are without.
        "balance": "set",
        "sizes": (),  # multi-scale training: heights of the frame, one drawn for each batch; empty: its own height
        "coarse": 0.0,  # share of the steps, the first ones, that show the frame at about 2/3 of its height and width
        "devices": 0,  # 0: all
        "span": 500,  # batches after which, at the latest, training checks whether a checkpoint is due
        "checkpoint_seconds": 60,
        "tensorboard": False,
    }
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "channels": 1,  # of the network's input: 1 for luminance, 3 for colour
            "data": data,
            "split": split,
            "augment": {"name": "modern"} | augment.options({"name": "modern"}),  # or none, or paper_x7
            "optimizer": optimizer,
            "train": train,
            "baselines": ("mean_shape", "registration"),
            "stages": ("train",),
            "stage": {},  # stage -> the keys that it changes
            "init_from": "",  # workdir of a run whose networks this one starts from
            "weights": "",  # pretrained: imagenet, hf:timm/TAG or a file for the encoder; for yolo_tiny Darknet's file
            "init_skip": "",  # regular expression of the parameters that are not taken from init_from or weights
            "freeze": "",  # regular expression of the parameters that are not trained, such as body/block.*
        }
    )
