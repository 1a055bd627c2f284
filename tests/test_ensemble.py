"""Ensembles: the networks of a fold are trained separately and predict together."""

import json

import jax
import numpy as np
import pytest
from test_transfer import get_config

from jaxmarks import evaluate, landmarks, runs, steps, tasks, train, trained
from jaxmarks.data import splits
from jaxmarks.report import tables


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run of one fold with an ensemble of two."""
    workdir = tmp_path_factory.mktemp("ensemble")
    config = get_config(**{"train.ensemble": 2, "data.count": 10, "split.valid": 0.2, "train.steps": 2})
    datasets = train.train(config, workdir)
    return workdir, config, datasets["train"]


def test_ensemble_members_are_trained_independently(two, tmp_path):
    """The first member equals the network of a run without an ensemble, the second differs; the log names each."""
    workdir, config, _ = two
    names = sorted(p.parent.name for p in workdir.glob("checkpoints/train/*/best"))
    assert names == ["fold0", "fold0.1"]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert {(line["fold"], line["member"]) for line in lines} == {(0, 0), (0, 1)}
    alone = config.copy_and_resolve_references()
    alone.train.ensemble = 1
    train.train(alone, tmp_path)
    (mine, other), _ = runs.restore(workdir, "train", runs.members(config, 0))
    (theirs,), _ = runs.restore(tmp_path, "train", runs.members(alone, 0))
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (mine, other)), strict=True))


def test_a_folds_predictions_are_the_mean_of_its_members(two, tmp_path):
    workdir, config, dataset = two
    evaluate.of_run(config, workdir, dataset, out=tmp_path)
    found = tables.read_predictions(tmp_path / "predictions.csv")
    _, _, test = splits.member_split(config, dataset.samples, runs.Member(0), 1)
    tested = dataset.samples.take(test)
    _, task = tasks.build(config, {"landmarks": 8})
    networks, _ = runs.restore(workdir, "train", runs.members(config, 0))
    each = [landmarks.predict(steps.predictor(task), [one], tested)[0] for one in networks]
    assert found.images == tested.name.tolist()
    np.testing.assert_allclose(found.points, np.mean(each, axis=0), atol=6e-4)  # the file has three decimals
    assert np.abs(each[0] - each[1]).max() > 1e-3
    _, _, taken, _ = trained.networks_of(workdir)
    assert len(taken) == 2


def test_a_run_goes_on_with_other_folds(tmp_path):
    config = get_config(**{"data.count": 10, "train.steps": 1, "split.run": (1,)})
    train.train(config, tmp_path)
    first = runs.restore(tmp_path, "train", [runs.Member(1)])[0]
    config.split.run = (0, 1)
    dataset = train.train(config, tmp_path)["train"]
    jax.tree.map(np.testing.assert_array_equal, first, runs.restore(tmp_path, "train", [runs.Member(1)])[0])
    lines = [json.loads(line)["fold"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sorted(lines) == [0, 1]
    assert [fold["fold"] for fold in evaluate.of_run(config, tmp_path, dataset)["folds"]] == [0, 1]
    assert len(trained.networks_of(tmp_path).networks) == 2


def splits_of(two, **changes):
    """Returns the split (train, valid, test) of each of the fold's networks, with `changes` to the split's settings."""
    _, config, dataset = two
    config = config.copy_and_resolve_references()
    config.split.update(changes)
    return [splits.member_split(config, dataset.samples, member, 1) for member in runs.members(config, 0)]


def test_members_share_the_few_training_specimens(two):
    (first, *_), (second, *_) = splits_of(two, few=3)
    np.testing.assert_array_equal(first, second)


def test_members_share_the_validation_set_if_there_is_no_test_set(two):
    (_, first, _), (_, second, _) = splits_of(two, folds=1)
    np.testing.assert_array_equal(first, second)
    with pytest.raises(ValueError, match=r"folds=1: the validation set"):
        splits_of(two, folds=1, by="random")


def test_start_is_the_same_member_else_the_first_of_its_or_the_lowest_fold(tmp_path):
    folder = tmp_path / "checkpoints" / "train"
    for name in ("fold0", "fold0.1", "fold2", "fold10"):
        (folder / name / "best").mkdir(parents=True)
    starts = {(0, 1): "fold0.1", (0, 2): "fold0", (2, 1): "fold2", (10, 0): "fold10", (3, 0): "fold0"}
    for member, name in starts.items():
        assert runs.pick(tmp_path, "train", runs.Member(*member)) == folder / name / "best"


def caveats(config, workdir, fold):
    return runs.restore(workdir, "train", [runs.Member(fold)])[1][0]["caveats"]


def test_starting_from_a_network_that_saw_test_images_is_a_caveat(two, tmp_path):
    """A source of the same fold has the same test images; one of another fold was trained on them."""
    workdir, config, _ = two
    config = config.copy_and_resolve_references()
    config.train.ensemble, config.init_from, config.train.steps, config.split.run = 1, str(workdir), 1, (0, 1)
    train.train(config, tmp_path / "same")
    assert caveats(config, tmp_path / "same", 0) == []
    (caveat,) = caveats(config, tmp_path / "same", 1)
    assert caveat["what"].startswith(f"fold 1: it starts from {workdir}/checkpoints/train/fold0, and ")
    # A network that starts from this one has the caveat, too, although both have the same test images.
    chain = config.copy_and_resolve_references()
    chain.init_from, chain.split.run, chain.stages = str(tmp_path / "same"), (1,), ("train", "again")
    train.train(chain, tmp_path / "chain")
    assert caveats(chain, tmp_path / "chain", 1)[0]["what"].startswith(f"fold 1: it starts from {tmp_path}/same/")
    (_,), (note,) = runs.restore(tmp_path / "chain", "again", [runs.Member(1)])
    assert len(note["caveats"]) == 1  # also in the last stage, which is scored
    # A random split trains and validates on versions of the same photographs: doing so again is no caveat.
    drawn = config.copy_and_resolve_references()
    drawn.augment, drawn.channels, drawn.split.by, drawn.init_from = {"name": "paper_x7"}, 1, "random", ""
    train.train(drawn, tmp_path / "versions")
    drawn.init_from = str(tmp_path / "versions")
    train.train(drawn, tmp_path / "again")
    assert caveats(drawn, tmp_path / "again", 0) == []
    config.split.run, config.data.count = (0,), 12  # 12 images make other folds
    train.train(config, tmp_path / "more")
    assert len(caveats(config, tmp_path / "more", 0)) == 1
    config.split.run, config.data.count = (0, 1), 10
    config.data.seed = 1  # other images
    train.train(config, tmp_path / "other")
    assert caveats(config, tmp_path / "other", 1) == []


def test_all_networks_of_a_run_have_distinct_seeds():
    seeds = [runs.Member(fold, number).seed for fold in range(20) for number in range(20)]
    assert len(set(seeds)) == 400 and seeds[::20] == list(range(20))
