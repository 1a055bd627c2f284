"""Trains a grid of experiments, every cell for every seed, and rewrites a table after each run.

    python launch/ablate.py --grid=configs/ablations/NAME.py[:variant] [--workdir=DIR] [--seeds=0,1,2] [--jobs=N]
        [--share=I/N] [--config.data.images=PHOTOS --config.data.landmarks=FILE] [--config.key=value ...]

A grid file defines `get_grid(text="")`, where `text` is what follows the colon. It returns a dict:

  config     the config of all cells with its variants, e.g. "configs/fish.py:own"
  cells      a list of dicts: "row" and "column", the labels; "config", variants that this cell adds; "overrides", e.g.
             {"train.steps": 300}, where a dict replaces a section: {"optimizer": {"name": "nesterov", ...}}; "after",
             the "row / column" of an earlier cell: each run starts from that cell's network of the same seed.
             `jaxmarks.config.product` makes such a list from axes.
  overrides  of all cells; optional, as are
  seeds      (0,), the values of `config.seed`
  metrics    ("mean_distance_px",), keys of `summary.json`, those of a dict in it with a dot: "success_rates.10"

A cell's overrides take precedence over those of all cells, and `--config.key=value` on the command line over both. All
runs are checked before the first is trained. Each is a run of `python -m jaxmarks.main` with the workdir
DIR/<row>--<column>/<seed> and its output in `log.txt` there. If a run fails, it is listed as failed, the runs that
start from it are not trained, the others go on, and the exit status is 1. Completed runs are not repeated: after a
kill, give the same command. One whose data have changed since, or the run that it starts from, is listed as failed.
With `--share` the command trains only the I-th of N parts, I from 0, for the tasks of a cluster
(`launch/slurm_array.sh`) that share DIR.

Writes `table.csv` (a line per run), `table.md` and `table.html` to DIR. Of each column they mark the best among the
cells whose seeds are all complete, if these are scored on the same images.
"""

import argparse
import collections
import contextlib
import functools
import json
import math
import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from absl import flags
from experiments import (
    RunError,
    check_keys,
    data_fingerprint,
    default_workdir,
    end_with_children,
    hardware,
    load,
    make,
    merge,
    nearest,
    parse_overrides,
    paths,
    resolve,
    run_to_end,
    slug,
    source_fingerprint,
    tail,
)

from jaxmarks import atomic, report, tasks
from jaxmarks import config as configs
from jaxmarks.data import fitting
from jaxmarks.report import tables

GRID_KEYS = {"config", "cells", "overrides", "seeds", "metrics"}
CELL_KEYS = {"row", "column", "config", "overrides", "after"}
# The file in a run's folder that records its last attempt: the fingerprints of its "data" and of its "source", and how
# it "failed": "" if it did not, None while it is under way.
ATTEMPT = "attempt.json"
DASH = "\N{EN DASH}"


class Run(NamedTuple):
    """One cell with one seed: its labels, the arguments of jaxmarks.main, its folder, and its resolved config.

    `after` is the folder of the run whose network this one starts from, if that run is in this grid.
    """

    row: str
    column: str
    seed: int
    arguments: list[str]
    folder: Path
    config: ml_collections.ConfigDict
    after: Path | None = None


class Entry(NamedTuple):
    """A cell as a table shows it: its text, and whether it is the best of its column."""

    text: str
    best: bool = False


