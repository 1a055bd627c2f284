"""Reads NIfTI and DICOM files: volumes and stacks of slices, each slice with its plane (`slices.Scout`)."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxmarks.data.samples import FormatError
from jaxmarks.data.slices import PLANES, Scout, lps_to_ras, scout

# A NIfTI file with at most this many slices, and fewer than a third of its longest side, is a stack of scouts.
STACK = 40
# The largest distance between the sform's and the qform's positions of a volume's corner, mm.
AGREE = 2.0
ENDINGS = (".nii.gz", ".nii", ".img")
# DICOM tags whose values all slices of an examination share.
ORIGIN = ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID")


def stem(file) -> str:
    """Returns a file's name without its NIfTI ending; .nii.gz is one ending."""
    name = Path(file).name
    suffix = next((end for end in ENDINGS if name.lower().endswith(end)), "")
    return name[: len(name) - len(suffix)]


def plane_of(file) -> str | None:
    """Returns a scout's plane according to its header; None for a volume, or if the header does not say."""
    try:
        if is_nifti(file):
            image = load_nifti(file)
            across = image.affine[:3, int(np.argmin((*image.shape, 1, 1)[:3]))]
            return None if is_volume(file) else PLANES[int(np.abs(across).argmax())]
        import pydicom

        cosines = pydicom.dcmread(file, stop_before_pixels=True).ImageOrientationPatient
        return PLANES[int(np.abs(np.cross(cosines[:3], cosines[3:])).argmax())]
    except Exception:  # `scouts.read` reports what is wrong with the file
        return None


# NIfTI


def is_nifti(file) -> bool:
    """Whether a file is NIfTI, judged by its ending; of a pair .hdr and .img only the .img counts."""
    return Path(file).name.lower().endswith(ENDINGS)


def load_nifti(file):
    """Opens a NIfTI file with nibabel."""
    try:
        import nibabel
    except ImportError as error:
        raise ImportError(f"{file}: reading NIfTI needs nibabel: pip install 'jaxmarks[nifti]'") from error
    try:
        image = nibabel.load(file)
    except Exception as error:  # nibabel has several exceptions of its own
        raise FormatError(file, "", f"cannot be read ({error})", "give a NIfTI file") from error
    if not isinstance(image, nibabel.Nifti1Pair):  # Analyze, where left and right are ambiguous, or CIFTI's surfaces
        raise FormatError(file, "", f"a {type(image).__name__}, not NIfTI", "give a NIfTI file")
    return image


def is_volume(file) -> bool:
    """Whether a NIfTI file is a volume, and not a single scout, a stack of a few, or unreadable."""
    try:
        shape = (*load_nifti(file).shape, 1, 1)[:3]
    except FormatError:
        return False
    return not (min(shape) <= STACK and 3 * min(shape) < max(shape))


def nifti(file) -> tuple[np.ndarray, np.ndarray, int]:
    """Reads a NIfTI file: voxels (I, J, K), the affine (4, 4) from voxel centres to RAS mm, and the code of that space.

    Uses the sform if the header has one, else the qform.

    Raises:
      FormatError: the header has neither, they contradict each other, the voxels' axes are not at right angles or not
        in mm, or the file is not one readable volume of grey values.
    """
    image = load_nifti(file)
    header = image.header
    forms = [(image.get_sform, int(header["sform_code"])), (image.get_qform, int(header["qform_code"]))]
    space = next((code for _, code in forms if code > 0), 0)
    try:
        affines = [form() for form, code in forms if code > 0]
    except Exception as error:  # an invalid quaternion
        raise FormatError(
            file, "", f"its orientation cannot be read ({error})", "correct the header's qform"
        ) from error
    if not affines:
        raise FormatError(
            file, "", "sform_code and qform_code are both 0, so its orientation in the patient is unknown",
            "convert it from the scanner's DICOM again: the orientation must not be guessed",
        )  # fmt: skip
    if header["xyzt_units"] & 7 not in (0, 2):  # the three lowest bits: 0 is unknown, 2 is millimetres
        raise FormatError(file, "xyzt_units", "its coordinates are not in millimetres", "convert the header to mm")
    affine = affines[0]
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or (sides < 1e-3).any():
        raise FormatError(
            file, "", f"voxels of {sides.round(4).tolist()} mm in the header", "correct the header's affine"
        )
    axes = affine[:3, :3] / sides
    if np.abs(axes.T @ axes - np.eye(3)).max() > 0.02:
        raise FormatError(file, "", "the axes of the header's affine are not at right angles", "resample the volume")
    shape = (*image.shape, 1, 1)[:3]
    corners = np.array([*itertools.product(*((0, n - 1) for n in shape))])
    distance = np.linalg.norm(corners @ (affines[-1] - affine)[:3, :3].T + (affines[-1] - affine)[:3, 3], axis=-1).max()
    if not distance <= AGREE:
        raise FormatError(
            file, "", f"sform and qform contradict each other, by {distance:.1f} mm at a corner of the volume",
            "set the code of the wrong one to 0",
        )  # fmt: skip
    if image.get_data_dtype().kind not in "iuf" or 0 in image.shape:
        raise FormatError(
            file, "", f"{image.shape} voxels of type {image.get_data_dtype()}", "give a complete file of grey values"
        )
    try:
        voxels = np.asarray(image.dataobj, np.float32)
    except Exception as error:  # a truncated file
        raise FormatError(
            file, "", f"its voxels cannot be read ({error})", "give a complete file of grey values"
        ) from error
    voxels = voxels.reshape(voxels.shape[:3] + tuple(n for n in voxels.shape[3:] if n > 1))
    voxels = voxels[(..., *[None] * (3 - voxels.ndim))] if voxels.ndim < 3 else voxels
    if voxels.ndim > 3:
        raise FormatError(file, "", f"{voxels.shape} voxels, more than one volume", "give a single volume")
    return voxels, affine, space


