"""Scout triples of heads in random poses, cut from one volume with known anatomy, with the exact volume to acquire.

The volume to acquire is the smallest box around the brain along the axes of the AC-PC frame: x to the right, normal to
the mid-sagittal plane, and y from the posterior to the anterior commissure. The landmarks are anatomical fiducials
(AFIDs, Lau et al. 2019) and the centres of the box's faces; a scout shows each at its perpendicular projection onto the
scout's plane. The head is a person's, or drawn from ellipsoids; pose, size, deformation and contrast are random.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy

from jaxmarks.data import scans, scouts, slices
from jaxmarks.data.formats import slicer
from jaxmarks.data.samples import FormatError, Samples
from jaxmarks.data.slices import PLANES, Scout

# AFIDs by their number in the protocol: those on the mid-sagittal plane, and pairs (right, left).
AC, PC = 1, 2
MIDLINE = (1, 2, 3, 4, 5, 10, 11, 14, 19, 20)
PAIRS = ((6, 7), (8, 9), (12, 13), (15, 16), (17, 18), (21, 22), (23, 24), (25, 26), (27, 28), (29, 30), (31, 32))
NAMES = {
    1: "AC", 2: "PC", 4: "pontomesencephalic junction", 10: "culmen", 15: "right lateral ventricle at AC",
    16: "left lateral ventricle at AC", 19: "genu of corpus callosum", 20: "splenium of corpus callosum",
}  # fmt: skip
# The centres of the box's faces, as shares of its sides, from its centre.
FACES = {
    "right": (0.5, 0, 0), "left": (-0.5, 0, 0), "anterior": (0, 0.5, 0), "posterior": (0, -0.5, 0),
    "superior": (0, 0, 0.5), "inferior": (0, 0, -0.5),
}  # fmt: skip
# The landmarks located in each plane: AFIDs, and faces. A network outputs all of them in this order.
SOUGHT = {
    "sagittal": ((1, 2, 4, 10, 19, 20), ("superior", "inferior", "anterior", "posterior")),
    "coronal": ((1, 15, 16), ("superior", "inferior", "left", "right")),
    "axial": ((1, 2, 19, 20), ("anterior", "posterior", "left", "right")),
}
LANDMARKS = tuple(
    (plane, name) for plane, (numbers, faces) in SOUGHT.items() for name in (*(NAMES[n] for n in numbers), *faces)
)
PLANE_OF = np.array([PLANES.index(plane) for plane, _ in LANDMARKS])
# Levels at which the brain's cross-section is a smaller share of its largest are cut off: the spinal cord has no end.
CROSS_SECTION = 0.02
# The range of the distance between AC and PC in adults, mm, with a margin.
AC_PC = 15.0, 40.0
# The most degrees that a patient's head is turned in the scanner; beyond it the orientation in the files is wrong.
TURN_LIMIT = 60.0
# The largest distance of midline points from their plane, mm; AC's usual position in the box, and the largest deviation
# from it along an axis, in shares of the box's sides.
OFF_PLANE, AC_SHARE, AC_OFF = 6.0, (0.0, 0.11, -0.06), 0.15
# The largest voxels that show the commissures, and the shortest volume that shows a head, mm.
VOXEL, EXTENT = 5.0, 100.0


class Person(NamedTuple):
    """A volume with its anatomy, in millimetres from the centre of its box along the box's axes ("head axes").

    Attributes:
      voxels: (I, J, K) float32, not negative, the brain's roughly in [0, 1].
      brain: (I, J, K) bool, the brain's mask.
      to_voxel: (3, 4), affine from head axes to voxel indices.
      fiducials: (32, 3), AFIDs in order; NaN where one was not marked.
      surface: (S, 3), the vertices of the brain's convex hull.
      size: (3,) of the box.
    """

    voxels: np.ndarray
    brain: np.ndarray
    to_voxel: np.ndarray
    fiducials: np.ndarray
    surface: np.ndarray
    size: np.ndarray


class Volumes(NamedTuple):
    """The ground truth of T scout triples, and the landmarks' positions in a typical volume.

    Attributes:
      planes: image name -> the plane (3, 3) of the scout, in RAS mm.
      names: (T,), names of the triples; the keys of `planes` are `NAME_sagittal` and so on.
      centre, rotation, size: (T, 3), (T, 3, 3), (T, 3), of the volumes to acquire, in RAS mm.
      template: {"shares": (K, 3), "size": (3,)} as lists, of the head from which the scouts were cut: the landmarks as
        shares of the box's sides from its centre, and the box's sides in mm.
    """

    planes: dict[str, np.ndarray]
    names: np.ndarray
    centre: np.ndarray
    rotation: np.ndarray
    size: np.ndarray
    template: dict


# One person


def read(volume, landmarks) -> Person:
    """Reads a person from a NIfTI volume and its AFIDs (`formats.slicer`).

    Raises:
      FormatError: one of the files cannot be read or lacks something, or they do not fit together.
    """
    voxels, affine, _ = scans.nifti(volume)
    voxels, affine = reorient_to_ras(voxels, affine)
    fiducials = read_fiducials(landmarks)
    advice = "give a T1-weighted volume of a whole head"
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    if (sides > VOXEL).any() or (sides * voxels.shape < EXTENT).any():
        raise FormatError(
            volume, "", f"{voxels.shape} voxels of {sides.round(2).tolist()} mm are too coarse or too few", advice
        )
    if not np.isfinite(voxels).all():
        raise FormatError(volume, "", f"{(~np.isfinite(voxels)).sum()} voxels are NaN or infinite", "set them to 0")
    if voxels.max() <= 0:
        raise FormatError(volume, "", f"no voxel is above 0, the largest is {voxels.max():g}", advice)
    check_fiducials(fiducials, voxels.shape, affine, volume, landmarks)
    voxels = np.clip(voxels, 0, None)
    seed = np.linalg.inv(affine) @ [*fiducials[AC - 1], 1]
    brain = brain_of(voxels, affine, seed[:3], volume)
    person = build(voxels / np.quantile(voxels[brain], 0.99), brain, affine, fiducials)
    ac_share = person.fiducials[AC - 1] / person.size
    if np.abs(ac_share - AC_SHARE).max() > AC_OFF:
        raise FormatError(
            landmarks, "AC",
            f"it lies at {ac_share.round(2).tolist()} of the sides of the brain's box in {volume}, from its centre,"
            f" far from the usual {list(AC_SHARE)}", "give the AFIDs of this volume",
        )  # fmt: skip
    return person


def reorient_to_ras(voxels, affine):
    """Reorders a volume's axes, and its affine, to be as near to R, A and S as possible, however it is stored."""
    import nibabel  # available, as it has read the volume

    order = nibabel.io_orientation(affine)
    to_stored = nibabel.orientations.inv_ornt_aff(order, voxels.shape)
    return nibabel.apply_orientation(voxels, order), affine @ to_stored


