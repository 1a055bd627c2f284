"""Mean shapes and pose fits against SciPy and by hand, and outlying landmarks decoded again near their prediction."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial

from jaxmarks import heads, heatmaps, phantoms
from jaxmarks.ops import shape

SHAPE = phantoms.draw("pronotum", 0, size=(192, 256))[1]


procrustes = jax.jit(shape.procrustes)


def placed(points, scale, angle, shift):
    """Points (K, 2) scaled, rotated and shifted."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return scale * points @ turn.T + shift


def specimens(count, noise, seed=0):
    """Specimens (count, 8, 2) of one shape in random poses and sizes; `noise` is each landmark's standard deviation."""
    draw = np.random.default_rng(seed)
    unit = (SHAPE - SHAPE.mean(0)) / np.sqrt(((SHAPE - SHAPE.mean(0)) ** 2).sum(-1).mean())
    each = [unit + np.reshape(noise, (-1, 1)) * draw.normal(size=unit.shape) for _ in range(count)]
    return np.stack([placed(p, draw.uniform(20, 80), draw.uniform(0, 6.28), draw.uniform(0, 200, 2)) for p in each])


def test_mean_of_identical_specimens_is_their_shape():
    points = specimens(9, np.zeros(8))
    visible = np.random.default_rng(1).random((9, 8)) < 0.6
    visible[:, :2] = True
    mean, spread = procrustes(points, visible)
    assert scipy.spatial.procrustes(mean, SHAPE)[2] < 1e-8
    np.testing.assert_allclose(mean.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose((mean**2).sum(-1).mean(), 1, rtol=1e-6)
    np.testing.assert_allclose(spread, 1e-3)  # the minimum
    eager = shape.procrustes(points, visible)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), eager, (mean, spread))


def test_procrustes_recovers_the_shape_and_the_noise():
    noise = np.linspace(0.01, 0.08, 8)
    mean, spread = procrustes(specimens(600, noise), np.ones((600, 8), bool))
    assert scipy.spatial.procrustes(mean, SHAPE)[2] < 1e-4
    # Aligning the specimens absorbs part of the noise, more of it at noisier landmarks; hence the tolerance.
    np.testing.assert_allclose(spread, np.sqrt((noise**2 + (noise**2).mean()) / 2), rtol=0.25)
    assert (np.diff(spread) > 0).all()


def test_a_never_visible_landmark_lies_at_the_centroid():
    visible = np.ones((5, 8), bool)
    visible[:, 3] = False
    mean, spread = procrustes(specimens(5, np.full(8, 0.02)), visible)
    assert not mean[3].any() and np.isfinite(spread).all()


@pytest.mark.parametrize(
    ("points", "visible"),
    [
        (SHAPE[None], np.zeros((1, 8), bool)),
        (np.ones((3, 8, 2)), np.ones((3, 8), bool)),
        (SHAPE[None], np.arange(8)[None] == 2),
    ],
)
def test_shape_needs_two_distinct_points(points, visible):
    mean, spread = procrustes(points, visible)
    assert not mean.any() and np.isfinite(spread).all()


def test_mirrored_specimens_are_aligned_to_the_same_shape():
    points, visible = specimens(30, np.full(8, 0.02)), np.random.default_rng(1).random((30, 8)) < 0.7
    visible[:, :3] = True
    turned = points.copy()
    turned[::3, :, 0] *= -1
    mirrored = jax.jit(lambda *all: shape.procrustes(*all, mirror=True))
    mean, spread = procrustes(points, visible)
    other, alike = mirrored(turned, visible)
    # The mean is oriented like the specimen with the most visible landmarks, which may be mirrored.
    aside = min(scipy.spatial.procrustes(mean, np.asarray(other) * [side, 1])[2] for side in (1, -1))
    assert aside < 1e-4
    np.testing.assert_allclose(alike, spread, rtol=0.05)
    assert procrustes(turned, visible)[1].mean() > 3 * alike.mean()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), mirrored(points, visible), (mean, spread))


def test_the_mean_takes_the_orientation_of_its_start():
    points, visible = specimens(30, np.full(8, 0.02)), np.ones((30, 8), bool)
    for tall in (False, True):
        start = shape.align_principal_axis(points[3], visible[3], tall=tall)
        covariance = np.cov(np.asarray(start).T)
        assert (covariance[1, 1] > covariance[0, 0]) == tall
        np.testing.assert_allclose(covariance[0, 1], 0, atol=1e-5)  # aligned with its principal axes
        mean, _ = shape.procrustes(points[10:], visible[10:], start=(start, visible[3]))
        np.testing.assert_allclose(mean, start, atol=0.08)
        np.testing.assert_allclose((np.asarray(mean) ** 2).sum(-1).mean(), 1, rtol=1e-5)


