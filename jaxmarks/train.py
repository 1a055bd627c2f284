"""Training, from top to bottom: stages, folds, epochs.

A run goes through its stages in order (pretrain, then finetune); in each it trains one network a fold, or an ensemble
of them. A network starts from its like in the stage before. Everything that is random comes from the config's seed, the
number of fold, member and epoch, and, but for the order of the images, four letters of the stage's name, so that a run
which was killed ends as one that was left alone.
"""

import contextlib
import dataclasses
import functools
import json
import operator
import time
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
    baselines,
    caveats,
    checkpoint,
    evaluate,
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
from jaxmarks.feed import Feed
from jaxmarks.metrics_log import MetricsLog

# From so many training images the statistics of batches are taken that a network is judged and saved with.
SETTLING = 256
# What is said where a key of `data` follows what is in the photographs.
FOLLOWED = {
    "scale": "photographs come in at {:g} of their size, which suits their objects; --config.data.scale=1 leaves them as"
    " they are",
    "zoom": "landmarks take a small part of the photographs: the network looks at each whole, and then {:g} times as"
    " closely at that part; --config.data.zoom=1 looks no closer, and takes less memory",
    "pose": "specimens are {} against each other: the network looks at each whole, and then once more, laid as all others"
    " are; --config.data.pose=upright looks at them as they lie",
}
# What else these keys follow, which has no effect where they are given.
LEADS = {"size": "pixels", "scale": "side"}
# What a key that is left open says where there is nothing to tell, and what it was before there was such a key.
USUAL = {"scale": 1.0} | fitting.ONCE
# After so many steps that are called one by one it is asked whether to stop, and whether a checkpoint is due.
ASKING = 10


class Plan(NamedTuple):
    """What one network is shown.

    Attributes:
      train, valid: the rows of training, and of validation as often as each counts.
      stratum: (N,) of each of the training rows; all strata are shown equally often.
      some: at most `SETTLING` rows as an epoch of training shows them.
      devices: how many train together.
      batch: rows in a batch, on all devices together.
      steps_per_epoch, epochs: the length of the training.
    """

    train: np.ndarray
    valid: np.ndarray
    stratum: np.ndarray
    some: np.ndarray
    devices: int
    batch: int
    steps_per_epoch: int
    epochs: int


@dataclasses.dataclass
class Progress:
    """How far the training of a network is, as its resume checkpoint has it."""

    epoch: int = 0  # the last that is done
    batch: int = 0  # how many batches of the next one are done, and
    sums: list | None = None  # the sums of their (total, count)
    best_valid: float | None = None  # the lowest validation loss so far
    best_epoch: int = 0
    seconds: float = 0.0  # of all epochs

    def add(self, batches: int, found) -> None:
        """Counts batches whose (total, count), or their terms' by name, are `found`."""
        self.batch += batches
        self.sums = list(found) if self.sums is None else jax.tree.map(operator.add, self.sums, list(found))

    def end(self, epoch: int, seconds: float) -> None:
        """Counts an epoch; `seconds` are of all so far."""
        self.epoch, self.batch, self.sums, self.seconds = epoch, 0, None, seconds


def train(config, workdir: Path) -> dict[str, Dataset]:
    """Runs every stage of `config` that is not complete in `workdir`; returns the stages' datasets by name.

    What the config leaves open (`data.size`, `data.scale`, `data.zoom`, `data.pose`) is set in it. Where several processes
    train together (`processes.join`) each calls this.
    """
    workdir = atomic.folder(workdir)
    with contextlib.ExitStack() as stack:
        refused = ""
        if processes.lead():
            try:
                stack.enter_context(runs.locked(workdir))
            except ValueError as error:
                refused = str(error)
        if refused := processes.agree(refused):  # all end together
            raise ValueError(refused)
        stack.enter_context(processes.Watch(workdir))
        return run_stages(config, workdir)


