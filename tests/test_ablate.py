"""Grids of experiments: which runs are trained, which are not repeated, and tables against hand-computed numbers."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import ablate
import pytest
from PIL import Image

from jaxmarks import config as configs

ROOT = Path(__file__).parent.parent

TWO_BY_TWO = """
from jaxmarks import config as configs

def get_grid(text=""):
    return {
        "config": "configs/beetle.py:smoke",
        "overrides": {"train.steps": 2},
        "cells": configs.product(
            size={"small": {"model.width": 32}, "<b>large</b>": {"model.width": 64}},
            part={"pronotum": {}, "head": "part=head"},
        ),
        "seeds": (0, 1),
    }
"""


@pytest.fixture(autouse=True)
def root(monkeypatch):
    monkeypatch.chdir(ROOT)  # a grid's config path is relative to the project's root, as on the command line


class Launcher:
    """Replaces jaxmarks.main: records its arguments, and writes a run's config and summary, or on failure its log."""

    def __init__(self, summary):
        self.summary = summary  # config -> summary, or an exit status
        self.runs = []

    def __call__(self, arguments, log, environment):
        *rest, workdir = arguments
        self.runs.append(arguments)
        folder = Path(workdir.removeprefix("--workdir="))
        config = ablate.resolve(rest)
        summary = self.summary(config)
        configs.save(config, folder / "config.json")
        if isinstance(summary, int):
            with log.open("a") as file:
                file.write("step 1\nout of memory & <gone>\n")
            return summary
        (folder / "summary.json").write_text(json.dumps(summary))
        return 0


def summary(distance, *, folds=None, mean_shape=20.0, **more):
    """Returns a summary.json with the keys that the tables read."""
    return {
        "mean_distance_px": distance, "std_over_folds_px": folds, "median_px": 1.5, "p95_px": 4.0, "images": 18,
        "landmarks": 8, "parameters": 1234, "seconds": 10.0, "stage": "train", "folds": [{"fold": 0}, {"fold": 1}],
        "baselines": {"mean_shape": {"mean_distance_px": mean_shape, "std_over_folds_px": folds}},
    } | more  # fmt: skip


def run(tmp_path, text, launcher, *arguments):
    """Runs the grid file `text`; returns the number of failed runs and the workdir."""
    (tmp_path / "grid.py").write_text(text)
    workdir = tmp_path / "out"
    failed = ablate.main(
        [f"--grid={tmp_path / 'grid.py'}", f"--workdir={workdir}", *arguments],
        launch=launcher,
        device=lambda: "an abacus",
    )
    return failed, workdir


def refused(tmp_path, text, *arguments):
    """Returns the message with which a grid is refused before any run starts."""
    launcher = Launcher(lambda config: pytest.fail("a run was started"))
    with pytest.raises(SystemExit) as error:
        run(tmp_path, text, launcher, *arguments)
    assert not launcher.runs and not (tmp_path / "out").exists()
    return str(error.value)


def rows(workdir):
    """Returns the first table of table.md as {row: [cells]}."""
    lines = (workdir / "table.md").read_text().split("\n\n")[2].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: rest for first, *rest in cells[2:]}


def test_seeds_may_be_a_range(tmp_path):
    launcher = Launcher(lambda config: summary(1.0))
    run(tmp_path, TWO_BY_TWO.replace('"seeds": (0, 1)', '"seeds": range(3)'), launcher)
    assert len(launcher.runs) == 12


def test_product_is_every_combination_with_the_last_axis_as_columns():
    cells = configs.product(a={"a1": {"x": 1}, "a2": "v"}, b={"b1": "w", "b2": {}}, c={"c1": {"y": 2}, "c2": "u"})
    assert [(c["row"], c["column"]) for c in cells] == [
        ("a1, b1", "c1"), ("a1, b1", "c2"), ("a1, b2", "c1"), ("a1, b2", "c2"),
        ("a2, b1", "c1"), ("a2, b1", "c2"), ("a2, b2", "c1"), ("a2, b2", "c2"),
    ]  # fmt: skip
    assert cells[0] == {"row": "a1, b1", "column": "c1", "config": "w", "overrides": {"x": 1, "y": 2}}
    assert cells[5]["config"] == "v,w,u" and cells[5]["overrides"] == {}
    assert configs.product(a={"a1": {}}) == [{"row": "a1", "column": "", "config": "", "overrides": {}}]
    configs.product(a={"a1": {"head": {"sigma": 1}}}, b={"b1": {"head.sigma": 2, "header": 1}})
    for key in ("head", "head.sigma"):
        with pytest.raises(ValueError, match=r"b='b1' sets head\.sigma"):
            configs.product(a={"a1": {"head.sigma": 1}}, b={"b1": {key: 2}})


def test_runs_get_the_overrides_of_grid_cell_and_command_line(tmp_path):
    launcher = Launcher(lambda config: summary(1.0))
    failed, workdir = run(tmp_path, TWO_BY_TWO, launcher, "--config.data.images=DIR", "--config.data.landmarks=F")
    assert failed == 0 and len(launcher.runs) == 8
    assert launcher.runs[3] == [
        "--config=configs/beetle.py:smoke,part=head", "--config.train.steps=2", "--config.model.width=32",
        "--config.data.images=DIR", "--config.data.landmarks=F", "--config.seed=1",
        f"--workdir={workdir}/small--head/1",
    ]  # fmt: skip
    folders = sorted(str(p.parent.relative_to(workdir)) for p in workdir.glob("*/*/summary.json"))
    cells = ("b-large-b--head", "b-large-b--pronotum", "small--head", "small--pronotum")
    assert folders == [f"{cell}/{seed}" for cell in cells for seed in (0, 1)]
    assert "18 held-out images from DIR, 8 landmarks each." in (workdir / "table.md").read_text()


