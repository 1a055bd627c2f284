"""Boxes of objects: reads and writes CSV (one row per box) and COCO JSON; reads VOC's and dlib's XML, LabelMe and YOLO.

A `BoxAnnotation` holds continuous pixels, y down, from the corner of the top-left pixel. COCO, LabelMe and dlib use the
same coordinates. CSV and VOC name the first and the last pixel inside a box; CSV counts from 0, VOC from 1. YOLO gives
fractions of the image's width and height, which become pixels once the image's size is known.
"""

import collections
import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxmarks import atomic
from jaxmarks.data.formats import coco, imglab, labelme, table, yolo
from jaxmarks.data.formats import text as texts
from jaxmarks.data.photographs import files_in
from jaxmarks.data.samples import FormatError, problem

COLUMNS = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax", "group")
CORNERS = COLUMNS[4:8]

# Offsets that make corners continuous, added to (xmin, ymin) and to (xmax, ymax). The other formats need none.
CSV_OFFSETS, VOC_OFFSETS = (0, 1), (-1, 0)
KNOWN = (
    ".csv, .tsv, .txt (tables), .json (COCO or LabelMe), .xml (VOC or dlib), a folder of VOC .xml, of LabelMe .json or"
    " of YOLO .txt files"
)

# The class of boxes in a CSV without a class column, and of dlib's boxes without a label.
DEFAULT_CLASS = "object"

_SYNONYMS = {"filename": ("image",), "group": table.SYNONYMS["group"]}
_CLASS_SYNONYMS = ("label", "name", "class_name", "label_name", "category", "category_name")


@dataclasses.dataclass(frozen=True)
class BoxAnnotation:
    """The objects of one image.

    `boxes` is (M, 4) float64, (x0, y0, x1, y1) with x0 < x1 and y0 < y1 in pixels of that image; a box may extend
    beyond it. `classes` are the M class names, `size` is the image's (height, width) if the file gives it. `where` is
    the image's place in the file ("boxes.csv: line 14") and `places` are those of the boxes, if known; both are for
    messages. `upright` means that the boxes refer to the image after its EXIF rotation, `relative` that they are
    fractions of its width and height.
    """

    image: str
    boxes: np.ndarray
    classes: tuple[str, ...]
    group: str = ""
    where: str = ""
    size: tuple[int, int] | None = None
    places: tuple[str, ...] = ()
    upright: bool = False
    relative: bool = False


@dataclasses.dataclass
class _Image:
    """An image in its file's own coordinates; `objects` holds ([xmin, ymin, xmax, ymax], class, place) per box.

    `offsets` make the corners continuous, as `CSV_OFFSETS` do; `upright` and `relative` are as in `BoxAnnotation`.
    """

    where: str
    size: tuple[int, int] | None
    group: str
    offsets: tuple[int, int] = (0, 0)
    upright: bool = False
    relative: bool = False
    objects: list[tuple[list[float], str, str]] = dataclasses.field(default_factory=list)


