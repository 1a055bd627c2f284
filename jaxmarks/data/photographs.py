"""Photographs on disk: found by name, measured, decoded to uint8.

Pixels are taken as they are stored, without EXIF rotation, as tpsDig shows them; what LabelMe and YOLO mark on the
upright photograph is brought there by who reads it.
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

# Files that may have several pages, or colours of 16 bits.
PAGED = {".tif", ".tiff", ".png", ".gif", ".webp"}
ENDINGS = {*PAGED, ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".bmp", ".ppm", ".pgm"}
# Photographs that are not read: telephones' and cameras'.
OTHERS = {".heic", ".heif", ".avif", ".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".raf", ".rw2"}
# The formats that browsers show, as Pillow calls them.
BROWSERS = {"JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP"}
# A file that says which mode's results a folder is for, and the files of a run.
MARK, RUN = ".jaxmarks", {"config.json", "metrics.jsonl"}


def files_in(folder, endings) -> list[Path]:
    """The files of a folder and its subfolders with one of these endings in any case, sorted; without what is hidden.

    Links to folders are followed, each folder once. Runs and results among them (`MARK`, `RUN`) are left out.
    """
    found, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        ours = place != os.fspath(folder) and (MARK in names or RUN.issubset(names))
        if ours or (real := os.path.realpath(place)) in seen:  # a link back, or to what another has led to
            folders.clear()
            continue
        seen.add(real)
        files = (Path(place, name) for name in names if not name.startswith("."))
        found += [file for file in files if file.suffix.lower() in endings and file.is_file()]
    return sorted(found)


def listing(folder) -> list[Path]:
    """The image files of a folder and its subfolders, sorted."""
    return files_in(folder, ENDINGS)


def unread(folder: Path) -> list[dict]:
    """The problem of photographs in a folder whose formats are not read."""
    files = files_in(folder, OTHERS)
    if not files:
        return []
    what = (
        f"{len(files)} photographs as {files[0].suffix} are not read, this the first: convert them to JPEG, PNG or TIFF"
    )
    return [problem(name_of(files[0], folder), what, str(folder))]


def finder(folder) -> Callable[[str], Path]:
    """`find` in one folder for many names, whose listing is made once."""
    folder = Path(folder)

    @functools.cache
    def index():
        """The files by name and by stem, in small letters, umlauts as one character (a Mac writes two)."""
        names, stems = collections.defaultdict(list), collections.defaultdict(list)
        for file in listing(folder):
            names[_plain(file.name)].append(file)
            stems[_plain(file.stem)].append(file)
        return names, stems

    def find(name):
        if not name:
            raise OSError("the file names no image for these marks (IMAGE= in TPS)")
        path = PureWindowsPath(name)  # takes both kinds of slash
        for candidate in (folder / name, folder / path.as_posix()):
            if candidate.is_file():
                return candidate
        names, stems = index()
        # What follows the last dot of "A1.2" is no ending: A1.png is another photograph.
        stem = path.stem if path.suffix.lower() in ENDINGS else path.name
        for files, key in ((names, path.name), (stems, path.name), (stems, stem)):
            matches = [file for file in files.get(_plain(key), ()) if _may_be(path, file.relative_to(folder))]
            shared = {file: _shared(path, file.relative_to(folder)) for file in matches}
            matches = [file for file in matches if shared[file] == max(shared.values())]
            if len(matches) > 1:
                several = ", ".join(p.relative_to(folder).as_posix() for p in matches[:3])
                raise OSError(f"{len(matches)} images may be meant ({several}): write the path from {folder} on")
            if matches:
                return matches[0]
        raise OSError(f"no such image in {folder}")

    return find


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).lower()


def _may_be(path: PureWindowsPath, file: Path) -> bool:
    """Whether a file in a subfolder may be the one of this path: s1/a.png is not s2/a.png."""
    elsewhere = path.anchor or ".." in path.parts  # on another machine
    mine, theirs = _folders(file)[:1], _folders(path)[:1]
    return bool(elsewhere) or not (mine and theirs) or mine == theirs


def _shared(path: PureWindowsPath, file: Path) -> tuple[bool, int]:
    """How near a file is to a path: whether it lies in the same folder, and how many folders above it are called alike."""
    mine, theirs = _folders(file), _folders(path)
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(mine, theirs, strict=False))
    return mine == theirs, len(list(alike))


def _folders(path: PurePath) -> list[str]:
    """The folders of a path, the innermost first, but for `images`, beside which marks lie in a folder of another name."""
    return [name for name in map(_plain, reversed(path.parent.parts)) if name != "images"]


def find(folder, name: str) -> Path:
    """The photograph that an annotation names.

    The path as it is (a Windows path too), then its last part in any case, then the stem with another ending: in the folders
    that the path names, as far as there are such.

    Raises:
      OSError: there is none, or there are several in subfolders and nothing tells which is meant.
    """
    return finder(folder)(name)


@contextlib.contextmanager
def opened(path) -> Iterator[Image.Image]:
    """An image file; whatever Pillow and tifffile raise for a damaged one, here or within, becomes OSError."""
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, MemoryError, ImportError):
        raise
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise OSError(f"more than {most} megapixels: scale it down, and its marks with it") from None
    except Exception as error:
        raise OSError(str(error) or type(error).__name__) from error


def image_size(path) -> tuple[int, int]:
    """(height, width) in pixels, from the file's header; OSError where it is no image."""
    with opened(path) as image:
        return image.height, image.width


