"""CSV: one row per image (image,x1,y1,x2,y2,...) or one row per landmark (image,landmark,x,y); pixels, y down.

The header determines the layout; x,y,x.1,y.1 (repeated headings as pandas and R rename them) and x,y,x2,y2 are read as
x1,y1,x2,y2. Without a column that names the landmark (landmark, label beside image, or one of `LANDMARK_COLUMNS`), an
image's rows are its landmarks in order, as in ImageJ's results (Label,X,Y); it is an error if most images have the same
cells in some other column, but in different orders, or if all have nearly the same cells. Fields are separated by
comma, semicolon or tab; with the latter two, decimals may be commas. Cells that are empty, NA or nan are missing
(`text.MISSING`). The columns group (or specimen, individual), mm_per_px and id are read if present; all others are
ignored, unused x and y with a message.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable

import numpy as np

from jaxmarks import atomic
from jaxmarks.data.formats import text as texts
from jaxmarks.data.formats import tps
from jaxmarks.data.photographs import finder
from jaxmarks.data.samples import Annotation, FormatError, problem

# Alternative names of a column, used if no column has the name itself.
SYNONYMS = {"image": ("filename", "file"), "group": ("specimen", "individual")}
# For landmark tables. A column label is the image if no other column is, as in ImageJ, else the landmark.
_SYNONYMS = SYNONYMS | {"image": (*SYNONYMS["image"], "label"), "landmark": ("label",)}
# Columns that name the landmark if the column landmark is missing and their cells recur from image to image.
LANDMARK_COLUMNS = ("landmark_name", "landmark_id", "keypoint", "bodypart", "point", "lm", "node", "part", "feature")
# What ImageJ appends to an image's file name: a colon and the name of a region or slice.
REGION = re.compile(r"(\.\w{3,4}):(.*)$")
REGION_COLUMN = "what follows the image's name"


def read(path, cells: tuple[list, str], problems: list[dict], images=None) -> list[Annotation]:
    """Reads any of the layouts from `cells`, the result of `texts.csv_cells`.

    In the folder `images`, if it is given, ImageJ's label "title:slice" is the photograph that the slice names if there
    is none that the title names. Reported in `problems` are landmarks written as nan or with only one coordinate, which
    are missing; images with all landmarks at (0, 0), which are left out; and columns x and y beside x1 and y1.

    Raises:
      FormatError: an unsuitable header, a cell that is not a number, a landmark given twice; the message names the row.
    """
    (line, names), rows, decimal_comma = texts.csv_rows(path, cells, _SYNONYMS)
    if "image" not in names:
        raise FormatError(path, f"line {line}", f"no column 'image' in {names}", "name the columns in row 1")
    if not rows:
        raise FormatError(path, f"line {line}", "a header without rows", "add one row for each image")
    image_names = [cells[names.index("image")] for _, cells in rows]
    unique = len(set(image_names)) == len(image_names)
    names = _numbered(names) if unique else names
    entries = [(number, dict(zip(names, cells, strict=True))) for number, cells in rows]
    nameless_line = next((number for number, row in entries if not row["image"]), None)
    if nameless_line:
        raise FormatError(path, f"line {nameless_line}", "no image name", "write the photograph's file name")
    if images is not None:
        entries = _of_slices(entries, finder(images))
    layout: Callable = functools.partial(_wide, line=line)
    if {"x", "y"} <= set(names):
        if unique and {"x1", "y1"} <= set(names):  # perhaps the corner of a box, or the position of a stage
            what = "columns x and y are not used beside x1 and y1: if they are a landmark, number them, too, from x1 on"
            problems.append(problem(image_names[0], what, f"{path}: line {line}"))
        else:
            layout = _long if "landmark" in names or _add_landmarks(names, entries) else _in_order
    return layout(path, names, entries, functools.partial(_number, path, decimal_comma=decimal_comma), problems)


def _of_slices(entries: list[tuple[int, dict]], find) -> list[tuple[int, dict]]:
    """Names the rows of an image sequence in ImageJ, "title:slice", by the slice if only that is a photograph."""

    @functools.cache
    def exists(name: str) -> bool:
        with contextlib.suppress(OSError):
            return bool(find(name))
        return False

    def photograph(label: str) -> str:
        title, _, name = label.rpartition(":")
        known = any(map(exists, (label, title, label.partition(":")[0])))  # the title may be followed by a region, too
        return name if title and not known and exists(name) else label

    return [(number, row | {"image": photograph(row["image"])}) for number, row in entries]


def _numbered(names: list[str]) -> list[str]:
    """Renames repeated headings as other programs have renamed them (x,y,x.1,y.1 or x,y,x2,y2) to x1,y1,x2,y2."""
    numbers = {name[1:] for name in names if re.fullmatch(r"[xy]\.?\d*", name)}
    if "" in numbers and "2" in numbers and "1" not in numbers:
        return [f"{name}1" if name in ("x", "y") else name for name in names]
    if "" in numbers and ".1" in numbers and not any(map(str.isdecimal, numbers)):
        return [re.sub(r"^([xy])\.?(\d*)$", lambda m: f"{m[1]}{int(m[2] or 0) + 1}", name) for name in names]
    return names


def _add_landmarks(names: list[str], entries: list[tuple[int, dict]]) -> bool:
    """Adds to each row, as `landmark`, the cell of the first of `LANDMARK_COLUMNS` that names its landmark, if any."""
    if any(REGION.search(row["image"]) for _, row in entries):
        return False  # by ImageJ, which numbers its rows
    for column in (name for name in LANDMARK_COLUMNS if name in names):
        by_image: dict[str, list[str]] = {}
        for _, row in entries:
            by_image.setdefault(row["image"], []).append(row[column].lower())
        images, labels = list(by_image.values()), {cell for cells in by_image.values() for cell in cells}
        distinct = not labels & {"0", *texts.MISSING} and all(len(set(cells)) == len(cells) for cells in images)
        if distinct and (len(images) == 1 or len(labels) < len(entries)):
            for _, row in entries:
                row["landmark"] = row[column]
            return True
    return False


def _wide(path, names, entries, number_of, problems, *, line):
    count = math.ceil(sum(bool(re.fullmatch(r"[xy]\d+", name)) for name in names) / 2)
    missing = [f"{axis}{k}" for k in range(1, count + 1) for axis in "xy" if f"{axis}{k}" not in names]
    if not count or missing:
        what = (
            f"no column {missing[0] if missing else 'x1'!r}{', columns are numbered from 1' if 'x0' in names else ''}"
        )
        raise FormatError(
            path, f"line {line}", what, "the expected header is image,x1,y1,x2,y2,... or image,landmark,x,y"
        )
    annotations = []
    for number, row in entries:
        cells = [(row[f"x{k}"], row[f"y{k}"], number) for k in range(1, count + 1)]
        annotation = _annotation(path, number, row, cells, number_of, problems)
        if tps.is_blank(annotation.points, annotation.visible) and not annotation.points.any():
            what = "all landmarks at (0, 0), not digitised yet: left out"
            problems.append(problem(annotation.image, what, annotation.where))
        else:
            annotations.append(annotation)
    return annotations


def _long(path, names, entries, number_of, problems):
    by_image: dict[str, list] = {}
    labels: dict[str, None] = {}
    for number, row in entries:
        if not row["landmark"]:
            raise FormatError(path, f"line {number}", "no landmark is named", "write its number, from 1, or its name")
        by_image.setdefault(row["image"], []).append((number, row))
        labels[row["landmark"]] = None
    numbered = all(re.fullmatch(r"\d+", label) for label in labels)
    if numbered:
        bad = next(((n, row["landmark"]) for n, row in entries if not 1 <= int(row["landmark"]) <= 10_000), None)
        if bad:
            raise FormatError(
                path, f"line {bad[0]}", f"landmark {bad[1]} is not a number from 1 to 10000", "number landmarks from 1"
            )
        order = [str(k) for k in range(1, max(map(int, labels)) + 1)]
    else:
        order = sorted(labels, key=texts.natural)
    found, marked_images = [], []
    for image, rows in by_image.items():
        marks: dict[str, tuple] = {}
        for number, row in rows:
            label = str(int(row["landmark"])) if numbered else row["landmark"]
            if label in marks:
                what = f"landmark {label} of {row['image']} is given twice (first in line {marks[label][2]})"
                raise FormatError(path, f"line {number}", what, "delete one")
            marks[label] = (row["x"], row["y"], number)
        marked_images.append((image, f"{path}: line {rows[0][0]}", marks))
        cells = [marks.get(label, ("", "", rows[0][0])) for label in order]
        found.append(_annotation(path, rows[0][0], _common(path, rows), cells, number_of, problems))
    texts.report_rare_labels(order, marked_images, problems)
    return found if numbered else [dataclasses.replace(a, names=texts.informative_names(order)) for a in found]


def _in_order(path, names, entries, number_of, problems):
    by_image: dict[str, list] = {}
    for number, row in entries:
        region = REGION.search(row["image"])
        image, suffix = (row["image"][: region.end(1)], region[2]) if region else (row["image"], "")
        rows = by_image.setdefault(image, [])
        rows.append((number, row | {"image": image, "landmark": str(len(rows) + 1), REGION_COLUMN: suffix}))
    (first_image, first_rows), *other_images = by_image.items()
    for image, rows in other_images:
        if len(rows) != len(first_rows):  # it is unknown which landmark is missing
            what = f"{image} has {len(rows)} rows, but {first_image} has {len(first_rows)}"
            raise FormatError(
                path, f"line {rows[0][0]}", what, "add a column landmark, or a row of NA for each missing landmark"
            )
    for column in [name for name in names if name not in ("image", "x", "y")] + [REGION_COLUMN]:
        images = [[(n, row[column]) for n, row in rows] for rows in by_image.values()]
        _refuse_another_order(path, column, images)
        _refuse_other_names(path, column, images)
    return _long(path, names, list(itertools.chain.from_iterable(by_image.values())), number_of, problems)


def _refuse_another_order(path, column: str, images: list[list[tuple[int, str]]]):
    """Raises FormatError if a column seems to name the landmarks and their order changes between images.

    That is so if most images have the same cells, each once, and one of these has them in another order than the first.
    `images` holds the column as (line, cell) for each image's rows.
    """
    lower_cells = [[cell.lower() for _, cell in rows] for rows in images]
    ((common, image_count),) = collections.Counter(map(frozenset, lower_cells)).most_common(1)
    if 2 * image_count <= len(images) or len(common) < len(lower_cells[0]) or common & texts.MISSING:
        return
    matching = [(rows, lowered) for rows, lowered in zip(images, lower_cells, strict=True) if common == {*lowered}]
    for rows, lowered in matching:
        for (line, cell), lower_cell, (_, expected), expected_lower in zip(rows, lowered, *matching[0], strict=True):
            if lower_cell != expected_lower:
                what = f"{column} is {cell!r} where other images have {expected!r}, but rows are landmarks in order"
                remedy = "rename that column to landmark if it names the landmarks, else delete it"
                raise FormatError(path, f"line {line}", what, remedy)


def _refuse_other_names(path, column: str, images: list[list[tuple[int, str]]]):
    """Raises FormatError if a column seems to name the landmarks, and images lack different ones.

    That is so if its cells, texts or whole numbers, occur once in each image, and few of them are not in every image.
    `images` holds the column as in `_refuse_another_order`.
    """
    sets = [{cell.lower() for _, cell in rows} for rows in images]
    every = set.union(*sets)
    distinct = all(len(cells) == len(rows) for cells, rows in zip(sets, images, strict=True))
    names = all(re.fullmatch(r"\d+|.*[^\W\d_].*", cell) for cell in every - texts.MISSING)
    if not distinct or not names or every & texts.MISSING or 2 * len(every) > 3 * len(sets[0]):
        return
    for rows, cells in zip(images, sets, strict=True):
        if cells != sets[0]:
            line, cell = next((line, cell) for line, cell in rows if cell.lower() not in sets[0])
            what = f"{column} is {cell!r}, which the first image does not have, but rows are landmarks in order"
            remedy = "rename that column to landmark if it names the landmarks, else delete it"
            raise FormatError(path, f"line {line}", what, remedy)


def _common(path, rows) -> dict[str, str]:
    """Merges the image-wide fields of an image's rows; raises if they differ, except that differing IDs are dropped."""
    common: dict[str, str] = {}
    for number, row in rows:
        for name in ("image", "group", "mm_per_px", "id"):
            cell = row.get(name, "")
            if cell.lower() in texts.MISSING:
                continue
            if common.setdefault(name, cell) != cell and name == "id":
                common[name] = ""  # IDs of the rows, not of the image
            elif common[name] != cell:
                what = f"{name} {cell} of {row['image']}, but {common[name]} in an earlier row"
                raise FormatError(path, f"line {number}", what, "write one value for each image")
    return common