def read(path, problems: list[dict] | None = None) -> list[BoxAnnotation]:
    """Reads a file or folder of boxes; the extension and content determine the format.

    - CSV has the columns filename (or image), xmin, ymin, xmax, ymax, in any order, and optionally class (or one of
      `_CLASS_SYNONYMS`), width, height and group. Without a class column all boxes are of the class `DEFAULT_CLASS`. A
      row with neither class nor corners is an image without objects.
    - COCO is one JSON file.
    - dlib's XML is one file with the root <dataset> (`formats.imglab`); boxes without a label are of the class
      `DEFAULT_CLASS`.
    - VOC is one XML file, or a folder of them with its subfolders. An image name that occurs in several subfolders is
      prefixed with the subfolder.
    - LabelMe is one JSON file, or a folder of them as for VOC. Objects are the boxes around shapes with an area
      (`labelme.AREAS`).
    - YOLO is a folder of .txt files, named like the images (`formats.yolo`), without VOC or LabelMe files in it.

    Args:
      path: the file or the folder.
      problems: a list to which recoverable problems are appended (`samples.problem`): reversed corners (swapped); a box
        that has no area or a NaN, is a crowd or is marked `ignore` in dlib's XML (left out); a box given twice (kept
        once); columns of a CSV that may hold the classes; a second group or size of an image (the first holds); an
        image that occurs twice in COCO, VOC, dlib's XML, LabelMe or YOLO (boxes joined); a LabelMe shape without an
        area. With None the first problem raises.

    Returns:
      One annotation for each image that the file names, in the file's order.

    Raises:
      FormatError: a file cannot be read; the message names the file, the place and the value.
    """
    path, found_problems = Path(path), [] if problems is None else problems
    if not path.exists():
        raise FormatError(path, "", "no such file", "give the path of a file of boxes")
    suffix = path.suffix.lower()
    if path.is_dir():
        images = _read_folder(path, found_problems)
    elif suffix == ".xml":
        images = _read_xml(path, found_problems)
    elif suffix in (".csv", ".tsv", ".txt"):
        images = _read_csv(path, found_problems)
    elif suffix == ".json":
        images = _read_json(path, found_problems)
    else:
        raise FormatError(path, "", f"unknown format {suffix or '(no ending)'!r}", f"the known formats are {KNOWN}")
    if not images:
        raise FormatError(path, "", "the file names no image", "give a file of boxes")
    annotations = [_annotation(name, image, found_problems) for name, image in images.items()]
    if problems is None and found_problems:
        first = found_problems[0]
        raise FormatError(first["where"], "", f"{first['image']}: {first['what']}", "correct it")
    return annotations


def _annotation(name, image, problems):
    """Converts an image's boxes to continuous coordinates; reports invalid boxes and leaves them out."""
    low_offset, high_offset = image.offsets
    boxes: dict[tuple, str] = {}
    for corners, label, where in image.objects:
        report = lambda what, where=where: problems.append(problem(name, what, where))
        if any(map(math.isnan, corners)):
            report(f"a box with a corner that is NaN or missing, {_shown(corners)}: left out")
            continue
        swapped = list(corners)
        for low, high in ((0, 2), (1, 3)):
            # Compared as continuous coordinates: in CSV and VOC equal corners are a box of one pixel, not reversed.
            if corners[high] + high_offset < corners[low] + low_offset:
                swapped[low], swapped[high] = corners[high], corners[low]
        if swapped != corners:
            report(f"reversed corners, {_shown(corners)}: swapped")
        box = (swapped[0] + low_offset, swapped[1] + low_offset, swapped[2] + high_offset, swapped[3] + high_offset)
        if any(map(math.isinf, box)):
            raise FormatError(where, "", f"{_shown(corners)} is not finite", "write corners in pixels")
        if box[0] == box[2] or box[1] == box[3]:
            report(f"a box without area, {_shown(corners)}: left out")
        elif (*box, label) in boxes:
            report(f"the box {_shown(corners)} is given twice, first in {boxes[*box, label]}: kept once")
        else:
            boxes[*box, label] = where
    return BoxAnnotation(
        image=name,
        boxes=np.array([key[:4] for key in boxes], np.float64).reshape(-1, 4),
        classes=tuple(key[4] for key in boxes),
        group=image.group,
        where=image.where,
        size=image.size,
        places=tuple(boxes.values()),
        upright=image.upright,
        relative=image.relative,
    )


def _shown(corners):
    return "(" + ", ".join(f"{v:.10g}" for v in corners) + ")"


def _entry(images, name, where, problems, *, size=None, group="", once=True, **coordinates):
    """Returns an image's entry, created if new; reports a group or size that differs from the entry's.

    Unless `once` is False, an image that already has an entry is reported, too.
    """
    if once and name in images:
        what = f"the image occurs twice, first in {images[name].where}: its boxes are joined"
        problems.append(problem(name, what, where))
    entry = images.setdefault(name, _Image(where, size, group, **coordinates))
    for key, value in (("group", group), ("size", size)):
        entry_value = getattr(entry, key)
        if value and entry_value and value != entry_value:
            what = f"{key} {value}, but {entry_value} in {entry.where}: the latter is used"
            problems.append(problem(name, what, where))
        setattr(entry, key, entry_value or value)
    return entry


