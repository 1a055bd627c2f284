"""Scouts of three planes, read from DICOM or NIfTI, and each in the network's frame.

Space is the patient's in millimetres, RAS: x to the right, y to the front, z upwards. DICOM says LPS and is converted
here, at the border. A plane is a (3, 3) matrix whose columns are the steps in mm from one pixel to the next along x and
along y, and where the image's corner, the pixel (0, 0), lies: a continuous pixel (x, y) is at plane @ (x, y, 1).
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy

from jaxmarks.data.samples import FormatError

# A plane's name by the patient's axis that its normal is nearest to.
PLANES = ("sagittal", "coronal", "axial")
# How a plane is shown, as radiologists do: where its x axis (right on the screen) and its y axis (down) point in RAS.
SHOWN = {
    "sagittal": ((0, -1, 0), (0, 0, -1)),
    "coronal": ((-1, 0, 0), (0, 0, -1)),
    "axial": ((-1, 0, 0), (0, -1, 0)),
}
# Beyond this angle from its axis a slice is of no plane.
OBLIQUE = 35.0
# More of a slice that is no number cannot be filled.
HOLES = 0.2
# A NIfTI file of at most so many slices, and fewer than a third of their width, is a stack of scouts and not a volume.
STACK = 40
# A head from its crown down to below the cerebellum, and how far down its middle lies, mm.
HEAD = 220.0
# Sides of a pixel, mm; others are of no scout, but written in another unit.
SIDES = 0.05, 20.0
# Slices of a plane less than this apart, mm, are one slice twice.
APART = 0.5
# What sform and qform may differ by at the corners of a volume, mm.
AGREE = 2.0
ENDINGS = (".nii.gz", ".nii", ".img")
# What all slices of an examination have alike.
ORIGIN = ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID")
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


class Framed(NamedTuple):
    """A scout in the network's frame: `image` (H, W) uint8, `to_source` (2, 3) to its own pixels, `plane` (3, 3) of the frame."""

    image: np.ndarray
    to_source: np.ndarray
    plane: np.ndarray


def lps_to_ras(vectors):
    """Vectors (..., 3) from LPS, as DICOM has them, to RAS, or back."""
    return np.asarray(vectors, np.float64) * [-1, -1, 1]


def triples(path) -> Iterator[tuple[str, list[Path]]]:
    """The scout triples below a path: (name, files).

    A path is a NIfTI volume, or a folder. In a folder each NIfTI volume is a triple by itself (its own slices), named by
    its path in there; the NIfTI scouts are one together, and so are the DICOM files. Every folder in it gives more, one
    for each examination (`examinations`). A file that is DICOM by its ending, or by those of the DICOM files beside it, is
    one of them also where it is damaged: `read` complains of it, and no other slice takes its place.

    Raises:
      FormatError: there is nothing of the kind.
    """
    path = Path(path)
    if not path.exists():
        raise FormatError(path, "", "no such file or folder", "give scouts with --config.data.images")
    if path.is_file():
        yield stem(path), [path]
        return
    path, found = path.resolve(), False  # ".." has no name
    each = [found for folder in folders_in(path) for found in examinations(folder)]
    for folder, files in [(path, files_in(path)), *each]:
        name = "_".join(folder.relative_to(path).parts) or path.name
        nifti = [p for p in files if is_nifti(p)]
        thick = [p for p in nifti if is_volume(p)]
        for file in thick:
            yield "_".join([*file.parent.relative_to(path).parts, stem(file)]), [file]
        thin, others = [p for p in nifti if p not in thick], [p for p in files if not is_nifti(p)]
        endings = {".dcm", ".ima", *(ending(p) for p in others if is_dicom(p))}
        dicom = [p for p in others if ending(p) in endings]
        for some, kind in ((thin, "nifti"), (dicom, "dicom")):
            if some:
                yield name + (f"_{kind}" if thin and dicom else ""), some
        found = found or bool(nifti or dicom)
    if not found:
        raise FormatError(path, "", "no NIfTI and no DICOM file in it", "give scouts with --config.data.images")


