"""Training, from top to bottom: stages, folds, epochs.

A run goes through its stages in order (pretrain, then finetune); in each it trains one network a fold, or an ensemble
of them. A network starts from its like in the stage before. Everything that is random comes from the config's seed and
the number of stage, fold, member and epoch, so that a run which was killed ends as one that was left alone.
"""

import functools
import operator
import re
import time
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmarks import augment, baselines, checkpoint, detection, heads, models, optim, processes, report, steps
from jaxmarks import config as configs
from jaxmarks.data import splits
from jaxmarks.data.loading import Dataset, facts, known_facts, load, of_set
from jaxmarks.feed import Feed
from jaxmarks.metrics_log import MetricsLog
from jaxmarks.ops import boxes as box_ops

# From so many training images the statistics of batches are taken that a network is judged and saved with.
SETTLING = 256


class Member(NamedTuple):
    """One of the networks that are trained: the first of a fold, or another of the fold's ensemble."""

    fold: int
    number: int = 0

    def __str__(self):
        return f"{self.fold}.{self.number}" if self.number else f"{self.fold}"

    @property
    def seed(self) -> int:
        """What tells its random numbers from the others'; the first has those of a fold without an ensemble."""
        return self.fold + 2**16 * self.number


def train(config, workdir: Path) -> dict[str, Dataset]:
    """Runs every stage of `config` that is not complete in `workdir`; returns the stages' datasets by name.

    Where several processes train together (`processes.join`) each calls this.
    """
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    with processes.Watch(workdir):
        return run_stages(config, workdir)


def run_stages(config, workdir: Path) -> dict[str, Dataset]:
    """What `train` does in each process."""
    datasets, names = {}, stages(config)
    last = configs.stage(config, names[-1])
    baselines.check(last.baselines, objects="boxes" in last.data)  # else a trained run could not be scored
    processes.in_turn(functools.partial(claim, config, workdir))
    for number, name in enumerate(names):
        settings = configs.stage(config, name)
        datasets[name] = dataset = processes.in_turn(functools.partial(load, settings.data))
        for problem in dataset.problems:
            tell(f"[{name}] {problem['image']}: {problem['what']}")
        for member in members(settings):
            source = checkpoint_before(config, workdir, names[:number], member)
            train_member(settings, workdir, name, member, dataset, source)
    return datasets


def stages(config) -> list[str]:
    """The run's stages by name; a pretraining stage is left out where the run starts from another one's network."""
    replaced = bool(config.init_from) and len(config.stages) > 1
    return [name for name in config.stages if not (replaced and name == "pretrain")]


def folds(settings) -> list[int]:
    """The folds that a stage trains: `split.run`, or all where that is empty."""
    return list(settings.split.run) or list(range(settings.split.folds))


def members(settings, fold: int | None = None) -> list[Member]:
    """The networks of a fold, which predict together, or of all folds."""
    if settings.train.ensemble < 1:
        raise ValueError(f"--config.train.ensemble={settings.train.ensemble}: a fold has at least one network")
    chosen = folds(settings) if fold is None else [fold]
    return [Member(each, number) for each in chosen for number in range(settings.train.ensemble)]


def claim(config, workdir):
    """Writes the config, or makes sure that the run in the workdir is this one."""
    path = workdir / "config.json"
    if path.exists():
        differences = configs.differences(configs.load(path), config)
        if differences:
            raise ValueError(
                f"{workdir} holds a run of another config (there / here): {'; '.join(differences)}. Name another"
                " --workdir, or delete this one"
            )
    else:
        configs.save(config, path)


def config_of(workdir: Path):
    """The config of the run in a folder."""
    return configs.load(Path(workdir) / "config.json")


def settings_of(workdir: Path):
    """The settings of the last stage of the run in a folder."""
    config = config_of(workdir)
    return configs.stage(config, stages(config)[-1])