def main(arguments: list[str] | None = None, *, launch=None, device=None) -> int:
    """Runs the grid that the command line names; returns the number of failed runs.

    `launch(arguments, log, environment)` returns an exit status, `device()` a name; tests replace both.
    """
    ending = threading.Event()
    launch, device = launch or functools.partial(run_to_end, stop=ending.is_set), device or hardware
    command = sys.argv if arguments is None else ["launch/ablate.py", *arguments]
    options, common = parse(arguments)
    try:
        grid = load_grid(options.grid)
        runs = expand(grid, options.workdir, options.seeds, common)
        make(options.workdir, "--workdir")
    except (ValueError, OSError) as error:
        sys.exit(f"ablate: {error}")
    started = time.perf_counter()
    results, failures = dict[Path, dict](), dict[Path, str]()
    survey(runs, results, failures)
    part_runs = runs_of_part(runs, *options.share)
    todo: dict[Path, Run] = {}
    for run in part_runs:
        if run.folder not in results or run.after in todo:
            todo[run.folder] = run
            results.pop(run.folder, None)
            if (run.folder / ATTEMPT).exists():  # until it is repeated, its last failure is not shown
                atomic.write_json(run.folder / ATTEMPT, {"failed": None})
    print(f"{len(part_runs)} runs, {len(part_runs) - len(todo)} of them complete: {options.workdir}", flush=True)
    about = {
        "title": grid["title"],
        "command": shlex.join(["python", *command]),
        "device": device(),
        "metrics": grid["metrics"],
    }
    environment = dict(os.environ)
    if options.jobs > 1:  # by default each process takes three quarters of a GPU's memory
        environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / options.jobs:.3f}")

    def update_tables():
        survey(runs, results, failures)
        write(options.workdir, runs, results, failures, about | {"elapsed": time.perf_counter() - started})

    update_tables()
    with ThreadPoolExecutor(options.jobs) as pool:
        futures: dict[Path, Future] = {}
        for run in todo.values():
            source = (todo[run.after], futures[run.after]) if run.after in todo else None  # started before this run
            futures[run.folder] = pool.submit(train, run, launch, environment, source)
        waiting = {futures[folder]: run for folder, run in todo.items()}
        try:
            for number, future in enumerate(as_completed(waiting), 1):
                run = waiting[future]
                try:
                    outcome = shown(future.result(), grid["metrics"][0])
                except RunError as error:
                    outcome = f"failed: {str(error).strip()}"
                print(f"[{number}/{len(todo)}] {name(run)}, seed {run.seed}: {outcome}", flush=True)
                update_tables()
        except BaseException:
            ending.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    print((options.workdir / "table.md").read_text())
    print(options.workdir / "table.html")
    if missing := missing_metrics(results, grid["metrics"]):
        sys.exit(f"ablate: {'; '.join(missing)}")
    return sum(run.folder in failures for run in part_runs)


def parse(arguments):
    """Returns the options, and the overrides of `--config.train.steps=300` as {"train.steps": "300"}."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--grid", required=True, help="the grid file, with its variants after a colon")
    parser.add_argument("--workdir", type=Path, help="folder of runs and tables; default: runs/ and the grid's name")
    parser.add_argument("--seeds", type=numbers, help="default: the grid's")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs trained at the same time")
    parser.add_argument(
        "--share", default="0/1", help="I/N: train only the I-th of N parts of the grid, counted from 0"
    )
    options, rest = parser.parse_known_args(arguments)
    # Resolved, as the configs of runs that start from another one contain it.
    options.workdir = (options.workdir or default_workdir(options.grid)).resolve()
    if options.jobs < 1:
        parser.error(f"--jobs={options.jobs}: give at least 1")
    match = re.fullmatch(r"(\d+)/(\d+)", options.share)
    options.share = tuple(map(int, match.groups())) if match else (0, 0)
    if options.share[0] >= options.share[1]:
        parser.error("--share: give I/N with I from 0 to N - 1, as 0/8")
    return options, parse_overrides(parser, rest)


def numbers(text: str) -> tuple[int, ...]:
    """Parses "0,1,2"; each number once."""
    return tuple(dict.fromkeys(map(int, text.split(","))))


def load_grid(text: str) -> dict:
    """Returns the grid of FILE.py[:variant] with defaults filled in; its title is the docstring's first line."""
    loaded, title = load(text, "get_grid")
    grid = {"overrides": {}, "seeds": (0,), "metrics": ("mean_distance_px",)} | loaded
    check_keys("grid key", grid, GRID_KEYS)
    if not grid.get("cells") or not grid.get("config"):
        raise ValueError(f"{text}: the grid has no {'config' if grid.get('cells') else 'cells'}")
    for key in ("seeds", "metrics"):
        if isinstance(grid[key], str | int | float):
            raise ValueError(f"{text}: {key}={grid[key]!r}; give a list or tuple, as ({grid[key]!r},)")
        grid[key] = tuple(dict.fromkeys(grid[key]))
    for cell in grid["cells"]:
        check_keys("cell key", cell, CELL_KEYS)
        if "row" not in cell:
            raise ValueError(f"{text}: the cell {cell} has no row")
    for section in (grid, *grid["cells"]):
        if not isinstance(overrides := section.get("overrides", {}), dict):
            raise ValueError(f'{text}: overrides={overrides!r}; give a dict, as {{"train.steps": 300}}')
    return grid | {"title": title}


