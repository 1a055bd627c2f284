"""Photographs on disk: found by name, measured, decoded to uint8.

Pixels are taken as they are stored, without EXIF rotation, as tpsDig shows them (but Pillow turns a TIFF by its
orientation). LabelMe and YOLO mark the upright photograph; their readers convert these marks to stored pixels.
"""

import collections
import contextlib
import functools
import hashlib
import itertools
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath, PureWindowsPath
from typing import TypeVar

import numpy as np
from PIL import Image

from jaxmarks.data.ahead import ahead
from jaxmarks.data.samples import FormatError, problem

Result = TypeVar("Result")

# Formats that may hold several pages, or 16 bits per channel.
PAGED = {".tif", ".tiff", ".png", ".gif", ".webp"}
ENDINGS = {*PAGED, ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".bmp", ".ppm", ".pgm"}
# Formats of telephones and cameras that are not read.
OTHERS = {".heic", ".heif", ".avif", ".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".raf", ".rw2"}
# The formats that browsers show, by Pillow's names.
BROWSERS = {"JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP"}
# The file that marks a folder of results (it says which mode wrote them), and the files that mark a run's folder.
MARK, RUN = ".jaxmarks", {"config.json", "metrics.jsonl"}


def files_in(folder, endings, problems: list[dict] | None = None) -> list[Path]:
    """Returns the sorted files of a folder and its subfolders with one of these endings, in any case; none hidden.

    Links to folders are followed, each folder once. Subfolders with results or runs (`MARK`, `RUN`) are skipped.

    Args:
      folder: the folder.
      endings: lower-case, with the point.
      problems: a list to which is appended what is left out (`samples.problem`): subfolders that cannot be read, and
        files and subfolders whose names are not UTF-8. With None this raises FormatError.
    """

    def leave_out(path: str, what: str, remedy: str):
        escaped = lambda name: os.fsencode(name).decode("utf-8", "backslashreplace")
        if problems is None:
            raise FormatError(escaped(path), "", what, remedy)
        name = escaped(os.path.relpath(path, folder))
        problems.append(problem(name, f"{what}: left out; {remedy}", escaped(folder)))

    def unreadable(error: OSError):
        leave_out(str(error.filename), f"this folder cannot be read ({error.strerror})", "change its permissions")

    def is_utf8(directory: str, name: str) -> bool:
        try:
            name.encode()
        except UnicodeEncodeError:
            leave_out(os.path.join(directory, name), "its name is not UTF-8", "rename it")
            return False
        return True

    paths, visited = [], set()
    for directory, folders, names in os.walk(folder, followlinks=True, onerror=unreadable):
        is_output = directory != os.fspath(folder) and (MARK in names or RUN.issubset(names))
        if is_output or (real := os.path.realpath(directory)) in visited:  # or a folder that a link has led to before
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith(".") and is_utf8(directory, name))
        visited.add(real)
        files = (Path(directory, name) for name in names if not name.startswith("."))
        found = [file for file in files if file.suffix.lower() in endings and file.is_file()]
        paths += [file for file in found if is_utf8(directory, file.name)]
    return sorted(paths)


def listing(folder) -> list[Path]:
    """Returns the sorted image files of a folder and its subfolders, without what `left_out_problems` reports."""
    return files_in(folder, ENDINGS, [])


def left_out_problems(folder: Path) -> list[dict]:
    """Returns problems with what `listing` leaves out: unreadable folders, names, and formats that are not read."""
    problems: list[dict] = []
    files = [file for file in files_in(folder, ENDINGS | OTHERS, problems) if file.suffix.lower() in OTHERS]
    if files:
        what = (
            f"{len(files)} photographs are in formats that are not read, such as {files[0].suffix}: convert them to"
            " JPEG, PNG or TIFF"
        )
        problems.append(problem(name_of(files[0], folder), what, str(folder)))
    return problems


