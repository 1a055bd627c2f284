"""LabelMe: one JSON file per image, with a point per landmark or an area per object; continuous pixels, y down.

The landmarks are the labels of all files in natural order (l1, l2, ..., l10); if a file lacks a label, that landmark is
missing there. An object is the box around its shape, and the label is its class.
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
from jaxmarks.data.samples import Annotation, FormatError, problem

# Shape types with an area. A shape's box is that of its points, except for a circle: its points are centre and rim.
AREAS = ("rectangle", "polygon", "circle", "mask", "rotation")


def read(path, problems: list[dict], images=None) -> list[Annotation]:
    """Reads a folder of LabelMe files, or one file. A landmark that is NaN or marked twice is missing, and is reported.

    A file gives its image's path relative to its own folder. If the image is found there and that is inside `images`
    (the folder of photographs, by default `path`), or is found in `images` at the same relative place that the file has
    in `path`, the annotation's name is the path relative to `images`.

    Raises:
      FormatError: a file that is not JSON or not LabelMe, a point that is not a pair of numbers.
    """
    path = Path(path)
    files = files_of(path)
    root = path if path.is_dir() else path.parent
    places = [file.parent.relative_to(root) for file in files]
    read = [(file, *_points(file, problems, images or root, place)) for file, place in zip(files, places, strict=True)]
    labels = sorted({label for *_, points in read for label in points}, key=text.natural)
    if not labels:
        raise FormatError(path, "", "no point shape in any file", "mark landmarks as points")
    text.report_rare_labels(
        labels, [(image or file.stem, str(file), points) for file, image, _, points in read], problems
    )
    annotations = []
    for file, image, size, points in read:
        if not points:
            problems.append(problem(image or file.stem, "no points: all landmarks are missing", str(file)))
        annotations.append(
            Annotation(
                image=image or file.stem,
                **text.points_and_visible(points, labels),
                where=str(file),
                size=size,
                upright=True,
                names=text.informative_names(labels),
            )
        )
    return annotations


def areas(file: Path, problems: list[dict]):
    """Reads the objects of one LabelMe file; shapes without an area are reported in `problems`.

    Returns:
      The image's name as given in the file, the image's (height, width) if given, and the objects, each
      ([x0, y0, x1, y1], class, place).

    Raises:
      FormatError: as `read`.
    """
    document = _document(file)
    image = _image_name(str(document.get("imagePath") or "")) or file.stem
    objects = []
    for where, label, kind, points in _shapes(file, document, AREAS, image, problems):
        if kind == "circle" and len(points) == 2:
            centre, radius = points[0], np.linalg.norm(points[1] - points[0])
            points = np.stack([centre - radius, centre + radius])
        objects.append(([*points.min(0).tolist(), *points.max(0).tolist()], label, f"{file}: {where}"))
    return image, text.image_size_of(document, "imageHeight", "imageWidth"), objects


def _points(file, problems, images, place):
    document, points = _document(file), dict[str, tuple[float, float]]()
    image = _relative_image_path(str(document.get("imagePath") or ""), file, place, images)
    for where, label, _, point in _shapes(file, document, ("point",), image, problems):
        if len(point) > 1:
            raise FormatError(file, where, f"{point.tolist()} is not a single point", "write [[x, y]]")
        points[label] = tuple(point[0].tolist()) if label not in points else (np.nan, np.nan)
        if not np.isfinite(points[label]).all():
            why = "is NaN" if not np.isfinite(point).all() else "is marked twice"
            problems.append(problem(image, f"{label} {why}: treated as missing", f"{file}: {where}"))
    return image, text.image_size_of(document, "imageHeight", "imageWidth"), points


def files_of(path: Path) -> list[Path]:
    """Returns the LabelMe files of a folder and its subfolders, or the file `path`; FormatError if there is none."""
    files = files_in(path, {".json"}) if path.is_dir() else [path]
    if not files:
        raise FormatError(path, "", "no .json file in this folder", "give a folder of LabelMe files")
    return files


def _document(file):
    document = text.read_json(file)
    if isinstance(document, dict) and "shapes" not in document and "annotations" in document:
        raise FormatError(file, "", "a COCO file, not LabelMe", "give the file itself, not its folder")
    if not isinstance(document, dict) or not isinstance(document.get("shapes"), list):
        raise FormatError(file, "line 1", "no list 'shapes'", "give LabelMe files")
    return document


def _shapes(file, document, kinds, image, problems):
    """Yields (place, label, kind, points (N, 2)) for each shape of these `kinds`; reports the others in `problems`."""
    other_kinds: collections.Counter = collections.Counter()
    for i, shape in enumerate(document["shapes"]):
        where = f"shapes[{i}]"
        if not isinstance(shape, dict):
            raise FormatError(file, where, f"{shape!r} is not an object", "correct or delete the entry")
        kind, label = str(shape.get("shape_type", "point")), str(shape.get("label", "")).strip()
        if kind not in kinds:
            other_kinds[kind] += 1
            continue
        if not label:
            raise FormatError(file, where, f"a {kind} without a label", "name what it shows")
        try:
            points = np.array([(float(x), float(y)) for x, y in shape["points"]])
        except (KeyError, TypeError, ValueError, OverflowError):
            points = np.zeros(0)
        if not len(points):
            raise FormatError(file, where, f"{shape.get('points')!r} is not a list of points", "write [[x, y], ...]")
        yield where, label, kind, points
    if other_kinds:
        listing = ", ".join(f"{count} of type {kind}" for kind, count in sorted(other_kinds.items()))
        wanted = "points" if "point" in kinds else "areas"
        problems.append(problem(image, f"shapes that are not {wanted} ({listing}): not used", str(file)))


def _relative_image_path(name, file, place, images) -> str:
    """Returns the image's path from `images` on if it is there, beside the file or at `place`; else `_image_name`."""
    folder, path = Path(os.path.abspath(images)), PureWindowsPath(name)  # accepts \ and /
    beside = Path(os.path.abspath(file.parent / path.as_posix()))
    for candidate in (beside, folder / place / _image_name(name)):
        if name and not path.anchor and candidate.is_relative_to(folder) and os.path.isfile(candidate):
            return candidate.relative_to(folder).as_posix()
    return _image_name(name)


