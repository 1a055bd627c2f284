"""Reading scout triples: each is read correctly, or the error says what is wrong and what to do."""

import os
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from jaxmarks.data import scans, scouts, slices
from jaxmarks.data.samples import FormatError

# The phantom is a head of 70 mm radius around MIDDLE; BALL, bright and off-centre, reveals a plane's orientation.
MIDDLE, BALL = np.array([4.0, -6.0, 10.0]), np.array([24.0, 19.0, 40.0])


def value(points):
    """The phantom at points (..., 3) in RAS mm; rods make the ball visible in all three planes through MIDDLE."""
    away = points - MIDDLE
    head = np.clip((70 - np.linalg.norm(away, axis=-1)) / 2, 0, 1) * 100.0
    for axis in range(3):  # a rod along each axis: each plane cuts one across, at the ball's position
        others = [a for a in range(3) if a != axis]
        near = np.linalg.norm((points - BALL)[..., others], axis=-1)
        head += 150 * np.clip(10 - near, 0, 1) * (np.abs(away[..., axis]) < 15)
    return head


def plane_of(name, *, turn=(0, 0, 0), flips=(1, 1), transposed=False, pixel=(2.0, 2.0), count=(100, 110)):
    """A plane through MIDDLE in radiological orientation, or rotated, flipped and transposed."""
    right, down = (Rotation.from_rotvec(turn, degrees=True).apply(np.array(v, float)) for v in scouts.SHOWN[name])
    x, y = (down * flips[1], right * flips[0]) if transposed else (right * flips[0], down * flips[1])
    x, y = x * pixel[0], y * pixel[1]
    return np.stack([x, y, MIDDLE - x * count[1] / 2 - y * count[0] / 2], axis=-1)


def image_of(plane, count=(100, 110)):
    y, x = np.mgrid[: count[0], : count[1]] + 0.5
    return value(np.stack([x, y, np.ones_like(x)], -1) @ plane.T).astype(np.float32)


def write_nifti(path, plane, image=None, codes=(1, 0)):
    """Writes one slice as NIfTI, with its third axis along x cross y."""
    image = image_of(plane) if image is None else image
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = plane[:, 0], plane[:, 1]
    affine[:3, 2] = 5 * slices.normal(plane)
    affine[:3, 3] = plane @ [0.5, 0.5, 1]
    made = nibabel.Nifti1Image(image.T[..., None], affine)
    made.set_qform(affine, code=codes[1])
    made.set_sform(affine, code=codes[0])
    nibabel.save(made, path)


def write_dicom(path, plane, image=None, **changes):
    """Writes one slice as DICOM, in LPS; `changes` sets tags, and None deletes one."""
    image = image_of(plane) if image is None else image
    made = pydicom.Dataset()
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = pydicom.uid.MRImageStorage
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = pydicom.uid.generate_uid()
    made.Rows, made.Columns = image.shape
    made.BitsAllocated = made.BitsStored = 16
    made.HighBit, made.PixelRepresentation, made.SamplesPerPixel = 15, 0, 1
    made.PhotometricInterpretation = "MONOCHROME2"
    made.PixelData = np.round(image).astype(np.uint16).tobytes()
    sides = np.linalg.norm(plane[:, :2], axis=0)
    lps = lambda vector: [f"{v:.9g}" for v in np.asarray(vector) * [-1, -1, 1]]
    made.ImageOrientationPatient = lps(plane[:, 0] / sides[0]) + lps(plane[:, 1] / sides[1])
    made.ImagePositionPatient = lps(plane @ [0.5, 0.5, 1])
    made.PixelSpacing = [f"{sides[1]:.9g}", f"{sides[0]:.9g}"]  # between rows, then between columns
    for tag, changed in changes.items():
        setattr(made, tag, changed) if changed is not None else delattr(made, tag)
    made.save_as(path, enforce_file_format=True)


