"""A folder of photographs, with a file of landmarks or without, as Samples in a frame."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from jaxmarks.data import formats, records
from jaxmarks.data.ahead import ahead
from jaxmarks.data.photographs import (
    content,
    decode,
    find,
    finder,
    image_size,
    listing,
    name_of,
    not_decoded,
    readable,
    reduced,
    shrunk,
    turned,
    unread,
)
from jaxmarks.data.samples import FormatError, Samples, problem
from jaxmarks.ops.frames import frame, placement

# What Roboflow makes of the name of each copy of a photograph, beetle.jpg: beetle_jpg.rf.2f6c....jpg.
ROBOFLOW = re.compile(r"_(jpe?g|png|tiff?|bmp|webp)\.rf\.\w+\.\w+$", re.IGNORECASE)


def load(
    images, landmarks, *, size, channels=3, fit="pad", group_by="", keep="", curves=0
) -> tuple[Samples, tuple[str, ...], list[dict]]:
    """Reads photographs and their landmarks.

    Args:
      images: the folder of photographs.
      landmarks: a file (or LabelMe folder) that `formats.read` reads.
      size: (H, W) of the frame.
      channels: 3 (RGB) or 1 (luminance).
      fit: `pad` keeps the aspect and repeats the edge; `stretch` fills the frame.
      group_by: regular expression; its first group in a file's name is the specimen. Where it is empty the
        annotation's own group counts, else each image is a specimen.
      keep: a folder in which the images are kept as Records, as much as memory does not hold; empty: in memory.
      curves: as in `formats.read`.

    Returns:
      Samples, the names of the landmarks where the file has them, and the problems (`samples.problem`) for every
      photograph left out, landmark masked, or photograph without landmarks.

    Raises:
      FormatError: the landmark file is damaged, or no photograph at all can be used.
    """
    images = Path(images)
    problems: list[dict] = []
    if not images.is_dir():
        raise FormatError(images, "", "no such folder", "give the folder of photographs with --config.data.images")
    annotations = formats.read(landmarks, images, problems, curves=curves)

    find_here = finder(images)

    def place(a):
        try:
            return find_here(a.image)
        except OSError as error:
            return str(error)

    places = [place(a) for a in annotations]
    files = [file for file in places if isinstance(file, Path)]
    pixels, read = frames(files, size=size, channels=channels, fit=fit, keep=keep)
    outcomes = dict(zip(files, read, strict=True))
    kept, points, visible, used, unsized = [], [], [], set(), dict[Path, None]()
    for each in problems:  # what the file names but is unusable is not without landmarks
        with contextlib.suppress(OSError):
            used.add(find_here(each["image"]))
    for a, file in zip(annotations, places, strict=True):
        used.add(file)
        outcome = outcomes.get(file, file)
        if isinstance(outcome, str):
            problems.append(problem(a.image, f"{outcome}: left out", a.where))
            continue
        h, w, digest = outcome
        problems += [problem(a.image, what, a.where) for what in not_decoded(file)]
        matrix = np.array(frame((h, w), size, fit))
        outside = a.visible & ~((a.points >= 0) & (a.points <= (w, h))).all(1)
        for k in np.flatnonzero(outside):
            x, y = a.points[k]
            what = f"landmark {k + 1} at ({x:g}, {y:g}) lies outside the image of {w}x{h}: taken as missing"
            problems.append(problem(a.image, what, a.where))
        kept.append((a, (h, w), digest))
        if a.size is None:
            unsized[file] = None
        visible.append(a.visible & ~outside)
        points.append(np.where(visible[-1][:, None], (a.points - matrix[:, 2]) / (matrix[0, 0], matrix[1, 1]), 0))
    problems += unread(images)
    if not kept:
        reasons = "; ".join(sorted({p["what"] for p in problems})[:3]) or "the landmark file names none"
        raise FormatError(landmarks, "", f"not one usable photograph in {images} ({reasons})", "check both paths")
    others = [p for p in listing(images) if p not in used]
    if others:
        what = f"{len(others)} photographs have no landmarks: {', '.join(name_of(p, images) for p in others[:5])}"
        problems.append(problem(name_of(others[0], images), what, str(landmarks)))
    problems += turned(unsized, images)
    annotated, sources, contents = zip(*kept, strict=True)
    names = [a.image for a in annotated]
    samples = _samples(pixels, sources, names, size, fit, np.stack(points), np.stack(visible))
    numbers: dict[str, int] = {}
    known = {a.image: a.group for a in annotated if a.group}
    called = [group_of(name, known, group_by) for name in names]
    told = {
        "group": np.array([numbers.setdefault(group, len(numbers)) for group in called]),
        "specimen": np.array(["" if group == name else group for group, name in zip(called, names, strict=True)]),
        "mm_per_px": np.array([a.mm_per_px for a in annotated]),
        "id": np.array([a.id for a in annotated]),
        "content": np.array(contents),
    }
    return dataclasses.replace(samples, **told), annotations[0].names, problems


def group_of(image: str, known: Mapping[str, str], pattern: str) -> str:
    """The specimen or scene of an image: what the `pattern` catches in its name, or what is `known` of it, or itself.

    Roboflow's copies of a photograph are of one.
    """
    if pattern:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"--config.data.group_by={pattern}: no regular expression: {error}") from None
        if (caught := caught_in(image, pattern)) is None:
            raise ValueError(
                f"--config.data.group_by={pattern}: no first group in {image!r}; write an expression such as"
                r" '^(\d+)_' whose first parentheses hold the specimen in every file name"
            )
        return caught
    return known.get(image) or ROBOFLOW.sub("", image)


def caught_in(image: str, pattern: str) -> str | None:
    """The first group of a regular expression in an image's file name, or in its whole name; None where it has none."""
    found = re.search(pattern, PurePosixPath(image).name) or re.search(pattern, image)
    return found[1] if found and found.groups() else None


