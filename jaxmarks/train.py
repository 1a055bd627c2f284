"""Training, from top to bottom: stages, folds, epochs.

A run goes through its stages in order (pretrain, then finetune); in each it trains one network per fold, or an ensemble
of them. A network starts from its counterpart in the previous stage. All random numbers come from the config's seed,
the numbers of fold, member and epoch, and, except for the order of the images, four letters of the stage's name, so
that a run that was killed and resumed ends like one that was not.
"""

import contextlib
import dataclasses
import functools
import json
import operator
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from jaxmarks import (
    atomic,
    augment,
    caveats,
    checkpoint,
    evaluate,
    feed,
    optim,
    processes,
    report,
    runs,
    steps,
    tasks,
)
from jaxmarks import config as configs
from jaxmarks.data import fitting, splits
from jaxmarks.data.loading import Dataset, facts, load
from jaxmarks.metrics_log import MetricsLog

# Maximum number of training images for the batch statistics that a network is validated and saved with.
SETTLING = 256
# Largest share of the time that resume checkpoints may take.
SAVING = 0.05
# Messages about keys of `data` whose values were chosen from the photographs.
CHOICE_MESSAGES = {
    "scale": "photographs are resized to {:g} of their size, which suits their objects; --config.data.scale=1"
    " keeps their size",
    "overlap": "neighbouring tiles share {} pixels, so that large objects are whole in one of them; less, with"
    " --config.data.overlap, makes fewer tiles",
    "zoom": "landmarks cover a small part of the photographs: the network looks at each photograph whole, and then {:g}"
    " times as closely at that part; --config.data.zoom=1 leaves out the closer look, and takes less memory",
    "pose": "specimens are {} relative to each other: the network looks at each photograph whole, and then once more,"
    " brought into a common pose; --config.data.pose=upright leaves specimens in the pose in which they lie",
}
# Key of `data` -> the key from which it is derived if it is left open; otherwise the latter has no effect.
DERIVED_FROM = {"size": "pixels", "scale": "side", "overlap": "min_overlap"}
# Values of keys left open that need no message; also the values in runs older than these keys.
SILENT_DEFAULTS = {"scale": 1.0} | fitting.SINGLE_LOOK
# Number of steps, called one by one, between checks for a stop signal or a due checkpoint.
ASKING = 10


class Plan(NamedTuple):
    """What one network is trained and validated on, and for how long.

    Attributes:
      train, valid: the rows of training, and of validation, where a row that counts several times is repeated.
      stratum: (N,) the stratum of each training row; all strata are shown equally often.
      statistics_rows: at most `SETTLING` training rows, drawn as for an epoch.
      devices: the number of devices that train together.
      batch: rows in a batch, over all devices.
      steps_per_epoch, epochs: the length of the training.
    """

    train: np.ndarray
    valid: np.ndarray
    stratum: np.ndarray
    statistics_rows: np.ndarray
    devices: int
    batch: int
    steps_per_epoch: int
    epochs: int


@dataclasses.dataclass
class Progress:
    """How far the training of a network has come, as saved in its resume checkpoint."""

    epoch: int = 0  # the last completed one
    batch: int = 0  # completed batches of the next epoch, and
    sums: list | None = None  # the sums of their (total, count)
    best_valid: float | None = None  # the lowest validation loss so far
    best_epoch: int = 0
    seconds: float = 0.0  # of all epochs

    def add(self, batches: int, losses) -> None:
        """Adds batches with the summed (total, count) `losses`, where the total may be a dict of terms by name."""
        self.batch += batches
        self.sums = list(losses) if self.sums is None else jax.tree.map(operator.add, self.sums, list(losses))

    def end(self, epoch: int, seconds: float) -> None:
        """Completes an epoch; `seconds` is the time of all epochs so far."""
        self.epoch, self.batch, self.sums, self.seconds = epoch, 0, None, seconds


