"""The benchmark, tiny: every side is the same network with the same loss, and the tables say what was measured."""

import importlib.util
import json
import sys

import bench
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import peers
import pytest

from jaxmarks import heads, tasks

needs_torch = pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="torch is not installed")


@needs_torch
@pytest.mark.parametrize("name", bench.NETWORKS)
def test_a_peer_has_our_parameters_and_our_loss(name):
    import torch

    wanted = bench.spec(name, quick=True)
    network = peers.torch_network(wanted)
    head = heads.build(wanted["settings"]["head"], size=tuple(wanted["settings"]["data"]["size"]), **wanted["facts"])
    data = peers.examples(wanted)
    theirs = {key: torch.as_tensor(array) for key, array in data.items()}
    outputs = network(theirs["images"].permute(0, 3, 1, 2) / 255)
    ours = jnp.asarray(outputs.detach().numpy())
    if outputs.ndim == 4:
        ours = jnp.moveaxis(ours, 1, -1)
    b = wanted["batch"]
    if name == "network3":
        ours = ours.reshape(b, -1, 2)
    if name == "yolo_tiny":
        ours = ours.reshape(*ours.shape[:3], len(wanted["facts"]["anchors"]), -1)
    labels, visible = jnp.zeros((b, 6), jnp.int32), jnp.ones(data["points"].shape[:2], bool)
    batch = {key: jnp.asarray(data[key]) for key in ("points", "boxes")}
    targets = head.targets(batch | {"labels": labels, "visible": visible, "real": jnp.ones(b, bool)})
    total, count = head.loss(ours, targets)
    expected = float(sum(jax.tree.leaves(total)) / count)
    assert float(peers.torch_loss(wanted)(outputs.detach(), theirs)) == pytest.approx(expected, rel=1e-4)
    settings = ml_collections.ConfigDict(wanted["settings"])
    made, _ = tasks.build(settings, wanted["facts"])
    variables = jax.eval_shape(made.init, jax.random.key(0), jnp.zeros((1, *settings.data.size, settings.channels)))
    assert sum(p.numel() for p in network.parameters()) == sum(p.size for p in jax.tree.leaves(variables["params"]))


@pytest.mark.slow
def test_a_quick_benchmark_writes_its_tables(tmp_path):
    arguments = [
        "--quick",
        "--parts=steps,folds,load",
        "--only=network3",
        "--peers=keras",
        "--repeats=2",
        f"--out={tmp_path}",
    ]
    assert bench.main([*arguments, f"--keras-python={sys.executable}"]) == 0
    found = json.loads((tmp_path / "bench.json").read_text())
    ours, keras = found["steps"]
    assert ours["parameters"] > 0 and 0 < ours["train"]["least"] <= ours["train"]["median"] <= ours["train"]["most"]
    assert importlib.util.find_spec("keras") or "error" in keras
    (folds,) = found["folds"]
    assert folds["one after another"]["median"] > 0 and folds["at once"]["median"] > 0
    assert {row["side"] for row in found["load"]} == {"jaxmarks", "Pillow, a loop", "Pillow, threads"}
    table = (tmp_path / "bench.md").read_text()
    assert "| network3 |" in table and f"{ours['train']['median']:.1f}" in table


def test_an_unknown_name_lists_those_there_are(capsys):
    with pytest.raises(SystemExit):
        bench.parse(["--only=network4"])
    assert "network3" in capsys.readouterr().err


def test_growth_is_drawn(tmp_path):
    rows = [{"network": "n", "axis": "batch", "value": n, "train": bench.spread([n, 1.1 * n])} for n in (1, 2, 4)]
    bench.draw(rows, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000
    assert np.isclose(rows[0]["train"]["median"], 1050)
