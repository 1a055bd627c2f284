"""The fish paper's protocol at small scale: early stopping, landmarks missing in every way, the config's variants."""

import dataclasses
import functools
import json
import re
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxmarks import config as configs
from jaxmarks import evaluate, formats, heads, landmarks, models, phantoms, report, runs, tasks, train
from jaxmarks.data import loading
from jaxmarks.data.samples import Annotation
from jaxmarks.ops import shape

ROOT = Path(__file__).parent.parent
get_config = runpy.run_path(str(ROOT / "configs" / "fish.py"))["get_config"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Twelve small drawn photographs of one size, and their landmarks."""
    folder = tmp_path_factory.mktemp("fish")
    annotations = []
    for s in range(12):
        image, points = phantoms.draw("pronotum", s, size=(48, 64))
        Image.fromarray(image).save(folder / f"{s}.png")
        annotations.append(Annotation(image=f"{s}.png", points=points.astype(float), visible=np.ones(8, bool)))
    return folder, annotations


def small(photographs, tmp_path, hidden, **changes):
    """A two-fold config on the photographs; the landmarks `hidden` (a slice of the 8) are visible in no image."""
    folder, annotations = photographs
    for a in annotations:
        a.visible[:] = True
        a.visible[hidden] = False
    annotations[0].visible[1] = False
    formats.write(tmp_path / "points.csv", annotations)
    config = get_config("own,smoke")
    config.update_from_flattened_dict(
        {
            "data.images": str(folder),
            "data.landmarks": str(tmp_path / "points.csv"),
            "data.size": (32, 32),
            "data.zoom": 1.0,
            "split.folds": 2,
            "model.width": 4,
            "model.depth": 2,
            "train.devices": 1,
            "train.steps": 4,
        }
        | changes
    )
    return config


def run(config, tmp_path):
    datasets = train.train(config, tmp_path / "run")
    dataset = datasets["train"]
    summary = evaluate.of_run(config, tmp_path / "run", dataset)
    report.write(tmp_path / "run", dataset.photograph)
    return summary


def test_mean_shape_is_fitted_to_the_training_images(photographs, tmp_path):
    config = small(photographs, tmp_path, slice(0, 0), **{"head.leap": 6.0})
    samples, shown = loading.load(config.data).samples, np.arange(5)
    found = tasks.fitted_facts(config, samples, shown)["shape"]
    expected = shape.procrustes(samples.points[:5], samples.visible[:5])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert tasks.fitted_facts(small(photographs, tmp_path, slice(0, 0), **{"head.leap": 0.0}), samples, shown) == {}
    anywhere = np.random.default_rng(0).uniform(0, 32, samples.points.shape).astype(np.float32)
    assert tasks.fitted_facts(config, dataclasses.replace(samples, points=anywhere), shown) == {}
    assert tasks.fitted_facts(config, samples, shown[:0]) == {}
    config.data.sets = {"a": {}, "b": {}}
    assert tasks.fitted_facts(config, samples, shown) == {}


@pytest.mark.parametrize("hidden", [slice(5, 6), slice(0, 8)], ids=["one landmark", "all"])
def test_landmarks_visible_nowhere_give_no_nan_and_are_reported(hidden, photographs, tmp_path, capsys):
    summary = run(small(photographs, tmp_path, hidden, **{"split.run": (0,), "head.leap": 6.0}), tmp_path)
    text = (tmp_path / "run" / "summary.json").read_text() + (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert not re.search(r"\bnan\b", (tmp_path / "run" / "predictions.csv").read_text(), re.IGNORECASE)
    named = "no landmark is visible in any training image" if hidden == slice(0, 8) else "in no training image: 6;"
    assert named in capsys.readouterr().out
    assert any(named in failure["what"] for failure in summary["failures"])
    assert summary["per_landmark_px"][5] is None
    assert (summary["mean_distance_px"] is None) == (hidden == slice(0, 8))


def test_training_stops_when_validation_does_not_improve(photographs, tmp_path, capsys):
    changes = {"train.epochs": 30, "train.patience": 3, "train.coarse": 0.0, "split.run": (0,)}
    changes["optimizer.learning_rate"] = 0.0
    run(small(photographs, tmp_path, slice(0, 0), **changes), tmp_path)
    epochs = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    best = int(np.argmin([e["valid/loss"] for e in epochs])) + 1
    assert len(epochs) == best + 3 < 30
    assert f"no lower validation loss since epoch {best}" in capsys.readouterr().out


def test_coarse_epochs_do_not_count_towards_patience(photographs, tmp_path):
    """Neither for early stopping nor for the plateau schedule. At a rate of 0, no later epoch improves the loss."""
    changes = {"train.epochs": 12, "train.patience": 3, "train.coarse": 0.5, "split.run": (0,), "data.size": (48, 48)}
    changes |= {"optimizer.learning_rate": 0.0, "optimizer.plateau": 2, "optimizer.plateau_factor": 0.5}
    config = small(photographs, tmp_path, slice(0, 0), **changes)
    seen, observe = [], train.optim.observe
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.optim, "observe", lambda *args: (seen.append(1), observe(*args))[1])
        run(config, tmp_path)
    epochs = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(epochs) == 6 + 3 and len(seen) == 3


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"train": {"coarse": 0.5}, "augment": {"name": "none"}}, "cannot resize frames"),
        ({"train": {"patience": 3}}, "train.patience=3 needs validation images"),
        ({"train": {"accumulate": 1000}}, "train.accumulate=1000"),
        ({"train": {"balance": "specimen"}}, "train.balance=specimen"),
    ],
)
def test_invalid_later_stage_is_refused_before_the_first_is_trained(second, message, photographs, tmp_path):
    config = small(photographs, tmp_path, slice(0, 0), **{"data.size": (48, 48), "split.valid": 0.0})
    config.stages, config.stage = ("one", "two"), {"two": second}
    with pytest.raises(ValueError, match=message):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_begun_run_accepts_other_pixels_only_if_size_is_set(photographs, tmp_path):
    """Configs of an earlier version had another default of `data.pixels`."""
    config = small(photographs, tmp_path, slice(0, 0), **{"data.pixels": 49152, "data.pose": "upright"})
    workdir = tmp_path / "run"
    (workdir / "checkpoints").mkdir(parents=True)
    configs.save(config, workdir / "config.json")
    config.data.pixels = 110592
    train.fill_in(config, workdir)
    runs.refuse_another(config, workdir)
    config.data.size = ()
    with pytest.raises(ValueError, match=r"holds a run with --config.data.pixels=49152, not 110592. Name another"):
        train.fill_in(config, workdir)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # from JAX: the rate exceeds float32
@pytest.mark.parametrize(
    ("epochs", "what"), [(1, "its parameters are not finite"), (2, "epoch 2: the training loss is nan")]
)
def test_diverged_training_stops_and_saves_no_network(epochs, what, photographs, tmp_path):
    changes = {"train.steps": 0, "train.epochs": epochs, "train.batch_size": 9, "split.run": (0,), "split.valid": 0.0}
    config = small(photographs, tmp_path, slice(0, 0), **changes)
    config.optimizer.learning_rate, config.optimizer.schedule = 1e39, "constant"
    with pytest.raises(FloatingPointError, match=f"train fold 0, {what}; lower --config.optimizer.learning_rate"):
        train.train(config, tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").glob("**/best"))
    config.optimizer.learning_rate = 1e-3  # as the message advises
    runs.refuse_another(config, tmp_path / "run")


def test_run_keeps_the_frame_size_derived_from_its_photographs(photographs, tmp_path):
    assert get_config("own").data.size == () and get_config("own,paper").data.size == (256, 256)
    assert get_config("own").head.leap == 8.0 and get_config("own,paper").head.leap == get_config().head.leap == 0.0
    open_frame = {"data.size": (), "data.pixels": 2048, "train.steps": 1, "split.run": (0,)}
    for _ in range(2):  # the same command resumes the same run
        config = small(photographs, tmp_path, slice(0, 0), **open_frame)
        train.train(config, tmp_path / "run")
        assert tuple(runs.config_of(tmp_path / "run").data.size) == config.data.size == (48, 64)


def test_learning_rate_drops_on_a_plateau(photographs, tmp_path):
    config = small(photographs, tmp_path, slice(0, 0), **{"train.epochs": 6, "split.run": (0,), "train.coarse": 0.0})
    config.optimizer = {"name": "rmsprop", "learning_rate": 1e-12, "plateau": 2, "plateau_factor": 0.2, "clip": 0.0}
    config.model.norm = "none"  # without batch statistics the validation loss does not change
    run(config, tmp_path)
    epochs = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    waited, rate, lowest = 0, 1e-12, np.inf
    for epoch in epochs:
        np.testing.assert_allclose(epoch["learning_rate"], rate, rtol=1e-5)  # the rate that the epoch was trained with
        waited = 0 if epoch["valid/loss"] < lowest else waited + 1
        lowest = min(lowest, epoch["valid/loss"])
        if waited >= 2:
            waited, rate = 0, rate * 0.2
    assert rate < 1e-12


def test_hit_rates_use_pixels_of_the_networks_frame():
    found = landmarks.Predictions(
        name=np.array(["a", "b"]), fold=np.zeros(2, int), points=np.float64([[[3, 0], [9, 0]], [[9, 0], [41, 0]]]),
        scores=np.ones((2, 2)), true=np.zeros((2, 2, 2)), visible=np.array([[True, True], [True, False]]),
        mm_per_px=np.full(2, np.nan), source_size=np.full((2, 2), 99), delta=np.array([4.0, 10.0]), id=np.full(2, ""),
    )  # fmt: skip
    # Distances of 3/4, 9/4 and 9/10 pixels of the frame; the fourth landmark is not visible.
    rates = landmarks.summarise(found)["hit_rates"]
    np.testing.assert_allclose([rates["1"], rates["2"], rates["3"]], [2 / 3, 2 / 3, 1], rtol=1e-6)


def test_std_over_folds_is_that_of_the_folds_metrics():
    """Distances: 3 and 9 in fold 0, 9 in fold 1, 12 and 1 in fold 2; 50 in an image that belongs to no fold (-1)."""
    at = lambda *x: np.stack([np.float64(x), np.zeros(len(x))], -1)
    found = landmarks.Predictions(
        name=np.array(["a", "b", "c", "d"]), fold=np.array([0, 1, 2, -1]),
        points=np.stack([at(3, 9), at(9, 0), at(12, 1), at(50, 50)]), scores=np.ones((4, 2)), true=np.zeros((4, 2, 2)),
        visible=np.array([[True, True], [True, False], [True, True], [True, True]]), mm_per_px=np.full(4, np.nan),
        source_size=np.full((4, 2), 99), delta=np.array([4.0, 10.0, 1.0, 1.0]), id=np.full(4, ""),
    )  # fmt: skip
    summary = landmarks.summarise(found)
    each = {fold["fold"]: fold["mean_distance_px"] for fold in summary["folds"]}
    assert each == {-1: 50, 0: 6, 1: 9, 2: 6.5}
    np.testing.assert_allclose(summary["std_over_folds_px"], np.std([6, 9, 6.5]), rtol=1e-6)
    np.testing.assert_allclose(summary["std_over_folds_median_px"], np.std([6, 9, 6.5]), rtol=1e-6)
    np.testing.assert_allclose(summary["std_over_folds_p95_px"], np.std([8.7, 9, 11.45]), rtol=1e-6)
    np.testing.assert_allclose(summary["std_over_folds_success_rates"]["10"], np.std([1, 1, 0.5]), rtol=1e-6)
    np.testing.assert_allclose(summary["std_over_folds_hit_rates"]["1"], np.std([0.5, 1, 0.5]), rtol=1e-6)
    assert landmarks.summarise(found._replace(fold=np.zeros(4, int)))["std_over_folds_median_px"] is None


def test_sdr_in_mm_and_pck_and_oks_relative_to_the_box():
    true = np.float64([[[0, 0], [100, 25], [9, 9]], [[0, 0], [40, 10], [0, 0]], [[5, 5], [5, 90], [0, 0]]])
    found = landmarks.Predictions(
        name=np.array(["a", "b", "c"]), fold=np.zeros(3, int), points=true + [[[3, 4]], [[0, 1]], [[0, 0]]],
        scores=np.full((3, 3), [[0.9], [0.5], [0.4]]), true=true, visible=np.array([[True, True, False]] * 3),
        mm_per_px=np.array([0.5, np.nan, 1.0]), source_size=np.full((3, 2), 99), delta=np.ones(3), id=np.full(3, ""),
    )  # fmt: skip
    summary = landmarks.summarise(found)
    # Errors of 2.5, 2.5, 0 and 0 mm; the second image has no scale.
    assert summary["sdr_mm"] == {"2": 0.5, "2.5": 1.0, "3": 1.0, "4": 1.0}
    # Errors of 5 of 100 px and 1 of 40 px; the third image's landmarks lie on a line, so that their box has no area.
    assert summary["pck"] == {"0.01": 0.0, "0.02": 0.0, "0.05": 1.0, "0.1": 1.0, "0.2": 1.0}
    similar = np.exp(-np.array([5**2 / 50**2, 1 / 20**2]) / (2 * 0.05**2))
    np.testing.assert_allclose(summary["oks"], similar.mean(), rtol=1e-5)
    # The second image (OKS 0.61) counts at 0.5, 0.55 and 0.6, ranked after a miss: precision 1/2 at recalls 0 to 0.5.
    np.testing.assert_allclose(summary["map_oks"], 3 / 10 * 51 / 101 / 2, rtol=1e-5)
    # Equal scores give no ranking.
    assert landmarks.summarise(found._replace(scores=np.ones((3, 3))))["map_oks"] is None
    unscaled = landmarks.summarise(found._replace(mm_per_px=np.full(3, np.nan), true=true[:, :1].repeat(3, 1)))
    assert (unscaled["sdr_mm"], unscaled["oks"], unscaled["map_oks"]) == (None, None, None)


CELLS = [f"{size},net={net},target={target}" for size in ("paper", "reduced", "own") for net, targets in {
    "unet": ("gaussian", "exponential", "direct"), "resnet50": ("gaussian", "exponential", "direct"),
    "fcn8": ("gaussian", "exponential"), "hrnet": ("gaussian", "exponential"),
}.items() for target in targets]  # fmt: skip


@functools.cache
def shapes(network, size, channels):
    """Shapes of the variables and the outputs; cached, since cells of different heatmap targets share a network."""
    return jax.eval_shape(network.init_with_output, jax.random.key(0), jnp.zeros((1, *size, channels)))[::-1]


def test_imagenet_weights_need_a_network_that_supports_them():
    config = get_config("paper,net=resnet50,imagenet")
    assert config.weights == "imagenet" and not get_config("paper,net=resnet50").weights
    tasks.check(config)
    with pytest.raises(ValueError, match="weights=imagenet: unet has no pretrained weights"):
        tasks.check(get_config("imagenet"))
    grid = runpy.run_path(str(ROOT / "configs" / "ablations" / "fish_table4.py"))["get_grid"]
    of = lambda text: {cell["column"]: "imagenet" in cell["config"] for cell in grid(text)["cells"]}
    assert [name for name, started in of("paper").items() if started] == ["ResNet50"] and not any(of("").values())


@pytest.mark.parametrize("text", CELLS)
def test_every_cell_of_the_papers_tables_can_be_built(text):
    """Checks only shapes, for 25 landmarks; at the paper's size also its parameter counts."""
    config = get_config(text)
    config.data.size = config.data.size or (208, 240)  # as it may follow from photographs
    network, task = tasks.build(config, {"landmarks": 25})
    variables, outputs = shapes(network, tuple(config.data.size), config.channels)
    points, scores = jax.eval_shape(task.head.decode, outputs)
    assert (points.shape, scores.shape) == ((1, 25, 2), (1, 25))
    if text.startswith("paper"):
        direct = "direct" in text
        millions = {"unet": 31, "resnet50": 30 if direct else 51, "fcn8": 17, "hrnet": 6.5}[config.model.name]
        count = sum(x.size for x in jax.tree.leaves(variables["params"]))
        assert count == pytest.approx(millions * 1e6, rel=0.05)
        if not direct:
            assert outputs.shape == (1, 256, 256, 25)  # heatmaps of the input's size


def test_direct_regression_needs_unet_or_resnet50():
    with pytest.raises(ValueError, match="net=unet or net=resnet50"):
        get_config("net=hrnet,target=direct")


def test_paper_config_has_the_papers_settings():
    config = configs.stage(get_config("paper,target=exponential"), "train")
    assert (config.head.sigma, config.head.loss, config.head.decoder) == (3.0, "mse", "argmax")
    assert (config.optimizer.name, config.optimizer.plateau, config.optimizer.plateau_factor) == ("rmsprop", 200, 0.2)
    assert (config.train.epochs, config.train.patience, config.split.folds, config.split.valid) == (2000, 400, 5, 0.25)
    assert tuple(config.data.size) == (256, 256)
    assert heads.build(config.head, landmarks=1, size=(256, 256))
    assert models.build(config.model)


@pytest.mark.parametrize(
    "size, coarse", [((288, 384), (192, 256)), ((208, 256), (144, 176)), ((128, 128), (96, 96)), ((32, 48), (32, 32))]
)
def test_coarse_frame_sides_are_two_thirds_rounded_up_to_multiples_of_16(size, coarse):
    config = get_config()
    config.data.size, config.train.coarse = size, 0.5
    assert tasks.sizes(config) == [coarse, size]


def test_first_steps_use_coarse_frames(photographs, tmp_path, monkeypatch):
    shown, runner = [], train.steps.runner

    def spied(*each, **options):
        made = runner(*each, **options)

        def run(*args):
            shown.extend(np.asarray(args[-1]).tolist())
            return made.run(*args)

        return made._replace(run=run)

    monkeypatch.setattr(train.steps, "runner", spied)
    changes = {"data.size": (48, 48), "split.run": (0,), "train.steps": 8, "train.batch_size": 3, "train.coarse": 0.6}
    assert run(small(photographs, tmp_path, slice(0, 0), **changes), tmp_path)["mean_distance_px"] > 0
    assert shown == [0] * 5 + [1] * 3


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"train.sizes": (32, 64), "train.coarse": 0.5}, r"train.coarse=0.5: they cannot be combined"),
        ({"train.coarse": 0.5, "augment.name": "none"}, "cannot resize frames"),
        (
            {"data.size": (64, 64), "train.coarse": 0.5, "model.depth": 6, "model.stride": 1},
            r"train.coarse=0.5 shows frames of \(48, 48\)",
        ),
        ({"train.patience": 3, "split.valid": 0.0}, "train.patience=3 needs validation images"),
        ({"train.sizes": (64, 96), "train.coarse": 0.0}, r"train.sizes=\(64, 96\).*data.size=\(32, 32\)"),
        ({"freeze": "encoder/.*"}, "freeze='encoder/.*' matches no parameter; the parameters are body/"),
        ({"baselines": ("mean-shape",)}, "landmarks have no baseline mean-shape; choose from mean_shape, registration"),
        ({"model.name": "fcn8"}, "config.model.depth: fcn8 does not have this option .it has width"),
        ({"head.name": "softargmax"}, "config.head.decoder: softargmax does not have this option .it has loss"),
    ],
)
def test_invalid_settings_are_refused(changes, message, photographs, tmp_path):
    with pytest.raises(ValueError, match=message):
        train.train(small(photographs, tmp_path, slice(0, 0), **changes), tmp_path / "run")
    if "baselines" in changes:
        assert not (tmp_path / "run" / "config.json").exists()


