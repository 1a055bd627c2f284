"""Parses text files of landmarks or boxes: encodings, CSV dialects, number formats, JSON and XML of many programs."""

import collections
import csv
import io
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from jaxmarks.data.samples import FormatError, problem

# Cells that mean a missing value, in lower case.
MISSING = {"", "na", "nan", "n/a", "null", "none"}


def read(path, kind: str) -> str:
    """Decodes a text file: UTF-8, UTF-16 (recognised by its byte-order mark), else cp1252 or Latin-1.

    Raises:
      FormatError: the file holds binary data (the message asks for a file of `kind`), or damaged UTF-16.
    """
    data = Path(path).read_bytes().rstrip(b"\x1a")  # DOS's end-of-file character
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings = ["utf-16"]
    elif b"\0" in data:
        raise FormatError(path, "line 1", "binary data, not text", f"give a {kind} file")
    else:
        encodings = ["utf-8-sig", "cp1252", "latin-1"]
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise FormatError(path, "line 1", "text in an unknown encoding", "save it as UTF-8")


def natural(label: str) -> list:
    """Returns a sort key that puts l2 before l10."""
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in re.split(r"(\d+)", label) if p]


def number(word: str) -> float:
    """Parses a number; raises ValueError for anything else, also for "1_0", which only Python reads as 10."""
    if "_" in word:
        raise ValueError(word)
    return float(word)


def csv_cells(path, header: str) -> tuple[list[tuple[int, list[str]]], str]:
    """Returns (line, stripped cells) of each non-blank row of a CSV, and its delimiter.

    The delimiter is the comma, semicolon or tab that is most frequent in the header, or the one given by a line "sep=;"
    above it.

    Raises:
      FormatError: the file is empty (the message shows the expected `header`), or a quote is left open; the message
        names the line.
    """
    text, rows, line = read(path, "CSV"), [], 1
    declaration = re.match(r"\s*sep=([;\t,])[;\t,]*\s*(\r\n|\r|\n)", text, re.IGNORECASE)
    if declaration:  # written by Excel
        line += len(declaration[0].splitlines())
        text = text[declaration.end() :]
    header_row = next((row for row in text.splitlines() if row.strip()), "")
    delimiter = declaration[1] if declaration else max(";\t,", key=header_row.count)
    read_with = lambda **options: csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, **options)
    lines_above = line
    try:
        for cells in (reader := read_with()):
            if any(cell.strip() for cell in cells):
                rows.append((line, [cell.strip() for cell in cells]))
            line = lines_above + reader.line_num
    except csv.Error as error:
        raise FormatError(path, f"line {line}", f"not valid CSV: {error}", "look for an unclosed quote") from None
    if not rows:
        raise FormatError(path, "line 1", "the file is empty", f"the expected header is {header}")
    try:  # an open quote swallows the rest of the file into its cell; only a strict reader reports it
        collections.deque(read_with(strict=True), maxlen=0)
    except csv.Error as error:
        if "end of data" in str(error):
            raise FormatError(
                path, f"line {rows[-1][0]}", "not valid CSV: it ends within quotes", "look for an unclosed quote"
            ) from None
    return rows, delimiter


def csv_rows(path, table: tuple[list, str], synonyms: Mapping[str, tuple[str, ...]]):
    """Splits the output `table` of `csv_cells` into the header and the rows.

    Returns:
      (line, names) of the header: in lower case, and a column that no header cell names is taken from the first of its
      `synonyms` that occurs; (line, cells) of each row; and whether decimals may be commas: not if the delimiter is a
      comma, nor if any coordinate has a decimal point.

    Raises:
      FormatError: a column name occurs twice, or a row's length differs from the header's.
    """
    ((header_line, cells), *rows), delimiter = table
    names = [name.lower() for name in cells]
    for name, alternatives in synonyms.items():  # a synonym counts only if no column has the name itself
        synonym = next((synonym for synonym in alternatives if synonym in names), None)
        if name not in names and synonym:
            names[names.index(synonym)] = name
    repeated = next((name for name in names if name and names.count(name) > 1), None)
    if repeated:
        raise FormatError(path, f"line {header_line}", f"column {repeated!r} occurs twice", "rename one")
    if rows and all(len(cells) == len(names) + 1 for _, cells in rows):
        what = f"all rows have {len(names) + 1} cells where the header has {len(names)}"
        remedy = "name the missing column; if they are row names of R, write the file with row.names=FALSE"
        raise FormatError(path, f"line {header_line}", what, remedy)
    for line, cells in rows:
        if len(cells) != len(names):
            raise of_another_length(path, line, cells, len(names))
    coordinates = [n for n, name in enumerate(names) if re.fullmatch(r"[xy](\.?\d*|min|max)", name)]
    has_point = any(re.fullmatch(r"[+-]?\d*\.\d+", cells[n]) for _, cells in rows for n in coordinates)
    return (header_line, names), rows, delimiter != "," and not has_point


