"""Caveats: reasons to doubt a network's scores, reported in the same form as problems with the data."""

from pathlib import Path

import numpy as np

from jaxmarks import checkpoint
from jaxmarks.data import splits
from jaxmarks.data.samples import problem

# The caveat about images that networks may have been trained on, by kind of evidence, the strongest first.
LEAKAGE = {
    "content": "are among the training and validation images ({}): the score is too optimistic",
    "name": "have the names of training or validation images ({}): if they are the same, the score is too optimistic",
    "specimen": "show specimens named like those of training or validation images ({}): the score may be too"
    " optimistic",
}
# The caveat about images that an earlier network, from which training started, may have been trained on.
AGAIN = {
    "content": "were used in earlier training:",
    "name": "have the names of images used in earlier training; if they are the same,",
}


def of_training(settings, dataset, member, data: dict, source: Path | None, earlier: list[dict]) -> list[dict]:
    """Returns the caveats of a network's training, each a `samples.problem`.

    Args:
      settings: the settings of its stage.
      dataset: the dataset that it is trained on.
      member: which network it is.
      data: its split, as saved (`splits.split_record`).
      source: the checkpoint that it starts from, if any.
      earlier: the splits of that checkpoint and of those before it, from `seen`.
    """
    trained, held = (np.isin(dataset.samples.name, data["images"][part]) for part in ("train", "valid"))
    found = unseen(dataset, trained, member) + seen_before(member, dataset.samples, data, source, earlier)
    if dataset.objects:
        found += of_objects(settings, dataset, member, trained, held)
    return found


def of_objects(settings, dataset, member, trained, held) -> list[dict]:
    """Returns caveats about a detector's data.

    They concern validation samples (the mask `held`) without objects, on which no threshold can be chosen, and classes
    or colours that the network does not see in training (the mask `trained`).
    """
    samples, what = dataset.samples, []
    if not held.any():
        what.append(
            "no image is held out for validation: the threshold is chosen on training images;"
            " raise --config.split.valid"
        )
    elif not (samples.labels[held] >= 0).any():
        what.append(
            "no validation image shows an object: the threshold is chosen on training images;"
            " raise --config.split.valid"
        )
    taught = np.unique(samples.labels[trained])
    if missing := [name for number, name in enumerate(dataset.classes) if number not in taught]:
        what.append(f"no training image shows an object of class {', '.join(missing)}: the network cannot find any")
    if settings.channels == 1 and coloured(samples.images[np.flatnonzero(trained)[:16]]):
        what.append(
            "the images are coloured, but the network sees only their luminance: --config.channels=3 gives"
            " it the colours"
        )
    return [caveat(member, each) for each in what]


def coloured(images) -> bool:
    """Whether at least 1 % of the pixels of uint8 images (N, H, W, C) differ by 32 or more between their channels."""
    return bool(len(images)) and float(np.mean(np.ptp(images, axis=-1) >= 32)) >= 0.01


def of_notes(notes: list[dict]) -> list[dict]:
    """Returns the caveats in the notes of networks."""
    return [each for note in notes for each in note.get("caveats", ())]


def of_test(fold: int, images: dict[str, list[str]]) -> list[dict]:
    """Returns a caveat if the fold has no test images, so that it is scored on its validation images."""
    if images["test"]:
        return []
    return [
        caveat(
            fold, "no image is held out for testing: it is scored on the validation images, which chose its best epoch"
        )
    ]


def of_leakage(samples, notes: list[dict], names: np.ndarray) -> list[dict]:
    """Returns caveats about data leakage: samples to score that networks may have learnt from, or from their specimens.

    This includes what networks learnt in earlier stages, and in runs from which they start. The samples must have the
    names that training would give them (`trained.with_training_names`). The caveats show `names` (N,) instead, and
    leave out samples whose entry there is empty.
    """
    known = [data for note in notes for data in (note["data"], *before(note))]
    found = []
    for key, mine in leaked(samples, known, ("train", "valid")).items():
        if again := set(names[mine].tolist()) - {""}:
            found.append(
                problem(min(again), f"{len(again)} images {LEAKAGE[key].format(first(again))}", "the training images")
            )
    return found


def of_name_matches(names) -> list[dict]:
    """Returns a caveat about images (`names`) matched to those of the run by name alone, since their files differ."""
    if not (again := set(names.tolist())):
        return []
    what = (
        f"{len(again)} images have the names of images of the run but different file contents ({first(again)}): treated"
        " as those images saved again; rename them if they are different photographs"
    )
    return [problem(min(again), what, "the images")]


def leaked(samples, known: list[dict], parts: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Marks samples (N,) that lie in `parts` of any split in `known`, each under the strongest evidence for it."""
    each = [splits.match_parts(one, samples) for one in known]
    found, told = {}, np.zeros(len(samples), bool)
    for key in LEAKAGE:
        mine = np.any([np.isin(one[key], parts) for one in each], axis=0) if each else told
        found[key], told = mine & ~told, mine | told
    return found


def before(note: dict) -> list[dict]:
    """Returns the saved splits of the earlier networks that one started from; [] if its version did not save them."""
    return found if isinstance(found := note.get("before"), list) else []


def unseen(dataset, trained, member) -> list[dict]:
    """Returns caveats about landmarks that are visible in none of the training samples (the mask `trained`)."""
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
    """Returns caveats about held-out images that the network's starting point, or one before that, was trained on.

    Test images must not have been validation images of those networks either; validation images may have been.
    Validation images that are also trained on here, as in a random split of versions, are not reported: they are no
    worse for it.
    """
    images = data["images"]
    trained, valid, test = (np.isin(samples.name, images[part]) for part in ("train", "valid", "test"))
    scored = "test" if images["test"] else "validation"
    found = []
    for part, held, others in (("test", test, ("train", "valid")), ("validation", valid & ~trained, ("train",))):
        so = "the score may be too optimistic" if part == scored else "its best epoch may be badly chosen"
        theirs = leaked(samples, earlier, others)
        for key, what in AGAIN.items():
            if again := set(samples.name[theirs[key] & held].tolist()):
                what = f"{len(again)} of its {part} images ({first(again)}) {what} {so}"
                found.append(caveat(member, f"it starts from {source.parent if source else ''}, and {what}"))
    return found


def seen(source: Path | None) -> list[dict]:
    """Returns the saved splits of a checkpoint's network and of those before it; [] without a checkpoint."""
    if source is None:
        return []
    note = checkpoint.note(source)
    if note is None:
        raise FileNotFoundError(f"{source}: no trained network")
    return [note["data"], *before(note)]


def first(names) -> str:
    """Joins the first three names in sorted order; "..." stands for more."""
    return ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")


def caveat(member, what: str, image: str = "") -> dict:
    """Returns one caveat, in the form of a problem with the data."""
    return problem(image, f"fold {member}: {what}", "the training images")
