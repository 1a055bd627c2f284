"""From landmarks in scouts to the operator's files, with a network that is exact, wrong in one place, or random."""

import csv
import json
import types

import jax
import jax.numpy as jnp
import nibabel
import numpy as np
import pytest
from PIL import Image

from jaxmarks import calibration
from jaxmarks.data import brains, scouts, slices
from jaxmarks.ops import calibrate

COUNT = len(brains.LANDMARKS)


@pytest.fixture(scope="module")
def drawn():
    """A head drawn in a random pose without deformation, so that it fits a template exactly, and that template."""
    head = brains.phantom(pixel=4.0)
    return brains.draw(head, np.random.default_rng(2), elastic=0.0), exact_template(head)


def exact_template(head):
    """The template of an undeformed head; its shares do not depend on the pose."""
    one = brains.draw(head, np.random.default_rng(9), elastic=0.0)
    return {"shares": (((one.landmarks - one.centre) @ one.rotation) / one.size).tolist(), "size": head.size.tolist()}


def write(folder, triple):
    """Writes the scouts as NIfTI files whose names do not reveal their planes."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(triple.values()):
        affine = np.eye(4)
        affine[:3, :2], affine[:3, 2] = one.plane[:, :2], 5 * slices.normal(one.plane)
        affine[:3, 3] = one.plane @ [0.5, 0.5, 1]
        nibabel.save(nibabel.Nifti1Image(one.image.T[..., None], affine), folder / f"{2 - number}.nii")
    return folder


def network(drawn, spoil=lambda points: points):
    """A stand-in for a network: returns the landmarks of `drawn`, changed by `spoil`; upright scouts score highest."""
    framed = [scouts.framed(drawn.scouts[plane], (64, 64), 4.0) for plane in slices.PLANES]
    points = spoil(np.array([slices.pixels(f.plane, drawn.landmarks) for f in framed], np.float32))

    def find(images):
        assert images.shape == (24, 64, 64, 1)
        upright = np.array([(image[..., 0] == f.image).all() for image in images for f in framed]).reshape(-1, 3)
        assert upright[:3].tolist() == np.eye(3, dtype=bool).tolist()
        scores = np.where(upright.any(1)[:, None], 1.0, 0.5) * np.ones((24, COUNT))
        return jnp.asarray(np.concatenate([points] * 8)), jnp.asarray(scores, jnp.float32)

    return find


def run(drawn, folder, out, spoil=lambda points: points, spread=calibration.DEFAULT_SPREAD):
    one, template = drawn
    return calibration.of_folder(
        calibration.Calibrator(network(one, spoil), (64, 64), 4.0, template, spread), folder, out
    )


def test_exact_landmarks_give_the_exact_volume(drawn, tmp_path):
    one, _ = drawn
    summary = run(drawn, write(tmp_path / "patient", one.scouts), tmp_path / "out")
    assert (summary["images"], summary["volumes"], summary["failures"]) == (1, 1, [])
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    out = tmp_path / "out" / "patient"
    about = json.loads((out / "calibration.json").read_text())
    assert about["space"] == "RAS" and not about["refused"] and not about["why"]
    np.testing.assert_allclose(about["centre_mm"], one.centre, atol=2e-3)
    np.testing.assert_allclose(about["rotation"], one.rotation, atol=1e-4)
    np.testing.assert_allclose(about["size_mm"], one.size, atol=1e-2)
    np.testing.assert_allclose(np.array(about["in_LPS"]["centre_mm"]), one.centre * [-1, -1, 1], atol=2e-3)
    np.testing.assert_allclose(about["in_LPS"]["rotation"], np.diag([-1, -1, 1]) @ one.rotation, atol=1e-4)
    assert max(about["uncertainty"]["centre_mm"]) < 0.01
    assert [mark["plane"] for mark in about["landmarks"]].count("coronal") == 7
    assert all(mark["residual_mm"] < 0.01 for mark in about["landmarks"])
    assert {plane: file[-5:] for plane, file in about["scouts"].items()} == dict(
        zip(slices.PLANES, ("2.nii", "1.nii", "0.nii"), strict=True)
    )


def test_box_nifti_header_has_the_volumes_corners(drawn, tmp_path):
    one, _ = drawn
    run(drawn, write(tmp_path / "patient", one.scouts), tmp_path / "out")
    box = nibabel.load(tmp_path / "out" / "patient" / "box.nii.gz")
    shape = np.array(box.shape)
    ends = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * shape - 0.5
    expected = calibrate.corners(*(jnp.asarray(a, jnp.float32) for a in (one.centre, one.rotation, one.size)))
    np.testing.assert_allclose(nibabel.affines.apply_affine(box.affine, ends), expected, atol=1e-2)
    np.testing.assert_allclose(box.header.get_zooms(), 1, atol=0.01)
    np.testing.assert_allclose(box.get_qform(), box.get_sform(), atol=1e-3)
    assert not np.asarray(box.dataobj).any()
    with Image.open(tmp_path / "out" / "patient" / "scouts.png") as drawing:
        assert drawing.width > 3 * 256


def test_one_wrong_landmark_does_not_move_the_volume(drawn, tmp_path):
    one, _ = drawn

    def spoil(points):
        points[0, brains.LANDMARKS.index(("sagittal", "superior"))] += 12  # 48 mm
        return points

    run(drawn, write(tmp_path / "patient", one.scouts), tmp_path / "out", spoil)
    about = json.loads((tmp_path / "out" / "patient" / "calibration.json").read_text())
    np.testing.assert_allclose(about["centre_mm"], one.centre, atol=2e-2)
    assert [mark["name"] for mark in about["landmarks"] if mark["weight"] == 0] == ["superior"]


@pytest.mark.parametrize("plane", slices.PLANES)
def test_a_scout_that_contradicts_the_other_two_is_refused(drawn, tmp_path, plane):
    one, _ = drawn

    def spoil(points):  # as if the patient had moved by 20 mm before this scout
        points[slices.PLANES.index(plane)] += [0, 5]
        return points

    summary = run(drawn, write(tmp_path / "patient", one.scouts), tmp_path / "out", spoil)
    (failure,) = summary["failures"]
    assert "scout contradicts the other two" in failure["what"] or "contradict each other" in failure["what"]


def test_box_is_in_the_space_of_its_scouts(drawn, tmp_path):
    one, _ = drawn
    folder = write(tmp_path / "patient", one.scouts)
    for path in folder.iterdir():
        stored = nibabel.load(path)
        changed = nibabel.Nifti1Image(stored.get_fdata(dtype=np.float32).copy(), None)
        changed.set_sform(stored.affine, code=4)
        nibabel.save(changed, path)
    run(drawn, folder, tmp_path / "out")
    box = nibabel.load(tmp_path / "out" / "patient" / "box.nii.gz")
    assert (box.header["sform_code"], box.header["qform_code"]) == (4, 4)
    assert box.header.get_xyzt_units()[0] == "mm"
    about = json.loads((tmp_path / "out" / "patient" / "calibration.json").read_text())
    assert "of the MNI template" in about["notes"][0]
    np.testing.assert_allclose(np.transpose([about["axes"][a] for a in ("right", "front", "up")]), about["rotation"])


def test_contradictory_scouts_are_refused_and_unreadable_ones_reported(drawn, tmp_path):
    one, _ = drawn
    folder = write(tmp_path / "all" / "lost", one.scouts).parent
    run(drawn, folder, tmp_path / "out")  # writes a box, which the refusal must delete
    assert (tmp_path / "out" / "lost" / "box.nii.gz").exists()
    write(folder / "damaged", one.scouts)
    (folder / "damaged" / "0.nii").write_bytes(b"no nifti")
    write(folder / "half", {name: s for name, s in one.scouts.items() if name != "axial"})
    rng = np.random.default_rng(0)
    lost = lambda points: rng.uniform(0, 64, points.shape).astype(np.float32)
    summary = run(drawn, folder, tmp_path / "out", lost)
    assert (summary["images"], summary["volumes"]) == (3, 0)
    said = {failure["image"]: failure["what"] for failure in summary["failures"]}
    assert "contradict each other" in said["lost"] or "too few" in said["lost"]
    assert "no axial scout" in said["half"] and "cannot be read" in said["damaged"]
    assert json.loads((tmp_path / "out" / "lost" / "calibration.json").read_text())["refused"]
    assert not (tmp_path / "out" / "lost" / "box.nii.gz").exists()
    half = json.loads((tmp_path / "out" / "half" / "calibration.json").read_text())
    assert half["refused"] and "no axial scout" in half["why"][0]


def test_write_errors_and_duplicate_names_are_all_reported(drawn, tmp_path):
    one, _ = drawn
    for name in ("a", "b", "c", "d", "e"):
        write(tmp_path / "all" / name, one.scouts)
    volume = nibabel.Nifti1Image(np.ones((50, 50, 50), np.float32), np.eye(4))
    nibabel.save(volume, tmp_path / "all" / "d.nii")  # read before the folder d, whose name it shares
    out = tmp_path / "out"
    (out / "b" / "box.nii.gz").mkdir(parents=True)
    (out / "c" / "calibration.json").mkdir(parents=True)
    (out / "a").write_text("a file")
    summary = run(drawn, tmp_path / "all", out)
    said = {failure["where"].removeprefix(f"{tmp_path}/all/"): failure["what"] for failure in summary["failures"]}
    assert (summary["images"], summary["volumes"]) == (6, 1) and (out / "e" / "box.nii.gz").exists()
    assert list(said) == ["d.nii", "a/0.nii", "b/0.nii", "c/0.nii", "d/0.nii"]
    assert "shows nothing" in said["d.nii"] and "another triple of scouts is named d" in said["d/0.nii"]
    assert all("cannot be written" in said[f"{name}/0.nii"] for name in "abc")


def test_upside_down_head_is_refused_for_its_orientation(drawn):
    """The landmarks fit, but no patient lies like that: the files' axes must be wrong."""
    one, template = drawn
    half_turn = np.diag([-1.0, 1, -1])
    planes = np.stack([half_turn @ s.plane for s in one.scouts.values()]).astype(np.float32)
    points = np.array([slices.pixels(s.plane, one.landmarks) for s in one.scouts.values()], np.float32)
    found, _ = calibration.fit(points, np.ones((3, COUNT), np.float32), planes, template)
    why = calibration.refusal_reasons(jax.tree.map(np.asarray, found))
    assert len(why) == 1 and "check the files' orientation" in why[0]


