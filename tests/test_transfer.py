"""Transfer between anatomies: stages with their own data, starts from another run, and training options combined."""

import functools
import json
import runpy
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import jax
import ml_collections
import numpy as np
import optax
import pytest
from PIL import Image

from jaxmarks import checkpoint, evaluate, formats, phantoms, processes, runs, tasks, train
from jaxmarks.data.samples import Annotation

CONFIG = Path(__file__).parent.parent / "configs" / "fish.py"


def photographs(folder, part, count=8):
    """Writes phantom photographs of a part and their landmarks; returns the config entries that name them."""
    folder.mkdir()
    annotations = []
    for s in range(count):
        image, points = phantoms.draw(part, s, size=(48, 64))
        Image.fromarray(image).save(folder / f"{s}.png")
        annotations.append(
            Annotation(image=f"{s}.png", points=points.astype(float), visible=np.ones(len(points), bool))
        )
    formats.write(folder / "points.csv", annotations)
    return {"images": str(folder), "landmarks": str(folder / "points.csv")}


def get_config(**changes):
    config = runpy.run_path(str(CONFIG))["get_config"]("smoke")
    config.model, config.head = {"name": "sp_cnn", "width": 4, "kernel": 3}, {"name": "softargmax", "divergence": 0.5}
    config.augment = {"name": "none"}
    config.baselines = ()
    config.update_from_flattened_dict(
        {"data.size": (32, 32), "train.devices": 1, "train.steps": 4, "split.run": (0,), "split.folds": 2} | changes
    )
    return config


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory):
    """A trained run of two stages, pronota and then elytra: folder, config, datasets and printed lines."""
    root = tmp_path_factory.mktemp("transfer")
    own = {part: photographs(root / part, part) for part in ("pronotum", "elytra")}
    config = get_config(**{f"data.{key}": value for key, value in own["elytra"].items()})
    config.train.update(batch_size=2, accumulate=2, ema=0.5, mixup=0.75)
    config.optimizer.rates = (("body/", 0.1),)
    config.stages = ("chest", "train")
    config.stage = ml_collections.ConfigDict({"chest": {"data": own["pronotum"]}, "train": {}})
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *text, **_: said.append(" ".join(map(str, text))))
        datasets = train.train(config, root / "run")
    return root, config, datasets, said


def test_stages_have_their_own_data_and_landmarks(two_stages):
    root, config, datasets, said = two_stages
    assert [datasets[stage].samples.points.shape[1] for stage in ("chest", "train")] == [8, 11]
    note = checkpoint.note(root / "run/checkpoints/train/fold0/best")
    assert note["facts"] == {"landmarks": 11}
    new = next(line for line in said if line.startswith("  new:"))
    assert new == (
        "  new: head/maps/bias (source has (8,), network (11,)), head/maps/kernel (source has (4, 8), network (4, 11))"
    )
    assert any(line.startswith("initialised from") and "checkpoints/chest/fold0/best" in line for line in said)
    summary = evaluate.of_run(config, root / "run", datasets["train"])
    assert (summary["landmarks"], summary["images"]) == (11, 4)
    names = {row.split(",")[0] for row in (root / "run" / "predictions.csv").read_text().splitlines()[1:]}
    assert len(names) == 4 and names < {f"{s}.png" for s in range(8)}


def test_logged_loss_terms_add_up_to_the_loss(two_stages):
    root = two_stages[0]
    for line in map(json.loads, (root / "run" / "metrics.jsonl").read_text().splitlines()):
        for split in ("train", "valid"):
            assert line[f"{split}/loss"] == pytest.approx(line[f"{split}/wing"] + line[f"{split}/0.5 divergence"])
        assert line["valid/distance_px"] > 0


def test_init_from_adapts_to_another_number_of_channels(two_stages, tmp_path, capsys):
    root = two_stages[0]
    grey = get_config(
        **{"channels": 1, "init_from": str(root / "run"), "data.count": 8, "optimizer.learning_rate": 0.0}
    )
    train.train(grey, tmp_path / "run")
    said = capsys.readouterr().out
    assert "  adapted: body/" in said and "(from 3 to 1 channels)" in said
    mine, theirs = (
        checkpoint.restore(runs.folder_of(folder, "train", runs.Member(0)) / "best")[0]["params"]["body"]
        for folder in (tmp_path / "run", root / "run")
    )
    [(grey, colour)] = [
        (a, b) for a, b in zip(*map(jax.tree.leaves, (mine, theirs)), strict=True) if a.shape != b.shape
    ]
    np.testing.assert_allclose(grey, colour.sum(-2, keepdims=True), rtol=1e-5)


