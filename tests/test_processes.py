"""Several processes that train together: same result as one, reports and resumption after a loss, and the sidecar."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxmarks import checkpoint, processes, sidecar

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
TINY = [
    "--config=configs/fish.py:smoke", "--config.data.size=(32,32)", "--config.data.count=24", "--config.split.run=(0,)",
    '--config.model={"name": "sp_cnn", "width": 4, "kernel": 3}', "--config.train.batch_size=8", "--config.train.devices=0",
    "--config.baselines=()",
    # Adam would turn rounding errors in zero gradients, as of a bias before a softmax, into full steps.
    '--config.optimizer={"name": "nesterov", "learning_rate": (0.05, 0.01), "momentum": (0.9, 0.95)}',
]  # fmt: skip


def start(workdir, *arguments, processes=2):
    command = [sys.executable, "launch/local.py", f"--processes={processes}", f"--workdir={workdir}", *TINY, *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def variables(workdir):
    return checkpoint.restore(workdir / "checkpoints" / "train" / "fold0" / "last")[0]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one")
    process = start(workdir, processes=1)
    said = process.communicate()[0]
    assert process.returncode == 0, said
    return workdir


def losses(workdir):
    return [json.loads(line)["train/loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_reach_the_parameters_of_one(one, tmp_path):
    process = start(tmp_path)
    said = process.communicate()[0]
    assert process.returncode == 0, said
    assert said.count("mean distance") == 1 and "Traceback" not in said
    np.testing.assert_allclose(losses(tmp_path), losses(one), rtol=1e-5)
    for mine, theirs in zip(jax.tree.leaves(variables(one)), jax.tree.leaves(variables(tmp_path)), strict=True):
        np.testing.assert_allclose(theirs, mine, rtol=1e-5, atol=1e-7)  # atol: some values are only rounding errors


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_process_is_named_and_the_run_resumes(lost, tmp_path):
    arguments = ["--config.train.steps=300", "--config.train.checkpoint_seconds=0"]
    process = start(tmp_path, *arguments)
    metrics = tmp_path / "metrics.jsonl"
    entry = tmp_path / "processes" / f"{lost}.json"
    deadline = time.monotonic() + 300
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.1)
    victim = json.loads(entry.read_text())["process"]
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    said = process.communicate(timeout=60)[0]
    assert process.returncode and time.monotonic() - began < 60
    assert re.search(rf"process {lost} of 2 \(host \S+, pid {victim}\) was killed or crashed", said), said
    assert "Start the same command again" in said
    again = start(tmp_path, *arguments)
    said = again.communicate()[0]
    assert again.returncode == 0 and "resumed after epoch" in said, said
    epochs = [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()]
    assert epochs == list(range(1, len(epochs) + 1))


@pytest.mark.slow
def test_sigterm_saves_and_stops_all_processes(tmp_path):
    process = start(tmp_path, "--config.train.steps=100000", "--config.train.checkpoint_seconds=1000")
    metrics, entry = tmp_path / "metrics.jsonl", tmp_path / "processes" / "1.json"
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 1):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    os.kill(json.loads(entry.read_text())["process"], signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert process.returncode and "stopped on request, and saved" in said, said
    assert checkpoint.note(tmp_path / "checkpoints" / "train" / "fold0" / "resume")["epoch"] >= 1


def entry(state, beat=1, session="s"):
    return json.dumps({"session": session, "beat": beat, "state": state, "host": "there", "process": 7})


@pytest.mark.parametrize(
    ("other", "own", "status", "named"),
    [
        ("running", "done", 0, None),
        ("done", "done", 0, None),
        ("was killed or crashed", "running", 1, r"process 1 of 2 \(host there, pid 7\) was killed"),
        ("failed: no space left", "running", 1, "process 1 of 2 .* failed: no space left"),
        ("failed: no such file", "failed: no such file", 0, None),
        ("failed: it lost its peer", "", 0, None),
        ("running", "running", 1, "has shown no sign of life for 2 s"),
        ("running", "failed: gloo", 1, "has shown no sign of life for 2 s"),
    ],
)
def test_the_sidecar_names_the_lost_process(other, own, status, named, tmp_path):
    """The training process is a script that reports the state `own` after 0.5 s, or runs until it is killed."""
    (tmp_path / "1.json").write_text(entry(other))
    script = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, {sidecar.__file__!r}, {str(tmp_path)!r}, 's', '0', '2', '2'],"
        " stdin=subprocess.PIPE, text=True)\n"
        "time.sleep(0.5)\n"
        f"own = {own!r}\n"
        "if own == 'running': time.sleep(60)\n"
        "child.stdin.write(own and own + '\\n'); child.stdin.close(); sys.exit(child.wait())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)
    assert done.returncode == (-signal.SIGKILL if own == "running" else status), done.stderr
    assert re.search(named, done.stderr) if named else "jaxmarks" not in done.stderr
    assert json.loads((tmp_path / "0.json").read_text())["session"] == "s"


def test_stale_or_broken_entries_count_as_silence(tmp_path):
    other = sidecar.Other()
    (tmp_path / "1.json").write_text(entry("was killed or crashed", session="before"))
    other.look(tmp_path / "1.json", "now")
    assert not other.lost("running", 20) and "no sign of life" in other.lost("running", -1)
    (tmp_path / "1.json").write_text('{"session"')
    other.look(tmp_path / "1.json", "now")
    other.look(tmp_path / "2.json", "now")
    assert not other.ended


def test_incomplete_process_options_are_refused(monkeypatch):
    def initialize(coordinator, *_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(ValueError, match="--coordinator=here: give HOST:PORT"):
        processes.join(2, coordinator="here", index=0)
    with pytest.raises(
        ValueError, match=r"should be defined\. .* give --processes=N --coordinator=HOST:PORT --process=I"
    ):
        processes.join(2)


@pytest.mark.parametrize(
    ("tasks", "gpus", "devices"),
    [("1(x4)", "8", [*range(8)]), ("1", "2", [0, 1]), ("8(x4)", "8", None), ("1(x4)", "", None), ("", "", None)],
)
def test_a_node_with_one_task_uses_all_its_gpus(tasks, gpus, devices, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", tasks)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", gpus)
    assert processes.devices_of_node() == devices
    monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "0")
    assert processes.devices_of_node() is None  # JAX reads this variable itself