def train(config, workdir: Path) -> dict[str, Dataset]:
    """Runs every stage of `config` that is not complete in `workdir`; returns the stages' datasets by name.

    Sets what the config leaves open (`data.size`, `data.scale`, `data.zoom`, `data.pose`) in it. If several processes
    train together (`processes.join`), each calls this.
    """
    workdir = atomic.folder(workdir)
    with contextlib.ExitStack() as stack:
        refusal = ""
        if processes.lead():
            try:
                stack.enter_context(runs.locked(workdir))
            except ValueError as error:
                refusal = str(error)
        if refusal := processes.agree(refusal):  # so that all processes end
            raise ValueError(refusal)
        stack.enter_context(processes.Watch(workdir))
        return run_stages(config, workdir)


def run_stages(config, workdir: Path) -> dict[str, Dataset]:
    """Does the work of `train`, in each process."""
    tasks.check(config)
    fill_in(config, workdir)
    configs.check(config)  # a value that was filled in may not suit every stage
    datasets, stage_names = {}, runs.stages(config)
    refuse_other_processes(config)
    runs.refuse_another(config, workdir)
    for name in stage_names:  # check all before training the first, which may take hours
        settings = configs.stage(config, name)
        datasets[name] = dataset = processes.in_turn(functools.partial(load, settings.data))
        for problem in dataset.problems:
            processes.tell(f"[{name}] {problem['image']}: {problem['what']}")
        digest = dataset.samples.digest
        if processes.agree(digest) != digest:
            raise ValueError(
                f"[{name}] process {jax.process_index()} reads other data than process 0: give all processes"
                " the same files"
            )
        refuse_unlearnable(settings, dataset)
        for member in runs.members(settings):
            folder = runs.folder_of(workdir, name, member)
            last_note = checkpoint.note(folder / "last")
            if not last_note:  # a trained network may be scored on a machine that could not train it
                planned(settings, dataset.samples, member)
            refuse_others(last_note or checkpoint.note(folder / "resume"), f"{name} fold {member}", dataset.samples)
        if len(stage_names) > 1:
            tasks.check_trainable(settings, facts(dataset), dataset.flip)
        if name == stage_names[-1]:
            refuse_unscored(settings, dataset.samples)
    if processes.lead():
        configs.save(config, workdir / "config.json")  # the data's paths may have changed
    for number, (name, dataset) in enumerate(datasets.items()):
        settings = configs.stage(config, name)
        for member in runs.members(settings):
            folder = runs.folder_of(workdir, name, member)
            last_note = checkpoint.note(folder / "last")
            source_of = functools.partial(runs.source_of, config, workdir, stage_names[:number], member)
            refuse_other_source(last_note or checkpoint.note(folder / "resume"), f"{name} fold {member}", source_of)
            if last_note:
                if processes.lead():
                    checkpoint.remove(folder / "resume")  # left if a kill came after `last` was saved
                continue
            train_network(settings, workdir, name, member, dataset, source_of())
    return datasets


def train_network(settings, workdir: Path, stage: str, member: runs.Member, dataset: Dataset, source: Path | None):
    """Trains and saves one network; what it held on the devices is free on return, before the next places its data."""
    training = Training(settings, workdir, stage, member, dataset, source)
    try:
        with processes.deferring_signals():
            training.run()
            training.finish()
    except FloatingPointError:  # diverged; with no checkpoint yet, another config may use the workdir
        if processes.lead() and not (workdir / "checkpoints").exists():
            training.log.path.unlink(missing_ok=True)
        raise