def frames(files: list[Path], *, size, channels, fit, keep=""):
    """Photographs in the frame of `size`.

    Returns:
      The images (N, H, W, C) of those that can be read, an array or, where `keep` names their folder, Records; and of
      every file its height, width and `content`, or what is wrong with it.
    """
    read: list = []

    def one(file):
        try:
            image, source = framed(file, size=size, channels=channels, fit=fit)
            return image, (*source, content(file))
        except OSError as error:
            return f"cannot be read ({error})"

    def good():
        for result in ahead(one, files, most=64):
            read.append(result if isinstance(result, str) else result[1])
            if not isinstance(result, str):
                yield result[0]

    if not keep:
        images = list(good())
        return (np.stack(images) if images else np.zeros((0, *size, channels), np.uint8)), read
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = records.fingerprint("4", [size, channels, fit], stats)  # the version of what makes the frames
    return records.keep(good(), keep, key=key, notes=read), read


def framed(file, *, size, channels, fit) -> tuple[np.ndarray, tuple[int, int]]:
    """A photograph in the frame of `size`, (H, W, channels) uint8, and its own (height, width). OSError if unreadable."""
    source = image_size(file)
    _, _, rows, columns = placement(source, size, fit)
    # Twice the size is enough for the antialiased result that the full decode would give.
    image, extent = reduced(file, at_least=(2 * rows, 2 * columns))
    image = into_frame(image, size, fit, source=source, extent=extent)
    return (image if channels == 3 else np.asarray(Image.fromarray(image).convert("L"))[..., None]), source


def into_frame(image: np.ndarray, size, fit, *, source=None, extent=None) -> np.ndarray:
    """An image (h, w, 3) uint8, antialiased, in the frame of `size`.

    Of a `reduced` decode `source` is the photograph's own size and `extent` what it fills of the image.
    """
    top, left, rows, columns = placement(source or image.shape[:2], size, fit)
    small = _resized(image, (rows, columns), extent)
    pads = ((top, size[0] - rows - top), (left, size[1] - columns - left), (0, 0))
    return np.pad(small, pads, mode="edge")


def _resized(image, size, extent=None):
    """An image, or its first `extent` (rows, columns), at `size` (h, w), antialiased."""
    box = (0, 0, *(extent or image.shape[:2])[::-1])
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR, box=box))


def _samples(images, sizes, names, size, fit, points, visible):
    return Samples(
        images=images,
        points=points.astype(np.float32),
        visible=visible,
        group=np.arange(len(images)),
        name=np.array(names),
        to_source=np.array([frame(s, size, fit) for s in sizes]),
        mm_per_px=np.full(len(images), np.nan),
        source_size=np.array(sizes),
    )


def batches(
    folder, *, size, fit="pad", batch_size=32, longest=1000, problems: list[dict]
) -> Iterator[tuple[Samples, list[np.ndarray]]]:
    """Photographs without landmarks (K = 0), `batch_size` at a time, read ahead of who takes them.

    With the samples come the photographs themselves, (h, w, 3) uint8, scaled down to a longest side of `longest` where
    theirs is longer. What cannot be read is appended to `problems`.
    """

    def one(file):
        source = image_size(file)
        _, _, rows, columns = placement(source, size, fit)
        height, width = shrunk(source, longest)
        image, extent = reduced(file, at_least=(max(2 * rows, height), max(2 * columns, width)))
        small = _resized(image, (height, width), extent)
        return into_frame(image, size, fit, source=source, extent=extent), source, small

    def together(part):
        names, read = zip(*part, strict=True)
        images, sources, photographs = zip(*read, strict=True)
        none = np.zeros((len(part), 0, 2)), np.zeros((len(part), 0), bool)
        return _samples(np.stack(images), sources, names, size, fit, *none), list(photographs)

    part: list[tuple] = []
    for each in readable(Path(folder), one, most=2 * batch_size, problems=problems):
        part.append(each)
        if len(part) == batch_size:
            yield together(part)
            part = []
    if part:
        yield together(part)


def photograph(folder, name: str) -> np.ndarray | None:
    """The photograph of that name at source resolution, (H, W, 3) uint8, or None where it cannot be read."""
    try:
        return decode(find(folder, name))
    except OSError:
        return None
