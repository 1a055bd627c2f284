"""One network for several datasets: concatenated landmarks, a head per dataset, and complete runs."""

import csv
import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from PIL import Image

from jaxmarks import (
    augment,
    checkpoint,
    evaluate,
    formats,
    heads,
    landmarks,
    main,
    models,
    phantoms,
    predict,
    report,
    runs,
    serving,
    steps,
    tps,
    train,
    trained,
)
from jaxmarks import config as configs
from jaxmarks.data import loading, splits
from jaxmarks.data.samples import Annotation

CONFIG = Path(__file__).parent.parent / "configs" / "universal.py"
SIZE = (32, 32)
# The landmark ranges of two datasets, with 2 and 3 landmarks.
SETS = {"a": (0, 2), "b": (2, 5)}
HEATMAP = {"name": "heatmap", "sigma": 2.0, "loss": "cross_entropy"}


def get_config(sets=None, **changes):
    """A small config with eight pronota and six heads, unless `sets` names other datasets."""
    config = runpy.run_path(str(CONFIG))["get_config"]("smoke")
    config.model, config.head = {"name": "sp_cnn", "width": 4, "kernel": 3}, HEATMAP
    config.augment, config.baselines = {"name": "none"}, ()
    config.data.sets = sets or {"pronotum": {"part": "pronotum"}, "head": {"part": "head", "count": 6}}
    config.update_from_flattened_dict(
        {
            "data.size": SIZE, "data.source_size": (64, 64), "data.count": 8, "train.devices": 1, "train.steps": 4, "train.batch_size": 4,
            "split.folds": 2, "split.run": (0,), "split.valid": 0.25,
        }
        | changes
    )  # fmt: skip
    return config


def own(folder, count=6, *, seed=0):
    """Writes photographs of elytra at twice the frame's size, one landmark outside; returns their `data` keys."""
    folder.mkdir()
    annotations = []
    for s in range(count):
        image, points = phantoms.draw("elytra", s, size=(64, 64), seed=seed)
        Image.fromarray(image).save(folder / f"{s}.png")
        points = np.where((s == 1) & (np.arange(11) == 4)[:, None], 99.0, points)
        annotations.append(Annotation(f"{s}.png", points.astype(float), np.ones(11, bool), group=f"beetle {s // 2}"))
    formats.write(folder / "points.csv", annotations)
    return {"images": str(folder), "landmarks": str(folder / "points.csv")}


def test_only_landmarks_of_an_images_own_dataset_are_visible(tmp_path):
    spec = get_config({"beetles": own(tmp_path / "own"), "head": {"part": "head", "count": 5}}).data
    dataset = loading.load(spec)
    samples, mine = dataset.samples, phantoms.load("head", size=SIZE, count=5)
    assert dataset.sets == {"beetles": ((0, 11), None), "head": ((11, 21), None)}
    np.testing.assert_array_equal(samples.domain, [0] * 6 + [1] * 5)
    np.testing.assert_array_equal(samples.visible[:6, :11], np.arange(66).reshape(6, 11) != 15)
    assert not samples.visible[:6, 11:].any() and not samples.visible[6:, :11].any()
    np.testing.assert_array_equal(samples.points[6:, 11:], mine.points)
    assert not samples.points[6:, :11].any()
    np.testing.assert_array_equal(dataset.own(samples), (np.arange(21) >= 11) == (samples.domain == 1)[:, None])
    assert samples.name.tolist() == [f"beetles/{s}.png" for s in range(6)] + [
        f"head/head_{s:03d}.png" for s in range(5)
    ]
    np.testing.assert_array_equal(samples.group, [0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 7])
    [problem] = dataset.problems
    assert problem["image"] == "beetles/1.png" and "landmark 5 at (99, 99)" in problem["what"]
    np.testing.assert_array_equal(dataset.photograph("beetles/3.png"), phantoms.draw("elytra", 3, size=(64, 64))[0])
    np.testing.assert_array_equal(dataset.photograph("head/head_002.png"), phantoms.draw("head", 2, size=(64, 64))[0])
    # Heads may be mirrored; the photographs, whose config has no `flip`, may not.
    assert dataset.flip == (-1,) * 11 + tuple(11 + k for k in phantoms.FLIP["head"])
    assert (
        loading.facts(dataset)
        == loading.known_facts(spec)
        == {"landmarks": 21, "sets": {"beetles": (0, 11), "head": (11, 21)}}
    )


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (
            {"a": {"part": "head", "size": (8, 8)}},
            r"sets\.a\.size: a dataset may only set count, curves, drop, fit, flip, ",
        ),
        ({"a": {"prt": "head"}}, r"sets\.a\.prt: a dataset may only set .*part"),
        ({"a-b": {"part": "head"}}, r"sets\.a-b: choose another name"),
        ({"loss": {"part": "head"}}, r"sets\.loss: choose another name"),
        ({"a": {"images": "x"}}, r"--config\.data\.landmarks is empty"),
        ({"a": {"count": 3}, "boxes": {"count": 3}}, "not boxes or volumes"),
    ],
)
def test_invalid_sets_are_refused(sets, message):
    spec = get_config(sets).data
    if "boxes" in sets:
        spec.boxes = ""
    with pytest.raises(ValueError, match=message):
        loading.load(spec)