def files_in(folder: Path) -> list[Path]:
    """The files of a folder, links to nowhere among them, without hidden ones."""
    there = (p for p in folder.iterdir() if not p.is_dir())
    return sorted(p for p in there if not p.name.startswith(".") and p.name != "DICOMDIR")


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, without hidden ones and links to where it lies itself."""
    inside = (p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return sorted(p for p in inside if not folder.resolve().is_relative_to(p.resolve()))


def examinations(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """The examinations in a folder: (folder, files).

    An examination is a folder that shows all three planes, with all that lies in folders of its own, as series have; but
    where one of these shows all three, each of them is one by itself. What is left is one that lacks planes.
    """
    files, inner = files_in(folder), [each for child in folders_in(folder) for each in examinations(child)]
    if any(set(PLANES) <= set(map(plane_of, some)) for _, some in inner):
        yield from [(folder, files), *inner] if files else inner
    else:
        yield folder, sum((some for _, some in inner), files)


def plane_of(file) -> str | None:
    """The plane that a scout shows by its header; None for a volume, and where that does not say."""
    try:
        if is_nifti(file):
            image = load_nifti(file)
            across = image.affine[:3, int(np.argmin((*image.shape, 1, 1)[:3]))]
            return None if is_volume(file) else PLANES[int(np.abs(across).argmax())]
        import pydicom

        cosines = pydicom.dcmread(file, stop_before_pixels=True).ImageOrientationPatient
        return PLANES[int(np.abs(np.cross(cosines[:3], cosines[3:])).argmax())]
    except Exception:  # `read` says what is the matter with it
        return None


def read(files) -> tuple[dict[str, Scout], list[str]]:
    """The three scouts of a triple, by the name of their plane, and notes on what was mended or passed over on the way.

    Which plane a slice is follows from its own affine alone. Of several slices of a plane the middle one is taken; of
    several DICOM series the one that has all planes.

    Raises:
      FormatError: a plane is missing or doubled, a slice is too oblique, an orientation is absent or wrong, too many
        voxels are no number, the slices are not of one examination, or the three planes do not meet.
    """
    files = [Path(file) for file in files]
    notes: list[str] = []
    slices: list[Scout] = []
    for file in files:
        if not is_nifti(file):
            slices.append(dicom(file, notes))
            continue
        voxels, affine, space = nifti(file)
        cuts = volume_slices if len(files) == 1 and is_volume(file) else stack
        slices += [one._replace(space=space) for one in cuts(voxels, affine, file, notes)]
    slices = one_series(slices, notes)
    belong(slices)
    if (space := slices[0].space) != SCANNER:
        where = SPACES.get(space, "of another template")
        notes.append(f"places are {where} (sform or qform code {space}), not the scanner's: so is the volume")
    groups = {name: [s for s in slices if s.name == name] for name in PLANES}
    missing = [name for name in PLANES if not groups[name]]
    if missing:
        there = "; ".join(
            f"{name}: {', '.join(sorted({Path(s.file).name for s in group}))}"
            for name, group in groups.items()
            if group
        )
        raise FormatError(
            files[0].parent, "", f"no {' and no '.join(missing)} scout (there are {there}, by their own orientation)",
            f"give one slice of each plane, or a volume (a file of at most {STACK} slices is a stack of scouts)",
        )  # fmt: skip
    scouts = {name: middle(group) for name, group in groups.items()}
    meet(scouts, files[0].parent)
    return scouts, notes


def pixels(plane, points):
    """The continuous pixels (..., 2) of a plane (3, 3) at the feet of the perpendiculars of points (..., 3) in mm."""
    return (np.asarray(points) - plane[:, 2]) @ np.linalg.pinv(plane[:, :2]).T


def one_series(slices: list[Scout], notes: list[str]) -> list[Scout]:
    """Those slices whose series has all three planes, or all of them where none has; FormatError where several have."""
    series = {one.series: [s for s in slices if s.series == one.series] for one in slices}
    whole = [uid for uid, some in series.items() if {s.name for s in some} == set(PLANES)]
    if len(whole) > 1:
        first, second = (series[uid][0].file for uid in whole[:2])
        raise FormatError(
            second, "SeriesInstanceUID", f"a second series of all planes beside that of {first}", "give one"
        )
    if not whole or len(series) == 1:
        return slices
    others = [Path(s.file).name for s in slices if s.series != whole[0]]
    notes.append(f"passed over, for another series has all three planes: {', '.join(others)}")
    return series[whole[0]]


def belong(slices: list[Scout]) -> None:
    """Makes sure that the slices are of one patient, and their places in one frame of reference."""
    first: dict[str, tuple[str, str]] = {}
    for one in slices:
        for tag, value in (*one.origin, ("sform or qform code", str(one.space))):
            other, file = first.setdefault(tag, (value, one.file))
            if value != other:
                raise FormatError(
                    one.file, tag, f"{value!r}, but {other!r} in {file}", "give scouts of one examination"
                )


def middle(slices: list[Scout]) -> Scout:
    """The middle one of a stack of slices, by where they lie along the patient's axis.

    Raises:
      FormatError: two lie at the same place, or not one behind the other.
    """
    axis = normal(slices[0].plane)
    axis = axis * np.sign(axis[np.abs(axis).argmax()])
    across = lambda s: float(axis @ centre(s))
    slices = sorted(slices, key=across)
    for one, other in itertools.pairwise(slices):
        bad = lambda what, one=one, other=other: FormatError(
            other.file, "", f"a second {one.name} scout {what} {one.file}", "give one of the two"
        )
        if not behind(one, other):
            raise bad("that is not of one stack with")
        if across(other) - across(one) < APART:
            raise bad("at the place of")
    return slices[len(slices) // 2]


def behind(one: Scout, other: Scout) -> bool:
    """Whether a slice lies behind another as in a stack: of its shape and direction, moved across the plane alone."""
    sides = np.linalg.norm(one.plane[:, :2], axis=0)
    alike = one.image.shape == other.image.shape and np.allclose(
        one.plane[:, :2], other.plane[:, :2], atol=0.02 * min(sides)
    )
    return bool(alike and np.abs(pixels(one.plane, other.plane[:, 2])).max() < 1)


def normal(plane):
    """The unit normal (3,) of a plane (3, 3)."""
    found = np.cross(plane[:, 0], plane[:, 1])
    return found / np.linalg.norm(found)


def centre(scout: Scout):
    """Where the middle of a scout's image lies, (3,) mm."""
    height, width = scout.image.shape
    return scout.plane @ [width / 2, height / 2, 1]


