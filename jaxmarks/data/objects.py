"""Reads photographs with boxes of objects as Samples: whole in the network's frame, or in tiles at a fixed scale."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jaxmarks.data.ahead import ahead
from jaxmarks.data.folder import group_of
from jaxmarks.data.formats.boxes import BoxAnnotation
from jaxmarks.data.formats.boxes import read as read_boxes
from jaxmarks.data.photographs import (
    EXIF_TURNS,
    content,
    decode,
    exif_rotation_problems,
    finder,
    image_size,
    left_out_problems,
    listing,
    name_of,
    not_decoded,
    readable,
    shrunk,
    subsample,
    turn_of,
    unsure,
)
from jaxmarks.data.samples import FormatError, Samples, problem, stack_padded
from jaxmarks.ops.frames import placement, tiles

# Sides of objects in pixels of the frame: smaller ones than the first are hardly found; the chosen and the advised scale
# leave the smallest of several classes the second; the advised scale brings objects to the third.
SMALL, FAIR, GOOD = 6, 10, 20
# Photographs keep their scale if it is within the first factor of the one that suits their objects; none is enlarged by
# more than the second.
SCALE_TOLERANCE, MAX_SCALE = math.sqrt(2), 4.0
# The largest share of a tile's side that is chosen as the overlap: a photograph is then cut into about six times as many
# tiles as with a fifth. Sides of advised frames are multiples of the step, since YOLO's grid has that stride.
MAX_OVERLAP, SIZE_STEP = 2 / 3, 32
# The typical object may exceed the overlap by this factor: it is still whole in most places, and the overlap was chosen
# by the objects of some photographs.
OVERLAP_TOLERANCE = 1.1


def load(images, boxes, *, size, fit="tile", scale=1.0, overlap=32, group_by=""):
    """Reads photographs and their boxes.

    Args:
      images: the folder of photographs.
      boxes: a file that `formats.boxes.read` reads.
      size: (H, W) of the network's frame.
      fit: `tile` scales every photograph by `scale` and cuts what is larger than the frame into tiles; `pad` and
        `stretch` fit the whole photograph into one frame.
      scale: pixels of the frame per pixel of the photograph, for tiles.
      overlap: pixels of the frame that neighbouring tiles share at least.
      group_by: regular expression whose first group captures the scene in a file's name; overrides the file's groups.

    Returns:
      Samples (the tiles of a photograph carry its name and group), the photographs' annotations, the classes' names,
      and the problems.

    Raises:
      FormatError: the folder is missing, the file is damaged, or no photograph at all can be used.
    """
    images = Path(images)
    problems: list[dict] = []
    if not images.is_dir():
        raise FormatError(images, "", "no such folder", "give the folder of photographs with --config.data.images")
    pairs = by_photograph(read_boxes(boxes, problems), images, problems)
    classes = tuple(sorted({name for a, _ in pairs for name in a.classes}))

    def read_photograph(pair):
        annotation, file = pair
        try:
            photograph = decode(file)
            annotation, notes = on_photograph(annotation, file, photograph.shape[:2])
            notes += [note(annotation, what) for what in not_decoded(file)]
            return annotation, list(cut(photograph, size, fit=fit, scale=scale, overlap=overlap)), notes, content(file)
        except OSError as error:
            return str(error)

    kept, parts, unsized, contents, scenes = [], [], [], [], []
    groups: dict[str, int] = {}
    for (annotation, file), result in zip(pairs, ahead(read_photograph, pairs, most=64), strict=True):
        if isinstance(result, str):
            problems.append(note(annotation, f"{result}: left out"))
            continue
        file_annotation, (annotation, frames, notes, digest) = annotation, result
        if not file_annotation.upright and unsure(file, file_annotation.size, frames[0][2]):
            unsized.append(file)
        problems += notes
        kept.append(annotation)
        scene = group_of(annotation.image, {annotation.image: annotation.group}, group_by)
        group = groups.setdefault(scene, len(groups))
        contents += [digest] * len(frames)
        scenes += ["" if scene == annotation.image else scene] * len(frames)
        parts += [(annotation, group, *frame) for frame in frames]
    if unused := set(listing(images)) - {file for _, file in pairs}:
        first = min(unused).relative_to(images).as_posix()
        what = f"{len(unused)} photographs in the folder, this one among them, are not in the file of boxes: not used"
        problems.append(problem(first, what, str(boxes)))
    problems += left_out_problems(images)
    if not kept:
        reasons = "; ".join(sorted({p["what"] for p in problems})[:3])
        raise FormatError(boxes, "", f"not one usable photograph in {images} ({reasons})", "check both paths")
    problems += exif_rotation_problems(unsized, images)
    fields = {"content": np.array(contents), "specimen": np.array(scenes)}
    loaded = dataclasses.replace(samples(parts, size, classes), **fields)
    if fit == "tile":
        problems += object_size_problems(loaded, classes, overlap, scale)
    return loaded, kept, classes, problems


def read(boxes, images, problems: list[dict]) -> list[BoxAnnotation]:
    """Reads a file of boxes for the photographs in the folder `images`, in stored pixels and with names as in `load`.

    Problems with a photograph or a box are appended to `problems`.
    """
    annotations = []
    for annotation, file in by_photograph(read_boxes(boxes, problems), Path(images), problems):
        try:
            converted, notes = on_photograph(annotation, file, image_size(file))
        except OSError as error:
            problems.append(note(annotation, f"{error}: left out"))
            continue
        annotations.append(converted)
        problems += notes
    return annotations


def typical_sides(images, boxes) -> dict[str, float]:
    """Returns the typical side of each class's boxes, in pixels of the photographs of the folder `images`.

    A box's side is the square root of its area; the typical side is the median over some photographs. Problems with
    the file or the photographs are left to `load` to report.
    """
    find, sides = finder(Path(images)), dict[str, list[float]]()
    for annotation in subsample(read_boxes(boxes, [])):
        with contextlib.suppress(OSError):
            file = find(annotation.image)
            area = math.prod(image_size(file)) if annotation.relative else 1
            box_sides = np.sqrt(area * np.prod(annotation.boxes[:, 2:] - annotation.boxes[:, :2], axis=-1)).tolist()
            for name, side in zip(annotation.classes, box_sides, strict=True):
                if side > 0:
                    sides.setdefault(name, []).append(side)
    return {name: float(np.median(class_sides)) for name, class_sides in sides.items()}


def fitting_scale(sides: dict[str, float], *, side) -> float:
    """Returns the scale, to two digits, that suits the objects of all classes; 1 if that nearly does, or without any.

    It gives the geometric mean of the smallest and the largest class a side of `side` pixels of the frame, but does not
    reduce the smallest class to less than `FAIR` pixels, or `side` if that is less. It is at most `MAX_SCALE`.

    Args:
      sides: the `typical_sides` of the classes.
      side: in pixels of the frame.
    """
    if not sides:
        return 1.0
    smallest, largest = min(sides.values()), max(sides.values())
    scale = max(side / math.sqrt(smallest * largest), min(1, side / smallest, FAIR / smallest))
    return 1.0 if max(scale, 1 / scale) <= SCALE_TOLERANCE else float(f"{min(scale, MAX_SCALE):.2g}")


def fitting_overlap(sides: dict[str, float], *, scale, size, minimum) -> int:
    """Returns the pixels that neighbouring tiles should share so that one of them holds a typical object whole.

    They are the side of the largest class's typical object, but at least `minimum`, and, above that, at most the share
    `MAX_OVERLAP` of the frame.

    Args:
      sides: the `typical_sides` of the classes.
      scale: pixels of the frame per pixel of the photographs.
      size: (H, W) of the frame.
      minimum: in pixels of the frame.
    """
    largest = math.ceil(max(sides.values(), default=0) * scale)
    return max(minimum, min(largest, int(MAX_OVERLAP * min(size))))


def object_size_problems(tiles: Samples, classes: Sequence[str], overlap: int, scale: float) -> list[dict]:
    """Returns a problem for each class whose typical object is too small to be found, or so large that tiles cut it."""
    boxes, is_cut = tiles.boxes, len(tiles) > len(set(tiles.name.tolist()))
    box_sides = np.sqrt(np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0.01), -1))
    sides = {
        name: float(np.median(box_sides[tiles.labels == label]))
        for label, name in enumerate(classes)
        if (tiles.labels == label).any()
    }
    problems = []
    for name, side in sides.items():
        too_large = is_cut and side > OVERLAP_TOLERANCE * overlap
        if side >= SMALL and not too_large:
            continue
        what = f"the typical object{f' of class {name}' if len(sides) > 1 else ''} is"
        what += f" {side:{'.1f' if side >= 0.1 else '.1g'}} pixels wide in the network's frame"
        why = "so large that tiles cut it apart" if too_large else "too small to be found reliably"
        advice, keys = size_advice(list(sides.values()), tiles, overlap, scale)
        problems.append(problem(str(tiles.name[0]), f"{what}, {why}: {advice}", keys))
    return problems


def size_advice(sides: Sequence[float], tiles: Samples, overlap: int, scale: float) -> tuple[str, str]:
    """Returns advice that suits the typical objects of all classes, and the keys that it names.

    It is a scale that makes no class too small or larger than what tiles share. If there is none, it keeps the smallest
    class from becoming too small, and adds the overlap, and if necessary the frame's size, that the largest one needs.

    Args:
      sides: of the classes' typical objects, in pixels of the frame.
      tiles: the samples.
      overlap: the pixels of the frame that tiles share.
      scale: the pixels of the frame per pixel of the photographs.
    """
    smallest, largest = min(sides), max(sides)
    min_ratio, max_ratio = FAIR / smallest, overlap / largest
    ratio = max(min(GOOD / math.sqrt(smallest * largest), max_ratio), min_ratio)
    if min_ratio > max_ratio and smallest >= SMALL and max(ratio, 1 / ratio) <= SCALE_TOLERANCE:
        ratio = 1.0  # the overlap must change in any case
    good_scale = scale if ratio == 1 else float(f"{min(scale * ratio, 100):.2g}")  # 100: the limit in `config.LIMITS`
    low, high = smallest * good_scale / scale, largest * good_scale / scale
    flags = {} if ratio == 1 else {"--config.data.scale": f"{good_scale:.2g}"}
    size = tiles.images.shape[1:3]
    if high > OVERLAP_TOLERANCE * overlap and (tiles.source_size * good_scale > size).any():
        flags["--config.data.overlap"] = f"{math.ceil(high)}"
        if high > MAX_OVERLAP * min(size):
            side = SIZE_STEP * math.ceil(high / MAX_OVERLAP / SIZE_STEP)
            flags["--config.data.size"] = f'"({max(side, size[0])},{max(side, size[1])})"'
    keys, together = " ".join(flags), " ".join(f"{key}={value}" for key, value in flags.items())
    if ratio == 1:
        reason = "no scale suits all classes, but " if len(sides) > 1 else ""
        return f"{reason}{together} lets tiles hold objects of up to {high:.2g} pixels whole", keys
    makes = "makes" if len(flags) == 1 else "make"
    if len(sides) == 1:
        return f"{together} {makes} it {low:.2g}", keys
    whole = ", which tiles then hold whole" if len(flags) > 1 else ""
    return f"{together} {makes} the classes' typical objects {low:.2g} to {high:.2g} pixels wide{whole}", keys


def note(annotation: BoxAnnotation, what: str, where: str = "") -> dict:
    """Returns a problem with an image's annotation."""
    return problem(annotation.image, what, where or annotation.where)


