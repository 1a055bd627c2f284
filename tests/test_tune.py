"""Hyperparameter searches: values of trials, pruning, resuming and errors, with a formula in place of training."""

import csv
import json
import math
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

tune = pytest.importorskip("tune", exc_type=ImportError)
import optuna  # noqa: E402
from experiments import resolve  # noqa: E402

ROOT = Path(__file__).parent.parent
SPACE = """
'''A made-up search.'''
def get_space(text=""):
    return {
        "config": "configs/beetle.py:smoke",
        "overrides": {"train.steps": 2},
        "space": {
            "optimizer.learning_rate": ("float", 1e-4, 1e-1, "log"),
            "head.loss": ("categorical", "mse", "l1"),
            "train.batch_size": ("int", 4, 8),
        },
        "warmup": 2,
    }
"""


@pytest.fixture(autouse=True)
def root(monkeypatch):
    monkeypatch.chdir(ROOT)


def error(config, number):
    """Returns the distance that a simulated run reaches, smallest at a learning rate of 0.01 with l1."""
    del number
    return 1 + abs(math.log10(config.optimizer.learning_rate) + 2) + 5 * (config.head.loss == "mse")


class Launcher:
    """Stands in for jaxmarks.main: logs five epochs of two folds, the fourth best; asks after each if it must stop."""

    def __init__(self, before=lambda number: None, error=error):
        self.runs, self.stopped, self.before, self.error = [], [], before, error

    def __call__(self, arguments, log, environment, *, stop):
        *rest, workdir = arguments
        folder, config = Path(workdir.removeprefix("--workdir=")), resolve(rest)
        assert tuple(config.baselines) == ()
        self.runs.append((folder.name, config))
        log.write_text("out of memory\n")
        if status := self.before(len(self.runs)):
            return status
        with (folder / "metrics.jsonl").open("w") as file:
            for fold in (0, 1):
                for epoch in range(1, 6):
                    far = self.error(config, len(self.runs)) + 0.5 * abs(epoch - 4) + fold
                    # The last epoch has the smallest distance, but not the lowest loss, so its network is not kept.
                    far = 0.1 if epoch == 5 else far
                    line = {"stage": "train", "fold": fold, "epoch": epoch, "valid/loss": abs(epoch - 4) + 0.1}
                    file.write(json.dumps(line | {"valid/distance_px": far}) + "\n")
                    file.flush()
                    if stop():
                        self.stopped.append((folder.name, fold, epoch))
                        return -15
        return 0


def search(tmp_path, launcher, *arguments, text=SPACE):
    space, workdir = tmp_path / "space.py", tmp_path / "out"
    if not space.exists() or space.read_text() != text:  # another worker may be reading it
        space.write_text(text)
    status = tune.main([f"--space={space}", f"--workdir={workdir}", *arguments], launch=launcher)
    with (workdir / "trials.csv").open() as file:
        return status, workdir, list(csv.DictReader(file))


def test_a_trials_value_is_the_folds_mean_at_the_lowest_validation_loss(tmp_path):
    status, workdir, lines = search(
        tmp_path, Launcher(), "--trials=4", "--config.data.images=D", "--config.data.landmarks=F"
    )
    assert status == 0 and [line["state"] for line in lines] == ["complete"] * 4
    for line in lines:
        rate, mse = float(line["optimizer.learning_rate"]), line["head.loss"] == "mse"
        assert 1e-4 <= rate <= 0.1 and 4 <= int(line["train.batch_size"]) <= 8
        expected = 1 + abs(math.log10(rate) + 2) + 5 * mse + 0.5  # the mean of two folds that differ by 1
        assert float(line["valid/distance_px"]) == pytest.approx(expected)
    said = (workdir / "tuning.md").read_text()
    assert "on validation images, some of them test images of another of the 2 folds:" in said
    best = min(lines, key=lambda line: float(line["valid/distance_px"]))
    command = re.search(r"    python -m jaxmarks\.main (.*)\n", said)[1].split()
    config = resolve(command[:-1])
    assert config.optimizer.learning_rate == float(best["optimizer.learning_rate"])
    assert (config.head.loss, config.train.steps, config.data.images) == (best["head.loss"], 2, "D")
    assert config.baselines and command[-1] == f"--workdir={workdir}/best"
    assert {p.name for p in (workdir / "figures").iterdir()} == {
        f"{n}.png" for n in ("history", "epochs", "keys", "importance")
    }


