"""Scouts of three planes: found in folders, read as the triple of one examination, and each in the network's frame."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy

from jaxmarks.data import scans
from jaxmarks.data.samples import FormatError
from jaxmarks.data.slices import PLANES, SCANNER, SPACES, Scout, centre, normal, pixels

# How a plane is shown, as radiologists do: where its x axis (right on the screen) and its y axis (down) point in RAS.
SHOWN = {
    "sagittal": ((0, -1, 0), (0, 0, -1)),
    "coronal": ((-1, 0, 0), (0, 0, -1)),
    "axial": ((-1, 0, 0), (0, -1, 0)),
}
# A head from its crown down to below the cerebellum, and how far down its middle lies, mm.
HEAD = 220.0
# Slices of a plane less than this apart, mm, are one slice twice.
APART = 0.5


class Framed(NamedTuple):
    """A scout in the network's frame: `image` (H, W) uint8, `to_source` (2, 3) to its own pixels, `plane` (3, 3) of the frame."""

    image: np.ndarray
    to_source: np.ndarray
    plane: np.ndarray


class Examination(NamedTuple):
    """The `files` of what one folder and those in it show, and the names of their `planes`."""

    folder: Path
    files: list[Path]
    planes: set[str]

    @property
    def whole(self) -> bool:
        return self.planes == set(PLANES)


def triples(path) -> Iterator[tuple[str, list[Path]]]:
    """The scout triples below a path: (name, files).

    A path is a NIfTI volume, or a folder. Of each examination in it (`examinations`) every NIfTI volume is a triple by
    itself (its own slices), named by its path in the folder; the NIfTI scouts are one together, and so are the DICOM
    files. A file that is DICOM by its ending, or by those of the DICOM files beside it, is one of them also where it is
    damaged: `read` complains of it, and no other slice takes its place.

    Raises:
      FormatError: there is nothing of the kind.
    """
    path = Path(path)
    if not path.exists():
        raise FormatError(path, "", "no such file or folder", "give scouts with --config.data.images")
    if path.is_file():
        yield scans.stem(path), [path]
        return
    path, some = path.resolve(), False  # ".." has no name
    for one in examinations(path, links=True):
        name = "_".join(one.folder.relative_to(path).parts) or path.name
        nifti = [p for p in one.files if scans.is_nifti(p)]
        thick = [p for p in nifti if scans.is_volume(p)]
        for file in thick:
            yield "_".join([*file.parent.relative_to(path).parts, scans.stem(file)]), [file]
        thin, others = [p for p in nifti if p not in thick], [p for p in one.files if not scans.is_nifti(p)]
        endings = {".dcm", ".ima", *(scans.ending(p) for p in others if scans.is_dicom(p))}
        dicom = [p for p in others if scans.ending(p) in endings or p.is_dir()]
        for files, kind in ((thin, "nifti"), (dicom, "dicom")):
            if files:
                yield name + (f"_{kind}" if thin and dicom else ""), files
        some = some or bool(nifti or dicom)
    if not some:
        raise FormatError(path, "", "no NIfTI and no DICOM file in it", "give scouts with --config.data.images")


def examinations(folder: Path, *, links: bool = False) -> list[Examination]:
    """The examinations in a folder and those in it.

    A folder and those in it are one together where none of these shows more than one plane, as the folders of series do.
    Else they are one each, for they may be of several patients; what lacks planes is left to `read` to refuse. A folder
    that may not be read is one, too, with itself for its file.

    Args:
      folder: where to look.
      links: whether links to folders are followed, there alone.
    """
    try:
        inside = sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.name != "DICOMDIR")
    except OSError:
        return [Examination(folder, [folder], set())]
    files = [p for p in inside if p.is_file() or not p.exists()]  # or a link to nowhere
    inner = [each for p in inside if p.is_dir() and (links or not p.is_symlink()) for each in examinations(p)]
    own = Examination(folder, files, planes_of(files))
    if own.whole or any(len(each.planes) > 1 for each in inner):
        return [own, *inner] if files else inner
    for each in inner:
        own.files.extend(each.files)
        own.planes.update(each.planes)
    return [own]


def planes_of(files: list[Path]) -> set[str]:
    """The planes that files show by their headers; the rest is not read once all three are there."""
    found: set[str] = set()
    for file in files:
        if plane := scans.plane_of(file):
            found.add(plane)
        if found == set(PLANES):
            break
    return found


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
        if not scans.is_nifti(file):
            slices.append(scans.dicom(file, notes))
            continue
        voxels, affine, space = scans.nifti(file)
        cuts = volume_slices if len(files) == 1 and scans.is_volume(file) else scans.stack
        slices += [one._replace(space=space) for one in cuts(voxels, affine, file, notes)]
    slices = one_series(slices, notes)
    belong(slices)
    if len(folders := {Path(one.file).parent for one in slices}) > 1:
        notes.append(
            f"slices of several folders taken for one examination: {', '.join(sorted(f.name for f in folders))}"
        )
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
            f"give one slice of each plane, or a volume (a file of at most {scans.STACK} slices is a stack of scouts)",
        )  # fmt: skip
    scouts = {name: middle(group) for name, group in groups.items()}
    meet(scouts, files[0].parent)
    return scouts, notes


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
      FormatError: two lie at the same place, or not one behind the other; or there are two, and none is the middle.
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
        if len(slices) == 2:
            raise bad("beside")
    return slices[len(slices) // 2]


def behind(one: Scout, other: Scout) -> bool:
    """Whether a slice lies behind another as in a stack: of its shape and direction, moved across the plane alone."""
    sides = np.linalg.norm(one.plane[:, :2], axis=0)
    alike = one.image.shape == other.image.shape and np.allclose(
        one.plane[:, :2], other.plane[:, :2], atol=0.02 * min(sides)
    )
    return bool(alike and np.abs(pixels(one.plane, other.plane[:, 2])).max() < 1)


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
        yield scans.cut(voxels, affine, axis, round(float(middles[axis])), file, notes)


# The network's frame


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