@pytest.mark.parametrize(
    ("variances", "why"),
    [
        ([1.0] * 9, []),
        ([36.0] + [1.0] * 8, ["the volume is uncertain by 6.0 mm and 1.0 degrees"]),
        ([1.0] * 4 + [36.0] + [1.0] * 4, ["the volume is uncertain by 1.0 mm and 6.0 degrees"]),
        ([1.0] * 6 + [36.0] * 3, []),
    ],
    ids=["certain", "centre", "angles", "size"],
)
def test_an_uncertain_centre_or_orientation_is_refused(variances, why):
    found = calibrate.Calibration(
        centre=np.zeros(3),
        rotation=np.eye(3),
        size=np.array([140.0, 180.0, 145.0]),
        residuals=np.zeros(COUNT),
        weights=np.ones(COUNT),
        covariance=np.diag(variances),
        contradicts=np.bool_(False),
        undetermined=np.bool_(False),
    )
    assert calibration.refusal_reasons(found) == why


@pytest.mark.parametrize(("turn", "plane"), [(1, 0), (2, 1), (3, 2), (4, 0), (4, 2), (6, 1)])
def test_scout_that_scores_higher_when_turned_is_reported(turn, plane):
    scores = np.full((8, 3, COUNT), 0.5)
    scores[0] = 0.8
    assert calibration.orientation_problems(scores) == []
    scores[turn, plane] = 0.95
    found = calibration.orientation_problems(scores)
    if turn == 4 and plane == 2:  # a mirrored axial scout looks like an axial scout
        assert not found
    else:
        assert len(found) == 1 and f"the {slices.PLANES[plane]} scout looks turned" in found[0]
    scores[:, plane] = 0.2
    assert f"{slices.PLANES[plane]} scout does not look like one" in calibration.orientation_problems(scores)[0]


