"""The command line: `python -m jaxmarks.main --config=configs/beetle.py[:variant] [--workdir=DIR] [--mode=MODE]`."""

import argparse
import functools
import json
import math
import shlex
import sys
import warnings
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from jaxmarks import host


def default_config(argv: list[str]) -> str:
    """Returns the default --config: that of the run in --workdir in all modes but train, else configs/beetle.py."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("workdir", "mode"):
        parser.add_argument(f"--{name}", f"-{name}", default="", nargs="?")
    arguments, _ = parser.parse_known_args(argv[1:])
    trained = arguments.mode not in ("", "train") and arguments.workdir
    return f"{Path(__file__).with_name('run_config.py')}:{arguments.workdir}" if trained else "configs/beetle.py"


CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment's config file; its variants follow after a colon: FILE.py:VARIANT,VARIANT."
)
WORKDIR = flags.DEFINE_string(
    "workdir",
    "",
    "The run's folder; by default runs/ with the names of the config and its variants, such as runs/beetle-smoke.",
)
OUT = flags.DEFINE_string(
    "out",
    "",
    "Folder for the results of --mode=predict, evaluate and export; by default the run's subfolder named after"
    " the mode.",
)
MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate", "predict", "describe", "export"], "What to do.")
SIZE = flags.DEFINE_list(
    "size",
    [],
    "Height and width of the photographs that --mode=export prepares for (2448,3264); by default those of"
    " the run's frame.",
)
FORMAT = flags.DEFINE_enum(
    "format", "jax", ["jax", "onnx"], "What --mode=export writes: an artefact of jax.export, or ONNX files."
)
PROCESSES = flags.DEFINE_integer(
    "processes",
    1,
    "Number of processes that train together; 0: as reported by SLURM, the TPU pod, Open MPI or Kubernetes;"
    " 1: only this one.",
)
PROCESS = flags.DEFINE_integer(
    "process", -1, "The number of this process, from 0; by default as reported by the cluster."
)
COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0; by default as reported by the cluster.")
SET = flags.DEFINE_string(
    "set", "", "For a run over several datasets: the one whose landmarks --mode=predict, evaluate and export use."
)
THRESHOLD = flags.DEFINE_float(
    "threshold",
    None,
    "Lowest score at which --mode=predict reports an object (by default the threshold chosen on validation images) or a"
    " landmark (by default none is missing).",
    lower_bound=0.05,  # detections with lower scores are not kept (`detection.FLOOR`)
    upper_bound=1.0,
)
# The modes that take a flag; other flags are for all modes.
MODES_OF_FLAG = {
    "out": ("predict", "evaluate", "export"),
    "set": ("predict", "evaluate", "export"),
    "threshold": ("predict",),
    "size": ("export",),
    "format": ("export",),
    "processes": ("train",),
    "process": ("train",),
    "coordinator": ("train",),
}
# The start of ml_collections' message about a config that failed to load.
UNAVAILABLE = "Configuration is not available because of an earlier failure to load: "
# What --mode=predict counts: key in the summary -> words on the screen.
COUNTED = {"landmarks": "landmarks each", "objects": "objects", "volumes": "volumes calibrated"}


def run(argv: list[str] | None = None) -> None:
    """Runs the mode that the command line names."""
    host.keep_freed_memory()
    warnings.filterwarnings("ignore", r"Image size .* exceeds limit")  # Pillow's about large scans, a normal input
    host.cache_compiled_steps()  # before the config is read: that imports the networks, and so JAX
    app.run(main, argv=argv, flags_parser=parse)


def parse(argv: list[str]) -> list[str]:
    """Reads the flags and returns the other arguments; exits with a one-line message, as `main` does, if it cannot."""
    try:
        flags.FLAGS.set_default("config", default_config(argv))
        rest = flags.FLAGS(argv)
        CONFIG.value.to_json()  # raises the error if its file could not be read
        return rest
    except (flags.Error, OSError) as error:  # the reason follows UNAVAILABLE, or ends a traceback
        message = str(error).strip().splitlines()[-1].strip()
        if "Traceback" in str(error) and not message.startswith("ValueError: "):  # a bug in the config file
            raise
        refuse(message.removeprefix("ValueError: ").removeprefix(UNAVAILABLE))
    except (AttributeError, KeyError) as error:  # ml_collections' about an unknown key: its name, and similar ones
        inner: object = error
        while isinstance(inner, Exception):
            inner = inner.args[0] if inner.args else ""
        key, *suggestions = str(inner).splitlines() or [""]
        word = next((word for word in argv if key.strip("'") in word.partition("=")[0].split(".")), None)
        if not word:  # a bug in the config file
            raise
        refuse(f"{word}: the config has no such key. {' '.join(suggestions)}".rstrip())


def refuse(what, status: int = 2) -> NoReturn:
    """Exits with a one-line error message; status 2 means that the same command would fail again."""
    print(f"jaxmarks: {what}", file=sys.stderr)
    sys.exit(status)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; write --config.key=value")
    if "verbosity" not in explicit_flags():
        logging.set_verbosity(logging.WARNING)  # Orbax logs its every step
    from jaxmarks import processes

    workdir = Path(WORKDIR.value or default_workdir()).absolute()
    try:
        check_flags()
        if PROCESSES.value != 1:
            processes.join(PROCESSES.value, coordinator=COORDINATOR.value, index=PROCESS.value)
        modes = {"train": train, "evaluate": evaluate, "predict": predict, "describe": describe, "export": export}
        modes[MODE.value](CONFIG.value, workdir)
    except KeyboardInterrupt:
        resume_hint = "; the same command resumes from the last checkpoint" if MODE.value == "train" else ""
        print(f"jaxmarks: stopped{resume_hint}", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, FloatingPointError, ImportError, RuntimeError) as error:
        # Errors that a user can fix take one line; --verbosity=1 shows the traceback.
        several_processes = PROCESSES.value != 1
        if logging.get_verbosity() >= logging.DEBUG or (isinstance(error, RuntimeError) and not several_processes):
            raise
        status = 1 if isinstance(error, OSError | RuntimeError) and not isinstance(error, FileNotFoundError) else 2
        if several_processes:
            processes.abandon(f"jaxmarks: {error}", status)
        refuse(error, status)


def check_flags():
    """Raises ValueError if a flag would have no effect, or the threshold is NaN."""
    explicit = explicit_flags()
    for name, modes in MODES_OF_FLAG.items():
        if name in explicit and MODE.value not in modes:
            raise ValueError(f"--{name}: this flag is for --mode={' and '.join(modes)}, not for --mode={MODE.value}")
    if THRESHOLD.value is not None and math.isnan(THRESHOLD.value):
        raise ValueError("--threshold=nan: it must be from 0.05 to 1")
    if stray := sorted(explicit & {"process", "coordinator"} if "processes" not in explicit else ()):
        raise ValueError(f"--{stray[0]}: this flag is for several processes; give their number, too, with --processes")


def overrides() -> dict:
    """Returns the values that --config.KEY=VALUE sets, by KEY."""
    return config_flags.get_override_values(flags.FLAGS["config"])


def warn_other_config(config, workdir: Path) -> None:
    """Prints that --config has no effect if its body or head is not that of the run in the workdir."""
    from jaxmarks import runs

    used = runs.settings_of(workdir)
    for section in ("model", "head") if "config" in explicit_flags() else ():
        if config[section].name != used[section].name:
            print(
                f"--config has the {section} {config[section].name}, but the run in {workdir} has {used[section].name},"
                " which is used"
            )


def warn_unused(workdir: Path, *used: str) -> None:
    """Prints each --config.KEY, except those `used`, that has no effect as the run was trained with another value."""
    from jaxmarks import runs

    trained = runs.settings_of(workdir)
    for key, value in overrides().items():
        if key in used:
            continue
        trained_value = functools.reduce(
            lambda part, name: part.get(name, {}) if hasattr(part, "get") else {}, key.split("."), trained
        )
        if json.dumps(trained_value, default=list) != json.dumps(value, default=list):
            print(
                f"--config.{key} has no effect: --mode={MODE.value} uses the value that the run was trained with,"
                f" {trained_value}"
            )


def scale_keys(data) -> tuple[str, ...]:
    """Returns the config key by which photographs of another scale are resized to the training's; () unless tiled."""
    return ("data.scale",) if "boxes" in data and data.fit == "tile" else ()