def expand(grid: dict, workdir: Path, seeds, common: dict[str, str]) -> list[Run]:
    """Returns the runs of all cells and seeds, with their configs checked.

    Raises:
      ValueError: the config lacks a key or does not accept a value, a seed is among the overrides, an "after" names no
        earlier cell, or two runs share a folder or are the same.
    """
    runs: list[Run] = []
    for cell in grid["cells"]:
        row, column = str(cell["row"]), str(cell.get("column", ""))
        label = " / ".join(filter(None, [row, column]))
        path, _, variants = grid["config"].partition(":")
        config = ":".join(filter(None, [path, ",".join(filter(None, [variants, cell.get("config")]))]))
        labels = "--".join(filter(None, [slug(row), slug(column)]))
        try:
            if len(labels.encode()) > 255:
                raise ValueError("its folder cannot have this long a name: shorten the labels")
            keys = set(paths(resolve([f"--config={config}"])))
            overrides = merge(keys, grid["overrides"], cell.get("overrides", {}), common)
            if "seed" in overrides:
                raise ValueError("seed cannot be an override; give --seeds=0,1,2, or the grid's seeds")
            sources = {run.seed: run.folder for run in runs if name(run) == cell.get("after")}
            if "after" in cell and not sources:
                cells = dict.fromkeys(map(name, runs))
                raise ValueError(
                    f"after={cell['after']!r} names no earlier cell; the earlier ones are: {', '.join(cells) or 'none'}"
                )
            for seed in seeds or grid["seeds"]:
                folder = workdir / labels / str(seed)
                start = {"init_from": sources[seed]} if sources else {}
                options = [f"--config.{key}={value}" for key, value in (overrides | start | {"seed": seed}).items()]
                settings = resolve([f"--config={config}", *options])
                configs.check_given(settings, config.partition(":")[2], overrides)
                tasks.check(settings)
                fitting.fill_in(settings.data)
                arguments = [f"--config={config}", *options, f"--workdir={folder}"]
                runs.append(Run(row, column, seed, arguments, folder, settings, sources.get(seed)))
        except (flags.Error, ValueError, OSError) as error:
            # An error raised in a config file arrives as a traceback, whose last line is the message.
            raise ValueError(f"{label}: {str(error).strip().splitlines()[-1]}") from error
    for folder, count in collections.Counter(run.folder for run in runs).items():
        if count > 1:
            raise ValueError(f"{count} runs share the folder {folder}: give the cells different labels")
    by_config: dict[str, Run] = {}
    for run in runs:
        twin = by_config.setdefault(run.config.to_json(sort_keys=True), run)
        if twin is not run:
            raise ValueError(
                f"the cells {name(twin)} and {name(run)} are the same run: what tells them apart has no effect, or"
                " other overrides, which take precedence, set the same keys"
            )
    return runs


def name(run: Run) -> str:
    """Returns the labels of a run's cell."""
    return " / ".join(filter(None, [run.row, run.column]))


def runs_of_part(runs: list[Run], part: int, parts: int) -> list[Run]:
    """Returns the runs of one part; runs that start from one another are in the same part."""
    family: dict[Path, int] = {}
    for run in runs:
        family[run.folder] = family[run.after] if run.after else len(set(family.values()))
    return [run for run in runs if family[run.folder] % parts == part]


def survey(runs: list[Run], results: dict[Path, dict], failures: dict[Path, str]) -> None:
    """Adds the runs that have been completed or have failed since, in this command or another one, by folder.

    `results` receives their summaries, `failures` the messages of those that are not complete.
    """
    for run in runs:
        if run.folder in results:
            continue
        failures.pop(run.folder, None)
        if summary := complete(run):
            results[run.folder] = summary
        elif message := read_attempt(run).get("failed"):  # None while it is under way
            failures[run.folder] = message


