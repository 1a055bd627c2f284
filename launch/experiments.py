"""Helpers of ablate.py and tune.py: load experiment files, override configs, and run jaxmarks.main in a subprocess."""

import argparse
import ast
import contextlib
import difflib
import functools
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from jaxmarks import config as configs
from jaxmarks.data import loading, photographs, records

# The command that takes an experiment file, by the function that the file defines.
TAKERS = {
    "get_grid": "launch/ablate.py --grid",
    "get_space": "launch/tune.py --space",
    "get_config": "jaxmarks.main --config",
}
# Seconds that a run has to save its last checkpoint, once told to end.
PATIENCE = 120
# Replaces itself by the command argv[2:], which Linux kills once its parent, process argv[1], is gone for any reason.
# The kernel keeps this setting across exec. Popen's preexec_fn could set it too, but is not safe with JAX's threads.
WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class RunError(Exception):
    """A run failed; the message holds the end of its log."""


def load(text: str, function: str) -> tuple[dict, str]:
    """Returns what `function` of FILE.py[:variant] returns, and the first line of the file's docstring.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file cannot be run, lacks the function, or the function returns no dict.
    """
    path, _, variants = text.partition(":")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        module = runpy.run_path(path)  # an import may reuse the cached bytecode of a file edited within the last second
    except Exception as error:
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from error
    if function not in module:
        hints = (
            f"it defines {name}: give it to {command}={text}" for name, command in TAKERS.items() if name in module
        )
        raise ValueError(f"{path} does not define {function}; {next(hints, 'write one that returns a dict')}")
    title = (module["__doc__"] or Path(path).stem).strip().splitlines()[0].rstrip(".")
    result = module[function](variants)
    if not isinstance(result, dict):
        raise ValueError(f"{path}: {function} returns {result!r}; it must return a dict")
    return result, title


def default_workdir(text: str) -> Path:
    """Returns, for example, runs/beetle_optimiser-full for configs/ablations/beetle_optimiser.py:full."""
    path, _, variants = text.partition(":")
    return Path("runs") / "-".join(filter(None, [Path(path).stem, slug(variants)]))


def data_fingerprint(config: ml_collections.ConfigDict) -> str:
    """Returns the SHA-256 of the data that a config names: of the contents and relative names of the files.

    Data that change while this process runs count as they were before.
    """
    stages = [configs.stage(config, name).data for name in config.stages]
    named = lambda *keys: sorted({path for data in stages for path in loading.inputs_of(data, keys)})
    images = [contents(path, PHOTOGRAPHS) for path in named("images")]
    annotations = [contents(path, ANNOTATIONS) for path in named("landmarks", "boxes", "volume")]
    return records.fingerprint(images, annotations)


# The endings of the files that count in a folder, where others may lie, too, such as results.
PHOTOGRAPHS = frozenset(photographs.ENDINGS)
ANNOTATIONS = frozenset({".csv", ".json", ".tps", ".txt", ".xml", ".yaml", ".yml"})


@functools.cache
def contents(path: str, endings: frozenset[str]) -> list[tuple[str, str]]:
    """Returns (relative name, digest) of the file, or of each file in the folder with one of these endings."""
    files = photographs.files_in(path, endings, []) if Path(path).is_dir() else filter(Path.is_file, [Path(path)])
    return [(os.path.relpath(file, path), photographs.content(file)) for file in files]


def source_fingerprint(config: ml_collections.ConfigDict) -> str:
    """Returns the SHA-256 of the notes of the networks in the config's `init_from`, or "" if there are none."""
    paths = sorted(Path(config.init_from).glob("checkpoints/*/*/best/note.json")) if config.init_from else ()
    return records.fingerprint([path.read_text() for path in paths]) if paths else ""


def make(folder: Path, flag: str) -> None:
    """Creates the folder that `flag` names; raises ValueError if a file is in the way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{flag}={folder}: a file is in the way; name another folder") from None


def parse_overrides(parser: argparse.ArgumentParser, words: list[str]) -> dict[str, str]:
    """Parses the left-over `words`: `--config.train.steps=300` becomes {"train.steps": "300"}; others are refused."""
    overrides = {}
    for word in words:
        match = re.fullmatch(r"--config\.([\w.]+)=(.*)", word, re.DOTALL)
        if not match:
            parser.error(f"unknown argument {word}; write --config.key=value")
        overrides[match[1]] = match[2]
    return overrides


def check_keys(what: str, given, allowed) -> None:
    """Raises ValueError if a key of `given` is not in `allowed`; the message names the nearest that are."""
    for key in given:
        if key not in allowed:
            raise ValueError(f"unknown {what} {key}; the nearest are {nearest(key, allowed)}")


def nearest(key: str, allowed) -> str:
    """Returns the up to three allowed keys that are most like `key`, or all if none is."""
    return ", ".join(difflib.get_close_matches(key, allowed, n=3, cutoff=0.4) or sorted(allowed))


def resolve(arguments: list[str]) -> ml_collections.ConfigDict:
    """Returns the config that jaxmarks.main builds from `--config=...` and `--config.key=value`."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=arguments)
    values(["ablate", *arguments])
    config = values["config"].value
    config.to_json()  # if the file could not be read, ml_collections raises only when the config is used
    return config


