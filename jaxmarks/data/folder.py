"""Reads a folder of photographs, with or without a landmark file, as Samples in a common frame."""

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
    exif_rotation_problems,
    find,
    finder,
    image_size,
    listing,
    name_of,
    not_decoded,
    readable,
    reduced,
    shrunk,
    unsupported_format_problems,
)
from jaxmarks.data.samples import FormatError, Samples, problem
from jaxmarks.ops.frames import frame, placement

# How Roboflow renames each copy of a photograph: beetle.jpg becomes beetle_jpg.rf.2f6c....jpg.
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
      group_by: regular expression whose first group captures the specimen in a file's name. If it is empty, the
        annotation's own group is used, and an image without one is a specimen of its own.
      keep: folder in which the images are stored as Records, for data that does not fit in memory; empty: in memory.
      curves: as in `formats.read`.

    Returns:
      Samples, the names of the landmarks if the file has them, and the problems (`samples.problem`), among them every
      photograph left out, landmark masked, or photograph without landmarks.

    Raises:
      FormatError: the folder is missing, the landmark file is damaged, or no photograph at all can be used.
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
    for each in problems:  # a photograph with an unusable annotation is not one without landmarks
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
            what = f"landmark {k + 1} at ({x:g}, {y:g}) lies outside the image of {w}x{h}: treated as missing"
            problems.append(problem(a.image, what, a.where))
        kept.append((a, (h, w), digest))
        if a.size is None:
            unsized[file] = None
        visible.append(a.visible & ~outside)
        points.append(np.where(visible[-1][:, None], (a.points - matrix[:, 2]) / (matrix[0, 0], matrix[1, 1]), 0))
    problems += unsupported_format_problems(images)
    if not kept:
        reasons = "; ".join(sorted({p["what"] for p in problems})[:3]) or "the landmark file names no image"
        raise FormatError(landmarks, "", f"not one usable photograph in {images} ({reasons})", "check both paths")
    others = [p for p in listing(images) if p not in used]
    if others:
        what = f"{len(others)} photographs have no landmarks: {', '.join(name_of(p, images) for p in others[:5])}"
        problems.append(problem(name_of(others[0], images), what, str(landmarks)))
    problems += exif_rotation_problems(unsized, images)
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
    """Returns an image's specimen or scene: what `pattern` captures in its name, else its `known` group, else its name.

    Without a pattern or a known group, all of Roboflow's copies of a photograph get the same group.
    """
    if pattern:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"--config.data.group_by={pattern}: not a valid regular expression: {error}") from None
        if (caught := caught_in(image, pattern)) is None:
            raise ValueError(
                f"--config.data.group_by={pattern}: its first group captures nothing in {image!r}; write an expression"
                r" such as '^(\d+)_' whose first parentheses capture the specimen in every file name"
            )
        return caught
    return known.get(image) or ROBOFLOW.sub("", image)


def caught_in(image: str, pattern: str) -> str | None:
    """Returns what a pattern's first group captures in an image's file name, else in its whole path, else None."""
    found = re.search(pattern, PurePosixPath(image).name) or re.search(pattern, image)
    return found[1] if found and found.groups() else None


def frames(files: list[Path], *, size, channels, fit, keep=""):
    """Reads photographs into the frame of `size`.

    Returns:
      The images (N, H, W, C) of the readable files, as an array or, if `keep` names a folder, as Records there; and for
      every file its (height, width, `content`), or a message that says what is wrong with it.
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
    key = records.fingerprint("4", [size, channels, fit], stats)  # "4" is the version of the code that makes the frames
    return records.cache_images(good(), keep, key=key, notes=read), read


def framed(file, *, size, channels, fit) -> tuple[np.ndarray, tuple[int, int]]:
    """Reads a photograph into the frame of `size`: (H, W, channels) uint8, and the photograph's own (height, width).

    Raises OSError if it is unreadable.
    """
    source = image_size(file)
    _, _, rows, columns = placement(source, size, fit)
    # Decoding at twice the size is enough for the antialiased result to equal that of a full decode.
    image, extent = reduced(file, at_least=(2 * rows, 2 * columns))
    image = into_frame(image, size, fit, source=source, extent=extent)
    return (image if channels == 3 else np.asarray(Image.fromarray(image).convert("L"))[..., None]), source


def into_frame(image: np.ndarray, size, fit, *, source=None, extent=None) -> np.ndarray:
    """Resizes an image (h, w, 3) uint8, antialiased, into the frame of `size`.

    For a `reduced` decode, `source` is the photograph's own (height, width) and `extent` the part of `image` it fills.
    """
    top, left, rows, columns = placement(source or image.shape[:2], size, fit)
    small = _resized(image, (rows, columns), extent)
    pads = ((top, size[0] - rows - top), (left, size[1] - columns - left), (0, 0))
    return np.pad(small, pads, mode="edge")


def _resized(image, size, extent=None):
    """Resizes an image, or its first `extent` (rows, columns), to `size` (h, w), antialiased."""
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
    """Yields photographs without landmarks (K = 0) in prefetched batches of `batch_size`.

    Each batch of samples comes with the photographs themselves, (h, w, 3) uint8, scaled down to a longest side of at
    most `longest`. Problems, such as unreadable files, are appended to `problems`.
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
    """Returns the photograph of that name at source resolution, (H, W, 3) uint8, or None if it cannot be read."""
    try:
        return decode(find(folder, name))
    except OSError:
        return None
