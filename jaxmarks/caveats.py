"""What is to be known of a network's training before its numbers are believed: caveats, listed as problems of data are."""

from pathlib import Path

import numpy as np

from jaxmarks import checkpoint
from jaxmarks.data import splits
from jaxmarks.data.samples import problem

# What is said of images that networks may have learnt from, by what tells it, the surest first.
LEARNT = {
    "content": "were trained on ({}): the score flatters",
    "name": "have the names of images that were trained on ({}): if they are those, the score flatters",
    "specimen": "are of specimens that others which were trained on are called as ({}): the score may flatter",
}


def of_training(settings, dataset, member, data: dict, source: Path | None, before: dict[str, list[str]]) -> list[dict]:
    """The caveats of a network, each a `samples.problem`.

    Args:
      settings: of its stage.
      dataset: what it is trained on.
      member: which network it is.
      data: what is saved of its split (`splits.saved`).
      source: the checkpoint that it starts from, if any.
      before: what that one has `seen`.
    """
    trained, held = (np.isin(dataset.samples.name, data["images"][part]) for part in ("train", "valid"))
    found = unseen(dataset, trained, member) + seen_before(member, data, source, before)
    if dataset.objects:
        found += of_objects(settings, dataset, member, trained, held)
    return found


def of_objects(settings, dataset, member, trained, held) -> list[dict]:
    """What a detector cannot know, trained on the samples `trained` and chosen on the samples `held`, as caveats."""
    samples, what = dataset.samples, []
    if not held.any():
        what.append(
            "no image is held back for validation: the threshold is chosen on training images; raise --config.split.valid"
        )
    elif not (samples.labels[held] >= 0).any():
        what.append(
            "no validation image shows an object: the threshold is chosen on training images; raise --config.split.valid"
        )
    taught = np.unique(samples.labels[trained])
    if missing := [name for number, name in enumerate(dataset.classes) if number not in taught]:
        what.append(f"no training image shows an object of class {', '.join(missing)}: none is ever found")
    if settings.channels == 1 and coloured(samples.images[np.flatnonzero(trained)[:16]]):
        what.append(
            "the images are coloured, the network sees their luminance: --config.channels=3 shows it the colours"
        )
    return [caveat(member, each) for each in what]


def coloured(images) -> bool:
    """Whether one pixel in a hundred of uint8 images (N, H, W, C) differs by 32 or more between its channels."""
    return bool(len(images)) and float(np.mean(np.ptp(images, axis=-1) >= 32)) >= 0.01


def of_notes(notes: list[dict]) -> list[dict]:
    """The caveats in the notes that are saved with networks."""
    return [each for note in notes for each in note.get("caveats", ())]


def of_test(fold: int, images: dict[str, list[str]]) -> list[dict]:
    """Whether a fold is scored on images that chose its network, for want of others, as caveats."""
    if images["test"]:
        return []
    return [caveat(fold, "no image is held back for a test: it is scored on those that chose its best epoch")]


def of_images(samples, notes: list[dict]) -> list[dict]:
    """Whether networks that score images may have learnt from them, or from others of their specimens, as caveats."""
    told, found = set[str](), []
    learnt = {key: set[str]() for key in LEARNT}
    for note in notes:
        for key, parts in splits.parts_of(note["data"], samples).items():
            learnt[key].update(samples.name[np.isin(parts, ("train", "valid"))].tolist())
    for key, what in LEARNT.items():
        if again := learnt[key] - told:
            what = f"{len(again)} images {what.format(first(again))}"
            found.append(problem(min(again), what, "the training images"))
        told |= again
    return found


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


def seen_before(member, data: dict, source: Path | None, before: dict[str, list[str]]) -> list[dict]:
    """Whether the network that one starts from, or one before that, has learnt from what tests it, as caveats.

    Test images must not have validated it either; validation images may have, and those that are trained on, too, as in a
    random split of versions, are no worse for it.
    """
    images, contents = data["images"], data["contents"]
    held = {"test": set(images["test"]), "validation": {*images["valid"]} - {*images["train"]}}
    scored = "test" if held["test"] else "validation"
    found = []
    for part, others in (("test", ("train", "valid")), ("validation", ("train",))):
        theirs = {content for other in others for content in before.get(other, ())}
        if again := [name for name in held[part] if contents[name] in theirs]:
            so = "the score may flatter" if part == scored else "its best epoch may be another"
            what = f"{len(again)} of its {part} images ({first(again)}) have been learnt from before: {so}"
            found.append(caveat(member, f"it starts from {source.parent if source else ''}, and {what}"))
    return found


def seen(source: Path | None) -> dict[str, list[str]]:
    """The contents of the images that a checkpoint's network, and those before it, had for "train" and for "valid"."""
    if source is None:
        return {}
    note = checkpoint.note(source)
    if note is None:
        raise FileNotFoundError(f"{source}: no trained network")
    data, before = note["data"], note["before"]
    mine = lambda part: {data["contents"][name] for name in data["images"][part]}
    return {part: sorted(mine(part).union(before.get(part, ()))) for part in ("train", "valid")}


def first(names) -> str:
    """The first three names, and whether there are more."""
    return ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")


def caveat(member, what: str, image: str = "") -> dict:
    """One caveat, in the form of a problem of the data."""
    return problem(image, f"fold {member}: {what}", "the training images")