def folder_of(workdir: Path, stage: str, member: Member) -> Path:
    """Where the checkpoints of one network lie: `best`, `last`, and `resume` while it trains."""
    return Path(workdir) / "checkpoints" / stage / f"fold{member}"


def member_of(folder: Path) -> Member:
    """The network whose checkpoints lie in a folder."""
    return Member(*map(int, folder.name.removeprefix("fold").split(".")))


def restore(workdir: Path, stage: str, members: list[Member]) -> tuple[list, list[dict]]:
    """The variables of trained networks, and the notes that were saved with them."""
    found = [checkpoint.restore(folder_of(workdir, stage, member) / "best") for member in members]
    return [variables for variables, _ in found], [note for _, note in found]


def checkpoint_before(config, workdir, earlier, member) -> Path | None:
    """The network that one starts from: of the stage before, else of the run `init_from`, else none."""
    if earlier:
        return pick(Path(workdir) / "checkpoints" / earlier[-1], member)
    if config.init_from:
        return pick(Path(config.init_from) / "checkpoints" / stages(config_of(config.init_from))[-1], member)
    return None


def pick(folder: Path, member: Member) -> Path:
    """`best` of a network in a stage's folder; where it was not trained there of its fold's first, or of the first fold's."""
    done = {member_of(path.parent): path for path in folder.glob("fold*/best")}
    if not done:
        raise FileNotFoundError(f"{folder}: no trained network; let that run end first, or change --config.init_from")
    return next(done[one] for one in (member, Member(member.fold), min(done)) if one in done)


def sizes(settings) -> list[tuple[int, int]]:
    """The sizes (H, W) at which training shows the frame, one for each batch, where `train.sizes` names their heights."""
    height, width = settings.data.size
    heights = tuple(settings.train.sizes)
    if heights and not min(heights) <= height <= max(heights):
        raise ValueError(
            f"--config.train.sizes={heights}: training would not show frames of --config.data.size={(height, width)};"
            " give heights around its own, or ()"
        )
    return [(side, round(side * width / height)) for side in settings.train.sizes]


def split_rows(settings, samples, member, versions):
    """The rows (sample x versions + version) of training and validation, and the samples of the test, which is its fold's."""
    group = samples.group
    if settings.split.by == "image":  # the tiles of a photograph have its name, and stay together
        number = {name: n for n, name in enumerate(dict.fromkeys(samples.name.tolist()))}
        group = np.array([number[name] for name in samples.name.tolist()])
    options = {"folds": settings.split.folds, "valid": settings.split.valid, "seed": settings.split.seed}
    # Where validation takes the place of a test, or a few specimens are all there is, an ensemble has the same of them.
    number = 0 if settings.split.folds == 1 or settings.split.few else member.number
    split = splits.by_group_in_each(samples.domain, group, fold=member.fold, member=number, **options)
    if settings.split.by == "random" and settings.split.folds == 1:
        raise ValueError(
            "--config.split.by=random --config.split.folds=1: the versions that validate are of images that are trained"
            " on, so nothing would be left to test; raise split.folds"
        )
    if settings.split.few and settings.split.by == "random":
        raise ValueError(
            f"--config.split.few={settings.split.few}: a random split has no specimens; set split.by=group"
        )
    if settings.split.few:
        draw, domains = np.random.default_rng((settings.seed, member.fold)), samples.domain[split.train]
        drawn = [draw.permutation(np.unique(group[split.train[domains == d]])) for d in np.unique(domains)]
        few = np.concatenate([groups[: settings.split.few] for groups in drawn])
        split = split._replace(train=split.train[np.isin(group[split.train], few)])
    expand = lambda samples: (samples[:, None] * versions + np.arange(versions)).reshape(-1)
    if settings.split.by in ("group", "image"):
        return expand(split.train), split.valid * versions + versions - 1, split.test
    if settings.split.by == "random":
        rows = expand(np.sort(np.concatenate([split.train, split.valid])))
        options = {"valid": settings.split.valid, "seed": settings.split.seed + member.fold, "member": number}
        return *splits.random(rows, **options), split.test
    raise ValueError(f"--config.split.by={settings.split.by}: there are group, image and random")