def by_photograph(
    annotations: list[BoxAnnotation], images: Path, problems: list[dict]
) -> list[tuple[BoxAnnotation, Path]]:
    """Pairs annotations with their photographs' files, and names each by its photograph's path in the folder.

    An annotation without a photograph there is left out, and annotations of the same photograph are merged; both are
    appended to `problems`.
    """
    find, by_file = finder(images), dict[Path, list[BoxAnnotation]]()
    for annotation in annotations:
        try:
            by_file.setdefault(find(annotation.image), []).append(annotation)
        except OSError as error:
            problems.append(note(annotation, f"{error}: left out"))
    pairs = []
    for file, matching in by_file.items():
        merged = dataclasses.replace(matching[0], image=name_of(file, images))
        for other in matching[1:]:
            problems.append(
                note(other, f"the same photograph as {matching[0].image} ({matching[0].where}): their boxes are joined")
            )
            for key in ("group", "size"):
                current, new = getattr(merged, key), getattr(other, key)
                if current and new and current != new:
                    problems.append(note(other, f"{key} {new}, but {current} in {merged.where}: the latter is used"))
                merged = dataclasses.replace(merged, **{key: current or new})
            distinct = merge_box_places(merge_box_places({}, merged), other)
            if duplicates := len(merged.classes) + len(other.classes) - len(distinct):
                problems.append(note(other, f"{duplicates} boxes given twice: kept once"))
            boxes = np.array([key[:4] for key in distinct], np.float64).reshape(-1, 4)
            classes, places = tuple(key[4] for key in distinct), tuple(distinct.values())
            merged = dataclasses.replace(merged, boxes=boxes, classes=classes, places=places)
        pairs.append((merged, file))
    return pairs