def test_a_trial_worse_than_the_median_is_stopped_in_its_first_fold(tmp_path):
    launcher = Launcher(error=lambda config, number: {3: 9.0, 6: 9.0, 7: 0.0}.get(number, number / 10))
    _, _, lines = search(tmp_path, launcher, "--trials=7")
    # Stopped is the sixth, after five trials to compare with and two epochs of warm-up; it has no value.
    assert launcher.stopped == [("5", 0, 2)]
    assert [line["state"] for line in lines] == ["complete"] * 5 + ["pruned", "complete"]
    assert lines[5]["valid/distance_px"] == "" and lines[5]["epochs"] == "2"


def test_the_same_command_resumes_and_another_is_refused(tmp_path):
    first = search(tmp_path, Launcher(), "--trials=2")[2]
    launcher = Launcher()
    status, _, lines = search(tmp_path, launcher, "--trials=4")
    assert [name for name, _ in launcher.runs] == ["2", "3"] and lines[:2] == first
    assert (
        not status and search(tmp_path, Launcher(lambda n: pytest.fail("a run was started")), "--trials=4")[2] == lines
    )
    for changed, arguments in ((SPACE.replace("1e-4", "1e-3"), ()), (SPACE, ("--config.train.steps=3",))):
        with pytest.raises(SystemExit, match="another space or other overrides: name another --workdir"):
            search(tmp_path, launcher, "--trials=5", *arguments, text=changed)


def test_a_study_on_other_data_is_refused(tmp_path):
    marks = tmp_path / "marks.csv"
    options = (f"--config.data.images={tmp_path}", f"--config.data.landmarks={marks}")
    for text in ("image,x1,y1\n", "image,x1,y1\n0.png,3,4\n"):
        marks.write_text(text)
        tune.data_fingerprint.__globals__["contents"].cache_clear()  # as in another process
        if text.count("\n") == 1:
            for trials in (1, 2):
                search(tmp_path, Launcher(), f"--trials={trials}", *options)
    with pytest.raises(SystemExit, match="the data have changed since its study was started"):
        search(tmp_path, Launcher(), "--trials=3", *options)


def interrupted(tmp_path, how, trials):
    """Runs a search whose second run raises `how`; returns its launcher."""

    def interrupt(number):
        if number == 2:
            raise how

    launcher = Launcher(interrupt)
    with pytest.raises(how):
        search(tmp_path, launcher, f"--trials={trials}")
    return launcher