def unseen(dataset, trained, member) -> list[dict]:
    """What a network trained on the samples `trained` cannot know, as caveats."""
    found, visible = [], dataset.samples.visible[trained].any(axis=0)
    for name, columns in zip(dataset.sets or ("",), dataset.columns, strict=True):
        missing = np.flatnonzero(~visible[columns]) + 1
        if not len(missing):
            continue
        what = f"landmarks visible in no training image: {', '.join(map(str, missing))}; their"
        if len(missing) == len(visible[columns]):
            what = "no landmark is visible in any training image: there is nothing to learn, and"
        found.append(caveat(member, f"{what} predictions mean nothing", f"{name}/" if name else ""))
    return found


def seen_before(settings, member, source: Path | None) -> list[dict]:
    """Whether the network that one starts from may have been trained on what tests it, as caveats."""
    if source is None:
        return []
    theirs = configs.stage(config_of(source.parents[3]), source.parent.parent.name)
    split = lambda settings: [settings.split[key] for key in ("by", "folds", "seed")]
    mine, others = origins(settings.data), origins(theirs.data)
    shared = mine.keys() & others.keys()
    alike = split(theirs) == split(settings) and all(mine[origin] == others[origin] for origin in shared)
    if not shared or (alike and member_of(source.parent) == member):
        return []
    what = f"it starts from {source.parent}, which may have learnt from its test and validation images"
    return [caveat(member, f"{what}: the score may flatter")]


def origins(data) -> dict:
    """Where the images of a config's `data` come from, and what beside the split's settings tells how they are split."""
    found: dict = {}
    for one in [of_set(data, name) for name in data.get("sets") or {}] or [data]:
        own = one.get("images") or one.get("volume")
        if own:
            marks = str(one.get("boxes") or one.get("landmarks")).split(",")
            found[Path(own).absolute()] = [Path(mark).absolute() for mark in marks], one.get("group_by", "")
        else:
            for part in one.get("part", "").split("+"):
                found[part, one.get("seed", 0)] = one.get("count")
    return found


def caveat(member, what: str, image: str = "") -> dict:
    """What is to be known of a network's training, listed as the problems of the data are."""
    return {"image": image, "what": f"fold {member}: {what}", "where": "the training images"}


def anchors(settings, samples) -> dict:
    """The typical sizes of all boxes, by k-means, where the head has an `anchor_count`."""
    if "anchor_count" not in settings.head:
        return {}
    boxes = samples.boxes[samples.labels >= 0]
    extents = jnp.asarray(boxes[:, 2:] - boxes[:, :2])
    found, _ = box_ops.kmeans_anchors(extents, jax.random.key(settings.seed), count=settings.head.anchor_count)
    return {"anchors": np.asarray(found).tolist()}


def build(settings, facts: dict, flip=None, size=None):
    """The network (linen module), and the task that the steps need, of a stage's settings and its data's facts.

    With a `size` (H, W) the task trains on the frame shown at that size.
    """
    head = heads.build(settings.head, size=size or tuple(settings.data.size), **facts)
    network = models.Network(models.build(settings.model), head.layer)
    shown = size if settings.train.sizes else None
    augmentation = augment.build(settings.augment, channels=settings.channels, flip=flip, size=shown)
    plain = lambda batch: augment.plain(batch, channels=settings.channels)
    task = steps.Task(
        steps.computing_in(settings.train.dtype, network.apply),
        head.targets,
        head.loss,
        head.decode,
        augmentation.apply,
        plain,
        augmentation.versions,
    )
    return network, task


