"""What ablate.py and tune.py share: files of experiments, configs with overrides, and runs in processes of their own."""

import argparse
import ast
import contextlib
import difflib
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

# What takes a file, by the function that the file has.
TAKERS = {
    "get_grid": "launch/ablate.py --grid",
    "get_space": "launch/tune.py --space",
    "get_config": "jaxmarks.main --config",
}
# Seconds that a run has for its last checkpoint.
PATIENCE = 120
# Becomes the command argv[2:], which Linux kills once the process argv[1] that started it is gone, however that ended.
# The kernel keeps this over an exec; a function between fork and exec would not be safe beside JAX's threads.
WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def load(text: str, function: str) -> tuple[dict, str]:
    """What `function` of FILE.py[:variant] returns, and the first line of the file's docstring.

    Raises:
      ValueError: the file cannot be run, has no such function, or that returns no dict.
    """
    path, _, variants = text.partition(":")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        module = runpy.run_path(path)  # an import would take a file that was changed within a second for the old one
    except Exception as error:
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from error
    if function not in module:
        others = (f"it has {other}: give it to {taker}={text}" for other, taker in TAKERS.items() if other in module)
        raise ValueError(f"{path} has no {function}; {next(others, 'write one that returns a dict')}")
    title = (module["__doc__"] or Path(path).stem).strip().splitlines()[0].rstrip(".")
    found = module[function](variants)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: {function} returns {found!r}; it is to return a dict")
    return found, title


def default_workdir(text: str) -> Path:
    """runs/beetle_optimiser-full for configs/ablations/beetle_optimiser.py:full."""
    path, _, variants = text.partition(":")
    return Path("runs") / "-".join(filter(None, [Path(path).stem, slug(variants)]))


def make(folder: Path, flag: str) -> None:
    """Makes the folder that a flag names; raises ValueError where it cannot be one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{flag}={folder}: a file is in the way; name another folder") from None


def given(parser: argparse.ArgumentParser, words: list[str]) -> dict[str, str]:
    """{"train.steps": "300"} of the `--config.train.steps=300` that the parser did not know; it refuses other words."""
    common = {}
    for word in words:
        match = re.fullmatch(r"--config\.([\w.]+)=(.*)", word, re.DOTALL)
        if not match:
            parser.error(f"unknown argument {word}; write --config.key=value")
        common[match[1]] = match[2]
    return common


def known(what: str, given, allowed) -> None:
    """Raises ValueError where `given` has a key that is not `allowed`, naming the nearest that are."""
    for key in given:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=3, cutoff=0.4) or sorted(allowed)
            raise ValueError(f"there is no {what} {key}; the nearest are {', '.join(near)}")


def resolve(arguments: list[str]) -> ml_collections.ConfigDict:
    """The config that jaxmarks.main makes of `--config=...` and `--config.key=value`."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=arguments)
    values(["ablate", *arguments])
    config = values["config"].value
    config.to_json()  # where the file could not be read, ml_collections says so when the config is used
    return config


def paths(config, before: str = ""):
    """The keys of a config, those in sections with a dot: "optimizer", "optimizer.name"."""
    for key, value in config.items():
        yield before + key
        if isinstance(value, dict | ml_collections.ConfigDict):
            yield from paths(value, f"{before}{key}.")


def merge(keys: set[str], *layers: dict[str, Any]) -> dict[str, Any]:
    """Overrides in which a later layer goes before an earlier one.

    A dict takes the place of a section; a later key inside of it is put into that dict, because the command line of
    jaxmarks.main can change a section or its keys, not both.

    Args:
      keys: those that the config has.
      layers: dicts of a key and its new value.

    Raises:
      ValueError: a key that the config, or the section in its place, does not have; it names the nearest.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            known("key of this config", [key], keys)
            inside = next((k for k in merged if key.startswith(f"{k}.") and isinstance(merged[k], dict)), None)
            if inside:
                merged[inside] = changed(merged[inside], key.removeprefix(f"{inside}.").split("."), value)
            else:
                merged = {k: v for k, v in merged.items() if not f"{k}.".startswith(f"{key}.")} | {key: value}
            if isinstance(value, dict):
                keys = {k for k in keys if not k.startswith(f"{key}.")} | set(paths(value, f"{key}."))
    return merged


def changed(section: dict, path: list[str], value) -> dict:
    """The section with the value at the path; a text of the command line is read as Python where it is Python."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval({"true": "True", "false": "False"}.get(value, value))
        except (SyntaxError, ValueError):
            pass
    first, *rest = path
    return section | {first: changed(section[first], rest, value) if rest else value}


def slug(label: str) -> str:
    """A label as the name of a folder."""
    return re.sub(r"[^\w.+=]+", "-", label).strip("-.")


def end_with_children() -> None:
    """Makes SIGTERM end this process as an error does, so that the runs that are waited for are ended."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def start(arguments: list[str], log: Path, environment: dict[str, str], *, stop=lambda: False) -> int:
    """Runs jaxmarks.main in a process of its own; returns its exit status.

    Once `stop` () says so, or an exception ends this thread, it is told to end, which it does with a checkpoint, or is
    killed after `PATIENCE`. On Linux it ends with this thread, be that killed.
    """
    command = [sys.executable, "-m", "jaxmarks.main", *arguments]
    with log.open("a") as file:
        print("$", shlex.join(command), file=file, flush=True)
        # In a group of its own, which Ctrl-C does not reach: it is told once, for the second time ends it at once.
        how = {"env": environment, "stdout": file, "stderr": subprocess.STDOUT, "process_group": 0}
        process = subprocess.Popen(with_parent(command), **how)
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
    """A command that does on Linux what this one does, and does not outlive who starts it."""
    before = [sys.executable, "-I", "-S", "-c", WITH_PARENT, str(os.getpid())]
    return [*before, *command] if sys.platform == "linux" else command


def tail(log: Path, before: int = 0) -> list[str]:
    """The last lines of a log, of what it has beyond `before` bytes."""
    return log.read_bytes()[before:].decode(errors="replace").strip().splitlines()[-8:] if log.exists() else []


def hardware() -> str:
    """The accelerators, or how many CPU cores; JAX is asked in another process, which gives the device back."""
    ask = "import jax; print(*(d.device_kind for d in jax.devices() if d.platform != 'cpu'), sep=', ')"
    found = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True).stdout.strip()
    return found or f"{os.cpu_count()} CPU cores"