@pytest.mark.parametrize("how", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_trial_resumes_in_its_folder(how, tmp_path):
    launcher = interrupted(tmp_path, how, 3)
    _, _, lines = search(tmp_path, launcher, "--trials=3")
    assert len(lines) == 3 and [name for name, _ in launcher.runs] == ["0", "1", "1", "3"]
    cut, again = (config for name, config in launcher.runs if name == "1")
    assert cut.optimizer.learning_rate == again.optimizer.learning_rate and cut.head.loss == again.head.loss


@pytest.mark.parametrize("how", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_trial_is_resumed_only_once(how, tmp_path, monkeypatch):
    """Even if its last heartbeat is so old that its worker would count as dead."""
    monkeypatch.setattr(tune, "HEARTBEAT", 1)
    launcher = interrupted(tmp_path, how, 4)
    time.sleep(3)  # more than twice the heartbeat interval
    _, _, lines = search(tmp_path, launcher, "--trials=4")
    assert [name for name, _ in launcher.runs] == ["0", "1", "1", "3", "4"]
    assert [line["folder"] for line in lines] == ["0", "1", "3", "4"]


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")  # this worker calls `ask` itself, and dies
def test_the_trial_of_a_dead_worker_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "HEARTBEAT", 1)
    search(tmp_path, Launcher(), "--trials=1")
    [study] = optuna.get_all_study_summaries(f"sqlite:///{tmp_path}/out/study.db")
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/out/study.db", heartbeat_interval=1)
    trial = optuna.load_study(study_name=study.study_name, storage=storage).ask()
    values = {"rate": tune.suggest(trial, "optimizer.learning_rate", "float", 1e-4, 1e-1, "log")}
    tune.suggest(trial, "head.loss", "categorical", "mse", "l1")
    tune.suggest(trial, "train.batch_size", "int", 4, 8)
    trial.set_user_attr("folder", "1")
    storage.record_heartbeat(trial._trial_id)
    time.sleep(3)  # more than twice the heartbeat interval
    launcher = Launcher()
    search(tmp_path, launcher, "--trials=2")
    assert launcher.runs[0][0] == "1"
    assert launcher.runs[0][1].optimizer.learning_rate == pytest.approx(values["rate"])


def test_failed_trials_are_listed_and_the_search_goes_on(tmp_path):
    status, workdir, lines = search(tmp_path, Launcher(lambda number: 3 if number == 1 else None), "--trials=3")
    assert status == 0 and [line["state"] for line in lines] == ["fail", "complete", "complete"]
    said = (workdir / "tuning.md").read_text()
    assert "2 trials complete, 0 stopped early, 1 failed" in said and "**Failed:** out of memory" in said
    (tmp_path / "all").mkdir()
    assert search(tmp_path / "all", Launcher(lambda number: 3), "--trials=2")[0] == 1


def test_a_nan_metric_fails_the_trial_and_a_nan_loss_is_never_lowest(tmp_path, capsys):
    nan = lambda config, number: math.nan if number == 1 else 2.0
    status, _, lines = search(tmp_path, Launcher(error=nan), "--trials=2")
    assert status == 0 and [line["state"] for line in lines] == ["fail", "complete"]
    assert "no number for valid/distance_px" in capsys.readouterr().out
    epochs = [{"valid/loss": loss, "m": m} for loss, m in ((math.nan, 1.0), (None, 2.0), (0.5, 3.0), (0.7, 4.0))]
    assert tune.trial_value({(0, 0): epochs}, "m") == 3.0


def test_an_unlogged_metric_or_a_bad_storage_ends_the_search(tmp_path):
    text = SPACE.replace('"warmup"', '"metric": "valid/dist", "warmup"')
    launcher = Launcher()
    with pytest.raises(
        SystemExit, match=r"metric='valid/dist' is not in .*metrics.jsonl; choose one of valid/distance_px, valid/loss"
    ):
        search(tmp_path, launcher, "--trials=3", text=text)
    assert len(launcher.runs) == 1
    with pytest.raises(SystemExit, match=r"--storage=nonsense: .*give a URL"):
        search(tmp_path, launcher, "--storage=nonsense")


def test_choices_may_be_tuples(tmp_path):
    text = SPACE.replace(
        '"head.loss": ("categorical", "mse", "l1")', '"data.size": ("categorical", (48, 64), (96, 128))'
    )
    launcher = Launcher(error=lambda config, number: config.data.size[0] / 10)
    status, _, lines = search(tmp_path, launcher, "--trials=3", text=text)
    drawn = [tuple(config.data.size) for _, config in launcher.runs]
    assert status == 0 and [line["data.size"] for line in lines] == [str(size) for size in drawn]
    assert len(drawn) == 3 and set(drawn) <= {(48, 64), (96, 128)}  # which of them are drawn is random


def test_two_workers_share_a_study(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "draw", lambda study, folder: None)  # pyplot is not thread-safe; workers are processes
    launchers = [Launcher(lambda number: time.sleep(0.2)) for _ in range(2)]
    search(tmp_path, launchers[0], "--trials=1")
    work = lambda launcher: search(tmp_path, launcher, "--trials=6")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, launchers))
    names = [name for launcher in launchers for name, _ in launcher.runs]
    assert sorted(names) == sorted(set(names)) and 6 <= len(names) <= 7
    assert len(launchers[1].runs) >= 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("optimizer.learning_rate", "optimizer.learning_rat", r"the nearest are .*optimizer\.learning_rate"),
        ('("int", 4, 8)', '("float", 4, 8)', r"train\.batch_size=4\.0"),
        ('("int", 4, 8)', '("int", -4, 8)', r"train\.batch_size=-4: it must be at least 1"),
        ('"mse", "l1"', '"mse", "best"', "best"),
        ("beetle.py:smoke", "fish.py:own", r"give --config\.data\.images=DIR"),
        ('("int", 4, 8)', '("int", 4)', r"train\.batch_size: give int, the lowest and the highest value"),
        ('("int", 4, 8)', '("whole", 4, 8)', "unknown kind 'whole'; choose one of float, int, categorical"),
        ('("int", 4, 8)', '("categorical", 4, "many")', r"train\.batch_size=many"),
        ('("int", 4, 8)', '("int", 8, 4)', "give the lowest value first, then the highest"),
        ('("int", 4, 8)', '("int", 0, 4, "log")', r"the lowest value \(above 0 for 'log'\) first"),
        ('("int", 4, 8)', '("categorical",)', "give the choices"),
        ('{"train.steps": 2}', '{"split.valid": 0.0}', r"set --config\.split\.valid"),
        ('"space":', '"overrides":', "the dict that get_space returns lacks space"),
        ('"config":', '"metric":', "the dict that get_space returns lacks config"),
        ("    return {", "    return [], {", r"get_space returns \(.*it must return a dict"),
        ("    return {", "    return {{", "SyntaxError"),
        ('"warmup"', '"warmpu"', "unknown space key warmpu; the nearest are warmup"),
        ("beetle.py", "bettle.py", "bettle.py"),
    ],
)
def test_invalid_spaces_are_refused_before_any_run(old, new, message, tmp_path):
    assert old in SPACE
    with pytest.raises(SystemExit, match=message):
        search(tmp_path, Launcher(lambda number: pytest.fail("a run was started")), text=SPACE.replace(old, new))
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit, match=r"--config\.head\.loss is given, but the space searches it"):
        search(tmp_path, Launcher(), "--config.head.loss=l1")