def triple(folder, planes, write=write_nifti, ending=".nii.gz"):
    for name, plane in planes.items():
        write(folder / f"{name}{ending}", plane)
    ((_, files),) = scouts.triples(folder)
    return scouts.read(files)


def ball_in(scout):
    """Returns the position (3,), in mm, of a scout's brightest spot: the rod that its plane cuts across."""
    bright = ndimage.gaussian_filter(scout.image, 1) > 170
    y, x = ndimage.center_of_mass(bright)
    return scout.plane @ [x + 0.5, y + 0.5, 1]


USUAL = {name: plane_of(name) for name in slices.PLANES}
ODD = {
    "sagittal": plane_of("sagittal", flips=(-1, 1), transposed=True, pixel=(1.5, 2.5)),
    "coronal": plane_of("coronal", flips=(1, -1)),
    "axial": plane_of("axial", flips=(-1, -1), transposed=True),
}


@pytest.mark.parametrize(
    ("write", "ending"),
    [(write_nifti, ".nii.gz"), (write_nifti, ".NII"), (write_nifti, ".img"), (write_dicom, ".dcm")],
    ids=["nifti", "upper case", "pair", "dicom"],
)
@pytest.mark.parametrize("planes", [USUAL, ODD], ids=["as shown", "flipped and transposed"])
def test_planes_and_positions_survive_every_storage_format(tmp_path, planes, write, ending):
    found, notes = triple(tmp_path, planes, write, ending)
    assert list(found) == list(slices.PLANES) and not notes
    for axis, (name, one) in enumerate(found.items()):
        assert one.name == name
        np.testing.assert_allclose(one.plane, planes[name], atol=1e-4)
        expected = np.where(np.arange(3) == axis, MIDDLE, BALL)
        np.testing.assert_allclose(ball_in(one), expected, atol=1.0)


@pytest.mark.parametrize("planes", [USUAL, ODD], ids=["as shown", "flipped and transposed"])
def test_a_frame_shows_the_head_upright_and_maps_back_exactly(tmp_path, planes):
    found, _ = triple(tmp_path, planes)
    for name, one in found.items():
        framed = scouts.framed(one, (128, 128), 2.0)
        assert framed.image.shape == (128, 128) and framed.image.dtype == np.uint8
        for column, direction in enumerate(scouts.SHOWN[name]):
            np.testing.assert_allclose(framed.plane[:, column], 2 * np.array(direction), atol=1e-5)
        points = np.array([[0.0, 0], [128, 128], [37.2, 90.1]])
        there = points @ framed.to_source[:, :2].T + framed.to_source[:, 2]
        np.testing.assert_allclose(
            np.c_[there, np.ones(3)] @ one.plane.T, np.c_[points, np.ones(3)] @ framed.plane.T, atol=1e-6
        )
        # The pixels agree with the map: the ball is where it says, and the head in the middle of the frame.
        where = slices.pixels(framed.plane, BALL)
        y, x = ndimage.center_of_mass(ndimage.gaussian_filter(framed.image.astype(float), 1) > 215)
        np.testing.assert_allclose([x + 0.5, y + 0.5], where, atol=1.0)
        np.testing.assert_allclose(slices.pixels(framed.plane, MIDDLE), [64, 64], atol=4)


def test_lps_is_converted_to_ras():
    """LPS (10, 20, 30) is 10 mm to the left and 20 mm to the back."""
    np.testing.assert_array_equal(slices.lps_to_ras([10, 20, 30]), [-10, -20, 30])


def test_a_plane_is_named_by_its_affine_not_its_file_name(tmp_path):
    names = dict(zip(slices.PLANES, ("axial", "sagittal", "coronal"), strict=True))
    found, _ = triple(tmp_path, {names[name]: plane for name, plane in USUAL.items()})
    for name, one in found.items():
        assert one.file.endswith(f"{names[name]}.nii.gz")


