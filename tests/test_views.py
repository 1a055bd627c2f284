"""Views of a frame against Pillow, NumPy loops, and landmarks drawn into the frames."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxmarks.ops import geometry, heatmaps, views
from jaxmarks.ops.decode import local_soft_argmax

RNG = np.random.default_rng(0)


def close_of_one(points, visible, frame, size, most):
    """Computes one view of `views.close` in NumPy."""
    height, width = frame
    shown = points[visible]
    share, (x, y) = 1.0, (width / 2, height / 2)
    if 2 * len(shown) >= len(points):
        (x0, y0), (x1, y1) = shown.min(0), shown.max(0)
        share = min(1.0, max(1 / most, (x1 - x0) / width / 0.8, (y1 - y0) / height / 0.8))
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
    left = min(max(0, x - share * width / 2), width - share * width)
    top = min(max(0, y - share * height / 2), height - share * height)
    return np.array([[share * width / size[1], 0, left], [0, share * height / size[0], top]])


def test_close_views_match_a_numpy_reference():
    frame, size, most = (300, 420), (48, 64), 5.0
    count, landmarks = 200, 6
    centres, spreads = RNG.uniform(0, 300, (count, 1, 2)), RNG.uniform(0.1, 400, (count, 1, 1))
    points = np.clip(centres + spreads * RNG.uniform(-1, 1, (count, landmarks, 2)), 0, (420, 300)).astype(np.float32)
    visible = RNG.random((count, landmarks)) < RNG.uniform(0, 1.5, (count, 1))
    expected = np.array(
        [close_of_one(p, v, frame, size, most) for p, v in zip(points.astype(float), visible, strict=True)]
    )
    close = functools.partial(views.close, frame=frame, size=size, most=most)
    for found in (close(points, visible), jax.jit(close)(points, visible), jax.vmap(close)(points, visible)):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)
    whole = np.asarray(views.whole(frame, size))
    few = 2 * visible.sum(1) < landmarks
    assert 20 < few.sum() < 150
    np.testing.assert_allclose(expected[few], np.broadcast_to(whole, (few.sum(), 2, 3)), atol=1e-6)
    shares = expected[~few, 0, 0] * size[1] / frame[1]
    assert (shares == 1).any() and np.isclose(shares, 1 / most).any() and ((shares < 1) & (shares > 1 / most)).any()


def test_close_views_near_a_border_stay_inside_the_frame():
    points = np.array([[[1.0, 2.0], [21.0, 12.0]], [[419.0, 299.0], [400.0, 280.0]]])
    found = np.asarray(views.close(points, np.ones((2, 2), bool), (300, 420), (30, 42), most=10))
    corners = geometry.affine(found, jnp.array([[[0.0, 0.0], [42.0, 30.0]]] * 2))
    np.testing.assert_allclose(corners, [[[0, 0], [42, 30]], [[378, 270], [420, 300]]], atol=1e-3)


@pytest.mark.parametrize("box", [(0, 0, 90, 60), (12.5, 3.25, 57.5, 33.25), (70.3, 40.1, 79.3, 46.1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_resample_matches_pillows_resized_box(box, dtype):
    image, size = RNG.integers(0, 256, (60, 90, 3), dtype=np.uint8), (20, 30)
    x0, y0, x1, y1 = box
    view = jnp.array([[[(x1 - x0) / 30, 0, x0], [0, (y1 - y0) / 20, y0]]])
    expected = np.asarray(Image.fromarray(image).resize((30, 20), Image.Resampling.BILINEAR, box=box))
    look = functools.partial(views.resample, size=size)
    for function in (look, jax.jit(look)):
        found = function(jnp.asarray(image[None].astype(dtype)), view)
        assert found.dtype == dtype and found.shape == (1, 20, 30, 3)
        np.testing.assert_allclose(np.asarray(found[0], float), expected, atol=1.01)  # Pillow rounds after each axis


def test_landmarks_map_to_their_pixels_in_the_view():
    frame, size = (240, 320), (60, 80)
    points = RNG.uniform((60, 50), (260, 190), (4, 3, 2)).astype(np.float32)
    near = views.close(points, np.ones((4, 3), bool), frame, size, most=8)
    maps = heatmaps.gaussian(points, frame, sigma=8.0)
    found, _ = local_soft_argmax(views.resample(maps, near, size), window=3)
    np.testing.assert_allclose(found, geometry.affine(geometry.invert(near), points), atol=0.06)
    np.testing.assert_allclose(geometry.affine(near, found), points, atol=0.2)


def test_resample_gradient_matches_a_finite_difference():
    view = jnp.array([[[0.8, 0.0, 1.3], [0.0, 1.7, 0.4]]])
    image = jnp.asarray(RNG.random((1, 12, 14, 1)), jnp.float32)
    weights = jnp.asarray(RNG.random((1, 6, 7, 1)), jnp.float32)
    value = lambda image: jnp.sum(weights * views.resample(image, view, (6, 7)))
    gradient = np.asarray(jax.grad(value)(image))
    step = jnp.zeros_like(image).at[0, 4, 5, 0].set(0.5)
    np.testing.assert_allclose((value(image + step) - value(image - step)), gradient[0, 4, 5, 0], atol=1e-4)


def turned_views(count, frame, size, seed=0):
    """Returns views at random angles, every other one mirrored, centred at random places of a frame."""
    draw = np.random.default_rng(seed)
    middle = geometry.similarity(0.0, 1.0, (-size[1] / 2, -size[0] / 2), (0.0, 0.0))
    each = []
    for n in range(count):
        place = draw.uniform((0, 0), frame[::-1])
        view = np.array(geometry.similarity(draw.uniform(-np.pi, np.pi), draw.uniform(0.6, 2.5), place, (0.0, 0.0)))
        view[:, 1] *= -1 if n % 2 else 1
        each.append(geometry.compose(view, middle))
    return jnp.stack(each)


def test_turned_views_sample_the_frame_and_repeat_its_edge():
    frame, size = (120, 160), (48, 64)
    view = turned_views(12, frame, size)
    value = lambda x, y: 100 + 50 * np.sin(x / 19) + 40 * np.cos(y / 17)
    y, x = np.mgrid[: frame[0], : frame[1]] + 0.5
    images = np.broadcast_to(value(x, y)[None, ..., None], (12, *frame, 1)).astype(np.float32)
    at = np.asarray(geometry.affine(view, jnp.broadcast_to(geometry.pixel_centres(size).reshape(-1, 2), (12, 3072, 2))))
    expected = value(*np.clip(at, 0.5, np.array(frame[::-1]) - 0.5).transpose(2, 0, 1)).reshape(12, *size, 1)
    look = functools.partial(views.resample, size=size, turned=True)
    for function in (look, jax.jit(look)):
        found = np.asarray(function(images, view))
        np.testing.assert_allclose(found, expected, atol=6)  # antialiasing smooths the pixels at the border
        assert np.abs(found - expected).mean() < 0.6
    flat = np.asarray(look(np.full((12, *frame, 3), 200, np.uint8), view))
    assert flat.dtype == np.uint8 and (flat == 200).all()


def test_upright_views_are_the_same_with_turned_sampling():
    images = RNG.integers(0, 256, (2, 96, 128, 3), dtype=np.uint8)
    whole = jnp.broadcast_to(views.whole((96, 128), (24, 32)), (2, 2, 3))
    one, other = (np.asarray(views.resample(images, whole, (24, 32), turned=turned), int) for turned in (False, True))
    np.testing.assert_allclose(one[:, 1:-1, 1:-1], other[:, 1:-1, 1:-1], atol=1)


@pytest.mark.parametrize("mirror", [1, -1])
def test_posed_views_show_the_mean_shape_upright_and_centred(mirror):
    size, mean = (48, 64), np.array([[-1.5, 0.2], [0.3, -0.7], [1.2, 0.5]])
    angles, scales = RNG.uniform(-np.pi, np.pi, 20), RNG.uniform(10, 30, 20)
    turn = scales[:, None, None] * np.stack([[np.cos(angles), -np.sin(angles)], [np.sin(angles), np.cos(angles)]]).T
    lies = np.concatenate([turn * [1, mirror], RNG.uniform(50, 200, (20, 2, 1))], -1).astype(np.float32)
    points = geometry.affine(lies, np.broadcast_to(mean, (20, 3, 2)))
    found = geometry.affine(geometry.invert(views.posed(lies, mean, size, least=0.1, most=9)), points)
    expected = (mean - [-0.15, -0.1]) * 0.8 * 64 / 2.7 + [32, 24]
    np.testing.assert_allclose(found, np.broadcast_to(expected, (20, 3, 2)), atol=1e-3)
    bound = views.posed(lies, mean, size, least=1.0, most=1.2)
    scale = np.asarray(geometry.scale(bound))
    assert np.isclose(scale.min(), 1.0) and np.isclose(scale.max(), 1.2)
    middle = geometry.affine(bound, jnp.broadcast_to(jnp.array([[32.0, 24.0]]), (20, 1, 2)))
    np.testing.assert_allclose(middle, geometry.affine(lies, np.broadcast_to([[-0.15, -0.1]], (20, 1, 2))), atol=1e-3)