def merge_box_places(known: dict[tuple, str], annotation: BoxAnnotation) -> dict[tuple, str]:
    """Maps boxes, by corners and class, to their places in the file: the `known`, then the annotation's new ones."""
    keys = [(*box, label) for box, label in zip(annotation.boxes.tolist(), annotation.classes, strict=True)]
    return known | {key: place for key, place in zip(keys, annotation.places, strict=True) if key not in known}


def on_photograph(annotation: BoxAnnotation, file: Path, size) -> tuple[BoxAnnotation, list[dict]]:
    """Converts boxes to the stored pixels of their photograph of `size` (h, w); returns them and their problems.

    Boxes marked on the upright view of a photograph that EXIF rotates are rotated back. A box whose centre lies outside
    the photograph is left out.

    Raises:
      OSError: the annotation is of a photograph of another size.
    """
    h, w = size
    turn = turn_of(file, annotation.size, size, upright=annotation.upright)
    if annotation.relative:
        shown_size = (h, w) if turn >= 5 else (w, h)
        annotation = dataclasses.replace(annotation, boxes=annotation.boxes * (shown_size * 2), relative=False)
    if turn > 1:
        x, y = EXIF_TURNS[turn](annotation.boxes[:, ::2], annotation.boxes[:, 1::2], h, w)
        corners = np.stack([x.min(1), y.min(1), x.max(1), y.max(1)], axis=-1)
        annotation = dataclasses.replace(annotation, boxes=corners, size=size)
    centres = annotation.boxes.reshape(-1, 2, 2).mean(1)
    inside = ((centres >= 0) & (centres <= (w, h))).all(-1)
    places = annotation.places or ("",) * len(inside)
    problems = []
    for i in np.flatnonzero(~inside):
        (x0, y0), (x1, y1) = annotation.boxes[i].reshape(2, 2)
        what = f"the box from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}) has its centre outside the photograph of {w}x{h}: left out"
        problems.append(note(annotation, what, places[i]))
    keep = lambda values: tuple(value for value, seen in zip(values, inside, strict=True) if seen)
    names, places = keep(annotation.classes), keep(places)
    kept = dataclasses.replace(annotation, boxes=annotation.boxes[inside], classes=names, places=places, upright=False)
    return kept, problems


