"""Who is trained on and who is held out: folds by group, and the beetle paper's random split; and how often each is shown."""

from typing import NamedTuple

import numpy as np

from jaxmarks.data.samples import DRAWN, Samples


class Split(NamedTuple):
    """Indices of samples; of `of_member` rows (sample x versions + version) of training and validation."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def by_group(
    group: np.ndarray,
    *,
    folds: int,
    fold: int,
    valid: float,
    seed: int,
    member: int = 0,
    kind: np.ndarray | None = None,
) -> Split:
    """The split of one fold, no group being divided.

    The groups are shuffled by the seed and dealt into `folds` parts whose sizes differ by one at most, so that every
    group is tested in just one fold. `valid` is the share of the remaining groups that is held back for validation.

    Args:
      group: (N,) int, the group of each sample.
      folds: how many parts; 1 tests on nothing.
      fold: which part is the test, from 0.
      valid: share in [0, 1).
      seed: of the shuffle.
      member: of an ensemble, whose networks have the same test and each its own validation groups.
      kind: (N,) int, the same within each group: every part gets its share of each kind.
    """
    names = np.unique(group)
    if not 0 <= fold < folds:
        raise ValueError(f"fold {fold} of {folds}: folds count from 0 to {folds - 1}")
    if len(names) < folds:
        remedy = "set --config.split.folds to at most that" if len(names) > 1 else "give at least two, one to be tested"
        raise ValueError(f"{len(names)} groups cannot make {folds} folds; {remedy}")
    kinds = {} if kind is None else dict(zip(group.tolist(), kind.tolist(), strict=True))
    order = _evenly(np.random.default_rng(seed).permutation(names), kinds)
    test = np.array_split(order, folds)[fold] if folds > 1 else order[:0]
    rest = order[~np.isin(order, test)]
    # Another order for each fold, or the validation groups would be the same in all of them.
    rest = _evenly(np.random.default_rng((seed, fold)).permutation(rest), kinds)
    if not 0 <= valid < 1:
        raise ValueError(f"--config.split.valid={valid}: a share from 0 to below 1")
    held = round(valid * len(rest))
    rest = np.roll(rest, -member * held)
    where = lambda chosen: np.flatnonzero(np.isin(group, chosen))
    return Split(where(rest[held:]), where(rest[:held]), where(test))


def _evenly(names: np.ndarray, kinds: dict) -> np.ndarray:
    """Names in an order in which each kind is spread over the whole; as they are where all are of one."""
    kind = np.array([kinds.get(name, 0) for name in names], int)
    place = np.zeros(len(names))
    for value in np.unique(kind):
        mine = np.flatnonzero(kind == value)
        place[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    return names[np.argsort(place, kind="stable")]


def by_group_in_each(domain: np.ndarray, group: np.ndarray, **options) -> Split:
    """`by_group` within each domain (N,), so that every domain is in every part of every fold.

    Where domains share a group all are split together, or one would be trained on what tests another. Then a domain of
    few groups may have none in a part.
    """
    pairs = np.unique(np.stack([domain, group]), axis=1)
    if pairs.shape[1] > len(np.unique(group)):
        # A group's kind is the domains that have it.
        having = {value: tuple(pairs[0, pairs[1] == value]) for value in np.unique(group)}
        number = {domains: n for n, domains in enumerate(sorted(set(having.values())))}
        return by_group(group, kind=np.array([number[having[value]] for value in group]), **options)
    parts = []
    for value in np.unique(domain):
        mine = np.flatnonzero(domain == value)
        parts.append([mine[rows] for rows in by_group(group[mine], **options)])
    return Split(*(np.sort(np.concatenate(part)) for part in zip(*parts, strict=True)))


def balanced(rows: np.ndarray, stratum: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Rows (N,) of these strata (N,), and those of the smaller ones again until each has as many as the largest.

    A row comes again as often as the others of its stratum, or once more where `draw` says so.
    """
    each = [rows[stratum == value] for value in np.unique(stratum)]
    most = max(map(len, each), default=0)
    again = [np.resize(draw.permutation(own), most - len(own)) for own in each if len(own) < most]
    return np.concatenate([rows, *again])


