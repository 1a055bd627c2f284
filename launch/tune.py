"""Searches settings with Optuna: stops poor trials early, and lets several workers share one study.

    python launch/tune.py --space=configs/tuning/NAME.py[:variant] [--workdir=DIR] [--trials=50] [--storage=URL]
        [--config.data.images=PHOTOS --config.data.landmarks=FILE] [--config.key=value ...]

A space file defines `get_space(text="")`, where `text` is what follows the colon. It returns a dict:

  config     the config of all trials with its variants, e.g. "configs/fish.py:own"
  space      {"optimizer.learning_rate": ("float", 1e-4, 1e-2, "log"), "train.batch_size": ("int", 4, 32),
             "head.loss": ("categorical", "mse", "cross_entropy")}: key -> kind, then lowest and highest, or the choices
  overrides  of all trials, e.g. {"train.steps": 300}; optional, as are
  metric     "valid/distance_px", a key of metrics.jsonl; lower is better. Detectors log only "valid/loss", which says
             nothing about settings that change the loss itself
  warmup     5, the first epoch after which a trial may be stopped

A trial is a run of `python -m jaxmarks.main` with the workdir DIR/trials/<number>. Its value is the metric in the epoch
with the lowest validation loss, whose network a run keeps, averaged over the folds. A fold's test images are not used,
but with several folds they are validation images of others: search on one (`split.run`). After each epoch of the first
fold, a trial is stopped if its best metric so far is worse than the median of the completed trials in that epoch
(Optuna's MedianPruner, which waits for five completed trials).

All trials belong to one study in the storage, by default an SQLite file in DIR. For several workers, start the command
several times; on several machines, give each the same DIR and a --storage that all can reach ("mysql://..."). After a
kill, give the same command: it goes on until the study has the requested number of trials, and resumes a trial that was
interrupted (after SIGKILL, once a minute has passed).

Writes to DIR: `trials.csv`, `tuning.md` with the best trials and the command that trains the best, and `figures/`.
"""

import argparse
import math
import os
import shlex
import sys
import time
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from absl import flags
from experiments import (
    RunError,
    check_keys,
    data_fingerprint,
    default_workdir,
    end_with_children,
    load,
    make,
    merge,
    parse_overrides,
    paths,
    resolve,
    run_to_end,
    tail,
)

from jaxmarks import atomic, runs, tasks
from jaxmarks import config as configs
from jaxmarks.report import tables

try:
    import optuna
    import sqlalchemy.exc
    from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
    from optuna.visualization import matplotlib as plots
except ImportError as error:
    raise ImportError("launch/tune.py needs optional packages: pip install 'jaxmarks[tune]'") from error

SPACE_KEYS = {"config", "space", "overrides", "metric", "warmup"}
KINDS = ("float", "int", "categorical")
# Seconds between a worker's heartbeats; after twice as long without one, its trial is given to another worker.
HEARTBEAT = 30


class MetricError(Exception):
    """The runs do not log the metric, so that every trial would fail."""


def main(arguments: list[str] | None = None, *, launch=run_to_end) -> int:
    """Searches the space that the command line names; returns 1 if no trial completed, else 0.

    `launch(arguments, log, environment, stop=)` returns an exit status; tests replace it.
    """
    options, common = parse(arguments)
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # `print_trial` reports failed trials
    # Which features are experimental in Optuna does not concern the user of a search.
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", module="optuna")
    try:
        space = load_space(options.space)
        check(space, common)
        study = open_study(space, options, common)
    except (flags.Error, ValueError, OSError) as error:
        sys.exit(f"tune: {str(error).strip().splitlines()[-1]}")
    except sqlalchemy.exc.SQLAlchemyError as error:
        sys.exit(
            f"tune: --storage={options.storage}: {str(error).splitlines()[0]}; give a URL, as sqlite:////DIR/study.db"
        )
    objective = lambda trial: run(trial, space, options.workdir, common, launch)
    while len(done(study)) < options.trials:
        try:
            study.optimize(objective, n_trials=1, catch=(RunError,), callbacks=[print_trial])
        except MetricError as error:
            sys.exit(f"tune: {error}")
        write(study, space, options.workdir, common)
    write(study, space, options.workdir, common)
    print((options.workdir / "tuning.md").read_text())
    return int(not best_first(done(study)))