def run_stages(config, workdir: Path) -> dict[str, Dataset]:
    """What `train` does in each process."""
    tasks.check(config)
    fill_in(config, workdir)
    configs.check(config)  # what was filled in need not suit every stage
    datasets, names = {}, runs.stages(config)
    last = configs.stage(config, names[-1])
    baselines.check(last.baselines, objects="boxes" in last.data)  # else a trained run could not be scored
    refuse_other_processes(config)
    runs.refuse_another(config, workdir)
    for name in names:  # all before the first is trained: hours may lie between them
        settings = configs.stage(config, name)
        datasets[name] = dataset = processes.in_turn(functools.partial(load, settings.data))
        for problem in dataset.problems:
            processes.tell(f"[{name}] {problem['image']}: {problem['what']}")
        digest = dataset.samples.digest
        if processes.agree(digest) != digest:
            raise ValueError(
                f"[{name}] process {jax.process_index()} reads other data than process 0: let all see the same"
            )
        refuse(settings, dataset)
        for member in runs.members(settings):
            folder = runs.folder_of(workdir, name, member)
            ended = checkpoint.note(folder / "last")
            if not ended:  # a network that is trained may be reported where none could be
                planned(settings, dataset.samples, member)
            refuse_others(ended or checkpoint.note(folder / "resume"), f"{name} fold {member}", dataset.samples)
        if len(names) > 1:
            tasks.rehearse(settings, facts(dataset), dataset.flip)
        if name == names[-1]:
            refuse_unscored(settings, dataset.samples)
    if processes.lead():
        configs.save(config, workdir / "config.json")  # its data may lie elsewhere now
    for number, (name, dataset) in enumerate(datasets.items()):
        settings = configs.stage(config, name)
        for member in runs.members(settings):
            folder = runs.folder_of(workdir, name, member)
            if checkpoint.note(folder / "last"):
                if processes.lead():
                    checkpoint.remove(folder / "resume")  # of a run that was killed between the two
                continue
            source = runs.source_of(config, workdir, names[:number], member)
            training = Training(settings, workdir, name, member, dataset, source)
            try:
                with processes.heeding():
                    training.run()
                    training.finish()
            except FloatingPointError:  # it diverged: before its first checkpoint another config may take its place
                if processes.lead() and not (workdir / "checkpoints").exists():
                    training.log.path.unlink(missing_ok=True)
                raise
    return datasets


def fill_in(config, workdir: Path) -> None:
    """Sets what `data` leaves open: as a run that has begun in the workdir has it, or as the photographs suggest.

    What is not usual is told.

    Raises:
      ValueError: a run that has begun there was led by another key of `LEADS`.
    """
    left = [key for key in ("size", *FOLLOWED) if config.data.get(key) in ((), 0, "")]
    if runs.begun(workdir):
        theirs = USUAL | runs.config_of(workdir).data.to_dict()
        for key, by in LEADS.items():
            if key in left and theirs.get(by, config.data[by]) != config.data[by]:
                raise ValueError(
                    f"{workdir} holds a run of --config.data.{by}={theirs[by]}, not {config.data[by]}. Name another"
                    " --workdir, or delete this one"
                )
        config.data.update({key: tuple(theirs[key]) if key == "size" else theirs[key] for key in left if key in theirs})
    fitting.fill_in(config.data)
    for key in set(left) & set(FOLLOWED):
        if (value := config.data[key]) != USUAL[key]:
            processes.tell(FOLLOWED[key].format(value))


def refuse_other_processes(config) -> None:
    """Raises ValueError where the process that writes has another config."""
    theirs = ml_collections.ConfigDict(processes.agree(json.loads(config.to_json())))
    if differences := configs.differences(theirs, config):
        raise ValueError(
            f"process {jax.process_index()} has another config than process 0 (there / here): {'; '.join(differences)}."
            " Start all of them alike"
        )


