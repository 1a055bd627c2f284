"""ONNX files against the networks they were made of, where jax2onnx is installed (`pip install 'jaxmarks[onnx]'`)."""

import importlib
import json
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarks import evaluate, find, predict, serving, train
from jaxmarks.models import layers

jax2onnx = pytest.importorskip("jax2onnx")
onnxruntime = pytest.importorskip("onnxruntime")
ROOT = Path(__file__).parent.parent


def results(file, images):
    return onnxruntime.InferenceSession(str(file)).run(None, {"images": images})


@pytest.mark.parametrize(
    "name", [n for n in find.names("jaxmarks.models") if n not in ("decoders", "layers", "weights")]
)
def test_every_body_is_the_same_in_onnx(name, tmp_path):
    body = importlib.import_module(f"jaxmarks.models.{name}")
    network = body.build(**body.TINY)
    images = np.random.default_rng(0).normal(size=(3, 64, 64, 3)).astype(np.float32)
    variables = network.init(jax.random.key(0), jnp.asarray(images))
    call = lambda images: jax.tree.leaves(network.apply(variables, images, train=False))[0]
    with layers.lowering("plain"):
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
def test_a_run_as_onnx_files(name, tmp_path):
    config = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]("smoke")
    config.train.steps = 2
    train.train(config, tmp_path)
    about = serving.export_onnx(tmp_path, tmp_path / "export", fold=1)
    assert about == json.loads((tmp_path / "export" / "onnx.json").read_text())
    assert about["files"] == ["network_1.onnx"] and about["head"]["name"] == config.head.name
    size = tuple(config.data.size)
    images = np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    found = results(tmp_path / "export" / "network_1.onnx", images.astype(np.float32))
    task, _, networks, _ = predict.networks_of(tmp_path, fold=1)
    points, scores = evaluate.predictor(task)(networks, images)
    assert list(about["outputs"]) == (["points", "scores"] if name == "beetle" else ["outputs"])
    assert [["batch", *array.shape[1:]] for array in found] == list(about["outputs"].values())
    if name == "fish":
        found = task.decode(jnp.asarray(found[0]))
    np.testing.assert_allclose(found[0], points, atol=1e-3)
    np.testing.assert_allclose(found[1], scores, atol=1e-4)
