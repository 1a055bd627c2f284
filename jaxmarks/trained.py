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
from jaxmarks.data.loading import of_set
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


def knows(workdir: Path, samples: Samples) -> bool:
    """Whether some samples are of photographs, or specimens, that a run was split from, or all are called as those."""
    stage = runs.stages(runs.config_of(workdir))[-1]
    note = next(filter(None, map(checkpoint.note, runs.trained(workdir, stage).values())), None)
    if note is None:
        return False
    known = splits.parts_of(note["data"], samples)
    return bool(((part_of(known) != "") | (known["specimen"] != "")).any())


def part_of(known: dict[str, np.ndarray], *, same: bool = False) -> np.ndarray:
    """The part (N,) of samples in a split, from what `splits.parts_of` says; "" where they are in none.

    Their contents tell. Names do, too, in the `same` folder, and where all are called as photographs of the split: they are
    those, put right since.
    """
    content, name = known["content"], known["name"]
    return np.where((content == "") & (same or bool((name != "").all())), name, content)


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
    everyone = np.arange(len(samples))
    told = caveats.of_images(called(samples, settings, set), notes, samples.name)
    return Held(-1, steps.predictor(task), networks, notes, everyone[:0], everyone, told)


def called(samples: Samples, settings, set: str = "") -> Samples:
    """Samples by the names, and of the specimens, that the training of a run (of its dataset `set`) would give them."""
    # Of several datasets together the loading has caught them, with the dataset's name.
    pattern = "" if settings.data.get("sets") else settings.data.get("group_by", "")
    caught = [(pattern and folder.caught_in(name, pattern)) or "" for name in samples.name.tolist()]
    within = lambda values: np.array([value and f"{set}/{value}" for value in values.tolist()]) if set else values
    specimens = np.where(np.array(caught) != "", caught, samples.specimen)
    return dataclasses.replace(samples, name=within(samples.name), specimen=within(specimens))


def folds(settings, workdir: Path, stage: str, samples: Samples, *, same: bool = True) -> Iterator[Held]:
    """The folds of a stage; where nothing is held back for a test the validation images take its place.

    Which images are whose is saved with the networks; `same` says that they lie where the run has them. A new image of a
    specimen that tests a fold tests it, too; what is new beside these follows as the fold -1, of all networks.
    """
    samples, calls = called(samples, settings), dict[str, Callable]()
    new, learnt = np.ones(len(samples), bool), np.zeros(len(samples), bool)

    def call_of(facts):  # one for all folds, which compiles once, where they know the same
        key = json.dumps(facts, sort_keys=True)
        if key not in calls:
            calls[key] = steps.predictor(tasks.build(settings, facts)[1])
        return calls[key]

    for fold in runs.folds(settings):
        networks, notes = runs.restore(workdir, stage, runs.members(settings, fold))
        data = notes[0]["data"]
        known = splits.parts_of(data, samples)
        part = part_of(known, same=same)
        tested = np.where(part != "", part, known["specimen"]) == ("test" if data["images"]["test"] else "valid")
        new, learnt = new & (part == "") & ~tested, learnt | (part == "train")
        if tested.any():
            told = caveats.of_notes(notes) + caveats.of_test(fold, data["images"])
            if "contents" in data:
                told += caveats.of_names(samples.name[tested & (part != "") & (known["content"] == "")])
            trained, tests = np.flatnonzero(part == "train"), np.flatnonzero(tested)
            yield Held(fold, call_of(notes[0]["facts"]), networks, notes, trained, tests, told)
    if new.any():
        networks, notes = runs.restore(workdir, stage, runs.members(settings))
        what = f"{new.sum()} images are new since the training, this the first: the mean of all networks predicts them"
        # What is to be known of the networks the folds have told.
        told = [
            problem(str(samples.name[new][0]), what, "the images"),
            *caveats.of_images(samples, notes, np.where(new, samples.name, "")),
        ]
        yield Held(-1, call_of(notes[0]["facts"]), networks, notes, np.flatnonzero(learnt), np.flatnonzero(new), told)
    elif not calls:
        raise ValueError("of the images that the run holds back none is here: there is nothing to score it on")