def test_the_command_line_takes_precedence_over_the_grid(tmp_path):
    launcher = Launcher(lambda config: summary(1.0))
    run(tmp_path, TWO_BY_TWO, launcher, "--seeds=7", "--config.train.steps=5", "--jobs=2")
    assert len(launcher.runs) == 4
    for arguments in launcher.runs:
        assert [a for a in arguments if "steps" in a or "seed" in a] == ["--config.train.steps=5", "--config.seed=7"]


def test_merge_replaces_a_section_and_sets_later_keys_in_it():
    keys = {"a", "a.x", "a.y", "b", "ab"}
    merge = lambda *layers: ablate.merge(keys, *layers)
    assert merge({"a.x": 1, "b": 2}, {"b": 3}) == {"a.x": 1, "b": 3}
    assert merge({"a.x": 1, "ab": 5}, {"a": {"z": 4}}) == {"ab": 5, "a": {"z": 4}}
    section = {"z": (1, 2), "on": True, "deep": {"w": 0}}
    assert merge({"a": section}, {"a.z": "(3, 4)", "a.on": "false", "a.deep.w": "word"}) == {
        "a": {"z": (3, 4), "on": False, "deep": {"w": "word"}}
    }
    assert section == {"z": (1, 2), "on": True, "deep": {"w": 0}}
    with pytest.raises(ValueError, match=r"a\.x; the nearest are a\.z"):
        merge({"a": {"z": 4}}, {"a.x": 1})  # the dict that replaced section a has no x


def test_a_replaced_section_keeps_its_exact_values_in_the_config():
    section = {"name": "nesterov", "learning_rate": (0.03, 0.00001), "momentum": (0.9, 0.9999), "clip": 0.0}
    cells = configs.product(optimiser={"nesterov": {"optimizer": section}}, rate={"low": {"optimizer.clip": 1.0}})
    grid = {"config": "configs/beetle.py:smoke", "cells": cells, "overrides": {}, "seeds": (3,)}
    [made] = ablate.expand(grid, Path("out"), None, {"optimizer.learning_rate": "(0.02, 0.02)"})
    assert made.config.optimizer.to_dict() == section | {"clip": 1.0, "learning_rate": (0.02, 0.02)}
    assert made.config.seed == 3


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('"train.steps": 2', '"train.step": 2', r"small / pronotum: .*train\.step; the nearest are train\.steps"),
        ('"train.steps": 2', '"optimiser.name": "adam"', r"the nearest are .*optimizer\.name"),
        ('"train.steps": 2', '"train.steps": "two"', r"small / pronotum: .*train\.steps=two"),
        ('"train.steps": 2', '"seed": 2', "--seeds"),
        ("part=head", "part=tail", "small / head: .*config variant 'part=tail': part must be one of left_mandible"),
        ("beetle.py", "bettle.py", "bettle.py"),
        ('"seeds"', '"sedes"', "unknown grid key sedes; the nearest are seeds"),
        ('"<b>large</b>"', '"small."', r"2 runs share the folder .*small--pronotum"),
    ],
)
def test_grid_errors_are_reported_before_any_run(old, new, message, tmp_path):
    assert old in TWO_BY_TWO
    assert re.search(message, refused(tmp_path, TWO_BY_TWO.replace(old, new)))


def test_unknown_command_line_arguments_are_refused(tmp_path, capsys):
    assert "train.steps" in refused(tmp_path, TWO_BY_TWO, "--config.train.stepz=4")
    assert refused(tmp_path, TWO_BY_TWO, "--confg.train.steps=4") == "2"
    assert "--confg.train.steps=4" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"nowhere\.py: no such file"):
        ablate.main(["--grid=nowhere.py"])


def test_a_file_without_a_grid_gives_a_one_line_error(tmp_path):
    for path, takes in (
        ("configs/fish.py", "jaxmarks.main --config"),
        ("configs/tuning/fish.py", "launch/tune.py --space"),
    ):
        with pytest.raises(SystemExit) as error:
            ablate.main([f"--grid={path}"])
        there = "get_space" if "tuning" in path else "get_config"
        assert (
            str(error.value)
            == f"ablate: {path} does not define get_grid; it defines {there}: give it to {takes}={path}"
        )
    said = refused(tmp_path, "x = 3")
    assert said == f"ablate: {tmp_path}/grid.py does not define get_grid; write one that returns a dict"
    said = refused(tmp_path, TWO_BY_TWO.replace('"config": "', '"config" "'))
    assert re.fullmatch(rf"ablate: {tmp_path}/grid\.py: SyntaxError: .*line \d+\)", said)
    assert said.count("\n") == 0


