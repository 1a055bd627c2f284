"""Training, validation and test splits: folds by group, and the beetle paper's random split; and balanced sampling."""

from typing import NamedTuple

import numpy as np

from jaxmarks.data.samples import DRAWN, Samples


class Split(NamedTuple):
    """Sample indices of each part; `member_split` gives `train` and `valid` as rows (sample x versions + version)."""

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
    """Returns the split of one fold, without dividing any group.

    The groups are shuffled by the seed and dealt into `folds` parts whose group counts differ by at most one, so that
    every group is tested in exactly one fold. `valid` is the share of the remaining groups that is held out for
    validation.

    Args:
      group: (N,) int, the group of each sample.
      folds: number of parts; with 1 there is no test set.
      fold: index of the part that is the test set, from 0.
      valid: share in [0, 1).
      seed: seed of the shuffle.
      member: index in the fold's ensemble; its members share the test set and differ in their validation groups.
      kind: (N,) int, constant within each group; the groups of each kind are spread evenly over the parts.
    """
    groups = np.unique(group)
    if not 0 <= fold < folds:
        raise ValueError(f"fold {fold} of {folds} does not exist: folds are numbered from 0 to {folds - 1}")
    if len(groups) < folds:
        remedy = (
            "set --config.split.folds to at most that" if len(groups) > 1 else "give at least two, one of them to test"
        )
        raise ValueError(f"{len(groups)} groups cannot make {folds} folds; {remedy}")
    kinds = {} if kind is None else dict(zip(group.tolist(), kind.tolist(), strict=True))
    shuffled = _evenly(np.random.default_rng(seed).permutation(groups), kinds)
    test_groups = np.array_split(shuffled, folds)[fold] if folds > 1 else shuffled[:0]
    remaining = shuffled[~np.isin(shuffled, test_groups)]
    # Shuffled anew for each fold, or all folds would have the same validation groups.
    remaining = _evenly(np.random.default_rng((seed, fold)).permutation(remaining), kinds)
    if not 0 <= valid < 1:
        raise ValueError(f"--config.split.valid={valid}: give a fraction from 0 to below 1")
    valid_count = round(valid * len(remaining))
    remaining = np.roll(remaining, -member * valid_count)
    rows_of = lambda chosen: np.flatnonzero(np.isin(group, chosen))
    return Split(rows_of(remaining[valid_count:]), rows_of(remaining[:valid_count]), rows_of(test_groups))