def given_scale(data) -> float | None:
    """Returns the --config.data.scale given for photographs whose scale differs from the training's, or None."""
    scale = overrides().get("data.scale") if scale_keys(data) else None
    if scale is not None and not 0.01 <= scale <= 100:
        raise ValueError(f"--config.data.scale={scale}: it must be from 0.01 to 100; the run has {data.scale:g}")
    return scale


def explicit_flags() -> set[str]:
    """Returns the names of the flags given on the command line."""
    return {name for name in flags.FLAGS if flags.FLAGS[name].present}


def default_workdir() -> str:
    """Returns the default run folder: runs/beetle-smoke for configs/beetle.py:smoke."""
    path = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
    return "/".join(["runs", "-".join([Path(path).stem, *filter(None, variants().replace("=", "-").split(","))])])


def variants() -> str:
    """Returns the config's variants, the text after the colon of --config."""
    return config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[2]


def train(config, workdir):
    """Trains what is not trained yet, scores it on held-out images, and writes the report."""
    from jaxmarks import config as configs
    from jaxmarks import evaluate, processes, report, runs
    from jaxmarks import train as training

    configs.check_given(config, variants(), overrides())
    datasets = training.train(config, workdir)
    if not processes.leave():
        return
    dataset = list(datasets.values())[-1]
    with runs.locked(workdir):
        command = shlex.join(["python", "-m", "jaxmarks.main", *sys.argv[1:]])
        summary = evaluate.of_run(config, workdir, dataset, command=command)
        report.write(workdir, dataset.photograph)
    print_summary(summary, workdir)