def parse(arguments):
    """Returns the options, and the overrides of `--config.train.steps=300` as {"train.steps": "300"}."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--space", required=True, help="the space file, with its variants after a colon")
    parser.add_argument("--workdir", type=Path, help="folder of the results; default: runs/ and the space's name")
    parser.add_argument("--trials", type=int, default=50, help="trials of the study, of all workers together")
    parser.add_argument("--storage", help="URL of the study's storage; default: an SQLite file in the workdir")
    options, rest = parser.parse_known_args(arguments)
    options.workdir = options.workdir or default_workdir(options.space)
    return options, parse_overrides(parser, rest)


def load_space(text: str) -> dict:
    """Returns the space of FILE.py[:variant] with defaults filled in; its title is the docstring's first line."""
    loaded, title = load(text, "get_space")
    space = {"overrides": {}, "metric": "valid/distance_px", "warmup": 5} | loaded
    check_keys("space key", space, SPACE_KEYS)
    for key in ("config", "space"):
        if not space.get(key):
            raise ValueError(f"{text}: the dict that get_space returns lacks {key}")
    for key, (kind, *choices) in space["space"].items():
        if kind not in KINDS:
            raise ValueError(f"{key}: unknown kind {kind!r}; choose one of {', '.join(KINDS)}")
        if kind != "categorical" and (len(choices) not in (2, 3) or choices[2:] not in ([], ["log"])):
            raise ValueError(
                f"{key}: give {kind}, the lowest and the highest value, and optionally 'log', not {choices}"
            )
        if kind == "categorical" and not choices:
            raise ValueError(f"{key}: give the choices after 'categorical'")
        if kind != "categorical" and not (choices[0] <= choices[1] and (len(choices) == 2 or choices[0] > 0)):
            above = " (above 0 for 'log')" if choices[2:] else ""
            raise ValueError(f"{key}: {choices}: give the lowest value{above} first, then the highest")
    return space | {"title": title}


def check(space: dict, common: dict) -> None:
    """Builds the config at both ends of every range and for every choice.

    Raises:
      ValueError: the config lacks a key or is invalid, a key is both overridden and searched, or there is no validation
        split.
      flags.Error: the config does not accept a value.
    """
    for key in common:
        if key in space["space"]:
            raise ValueError(f"--config.{key} is given, but the space searches it: leave one of the two out")
    for key, (kind, *choices) in space["space"].items():
        for choice in choices if kind == "categorical" else choices[:2]:
            values = {key: float(choice) if kind == "float" else choice}
            config = resolve(command(space, common, values))
            configs.check_given(config, space["config"].partition(":")[2], {*space["overrides"], *values, *common})
            tasks.check(config)
            if not config.split.valid:
                raise ValueError("without validation images trials cannot be compared: set --config.split.valid=0.25")


def command(space: dict, common: dict, values: dict, **more) -> list[str]:
    """Returns the arguments of jaxmarks.main for a trial.

    Overrides in increasing precedence: `more`, the space's, the trial's `values`, and the command line's, `common`.
    """
    config = f"--config={space['config']}"
    overrides = merge(set(paths(resolve([config]))), more, space["overrides"], values, common)
    return [config, *(f"--config.{key}={value}" for key, value in overrides.items())]


def open_study(space: dict, options, common: dict) -> optuna.Study:
    """Opens the study in the storage, or creates it.

    Raises:
      ValueError: the study belongs to another space, has other overrides, or searched on other data.
    """
    make(options.workdir, "--workdir")
    storage = RDBStorage(
        options.storage or f"sqlite:///{options.workdir.absolute()}/study.db",
        heartbeat_interval=HEARTBEAT,
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
    )
    study = optuna.create_study(
        storage=storage,
        study_name=options.workdir.name,
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_warmup_steps=space["warmup"]),
    )
    about = repr([sorted((key, space[key]) for key in SPACE_KEYS), sorted(common.items())])
    if study.user_attrs.get("about", about) != about and study.get_trials(deepcopy=False):
        raise ValueError(
            f"{options.workdir}: its study was started with another space or other overrides: name another --workdir"
        )
    read = data_fingerprint(resolve(command(space, common, {})))
    if study.user_attrs.get("read", read) != read and study.get_trials(deepcopy=False):
        raise ValueError(
            f"{options.workdir}: the data have changed since its study was started, so that its trials cannot be"
            " compared with new ones: name another --workdir"
        )
    study.set_user_attr("about", about)
    study.set_user_attr("read", read)
    return study