def epoch(rows: np.ndarray, stratum: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """As many rows as there are, in random order, that show each of these strata equally often but for chance."""
    return draw.permutation(balanced(rows, stratum, draw))[: len(rows)]


def random(rows: np.ndarray, *, valid: float, seed: int, member: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N,) -> (train, valid), drawn over the augmented rows alike, as the beetle paper does.

    Versions of one photograph fall on both sides, so the validation loss is optimistic.
    """
    order = np.random.default_rng(seed).permutation(rows)
    held = round(valid * len(rows))
    order = np.roll(order, -member * held)
    return order[held:], order[:held]


def of_member(settings, samples: Samples, member, versions: int) -> Split:
    """The split of one network, as `settings.split` says.

    Args:
      settings: of a stage.
      samples: all of them.
      member: the network, by its `fold` and its `number` in the fold's ensemble.
      versions: of a sample.

    Returns:
      Rows (sample x versions + version) of training and validation, and the samples of the test.

    Raises:
      ValueError: a split that there is not, or that leaves nothing to test.
    """
    split = settings.split
    if split.by not in ("group", "image", "random"):
        raise ValueError(f"--config.split.by={split.by}: there are group, image and random")
    if split.by == "random" and split.folds == 1:
        raise ValueError(
            "--config.split.by=random --config.split.folds=1: the versions that validate are of images that are trained"
            " on, so nothing would be left to test; raise split.folds"
        )
    if split.by == "random" and split.few:
        raise ValueError(f"--config.split.few={split.few}: a random split has no specimens; set split.by=group")
    group = samples.group
    if split.by == "image":  # the tiles of a photograph stay together, and so do its copies
        order = {content: n for n, content in enumerate(dict.fromkeys(samples.content.tolist()))}
        group = np.array([order[content] for content in samples.content.tolist()])
    # Where validation takes the place of a test, or a few specimens are all there is, an ensemble has the same of them.
    number = 0 if split.folds == 1 or split.few else member.number
    train, valid, test = by_group_in_each(
        samples.domain, group, folds=split.folds, fold=member.fold, valid=split.valid, seed=split.seed, member=number
    )
    if split.few:
        draw, domains = np.random.default_rng((settings.seed, member.fold)), samples.domain[train]
        kept = np.zeros(len(train), bool)
        for d in np.unique(domains):
            drawn = draw.permutation(np.unique(group[train[domains == d]]))[: split.few]
            kept |= (domains == d) & np.isin(group[train], drawn)
        train = train[kept]
    if not len(train):
        raise ValueError(
            f"fold {member.fold}: no image is left to train on: lower --config.split.valid={split.valid}, or give more images"
        )
    expand = lambda chosen: (chosen[:, None] * versions + np.arange(versions)).reshape(-1)
    if split.by != "random":
        return Split(expand(train), valid * versions + versions - 1, test)
    every = expand(np.sort(np.concatenate([train, valid])))
    return Split(*random(every, valid=split.valid, seed=split.seed + member.fold, member=number), test)


def saved(split: Split, settings, samples: Samples, versions: int) -> dict:
    """What is saved of a network's split: by it `parts_of` knows the images again.

    Its "images" are their names by part: "train", "valid", "test" and, where `split.few` leaves some, "unused". By name
    its "contents" are their contents, and its "specimens", but of a split that divides them, those that have a name.
    """
    chosen = {"train": split.train // versions, "valid": split.valid // versions, "test": split.test}
    unused = np.setdiff1d(np.arange(len(samples)), np.concatenate(list(chosen.values())))
    images = {part: np.unique(samples.name[rows]).tolist() for part, rows in (chosen | {"unused": unused}).items()}
    by_name = lambda values: {name: value for name, value in zip(samples.name.tolist(), values, strict=True) if value}
    specimens = {} if settings.split.by == "image" else by_name(samples.specimen.tolist())
    return {"images": images, "contents": by_name(samples.content.tolist()), "specimens": specimens}


def parts_of(known: dict, samples: Samples) -> dict[str, np.ndarray]:
    """In which part of the split that `saved` tells of each of the samples (N,) is; "" where it is in none.

    It is told by "content", by "name" (of photographs) and by "specimen", the surest first. What is in "train" and, as
    versions of it may be, in "valid" is in "train". Of what runs of older versions saved the names alone are known.
    """
    images, contents, specimens = known["images"], known.get("contents", {}), known.get("specimens", {})
    named = {name: part for part in ("unused", "test", "valid", "train") for name in images.get(part, ())}
    over = lambda values: {value: named[name] for name, value in values.items() if name in named}
    files = {name: part for name, part in named.items() if not contents.get(name, "").startswith(DRAWN)}
    find = lambda values, parts: np.array([parts.get(value, "") for value in values.tolist()])
    return {
        "content": find(samples.content, over(contents)),
        "name": find(samples.name, files),
        "specimen": find(samples.specimen, over(specimens)),
    }


def strata(balance: str, samples: Samples, shown: np.ndarray) -> np.ndarray:
    """Of each sample (N,) the stratum that training, which is `shown` some of them, shows as often as any other.

    That is its "set", its "group", ("object") with objects or, where these are most, without, or ("image") all one.
    """
    alike, empty = np.zeros_like(samples.group), np.asarray((samples.labels < 0).all(axis=1), int)
    by_objects = empty if empty[shown].mean() > 0.5 else alike
    known = {"set": samples.domain, "group": samples.group, "image": alike, "object": by_objects}
    if balance not in known:
        raise ValueError(f"--config.train.balance={balance}: there are {', '.join(known)}")
    return known[balance]
