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
    caveats = unseen(dataset, trained, member) + seen_before(member, dataset.samples, data, source, earlier)
    if dataset.objects:
        caveats += of_objects(settings, dataset, member, trained, held)
    return caveats


def of_objects(settings, dataset, member, trained, valid) -> list[dict]:
    """Returns caveats about a detector's data.

    They concern validation samples (the mask `valid`) without objects, on which no threshold can be chosen, and classes
    or colours that the network does not see in training (the mask `trained`).
    """
    samples, messages = dataset.samples, []
    if not valid.any():
        messages.append(
            "no image is held out for validation: the threshold is chosen on training images;"
            " raise --config.split.valid"
        )
    elif not (samples.labels[valid] >= 0).any():
        messages.append(
            "no validation image shows an object: the threshold is chosen on training images;"
            " raise --config.split.valid"
        )
    trained_classes = np.unique(samples.labels[trained])
    if missing := [name for number, name in enumerate(dataset.classes) if number not in trained_classes]:
        messages.append(f"no training image shows an object of class {', '.join(missing)}: the network cannot find any")
    if settings.channels == 1 and coloured(samples.images[np.flatnonzero(trained)[:16]]):
        messages.append(
            "the images are coloured, but the network sees only their luminance: --config.channels=3 gives"
            " it the colours"
        )
    return [caveat(member, message) for message in messages]


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
    training_splits = [split for note in notes for split in (note["data"], *before(note))]
    caveats = []
    for kind, is_leaked in leaked(samples, training_splits, ("train", "valid")).items():
        if leaks := set(names[is_leaked].tolist()) - {""}:
            caveats.append(
                problem(min(leaks), f"{len(leaks)} images {LEAKAGE[kind].format(first(leaks))}", "the training images")
            )
    return caveats


def of_name_matches(names) -> list[dict]:
    """Returns a caveat about images (`names`) matched to those of the run by name alone, since their files differ."""
    if not (files := set(names.tolist())):
        return []
    message = (
        f"{len(files)} images have the names of images of the run but different file contents ({first(files)}): treated"
        " as those images saved again; rename them if they are different photographs"
    )
    return [problem(min(files), message, "the images")]


def leaked(samples, records: list[dict], parts: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Marks samples (N,) that lie in `parts` of any split in `records`, each under the strongest evidence for it."""
    matches = [splits.match_parts(one, samples) for one in records]
    masks, is_reported = {}, np.zeros(len(samples), bool)
    for kind in LEAKAGE:
        is_leaked = np.any([np.isin(one[kind], parts) for one in matches], axis=0) if matches else is_reported
        masks[kind], is_reported = is_leaked & ~is_reported, is_leaked | is_reported
    return masks


def before(note: dict) -> list[dict]:
    """Returns the saved splits of the earlier networks that one started from; [] if its version did not save them."""
    return earlier_splits if isinstance(earlier_splits := note.get("before"), list) else []


def unseen(dataset, trained, member) -> list[dict]:
    """Returns caveats about landmarks that are visible in none of the training samples (the mask `trained`)."""
    caveats, visible = [], dataset.samples.visible[trained].any(axis=0)
    for name, columns in zip(dataset.sets or ("",), dataset.columns, strict=True):
        missing = np.flatnonzero(~visible[columns]) + 1
        if not len(missing):
            continue
        message = f"landmarks visible in no training image: {', '.join(map(str, missing))}; their"
        if len(missing) == len(visible[columns]):
            message = "no landmark is visible in any training image: there is nothing to learn, and"
        caveats.append(caveat(member, f"{message} predictions mean nothing", f"{name}/" if name else ""))
    return caveats


def seen_before(member, samples, data: dict, source: Path | None, earlier: list[dict]) -> list[dict]:
    """Returns caveats about held-out images that the network's starting point, or one before that, was trained on.

    Test images must not have been validation images of those networks either; validation images may have been.
    Validation images that are also trained on here, as in a random split of versions, are not reported: they are no
    worse for it.
    """
    images = data["images"]
    trained, valid, test = (np.isin(samples.name, images[part]) for part in ("train", "valid", "test"))
    scored_part = "test" if images["test"] else "validation"
    caveats = []
    for part, held, their_parts in (("test", test, ("train", "valid")), ("validation", valid & ~trained, ("train",))):
        consequence = "the score may be too optimistic" if part == scored_part else "its best epoch may be badly chosen"
        leaks = leaked(samples, earlier, their_parts)
        for kind, message in AGAIN.items():
            if names := set(samples.name[leaks[kind] & held].tolist()):
                message = f"{len(names)} of its {part} images ({first(names)}) {message} {consequence}"
                caveats.append(caveat(member, f"it starts from {source.parent if source else ''}, and {message}"))
    return caveats


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