def finder(folder) -> Callable[[str], Path]:
    """Returns `find` for one folder as a function of the name, which lists the folder only once for many names."""
    folder = Path(folder)

    @functools.cache
    def index():
        """Indexes the files by name and by stem, lower-case, with umlauts as one character (macOS writes two)."""
        names, stems = collections.defaultdict(list), collections.defaultdict(list)
        for file in listing(folder):
            names[_plain(file.name)].append(file)
            stems[_plain(file.stem)].append(file)
        return names, stems

    def find(name):
        if not name:
            raise OSError("the file gives no image name for these marks (IMAGE= in TPS)")
        path = PureWindowsPath(name)  # accepts both kinds of slash
        for candidate in (folder / name, folder / path.as_posix()):
            if candidate.is_file():
                return candidate
        names, stems = index()
        # The ".2" of "A1.2" is no file ending: A1.png is another photograph.
        stem = path.stem if path.suffix.lower() in ENDINGS else path.name
        for files, key in ((names, path.name), (stems, path.name), (stems, stem)):
            matches = [file for file in files.get(_plain(key), ()) if _may_be(path, file.relative_to(folder))]
            agreement = {file: _shared(path, file.relative_to(folder)) for file in matches}
            matches = [file for file in matches if agreement[file] == max(agreement.values())]
            if len(matches) > 1:
                several = ", ".join(p.relative_to(folder).as_posix() for p in matches[:3])
                raise OSError(f"{len(matches)} images match this name ({several}): write the path relative to {folder}")
            if matches:
                return matches[0]
        raise OSError(f"no such image in {folder}")

    return find


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).lower()


def _may_be(path: PureWindowsPath, file: Path) -> bool:
    """Whether a file in a subfolder may be the one that a path means: s1/a.png is not s2/a.png."""
    elsewhere = path.anchor or ".." in path.parts  # a path from another machine
    file_folder, path_folder = _folders(file)[:1], _folders(path)[:1]
    return bool(elsewhere) or not (file_folder and path_folder) or file_folder == path_folder


def _shared(path: PureWindowsPath, file: Path) -> tuple[bool, int]:
    """Ranks how well a file's folders match a path's: whether all do, and how many do from the innermost outwards."""
    file_folders, path_folders = _folders(file), _folders(path)
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(file_folders, path_folders, strict=False))
    return file_folders == path_folders, len(list(alike))


def _folders(path: PurePath) -> list[str]:
    """Returns a path's folders, innermost first, without `images`: marks lie in a sibling folder of another name."""
    return [name for name in map(_plain, reversed(path.parent.parts)) if name != "images"]


def find(folder, name: str) -> Path:
    """Finds the photograph that an annotation names.

    Tries the path as it is (also a Windows path), then its last part in any case, then its stem with another ending.
    Among several matches, it prefers those whose folders agree with the path's.

    Raises:
      OSError: there is none, or there are several and nothing decides between them.
    """
    return finder(folder)(name)


@contextlib.contextmanager
def opened(path) -> Iterator[Image.Image]:
    """Opens an image file; what Pillow or tifffile raise for a damaged one, here or in the block, becomes OSError.

    MemoryError and ImportError are passed on.
    """
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, MemoryError, ImportError):
        raise
    except Image.DecompressionBombError:
        megapixels = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise OSError(f"more than {megapixels} megapixels: scale it down, and its annotations with it") from None
    except Exception as error:
        raise OSError(str(error) or type(error).__name__) from error


def image_size(path) -> tuple[int, int]:
    """Returns (height, width) in pixels from the file's header; raises OSError if it is no image."""
    with opened(path) as image:
        return image.height, image.width