def read_attempt(run: Run) -> dict:
    """Returns the record of a run's last attempt, or {} if there is none."""
    try:
        return json.loads((run.folder / ATTEMPT).read_text())
    except (OSError, ValueError):
        return {}


def complete(run: Run) -> dict | None:
    """Returns the summary of a run that has succeeded with this config, on these data and from this source; else None.

    A source without networks is not compared. A run without a record of its attempt counts if it has no networks that
    could be scored anew.
    """
    if not (summary := summary_of(run)):
        return None
    if not (attempt := read_attempt(run)):
        return None if (run.folder / "checkpoints").exists() else summary
    source = source_fingerprint(run.config)
    succeeded = attempt["failed"] == "" and attempt["data"] == data_fingerprint(run.config)
    return summary if succeeded and (not source or attempt["source"] in ("", source)) else None


def summary_of(run: Run) -> dict | None:
    """Returns a run's summary, or None if it is missing or the folder holds a run with another config."""
    try:
        summary = tables.read_summary(run.folder / "summary.json")
        config = configs.load(run.folder / "config.json")
    except (OSError, ValueError):  # missing, or truncated by a kill
        return None
    if run.after and config.init_from:  # another path after this grid's folder was moved; its networks are compared
        config.init_from = run.config.init_from
    return None if configs.differences(config, run.config) else summary


def train(run: Run, launch, environment, source: tuple[Run, Future] | None = None) -> dict:
    """Trains a run once its source has ended; returns its summary. Raises RunError if it, or its source, fails.

    Another command may have completed either meanwhile.
    """
    source_failed = source is not None and source[1].exception() is not None and not complete(source[0])
    if summary := complete(run):
        return summary
    run.folder.mkdir(parents=True, exist_ok=True)
    log, message = run.folder / "log.txt", ""
    read = {"data": data_fingerprint(run.config), "source": source_fingerprint(run.config)}
    record = lambda failed: atomic.write_json(run.folder / ATTEMPT, read | {"failed": failed})
    record(None)
    if source_failed:
        message = f"not trained: the run that it starts from failed ({run.after})"
    else:
        log_size = log.stat().st_size if log.exists() else 0
        if status := launch(run.arguments, log, environment):
            message = "\n".join([*tail(log, log_size), f"(exit status {status}; {log})"])
        elif not (summary := summary_of(run)):
            message = f"its summary.json is missing or of another config ({log})"
    record(message)
    if not summary:
        raise RunError(message)
    return summary


# The tables, of the summaries (`results`) and error messages (`failures`) of the runs so far, by folder.


def value(summary: dict, metric: str, default: float | None = math.nan) -> Any:
    """Returns the number of a summary that a metric names, or `default` if there is none."""
    try:
        found = entry_of(summary, metric)
    except KeyError:
        return default
    return found if isinstance(found, int | float) else default


def entry_of(summary: dict, metric: str) -> Any:
    """Returns the entry that a metric names, None also within a section that is null; raises KeyError without one."""
    if metric in summary:
        return summary[metric]
    key, _, rest = metric.partition(".")  # the inner key may have a dot, too: sdr_mm.2.5
    section = summary[key]
    if section is None:
        return None
    if not isinstance(section, dict):
        raise KeyError(metric)
    return entry_of(section, rest)


def missing_metrics(results: dict, metrics) -> list[str]:
    """Describes the metrics that are a number, or null, in no summary, with the nearest numbers that one has."""

    def has(summary: dict, metric: str) -> bool:
        with contextlib.suppress(KeyError):
            return isinstance(entry_of(summary, metric), int | float | None)
        return False

    summaries = results.values()
    lacking = [metric for metric in metrics if summaries and not any(has(summary, metric) for summary in summaries)]
    if not lacking:
        return []
    keys = {key for summary in summaries for key in paths(summary) if value(summary, key, None) is not None}
    return [f"no summary.json has a number {metric}; the nearest are {nearest(metric, keys)}" for metric in lacking]


def shown(summary: dict, metric: str) -> str:
    """Formats the metric and the run's duration for the terminal."""
    return f"{heading(metric)} {number(value(summary, metric), metric)} ({summary.get('seconds') or 0:.0f} s)"


