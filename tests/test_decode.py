"""Decoders compared with naive ones in NumPy, and with the points at which the maps were drawn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

import jaxmarks
from jaxmarks.ops import decode, heatmaps

SUBPIXEL = ("soft_argmax", "local_soft_argmax", "dark", "quadratic")
ALL = ("argmax", *SUBPIXEL)
DRAW = {"gaussian": heatmaps.gaussian, "exponential": heatmaps.exponential}


def noisy_maps(seed, shape=(21, 26), lead=(2,), landmarks=3):
    """Peaks of a random width in noise, like a network's output; some values are negative."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(6, min(shape) - 6, (*lead, landmarks, 2))
    maps = np.asarray(heatmaps.gaussian(points, shape, rng.uniform(1, 3)))
    return (maps + 0.03 * rng.normal(size=maps.shape)).astype(np.float32)


def each_map(maps):
    """(..., H, W, K) -> the single maps (H, W), float64, in the order of the decoded points."""
    return np.moveaxis(maps, -1, -3).reshape(-1, *maps.shape[-3:-1]).astype(float)


def naive_argmax(m):
    best = (-np.inf, 0, 0)
    for row in range(m.shape[0]):
        for column in range(m.shape[1]):
            if m[row, column] > best[0]:
                best = (m[row, column], row, column)
    return np.array([best[2] + 0.5, best[1] + 0.5]), best[0]


def naive_soft_argmax(m, temperature):
    sums = np.zeros(3)
    for row in range(m.shape[0]):
        for column in range(m.shape[1]):
            weight = (max(m[row, column], 0) / m.max()) ** (1 / temperature)
            sums += weight * np.array([column + 0.5, row + 0.5, 1])
    return sums[:2] / sums[2]


def naive_local(m, window, iterations):
    """Moves the Gaussian window over the map; only for peaks away from the border, which it does not treat."""
    start, _ = naive_argmax(m)
    c, value = start.copy(), np.maximum(m, 0)
    y, x = np.mgrid[: m.shape[0], : m.shape[1]] + 0.5
    near = (np.abs(x - start[0]) <= np.ceil(3 * window) + 1) & (np.abs(y - start[1]) <= np.ceil(3 * window) + 1)
    for _ in range(iterations):
        weight = value * np.exp(-((x - c[0]) ** 2 + (y - c[1]) ** 2) / (2 * window**2)) * near
        mean = np.array([np.average(x, weights=weight), np.average(y, weights=weight)])
        variance = np.array(
            [np.average((x - mean[0]) ** 2, weights=weight), np.average((y - mean[1]) ** 2, weights=weight)]
        )
        c = c + (mean - c) * window**2 / np.maximum(window**2 - variance, 0.02 * window**2)
        c = start + np.clip(c - start, -1, 1)
    return c


def naive_dark(m, sigma):
    """scipy's smoothing, then one Newton step on the logarithm."""
    radius = int(np.ceil(3 * sigma))
    smooth = ndimage.gaussian_filter(m, sigma, mode="constant", radius=radius)
    peak, _ = naive_argmax(smooth)
    column, row = (peak - 0.5).astype(int)
    log = np.log(np.maximum(smooth, 0) / smooth.max() + 1e-12)
    gradient = np.array([log[row, column + 1] - log[row, column - 1], log[row + 1, column] - log[row - 1, column]]) / 2
    mixed = (
        log[row + 1, column + 1] - log[row + 1, column - 1] - log[row - 1, column + 1] + log[row - 1, column - 1]
    ) / 4
    hessian = np.array(
        [
            [log[row, column + 1] - 2 * log[row, column] + log[row, column - 1], mixed],
            [mixed, log[row + 1, column] - 2 * log[row, column] + log[row - 1, column]],
        ]
    )
    return peak - np.linalg.solve(hessian, gradient)


