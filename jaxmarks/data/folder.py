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
    left_out_problems,
    listing,
    name_of,
    not_decoded,
    readable,
    reduced,
    shrunk,
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

    find_photograph = finder(images)

    def locate(annotation):
        try:
            return find_photograph(annotation.image)
        except OSError as error:
            return str(error)

    locations = [locate(annotation) for annotation in annotations]
    files = [file for file in locations if isinstance(file, Path)]
    pixels, results = frames(files, size=size, channels=channels, fit=fit, keep=keep)
    outcomes = dict(zip(files, results, strict=True))
    kept, points, visible, used_files, unsized = [], [], [], set(), dict[Path, None]()
    for each in problems:  # a photograph with an unusable annotation is not one without landmarks
        with contextlib.suppress(OSError):
            used_files.add(find_photograph(each["image"]))
    for annotation, file in zip(annotations, locations, strict=True):
        used_files.add(file)
        outcome = outcomes.get(file, file)
        if isinstance(outcome, str):
            problems.append(problem(annotation.image, f"{outcome}: left out", annotation.where))
            continue
        h, w, digest = outcome
        problems += [problem(annotation.image, what, annotation.where) for what in not_decoded(file)]
        matrix = np.array(frame((h, w), size, fit))
        outside = annotation.visible & ~((annotation.points >= 0) & (annotation.points <= (w, h))).all(1)
        for k in np.flatnonzero(outside):
            x, y = annotation.points[k]
            what = f"landmark {k + 1} at ({x:g}, {y:g}) lies outside the image of {w}x{h}: treated as missing"
            problems.append(problem(annotation.image, what, annotation.where))
        kept.append((annotation, (h, w), digest))
        if annotation.size is None:
            unsized[file] = None
        visible.append(annotation.visible & ~outside)
        points.append(
            np.where(visible[-1][:, None], (annotation.points - matrix[:, 2]) / (matrix[0, 0], matrix[1, 1]), 0)
        )
    problems += left_out_problems(images)
    if not kept:
        reasons = "; ".join(sorted({p["what"] for p in problems})[:3]) or "the landmark file names no image"
        raise FormatError(landmarks, "", f"not one usable photograph in {images} ({reasons})", "check both paths")
    unmarked = [p for p in listing(images) if p not in used_files]
    if unmarked:
        what = f"{len(unmarked)} photographs have no landmarks: {', '.join(name_of(p, images) for p in unmarked[:5])}"
        problems.append(problem(name_of(unmarked[0], images), what, str(landmarks)))
    problems += exif_rotation_problems(unsized, images)
    annotated, source_sizes, contents = zip(*kept, strict=True)
    names = [annotation.image for annotation in annotated]
    samples = _samples(pixels, source_sizes, names, size, fit, np.stack(points), np.stack(visible))
    group_numbers: dict[str, int] = {}
    file_groups = {annotation.image: annotation.group for annotation in annotated if annotation.group}
    group_names = [group_of(name, file_groups, group_by) for name in names]
    fields = {
        "group": np.array([group_numbers.setdefault(group, len(group_numbers)) for group in group_names]),
        "specimen": np.array(["" if group == name else group for group, name in zip(group_names, names, strict=True)]),
        "mm_per_px": np.array([annotation.mm_per_px for annotation in annotated]),
        "id": np.array([annotation.id for annotation in annotated]),
        "content": np.array(contents),
    }
    return dataclasses.replace(samples, **fields), annotations[0].names, problems


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
    match = re.search(pattern, PurePosixPath(image).name) or re.search(pattern, image)
    return match[1] if match and match.groups() else None


def frames(files: list[Path], *, size, channels, fit, keep=""):
    """Reads photographs into the frame of `size`.

    Returns:
      The images (N, H, W, C) of the readable files, as an array or, if `keep` names a folder, as Records there; and for
      every file its (height, width, `content`), or a message that says what is wrong with it.
    """
    outcomes: list = []

    def read_frame(file):
        try:
            image, source_size = framed(file, size=size, channels=channels, fit=fit)
            return image, (*source_size, content(file))
        except OSError as error:
            return f"cannot be read ({error})"

    def readable_images():
        for result in ahead(read_frame, files, most=64):
            outcomes.append(result if isinstance(result, str) else result[1])
            if not isinstance(result, str):
                yield result[0]

    if not keep:
        images = list(readable_images())
        return (np.stack(images) if images else np.zeros((0, *size, channels), np.uint8)), outcomes
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = records.fingerprint("4", [size, channels, fit], stats)  # "4" is the version of the code that makes the frames
    return records.cache_images(readable_images(), keep, key=key, notes=outcomes), outcomes


def framed(file, *, size, channels, fit) -> tuple[np.ndarray, tuple[int, int]]:
    """Reads a photograph into the frame of `size`: (H, W, channels) uint8, and the photograph's own (height, width).

    Raises OSError if it is unreadable.
    """
    source_size = image_size(file)
    _, _, rows, columns = placement(source_size, size, fit)
    # Decoding at twice the size is enough for the antialiased result to equal that of a full decode.
    image, extent = reduced(file, at_least=(2 * rows, 2 * columns))
    image = into_frame(image, size, fit, source=source_size, extent=extent)
    return (image if channels == 3 else np.asarray(Image.fromarray(image).convert("L"))[..., None]), source_size


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

    def read_photograph(file):
        source_size = image_size(file)
        _, _, rows, columns = placement(source_size, size, fit)
        height, width = shrunk(source_size, longest)
        image, extent = reduced(file, at_least=(max(2 * rows, height), max(2 * columns, width)))
        small = _resized(image, (height, width), extent)
        return into_frame(image, size, fit, source=source_size, extent=extent), source_size, small

    def collate(batch):
        names, results = zip(*batch, strict=True)
        images, source_sizes, photographs = zip(*results, strict=True)
        no_landmarks = np.zeros((len(batch), 0, 2)), np.zeros((len(batch), 0), bool)
        return _samples(np.stack(images), source_sizes, names, size, fit, *no_landmarks), list(photographs)

    batch: list[tuple] = []
    for item in readable(Path(folder), read_photograph, most=2 * batch_size, problems=problems):
        batch.append(item)
        if len(batch) == batch_size:
            yield collate(batch)
            batch = []
    if batch:
        yield collate(batch)


def photograph(folder, name: str) -> np.ndarray | None:
    """Returns the photograph of that name at source resolution, (H, W, 3) uint8, or None if it cannot be read."""
    try:
        return decode(find(folder, name))
    except OSError:
        return None
