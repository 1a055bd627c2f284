"""The calibrated volume, compared with the ground truth, scipy's minimum and rotations, and exact polytopes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.spatial import ConvexHull, HalfspaceIntersection
from scipy.spatial.transform import Rotation

from jaxmarks.ops import calibrate

# AC, PC, and the centres of the box's six faces.
SHARES = np.array(
    [[0, 0.1, -0.1], [0, -0.06, -0.1], [0.5, 0, 0], [-0.5, 0, 0], [0, 0.5, 0], [0, -0.5, 0], [0, 0, 0.5], [0, 0, -0.5]]
)
SIZE = np.array([140.0, 180.0, 145.0])
TEMPLATE = calibrate.Template(jnp.array(SHARES, jnp.float32), jnp.array(SIZE, jnp.float32))
COUNT = 200

fit = jax.jit(jax.vmap(lambda points, weights: calibrate.calibrate(points, weights, TEMPLATE)))
fit_planes = jax.jit(
    jax.vmap(lambda points, weights, normals: calibrate.calibrate(points, weights, TEMPLATE_TWICE, normals=normals))
)
# The landmarks found in each of three planes, as indices: each landmark is found in two or three of them.
TWICE = np.array([0, 1, 4, 5, 6, 7, 0, 2, 3, 6, 7, 0, 1, 2, 3, 4, 5])
PLANE_OF = np.array([0] * 6 + [1] * 5 + [2] * 6)
TEMPLATE_TWICE = calibrate.Template(TEMPLATE.shares[TWICE], TEMPLATE.size)


@pytest.fixture(scope="module")
def heads():
    """Random volumes (centre, rotation, size) of any orientation, and their landmarks (N, 8, 3)."""
    rng = np.random.default_rng(5)
    centre, size = rng.uniform(-80, 80, (COUNT, 3)), SIZE * rng.uniform(0.8, 1.25, (COUNT, 3))
    rotation = Rotation.random(COUNT, rng=rng).as_matrix()
    return centre, rotation, size, centre[:, None] + (SHARES * size[:, None]) @ rotation.swapaxes(1, 2)


def errors(found, heads):
    """Errors (N,) of the centre in mm, of the orientation in degrees, and of the size in mm, by scipy."""
    centre, rotation, size, _ = heads
    turn = Rotation.from_matrix(rotation.swapaxes(1, 2) @ np.asarray(found.rotation, np.float64))
    return (
        np.linalg.norm(found.centre - centre, axis=1),
        np.degrees(turn.magnitude()),
        np.abs(found.size - size).max(1),
    )


def shown(points, rng):
    """Projects landmarks (N, 8, 3) onto three tilted scouts: projections (N, 17, 3), and the planes' normals."""
    turns = Rotation.from_rotvec(rng.uniform(-10, 10, (len(points), 3, 3)).reshape(-1, 3), degrees=True).as_matrix()
    normals = (turns @ np.tile(np.eye(3), (len(points), 1)).reshape(-1, 3, 1)).reshape(-1, 3, 3)[:, PLANE_OF]
    middles = points.mean(1, keepdims=True) + rng.uniform(-8, 8, (len(points), 3, 1))[:, PLANE_OF] * normals
    seen = points[:, TWICE]
    return seen - ((seen - middles) * normals).sum(-1, keepdims=True) * normals, normals


def test_exact_landmarks_give_the_exact_volume(heads):
    found = fit(np.float32(heads[3]), np.ones((COUNT, 8), np.float32))
    centre, angle, size = errors(found, heads)
    assert centre.max() < 1e-4 and angle.max() < 1e-4 and size.max() < 1e-3
    assert not found.contradicts.any() and not found.undetermined.any()
    np.testing.assert_allclose(np.linalg.det(found.rotation), 1, atol=1e-5)