def done(study: optuna.Study) -> list:
    """Returns the trials that ended by themselves: completed, stopped early, or failed, but not interrupted."""
    ended = lambda trial: trial.state.name in ("COMPLETE", "PRUNED") or "failed" in trial.user_attrs
    return list(filter(ended, study.get_trials(deepcopy=False)))


def best_first(trials: list) -> list:
    """Returns the completed trials, the best first."""
    return sorted((t for t in trials if t.state.name == "COMPLETE"), key=lambda t: t.value)


def run(trial: optuna.Trial, space: dict, workdir: Path, common: dict, launch) -> float:
    """Trains a trial's networks; returns the trial's value.

    Raises:
      RunError: the run failed, or a network's log has no finite number for the metric.
      MetricError: no line of the log has the metric.
      optuna.TrialPruned: the trial was stopped early.
    """
    values = {key: suggest(trial, key, *choice) for key, choice in space["space"].items()}
    name = trial.user_attrs.get("folder", str(trial.number))  # an interrupted trial goes on in its old folder
    trial.set_user_attr("folder", name)
    folder = workdir / "trials" / name
    folder.mkdir(parents=True, exist_ok=True)
    arguments = [*command(space, common, values, baselines=()), f"--workdir={folder}"]
    stage = resolve(arguments[:-1]).stages[-1]
    log, metrics = folder / "log.txt", folder / "metrics.jsonl"
    log_size = log.stat().st_size if log.exists() else 0
    reported, pruned, started = set(), [], time.perf_counter()

    def stop():
        """Reports the first network's new epochs, asks the pruner while it trains, and returns whether to stop."""
        networks = epochs_by_network(metrics, stage)
        for epoch in next(iter(networks.values()), []):
            if epoch["epoch"] not in reported and epoch.get(space["metric"]) is not None:
                reported.add(epoch["epoch"])
                trial.report(epoch[space["metric"]], epoch["epoch"])
        if len(networks) == 1 and trial.should_prune():
            pruned.append(True)
        return bool(pruned)

    try:
        status = launch(arguments, log, dict(os.environ), stop=stop)
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, SystemExit):  # else Optuna would still count the trial as running, and retry it as well
            trial.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        trial.study.enqueue_trial(trial.params, user_attrs={"folder": name})
        raise
    trial.set_user_attr("seconds", round(time.perf_counter() - started, 1))
    if status and pruned:
        raise optuna.TrialPruned
    networks = epochs_by_network(metrics, stage)
    value = trial_value(networks, space["metric"])
    if status or value is None:
        logged_keys = {key for epochs in networks.values() for epoch in epochs for key in epoch}
        reason = f"exit status {status}" if status else f"no number for {space['metric']}"
        lines = tail(log, log_size)
        message = "\n".join([*lines, f"({reason}; {log})"])
        trial.set_user_attr("failed", message)
        trial.set_user_attr("why", lines[-1] if status and lines else reason)
        if not status and space["metric"] not in logged_keys:
            choices = ", ".join(sorted(key for key in logged_keys if key.startswith("valid/")))
            raise MetricError(f"metric={space['metric']!r} is not in {metrics}; choose one of {choices}")
        raise RunError(message)
    return value


def suggest(trial: optuna.Trial, key: str, kind: str, *choices):
    """Returns a trial's value for a key."""
    if kind == "categorical":
        # The storage and the figures take only scalars and strings; the command line parses a tuple from its string.
        plain = [c if isinstance(c, bool | int | float | str | None) else str(c) for c in choices]
        return trial.suggest_categorical(key, plain)
    low, high, *log = choices
    return getattr(trial, f"suggest_{kind}")(key, low, high, log=bool(log))