class Training:
    """The training of one network: what its epochs are made of, which stays, and what an epoch changes.

    That is `state`, on the devices; `best`, the variables of the lowest validation loss so far; and `progress`.
    """

    def __init__(self, settings, workdir: Path, stage: str, member: runs.Member, dataset: Dataset, source: Path | None):
        self.settings, self.dataset, self.member = settings, dataset, member
        self.name, self.folder = f"{stage} fold {member}", runs.folder_of(workdir, stage, member)
        samples = dataset.samples
        versions, self.split, self.plan = planned(settings, samples, member)
        plan, shown = self.plan, np.unique(self.split.train // versions)
        known = facts(dataset) | tasks.fitted(settings, samples, shown)
        network, self.task = tasks.build(settings, known, dataset.flip)
        self.data: dict = {"digest": samples.digest} | splits.saved(self.split, settings, samples, versions)
        earlier = caveats.seen(source)
        found = caveats.of_training(settings, dataset, member, self.data, source, earlier)
        if settings.data.get("pose") in configs.TURNED_POSES and "shape" not in known:
            found.append(caveats.caveat(member, "no training image shows how its specimens lie: none is turned"))
        for each in found:
            processes.tell(f"[{stage}] {each['image']}{each['what']}")
        self.about: dict = {
            "facts": known,
            "caveats": found,
            "images": len(shown),
            "data": self.data,
            "before": earlier,
        }

        if plan.batch > (asked := settings.train.batch_size):
            processes.tell(
                f"[{self.name}] batches of {plan.batch}, not {asked}: as many on each of {plan.devices} devices"
            )
        # The stage's name (four letters of it) is in the key, not its number: it trains alike alone and after another.
        key = jax.random.fold_in(jax.random.key(settings.seed), int.from_bytes(stage.encode()[:4], "big") % 2**31)
        self.key = jax.random.fold_in(key, member.seed)
        variables = tasks.initial(network, settings, self.key)
        tx = optimiser(settings, variables["params"], plan)
        sized = [tasks.build(settings, known, dataset.flip, size)[1] for size in tasks.sizes(settings)]
        self.tasks = sized or [self.task]
        self.runner = steps.runner(*self.tasks, tx=tx, devices=plan.devices, mixup=settings.train.mixup)
        state, self.best, self.progress = begin(settings, variables, tx, source, self.folder / "resume", self.name)
        self.state = self.runner.put(state)

        self.feed = Feed(samples, versions=versions, batch=plan.batch)
        self.on_device = self.runner.put(self.feed.data)
        self.settle, self.score = judges(settings, self.task, self.feed, plan)
        quiet, tensorboard = not processes.lead(), settings.train.tensorboard
        self.log = MetricsLog(workdir, stage, *member, after=self.progress.epoch, tensorboard=tensorboard, quiet=quiet)
        drawn = member == runs.members(settings)[0] and processes.lead()
        self.figure = Path(workdir) / "figures" / f"batch_{stage}.png" if drawn else None

    def run(self) -> None:
        """Every epoch that is left."""
        first, epochs, before = self.progress.epoch, self.plan.epochs, self.progress.seconds
        began = self.saved_at = said_at = time.perf_counter()
        for epoch in range(first + 1, epochs + 1):
            started = time.perf_counter()
            found = self.show(epoch)
            trained = time.perf_counter()
            rates = {rate: float(value) for rate, value in optim.hyperparameters(self.here().opt_state).items()}
            found |= self.judge(epoch)
            now = time.perf_counter()
            self.progress.end(epoch, before + now - began)
            images, seconds = len(self.plan.train), round(self.progress.seconds, 1)
            self.log.write(
                epoch=epoch, **found, **rates, images_per_s=round(images / (trained - started), 1), seconds=seconds
            )
            if now - said_at > 5 or epoch in (1, epochs):
                done, rest = self.work(first, epoch), self.work(epoch, epochs)
                said_at, left = now, (now - began) / done * rest
                say(self.name, epoch, epochs, found, rates, images / (now - started), left)
            if self.idle():
                processes.tell(f"[{self.name}] no better since epoch {self.progress.best_epoch}: stopped")
                break
            if self.late() and epoch < epochs:
                self.keep()
        self.log.close()

    def show(self, epoch: int) -> dict:
        """Trains on the batches of an epoch that are left of it: -> its training losses by name."""
        draw = np.random.default_rng((self.settings.seed, self.member.seed, epoch))
        rows = steps.batches(splits.epoch(self.plan.train, self.plan.stratum, draw), self.plan.batch)
        sizes = self.sizes(epoch, draw)
        key = jax.random.fold_in(self.key, epoch)
        most = self.settings.train.span if steps.scanned(self.feed.stream) else min(self.settings.train.span, ASKING)
        while self.progress.batch < len(rows):
            start = self.progress.batch
            here = slice(start, start + most)
            self.state, found = self.runner.run(
                self.state, self.on_device, rows[here], key, start, self.feed.stream, sizes[here]
            )
            self.progress.add(len(rows[here]), steps.summed(found))
            if self.figure and epoch == 1 and not start:
                # By now the first steps are made, which it would have held up.
                draw_batch(self.figure, self.task, self.feed, self.plan.some[:16], self.key, self.dataset)
            stop = processes.told_to_stop()
            if stop or (self.late() and self.progress.batch < len(rows)):
                self.keep()
            if stop:
                raise InterruptedError(f"{self.name}, epoch {epoch}: told to stop, and saved; the same command goes on")
        found = entries("train", {"loss": mean(*self.progress.sums) or 0.0})
        loss = found["train/loss"]
        self.refuse_diverged(np.isfinite(loss), f"epoch {epoch}: the training loss is {loss}")
        return found

    def work(self, first: int, last: int) -> float:
        """How much of the training the epochs after the first are, up to the last, in epochs of frames that are not coarse."""
        return last - first - (1 - tasks.COARSE**2) * (min(last, self.coarse) - min(first, self.coarse))

    @property
    def coarse(self) -> float:
        """How many epochs are coarse (`train.coarse`), the first ones."""
        return round(self.settings.train.coarse * self.plan.epochs, 9)  # 0.55 * 100 is a little more than 55

    def sizes(self, epoch: int, draw: np.random.Generator) -> np.ndarray:
        """Which of the tasks each batch of an epoch is for: one by chance, or after the coarse ones the last."""
        count = self.plan.steps_per_epoch
        if not self.coarse:  # each batch by itself, not each epoch: running statistics must be of all sizes
            return draw.integers(len(self.tasks), size=count)
        return np.where(np.arange((epoch - 1) * count, epoch * count) < self.coarse * count, 0, 1)

    def judge(self, epoch: int) -> dict:
        """Validates the network, tells the optimiser if the epoch was not coarse, and keeps the best.

        Returns the validation's means by name.
        """
        if not len(self.plan.valid):
            return {"valid/loss": None}
        variables = self.settle(self.here())
        found = {"valid/loss": None} | self.score(variables)
        loss = found["valid/loss"]
        if loss is not None and np.isfinite(loss):
            if self.progress.best_valid is None or loss < self.progress.best_valid:
                self.progress.best_valid, self.progress.best_epoch = loss, epoch
                self.best = jax.tree.map(jnp.copy, variables)
            if epoch > self.coarse:  # before, that it becomes no better says nothing
                self.state = self.state.replace(opt_state=optim.observe(self.state.opt_state, loss))
        return found

    def refuse_diverged(self, good: bool, what: str) -> None:
        """Raises FloatingPointError where the training is not `good`."""
        if not good:
            raise FloatingPointError(
                f"{self.name}, {what}; lower --config.optimizer.learning_rate or set --config.optimizer.clip=1.0"
            )

    def here(self) -> steps.TrainState:
        """The state as on one device."""
        return self.runner.get(self.state)

    def idle(self) -> bool:
        """Whether validation has not become better for as long as the settings wait, coarse epochs not counted."""
        patience, progress = self.settings.train.patience, self.progress
        waited = progress.epoch - max(progress.best_epoch, self.coarse)
        return bool(patience) and progress.best_valid is not None and waited >= patience

    def late(self) -> bool:
        """Whether a resume checkpoint is due."""
        return time.perf_counter() - self.saved_at > self.settings.train.checkpoint_seconds

    def keep(self) -> None:
        """Writes the resume checkpoint."""
        note = dataclasses.asdict(self.progress) | {"data": self.data}
        save(self.folder / "resume", {"state": self.here(), "best": self.best}, note)
        self.saved_at = time.perf_counter()

    def finish(self) -> None:
        """Saves the best and the last variables."""
        last, progress = self.settle(self.here()), self.progress
        good = all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(last)))
        self.refuse_diverged(good, "its parameters are no numbers")
        if progress.best_valid is None:
            self.best, progress.best_epoch = last, progress.epoch
        about = self.about | {key: getattr(progress, key) for key in ("epoch", "best_valid", "best_epoch", "seconds")}
        held, shown = (np.unique(rows // self.task.versions) for rows in (self.split.valid, self.split.train))
        about |= evaluate.choose(steps.predictor(self.task), self.best, about, self.dataset, held, shown)
        save(self.folder / "best", self.best, about)
        save(self.folder / "last", last, about)
        if processes.lead():
            checkpoint.remove(self.folder / "resume")
        processes.wait()


def refuse_others(note: dict | None, name: str, samples) -> None:
    """Raises ValueError where the data are not those that the network with this note has been trained on so far.

    Folds that are split from other images would train on each other's test.
    """
    if not note or "data" not in note or note["data"]["digest"] == samples.digest:
        return
    before, now = {image for part in note["data"]["images"].values() for image in part}, set(samples.name.tolist())
    changes = [
        f"{len(images)} images {what} ({', '.join(sorted(images)[:3])})"
        for images, what in ((now - before, "are new"), (before - now, "are gone"))
        if images
    ]
    changes = changes or ["other marks or groups, or a version of jaxmarks that groups them otherwise"]
    raise ValueError(
        f"{name}: the data have changed since it was trained: {', '.join(changes)}. Name another"
        " --workdir to train on them, or score this run on them with --mode=evaluate"
    )


def refuse_unscored(settings, samples) -> None:
    """Raises ValueError where a stage that is scored holds nothing back for it."""
    each = {fold: splits.of_member(settings, samples, runs.Member(fold), 1) for fold in runs.folds(settings)}
    for fold, split in each.items():
        held = split.test if len(split.test) else split.valid
        lacking = np.setdiff1d(samples.domain, samples.domain[held])
        if len(held) and len(lacking):
            raise ValueError(
                f"fold {fold}: of dataset {lacking[0] + 1} no image is left to test: change"
                f" --config.split.folds={settings.split.folds} or --config.split.valid={settings.split.valid}, or leave"
                " that fold out of --config.split.run"
            )
    if not any(len(split.test) or len(split.valid) for split in each.values()):
        raise ValueError(
            f"--config.split.folds={settings.split.folds} --config.split.valid={settings.split.valid}: nothing is held back"
            " to score the network on: raise one of them"
        )


def refuse(settings, dataset: Dataset) -> None:
    """Raises ValueError where the settings ask for what detectors cannot learn from."""
    mixup = settings.train.mixup
    if dataset.objects and not dataset.classes:
        raise ValueError(
            f"{settings.data.boxes}: no box in any photograph: mark the objects, there is nothing to learn from"
        )
    if dataset.objects and mixup:
        raise ValueError(f"--config.train.mixup={mixup}: detectors learn nothing from mixed boxes; set it to 0")
    if dataset.objects and settings.split.by == "random":
        raise ValueError("--config.split.by=random divides photographs, whose objects belong together; set it to image")


def planned(settings, samples, member: runs.Member) -> tuple[int, splits.Split, Plan]:
    """How many versions of a sample there are, and a network's split and plan; raises ValueError where none can be made."""
    versions = augment.build(settings.augment, channels=settings.channels).versions
    split = splits.of_member(settings, samples, member, versions)
    strata = splits.strata(settings.train.balance, samples, np.unique(split.train // versions))
    return versions, split, plan_of(settings, split, strata, member, versions)


def plan_of(settings, split: splits.Split, strata: np.ndarray, member: runs.Member, versions: int) -> Plan:
    """What a network of this split is shown, where `strata` (N,) are those of all samples."""
    options, draw = settings.train, np.random.default_rng((settings.seed, member.seed))
    waits = {"train.patience": options.patience, "optimizer.plateau": settings.optimizer.get("plateau")}
    for key, value in waits.items():
        if value and not len(split.valid):
            raise ValueError(f"--config.{key}={value} needs validation images: raise --config.split.valid")
    stratum, count = strata[split.train // versions], len(split.train)
    some = splits.epoch(split.train, stratum, draw)[:SETTLING]
    valid = split.valid
    if options.balance != "object":  # as many tiles without objects as there are: so is the test
        valid = splits.balanced(valid, strata[valid // versions], draw)
    devices = devices_of(options)
    together = devices * (2 if options.mixup and devices > 1 else 1)  # neighbours that are mixed share a device
    batch = -(-min(options.batch_size, count) // together) * together
    steps_per_epoch = -(-count // batch)
    epochs = options.epochs or -(-options.steps // steps_per_epoch)
    if epochs * steps_per_epoch < options.accumulate:
        raise ValueError(f"--config.train.accumulate={options.accumulate}: {epochs * steps_per_epoch} batches are all")
    return Plan(split.train, valid, stratum, some, devices, batch, steps_per_epoch, epochs)


def devices_of(options) -> int:
    """How many devices train: all of all processes, or the first of this one's as `train.devices` says."""
    devices = options.devices or jax.device_count()
    if devices > jax.device_count():
        raise ValueError(f"--config.train.devices={devices}: there are {jax.device_count()}; 0 takes all")
    if jax.process_count() > 1 and devices != jax.device_count():
        raise ValueError(
            f"--config.train.devices={devices}: {jax.process_count()} processes use all of their"
            f" {jax.device_count()} devices; leave it 0"
        )
    return devices


def optimiser(settings, params, plan: Plan) -> optax.GradientTransformation:
    """The optimiser of a stage's settings, with what is frozen, averaged and accumulated."""
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
    """The state, the best variables and the progress that training goes on from, or begins with."""
    noted = checkpoint.note(resume)
    if not noted:
        if source or settings.weights:
            theirs, about = tasks.pretrained(settings, source)
            variables = tasks.take_over(variables, theirs, about, settings.init_skip)
        return steps.create(variables, tx), variables, Progress()
    saved, _ = checkpoint.restore(resume, {"state": steps.create(variables, tx), "best": variables})
    progress = Progress(**{f.name: noted[f.name] for f in dataclasses.fields(Progress) if f.name in noted})
    within = f" and {progress.batch} batches" if progress.batch else ""
    processes.tell(f"[{name}] resumed after epoch {progress.epoch}{within}")
    return *(jax.tree.map(jnp.asarray, saved[key]) for key in ("state", "best")), progress


def judges(settings, task: steps.Task, feed: Feed, plan: Plan):
    """Two functions: state -> the variables to judge and to save, and those -> the validation's means by name.

    The variables are the parameters or their moving average, and the statistics of many batches; the running ones hold
    the last few batches' alone.
    """
    to_judge, to_settle = tasks.inputs(settings, task)
    validate = jax.jit(functools.partial(steps.valid_step, task=task, prepare=to_judge))
    measure = jax.jit(functools.partial(steps.statistics_step, task=task, prepare=to_settle))

    def settle(state):
        variables = state.variables | {"params": optim.averaged(state.opt_state, state.variables["params"])}
        if "batch_stats" not in variables:
            return variables
        return variables | {"batch_stats": feed.mean(measure, variables, plan.some)}

    def score(variables):
        found = feed.each(validate, variables, plan.valid)
        sums = processes.agree(jax.tree.map(lambda *x: float(np.sum(x)), *found))
        return entries("valid", {name: mean(*pair) for name, pair in sums.items()})

    return settle, score


def save(folder: Path, tree, note: dict) -> None:
    """A checkpoint, by the process that writes."""
    if processes.lead():
        checkpoint.save(folder, tree, note)


def mean(total, count):
    """Of the total, or of each term of a dict; None where nothing was counted."""
    return jax.tree.map(lambda term: term / count, total) if count else None


def entries(split: str, means: dict) -> dict:
    """Means by name as the log has them: of a dict of terms their sum, and each under its own name."""
    found = {}
    for name, value in means.items():
        terms = value if isinstance(value, dict) else {}
        found[f"{split}/{name}"] = sum(terms.values()) if terms else value
        found |= {f"{split}/{term}": part for term, part in terms.items()}
    return found


def draw_batch(path: Path, task: steps.Task, feed: Feed, rows, key, dataset: Dataset) -> None:
    """Draws augmented training images with their points: most mistakes in data are visible at once."""
    (data,) = feed.shown(rows[None])
    batch = steps.gather(data, jnp.asarray(rows), task.versions)
    batch = jax.jit(task.augment)(steps.keys_of(key, rows), batch)
    batch = jax.tree.map(np.asarray, batch)
    images = batch["images"].repeat(4, 1).repeat(4, 2)
    if dataset.objects:
        drawn = [
            report.rectangles(image, report.of_classes(4 * boxes, labels, dataset.classes))
            for image, boxes, labels in zip(images, batch["boxes"], batch["labels"], strict=True)
        ]
    else:
        points = np.where(batch["visible"][..., None], 4 * batch["points"], np.nan)
        own = [dataset.columns[domain] for domain in dataset.samples.domain[rows // task.versions]]
        drawn = [report.overlay(image, p[c]) for image, p, c in zip(images, points, own, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    report.contact_sheet(drawn, path)


def say(name: str, epoch: int, epochs: int, found: dict, rates: dict, images_per_s: float, left: float) -> None:
    """One line of progress."""
    valid = "" if found["valid/loss"] is None else f" valid {found['valid/loss']:.6f}"
    processes.tell(
        f"[{name}] epoch {epoch}/{epochs} train {found['train/loss']:.6f}{valid} rate {rates['learning_rate']:.2e}"
        f" momentum {rates['momentum']:.4f} {images_per_s:.0f} images/s {int(left // 60)}:{int(left % 60):02d} left"
    )