@pytest.mark.parametrize("below", ["", "/below"])
def test_a_file_at_the_path_of_the_workdir_is_refused(below, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "grid.py").write_text(TWO_BY_TWO)
    with pytest.raises(
        SystemExit, match=rf"ablate: --workdir={tmp_path}/file{below}: a file is in the way; name another"
    ):
        ablate.main([f"--grid={tmp_path}/grid.py", f"--workdir={tmp_path}/file{below}"], device=lambda: "none")


def test_the_table_gives_mean_and_deviation_over_seeds(tmp_path):
    # Population deviations, by hand:
    # (2, 3) -> 2.5 ± 0.5, (1, 4.2) -> 2.6 ± 1.6, (5, 5.5) -> 5.25 ± 0.25, (8, 6) -> 7 ± 1
    distances = {
        (32, "pronotum"): (2.0, 3.0), (32, "head"): (5.0, 5.5), (64, "pronotum"): (1.0, 4.2), (64, "head"): (8.0, 6.0),
    }  # fmt: skip
    found = lambda config: summary(distances[config.model.width, config.data.part][config.seed], folds=0.75)
    _, workdir = run(tmp_path, TWO_BY_TWO, Launcher(found))
    assert rows(workdir) == {
        "small": ["**2.50 ± 0.50**", "**5.25 ± 0.25**"],
        "<b>large</b>": ["2.60 ± 1.60", "7.00 ± 1.00"],
        "mean shape": ["20.00 ± 0.75", "20.00 ± 0.75"],
    }
    text = (workdir / "table.md").read_text()
    assert (
        "Mean distance (px) ± the population standard deviation over 2 seeds (of a baseline, over its folds); lower"
        in text
    )
    for expected in ("an abacus", "8 of 8 runs complete", "80 s of training", "--grid="):
        assert expected in text, expected


def test_with_one_seed_the_deviation_is_over_folds(tmp_path):
    found = lambda config: summary(3.0, folds=0.25, mean_shape=20.0 if config.model.width == 32 else 21.5)
    _, workdir = run(tmp_path, TWO_BY_TWO, Launcher(found), "--seeds=0")
    # Equal rows are both marked as best; a baseline that differs between the runs of a column is shown as a range.
    assert rows(workdir)["small"] == rows(workdir)["<b>large</b>"] == ["**3.00 ± 0.25**"] * 2
    assert rows(workdir)["mean shape"] == ["20.00 – 21.50"] * 2  # noqa: RUF001
    assert "± the population standard deviation over 2 folds (one seed)" in (workdir / "table.md").read_text()


def test_each_metric_has_its_own_table_with_the_best_in_bold(tmp_path):
    text = TWO_BY_TWO.replace(
        '"seeds": (0, 1)', '"metrics": ("mean_distance_px", "pearson", "success_rates.10", "sdr_mm.2.5", "hit_rates.2")'
    )
    found = lambda config: summary(
        config.model.width / 10,
        pearson=config.model.width / 100,
        success_rates={"10": 0.5, "20": 1.0},
        std_over_folds_hit_rates={"2": 0.05},
        hit_rates={"2": 0.7},
        sdr_mm={"2.5": 0.75},
    )
    _, workdir = run(tmp_path, text, Launcher(found))
    said = (workdir / "table.md").read_text()
    assert "Pearson (one seed); higher is better" in said and "| <b>large</b> | **0.6400** | **0.6400** |" in said
    assert "| small | **3.20** | **3.20** |" in said and "| small | 0.3200 | 0.3200 |" in said
    assert "Share of landmarks within 10 px (one seed); higher" in said and "| small | **0.5000** |" in said
    assert "Share of landmarks within 2.5 mm (one seed); higher" in said and "| small | **0.7500** |" in said
    assert "within 2 pixels of the network's frame ± the population standard deviation over 2 folds (one seed)" in said
    assert "**0.7000 ± 0.0500**" in said
    with (workdir / "table.csv").open() as file:
        assert [line["success_rates.10"] for line in csv.DictReader(file)] == ["0.5"] * 4


def test_table_csv_has_a_line_for_each_run(tmp_path):
    launcher = Launcher(lambda config: summary(2.0 + config.seed, folds=0.5))
    log = tmp_path / "out" / "small--pronotum" / "0" / "metrics.jsonl"
    log.parent.mkdir(parents=True)
    lines = [("pretrain", 0, 90), ("train", 0, 1), ("train", 0, 2), ("train", 1, 1), ("train", 1, 3)]
    log.write_text("".join(json.dumps(dict(stage=s, fold=f, epoch=e)) + "\n" for s, f, e in lines))
    _, workdir = run(tmp_path, TWO_BY_TWO, launcher)
    with (workdir / "table.csv").open() as file:
        found = list(csv.DictReader(file))
    assert len(found) == 8 and [line["epochs"] for line in found] == ["3"] + [""] * 7
    assert found[1] == {
        "row": "small", "column": "pronotum", "seed": "1", "mean_distance_px": "3.0", "std_over_folds_px": "0.5",
        "median_px": "1.5", "p95_px": "4.0", "parameters": "1234", "seconds": "10.0", "images": "18", "landmarks": "8",
        "epochs": "", "baselines.mean_shape.mean_distance_px": "20.0", "folder": "small--pronotum/1",
        "arguments": "--config=configs/beetle.py:smoke --config.train.steps=2 --config.model.width=32 --config.seed=1",
    }  # fmt: skip