def _read_csv(path, problems):
    (line, names), rows, decimal_comma = texts.csv_rows(path, texts.csv_cells(path, ",".join(COLUMNS)), _SYNONYMS)
    for name in ("filename", *CORNERS):
        if name not in names:
            what = f"no column {name!r} in {names}"
            raise FormatError(path, f"line {line}", what, f"the expected header is {','.join(COLUMNS)}")
    class_column = _class_column(path, line, names, rows, problems)
    images: dict[str, _Image] = {}
    for line, cells in rows:
        where = f"{path}: line {line}"
        row = dict(zip(names, cells, strict=True))
        if not row["filename"]:
            raise FormatError(where, "", "no image name", "write the photograph's file name")
        number = lambda name, row=row, where=where: _number(where, row.get(name, ""), decimal_comma=decimal_comma)
        size = _size(where, number("width"), number("height"))
        group = "" if row.get("group", "").lower() in texts.MISSING else row["group"]
        entry = _entry(
            images, row["filename"], where, problems, size=size, group=group, offsets=CSV_OFFSETS, once=False
        )
        corners, label = [number(name) for name in CORNERS], row.get(class_column, DEFAULT_CLASS)
        if row.get(class_column, "").lower() in texts.MISSING and all(map(math.isnan, corners)):
            continue
        if not label:
            raise FormatError(where, "", "a box without a class", "write the name of its class")
        entry.objects.append((corners, label, where))
    corners_of = [corners for image in images.values() for corners, *_ in image.objects]
    texts.report_fractions(corners_of, next(iter(images), ""), path, problems)
    return images


def _class_column(path, line, names, rows, problems) -> str:
    """Returns the name of the column with the classes, "class" if there is none; reports others that may hold them."""
    found = [name for name in ("class", *_CLASS_SYNONYMS) if name in names]
    if found[1:] and found[0] != "class":
        what = f"the classes may be in column {found[0]!r} or {found[1]!r}"
        raise FormatError(path, f"line {line}", what, "call the one that has them class")
    if found:
        return found[0]
    columns = dict(zip(names, zip(*(cells for _, cells in rows), strict=True), strict=False))
    texts_of = {name: {cell for cell in cells if _is_text(cell)} for name, cells in columns.items()}
    varied = [name for name, cells in texts_of.items() if len(cells) > 1 and name not in COLUMNS]
    if varied:
        what = f"no column class: all boxes are of the class {DEFAULT_CLASS!r}"
        what += f"; if column {' or '.join(map(repr, varied))} names their classes, call it class"
        problems.append(problem(columns["filename"][0], what, f"{path}: line {line}"))
    return "class"


def _is_text(cell: str) -> bool:
    """Whether a cell is neither missing nor a number."""
    try:
        texts.number(cell.replace(",", "."))
    except ValueError:
        return cell.lower() not in texts.MISSING
    return False


def _number(where, cell, *, decimal_comma=False):
    """Returns the number in a cell; NaN if it is missing."""
    if cell.lower() in texts.MISSING:
        return math.nan
    try:
        return texts.number(cell.replace(",", ".") if decimal_comma else cell)
    except ValueError:
        raise FormatError(where, "", f"{cell!r} is not a number", "write pixels") from None


def _size(where, width, height):
    """Returns (height, width) in pixels, or None if neither is given; some tools write 0 for unknown."""
    if all(math.isnan(side) or side == 0 for side in (width, height)):
        return None
    if not all(side >= 1 and side.is_integer() for side in (width, height)):
        raise FormatError(
            where, "", f"an image size of {width:g} x {height:g} pixels", "write whole numbers above 0, or leave it out"
        )
    return int(height), int(width)


