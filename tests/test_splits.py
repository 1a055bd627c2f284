"""Folds never divide a group; the paper's random split divides the augmented versions."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmarks.data import splits


@given(
    group=st.lists(st.integers(0, 30), min_size=8, max_size=80).filter(lambda g: len(set(g)) >= 5),
    folds=st.integers(2, 5),
    valid=st.floats(0, 0.6),
    seed=st.integers(0, 9),
)
def test_every_sample_is_tested_once_and_no_group_is_divided(group, folds, valid, seed):
    group, tested = np.array(group), []
    for fold in range(folds):
        split = splits.by_group(group, folds=folds, fold=fold, valid=valid, seed=seed)
        sides = [set(group[side]) for side in split]
        assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
        assert sorted(np.concatenate(split)) == list(range(len(group)))
        tested.extend(split.test)
    assert sorted(tested) == list(range(len(group)))


def test_nine_folds_of_293_specimens_test_32_or_33():
    sizes = [len(splits.by_group(np.arange(293), folds=9, fold=f, valid=0.1, seed=0).test) for f in range(9)]
    assert sorted(sizes) == [32] * 4 + [33] * 5
    split = splits.by_group(np.arange(293), folds=9, fold=0, valid=0.1, seed=0)
    assert len(split.valid) == 26 and len(split.train) == 234


def test_one_fold_has_no_test_set():
    split = splits.by_group(np.arange(10), folds=1, fold=0, valid=0.2, seed=0)
    assert (len(split.train), len(split.valid), len(split.test)) == (8, 2, 0)


def test_impossible_folds_are_refused():
    with pytest.raises(ValueError, match=r"3 groups cannot make 5 folds; set --config.split.folds"):
        splits.by_group(np.array([0, 1, 1, 2]), folds=5, fold=0, valid=0, seed=0)
    with pytest.raises(ValueError, match="from 0 to 4"):
        splits.by_group(np.arange(9), folds=5, fold=5, valid=0, seed=0)


def test_the_papers_split_divides_versions_60_to_40():
    train, valid = splits.random(np.arange(1820), valid=0.4, seed=0)
    assert len(train) == 1092 and len(valid) == 728
    assert sorted(np.concatenate([train, valid])) == list(range(1820))
    assert set(train // 7) & set(valid // 7)  # versions of one photograph on both sides, as in the paper


def test_ensemble_members_share_the_test_set_but_not_validation():
    by_group = [splits.by_group(np.arange(50), folds=5, fold=1, valid=0.25, seed=3, member=m) for m in range(5)]
    for split in by_group:
        np.testing.assert_array_equal(split.test, by_group[0].test)
        assert sorted(np.concatenate(split)) == list(range(50))
    assert sorted(np.concatenate([split.valid for split in by_group[:4]])) == sorted(
        set(range(50)) - set(by_group[0].test)
    )
    np.testing.assert_array_equal(by_group[4].valid, by_group[0].valid)  # four quarters are all: the fifth starts over
    rows = [splits.random(np.arange(100), valid=0.2, seed=0, member=m) for m in range(5)]
    assert sorted(np.concatenate([valid for _, valid in rows])) == list(range(100))
    assert all(sorted(np.concatenate(pair)) == list(range(100)) for pair in rows)


def test_groups_shared_by_domains_are_not_divided():
    domain = np.repeat([0, 1], [12, 6])
    group = np.concatenate([np.arange(12), [0, 1, 2, 20, 21, 22]])
    for fold in range(3):
        split = splits.by_group_in_each(domain, group, folds=3, fold=fold, valid=0.25, seed=0)
        parts = [set(group[rows]) for rows in split]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 15
        # Three groups are in both domains, three only in the second, nine only in the first: each fold tests its share.
        assert (
            sorted(parts[2] & {0, 1, 2})
            and sorted(parts[2] & {20, 21, 22})
            and len(parts[2] - {0, 1, 2, 20, 21, 22}) == 3
        )


def test_few_limits_each_domain_even_with_shared_groups():
    domain = np.repeat([0, 1], [20, 20])
    group = np.concatenate([np.arange(20), np.arange(10), np.arange(30, 40)])
    names = np.array([f"{'pq'[d]}/{g}.png" for d, g in zip(domain, group, strict=True)])
    samples = SimpleNamespace(domain=domain, group=group, name=names, content=group.astype(str))
    options = {"by": "group", "folds": 5, "run": (), "valid": 0.0, "few": 2, "seed": 0}
    for by in ("group", "image"):
        settings = SimpleNamespace(split=SimpleNamespace(**options | {"by": by}), seed=0)
        for fold in range(5):
            split = splits.member_split(settings, samples, SimpleNamespace(fold=fold, number=0), 1)
            assert np.bincount(domain[split.train]).tolist() == [2, 2]
            assert not set(group[split.train]) & set(group[split.test])


class Photographs(SimpleNamespace):
    """Stands in for `Samples`: `count` photographs, each a group of its own."""

    def __init__(self, count):
        names = np.array([f"{n}.png" for n in range(count)])
        about = {"content": np.array([f"<{name}>" for name in names]), "specimen": np.full(count, "")}
        super().__init__(domain=np.zeros(count, int), group=np.arange(count), name=names, **about)

    def __len__(self):
        return len(self.name)


def member_split(photographs, *, fold=0, number=0, versions=7, **changes):
    options = {"by": "group", "folds": 5, "run": (), "valid": 0.25, "few": 0, "seed": 0}
    settings = SimpleNamespace(split=SimpleNamespace(**options | changes), seed=0)
    return splits.member_split(settings, photographs, SimpleNamespace(fold=fold, number=number), versions)


def test_validation_uses_only_the_unaugmented_last_version():
    split = member_split(Photographs(40))
    assert set(split.valid % 7) == {6}
    assert set(split.train % 7) == set(range(7))


def test_folds_draw_their_validation_groups_independently():
    """Each validates on 10 of the 38 not in its test: two share 2 or 3 by chance; with one shuffle for all folds, 7."""
    of_folds = [
        set(splits.by_group(np.arange(40), folds=20, fold=fold, valid=0.25, seed=0).valid) for fold in range(20)
    ]
    shared = [len(one & other) for one, other in itertools.combinations(of_folds, 2)]
    assert np.mean(shared) < 4


def test_random_splits_differ_between_folds_and_members():
    def held(fold, number):
        """Returns the validation rows, as positions among the rows outside the test set."""
        split = member_split(Photographs(40), fold=fold, number=number, by="random", valid=0.4)
        return set(np.searchsorted(np.sort(np.concatenate(split[:2])), split.valid).tolist())

    first, of_another_fold, of_another_network = held(0, 0), held(1, 0), held(0, 1)
    # 40 % of 32 x 7 rows: two folds share 40 % of those by chance; two members none, as twice 40 % is less than all.
    assert len(first) == len(of_another_fold) == 90
    assert len(first & of_another_fold) < 60
    assert not first & of_another_network


def test_the_split_record_lists_each_photograph_once():
    photographs, by_group = Photographs(12), SimpleNamespace(split=SimpleNamespace(by="group"))
    saved = splits.split_record(member_split(photographs, folds=3), by_group, photographs, 7)
    found = saved["images"]
    assert sorted(found["train"] + found["valid"] + found["test"]) == sorted(photographs.name)
    assert [len(found[part]) for part in ("train", "valid", "test", "unused")] == [6, 2, 4, 0]
    assert saved["contents"]["3.png"] == "<3.png>" and saved["specimens"] == {}


def test_the_only_group_of_a_kind_is_trained_on():
    """It is placed in the middle of the order, of which the first fifth is the validation set."""
    group, kind = np.arange(20), np.eye(20, dtype=int)[7]
    for seed in range(10):
        split = splits.by_group(group, folds=1, fold=0, valid=0.2, seed=seed, kind=kind)
        assert 7 in split.train


def test_the_record_of_a_split_by_image_has_no_specimens():
    photographs = Photographs(6)
    photographs.specimen = np.array(["m1", "m1", "m2", "m2", "", "m3"])
    for by, specimens in (
        ("image", {}),
        ("group", {"0.png": "m1", "1.png": "m1", "2.png": "m2", "3.png": "m2", "5.png": "m3"}),
    ):
        settings = SimpleNamespace(split=SimpleNamespace(by=by))
        assert (
            splits.split_record(member_split(photographs, folds=3), settings, photographs, 7)["specimens"] == specimens
        )