def test_exact_projections_onto_planes_give_the_exact_volume(heads):
    points, normals = shown(heads[3], np.random.default_rng(0))
    assert np.abs(points - heads[3][:, TWICE]).max() > 10  # the projections are far from the landmarks
    found = fit_planes(np.float32(points), np.ones(points.shape[:2], np.float32), np.float32(normals))
    centre, angle, _ = errors(found, heads)
    assert centre.max() < 2e-4 and angle.max() < 1e-4


def test_a_gross_error_among_noisy_landmarks_is_rejected(heads):
    rng = np.random.default_rng(1)
    points, wrong = heads[3] + rng.normal(size=heads[3].shape), rng.integers(8, size=COUNT)
    push = rng.normal(size=(COUNT, 3))
    push *= rng.uniform(20, 80, (COUNT, 1)) / np.linalg.norm(push, axis=1, keepdims=True)
    points[np.arange(COUNT), wrong] += push
    found = fit(np.float32(points), np.ones((COUNT, 8), np.float32))
    centre, angle, _ = errors(found, heads)
    assert np.median(centre) < 1.5 and np.median(angle) < 1.5
    assert np.quantile(centre, 0.95) < 2 and np.quantile(angle, 0.95) < 2
    assert (found.weights[np.arange(COUNT), wrong] == 0).mean() > 0.95
    assert not found.contradicts.any()
    # Landmarks that were not found may be NaN.
    points[np.arange(COUNT), wrong] = np.nan
    weights = np.ones((COUNT, 8), np.float32)
    weights[np.arange(COUNT), wrong] = 0
    without = fit(np.float32(points), weights)
    assert np.isfinite(without.centre).all() and np.median(errors(without, heads)[0]) < 1.5


def biweight_loss(vector, points, weights, normals, tolerance=3.0):
    """The robust loss in float64; `vector` is centre, rotation vector and log sides."""
    rotation = Rotation.from_rotvec(vector[3:6]).as_matrix()
    away = vector[:3] + (SHARES[TWICE] * np.exp(vector[6:])) @ rotation.T - points
    away -= (away * normals).sum(-1, keepdims=True) * normals
    limit = 4.685 * tolerance
    inner = np.clip(1 - (away**2).sum(-1) / limit**2, 0, 1)
    return (weights * limit**2 / 6 * (1 - inner**3)).sum()


def test_the_fit_is_scipys_minimum_of_the_loss(heads):
    rng = np.random.default_rng(2)
    points, normals = shown(heads[3], rng)
    points, weights = points + rng.normal(size=points.shape), rng.uniform(0.3, 1, points.shape[:2])
    weights /= weights.max(1, keepdims=True)
    found = fit_planes(np.float32(points), np.float32(weights), np.float32(normals))
    units = np.array([1.0] * 3 + [0.01] * 6)
    for n in range(5):
        start = np.array([*heads[0][n], *Rotation.from_matrix(heads[1][n]).as_rotvec(), *np.log(heads[2][n])])
        loss = lambda v, n=n, start=start: biweight_loss(start + units * v, points[n], weights[n], normals[n])
        best = start + units * minimize(loss, np.zeros(9), method="BFGS", options={"gtol": 1e-7}).x
        np.testing.assert_allclose(found.centre[n], best[:3], atol=5e-3)
        np.testing.assert_allclose(found.size[n], np.exp(best[6:]), atol=2e-2)
        turn = Rotation.from_matrix(found.rotation[n]).inv() * Rotation.from_rotvec(best[3:6])
        assert np.degrees(turn.magnitude()) < 0.01


def deviations(found, rotation):
    """Standard deviations (9,): as estimated by fits of one volume, and as measured over these fits."""
    turns = Rotation.from_matrix(np.asarray(found.rotation, np.float64) @ rotation.T).as_rotvec(degrees=True)
    measured = np.cov(np.concatenate([found.centre, turns, found.size], axis=1).T)
    return np.sqrt(np.diagonal(found.covariance, axis1=1, axis2=2).mean(0)), np.sqrt(np.diag(measured))