def of_another_length(path, line: int, cells: list[str], width: int) -> FormatError:
    """Returns the error for a row whose length differs from the header's, `width` cells."""
    return FormatError(path, f"line {line}", f"{len(cells)} cells where the header has {width}", "correct the row")


def informative_names(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the landmark names as a tuple; empty if they only count from 0 or 1, as in 1, 2, ... or l1, l2, ..."""
    names = tuple(map(str, names))
    bare = [name.removeprefix("l") for name in names]
    counts = [[*range(first, first + len(bare))] for first in (0, 1)]
    return () if all(map(str.isdecimal, bare)) and [*map(int, bare)] in counts else names


def report_rare_labels(labels: Iterable[str], images: list[tuple[str, str, Any]], problems: list[dict]) -> None:
    """Reports labels that are probably misspelt: those in one of at least four images, or in less than a tenth of them.

    `images` holds (name, place, labels) of each image.
    """
    for label in labels:
        with_label = [(image, where) for image, where, image_labels in images if label in image_labels]
        if with_label and (10 * len(with_label) < len(images) or (len(with_label) == 1 and len(images) > 3)):
            what = f"landmark {label} is in only {len(with_label)} of {len(images)} images: is its name misspelt?"
            problems.append(problem(with_label[0][0], what, with_label[0][1]))


def report_fractions(coordinates: Iterable, image: str, where, problems: list[dict]) -> None:
    """Reports coordinates, given as arrays, that are all from 0 to 1 and not all whole; `image` is the first image."""
    values = np.concatenate([np.ravel(each) for each in coordinates] or [np.zeros(0)])
    values = values[np.isfinite(values)]
    if ((values >= 0) & (values <= 1)).all() and (values % 1).any():
        what = "all coordinates are from 0 to 1, like fractions of the photograph's sides: pixels are expected"
        problems.append(problem(image, what, str(where)))


def points_and_visible(marks: Mapping[str, tuple[float, float]], labels: Iterable[str]) -> dict[str, Any]:
    """Returns the `points` and `visible` of an `Annotation` from marks by label; NaN or absent marks are missing."""
    rows = np.array([marks.get(label, (np.nan, np.nan)) for label in labels], float)
    visible = np.isfinite(rows).all(1)
    return {"points": np.where(visible[:, None], rows, 0.0), "visible": visible}


def read_json(path):
    """Parses a JSON file.

    Raises:
      FormatError: the file is not text or not JSON; the message names the line.
    """
    try:
        return json.loads(read(path, "JSON"))
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits is a ValueError, too
        raise FormatError(
            path, f"line {getattr(error, 'lineno', 1)}", f"not valid JSON: {error}", "correct it"
        ) from None


def read_xml(path) -> ElementTree.Element:
    """Parses an XML file and returns its root.

    Raises:
      FormatError: the file is not text, not XML, or has a DOCTYPE.
    """
    document = read(path, "XML")
    # Only a DOCTYPE can declare entities, and a few nested ones expand until memory is full.
    if "<!DOCTYPE" in document:
        raise FormatError(path, "", "a DOCTYPE", "delete it: annotation files have none")
    try:
        return ElementTree.fromstring(document)
    except ElementTree.ParseError as error:
        raise FormatError(path, f"line {error.position[0]}", f"not valid XML: {error}", "correct it") from None


def image_size_of(entry: dict, height: str, width: str) -> tuple[int, int] | None:
    """Returns an image's (height, width), or None unless the entry has whole numbers above 0 under both keys."""
    rows, columns = (
        int(side) if isinstance(side, int | float) and side == side // 1 else 0
        for side in map(entry.get, (height, width))
    )
    return (rows, columns) if rows > 0 and columns > 0 else None