def evaluate(config, workdir):
    """Scores the run's networks on the data that the flags name, by default the run's own data.

    Photographs of the run's own data are scored only by the fold that held them out, even if they were marked anew,
    moved or renamed.
    """
    from jaxmarks import evaluate as evaluation
    from jaxmarks import report, results, runs, trained
    from jaxmarks.data import loading

    warn_other_config(config, workdir)
    data, other_photographs = data_to_score(config.data, runs.settings_of(workdir).data, workdir)
    dataset = loading.load(data)
    own_data = not other_photographs or (not SET.value and trained.is_from_split_of(workdir, dataset.samples))
    if other_photographs and own_data:
        print(
            "the run's own data include some of these photographs or specimens: each is scored by the networks that"
            " did not see it"
        )
    with results.folder("evaluate", workdir, named=OUT.value, inputs=loading.inputs_of(data)) as out:
        if own_data:
            summary = evaluation.of_run(runs.config_of(workdir), workdir, dataset, out=out)
            if unscored := summary["unscored"]:
                print(f"{unscored} images are not scored: no trained fold holds them out")
        else:
            summary = evaluation.of_new_data(workdir, dataset, out, set=SET.value)
        report.write(workdir, dataset.photograph, out=out)
    print_problems(summary["failures"])
    print_summary(summary, out)


def print_problems(problems: list[dict]) -> None:
    """Prints the first five problems and the number of the others; the summary lists all."""
    for problem in problems[:5]:
        print(": ".join(filter(None, (problem["image"], problem["what"]))))
    if len(problems) > 5:
        print(f"and {len(problems) - 5} more")


def data_to_score(given_data, trained, workdir):
    """Returns the run's `data` with the inputs that the command line names, and whether these are other photographs."""
    from jaxmarks.data import loading

    input_key, truth_key = "volume" if "volume" in trained else "images", "boxes" if "boxes" in trained else "landmarks"
    warn_unused(workdir, f"data.{input_key}", f"data.{truth_key}", "data.group_by", *scale_keys(trained))
    inputs = {key: given_data.get(key) for key in (input_key, truth_key, "group_by") if given_data.get(key)}
    if SET.value and not inputs:
        raise ValueError(
            f"--set={SET.value}: it says which dataset new photographs belong to; name these with"
            f" --config.data.{input_key}=DIR"
        )
    set_data = loading.of_set(trained, SET.value) if inputs else trained
    resolved = lambda name: Path(name or "").resolve()
    other_photographs = input_key in inputs and resolved(inputs[input_key]) != resolved(set_data.get(input_key))
    if other_photographs and truth_key not in inputs:
        raise ValueError(
            f"--config.data.{input_key}={inputs[input_key]}: name its {truth_key}, too: --config.data.{truth_key}=FILE"
        )
    if other_photographs and "group_by" in set_data:
        set_data.group_by = ""
    target = trained.sets[SET.value] if SET.value and not other_photographs else set_data
    target.update({key: value for key, value in inputs.items() if key in set_data})
    if (scale := given_scale(trained)) is not None:
        target.scale = scale
    data = set_data if other_photographs else trained
    if inputs and "keep" in data:  # `keep` is for the images of the training
        data.keep = ""
    return data, other_photographs


