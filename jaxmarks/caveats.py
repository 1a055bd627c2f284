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
# And of images that a network before may have learnt from.
AGAIN = {
    "content": "have been learnt from before",
    "name": "are called as images that have been learnt from before, and if they are those",
}


def of_training(settings, dataset, member, data: dict, source: Path | None, earlier: list[dict]) -> list[dict]:
    """The caveats of a network, each a `samples.problem`.

    Args:
      settings: of its stage.
      dataset: what it is trained on.
      member: which network it is.
      data: what is saved of its split (`splits.saved`).
      source: the checkpoint that it starts from, if any.
      earlier: what that one has `seen`.
    """
    trained, held = (np.isin(dataset.samples.name, data["images"][part]) for part in ("train", "valid"))
    found = unseen(dataset, trained, member) + seen_before(member, dataset.samples, data, source, earlier)
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


def of_images(samples, notes: list[dict], names: np.ndarray) -> list[dict]:
    """Whether networks that score samples may have learnt from them, or from others of their specimens.

    As caveats, also of what they learnt in earlier stages and in runs from which they start. The samples are named as the
    training would name them, in the caveats by `names` (N,), those with an empty one not at all.
    """
    known = [data for note in notes for data in (note["data"], *before(note))]
    found = []
    for key, mine in learnt(samples, known, ("train", "valid")).items():
        if again := set(names[mine].tolist()) - {""}:
            found.append(
                problem(min(again), f"{len(again)} images {LEARNT[key].format(first(again))}", "the training images")
            )
    return found


def of_names(names) -> list[dict]:
    """That images, by name, are taken for those of the training which they are called as, though their files are others."""
    if not (again := set(names.tolist())):
        return []
    what = f"{len(again)} images are called as images of the training, whose files were others ({first(again)}): taken for those"
    return [problem(min(again), f"{what}, saved anew; rename them where they are not", "the images")]


def learnt(samples, known: list[dict], parts: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Which of the samples (N,) are in these parts of any of the splits `known`, each by the surest that tells it."""
    each = [splits.parts_of(one, samples) for one in known]
    found, told = {}, np.zeros(len(samples), bool)
    for key in LEARNT:
        mine = np.any([np.isin(one[key], parts) for one in each], axis=0) if each else told
        found[key], told = mine & ~told, mine | told
    return found


def before(note: dict) -> list[dict]:
    """What is saved of the splits of the networks before one, of earlier stages and runs; older versions did not save it."""
    return found if isinstance(found := note.get("before"), list) else []


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


def seen_before(member, samples, data: dict, source: Path | None, earlier: list[dict]) -> list[dict]:
    """Whether the network that one starts from, or one before that, has learnt from what tests it, as caveats.

    Test images must not have validated it either; validation images may have, and those that are trained on, too, as in a
    random split of versions, are no worse for it.
    """
    images = data["images"]
    trained, valid, test = (np.isin(samples.name, images[part]) for part in ("train", "valid", "test"))
    scored = "test" if images["test"] else "validation"
    found = []
    for part, held, others in (("test", test, ("train", "valid")), ("validation", valid & ~trained, ("train",))):
        so = "the score may flatter" if part == scored else "its best epoch may be another"
        theirs = learnt(samples, earlier, others)
        for key, what in AGAIN.items():
            if again := set(samples.name[theirs[key] & held].tolist()):
                what = f"{len(again)} of its {part} images ({first(again)}) {what}, {so}"
                found.append(caveat(member, f"it starts from {source.parent if source else ''}, and {what}"))
    return found


def seen(source: Path | None) -> list[dict]:
    """What is saved of the splits of a checkpoint's network, and of those before it."""
    if source is None:
        return []
    note = checkpoint.note(source)
    if note is None:
        raise FileNotFoundError(f"{source}: no trained network")
    return [note["data"], *before(note)]


def first(names) -> str:
    """The first three names, and whether there are more."""
    return ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")


def caveat(member, what: str, image: str = "") -> dict:
    """One caveat, in the form of a problem of the data."""
    return problem(image, f"fold {member}: {what}", "the training images")