def naive_quadratic(m, radius, iterations):
    """Weighted least squares by numpy.linalg.lstsq."""
    peak, top = naive_argmax(m)
    y, x = np.mgrid[: m.shape[0], : m.shape[1]] + 0.5
    near = (np.abs(x - peak[0]) <= radius) & (np.abs(y - peak[1]) <= radius)
    u, v, value = x[near] - peak[0], y[near] - peak[1], np.maximum(m[near], 0) / top
    basis = np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], -1)
    offset = np.zeros(2)
    for _ in range(iterations):
        root = value * np.exp(-1.25 * ((u - offset[0]) ** 2 + (v - offset[1]) ** 2) / radius**2)
        fit, *_ = np.linalg.lstsq(basis * root[:, None], np.log(value + 1e-12) * root, rcond=None)
        offset = np.linalg.solve([[2 * fit[3], fit[4]], [fit[4], 2 * fit[5]]], -fit[1:3])
    return peak + offset


@pytest.mark.parametrize("seed", range(4))
def test_argmax_matches_a_naive_loop(seed):
    maps = noisy_maps(seed)
    points, scores = decode.argmax(maps)
    expected = [naive_argmax(m) for m in each_map(maps)]
    np.testing.assert_array_equal(points.reshape(-1, 2), [p for p, _ in expected])
    np.testing.assert_allclose(scores.reshape(-1), [s for _, s in expected], rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("ours", "naive"),
    [
        (lambda m: decode.soft_argmax(m, temperature=0.5), lambda m: naive_soft_argmax(m, 0.5)),
        (lambda m: decode.local_soft_argmax(m, window=1.0, iterations=3), lambda m: naive_local(m, 1.0, 3)),
        (lambda m: decode.dark(m, sigma=0.6), lambda m: naive_dark(m, 0.6)),
        (lambda m: decode.quadratic(m, radius=2, iterations=2), lambda m: naive_quadratic(m, 2, 2)),
    ],
    ids=SUBPIXEL,
)
def test_subpixel_decoders_match_naive_ones(ours, naive, seed):
    maps = noisy_maps(seed)
    points, scores = jax.jit(ours)(maps)
    np.testing.assert_allclose(points.reshape(-1, 2), [naive(m) for m in each_map(maps)], atol=2e-3)
    np.testing.assert_allclose(scores, maps.max((-3, -2)), rtol=1e-6)


@pytest.mark.parametrize(
    ("slope", "curvature", "expected"),
    [(0.1, -0.2, 0.5), (0.2, -0.1, 0.0), (0.1, 0.2, 0.0)],
    ids=["a peak half a pixel away", "a peak two pixels away", "a valley"],
)
def test_a_newton_step_is_taken_only_to_a_nearby_peak(slope, curvature, expected):
    """The step is -slope / curvature in x and 0 in y."""
    derivatives = map(jnp.float32, (slope, 0, curvature, 0, curvature))
    np.testing.assert_allclose(decode._newton(jnp.zeros(2), jnp.zeros(2), *derivatives), [expected, 0], atol=1e-6)


@given(kind=st.sampled_from(sorted(DRAW)), sigma=st.floats(0.7, 8), seed=st.integers(0, 99))
def test_argmax_of_a_target_is_the_landmarks_pixel(kind, sigma, seed):
    points = np.random.default_rng(seed).uniform(0, [30, 20], (7, 2)).astype(np.float32)
    points = np.where(np.abs(points - np.round(points)) < 0.01, points + 0.1, points)  # on an edge it is either pixel
    found, _ = decode.argmax(DRAW[kind](points, (21, 31), sigma))
    np.testing.assert_array_equal(found, np.floor(points) + 0.5)


@pytest.mark.parametrize("decoder", SUBPIXEL)
@pytest.mark.parametrize(
    ("kind", "sigma"), [(k, s) for k in DRAW for s in (1.5, 2.0, 3.0)] + [("gaussian", s) for s in (1.0, 5.0)]
)
def test_a_target_in_the_interior_decodes_to_its_point(decoder, kind, sigma):
    # The widest peak is complete only at 20 or more pixels from the frame's border.
    points = np.random.default_rng(0).uniform(20, [70, 50], (200, 1, 2)).astype(np.float32)
    found, scores = jax.jit(getattr(jaxmarks.decode, decoder))(DRAW[kind](points, (70, 90), sigma))
    assert np.linalg.norm(found - points, axis=-1).max() < 0.05
    assert scores.min() > 0.5