def meet(scouts: dict[str, Scout], where) -> None:
    """Makes sure that the three planes cross within their images: those of one head do."""
    normals = np.array([normal(s.plane) for s in scouts.values()])
    point = np.linalg.solve(normals, [n @ s.plane[:, 2] for n, s in zip(normals, scouts.values(), strict=True)])
    for s in scouts.values():
        x, y = pixels(s.plane, point)
        height, width = s.image.shape
        if not (0 <= x <= width and 0 <= y <= height):
            raise FormatError(
                where, Path(s.file).name,
                f"the three planes cross at {np.round(point, 1).tolist()} mm (RAS), outside the {s.name} scout",
                "give scouts of one examination, with the orientation that the scanner wrote",
            )  # fmt: skip


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


# NIfTI


def is_nifti(file) -> bool:
    """Whether a file is NIfTI, by its ending; of the pair .hdr and .img it is the second."""
    return Path(file).name.lower().endswith(ENDINGS)


def load_nifti(file):
    """A NIfTI file as nibabel has it."""
    try:
        import nibabel
    except ImportError as error:
        raise ImportError(f"{file}: reading NIfTI needs nibabel: pip install 'jaxmarks[nifti]'") from error
    try:
        image = nibabel.load(file)
    except Exception as error:  # nibabel has several of its own
        raise FormatError(file, "", f"cannot be read ({error})", "give a NIfTI file") from error
    if not isinstance(image, nibabel.Nifti1Pair):  # Analyze, which does not tell right from left, or CIFTI's surfaces
        raise FormatError(file, "", f"a {type(image).__name__}", "give a NIfTI file")
    return image


def is_volume(file) -> bool:
    """Whether a NIfTI file is a volume, and not one scout or a stack of a few, nor a file that `read` will complain of."""
    try:
        shape = (*load_nifti(file).shape, 1, 1)[:3]
    except FormatError:
        return False
    return not (min(shape) <= STACK and 3 * min(shape) < max(shape))


