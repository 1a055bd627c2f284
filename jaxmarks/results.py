"""The folders for the results of predict, evaluate and export: one per mode, locked for one command at a time."""

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from jaxmarks import atomic, runs
from jaxmarks.data.photographs import MARK


@contextlib.contextmanager
def folder(mode: str, run: Path, *, named: str = "", inputs: Iterable[str] = ()) -> Iterator[Path]:
    """Yields the folder for a mode's results, which replace the mode's earlier results there once all are written.

    The file `MARK` lists the earlier results. Those that are not written again are deleted, unless somebody has changed
    them since; no other file is.

    Args:
      mode: as in --mode.
      run: the run's folder; by default, results go to its subfolder of the mode's name.
      named: --out, used instead: a folder that is new, empty, or has earlier results of this mode.
      inputs: the files and folders that the command reads.

    Raises:
      ValueError: results would replace inputs or other files, or another command writes to the folder.
    """
    out = Path(named or run / mode).absolute()
    is_within = lambda inner, outer: Path(inner).resolve().is_relative_to(Path(outer).resolve())
    for source in inputs:
        if is_within(source, out):
            raise ValueError(
                f"{out}: results might overwrite {source}, which this command reads: name another folder with --out=DIR"
            )
    if named and out.exists() and not (out / MARK).is_file():
        file = (
            next((path.name for path in sorted(out.iterdir()) if path.name != ".lock"), "")
            if out.is_dir()
            else out.name
        )
        if file:
            raise ValueError(f"--out={named}: {file} exists and is not a result of --mode={mode}: name a new folder")
    elif named and out.exists() and (earlier_mode := marked(out)[0]) != mode:
        raise ValueError(f"--out={named}: it holds results of --mode={earlier_mode}; name another folder")
    with runs.locked(out):
        before, (_, listed) = times(out), marked(out)
        write_mark(out, mode, listed)
        try:
            yield out
        finally:  # also after an error: its partial results are the mode's, too
            after = times(out)
            # A file that existed before and is not listed belongs to the user, even if it was written meanwhile.
            written = {n: t for n, t in after.items() if t != before.get(n) and (n not in before or n in listed)}
            write_mark(out, mode, listed | written)
        for name, time in listed.items():
            if name not in written and after.get(name) == time:
                (out / name).unlink()
                for parent in list(Path(name).parents)[:-1]:
                    with contextlib.suppress(OSError):  # not empty
                        (out / parent).rmdir()
        write_mark(out, mode, written)


def marked(out: Path) -> tuple[str, dict[str, int]]:
    """Reads a folder's `MARK`: the mode whose results it holds, and their times by file; "" and {} without a `MARK`."""
    try:
        text = (out / MARK).read_text()
    except OSError:
        return "", {}
    try:
        mark = json.loads(text)
        return mark["mode"], mark["files"]
    except (ValueError, TypeError, KeyError):
        return text.strip(), {}


def write_mark(out: Path, mode: str, files: dict[str, int]) -> None:
    """Writes the file that `marked` reads."""
    atomic.write(out / MARK, json.dumps({"mode": mode, "files": files}, indent=1))


def times(folder: Path) -> dict[str, int]:
    """Maps the relative path of each file below a folder, unless hidden, to its modification time in ns."""
    is_hidden = lambda path: any(part.startswith(".") for part in path.relative_to(folder).parts)
    files = [path for path in folder.rglob("*") if path.is_file() and not is_hidden(path)]
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in files}
