"""Launchers: the commands that they would run, with stand-ins for those of the clusters."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gallery
import kubernetes
import local
import pytest

LAUNCH = Path(__file__).parent.parent / "launch"
ARGUMENTS = ["--config=configs/fish.py:paper", "--workdir=/shared/a b"]


def said(tmp_path, script, *arguments, status=0, exits=0, **environment):
    """Runs a shell script with stubs of srun, scontrol, gcloud and python; returns their calls, an argument a line."""
    for name in ("srun", "scontrol", "gcloud", "python"):
        stand_in = tmp_path / name
        stand_in.write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@"\nexit {status if name == "srun" else 0}\n')
        stand_in.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", LAUNCH / script, *arguments], capture_output=True, text=True,
        env={"PATH": path, "PYTHON": "python", **environment},
    )  # fmt: skip
    assert done.returncode == exits, done.stderr
    return done.stdout.splitlines()


def test_slurm_launches_with_srun_and_requeues_failed_jobs(tmp_path):
    lines = said(tmp_path, "slurm.sh", *ARGUMENTS, SLURM_JOB_ID="7")
    end = ["python", "-m", "jaxmarks.main", "--processes=0", *ARGUMENTS]
    assert lines == ["srun", "--kill-on-bad-exit=1", "--label", *end]
    lines = said(tmp_path, "slurm.sh", *ARGUMENTS, status=3, exits=3, SLURM_JOB_ID="7", SLURM_RESTART_COUNT="4")
    assert lines[-3:] == ["scontrol", "requeue", "7"]
    lines = said(tmp_path, "slurm.sh", *ARGUMENTS, status=3, exits=3, SLURM_JOB_ID="7", SLURM_RESTART_COUNT="5")
    assert "scontrol" not in lines
    lines = said(tmp_path, "slurm.sh", *ARGUMENTS, status=2, exits=2, SLURM_JOB_ID="7", SLURM_CPUS_PER_TASK="32")
    assert lines[:2] == ["srun", "--cpus-per-task=32"] and "scontrol" not in lines  # a usage error would only recur


def test_slurm_array_tasks_get_their_shares(tmp_path):
    task = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "2", "SLURM_ARRAY_TASK_COUNT": "8"}
    lines = said(tmp_path, "slurm_array.sh", "launch/ablate.py", "--grid=g.py", **task)
    assert lines == ["python", "launch/ablate.py", "--grid=g.py", "--share=3/8"]
    stepped = {"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": "4"}
    lines = said(tmp_path, "slurm_array.sh", "launch/ablate.py", **stepped, SLURM_ARRAY_TASK_STEP="2")  # --array=0-6:2
    assert lines[-1] == "--share=2/4"
    lines = said(tmp_path, "slurm_array.sh", "launch/tune.py", "--space=s.py", **task)
    assert lines == ["python", "launch/tune.py", "--space=s.py"]


def test_a_tpu_pod_runs_the_command_on_all_hosts(tmp_path):
    lines = said(tmp_path, "tpu_pod.sh", "pod", "zone", *ARGUMENTS)
    assert lines[:7] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod", "--zone=zone"]
    assert lines[7] == "--worker=all"
    remote = "cd jaxmarks && .venv/bin/python -m jaxmarks.main --processes=0"
    assert lines[8] == rf"--command={remote} {ARGUMENTS[0]} --workdir=/shared/a\ b"
    said(tmp_path, "tpu_pod.sh", "pod", exits=2)


def manifest(*options):
    done = subprocess.run(
        [sys.executable, LAUNCH / "kubernetes.py", "--name=fish", "--image=i", "--claim=c", *options, "--", *ARGUMENTS],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    job = json.loads(done.stdout)
    count = job["spec"]["replicatedJobs"][0]["template"]["spec"]
    return job, count, count["template"]["spec"]


@pytest.mark.parametrize("hosts", [1, 4])
def test_kubernetes_jobset_lets_its_hosts_find_each_other(hosts):
    job, count, pod = manifest(f"--hosts={hosts}", "--gpus=8")
    assert (job["kind"], job["metadata"]["name"]) == ("JobSet", "fish") and job["spec"]["network"]["enableDNSHostnames"]
    assert (count["parallelism"], count["completions"], count["completionMode"]) == (hosts, hosts, "Indexed")
    command = pod["containers"][0]["command"]
    assert command[:2] == ["sh", "-c"] and pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 8}
    # After the shell has parsed the command, main gets the original arguments.
    shown = subprocess.run(
        ["sh", "-c", command[2].replace("exec python", "printf '%s\\n'")],
        env={"JOB_COMPLETION_INDEX": "2"}, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    together = ["--processes=4", "--process=2", "--coordinator=fish-host-0-0.fish:8476"]
    assert shown == ["-m", "jaxmarks.main", *(together if hosts > 1 else []), *ARGUMENTS]


def test_kubernetes_requests_tpus_by_topology():
    _, _, pod = manifest("--hosts=4", "--tpu=tpu-v5-lite-podslice:4x4")
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--hosts=0"], "--hosts=0: give at least 1"),
        (["--gpus=-1"], "--gpus=-1: give at least 0"),
        (["--name=Fish_1"], "--name=Fish_1: give up to 45 of a-z"),
        (["--name=fish-"], "--name=fish-: give up to 45"),
        (["--name=" + 46 * "f"], "give up to 45"),
        (["--tpu=tpu-v5-lite-podslice"], "--tpu=tpu-v5-lite-podslice: give the accelerator and its topology"),
        (["--tpu=tpu-v5-lite-podslice:4x4", "--gpus=8"], "a host has TPUs or GPUs, not both; leave one out"),
    ],
)
def test_invalid_kubernetes_options_are_refused(options, said, capsys):
    with pytest.raises(SystemExit):
        kubernetes.main(["--name=fish", "--image=i", "--claim=c", *options, "--", *ARGUMENTS])
    out, error = capsys.readouterr()
    assert said in error.splitlines()[-1] and not out


@pytest.mark.parametrize("arguments", [[], ["--workdir=runs/fish"], ["-workdir=/tmp/fish"], ["--workdir", "/tmp/fish"]])
def test_kubernetes_workdir_must_lie_in_shared(arguments, capsys):
    kubernetes.main(["--name=fish", "--image=i", "--claim=c", "--", "--workdir", "/shared/fish"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        kubernetes.main(["--name=fish", "--image=i", "--claim=c", "--", "--config=configs/fish.py:paper", *arguments])
    assert "give a folder in /shared" in capsys.readouterr().err


def test_zero_local_processes_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        local.main(["--processes=0", *ARGUMENTS])
    assert "--processes=0: give at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "specimen", "said"), [("a.xyz", "1", "Format 'xyz' is not supported"), ("a.png", "-1", "-1 is negative")]
)
def test_gallery_errors_name_the_file(name, specimen, said, tmp_path):
    with pytest.raises(SystemExit) as error:
        gallery.main([f"{tmp_path}/{name}", "--specimens", specimen, "--dpi=10"])
    assert str(error.value).startswith(f"gallery: {tmp_path}/{name}: ") and said in str(error.value)
    gallery.main([f"{tmp_path}/good.png", "--specimens", "1", "--dpi=10"])
    assert (tmp_path / "good.png").exists()