def test_the_covariance_matches_the_spread_of_repeated_fits(heads):
    rng = np.random.default_rng(3)
    points = heads[3][:1] + rng.normal(size=(COUNT, 8, 3))
    found = fit(np.float32(points), np.ones((COUNT, 8), np.float32))
    np.testing.assert_allclose(*deviations(found, heads[1][0]), rtol=0.2)


def test_the_covariance_in_planes_matches_the_spread_of_repeated_fits(heads):
    """In a plane a landmark determines two coordinates, not three: 34 in all, not 51, for nine parameters."""
    rng = np.random.default_rng(3)
    points, normals = (np.repeat(array, COUNT, axis=0) for array in shown(heads[3][:1], rng))
    points = points + rng.normal(size=points.shape)
    found = fit_planes(np.float32(points), np.ones(points.shape[:2], np.float32), np.float32(normals))
    np.testing.assert_allclose(*deviations(found, heads[1][0]), rtol=0.15)


def test_the_covariance_is_that_of_least_squares_in_float64(heads):
    """The residual variance, nine degrees of freedom subtracted, times the inverse normal matrix from differences."""
    points = heads[3][:5] + np.random.default_rng(4).normal(size=(5, 8, 3))
    found = jax.tree.map(np.float64, fit(np.float32(points), np.ones((5, 8), np.float32)))
    for n in range(5):
        rotation, size, trust = found.rotation[n], found.size[n], np.repeat(found.weights[n], 3)

        def placed(change, n=n, rotation=rotation, size=size):
            turned = Rotation.from_rotvec(change[3:6], degrees=True).as_matrix() @ rotation
            return (found.centre[n] + change[:3] + (SHARES * (size + change[6:])) @ turned.T).ravel()

        slopes = np.stack([(placed(step) - placed(-step)) / 2e-3 for step in 1e-3 * np.eye(9)], axis=1)
        variance = (trust * (placed(np.zeros(9)) - points[n].ravel()) ** 2).sum() / (trust.sum() - 9)
        due = variance * np.linalg.inv(slopes.T @ (trust[:, None] * slopes))
        scale = np.sqrt(np.diag(due))
        np.testing.assert_allclose(
            found.covariance[n] / scale / scale[:, None], due / scale / scale[:, None], atol=0.01
        )


def test_a_landmark_that_was_not_found_does_not_count(heads):
    points = heads[3][:5] + np.random.default_rng(6).normal(size=(5, 8, 3))
    points[:, 1] = np.nan
    found = fit(np.float32(points), np.ones((5, 8), np.float32) * (np.arange(8) != 1))
    others = np.delete(np.arange(8), 1)
    template = TEMPLATE._replace(shares=TEMPLATE.shares[others])
    fit_others = jax.jit(jax.vmap(lambda points: calibrate.calibrate(points, jnp.ones(7), template)))
    without = fit_others(np.float32(points[:, others]))
    for name in ("centre", "rotation", "size", "covariance"):
        np.testing.assert_allclose(getattr(found, name), getattr(without, name), atol=1e-3)
    assert np.isnan(found.residuals[:, 1]).all() and not found.undetermined.any()


def test_contradicting_and_too_few_landmarks_are_flagged(heads):
    rng = np.random.default_rng(4)
    ones = np.ones((COUNT, 8), np.float32)
    nonsense = fit(np.float32(rng.uniform(-90, 90, (COUNT, 8, 3))), ones)
    assert (nonsense.contradicts | nonsense.undetermined).mean() > 0.99
    few = ones * (np.arange(8) < 3)
    assert fit(np.float32(heads[3]), few).undetermined.all()
    line = ones * np.isin(np.arange(8), [0, 1, 4, 5])  # all in one plane, so the width is unknown
    assert fit(np.float32(heads[3]), line).undetermined.all()
    none = fit(np.float32(heads[3]), 0 * ones)
    assert none.undetermined.all() and np.isfinite(none.centre).all() and np.isnan(none.residuals).all()
    giant = heads[0][:, None] + 2 * (heads[3] - heads[0][:, None])
    assert fit(np.float32(giant), ones).contradicts.all()


