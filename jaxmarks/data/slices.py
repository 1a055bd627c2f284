"""Slices of a patient and their positions in space.

Space is the patient's, in millimetres, RAS: x to the right, y to the front, z upwards. DICOM uses LPS, which is
converted on reading. A plane is a (3, 3) matrix. Its first two columns are the steps in mm from one pixel to the next
along x and along y; the third is the position of the image's corner, pixel (0, 0). So the continuous pixel (x, y) lies
at plane @ (x, y, 1).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy

from jaxmarks.data.samples import FormatError

# The planes' names, indexed by the patient axis that is nearest to the normal.
PLANES = ("sagittal", "coronal", "axial")
# A slice whose normal is more degrees than this off its axis is too oblique for any plane.
OBLIQUE = 35.0
# The largest share of non-finite pixels of a slice that is filled.
HOLES = 0.2
# The range of plausible sides of a scout's pixel, mm; others were written in another unit.
SIDES = 0.05, 20.0
# A NIfTI file's coordinate space, by the code of its sform or qform; DICOM's is the scanner's.
SCANNER, SPACES = 1, {2: "aligned to another image", 3: "those of Talairach's atlas", 4: "those of the MNI template"}


class Scout(NamedTuple):
    """One slice: `image` (H, W) float32, its `plane` (3, 3) in RAS mm, the plane's `name`, and the `file` it is from.

    `origin` holds the tags `scans.ORIGIN` of a DICOM file with their values, `series` its SeriesInstanceUID; `space` is
    the code of a NIfTI file's space.
    """

    image: np.ndarray
    plane: np.ndarray
    name: str
    file: str
    origin: tuple[tuple[str, str], ...] = ()
    series: str = ""
    space: int = SCANNER


def lps_to_ras(vectors):
    """Converts vectors (..., 3) from LPS, which DICOM uses, to RAS, or back."""
    return np.asarray(vectors, np.float64) * [-1, -1, 1]


def pixels(plane, points):
    """Projects points (..., 3) in mm perpendicularly onto a plane (3, 3); returns continuous pixels (..., 2)."""
    return (np.asarray(points) - plane[:, 2]) @ np.linalg.pinv(plane[:, :2]).T


def normal(plane):
    """Returns the unit normal (3,) of a plane (3, 3)."""
    vector = np.cross(plane[:, 0], plane[:, 1])
    return vector / np.linalg.norm(vector)


def centre(scout: Scout):
    """Returns the position of the centre of a scout's image, (3,) mm."""
    height, width = scout.image.shape
    return scout.plane @ [width / 2, height / 2, 1]


def scout(image, plane, file, notes: list[str]) -> Scout:
    """Makes a Scout of a slice (H, W) and its plane, after checking the orientation and the voxel values.

    Up to a share `HOLES` of the voxels may be non-finite; each of these gets the value of its nearest finite neighbour.
    """
    bad = lambda what, remedy: FormatError(file, "", what, remedy)
    sides, advice = np.linalg.norm(plane[:, :2], axis=0), "export the file again with the scanner's orientation"
    if not np.isfinite(plane).all():
        raise bad(f"its place in the patient is no number, {np.round(plane[:, 2], 1).tolist()} mm", advice)
    if (sides < SIDES[0]).any() or (sides > SIDES[1]).any():
        raise bad(f"implausible pixels of {sides.round(4).tolist()} mm", advice)
    slant = plane[:, 0] @ plane[:, 1] / sides.prod()
    if abs(slant) > 0.02:
        raise bad(f"rows and columns meet at {np.degrees(np.arccos(slant)):.0f} degrees, not at a right angle", advice)
    alignment = np.abs(normal(plane))
    angle, name = np.degrees(np.arccos(min(alignment.max(), 1))), PLANES[int(alignment.argmax())]
    if angle > OBLIQUE:
        raise bad(
            f"an oblique slice, {angle:.0f} degrees from the {name} plane",
            f"give slices within {OBLIQUE:.0f} degrees of the sagittal, coronal and axial planes",
        )
    image = np.asarray(image, np.float32)
    holes = ~np.isfinite(image)
    if holes.mean() > HOLES:
        raise bad(f"{holes.mean():.0%} of the {name} slice is NaN or infinite", "give a complete slice")
    if holes.any():
        notes.append(f"{Path(file).name}: {holes.sum()} voxels of the {name} slice were NaN or infinite: filled")
        nearest = scipy.ndimage.distance_transform_edt(holes, return_distances=False, return_indices=True)
        image = image[tuple(nearest)]
    if image.min() == image.max():
        raise bad(f"the {name} slice shows nothing: all its values are {image.flat[0]:g}", "give a slice of a head")
    return Scout(image, np.asarray(plane, np.float64), name, str(file))