@pytest.mark.parametrize("mirror", [False, True])
def test_fit_pose_tolerates_an_outlier_and_invisible_landmarks(mirror):
    draw = np.random.default_rng(0)
    lay = jax.jit(lambda points, visible: shape.fit_pose(points, visible, MEAN, SPREAD, mirror=mirror))
    for n in range(40):
        side = -1 if mirror and n % 2 else 1
        angle, size, shift = draw.uniform(-3, 3), draw.uniform(20, 80), draw.uniform(0, 200, 2)
        points = placed(MEAN * [1, side], size, angle, shift)
        visible = draw.permutation(8) < draw.integers(6, 9)
        wrong = draw.choice(np.flatnonzero(visible))
        points[wrong] += draw.uniform(2, 5, 2) * size
        points[~visible] = draw.uniform(-500, 500, ((~visible).sum(), 2))
        turn = size * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * [1, side]
        found = lay(points, visible)
        np.testing.assert_allclose(found[:, :2], turn, atol=0.02 * size)
        np.testing.assert_allclose(found[:, 2], shift, atol=0.03 * size)


@pytest.mark.parametrize(("landmarks", "seen"), [(30, 2), (40, 4), (68, 5)])
def test_fit_pose_works_from_few_visible_landmarks_of_many(landmarks, seen):
    draw = np.random.default_rng(0)
    mean, spread = draw.normal(size=(landmarks, 2)), np.full(landmarks, 0.02)
    lay = jax.jit(lambda points, visible: shape.fit_pose(points, visible, mean, spread))
    for _ in range(30):
        angle, size, visible = draw.uniform(-3, 3), draw.uniform(20, 80), draw.permutation(landmarks) < seen
        turn = size * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        np.testing.assert_allclose(lay(placed(mean, size, angle, [90, 70]), visible)[:, :2], turn, atol=0.01 * size)


MEAN, SPREAD = map(np.asarray, procrustes(specimens(40, np.full(8, 0.03)), np.ones((40, 8), bool)))
expected = jax.jit(lambda points: shape.expected(points, MEAN, SPREAD))


def test_expected_points_tolerate_three_outliers_of_eight():
    """Displaces every subset of up to three, so that the others may also lie close together."""
    draw = np.random.default_rng(0)
    sets = [wrong for count in range(4) for wrong in itertools.combinations(range(8), count)]
    scale, true, points = [], [], []
    for wrong in sets * 5:
        scale.append(draw.uniform(20, 80))
        true.append(placed(MEAN, scale[-1], draw.uniform(0, 6.28), draw.uniform(-50, 250, 2)))
        points.append(true[-1].copy())
        for k in wrong:  # anywhere but near its true position
            points[-1][k] += scale[-1] * np.array([draw.choice([-1, 1]) * draw.uniform(2, 8), draw.uniform(-8, 8)])
    scale, true = np.array(scale), np.stack(true)
    there, deviation = jax.vmap(expected)(np.stack(points))
    np.testing.assert_array_less(np.abs(there - true) / scale[:, None, None], 0.02)
    np.testing.assert_allclose(deviation, scale[:, None] * SPREAD, rtol=0.02)


def test_expected_is_equal_under_jit_and_vmap_and_finite_if_degenerate():
    points = np.stack([placed(MEAN, 40, 0.3, 60), np.full((8, 2), 9.0), np.zeros((8, 2))]).astype(np.float32)
    each = jax.tree.map(lambda *x: np.stack(x), *(shape.expected(p, MEAN, SPREAD) for p in points))
    for found in (jax.vmap(expected)(points), jax.tree.map(lambda *x: np.stack(x), *map(expected, points))):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), found, each)
    assert all(np.isfinite(x).all() for x in each)


def head(landmarks=8, **options):
    options = {"leap": 6.0} | options
    facts = {"shape": [MEAN[:landmarks].tolist(), SPREAD[:landmarks].tolist()]}
    return heads.build({"name": "heatmap", "sigma": 3.0, **options}, size=(96, 128), landmarks=landmarks, **facts)