def _read_folder(path, problems):
    """Reads the images of a folder of VOC, LabelMe or YOLO files."""
    voc_files, json_files = (files_in(path, {ending}) for ending in (".xml", ".json"))
    txt_files = yolo.files_of(path)
    label_files = list(filter(yolo.is_label, txt_files))
    if label_files:
        json_files = [file for file in json_files if file.name != "notes.json"]  # part of Label Studio's YOLO export
    counts = {"VOC .xml": len(voc_files), "LabelMe .json": len(json_files), "YOLO .txt": len(label_files)}
    if len(present := [f"{count} {kind}" for kind, count in counts.items() if count]) > 1:
        what = f"{' and '.join(present)} files in one folder: several annotations of the same images?"
        raise FormatError(path, "", what, "keep one kind")
    if voc_files:
        return _read_voc(path, {file: texts.read_xml(file) for file in voc_files}, problems)
    if json_files:
        return _read_labelme(path, json_files, problems)
    if not txt_files:
        what, advice = "no .xml, no .json and no .txt in this folder", "give a folder of VOC, LabelMe or YOLO files"
        raise FormatError(path, "", what, advice)
    return _read_yolo(path, txt_files, problems)


def _named(path, names: dict[Path, str]) -> dict[Path, str]:
    """Returns each file's image name, prefixed with the subfolder if several subfolders have it: s1/dorsal.png."""
    folders: dict[str, set] = collections.defaultdict(set)
    for file, name in names.items():
        folders[name].add(file.parent)
    shared = lambda name: len(folders[name]) > 1
    return {f: (f.parent.relative_to(path) / name).as_posix() if shared(name) else name for f, name in names.items()}


def _read_json(path, problems):
    document = texts.read_json(path)
    if isinstance(document, dict) and "shapes" in document:
        return _read_labelme(path, [path], problems)
    return _read_coco(path, document, problems)


def _read_labelme(path, files, problems):
    read = {file: labelme.areas(file, problems) for file in files}
    names, images = _named(path, {file: name for file, (name, *_) in read.items()}), dict[str, _Image]()
    for file, (_, size, objects) in read.items():
        entry = _entry(images, names[file], str(file), problems, size=size, upright=True)
        entry.objects += objects
    return images


def _read_yolo(path, files, problems):
    classes, images = functools.cache(yolo.classes), dict[str, _Image]()
    for file in files:
        name = yolo.photograph_of(file, path)
        entry = _entry(images, name, str(file), problems, upright=True, relative=True)
        entry.objects += yolo.boxes(file, classes(file.parent, path))
    return images


def _read_coco(path, document, problems):
    if not isinstance(document, dict):
        raise FormatError(
            path, "line 1", "not a COCO document", "give an object with images, annotations and categories"
        )
    categories = {i: c.get("name") for i, (_, c) in coco.by_id(path, document, "categories").items()}
    images: dict[str, _Image] = {}
    by_id, rotated = {}, list[tuple[str, str]]()
    for i, (where, image) in coco.by_id(path, document, "images").items():
        name = image.get("file_name")
        if not isinstance(name, str) or not name:
            raise FormatError(where, "", "no file_name", "write the photograph's name")
        sides = [image.get("width"), image.get("height")]
        size = _size(where, *(_json_number(where, math.nan if side is None else side) for side in sides))
        group = "" if image.get("group") is None else str(image["group"])
        by_id[i] = name, _entry(images, name, where, problems, size=size, group=group)
    for where, entry in coco.objects(path, document, "annotations"):
        name, image = _lookup(where, by_id, entry, "image_id")
        label = _lookup(where, categories, entry, "category_id")
        if not isinstance(label, str) or not label:
            raise FormatError(where, "", f"category {entry['category_id']!r} has no name", "name it under categories")
        bbox = entry.get("bbox")
        if not isinstance(bbox, list) or len(bbox) != 4:
            raise FormatError(where, "", f"bbox {bbox!r} is not a list of four numbers", "write [x, y, width, height]")
        x, y, width, height = (_json_number(where, value) for value in bbox)
        if entry.get("iscrowd"):
            problems.append(problem(name, "a crowd (iscrowd), not a single object: left out", where))
            continue
        corners, attributes = [x, y, x + width, y + height], entry.get("attributes")
        if isinstance(attributes, dict) and not entry.get("segmentation"):  # else bbox encloses that
            corners = _upright(corners, attributes.get("rotation"), rotated, (name, where))
        image.objects.append((corners, label, where))
    _report_rotated(rotated, problems)
    return images


