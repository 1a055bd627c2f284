"""Scout triples cut from a head: their landmarks and boxes are exact, and errors name the faulty input."""

import json

import ml_collections
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from jaxmarks.data import brains, slices
from jaxmarks.data.samples import FormatError

SPEC = ml_collections.ConfigDict(
    {
        "volume": "", "landmarks": "", "size": (48, 48), "spacing": 5.0, "count": 2, "turn": 20.0, "tilt": 8.0,
        "elastic": 2.0, "seed": 3,
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def phantom():
    return brains.phantom(pixel=4.0)


def test_the_phantoms_box_fits_its_brain(phantom):
    voxels = np.argwhere(phantom.brain)
    inside = (voxels - phantom.to_voxel[:, 3]) @ np.linalg.inv(phantom.to_voxel[:, :3]).T
    np.testing.assert_allclose(np.abs(inside).max(0) + 2, phantom.size / 2, atol=2)  # plus half a voxel's side
    np.testing.assert_allclose(phantom.size, [140, 176, 144], atol=6)  # the extent of the ellipsoids
    shares = np.array(brains.template(phantom)["shares"])
    names = [name for _, name in brains.LANDMARKS]
    assert shares.shape == (len(names), 3) and np.isfinite(shares).all()
    np.testing.assert_array_equal(shares[names.index("anterior")], [0, 0.5, 0])
    np.testing.assert_allclose((shares * phantom.size)[names.index("AC")], phantom.fiducials[0])
    assert shares[names.index("AC"), 1] > shares[names.index("PC"), 1]


def test_the_ac_pc_frame_rotates_with_the_fiducials(phantom):
    """In head axes, where AC and PC lie along y, the frame is the identity."""
    np.testing.assert_allclose(brains.axes_of(phantom.fiducials), np.eye(3), atol=1e-6)
    turn = Rotation.from_rotvec([10, -25, 40], degrees=True).as_matrix()
    np.testing.assert_allclose(brains.axes_of(phantom.fiducials @ turn.T + 7), turn, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_landmarks_move_with_the_pixels(phantom, seed):
    """In a head that is dark except for a blob at one fiducial, scouts show the blob at the fiducial's projection."""
    number = (brains.AC, 19, 4, brains.PC)[seed]
    grid = np.stack(np.meshgrid(*map(np.arange, phantom.voxels.shape), indexing="ij"), -1)
    local = (grid - phantom.to_voxel[:, 3]) @ np.linalg.inv(phantom.to_voxel[:, :3]).T
    blob = np.exp(-((local - phantom.fiducials[number - 1]) ** 2).sum(-1) / (2 * 10**2)).astype(np.float32)
    drawn = brains.draw(phantom._replace(voxels=blob), np.random.default_rng(seed), elastic=3.0)
    truth = drawn.landmarks[brains.LANDMARKS.index(("sagittal", brains.NAMES[number]))]
    away = {name: abs((truth - s.plane[:, 2]) @ slices.normal(s.plane)) for name, s in drawn.scouts.items()}
    assert min(away.values()) < 10
    for name, one in drawn.scouts.items():
        if away[name] > 10:
            continue
        # A slice of a ball is a disc around the projection of the ball's centre.
        image = ndimage.gaussian_filter(one.image[2:-2, 2:-2], 3)
        y, x = ndimage.center_of_mass(image > 0.7 * image.max())
        found = np.array([x, y]) + 2.5
        assert np.linalg.norm(found - slices.pixels(one.plane, truth)) * np.linalg.norm(one.plane[:, 0]) < 3


def test_the_box_scales_with_the_brain(phantom):
    drawn = brains.draw(phantom, np.random.default_rng(0), elastic=0.0)
    # Without elastic deformation the head, and so its box, is only scaled along its own axes.
    growth = drawn.size / phantom.size
    assert (np.abs(growth - 1) < 0.3).all()
    local = (drawn.landmarks - drawn.centre) @ drawn.rotation
    np.testing.assert_allclose(local, np.array(brains.template(phantom)["shares"]) * drawn.size, atol=0.3)
    bent = brains.draw(phantom, np.random.default_rng(0), elastic=3.0)
    assert 0.5 < np.abs(bent.landmarks - drawn.landmarks).max() < 25
    np.testing.assert_allclose(np.linalg.det(bent.rotation), 1)


def test_samples_agree_with_the_ground_truth():
    samples, volumes, photograph = brains.load(SPEC)
    count = len(brains.LANDMARKS)
    assert samples.images.shape == (6, 48, 48, 1) and samples.images.dtype == np.uint8
    assert samples.points.shape == (6, count, 2) and list(samples.group) == [0, 0, 0, 1, 1, 1]
    assert list(samples.name[:3]) == ["0000_sagittal", "0000_coronal", "0000_axial"]
    for n, plane in enumerate(brains.PLANE_OF[None] == np.tile(np.arange(3), 2)[:, None]):
        assert not samples.visible[n, ~plane].any() and samples.visible[n, plane].mean() > 0.8
        name = samples.name[n]
        assert photograph(name).shape == (*samples.source_size[n], 3)
        # The centre of the superior face, in space and in the photograph.
        t, axis = n // 3, volumes.planes[name]
        up = volumes.centre[t] + volumes.rotation[t][:, 2] * volumes.size[t, 2] / 2
        k = [name for _, name in brains.LANDMARKS].index("superior")
        np.testing.assert_allclose(samples.source_points[n, k], slices.pixels(axis, up), atol=1e-2)
    again, _, _ = brains.load(SPEC)
    np.testing.assert_array_equal(again.images, samples.images)
    with pytest.raises(ValueError, match=r"data.landmarks is empty"):
        brains.load(ml_collections.ConfigDict({**SPEC.to_dict(), "volume": "head.nii"}))


def write_fiducials(path, points, system="0"):
    rows = [f"f_{k},{x},{y},{z},0,0,0,1,1,1,0,{k},name,node" for k, (x, y, z) in points.items()]
    path.write_text("\n".join(["# Markups fiducial file version = 4.6", f"# CoordinateSystem = {system}", *rows]))


def test_fiducials_are_read_in_ras_and_lps(tmp_path):
    points = {k: (k, 2.0 * k, -k) for k in range(1, 33) if k != 31}
    write_fiducials(tmp_path / "a.fcsv", points)
    found = brains.read_fiducials(tmp_path / "a.fcsv")
    np.testing.assert_array_equal(found[4], [5, 10, -5])
    assert np.isnan(found[30]).all()
    write_fiducials(tmp_path / "a.fcsv", points, "LPS")
    np.testing.assert_array_equal(brains.read_fiducials(tmp_path / "a.fcsv")[4], [-5, -10, -5])
    write_fiducials(tmp_path / "a.fcsv", points, "IJK")
    with pytest.raises(FormatError, match="coordinate system IJK"):
        brains.read_fiducials(tmp_path / "a.fcsv")
    write_fiducials(tmp_path / "a.fcsv", {k: p for k, p in points.items() if k not in (2, 19)})
    with pytest.raises(FormatError, match="AFIDs 2, 19 are missing"):
        brains.read_fiducials(tmp_path / "a.fcsv")
    write_fiducials(tmp_path / "a.fcsv", points | {33: (0, 0, 0)})
    with pytest.raises(FormatError, match="line 34"):
        brains.read_fiducials(tmp_path / "a.fcsv")
    (tmp_path / "a.fcsv").write_text("f_1,1,2\n")
    with pytest.raises(FormatError, match="line 1"):
        brains.read_fiducials(tmp_path / "a.fcsv")


def markups(points, system="LPS"):
    """A document as Slicer 5 writes it."""
    each = [
        {
            "id": str(k),
            "label": str(k),
            "description": "AC",
            "position": list(p),
            "selected": True,
            "positionStatus": "defined",
        }
        for k, p in points.items()
    ]
    return {"markups": [{"type": "Fiducial", "coordinateSystem": system, "controlPoints": each}]}


def test_both_slicer_formats_give_the_same_points(tmp_path):
    points = {k: (k, 2.5 * k, -k) for k in range(1, 33)}
    write_fiducials(tmp_path / "a.fcsv", points, "LPS")
    (tmp_path / "a.mrk.json").write_text(json.dumps(markups(points)))
    expected = brains.read_fiducials(tmp_path / "a.fcsv")
    np.testing.assert_array_equal(brains.read_fiducials(tmp_path / "a.mrk.json"), expected)
    (tmp_path / "a.mrk.json").write_text(json.dumps(markups(points, "RAS")))
    np.testing.assert_array_equal(brains.read_fiducials(tmp_path / "a.mrk.json"), expected * (-1, -1, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["markups"][0].update(coordinateSystem="IJK"), r"markups\[0\]: unknown coordinate system IJK"),
        (
            lambda d: d["markups"][0]["controlPoints"][6].update(positionStatus="undefined"),
            r"controlPoints\[6\]: 7 is not",
        ),
        (
            lambda d: d["markups"][0]["controlPoints"][6].update(position=[1, 2]),
            r"controlPoints\[6\]: position \[1, 2\]",
        ),
        (lambda d: d["markups"][0]["controlPoints"][6].update(position="far"), "the points are not in the form"),
        (lambda d: d["markups"][0]["controlPoints"][6].update(label="AC"), r"controlPoints\[6\]: label 'AC'"),
        (lambda d: d["markups"][0]["controlPoints"][6].update(label="8"), r"controlPoints\[7\]: a second AFID 8"),
        (lambda d: d.pop("markups"), "not in the form that 3D Slicer writes .KeyError"),
        (lambda d: d["markups"].clear(), "AFIDs 1, .* are missing"),
    ],
    ids=["system", "undefined", "flat", "text", "label", "twice", "no markups", "none"],
)
def test_invalid_markups_are_reported(tmp_path, change, message):
    document = markups({k: (k, 2.0 * k, -k) for k in range(1, 33)})
    change(document)
    (tmp_path / "a.mrk.json").write_text(json.dumps(document))
    with pytest.raises(FormatError, match=message):
        brains.read_fiducials(tmp_path / "a.mrk.json")


@pytest.mark.parametrize("ending", ["fcsv", "mrk.json"])
def test_a_missing_point_file_is_reported(tmp_path, ending):
    with pytest.raises(FormatError, match=f"a.{ending}: cannot be read"):
        brains.read_fiducials(tmp_path / f"a.{ending}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("# CoordinateSystem = 0\n", ""), "line 2: no coordinate system is given above it"),
        (lambda text: text.split("\n", 2)[2] + "\n# CoordinateSystem = 0", "line 1: no coordinate system is given"),
        (lambda text: text + "\nf,0,0,0,0,0,0,1,1,1,0,7,name,node", "line 35: a second AFID 7"),
        (lambda text: text.replace("f_7,7,", "f_7,inf,"), r"line 9: 7 is at \[inf"),
        (lambda text: text.replace("f_7,7,", "f_7,nan,"), r"line 9: 7 is at \[nan"),
        (lambda text: text.replace("7,name,node", "7,name,node,0,0"), "line 9: 7 is not placed"),
        (lambda text: text + "\n" + "f" * 200_000, "cannot be read .*field larger"),
    ],
    ids=["no system", "system below", "twice", "infinite", "no number", "not placed", "long"],
)
def test_invalid_fiducials_are_reported(tmp_path, change, message):
    path = tmp_path / "a.fcsv"
    write_fiducials(path, {k: (k, 2.0 * k, -k) for k in range(1, 33)})
    path.write_text(path.read_text().replace("8,name,node", "8,name,node,2,0"))  # the status that Slicer 5 adds
    path.write_text("\ufeff" + path.read_text(), encoding="utf-8")  # the byte order mark that Excel adds
    assert np.isfinite(brains.read_fiducials(path)).all()
    path.write_text(change(path.read_text(encoding="utf-8-sig")))
    with pytest.raises(FormatError, match=message):
        brains.read_fiducials(path)


def test_a_real_heads_brain_and_box_are_plausible(real_data):
    head = brains.read(real_data / "mri" / "mni152_T1w.nii.gz", real_data / "mri" / "mni152_afids.fcsv")
    assert 1.6e6 < head.brain.sum() < 1.9e6  # mm^3, of this template
    np.testing.assert_allclose(head.size, [142, 181, 151], atol=4)
    names = {name: head.fiducials[number - 1] for number, name in brains.NAMES.items()}
    assert np.abs(names["AC"] - names["PC"])[[0, 2]].max() < 0.2  # the y axis is along this line
    assert all(abs(names[name][0]) < 1.5 for name in ("AC", "culmen", "genu of corpus callosum"))
    # The fiducials lie in the brain, except those in the fluid beside it.
    at = np.round(head.fiducials @ head.to_voxel[:, :3].T + head.to_voxel[:, 3]).astype(int)
    assert ndimage.binary_dilation(head.brain, iterations=4)[tuple(at.T)].mean() > 0.9


def test_a_real_heads_box_is_independent_of_the_axis_order(tmp_path, real_data):
    import nibabel

    afids, stored = real_data / "mri" / "mni152_afids.fcsv", nibabel.load(real_data / "mri" / "mni152_T1w.nii.gz")
    order = nibabel.orientations.axcodes2ornt(("P", "I", "R"))
    nibabel.save(stored.as_reoriented(order), tmp_path / "pir.nii")
    one, other = brains.read(real_data / "mri" / "mni152_T1w.nii.gz", afids), brains.read(tmp_path / "pir.nii", afids)
    np.testing.assert_allclose(other.size, one.size, atol=1e-3)
    np.testing.assert_allclose(other.fiducials, one.fiducials, atol=1e-3)


def test_implausible_fiducials_are_refused(tmp_path, real_data):
    """Two that are exchanged, one off the midline plane, and all in another space."""
    volume, afids = real_data / "mri" / "mni152_T1w.nii.gz", real_data / "mri" / "mni152_afids.fcsv"
    points = dict(enumerate(brains.read_fiducials(afids).tolist(), 1))
    x, y, z = points[14]
    for change, message in (
        ({19: points[22], 22: points[19]}, r"AFID \d+: [\d.]+ mm off the plane of the midline points; check it"),
        ({14: (x + 12, y, z)}, "AFID 14: "),
        ({k: (x, y - 40, z) for k, (x, y, z) in points.items()}, "AC: it lies at .* of the brain's box in .*, far"),
    ):
        write_fiducials(tmp_path / "a.fcsv", points | change)
        with pytest.raises(FormatError, match=message):
            brains.read(volume, tmp_path / "a.fcsv")


def test_a_missing_brain_and_misplaced_fiducials_are_refused(tmp_path, phantom):
    import nibabel

    affine = np.diag([4.0, 4, 4, 1])
    affine[:3, 3] = -60
    ball = (np.hypot(np.hypot(*np.indices((30, 30, 30))[:2] - 15), np.indices((30, 30, 30))[2] - 15) < 6) * np.float32(
        1
    )
    nibabel.save(nibabel.Nifti1Image(ball, affine), tmp_path / "a.nii")
    points = {k: tuple(p) for k, p in enumerate(phantom.fiducials, 1) if np.isfinite(p).all()}
    write_fiducials(tmp_path / "a.fcsv", points)
    with pytest.raises(FormatError, match=r"no brain of 0.8 to 1.9 litres"):
        brains.read(tmp_path / "a.nii", tmp_path / "a.fcsv")
    write_fiducials(tmp_path / "a.fcsv", {k: (500, k, 0) for k in range(1, 33)})
    with pytest.raises(FormatError, match=r"AC: .* is outside"):
        brains.read(tmp_path / "a.nii", tmp_path / "a.fcsv")
    for changes, message in (
        ({1: points[2], 2: points[1]}, "rotated by 180 degrees from the RAS axes"),
        ({15: points[16], 16: points[15]}, "rotated by 180 degrees from the RAS axes"),
        ({12: (-3, 0, 0), 13: (3, 0, 0)}, "AFIDs 12, 13: the right one lies left of the left one"),
        ({2: points[1]}, "AC, PC: they are 0.0 mm apart"),
        ({2: (0, -9000, 0)}, "PC: .* is outside"),
        ({31: (0, 1e300, 0)}, "AFID 31: .* is outside"),
    ):
        write_fiducials(tmp_path / "a.fcsv", points | changes)
        with pytest.raises(FormatError, match=message):
            brains.read(tmp_path / "a.nii", tmp_path / "a.fcsv")


@pytest.mark.parametrize(
    ("voxels", "side", "message"),
    [
        (np.zeros((30, 30, 30)), 4, "no voxel is above 0"),
        (np.full((30, 30, 30), -1.0), 4, "no voxel is above 0, the largest is -1"),
        (np.full((30, 30, 30), np.inf), 4, "27000 voxels are NaN or infinite"),
        (np.ones((30, 30, 1)), 4, r"\(30, 30, 1\) voxels of"),
        (np.ones((30, 30, 30)), 100, r"voxels of \[100.0, 100.0, 100.0\] mm"),
    ],
)
def test_a_volume_that_can_hold_no_brain_is_refused(tmp_path, voxels, side, message):
    import nibabel

    nibabel.save(nibabel.Nifti1Image(voxels.astype(np.float32), np.diag([side, side, side, 1.0])), tmp_path / "a.nii")
    write_fiducials(tmp_path / "a.fcsv", {k: (0, k, 0) for k in range(1, 33)})
    with pytest.raises(FormatError, match=f"a.nii: .*{message}"):
        brains.read(tmp_path / "a.nii", tmp_path / "a.fcsv")