def test_a_missing_plane_error_lists_the_scouts(tmp_path):
    with pytest.raises(FormatError, match=r"no coronal scout .*sagittal: a.nii.gz, b.nii.gz; axial: c.nii.gz"):
        triple(tmp_path, {"a": USUAL["sagittal"], "b": USUAL["sagittal"], "c": USUAL["axial"]})


def test_all_missing_planes_are_named(tmp_path):
    with pytest.raises(FormatError, match="no coronal and no axial scout"):
        triple(tmp_path, {"only": USUAL["sagittal"]})


def test_oblique_slices_keep_their_affine_up_to_a_limit(tmp_path):
    turned = USUAL | {"coronal": plane_of("coronal", turn=(25, 0, 0))}
    found, _ = triple(tmp_path, turned)
    np.testing.assert_allclose(found["coronal"].plane, turned["coronal"], atol=1e-5)
    framed = scouts.framed(found["coronal"], (128, 128), 2.0)
    np.testing.assert_allclose(slices.normal(framed.plane), slices.normal(turned["coronal"]), atol=1e-6)
    write_nifti(tmp_path / "coronal.nii.gz", plane_of("coronal", turn=(40, 0, 0)))
    with pytest.raises(FormatError, match=r"coronal.nii.gz: an oblique slice, 40 degrees from the coronal plane"):
        scouts.read(sorted(tmp_path.iterdir()))


def test_a_few_nan_voxels_are_filled_and_many_refused(tmp_path):
    image = image_of(USUAL["axial"])
    image[40:44, 30:60] = np.nan
    for name, plane in USUAL.items():
        write_nifti(tmp_path / f"{name}.nii", plane, image if name == "axial" else None)
    found, notes = scouts.read(sorted(tmp_path.iterdir()))
    assert np.isfinite(found["axial"].image).all() and "120 voxels" in notes[0] and "axial.nii" in notes[0]
    assert scouts.framed(found["axial"], (64, 64), 4.0).image.max() > 200
    image[:50] = np.nan
    write_nifti(tmp_path / "axial.nii", USUAL["axial"], image)
    with pytest.raises(FormatError, match="of the axial slice is NaN or infinite"):
        scouts.read(sorted(tmp_path.iterdir()))


def test_a_blank_slice_is_refused(tmp_path):
    write_nifti(tmp_path / "a.nii", USUAL["axial"], np.zeros((100, 110), np.float32))
    with pytest.raises(FormatError, match="shows nothing: all its values are 0"):
        scouts.read([tmp_path / "a.nii"])


def test_a_slice_without_a_finite_position_is_refused():
    plane = np.array([[1.0, 0, np.nan], [0, 1, 0], [0, 0, 0]])
    with pytest.raises(FormatError, match=r"a.dcm: its place in the patient is no number, \[nan, 0.0, 0.0\] mm"):
        slices.scout(np.eye(4), plane, "a.dcm", [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": (0, 0)}, "sform_code and qform_code are both 0"),
        ({"slant": 0.3}, "not at right angles"),
        ({"zero": 1}, "voxels of .* mm in the header"),
        ({"disagree": [-1, 1, 1]}, "sform and qform contradict each other"),
        ({"disagree": [1, 1, 1], "shift": (60, 0, 40)}, r"contradict each other, by 72.1 mm"),
        ({"disagree": [2, 2, 1]}, "sform and qform contradict each other"),
        ({"units": "meter"}, "xyzt_units: its coordinates are not in millimetres"),
        ({"dtype": np.complex64}, "voxels of type complex64"),
        ({"quaternion": 5}, "its orientation cannot be read"),
        ({"scale": 100}, r"pixels of \[200.0, 200.0\] mm"),
    ],
    ids=[
        "absent", "sheared", "without size", "contradictory", "two places", "two sizes", "metres", "complex",
        "no quaternion", "too large",
    ],
)  # fmt: skip
def test_an_invalid_nifti_header_is_refused(tmp_path, change, message):
    write_nifti(tmp_path / "a.nii", USUAL["axial"], codes=change.get("codes", (1, 0)))
    if "codes" not in change:
        made = nibabel.load(tmp_path / "a.nii")
        affine = made.affine.copy()
        if "slant" in change:
            affine[:3, 1] += change["slant"] * affine[:3, 0]
        if "zero" in change:
            affine[:3, 1] = 0
        if "disagree" in change:
            other = affine @ np.diag([*change["disagree"], 1])
            other[:3, 3] += change.get("shift", 0)
            made.header.set_qform(other, code=1)
        affine[:3, :2] *= change.get("scale", 1)
        made.header.set_sform(affine, code=1)
        made.header.set_xyzt_units(change.get("units", "mm"))
        made.header.set_data_dtype(change.get("dtype", np.float32))
        if "quaternion" in change:
            made.header["qform_code"], made.header["quatern_b"] = 1, change["quaternion"]
        voxels = np.asarray(made.dataobj).astype(change.get("dtype", np.float32))
        with (tmp_path / "a.nii").open("wb") as file:
            made.header["vox_offset"] = 352
            made.header.write_to(file)
            file.write(bytes(4) + voxels.tobytes("F"))
    with pytest.raises(FormatError, match=message):
        scouts.read([tmp_path / "a.nii"])


