"""dlib's XML, as written by imglab and ml-morph: a box per object, whose parts are landmarks; pixels, y down.

As in all formats, the parts' coordinates are continuous and taken unchanged. A box covers `width` x `height` pixels
from (`left`, `top`) on.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple
from xml.etree.ElementTree import Element

from jaxmarks.data.formats import text
from jaxmarks.data.samples import Annotation, FormatError, problem


class Photograph(NamedTuple):
    """One <image>: its name, its (height, width) if given, its boxes as (place, element), and its own place."""

    name: str
    size: tuple[int, int] | None
    boxes: list[tuple[str, Element]]
    where: str


def photographs(path, root: Element, problems: list[dict]) -> Iterator[Photograph]:
    """Yields the photographs of a file; boxes marked `ignore` are left out and reported in `problems`.

    Raises:
      FormatError: the root is not <dataset>, or an image has no name.
    """
    if root.tag != "dataset":
        raise FormatError(path, "", f"the root is <{root.tag}>, not <dataset>", "give an imglab file")
    for i, image in enumerate(root.iterfind("images/image"), 1):
        where = f"{path}: image {i}"
        name = image.get("file", "").strip()
        if not name:
            raise FormatError(where, "", "no file name", "write the photograph's name: <image file='...'>")
        sides = [image.get(side, "") for side in ("height", "width")]
        size = (int(sides[0]), int(sides[1])) if all(side.isdecimal() and int(side) for side in sides) else None
        boxes = []
        for k, box in enumerate(image.iterfind("box"), 1):
            if box.get("ignore", "0").strip() not in ("0", ""):
                problems.append(problem(name, f"box {k} is marked as ignored: left out", where))
                continue
            boxes.append((f"{where}, box {k}", box))
        yield Photograph(name, size, boxes, where)


def read(path, problems: list[dict]) -> list[Annotation]:
    """Reads the parts of one box per image. An image without parts has all landmarks missing, and is reported.

    The landmarks are the names of all parts in natural order; if these just count from 0 or 1, `names` is empty.

    Raises:
      FormatError: not a file of imglab; a part without a name, given twice, or with a coordinate that is not a number;
        two boxes with parts on one image; the message names the place.
    """
    specimens = []
    for image in photographs(path, text.read_xml(path), problems):
        with_parts = [(at, parts) for at, box in image.boxes if (parts := _parts(at, box, image.name, problems))]
        if len(with_parts) > 1:
            what = f"a second box with parts on {image.name}"
            raise FormatError(with_parts[1][0], "", what, "crop each specimen to its own image, or keep one")
        specimens.append((image, with_parts[0][1] if with_parts else {}))
        if not with_parts:
            problems.append(problem(image.name, "no parts: all landmarks are missing", image.where))
    labels = sorted({label for _, parts in specimens for label in parts}, key=text.natural)
    if not labels:
        raise FormatError(path, "", "no <part> in any box", "mark landmarks as parts of a box")
    text.report_rare_labels(labels, [(image.name, image.where, parts) for image, parts in specimens], problems)
    names = text.informative_names(labels)
    return [
        Annotation(
            image=image.name, **text.points_and_visible(parts, labels), where=image.where, size=image.size, names=names
        )
        for image, parts in specimens
    ]


def _parts(where, box, image, problems) -> dict[str, tuple[float, float]]:
    parts: dict[str, tuple[float, float]] = {}
    for part in box.iterfind("part"):
        label = part.get("name", "").strip()
        if not label:
            raise FormatError(where, "", "a part without a name", "name the landmark")
        if label in parts:
            raise FormatError(where, "", f"part {label} is given twice", "delete one")
        parts[label] = (_number(where, part, "x"), _number(where, part, "y"))
        if not all(map(math.isfinite, parts[label])):
            what = f"part {label} at {parts[label]}: treated as missing"
            problems.append(problem(image, what, where))
    return parts


def corners(where: str, box: Element) -> list[float]:
    """Returns x0, y0, x1, y1 of a box.

    Raises:
      FormatError: `left`, `top`, `width` or `height` is missing or not a number.
    """
    left, top, width, height = (_number(where, box, key) for key in ("left", "top", "width", "height"))
    return [left, top, left + width, top + height]


def label(box: Element) -> str:
    """Returns the class of a box; empty if it has none."""
    return (box.findtext("label") or "").strip()


def _number(where, element, key) -> float:
    cell = element.get(key, "").strip()
    try:
        return text.number(cell)
    except ValueError:
        raise FormatError(where, "", f"{key}={cell!r} of <{element.tag}> is not a number", "write pixels") from None