def test_landmarks_without_a_partner_prevent_mirroring():
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 8, 1), dtype=np.uint8)
    points = np.random.default_rng(1).uniform(1, 5, (4, 5, 2)).astype(np.float32)
    visible = np.array([[1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [0, 1, 0, 0, 0], [0, 0, 0, 0, 1]], bool)
    still = {
        name: 0.0 for name in "rotation scale aspect shear translation brightness contrast gamma channel noise".split()
    }
    mirror = {"name": "modern", "mirror": 1.0} | still
    apply = jax.jit(augment.build(mirror, channels=1, flip=(1, 0, -1, -1, -1)).apply)
    batch = {"images": jnp.asarray(images), "points": jnp.asarray(points), "visible": jnp.asarray(visible)}
    found = apply(jax.random.split(jax.random.key(0), 4), batch)
    mirrored = images[:, :, ::-1]
    expected = np.stack([mirrored[0], images[1], mirrored[2], images[3]])
    np.testing.assert_allclose(found["images"], expected / np.float32(255), atol=1e-5)
    np.testing.assert_allclose(found["points"][0, :2], np.array([8, 0]) + [-1, 1] * points[0, [1, 0]], atol=1e-5)
    np.testing.assert_allclose(found["points"][1, 2:], points[1, 2:], atol=1e-5)
    np.testing.assert_array_equal(found["visible"][:2], visible[:2])
    assert found["visible"][2].tolist() == [True, False, False, False, False]
    # Landmarks without a partner stay invisible, even if the last one, which an index of -1 would select, is visible.
    apply = jax.jit(augment.build(mirror, channels=1, flip=(-1, -1, -1, 4, 3)).apply)
    last = batch | {"visible": jnp.array([[0, 0, 0, 1, 1]] * 4, bool)}
    np.testing.assert_array_equal(apply(jax.random.split(jax.random.key(0), 4), last)["visible"], last["visible"])


def batch(rng, domains, sets=SETS):
    """Concatenated landmarks of images of these domains; the first landmark of the first image is invisible."""
    columns = list(sets.values())
    width = columns[-1][1]
    visible = np.array([[columns[d][0] <= k < columns[d][1] for k in range(width)] for d in domains])
    visible[0, columns[domains[0]][0]] = False
    points = rng.uniform(4, 28, (len(domains), width, 2))
    return {"points": jnp.asarray(points, jnp.float32), "visible": jnp.asarray(visible)}


@pytest.mark.parametrize("spec", [HEATMAP, {"name": "softargmax", "divergence": 0.5}], ids=lambda spec: spec["name"])
def test_the_joint_loss_has_the_terms_of_separate_heads(spec):
    rng, domains = np.random.default_rng(0), [1, 0, 1, 0]
    both = heads.build(spec, size=SIZE, landmarks=5, sets=SETS)
    outputs = {"a": rng.normal(size=(4, 16, 16, 2)), "b": rng.normal(size=(4, 16, 16, 3))}
    outputs = jax.tree.map(jnp.float32, outputs)
    data, expected, counts = batch(rng, domains), {}, 0
    for number, (name, (start, stop)) in enumerate(SETS.items()):
        one, rows = heads.build(spec, size=SIZE, landmarks=stop - start), np.flatnonzero(np.array(domains) == number)
        targets = one.targets({key: data[key][rows, start:stop] for key in data})
        total, count = jax.jit(one.loss)(outputs[name][rows], targets)
        terms = {f"{name}/{term}": part for term, part in total.items()} if isinstance(total, dict) else {name: total}
        expected, counts = expected | terms, counts + count
        # Each range of the decoded landmarks is that of the dataset's own head.
        for mine, theirs in zip(jax.jit(both.decode)(outputs), jax.jit(one.decode)(outputs[name]), strict=True):
            np.testing.assert_allclose(mine[:, start:stop], theirs, rtol=1e-5)
    total, count = jax.jit(both.loss)(outputs, both.targets(data))
    assert total.keys() == expected.keys() and count == counts == 9
    for term in total:
        np.testing.assert_allclose(total[term], expected[term], rtol=1e-5)
    # A single dataset has the loss of a plain head.
    alone, plain = (
        heads.build(spec, size=SIZE, landmarks=3, sets={"b": (0, 3)}),
        heads.build(spec, size=SIZE, landmarks=3),
    )
    data = batch(rng, [0, 0, 0, 0], {"b": (0, 3)})
    sums = [
        jnp.stack(jax.tree.leaves(jax.jit(h.loss)(o, h.targets(data))))
        for h, o in ((alone, {"b": outputs["b"]}), (plain, outputs["b"]))
    ]
    np.testing.assert_array_equal(*sums)


def network():
    head = heads.build(HEATMAP, size=SIZE, landmarks=5, sets=SETS)
    net = models.Network(models.build({"name": "sp_cnn", "width": 4, "kernel": 3}), head.layer)
    return net, head, jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, *SIZE, 1)))


