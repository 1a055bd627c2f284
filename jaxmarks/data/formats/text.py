"""The text of a landmark file, and the numbers in it, whatever program and country they come from."""

import json
from pathlib import Path

from jaxmarks.data.samples import FormatError


def read(path, kind: str) -> str:
    """The text of a file in UTF-8 or UTF-16 (which needs its byte-order mark), else in Latin-1.

    Raises:
      FormatError: the file holds binary data; the message asks for a file of `kind`.
    """
    data = Path(path).read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings = ["utf-16"]
    elif b"\0" in data:
        raise FormatError(path, "line 1", "binary data, not text", f"name a {kind} file")
    else:
        encodings = ["utf-8-sig", "latin-1"]
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise FormatError(path, "line 1", "text in an unknown encoding", "save it as UTF-8")


def number(word: str) -> float:
    """A number as files hold it; ValueError for anything else, and for "1_0", which Python alone reads as 10."""
    if "_" in word:
        raise ValueError(word)
    return float(word)


def read_json(path):
    """The document of a JSON file.

    Raises:
      FormatError: it is no text, or no JSON; it names the line.
    """
    try:
        return json.loads(read(path, "JSON"))
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits is a ValueError, too
        raise FormatError(path, f"line {getattr(error, 'lineno', 1)}", f"no JSON: {error}", "mend it") from None


def sides(entry: dict, height: str, width: str) -> tuple[int, int] | None:
    """(height, width) of an image, where the entry has whole numbers under both keys."""
    rows, columns = entry.get(height), entry.get(width)
    return (rows, columns) if isinstance(rows, int) and isinstance(columns, int) else None