def _image_name(name):
    """Returns the image path given by the annotator's machine; only its last part if it leads out of the folder."""
    path = PureWindowsPath(name)  # accepts \ and /
    return path.name if path.anchor or ".." in path.parts or not name else path.as_posix()


def write(folder, annotations: list[Annotation]) -> None:
    """Writes one file per annotation, with the landmarks labelled by their names, or l1, l2, ...

    A file is named after its image; further annotations of the same name get _2, _3, ... appended. LabelMe displays a
    photograph after its EXIF rotation. For a quarter turn, which exchanges the sides, `read` recognises coordinates of
    the stored pixels by the annotation's size. For any other turn or mirror, pass coordinates of the displayed image.

    Raises:
      ValueError: a landmark is visible in no image, which LabelMe cannot represent.
    """
    marked = np.any([a.visible for a in annotations], axis=0) if annotations else np.ones(0, bool)
    if not marked.all():
        raise ValueError(
            f"{folder}: landmark {np.argmin(marked) + 1} is visible in no image, so no file would name it; write a CSV"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    used: set[str] = set()
    for a in annotations:
        stem = Path(a.image).stem
        file_name = next(name for n in itertools.count(1) if (name := stem if n == 1 else f"{stem}_{n}") not in used)
        used.add(file_name)
        shapes: list[dict] = [
            {
                "label": a.names[k] if a.names else f"l{k + 1}",
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
        atomic.write(folder / f"{file_name}.json", json.dumps(document, indent=1))