def test_a_grid_file_or_a_file_as_workdir_is_refused(tmp_path):
    grid = "configs/ablations/fish_sigma.py"
    with pytest.raises(SystemExit) as error:
        tune.main([f"--space={grid}"])
    assert (
        str(error.value)
        == f"tune: {grid} does not define get_space; it defines get_grid: give it to launch/ablate.py --grid={grid}"
    )
    (tmp_path / "out").touch()
    with pytest.raises(SystemExit, match=rf"tune: --workdir={tmp_path}/out: a file is in the way; name another folder"):
        search(tmp_path, Launcher())


def test_every_space_of_the_project_is_valid():
    files = sorted((ROOT / "configs" / "tuning").glob("*.py"))
    assert files
    for path in files:
        tune.check(tune.load_space(str(path)), {})
        assert f"--space=configs/tuning/{path.name}" in path.read_text(), f"{path}: its docstring lacks the command"


@pytest.mark.slow
def test_the_real_command_runs_and_resumes_a_search(tmp_path):
    command = [
        sys.executable,
        "launch/tune.py",
        "--space=configs/tuning/fish.py:smoke",
        f"--workdir={tmp_path / 'out'}",
    ]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    for trials in (2, 3):
        done = subprocess.run(
            [*command, f"--trials={trials}"], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert "3 trials complete" in done.stdout and "[trial 0]" not in done.stdout
    values = [
        float(line["valid/distance_px"])
        for line in csv.DictReader((tmp_path / "out" / "trials.csv").read_text().splitlines())
    ]
    assert len(set(values)) == 3 and np.isfinite(values).all()