@pytest.mark.parametrize("decoder", ["local_soft_argmax", "dark", "quadratic"])
@pytest.mark.parametrize(
    ("kind", "border", "narrowest"),
    [("gaussian", 0.0, 1.0), ("exponential", 3.0, 1.5)],  # nearer, an exponential lacks its other side
)
def test_a_target_at_the_border_decodes_to_its_point(decoder, kind, border, narrowest):
    rng, call = np.random.default_rng(1), jax.jit(getattr(decode, decoder))
    points = rng.uniform(border, [60 - border, 40 - border], (400, 1, 2)).astype(np.float32)
    for sigma in (narrowest, 2.0, 4.0, 8.0, 10.0):
        found, _ = call(DRAW[kind](points, (40, 60), sigma))
        assert np.linalg.norm(found - points, axis=-1).max() < 0.05


@pytest.mark.parametrize("decoder", ALL)
def test_eager_jit_and_vmap_agree(decoder):
    maps, call = noisy_maps(5, lead=(3,)), getattr(decode, decoder)
    points, scores = call(maps)
    assert (points.shape, scores.shape) == ((3, 3, 2), (3, 3))
    for other in (jax.jit(call)(maps), jax.jit(jax.vmap(call))(maps)):
        np.testing.assert_allclose(other[0], points, atol=1e-3)
        np.testing.assert_array_equal(other[1], scores)
    alone, _ = jax.jit(call)(maps[1])  # no leading axis
    np.testing.assert_allclose(alone, points[1], atol=1e-3)


@pytest.mark.parametrize("decoder", ALL)
@pytest.mark.parametrize("maps", [np.zeros((6, 7, 1)), -np.ones((6, 7, 1)), np.ones((6, 7, 1)), np.eye(6)[..., None], np.ones((1, 1, 1)), np.ones((2, 3, 1))], ids=["zero", "negative", "flat", "ridge", "one pixel", "tiny"])  # fmt: skip
def test_degenerate_maps_give_a_point_in_the_frame(decoder, maps):
    points, _ = jax.jit(getattr(decode, decoder))(jnp.asarray(maps, jnp.float32))
    assert np.isfinite(points).all()
    assert (np.asarray(points) >= 0).all()
    assert (np.asarray(points) <= [maps.shape[1], maps.shape[0]]).all()


def test_soft_argmax_gradients_match_finite_differences():
    rng = np.random.default_rng(2)
    maps = rng.uniform(0.2, 1, (6, 7, 2))
    weights = rng.normal(size=(2, 2))
    with jax.enable_x64(True):
        loss = lambda m: jnp.sum(decode.soft_argmax(m, temperature=0.5)[0] * weights)
        gradient = jax.grad(loss)(jnp.asarray(maps))
        assert np.abs(gradient).max() > 1e-2
        for place in np.ndindex(maps.shape):
            step = np.zeros_like(maps)
            step[place] = 1e-6
            difference = (loss(jnp.asarray(maps + step)) - loss(jnp.asarray(maps - step))) / 2e-6
            np.testing.assert_allclose(gradient[place], difference, rtol=1e-5, atol=1e-7)


def test_soft_argmax_of_a_softmax_divides_logits_by_temperature():
    logits = np.random.default_rng(3).normal(size=(8, 9, 2)).astype(np.float32)
    found, _ = decode.soft_argmax(jax.nn.softmax(logits, axis=(0, 1)), temperature=0.7)
    weights = np.asarray(jax.nn.softmax(logits / 0.7, axis=(0, 1)))
    x = (weights * (np.arange(9)[:, None] + 0.5)).sum((0, 1))
    y = (weights * (np.arange(8)[:, None, None] + 0.5)).sum((0, 1))
    np.testing.assert_allclose(found, np.stack([x, y], -1), rtol=1e-4)


