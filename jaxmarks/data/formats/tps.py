"""TPS, the format of tpsDig and most morphometric programs: reader, writer, and conversion between y up and y down.

A record is `LM=K` (or `LM3=K`), K lines of coordinates, and `KEY=value` lines; `CURVES=n` is followed by n blocks of
`POINTS=m` and m lines. The reader also accepts any case, spaces around "=", Windows and old Macintosh line ends, a
byte-order mark, Latin-1, exponents, comma decimals, tabs and blank lines. A landmark is missing if both coordinates are
NA or nan, or if both are negative; on a curve, negative pairs are ordinary points. Unknown keys are kept in `extra`.
"""

import dataclasses
import math
import re

import numpy as np

from jaxmarks import atomic
from jaxmarks.data.formats import text as texts
from jaxmarks.data.samples import Annotation, FormatError, problem

_KEY = re.compile(r"^\s*([A-Za-z][\w ]*?)\s*=\s*([^\r\n]*?)\s*$")
_MISSING = {"na", "nan", "n/a", "?"}
# The keys that have a field of their own.
OWN = {"LM", "LM3", "CURVES", "OUTLINES", "POINTS", "IMAGE", "ID", "COMMENT", "SCALE"}


@dataclasses.dataclass
class Specimen:
    """One record in the file's own frame: pixels, y up, the origin at the image's lower left corner.

    Attributes:
      points: (K, 2) float64; 0 where not visible.
      visible: (K,) bool.
      depth: (K,) float64, the third coordinate of an LM3 record, else None.
      image, id, comment: text, "" where absent.
      scale: length of a pixel in the file's unit (usually mm), None where absent, or if it is 0 in a record that
        `is_blank`.
      curves: a list of (m, 2) arrays, NaN where a point is missing.
      outlines: the same for OUTLINES.
      extra: other KEY=value lines, in order.
      line: line number of the record's start, from 1.
    """

    points: np.ndarray
    visible: np.ndarray
    image: str = ""
    id: str = ""
    scale: float | None = None
    comment: str = ""
    depth: np.ndarray | None = None
    curves: list = dataclasses.field(default_factory=list)
    outlines: list = dataclasses.field(default_factory=list)
    extra: dict = dataclasses.field(default_factory=dict)
    line: int = 0


def read(path) -> list[Specimen]:
    """Reads the records of a TPS file.

    Raises:
      FormatError: the file is not TPS or is damaged; the message names the line and the value.
    """
    return loads(texts.read(path, "TPS"), path)


def loads(text: str, path="<text>") -> list[Specimen]:
    """Reads records from text; `path` is used in messages only."""
    lines = [
        (n, line) for n, line in enumerate(re.split(r"\r\n|\r|\n", text.removeprefix("\ufeff")), 1) if line.strip()
    ]
    if not lines:
        raise FormatError(path, "line 1", "the file is empty", "give a TPS file with LM= records")
    specimens: list[Specimen] = []
    position = 0
    while position < len(lines):
        number, line = lines[position]
        key, value = _key(path, number, line, begun=bool(specimens))
        position += 1
        if key in ("LM", "LM3"):
            count = _count(path, number, key, value)
            rows = _rows(path, lines, position, count, 3 if key == "LM3" else 2, f"{key}={value}", number)
            position += count
            visible = ~(np.isnan(rows).any(1) | (rows[:, :2] < 0).all(1))
            rows = np.where(visible[:, None], rows, 0.0)
            specimens.append(Specimen(rows[:, :2], visible, depth=rows[:, 2] if key == "LM3" else None, line=number))
            key_lines: dict[str, int] = {}
            continue
        if not specimens:
            raise FormatError(path, f"line {number}", f"{key}= before the first LM=", "begin the record with LM=")
        record = specimens[-1]
        if key in key_lines:
            raise FormatError(
                path, f"line {number}", f"{key}= is given twice in one record (first in line {key_lines[key]})",
                "delete one, or begin the next record with LM="
            )  # fmt: skip
        key_lines[key] = number
        if key in ("CURVES", "OUTLINES"):
            target = record.curves if key == "CURVES" else record.outlines
            for _ in range(_count(path, number, key, value)):
                if position == len(lines):
                    raise FormatError(
                        path, f"line {number}", f"{key}={value}, but the file ends", "complete the record"
                    )
                n, line = lines[position]
                inner_key, inner_value = _key(path, n, line, begun=True)
                if inner_key != "POINTS":
                    raise FormatError(
                        path, f"line {n}", f"{line.strip()!r} where POINTS= is expected", f"correct {key}={value}"
                    )
                point_count = _count(path, n, inner_key, inner_value)
                target.append(_rows(path, lines, position + 1, point_count, 2, f"POINTS={inner_value}", n))
                position += 1 + point_count
        elif key == "SCALE":
            unset = is_blank(record.points, record.visible) and re.fullmatch(r"0+([.,]0*)?", value)
            record.scale = None if unset else _scale(path, number, value)
        elif key in ("IMAGE", "ID", "COMMENT"):
            setattr(record, key.lower(), value)
        else:
            record.extra[key] = value
    return specimens