def _annotation(path, number, row, cells, number_of, problems):
    points, visible = np.zeros((len(cells), 2)), np.ones(len(cells), bool)
    for k, (x, y, line) in enumerate(cells):
        pair = x.lower(), y.lower()
        missing = [cell in texts.MISSING for cell in pair]
        if any(missing):
            visible[k] = False
            if "nan" in pair or not all(missing):
                what = (
                    f"landmark {k + 1} {'is NaN' if 'nan' in pair else 'has only one coordinate'}: treated as missing"
                )
                problems.append(problem(row["image"], what, f"{path}: line {line}"))
            continue
        points[k] = number_of(line, x), number_of(line, y)
    text_of = lambda name: "" if (cell := row.get(name, "")).lower() in texts.MISSING else cell
    cell = row.get("mm_per_px", "")
    scale = math.nan if cell.lower() in texts.MISSING else number_of(number, cell)
    if scale <= 0:
        raise FormatError(
            path, f"line {number}", f"a scale mm_per_px of {cell}", "write the length of a pixel in mm, or NA"
        )
    return Annotation(
        image=row["image"],
        points=points,
        visible=visible,
        mm_per_px=scale,
        id=text_of("id"),
        group=text_of("group"),
        where=f"{path}: line {number}",
    )


def _number(path, line, cell, *, decimal_comma):
    try:
        value = texts.number(cell.replace(",", ".") if decimal_comma else cell)
    except ValueError:
        remedy = "write a number, or NA where it is missing"
        if "," in cell:
            remedy = "write decimal points, or decimal commas throughout and semicolons between the cells"
        raise FormatError(path, f"line {line}", f"{cell!r} is not a number", remedy) from None
    if not math.isfinite(value):
        raise FormatError(path, f"line {line}", f"{cell!r} is not finite", "write a coordinate in pixels, or NA")
    return value


def write(path, annotations: list[Annotation], *, layout: str = "wide") -> None:
    """Writes annotations in the layout `wide` (a row per image) or `long` (a row per landmark).

    Numbers are written in the shortest form that reads back the same, missing ones as NA.

    Raises:
      ValueError: images with different numbers of landmarks, or an unknown layout.
    """
    if other := next((a for a in annotations if len(a.points) != len(annotations[0].points)), None):
        raise ValueError(
            f"{path}: {other.image} has {len(other.points)} landmarks, but {annotations[0].image} has"
            f" {len(annotations[0].points)}: read all with the same `curves`"
        )
    cell = lambda value, seen: repr(float(value)) if seen else "NA"
    scale = lambda a: "NA" if math.isnan(a.mm_per_px) else repr(float(a.mm_per_px))
    rows: list[list] = []
    if layout == "wide":
        count = len(annotations[0].points) if annotations else 0
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
        raise ValueError(f"layout={layout!r}: choose wide or long")
    atomic.write_csv(path, rows)
