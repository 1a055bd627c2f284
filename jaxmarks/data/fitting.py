"""What a config's `data` leaves open, as the photographs suggest it: the frame, how a second look is taken, and of objects the
scale."""

import contextlib
import math

import numpy as np

from jaxmarks.data import formats, objects
from jaxmarks.data.loading import of_set
from jaxmarks.data.photographs import finder, image_size, some
from jaxmarks.data.samples import Annotation
from jaxmarks.ops.frames import FILL, frame

# Of a frame in the photographs' proportions: its sides are multiples of this, for networks halve them.
STEP = 16
# So many pixels a frame may have, however few the photographs have.
FEW = 192 * 256
# What a config's `data` says of a single look, at the photograph as it lies.
ONCE = {"zoom": 1.0, "pose": "upright"}
# A second look is up to so many times as closely as the first, in photographs of so many pixels at most, all of which are in
# memory; and is not worth while below so many times.
MOST, LARGE, NEARLY = 4.0, 16 * FEW, 1.2
# For a second look as specimens lie: of the landmarks' variance what one strays from another, at most; the share of those
# that are mirrored, at least; and how long the mean of their directions is, at least, where they lie alike.
STRAY, SOME, ALIKE = 0.02, 0.05, 0.9


def fill_in(spec) -> None:
    """Sets what a config's `data` leaves open: of landmarks the `size` (), the `zoom` 0 and the `pose` "", of objects the
    `scale` 0.

    The median photograph has `pixels` in the size, or a little more, but no more than it has itself, or than `FEW` if
    that is more. Photographs are those that have landmarks, of all `sets`; where none can be read the frame is 4:3. Of the
    zoom see `zoom`, of the pose `pose`, of the scale `objects.fitting_scale`; where nothing is read or each photograph is
    brought whole into the frame they are 1 and "upright".
    """
    if "boxes" in spec:
        if not spec.scale:
            own = spec.images and spec.boxes and spec.fit == "tile"
            spec.scale = objects.fitting_scale(spec.images, spec.boxes, side=spec.side) if own else 1.0
        return
    left = [key for key, value in (("pose", ""), ("zoom", 0)) if spec.get(key) == value]
    if left and spec.sets:  # each is looked at whole
        spec.update({key: ONCE[key] for key in left})
        left = []
    if len(spec.size) and not left:
        return
    found = [one for name in spec.sets or ("",) for one in _annotated(of_set(spec, name))]
    if not len(spec.size):
        height, width = np.transpose([size for _, size in found] or [(3, 4)])
        tall = np.exp(np.median(np.log(height / width)) / 2)  # the side of a square of one pixel becomes that tall
        pixels = min(spec.pixels, max(FEW, np.median(height * width))) if found else spec.pixels
        sides = np.sqrt(pixels) * np.array([tall, 1 / tall])
        spec.size = tuple(STEP * max(1, math.ceil(side / STEP - 0.15)) for side in sides)  # 194 is 192
    if "pose" in left:
        spec.pose = pose([annotation for annotation, _ in found])
    if "zoom" in left:
        turned = spec.pose != ONCE["pose"]
        spec.zoom = zoom(found, tuple(spec.size), spec.fit, turned=turned)


def pose(annotations: list[Annotation]) -> str:
    """How specimens lie: "mirrored" where some are the mirror image of others, "turned" where they lie at any angle.

    Else, or where their shapes have little in common, it is "upright". They are laid over the one, of some that show the
    most, from which they stray least.
    """
    fullest = sorted(annotations, key=lambda one: -one.visible.sum())[:9]
    over = [np.array([fit for one in annotations if (fit := _fit(one, reference))]) for reference in fullest]
    over = [fits for fits in over if len(fits)]
    if not over:
        return "upright"
    strays, angles, mirrored = min(over, key=lambda fits: np.median(fits[:, 0])).T
    if np.median(strays) > STRAY:
        return "upright"
    if SOME <= np.mean(mirrored) <= 1 - SOME:
        return "mirrored"
    return "turned" if abs(np.exp(1j * angles).mean()) < ALIKE else "upright"


def _fit(one: Annotation, reference: Annotation) -> tuple[float, float, bool] | None:
    """How far a specimen strays from another, laid over it, by which angle, and whether mirrored: as it is it strays too far.

    None where they show fewer than three of the same landmarks.
    """
    both = one.visible & reference.visible
    if both.sum() < 3:
        return None
    z, onto = (each - each.mean() for each in np.array([one.points[both], reference.points[both]]) @ [1, 1j])
    fits = np.array([np.vdot(z, onto), np.vdot(z.conj(), onto)])
    away = 1 - abs(fits) ** 2 / max(np.vdot(z, z).real * np.vdot(onto, onto).real, 1e-12)
    mirrored = int(away[0] > STRAY and away[1] < away[0] / 2)
    return away[mirrored], np.angle(fits[mirrored]), bool(mirrored)


def zoom(found: list[tuple[Annotation, tuple[int, int]]], size, fit, *, turned=False) -> float:
    """How closely, to two digits, a network must look for the landmarks to fill its view as `views` have it.

    It is 1 where they nearly do in the whole photograph, `MOST` at most, and brings out no more pixels than there are, nor
    than `LARGE`, but for its rounding.

    Args:
      found: photographs' landmarks, and their (height, width).
      size: (H, W) of the network's frame.
      fit: how photographs lie in it.
      turned: whether views are turned as specimens lie.
    """
    shares, pixels = [], []
    for annotation, source in found:
        points = annotation.points[annotation.visible]
        if len(points) > 1 and 2 * len(points) >= len(annotation.visible):  # else nobody knows how far they reach
            step = np.diag(np.array(frame(source, size, fit))[:, :2])
            shares.append(max(_extents(points / step, turned=turned, tall=size[0] > size[1]) / size[::-1]))
            pixels.append(max(step))
    if not shares or not (share := np.median(shares)) > 0:
        return 1.0
    closer = min(FILL / share, float(np.median(pixels)), MOST, math.sqrt(LARGE / math.prod(size)))
    return 1.0 if closer < NEARLY else float(f"{closer:.2g}")


def _extents(points, *, turned, tall):
    """The width and height of landmarks (K, 2), `turned` so that the larger is the width, or, `tall`, the height."""
    if not turned:
        return np.ptp(points, axis=0)
    z = (points - points.mean(0)) @ [1, 1j]
    z = z * np.exp(-0.5j * np.angle((z**2).sum())) * (1j if tall else 1)
    return np.array([np.ptp(z.real), np.ptp(z.imag)])


def _annotated(spec):
    """The landmarks and (height, width) of some photographs; what is wrong with the others the loading tells."""
    if not (spec.images and spec.landmarks):
        return []
    find, found = finder(spec.images), []
    for annotation in some(formats.read(spec.landmarks, spec.images, [], curves=spec.curves)):
        with contextlib.suppress(OSError):
            found.append((annotation, image_size(find(annotation.image))))
    return found