@pytest.mark.parametrize(("wrong", "refused"), [(3, False), (4, True)])
def test_at_least_three_fifths_of_the_landmarks_must_agree(heads, wrong, refused):
    """Of eight, five are enough and four are not, even if they agree on a head of plausible size."""
    points = heads[3].copy()
    points[:, 8 - wrong :] += 60 * Rotation.random(COUNT * wrong, rng=0).as_matrix()[:, 0].reshape(COUNT, wrong, 3)
    found = fit(np.float32(points), np.ones((COUNT, 8), np.float32))
    agree = (found.residuals < calibrate.TUKEY * calibrate.TOLERANCE / 2).sum(1) == 8 - wrong
    usual = (np.abs(np.log(found.size / SIZE)) < np.log(calibrate.SIZE_LIMIT)).all(1)
    assert (agree & usual).sum() > COUNT / 4
    assert (found.contradicts[agree & usual] == refused).all()


def test_eager_and_jitted_agree(heads):
    points, weights = np.float32(heads[3][0]), np.ones(8, np.float32)
    eager, jitted = calibrate.calibrate(points, weights, TEMPLATE), fit(points[None], weights[None])
    np.testing.assert_allclose(eager.centre, jitted.centre[0], atol=1e-4)
    np.testing.assert_allclose(eager.rotation, jitted.rotation[0], atol=1e-5)


def test_rigid_matches_scipy():
    rng = np.random.default_rng(6)
    source, weights = rng.normal(size=(9, 3)), rng.uniform(size=9)
    for target in (rng.normal(size=(9, 3)), source * [1, 1, -1]):  # no rotation maps the source onto its mirror image
        mean = lambda p: (weights[:, None] * p).sum(0) / weights.sum()
        expected, _ = Rotation.align_vectors(target - mean(target), source - mean(source), weights)
        rotation, shift = calibrate.rigid(*(jnp.asarray(a, jnp.float32) for a in (source, target, weights)))
        np.testing.assert_allclose(rotation, expected.as_matrix(), atol=1e-4)
        np.testing.assert_allclose(shift, mean(target) - expected.apply(mean(source)), atol=1e-4)


def test_rotations_match_scipy():
    rng = np.random.default_rng(7)
    vectors = rng.normal(size=(60, 3))
    vectors *= (np.geomspace(1e-4, 175, 60) / np.linalg.norm(vectors, axis=1))[:, None]
    vectors[0] = 0
    expected = Rotation.from_rotvec(vectors, degrees=True)
    matrices = calibrate.rotation_of(jnp.float32(vectors))
    np.testing.assert_allclose(matrices, expected.as_matrix(), atol=1e-6)
    np.testing.assert_allclose(calibrate.rotation_vector(matrices), vectors, rtol=1e-4, atol=1e-5)
    other = Rotation.random(60, rng=rng)
    between = calibrate.angle_between(matrices, jnp.float32(other.as_matrix()))
    np.testing.assert_allclose(between, np.degrees((expected.inv() * other).magnitude()), atol=0.02)


def test_a_plane_maps_pixels_to_space():
    plane = np.array([[0, 0, 12], [-2, 0, 90], [0, -3, 80]], np.float32)  # sagittal, x to the back, y down
    points = np.array([[0, 0], [10, 0], [0, 10]], np.float32)
    expected = [[12, 90, 80], [12, 70, 80], [12, 90, 50]]
    np.testing.assert_allclose(calibrate.to_space(jnp.array(plane), jnp.array(points)), expected)
    np.testing.assert_allclose(calibrate.normal(jnp.array(plane)), [1, 0, 0])


def box(rng):
    return rng.uniform(-20, 20, 3), Rotation.random(rng=rng).as_matrix(), rng.uniform(60, 180, 3)