def paths(config, before: str = ""):
    """Yields the keys of a config, those in sections with a dot: "optimizer", "optimizer.name"."""
    for key, value in config.items():
        yield before + key
        if isinstance(value, dict | ml_collections.ConfigDict):
            yield from paths(value, f"{before}{key}.")


def merge(keys: set[str], *layers: dict[str, Any]) -> dict[str, Any]:
    """Merges layers of overrides; later layers take precedence.

    A dict replaces a whole section. If a later key lies inside that section, it is written into the dict, because the
    command line of jaxmarks.main can change a section or its keys, but not both.

    Args:
      keys: all keys of the config.
      layers: dicts from a key to its new value.

    Raises:
      ValueError: the config, or the dict that replaces a section, has no such key; the message names the nearest.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            check_keys("config key", [key], keys)
            section = next((k for k in merged if key.startswith(f"{k}.") and isinstance(merged[k], dict)), None)
            if section:
                merged[section] = with_value(merged[section], key.removeprefix(f"{section}.").split("."), value)
            else:
                merged = {k: v for k, v in merged.items() if not f"{k}.".startswith(f"{key}.")} | {key: value}
            if isinstance(value, dict):
                keys = {k for k in keys if not k.startswith(f"{key}.")} | set(paths(value, f"{key}."))
    return merged


def with_value(section: dict, path: list[str], value) -> dict:
    """Returns the section with the value at the path; a string is parsed as a Python literal where it is one."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval({"true": "True", "false": "False"}.get(value, value))
        except (SyntaxError, ValueError):
            pass
    first, *rest = path
    return section | {first: with_value(section[first], rest, value) if rest else value}


def slug(label: str) -> str:
    """Turns a label into a part of a folder's name."""
    return re.sub(r"[^\w.+=]+", "-", label).strip("-.")


def end_with_children() -> None:
    """Makes SIGTERM raise SystemExit in this process, so that the runs it is waiting for are ended."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def run_to_end(arguments: list[str], log: Path, environment: dict[str, str], *, stop=lambda: False) -> int:
    """Runs jaxmarks.main in a subprocess; returns its exit status.

    If `stop()` returns True, or an exception is raised in this thread, the run gets SIGTERM, upon which it saves a
    checkpoint and exits; after `PATIENCE` seconds it is killed. On Linux it also ends with this thread, even if that is
    killed.
    """
    command = [sys.executable, "-m", "jaxmarks.main", *arguments]
    with log.open("a") as file:
        print("$", shlex.join(command), file=file, flush=True)
        # In a process group of its own, which Ctrl-C does not reach: a second signal would end the run at once.
        options = {"env": environment, "stdout": file, "stderr": subprocess.STDOUT, "process_group": 0}
        process = subprocess.Popen(with_parent(command), **options)
        try:
            while not stop():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(timeout=1)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=PATIENCE)
            process.kill()
        return process.wait()


def with_parent(command: list[str]) -> list[str]:
    """Wraps a command so that, on Linux, it does not outlive the process that starts it."""
    wrapper = [sys.executable, "-I", "-S", "-c", WITH_PARENT, str(os.getpid())]
    return [*wrapper, *command] if sys.platform == "linux" else command


def tail(log: Path, before: int = 0) -> list[str]:
    """Returns the last eight lines of a log, ignoring its first `before` bytes."""
    return log.read_bytes()[before:].decode(errors="replace").strip().splitlines()[-8:] if log.exists() else []


def hardware() -> str:
    """Names the accelerators, or else the number of CPU cores; asks JAX in a subprocess, to leave the device free."""
    script = "import jax; print(*(d.device_kind for d in jax.devices() if d.platform != 'cpu'), sep=', ')"
    accelerators = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip()
    return accelerators or f"{os.cpu_count()} CPU cores"
