"""Three-plane scouts: finds them in folders, reads an examination's triple, brings each into the network's frame."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy

from jaxmarks.data import scans
from jaxmarks.data.samples import FormatError
from jaxmarks.data.slices import PLANES, SCANNER, SPACES, Scout, centre, normal, pixels

# How radiologists display each plane: the directions in RAS of its x axis (right on the screen) and its y axis (down).
SHOWN = {
    "sagittal": ((0, -1, 0), (0, 0, -1)),
    "coronal": ((-1, 0, 0), (0, 0, -1)),
    "axial": ((-1, 0, 0), (0, -1, 0)),
}
# The height of a head from its crown down to below the cerebellum, mm.
HEAD = 220.0
# Slices of a plane less than this apart, mm, are duplicates.
APART = 0.5


class Framed(NamedTuple):
    """A scout in the network's frame: `image` (H, W) uint8, the frame's `plane` (3, 3), and `to_source` (2, 3).

    `to_source` is the affine from pixels of the frame to the scout's own pixels.
    """

    image: np.ndarray
    to_source: np.ndarray
    plane: np.ndarray


class Examination(NamedTuple):
    """One examination: its folder, the `files` in it and perhaps in subfolders, and the names of their `planes`."""

    folder: Path
    files: list[Path]
    planes: set[str]

    @property
    def whole(self) -> bool:
        return self.planes == set(PLANES)


def triples(path) -> Iterator[tuple[str, list[Path]]]:
    """Yields the scout triples at or below a path, as (name, files).

    The path is a NIfTI volume, or a folder. In each of its examinations (`examinations`) every NIfTI volume is a triple
    of its own, of slices cut from it, and is named by its path in the folder; all NIfTI scouts together are one triple,
    and so are all DICOM files. A file counts as DICOM by its ending, or by sharing that of a DICOM file beside it, even
    if it is damaged: then `read` reports it, and no other slice takes its place.

    Raises:
      FormatError: the path does not exist, or holds no scouts.
    """
    path = Path(path)
    if not path.exists():
        raise FormatError(path, "", "no such file or folder", "give scouts with --config.data.images")
    if path.is_file():
        yield scans.stem(path), [path]
        return
    path, any_found = path.resolve(), False  # ".." has no name
    for examination in examinations(path, links=True):
        name = "_".join(examination.folder.relative_to(path).parts) or path.name
        nifti = [p for p in examination.files if scans.is_nifti(p)]
        volumes = [p for p in nifti if scans.is_volume(p)]
        for file in volumes:
            yield "_".join([*file.parent.relative_to(path).parts, scans.stem(file)]), [file]
        scouts, others = [p for p in nifti if p not in volumes], [p for p in examination.files if not scans.is_nifti(p)]
        endings = {".dcm", ".ima", *(scans.ending(p) for p in others if scans.is_dicom(p))}
        dicom = [p for p in others if scans.ending(p) in endings or p.is_dir()]
        for files, kind in ((scouts, "nifti"), (dicom, "dicom")):
            if files:
                yield name + (f"_{kind}" if scouts and dicom else ""), files
        any_found = any_found or bool(nifti or dicom)
    if not any_found:
        raise FormatError(path, "", "it contains no NIfTI or DICOM file", "give scouts with --config.data.images")


def examinations(folder: Path, *, links: bool = False) -> list[Examination]:
    """Finds the examinations in a folder and its subfolders.

    A folder and its subfolders are one examination if the folder's own files do not show all planes and no subfolder
    shows more than one, as with a folder for each series. Otherwise each is its own, for they may be of several
    patients; `read` refuses those that lack planes. A folder that cannot be read is an examination with itself as its
    file.

    Args:
      folder: where to look.
      links: whether to follow links to folders, directly in this folder only.
    """
    try:
        entries = sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.name != "DICOMDIR")
    except OSError:
        return [Examination(folder, [folder], set())]
    files = [p for p in entries if p.is_file() or not p.exists()]  # or a broken link
    nested = [each for p in entries if p.is_dir() and (links or not p.is_symlink()) for each in examinations(p)]
    outer = Examination(folder, files, planes_of(files))
    if outer.whole or any(len(each.planes) > 1 for each in nested):
        return [outer, *nested] if files else nested
    for each in nested:
        outer.files.extend(each.files)
        outer.planes.update(each.planes)
    return [outer]


def planes_of(files: list[Path]) -> set[str]:
    """Returns the planes that files show according to their headers; stops reading once all three are found."""
    planes: set[str] = set()
    for file in files:
        if plane := scans.plane_of(file):
            planes.add(plane)
        if planes == set(PLANES):
            break
    return planes


def read(files) -> tuple[dict[str, Scout], list[str]]:
    """Reads the three scouts of a triple, by the name of their plane, and notes on what was repaired or left out.

    A slice's plane is decided by its own affine alone. Of several slices of a plane the middle one is taken; of several
    DICOM series the one that shows all planes.

    Raises:
      FormatError: a plane is missing or given twice, a slice is too oblique, an orientation is absent or wrong, too
        many voxels are non-finite, the slices are not of one examination, or the three planes do not meet.
    """
    files = [Path(file) for file in files]
    notes: list[str] = []
    slices: list[Scout] = []
    for file in files:
        if not scans.is_nifti(file):
            slices.append(scans.dicom(file, notes))
            continue
        voxels, affine, space = scans.nifti(file)
        slices_of = volume_slices if len(files) == 1 and scans.is_volume(file) else scans.stack
        slices += [scout._replace(space=space) for scout in slices_of(voxels, affine, file, notes)]
    slices = one_series(slices, notes)
    check_same_examination(slices)
    if len(folders := {Path(scout.file).parent for scout in slices}) > 1:
        notes.append(
            f"slices of several folders are treated as one examination: {', '.join(sorted(f.name for f in folders))}"
        )
    if (space := slices[0].space) != SCANNER:
        meaning = SPACES.get(space, "those of another template")
        notes.append(
            f"coordinates are {meaning} (sform or qform code {space}), not the scanner's, and so are the volume's"
        )
    groups = {name: [s for s in slices if s.name == name] for name in PLANES}
    missing = [name for name in PLANES if not groups[name]]
    if missing:
        present = "; ".join(
            f"{name}: {', '.join(sorted({Path(s.file).name for s in group}))}"
            for name, group in groups.items()
            if group
        )
        raise FormatError(
            files[0].parent, "", f"no {' and no '.join(missing)} scout (by their orientation, there are {present})",
            f"give one slice of each plane, or a volume (a file of at most {scans.STACK} slices is taken as a stack)",
        )  # fmt: skip
    scouts = {name: middle(group) for name, group in groups.items()}
    check_planes_intersect(scouts, files[0].parent)
    return scouts, notes


def one_series(slices: list[Scout], notes: list[str]) -> list[Scout]:
    """Returns the slices of the series that shows all three planes, or all slices if none does.

    Raises FormatError if several do.
    """
    series = {one.series: [s for s in slices if s.series == one.series] for one in slices}
    complete = [uid for uid, members in series.items() if {s.name for s in members} == set(PLANES)]
    if len(complete) > 1:
        first, second = (series[uid][0].file for uid in complete[:2])
        raise FormatError(
            second, "SeriesInstanceUID", f"a second series of all three planes besides that of {first}", "keep one"
        )
    if not complete or len(series) == 1:
        return slices
    unused = [Path(s.file).name for s in slices if s.series != complete[0]]
    notes.append(f"not used, because another series has all three planes: {', '.join(unused)}")
    return series[complete[0]]


def check_same_examination(slices: list[Scout]) -> None:
    """Checks that the slices are of one patient, study and frame of reference; raises FormatError otherwise."""
    first_values: dict[str, tuple[str, str]] = {}
    for scout in slices:
        for tag, value in (*scout.origin, ("sform or qform code", str(scout.space))):
            first_value, first_file = first_values.setdefault(tag, (value, scout.file))
            if value != first_value:
                raise FormatError(
                    scout.file, tag, f"{value!r}, but {first_value!r} in {first_file}", "give scouts of one examination"
                )


def middle(slices: list[Scout]) -> Scout:
    """Returns the middle one of a stack of slices, ordered by position along the patient's axis.

    Raises:
      FormatError: two lie at the same place, or are not of one stack; or there are just two, so none is the middle.
    """
    axis = normal(slices[0].plane)
    axis = axis * np.sign(axis[np.abs(axis).argmax()])
    position = lambda s: float(axis @ centre(s))
    slices = sorted(slices, key=position)
    for one, other in itertools.pairwise(slices):
        bad = lambda what, one=one, other=other: FormatError(
            other.file, "", f"a second {one.name} scout {what} {one.file}", "keep one of the two"
        )
        if not behind(one, other):
            raise bad("that does not belong to one stack with")
        if position(other) - position(one) < APART:
            raise bad("at the same position as")
        if len(slices) == 2:
            raise bad("besides")
    return slices[len(slices) // 2]


def behind(one: Scout, other: Scout) -> bool:
    """Whether a slice lies behind another as in a stack: same shape and orientation, moved only along the normal."""
    sides = np.linalg.norm(one.plane[:, :2], axis=0)
    alike = one.image.shape == other.image.shape and np.allclose(
        one.plane[:, :2], other.plane[:, :2], atol=0.02 * min(sides)
    )
    return bool(alike and np.abs(pixels(one.plane, other.plane[:, 2])).max() < 1)


def check_planes_intersect(scouts: dict[str, Scout], where) -> None:
    """Checks that the three planes meet within their images, as those of one head do; raises FormatError otherwise."""
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


def volume_slices(voxels, affine, file, notes) -> Iterator[Scout]:
    """Yields the slices of a volume along its three axes through the middle of the head."""
    head_voxels = np.argwhere(head_of(np.nan_to_num(voxels)))
    if not len(head_voxels):
        raise FormatError(file, "", "this volume shows no head: all of it is dark", "give a volume of a head")
    low, high = np.quantile(head_voxels, [0.01, 0.99], axis=0)
    middles = (low + high) / 2
    # Below the head there may be a neck, so the middle lies at most 0.4 HEAD below the crown.
    up_axis = int(np.argmax(np.abs(affine[2, :3])))
    crown = high[up_axis] if affine[2, up_axis] > 0 else low[up_axis]
    reach = 0.4 * HEAD / np.linalg.norm(affine[:3, up_axis]) * (-1 if affine[2, up_axis] > 0 else 1)
    if abs(middles[up_axis] - crown) > abs(reach):
        middles[up_axis] = crown + reach
    for axis in range(3):
        yield scans.cut(voxels, affine, axis, round(float(middles[axis])), file, notes)


# The network's frame


def head_of(image) -> np.ndarray:
    """Masks the head in a slice or volume: what, once smoothed, is brighter than a fifth of the 0.98 quantile."""
    smooth = scipy.ndimage.gaussian_filter(np.asarray(image, np.float32), 1.5)
    return smooth > 0.2 * np.quantile(smooth, 0.98)


def cleaned(image, sides) -> np.ndarray:
    """Normalises a slice (H, W) to [0, 1] and removes scanner artefacts.

    The outermost 2 % of rows and columns, where scanners leave bright lines, are set to 0. The coil's shading is
    removed by dividing by the head's brightness averaged over 30 mm (homomorphic unsharp masking; Axel, Costantini and
    Listerud 1987). 0 and 1 are the slice's 1st percentile and the head's 99th, whatever the units.

    Args:
      image: (H, W) of numbers.
      sides: (height, width) of a pixel in mm.
    """
    image = np.array(image, np.float64)  # in float32 the differences of large values may overflow
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
    unshaded = image / (
        (blur(image * head) + 0.05 * average) / (blur(head) + 0.05) + 1e-6
    )  # far from the head, its average
    bright = np.quantile(unshaded[head > 0], 0.99) if head.any() else unshaded.max()
    return np.clip(unshaded / max(float(bright), 1e-6), 0, 1)


def framed(source: Scout, size, spacing) -> Framed:
    """Brings a scout into the network's frame: cleaned, in radiological orientation, at a fixed scale, head centred.

    Args:
      source: the scout, in any orientation.
      size: (H, W) of the frame.
      spacing: mm per pixel of the frame, whatever the scout's own.

    Returns:
      A Framed, whose maps invert exactly what was done to the pixels.
    """
    steps = source.plane[:, :2]
    sides = np.linalg.norm(steps, axis=0)
    image = cleaned(source.image, sides[::-1])
    unit_steps, shown_axes = steps / sides, np.array(SHOWN[source.name], float).T
    # Which of the image's axes points right in the frame and which points down, and whether each is reversed.
    agreement = unit_steps.T @ shown_axes
    order = [0, 1] if abs(agreement[0, 0] * agreement[1, 1]) >= abs(agreement[1, 0] * agreement[0, 1]) else [1, 0]
    turn = np.zeros((2, 2))  # frame pixels -> source pixels, without the shift
    for column, axis in enumerate(order):
        turn[axis, column] = np.sign(agreement[axis, column]) * spacing / sides[axis]
    # The head's position relative to the image's centre, along the frame's axes, in pixels of the frame.
    rows, columns = np.nonzero(head_of(image))
    middle = np.array([source.image.shape[1], source.image.shape[0]]) / 2
    head_points = (np.stack([columns, rows], -1) + 0.5 - middle) @ np.linalg.inv(turn).T
    low, high = np.quantile(head_points, [0.01, 0.99], axis=0) if len(head_points) else (np.zeros(2), np.zeros(2))
    head_centre = (low + high) / 2
    if source.name != "axial":  # below the head there may be a neck
        head_centre[1] = min(head_centre[1], low[1] + HEAD / 2 / spacing)
    shift = middle + turn @ (head_centre - np.array(size[::-1]) / 2)
    to_source = np.concatenate([turn, shift[:, None]], axis=1)
    plane = source.plane @ np.vstack([to_source, [0, 0, 1]])
    # Smoothed first where the frame is coarser than the scout, to prevent aliasing.
    ratio = spacing / sides[::-1]
    smooth = scipy.ndimage.gaussian_filter(image, 0.5 * np.sqrt(np.maximum(ratio**2 - 1, 0)))
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    place = np.stack([x, y], -1) @ turn.T + shift
    values = scipy.ndimage.map_coordinates(smooth, [place[..., 1] - 0.5, place[..., 0] - 0.5], order=1, mode="constant")
    return Framed(np.round(255 * values).astype(np.uint8), to_source, plane)
