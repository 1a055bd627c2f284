"""Chooses what a config's `data` leaves open to suit the photographs: frame, second look, and the scale of objects."""

import contextlib
import math

import numpy as np

from jaxmarks.data import formats, objects
from jaxmarks.data.loading import of_set
from jaxmarks.data.photographs import finder, image_size, subsample
from jaxmarks.data.samples import Annotation
from jaxmarks.ops.frames import FILL, frame

# The sides of a frame in the photographs' proportions are multiples of this, because networks halve them.
STEP = 16
# A frame may have this many pixels even where the photographs have fewer.
MIN_PIXEL_BUDGET = 192 * 256
# The values of a config's `data` for a single look, at the whole photograph without rotation.
SINGLE_LOOK = {"zoom": 1.0, "pose": "upright"}
# The second look's largest magnification; the most pixels of a whole frame so magnified, as all frames are held in
# memory; and the magnification below which a second look is not worth while.
MAX_ZOOM, MAX_FRAME_PIXELS, MIN_ZOOM = 4.0, 16 * MIN_PIXEL_BUDGET, 1.2
# For the pose, from specimens laid over a reference: the largest residual, as a share of the landmarks' variance, at
# which shapes agree; the smallest share of mirrored specimens that counts; and the smallest length of the mean of the
# unit vectors of their directions at which they lie alike.
MAX_RESIDUAL, MIN_MIRRORED_SHARE, MIN_ALIGNMENT = 0.02, 0.05, 0.9


def fill_in(spec) -> None:
    """Sets what a config's `data` leaves open.

    That is `size` (), `zoom` 0 and `pose` "" of landmarks, `scale` 0 and `overlap` 0 of objects.

    The frame has the median proportions of the photographs that have landmarks, of all `sets`, and about `pixels`
    pixels, but not more than the median photograph, or than `MIN_PIXEL_BUDGET` if that is more. If no photograph can be
    read it is 4:3. `zoom`, `pose`, `objects.fitting_scale` and `objects.fitting_overlap` choose the other values, which
    are 1, "upright" and `min_overlap` if no photograph can be read, if there are `sets`, and, for objects, if whole
    photographs are fitted into the frame. An `overlap` of 0 without a `min_overlap`, in older runs, is not open.
    """
    if "boxes" in spec:
        open_overlap = not spec.overlap and "min_overlap" in spec
        is_tiled = spec.images and spec.boxes and spec.fit == "tile"
        object_sides: dict[str, float] = {}
        if is_tiled and (open_overlap or not spec.scale):
            object_sides = objects.typical_sides(spec.images, spec.boxes)
        spec.scale = spec.scale or objects.fitting_scale(object_sides, side=spec.side)
        if open_overlap:
            spec.overlap = objects.fitting_overlap(
                object_sides, scale=spec.scale, size=spec.size, minimum=spec.min_overlap
            )
        return
    open_keys = [key for key, value in (("pose", ""), ("zoom", 0)) if spec.get(key) == value]
    if open_keys and spec.sets:  # of several datasets each photograph is looked at whole
        spec.update({key: SINGLE_LOOK[key] for key in open_keys})
        open_keys = []
    if len(spec.size) and not open_keys:
        return
    photographs = [one for name in spec.sets or ("",) for one in _annotated(of_set(spec, name))]
    if not len(spec.size):
        height, width = np.transpose([size for _, size in photographs] or [(3, 4)])
        unit_height = np.exp(np.median(np.log(height / width)) / 2)  # the height of a frame of area 1
        pixels = min(spec.pixels, max(MIN_PIXEL_BUDGET, np.median(height * width))) if photographs else spec.pixels
        sides = np.sqrt(pixels) * np.array([unit_height, 1 / unit_height])
        spec.size = tuple(STEP * max(1, math.ceil(side / STEP - 0.15)) for side in sides)  # 194 becomes 192
    if "pose" in open_keys:
        spec.pose = pose([annotation for annotation, _ in photographs])
    if "zoom" in open_keys:
        turned = spec.pose != SINGLE_LOOK["pose"]
        spec.zoom = zoom(photographs, tuple(spec.size), spec.fit, turned=turned)


