"""Points of 3D Slicer: .fcsv, and the .json (.mrk.json) of its later versions."""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmarks.data import slices
from jaxmarks.data.formats import text
from jaxmarks.data.samples import FormatError

# Columns of an .fcsv, from 0: the label; and the position status, which Slicer 5 adds, with its value for "placed".
LABEL, PLACED = 11, (14, "2")


class Point(NamedTuple):
    """A point: its label, its position `place` (3,) in RAS mm, and its location `where` in the file."""

    label: str
    place: np.ndarray
    where: str


def read(path) -> list[Point]:
    """Reads the points of a file, in file order.

    Raises:
      FormatError: the file cannot be opened or is malformed, a point is damaged or was not placed, or no coordinate
        system is given.
    """
    path, points = Path(path), []
    for label, place, system, placed, where in (_markups if path.suffix.lower() == ".json" else _fcsv)(path):
        if not placed:
            raise FormatError(where, "", f"{label} is not placed", "place it, or delete it")
        if not np.isfinite(place).all():
            raise FormatError(where, "", f"{label} is at {place.tolist()}, not finite", "place it, or delete it")
        points.append(Point(label, place if system == "RAS" else slices.lps_to_ras(place), where))
    return points


def _fcsv(path):
    system = ""
    try:
        rows = list(csv.reader(text.read(path, ".fcsv").splitlines()))
    except (OSError, csv.Error) as error:
        raise FormatError(path, "", f"cannot be read ({error})", "give an .fcsv or .mrk.json file") from error
    for number, row in enumerate(rows, 1):
        where = f"{path}: line {number}"
        if row and row[0].startswith("#"):
            if "CoordinateSystem" in row[0]:
                word = row[0].partition("=")[2].strip()
                system = _system({"0": "RAS", "1": "LPS"}.get(word, word), where)
            continue
        if not row:
            continue
        try:
            label, place = row[LABEL], np.array(row[1:4], float)
        except (ValueError, IndexError) as error:
            remedy = "write rows of id,x,y,z, and so on, with the label in the twelfth column"
            raise FormatError(where, "", f"{','.join(row)[:60]!r} is not a point", remedy) from error
        if not system:
            raise FormatError(
                where, "", "no coordinate system is given above it", "write '# CoordinateSystem = RAS', or LPS"
            )
        yield label, place, system, (row[PLACED[0] :] or [PLACED[1]])[0] in ("", PLACED[1]), where


def _markups(path):
    try:
        for n, markup in enumerate(text.read_json(path)["markups"]):
            system = _system(markup["coordinateSystem"], f"{path}: markups[{n}]")
            for k, point in enumerate(markup["controlPoints"]):
                where = f"{path}: markups[{n}].controlPoints[{k}]"
                placed = point.get("positionStatus", "defined") == "defined"
                place = np.array(point["position"] if placed else (np.nan,) * 3, float)
                if place.shape != (3,):
                    raise FormatError(where, "", f"position {point['position']} is not a point", "write [x, y, z]")
                yield str(point["label"]), place, system, placed, where
    except FormatError:
        raise
    except OSError as error:
        raise FormatError(path, "", f"cannot be read ({error})", "give an .fcsv or .mrk.json file") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"the points are not in the form that 3D Slicer writes ({type(error).__name__}: {error})"
        raise FormatError(path, "", what, "give an .fcsv or .mrk.json file") from error


def _system(name, where):
    if name not in ("RAS", "LPS"):
        raise FormatError(where, "", f"unknown coordinate system {name}", "write RAS or LPS")
    return name