def test_scores_against_known_volumes(drawn, tmp_path):
    one, template = drawn
    names = [f"{triple}_{plane}" for triple in ("a", "b") for plane in slices.PLANES] + ["c_axial"]
    points = np.array([slices.pixels(s.plane, one.landmarks) for s in one.scouts.values()])
    points = np.concatenate([points, points, points[:1]])
    points[3:6] += np.array([3.0, 0.0])  # all images of the second triple are shifted by three pixels along x
    planes = {name: one.scouts[name[2:]].plane for name in names}
    truth = (np.stack([a] * 3) for a in (one.centre, one.rotation, one.size))
    volumes = brains.Volumes(planes, np.array(["a", "b", "c"]), *truth, template)
    found = calibration.score(names, points, np.ones(points.shape[:2]), volumes, template, tmp_path)
    assert (found["triples"], found["refused"]) == (2, 0)
    rows = [line.split(",") for line in (tmp_path / "volumes.csv").read_text().splitlines()]
    assert [row[0] for row in rows] == ["triple", "a", "b"]
    exact, moved = (np.array(row[1:4], float) for row in rows[1:])
    assert exact[0] < 0.01 and exact[1] < 0.01 and exact[2] > 0.999
    assert moved[0] > 1 and moved[2] < exact[2]
    np.testing.assert_allclose(found["median_centre_mm"], (exact[0] + moved[0]) / 2, atol=1e-3)


