"""The benchmark with tiny networks: the peers have our networks and losses, and the tables hold the measurements."""

import importlib.util
import json
import sys
from pathlib import Path

import bench
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import peers
import pytest

from jaxmarks import heads, tasks

# A worker without a network; its first argument says where it fails.
WORKER = """
import os, sys
sys.path.insert(0, sys.argv[2])
import peers

def build(spec):
    asked = []

    def train(steps):
        asked.append(steps)
        if sys.argv[1] == "dies" and len(asked) == 5:
            os._exit(1)

    def predict(steps):
        if sys.argv[1] == "predict":
            raise ValueError("out of memory")

    if sys.argv[1] == "set":
        raise ValueError("no such network")
    return 8 if sys.argv[1] == "another" else 7, {"train": train, "predict": predict}

peers.serve(build)
"""

needs_torch = pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="torch is not installed")


@needs_torch
@pytest.mark.parametrize("name", peers.NETWORKS)
def test_a_peer_has_our_parameter_count_and_loss(name):
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
        "--parts=steps,folds,load,device",
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
    assert [row["precision"] for row in found["device"]] == list(bench.PRECISIONS)
    for row in found["device"]:
        assert row["predict 32, images/s"] == pytest.approx(32000 / row["predict 32"]["median"], rel=0.01)
        assert row["train, of a matmul"] == pytest.approx(row["train_flops_per_s"] / row["matmul"], abs=1e-3)
    table = (tmp_path / "bench.md").read_text()
    assert "| network3 |" in table and f"{ours['train']['median']:.1f}" in table


def test_an_unknown_name_lists_the_valid_ones(capsys):
    with pytest.raises(SystemExit):
        bench.parse(["--only=network4"])
    assert "network3" in capsys.readouterr().err


def test_flops_match_hand_counts():
    x, kernel, forward = jnp.ones((2, 8, 6, 3)), jnp.ones((3, 3, 3, 5)), 2 * (2 * 8 * 6 * 5) * (3 * 3 * 3)

    def conv(x, kernel, strides=(1, 1)):
        return jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert bench.flops(conv, x, kernel) == forward
    total = lambda x, kernel: (conv(x, kernel) ** 2).sum()
    assert bench.flops(jax.jit(jax.grad(total, argnums=(0, 1))), x, kernel) == 3 * forward
    halved = lambda x: conv(x, kernel, (2, 2)).sum()
    # The input's gradient takes 3 x 3 x 5 products per value; the stride of 2 makes three of four zero: not counted.
    assert bench.flops(jax.grad(halved), x) == forward // 4 + 2 * (2 * 8 * 6 * 3) * (3 * 3 * 5) // 4
    repeated = lambda a: jax.lax.scan(lambda b, _: (b @ b, None), a, length=7)
    assert bench.flops(repeated, jnp.ones((4, 4))) == 7 * 2 * 4**3


