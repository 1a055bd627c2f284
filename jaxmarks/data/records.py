"""Images on disk as ArrayRecord files, which are read by their number: for data that memory does not hold.

The library is imported where a run keeps images; it would take a sixth of the start of all others.
"""

import copy
import fcntl
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from jaxmarks import atomic
from jaxmarks.data.ahead import ahead

# Bytes of images in a file.
SHARD = 2**28


class Records:
    """N images (H, W, C) uint8 in the files of a folder; an array in all that `Samples` needs of one.

    An integer gives an image; slices and arrays of integers or booleans give `Records` again, which read nothing.
    `np.asarray` reads them all. Where the folder's files are damaged or gone, reading raises an error of array_record.
    """

    ndim, dtype = 4, np.dtype(np.uint8)

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        count, *frame = json.loads((self.folder / "about.json").read_text())["shape"]
        self._frame, self._chosen = tuple(frame), np.arange(count)
        files = sorted(self.folder.glob("*.array_record"))
        self._source = None
        if count:
            from array_record.python.array_record_data_source import ArrayRecordDataSource

            self._source = ArrayRecordDataSource([str(path) for path in files])

    def __len__(self):
        return len(self._chosen)

    @property
    def shape(self):
        return (len(self), *self._frame)

    def __getitem__(self, rows):
        if np.ndim(rows) == 0 and not isinstance(rows, slice):
            return self.read(np.asarray([rows]))[0]
        part = copy.copy(self)  # with the same open files
        part._chosen = self._chosen[rows]
        return part

    def __array__(self, dtype=None, copy=None):
        return self.read(np.arange(len(self))).astype(dtype or self.dtype, copy=False)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The images (..., H, W, C) of rows (...)."""
        flat = self._chosen[np.ravel(rows)]
        images = np.empty((len(flat), *self._frame), np.uint8)
        for image, data in zip(
            images, self._source.__getitems__(flat.tolist()) if self._source and len(flat) else (), strict=True
        ):
            image[:] = np.frombuffer(data, np.uint8).reshape(self._frame)
        return images.reshape(*np.shape(rows), *self._frame)

    def stream(self, parts: Iterable[np.ndarray], *, most: int = 4) -> Iterator[np.ndarray]:
        """The images of each of the `parts`, rows (...), read before they are asked for, `most` parts at a time."""
        return ahead(self.read, parts, most=most, workers=2)


def keep(images: Iterable[np.ndarray], folder: Path, *, key: str, notes: list) -> Records:
    """Images (H, W, C) uint8 as Records; where the folder holds those of this key, `images` are not asked for.

    Args:
      images: one after the other, all of one shape.
      folder: has a folder for each key. A kill leaves that as one that holds none; of several processes one writes it.
      key: changes where the images do.
      notes: what is known of them, for JSON: filled while `images` are read, or else here as it was then.
    """
    home = atomic.folder(Path(folder) / key[:16])
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "about.json").exists():
            write(images, home, notes)
    notes[:] = json.loads((home / "about.json").read_text())["notes"]
    return Records(home)


def write(images: Iterable[np.ndarray], folder: Path, notes: list) -> None:
    """Writes images (H, W, C) uint8 and what is known of them to a folder, in place of what a kill left there."""
    from array_record.python.array_record_module import ArrayRecordWriter

    for path in folder.glob("*.array_record"):
        path.unlink()
    count, frame, writer, written = 0, (0, 0, 0), None, 0
    for image in images:
        if writer is None or written >= SHARD:
            if writer is not None:
                writer.close()
            writer = ArrayRecordWriter(str(folder / f"images-{count:09d}.array_record"), "group_size:1")
            written = 0
        writer.write(np.ascontiguousarray(image, np.uint8).tobytes())
        count, frame, written = count + 1, image.shape, written + image.nbytes
    if writer is not None:
        writer.close()
    atomic.write(folder / "about.json", json.dumps({"shape": [count, *frame], "notes": notes}) + "\n")


def fingerprint(*parts) -> str:
    """SHA-256 of arrays and of what JSON can hold."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else json.dumps(part).encode())
    return digest.hexdigest()