def content(path) -> str:
    """Returns a digest of the file's bytes, equal for copies of a file and different for other files."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def subsample(annotations, most=200):
    """Returns at most `most` of the annotations, spread over all of them: enough to choose a frame by."""
    return annotations[:: -(-len(annotations) // most) or 1]


# Tags: the orientation in EXIF and TIFF; in TIFF, bits per channel and planar configuration (2: one plane per channel).
ORIENTATION, BITS, PLANAR = 0x0112, 0x0102, 0x011C
# By orientation: from a point (x, y) of the upright photograph to the stored one of (height h, width w).
EXIF_TURNS = {
    2: lambda x, y, h, w: (w - x, y),
    3: lambda x, y, h, w: (w - x, h - y),
    4: lambda x, y, h, w: (x, h - y),
    5: lambda x, y, h, w: (y, x),
    6: lambda x, y, h, w: (y, h - x),
    7: lambda x, y, h, w: (w - y, h - x),
    8: lambda x, y, h, w: (w - y, x),
}


# By orientation: from the stored pixels (H, W, C) to the upright ones, as Pillow turns a TIFF.
TRANSPOSED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda v: v[:, ::-1],
    3: lambda v: v[::-1, ::-1],
    4: lambda v: v[::-1],
    5: lambda v: v.swapaxes(0, 1),
    6: lambda v: v[::-1].swapaxes(0, 1),
    7: lambda v: v[::-1, ::-1].swapaxes(0, 1),
    8: lambda v: v[:, ::-1].swapaxes(0, 1),
}


def orientation(path) -> int:
    """Returns the EXIF orientation of a JPEG, 1 to 8, by which it is turned upright; 1 (as stored) for other files."""
    with contextlib.suppress(OSError), opened(path) as image:  # also for damaged EXIF
        turn = image.getexif().get(ORIENTATION, 1) if image.format in ("JPEG", "MPO") else 1
        return turn if turn in EXIF_TURNS else 1
    return 1


def turn_of(path, annotated_size: tuple[int, int] | None, stored: tuple[int, int], *, upright: bool = False) -> int:
    """Returns the `orientation` from a photograph's stored pixels to those of its annotation; 1 if they are the same.

    Args:
      path: the photograph.
      annotated_size: the (height, width) of the photograph according to the annotation, if it gives it.
      stored: (height, width) as stored.
      upright: whether the annotator saw the photograph upright, whatever its sides.

    Raises:
      OSError: the annotation is of a photograph of another size.
    """
    if annotated_size in (None, stored) and not upright:
        return 1
    turn = orientation(path)
    upright_size = stored[::-1] if turn >= 5 else stored
    if annotated_size not in (None, stored, upright_size):
        raise OSError(
            f"annotated at {annotated_size[1]}x{annotated_size[0]} pixels, but the photograph has {stored[1]}x{stored[0]}"
        )
    return (
        turn if annotated_size == upright_size != stored or (upright and annotated_size in (None, upright_size)) else 1
    )


def unsure(path, annotated_size: tuple[int, int] | None, stored: tuple[int, int]) -> bool:
    """Whether the size that an annotation gives, if any, leaves open whether it refers to stored or upright pixels.

    Arguments as in `turn_of`.
    """
    turn = orientation(path)
    return turn > 1 and (annotated_size is None or turn < 5 or stored[0] == stored[1])


def exif_rotation_problems(files: Iterable[Path], folder: Path) -> list[dict]:
    """Returns a problem if EXIF rotates some of these photographs: their coordinates are taken as of the stored pixels.

    `files` are photographs whose annotations, if any, do not say whether they refer to the stored or upright pixels.
    """
    names = [name_of(file, folder) for file in files if orientation(file) > 1]
    if not names:
        return []
    what = (
        f"{len(names)} photographs, this one among them, have an EXIF rotation: coordinates refer to the stored pixels,"
        " not to the upright picture"
    )
    return [problem(names[0], what, str(folder))]


def name_of(file: Path, folder: Path) -> str:
    """Returns a photograph's path relative to the folder, or its whole path if it lies elsewhere."""
    return (file.relative_to(folder) if file.is_relative_to(folder) else file).as_posix()


def decode(path) -> np.ndarray:
    """Decodes a photograph to (H, W, 3) uint8.

    16-bit and float images are stretched to 0..255 between their 0.001 and 0.999 quantiles, so that a few saturated
    pixels do not make the rest black. Transparency is dropped, and only the first of several pages is read
    (`not_decoded` reports it). Raises OSError for what is no readable image.
    """
    return reduced(path, at_least=None)[0]


def not_decoded(path) -> list[str]:
    """Lists what `decode` drops or changes of a file.

    This is further pages, the lower 8 bits of 16-bit colours where it cannot read them, and the orientation of a TIFF,
    by which Pillow turns it. Empty for a file that is no readable image, and for a JPEG, whose further pages are
    previews.
    """
    messages: list[str] = []
    if Path(path).suffix.lower() in PAGED:
        with contextlib.suppress(OSError), opened(path) as image:
            if image.format == "TIFF" and image.getexif().get(ORIENTATION, 1) > 1:
                messages.append("a TIFF with an orientation tag: coordinates refer to the upright picture")
            if _deep_colour(image) and not _read_deep(image):
                messages.append(
                    "16 bits per colour, of which only the upper 8 are used: save as uncompressed TIFF, or in greyscale"
                )
            if (pages := getattr(image, "n_frames", 1)) > 1:
                messages.append(f"{pages} pages, of which only the first is read: combine them into one image")
    return messages


def _deep_colour(image: Image.Image) -> bool:
    """Whether an image has several channels of 16 bits; Pillow reads their upper 8 bits, or, if in planes, nothing."""
    bits = image.tag_v2.get(BITS, ()) if image.format == "TIFF" else ()  # type: ignore[attr-defined]
    deep = max(bits, default=8) > 8 or any(";16" in str(tile) for tile in getattr(image, "tile", ()))
    return deep and len(image.getbands()) > 1


