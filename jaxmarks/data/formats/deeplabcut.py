"""DeepLabCut's CSV of labelled frames: header rows scorer, (individuals,) bodyparts, coords; pixels, y down.

A row begins with the frame's path, labeled-data/VIDEO/img001.png, in one cell or split over three.
"""

import itertools
import math
from pathlib import Path, PureWindowsPath

from jaxmarks.data.formats import text
from jaxmarks.data.photographs import files_in
from jaxmarks.data.samples import Annotation, FormatError, problem

HEADER = "scorer, bodyparts, coords in the first three rows"


def files_of(path: Path) -> list[Path]:
    """Returns the files CollectedData*.csv of a folder and its subfolders."""
    return [file for file in files_in(path, {".csv"}) if file.name.startswith("CollectedData")]


def read(files: dict[Path, list], problems: list[dict]) -> list[Annotation]:
    """Reads the frames of all files, one animal per frame; the rows of a file are those returned by `text.csv_cells`.

    The landmarks are the body parts of all files in the order of first appearance. The frames of a video form one
    group. If all are of one video, each is its own group; this is reported because neighbouring frames look alike.

    Raises:
      FormatError: a header or row that is not DeepLabCut's, a cell that is not a number, or two animals marked on a
        frame; the message names the row.
    """
    frames = list(itertools.chain.from_iterable(_read(file, rows, problems) for file, rows in files.items()))
    if not frames:
        raise FormatError(next(iter(files)), "", "a header without frames", "label some frames")
    parts = list(dict.fromkeys(part for *_, marks in frames for part in marks))
    folder = lambda name: PureWindowsPath(name).parent.as_posix()  # accepts \ and /
    several_videos = len({folder(name) for name, *_ in frames}) > 1
    if not several_videos:
        what = f"all {len(frames)} frames are of one video: scores on its frames tell little about other videos"
        problems.append(problem(frames[0][0], what, frames[0][1]))
    group = lambda name: folder(name) if several_videos else ""
    return [
        Annotation(
            image=name,
            **text.points_and_visible(marks, parts),
            group=group(name),
            where=where,
            names=text.informative_names(parts),
        )
        for name, where, marks in frames
    ]


def _read(path, rows, problems):
    """Yields (name, place, {body part: (x, y)}) for each frame; a missing landmark is NaN."""
    width, path_cells, columns, frames = _columns(path, rows)
    for line, cells in frames:
        if len(cells) != width:
            raise text.of_another_length(path, line, cells, width)
        name, where = "/".join(cell for cell in cells[:path_cells] if cell), f"{path}: line {line}"
        if not name:
            raise FormatError(where, "", "no frame is named", "write its path")
        marks: dict[str, tuple[float, float]] = {}
        marked_animals: dict[str, None] = {}
        for (animal, part), cell_indices in columns.items():
            point = _point(where, part, [cells[cell_indices[axis]] for axis in "xy"], name, problems)
            if part not in marks or math.isnan(marks[part][0]):
                marks[part] = point
            if not math.isnan(point[0]) and animal != "single":  # DeepLabCut's name for parts of no animal
                marked_animals[animal] = None
        if len(marked_animals) > 1:
            what = f"two animals are marked, {' and '.join(list(marked_animals)[:2])}"
            raise FormatError(where, "", what, "crop each animal to its own image, or keep one")
        yield name, where, marks


def _columns(path, rows):
    """Returns the number of cells per row, how many of them hold the frame's path, the columns, and the rows below.

    The columns are {(animal, body part): {"x": cell index, ...}}; without a row "individuals" the animal is "".
    """
    (first_line, cells), *_ = rows
    if cells[0].lower() != "scorer":
        raise FormatError(path, f"line {first_line}", "no row 'scorer'", f"a DeepLabCut file has {HEADER}")
    width, header, remaining_rows = len(cells), dict[str, list[str]](), iter(rows)
    for line, row in remaining_rows:
        if len(row) != width:
            raise text.of_another_length(path, line, row, width)
        header[row[0].lower()] = row
        if "coords" in header:
            break
    absent = next((name for name in ("bodyparts", "coords") if name not in header), None)
    if absent:
        raise FormatError(path, f"line {first_line}", f"no row {absent!r}", f"a DeepLabCut file has {HEADER}")
    coords = [cell.lower() for cell in header["coords"]]
    path_cells = next((n for n, cell in enumerate(coords) if cell == "x"), width)
    animals = header.get("individuals", [""] * width)
    columns: dict[tuple[str, str], dict[str, int]] = {}
    for n in range(path_cells, width):
        columns.setdefault((animals[n], header["bodyparts"][n]), {})[coords[n]] = n
    if not columns:
        raise FormatError(path, "", "no column x in the row 'coords'", f"a DeepLabCut file has {HEADER}")
    for (animal, part), cell_indices in columns.items():
        if not {"x", "y"} <= set(cell_indices):
            raise FormatError(path, "", f"{f'{animal} {part}'.strip()} has no x or no y column", "write both")
    return width, path_cells, columns, remaining_rows


def _point(where, part, cells, name, problems) -> tuple[float, float]:
    missing = [cell.lower() in text.MISSING for cell in cells]
    if any(missing):
        if not all(missing):
            problems.append(problem(name, f"{part} has only one coordinate: treated as missing", where))
        return math.nan, math.nan
    try:
        x, y = map(text.number, cells)
    except ValueError:
        what = f"{part} at {', '.join(map(repr, cells))}"
        raise FormatError(where, "", f"{what} is not a pair of numbers", "write pixels, or leave it empty") from None
    if not math.isfinite(x + y):
        raise FormatError(where, "", f"{part} at ({x}, {y}) is not finite", "write pixels, or leave it empty")
    return x, y