def test_an_invalid_qform_with_code_0_is_ignored(tmp_path):
    write_nifti(tmp_path / "a.nii", USUAL["axial"], codes=(1, 0))
    data = bytearray((tmp_path / "a.nii").read_bytes())
    data[256:268] = np.full(3, 5, np.float32).tobytes()  # the quaternion
    (tmp_path / "a.nii").write_bytes(data)
    voxels, affine, space = scans.nifti(tmp_path / "a.nii")
    assert space == 1
    assert voxels.shape == (110, 100, 1)
    np.testing.assert_allclose(affine[:3, 3], USUAL["axial"] @ [0.5, 0.5, 1], atol=1e-4)


def test_dicom_with_bad_orientation_or_truncated_is_refused(tmp_path):
    write_dicom(tmp_path / "a.dcm", USUAL["axial"], ImageOrientationPatient=None)
    with pytest.raises(FormatError, match=r"a.dcm: no ImageOrientationPatient"):
        scouts.read([tmp_path / "a.dcm"])
    write_dicom(tmp_path / "a.dcm", USUAL["axial"], ImageOrientationPatient=["1", "0", "0", "0.6", "0.8", "0"])
    with pytest.raises(FormatError, match="not at a right angle"):
        scouts.read([tmp_path / "a.dcm"])
    (tmp_path / "a.dcm").write_bytes((tmp_path / "a.dcm").read_bytes()[:400])
    with pytest.raises(FormatError, match="cannot be read"):
        scouts.read([tmp_path / "a.dcm"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ImageOrientationPatient": ["2", "0", "0", "0", "2", "0"]}, "ImageOrientationPatient: .* not of length 1"),
        ({"PixelSpacing": ["-2", "-2"]}, r"PixelSpacing: \[-2.0, -2.0\] mm"),
        ({"PixelSpacing": ["1000000", "1000000"]}, r"pixels of \[1000000.0, 1000000.0\] mm"),
        ({"PixelSpacing": "2"}, r"PixelSpacing: \[2.0\] is not 2 finite numbers"),
        ({"PixelSpacing": ["2", "2", "2"]}, r"PixelSpacing: \[2.0, 2.0, 2.0\] is not 2 finite numbers"),
        ({"ImagePositionPatient": ["1", "2"]}, r"ImagePositionPatient: .* is not 3 finite numbers"),
        ({"RescaleSlope": ["1", "2"]}, r"RescaleSlope: \[1.0, 2.0\] is not 1 finite numbers"),
        ({"ImagePositionPatient": ""}, "no ImagePositionPatient"),
        ({"PerFrameFunctionalGroupsSequence": []}, "an enhanced image .MR Image Storage.; export it as classic DICOM"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR; give greyscale images"),
    ],
)
def test_wrong_dicom_tags_are_named(tmp_path, changes, message):
    write_dicom(tmp_path / "a.dcm", USUAL["axial"], **changes)
    with pytest.raises(FormatError, match=rf"a.dcm: .*{message}"):
        scouts.read([tmp_path / "a.dcm"])


def test_non_numeric_dicom_values_are_reported(tmp_path):
    write_dicom(tmp_path / "a.dcm", USUAL["axial"])
    data = (tmp_path / "a.dcm").read_bytes()
    assert data.count(b"2\\2 ") == 1
    (tmp_path / "a.dcm").write_bytes(data.replace(b"2\\2 ", b"a\\2 "))
    with pytest.raises(FormatError, match=r"a.dcm: PixelSpacing: its value is not 2 numbers"):
        scouts.read([tmp_path / "a.dcm"])


@pytest.mark.parametrize("other", ["1.3", ""])
@pytest.mark.parametrize("tag", scans.ORIGIN)
def test_scouts_of_two_patients_or_studies_are_refused(tmp_path, tag, other):
    for name, plane in USUAL.items():
        write_dicom(tmp_path / f"{name}.dcm", plane, **{tag: "1.2" if name == "axial" else other})
    with pytest.raises(FormatError, match=rf"coronal.dcm: {tag}: '{other}', but '1.2' in .*axial.dcm"):
        scouts.read(sorted(tmp_path.iterdir()))


def test_two_slices_at_the_same_position_are_refused(tmp_path):
    with pytest.raises(FormatError, match="a second axial scout at the same position as"):
        triple(tmp_path, USUAL | {"again": USUAL["axial"]})


def test_two_slices_of_a_plane_are_refused(tmp_path):
    with pytest.raises(FormatError, match=r"a second axial scout besides .*nii.gz; keep one of the two"):
        triple(tmp_path, USUAL | {"lower": moved(USUAL["axial"], along=(0, 0, -20))})


def test_empty_dicom_rescale_tags_are_ignored(tmp_path):
    found, _ = triple(
        tmp_path, USUAL, lambda path, plane: write_dicom(path, plane, RescaleSlope="", RescaleIntercept=""), ".dcm"
    )
    np.testing.assert_array_equal(found["axial"].image, np.round(image_of(USUAL["axial"])))


def moved(plane, *, along=(0.0, 0.0, 0.0), turn=(0.0, 0.0, 0.0)):
    """Shifts a plane by mm and rotates it about its corner by degrees."""
    found = np.concatenate([Rotation.from_rotvec(turn, degrees=True).apply(plane[:, :2].T).T, plane[:, 2:]], axis=1)
    found[:, 2] += along
    return found


@pytest.mark.parametrize(
    "change", [{"along": (15, 0, 20)}, {"along": (0, 0, 20), "turn": (0, 5, 0)}], ids=["beside", "turned"]
)
def test_slices_that_form_no_stack_are_refused(tmp_path, change):
    with pytest.raises(
        FormatError, match=r"a second axial scout that does not belong to one stack with .*axial.nii.gz; keep one"
    ):
        triple(tmp_path, USUAL | {"second": moved(USUAL["axial"], **change)})


@pytest.mark.parametrize("backwards", [False, True])
def test_an_even_stack_gives_the_same_slice_in_either_order(tmp_path, backwards):
    for axis, (name, plane) in enumerate(USUAL.items()):
        places = [moved(plane, along=8 * step * np.eye(3)[axis]) for step in (-1, 0, 1, 2)]
        at = places[0] @ [0.5, 0.5, 1]
        images = np.stack([image_of(place).T for place in places], axis=-1)
        affine = np.eye(4)
        affine[:3] = np.stack([plane[:, 0], plane[:, 1], 8 * np.eye(3)[axis], at], axis=-1)
        if backwards:
            images, affine[:3, 2], affine[:3, 3] = images[..., ::-1], -affine[:3, 2], at + 24 * np.eye(3)[axis]
        nibabel.save(nibabel.Nifti1Image(images, affine), tmp_path / f"{name}.nii")
    found, _ = scouts.read(sorted(tmp_path.iterdir()))
    for axis, one in enumerate(found.values()):
        assert slices.centre(one)[axis] == pytest.approx(slices.centre(one._replace(plane=USUAL[one.name]))[axis] + 8)


def test_template_space_is_reported_and_never_mixed(tmp_path):
    template = lambda path, plane: write_nifti(path, plane, codes=(4, 0))
    found, notes = triple(tmp_path, USUAL, template)
    assert {one.space for one in found.values()} == {4}
    assert notes == [
        "coordinates are those of the MNI template (sform or qform code 4), not the scanner's, and so are the volume's"
    ]
    write_nifti(tmp_path / "axial.nii.gz", USUAL["axial"])
    with pytest.raises(FormatError, match=r"coronal.nii.gz: sform or qform code: '4', but '1' in .*axial"):
        scouts.read(sorted(tmp_path.iterdir()))


@pytest.mark.parametrize("write", [write_nifti, write_dicom])
def test_each_examination_in_a_folder_tree_is_its_own_triple(tmp_path, write):
    def put(folder, planes=USUAL):
        for name, plane in planes.items():
            place = tmp_path / folder / f"{name}{'.nii' if write is write_nifti else '.dcm'}"
            place.parent.mkdir(parents=True, exist_ok=True)
            write(place, plane)

    for folder in ("p1/ses-1", "p1/ses-2", "site/p2/scan", "site/p3/scan", "p4"):
        put(folder)
    for name in USUAL:  # one folder per plane: p5 in two sessions, p6 without sessions
        for session in ("a", "b"):
            put(f"p5/{session}/{name}", {name: USUAL[name]})
        put(f"p6/{name}", {name: USUAL[name]})
    put("p4/.trash")
    (tmp_path / "p4" / "up").symlink_to(tmp_path)
    found = {name: {str(f.parent.relative_to(tmp_path)) for f in files} for name, files in scouts.triples(tmp_path)}
    whole = ("p1/ses-1", "p1/ses-2", "site/p2/scan", "site/p3/scan", "p4")
    series = {f"p5_{s}": {f"p5/{s}/{name}" for name in USUAL} for s in "ab"} | {"p6": {f"p6/{name}" for name in USUAL}}
    assert found == {folder.replace("/", "_"): {folder} for folder in whole} | series
    put("p1", {"axial": USUAL["axial"]})  # beside two complete examinations, and itself incomplete
    assert {name: len(files) for name, files in scouts.triples(tmp_path) if name.startswith("p1")} == {
        "p1": 1, "p1_ses-1": 3, "p1_ses-2": 3
    }  # fmt: skip


def test_partial_patients_stay_apart_despite_links_and_odd_files(tmp_path, monkeypatch):
    for place, names in (("site/a", ("sagittal", "coronal")), ("site/b", ("axial",)), ("whole", tuple(USUAL))):
        (tmp_path / place).mkdir(parents=True)
        for name in names:
            write_nifti(tmp_path / place / f"{name}.nii", USUAL[name])
    for one, other in (("a", "b"), ("b", "a")):
        (tmp_path / "site" / one / "other").symlink_to(tmp_path / "site" / other)
    os.mkfifo(tmp_path / "whole" / "pipe")
    locked, listed = tmp_path / "whole" / "locked", Path.iterdir
    locked.mkdir()

    def listing(folder):
        if folder == locked:
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", listing)
    found = {name: len(files) for name, files in scouts.triples(tmp_path)}
    assert found == {"site_a": 2, "site_b": 1, "whole": 3, "whole_locked": 1}
    with pytest.raises(FormatError, match="locked: cannot be read"):
        scouts.read([locked])


def test_a_folder_per_series_is_one_examination(tmp_path):
    for name, plane in USUAL.items():
        (tmp_path / name).mkdir()
        write_dicom(tmp_path / name / "1.dcm", plane)
    ((name, files),) = scouts.triples(tmp_path)
    assert name == tmp_path.name
    _, notes = scouts.read(files)
    assert notes == ["slices of several folders are treated as one examination: axial, coronal, sagittal"]


def test_the_only_complete_dicom_series_is_used(tmp_path):
    for name, plane in USUAL.items():
        write_dicom(tmp_path / f"{name}.dcm", plane, SeriesInstanceUID="1.1")
    write_dicom(
        tmp_path / "other.dcm", moved(USUAL["axial"], turn=(9, 0, 0)), SeriesInstanceUID="1.2", StudyInstanceUID="2"
    )
    found, notes = scouts.read(sorted(tmp_path.iterdir()))
    assert notes == ["not used, because another series has all three planes: other.dcm"]
    assert found["axial"].file.endswith("axial.dcm")
    for name, plane in USUAL.items():
        write_dicom(tmp_path / f"{name}2.dcm", moved(plane, along=(3, 3, 3)), SeriesInstanceUID="1.2")
    with pytest.raises(
        FormatError, match=r"2.dcm: SeriesInstanceUID: a second series of all three planes besides that of .*axial.dcm"
    ):
        scouts.read(sorted(tmp_path.glob("*l*.dcm")))


def test_empty_nifti_and_analyze_files_are_refused(tmp_path):
    affine = np.diag([2.0, 2, 2, 1])
    nibabel.save(nibabel.Nifti1Image(np.zeros((9, 0, 1), np.float32), affine), tmp_path / "a.nii")
    with pytest.raises(FormatError, match=r"a.nii: \(9, 0, 1\) voxels"):
        scouts.read([tmp_path / "a.nii"])
    nibabel.save(nibabel.Spm99AnalyzeImage(np.ones((9, 9, 1), np.float32), affine), tmp_path / "b.img")
    with pytest.raises(FormatError, match=r"b.img: a Spm\d+AnalyzeImage"):
        scouts.read([tmp_path / "b.img"])


@pytest.mark.parametrize("scale", [1e-42, 1e36])
def test_cleaning_ignores_intensity_scale(scale):
    plain = image_of(USUAL["axial"]).astype(np.float64)
    clean = scouts.cleaned((plain * scale).astype(np.float32), (2.0, 2.0))
    np.testing.assert_allclose(clean, scouts.cleaned(plain, (2.0, 2.0)), atol=0.05)


def test_planes_that_do_not_meet_are_refused(tmp_path):
    elsewhere = USUAL["axial"].copy()
    elsewhere[2, 2] += 300
    for name, plane in USUAL.items():
        write_nifti(tmp_path / f"{name}.nii", elsewhere if name == "axial" else plane, image_of(plane))
    with pytest.raises(FormatError, match=r"cross at .* outside the sagittal scout"):
        scouts.read(sorted(tmp_path.iterdir()))


def test_the_middle_slice_of_a_stack_is_taken(tmp_path):
    for step in (-20, 0, 20):
        for axis, (name, plane) in enumerate(USUAL.items()):
            moved = plane.copy()
            moved[axis, 2] += step
            write_dicom(tmp_path / f"{name}{step}", moved)  # no file ending: DICOM is recognised by its magic number
    ((name, files),) = scouts.triples(tmp_path)
    assert name == tmp_path.name and len(files) == 9
    for plane, one in scouts.read(files)[0].items():
        assert one.file.endswith(f"{plane}0")


@pytest.mark.parametrize("damage", ["cut", "without its mark", "link to nowhere"])
@pytest.mark.parametrize("ending", [".dcm", ".IMA", ""])
def test_a_damaged_slice_is_reported_and_not_skipped(tmp_path, ending, damage):
    for name, plane in USUAL.items():
        write_dicom(tmp_path / f"{name}{ending}", plane)
    bad = tmp_path / f"axial{ending}"
    data = bad.read_bytes()
    bad.unlink()
    if damage == "link to nowhere":
        bad.symlink_to(tmp_path / "gone" / "axial")
    else:
        bad.write_bytes(data[:100] if damage == "cut" else data[132:])
    (tmp_path / "notes.txt").write_text("of no concern")
    ((_, files),) = scouts.triples(tmp_path)
    with pytest.raises(FormatError, match=rf"axial{ending}: cannot be read"):
        scouts.read(files)


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (-1, -1, 1)], ids=["RAS", "left-handed", "LPS"])
def test_a_volume_is_cut_through_the_head_centre(tmp_path, signs):
    affine = np.diag([*(2.5 * np.array(signs)), 1.0])
    affine[:3, 3] = -np.array(signs) * 110
    at = np.stack(np.meshgrid(*[np.arange(88)] * 3, indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]
    nibabel.save(nibabel.Nifti1Image(value(at).astype(np.float32), affine), tmp_path / "head.nii.gz")
    ((name, files),) = scouts.triples(tmp_path)
    assert name == "head"
    found, _ = scouts.read(files)
    for axis, one in enumerate(found.values()):
        middle = slices.centre(one)[axis]
        assert abs(middle - MIDDLE[axis]) < 5
        np.testing.assert_allclose(ball_in(one), np.where(np.arange(3) == axis, middle, BALL), atol=1.5)


def test_triples_are_named_after_their_folders(tmp_path):
    for patient in ("one", "two"):
        (tmp_path / patient).mkdir()
        triple_files = USUAL if patient == "one" else ODD
        for name, plane in triple_files.items():
            write_nifti(tmp_path / patient / f"{name}.nii", plane)
    assert {name: len(files) for name, files in scouts.triples(tmp_path)} == {"one": 3, "two": 3}
    (tmp_path / "none").mkdir()
    with pytest.raises(FormatError, match="no NIfTI or DICOM"):
        list(scouts.triples(tmp_path / "none"))
    with pytest.raises(FormatError, match="no such file or folder"):
        list(scouts.triples(tmp_path / "gone"))


def test_volumes_of_one_file_name_get_distinct_names(tmp_path, monkeypatch):
    volume = nibabel.Nifti1Image(np.ones((50, 50, 50), np.float32), np.eye(4))
    for place in ("p/s1/T1.nii", "p/s2/T1.NII", "p/T1.nii.gz", "T1.nii"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(volume, tmp_path / place)
    assert sorted(name for name, _ in scouts.triples(tmp_path)) == ["T1", "p_T1", "p_s1_T1", "p_s2_T1"]
    monkeypatch.chdir(tmp_path / "p")
    write_nifti(tmp_path / "scout.nii", USUAL["axial"])
    names = [name for name, _ in scouts.triples("..")]
    assert tmp_path.name in names and ".." not in names


def test_cleaning_removes_shading_border_lines_and_units():
    plain = image_of(USUAL["axial"])
    y, x = np.mgrid[:100, :110] / 100 - 0.5
    shaded = 7 * plain * np.exp(1.2 * x + 0.8 * y) + 30
    shaded[0], shaded[:, -1] = 9000, 9000
    clean, expected = (scouts.cleaned(image, (2.0, 2.0)) for image in (shaded, plain))
    assert clean.min() >= 0 and clean.max() <= 1 and clean[0].max() == 0
    head = ndimage.binary_erosion(plain > 50, iterations=3)
    spread = lambda ratio: ratio[head].std() / ratio[head].mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        assert spread(clean / expected) < 0.5 * spread(shaded / plain)


def test_import_errors_name_the_missing_extra(tmp_path, monkeypatch):
    write_nifti(tmp_path / "a.nii", USUAL["axial"])
    write_dicom(tmp_path / "b.dcm", USUAL["axial"])
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(ImportError, match=r"jaxmarks\[nifti\]"):
        scouts.read([tmp_path / "a.nii"])
    with pytest.raises(ImportError, match=r"jaxmarks\[dicom\]"):
        scouts.read([tmp_path / "b.dcm"])