def content(path) -> str:
    """What tells a file from any other, and a copy of it not: a digest of all that is in it."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def some(annotations, most=200):
    """At most so many of a set's annotations, from all of it: enough to tell what a frame should be like."""
    return annotations[:: -(-len(annotations) // most) or 1]


# EXIF's and TIFF's tag of the orientation, and TIFF's of the bits of each channel and of how channels lie: 2 is in planes.
ORIENTATION, BITS, PLANAR = 0x0112, 0x0102, 0x011C
# The orientations: where a point (x, y) of the upright photograph lies in the stored one of (height h, width w).
EXIF_TURNS = {
    2: lambda x, y, h, w: (w - x, y),
    3: lambda x, y, h, w: (w - x, h - y),
    4: lambda x, y, h, w: (x, h - y),
    5: lambda x, y, h, w: (y, x),
    6: lambda x, y, h, w: (y, h - x),
    7: lambda x, y, h, w: (w - y, h - x),
    8: lambda x, y, h, w: (w - y, x),
}


# What turns the pixels (H, W, C) of each upright, as Pillow does with a TIFF's.
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
    """How EXIF says that a JPEG is to be turned to stand upright, 1 to 8; 1 is as it is stored, and of other files."""
    with contextlib.suppress(OSError), opened(path) as image:  # of damaged EXIF, too
        turn = image.getexif().get(ORIENTATION, 1) if image.format in ("JPEG", "MPO") else 1
        return turn if turn in EXIF_TURNS else 1
    return 1


def turn_of(path, told: tuple[int, int] | None, stored: tuple[int, int], *, upright: bool = False) -> int:
    """The `orientation` by which an annotation of a photograph differs from its stored pixels; 1 where it does not.

    Args:
      path: the photograph.
      told: the (height, width) that the annotation is of, where it says so.
      stored: (height, width) as stored.
      upright: whether the annotator saw it upright whatever the sides.

    Raises:
      OSError: the annotation is of a photograph of another size.
    """
    if told in (None, stored) and not upright:
        return 1
    turn = orientation(path)
    shown = stored[::-1] if turn >= 5 else stored
    if told not in (None, stored, shown):
        raise OSError(f"annotated as {told[1]}x{told[0]}, the photograph has {stored[1]}x{stored[0]}")
    return turn if told == shown != stored or (upright and told in (None, shown)) else 1


def unsure(path, told: tuple[int, int] | None, stored: tuple[int, int]) -> bool:
    """Whether the size that an annotation tells, if any, leaves open if it is of the stored pixels, as in `turn_of`."""
    turn = orientation(path)
    return turn > 1 and (told is None or turn < 5 or stored[0] == stored[1])


def turned(files: Iterable[Path], folder: Path) -> list[dict]:
    """The problem of those photographs that EXIF turns, whose annotations, if any, do not tell as which they were seen."""
    names = [name_of(file, folder) for file in files if orientation(file) > 1]
    if not names:
        return []
    what = (
        f"{len(names)} photographs carry an EXIF rotation, this the first: coordinates are those of the stored pixels, not"
        " of the picture turned upright"
    )
    return [problem(names[0], what, str(folder))]


def name_of(file: Path, folder: Path) -> str:
    """A photograph's path from the folder on; the whole one where it is not in there."""
    return (file.relative_to(folder) if file.is_relative_to(folder) else file).as_posix()


def decode(path) -> np.ndarray:
    """The photograph as (H, W, 3) uint8.

    16-bit and float images are stretched to 0..255 from the values that a thousandth of their pixels is below and above,
    so that a few saturated ones do not make the rest black. Transparency is dropped, and of a file with several pages
    the first is taken (`not_decoded` says so). Raises OSError for what is no readable image.
    """
    return reduced(path, at_least=None)[0]


def not_decoded(path) -> list[str]:
    """What `decode` does not take of a file as it is: further pages, of colours of 16 bits the lower 8 where it cannot, and
    the orientation of a TIFF, by which Pillow turns it.

    Nothing of a file that is no readable image, nor of a JPEG, whose further pages are previews.
    """
    found: list[str] = []
    if Path(path).suffix.lower() in PAGED:
        with contextlib.suppress(OSError), opened(path) as image:
            if image.format == "TIFF" and image.getexif().get(ORIENTATION, 1) > 1:
                found.append("a TIFF with an orientation: coordinates are those of the picture turned upright")
            if _deep_colour(image) and not _read_deep(image):
                found.append("16 bits a colour, of which the upper 8 are taken: write a TIFF without LZW, or greys")
            if (pages := getattr(image, "n_frames", 1)) > 1:
                found.append(f"{pages} pages, of which the first is taken: make one image of them")
    return found


def _deep_colour(image: Image.Image) -> bool:
    """Whether the file has 16 bits for each of several channels, of which Pillow reads the upper 8, or of planes none."""
    bits = image.tag_v2.get(BITS, ()) if image.format == "TIFF" else ()  # type: ignore[attr-defined]
    deep = max(bits, default=8) > 8 or any(";16" in str(tile) for tile in getattr(image, "tile", ()))
    return deep and len(image.getbands()) > 1


def _read_deep(image: Image.Image) -> bool:
    """Whether tifffile reads it without further packages."""
    return image.format == "TIFF" and image.info.get("compression") in ("raw", "tiff_adobe_deflate", "tiff_deflate")


def browsable(path) -> bool:
    """Whether a browser shows a photograph as `decode` reads it: a format that it knows, 8 bits, and not turned."""
    with contextlib.suppress(OSError), opened(path) as image:
        plain = image.mode in ("L", "RGB", "RGBA", "P", "1") and not _deep_colour(image)
        return image.format in BROWSERS and plain and image.getexif().get(ORIENTATION, 1) == 1
    return False


def stretched(values: np.ndarray) -> np.ndarray:
    """Greys or colours as uint8, from the values that a thousandth is below and above; OSError where none is a number."""
    known = values[np.isfinite(values)]
    if not len(known):
        raise OSError("no pixel is a finite number")
    low, high = np.quantile(known, 0.001, method="lower"), np.quantile(known, 0.999, method="higher")
    share = np.clip(np.nan_to_num(values, nan=low, posinf=high, neginf=low), low, high) - low
    return np.round(share / max(high - low, 1e-12) * 255).astype(np.uint8)


def reduced(path, *, at_least: tuple[int, int] | None) -> tuple[np.ndarray, tuple[float, float]]:
    """`decode`, and the (height, width) in its pixels that the photograph fills.

    A JPEG may come 2, 4 or 8 times smaller, but not below `at_least` (h, w); its last row and column then reach beyond
    the photograph, where its sides are no multiples of that.
    """
    with opened(path) as image:
        drafted = image.draft("RGB", (at_least[1], at_least[0])) if at_least else None
        extent = drafted[1][:1:-1] if drafted else image.size[::-1]
        deep = _deep_colour(image) and _read_deep(image)  # which is forgotten once it is read, as is the orientation
        turn = image.getexif().get(ORIENTATION, 1) if deep else 1
        planes = deep and image.tag_v2.get(PLANAR) == 2  # type: ignore[attr-defined]
        image.load()
        if image.mode.startswith(("I", "F")):
            return np.repeat(stretched(np.asarray(image, np.float64))[..., None], 3, axis=-1), extent
        if deep:
            import tifffile

            values = tifffile.imread(path, key=0)
            values = np.moveaxis(values, 0, -1) if planes else values
            values = TRANSPOSED[turn](values) if turn in TRANSPOSED else values
            if values.shape[:2] != image.size[::-1] or values.shape[2:] not in ((3,), (4,)) or image.mode[:3] != "RGB":
                raise OSError("16 bits a colour in a form that is not read: write RGB, interleaved")
            return stretched(values[..., :3].astype(np.float64)), extent
        return np.array(image.convert("RGB")), extent


def shrunk(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """(height, width) with this aspect and a longest side of `longest` pixels, or less where it is shorter already."""
    share = min(1.0, longest / max(size))
    return max(1, round(share * size[0])), max(1, round(share * size[1]))


def readable(
    folder: Path, read: Callable[[Path], Result], *, most: int, problems: list[dict]
) -> Iterator[tuple[str, Result]]:
    """The name of each photograph of a folder, from the folder on, and what `read` makes of its file, read ahead.

    Args:
      folder: the folder.
      read: called in threads; raises OSError for what is no readable image, which is then appended to `problems`.
      most: photographs that are read or wait.
      problems: a list to which what cannot be read is appended (`samples.problem`).

    Raises:
      FormatError: the folder has no photograph.
    """
    if folder.is_file():
        raise FormatError(folder, "", "a file", "give the folder that it is in with --config.data.images")
    if not folder.is_dir():
        raise FormatError(folder, "", "no such folder", "give the folder of photographs with --config.data.images")
    if not (files := listing(folder)):
        what = "; ".join(["no photograph in this folder", *(each["what"] for each in unread(folder))])
        raise FormatError(folder, "", what, "give one with --config.data.images")

    def attempt(file):
        try:
            return read(file)
        except OSError as error:
            return error

    good = []
    for file, result in zip(files, ahead(attempt, files, most=most), strict=True):
        name = file.relative_to(folder).as_posix()
        if isinstance(result, OSError):
            problems.append(problem(name, f"cannot be read ({result}): left out", str(file)))
        else:
            problems += [problem(name, what, str(file)) for what in not_decoded(file)]
            good.append(file)
            yield name, result
    problems += turned(good, folder) + unread(folder)