def test_the_moving_average_is_saved(tmp_path):
    """The first update's decay is 2/11, which is below 0.2: the initial parameters keep that weight in the average."""
    ends = []
    for ema in (0.0, 0.2):
        config = get_config(
            **{"train.ema": ema, "train.steps": 1, "train.epochs": 0, "data.count": 8, "split.valid": 0.0}
        )
        train.train(config, tmp_path / str(ema))
        ends.append(
            checkpoint.restore(runs.folder_of(tmp_path / str(ema), "train", runs.Member(0)) / "last")[0]["params"]
        )
    start = initial(config)
    for first, plain, mean in zip(*map(jax.tree.leaves, (start, *ends)), strict=True):
        np.testing.assert_allclose(mean, first * 2 / 11 + plain * 9 / 11, rtol=1e-3, atol=1e-6)


def test_unsupported_training_settings_are_refused(tmp_path):
    for key, value, message in (
        ("train.devices", jax.device_count() + 1, r"train\.devices=.: only . are available"),
        ("train.sizes", (24, 48), "fully connected"),
        ("train.coarse", 0.5, r"train\.coarse=0\.5.*fully connected.*leave it 0"),
        ("freeze", ".*", "nothing to train"),
        ("optimizer.name", "sgd", "choose one of nesterov"),
    ):
        with pytest.raises(ValueError, match=message):
            config = get_config(**{key: value, "data.count": 8, "split.valid": 0.0})
            if key in ("train.sizes", "train.coarse"):
                config.model, config.head = {"name": "beetle"}, {"name": "direct"}
            train.train(config, tmp_path / key)


def test_init_skip_must_match_a_parameter(two_stages, tmp_path):
    config = get_config(
        **{"init_from": str(two_stages[0] / "run"), "init_skip": "fc1", "data.count": 8, "split.valid": 0.0}
    )
    with pytest.raises(ValueError, match=r"init_skip='fc1' matches no parameter from its start; the parameters are"):
        train.train(config, tmp_path)


def initial(config):
    """The initial parameters of the only fold of the only stage."""
    network, _ = tasks.build(config, {"landmarks": 8})
    key = jax.random.fold_in(jax.random.key(config.seed), int.from_bytes(b"trai", "big") % 2**31)
    return tasks.initial(network, config, jax.random.fold_in(key, 0))["params"]


def test_detectors_refuse_mixup(tmp_path):
    config = runpy.run_path(str(CONFIG.with_name("spines.py")))["get_config"]("smoke")
    config.train.mixup = 0.5
    with pytest.raises(ValueError, match=r"--config\.train\.mixup=0\.5: detectors"):
        train.train(config, tmp_path)


def test_accumulate_above_the_number_of_batches_is_refused(tmp_path):
    config = get_config(**{"train.accumulate": 50, "data.count": 8})
    with pytest.raises(ValueError, match=r"accumulate=50: the whole training has 4 batches"):
        train.train(config, tmp_path)


