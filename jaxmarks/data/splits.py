"""Who is trained on and who is held out: folds by group, and the beetle paper's random split; and how often each is shown."""

from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """Indices of samples (or rows, for `random`)."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def by_group(group: np.ndarray, *, folds: int, fold: int, valid: float, seed: int, member: int = 0) -> Split:
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
    """
    names = np.unique(group)
    if not 0 <= fold < folds:
        raise ValueError(f"fold {fold} of {folds}: folds count from 0 to {folds - 1}")
    if len(names) < folds:
        raise ValueError(f"{len(names)} groups cannot make {folds} folds; set --config.split.folds to at most that")
    order = np.random.default_rng(seed).permutation(names)
    test = np.array_split(order, folds)[fold] if folds > 1 else order[:0]
    rest = order[~np.isin(order, test)]
    # Another order for each fold, or the validation groups would be the same in all of them.
    rest = np.random.default_rng((seed, fold)).permutation(rest)
    held = round(valid * len(rest))
    rest = np.roll(rest, -member * held)
    where = lambda chosen: np.flatnonzero(np.isin(group, chosen))
    return Split(where(rest[held:]), where(rest[:held]), where(test))


def by_group_in_each(domain: np.ndarray, group: np.ndarray, **options) -> Split:
    """`by_group` within each domain (N,), so that every domain is in every part of every fold."""
    parts = []
    for value in np.unique(domain):
        mine = np.flatnonzero(domain == value)
        parts.append([mine[rows] for rows in by_group(group[mine], **options)])
    return Split(*(np.sort(np.concatenate(part)) for part in zip(*parts, strict=True)))


def balanced(rows: np.ndarray, part: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Rows (N,) of these parts (N,), and those of the smaller parts again until each has as many as the largest.

    A row comes again as often as the others of its part, or once more where `draw` says so.
    """
    each = [rows[part == value] for value in np.unique(part)]
    most = max(map(len, each), default=0)
    again = [np.resize(draw.permutation(own), most - len(own)) for own in each if len(own) < most]
    return np.concatenate([rows, *again])


def epoch(rows: np.ndarray, part: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """As many rows as there are, in random order, that show each of these parts equally often but for chance."""
    return draw.permutation(balanced(rows, part, draw))[: len(rows)]


def random(rows: np.ndarray, *, valid: float, seed: int, member: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N,) -> (train, valid), drawn over the augmented rows alike, as the beetle paper does.

    Versions of one photograph fall on both sides, so the validation loss is optimistic.
    """
    order = np.random.default_rng(seed).permutation(rows)
    held = round(valid * len(rows))
    order = np.roll(order, -member * held)
    return order[held:], order[:held]
