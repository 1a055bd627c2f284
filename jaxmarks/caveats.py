"""What is to be known of a network's training before its numbers are believed: caveats, listed as problems of data are."""

from pathlib import Path

import numpy as np

from jaxmarks import config as configs
from jaxmarks import runs
from jaxmarks.data.loading import of_set


def of_training(settings, dataset, member, source: Path | None, trained: np.ndarray, *, validated: bool) -> list[dict]:
    """The caveats of a network: dicts of "image", "what" and "where".

    Args:
      settings: of its stage.
      dataset: what it is trained on.
      member: which network it is.
      source: the checkpoint that it starts from, if any.
      trained: the samples that it is trained on.
      validated: whether images are held back for its validation.
    """
    found = unseen(dataset, trained, member) + seen_before(settings, member, source)
    if dataset.objects and not validated:
        found.append(caveat(member, "no image is held back for validation: the threshold is chosen on training images"))
    return found


def of_notes(notes: list[dict]) -> list[dict]:
    """The caveats in the notes that are saved with networks."""
    return [each for note in notes for each in note.get("caveats", ())]


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
    workdir, stage, other = runs.whose(source)
    theirs = configs.stage(runs.config_of(workdir), stage)
    split = lambda settings: [settings.split[key] for key in ("by", "folds", "seed")]
    mine, others = origins(settings.data), origins(theirs.data)
    shared = mine.keys() & others.keys()
    alike = split(theirs) == split(settings) and all(mine[origin] == others[origin] for origin in shared)
    if not shared or (alike and other == member):
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
    """One caveat, in the form of a problem of the data."""
    return {"image": image, "what": f"fold {member}: {what}", "where": "the training images"}
