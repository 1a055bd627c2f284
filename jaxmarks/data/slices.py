"""Slices of a patient and where they lie.

Space is the patient's in millimetres, RAS: x to the right, y to the front, z upwards. DICOM says LPS and is converted
at the border. A plane is a (3, 3) matrix whose columns are the steps in mm from one pixel to the next along x and
along y, and where the image's corner, the pixel (0, 0), lies: a continuous pixel (x, y) is at plane @ (x, y, 1).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy

from jaxmarks.data.samples import FormatError

# A plane's name by the patient's axis that its normal is nearest to.
PLANES = ("sagittal", "coronal", "axial")
# Beyond this angle from its axis a slice is of no plane.
OBLIQUE = 35.0
# More of a slice that is no number cannot be filled.
HOLES = 0.2
# Sides of a pixel, mm; others are of no scout, but written in another unit.
SIDES = 0.05, 20.0
# In what space a NIfTI file's places are, by the code of its sform or qform; DICOM's are the scanner's.
SCANNER, SPACES = 1, {2: "aligned to another image", 3: "of Talairach's atlas", 4: "of the MNI template"}


class Scout(NamedTuple):
    """One slice: `image` (H, W) float32, its `plane` (3, 3) in RAS mm, the plane's `name`, and the file it is from.

    `origin` has the tags `ORIGIN` of a DICOM file with their values, `series` its SeriesInstanceUID; `space` is the code of
    the NIfTI file's space.
    """

    image: np.ndarray
    plane: np.ndarray
    name: str
    file: str
    origin: tuple[tuple[str, str], ...] = ()
    series: str = ""
    space: int = SCANNER


def lps_to_ras(vectors):
    """Vectors (..., 3) from LPS, as DICOM has them, to RAS, or back."""
    return np.asarray(vectors, np.float64) * [-1, -1, 1]


def pixels(plane, points):
    """The continuous pixels (..., 2) of a plane (3, 3) at the feet of the perpendiculars of points (..., 3) in mm."""
    return (np.asarray(points) - plane[:, 2]) @ np.linalg.pinv(plane[:, :2]).T


def normal(plane):
    """The unit normal (3,) of a plane (3, 3)."""
    found = np.cross(plane[:, 0], plane[:, 1])
    return found / np.linalg.norm(found)


def centre(scout: Scout):
    """Where the middle of a scout's image lies, (3,) mm."""
    height, width = scout.image.shape
    return scout.plane @ [width / 2, height / 2, 1]


def scout(image, plane, file, notes: list[str]) -> Scout:
    """A slice (H, W) with its plane, checked: its orientation makes sense and its voxels are numbers.

    Up to a share `HOLES` of them may be none, which become their nearest neighbour's value.
    """
    bad = lambda what, remedy: FormatError(file, "", what, remedy)
    sides, rewrite = np.linalg.norm(plane[:, :2], axis=0), "write the file anew with the scanner's orientation"
    if not np.isfinite(plane).all() or (sides < SIDES[0]).any() or (sides > SIDES[1]).any():
        raise bad(f"pixels of {sides.round(4).tolist()} mm", rewrite)
    slant = plane[:, 0] @ plane[:, 1] / sides.prod()
    if abs(slant) > 0.02:
        raise bad(f"rows and columns at {np.degrees(np.arccos(slant)):.0f} degrees, not at a right angle", rewrite)
    across = np.abs(normal(plane))
    angle, name = np.degrees(np.arccos(min(across.max(), 1))), PLANES[int(across.argmax())]
    if angle > OBLIQUE:
        raise bad(
            f"an oblique slice, {angle:.0f} degrees from the {name} plane",
            f"give slices within {OBLIQUE:.0f} degrees of sagittal, coronal and axial",
        )
    image = np.asarray(image, np.float32)
    holes = ~np.isfinite(image)
    if holes.mean() > HOLES:
        raise bad(f"{holes.mean():.0%} of the {name} slice is no number", "give a slice that is whole")
    if holes.any():
        notes.append(f"{Path(file).name}: {holes.sum()} voxels of the {name} slice are no number: filled")
        nearest = scipy.ndimage.distance_transform_edt(holes, return_distances=False, return_indices=True)
        image = image[tuple(nearest)]
    if image.min() == image.max():
        raise bad(f"the {name} slice shows nothing, all its values are {image.flat[0]:g}", "give a slice with a head")
    return Scout(image, np.asarray(plane, np.float64), name, str(file))