def nifti(file) -> tuple[np.ndarray, np.ndarray, int]:
    """The voxels (I, J, K) of a NIfTI file, their affine (4, 4), voxel centres to RAS mm, and the code of that space.

    The sform is taken where the header has one, else the qform.

    Raises:
      FormatError: neither is there, they contradict each other, the voxels' axes are not at right angles, or the voxels
        are not grey values.
    """
    image = load_nifti(file)
    header = image.header
    forms = [(image.get_sform, int(header["sform_code"])), (image.get_qform, int(header["qform_code"]))]
    space = next((code for _, code in forms if code > 0), 0)
    try:
        known = [form() for form, code in forms if code > 0]
    except Exception as error:  # a quaternion that is none
        raise FormatError(file, "", f"its orientation cannot be read ({error})", "mend the header's qform") from error
    if not known:
        raise FormatError(
            file, "", "sform_code and qform_code are both 0: the file does not say how it lies in the patient",
            "convert it from the scanner's DICOM anew, for the orientation must not be guessed",
        )  # fmt: skip
    if header["xyzt_units"] & 7 not in (0, 2):  # its three lowest bits: unknown, or millimetres
        raise FormatError(file, "xyzt_units", "its places are not in millimetres", "convert the header to mm")
    affine = known[0]
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or (sides < 1e-3).any():
        raise FormatError(file, "", f"voxels of {sides.round(4).tolist()} mm in the header", "mend the header's affine")
    axes = affine[:3, :3] / sides
    if np.abs(axes.T @ axes - np.eye(3)).max() > 0.02:
        raise FormatError(file, "", "the axes of the header's affine are not at right angles", "resample the volume")
    shape = (*image.shape, 1, 1)[:3]
    corners = np.array([*itertools.product(*((0, n - 1) for n in shape))])
    apart = np.linalg.norm(corners @ (known[-1] - affine)[:3, :3].T + (known[-1] - affine)[:3, 3], axis=-1).max()
    if not apart <= AGREE:
        raise FormatError(
            file, "", f"sform and qform give different orientations or places, by {apart:.1f} mm at a corner",
            "set the code of the wrong one to 0",
        )  # fmt: skip
    if image.get_data_dtype().kind not in "iuf" or 0 in image.shape:
        raise FormatError(
            file, "", f"{image.shape} voxels of type {image.get_data_dtype()}", "give a whole file of grey values"
        )
    try:
        voxels = np.asarray(image.dataobj, np.float32)
    except Exception as error:  # cut off
        raise FormatError(
            file, "", f"its voxels cannot be read ({error})", "give a whole file of grey values"
        ) from error
    voxels = voxels.reshape(voxels.shape[:3] + tuple(n for n in voxels.shape[3:] if n > 1))
    voxels = voxels[(..., *[None] * (3 - voxels.ndim))] if voxels.ndim < 3 else voxels
    if voxels.ndim > 3:
        raise FormatError(file, "", f"{voxels.shape} voxels, more than one volume", "give a single volume")
    return voxels, affine, space


def cut(voxels, affine, axis: int, index: int, file, notes) -> Scout:
    """The slice of a volume at a voxel's index along one of its axes."""
    x, y = (a for a in range(3) if a != axis)
    first = np.full(3, -0.5)
    first[axis] = index
    plane = np.stack([affine[:3, x], affine[:3, y], affine[:3, :3] @ first + affine[:3, 3]], axis=-1)
    return scout(np.take(voxels, index, axis).T, plane, file, notes)


