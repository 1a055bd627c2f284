"""Images on disk in ArrayRecord files with random access, for datasets that do not fit in memory.

The array_record library is imported only where a run keeps images on disk: its import would take a sixth of the
start-up time of every other run.
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

# Bytes of images after which a new file is begun.
SHARD = 2**28


class Records:
    """N images (H, W, C) uint8 in the files of a folder, with as much of an array's interface as `Samples` needs.

    Indexing with an integer returns an image; with a slice or an array of integers or booleans it returns `Records`
    without reading anything. `np.asarray` reads all images. Where the folder's files are damaged or missing, reading
    raises an error of array_record.
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
        subset = copy.copy(self)  # shares the open files
        subset._chosen = self._chosen[rows]
        return subset

    def __array__(self, dtype=None, copy=None):
        return self.read(np.arange(len(self))).astype(dtype or self.dtype, copy=False)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Reads the images (..., H, W, C) of rows (...)."""
        indices = self._chosen[np.ravel(rows)]
        images = np.empty((len(indices), *self._frame), np.uint8)
        for image, data in zip(
            images, self._source.__getitems__(indices.tolist()) if self._source and len(indices) else (), strict=True
        ):
            image[:] = np.frombuffer(data, np.uint8).reshape(self._frame)
        return images.reshape(*np.shape(rows), *self._frame)

    def stream(self, parts: Iterable[np.ndarray], *, most: int = 4) -> Iterator[np.ndarray]:
        """Yields the images of each of the `parts`, which are rows (...), prefetching at most `most` parts."""
        return ahead(self.read, parts, most=most, workers=2)


def cache_images(images: Iterable[np.ndarray], folder: Path, *, key: str, notes: list) -> Records:
    """Stores images (H, W, C) uint8 on disk and returns them as Records, or returns those already stored under `key`.

    Args:
      images: an iterable of images of one shape; not iterated if the images are already stored.
      folder: gets a subfolder for each key. One whose writing was interrupted is written anew; only one of several
        processes writes it.
      key: must change whenever the images do.
      notes: JSON-serialisable facts about the images, filled while `images` is iterated and stored with them; on return
        the list holds the stored notes.
    """
    key_folder = atomic.folder(Path(folder) / key[:16])
    with (key_folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (key_folder / "about.json").exists():
            write(images, key_folder, notes)
    notes[:] = json.loads((key_folder / "about.json").read_text())["notes"]
    return Records(key_folder)


def write(images: Iterable[np.ndarray], folder: Path, notes: list) -> None:
    """Writes images (H, W, C) uint8 and their notes to a folder, replacing what an interrupted write left there."""
    from array_record.python.array_record_module import ArrayRecordWriter

    for path in folder.glob("*.array_record"):
        path.unlink()
    count, shape, writer, shard_bytes = 0, (0, 0, 0), None, 0
    for image in images:
        if writer is None or shard_bytes >= SHARD:
            if writer is not None:
                writer.close()
            writer = ArrayRecordWriter(str(folder / f"images-{count:09d}.array_record"), "group_size:1")
            shard_bytes = 0
        writer.write(np.ascontiguousarray(image, np.uint8).tobytes())
        count, shape, shard_bytes = count + 1, image.shape, shard_bytes + image.nbytes
    if writer is not None:
        writer.close()
    atomic.write(folder / "about.json", json.dumps({"shape": [count, *shape], "notes": notes}) + "\n")


def fingerprint(*parts) -> str:
    """Returns the SHA-256 of arrays and JSON-serialisable values."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else json.dumps(part).encode())
    return digest.hexdigest()
