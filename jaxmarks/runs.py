"""A run's folder: its lock and config, its stages, folds and networks, and where their checkpoints lie."""

import contextlib
import fcntl
import re
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmarks import atomic, checkpoint
from jaxmarks import config as configs

# Entries of `config.differences` that may change between two starts of one run: the data's paths, since the data's
# names, groups, landmarks and boxes are compared instead (`Samples.digest`), the folds that are trained, and keys without
# effect on the networks.
MAY_CHANGE = re.compile(
    r"(stage\.[^.]+\.)?(data\.(sets\.[^.]+\.)?(images|landmarks|boxes|volume|keep)|baselines"
    r"|split\.run|train\.(checkpoint_seconds|tensorboard)):"
)


class Member(NamedTuple):
    """One network of a run: a fold, and a number in the fold's ensemble (0 for the first)."""

    fold: int
    number: int = 0

    def __str__(self):
        return f"{self.fold}.{self.number}" if self.number else f"{self.fold}"

    @property
    def seed(self) -> int:
        """The seed of this network's random numbers; that of a fold's first network is the same without an ensemble."""
        return self.fold + 2**16 * self.number


def stages(config) -> list[str]:
    """Returns the run's stages by name, without `pretrain` if the run starts from another run's network instead."""
    replaced = bool(config.init_from) and len(config.stages) > 1
    return [name for name in config.stages if not (replaced and name == "pretrain")]


def folds(settings) -> list[int]:
    """Returns the folds that a stage trains: `split.run`, or all if that is empty."""
    return list(settings.split.run) or list(range(settings.split.folds))


def members(settings, fold: int | None = None) -> list[Member]:
    """Returns the networks of a fold, which predict as an ensemble, or of all folds that are trained."""
    chosen = folds(settings) if fold is None else [fold]
    return [Member(each, number) for each in chosen for number in range(settings.train.ensemble)]


@contextlib.contextmanager
def locked(folder: Path):
    """Locks a folder against other commands that would write to it; raises ValueError if one already does."""
    folder = atomic.folder(folder)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{folder}: another command is writing to this folder; wait until it ends, stop it, or name"
                " another folder"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield


def begun(workdir: Path) -> bool:
    """Whether a run in the folder has begun to train."""
    return any((Path(workdir) / name).exists() for name in ("checkpoints", "metrics.jsonl"))


def refuse_another(config, workdir: Path) -> None:
    """Raises ValueError if a run with another config has begun in the workdir, apart from keys that `MAY_CHANGE`."""
    if not begun(workdir):
        return
    if differences := [d for d in configs.differences(config_of(workdir), config) if not MAY_CHANGE.match(d)]:
        raise ValueError(
            f"{workdir} holds a run with another config (its value / the new value): {'; '.join(differences)}. Name"
            " another --workdir, or delete this folder"
        )


def config_of(workdir: Path):
    """Returns the config of the run in a folder."""
    return configs.load(Path(workdir) / "config.json")


def settings_of(workdir: Path):
    """Returns the settings of the last stage of the run in a folder."""
    config = config_of(workdir)
    return configs.stage(config, stages(config)[-1])


def folder_of(workdir: Path, stage: str, member: Member) -> Path:
    """Returns the folder of one network's checkpoints: `best`, `last`, and `resume` while it trains."""
    return Path(workdir) / "checkpoints" / stage / f"fold{member}"


def restore(workdir: Path, stage: str, members: list[Member]) -> tuple[list, list[dict]]:
    """Returns trained networks' variables, on the device, and their notes; raises ValueError if one is damaged."""
    folders = [folder_of(workdir, stage, member) / "best" for member in members]
    checkpoints = [checkpoint.restore(folder) for folder in folders]
    for folder, (_, note) in zip(folders, checkpoints, strict=True):
        if "facts" not in note:
            raise ValueError(f"{folder / 'note.json'}: the key 'facts' is missing; copy the run's folder again")
    return [jax.tree.map(jnp.asarray, variables) for variables, _ in checkpoints], [note for _, note in checkpoints]


def seconds(config, workdir: Path) -> float:
    """Returns the training time of all networks of a run, over all stages, in seconds."""
    folders = [folder_of(workdir, stage, m) for stage in stages(config) for m in members(configs.stage(config, stage))]
    return round(sum((checkpoint.note(folder / "best") or {}).get("seconds", 0.0) for folder in folders), 1)


def source_of(config, workdir: Path, earlier: list[str], member: Member) -> Path | None:
    """Returns the checkpoint that a network starts from, or None.

    It is that of the previous stage (the last of `earlier`), else of the last stage that `init_from` has trained.
    """
    if earlier:
        return pick(workdir, earlier[-1], member)
    if config.init_from:
        run, names = Path(config.init_from), stages(config_of(config.init_from))
        ended = [name for name in names if trained(run, name)]
        return pick(run, (ended or names)[-1], member)
    return None


def trained(workdir: Path, stage: str) -> dict[Member, Path]:
    """Returns the `best` checkpoint of each network of a stage that has been trained."""
    folder = folder_of(workdir, stage, Member(0)).parent
    member = lambda name: Member(*map(int, name.removeprefix("fold").split(".")))
    return {member(path.parent.name): path for path in folder.glob("fold*/best")}


def pick(workdir: Path, stage: str, member: Member) -> Path:
    """Returns the `best` checkpoint of a network in a stage.

    If that network was not trained there, takes its fold's first, else the first of the lowest fold.
    """
    if not (checkpoints := trained(workdir, stage)):
        folder = folder_of(workdir, stage, member).parent
        raise FileNotFoundError(
            f"{folder}: it has no trained network; let that run end first, or change --config.init_from"
        )
    return next(checkpoints[one] for one in (member, Member(member.fold), min(checkpoints)) if one in checkpoints)