def initial(network, settings, key):
    """Fresh variables for images of the settings' size."""
    images = jnp.zeros((1, *settings.data.size, settings.channels))
    # It runs once: full optimisation of the many random generators takes four times as long, for the same numbers.
    quick = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    return jax.jit(network.init, compiler_options=quick)(key, images)


def devices_of(options) -> int:
    """How many devices train: all of all processes, or the first of this one's as `train.devices` says."""
    devices = options.devices or jax.device_count()
    if jax.process_count() > 1 and devices != jax.device_count():
        raise ValueError(
            f"--config.train.devices={devices}: {jax.process_count()} processes use all of their"
            f" {jax.device_count()} devices; leave it 0"
        )
    return devices


def parts_of(settings, samples) -> np.ndarray:
    """Of each sample (N,) the part that training shows as often as any other: its dataset, its group, or it is all one."""
    parts = {"set": samples.domain, "group": samples.group, "image": np.zeros_like(samples.group)}
    if settings.train.balance not in parts:
        raise ValueError(f"--config.train.balance={settings.train.balance}: there are {', '.join(parts)}")
    return parts[settings.train.balance]


def optimiser(settings, params, *, epochs, steps_per_epoch):
    """The optimiser of a stage's settings, with what is frozen, averaged and accumulated."""
    options = settings.train
    tx = optim.build(settings.optimizer, epochs=epochs, steps_per_epoch=steps_per_epoch / options.accumulate)
    if settings.freeze:
        tx = optim.freeze(tx, params, lambda path: re.match(settings.freeze, path) is not None)
    if options.ema:
        tx = optax.chain(tx, optim.average(options.ema))
    if options.accumulate > 1:
        tx = optax.MultiSteps(tx, options.accumulate).gradient_transformation()
    return tx