def stack(voxels, affine, file, notes) -> Iterator[Scout]:
    """The middle slice of a NIfTI stack of scouts, or the only one; of an even number the same, however it is stored."""
    axis = int(np.argmin(voxels.shape))
    across = affine[:3, axis]
    backwards = across[np.abs(across).argmax()] < 0
    yield cut(voxels, affine, axis, (voxels.shape[axis] - backwards) // 2, file, notes)


def volume_slices(voxels, affine, file, notes) -> Iterator[Scout]:
    """The slices of a volume along its three axes through the middle of the head."""
    where = np.argwhere(head_of(np.nan_to_num(voxels)))
    if not len(where):
        raise FormatError(file, "", "no head in this volume, all of it is dark", "give a volume of a head")
    low, high = np.quantile(where, [0.01, 0.99], axis=0)
    middles = (low + high) / 2
    # Below the head there may be a neck: the middle is taken between the crown and where the head ends.
    up = int(np.argmax(np.abs(affine[2, :3])))
    crown = high[up] if affine[2, up] > 0 else low[up]
    reach = 0.4 * HEAD / np.linalg.norm(affine[:3, up]) * (-1 if affine[2, up] > 0 else 1)
    if abs(middles[up] - crown) > abs(reach):
        middles[up] = crown + reach
    for axis in range(3):
        yield cut(voxels, affine, axis, round(float(middles[axis])), file, notes)


# DICOM


def is_dicom(file) -> bool:
    """Whether a file is DICOM, by its mark."""
    try:
        with Path(file).open("rb") as opened:
            return opened.read(132)[128:] == b"DICM"
    except OSError:
        return False


def ending(file) -> str:
    """A file's ending in lower case; a number, as identifiers have them for their last part, is none."""
    found = Path(file).suffix.lower()
    return "" if found[1:].isdigit() else found


def numbers(read, tag: str, count: int, file, default=None) -> np.ndarray:
    """The numbers (count,) that a DICOM image has under a tag, or the default where the tag is absent or empty.

    Raises:
      FormatError: it does not have it and there is no default, or has something else there.
    """
    remedy = "export it from the scanner anew, for it must not be guessed"
    given = read.get(tag)
    given = default if given in (None, "") else given
    if given is None:
        raise FormatError(file, "", f"no {tag}: the file does not say how it lies in the patient", remedy)
    try:
        found = np.array(given, float).ravel()
    except (TypeError, ValueError) as error:
        raise FormatError(file, tag, f"not {count} numbers ({error})", remedy) from error
    if len(found) != count or not np.isfinite(found).all():
        raise FormatError(file, tag, f"{found.tolist()}, not {count} numbers", remedy)
    return found


def dicom(file, notes: list[str]) -> Scout:
    """One DICOM image; its orientation, in LPS, becomes RAS.

    Raises:
      FormatError: it is damaged, multi-frame, enhanced, or does not say how it lies in the patient.
    """
    try:
        import pydicom
    except ImportError as error:
        raise ImportError(f"{file}: reading DICOM needs pydicom: pip install 'jaxmarks[dicom]'") from error
    try:
        read = pydicom.dcmread(file)
        pixels = np.asarray(read.pixel_array, np.float32)
    except Exception as error:  # pydicom raises what the codecs raise
        remedy = "give an uncompressed DICOM image, or take the file away"
        raise FormatError(file, "", f"cannot be read ({error})", remedy) from error
    grey = read.get("PhotometricInterpretation")
    if pixels.ndim != 2 or grey not in ("MONOCHROME1", "MONOCHROME2"):
        raise FormatError(file, "", f"{pixels.shape} pixels, {grey}", "give grey images of one frame each")
    if "PerFrameFunctionalGroupsSequence" in read:
        what = f"an enhanced image ({getattr(read.get('SOPClassUID'), 'name', 'of no class')})"
        raise FormatError(file, "", what, "export it as classic DICOM, one file for each frame")
    pixels = pixels * numbers(read, "RescaleSlope", 1, file, 1) + numbers(read, "RescaleIntercept", 1, file, 0)
    if grey == "MONOCHROME1":
        pixels = pixels.max() - pixels
    cosines = numbers(read, "ImageOrientationPatient", 6, file).reshape(2, 3)
    spacing, position = numbers(read, "PixelSpacing", 2, file), numbers(read, "ImagePositionPatient", 3, file)
    anew = "export it from the scanner anew"
    if np.abs(np.linalg.norm(cosines, axis=1) - 1).max() > 0.01:
        raise FormatError(file, "ImageOrientationPatient", f"{cosines.tolist()} are not of length 1", anew)
    if (spacing <= 0).any():
        raise FormatError(file, "PixelSpacing", f"{spacing.tolist()} mm", anew)
    along, down = lps_to_ras(cosines)
    between_rows, between_columns = spacing
    x, y = along * between_columns, down * between_rows
    corner = lps_to_ras(position) - (x + y) / 2
    origin = tuple((tag, str(read.get(tag) or "")) for tag in ORIGIN)
    made = scout(pixels, np.stack([x, y, corner], axis=-1), file, notes)
    return made._replace(origin=origin, series=str(read.get("SeriesInstanceUID") or ""))


# The network's frame


def stem(file) -> str:
    """A file's name without its ending, .nii.gz as a whole."""
    name = Path(file).name
    ends = next((end for end in ENDINGS if name.lower().endswith(end)), "")
    return name[: len(name) - len(ends)]


def head_of(image) -> np.ndarray:
    """Which pixels of a slice, or voxels of a volume, show the head: what is brighter than a fifth of its bright parts."""
    smooth = scipy.ndimage.gaussian_filter(np.asarray(image, np.float32), 1.5)
    return smooth > 0.2 * np.quantile(smooth, 0.98)


def cleaned(image, sides) -> np.ndarray:
    """A slice (H, W) as [0, 1], without what the scanner added.

    Its outermost 2 % of rows and columns, where scanners leave bright lines, become dark. The coil's shading is divided
    away by the head's brightness averaged over 30 mm (homomorphic unsharp masking; Axel, Costantini and Listerud 1987).
    What is left lies between its 1st percentile and the head's 99th, whatever units it had.

    Args:
      image: (H, W) of numbers.
      sides: (height, width) of a pixel in mm.
    """
    image = np.array(image, np.float64)  # whose range holds also what has the largest numbers of float32
    image -= np.quantile(image, 0.01)
    for axis, length in enumerate(image.shape):
        edge = max(1, round(0.02 * length))
        view = np.moveaxis(image, axis, 0)
        view[:edge] = view[-edge:] = 0
    top = np.quantile(image, 0.998)
    image = (np.clip(image, 0, top) / (top or 1)).astype(np.float32)
    head = head_of(image).astype(np.float32)
    blur = lambda values: scipy.ndimage.gaussian_filter(values, np.divide(30.0, sides), truncate=2.5)
    average = (image * head).sum() / max(head.sum(), 1)
    even = image / (
        (blur(image * head) + 0.05 * average) / (blur(head) + 0.05) + 1e-6
    )  # far from the head by its average
    bright = np.quantile(even[head > 0], 0.99) if head.any() else even.max()
    return np.clip(even / max(float(bright), 1e-6), 0, 1)


def framed(source: Scout, size, spacing) -> Framed:
    """A scout in the network's frame: cleaned, shown as radiologists do, at a fixed scale, the head in the middle.

    Args:
      source: the scout, however it lies.
      size: (H, W) of the frame.
      spacing: mm of a pixel of the frame, whatever those of the scout are.

    Returns:
      A Framed, whose maps are exact inverses of what was done to the pixels.
    """
    steps = source.plane[:, :2]
    sides = np.linalg.norm(steps, axis=0)
    image = cleaned(source.image, sides[::-1])
    units, shown = steps / sides, np.array(SHOWN[source.name], float).T
    # Which of the image's axes is shown to the right and which downwards, and whether backwards.
    agree = units.T @ shown
    order = [0, 1] if abs(agree[0, 0] * agree[1, 1]) >= abs(agree[1, 0] * agree[0, 1]) else [1, 0]
    turn = np.zeros((2, 2))  # frame pixels -> source pixels, without the shift
    for column, axis in enumerate(order):
        turn[axis, column] = np.sign(agree[axis, column]) * spacing / sides[axis]
    # Where the head lies along the frame's axes, from the image's middle, in the frame's pixels.
    rows, columns = np.nonzero(head_of(image))
    middle = np.array([source.image.shape[1], source.image.shape[0]]) / 2
    at = (np.stack([columns, rows], -1) + 0.5 - middle) @ np.linalg.inv(turn).T
    low, high = np.quantile(at, [0.01, 0.99], axis=0) if len(at) else (np.zeros(2), np.zeros(2))
    look = (low + high) / 2
    if source.name != "axial":  # below the head there may be a neck
        look[1] = min(look[1], low[1] + HEAD / 2 / spacing)
    shift = middle + turn @ (look - np.array(size[::-1]) / 2)
    to_source = np.concatenate([turn, shift[:, None]], axis=1)
    plane = source.plane @ np.vstack([to_source, [0, 0, 1]])
    # Smoothed first where the frame is coarser, so that nothing is missed between its pixels.
    ratio = spacing / sides[::-1]
    smooth = scipy.ndimage.gaussian_filter(image, 0.5 * np.sqrt(np.maximum(ratio**2 - 1, 0)))
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    place = np.stack([x, y], -1) @ turn.T + shift
    values = scipy.ndimage.map_coordinates(smooth, [place[..., 1] - 0.5, place[..., 0] - 0.5], order=1, mode="constant")
    return Framed(np.round(255 * values).astype(np.uint8), to_source, plane)