def cut(voxels, affine, axis: int, index: int, file, notes) -> Scout:
    """Cuts the slice at a voxel index along one axis out of a volume."""
    x, y = (a for a in range(3) if a != axis)
    corner = np.full(3, -0.5)
    corner[axis] = index
    plane = np.stack([affine[:3, x], affine[:3, y], affine[:3, :3] @ corner + affine[:3, 3]], axis=-1)
    return scout(np.take(voxels, index, axis).T, plane, file, notes)


def stack(voxels, affine, file, notes) -> Iterator[Scout]:
    """Yields the middle slice of a NIfTI stack of scouts, or its only one.

    Of an even number of slices it is the same one in whichever direction the stack is stored.
    """
    axis = int(np.argmin(voxels.shape))
    across = affine[:3, axis]
    backwards = across[np.abs(across).argmax()] < 0
    yield cut(voxels, affine, axis, (voxels.shape[axis] - backwards) // 2, file, notes)


# DICOM


def is_dicom(file) -> bool:
    """Whether a file is DICOM, judged by its magic number."""
    try:
        with Path(file).open("rb") as opened:
            return opened.read(132)[128:] == b"DICM"
    except OSError:
        return False


def ending(file) -> str:
    """Returns a file's ending in lower case; "" for a number, as in a name that ends with an identifier (UID)."""
    suffix = Path(file).suffix.lower()
    return "" if suffix[1:].isdigit() else suffix


def numbers(read, tag: str, count: int, file, default=None) -> np.ndarray:
    """Returns the numbers (count,) under a DICOM image's tag, or the default where the tag is absent or empty.

    Raises:
      FormatError: the tag is absent and there is no default, or its value is not `count` finite numbers.
    """
    remedy = "export it from the scanner again: the value must not be guessed"
    value = read.get(tag)
    value = default if value in (None, "") else value
    if value is None:
        raise FormatError(file, "", f"no {tag}, so the image's position in the patient is unknown", remedy)
    try:
        values = np.array(value, float).ravel()
    except (TypeError, ValueError) as error:
        raise FormatError(file, tag, f"its value is not {count} numbers ({error})", remedy) from error
    if len(values) != count or not np.isfinite(values).all():
        raise FormatError(file, tag, f"{values.tolist()} is not {count} finite numbers", remedy)
    return values


def dicom(file, notes: list[str]) -> Scout:
    """Reads one DICOM image as a Scout, converting its orientation from LPS to RAS.

    Raises:
      FormatError: it is damaged, in colour, multi-frame, enhanced, or does not say how it lies in the patient.
    """
    try:
        import pydicom
    except ImportError as error:
        raise ImportError(f"{file}: reading DICOM needs pydicom: pip install 'jaxmarks[dicom]'") from error
    try:
        dataset = pydicom.dcmread(file)
        pixels = np.asarray(dataset.pixel_array, np.float32)
    except Exception as error:  # pydicom passes on whatever its codecs raise
        remedy = "give an uncompressed DICOM image, or remove the file"
        raise FormatError(file, "", f"cannot be read ({error})", remedy) from error
    kind = dataset.get("PhotometricInterpretation")
    if pixels.ndim != 2 or kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise FormatError(file, "", f"{pixels.shape} pixels of type {kind}", "give greyscale images of one frame each")
    if "PerFrameFunctionalGroupsSequence" in dataset:
        what = f"an enhanced image ({getattr(dataset.get('SOPClassUID'), 'name', 'without a class')})"
        raise FormatError(file, "", what, "export it as classic DICOM, one file for each frame")
    pixels = pixels * numbers(dataset, "RescaleSlope", 1, file, 1) + numbers(dataset, "RescaleIntercept", 1, file, 0)
    if kind == "MONOCHROME1":
        pixels = pixels.max() - pixels
    cosines = numbers(dataset, "ImageOrientationPatient", 6, file).reshape(2, 3)
    spacing, position = numbers(dataset, "PixelSpacing", 2, file), numbers(dataset, "ImagePositionPatient", 3, file)
    anew = "export it from the scanner again"
    if np.abs(np.linalg.norm(cosines, axis=1) - 1).max() > 0.01:
        raise FormatError(file, "ImageOrientationPatient", f"the vectors {cosines.tolist()} are not of length 1", anew)
    if (spacing <= 0).any():
        raise FormatError(file, "PixelSpacing", f"{spacing.tolist()} mm is not above 0", anew)
    along, down = lps_to_ras(cosines)
    between_rows, between_columns = spacing
    x, y = along * between_columns, down * between_rows
    corner = lps_to_ras(position) - (x + y) / 2
    origin = tuple((tag, str(dataset.get(tag) or "")) for tag in ORIGIN)
    dicom_scout = scout(pixels, np.stack([x, y, corner], axis=-1), file, notes)
    return dicom_scout._replace(origin=origin, series=str(dataset.get("SeriesInstanceUID") or ""))