def test_a_batch_of_one_dataset_trains_only_its_head_and_the_body():
    net, head, variables = network()
    assert {name: set(part) for name, part in variables["params"]["head"].items()} == {"a": {"maps"}, "b": {"maps"}}
    data = batch(np.random.default_rng(0), [1, 1, 1])
    images = jax.random.uniform(jax.random.key(1), (3, *SIZE, 1))

    def loss(params):
        total, count = head.loss(net.apply({"params": params}, images), head.targets(data))
        return sum(total.values()) / count

    largest = jax.tree.map(lambda g: float(np.abs(g).max()), jax.jit(jax.grad(loss))(variables["params"]))
    assert set(jax.tree.leaves(largest["head"]["a"])) == {0.0}
    assert (
        min(*jax.tree.leaves(largest["head"]["b"]["maps"]["kernel"]), largest["body"]["conv5"]["conv"]["kernel"]) > 1e-4
    )


def test_a_dataset_without_held_out_images_is_refused_before_training(tmp_path):
    sets = {name: {"part": name, "count": count} for name, count in (("pronotum", 10), ("head", 4))}
    with pytest.raises(ValueError, match="fold 0: it holds out no image of dataset 1 for testing: change"):
        train.train(get_config(sets, **{"split.folds": 1, "split.run": (0,), "split.valid": 0.1}), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_two_devices_train_like_one():
    net, head, variables = network()
    data = batch(np.random.default_rng(0), [0, 1, 1, 0]) | {
        "images": jnp.asarray(np.random.default_rng(1).integers(0, 256, (4, *SIZE, 1), dtype=np.uint8))
    }
    plain = lambda batch: batch | {"images": batch["images"] / jnp.float32(255)}
    task = steps.Task(net.apply, head, lambda keys, batch: plain(batch), plain)
    tx, found = optax.sgd(0.1), []
    for devices in (1, 2):
        run = steps.runner(task, tx=tx, devices=devices)
        rows = np.array([[0, 1, 2, 3], [3, 2, ~3, ~2]], np.int32)
        state = run.put(steps.create(variables, tx))
        state, each = run.run(state, run.put(data), rows, jax.random.key(2))
        means, _ = steps.summed(each)
        found.append((run.get(state).variables, means))
    assert set(means) == {"a", "b"}
    for one, two in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


def test_smaller_datasets_are_oversampled_to_the_size_of_the_largest():
    rows, domain = np.arange(100, 117), np.repeat([0, 1, 2], [10, 4, 3])
    found = [splits.balanced(rows, domain, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(found[0], found[1])
    assert sorted(found[0]) != sorted(found[2])  # which rows get one more is random
    values, counts = np.unique(found[0], return_counts=True)
    np.testing.assert_array_equal(values, rows)
    each = [counts[domain == d] for d in range(3)]
    assert [sum(c) for c in each] == [10, 10, 10]
    assert [(min(c), max(c)) for c in each] == [(1, 1), (2, 3), (3, 4)]
    # A single dataset stays as it is, without a random draw.
    draw = np.random.default_rng(0)
    np.testing.assert_array_equal(splits.balanced(rows, 0 * domain, draw), rows)
    assert draw.integers(1000) == np.random.default_rng(0).integers(1000)


def test_an_epoch_keeps_its_length_and_shows_strata_equally_often():
    rows, part = np.arange(100, 117), np.repeat([0, 1, 2], [10, 4, 3])
    draw = np.random.default_rng(0)
    epochs = [splits.epoch(rows, part, draw) for _ in range(300)]
    assert {len(epoch) for epoch in epochs} == {17}
    shown = part[np.concatenate(epochs) - 100]
    np.testing.assert_allclose(np.bincount(shown) / len(shown), 1 / 3, atol=0.02)
    assert set(np.concatenate(epochs)) == set(rows)
    # With a single stratum every row is shown once.
    assert sorted(splits.epoch(rows, 0 * part, draw)) == list(rows)


def test_balance_selects_datasets_groups_objects_or_no_strata():
    labels = np.array([[0, 1], [-1, -1], [-1, -1]])
    samples = SimpleNamespace(domain=np.array([0, 0, 1]), group=np.array([4, 5, 6]), labels=labels)
    all_ = np.arange(3)
    found = {balance: list(splits.strata(balance, samples, all_)) for balance in ("set", "group", "image", "object")}
    assert found == {"set": [0, 0, 1], "group": [4, 5, 6], "image": [0, 0, 0], "object": [0, 1, 1]}
    # Half of the samples shown have objects, so nothing is balanced.
    assert list(splits.strata("object", samples, all_[:2])) == [0, 0, 0]
    with pytest.raises(ValueError, match=r"train\.balance=specimen: choose one of set, group, image, object"):
        splits.strata("specimen", samples, all_)


def test_every_dataset_is_in_every_part_of_every_fold():
    domain, group = np.repeat([0, 1], [40, 12]), np.concatenate([np.arange(40) // 2, 20 + np.arange(12)])
    order = np.random.default_rng(0).permutation(52)
    domain, group = domain[order], group[order]
    config, tested = get_config(), []
    config.split.update(folds=3, valid=0.25)
    samples = SimpleNamespace(domain=domain, group=group)
    for fold in range(3):
        parts = splits.member_split(config, samples, runs.Member(fold), 1)
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(52))
        assert len(set.union(*(set(group[rows]) for rows in parts))) == sum(len(set(group[rows])) for rows in parts)
        assert [(domain[rows] == 1).sum() for rows in parts] == [6, 2, 4]
        assert [(domain[rows] == 0).sum() for rows in parts] == ([20, 6, 14] if fold < 2 else [20, 8, 12])
        tested += parts[2].tolist()
        # A dataset is split as it would be alone.
        alone = splits.by_group(group[domain == 0], folds=3, fold=fold, valid=0.25, seed=0)
        for mine, rows in zip(alone, parts, strict=True):
            np.testing.assert_array_equal(np.flatnonzero(domain == 0)[mine], rows[domain[rows] == 0])
    assert sorted(tested) == list(range(52))
    config.split.few = 3
    few = splits.member_split(config, samples, runs.Member(0), 1)[0]
    assert [len(set(group[few[domain[few] == d]])) for d in (0, 1)] == [3, 3]


@pytest.fixture(scope="module")
def universal(tmp_path_factory):
    """A scored run on pronota and heads with a baseline: its folder, config, dataset and summary."""
    workdir = tmp_path_factory.mktemp("universal") / "run"
    config = get_config()
    config.baselines = ("mean_shape",)
    dataset = train.train(config, workdir)["train"]
    summary = evaluate.of_run(config, workdir, dataset)
    report.write(workdir, dataset.photograph)
    return workdir, config, dataset, summary


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_each_dataset_is_scored_as_if_it_were_alone(universal):
    workdir, _, _, summary = universal
    assert json.loads((workdir / "summary.json").read_text()) == summary
    everything, found = rows_of(workdir / "predictions.csv"), {}
    assert all(row["x"] and row["x_true"] and row["distance"] for row in everything)
    for name, count, images in (("head", 10, 3), ("pronotum", 8, 4)):
        mine, one = rows_of(workdir / "sets" / name / "predictions.csv"), summary["sets"][name]
        assert mine == [row for row in everything if row["image"].startswith(f"{name}/")]
        found[name] = np.array([float(row["distance"]) for row in mine]).reshape(images, count)
        assert [int(row["landmark"]) for row in mine] == list(range(1, count + 1)) * images
        assert (one["images"], one["landmarks"]) == (images, count)
        np.testing.assert_allclose(one["mean_distance_px"], found[name].mean(), rtol=1e-3)
        np.testing.assert_allclose(one["per_landmark_px"], found[name].mean(0), rtol=1e-3)
        # The ground truth and the mean shape, computed from the phantoms.
        drawn = phantoms.load(name, size=SIZE, count={"head": 6, "pronotum": 8}[name]).points * 2
        number = [int(row["image"][-7:-4]) for row in mine[::count]]
        true = np.array([[float(row["x_true"]), float(row["y_true"])] for row in mine]).reshape(images, count, 2)
        np.testing.assert_allclose(true, drawn[number], atol=1e-2)
        split = splits.by_group(np.arange(len(drawn)), folds=2, fold=0, valid=0.25, seed=0)
        assert sorted(number) == split.test.tolist()
        far = np.linalg.norm(drawn[split.train].mean(0) - drawn[split.test], axis=-1).mean()
        np.testing.assert_allclose(one["baselines"]["mean_shape"]["mean_distance_px"], far, rtol=1e-4)
        assert len(formats.read(workdir / "sets" / name / "predictions.csv")) == images
        assert (workdir / "sets" / name / "figures" / "per_landmark.png").exists()
        assert f'href="sets/{name}/report.html"' in (workdir / "report.html").read_text()
        assert None not in one["shape"].values() and one["baselines"]["mean_shape"]["shape"]["variance_ratio"] < 1e-3
    # No image shows all landmarks of both datasets.
    assert [key for key, value in summary["shape"].items() if value is None] == ["variance_ratio"]
    np.testing.assert_allclose(
        summary["mean_distance_px"], np.concatenate([f.ravel() for f in found.values()]).mean(), rtol=1e-3
    )
    assert (summary["images"], summary["landmarks"]) == (7, 18) and None not in summary["per_landmark_px"]
    assert [len(s.points) for s in tps.read(workdir / "predictions.tps")] == [10] * 3 + [8] * 4
    assert not (workdir / "figures" / "per_landmark.png").exists()
    read = report.tables.read_predictions(workdir / "predictions.csv")
    assert (
        read.points.shape == (7, 10, 2) and np.isnan(read.points[3:, 8:]).all() and np.isfinite(read.points[:3]).all()
    )


def test_problems_without_an_image_are_listed_for_each_dataset(universal, tmp_path):
    _, _, dataset, _ = universal
    samples = dataset.samples
    found = landmarks.with_truth(samples, samples.source_points, samples.visible * 1.0, -1)
    said = [{"image": image, "what": "something"} for image in ("", "head/", "pronotum/a.png")]
    parts = evaluate.score_sets({"network": found}, said, dataset, tmp_path)
    assert parts["head"]["failures"] == said[:2]
    assert parts["pronotum"]["failures"] == [said[0], said[2]]


@pytest.mark.parametrize("method", ["mean_shape", "registration"])
def test_datasets_without_test_images_are_left_out_of_scores(universal, tmp_path, method):
    """Such as when all new photographs, which no fold has seen, belong to one dataset."""
    _, _, dataset, _ = universal
    samples = dataset.samples
    heads, pronota = np.flatnonzero(samples.domain == 0), np.flatnonzero(samples.domain == 1)
    found = evaluate.baseline(method, samples.take(heads[:3]), samples.take(heads[3:]), dataset.columns)
    assert found[:, dataset.columns[0]].any() and not found[:, dataset.columns[1]].any()
    predicted = landmarks.with_truth(
        samples.take(pronota), samples.source_points[pronota], np.ones((len(pronota), 18)), -1
    )
    assert list(evaluate.score_sets({"network": predicted}, [], dataset, tmp_path)) == ["pronotum"]


def test_a_tested_dataset_without_training_images_has_no_baseline(universal, tmp_path):
    workdir, config, dataset, _ = universal
    held = next(trained.folds(configs.stage(config, "train"), workdir, "train", dataset.samples))
    heads = held.trained[dataset.samples.domain[held.trained] == 0]
    for rest, baselines in ((held.trained, ["mean_shape"]), (heads, [])):
        summary = evaluate.score([held._replace(trained=rest)], ("mean_shape",), dataset, tmp_path)
        assert list(summary["baselines"]) == baselines


def test_the_log_has_each_datasets_loss_term(universal):
    workdir, _, _, _ = universal
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["train/loss"] == pytest.approx(line["train/head"] + line["train/pronotum"])
        assert line["valid/loss"] == pytest.approx(line["valid/head"] + line["valid/pronotum"])
    # Training uses three pronota and two heads: an epoch is two batches of up to four, and four steps are two epochs.
    assert len(lines) == 2
    assert checkpoint.note(workdir / "checkpoints/train/fold0/best")["images"] == 5


def test_a_joined_run_predicts_only_for_a_named_dataset(universal, tmp_path, monkeypatch):
    workdir, _, dataset, _ = universal
    head = dataset.samples.select_domain(0, slice(0, 10))
    points, scores = predict.load(workdir, set="head")(head.images)
    assert (points.shape, scores.shape) == ((6, 10, 2), (6, 10))
    tested = rows_of(workdir / "sets" / "head" / "predictions.csv")
    known = {(row["image"], int(row["landmark"])): (float(row["x"]), float(row["y"])) for row in tested}
    mine = {(name, k + 1): 2 * points[n, k] for n, name in enumerate(head.name.tolist()) for k in range(10)}
    for place, point in known.items():
        np.testing.assert_allclose(mine[place], point, atol=0.02)
    for wrong in ("", "wing"):
        with pytest.raises(
            ValueError,
            match=rf"--set={wrong}: the run has datasets head, pronotum: name one of them, such as --set=head",
        ):
            predict.load(workdir, set=wrong)
    folder, keys = tmp_path / "new", own(tmp_path / "new")
    main.parse(["jaxmarks.main"])
    monkeypatch.setattr(main, "SET", SimpleNamespace(value="pronotum"))
    given = ml_collections.ConfigDict({"data": keys | {"group_by": ""}})
    main.predict(given, workdir)
    assert len(rows_of(workdir / "predict" / "predictions.csv")) == 6 * 8
    with pytest.raises(ValueError, match=r"the data have 11 landmarks, but the run's network finds 8"):
        main.evaluate(given, workdir)
    with pytest.raises(ValueError, match="--set=pronotum: it says which dataset new photographs belong to"):
        main.evaluate(ml_collections.ConfigDict({"data": {"images": ""}}), workdir)
    monkeypatch.setattr(main, "SET", SimpleNamespace(value=""))
    for mode in (main.predict, main.evaluate):
        with pytest.raises(ValueError, match="name one of them, such as --set=head"):
            mode(given, workdir)
    about = serving.export(workdir, folder / "export", set="pronotum")
    assert about["outputs"] == {"points": ["batch", 8, 2], "scores": ["batch", 8]}


def test_a_body_transfers_to_one_dataset_and_back(universal, tmp_path, capsys):
    many, _, _, _ = universal
    single = get_config(**{"init_from": str(many), "optimizer.learning_rate": 0.0, "data.part": "elytra"})
    single.data.sets = {}
    train.train(single, tmp_path / "one")
    back = get_config(**{"init_from": str(tmp_path / "one"), "optimizer.learning_rate": 0.0})
    train.train(back, tmp_path / "back")
    bodies = [
        checkpoint.restore(runs.folder_of(workdir, "train", runs.Member(0)) / "best")[0]["params"]["body"]
        for workdir in (many, tmp_path / "one", tmp_path / "back")
    ]
    for each in zip(*map(jax.tree.leaves, bodies), strict=True):
        np.testing.assert_array_equal(each[0], each[1])
        np.testing.assert_array_equal(each[0], each[2])
    said = capsys.readouterr().out
    assert "  new: head/maps/bias (not in the source)" in said and "  unused: head/head/maps/bias" in said
    with pytest.raises(ValueError, match="--set=head: the run has one dataset"):
        predict.load(tmp_path / "one", set="head")
    # A finished run whose config lacks the newer keys is recognised and not trained again.
    old = json.loads((tmp_path / "one" / "config.json").read_text())
    del old["data"]["sets"], old["train"]["balance"]
    (tmp_path / "one" / "config.json").write_text(json.dumps(old))
    train.train(single, tmp_path / "one")
    assert "epoch" not in capsys.readouterr().out
    assert predict.load(tmp_path / "one")(np.zeros((1, *SIZE, 3), np.uint8))[0].shape == (1, 11, 2)


def test_a_resumed_run_equals_an_uninterrupted_one(universal, tmp_path, monkeypatch):
    whole, _, _, _ = universal
    config = get_config(**{"train.checkpoint_seconds": -1})
    save = checkpoint.save

    def killed(folder, *rest):
        save(folder, *rest)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        train.train(config, tmp_path)
    monkeypatch.setattr(checkpoint, "save", save)
    train.train(config, tmp_path)
    ends = [
        checkpoint.restore(runs.folder_of(workdir, "train", runs.Member(0)) / "last")[0]
        for workdir in (whole, tmp_path)
    ]
    assert checkpoint.fingerprint(ends[0]) == checkpoint.fingerprint(ends[1])


def test_the_own_variant_names_the_datasets():
    config = runpy.run_path(str(CONFIG))["get_config"]("own=ceph+chest")
    assert set(config.data.sets) == {"ceph", "chest"} and config.data.sets.chest.flip == ()
    config.update_from_flattened_dict({"data.sets.chest.images": "photographs", "data.sets.chest.fit": "stretch"})
    chest, ceph = (loading.of_set(config.data, name) for name in ("chest", "ceph"))
    assert (chest.images, chest.fit, tuple(chest.size)) == ("photographs", "stretch", (192, 256)) and not ceph.images


def test_invalid_set_names_and_values_are_refused():
    with pytest.raises(ValueError, match=r"config variant own=left-wing\+b: 'left-wing' is not a valid dataset name"):
        runpy.run_path(str(CONFIG))["get_config"]("own=left-wing+b")
    with pytest.raises(ValueError, match=r"--config\.data\.sets\.w=3: give the keys in which it differs"):
        loading.of_set(ml_collections.ConfigDict({"images": "", "sets": {"w": 3}}), "w")


def test_a_photograph_in_two_datasets_is_in_one_group(tmp_path):
    first = own(tmp_path / "a")
    rows = (tmp_path / "a" / "points.csv").read_text().splitlines()
    (tmp_path / "a" / "fewer.csv").write_text("\n".join(",".join(row.split(",")[:5]) for row in rows[:5]) + "\n")
    second = {"images": str(tmp_path / "b" / ".." / "a"), "landmarks": str(tmp_path / "a" / "fewer.csv")}
    (tmp_path / "b").mkdir()
    samples = loading.load(get_config({"a": first, "b": second}).data).samples
    assert samples.group.tolist() == [0, 0, 1, 1, 2, 2, 0, 0, 1, 1]
    # So is a copy in another folder.
    copies = loading.load(get_config({"a": first, "c": own(tmp_path / "c")}).data).samples
    assert copies.group.tolist() == [0, 0, 1, 1, 2, 2] * 2


def test_groups_stay_separate_if_no_photograph_is_shared(tmp_path):
    group = loading.load(get_config({"a": own(tmp_path / "a"), "b": own(tmp_path / "b", seed=1)}).data).samples.group
    assert group.dtype == np.int64 and group.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_datasets_keep_specimens_apart_and_may_share_photographs(tmp_path):
    dataset = loading.load(get_config({"a": own(tmp_path / "a"), "c": own(tmp_path / "c")}).data)
    assert dataset.samples.specimen.tolist() == [f"{name}/beetle {s // 2}" for name in "ac" for s in range(6)]
    # A photograph in two datasets is no problem. The one problem of each dataset is the landmark outside its image.
    assert [p["image"] for p in dataset.problems] == ["a/1.png", "c/1.png"]