def _evenly(names: np.ndarray, kinds: dict) -> np.ndarray:
    """Reorders `names` so that each kind is spread evenly over the whole; no change where all are of one kind."""
    kind = np.array([kinds.get(name, 0) for name in names], int)
    position = np.zeros(len(names))
    for value in np.unique(kind):
        rows = np.flatnonzero(kind == value)
        position[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return names[np.argsort(position, kind="stable")]


def by_group_in_each(domain: np.ndarray, group: np.ndarray, **options) -> Split:
    """Applies `by_group` within each domain (N,), so that every domain is in every part of every fold.

    Where domains share a group, all domains are split together, as otherwise a group could be trained on in one domain
    and tested in another. A domain with few groups may then be absent from a part.
    """
    pairs = np.unique(np.stack([domain, group]), axis=1)
    if pairs.shape[1] > len(np.unique(group)):
        # A group's kind is the set of domains that contain it.
        domains_of_group = {value: tuple(pairs[0, pairs[1] == value]) for value in np.unique(group)}
        kind_numbers = {domains: n for n, domains in enumerate(sorted(set(domains_of_group.values())))}
        return by_group(group, kind=np.array([kind_numbers[domains_of_group[value]] for value in group]), **options)
    parts = []
    for value in np.unique(domain):
        domain_rows = np.flatnonzero(domain == value)
        parts.append([domain_rows[rows] for rows in by_group(group[domain_rows], **options)])
    return Split(*(np.sort(np.concatenate(part)) for part in zip(*parts, strict=True)))


def balanced(rows: np.ndarray, stratum: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Oversamples rows (N,) so that every stratum (N,) has as many rows as the largest.

    Within a stratum the rows' counts differ by at most one; `draw` decides at random which rows get one more.
    """
    pools = [rows[stratum == value] for value in np.unique(stratum)]
    largest = max(map(len, pools), default=0)
    extra = [np.resize(draw.permutation(pool), largest - len(pool)) for pool in pools if len(pool) < largest]
    return np.concatenate([rows, *extra])


def epoch(rows: np.ndarray, stratum: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Draws N of the rows (N,), in random order, such that all strata (N,) are equally frequent in expectation."""
    return draw.permutation(balanced(rows, stratum, draw))[: len(rows)]


def random(rows: np.ndarray, *, valid: float, seed: int, member: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Splits rows (N,) at random into (train, valid), treating all augmented versions alike, as the beetle paper does.

    Versions of one photograph fall on both sides, so the validation loss is optimistic.
    """
    order = np.random.default_rng(seed).permutation(rows)
    valid_count = round(valid * len(rows))
    order = np.roll(order, -member * valid_count)
    return order[valid_count:], order[:valid_count]


def member_split(settings, samples: Samples, member, versions: int) -> Split:
    """Returns the split of one network according to `settings.split`.

    Args:
      settings: the stage's settings.
      samples: all samples.
      member: the network, by its `fold` and its `number` in the fold's ensemble.
      versions: number of augmented versions of a sample.

    Returns:
      Rows (sample x versions + version) for training and validation, and sample indices for the test.

    Raises:
      ValueError: an unknown kind of split, impossible settings, or no image left to train on.
    """
    split = settings.split
    if split.by not in ("group", "image", "random"):
        raise ValueError(f"--config.split.by={split.by}: choose group, image or random")
    if split.by == "random" and split.folds == 1:
        raise ValueError(
            "--config.split.by=random --config.split.folds=1: the validation set holds augmented versions of training"
            " images, so no image would be left to test; raise --config.split.folds"
        )
    if split.by == "random" and split.few:
        raise ValueError(
            f"--config.split.few={split.few}: a random split does not separate specimens; set --config.split.by=group"
        )
    group = samples.group
    if split.by == "image":  # keeps together the tiles of a photograph, and its copies
        content_numbers = {content: n for n, content in enumerate(dict.fromkeys(samples.content.tolist()))}
        group = np.array([content_numbers[content] for content in samples.content.tolist()])
    # An ensemble's members share one split where validation images replace the test set, or `few` limits the training.
    index = 0 if split.folds == 1 or split.few else member.number
    train, valid, test = by_group_in_each(
        samples.domain, group, folds=split.folds, fold=member.fold, valid=split.valid, seed=split.seed, member=index
    )
    if split.few:
        draw, domains = np.random.default_rng((settings.seed, member.fold)), samples.domain[train]
        is_kept = np.zeros(len(train), bool)
        for d in np.unique(domains):
            drawn_groups = draw.permutation(np.unique(group[train[domains == d]]))[: split.few]
            is_kept |= (domains == d) & np.isin(group[train], drawn_groups)
        train = train[is_kept]
    if not len(train):
        raise ValueError(
            f"fold {member.fold}: no image is left to train on: lower --config.split.valid={split.valid}, or give more images"
        )
    expand = lambda indices: (indices[:, None] * versions + np.arange(versions)).reshape(-1)
    if split.by != "random":
        return Split(expand(train), valid * versions + versions - 1, test)
    all_rows = expand(np.sort(np.concatenate([train, valid])))
    return Split(*random(all_rows, valid=split.valid, seed=split.seed + member.fold, member=index), test)


def split_record(split: Split, settings, samples: Samples, versions: int) -> dict:
    """Returns the record of a split that is saved with its network, from which `match_parts` recognises the images.

    "images" lists the image names of each part: "train", "valid", "test" and "unused" (what `split.few` leaves out).
    "contents" maps names to contents, and "specimens" names to named specimens; "specimens" is empty for a split by
    image, which may divide them.
    """
    indices = {"train": split.train // versions, "valid": split.valid // versions, "test": split.test}
    unused = np.setdiff1d(np.arange(len(samples)), np.concatenate(list(indices.values())))
    images = {part: np.unique(samples.name[rows]).tolist() for part, rows in (indices | {"unused": unused}).items()}
    by_name = lambda values: {name: value for name, value in zip(samples.name.tolist(), values, strict=True) if value}
    specimens = {} if settings.split.by == "image" else by_name(samples.specimen.tolist())
    return {"images": images, "contents": by_name(samples.content.tolist()), "specimens": specimens}


def match_parts(record: dict, samples: Samples) -> dict[str, np.ndarray]:
    """Finds the part of a split, from its `split_record`, in which each of the samples (N,) is; "" where it is in none.

    The result's keys are the criteria, the most reliable first: equal "content", equal "name" (photographs only), and
    equal "specimen". An image with versions in both "train" and "valid" counts as "train". Runs of older versions of
    jaxmarks saved only the names.
    """
    images, contents, specimens = record["images"], record.get("contents", {}), record.get("specimens", {})
    name_parts = [(name, part) for part in ("unused", "test", "valid", "train") for name in images.get(part, ())]
    part_of = dict(name_parts)  # of several parts the last counts, here and of one content under several names
    by_value = lambda values: {values[name]: part for name, part in name_parts if name in values}
    photographs = {name: part for name, part in part_of.items() if not contents.get(name, "").startswith(DRAWN)}
    look_up = lambda values, parts: np.array([parts.get(value, "") for value in values.tolist()])
    return {
        "content": look_up(samples.content, by_value(contents)),
        "name": look_up(samples.name, photographs),
        "specimen": look_up(samples.specimen, by_value(specimens)),
    }


def strata(balance: str, samples: Samples, training: np.ndarray) -> np.ndarray:
    """Returns the stratum of each sample (N,); training shows all strata equally often.

    Strata are, by `balance`: "set", the datasets; "group", the groups; "object", images with and without objects, if
    most of the training samples `training` (indices) have none, else a single stratum; "image", a single stratum.
    """
    single, is_empty = np.zeros_like(samples.group), np.asarray((samples.labels < 0).all(axis=1), int)
    by_objects = is_empty if is_empty[training].mean() > 0.5 else single
    choices = {"set": samples.domain, "group": samples.group, "image": single, "object": by_objects}
    if balance not in choices:
        raise ValueError(f"--config.train.balance={balance}: choose one of {', '.join(choices)}")
    return choices[balance]
