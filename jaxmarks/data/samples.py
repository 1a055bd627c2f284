"""The two structures that every dataset passes through.

`Annotation` holds one image's landmarks as a file gives them; `Samples` holds arrays that are ready for a network.

Coordinates are continuous (x, y), with y down and the origin at the corner of the top-left pixel: the centre of the
first pixel is (0.5, 0.5), and resizing an image multiplies its coordinates.
"""

import dataclasses
import hashlib
import math
from collections.abc import Sequence

import numpy as np


class FormatError(ValueError):
    """Raised for a file that cannot be read; the message names the file, the line or row, the value, and what to do."""

    def __init__(self, path, where, what, remedy):
        super().__init__(f"{path}: {where}: {what}; {remedy}" if where else f"{path}: {what}; {remedy}")
        self.parts = path, where, what, remedy

    def __reduce__(self):
        return type(self), self.parts


# Prefix of the `Samples.content` of drawn (synthetic) images.
DRAWN = "drawn, "


def problem(image: str, what: str, where: str) -> dict[str, str]:
    """Returns a record of a non-fatal problem with an image or its annotation; `where` names the place to look at."""
    return {"image": image, "what": what, "where": where}


@dataclasses.dataclass(frozen=True)
class Annotation:
    """The landmarks of one image in pixels of that image, y down.

    `points` is (K, 2) float64 and `visible` (K,) bool; the point of a landmark that is not visible is a meaningless 0.
    `where` is the place in the file ("wings.tps: line 14"), for messages. `size` is the image's (height, width) if the
    file gives it; `upright` means that the coordinates refer to the image after its EXIF rotation. `names` are the
    landmarks' names if the file gives them.
    """

    image: str
    points: np.ndarray
    visible: np.ndarray
    mm_per_px: float = math.nan
    id: str = ""
    group: str = ""
    where: str = ""
    size: tuple[int, int] | None = None
    upright: bool = False
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Samples:
    """N images in a common frame, with their landmarks or boxes; the first axis of each field is N.

    The network sees the whole frame or a part of it.

    Attributes:
      images: (N, H, W, C) uint8, an array or `records.Records`.
      points: (N, K, 2) float32, pixels of the frame.
      visible: (N, K) bool.
      group: (N,) int64; a split by group keeps the images of one group (a specimen, near-identical frames) together.
      name: (N,) str, the image's path in its folder, or the phantom's name.
      to_source: (N, 2, 3) float64, affine from pixels of the frame to the photograph's pixels.
      mm_per_px: (N,) float64, mm per pixel of the photograph; NaN where unknown.
      source_size: (N, 2) int64, height and width of the photograph.
      boxes: (N, M, 4) float32, x0, y0, x1, y1 in pixels of the frame.
      labels: (N, M) int32, the boxes' classes from 0; -1 where there is no box.
      domain: (N,) int32, index of the dataset that the image comes from, where several are joined; otherwise 0.
      id: (N,) str, the landmark file's identifier of the image besides its name (tpsDig's ID); empty without one.
      specimen: (N,) str, the name of the group; empty where an image is a group of its own, without a name.
      content: (N,) str, equal for copies of a photograph under any name or in any folder (`photographs.content`); for a
        drawn image `DRAWN` and how it was drawn; by default the name.
    """

    images: np.ndarray
    points: np.ndarray
    visible: np.ndarray
    group: np.ndarray
    name: np.ndarray
    to_source: np.ndarray
    mm_per_px: np.ndarray
    source_size: np.ndarray
    boxes: np.ndarray = None  # type: ignore[assignment]  # none for landmarks
    labels: np.ndarray = None  # type: ignore[assignment]
    domain: np.ndarray = None  # type: ignore[assignment]
    id: np.ndarray = None  # type: ignore[assignment]
    specimen: np.ndarray = None  # type: ignore[assignment]
    content: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self):
        count = len(self)
        defaults = {
            "boxes": np.zeros((count, 0, 4), np.float32), "labels": np.zeros((count, 0), np.int32),
            "domain": np.zeros(count, np.int32), "id": np.full(count, ""), "specimen": np.full(count, ""),
            "content": self.name,
        }  # fmt: skip
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def __len__(self):
        return len(self.images)

    def take(self, rows):
        """Returns the samples of the given rows (an integer or boolean index)."""
        return Samples(**{f.name: getattr(self, f.name)[rows] for f in dataclasses.fields(self)})

    def select_domain(self, domain, columns):
        """Returns the samples of one domain, with only the landmarks in `columns` (a slice)."""
        selected = self.take(self.domain == domain)
        return dataclasses.replace(selected, points=selected.points[:, columns], visible=selected.visible[:, columns])

    @property
    def digest(self) -> str:
        """SHA-256 of the images' names, the groups, landmarks, boxes and labels; the pixels do not enter."""
        marks = [np.round(np.where(is_present[..., None], coordinates, 0), 2) for is_present, coordinates in
                 ((self.visible, self.points), (self.labels >= 0, self.boxes))]  # fmt: skip
        digest = hashlib.sha256("\n".join(self.name.tolist()).encode())
        for array in (self.group, self.visible, self.labels, *marks):
            digest.update(array.tobytes())
        return digest.hexdigest()

    @property
    def source_points(self):
        """(N, K, 2) float64 landmarks in the photographs' pixels."""
        return to_source(self.to_source, self.points)

    @property
    def delta(self):
        """(N,) float64, the side of a pixel of the frame in the photographs' pixels (geometric mean of both axes)."""
        return np.sqrt(np.abs(np.linalg.det(self.to_source[:, :, :2])))


def to_source(affine, points):
    """Maps points (N, K, 2) of the frame through the (N, 2, 3) affines to source pixels, float64."""
    return np.einsum("nij,nkj->nki", affine[:, :, :2], points.astype(np.float64)) + affine[:, None, :, 2]


def stack_padded(arrays: Sequence[np.ndarray], *, fill=0, length: int | None = None) -> np.ndarray:
    """Stacks arrays (n, ...) of different n as (N, `length`, ...), padded with `fill`; by default to the largest n."""
    length = max(map(len, arrays)) if length is None else length
    pads = lambda array: [(0, length - len(array)), *[(0, 0)] * (array.ndim - 1)]
    return np.stack([np.pad(array, pads(array), constant_values=fill) for array in arrays])


def concatenate(parts):
    """Joins several `Samples` of the same frame and landmark count."""
    return Samples(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(Samples)})