def polytope_iou(one, other):
    """The exact IoU, from the half-spaces of both boxes (scipy)."""
    halves = []
    for centre, rotation, size in (one, other):
        for axis, side in zip(rotation.T, size, strict=True):
            halves += [[*axis, -axis @ centre - side / 2], [*-axis, axis @ centre - side / 2]]
    # The centres are near enough for their midpoint to lie in both boxes.
    both = ConvexHull(HalfspaceIntersection(np.array(halves), (one[0] + other[0]) / 2).intersections).volume
    volumes = np.prod(one[2]), np.prod(other[2])
    return both / (sum(volumes) - both)


def test_box_iou_matches_exact_polytopes():
    rng = np.random.default_rng(8)
    pairs = [(box(rng), box(rng)) for _ in range(30)]
    arrays = jax.tree.map(lambda *leaves: np.float32(np.stack(leaves)), *pairs)
    found = jax.jit(jax.vmap(calibrate.box_iou))(*arrays)
    np.testing.assert_allclose(found, [polytope_iou(*pair) for pair in pairs], atol=1e-3)
    np.testing.assert_allclose(calibrate.box_iou(*(jax.tree.map(lambda a: a[0], arrays))), found[0], atol=1e-5)


def test_box_iou_of_nearly_equal_boxes():
    """As in good calibrations: faces are nearly parallel to the lines along which the overlap is measured."""
    rng, pairs = np.random.default_rng(10), []
    for _ in range(40):
        centre, rotation, size = box(rng)
        turn = Rotation.from_rotvec(rng.normal(0, 1.0, 3), degrees=True).as_matrix()
        pairs.append(
            ((centre, rotation, size), (centre + rng.normal(0, 0.7, 3), turn @ rotation, size * rng.normal(1, 0.01, 3)))
        )
    found = jax.jit(jax.vmap(calibrate.box_iou))(*jax.tree.map(lambda *leaves: np.float32(np.stack(leaves)), *pairs))
    np.testing.assert_allclose(found, [polytope_iou(*pair) for pair in pairs], atol=1e-3)
    whole = np.eye(3, dtype=np.float32), np.array([200, 220, 160], np.float32)
    for shift in (1.5, 2.0):
        iou = float(calibrate.box_iou((np.zeros(3, np.float32), *whole), (np.float32([shift, 0, 0]), *whole)))
        assert iou == pytest.approx((200 - shift) / (200 + shift), abs=1e-3)


def test_angle_between_is_right_from_0_to_180_degrees():
    for degrees in (0.0, 1e-3, 90.0, 179.9, 180.0):
        for axis in np.eye(3):
            other = Rotation.from_rotvec(degrees * axis, degrees=True).as_matrix()
            assert float(calibrate.angle_between(jnp.eye(3), jnp.float32(other))) == pytest.approx(degrees, abs=2e-2)


def test_box_iou_by_hand():
    upright, shifted = np.eye(3), np.array([50.0, 0, 0])
    one = np.zeros(3), upright, np.full(3, 100.0)
    assert float(calibrate.box_iou(one, one)) == pytest.approx(1, abs=1e-6)
    assert float(calibrate.box_iou(one, (shifted, upright, one[2]))) == pytest.approx(1 / 3, abs=2e-4)
    assert float(calibrate.box_iou(one, (3 * shifted, upright, one[2]))) == 0
    quarter = Rotation.from_rotvec([0, 0, 90], degrees=True).as_matrix()
    assert float(calibrate.box_iou(one, (shifted * 0, quarter, one[2]))) == pytest.approx(1, abs=1e-4)


def test_corners_are_those_of_the_box():
    centre, rotation, size = box(np.random.default_rng(9))
    found = np.asarray(calibrate.corners(jnp.float32(centre), jnp.float32(rotation), jnp.float32(size)))
    local = (found - centre) @ rotation / size
    expected = [[i, j, k] for i in (-0.5, 0.5) for j in (-0.5, 0.5) for k in (-0.5, 0.5)]
    np.testing.assert_allclose(local, expected, atol=1e-6)
