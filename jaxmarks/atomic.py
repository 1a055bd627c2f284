"""Files that are written whole or not at all: who reads one while it is written, or after a kill, sees the former one."""

import contextlib
import csv
import json
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np


@contextlib.contextmanager
def whole(path: Path) -> Iterator[TextIO]:
    """A file (UTF-8, ends of lines as they are written) that takes the place of `path` at the end of the block.

    Raises:
      OSError: it cannot be written; it names `path`, which then is what it was.
    """
    path = Path(path)
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # another process may write the same file
    try:
        with fresh.open("w", newline="", encoding="utf-8") as file:
            yield file
        fresh.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename in (None, str(fresh)):
            error.filename = str(path)
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise


def write(path: Path, text: str) -> None:
    """Writes a text."""
    with whole(path) as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Writes what JSON can hold."""
    write(path, json.dumps(value, indent=1, default=list) + "\n")


def write_csv(path: Path, rows: Iterable[Iterable]) -> None:
    """Writes a table, the names of its columns first."""
    with whole(path) as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def write_records(path: Path, records: list[dict]) -> None:
    """Writes a table of records with the same keys, in any order; without any it is empty."""
    columns = [list(record) for record in records[:1]]
    write_csv(path, columns + [[record[key] for key in columns[0]] for record in records])


def plain(value: Any) -> Any:
    """Numbers, texts and arrays, and dicts and lists of them, as JSON can hold them: what is no finite number is None."""
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
