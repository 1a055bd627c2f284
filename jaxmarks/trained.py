"""A run's trained networks: all of them together, or each fold's beside the images that they did not see."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from jaxmarks import caveats, checkpoint, runs, steps, tasks
from jaxmarks import config as configs
from jaxmarks.data.loading import Dataset, of_set
from jaxmarks.data.samples import Samples


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
    """Whether all photographs of a dataset have the names of those that a run was split from; scouts all that is told of them."""
    stage = runs.stages(runs.config_of(workdir))[-1]
    data = [note["data"] for path in runs.trained(workdir, stage).values() if (note := checkpoint.note(path))]
    if dataset.volumes:  # those of another person have the same names
        return any(one["digest"] == dataset.samples.digest for one in data)
    names = {image for one in data for part in one["images"].values() for image in part}
    return names.issuperset(dataset.samples.name.tolist())


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
    variables, notes = _restored(workdir, stage, runs.members(settings, fold))
    if set:
        start, stop = notes[0]["facts"]["sets"][set]
        own = lambda params: params | {"head": params["head"][set]}
        variables = [tree | {"params": own(tree["params"])} for tree in variables]
        notes = [note | {"facts": {"landmarks": stop - start}} for note in notes]
    _, task = tasks.build(settings, notes[0]["facts"])
    return Trained(task, settings, variables, notes)


def all_on(workdir: Path, samples: Samples, *, set: str = "") -> Held:
    """All networks of a run (of its dataset `set`), and samples that they did not see."""
    task, _, networks, notes = networks_of(workdir, set=set)
    everyone = np.arange(len(samples))
    return Held(
        -1, steps.predictor(task), networks, notes, everyone[:0], everyone, caveats.of_names(samples, notes, set)
    )


def folds(settings, workdir: Path, stage: str, samples: Samples) -> Iterator[Held]:
    """The folds of a stage; where nothing is held back for a test the validation images take its place.

    Which images are whose is saved with the networks. What they were not split from follows as the fold -1, of all
    networks.
    """
    rows = lambda names: np.flatnonzero(np.isin(samples.name, list(names)))
    known, learnt, some, calls = set[str](), set[str](), False, dict[str, Callable]()

    def call_of(facts):  # one for all folds, which compiles once, where they know the same
        key = json.dumps(facts, sort_keys=True)
        if key not in calls:
            calls[key] = steps.predictor(tasks.build(settings, facts)[1])
        return calls[key]

    for fold in runs.folds(settings):
        networks, notes = _restored(workdir, stage, runs.members(settings, fold))
        mine = notes[0]["data"]["images"]
        known, learnt = known.union(*mine.values()), learnt.union(mine["train"])
        if len(tested := rows(mine["test"] or mine["valid"])):
            some, trained = True, rows(mine["train"])
            told = caveats.of_notes(notes) + caveats.of_test(fold, mine)
            yield Held(fold, call_of(notes[0]["facts"]), networks, notes, trained, tested, told)
    if len(new := np.flatnonzero(~np.isin(samples.name, list(known)))):
        networks, notes = _restored(workdir, stage, runs.members(settings))
        what = f"{len(new)} images are new since the training, this the first: the mean of all networks predicts them"
        caveat = {"image": str(samples.name[new[0]]), "what": what, "where": "the images"}
        # What is to be known of the networks the folds have told.
        yield Held(-1, call_of(notes[0]["facts"]), networks, notes, rows(learnt), new, [caveat])
    elif not some:
        raise ValueError("of the images that the run holds back none is here: there is nothing to score it on")


def _restored(workdir, stage, members):
    """`runs.restore`, the variables on the device, where each prediction else would bring them."""
    variables, notes = runs.restore(workdir, stage, members)
    return jax.tree.map(jnp.asarray, variables), notes