def fill_in(config, workdir: Path) -> None:
    """Sets the keys that `data` leaves open, from a run that has begun in the workdir or else from the photographs.

    Prints a message for values other than `SILENT_DEFAULTS` and, for the overlap, `min_overlap`.

    Raises:
      ValueError: an open key derives from another key (`DERIVED_FROM`), of which that run has another value.
    """
    open_keys = [key for key in ("size", *CHOICE_MESSAGES) if config.data.get(key) in ((), 0, "")]
    if runs.begun(workdir):
        saved = SILENT_DEFAULTS | runs.config_of(workdir).data.to_dict()
        for key, origin in DERIVED_FROM.items():
            if key in open_keys and saved.get(origin, config.data[origin]) != config.data[origin]:
                raise ValueError(
                    f"{workdir} holds a run with --config.data.{origin}={saved[origin]}, not {config.data[origin]}."
                    " Name another --workdir, or delete this folder"
                )
        config.data.update(
            {key: tuple(saved[key]) if key == "size" else saved[key] for key in open_keys if key in saved}
        )
    else:
        fitting.fill_in(config.data)
    silent = SILENT_DEFAULTS | {"overlap": config.data.get("min_overlap")}
    for key in set(open_keys) & set(CHOICE_MESSAGES):
        if (value := config.data[key]) != silent[key]:
            processes.tell(CHOICE_MESSAGES[key].format(value))


def refuse_other_processes(config) -> None:
    """Raises ValueError if this process's config differs from that of process 0, which writes the files."""
    lead_config = ml_collections.ConfigDict(processes.agree(json.loads(config.to_json())))
    if differences := configs.differences(lead_config, config):
        raise ValueError(
            f"process {jax.process_index()} has another config than process 0 (value there / here):"
            f" {'; '.join(differences)}. Start all processes with the same config"
        )


