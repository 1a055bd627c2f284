"""Coordinates, affine maps and resampling, against hand-derived numbers, numpy, scipy and Pillow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from jaxmarks.ops import frames, geometry

RNG = np.random.default_rng(0)
numbers = st.floats(-3, 3, width=32)
few = settings(max_examples=25, deadline=None)


def homogeneous(matrix):
    return np.vstack([np.asarray(matrix, np.float64), [0, 0, 1]])


@st.composite
def maps(draw):
    """A well-conditioned affine map: a rotation times a scale near 1, and a shift."""
    angle, scale, x, y = draw(numbers), draw(st.floats(0.5, 2)), draw(numbers), draw(numbers)
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.concatenate([linear, [[x], [y]]], axis=1).astype(np.float32)


@few
@given(maps(), maps())
def test_compose_and_invert_match_matrix_algebra(first, second):
    expected = (homogeneous(second) @ homogeneous(first))[:2]
    np.testing.assert_allclose(geometry.compose(second, first), expected, atol=1e-4)
    np.testing.assert_allclose(geometry.invert(first), np.linalg.inv(homogeneous(first))[:2], atol=1e-4)


@few
@given(maps())
def test_affine_matches_homogeneous_coordinates(matrix):
    points = RNG.uniform(0, 100, (7, 2)).astype(np.float32)
    expected = (np.c_[points, np.ones(7)] @ homogeneous(matrix).T)[:, :2]
    np.testing.assert_allclose(geometry.affine(matrix, points), expected, atol=1e-3)


def test_affine_compose_and_invert_over_leading_axes():
    matrices = jnp.array(RNG.normal(size=(4, 3, 2, 3)), jnp.float32)
    points = jnp.array(RNG.normal(size=(4, 3, 5, 2)), jnp.float32)
    each = lambda f, *a: jax.vmap(jax.vmap(f))(*a)
    np.testing.assert_allclose(geometry.affine(matrices, points), each(geometry.affine, matrices, points), rtol=1e-6)
    np.testing.assert_allclose(geometry.invert(matrices), each(geometry.invert, matrices), rtol=1e-6)
    np.testing.assert_allclose(
        geometry.compose(matrices, matrices), each(geometry.compose, matrices, matrices), rtol=1e-5
    )


def test_similarity_by_hand():
    """A quarter turn about (10, 20), scaled by 2: a point 1 px right of the centre lands 2 px below it (y down)."""
    matrix = geometry.similarity(jnp.pi / 2, 2.0, jnp.array([5.0, 7.0]), jnp.array([10.0, 20.0]))
    np.testing.assert_allclose(
        geometry.affine(matrix, jnp.array([[10.0, 20.0], [11.0, 20.0], [10.0, 21.0]])),
        [[15, 27], [15, 29], [13, 27]],
        atol=1e-5,
    )


def test_similarity_is_rotation_after_shear_after_scale():
    angle, scale, shear, aspect = 0.3, 1.2, 0.2, 1.5
    rotate = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = rotate @ [[1, np.tan(shear)], [0, 1]] @ np.diag([scale * aspect**0.5, scale / aspect**0.5])
    matrix = geometry.similarity(angle, scale, (0.0, 0.0), (0.0, 0.0), shear=shear, aspect=aspect)
    np.testing.assert_allclose(matrix[:, :2], linear, atol=1e-6)
    np.testing.assert_allclose(np.linalg.det(matrix[:, :2]), scale**2, rtol=1e-6)


def test_normalise_by_hand():
    """The beetle paper's frame, 256 x 192: x' = (x - 128) / 128, y' = (y - 96) / 96."""
    points = jnp.array([[128.0, 96.0], [0.0, 192.0], [256.0, 48.0]])
    np.testing.assert_array_equal(geometry.normalise(points, (192, 256)), [[0, 0], [-1, 1], [1, -0.5]])
    np.testing.assert_array_equal(geometry.denormalise(geometry.normalise(points, (192, 256)), (192, 256)), points)


def test_inside_includes_the_border():
    points = jnp.array([[0.0, 0.0], [4.0, 3.0], [3.5, 3.01], [-0.01, 1.0], [4.01, 1.0], [1.0, jnp.nan]])
    np.testing.assert_array_equal(geometry.inside(points, (3, 4)), [True, True, False, False, False, False])


def test_pixel_centres():
    centres = geometry.pixel_centres((2, 3))
    np.testing.assert_array_equal(centres[1, 2], [2.5, 1.5])
    assert centres.shape == (2, 3, 2)


def bilinear(image, points):
    """scipy's order-1 interpolation of (H, W, C) at points (h, w, 2)."""
    at = [points[..., 1] - 0.5, points[..., 0] - 0.5]
    channels = [ndimage.map_coordinates(image[..., c], at, order=1, mode="nearest") for c in range(image.shape[-1])]
    return np.stack(channels, -1)