def epochs_by_network(metrics: Path, stage: str) -> dict[tuple[int, int], list[dict]]:
    """Returns the epochs that a run logged in one stage, by network (fold, ensemble member)."""
    networks: dict[tuple[int, int], list[dict]] = {}
    for line in tables.read_metrics(metrics):
        if line["stage"] == stage:
            networks.setdefault(line["network"], []).append(line)
    return networks


def trial_value(networks: dict[tuple[int, int], list[dict]], metric: str) -> float | None:
    """Returns the metric at the lowest validation loss, averaged over networks; None if any has no finite number."""

    def loss(line):
        found = line["valid/loss"]
        return found if found is not None and math.isfinite(found) else math.inf

    values = [min(lines, key=loss).get(metric) for lines in networks.values()]
    value = sum(values) / len(values) if values and None not in values else math.nan
    return value if math.isfinite(value) else None


def print_trial(study: optuna.Study, trial) -> None:
    """Prints one line about a trial that has ended."""
    best = best_first(done(study))
    outcomes = {"COMPLETE": lambda: f"{trial.value:.4f}", "PRUNED": lambda: "stopped early"}
    outcome = outcomes.get(trial.state.name, lambda: f"failed: {trial.user_attrs.get('failed', 'no number')}")()
    values = ", ".join(f"{key} {value}" for key, value in trial.params.items())
    print(f"[trial {trial.number}] {outcome} ({values}){f', best {best[0].value:.4f}' if best else ''}", flush=True)


def write(study: optuna.Study, space: dict, workdir: Path, common: dict) -> None:
    """Writes `trials.csv`, `tuning.md` and `figures/` from the trials so far."""
    ended = done(study)  # read only once: other workers add trials meanwhile
    best = best_first(ended)
    lines = [
        {"trial": t.number, "state": t.state.name.lower(), space["metric"]: t.value if t in best else None}
        | t.params
        | {"epochs": len(t.intermediate_values), "seconds": t.user_attrs.get("seconds")}
        | {"folder": t.user_attrs.get("folder")}
        for t in ended
    ]
    atomic.write_records(workdir / "trials.csv", lines)
    count = {state: sum(t.state.name == state for t in ended) for state in ("COMPLETE", "PRUNED", "FAIL")}
    parts = [f"# {space['title']}\n"]
    parts += [f"{count['COMPLETE']} trials complete, {count['PRUNED']} stopped early, {count['FAIL']} failed.\n"]
    if best:
        arguments = command(space, common, best[0].params)
        folds = len(runs.folds(resolve(arguments)))
        note = f", some of them test images of another of the {folds} folds" if folds > 1 else ", without test images"
        parts += [f"The best by {space['metric']} on validation images{note}:\n"]
        columns = {key: key for key in lines[0] if key not in ("state", "epochs", "seconds", "folder")}
        short = lambda cell: f"{cell:.4g}" if isinstance(cell, float) else cell
        rows = {line["trial"]: {key: short(cell) for key, cell in line.items()} for line in lines}
        parts += [tables.markdown([rows[t.number] for t in best[:10]], columns)]
        parts += ["The command that trains and scores the best:\n"]
        parts += [f"    {shlex.join(['python', '-m', 'jaxmarks.main', *arguments, f'--workdir={workdir}/best'])}\n"]
    reasons = dict.fromkeys(t.user_attrs["why"] for t in ended if t.state.name == "FAIL")
    parts += [f"**Failed:** {reason}\n" for reason in reasons]
    atomic.write(workdir / "tuning.md", "\n".join(parts))
    if len(best) > 1:
        draw(study, workdir / "figures")


def draw(study: optuna.Study, folder: Path) -> None:
    """Plots the trials' values, their learning curves, and the effect and importance of each key."""
    folder.mkdir(exist_ok=True)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    drawn = {
        "history": plots.plot_optimization_history(study),
        "epochs": plots.plot_intermediate_values(study),
        "keys": plots.plot_slice(study),
        "importance": plots.plot_param_importances(study, evaluator=evaluator),
    }
    for name, axes in drawn.items():
        figure = (axes.ravel()[0] if hasattr(axes, "ravel") else axes).figure
        figure.savefig(folder / f"{name}.png", dpi=120, bbox_inches="tight")
        plt.close(figure)


if __name__ == "__main__":
    end_with_children()
    sys.exit(main())