def predict(config, workdir):
    """Predicts photographs in `--config.data.images`, or calibrates scouts there; neither needs ground truth."""
    from jaxmarks import predict as predictions
    from jaxmarks import results, runs

    warn_other_config(config, workdir)
    if not config.data.images:
        raise ValueError("--mode=predict needs a folder of photographs or scouts: --config.data.images=DIR")
    data = runs.settings_of(workdir).data
    warn_unused(workdir, "data.images", *scale_keys(data))
    with results.folder("predict", workdir, named=OUT.value, inputs=[config.data.images]) as out:
        options = {"scale": given_scale(data), "threshold": THRESHOLD.value}
        summary = predictions.on_folder(workdir, config.data.images, out, set=SET.value, **options)
    counted = next(f"{summary[key]} {name}" for key, name in COUNTED.items() if key in summary)
    print(f"{summary['images']} {'scout triples' if 'volumes' in summary else 'images'}, {counted}: {out}")
    if "volumes" not in summary:
        print(f"to check and correct them: {out / 'proofread.html'}")
    for failure in summary["failures"]:
        print(f"  {failure['image']}: {failure['what']}")


def export(config, workdir):
    """Exports the run, for photographs of `--size`, to a file that runs without jaxmarks; or its networks as ONNX."""
    from jaxmarks import results, serving

    warn_other_config(config, workdir)
    if FORMAT.value == "onnx":
        if SIZE.value:
            raise ValueError(
                f"--size={','.join(SIZE.value)}: ONNX networks take images of the frame's size only; leave this"
                " flag out"
            )
        with results.folder("export", workdir, named=OUT.value) as out:
            description = serving.export_onnx(workdir, out, set=SET.value)
        print(f"the networks take images {description['images']} and return {description['outputs']}: {out}")
        return

    if SIZE.value and not (len(SIZE.value) == 2 and all(side.isdecimal() and int(side) for side in SIZE.value)):
        raise ValueError(f"--size={','.join(SIZE.value)}: give height and width, such as 2448,3264")
    with results.folder("export", workdir, named=OUT.value) as out:
        description = serving.export(workdir, out, size=tuple(map(int, SIZE.value)) or None, set=SET.value)
    print(f"the artefact takes images {description['images']} and returns {description['outputs']}: {out}")


def describe(config, workdir):
    """Prints the network of each stage, layer by layer; without --config, of the run in --workdir."""
    from jaxmarks import runs, tasks
    from jaxmarks.data import fitting

    if "workdir" in explicit_flags() and "config" not in explicit_flags():
        warn_unused(workdir)
        config = runs.config_of(workdir)
    tasks.check(config)
    fitting.fill_in(config.data)
    for stage in runs.stages(config):
        print(tasks.describe(config, stage))


def print_summary(summary, out):
    """Prints the result in a few lines."""
    if "f1" in summary:
        number = lambda key: "-" if summary[key] is None else f"{summary[key]:.3f}"
        print(
            f"F1 {number('f1')} (precision {number('precision')}, recall {number('recall')}) at IoU 0.4, {number('f1_golden')}"
            f" by centres, mAP@0.5 {number('map50')}: {summary['objects']} objects in {summary['images']} images"
        )
    else:
        print_landmark_summary(summary)
    if summary["failures"]:
        print(f"{len(summary['failures'])} problems and caveats, listed in {out / 'summary.json'}")
    print(out / "report.html")


def print_landmark_summary(summary):
    """Prints the result of a run on landmarks."""
    baselines = "".join(
        f", {name.replace('_', ' ')} {baseline['mean_distance_px']:.2f}"
        for name, baseline in summary["baselines"].items()
        if baseline["mean_distance_px"] is not None
    )
    if summary["mean_distance_px"] is None:
        print("no evaluated image has a visible landmark: there is no distance to report")
    else:
        print(
            f"mean distance {summary['mean_distance_px']:.2f} px (median {summary['median_px']:.2f}, 95 % within"
            f" {summary['p95_px']:.2f}) on {summary['images']} images{baselines}"
        )
    for name, set_scores in summary.get("sets", {}).items():
        distance = set_scores["mean_distance_px"]
        print(f"  {name}: {'-' if distance is None else f'{distance:.2f} px'} on {set_scores['images']} images")
    if volume := summary.get("volume"):
        medians = (
            ""
            if volume["median_iou"] is None
            else (
                f"centre {volume['median_centre_mm']:.2f} mm, angle {volume['median_angle_degrees']:.2f} degrees,"
                f" IoU {volume['median_iou']:.3f} (medians), "
            )
        )
        print(f"volumes: {medians}{volume['refused']} of {volume['triples']} refused")


if __name__ == "__main__":
    run()