def check_fiducials(fiducials, shape, affine, volume, file) -> None:
    """Checks that AFIDs (32, 3) lie in their volume as those of a head do; raises FormatError otherwise."""
    voxel_indices = (fiducials - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    for number, index in enumerate(voxel_indices, 1):
        if ((index < -0.5) | (index > np.array(shape) - 0.5)).any():
            raise FormatError(
                file, NAMES.get(number, f"AFID {number}"),
                f"{fiducials[number - 1].tolist()} mm is outside the volume {volume}", "give the AFIDs of this volume",
            )  # fmt: skip
    distance = np.linalg.norm(fiducials[AC - 1] - fiducials[PC - 1])
    if not AC_PC[0] <= distance <= AC_PC[1]:
        raise FormatError(
            file, "AC, PC", f"they are {distance:.1f} mm apart, not {AC_PC[0]:g} to {AC_PC[1]:g}", "mark them anew"
        )
    axes = axes_of(fiducials)
    turn = np.degrees(scipy.spatial.transform.Rotation.from_matrix(axes).magnitude())
    if turn > TURN_LIMIT:
        raise FormatError(
            file, "", f"according to the AFIDs the head is rotated by {turn:.0f} degrees from the RAS axes",
            "check the coordinate system, and whether AC and PC, or right and left, are exchanged",
        )  # fmt: skip
    midline = np.array([fiducials[k - 1] for k in MIDLINE]) @ axes[:, 0]
    offsets = np.abs(midline - np.median(midline))
    if offsets.max() > OFF_PLANE:
        raise FormatError(
            file, f"AFID {MIDLINE[offsets.argmax()]}", f"{offsets.max():.1f} mm off the plane of the midline points",
            "check it and the other midline points, AFIDs " + ", ".join(map(str, MIDLINE)),
        )  # fmt: skip
    for right, left in PAIRS:
        if (fiducials[right - 1] - fiducials[left - 1]) @ axes[:, 0] < 0:
            raise FormatError(
                file, f"AFIDs {right}, {left}", "the right one lies left of the left one", "exchange their labels"
            )


def read_fiducials(path) -> np.ndarray:
    """Reads the AFIDs of a 3D Slicer file: (32, 3) RAS mm, NaN for those that it does not have.

    Raises:
      FormatError: as `slicer.read`; AC, PC or another required AFID is missing; a label is not a number from 1 to 32,
        or occurs twice.
    """
    fiducials = np.full((32, 3), np.nan)
    for label, place, where in slicer.read(path):
        number = int(label) if label.strip().isdecimal() else 0
        if not 1 <= number <= 32:
            raise FormatError(where, "", f"label {label!r} is not the number of an AFID", "write 1 to 32")
        if np.isfinite(fiducials[number - 1]).all():
            raise FormatError(where, "", f"a second AFID {number}", "delete one of the two")
        fiducials[number - 1] = place
    missing = [k for k in sorted({*NAMES, *MIDLINE}) if not np.isfinite(fiducials[k - 1]).all()]
    if missing:
        raise FormatError(path, "", f"AFIDs {', '.join(map(str, missing))} are missing", "mark all of them")
    return fiducials


def brain_of(voxels, affine, seed, file) -> np.ndarray:
    """Segments the brain in a T1 volume: the bright component around AC, without thin bridges of dura to the skull.

    Works at about 2 mm; the threshold is the lowest of those tried at which the component has a brain's volume.
    """
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    step = np.maximum(1, np.round(2.0 / sides)).astype(int)
    trimmed = voxels[tuple(slice(n // s * s) for n, s in zip(voxels.shape, step, strict=True))]
    blocks = trimmed.reshape([m for n, s in zip(trimmed.shape, step, strict=True) for m in (n // s, s)])
    coarse = blocks.mean((1, 3, 5))
    spacing = sides * step
    bright = np.quantile(coarse[coarse > 0.05 * coarse.max()], 0.98)
    for threshold in np.arange(0.35, 0.66, 0.025):
        mask = coarse > threshold * bright
        core = scipy.ndimage.distance_transform_edt(mask, spacing) > 5.5
        components, _ = scipy.ndimage.label(core)
        if not core.any():
            break
        _, nearest = scipy.ndimage.distance_transform_edt(components == 0, spacing, return_indices=True)
        seed_block = tuple(np.clip(np.round(seed / step).astype(int), 0, np.array(coarse.shape) - 1))
        component = components[tuple(nearest[(slice(None), *seed_block)])]
        brain = mask & (scipy.ndimage.distance_transform_edt(components != component, spacing) <= 6.5)
        litres = brain.sum() * spacing.prod() / 1e6
        if 0.8 <= litres <= 1.9:
            full = brain.repeat(step[0], 0).repeat(step[1], 1).repeat(step[2], 2)
            return np.pad(full, [(0, n - m) for n, m in zip(voxels.shape, full.shape, strict=True)], mode="edge")
    raise FormatError(file, "", "no brain of 0.8 to 1.9 litres was found", "give a T1-weighted volume of a head")


def axes_of(fiducials) -> np.ndarray:
    """Returns the AC-PC frame (3, 3) of AFIDs (32, 3) in mm: its columns are the directions right, front and up.

    The first is fitted by least squares to be parallel to the pairs' differences and normal to the plane of the midline
    points, which weigh more because the halves of a brain are shifted against each other. The second is the direction
    from PC to AC, made orthogonal to the first.
    """
    pairs = np.array([fiducials[r - 1] - fiducials[l - 1] for r, l in PAIRS])
    midline = np.array([fiducials[k - 1] for k in MIDLINE])
    pairs = pairs[np.isfinite(pairs).all(1)]
    spread = midline - midline.mean(0)
    _, vectors = np.linalg.eigh(pairs.T @ pairs - 30 * spread.T @ spread)
    right = vectors[:, -1]
    rightwards = pairs.sum(0) if len(pairs) else np.array([1.0, 0, 0])
    right = right * np.sign(right @ rightwards)
    front = fiducials[AC - 1] - fiducials[PC - 1]
    front = front - (front @ right) * right
    front /= np.linalg.norm(front)
    return np.stack([right, front, np.cross(right, front)], axis=-1)


def build(voxels, brain, affine, fiducials) -> Person:
    """Makes a Person of a volume, its affine (4, 4) and AFIDs in RAS mm: finds the box and converts to head axes."""
    axes = axes_of(fiducials)
    in_axes = lambda mask: (np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]) @ axes
    low, high = np.transpose([limits(values) for values in in_axes(brain).T])
    points = in_axes(brain & ~scipy.ndimage.binary_erosion(brain))
    points = points[((points >= low) & (points <= high)).all(1)]
    middle = (points.min(0) + points.max(0)) / 2
    points = (points - middle).astype(np.float32)
    # From the centres of the outermost voxels to their outer faces.
    points *= 1 + 0.5 * abs(np.linalg.det(affine[:3, :3])) ** (1 / 3) / np.linalg.norm(points, axis=1, keepdims=True)
    # Points inside the hull are outermost in no pose, and hardly ever after a smooth deformation.
    points = points[scipy.spatial.ConvexHull(points).vertices]
    inverse = np.linalg.inv(affine[:3, :3])
    to_voxel = np.concatenate([inverse @ axes, (inverse @ (axes @ middle - affine[:3, 3]))[:, None]], axis=1)
    return Person(voxels.astype(np.float32), brain, to_voxel, fiducials @ axes - middle, points, np.ptp(points, axis=0))


def limits(values) -> tuple[float, float]:
    """Returns the levels (mm) between which the brain's cross-section is large enough.

    `values` (V,) are the coordinates of its voxels along one axis.
    """
    counts, levels = np.histogram(values, bins=np.arange(values.min(), values.max() + 2, 2.0))
    enough = np.flatnonzero(counts >= CROSS_SECTION * counts.max())
    return levels[enough[0]], levels[enough[-1] + 1]


def template(person: Person) -> dict:
    """Returns the landmarks' positions in the head's box, as in `Volumes.template`."""
    shares = landmarks_of(person.fiducials / person.size, {name: np.array(share) for name, share in FACES.items()})
    return {"shares": shares.astype(float).tolist(), "size": person.size.astype(float).tolist()}


def landmarks_of(fiducials, faces: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the landmarks (K, 3) from AFIDs (32, 3) and the centres of the box's faces."""
    places = {name: fiducials[number - 1] for number, name in NAMES.items()} | faces
    return np.array([places[name] for _, name in LANDMARKS])


def phantom(*, pixel: float = 2.0) -> Person:
    """Draws a person from ellipsoids in voxels of `pixel` mm, with fiducials where a head has them, for trials."""
    axes = [np.arange(-extent, extent, pixel) for extent in (100.0, 124.0, 116.0)]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    ellipsoid = lambda c, r: ((x - c[0]) / r[0]) ** 2 + ((y - c[1]) / r[1]) ** 2 + ((z - c[2]) / r[2]) ** 2 < 1
    brain = ellipsoid((0, 0, 10), (70, 88, 64)) | ellipsoid((0, -50, -42), (48, 34, 28))
    voxels = 0.75 * (ellipsoid((0, 0, 4), (88, 106, 88)) & ~ellipsoid((0, 0, 5), (80, 97, 80)))
    voxels = np.where(ellipsoid((0, -20, -95), (50, 55, 60)) & (voxels == 0) & (z < -60), 0.5, voxels)
    voxels = np.where(brain, 0.62 + 0.1 * ellipsoid((0, 0, 12), (54, 70, 48)), voxels)
    fiducials = np.full((32, 3), np.nan)
    fiducials[[k - 1 for k in MIDLINE]] = [
        (0, 18, 0), (0, -9, 0), (0, -22, -8), (0, -6, -22), (0, 2, -10), (0, -36, 4), (0, 8, -15), (0, -15, 3),
        (0, 48, 8), (0, -22, 12),
    ]  # fmt: skip
    fiducials[[14, 15]] = [(16, 21, 30), (-16, 21, 30)]
    for side in (9, -9):  # ventricles, whose tips are the pair at AC
        voxels = np.where(ellipsoid((side, 8, 22), (8, 32, 9)), 0.2, voxels)
    for number, level in ((1, 1.0), (2, 1.0), (19, 1.0), (20, 0.95), (10, 0.3), (4, 0.95), (15, 0.25), (16, 0.25)):
        voxels = np.where(ellipsoid(fiducials[number - 1], (9, 5, 5)), level, voxels)
    affine = np.diag([pixel, pixel, pixel, 1.0])
    affine[:3, 3] = [a[0] for a in axes]
    return build(scipy.ndimage.gaussian_filter(voxels.astype(np.float32), 0.6), brain, affine, fiducials)


# Random scouts of a person


class SyntheticTriple(NamedTuple):
    """A triple of scouts by plane, its landmarks (K, 3) in RAS mm, and the volume to acquire."""

    scouts: dict[str, Scout]
    landmarks: np.ndarray
    centre: np.ndarray
    rotation: np.ndarray
    size: np.ndarray


# Control points of the elastic deformation along each axis, and half the side of the cube in which they lie, mm.
KNOTS, REACH = 5, 150.0
# The deformation's left-right antisymmetric part relative to its symmetric one: heads differ more than their halves do.
ASYMMETRY = 0.2


def random_rotation(rng, most: float) -> np.ndarray:
    """Draws a rotation (3, 3) by up to `most` degrees either way about each of x, y and z."""
    return scipy.spatial.transform.Rotation.from_euler("xyz", rng.uniform(-most, most, 3), degrees=True).as_matrix()


def draw(
    person: Person, rng: np.random.Generator, *, turn=20.0, tilt=8.0, elastic=1.0, pixel=(1.4, 2.2)
) -> SyntheticTriple:
    """Draws scouts of a randomly deformed head in a random pose.

    Args:
      person: the head before the deformation, which moves its voxels and points alike.
      rng: the source of all randomness.
      turn: the most degrees by which the head is turned about each axis.
      tilt: the most degrees by which each slice is turned about each axis.
      elastic: standard deviation, mm, of the control points of a smooth, nearly left-right symmetric deformation;
        besides, the head is scaled by 6 % as a whole and by 5 % along each axis (standard deviations).
      pixel: range of the side of the scouts' pixels, mm.
    """
    scale = np.exp(rng.normal(0, 0.06) + rng.normal(0, 0.05, 3))
    pose = random_rotation(rng, turn)
    shift = rng.uniform(-25, 25, 3)
    knots = rng.normal(0, elastic, (3, KNOTS, KNOTS, KNOTS)).astype(np.float32)
    mirrored = np.array([-1, 1, 1], np.float32)[:, None, None, None] * knots[:, ::-1]
    knots = ((1 + ASYMMETRY) * knots + (1 - ASYMMETRY) * mirrored) / np.sqrt(2 + 2 * ASYMMETRY**2)
    flow = np.stack([scipy.ndimage.zoom(k, 4, order=3, mode="nearest", grid_mode=True) for k in knots])

    def bend(points):
        """Maps points (..., 3) of the deformed head to those of the person that are shown there, both in head axes."""
        at = np.moveaxis((points + REACH) * (4 * KNOTS / (2 * REACH)) - 0.5, -1, 0)
        return points + np.stack([scipy.ndimage.map_coordinates(f, at, order=1, mode="nearest") for f in flow], axis=-1)

    def to_ras(points):
        """Maps points (N, 3) of the person to RAS mm: inverts `bend` by fixed-point iteration, scales, and poses."""
        deformed = points
        for _ in range(12):
            deformed = points - (bend(deformed) - deformed)
        return deformed * scale @ pose.T + shift

    surface, fiducials = to_ras(person.surface), to_ras(person.fiducials)
    axes = axes_of(fiducials)
    low, high = (surface @ axes).min(0), (surface @ axes).max(0)
    centre, size = axes @ (low + high) / 2, high - low
    faces = {name: centre + axes @ (np.array(share) * size) for name, share in FACES.items()}
    landmarks = landmarks_of(fiducials, faces)

    appearance = Appearance(rng)
    triple = {}
    for name in PLANES:
        # An operator lets the slices cross near the commissures; each slice is somewhat off.
        offset = np.array([rng.uniform(-8, 8), rng.uniform(-15, 15), rng.uniform(-15, 15)])
        target = centre + pose @ (np.array([0.0, 4.0, 0.0]) + offset)
        slant = random_rotation(rng, tilt)
        spacing, count = rng.uniform(*pixel), int(rng.integers(132, 168))
        right, down = (slant @ np.array(v, float) for v in scouts.SHOWN[name])
        # The centre of the field of view, off that of the head.
        view_centre = target + right * rng.uniform(-12, 12) + down * rng.uniform(-12, 12)
        plane = np.stack([right * spacing, down * spacing, view_centre - (right + down) * spacing * count / 2], axis=-1)
        y, x = np.mgrid[:count, :count] + 0.5
        ras_points = np.stack([x, y, np.ones_like(x)], -1) @ plane.T
        head_points = bend((ras_points - shift) @ pose / scale)
        triple[name] = Scout(appearance(person, head_points), plane, name, f"a drawn {name} scout")
    return SyntheticTriple(triple, landmarks, centre, axes, size)


class Appearance:
    """An examination's random appearance, the same for all slices: contrast, shading, noise level, end of the field."""

    def __init__(self, rng):
        levels = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.3])
        self.levels = levels
        self.values = np.clip(levels + rng.normal(0, 0.07, 7) * (rng.random() < 0.7), 0.02, None)
        self.values[0] = 0
        self.gamma = np.exp(rng.normal(0, 0.25))
        self.slopes = rng.normal(0, 0.25, 3)
        self.bend = rng.normal(0, 0.15, 3)
        self.noise = rng.uniform(0.005, 0.06)
        self.goes_on = rng.random() < 0.5  # repeats the volume's border outside it, which below looks like a neck
        self.floor = rng.uniform(-135, -85)
        self.stripped = rng.random() < 0.12
        self.line = rng.random() < 0.15
        self.rng = rng

    def __call__(self, person: Person, local):
        """Renders the slice (H, W) whose pixels show the person at points `local` (H, W, 3) in head axes."""
        voxel_indices = np.moveaxis(local @ person.to_voxel[:, :3].T + person.to_voxel[:, 3], -1, 0)
        mode = "nearest" if self.goes_on else "constant"
        image = scipy.ndimage.map_coordinates(person.voxels, voxel_indices, order=1, mode=mode, output=np.float32)
        image *= local[..., 2] > self.floor
        if self.stripped:
            image *= scipy.ndimage.map_coordinates(person.brain.view(np.uint8), voxel_indices, order=0, mode="constant")
        image = np.interp(image, self.levels, self.values) ** self.gamma
        unit = local / 100
        image *= np.exp(np.clip(unit @ self.slopes + unit**2 @ self.bend, -1, 1))
        noise = self.noise * self.rng.standard_normal((2, *image.shape))
        image = np.hypot(image + noise[0], noise[1])  # the magnitude of a complex signal (Rice)
        if self.line:
            image[:, -1] = image[0] = 1.5
        return (1000 * image).astype(np.float32)


def load(spec) -> tuple[Samples, Volumes, Callable]:
    """Draws the Samples of a config's `data`: `count` scout triples of the volume that it names, or of the phantom.

    A triple is a group; a landmark is visible only in images of its own plane.

    Returns:
      The samples (3 * count, named like "0017_axial"), the ground truth, and a function from a name to the scout as a
      photograph (H, W, 3) uint8.
    """
    if bool(spec.volume) != bool(spec.landmarks):
        missing = "landmarks" if spec.volume else "volume"
        raise ValueError(
            f"--config.data.{missing} is empty: your own head needs both --config.data.volume=NIFTI and"
            " --config.data.landmarks=FCSV"
        )
    if spec.size[0] != spec.size[1]:
        raise ValueError(f"--config.data.size={tuple(spec.size)}: scouts need a square frame")
    person = read(spec.volume, spec.landmarks) if spec.volume else phantom()
    size, count = tuple(spec.size), spec.count

    def draw_triple(i):
        rng = np.random.default_rng((spec.seed, i))
        return draw(person, rng, turn=spec.turn, tilt=spec.tilt, elastic=spec.elastic)

    def photograph(name):
        i, plane = name.split("_")
        source = draw_triple(int(i)).scouts[plane]
        image = scouts.cleaned(source.image, np.linalg.norm(source.plane[:, :2], axis=0)[::-1])
        return np.round(255 * image).astype(np.uint8)[..., None].repeat(3, -1)

    # One triple at a time, because the scouts of all at their own resolution would not fit in memory.
    columns: dict[str, list] = {f.name: [] for f in dataclasses.fields(Samples) if f.default is dataclasses.MISSING}
    planes, truth = {}, []
    for i in range(count):
        triple = draw_triple(i)
        truth.append((triple.centre, triple.rotation, triple.size))
        for plane_index, (plane, source) in enumerate(triple.scouts.items()):
            framed, name = scouts.framed(source, size, spec.spacing), f"{i:04d}_{plane}"
            points = slices.pixels(framed.plane, triple.landmarks)
            inside = ((points >= 0) & (points <= size[::-1])).all(-1)
            planes[name] = source.plane
            row = {
                "images": framed.image[..., None],
                "points": points.astype(np.float32),
                "visible": inside & (PLANE_OF == plane_index),
                "group": i,
                "name": name,
                "to_source": framed.to_source,
                "mm_per_px": np.sqrt(np.linalg.norm(source.plane[:, :2], axis=0).prod()),
                "source_size": source.image.shape,
            }
            for key, value in row.items():
                columns[key].append(value)
    samples = Samples(**{key: np.array(values) for key, values in columns.items()})
    names = np.array([f"{i:04d}" for i in range(count)])
    centre, rotation, sides = (np.array(column) for column in zip(*truth, strict=True))
    return samples, Volumes(planes, names, centre, rotation, sides, template(person)), photograph
