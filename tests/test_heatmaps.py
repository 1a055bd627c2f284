"""Heatmaps against the paper's formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxmarks
from jaxmarks.ops.heatmaps import largest_of_class

PAPER = {
    "gaussian": lambda dx, dy, s: np.exp(-(dx**2 + dy**2) / (2 * s**2)),
    "exponential": lambda dx, dy, s: np.exp(-(np.log(2) / (2 * s)) * (np.abs(dx) + np.abs(dy))),
}


def oracle(kind, points, shape, sigma):
    """Draws the formula's maps pixel by pixel in float64."""
    maps = np.empty((*points.shape[:-2], *shape, points.shape[-2]))
    for row in range(shape[0]):
        for column in range(shape[1]):
            dx, dy = column + 0.5 - points[..., 0].astype(float), row + 0.5 - points[..., 1].astype(float)
            maps[..., row, column, :] = PAPER[kind](dx, dy, sigma)
    return maps


@given(
    kind=st.sampled_from(sorted(PAPER)),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    lead=st.sampled_from([(), (3,), (2, 2)]),
    sigma=st.floats(0.5, 12),
    seed=st.integers(0, 99),
)
@settings(max_examples=30)  # each shape compiles
def test_heatmaps_match_the_formula(kind, shape, lead, sigma, seed):
    points = np.random.default_rng(seed).uniform(-3, 43, (*lead, 4, 2))
    draw = lambda points: getattr(jaxmarks.heatmaps, kind)(points, shape, sigma)
    ours = draw(points)
    assert ours.shape == (*lead, *shape, 4)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, oracle(kind, points, shape, sigma), atol=1e-6)
    on_device = jnp.asarray(points)
    np.testing.assert_allclose(draw(on_device), oracle(kind, np.asarray(on_device), shape, sigma), atol=1e-6)


@pytest.mark.parametrize("kind", sorted(PAPER))
def test_heatmaps_match_the_formula_far_from_the_origin(kind):
    """Coordinates in single precision are off by 1e-5 there, which would show at the steepest part of a map."""
    points = np.random.default_rng(0).uniform(180, 256, (3, 2, 2))
    ours = getattr(jaxmarks.heatmaps, kind)(points, (256, 256), 1.0)
    np.testing.assert_allclose(ours, oracle(kind, points, (256, 256), 1.0), atol=1e-6)


def test_amplitude_at_the_landmark_and_2_sigma_away():
    points = np.array([[3.5, 2.5]])
    np.testing.assert_allclose(jaxmarks.heatmaps.gaussian(points, (6, 9), 2.0)[2, 3, 0], 1)
    # The exponential is 1/2 at 2 sigma along an axis, the Gaussian exp(-2).
    np.testing.assert_allclose(jaxmarks.heatmaps.exponential(points, (6, 9), 2.0)[2, 7, 0], 0.5, rtol=1e-6)
    np.testing.assert_allclose(jaxmarks.heatmaps.gaussian(points, (6, 9), 2.0)[2, 7, 0], np.exp(-2), rtol=1e-6)


def test_jit_and_vmap_agree():
    points = np.random.default_rng(0).uniform(0, 20, (5, 3, 2)).astype(np.float32)
    draw = lambda p: jaxmarks.heatmaps.exponential(p, (20, 16), 1.5)
    np.testing.assert_allclose(jax.jit(draw)(points), draw(points), atol=1e-6)
    np.testing.assert_allclose(jax.vmap(draw)(points), draw(points), atol=1e-6)


@pytest.mark.parametrize("points", [np.array([[3, 2]]), np.array([[3, 2]], np.float16), jnp.array([[3, 2]]), [[3, 2]]])
def test_points_of_any_type_give_the_same_map(points):
    np.testing.assert_array_equal(
        jaxmarks.heatmaps.gaussian(points, (5, 5), 1.0),
        jaxmarks.heatmaps.gaussian(np.array([[3.0, 2.0]]), (5, 5), 1.0),
    )


def test_largest_of_class_matches_a_naive_loop():
    rng = np.random.default_rng(0)
    maps, labels = rng.random((2, 3, 4, 5)), np.array([[0, 2, -1, 2, 0], [-1, -1, -1, -1, 2]])
    expected = np.zeros((2, 3, 4, 3))
    for n, m in np.ndindex(2, 5):
        if labels[n, m] >= 0:
            expected[n, ..., labels[n, m]] = np.maximum(expected[n, ..., labels[n, m]], maps[n, ..., m])
    np.testing.assert_allclose(largest_of_class(jnp.asarray(maps), jnp.asarray(labels), 3), expected, rtol=1e-6)
