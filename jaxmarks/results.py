"""Where predict, evaluate and export write: a folder of their own, for one command at a time."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from jaxmarks import runs
from jaxmarks.data.photographs import MARK


@contextlib.contextmanager
def folder(mode: str, run: Path, *, named: str = "", inputs: Iterable[str] = ()) -> Iterator[Path]:
    """The folder for the results of a mode, which take the place of its earlier ones there once all are written.

    Of these what is not written anew is deleted (`MARK` names them), and nothing else.

    Args:
      mode: as in --mode.
      run: the run's folder, which has one for the mode.
      named: --out, to be taken in its place: new, empty, or with earlier results of this mode.
      inputs: the files and folders that are read meanwhile.

    Raises:
      ValueError: results would take the place of other things.
    """
    out = Path(named or run / mode).absolute()
    within = lambda inner, outer: Path(inner).resolve().is_relative_to(Path(outer).resolve())
    for given in inputs:
        if within(given, out):
            raise ValueError(
                f"{out}: results would take the place of {given}, which is read: name another folder, --out=DIR"
            )
    if named and out.exists() and not (out / MARK).is_file():
        what = (
            next((path.name for path in sorted(out.iterdir()) if path.name != ".lock"), "")
            if out.is_dir()
            else out.name
        )
        if what:
            raise ValueError(f"--out={named}: {what} is there, and no result of --mode={mode}: name a new folder")
    elif named and out.exists() and (earlier := (out / MARK).read_text().partition("\n")[0]) != mode:
        raise ValueError(f"--out={named}: it has results of --mode={earlier}; name another folder")
    with runs.locked(out):
        before = times(out)
        _, *listed = (out / MARK).read_text().splitlines() if (out / MARK).is_file() else [""]
        (out / MARK).write_text("\n".join([mode, *listed, ""]))
        yield out
        written = {name for name, time in times(out).items() if before.get(name) != time} - {MARK, ".lock"}
        for name in set(listed) - written:
            (out / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # which may hold other things
                (out / name).parent.rmdir()
        (out / MARK).write_text("\n".join([mode, *sorted(written), ""]))


def times(folder: Path) -> dict[str, int]:
    """When each file of a folder and its subfolders was written last, by its path from there."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in files}