@pytest.mark.parametrize("shape", [(12, 17, 1), (9, 5, 3), (1, 6, 2), (6, 1, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_sample_matches_scipy(shape, dtype):
    images = RNG.uniform(0, 255, (2, *shape)).astype(dtype)
    points = RNG.uniform(-4, 20, (2, 8, 9, 2)).astype(np.float32)
    found = jax.jit(geometry.sample)(images, points)
    assert found.dtype == jnp.float32
    expected = np.stack([bilinear(i.astype(np.float64), p) for i, p in zip(images, points, strict=True)])
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_sample_at_non_finite_points_stays_in_bounds():
    points = jnp.array([jnp.nan, jnp.inf, -jnp.inf, 3e38]).reshape(1, 1, 2, 2)
    found = geometry.sample(jnp.ones((1, 4, 4, 1)), points)
    assert found.shape == (1, 1, 2, 1) and found[0, 0, 1, 0] == 1


@pytest.mark.parametrize(("source", "size"), [((24, 31), (9, 16)), ((10, 12), (20, 36)), ((48, 64), (48, 20))])
def test_resize_matches_pillow(source, size):
    images = RNG.integers(0, 256, (2, *source, 1)).astype(np.uint8)
    pillow = lambda image: np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))
    for image, found in zip(images, geometry.resize(jnp.array(images, jnp.float32), size), strict=True):
        np.testing.assert_allclose(found[..., 0], pillow(Image.fromarray(image[..., 0].astype(np.float32))), atol=1e-3)
    rounded = geometry.resize(jnp.array(images), size)
    assert rounded.dtype == jnp.uint8
    for image, found in zip(images, rounded, strict=True):
        expected = pillow(Image.fromarray(image[..., 0])).astype(int)
        assert np.abs(np.asarray(found[..., 0], int) - expected).max() <= 1


def test_resizing_scales_points():
    """A blob's centre of mass is multiplied by (W/w, H/h): the origin is the corner of a pixel, not its centre."""
    image = blob((60, 80), (33.3, 21.7), 4.0)
    small = geometry.resize(image[None], (30, 20))[0]
    np.testing.assert_allclose(centroid(small), [33.3 * 20 / 80, 21.7 * 30 / 60], atol=0.02)


def blob(size, centre, sigma):
    x, y = np.arange(size[1]) + 0.5, np.arange(size[0])[:, None] + 0.5
    return np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * sigma**2))[..., None].astype(np.float32)


def centroid(image):
    image = np.asarray(image, np.float64)[..., 0]
    x, y = np.arange(image.shape[1]) + 0.5, np.arange(image.shape[0]) + 0.5
    return np.array([(image.sum(0) * x).sum(), (image.sum(1) * y).sum()]) / image.sum()


@few
@given(st.tuples(*[st.integers(20, 90)] * 4), st.sampled_from(["pad", "stretch"]))
def test_frame_places_the_photograph_on_whole_pixels_inside(sides, fit):
    source, size = sides[:2], sides[2:]
    (sx, _, tx), (_, sy, ty) = geometry.frame(source, size, fit)
    left, top = -tx / sx, -ty / sy
    columns, rows = source[1] / sx, source[0] / sy
    for value in (left, top, columns, rows):
        assert value == pytest.approx(round(value), abs=1e-6)
    assert left >= -1e-6 and top >= -1e-6 and left + columns <= size[1] + 1e-6 and top + rows <= size[0] + 1e-6
    assert round(columns) == size[1] or round(rows) == size[0]
    if fit == "pad":
        assert abs(columns - source[1] * rows / source[0]) <= 0.5 * (1 + source[1] / source[0]) + 1e-6
        assert abs(size[1] - columns - 2 * left) <= 1 + 1e-6 and abs(size[0] - rows - 2 * top) <= 1 + 1e-6


@pytest.mark.parametrize("fit", ["pad", "stretch"])
@pytest.mark.parametrize("size", [(40, 40), (30, 64)])
def test_to_frame_places_pixels_where_frame_places_points(size, fit):
    image = blob((60, 80), (33.3, 21.7), 4.0)
    framed = geometry.to_frame(jnp.array(image)[None], size, fit=fit)
    assert framed.shape == (1, *size, 1)
    matrix = jnp.array(geometry.frame((60, 80), size, fit))
    np.testing.assert_allclose(geometry.affine(matrix, centroid(framed[0])[None])[0], [33.3, 21.7], atol=0.1)


def test_to_frame_keeps_the_dtype_and_repeats_the_edge():
    framed = geometry.to_frame(jnp.full((1, 10, 20, 3), 200, jnp.uint8), (16, 16))
    assert framed.dtype == jnp.uint8 and (framed == 200).all()
    with pytest.raises(ValueError, match="pad or stretch"):
        geometry.to_frame(framed, (16, 16), fit="crop")


def test_maps_accept_lists_and_bfloat16_points():
    matrix = geometry.frame((2448, 3264), (192, 256), "pad")
    np.testing.assert_allclose(geometry.affine(matrix, [[128, 96]]), [[1632, 1224]], rtol=1e-6)
    half = jnp.array([[0.13, 0.27]], jnp.bfloat16)
    np.testing.assert_allclose(
        geometry.denormalise(half, (2448, 3264)), geometry.denormalise(np.float32(half), (2448, 3264))
    )


def test_a_photograph_thinner_than_a_frame_pixel_keeps_a_row():
    # 1000 columns become 64, and one row 0.064, raised to 1: the 32nd of 64.
    assert frames.placement((1, 1000), (64, 64), "pad") == (31, 0, 1, 64)
    assert frames.placement((1000, 1), (64, 64), "pad") == (0, 31, 64, 1)