def test_table_csv_has_each_metric_with_its_deviation_and_the_baselines_but_no_empty_column(tmp_path):
    detector = {"f1": 0.5, "std_over_folds_f1": 0.125, "images": 3, "objects": 9, "baselines": {"blobs": {"f1": 0.25}}}
    text = TWO_BY_TWO.replace('"seeds": (0, 1)', '"metrics": ("f1",)')
    _, workdir = run(tmp_path, text, Launcher(lambda config: detector))
    with (workdir / "table.csv").open() as file:
        line = next(csv.DictReader(file))
    assert [line.pop(key) for key in ("folder", "arguments")] and line == {
        "row": "small", "column": "pronotum", "seed": "0", "f1": "0.5", "std_over_folds_f1": "0.125", "images": "3",
        "objects": "9", "baselines.blobs.f1": "0.25",
    }  # fmt: skip
    assert "<th>blobs: f1</th>" in (workdir / "table.html").read_text()


def test_failed_runs_are_listed_and_only_they_are_repeated(tmp_path):
    fails = lambda config: config.model.width == 64 and config.data.part == "head"
    launcher = Launcher(lambda config: 3 if fails(config) else summary(2.0))
    failed, workdir = run(tmp_path, TWO_BY_TWO, launcher)
    assert failed == 2 and len(launcher.runs) == 8  # the run after the first failure was still started
    assert rows(workdir)["<b>large</b>"] == ["**2.00 ± 0.00**", "2 of 2 seeds failed"]
    said = (workdir / "table.md").read_text()
    assert "**Failed: <b>large</b> / head, seed 1**" in said and "    out of memory & <gone>\n" in said
    with (workdir / "table.csv").open() as file:
        messages = [line["failed"] for line in csv.DictReader(file)]
    assert messages[:6] == [""] * 6 and all("out of memory & <gone> (exit status 3; " in text for text in messages[6:])

    # If one of two seeds is left, its deviation over folds is not shown as one over seeds.
    again = Launcher(lambda config: summary(1.0, folds=0.7) if config.seed == 0 else 3)
    failed, _ = run(tmp_path, TWO_BY_TWO, again)
    workdirs = [arguments[-1].removeprefix(f"--workdir={workdir}/") for arguments in again.runs]
    assert failed == 1 and workdirs == ["b-large-b--head/0", "b-large-b--head/1"]
    assert rows(workdir)["<b>large</b>"][1] == "1.00 (1 of 2 seeds failed)"
    assert (workdir / "b-large-b--head" / "1" / "log.txt").read_text().count("step 1") == 2
    assert (workdir / "table.md").read_text().count("step 1") == 1  # only the output of the last attempt
    assert run(tmp_path, TWO_BY_TWO, Launcher(lambda config: summary(1.5)))[0] == 0
    assert rows(workdir)["<b>large</b>"][1] == "**1.25 ± 0.25**"


def test_a_truncated_summary_or_another_config_is_not_complete(tmp_path):
    launcher = Launcher(lambda config: summary(2.0))
    _, workdir = run(tmp_path, TWO_BY_TWO, launcher)
    assert len(launcher.runs) == 8
    run(tmp_path, TWO_BY_TWO, launcher)
    assert len(launcher.runs) == 8  # no run is repeated
    cut = workdir / "small--head" / "0" / "summary.json"
    cut.write_text(cut.read_text()[:40])
    run(tmp_path, TWO_BY_TWO, launcher)
    assert [arguments[-1] for arguments in launcher.runs[8:]] == [f"--workdir={cut.parent}"]
    # With another config all runs start; if jaxmarks.main refuses their folders, the old numbers are not shown.
    refuse = lambda arguments, log, environment: log.write_text("holds a run with another config") and 1
    failed, _ = run(tmp_path, TWO_BY_TWO, refuse, "--config.train.steps=9")
    assert failed == 8 and {cell for row in rows(workdir).values() for cell in row} == {"2 of 2 seeds failed"}
    assert "holds a run with another config" in (workdir / "table.md").read_text()


def test_a_run_is_complete_after_training_fills_in_its_config(tmp_path):
    Image.new("L", (60, 90)).save(tmp_path / "tall.png")
    (tmp_path / "marks.csv").write_text("image,x1,y1\ntall.png,3,4\n")
    grid = f"""
def get_grid(text=""):
    own = {{"data.images": "{tmp_path}", "data.landmarks": "{tmp_path}/marks.csv", "data.pixels": 1536}}
    return {{"config": "configs/fish.py:own", "overrides": own, "cells": [{{"row": "a"}}]}}
"""

    def found(config):
        config.data.size, config.data.zoom, config.data.pose = (48, 32), 1.0, "upright"  # as training fills them in
        return summary(2.0)

    launcher = Launcher(found)
    for _ in range(2):
        run(tmp_path, grid, launcher)
    assert len(launcher.runs) == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"seeds": (0, 1)', '"seeds": 3', "seeds=3; give a list or tuple"),
        ('"seeds": (0, 1)', '"metrics": "mean_distance_px"', "metrics='mean_distance_px'; give a list or tuple"),
        ('"config"', '"overrides"', "the grid has no config"),
        ("    return {", "    return None; {", "get_grid returns None"),
        ('"seeds": (0, 1)', '"overrides": {"optimizer.name": "sgd"}', "choose one of nesterov"),
        ('"seeds": (0, 1)', '"overrides": {"head.loss": "best"}', "best"),
        ('"seeds": (0, 1)', '"overrides": {"baselines": ("median",)}', "have no baseline median"),
        ('"seeds": (0, 1)', '"overrides": ["train.steps"]', "overrides=['train.steps']; give a dict"),
        ('"seeds": (0, 1)', '"overrides": {"train.epochs": 2, "train.steps": 9}', "train.steps=9 has no effect"),
        ('"<b>large</b>"', '"long" * 80', "shorten the labels"),
        ('"small": {"model.width": 32}', '"small": "own"', "give --config.data.images=DIR --config.data.landmarks"),
        ('"seeds": (0, 1)', '"overrides": {"train.batch_size": 0}', "batch_size=0: it must be at least 1"),
    ],
)
def test_invalid_grid_values_are_reported_before_any_run(tmp_path, old, new, message):
    assert old in TWO_BY_TWO
    assert message in refused(tmp_path, TWO_BY_TWO.replace(old, new, 1))


