"""A run's trained networks: all together, or fold by fold with the images held out from them."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import ml_collections
import numpy as np

from jaxmarks import caveats, checkpoint, runs, steps, tasks
from jaxmarks import config as configs
from jaxmarks.data import folder, splits
from jaxmarks.data.loading import of_set
from jaxmarks.data.samples import Samples, problem


class Trained(NamedTuple):
    """A run's task and settings, and the variables and the note of each of its networks."""

    task: steps.Task
    settings: ml_collections.ConfigDict
    networks: list
    notes: list[dict]


class Held(NamedTuple):
    """A fold's networks and the samples that test them.

    Attributes:
      fold: its number; -1 stands for all networks together.
      call: their `steps.predictor`.
      networks, notes: their variables, and the notes saved with them.
      trained, tested: indices of the samples that they were trained on, and of those that test them.
      caveats: reasons to doubt the scores (`caveats`).
    """

    fold: int
    call: Callable
    networks: list
    notes: list[dict]
    trained: np.ndarray
    tested: np.ndarray
    caveats: list[dict]


def is_from_split_of(workdir: Path, samples: Samples) -> bool:
    """Whether any sample shows a photograph or specimen of the run's split, or all have names of photographs in it."""
    stage = runs.stages(runs.config_of(workdir))[-1]
    note = next(filter(None, map(checkpoint.note, runs.trained(workdir, stage).values())), None)
    if note is None:
        return False
    matches = splits.match_parts(note["data"], samples)
    return bool(((part_of(matches) != "") | (matches["specimen"] != "")).any())


def part_of(matches: dict[str, np.ndarray], *, same: bool = False) -> np.ndarray:
    """Returns the part (N,) of the split in which each sample lies, from `splits.match_parts`; "" for none.

    Samples are matched by content. They are also matched by name if they lie in the `same` folder, or if all have names
    of photographs in the split: those are the same photographs, edited since.
    """
    content, name = matches["content"], matches["name"]
    return np.where((content == "") & (same or bool((name != "").all())), name, content)


def networks_of(workdir: Path, *, fold: int | None = None, set: str = "") -> Trained:
    """Loads the networks of a run's last stage: all, or those of a fold.

    For a run over several datasets, they have the head of the dataset `set` alone, as if it had been the only one.

    Raises:
      ValueError: the run has several datasets and `set` is none of them, or it has one and `set` is given; or a
        checkpoint is damaged.
    """
    config = runs.config_of(workdir)
    stage = runs.stages(config)[-1]
    settings = configs.stage(config, stage)
    settings.data = of_set(settings.data, set)
    variables, notes = runs.restore(workdir, stage, runs.members(settings, fold))
    if set:
        start, stop = notes[0]["facts"]["sets"][set]
        select_head = lambda params: params | {"head": params["head"][set]}
        variables = [tree | {"params": select_head(tree["params"])} for tree in variables]
        notes = [note | {"facts": {"landmarks": stop - start}} for note in notes]
    _, task = tasks.build(settings, notes[0]["facts"])
    return Trained(task, settings, variables, notes)


def all_on(workdir: Path, samples: Samples, *, set: str = "") -> Held:
    """Returns all networks of a run (for its dataset `set`) together, to be tested on samples outside its split."""
    task, settings, networks, notes = networks_of(workdir, set=set)
    all_rows = np.arange(len(samples))
    doubts = caveats.of_leakage(with_training_names(samples, settings, set), notes, samples.name)
    return Held(-1, steps.predictor(task), networks, notes, all_rows[:0], all_rows, doubts)


def with_training_names(samples: Samples, settings, set: str = "") -> Samples:
    """Returns samples with the names and specimens that a run's training (on its dataset `set`) would give them."""
    # For several datasets, loading has already applied `group_by` and prefixed the dataset's name.
    pattern = "" if settings.data.get("sets") else settings.data.get("group_by", "")
    captured = [(pattern and folder.caught_in(name, pattern)) or "" for name in samples.name.tolist()]
    with_prefix = lambda values: np.array([value and f"{set}/{value}" for value in values.tolist()]) if set else values
    specimens = np.where(np.array(captured) != "", captured, samples.specimen)
    return dataclasses.replace(samples, name=with_prefix(samples.name), specimen=with_prefix(specimens))


def folds(settings, workdir: Path, stage: str, samples: Samples, *, same: bool = True) -> Iterator[Held]:
    """Yields a stage's folds with the samples that test them: test images, or validation images if there are none.

    The networks' notes record which images each fold held out; `same` says that the samples come from the image folder
    of the training. A new image of a specimen that tests a fold tests it, too. All other new images come last, as fold
    -1, and test all networks together.

    Raises:
      ValueError: no sample is held out by a fold, and none is new.
    """
    samples, calls = with_training_names(samples, settings), dict[str, Callable]()
    new, learnt = np.ones(len(samples), bool), np.zeros(len(samples), bool)

    def call_of(facts):  # folds with the same facts share a predictor, which compiles once
        key = json.dumps(facts, sort_keys=True)
        if key not in calls:
            calls[key] = steps.predictor(tasks.build(settings, facts)[1])
        return calls[key]

    for fold in runs.folds(settings):
        networks, notes = runs.restore(workdir, stage, runs.members(settings, fold))
        split = notes[0]["data"]
        matches = splits.match_parts(split, samples)
        part = part_of(matches, same=same)
        is_test = np.where(part != "", part, matches["specimen"]) == ("test" if split["images"]["test"] else "valid")
        new, learnt = new & (part == "") & ~is_test, learnt | (part == "train")
        if is_test.any():
            doubts = caveats.of_notes(notes) + caveats.of_test(fold, split["images"])
            if "contents" in split:
                doubts += caveats.of_name_matches(samples.name[is_test & (part != "") & (matches["content"] == "")])
            train_rows, test_rows = np.flatnonzero(part == "train"), np.flatnonzero(is_test)
            yield Held(fold, call_of(notes[0]["facts"]), networks, notes, train_rows, test_rows, doubts)
    if new.any():
        networks, notes = runs.restore(workdir, stage, runs.members(settings))
        text = f"{new.sum()} images are new since the training, this one the first: all networks together predict them"
        # The caveats of the networks themselves have come with the folds.
        doubts = [
            problem(str(samples.name[new][0]), text, "the images"),
            *caveats.of_leakage(samples, notes, np.where(new, samples.name, "")),
        ]
        yield Held(-1, call_of(notes[0]["facts"]), networks, notes, np.flatnonzero(learnt), np.flatnonzero(new), doubts)
    elif not calls:
        raise ValueError("the data have none of the images that the run holds out: there is nothing to score it on")