def test_init_from_replaces_pretraining_unless_it_is_the_only_stage():
    config = get_config("smoke")
    config.update({"stages": ("pretrain",), "init_from": "elsewhere"})
    assert runs.stages(config) == ["pretrain"]
    config.stages = ("pretrain", "train")
    assert runs.stages(config) == ["train"]


def test_landmark_names_are_kept_and_checked(photographs, tmp_path):
    folder, annotations = photographs
    rows = [f"{a.image},{name},{k},{k}" for a in annotations for k, name in enumerate(("eye", "tail"))]
    (tmp_path / "marks.csv").write_text("image,landmark,x,y\n" + "\n".join(rows))
    config = get_config("own")
    config.data.update({"images": str(folder), "landmarks": str(tmp_path / "marks.csv"), "size": (32, 48), "zoom": 1.0})
    dataset = loading.load(config.data)
    assert dataset.names == ("eye", "tail") and loading.facts(dataset)["names"] == ("eye", "tail")
    landmarks.check(dataset, [{"facts": {"landmarks": 2}}])
    landmarks.check(dataset, [{"facts": {"landmarks": 2, "names": ["eye", "tail"]}}])
    with pytest.raises(ValueError, match=r"landmark 2 is 'tail' in the data, but 'fin' in the run.* order, eye, fin"):
        landmarks.check(dataset, [{"facts": {"landmarks": 2, "names": ["eye", "fin"]}}])
    named = report.tables.per_landmark(np.ones((3, 2)), None, ["eye", "tail"])
    assert [row["landmark"] for row in named] == ["1 eye", "2 tail"]


@pytest.mark.parametrize(
    ("slip", "message"),
    [
        ({"model": {"output": "vector"}}, "model.output=map"),
        ({"model": {"depth": 9}}, "cannot be halved"),
        ({"optimizer": {"rates": (("bodyy/", 0.1),)}}, "bodyy/"),
        ({"freeze": "bodyy/"}, "freeze='bodyy/' matches no parameter"),
    ],
)
def test_check_trainable_finds_mistakes_in_a_later_stage(slip, message):
    config = get_config("smoke")
    config.stages, config.stage = ("train", "finetune"), {"finetune": slip}
    with pytest.raises(ValueError, match=message):
        tasks.check_trainable(configs.stage(config, "finetune"), {"landmarks": 8}, None)