def is_blank(points: np.ndarray, visible: np.ndarray) -> bool:
    """Whether several landmarks all lie on one point, as geomorph writes photographs that are not digitised yet."""
    return len(points) > 1 and bool(visible.all() and (points == points[0]).all())


def _key(path, number, line, *, begun):
    match = _KEY.match(line)
    if match:
        return match[1].upper(), match[2]
    what = f"{line.strip()[:60]!r} is neither KEY=value nor one of the landmarks that LM= announced"
    raise FormatError(
        path, f"line {number}", what, "correct the count after LM=" if begun else "a TPS file begins with LM=count"
    )


def _count(path, number, key, value):
    if not re.fullmatch(r"\d+", value):
        raise FormatError(path, f"line {number}", f"{key}={value} is not a count", "write a whole number of 0 or more")
    return int(value)


def _scale(path, number, value):
    try:
        scale = texts.number(value.replace(",", "."))
    except ValueError:
        scale = math.nan
    if not (0 < scale < math.inf):
        raise FormatError(path, f"line {number}", f"SCALE={value} is not a length", "write the length of a pixel")
    return scale


def _rows(path, lines, at, count, dimensions, head, head_line):
    """Parses `count` lines of coordinates from `lines[at]` on into (count, dimensions) float64, NaN if missing."""
    room = min(count, len(lines) - at + 1)  # a count beyond the end of the file is an error below, so not allocated
    rows = np.full((room, dimensions), np.nan)
    for k in range(count):
        if at + k == len(lines) or _KEY.match(lines[at + k][1]):
            number = lines[at + k][0] if at + k < len(lines) else lines[-1][0]
            what = f"{head} in line {head_line} announces {count} rows, but there are {k}"
            raise FormatError(path, f"line {number}", what, "add the missing rows (NA NA for a missing landmark)")
        number, line = lines[at + k]
        # "12,5 33,1" has decimal commas; in "12.5, 33.1" and "10 ,20" commas are separators.
        decimals = re.search(r"\s", line.strip()) and "." not in line and not re.search(r"\s,|,\s", line.strip())
        words = line.replace(",", ".").split() if decimals else None
        words = words if words and len(words) == dimensions else re.split(r"[\s,;]+", line.strip().strip(",;"))
        if len(words) != dimensions:
            what = f"{line.strip()!r} has {len(words)} values where {dimensions} are expected"
            raise FormatError(path, f"line {number}", what, "write x and y" + (" and z" if dimensions == 3 else ""))
        missing = [w for w in words if w.lower() in _MISSING]
        if len(missing) == dimensions:
            continue
        if missing:
            what = f"{line.strip()!r} has only some of its coordinates"
            raise FormatError(path, f"line {number}", what, "write all of them, or NA for each")
        for d, word in enumerate(words):
            try:
                rows[k, d] = texts.number(word)
            except ValueError:
                remedy = "write numbers, or NA NA for a missing landmark"
                raise FormatError(path, f"line {number}", f"{word!r} is not a number", remedy) from None
            if not math.isfinite(rows[k, d]):
                raise FormatError(path, f"line {number}", f"{word!r} is not finite", "write a coordinate in pixels")
    return rows


def resample(curve: np.ndarray, count: int) -> np.ndarray:
    """Returns `count` points (count, 2) equally spaced along the polyline through points (M, 2), ends included."""
    arc_lengths = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(curve, axis=0).T))])
    positions = np.linspace(0.0, arc_lengths[-1], count)
    return np.stack([np.interp(positions, arc_lengths, column) for column in curve.T], axis=-1)


def with_curves(specimens: list[Specimen], count: int, path="", problems: list[dict] | None = None) -> list[Specimen]:
    """Appends `count` points of each curve (`resample`) to the records' landmarks, the usual place of semilandmarks.

    Args:
      specimens: records that have the same number of curves, or none; those without curves have the points missing.
      count: points per curve, at least 2, since both ends are among them.
      path: used in messages.
      problems: a list to which curves that are taken as missing are appended (`samples.problem`).

    Raises:
      FormatError: the records have different numbers of curves.
      ValueError: a count below 2.
    """
    if count < 2:
        raise ValueError(
            f"--config.data.curves={count}: give 0 or at least 2, since both ends of a curve are among its points"
        )
    curved = [s for s in specimens if s.curves]
    for s in curved:
        if len(s.curves) != len(curved[0].curves):
            what = f"CURVES={len(s.curves)}, but CURVES={len(curved[0].curves)} in the record of line {curved[0].line}"
            remedy = "digitise the same curves on every photograph, or delete CURVES= with its points where they differ"
            raise FormatError(path, f"line {s.line}", what, remedy)
    extended = []
    for s in specimens:
        if not (curved and (s.curves or len(s.points))):  # no curves in the file, or an empty record
            extended.append(s)
            continue
        points, visible = [s.points], [s.visible]
        for k, curve in enumerate(s.curves or [np.zeros((0, 2))] * len(curved[0].curves)):
            complete = len(curve) > 1 and bool(np.isfinite(curve).all())
            points.append(resample(curve, count) if complete else np.zeros((count, 2)))
            visible.append(np.full(count, complete))
            if not complete and problems is not None:
                too_few = f"has {len(curve)} points" if s.curves else "is not there"
                reason = "has a missing point" if len(curve) > 1 else too_few
                what, where = f"curve {k + 1} {reason}: treated as missing", f"{path}: line {s.line}"
                problems.append(problem(s.image or s.id, what, where))
        joined = np.concatenate(points), np.concatenate(visible)
        extended.append(dataclasses.replace(s, points=joined[0], visible=joined[1], depth=None, curves=[]))
    return extended


