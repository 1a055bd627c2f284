"""A run's trained networks: all of them together, or each fold's beside the images that they did not see."""

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
from jaxmarks.data.loading import Dataset, of_set
from jaxmarks.data.samples import Samples, problem


class Trained(NamedTuple):
    """A run's task and settings, and the variables of its networks with what is saved with each."""

    task: steps.Task
    settings: ml_collections.ConfigDict
    networks: list
    notes: list[dict]


class Held(NamedTuple):
    """A fold's networks, and the images (samples) that test them.

    Attributes:
      fold: its number; -1 stands for all of the networks together.
      call: their `steps.predictor`.
      networks, notes: their variables, and what is saved with them.
      trained, tested: on whom they were trained, and who tests them.
      caveats: what is to be known of that.
    """

    fold: int
    call: Callable
    networks: list
    notes: list[dict]
    trained: np.ndarray
    tested: np.ndarray
    caveats: list[dict]


def knows(workdir: Path, dataset: Dataset) -> bool:
    """Whether a dataset is one of photographs that a run was split from: some of them are, or all are called as those."""
    stage = runs.stages(runs.config_of(workdir))[-1]
    notes = [note for path in runs.trained(workdir, stage).values() if (note := checkpoint.note(path))]
    if not notes:
        return False
    known = splits.parts_of(notes[0]["data"], dataset.samples)
    alike = not dataset.volumes and bool((known["name"] != "").all())  # scouts of another person have the same names
    return alike or bool((known["content"] != "").any())


def networks_of(workdir: Path, *, fold: int | None = None, set: str = "") -> Trained:
    """The networks of a run's last stage: all, or those of a fold.

    Of a run over several datasets they are those of the dataset `set`, as if it had been the only one.

    Raises:
      ValueError: the run has several datasets and `set` is none of them, or it has one and `set` is given; or a note is
        damaged.
    """
    config = runs.config_of(workdir)
    stage = runs.stages(config)[-1]
    settings = configs.stage(config, stage)
    settings.data = of_set(settings.data, set)
    variables, notes = runs.restore(workdir, stage, runs.members(settings, fold))
    if set:
        start, stop = notes[0]["facts"]["sets"][set]
        own = lambda params: params | {"head": params["head"][set]}
        variables = [tree | {"params": own(tree["params"])} for tree in variables]
        notes = [note | {"facts": {"landmarks": stop - start}} for note in notes]
    _, task = tasks.build(settings, notes[0]["facts"])
    return Trained(task, settings, variables, notes)


def all_on(workdir: Path, samples: Samples, *, set: str = "") -> Held:
    """All networks of a run (of its dataset `set`), and samples that they did not see."""
    task, settings, networks, notes = networks_of(workdir, set=set)
    everyone, told = np.arange(len(samples)), caveats.of_images(called(samples, settings, set), notes)
    return Held(-1, steps.predictor(task), networks, notes, everyone[:0], everyone, told)


def called(samples: Samples, settings, set: str = "") -> Samples:
    """Samples by the names, and of the specimens, that the training of a run (of its dataset `set`) would give them."""
    pattern = settings.data.get("group_by", "")
    caught = [(pattern and folder.caught_in(name, pattern)) or "" for name in samples.name.tolist()]
    within = lambda values: np.array([value and f"{set}/{value}" for value in values.tolist()]) if set else values
    specimens = np.where(samples.specimen != "", samples.specimen, caught)
    return dataclasses.replace(samples, name=within(samples.name), specimen=within(specimens))


def folds(settings, workdir: Path, stage: str, samples: Samples) -> Iterator[Held]:
    """The folds of a stage; where nothing is held back for a test the validation images take its place.

    Which images are whose is saved with the networks. A new image of a specimen that tests a fold tests it, too; what is
    new beside these follows as the fold -1, of all networks.
    """
    samples, calls = called(samples, settings), dict[str, Callable]()
    new, learnt = np.full((2, len(samples)), [[True], [False]])

    def call_of(facts):  # one for all folds, which compiles once, where they know the same
        key = json.dumps(facts, sort_keys=True)
        if key not in calls:
            calls[key] = steps.predictor(tasks.build(settings, facts)[1])
        return calls[key]

    for fold in runs.folds(settings):
        networks, notes = runs.restore(workdir, stage, runs.members(settings, fold))
        data = notes[0]["data"]
        known = splits.parts_of(data, samples)
        part = np.where(known["content"] != "", known["content"], known["name"])
        tested = np.where(part, part, known["specimen"]) == ("test" if data["images"]["test"] else "valid")
        new, learnt = new & (part == "") & ~tested, learnt | (part == "train")
        if tested.any():
            told = caveats.of_notes(notes) + caveats.of_test(fold, data["images"])
            trained, tests = np.flatnonzero(part == "train"), np.flatnonzero(tested)
            yield Held(fold, call_of(notes[0]["facts"]), networks, notes, trained, tests, told)
    if new.any():
        networks, notes = runs.restore(workdir, stage, runs.members(settings))
        rest = samples.take(new)
        what = f"{len(rest)} images are new since the training, this the first: the mean of all networks predicts them"
        # What is to be known of the networks the folds have told.
        told = [problem(str(rest.name[0]), what, "the images"), *caveats.of_images(rest, notes)]
        yield Held(-1, call_of(notes[0]["facts"]), networks, notes, np.flatnonzero(learnt), np.flatnonzero(new), told)
    elif not calls:
        raise ValueError("of the images that the run holds back none is here: there is nothing to score it on")