def doubled(stride=1, height=0.4):
    """True points and maps of two images; in the second, landmark 2 has a false peak, and one of `height` in place."""
    true = np.stack([placed(MEAN, 25, 0.2, [64, 48]), placed(MEAN, 20, -0.4, [60, 40])])
    draw = lambda points: heatmaps.gaussian(jnp.asarray(points / stride), (96 // stride, 128 // stride), 3.0 / stride)
    other = true.copy()
    other[1, 2] = [110, 85]
    there = jnp.arange(8) == 2
    return true, jnp.where(there, jnp.maximum(height * draw(true), draw(other)), draw(true)).at[0].set(draw(true)[0])


@pytest.mark.parametrize("stride", [1, 2])
def test_an_outlying_landmark_moves_to_its_predicted_peak(stride):
    true, maps = doubled(stride)
    free, _ = head(leap=0.0).decode(maps)
    points, scores = jax.jit(head().decode)(maps)
    np.testing.assert_allclose(free[1, 2], [110, 85], atol=0.1)
    np.testing.assert_allclose(points, true, atol=0.05)
    assert scores[1, 2] < 0.45 and (np.delete(np.asarray(scores).ravel(), 10) > 0.9).all()
    others = np.ones((2, 8), bool)
    others[1, 2] = False
    np.testing.assert_allclose(np.asarray(points)[others], np.asarray(free)[others], atol=1e-4)


def test_an_outlying_landmark_stays_if_the_other_peak_is_too_faint():
    _, maps = doubled(height=0.9 * heads.heatmap.FAINT)
    for one, other in zip(head().decode(maps), head(leap=0.0).decode(maps), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_moved_landmark_is_not_pulled_towards_its_prediction():
    true, maps = doubled()
    aside = true[1, 2] + [2.5, 0.0]  # more than two standard deviations
    maps = maps.at[1, ..., 2].set(
        jnp.maximum(
            0.4 * heatmaps.gaussian(aside[None], (96, 128), 3.0)[..., 0], maps[1, ..., 2] * (jnp.arange(128) > 90)
        )
    )
    points, scores = head().decode(maps)
    np.testing.assert_allclose(points[1, 2], aside, atol=0.1)
    np.testing.assert_allclose(scores[1, 2], 0.4, atol=0.02)


def test_points_of_a_mirrored_specimen_are_not_moved():
    lopsided = np.random.default_rng(3).uniform(-1, 1, (10, 2))
    facts = {"shape": [lopsided.tolist(), [0.03] * 10]}
    built = heads.build({"name": "heatmap", "sigma": 3.0, "leap": 5.0}, size=(96, 128), landmarks=10, **facts)
    mirrored = placed(lopsided * [-1, 1], 30, 0.2, [64, 48])[None]
    found, _ = built.decode(heatmaps.gaussian(jnp.asarray(mirrored), (96, 128), 3.0))
    np.testing.assert_allclose(found, mirrored, atol=0.1)


def test_without_a_usable_shape_the_maps_alone_decide():
    _, maps = doubled()
    alone = heads.build({"name": "heatmap", "sigma": 3.0, "leap": 6.0}, size=(96, 128), landmarks=8)
    for built, shown in ((alone, maps), (head(landmarks=3), maps[..., :3])):
        np.testing.assert_allclose(built.decode(shown)[0], head(leap=0.0).decode(maps)[0][:, : shown.shape[-1]])


def test_maps_without_a_peak_have_finite_points_and_gradients():
    decode = head(decoder="soft_argmax").decode  # its gradient compiles fast
    gradient = jax.jit(jax.grad(lambda maps: jnp.sum(decode(maps)[0])))
    for maps in (jnp.zeros((2, 96, 128, 8)), jnp.full((2, 96, 128, 8), 0.5), doubled()[1]):
        assert np.isfinite(gradient(maps)).all() and np.isfinite(decode(maps)[0]).all()


@pytest.mark.parametrize("kind", [bool, int])
def test_visible_may_be_a_numpy_array_of_bool_or_int_under_jit(kind):
    points = np.random.default_rng(0).normal(size=(6, 5, 2)).astype(np.float32)
    visible = np.ones((6, 5), kind)
    visible[0, 0] = 0
    due = shape.procrustes(jnp.asarray(points), jnp.asarray(visible, bool))
    for mine, theirs in zip(jax.jit(lambda p: shape.procrustes(p, visible))(points), due, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_specimens_with_one_landmark_are_ignored():
    points, visible = specimens(12, np.full(8, 0.05)), np.ones((12, 8), bool)
    visible[6:] = np.arange(8) == np.arange(6)[:, None]
    for one, other in zip(procrustes(points[:6], visible[:6]), procrustes(points, visible), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_two_shared_landmarks_place_one_that_a_single_specimen_shows():
    visible = np.array([[1, 1, 1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0, 0, 1]])
    mean, _ = procrustes(specimens(2, np.zeros(8)), visible)
    assert scipy.spatial.procrustes(mean, SHAPE)[2] < 1e-8


def test_a_never_visible_landmark_has_the_pooled_spread():
    visible = np.ones((20, 8), bool)
    visible[:, 3] = False
    _, spread = procrustes(specimens(20, np.full(8, 0.05)), visible)
    np.testing.assert_allclose(spread[3] ** 2, (np.delete(np.asarray(spread), 3) ** 2).mean(), rtol=1e-3)


def test_fit_pose_weights_landmarks_by_their_spread():
    """Four landmarks with a spread of 0.01 are in place; four with a spread of 0.2 are all off by (0.2, 0.1)."""
    mean = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [0, -1.2], [1.2, 0], [0, 1.2], [-1.2, 0]])
    spread = np.repeat([0.01, 0.2], 4)
    points = 50 * (mean + np.repeat([[0, 0], [0.2, 0.1]], 4, axis=0)) + [90, 70]
    lies = shape.fit_pose(points, np.ones(8, bool), mean, spread)
    np.testing.assert_allclose(lies, [[50, 0, 90], [0, 50, 70]], atol=0.1)


def test_fit_pose_is_the_same_in_any_unit():
    """Two of eight landmarks are off; the coordinates are pixels, or shares of a large image's side."""
    points = placed(MEAN, 60, 0.7, (150, 90)) + np.repeat([[0, 0], [8, -5]], (6, 2), axis=0)
    lay = jax.jit(lambda points: shape.fit_pose(points, jnp.ones(8, bool), MEAN, SPREAD))
    np.testing.assert_allclose(4000 * lay(points / 4000), lay(points), rtol=1e-4, atol=1e-3)
