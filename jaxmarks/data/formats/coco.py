"""COCO keypoints: pixels, y down; visibility 0 is a missing landmark."""

import json
import math
import re

import numpy as np

from jaxmarks import atomic
from jaxmarks.data.formats import text
from jaxmarks.data.samples import Annotation, FormatError, problem


def read(path, document: dict, problems: list[dict]) -> list[Annotation]:
    """Reads one specimen per image; `document` is the parsed file.

    An image without visible keypoints has all landmarks missing and is reported in `problems`. The keys "group" and
    "mm_per_px" of an image are read as well.

    Raises:
      FormatError: not a COCO document, keypoints of the wrong length, or several specimens on one image; the message
        names the entry.
    """
    images, entries = by_id(path, document, "images"), objects(path, document, "annotations")
    categories = [c for _, c in objects(path, document, "categories")] if "categories" in document else []
    names_by_category = {
        str(id_of(c)): c["keypoints"] for c in categories if isinstance(c.get("keypoints"), list) and c["keypoints"]
    }
    used = {str(id_of(entry, "category_id")) for _, entry in entries if entry.get("keypoints") is not None}
    names_by_category = {i: n for i, n in names_by_category.items() if i in used} or names_by_category
    names = next(iter(names_by_category.values()), None)
    for where, image in images.values():
        if not isinstance(image.get("file_name"), str):
            raise FormatError(where, "", "no file_name", "write the photograph's name")
    by_image: dict = {}
    for where, entry in entries:
        keypoints = entry.get("keypoints")
        if keypoints is None:
            continue
        image_id = id_of(entry, "image_id")
        if not isinstance(keypoints, list) or image_id is None:
            raise FormatError(where, "", "keypoints is not a list, or image_id is missing", "write both")
        if len(keypoints) % 3 or (names and len(keypoints) != 3 * len(names)):
            expected = f"3 x {len(names)} numbers" if names else "a multiple of 3 numbers"
            raise FormatError(
                where, "", f"{len(keypoints)} numbers in keypoints", f"write x, y, visibility of each: {expected}"
            )
        entry_names = names_by_category.get(str(id_of(entry, "category_id")), names)
        if entry_names != names:
            what = f"keypoints {entry_names}, but {names} in another category"
            raise FormatError(where, "", what, "keep one kind of specimen in a file")
        try:
            triples = np.array(keypoints, float).reshape(-1, 3)
        except (TypeError, ValueError, OverflowError):
            raise FormatError(where, "", "keypoints are not all numbers", "write x, y, visibility") from None
        if (triples[:, 2] > 0).any():
            if image_id in by_image:
                what = f"a second specimen on image {image_id}"
                raise FormatError(where, "", what, "crop each specimen to its own image, or keep one")
            by_image[image_id] = (where, triples)
    count = len(names) if names else max((len(t) for _, t in by_image.values()), default=0)
    if not count:
        raise FormatError(path, "annotations", "no keypoints", "give a file of keypoints")
    unknown_ids = set(by_image) - set(images)
    if unknown_ids:
        unknown_id = next(iter(unknown_ids))
        raise FormatError(
            by_image[unknown_id][0], "", f"image_id {unknown_id!r} is not among the images", "add the image"
        )
    annotations = []
    for image_id, (where, image) in images.items():
        scale = math.nan if image.get("mm_per_px") is None else image["mm_per_px"]
        if not isinstance(scale, int | float) or scale <= 0 or math.isinf(scale):
            raise FormatError(
                where, "", f"mm_per_px {scale!r} is not a length", "write the mm per pixel, or leave it out"
            )
        entry_place, triples = by_image.get(image_id, (None, np.zeros((count, 3))))
        if entry_place is None:
            problems.append(problem(image["file_name"], "no visible keypoints: all landmarks are missing", where))
        finite = np.isfinite(triples).all(1)
        for k in np.flatnonzero(~finite & (triples[:, 2] > 0)):
            what = f"landmark {k + 1} is NaN or infinite: treated as missing"
            problems.append(problem(image["file_name"], what, entry_place))
        visible = finite & (triples[:, 2] > 0)
        annotations.append(
            Annotation(
                image=image["file_name"],
                points=np.where(visible[:, None], triples[:, :2], 0.0),
                visible=visible,
                mm_per_px=float(scale),
                id=str(image_id),
                group="" if image.get("group") is None else str(image["group"]),
                where=where,
                size=text.image_size_of(image, "height", "width"),
                names=text.informative_names(names or ()),
            )
        )
    return annotations


def write(path, annotations: list[Annotation]) -> None:
    """Writes one category whose keypoints have the landmarks' names, or numbers from 1.

    A specimen's bbox encloses its visible landmarks. Images keep their IDs if all have one and these are distinct whole
    numbers; otherwise they are numbered from 1.
    """
    images, entries = [], []
    ids = {a.id for a in annotations if re.fullmatch("0|[1-9][0-9]{0,15}", a.id)}
    keep_ids = len(ids) == len(annotations)
    for number, a in enumerate(annotations, 1):
        i = int(a.id) if keep_ids else number
        size = {"height": a.size[0], "width": a.size[1]} if a.size else {}
        image = {"id": i, "file_name": a.image} | size | ({"group": a.group} if a.group else {})
        images.append(image | ({"mm_per_px": a.mm_per_px} if np.isfinite(a.mm_per_px) else {}))
        keypoints = np.column_stack([np.where(a.visible[:, None], a.points, 0), 2 * a.visible]).reshape(-1).tolist()
        visible_points = a.points[a.visible] if a.visible.any() else np.zeros((1, 2))
        corner, extent = visible_points.min(0), np.ptp(visible_points, axis=0)
        entries.append(
            {
                "id": i,
                "image_id": i,
                "category_id": 1,
                "keypoints": keypoints,
                "num_keypoints": int(a.visible.sum()),
                "bbox": [*corner.tolist(), *extent.tolist()],
                "area": float(extent.prod()),
                "iscrowd": 0,
            }
        )
    count = max((len(a.points) for a in annotations), default=0)
    names = next((list(a.names) for a in annotations if a.names), [str(k + 1) for k in range(count)])
    categories = [{"id": 1, "name": "specimen", "keypoints": names, "skeleton": []}]
    atomic.write(path, json.dumps({"images": images, "annotations": entries, "categories": categories}))


def objects(path, document, key) -> list[tuple[str, dict]]:
    """Returns (place, object) for each entry of the list under `key`."""
    entries = document.get(key)
    if not isinstance(entries, list):
        raise FormatError(path, f"key {key!r}", "no such list", "a COCO file has images and annotations")
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise FormatError(path, f"{key}[{i}]", f"{entry!r} is not an object", "correct or delete the entry")
    return [(f"{path}: {key}[{i}]", entry) for i, entry in enumerate(entries)]


def by_id(path, document, key) -> dict[int | str, tuple[str, dict]]:
    """Returns the `objects` under `key` by their id."""
    entries: dict = {}
    for where, entry in objects(path, document, key):
        i = id_of(entry)
        if i is None:
            raise FormatError(where, "", "no id", "write a number")
        if i in entries:
            raise FormatError(
                where, "", f"id {i!r} is given twice, first in {entries[i][0]}", "give every entry its own id"
            )
        entries[i] = where, entry
    return entries


def id_of(entry: dict, key: str = "id") -> int | str | None:
    """Returns an entry's id, which pandas may write as 7.0; None if it is neither a whole number nor text."""
    value = entry.get(key)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | str) else None