def test_growth_is_plotted(tmp_path):
    rows = [{"network": "n", "axis": "batch", "value": n, "train": bench.spread([n, 1.1 * n])} for n in (1, 2, 4)]
    bench.draw(rows, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000
    assert np.isclose(rows[0]["train"]["median"], 1050)


@pytest.fixture
def here(monkeypatch):
    """Replaces the query of hardware and versions, which takes time."""
    how = {"hardware": "an abacus", "versions": {"jax": "1"}, "date": "today"}
    monkeypatch.setattr(bench, "about", lambda: dict(how))


def measure(tmp_path, *arguments):
    """Runs the command; returns its exit status and the contents of bench.json and bench.md."""
    status = bench.main([f"--out={tmp_path}", "--repeats=2", *arguments])
    return status, json.loads((tmp_path / "bench.json").read_text()), (tmp_path / "bench.md").read_text()


def sides(tmp_path, monkeypatch, **fail):
    """Returns the rows of `steps` by side, and the exit status; `fail` says where each side fails."""

    def worker(side, options, environment=None):
        words = [fail.get(side, ""), str(Path(bench.__file__).parent)]
        return bench.Worker([sys.executable, "-c", WORKER, *words], tmp_path / f"{side}.log")

    monkeypatch.setattr(bench, "worker", worker)
    peers = ",".join(("torch", *(side for side in fail if side not in ("jaxmarks", "torch"))))
    status, found, _ = measure(tmp_path, "--parts=steps", "--only=network3", "--quick", f"--peers={peers}")
    return {row["side"]: row for row in found["steps"]}, status


def test_a_failing_peer_is_dropped_and_the_others_go_on(tmp_path, monkeypatch, here):
    fail = {"torch_compile": "dies", "keras": "predict", "keras_xla": "another", "torch_channels_last": "set"}
    rows, status = sides(tmp_path, monkeypatch, **fail)
    assert status == 0
    for side in ("jaxmarks", "torch"):
        assert rows[side]["train"]["median"] > 0 and rows[side]["predict"]["median"] > 0 and "error" not in rows[side]
    assert rows["torch_compile"]["error"] == f"the worker process ended; see {tmp_path}/torch_compile.log"
    assert "train" not in rows["torch_compile"]
    assert rows["keras"]["error"] == "ValueError: out of memory" and rows["keras"]["train"]["median"] > 0
    assert rows["keras_xla"]["error"] == "8 parameters, not 7 as ours: not the same network"
    assert rows["torch_channels_last"]["error"] == "ValueError: no such network"


@pytest.mark.parametrize("where", ["set", "predict"])
def test_our_own_failure_is_not_blamed_on_a_peer(where, tmp_path, monkeypatch, here):
    rows, status = sides(tmp_path, monkeypatch, jaxmarks=where)
    assert status == 1 and rows["jaxmarks"]["error"].startswith("ValueError")
    assert "error" not in rows["torch"] and rows["torch"]["predict"]["median"] > 0


def test_parts_measured_earlier_are_kept_with_their_commands(tmp_path, monkeypatch, here, capsys):
    row = lambda n: [{"network": "n", "at once": bench.spread([n / 1000])}]
    monkeypatch.setattr(bench, "load", lambda options: row(1))
    monkeypatch.setattr(bench, "folds", lambda options: row(2))

    def fails(options):
        raise RuntimeError("the worker ended")

    monkeypatch.setattr(bench, "start", fails)
    measure(tmp_path, "--parts=load")
    status, found, text = measure(tmp_path, "--parts=folds")
    assert status == 0 and (found["load"], found["folds"]) == (row(1), row(2))
    folds, load = text.split("## load")
    assert "--parts=folds`" in folds and "2.0 (2.0-2.0)" in folds
    assert "--parts=load`" in load and "1.0 (1.0-1.0)" in load
    monkeypatch.setattr(bench, "load", lambda options: row(3))
    # If a part of our own fails, its error is recorded and the next part runs.
    status, found, text = measure(tmp_path, "--parts=start,load")
    assert status == 1 and found["start"] == [{"side": "jaxmarks", "error": "the worker ended"}]
    assert (found["load"], found["folds"]) == (row(3), row(2)) and text.count("--parts=start,load`") == 1
    (tmp_path / "bench.json").write_text("{")
    with pytest.raises(
        SystemExit, match=r"bench: .*bench\.json was not written by this command: delete it, or name another --out"
    ):
        measure(tmp_path, "--parts=load")


def test_rows_before_a_failure_are_kept(tmp_path, monkeypatch, here):
    asked = []

    class Ours:
        __enter__ = lambda self: self
        __exit__ = lambda self, *error: None

        def ask(self, **what):
            asked.append(what)
            if len([one for one in asked if "set" in one]) == 2:
                raise RuntimeError("out of memory")
            return {"seconds": 1.0}

    monkeypatch.setattr(bench, "worker", lambda *all: Ours())
    status, found, _ = measure(tmp_path, "--parts=folds", "--only=network3,unet_small", "--quick")
    assert status == 1 and [row.get("error") for row in found["folds"]] == [None, "out of memory"]
    assert found["folds"][0]["network"] == "network3"


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--repeats=0", "--repeats=0: give at least 1"),
        ("--only=", "--only is empty; choose from network3"),
        ("--parts=", "--parts is empty; choose from steps"),
        ("--keras-python=/nonexistent/python", "--keras-python=/nonexistent/python: no such program"),
        ("--run=/nosuch", "--run=/nosuch: no epochs in a metrics.jsonl there; name the folder of a trained run"),
    ],
)
def test_invalid_arguments_give_a_one_line_error(argument, said, tmp_path, capsys):
    with pytest.raises(SystemExit):
        bench.main([f"--out={tmp_path / 'out'}", argument])
    assert said in capsys.readouterr().err.splitlines()[-1] and not (tmp_path / "out").exists()


def test_a_file_at_the_path_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=f"bench: --out={tmp_path}/file: a file is in the way"):
        bench.main([f"--out={tmp_path}/file"])