def _upright(corners: list[float], rotation, rotated: list, place: tuple[str, str]) -> list[float]:
    """Returns the corners of the upright box around one that CVAT gives unrotated, with its rotation in degrees.

    The `place` of a rotated box is appended to `rotated`. What is no number is some other attribute called rotation.
    """
    try:
        degrees = float(rotation) % 180
    except (TypeError, ValueError):
        return corners
    if not degrees or math.isnan(degrees):
        return corners
    rotated.append(place)
    (x0, y0, x1, y1), angle = corners, math.radians(degrees)
    cosine, sine = abs(math.cos(angle)), math.sin(angle)
    half_width, half_height = (x1 - x0) / 2, (y1 - y0) / 2
    x, y = half_width * cosine + half_height * sine, half_width * sine + half_height * cosine
    return [(x0 + x1) / 2 - x, (y0 + y1) / 2 - y, (x0 + x1) / 2 + x, (y0 + y1) / 2 + y]


def _report_rotated(rotated: list[tuple[str, str]], problems: list[dict]):
    if rotated:
        what = f"{len(rotated)} boxes, one on this image among them, are rotated: the upright box around each is used"
        problems.append(problem(rotated[0][0], what, rotated[0][1]))


def _lookup(where, known, entry, key):
    value = coco.id_of(entry, key)
    if value not in known:
        raise FormatError(where, "", f"{key} {entry.get(key)!r} is not in the file", "add the entry that it refers to")
    return known[value]


def _json_number(where, value):
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    except OverflowError:
        pass
    raise FormatError(where, "", f"{value!r} is not a number", "write pixels")


def _read_xml(path, problems):
    root = texts.read_xml(path)
    return _read_dlib(path, root, problems) if root.tag == "dataset" else _read_voc(path, {path: root}, problems)


def _read_voc(path, roots, problems):
    text_of = lambda element, tag: (element.findtext(tag) or "").strip()
    for file, root in roots.items():
        if root.tag != "annotation":
            raise FormatError(file, "", f"the root is <{root.tag}>, not <annotation>", "give a VOC file")
    names = _named(path, {file: text_of(root, "filename") or file.stem for file, root in roots.items()})
    images, rotated = dict[str, _Image](), list[tuple[str, str]]()
    for file, root in roots.items():
        name = names[file]
        size = _size(file, *(_number(file, text_of(root, f"size/{side}")) for side in ("width", "height")))
        entry = _entry(images, name, str(file), problems, size=size, offsets=VOC_OFFSETS)
        for i, element in enumerate(root.findall("object")):
            where = f"{file}: object {i + 1}"
            if not text_of(element, "name"):
                raise FormatError(where, "", "a box without a class", "write its <name>")
            absent = next((tag for tag in CORNERS if element.find(f"bndbox/{tag}") is None), None)
            if absent:
                raise FormatError(where, "", f"no <{absent}> in <bndbox>", "write xmin, ymin, xmax and ymax")
            corners = [_number(where, text_of(element, f"bndbox/{tag}")) for tag in CORNERS]
            rotation = element.findtext("attributes/attribute[name='rotation']/value")
            corners = _upright(corners, rotation, rotated, (name, where))
            entry.objects.append((corners, text_of(element, "name"), where))
    _report_rotated(rotated, problems)
    return images


