"""ONNX files compared with the networks they were made from; needs jax2onnx (`pip install 'jaxmarks[onnx]'`)."""

import importlib
import json
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_predict import OBJECTS, noise, untrained

from jaxmarks import config as configs
from jaxmarks import find, platforms, predict, serving, steps, train, trained

jax2onnx = pytest.importorskip("jax2onnx")
onnxruntime = pytest.importorskip("onnxruntime")
ROOT = Path(__file__).parent.parent


def results(file, images):
    return onnxruntime.InferenceSession(str(file)).run(None, {"images": images})


@pytest.mark.parametrize(
    "name", [n for n in find.names("jaxmarks.models") if n not in ("decoders", "layers", "weights")]
)
def test_every_body_has_the_same_outputs_in_onnx(name, tmp_path):
    body = importlib.import_module(f"jaxmarks.models.{name}")
    network = body.build(**body.TINY)
    images = np.random.default_rng(0).normal(size=(3, 64, 64, 3)).astype(np.float32)
    variables = network.init(jax.random.key(0), jnp.asarray(images))
    call = lambda images: jax.tree.leaves(network.apply(variables, images, train=False))[0]
    with platforms.tracing_for("plain"):
        jax2onnx.to_onnx(
            call,
            [("batch", 64, 64, 3)],
            return_mode="file",
            output_path=str(tmp_path / "n.onnx"),
            input_names=["images"],
        )
    expected = np.asarray(call(images))
    for count in (1, 3):
        (found,) = results(tmp_path / "n.onnx", images[:count])
        np.testing.assert_allclose(found, expected[:count], rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["beetle", "fish"])
def test_exported_files_predict_like_the_run(name, tmp_path):
    config = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]("smoke")
    config.train.steps = 2
    train.train(config, tmp_path)
    about = serving.export_onnx(tmp_path, tmp_path / "export", fold=1)
    assert about == json.loads((tmp_path / "export" / "onnx.json").read_text())
    assert about["files"] == ["network_1.onnx"] and about["head"]["name"] == config.head.name
    size = tuple(config.data.size)
    images = np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    found = results(tmp_path / "export" / "network_1.onnx", images.astype(np.float32))
    task, _, networks, _ = trained.networks_of(tmp_path, fold=1)
    points, scores = steps.predictor(task)(networks, images)
    assert list(about["outputs"]) == (["points", "scores"] if name == "beetle" else ["outputs"])
    assert [["batch", *array.shape[1:]] for array in found] == list(about["outputs"].values())
    if name == "fish":
        found = task.head.decode(jnp.asarray(found[0]))
    np.testing.assert_allclose(found[0], points, atol=1e-3)
    np.testing.assert_allclose(found[1], scores, atol=1e-4)


@pytest.mark.parametrize("zoom", [1.0, 2.0])
def test_bfloat16_runs_are_exported_in_float32_and_with_a_single_look(zoom, tmp_path):
    changes = {"split.run": (0,), "data.size": (64, 64)}
    halves, wholes = (
        untrained(tmp_path / dtype, "fish", "smoke", {"landmarks": 5}, **changes, **{"train.dtype": dtype})
        for dtype in ("bfloat16", "float32")
    )
    config = configs.load(halves / "config.json")
    config.data.zoom = zoom
    configs.save(config, halves / "config.json")
    about = serving.export_onnx(halves, tmp_path / "export")
    assert about["zoom"] == zoom
    images = noise(2, 64, 64, 3)
    (found,) = results(tmp_path / "export" / about["files"][0], images.astype(np.float32))
    task, _, (variables,), _ = trained.networks_of(wholes)
    expected = np.asarray(task.apply(variables, task.plain({"images": images})["images"], train=False))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["a", "b"])
def test_one_of_several_datasets_is_exported(name, tmp_path):
    facts = {"landmarks": 5, "sets": {"a": (0, 2), "b": (2, 5)}}
    changes = {"split.run": (0,), "data.sets": {"a": {"part": "pronotum"}, "b": {"part": "head"}}}
    run = untrained(tmp_path / "run", "universal", "smoke", facts, **changes)
    about = serving.export_onnx(run, tmp_path / "export", set=name)
    count = {"a": 2, "b": 3}[name]
    assert about["set"] == name and about["outputs"] == {"outputs": ["batch", 32, 32, count]}
    images = noise(2, 64, 64, 3)
    (maps,) = results(tmp_path / "export" / about["files"][0], images.astype(np.float32))
    task, *_ = trained.networks_of(run, set=name)
    points, scores = predict.load(run, set=name)(images)
    found = task.head.decode(jnp.asarray(maps))
    np.testing.assert_allclose(found[0], points, atol=1e-3)
    np.testing.assert_allclose(found[1], scores, atol=1e-5)


def test_learned_shapes_are_not_an_output(tmp_path):
    changes = {"split.run": (0,), "data.size": (64, 64)}
    run = untrained(tmp_path / "run", "spines", "sp_cnn,smoke", OBJECTS, **changes)
    rings = serving.export_onnx(run, tmp_path / "rings")["outputs"]
    run = untrained(tmp_path / "learned", "spines", "sp_cnn,smoke", OBJECTS, **changes, **{"head.shapes": "learned"})
    about = serving.export_onnx(run, tmp_path / "export")
    assert about["outputs"] == rings and list(rings) == ["maps"]
    (maps,) = results(tmp_path / "export" / about["files"][0], noise(2, 64, 64, 3).astype(np.float32))
    assert ["batch", *maps.shape[1:]] == about["outputs"]["maps"]


def test_faster_rcnn_is_refused_before_anything_is_written(tmp_path):
    facts = OBJECTS | {"anchors": [[10.0, 10.0], [20.0, 20.0], [15.0, 9.0]]}
    run = untrained(tmp_path / "run", "spines", "faster_rcnn,smoke", facts, **{"split.run": (0,)})
    with pytest.raises(ValueError, match=r"Faster R-CNN cannot be exported to ONNX.*use --format=jax"):
        serving.export_onnx(run, tmp_path / "export")
    assert not (tmp_path / "export").exists()