def noisy(drawn, count, seed):
    """`count` triples of one head for `fit_triples`: the landmarks of an image share an error, and each has its own."""
    one, template = drawn
    rng = np.random.default_rng(seed)
    exact = np.array([slices.pixels(s.plane, one.landmarks) for s in one.scouts.values()])
    points = exact + rng.normal(0, 0.8, (count, 3, 1, 2)) + rng.normal(0, 0.3, (count, 3, COUNT, 2))
    triples = [str(n) for n in range(count)]
    planes = {f"{t}_{plane}": one.scouts[plane].plane for t in triples for plane in slices.PLANES}
    truth = (np.stack([a] * count) for a in (one.centre, one.rotation, one.size))
    volumes = brains.Volumes(planes, np.array(triples), *truth, template)
    return list(planes), points.reshape(-1, COUNT, 2), np.ones((3 * count, COUNT)), volumes, template


def test_chosen_spread_makes_uncertainty_match_the_errors(drawn, tmp_path):
    """Residuals hide errors shared by an image's landmarks; a spread chosen on some triples is right for others."""
    spread = calibration.choose_spread(*noisy(drawn, 60, 0))
    assert 2 < spread[0] < 8 and spread[1:] == [1, 1]  # shifts of whole images move only the centre
    plain, right = (
        calibration.score(*noisy(drawn, 60, 1), tmp_path, s)["within_told"]
        for s in (calibration.DEFAULT_SPREAD, spread)
    )
    assert plain["centre"] < 0.4 and abs(right["centre"] - 0.68) < 0.12
    assert plain["angles"] == right["angles"] > 0.68 and plain["size"] == right["size"] > 0.68