def cut(image: np.ndarray, size, *, fit, scale=1.0, overlap=0) -> Iterator[tuple[np.ndarray, np.ndarray, tuple]]:
    """Yields the frames (H, W, 3) of an image (h, w, 3) uint8, each with its affine (2, 3) to the image, and (h, w)."""
    source_size = image.shape[:2]
    top, left, rows, columns = placement(source_size, size, fit, scale)
    corners = tiles((rows, columns), size, overlap) if fit == "tile" else [(0, 0)]
    sx, sy = source_size[1] / columns, source_size[0] / rows
    resized = np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR))
    for y, x in corners:
        tile = resized[y : y + size[0], x : x + size[1]]
        pads = [(before, n - before - m) for before, n, m in zip((top, left), size, tile.shape[:2], strict=True)]
        matrix = np.array([[sx, 0, (x - left) * sx], [0, sy, (y - top) * sy]])
        yield np.pad(tile, (*pads, (0, 0)), mode="constant" if fit == "tile" else "edge"), matrix, source_size


def samples(parts: Sequence[tuple[BoxAnnotation, int, np.ndarray, np.ndarray, tuple]], size, classes) -> Samples:
    """Makes Samples of tiles (annotation, group, pixels, affine, source size); tiles get the boxes centred in them."""
    boxes, labels = [], []
    for annotation, _, _, matrix, _ in parts:
        corners = (annotation.boxes.reshape(-1, 2, 2) - matrix[:, 2]) / np.diag(matrix)
        centres = corners.mean(1)
        inside = ((centres >= 0) & (centres <= size[::-1])).all(-1)
        boxes.append(corners.reshape(-1, 4)[inside])
        labels.append(np.array([classes.index(name) for name in annotation.classes], np.int32)[inside])
    annotations, groups, pixels, matrices, sizes = zip(*parts, strict=True)
    return Samples(
        images=np.stack(pixels),
        points=np.zeros((len(parts), 0, 2), np.float32),
        visible=np.zeros((len(parts), 0), bool),
        group=np.array(groups),
        name=np.array([a.image for a in annotations]),
        to_source=np.stack(matrices),
        mm_per_px=np.full(len(parts), np.nan),
        source_size=np.array(sizes),
        boxes=stack_padded(boxes).astype(np.float32),
        labels=stack_padded(labels, fill=-1),
    )


def batches(
    folder, *, size, fit, scale, overlap, most=256, longest=2000, problems: list[dict]
) -> Iterator[tuple[Samples, list[np.ndarray]]]:
    """Yields photographs without boxes as Samples of about `most` tiles or 32 photographs, prefetched.

    Each batch of samples comes with the photographs themselves, as in `folder.batches`. Problems, such as unreadable
    files, are appended to `problems`.
    """
    no_boxes: np.ndarray = np.zeros((0, 4))

    def read_frames(file):
        image = decode(file)
        small = Image.fromarray(image).resize(shrunk(image.shape[:2], longest)[::-1], Image.Resampling.BILINEAR)
        return list(cut(image, size, fit=fit, scale=scale, overlap=overlap)), np.asarray(small)

    parts: list[tuple] = []
    photographs: list[np.ndarray] = []
    for name, (frames, small) in readable(Path(folder), read_frames, most=2 * (os.cpu_count() or 1), problems=problems):
        parts += [(BoxAnnotation(name, no_boxes, ()), 0, *frame) for frame in frames]
        photographs.append(small)
        if len(parts) >= most or len(photographs) >= 32:
            yield samples(parts, size, ()), photographs
            parts, photographs = [], []
    if parts:
        yield samples(parts, size, ()), photographs