def heading(metric: str) -> str:
    """Formats mean_distance_px as mean distance (px), success_rates.10 as share of landmarks within 10 px."""
    if metric.startswith("success_rates."):
        return f"share of landmarks within {metric.removeprefix('success_rates.')} px"
    if metric.startswith("hit_rates."):
        return f"share of landmarks within {metric.removeprefix('hit_rates.')} pixels of the network's frame"
    if metric.startswith("sdr_mm."):
        return f"share of landmarks within {metric.removeprefix('sdr_mm.')} mm"
    if match := re.fullmatch(r"baselines\.([^.]*)\.(.*)", metric):
        return f"{match[1].replace('_', ' ')}: {heading(match[2])}"
    words, unit = re.fullmatch(r"(.*?)(?:_(px|mm))?", metric).groups()
    return words.replace("_", " ").replace("p95", "95 % within") + (f" ({unit})" if unit else "")


def number(x: float, metric: str) -> str:
    """Formats a metric in px with two decimals, any other with four, and NaN as a dash."""
    return DASH if math.isnan(x) else f"{x:.{2 if metric.endswith('_px') else 4}f}"


# Metrics, or sections of them, of which a higher value is better, and the form of those of which a lower one is.
HIGHER_IS_BETTER = {
    "r2", "explained_variance", "pearson", "success_rates", "hit_rates", "sdr_mm", "pck", "oks", "map_oks", "f1",
    "f1_golden", "map", "map50", "ap50", "precision", "recall", "auc", "median_iou", "worst_5_percent_iou",
}  # fmt: skip
LOWER_IS_BETTER = re.compile(
    r".*(_px|_mm|_degrees)|(.*\.)?(procrustes_distance|centroid_size_std|seconds|ms_per_image|parameters|refused|std_.*)"
)


def better(metric: str) -> str:
    """Returns "higher" or "lower", whichever is better, or "" if neither is: a signed error, a ratio best at 1."""
    if LOWER_IS_BETTER.fullmatch(metric):
        return "lower"
    return "" if HIGHER_IS_BETTER.isdisjoint(metric.split(".")) else "higher"


def over_folds(metric: str) -> str:
    """Returns the summary's key for the metric's standard deviation over folds; not every metric has one."""
    return "std_over_folds_px" if metric == "mean_distance_px" else f"std_over_folds_{metric}"


def statistics(summaries: list[dict], metric: str, *, seeds: int = 1) -> tuple[float, float]:
    """Returns a cell's mean and standard deviation: over its seeds if the grid has several, else over its run's folds.

    Deviations are population ones, as `np.std`. Without any run both numbers are NaN. The deviation is NaN if only one
    of several seeds is complete, or if the single run has one fold or a metric without values per fold.
    """
    values = [value(summary, metric) for summary in summaries]
    if len(values) > 1:
        return float(np.mean(values)), float(np.std(values))
    if not values:
        return math.nan, math.nan
    return values[0], value(summaries[0], over_folds(metric)) if seeds == 1 else math.nan


def with_deviation(mean: float, deviation: float, metric: str) -> str:
    """Formats 2.55 ± 0.10, or 2.55 if the deviation is NaN."""
    return number(mean, metric) + ("" if math.isnan(deviation) else f" ± {number(deviation, metric)}")


def network_entry(summaries: list[dict], metric: str, *, best: bool, seeds: int, failed: int) -> Entry:
    """Returns a cell's entry from the summaries of its complete runs, and the numbers of its seeds and failed runs."""
    mean, deviation = statistics(summaries, metric, seeds=seeds)
    count = lambda n, what: f"{n} of {seeds} seeds {what}" if seeds > 1 else what
    states = (failed, "failed"), (seeds - len(summaries) - failed, "not run yet")
    notes = ", ".join(count(n, what) for n, what in states if n)
    if not summaries:
        return Entry(notes)
    return Entry(with_deviation(mean, deviation, metric) + (f" ({notes})" if notes else ""), best)


def baseline_entry(summaries: list[dict], metric: str) -> Entry:
    """Returns a baseline's entry: its number, or lowest to highest if the runs are scored on different images."""
    scores = sorted({statistics([s], metric) for s in summaries if not math.isnan(value(s, metric))})
    texts = dict.fromkeys(with_deviation(*score, metric) for score in scores)
    if len(texts) > 1:
        texts = dict.fromkeys([f" {DASH} ".join(number(score[0], metric) for score in (scores[0], scores[-1]))])
    return Entry("".join(texts) or DASH)