def _read_dlib(path, root, problems):
    images: dict[str, _Image] = {}
    for photograph in imglab.photographs(path, root, problems):
        entry = _entry(images, photograph.name, photograph.where, problems, size=photograph.size)
        entry.objects += [
            (imglab.corners(where, box), imglab.label(box) or DEFAULT_CLASS, where) for where, box in photograph.boxes
        ]
    return images


def write(
    path,
    annotations: Sequence[BoxAnnotation],
    scores: Sequence[np.ndarray] | None = None,
    *,
    classes: Sequence[str] = (),
) -> None:
    """Writes boxes in the format of the path's extension: .csv (corners to 0.001 px) or .json (COCO).

    Args:
      path: the file to write.
      annotations: one per image; images without objects are written, too.
      scores: (M,) per annotation; the boxes are then detections, with a column or key "score", which `read` ignores.
      classes: COCO's categories, numbered from 1; by default the boxes' classes, sorted.

    Raises:
      ValueError: an unknown extension; an image without a name or given twice; a class that is not in `classes`; an
        annotation that no file can hold.
    """
    path = Path(path)
    writers = {".csv": _write_csv, ".json": _write_coco}
    if path.suffix.lower() not in writers:
        raise ValueError(f"{path}: unknown format {path.suffix!r}; there are .csv and .json (COCO)")
    names: set[str] = set()
    for i, a in enumerate(annotations):
        if not a.image.strip() or a.image in names:
            raise ValueError(f"{path}: the image name {a.image!r} is empty or occurs twice")
        names.add(a.image)
        if len(a.boxes) != len(a.classes) or (scores is not None and len(scores[i]) != len(a.boxes)):
            raise ValueError(f"{path}: {a.image}: give every box one class, and, if there are scores, one score")
        if a.relative:
            raise ValueError(f"{path}: {a.image}: boxes in fractions of the image's sides; convert them to pixels")
        if not np.isfinite(a.boxes).all() or not all(label.strip() for label in a.classes):
            raise ValueError(f"{path}: {a.image}: a box has a coordinate that is not finite, or no class")
    class_names = tuple(classes) or tuple(sorted({label for a in annotations for label in a.classes}))
    if unknown := sorted({label for a in annotations for label in a.classes} - set(class_names)):
        raise ValueError(f"{path}: boxes of class {', '.join(unknown)}, but the classes are {', '.join(class_names)}")
    writers[path.suffix.lower()](path, annotations, scores, class_names)


def _write_csv(path, annotations, scores, classes):
    del classes
    rows: list[list] = [[*COLUMNS, *(["score"] if scores is not None else [])]]
    for i, a in enumerate(annotations):
        height, width = a.size or ("", "")
        for k, (x0, y0, x1, y1) in enumerate(a.boxes.tolist()):
            score = [f"{scores[i][k]:.6g}"] if scores is not None else []
            corners = map(_cell, (x0, y0, x1 - 1, y1 - 1))
            rows.append([a.image, width, height, a.classes[k], *corners, a.group, *score])
        if not len(a.boxes):
            rows.append([a.image, width, height, "", "", "", "", "", a.group, *([""] if scores is not None else [])])
    atomic.write_csv(path, rows)


def _cell(value):
    value = round(value, 3)
    return str(int(value)) if value.is_integer() else f"{value:.3f}"


def _write_coco(path, annotations, scores, classes):
    ids = {label: i for i, label in enumerate(classes, 1)}
    images, entries = [], []
    for i, a in enumerate(annotations):
        size = {"height": a.size[0], "width": a.size[1]} if a.size else {}
        images.append({"id": i + 1, "file_name": a.image} | size | ({"group": a.group} if a.group else {}))
        for k, (x0, y0, x1, y1) in enumerate(a.boxes.tolist()):
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
            score = {"score": float(scores[i][k])} if scores is not None else {}
            keys = {"id": len(entries) + 1, "image_id": i + 1, "category_id": ids[a.classes[k]]}
            entries.append(keys | box | score)
    categories = [{"id": i, "name": label} for label, i in ids.items()]
    document = {"images": images, "annotations": entries, "categories": categories}
    atomic.write(path, json.dumps(document))
