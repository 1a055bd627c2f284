"""Atomic file writes: a reader during the write, or after a kill, finds the previous file intact."""

import contextlib
import csv
import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np


@contextlib.contextmanager
def whole(path: Path, *, binary: bool = False) -> Iterator[IO]:
    """Opens a new file (if text, in UTF-8, with line ends as written) that replaces `path` at the end of the block.

    A link's target is replaced, not the link. The permissions of an existing file are kept. A path that is no regular
    file, such as a pipe, is written to directly.

    Raises:
      OSError: the file cannot be written; the error names `path`, which is left as it was.
    """
    options: dict = {"mode": "wb"} if binary else {"mode": "w", "newline": "", "encoding": "utf-8"}
    named, path = path, Path(path).resolve()
    if path.exists() and not path.is_file():
        with path.open(**options) as file:
            yield file
        return
    fresh = path.with_name(f".{uuid.uuid4().hex[:12]}.new")  # another process may write the same file
    try:
        with fresh.open(**options) as file:
            if path.exists():
                shutil.copymode(path, fresh)
            yield file
        fresh.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename in (None, str(fresh)):
            error.filename, error.filename2 = str(named), None
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise


def folder(path: Path) -> Path:
    """Creates a folder if it does not exist, and returns it; raises OSError if files cannot be written to it."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise OSError(f"{path}: no file can be written there ({error.strerror}); name another folder") from None
    return path


def write(path: Path, text: str) -> None:
    """Writes a text file."""
    with whole(path) as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON-serialisable value."""
    write(path, json.dumps(value, indent=1) + "\n")


def write_csv(path: Path, rows: Iterable[Iterable]) -> None:
    """Writes a table as CSV; its first row holds the names of the columns."""
    with whole(path) as file:
        csv.writer(file).writerows(rows)  # its line end \r\n makes it quote names with either character


def write_records(path: Path, records: list[dict]) -> None:
    """Writes records, which have the same keys in any order, as CSV; without records, the file is empty."""
    columns = [list(record) for record in records[:1]]
    write_csv(path, columns + [[record[key] for key in columns[0]] for record in records])


def plain(value: Any) -> Any:
    """Converts numbers, strings, arrays, and dicts and lists of them to JSON types; non-finite numbers become None."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return list(map(plain, value))
    if getattr(value, "ndim", 0):
        return plain(np.asarray(value).tolist())
    if value is None or isinstance(value, str | bool | int):
        return value
    number = float(value)
    return number if np.isfinite(number) else None
