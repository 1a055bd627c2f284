"""CSV: one row an image (image,x1,y1,x2,y2,...) or one row a landmark (image,landmark,x,y); pixels, y down.

The header tells which. Fields are separated by comma, semicolon or tab; with a semicolon, decimals may be commas. Empty,
NA and nan are missing. The columns group, mm_per_px (or scale) and id are read where they are there, others are not.
"""

import csv
import math
import re
from pathlib import Path

import numpy as np

from jaxmarks.data.samples import Annotation, FormatError

_MISSING = {"", "na", "nan", "n/a", "null", "none"}


def read(path, problems: list[dict]) -> list[Annotation]:
    """Reads either layout. A coordinate written as nan is a missing landmark, and a problem.

    Raises:
      FormatError: no such header, a cell that is no number, a landmark given twice; it names the row.
    """
    text = Path(path).read_bytes().decode("utf-8-sig", errors="replace")
    if "\0" in text:
        raise FormatError(path, "line 1", "binary data, not text", "name a CSV file")
    lines = re.split(r"\r\n|\r|\n", text)
    head = next((line for line in lines if line.strip()), None)
    if head is None:
        raise FormatError(path, "line 1", "the file is empty", "its first row is image,x1,y1,... or image,landmark,x,y")
    delimiter = max(";\t,", key=head.count)
    rows = [
        (number, [cell.strip() for cell in cells])
        for number, cells in enumerate(csv.reader(lines, delimiter=delimiter), 1)
        if any(cell.strip() for cell in cells)
    ]
    names = [name.lower() for name in rows[0][1]]
    twice = {name for name in names if name and names.count(name) > 1}
    if twice:
        raise FormatError(path, f"line {rows[0][0]}", f"column {min(twice)!r} stands twice", "rename one")
    if "image" not in names and "filename" in names:
        names[names.index("filename")] = "image"
    if "image" not in names:
        raise FormatError(path, f"line {rows[0][0]}", f"no column 'image' in {rows[0][1]}", "name the columns in row 1")
    if len(rows) == 1:
        raise FormatError(path, f"line {rows[0][0]}", "a header and no row", "add one row for each image")
    entries = []
    for number, cells in rows[1:]:
        if len(cells) != len(names):
            what = f"{len(cells)} cells where the header has {len(names)}"
            raise FormatError(path, f"line {number}", what, "mend the row")
        entries.append((number, dict(zip(names, cells, strict=True))))
        if not entries[-1][1]["image"]:
            raise FormatError(path, f"line {number}", "no image name", "write the photograph's file name")
    reader = _long if {"landmark", "x", "y"} <= set(names) else _wide
    return reader(path, names, entries, problems)


def _wide(path, names, entries, problems):
    count = sum(bool(re.fullmatch(r"x\d+", name)) for name in names)
    missing = [f"{axis}{k}" for k in range(1, count + 1) for axis in "xy" if f"{axis}{k}" not in names]
    if not count or missing:
        what = f"no column {missing[0] if missing else 'x1'!r}"
        raise FormatError(path, "line 1", what, "the header is image,x1,y1,x2,y2,... or image,landmark,x,y")
    return [
        _annotation(path, number, row, [(row[f"x{k}"], row[f"y{k}"], number) for k in range(1, count + 1)], problems)
        for number, row in entries
    ]


def _long(path, names, entries, problems):
    by_image: dict[str, list] = {}
    labels: dict[str, None] = {}
    for number, row in entries:
        if not row["landmark"]:
            raise FormatError(path, f"line {number}", "no landmark", "write its number, from 1, or its name")
        by_image.setdefault(row["image"], []).append((number, row))
        labels[row["landmark"]] = None
    numbered = all(re.fullmatch(r"\d+", label) for label in labels)
    if numbered:
        top = max(map(int, labels))
        if "0" in labels or top > 10_000:
            bad = next(n for n, row in entries if int(row["landmark"]) == 0 or int(row["landmark"]) == top)
            raise FormatError(
                path, f"line {bad}", f"landmark {'0' if '0' in labels else top}", "count landmarks from 1"
            )
        order = [str(k) for k in range(1, top + 1)]
    else:
        order = sorted(labels, key=lambda label: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", label)])
    found = []
    for rows in by_image.values():
        given: dict[str, tuple] = {}
        for number, row in rows:
            label = str(int(row["landmark"])) if numbered else row["landmark"]
            if label in given:
                what = f"landmark {label} of {row['image']} again (first in line {given[label][2]})"
                raise FormatError(path, f"line {number}", what, "delete one")
            given[label] = (row["x"], row["y"], number)
        cells = [given.get(label, ("", "", rows[0][0])) for label in order]
        found.append(_annotation(path, *rows[0], cells, problems))
    return found


def _annotation(path, number, row, cells, problems):
    points, visible = np.zeros((len(cells), 2)), np.ones(len(cells), bool)
    for k, (x, y, line) in enumerate(cells):
        if x.lower() in _MISSING or y.lower() in _MISSING:
            visible[k] = False
            if "nan" in (x.lower(), y.lower()):
                problems.append(
                    {"image": row["image"], "what": f"landmark {k + 1} is NaN: taken as missing", "where": f"{path}: line {line}"}
                )  # fmt: skip
            continue
        points[k] = _number(path, line, x), _number(path, line, y)
    scale = row.get("mm_per_px") or row.get("scale") or ""
    return Annotation(
        image=row["image"],
        points=points,
        visible=visible,
        mm_per_px=math.nan if scale.lower() in _MISSING else _number(path, number, scale),
        id=row.get("id", ""),
        group=row.get("group", ""),
        where=f"{path}: line {number}",
    )


def _number(path, line, cell):
    try:
        value = float(cell.replace(",", "."))
    except ValueError:
        raise FormatError(path, f"line {line}", f"{cell!r} is not a number", "write one, or NA where missing") from None
    if not math.isfinite(value):
        raise FormatError(path, f"line {line}", f"{cell!r} is not finite", "write a coordinate in pixels, or NA")
    return value


def write(path, annotations: list[Annotation], *, layout: str = "wide") -> None:
    """Writes annotations, `wide` or `long`; numbers in the shortest form that reads back the same, missing as NA."""
    cell = lambda value, seen: repr(float(value)) if seen else "NA"
    scale = lambda a: "NA" if math.isnan(a.mm_per_px) else repr(float(a.mm_per_px))
    rows: list[list] = []
    if layout == "wide":
        count = max((len(a.points) for a in annotations), default=0)
        rows.append(["image", *(f"{axis}{k + 1}" for k in range(count) for axis in "xy"), "group", "mm_per_px", "id"])
        for a in annotations:
            cells = [cell(v, seen) for point, seen in zip(a.points, a.visible, strict=True) for v in point]
            rows.append([a.image, *cells, a.group, scale(a), a.id])
    elif layout == "long":
        rows.append(["image", "landmark", "x", "y", "group", "mm_per_px", "id"])
        for a in annotations:
            for k, (point, seen) in enumerate(zip(a.points, a.visible, strict=True), 1):
                rows.append([a.image, k, *(cell(v, seen) for v in point), a.group, scale(a), a.id])
    else:
        raise ValueError(f"layout={layout!r}: there are wide and long")
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
