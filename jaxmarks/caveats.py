"""What is to be known of a network's training before its numbers are believed: caveats, listed as problems of data are."""

from pathlib import Path

import numpy as np

from jaxmarks import checkpoint, runs
from jaxmarks import config as configs
from jaxmarks.data.loading import of_set


def of_training(
    settings, dataset, member, images: dict[str, list[str]], source: Path | None, before: dict
) -> list[dict]:
    """The caveats of a network: dicts of "image", "what" and "where".

    Args:
      settings: of its stage.
      dataset: what it is trained on.
      member: which network it is.
      images: those of its split by name, as `splits.names` has them.
      source: the checkpoint that it starts from, if any.
      before: what that one has `seen`.
    """
    trained = np.isin(dataset.samples.name, images["train"])
    found = unseen(dataset, trained, member) + seen_before(settings, member, images, source, before)
    if dataset.objects:
        found += of_objects(settings, dataset, member, trained, np.isin(dataset.samples.name, images["valid"]))
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


def of_names(samples, notes: list[dict], name: str = "") -> list[dict]:
    """Whether images that networks are scored on have the names of those they learnt from, of the dataset `name`, as caveats."""
    before = f"{name}/" if name else ""
    learnt = {image for note in notes for part in ("train", "valid") for image in note["data"]["images"][part]}
    again = sorted({image for image in samples.name.tolist() if before + image in learnt})
    if not again:
        return []
    what = f"{len(again)} images have the names of images that were trained on ({first(again)}): if they are those, the score flatters"
    return [{"image": again[0], "what": what, "where": "the training images"}]


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


def seen_before(settings, member, images: dict[str, list[str]], source: Path | None, before: dict) -> list[dict]:
    """Whether the network that one starts from, or one before that, has learnt from what tests it, as caveats.

    Test images must not have validated it either; validation images may have, and those that are trained on, too, as in a
    random split of versions, are no worse for it.
    """
    held = {"test": set(images["test"]), "validation": {*images["valid"]} - {*images["train"]}}
    scored = "test" if held["test"] else "validation"
    found = []
    for part, others in (("test", ("train", "valid")), ("validation", ("train",))):
        again: set[str] = set()
        for origin, names in by_origin(settings.data, sorted(held[part])).items():
            theirs = before.get(origin, {})
            again |= {name for other in others for name in theirs.get(other, ())}.intersection(names)
        if again:
            so = "the score may flatter" if part == scored else "its best epoch may be another"
            what = f"{len(again)} of its {part} images ({first(again)}) may have been learnt from before: {so}"
            found.append(caveat(member, f"it starts from {source.parent if source else ''}, and {what}"))
    return found


def seen(source: Path | None) -> dict[str, dict[str, list[str]]]:
    """By origin the images that a checkpoint's network, and those before it, had for "train" and for "valid"."""
    if source is None:
        return {}
    workdir, stage, _ = runs.whose(source)
    data, note = configs.stage(runs.config_of(workdir), stage).data, checkpoint.note(source)
    if note is None:
        raise FileNotFoundError(f"{source}: no trained network")
    found: dict[str, dict[str, list[str]]] = dict(note["before"])
    for part in ("train", "valid"):
        for origin, names in by_origin(data, note["data"]["images"][part]).items():
            theirs = found.get(origin, {})
            found[origin] = theirs | {part: sorted({*theirs.get(part, ()), *names})}
    return found


def by_origin(data, names: list[str]) -> dict[str, list[str]]:
    """The images of a config's `data` by where they come from (`origins`)."""
    found: dict[str, list[str]] = {}
    for name in data.get("sets") or ("",):
        before = f"{name}/" if name else ""
        for origin in origins(of_set(data, name)):
            found.setdefault(origin, []).extend(each.removeprefix(before) for each in names if each.startswith(before))
    return found


def origins(one) -> list[str]:
    """Where the images of one dataset come from: a folder, or a volume or drawn parts with the seed of the draws."""
    if one.get("images"):
        return [str(Path(one.images).resolve())]
    volume = [str(Path(one.volume).resolve())] if one.get("volume") else []
    return [f"{what}, seed {one.get('seed', 0)}" for what in volume or one.get("part", "").split("+")]


def first(names) -> str:
    """The first three names, and whether there are more."""
    return ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")


def caveat(member, what: str, image: str = "") -> dict:
    """One caveat, in the form of a problem of the data."""
    return {"image": image, "what": f"fold {member}: {what}", "where": "the training images"}
