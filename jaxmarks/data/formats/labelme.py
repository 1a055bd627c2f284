"""LabelMe: one JSON an image, with a point shape for each landmark; pixels, y down.

The landmarks are the labels of all files in natural order (l1, l2, ..., l10); a label that a file lacks is missing there.
"""

import itertools
import json
import re
from pathlib import Path, PureWindowsPath

import numpy as np

from jaxmarks.data.formats import text
from jaxmarks.data.samples import Annotation, FormatError


def read(path, problems: list[dict]) -> list[Annotation]:
    """Reads a folder of LabelMe files, or one file. A landmark that is NaN or marked twice is missing, and a problem.

    Raises:
      FormatError: a file that is no JSON or no LabelMe, a point that is no pair of numbers.
    """
    path = Path(path)
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() == ".json") if path.is_dir() else [path]
    if not files:
        raise FormatError(path, "", "no .json in this folder", "name a folder of LabelMe files")
    images = [(file, *_points(file, problems)) for file in files]
    labels = sorted({label for *_, points in images for label in points}, key=_natural)
    if not labels:
        raise FormatError(path, "", "no point shape in any file", "mark landmarks as points")
    for label in labels:
        having = [(image, file) for file, image, _, points in images if label in points]
        if 10 * len(having) < len(images):
            what = f"landmark {label} is in {len(having)} of {len(images)} files: a slip in its name?"
            problems.append({"image": having[0][0], "what": what, "where": str(having[0][1])})
    found = []
    for file, image, size, points in images:
        if not points:
            problems.append({"image": image or file.stem, "what": "no point: all missing", "where": str(file)})
        rows = np.array([points.get(label, (np.nan, np.nan)) for label in labels], float)
        visible = np.isfinite(rows).all(1)
        found.append(
            Annotation(
                image=image or file.stem,
                points=np.where(visible[:, None], rows, 0.0),
                visible=visible,
                where=str(file),
                size=size,
                upright=True,
            )
        )
    return found


def _points(file, problems):
    document = text.read_json(file)
    if not isinstance(document, dict) or not isinstance(document.get("shapes"), list):
        raise FormatError(file, "line 1", "no list 'shapes'", "name LabelMe files")
    points: dict[str, tuple[float, float]] = {}
    image = _image_name(str(document.get("imagePath") or ""))
    for i, shape in enumerate(document["shapes"]):
        if not isinstance(shape, dict):
            raise FormatError(file, f"shapes[{i}]", f"{shape!r} is not an object", "mend or delete the entry")
        if shape.get("shape_type", "point") != "point":
            continue
        label, where = str(shape.get("label", "")).strip(), f"shapes[{i}]"
        if not label:
            raise FormatError(file, where, "a point without a label", "name the landmark")
        try:
            ((x, y),) = shape["points"]
            point = float(x), float(y)
        except (KeyError, TypeError, ValueError, OverflowError):
            raise FormatError(file, where, f"{shape.get('points')!r} is not one point", "write [[x, y]]") from None
        points[label] = point if label not in points else (np.nan, np.nan)
        if not np.isfinite(points[label]).all():
            why = "is NaN" if not np.isfinite(point).all() else "is marked twice"
            problems.append({"image": image, "what": f"{label} {why}: taken as missing", "where": f"{file}: {where}"})
    return image, text.sides(document, "imageHeight", "imageWidth"), points


def _image_name(name):
    """The path of an image as the annotator's machine had it: its last part where it leads out of the folder."""
    path = PureWindowsPath(name)  # takes both kinds of slash
    return path.name if path.anchor or ".." in path.parts or not name else path.as_posix()


def _natural(label):
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in re.split(r"(\d+)", label) if p]


def write(folder, annotations: list[Annotation]) -> None:
    """Writes one file an annotation, its landmarks labelled l1, l2, ...

    A file has the name of its image; a further annotation of that name has _2, _3, ... after it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written: set[str] = set()
    for a in annotations:
        stem = Path(a.image).stem
        file = next(name for n in itertools.count(1) if (name := stem if n == 1 else f"{stem}_{n}") not in written)
        written.add(file)
        shapes: list[dict] = [
            {
                "label": f"l{k + 1}",
                "points": [a.points[k].tolist()],
                "group_id": None,
                "shape_type": "point",
                "flags": {},
            }
            for k in np.flatnonzero(a.visible)
        ]
        document: dict = {"version": "5.0.1", "flags": {}, "shapes": shapes, "imagePath": a.image, "imageData": None}
        (folder / f"{file}.json").write_text(json.dumps(document, indent=1))