def layout(runs: list[Run], results: dict, failures: dict, metric: str) -> list[tuple[str, dict[str, Entry]]]:
    """Returns a metric's table, (row, {column: entry}): the rows of the grid, then those of the baselines."""
    cells: dict[tuple[str, str], list[Path]] = collections.defaultdict(list)
    for run in runs:
        cells[run.row, run.column].append(run.folder)
    completed = {cell: [results[f] for f in folders if f in results] for cell, folders in cells.items()}
    networks = {row: {} for row, _ in cells}
    baselines = {method: {} for summaries in completed.values() for s in summaries for method in s["baselines"]}
    unranked = different_images(runs, results)
    for column in dict.fromkeys(column for _, column in cells):
        means = {
            row: statistics(completed[row, c], metric)[0]
            for (row, c), folders in cells.items()
            if c == column and len(completed[row, c]) == len(folders)
        }
        # Only cells whose seeds are all complete, and that are scored on the same images, are ranked.
        best = math.nan if column in unranked else best_of(means.values(), metric)
        for row, entries in networks.items():
            folders, summaries = cells.get((row, column), []), completed.get((row, column), [])
            failed = sum(folder in failures for folder in folders)
            entries[column] = network_entry(
                summaries, metric, best=means.get(row) == best, seeds=len(folders), failed=failed
            )
        for method, entries in baselines.items():
            scored = [s["baselines"] for (_, c), summaries in completed.items() if c == column for s in summaries]
            entries[column] = baseline_entry([scores[method] for scores in scored if method in scores], metric)
    return [*networks.items(), *((method.replace("_", " "), entries) for method, entries in baselines.items())]


def best_of(means: Iterable[float], metric: str) -> float:
    """Returns the best of cells' means, NaN if there is none or if no value of the metric is better than another."""
    choose = {"higher": max, "lower": min, "": lambda _, default: default}[better(metric)]
    return choose((mean for mean in means if not math.isnan(mean)), default=math.nan)


def different_images(runs: list[Run], results: dict) -> list[str]:
    """Returns the columns whose runs so far are not all scored on the same images and numbers of landmarks."""
    scored: dict[str, set] = collections.defaultdict(set)
    for run in runs:
        if summary := results.get(run.folder):
            scored[run.column].add((summary.get("scored"), summary["images"], summary.get("landmarks")))
    return [column for column, each in scored.items() if len(each) > 1]


def caption(runs: list[Run], results: dict, metric: str) -> str:
    """Describes what a table shows, over what its deviations are taken, and which columns rank their cells."""
    seeds = len({run.seed for run in runs})
    with_folds = [r for r in results.values() if value(r, over_folds(metric), None) is not None]
    folds = sorted({len(r.get("folds", [])) for r in with_folds})
    if seeds > 1:
        spread = f" ± the population standard deviation over {seeds} seeds"
        spread += " (of a baseline, over its folds)" if folds else ""
    elif folds:
        spread = f" ± the population standard deviation over {' or '.join(map(str, folds))} folds (one seed)"
    else:
        spread = " (one seed)"
    text = f"{heading(metric)}{spread}"
    if better(metric):
        text += f"; {better(metric)} is better, the best of each column in bold"
        if unranked := different_images(runs, results):
            columns = f"column {', '.join(unranked)}" if any(unranked) else "this column"
            text += f", but not in {columns}, whose cells are scored on different images"
    return f"{text[0].upper()}{text[1:]}."


def describe_data(runs: list[Run], results: dict) -> str:
    """Describes the images and landmarks that cells are scored on, per column (or row) where they differ."""
    columns_by_text: dict = {}
    for run in runs:
        if summary := results.get(run.folder):
            source = f" from {run.config.data.images}" if run.config.get("data", {}).get("images") else ""
            what = f"{summary['objects']} objects" if "objects" in summary else f"{summary['landmarks']} landmarks each"
            text = f"{summary['images']} held-out images{source}, {what}"
            columns_by_text.setdefault(text, {})[run.column or run.row] = None
    if len(columns_by_text) < 2:
        return "".join(columns_by_text)
    return "; ".join(f"{', '.join(columns)}: {text}" for text, columns in columns_by_text.items())