def write(path, specimens: list[Specimen]) -> None:
    """Writes records; numbers in the shortest form that reads back as the same float64.

    Missing landmarks and points that are not finite are written as NA NA.

    Raises:
      ValueError: content that TPS cannot hold: a landmark with two negative coordinates (it would read as missing), a
        scale that is not a length, a key in `extra` that the format itself uses, a text with a line break or with
        blanks at its ends.
    """
    atomic.write(path, dumps(specimens))


def dumps(specimens: list[Specimen]) -> str:
    """Returns records as the text of a TPS file; raises as `write` does."""
    lines = []
    for s in specimens:
        columns = s.points if s.depth is None else np.column_stack([s.points, s.depth])
        visible = s.visible & np.isfinite(columns).all(1)
        negative = visible & (s.points < 0).all(1)
        if negative.any():
            k = int(np.argmax(negative))
            x, y = s.points[k]
            raise ValueError(
                f"{s.image or s.id or 'a record'}: landmark {k + 1} at ({x:g}, {y:g}) cannot be written to TPS, which"
                " reads two negative coordinates as missing; mark it as not visible, or write another format"
            )
        lines.append(f"{'LM' if s.depth is None else 'LM3'}={len(s.points)}")
        for row, seen in zip(columns, visible, strict=True):
            lines.append(" ".join(_number(v) if seen else "NA" for v in row))
        for key, curves in (("CURVES", s.curves), ("OUTLINES", s.outlines)):
            if curves:
                lines.append(f"{key}={len(curves)}")
            for curve in curves:
                lines.append(f"POINTS={len(curve)}")
                lines += [" ".join(map(_number, row)) if np.isfinite(row).all() else "NA NA" for row in curve]
        if s.scale is not None and not 0 < s.scale < math.inf:
            raise ValueError(
                f"{s.image or s.id or 'a record'}: the scale {s.scale} is not a length; give that of a pixel, or None"
            )
        fields = {key: getattr(s, key.lower()) for key in ("IMAGE", "ID", "COMMENT") if getattr(s, key.lower())}
        fields |= {} if s.scale is None else {"SCALE": _number(s.scale)}
        if reserved := OWN & set(s.extra):
            raise ValueError(
                f"{s.image or s.id or 'a record'}: {min(reserved)}= in extra is one of TPS's own keys; use another"
            )
        for key, value in (fields | s.extra).items():
            line = f"{key}={value}"
            if (match := _KEY.match(line)) is None or (match[1].upper(), match[2]) != (key, str(value)):
                raise ValueError(
                    f"{line!r} would be read differently: use a key of capitals and digits, and a text without"
                    " line breaks or blanks at its ends"
                )
            lines.append(line)
    return "".join(line + "\n" for line in lines)


def _number(value):
    return repr(float(value)).removesuffix(".0")


# Decimals to which y is rounded in the conversion back to y up. In floats height - (height - y) may differ from y;
# rounded, it equals y exactly for every y with at most this many decimals.
_DECIMALS = 9


def to_annotations(specimens: list[Specimen], heights: list[float], path="") -> list[Annotation]:
    """Converts records to annotations, y down: y = height - y_tps, with `heights` of the images in pixels."""
    return [
        Annotation(
            image=s.image,
            points=np.where(s.visible[:, None], np.column_stack([s.points[:, 0], height - s.points[:, 1]]), 0.0),
            visible=s.visible,
            mm_per_px=math.nan if s.scale is None else s.scale,
            id=s.id,
            where=f"{path}: line {s.line}",
        )
        for s, height in zip(specimens, heights, strict=True)
    ]


def from_annotations(annotations: list[Annotation], heights: list[float]) -> list[Specimen]:
    """Converts annotations, y down, to records, y up; exact for coordinates of up to nine decimals."""
    return [
        Specimen(
            points=np.where(
                a.visible[:, None],
                np.column_stack([a.points[:, 0], np.round(height - a.points[:, 1], _DECIMALS)]),
                0.0,
            ),
            visible=np.asarray(a.visible),
            image=a.image,
            id=a.id,
            scale=None if math.isnan(a.mm_per_px) else a.mm_per_px,
        )
        for a, height in zip(annotations, heights, strict=True)
    ]