def train_member(settings, workdir, stage, member, dataset, source):
    """Trains one network to its last epoch, from its resume checkpoint where there is one."""
    folder = folder_of(workdir, stage, member)
    if checkpoint.note(folder / "last"):
        return
    samples, options = dataset.samples, settings.train
    if options.mixup and dataset.objects:
        raise ValueError(f"--config.train.mixup={options.mixup}: detectors learn nothing from mixed boxes; set it to 0")
    if dataset.objects and settings.split.by == "random":
        raise ValueError("--config.split.by=random divides photographs, whose objects belong together; set it to image")
    known = facts(dataset) | anchors(settings, samples)
    network, task = build(settings, known, dataset.flip)
    train_rows, valid_rows, _ = split_rows(settings, samples, member, task.versions)
    for key in ("train.patience", "optimizer.plateau"):
        section, name = key.split(".")
        if settings[section].get(name) and not len(valid_rows):
            raise ValueError(
                f"--config.{key}={settings[section][name]} needs validation images: raise --config.split.valid"
            )
    caveats = unseen(dataset, train_rows // task.versions, member) + seen_before(settings, member, source)
    if dataset.objects and not len(valid_rows):
        caveats.append(
            caveat(member, "no image is held back for validation: the threshold is chosen on training images")
        )
    for each in caveats:
        tell(f"[{stage}] {each['image']}{each['what']}")

    parts = parts_of(settings, samples)
    epoch_of = functools.partial(splits.epoch, train_rows, parts[train_rows // task.versions])
    draw = np.random.default_rng((settings.seed, member.seed))
    chosen, count = epoch_of(draw), len(train_rows)
    valid_rows = splits.balanced(valid_rows, parts[valid_rows // task.versions], draw)
    devices = devices_of(options)
    together = devices * (2 if options.mixup and devices > 1 else 1)  # neighbours that are mixed share a device
    batch = -(-min(options.batch_size, count) // together) * together
    steps_per_epoch = -(-count // batch)
    epochs = options.epochs or -(-options.steps // steps_per_epoch)
    if epochs * steps_per_epoch < options.accumulate:
        raise ValueError(f"--config.train.accumulate={options.accumulate}: {epochs * steps_per_epoch} batches are all")
    # The stage's name is part of the key, not its number: a stage trains alike alone and after another.
    key = jax.random.fold_in(jax.random.key(settings.seed), int.from_bytes(stage.encode()[:4], "big") % 2**31)
    key = jax.random.fold_in(key, member.seed)

    variables = initial(network, settings, key)
    tx = optimiser(settings, variables["params"], epochs=epochs, steps_per_epoch=steps_per_epoch)
    tasks = [build(settings, known, dataset.flip, size)[1] for size in sizes(settings)] or [task]
    runs = [steps.runner(one, tx, devices=devices, mixup=options.mixup) for one in tasks]
    run = runs[0]

    # Within an epoch: the next batch, and the sums of those before it.
    progress = {"epoch": 0, "best_valid": None, "best_epoch": 0, "seconds": 0.0, "batch": 0, "sums": None}
    resumed = checkpoint.note(folder / "resume")
    if resumed:
        like = {"state": steps.create(variables, tx), "best": variables}
        saved, _ = checkpoint.restore(folder / "resume", like)
        progress |= {name: resumed[name] for name in progress if name in resumed}
        state, best = run.put(jax.tree.map(jnp.asarray, saved["state"])), jax.tree.map(jnp.asarray, saved["best"])
        within = f" and {progress['batch']} batches" if progress["batch"] else ""
        tell(f"[{stage} fold {member}] resumed after epoch {progress['epoch']}{within}")
    else:
        if source or settings.weights:
            theirs, about = pretrained(settings, source)
            variables = take_over(variables, theirs, about, settings.init_skip)
        state, best = run.put(steps.create(variables, tx)), variables
    log = MetricsLog(
        workdir, stage, *member, after=progress["epoch"], tensorboard=options.tensorboard, quiet=not processes.lead()
    )

    feed = Feed(samples, versions=task.versions, batch=batch)
    data = run.put(feed.data)
    prepare = validation_input(settings, task)
    validate = jax.jit(functools.partial(steps.valid_step, task=task, prepare=prepare))
    measure = jax.jit(functools.partial(steps.statistics_step, task=task, prepare=prepare))

    def settled(state):
        """The variables to judge and to save: the parameters or their moving average, and the statistics of many batches.

        The running ones hold the last few batches' alone.
        """
        variables = state.variables | {"params": optim.averaged(state.opt_state, state.variables["params"])}
        if "batch_stats" not in variables:
            return variables
        return variables | {"batch_stats": feed.mean(measure, variables, chosen[:SETTLING])}

    started = saved_at = said_at = time.perf_counter()
    before, first = progress["seconds"], progress["epoch"]
    for epoch in range(first + 1, epochs + 1):
        began = time.perf_counter()
        draw = np.random.default_rng((settings.seed, member.seed, epoch))
        rows = steps.batches(epoch_of(draw), batch)
        of_size = draw.integers(len(runs), size=len(rows)) if len(runs) > 1 else None
        epoch_key = jax.random.fold_in(key, epoch)
        while progress["batch"] < len(rows):
            start = progress["batch"]
            span = slice(start, start + options.span)
            sizes_here = None if of_size is None else of_size[span]
            state, found = several(runs, sizes_here, state, data, rows[span], epoch_key, start, feed.stream)
            if epoch == 1 and not start and member == members(settings)[0] and processes.lead():
                # By then the first steps are made, which it would have held up.
                (shown_first,) = feed.shown(chosen[None, :16])
                draw_batch(workdir / "figures" / f"batch_{stage}.png", task, shown_first, chosen[:16], key, dataset)
            sums = jax.tree.map(operator.add, progress["sums"], list(found)) if start else list(found)
            progress |= {"batch": min(span.stop, len(rows)), "sums": sums}
            stop = processes.told_to_stop()
            late = time.perf_counter() - saved_at > options.checkpoint_seconds
            if stop or (late and progress["batch"] < len(rows)):
                save(folder / "resume", {"state": run.get(state), "best": best}, progress)
                saved_at = time.perf_counter()
            if stop:
                raise InterruptedError(f"{stage} fold {member}, epoch {epoch}: told to stop, and saved")
        found, trained = entries("train", {"loss": mean(*progress["sums"]) or 0.0}), time.perf_counter()
        progress |= {"batch": 0, "sums": None}
        train_loss = found["train/loss"]
        if not np.isfinite(train_loss):
            raise FloatingPointError(
                f"stage {stage}, fold {member}, epoch {epoch}: the training loss is {train_loss}; lower"
                " --config.optimizer.learning_rate or set --config.optimizer.clip=1.0"
            )
        here = run.get(state)
        found["valid/loss"] = None
        if len(valid_rows):
            calm = settled(here)
            parts = feed.each(validate, calm, valid_rows)
            sums = processes.agree(jax.tree.map(lambda *x: float(np.sum(x)), *parts))
            found |= entries("valid", {name: mean(*pair) for name, pair in sums.items()})
        valid_loss = found["valid/loss"]
        if valid_loss is not None and (progress["best_valid"] is None or valid_loss < progress["best_valid"]):
            progress |= {"best_valid": valid_loss, "best_epoch": epoch}
            best = jax.tree.map(jnp.copy, calm)
        if valid_loss is not None:
            state = state.replace(opt_state=optim.observe(state.opt_state, valid_loss))
            here = run.get(state)
        rates = {name: float(value) for name, value in optim.hyperparameters(here.opt_state).items()}
        log.write(
            epoch=epoch,
            **found,
            **rates,
            images_per_s=round(count / (trained - began), 1),
            seconds=round(before + time.perf_counter() - started, 1),
        )
        now = time.perf_counter()
        progress |= {"epoch": epoch, "seconds": before + now - started}
        if now - said_at > 5 or epoch in (1, epochs):
            said_at = now
            left = (now - started) / (epoch - first) * (epochs - epoch)
            say(stage, member, epoch, epochs, train_loss, valid_loss, rates, count / (now - began), left)
        if options.patience and epoch - progress["best_epoch"] >= options.patience and valid_loss is not None:
            tell(f"[{stage} fold {member}] no better since epoch {progress['best_epoch']}: stopped")
            break
        if now - saved_at > options.checkpoint_seconds and epoch < epochs:
            save(folder / "resume", {"state": here, "best": best}, progress)
            saved_at = time.perf_counter()

    log.close()
    last = settled(run.get(state))
    if progress["best_valid"] is None:
        best, progress["best_epoch"] = last, progress["epoch"]
    del progress["batch"], progress["sums"]
    about = progress | {"facts": known, "caveats": caveats, "images": len(np.unique(train_rows // task.versions))}
    if dataset.objects:
        rows = valid_rows if len(valid_rows) else train_rows
        chosen_on = samples.take(np.unique(rows // task.versions))
        about["threshold"] = detection.choose_threshold(task, best, chosen_on, dataset)
    save(folder / "best", best, about)
    save(folder / "last", last, about)
    if processes.lead():
        checkpoint.remove(folder / "resume")
    processes.wait()


def save(folder: Path, tree, note: dict) -> None:
    """A checkpoint, by the process that writes."""
    if processes.lead():
        checkpoint.save(folder, tree, note)


def tell(text: str) -> None:
    """A line on the screen, from the process that writes."""
    if processes.lead():
        print(text, flush=True)


def several(runs, of_size, state, data, rows, key, first, stream):
    """The batches `rows` by the only runner, or each by the runner of its size: -> state, (total, count).

    A size for each batch, not for each epoch, for the running statistics of batches must be those of all sizes.
    """
    if of_size is None:
        return runs[0].run(state, data, rows, key, first, stream)
    each = []
    for i, chosen in enumerate(of_size):
        state, found = runs[chosen].run(state, data, rows[i : i + 1], key, first + i, stream)
        each.append(found)
    return state, jax.tree.map(lambda *parts: sum(parts), *each)


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


def draw_batch(path: Path, task, data, rows, key, dataset) -> None:
    """Draws augmented training images with their points: most mistakes in data are visible at once."""
    batch = steps.gather(data, jnp.asarray(rows), task.versions)
    batch = jax.jit(task.augment)(jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(rows)), batch)
    images = np.round(255 * np.asarray(batch["images"])).astype(np.uint8).repeat(4, 1).repeat(4, 2)
    points = np.where(batch["visible"][..., None], 4 * np.asarray(batch["points"]), np.nan)
    boxes = [
        4 * np.asarray(b)[np.asarray(label) >= 0] for b, label in zip(batch["boxes"], batch["labels"], strict=True)
    ]
    own = [dataset.columns[domain] for domain in dataset.samples.domain[rows // task.versions]]
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = [report.overlay(image, p[c], boxes=b) for image, p, b, c in zip(images, points, boxes, own, strict=True)]
    report.contact_sheet(drawn, path)


def validation_input(settings, task):
    """How a validation batch becomes the network's input: as in training where versions are split at random."""
    if settings.split.by == "random" and task.versions > 1:
        keys = jax.random.key(settings.seed)
        return lambda batch: task.augment(jnp.broadcast_to(keys, len(batch["index"])), batch)
    return task.plain


def pretrained(settings, source: Path | None):
    """The variables to start from, another run's or pretrained ones, and their name."""
    if source:
        theirs, note = checkpoint.restore(source)
        return theirs, f"{source} (epoch {note['best_epoch']})"
    return models.read_weights(settings.model, settings.weights, channels=settings.channels), settings.weights


def take_over(variables, theirs, about: str, skip: str):
    """Variables with what fits taken from `theirs`, which `about` names; prints what was not."""
    params, fate = checkpoint.merge(variables["params"], theirs["params"], skip=skip)
    if not fate["loaded"]:
        raise ValueError(f"{about}: nothing in it fits this network: {'; '.join(fate['new'])}")
    tell(f"initialised from {about}: {len(fate['loaded'])} arrays")
    for kind in ("adapted", "new", "unused"):
        if fate[kind]:
            tell(f"  {kind}: {', '.join(fate[kind])}")
    merged = variables | {"params": params}
    if "batch_stats" in variables:
        merged["batch_stats"], _ = checkpoint.merge(variables["batch_stats"], theirs.get("batch_stats", {}), skip=skip)
    return merged


def describe(config, stage: str) -> str:
    """A table of a stage's network: each layer with its shapes and parameters, and their number."""
    settings = configs.stage(config, stage)
    known = known_facts(settings.data)
    if "anchor_count" in settings.head:
        known["anchors"] = [known["sizes"]] * settings.head.anchor_count  # as many as there will be
    network, _ = build(settings, known)
    images = jnp.zeros((1, *settings.data.size, settings.channels))
    table = nn.tabulate(network, jax.random.key(0), console_kwargs={"width": 130, "force_terminal": False})(images)
    params = jax.eval_shape(network.init, jax.random.key(0), images)["params"]
    return f"stage {stage}\n{table.strip()}\nparameters: {sum(x.size for x in jax.tree.leaves(params)):,}"


def say(stage, member, epoch, epochs, train_loss, valid_loss, rates, images_per_s, left):
    """One line of progress."""
    valid = "" if valid_loss is None else f" valid {valid_loss:.6f}"
    tell(
        f"[{stage} fold {member}] epoch {epoch}/{epochs} train {train_loss:.6f}{valid} rate {rates['learning_rate']:.2e}"
        f" momentum {rates['momentum']:.4f} {images_per_s:.0f} images/s {int(left // 60)}:{int(left % 60):02d} left"
    )