def _read_deep(image: Image.Image) -> bool:
    """Whether tifffile reads an image without further packages."""
    return image.format == "TIFF" and image.info.get("compression") in ("raw", "tiff_adobe_deflate", "tiff_deflate")


def browsable(path) -> bool:
    """Whether a browser shows a photograph as `decode` reads it: in a format it knows, with 8 bits, and not rotated."""
    with contextlib.suppress(OSError), opened(path) as image:
        plain = image.mode in ("L", "RGB", "RGBA", "P", "1") and not _deep_colour(image)
        return image.format in BROWSERS and plain and image.getexif().get(ORIENTATION, 1) == 1
    return False


def stretched(values: np.ndarray) -> np.ndarray:
    """Stretches greys or colours between their 0.001 and 0.999 quantiles to uint8; raises OSError if none is finite."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        raise OSError("no pixel is a finite number")
    low, high = np.quantile(finite, 0.001, method="lower"), np.quantile(finite, 0.999, method="higher")
    offset = np.clip(np.nan_to_num(values, nan=low, posinf=high, neginf=low), low, high) - low
    return np.round(offset / max(high - low, 1e-12) * 255).astype(np.uint8)


def reduced(path, *, at_least: tuple[int, int] | None) -> tuple[np.ndarray, tuple[float, float]]:
    """Decodes like `decode`, perhaps at a reduced size; also returns the (height, width) that the photograph fills.

    A JPEG may come 2, 4 or 8 times smaller, but not below `at_least` (h, w); where its sides are no multiples of that
    factor, its last row and column reach beyond the photograph.
    """
    with opened(path) as image:
        drafted = image.draft("RGB", (at_least[1], at_least[0])) if at_least else None
        extent = drafted[1][:1:-1] if drafted else image.size[::-1]
        deep = _deep_colour(image) and _read_deep(image)  # before `load` discards this and the orientation
        turn = image.getexif().get(ORIENTATION, 1) if deep else 1
        planar = deep and image.tag_v2.get(PLANAR) == 2  # type: ignore[attr-defined]
        image.load()
        if image.mode.startswith(("I", "F")):
            return np.repeat(stretched(np.asarray(image, np.float64))[..., None], 3, axis=-1), extent
        if deep:
            import tifffile

            values = tifffile.imread(path, key=0)
            values = np.moveaxis(values, 0, -1) if planar else values
            values = TRANSPOSED[turn](values) if turn in TRANSPOSED else values
            if values.shape[:2] != image.size[::-1] or values.shape[2:] not in ((3,), (4,)) or image.mode[:3] != "RGB":
                raise OSError("16 bits per colour in a layout that is not read: save it as interleaved RGB")
            return stretched(values[..., :3].astype(np.float64)), extent
        return np.array(image.convert("RGB")), extent


def shrunk(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Scales (height, width) down to a longest side of `longest` pixels; a smaller size is not enlarged."""
    share = min(1.0, longest / max(size))
    return max(1, round(share * size[0])), max(1, round(share * size[1]))


def readable(
    folder: Path, read_file: Callable[[Path], Result], *, most: int, problems: list[dict]
) -> Iterator[tuple[str, Result]]:
    """Yields the name, relative to the folder, and `read(file)` of each readable photograph in a folder, prefetched.

    Args:
      folder: the folder.
      read_file: called in threads; raises OSError for what is no readable image.
      most: maximum number of photographs in progress or waiting.
      problems: a list to which unreadable photographs and other problems are appended (`samples.problem`).

    Raises:
      FormatError: the folder has no photograph.
    """
    if folder.is_file():
        raise FormatError(folder, "", "this is a file", "give the folder that it is in with --config.data.images")
    if not folder.is_dir():
        raise FormatError(folder, "", "no such folder", "give the folder of photographs with --config.data.images")
    if not (files := listing(folder)):
        what = "; ".join(["no photograph in this folder", *(each["what"] for each in left_out_problems(folder))])
        raise FormatError(folder, "", what, "give a folder of photographs with --config.data.images")

    def attempt(file):
        try:
            return read_file(file)
        except OSError as error:
            return error

    readable_files = []
    for file, result in zip(files, ahead(attempt, files, most=most), strict=True):
        name = file.relative_to(folder).as_posix()
        if isinstance(result, OSError):
            problems.append(problem(name, f"cannot be read ({result}): left out", str(file)))
        else:
            problems += [problem(name, what, str(file)) for what in not_decoded(file)]
            readable_files.append(file)
            yield name, result
    problems += exif_rotation_problems(readable_files, folder) + left_out_problems(folder)