def test_refused_triple_is_left_out_of_the_scores(drawn, tmp_path):
    names, points, *others = noisy(drawn, 20, 1)
    points[:3] += np.random.default_rng(0).uniform(-30, 30, (3, COUNT, 2))  # the first triple's landmarks are random
    summary = calibration.score(names, points, *others, tmp_path)
    assert (summary["triples"], summary["refused"]) == (20, 1)
    with (tmp_path / "volumes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["triple"] for row in rows if row["refused"]] == ["0"]
    for name, worst in (("centre_mm", 95), ("angle_degrees", 95), ("iou", 5)):
        values = [float(row[name]) for row in rows[1:]]
        expected = np.median(values), np.percentile(values, worst)
        np.testing.assert_allclose(
            [summary[f"{of}_{name}"] for of in ("median", "worst_5_percent")], expected, atol=1e-4
        )
    _, found, _, errors = calibration.fit_triples(names, points, *others)
    below = (np.abs(errors) < calibration.standard_deviations(found))[1:].reshape(19, 3, 3)
    np.testing.assert_allclose(list(summary["within_told"].values()), below.mean((0, 2)), rtol=1e-6)


def test_without_whole_triples_spread_is_default_and_score_fails(drawn, tmp_path):
    names, points, scores, volumes, template = noisy(drawn, 2, 0)
    parts = names[:2] + names[3:5], points[[0, 1, 3, 4]], scores[[0, 1, 3, 4]], volumes, template
    assert calibration.choose_spread(*parts) == [1, 1, 1]
    with pytest.raises(ValueError, match="no head has all three scouts"):
        calibration.score(*parts, tmp_path)


def test_errors_are_in_the_order_of_the_covariance(drawn):
    names, points, scores, volumes, template = noisy(drawn, 2, 0)
    turn = np.asarray(calibrate.rotation_of(jnp.array([0.0, 2.0, 0.0])), np.float64)  # by 2 degrees about y
    moved = volumes._replace(
        centre=volumes.centre - [1.0, 2.0, 3.0], rotation=turn.T @ volumes.rotation, size=volumes.size - [4.0, 5.0, 6.0]
    )
    *_, errors = calibration.fit_triples(names, points, scores, volumes, template)
    *_, others = calibration.fit_triples(names, points, scores, moved, template)
    np.testing.assert_allclose(others - errors, [[1, 2, 3, 0, 2, 0, 4, 5, 6]] * 2, atol=0.15)


def test_predicted_uncertainty_is_scaled_by_the_networks_spread(drawn, tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.3, (3, COUNT, 2)).astype(np.float32)
    told = []
    for spread in (calibration.DEFAULT_SPREAD, calibration.spread_of([{"spread": [1, 2, 3]}, {"spread": [3, 4, 5]}])):
        run(drawn, write(tmp_path / "patient", drawn[0].scouts), tmp_path / "out", lambda p: p + noise, spread)
        told.append(json.loads((tmp_path / "out" / "patient" / "calibration.json").read_text())["uncertainty"])
    for kind, factor in (("centre_mm", 2), ("angles_degrees", 3), ("size_mm", 4)):
        np.testing.assert_allclose(told[1][kind], factor * np.array(told[0][kind]), rtol=1e-3)
    assert calibration.spread_of([{}]).tolist() == [1, 1, 1]  # a run of an earlier version, whose notes have no spread


def test_outline_is_the_cross_section_of_the_box_with_the_plane(drawn):
    one, _ = drawn
    found = types.SimpleNamespace(
        centre=np.float32(one.centre), rotation=np.float32(one.rotation), size=np.float32(one.size)
    )
    for s in one.scouts.values():
        polygon = calibration.outline(found, s.plane)
        height, width = 300, 300
        y, x = np.mgrid[-50 : height - 50, -50 : width - 50] + 0.5
        local = (np.stack([x, y, np.ones_like(x)], -1) @ s.plane.T - one.centre) @ one.rotation
        inside = (np.abs(local) <= one.size / 2).all(-1)
        px, py = polygon.T
        area = abs(px @ np.roll(py, 1) - py @ np.roll(px, 1)) / 2
        assert 3 <= len(polygon) <= 6 and area == pytest.approx(inside.sum(), rel=0.02)
        np.testing.assert_allclose(polygon.min(0), [x[inside].min(), y[inside].min()], atol=1.5)
    far = s.plane.copy()
    far[:, 2] += 500 * slices.normal(far)
    assert calibration.outline(found, far).shape == (0, 2)
