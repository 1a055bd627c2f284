"""LabelMe: one JSON an image, with a point shape for each landmark; pixels, y down.

The landmarks are the labels of all files in natural order (l1, l2, ..., l10); a label that a file lacks is missing there.
"""

import collections
import itertools
import json
import os
from pathlib import Path, PureWindowsPath

import numpy as np

from jaxmarks import atomic
from jaxmarks.data.formats import text
from jaxmarks.data.photographs import files_in
from jaxmarks.data.samples import Annotation, FormatError


def read(path, problems: list[dict], images=None) -> list[Annotation]:
    """Reads a folder of LabelMe files, or one file. A landmark that is NaN or marked twice is missing, and a problem.

    A file names its image from its own folder on. Where that is in `images`, the folder of photographs, or a subfolder of
    `images` has the place that the file has in `path`, the annotation has the image's name from `images` on.

    Raises:
      FormatError: a file that is no JSON or no LabelMe, a point that is no pair of numbers.
    """
    path = Path(path)
    files = files_in(path, {".json"}) if path.is_dir() else [path]
    if not files:
        raise FormatError(path, "", "no .json in this folder", "name a folder of LabelMe files")
    root = path if path.is_dir() else path.parent
    places = [file.parent.relative_to(root) for file in files]
    read = [(file, *_points(file, problems, images or root, place)) for file, place in zip(files, places, strict=True)]
    labels = sorted({label for *_, points in read for label in points}, key=text.natural)
    if not labels:
        raise FormatError(path, "", "no point shape in any file", "mark landmarks as points")
    for label in labels:
        having = [(image, file) for file, image, _, points in read if label in points]
        if 10 * len(having) < len(read):
            what = f"landmark {label} is in {len(having)} of {len(read)} files: a slip in its name?"
            problems.append({"image": having[0][0], "what": what, "where": str(having[0][1])})
    found = []
    for file, image, size, points in read:
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


def _points(file, problems, images, place):
    document = text.read_json(file)
    if not isinstance(document, dict) or not isinstance(document.get("shapes"), list):
        raise FormatError(file, "line 1", "no list 'shapes'", "name LabelMe files")
    points: dict[str, tuple[float, float]] = {}
    image, others = _found(str(document.get("imagePath") or ""), file, place, images), collections.Counter()
    for i, shape in enumerate(document["shapes"]):
        if not isinstance(shape, dict):
            raise FormatError(file, f"shapes[{i}]", f"{shape!r} is not an object", "mend or delete the entry")
        if shape.get("shape_type", "point") != "point":
            others[str(shape["shape_type"])] += 1
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
    if others:
        kinds = ", ".join(f"{count} of type {kind}" for kind, count in sorted(others.items()))
        problems.append({"image": image, "what": f"shapes that are no points ({kinds}): not used", "where": str(file)})
    return image, text.sides(document, "imageHeight", "imageWidth"), points


def _found(name, file, place, images) -> str:
    """The name of a file's image, from the folder `images` on where it lies beside the file or at its `place` in there."""
    folder, path = Path(os.path.abspath(images)), PureWindowsPath(name)  # takes both kinds of slash
    beside = Path(os.path.abspath(file.parent / path.as_posix()))
    for candidate in (beside, folder / place / _image_name(name)):
        if name and not path.anchor and candidate.is_relative_to(folder) and os.path.isfile(candidate):
            return candidate.relative_to(folder).as_posix()
    return _image_name(name)


def _image_name(name):
    """The path of an image as the annotator's machine had it: its last part where it leads out of the folder."""
    path = PureWindowsPath(name)  # takes both kinds of slash
    return path.name if path.anchor or ".." in path.parts or not name else path.as_posix()


def write(folder, annotations: list[Annotation]) -> None:
    """Writes one file an annotation, its landmarks labelled l1, l2, ...

    A file has the name of its image; a further annotation of that name has _2, _3, ... after it. LabelMe shows a
    photograph as its EXIF orientation turns it. `read` tells by the size of an annotation that its pixels are the stored
    ones where a quarter turn exchanges the sides; coordinates of another turn or mirror should be those of what is shown.

    Raises:
      ValueError: a landmark that no image shows, which LabelMe cannot hold.
    """
    shown = np.any([a.visible for a in annotations], axis=0) if annotations else np.ones(0, bool)
    if not shown.all():
        raise ValueError(
            f"{folder}: no image shows landmark {np.argmin(shown) + 1}, so no file could name it; write a CSV"
        )
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
        if a.size:
            document["imageHeight"], document["imageWidth"] = a.size
        atomic.write(folder / f"{file}.json", json.dumps(document, indent=1))