def test_a_run_with_all_options_resumes_bit_for_bit(tmp_path, monkeypatch):
    changes = {"train.steps": 12, "train.batch_size": 2, "train.checkpoint_seconds": -1, "data.count": 8}
    tools = {
        "train.ema": 0.5,
        "train.accumulate": 3,
        "train.mixup": 0.75,
        "train.coarse": 0.7,
        "augment.name": "modern",
    }
    config = get_config(**changes, **tools)
    train.train(config, tmp_path / "whole")
    save, saved = checkpoint.save, []

    def killed(folder, *rest):
        save(folder, *rest)
        saved.append(folder)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        train.train(config, tmp_path / "cut")
    assert {folder.name for folder in saved} == {"resume"}
    monkeypatch.setattr(checkpoint, "save", save)
    train.train(config, tmp_path / "cut")
    whole, cut = (
        checkpoint.restore(runs.folder_of(tmp_path / name, "train", runs.Member(0)) / "last")[0]
        for name in ("whole", "cut")
    )
    assert checkpoint.fingerprint(cut) == checkpoint.fingerprint(whole)
    assert json.loads((tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()[-1])["epoch"] > 2


def test_errors_in_the_last_stage_are_raised_before_training(two_stages, tmp_path):
    _, config, *_ = two_stages
    for changes, message in (
        ({"flip": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0)}, "mirroring twice"),
        ({"landmarks": str(tmp_path / "none.csv")}, "no such file"),
    ):
        slip = ml_collections.ConfigDict(json.loads(config.to_json()))
        slip.augment = {"name": "modern", "mirror": 0.5}
        slip.stage.train = {"data": changes}
        with pytest.raises(ValueError, match=message):
            train.train(slip, tmp_path / "run")
    slip = ml_collections.ConfigDict(json.loads(config.to_json()))
    slip.stage.train = {"freeze": "nothing"}
    with pytest.raises(ValueError, match="matches no parameter"):
        train.train(slip, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_init_from_takes_the_last_stage_that_is_trained(two_stages, tmp_path):
    root = two_stages[0]
    (tmp_path / "config.json").write_text((root / "run" / "config.json").read_text())
    member = runs.Member(0)
    shutil.copytree(root / "run/checkpoints/chest", tmp_path / "checkpoints/chest")
    start = get_config(init_from=str(tmp_path))
    assert runs.source_of(start, tmp_path, [], member) == tmp_path / "checkpoints/chest/fold0/best"
    start.init_from = str(root / "run")
    assert runs.source_of(start, tmp_path, [], member) == root / "run/checkpoints/train/fold0/best"


@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_refuses_to_go_on_once_its_source_was_trained_anew(stopped, two_stages, tmp_path, monkeypatch):
    """Trained or stopped before its end, it would mix two sources; one that is gone says nothing."""
    shutil.copytree(two_stages[0] / "run", tmp_path / "source")
    config = get_config(**{"init_from": str(tmp_path / "source"), "data.count": 8, "train.checkpoint_seconds": 0})
    if stopped:
        monkeypatch.setattr(processes, "stop_requested", lambda: True)
        with pytest.raises(InterruptedError):
            train.train(config, tmp_path / "run")
        monkeypatch.undo()
    else:
        train.train(config, tmp_path / "run")
        train.train(config, tmp_path / "run")  # the same source: nothing to do
    best = tmp_path / "source/checkpoints/train/fold0/best"
    variables, note = checkpoint.restore(best)
    checkpoint.save(best, jax.tree.map(lambda x: x + 1, variables), note)
    with pytest.raises(ValueError, match=rf"fold 0: it started from another network than the one .* in {best}"):
        train.train(config, tmp_path / "run")
    if not stopped:
        shutil.rmtree(tmp_path / "source")
        train.train(config, tmp_path / "run")


def test_one_command_writes_to_a_folder_at_a_time(tmp_path):
    with runs.locked(tmp_path):
        command = f"from jaxmarks import runs\nwith runs.locked({str(tmp_path)!r}): print('in')"
        held = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
        assert "another command is writing to this folder" in held.stderr and "in" not in held.stdout.split()
    assert subprocess.run([sys.executable, "-c", command], capture_output=True, text=True).stdout == "in\n"


def test_a_process_with_another_config_is_refused(two_stages, monkeypatch):
    _, config, *_ = two_stages
    theirs = json.loads(config.to_json()) | {"seed": 7}
    monkeypatch.setattr(processes, "agree", lambda value: theirs)
    with pytest.raises(ValueError, match=r"another config than process 0 .*seed: 7 / 0"):
        train.refuse_other_processes(config)


def test_coarse_epochs_count_as_less_work():
    """Six of twelve epochs are coarse: the sides of their frames are 2/3 as long, so they have 4/9 of the pixels."""
    work = functools.partial(train.Training.work, SimpleNamespace(coarse=6.0))
    np.testing.assert_allclose(
        [work(0, 12), work(0, 3), work(4, 8), work(8, 12)], [6 * 4 / 9 + 6, 3 * 4 / 9, 2 * 4 / 9 + 2, 4]
    )


def test_slow_checkpoints_are_saved_less_often(monkeypatch):
    """A save of 10 s may come every 200 s, and at every opportunity if the interval is 0."""
    for seconds, elapsed, due in ((60, 199, False), (60, 201, True), (300, 299, False), (0, 1, True), (-1, 0, True)):
        options = SimpleNamespace(train=SimpleNamespace(checkpoint_seconds=seconds))
        one = SimpleNamespace(settings=options, saved_at=1000.0, save_seconds=10.0)
        monkeypatch.setattr(train.time, "perf_counter", lambda elapsed=elapsed: 1000.0 + elapsed)
        assert train.Training.checkpoint_due(one) == due


def test_the_data_of_a_trained_network_are_freed_before_the_next(two_stages, tmp_path, monkeypatch):
    kept, build = [], train.Training.__init__

    def counting(self, *arguments):
        kept.append([each() is not None for each in trainings])
        build(self, *arguments)
        trainings.append(weakref.ref(self.arrays["images"]))

    trainings = []
    monkeypatch.setattr(train.Training, "__init__", counting)
    train.train(get_config(**{"data.count": 8, "split.run": (0, 1), "train.steps": 1}), tmp_path)
    assert kept == [[], [False]]


def test_a_nan_validation_loss_is_never_the_best():
    losses = iter([float("nan"), 1.0, 0.5, float("nan")])
    state = SimpleNamespace(opt_state=optax.EmptyState(), replace=lambda **_: state)
    one = SimpleNamespace(
        plan=SimpleNamespace(valid=[0]), settled=lambda: {"params": {}}, score=lambda _: {"valid/loss": next(losses)},
        progress=train.Progress(), state=state, best=None, coarse=0.0,
    )  # fmt: skip
    for epoch in range(1, 5):
        train.Training.validate(one, epoch)
    assert (one.progress.best_valid, one.progress.best_epoch) == (0.5, 3)