@pytest.mark.parametrize(
    ("direction", "metrics"),
    [
        (
            "higher",
            "f1 map by_class.thin.ap50 by_class.thin.recall success_rates.40 sdr_mm.2.5 presence.auc volume.median_iou"
            " volume.worst_5_percent_iou baselines.mean_shape.pearson",
        ),
        (
            "lower",
            "mean_distance_px p95_px std_px mean_distance_mm volume.median_angle_degrees seconds ms_per_image"
            " shape.procrustes_distance shape.centroid_size_std std_over_folds_px std_over_folds_hit_rates.2",
        ),
        ("", "shape.centroid_size_error shape.variance_ratio volume.within_told.size images threshold"),
    ],
)
def test_which_direction_of_a_metric_is_better(direction, metrics):
    assert {metric: ablate.better(metric) for metric in metrics.split()} == dict.fromkeys(metrics.split(), direction)


def test_nothing_is_best_where_no_direction_is_better(tmp_path):
    text = TWO_BY_TWO.replace('"seeds": (0, 1)', '"metrics": ("shape.variance_ratio",)')
    _, workdir = run(tmp_path, text, Launcher(lambda config: summary(2.0, shape={"variance_ratio": 0.5})))
    said = (workdir / "table.md").read_text()
    assert "Shape.variance ratio (one seed).\n" in said and "| small | 0.5000 | 0.5000 |" in said


def test_a_column_scored_on_different_images_is_not_ranked(tmp_path):
    def found(config):
        same = config.data.part == "pronotum" or config.model.width == 32
        return summary(config.model.width / 32, scored="one" if same else "other")

    _, workdir = run(tmp_path, TWO_BY_TWO, Launcher(found))
    assert rows(workdir)["small"] == ["**1.00 ± 0.00**", "1.00 ± 0.00"]
    assert (
        "in bold, but not in column head, whose cells are scored on different images."
        in (workdir / "table.md").read_text()
    )


def test_a_metric_that_no_run_has_is_named_with_the_nearest_and_repeats_no_run(tmp_path):
    text = TWO_BY_TWO.replace(
        '"seeds": (0, 1)', '"metrics": ("mean_distance", "p95_px", "sdr_mm.2.5", "pck.0.3", "folds")'
    )
    launcher = Launcher(lambda config: summary(2.0, sdr_mm=None, p95_px=None, pck={"0.2": 1.0}))
    message = (
        "no summary.json has a number mean_distance; the nearest are mean_distance_px, .*; no summary.json has a"
        r" number pck\.0\.3; the nearest are pck\.0\.2; no summary.json has a number folds; the nearest are"
    )
    for _ in range(2):
        with pytest.raises(SystemExit, match=message):
            run(tmp_path, text, launcher)
    assert len(launcher.runs) == 4
    said = (tmp_path / "out" / "table.md").read_text()
    assert "mean_distance; the nearest" in said and "| small | – | – |" in said and "ailed" not in said  # noqa: RUF001