class Training:
    """The training of one network.

    An epoch changes `state`, on the devices; `best`, the variables with the lowest validation loss so far; and
    `progress`. The other attributes stay as they are.
    """

    def __init__(self, settings, workdir: Path, stage: str, member: runs.Member, dataset: Dataset, source: Path | None):
        self.settings, self.dataset, self.member = settings, dataset, member
        self.name, self.folder = f"{stage} fold {member}", runs.folder_of(workdir, stage, member)
        samples = dataset.samples
        versions, self.split, self.plan = planned(settings, samples, member)
        plan, train_samples = self.plan, np.unique(self.split.train // versions)
        data_facts = facts(dataset) | tasks.fitted_facts(settings, samples, train_samples)
        network, self.task = tasks.build(settings, data_facts, dataset.flip)
        self.data: dict = {"digest": samples.digest} | splits.split_record(self.split, settings, samples, versions)
        self.data["source"] = (checkpoint.note(source) or {}).get("sha256") if source else None
        earlier_splits = caveats.seen(source)
        problems = caveats.of_training(settings, dataset, member, self.data, source, earlier_splits)
        if settings.data.get("pose") in configs.TURNED_POSES and "shape" not in data_facts:
            problems.append(
                caveats.caveat(
                    member, "no training image shows enough landmarks to determine its specimen's pose: none is turned"
                )
            )
        for problem in problems:
            processes.tell(f"[{stage}] {problem['image']}{problem['what']}")
        self.about: dict = {
            "facts": data_facts,
            "caveats": problems,
            "images": len(train_samples),
            "data": self.data,
            "before": earlier_splits,
        }

        if plan.batch > (asked := settings.train.batch_size):
            processes.tell(
                f"[{self.name}] batches of {plan.batch} instead of {asked}, which {plan.devices} devices share evenly"
            )
        # The key holds the stage's name (four letters), not its index: a stage trains the same alone or after another.
        key = jax.random.fold_in(jax.random.key(settings.seed), int.from_bytes(stage.encode()[:4], "big") % 2**31)
        self.key = jax.random.fold_in(key, member.seed)
        variables = tasks.initial(network, settings, self.key)
        tx = optimiser(settings, variables["params"], plan)
        sized_tasks = [tasks.build(settings, data_facts, dataset.flip, size)[1] for size in tasks.sizes(settings)]
        self.tasks = sized_tasks or [self.task]
        self.runner = steps.runner(*self.tasks, tx=tx, devices=plan.devices, mixup=settings.train.mixup)
        state, best, self.progress = begin(settings, variables, tx, source, self.folder / "resume", self.name)
        self.state, self.best = self.runner.put(state), self.runner.put(best)

        self.arrays, self.stream = self.runner.put(feed.data_of(samples)), feed.stream_of(samples, versions=versions)
        validation_input, statistics_input = tasks.inputs(settings, self.task)
        evaluator = lambda step, prepare: self.runner.evaluator(
            functools.partial(step, task=self.task, prepare=prepare)
        )
        self.validation = evaluator(steps.valid_step, validation_input)
        self.statistics = evaluator(steps.statistics_step, statistics_input)
        # Compiled, since a network has hundreds of arrays, each of which would be a call of its own.
        self.averaged, self.mean_statistics, self.rates = map(
            self.runner.compiled, (averaged, mean_statistics, optim.hyperparameters)
        )
        quiet, tensorboard = not processes.lead(), settings.train.tensorboard
        self.log = MetricsLog(workdir, stage, *member, after=self.progress.epoch, tensorboard=tensorboard, quiet=quiet)
        draws_figure = member == runs.members(settings)[0] and processes.lead()
        self.figure = Path(workdir) / "figures" / f"batch_{stage}.png" if draws_figure else None

    def run(self) -> None:
        """Trains the epochs that are left."""
        self.save_seconds = 0.0  # that the last resume checkpoint took
        first, epochs, earlier_seconds = self.progress.epoch, self.plan.epochs, self.progress.seconds
        began = self.saved_at = printed_at = time.perf_counter()
        for epoch in range(first + 1, epochs + 1):
            started = time.perf_counter()
            means = self.train_epoch(epoch)
            trained_at = time.perf_counter()
            rates = jax.tree.map(float, self.runner.get(self.rates(self.state.opt_state)))
            means |= self.validate(epoch)
            now = time.perf_counter()
            self.progress.end(epoch, earlier_seconds + now - began)
            images, seconds = len(self.plan.train), round(self.progress.seconds, 1)
            self.log.write(
                epoch=epoch, **means, **rates, images_per_s=round(images / (trained_at - started), 1), seconds=seconds
            )
            if now - printed_at > 5 or epoch in (1, epochs):
                done, remaining = self.work(first, epoch), self.work(epoch, epochs)
                printed_at, seconds_left = now, (now - began) / done * remaining
                print_progress(self.name, epoch, epochs, means, rates, images / (now - started), seconds_left)
            if self.out_of_patience():
                processes.tell(
                    f"[{self.name}] no lower validation loss since epoch {self.progress.best_epoch}: stopped"
                )
                break
            if self.checkpoint_due() and epoch < epochs:
                self.save_resume()
        self.log.close()

    def train_epoch(self, epoch: int) -> dict:
        """Trains on the batches that are left of an epoch; returns the epoch's training losses by name."""
        draw = np.random.default_rng((self.settings.seed, self.member.seed, epoch))
        rows = steps.batches(splits.epoch(self.plan.train, self.plan.stratum, draw), self.plan.batch)
        task_index = self.task_of_batch(epoch, draw)
        key = jax.random.fold_in(self.key, epoch)
        limit = self.settings.train.span if steps.scanned(self.stream) else min(self.settings.train.span, ASKING)
        while self.progress.batch < len(rows):
            start = self.progress.batch
            chunk = slice(start, start + limit)
            self.state, losses = self.runner.run(
                self.state, self.arrays, rows[chunk], key, start, self.stream, task_index[chunk]
            )
            self.progress.add(len(rows[chunk]), steps.summed(losses))
            if self.figure and epoch == 1 and not start:
                # Only now, so that it does not delay the first steps.
                draw_batch(self.figure, self.task, self.plan.statistics_rows[:16], self.key, self.dataset)
            stop = processes.stop_requested()
            if stop or (self.checkpoint_due() and self.progress.batch < len(rows)):
                self.save_resume()
            if stop:
                raise InterruptedError(
                    f"{self.name}, epoch {epoch}: stopped on request, and saved; the same command resumes it"
                )
        losses = entries("train", {"loss": mean(*self.progress.sums) or 0.0})
        loss = losses["train/loss"]
        self.refuse_diverged(np.isfinite(loss), f"epoch {epoch}: the training loss is {loss}")
        return losses

    def work(self, first: int, last: int) -> float:
        """Returns the work of the epochs from `first` + 1 to `last`, in units of an epoch that is not coarse."""
        return last - first - (1 - tasks.COARSE**2) * (min(last, self.coarse) - min(first, self.coarse))

    @property
    def coarse(self) -> float:
        """The number of coarse epochs (`train.coarse`), which come first."""
        return round(self.settings.train.coarse * self.plan.epochs, 9)  # in floats 0.55 * 100 is more than 55

    def task_of_batch(self, epoch: int, draw: np.random.Generator) -> np.ndarray:
        """Returns the index of the task of each batch of an epoch: random, or 0 for coarse batches and 1 for others."""
        count = self.plan.steps_per_epoch
        if not self.coarse:  # drawn per batch, not per epoch: running statistics must cover all sizes
            return draw.integers(len(self.tasks), size=count)
        return np.where(np.arange((epoch - 1) * count, epoch * count) < self.coarse * count, 0, 1)

    def validate(self, epoch: int) -> dict:
        """Validates the network, keeps the best variables and, after the coarse epochs, tells the optimiser the loss.

        Returns the validation means by name.
        """
        if not len(self.plan.valid):
            return {"valid/loss": None}
        variables = self.settled()
        means = {"valid/loss": None} | self.score(variables)
        loss = means["valid/loss"]
        if loss is not None and np.isfinite(loss):
            if self.progress.best_valid is None or loss < self.progress.best_valid:
                self.progress.best_valid, self.progress.best_epoch = loss, epoch
                self.best = variables
            if epoch > self.coarse:  # in coarse epochs, no progress means nothing
                self.state = self.state.replace(opt_state=optim.observe(self.state.opt_state, loss))
        return means

    def settled(self) -> dict:
        """Returns the variables to validate and save, on the devices, in arrays that no step donates.

        These are the parameters or their moving average, with statistics of many batches, since running statistics
        cover only the last few.
        """
        variables = self.averaged(self.state)
        if "batch_stats" in variables:
            each = self.evaluated(self.statistics, variables, self.plan.statistics_rows)
            variables["batch_stats"] = self.mean_statistics(each)
        return variables

    def score(self, variables) -> dict:
        """Returns the validation means by name."""
        sums = steps.summed(self.runner.get(self.evaluated(self.validation, variables, self.plan.valid)))
        return entries("valid", {name: mean(*pair) for name, pair in sums.items()})

    def evaluated(self, evaluator, variables, rows: np.ndarray) -> list:
        """Returns what an evaluator of the runner returns for each batch of the rows."""
        return evaluator(variables, self.arrays, steps.batches(rows, self.plan.batch), self.stream)

    def refuse_diverged(self, good: bool, what: str) -> None:
        """Raises FloatingPointError with the message `what` unless `good`."""
        if not good:
            raise FloatingPointError(
                f"{self.name}, {what}; lower --config.optimizer.learning_rate or set --config.optimizer.clip=1.0"
            )

    def out_of_patience(self) -> bool:
        """Whether the validation loss has not improved for `train.patience` epochs, coarse ones not counted."""
        patience, progress = self.settings.train.patience, self.progress
        waited = progress.epoch - max(progress.best_epoch, self.coarse)
        return bool(patience) and progress.best_valid is not None and waited >= patience

    def checkpoint_due(self) -> bool:
        """Whether a resume checkpoint is due: saving takes at most about `SAVING` of the time."""
        seconds = self.settings.train.checkpoint_seconds
        return time.perf_counter() - self.saved_at > (
            max(seconds, self.save_seconds / SAVING) if seconds > 0 else seconds
        )

    def save_resume(self) -> None:
        """Writes the resume checkpoint."""
        note, started = dataclasses.asdict(self.progress) | {"data": self.data}, time.perf_counter()
        save(self.folder / "resume", self.runner.get({"state": self.state, "best": self.best}), note)
        self.saved_at = time.perf_counter()
        self.save_seconds = self.saved_at - started

    def finish(self) -> None:
        """Saves the best and the last variables, and removes the resume checkpoint."""
        (last, best), progress = self.runner.get((self.settled(), self.best)), self.progress
        finite = all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(last)))
        self.refuse_diverged(finite, "its parameters are not finite")
        if progress.best_valid is None:
            best, progress.best_epoch = last, progress.epoch
        note = self.about | {key: getattr(progress, key) for key in ("epoch", "best_valid", "best_epoch", "seconds")}
        valid_samples, train_samples = (
            np.unique(rows // self.task.versions) for rows in (self.split.valid, self.split.train)
        )
        note |= evaluate.choose_on_validation(
            steps.predictor(self.task), best, note, self.dataset, valid_samples, train_samples
        )
        save(self.folder / "best", best, note)
        save(self.folder / "last", last, note)
        if processes.lead():
            checkpoint.remove(self.folder / "resume")
        processes.wait()


def averaged(state: steps.TrainState) -> dict:
    """Returns a copy of a state's variables, with the moving average of the parameters if there is one."""
    params = optim.averaged(state.opt_state, state.variables["params"])
    return jax.tree.map(jnp.copy, state.variables | {"params": params})


def mean_statistics(each: list) -> dict:
    """Returns the mean of the batches' statistics, which are (total, count) each."""
    totals, count = jax.tree.map(lambda *batches: sum(batches), *each)
    return jax.tree.map(lambda total: total / count, totals)


def refuse_others(note: dict | None, name: str, samples) -> None:
    """Raises ValueError if the data are not those that the network with this note has been trained on so far.

    Folds split from different images would train on each other's test images.
    """
    if not note or "data" not in note:
        return
    data, names = note["data"], samples.name.tolist()
    before, now = {image for part in data["images"].values() for image in part}, set(names)
    former = data.get("contents", {})  # older versions of jaxmarks did not save the contents
    edited = {
        image
        for image, content in zip(names, samples.content.tolist(), strict=True)
        if former.get(image, content) != content
    }
    if data["digest"] == samples.digest and not edited:
        return
    changes = [
        f"{len(images)} images {what} ({', '.join(sorted(images)[:3])})"
        for images, what in ((now - before, "are new"), (before - now, "are gone"), (edited, "have other contents"))
        if images
    ]
    changes = changes or ["landmarks, boxes or groups differ, or this version of jaxmarks groups images differently"]
    raise ValueError(
        f"{name}: the data have changed since it was trained: {', '.join(changes)}. Name another"
        " --workdir to train on the new data, or score this run on them with --mode=evaluate"
    )


def refuse_other_source(note: dict | None, name: str, source_of: Callable[[], Path | None]) -> None:
    """Raises ValueError if the network with this note started from another network than it would start from now.

    A source that is gone (`source_of` raises FileNotFoundError) is not compared.
    """
    started_from = (note or {}).get("data", {}).get("source")  # older versions of jaxmarks did not save it
    try:
        source = source_of() if started_from else None
    except FileNotFoundError:
        return
    if source and (checkpoint.note(source) or {}).get("sha256") != started_from:
        raise ValueError(
            f"{name}: it started from another network than the one that is now in {source}. To train from that one,"
            " name another --workdir or delete this folder"
        )


def refuse_unscored(settings, samples) -> None:
    """Raises ValueError if a stage to be scored holds out no image, or a fold holds out none of one of the datasets."""
    by_fold = {fold: splits.member_split(settings, samples, runs.Member(fold), 1) for fold in runs.folds(settings)}
    for fold, split in by_fold.items():
        held_out = split.test if len(split.test) else split.valid
        missing = np.setdiff1d(samples.domain, samples.domain[held_out])
        if len(held_out) and len(missing):
            raise ValueError(
                f"fold {fold}: it holds out no image of dataset {missing[0] + 1} for testing: change"
                f" --config.split.folds={settings.split.folds} or --config.split.valid={settings.split.valid}, or leave"
                " that fold out of --config.split.run"
            )
    if not any(len(split.test) or len(split.valid) for split in by_fold.values()):
        raise ValueError(
            f"--config.split.folds={settings.split.folds} --config.split.valid={settings.split.valid}: no image is held"
            " out to score the network on: raise one of them"
        )


def refuse_unlearnable(settings, dataset: Dataset) -> None:
    """Raises ValueError if a detector cannot learn from the boxes, or with the settings."""
    mixup = settings.train.mixup
    if dataset.objects and not dataset.classes:
        raise ValueError(
            f"{settings.data.boxes}: no photograph has a box, so there is nothing to learn from: mark the objects"
        )
    if dataset.objects and mixup:
        raise ValueError(f"--config.train.mixup={mixup}: detectors cannot be trained with mixup; set it to 0")
    if dataset.objects and settings.split.by == "random":
        raise ValueError(
            "--config.split.by=random would divide a photograph's tiles between training and validation; set"
            " it to image"
        )


def planned(settings, samples, member: runs.Member) -> tuple[int, splits.Split, Plan]:
    """Returns the number of versions of a sample, and a network's split and plan; ValueError if none is possible."""
    versions = augment.build(settings.augment, channels=settings.channels).versions
    split = splits.member_split(settings, samples, member, versions)
    strata = splits.strata(settings.train.balance, samples, np.unique(split.train // versions))
    return versions, split, plan_of(settings, split, strata, member, versions)


def plan_of(settings, split: splits.Split, strata: np.ndarray, member: runs.Member, versions: int) -> Plan:
    """Returns the plan of a network with this split; `strata` (N,) are those of all samples."""
    options, draw = settings.train, np.random.default_rng((settings.seed, member.seed))
    patience = {"train.patience": options.patience, "optimizer.plateau": settings.optimizer.get("plateau")}
    for key, value in patience.items():
        if value and not len(split.valid):
            raise ValueError(f"--config.{key}={value} needs validation images: raise --config.split.valid")
    stratum, count = strata[split.train // versions], len(split.train)
    statistics_rows = splits.epoch(split.train, stratum, draw)[:SETTLING]
    valid = split.valid
    if options.balance != "object":  # for "object", tiles without objects keep their share, as in the test
        valid = splits.balanced(valid, strata[valid // versions], draw)
    devices = devices_of(options)
    multiple = devices * (2 if options.mixup and devices > 1 else 1)  # neighbours in mixup share a device
    batch = -(-min(options.batch_size, count) // multiple) * multiple
    steps_per_epoch = -(-count // batch)
    epochs = options.epochs or -(-options.steps // steps_per_epoch)
    if epochs * steps_per_epoch < options.accumulate:
        raise ValueError(
            f"--config.train.accumulate={options.accumulate}: the whole training has {epochs * steps_per_epoch}"
            " batches; lower it"
        )
    return Plan(split.train, valid, stratum, statistics_rows, devices, batch, steps_per_epoch, epochs)


def devices_of(options) -> int:
    """Returns the number of devices that train: all of all processes, or `train.devices` of a single process."""
    devices = options.devices or jax.device_count()
    if devices > jax.device_count():
        raise ValueError(f"--config.train.devices={devices}: only {jax.device_count()} are available; 0 uses all")
    if jax.process_count() > 1 and devices != jax.device_count():
        raise ValueError(
            f"--config.train.devices={devices}: {jax.process_count()} processes always use all of their"
            f" {jax.device_count()} devices; leave it 0"
        )
    return devices


def optimiser(settings, params, plan: Plan) -> optax.GradientTransformation:
    """Builds the optimiser of a stage's settings, with freezing, parameter averaging and gradient accumulation."""
    options = settings.train
    length = {"epochs": plan.epochs, "steps_per_epoch": plan.steps_per_epoch, "accumulate": options.accumulate}
    tx = optim.build(settings.optimizer, **length)
    if settings.freeze:
        tx = optim.freeze(tx, params, settings.freeze)
    if options.ema:
        tx = optax.chain(tx, optim.average(options.ema))
    if options.accumulate > 1:
        tx = optax.MultiSteps(tx, options.accumulate).gradient_transformation()
    return tx


def begin(settings, variables, tx, source: Path | None, resume: Path, name: str):
    """Returns the state, best variables and progress of the checkpoint `resume` or, without one, of a new training.

    A new training starts from `source`, else from `settings.weights`, else from `variables`.
    """
    note = checkpoint.note(resume)
    if not note:
        if source or settings.weights:
            pretrained, origin = tasks.pretrained(settings, source)
            variables = tasks.initialise_from(variables, pretrained, origin, settings.init_skip)
        return steps.create(variables, tx), variables, Progress()
    saved, _ = checkpoint.restore(resume, {"state": steps.create(variables, tx), "best": variables})
    progress = Progress(**{f.name: note[f.name] for f in dataclasses.fields(Progress) if f.name in note})
    batches = f" and {progress.batch} batches" if progress.batch else ""
    processes.tell(f"[{name}] resumed after epoch {progress.epoch}{batches}")
    return *(jax.tree.map(jnp.asarray, saved[key]) for key in ("state", "best")), progress


def save(folder: Path, tree, note: dict) -> None:
    """Saves a checkpoint, in the lead process only."""
    if processes.lead():
        checkpoint.save(folder, tree, note)


def mean(total, count):
    """Divides the total, or each term of a dict, by the count; None if nothing was counted."""
    return jax.tree.map(lambda term: term / count, total) if count else None


def entries(split: str, means: dict) -> dict:
    """Returns means by name as log entries: a dict of terms as their sum, and each term under its own name."""
    logged = {}
    for name, value in means.items():
        terms = value if isinstance(value, dict) else {}
        logged[f"{split}/{name}"] = sum(terms.values()) if terms else value
        logged |= {f"{split}/{term}": part for term, part in terms.items()}
    return logged


def draw_batch(path: Path, task: steps.Task, rows, key, dataset: Dataset) -> None:
    """Draws augmented training images with their landmarks or boxes, where most data errors are visible at once."""
    images = np.asarray(dataset.samples.images[steps.samples_of(rows, task.versions)])
    batch = steps.gather(feed.data_of(dataset.samples) | {"streamed": images}, rows, task.versions)
    batch = jax.jit(task.augment)(steps.keys_of(key, rows), batch)
    batch = jax.tree.map(np.asarray, batch)
    images = batch["images"].repeat(4, 1).repeat(4, 2)
    if dataset.objects:
        drawn = [
            report.rectangles(image, report.class_layers(4 * boxes, labels, dataset.classes))
            for image, boxes, labels in zip(images, batch["boxes"], batch["labels"], strict=True)
        ]
    else:
        points = np.where(batch["visible"][..., None], 4 * batch["points"], np.nan)
        columns = [dataset.columns[domain] for domain in dataset.samples.domain[rows // task.versions]]
        drawn = [report.overlay(image, p[c]) for image, p, c in zip(images, points, columns, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    report.contact_sheet(drawn, path)


def print_progress(
    name: str, epoch: int, epochs: int, means: dict, rates: dict, images_per_s: float, seconds_left: float
) -> None:
    """Prints one line of progress."""
    valid = "" if means["valid/loss"] is None else f" valid {means['valid/loss']:.6f}"
    processes.tell(
        f"[{name}] epoch {epoch}/{epochs} train {means['train/loss']:.6f}{valid} rate {rates['learning_rate']:.2e}"
        f" momentum {rates['momentum']:.4f} {images_per_s:.0f} images/s {int(seconds_left // 60)}:{int(seconds_left % 60):02d} left"
    )
