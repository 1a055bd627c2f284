"""What is to be known of a network's training before its numbers are believed: caveats, listed as problems of data are."""

from pathlib import Path

import numpy as np

from jaxmarks import checkpoint, runs
from jaxmarks import config as configs
from jaxmarks.data.loading import of_set


def of_training(settings, dataset, member, source: Path | None, images: dict[str, list[str]]) -> list[dict]:
    """The caveats of a network: dicts of "image", "what" and "where".

    Args:
      settings: of its stage.
      dataset: what it is trained on.
      member: which network it is.
      source: the checkpoint that it starts from, if any.
      images: those of its split by name, as `splits.names` has them.
    """
    trained = np.isin(dataset.samples.name, images["train"])
    found = unseen(dataset, trained, member) + seen_before(settings, member, source, images)
    if dataset.objects and not images["valid"]:
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


def seen_before(settings, member, source: Path | None, images: dict[str, list[str]]) -> list[dict]:
    """Whether the network that one starts from, or one before that, has learnt from what tests it, as caveats.

    A test image must not have validated another one either; a validation image may have.
    """
    if source is None:
        return []
    before, again = seen(source), set[str]()
    for part, others in (("test", ("train", "valid")), ("valid", ("train",))):
        for origin, names in by_origin(settings.data, images[part]).items():
            known = before.get(origin, {})
            theirs = {name for other in others for name in (known or {}).get(other, ())}
            again |= set(names) if known is None else theirs.intersection(names)
    if not again:
        return []
    some = ", ".join(sorted(again)[:3]) + (", ..." if len(again) > 3 else "")
    what = f"it starts from {source.parent}, and {len(again)} of its test and validation images ({some})"
    return [caveat(member, f"{what} may have been learnt from before: the score may flatter")]


def seen(source: Path | None) -> dict[str, dict[str, list[str]] | None]:
    """By origin the images that a checkpoint's network, and those before it, had for "train" and for "valid".

    None stands for all of an origin: an earlier version of this library did not save which.
    """
    if source is None:
        return {}
    workdir, stage, _ = runs.whose(source)
    data, note = configs.stage(runs.config_of(workdir), stage).data, checkpoint.note(source) or {}
    found: dict[str, dict[str, list[str]] | None] = dict(note.get("before", {}))
    if "data" not in note:
        return found | dict.fromkeys(by_origin(data, []))
    for part in ("train", "valid"):
        for origin, names in by_origin(data, note["data"]["images"][part]).items():
            if (known := found.get(origin, {})) is not None:
                found[origin] = known | {part: sorted({*known.get(part, []), *names})}
    return found


def by_origin(data, names: list[str]) -> dict[str, list[str]]:
    """The images of a config's `data` by where they come from: a folder, or a volume or part with the seed of its draws."""
    found: dict[str, list[str]] = {}
    for name in data.get("sets") or ("",):
        one, before = of_set(data, name), f"{name}/" if name else ""
        path = lambda key, one=one: str(Path(one[key]).absolute()) if one.get(key) else ""
        drawn = [path("volume")] if path("volume") else one.get("part", "").split("+")
        for origin in [path("images")] if path("images") else [f"{what}, seed {one.get('seed', 0)}" for what in drawn]:
            found.setdefault(origin, []).extend(each.removeprefix(before) for each in names if each.startswith(before))
    return found


def caveat(member, what: str, image: str = "") -> dict:
    """One caveat, in the form of a problem of the data."""
    return {"image": image, "what": f"fold {member}: {what}", "where": "the training images"}