def pose(annotations: list[Annotation]) -> str:
    """Returns how specimens lie: "mirrored" if some mirror others, "turned" if they lie at any angle, else "upright".

    Also "upright" where their shapes have little in common. All are laid over one reference: of the nine specimens with
    the most visible landmarks, the one with the smallest median residual.
    """
    references = sorted(annotations, key=lambda one: -one.visible.sum())[:9]
    all_fits = [np.array([fit for one in annotations if (fit := _fit(one, reference))]) for reference in references]
    all_fits = [fits for fits in all_fits if len(fits)]
    if not all_fits:
        return "upright"
    residuals, angles, mirrored = min(all_fits, key=lambda fits: np.median(fits[:, 0])).T
    if np.median(residuals) > MAX_RESIDUAL:
        return "upright"
    if MIN_MIRRORED_SHARE <= np.mean(mirrored) <= 1 - MIN_MIRRORED_SHARE:
        return "mirrored"
    return "turned" if abs(np.exp(1j * angles).mean()) < MIN_ALIGNMENT else "upright"


def _fit(one: Annotation, reference: Annotation) -> tuple[float, float, bool] | None:
    """Fits a specimen to `reference` by a similarity; returns the residual, the angle (radians) and whether it mirrors.

    The residual is a share of the landmarks' variance. The fit mirrors only if the residual is otherwise above
    `MAX_RESIDUAL` and mirroring more than halves it. None where the two share fewer than three visible landmarks.
    """
    shared = one.visible & reference.visible
    if shared.sum() < 3:
        return None
    z, target = (each - each.mean() for each in np.array([one.points[shared], reference.points[shared]]) @ [1, 1j])
    products = np.array([np.vdot(z, target), np.vdot(z.conj(), target)])
    residuals = 1 - abs(products) ** 2 / max(np.vdot(z, z).real * np.vdot(target, target).real, 1e-12)
    mirrored = int(residuals[0] > MAX_RESIDUAL and residuals[1] < residuals[0] / 2)
    return residuals[mirrored], np.angle(products[mirrored]), bool(mirrored)


def zoom(annotated: list[tuple[Annotation, tuple[int, int]]], size, fit, *, turned=False) -> float:
    """Returns the magnification, to two digits, at which landmarks typically take the share `FILL` of the second look.

    It is 1 where they nearly do so in the whole photograph. Otherwise it is at most `MAX_ZOOM`, exceeds neither the
    median photograph's resolution nor, in pixels of the whole frame, `MAX_FRAME_PIXELS`, except by rounding.

    Args:
      annotated: pairs of a photograph's landmarks and its (height, width).
      size: (H, W) of the network's frame.
      fit: how photographs are placed in the frame.
      turned: whether the second look is rotated as the specimen lies.
    """
    shares, steps = [], []
    for annotation, source_size in annotated:
        points = annotation.points[annotation.visible]
        if len(points) > 1 and 2 * len(points) >= len(annotation.visible):  # else their extent is unknown
            step = np.diag(np.array(frame(source_size, size, fit))[:, :2])
            shares.append(max(_extents(points / step, turned=turned, tall=size[0] > size[1]) / size[::-1]))
            steps.append(max(step))
    if not shares or not (share := np.median(shares)) > 0:
        return 1.0
    closer = min(FILL / share, float(np.median(steps)), MAX_ZOOM, math.sqrt(MAX_FRAME_PIXELS / math.prod(size)))
    return 1.0 if closer < MIN_ZOOM else float(f"{closer:.2g}")


def _extents(points, *, turned, tall):
    """Returns the width and height of landmarks (K, 2).

    If `turned`, their long axis is first rotated to the horizontal, or, if `tall`, to the vertical.
    """
    if not turned:
        return np.ptp(points, axis=0)
    z = (points - points.mean(0)) @ [1, 1j]
    z = z * np.exp(-0.5j * np.angle((z**2).sum())) * (1j if tall else 1)
    return np.array([np.ptp(z.real), np.ptp(z.imag)])


def _annotated(spec):
    """Returns landmarks and (height, width) of some photographs, without unreadable ones, which `loading` reports."""
    if not (spec.images and spec.landmarks):
        return []
    find, found = finder(spec.images), []
    for annotation in subsample(formats.read(spec.landmarks, spec.images, [], curves=spec.curves)):
        with contextlib.suppress(OSError):
            found.append((annotation, image_size(find(annotation.image))))
    return found