def records(runs: list[Run], results: dict, failures: dict, metrics) -> list[dict]:
    """Returns a row for each run: the lines of `table.csv`, without columns that are empty in all."""
    methods = dict.fromkeys(method for summary in results.values() for method in summary["baselines"])
    keys = dict.fromkeys(["mean_distance_px", "median_px", "p95_px", *metrics])
    keys = dict.fromkeys(each for key in keys for each in (key, over_folds(key)))
    keys |= dict.fromkeys(["parameters", "seconds", "images", "landmarks", "objects"])
    keys |= dict.fromkeys(f"baselines.{method}.{key}" for method in methods for key in ("mean_distance_px", *metrics))
    rows = []
    for run in runs:
        summary, message = results.get(run.folder, {}), failures.get(run.folder, "")
        rows.append(
            {"row": run.row, "column": run.column, "seed": run.seed}
            | {key: value(summary, key, None) for key in keys}
            | {
                "epochs": epochs(run, summary),
                "folder": "/".join(run.folder.parts[-2:]),
                "arguments": shlex.join(run.arguments[:-1]),
            }
            | {"failed": " ".join(message.splitlines()[-2:])}
        )
    filled = [key for key in rows[0] if any(row[key] not in (None, "") for row in rows)]
    return [{key: row[key] for key in filled} for row in rows]


def epochs(run: Run, summary: dict) -> int | None:
    """Returns the largest number of epochs among the networks of a run's last stage; None if the log has none."""
    log = tables.read_metrics(run.folder / "metrics.jsonl")
    return max((m["epoch"] for m in log if m["stage"] == summary.get("stage")), default=None)


def write(workdir: Path, runs: list[Run], results: dict, failures: dict, about: dict) -> None:
    """Writes `table.csv`, `table.md` and `table.html` from the results so far."""
    workdir.mkdir(parents=True, exist_ok=True)
    lines = records(runs, results, failures, about["metrics"])
    atomic.write_records(workdir / "table.csv", lines)
    seconds = sum(summary.get("seconds") or 0 for summary in results.values())
    page = {
        "title": about["title"],
        "columns": list(dict.fromkeys(run.column for run in runs)),
        "grids": [
            (caption(runs, results, m), heading(m), layout(runs, results, failures, m)) for m in about["metrics"]
        ],
        "networks": len({run.row for run in runs}),
        "failures": [(f"{name(run)}, seed {run.seed}", failures[run.folder]) for run in runs if run.folder in failures],
        "command": about["command"],
        "notes": [
            f"{len(results)} of {len(runs)} runs complete.",
            f"{describe_data(runs, results)}." if results else "",
            *(f"{text}." for text in missing_metrics(results, about["metrics"])),
            f"{about['device']}; {duration(seconds)} of training in all runs, {duration(about['elapsed'])}"
            " since this command was started.",
        ],
        "keys": {key: heading(key) for key in lines[0] if key not in ("folder", "arguments", "failed")},
        "records": lines,
    }
    atomic.write(workdir / "table.md", markdown(page))
    atomic.write(workdir / "table.html", report.page("grid.html.jinja", **page))


def duration(seconds: float) -> str:
    """Formats seconds as 45 s, 12 min or 3.4 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def markdown(page: dict) -> str:
    """Formats the page as Markdown."""
    parts = [f"# {page['title']}\n"]
    for text, title, rows in page["grids"]:
        bold = lambda entry: f"**{entry.text}**" if entry.best else entry.text
        table = [{"row": row} | {f"in {c}": bold(entry) for c, entry in entries.items()} for row, entries in rows]
        columns = {"row": ""} | {f"in {c}": c or title for c in page["columns"]}
        parts += [f"{text}\n", tables.markdown(table, columns)]
    parts += ["    " + page["command"] + "\n", " ".join(filter(None, page["notes"])) + "\n"]
    for label, message in page["failures"]:
        parts += [f"**Failed: {label}**\n", "".join(f"    {line}\n" for line in message.splitlines())]
    return "\n".join(parts)


if __name__ == "__main__":
    end_with_children()
    sys.exit(1 if main() else 0)