def test_completed_runs_are_repeated_once_their_data_change(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(2):
        Image.new("L", (60, 90)).save(photos / f"{number}.png")
    marks = tmp_path / "marks.csv"
    marks.write_text("image,x1,y1\n0.png,3,4\n1.png,3,4\n")
    launcher = Launcher(lambda config: summary(2.0))
    options = (f"--config.data.images={photos}", f"--config.data.landmarks={marks}")

    def trained():
        ablate.data_fingerprint.__globals__["contents"].cache_clear()  # as in another process
        before = len(launcher.runs)
        run(tmp_path, TWO_BY_TWO, launcher, *options)
        return len(launcher.runs) - before

    assert trained() == 8 and trained() == 0
    os.utime(marks, (0, 0))
    (photos / "notes.txt").touch()
    assert trained() == 0
    Image.new("L", (60, 90), 9).save(photos / "1.png")
    assert trained() == 8 and trained() == 0
    marks.write_text("image,x1,y1\n0.png,3,5\n1.png,3,4\n")
    assert trained() == 8 and trained() == 0
    (photos / "1.png").unlink()
    assert trained() == 8 and trained() == 0


def test_annotations_beside_the_photographs_are_data_but_not_the_grids_own_files(tmp_path):
    config = ablate.resolve(
        ["--config=configs/fish.py:own", f"--config.data.images={tmp_path}", f"--config.data.landmarks={tmp_path}"]
    )

    def fingerprint():
        ablate.data_fingerprint.__globals__["contents"].cache_clear()
        return ablate.data_fingerprint(config)

    (tmp_path / "0.json").write_text("[1]")
    before = fingerprint()
    run_folder = tmp_path / "out" / "cell" / "0"
    run_folder.mkdir(parents=True)
    for name in ("config.json", "metrics.jsonl", "attempt.json", "film.avi"):
        (run_folder / name).touch()
    assert fingerprint() == before
    (tmp_path / "0.json").write_text("[2]")
    assert fingerprint() != before


def test_runs_that_do_not_differ_are_refused(tmp_path):
    said = refused(tmp_path, TWO_BY_TWO, "--config.model.width=16")
    assert "the cells small / pronotum and <b>large</b> / pronotum are the same run: what tells them apart has" in said
    said = refused(tmp_path, TWO_BY_TWO.replace('"pronotum": {}', '"pronotum": "part=pronotum,part=head"'))
    assert "config variant 'part=head': part=pronotum is given, too" in said


def test_another_commands_runs_are_not_failures_once_complete(tmp_path):
    """The first run's folder is locked by another command, which then completes it."""
    done = Launcher(lambda config: summary(2.0))

    def launch(arguments, log, environment):
        if log.parent == tmp_path / "out/small--pronotum/0":
            log.write_text("another command is writing to this folder\n")
            return 2
        if log.parent == tmp_path / "out/small--pronotum/1":
            run(tmp_path, TWO_BY_TWO, done, "--seeds=0")  # the other command
        return Launcher(lambda config: summary(3.0))(arguments, log, environment)

    failed, workdir = run(tmp_path, TWO_BY_TWO, launch)
    assert failed == 0 and rows(workdir)["small"][0] == "**2.50 ± 0.50**" and len(done.runs) == 4


def test_the_tables_are_rewritten_after_every_run(tmp_path, monkeypatch):
    write, seen = ablate.write, []

    def seeing(workdir, *rest):
        write(workdir, *rest)
        seen.append(rows(workdir)["small"])

    def found(config):
        wait(lambda: len(seen) >= len(launcher.runs))  # the tables with the run before
        return summary(2.0)

    launcher = Launcher(found)
    monkeypatch.setattr(ablate, "write", seeing)
    run(tmp_path, TWO_BY_TWO, launcher)
    assert [cells[0] for cells in seen[:3]] == [
        "2 of 2 seeds not run yet", "2.00 (1 of 2 seeds not run yet)", "**2.00 ± 0.00**"
    ]  # fmt: skip
    assert len(seen) == 9 and seen[2][1] == "2 of 2 seeds not run yet"


class Texts(HTMLParser):
    """The tags, texts and links of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts, self.links = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_escapes_labels_and_logs_and_needs_no_other_file(tmp_path):
    launcher = Launcher(lambda config: 3 if config.data.part == "head" else summary(config.model.width / 16))
    _, workdir = run(tmp_path, TWO_BY_TWO.replace('"head":', '"<script>x</script>":'), launcher)
    page = Texts((workdir / "table.html").read_text())
    assert "script" not in page.tags and not page.links
    assert "<b>large</b>" in page.texts and "<script>x</script>" in page.texts
    assert page.tags.count("b") == 1 and "2.00 ± 0.00" in page.texts  # the best cell of the only column with numbers
    assert any("out of memory & <gone>" in text for text in page.texts)
    assert page.tags.count("table") == 2


CHAIN = """
def get_grid(text=""):
    return {
        "config": "configs/beetle.py:smoke",
        "cells": [
            {"row": "none", "column": "head", "config": "part=head"},
            {"row": "none", "column": "elytra", "config": "part=elytra"},
            {"row": "other part", "column": "elytra", "config": "part=elytra", "after": "none / head"},
        ],
        "seeds": (0, 1),
    }
"""


@pytest.mark.parametrize("jobs", [1, 4])
def test_a_cell_starts_from_another_cells_run_of_the_same_seed(jobs, tmp_path):
    """The first cell takes longest: with four jobs, the last cell would start too early if it did not wait for it."""
    ended = []

    def found(config):
        time.sleep(0.3 if config.data.part == "head" else 0)
        if config.init_from:
            assert config.init_from == f"{tmp_path}/out/none--head/{config.seed}"
            assert ("head", config.seed, "") in ended
        ended.append((config.data.part, config.seed, config.init_from))
        return summary(1.0)

    launcher = Launcher(found)
    note = tmp_path / "out" / "none--head" / "0" / "checkpoints/train/fold0/best/note.json"
    note.parent.mkdir(parents=True)
    note.write_text("{}")
    assert run(tmp_path, CHAIN, launcher, f"--jobs={jobs}")[0] == 0
    assert sum(bool(source) for _, _, source in ended) == 2 and len(ended) == 6
    # The source is complete, so only the run without a summary is repeated.
    (tmp_path / "out" / "other-part--elytra" / "0" / "summary.json").unlink()
    run(tmp_path, CHAIN, launcher)
    assert len(launcher.runs) == 7
    # A run is repeated with its source, and if its source has been trained anew.
    (tmp_path / "out" / "none--head" / "1" / "summary.json").unlink()
    run(tmp_path, CHAIN, launcher)
    assert [arguments[-1].split("/out/")[1] for arguments in launcher.runs[7:]] == [
        "none--head/1",
        "other-part--elytra/1",
    ]
    note.write_text('{"sha256": ""}')
    run(tmp_path, CHAIN, launcher)
    assert [arguments[-1].split("/out/")[1] for arguments in launcher.runs[9:]] == ["other-part--elytra/0"]
    note.unlink()  # as when checkpoints are deleted to save space
    run(tmp_path, CHAIN, launcher)
    assert len(launcher.runs) == 10


def test_a_workdir_is_the_same_by_another_path_or_moved(tmp_path):
    launcher = Launcher(lambda config: summary(1.0))
    run(tmp_path, CHAIN, launcher)
    again = lambda workdir: ablate.main(
        [f"--grid={tmp_path}/grid.py", f"--workdir={workdir}"], launch=launcher, device=lambda: "an abacus"
    )
    (tmp_path / "link").symlink_to(tmp_path / "out")
    again(os.path.relpath(tmp_path / "out"))
    again(tmp_path / "link")
    (tmp_path / "out").rename(tmp_path / "moved")
    again(tmp_path / "moved")
    assert len(launcher.runs) == 6


def test_runs_of_older_versions_are_scored_anew_if_they_have_networks(tmp_path):
    launcher = Launcher(lambda config: summary(1.0))
    _, workdir = run(tmp_path, CHAIN, launcher)
    for attempt in workdir.glob("*/*/attempt.json"):
        attempt.unlink()
    (workdir / "none--elytra/0/checkpoints").mkdir()
    run(tmp_path, CHAIN, launcher)
    assert [arguments[-1].split("/out/")[1] for arguments in launcher.runs[6:]] == ["none--elytra/0"]


def test_a_source_that_another_command_completes_lets_its_run_start(tmp_path):
    def launch(arguments, log, environment):
        if "none--head" in str(log):  # the other command completes it before this one looks again
            Launcher(lambda config: summary(1.0))(arguments, log, environment)
            attempt = json.loads((log.parent / "attempt.json").read_text())
            monitor.append(lambda: (log.parent / "attempt.json").write_text(json.dumps(attempt | {"failed": ""})))
            return 2
        while monitor:
            monitor.pop()()
        return Launcher(lambda config: summary(1.0))(arguments, log, environment)

    monitor = []
    failed, workdir = run(tmp_path, CHAIN, launch, "--seeds=0")
    assert failed == 0 and "not trained" not in (workdir / "table.md").read_text()


def test_shares_cover_the_grid_and_keep_dependent_runs_together(tmp_path):
    launchers = [Launcher(lambda config: summary(1.0)) for _ in range(3)]
    counts = []
    for part, launcher in enumerate(launchers):
        _, workdir = run(tmp_path, CHAIN, launcher, f"--share={part}/3")
        counts.append(sum("not run yet" in cell for cells in rows(workdir).values() for cell in cells))
    folders = [[arguments[-1].split("/out/")[1] for arguments in launcher.runs] for launcher in launchers]
    assert len({*folders[0], *folders[1], *folders[2]}) == sum(map(len, folders)) == 6
    for mine in folders:
        assert sum("other-part" in folder for folder in mine) == sum("none--head" in folder for folder in mine)
    assert counts[-1] == 0 < counts[0]  # the last share's table has the runs of all shares
    # A failure in one share is shown by the others, and gone once that share is repeated.
    (workdir / "none--head" / "0" / "summary.json").unlink()
    run(tmp_path, CHAIN, Launcher(lambda config: 3), "--share=0/3")
    assert run(tmp_path, CHAIN, Launcher(lambda config: summary(1.0)), "--share=1/3")[0] == 0
    assert "**Failed: none / head, seed 0**" in (workdir / "table.md").read_text()
    assert run(tmp_path, CHAIN, Launcher(lambda config: summary(1.0)), "--share=0/3")[0] == 0
    assert "ailed" not in (workdir / "table.md").read_text()
    for wrong in ("3/3", "1", "a/b"):
        with pytest.raises(SystemExit):
            run(tmp_path, CHAIN, Launcher(lambda config: pytest.fail("a run was started")), f"--share={wrong}")


def test_a_run_is_not_trained_until_its_source_run_succeeds(tmp_path):
    broken = Launcher(lambda config: 3 if config.data.part == "head" and config.seed == 1 else summary(1.0))
    failed, workdir = run(tmp_path, CHAIN, broken)
    assert failed == 2 and len(broken.runs) == 5
    assert (
        f"not trained: the run that it starts from failed ({workdir}/none--head/1)"
        in (workdir / "table.md").read_text()
    )
    mended = Launcher(lambda config: summary(1.0))
    assert run(tmp_path, CHAIN, mended)[0] == 0 and len(mended.runs) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_command_lets_its_runs_save(number, tmp_path):
    """A fake jaxmarks.main sleeps; a signal to the command's group reaches it once and gives it time to save."""
    (tmp_path / "jaxmarks_main.py").write_text(
        "import pathlib, signal, sys, time\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "def save(*_):\n"  # as in the real one, which a second signal ends at once
        "    signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
        "    time.sleep(3)\n"
        "    (folder / 'ended').touch()\n"
        "    sys.exit(1)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "(folder / 'started').touch()\n"
        "time.sleep(60)\n"
    )
    (tmp_path / "command.py").write_text(
        "import signal, subprocess, sys\n"
        f"sys.path.insert(0, {str(ROOT / 'launch')!r})\n"
        "import ablate, experiments\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a process started in the background ignores it
        "popen = subprocess.Popen\n"
        f"mine = [sys.executable, {str(tmp_path / 'jaxmarks_main.py')!r}, {str(tmp_path)!r}]\n"
        "experiments.subprocess.Popen = lambda command, **how: popen(mine, **how)\n"
        "experiments.end_with_children()\n"
        "ablate.main(sys.argv[1:], device=lambda: 'none')\n"
    )
    (tmp_path / "grid.py").write_text(CHAIN)
    command = [
        sys.executable,
        str(tmp_path / "command.py"),
        f"--grid={tmp_path / 'grid.py'}",
        f"--workdir={tmp_path / 'out'}",
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        for _ in range(600):
            if (tmp_path / "started").exists() or process.poll() is not None:
                break
            time.sleep(0.1)
        os.killpg(process.pid, number)  # as a terminal does on Ctrl-C
        said, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode in (128 + number, -number), said
    assert (tmp_path / "ended").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
def test_a_run_does_not_outlive_a_killed_command(tmp_path):
    package = tmp_path / "jaxmarks"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "main.py").write_text(
        "import os, pathlib, sys, time\n"
        "pathlib.Path('whole').write_text(' '.join([str(os.getpid()), *sys.argv[1:], os.environ['GIVEN']]))\n"
        "os.rename('whole', 'started')\n"
        "time.sleep(60)\n"
    )
    (tmp_path / "command.py").write_text(
        "import os, pathlib, sys\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        f"sys.path.insert(0, {str(ROOT / 'launch')!r})\n"
        "import experiments\n"
        "with ThreadPoolExecutor(1) as pool:\n"
        "    pool.submit(experiments.run_to_end, ['--a=b c'], pathlib.Path('log.txt'), os.environ | {'GIVEN': 'it'}).result()\n"
    )
    process = subprocess.Popen([sys.executable, "command.py"], cwd=tmp_path)
    started = tmp_path / "started"
    try:
        wait(lambda: started.exists() or process.poll() is not None)
        number, *said = started.read_text().split()
        assert said == ["--a=b", "c", "it"] and alive(number)
    finally:
        process.kill()
        process.wait()
    wait(lambda: not alive(number))
    assert not alive(number)


def wait(done, seconds=60):
    """Waits until `done()` is true, for at most `seconds`."""
    for _ in range(seconds * 10):
        if done():
            break
        time.sleep(0.1)


def alive(number):
    """Whether the process with this id exists and is not a zombie (on Linux)."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_after_that_names_no_earlier_cell_is_refused(tmp_path):
    said = refused(tmp_path, CHAIN.replace("none / head", "none / tail"))
    assert (
        "other part / elytra: after='none / tail' names no earlier cell; the earlier ones are: none / head, none / elytra"
        in said
    )


def test_every_grid_of_the_project_is_valid():
    grids = sorted((ROOT / "configs" / "ablations").glob("*.py"))
    assert grids
    for path in grids:
        grid = ablate.load_grid(str(path))
        runs = ablate.expand(grid, Path("out"), None, {})
        if path.stem in ("beetle_parts", "fish_sigma", "fish_table4"):
            ablate.expand(ablate.load_grid(f"{path}:paper"), Path("out"), None, {})
        assert len(runs) == len(grid["cells"]) * len(grid["seeds"]), path
        assert f"--grid=configs/ablations/{path.name}" in path.read_text(), f"{path}: its docstring lacks the command"


def test_two_small_cells_with_the_real_command(tmp_path):
    """The second cell fails, as it names photographs without landmarks; a second start runs only that cell."""
    (tmp_path / "grid.py").write_text("""'''Two cells.'''
def get_grid(text=""):
    return {
        "config": "configs/beetle.py:smoke",
        "overrides": {"train.steps": 2, "data.count": 12, "split.run": (0,), "baselines": ("mean_shape",)},
        "cells": [{"row": "good"}, {"row": "bad", "overrides": {"data.images": "photographs"}}],
    }
""")
    command = [sys.executable, "launch/ablate.py", f"--grid={tmp_path / 'grid.py'}", f"--workdir={tmp_path / 'out'}"]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    ablation = lambda: subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    first = ablation()
    assert first.returncode == 1, first.stdout + first.stderr
    found = json.loads((tmp_path / "out" / "good" / "0" / "summary.json").read_text())
    assert found["images"] == 4
    assert f"| good | **{found['mean_distance_px']:.2f}** |" in first.stdout
    assert f"| mean shape | {found['baselines']['mean_shape']['mean_distance_px']:.2f} |" in first.stdout
    assert "| bad | failed |" in first.stdout and "--config.data.landmarks is empty" in first.stdout
    second = ablation()
    assert "2 runs, 1 of them complete" in second.stdout and "[1/1] bad" in second.stdout, second.stdout