def test_spread_is_the_root_mean_square_distance():
    points = np.array([[20.0, 20.0]])
    maps = heatmaps.gaussian(points, (40, 40), 3.0)
    np.testing.assert_allclose(decode.spread(maps, points), [np.sqrt(2) * 3], rtol=1e-3)
    two = heatmaps.gaussian(np.array([[10.0, 20.0]]), (40, 40), 1.0) + heatmaps.gaussian(
        np.array([[30.0, 20.0]]), (40, 40), 1.0
    )
    np.testing.assert_allclose(decode.spread(two, points), [np.sqrt(100 + 2)], rtol=1e-3)
    assert decode.spread(np.zeros((40, 40, 1)), points) == 0


def test_an_unknown_decoder_lists_the_known_ones():
    with pytest.raises(ValueError, match="choose one of argmax, soft_argmax, local_soft_argmax, dark, quadratic"):
        decode.named("center_of_mass")


def test_a_decoder_may_have_options():
    maps = jax.random.uniform(jax.random.key(0), (20, 30, 2))
    for text, direct in (
        ("soft_argmax:temperature=0.5", functools.partial(decode.soft_argmax, temperature=0.5)),
        ("quadratic:radius=2,iterations=1", functools.partial(decode.quadratic, radius=2, iterations=1)),
    ):
        for one, other in zip(decode.named(text)(maps), direct(maps), strict=True):
            np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="iterations must be a number, as 4"):
        decode.named("quadratic:iterations=1.5")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("decoder", ALL)
def test_half_precision_keeps_half_pixels(decoder, dtype):
    points = np.array([[200.5, 150.5], [133.5, 131.5]], np.float32)
    maps = heatmaps.gaussian(points, (192, 256), 3.0).astype(dtype)
    found, scores = jax.jit(getattr(decode, decoder))(maps)
    assert found.dtype == scores.dtype == jnp.float32
    np.testing.assert_allclose(found, points, atol=0.1)


@pytest.mark.parametrize("decoder", [decode.local_soft_argmax, decode.dark, decode.quadratic])
def test_gradients_of_nearly_empty_maps_are_finite(decoder):
    """Many quadratics fit a few non-zero pixels, and a rejected one must not make the gradient NaN."""
    two = jnp.zeros((16, 16, 1)).at[7, 7, 0].set(1.0).at[7, 8, 0].set(0.5)
    sparse = jax.nn.relu(jax.random.normal(jax.random.key(0), (200, 16, 16, 1)) - 1.5)
    gradient = jax.jit(jax.vmap(jax.grad(lambda m: decoder(m)[0].sum())))
    assert np.isfinite(gradient(jnp.concatenate([two[None], jnp.zeros((1, 16, 16, 1)), sparse]))).all()


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_a_map_with_a_nan_has_a_nan_score(count):
    maps = jnp.asarray(np.random.default_rng(0).random((2, 30, 34, count)), jnp.float32).at[:, 12, 10, 0].set(jnp.nan)
    for function in (decode.argmax, jax.jit(decode.argmax)):
        _, scores = function(maps)
        assert np.isnan(scores[:, 0]).all() and np.isfinite(scores[:, 1:]).all()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_soft_argmax_does_not_drift_to_the_middle_of_large_maps(temperature):
    """Negligible evidence has no weight, however many pixels have it."""
    maps = heatmaps.gaussian(jnp.array([[40.3, 30.7]]), (256, 256), 3.0)
    np.testing.assert_allclose(decode.soft_argmax(maps, temperature=temperature)[0], [[40.3, 30.7]], atol=0.01)


def test_dark_sets_negative_values_to_0_before_smoothing():
    dip = 4 * heatmaps.gaussian(jnp.array([[44.3, 30.7]]), (64, 80), 1.0)
    maps = heatmaps.gaussian(jnp.array([[40.3, 30.7]]), (64, 80), 2.0) - dip
    for mine, theirs in zip(decode.dark(maps), decode.dark(jnp.maximum(maps, 0)), strict=True):
        np.testing.assert_array_equal(mine, theirs)
