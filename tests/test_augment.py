"""Augmentation: operations against NumPy and SciPy, points against pixels, and the beetle paper's versions by hand."""

import inspect

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage, stats

from jaxmarks import augment, platforms
from jaxmarks.augment import colour, modern, paper, spatial
from jaxmarks.ops import geometry

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
SIZE = (72, 96)
# Colour changes off: `modern` then changes positions only.
STILL = {"name": "modern", "brightness": 0, "contrast": 0, "gamma": 0, "channel": 0, "blur": 0, "noise": 0, "cutout": 0}
UNMOVED = {"rotation": 0, "scale": 0, "aspect": 0, "shear": 0, "translation": 0, "mirror": 0, "elastic": 0}
EVERYTHING = {"name": "modern", "elastic": 1.0, "blur": 0.3, "cutout": 0.3}
FLIP = (1, 0, 3, 2, 4)


def batch_of(images, points, visible=None):
    b, k = points.shape[:2]
    return {
        "images": jnp.array(images),
        "points": jnp.array(points, jnp.float32),
        "visible": jnp.ones((b, k), bool) if visible is None else jnp.array(visible),
        "version": jnp.zeros(b, jnp.int32),
        "index": jnp.arange(b, dtype=jnp.int32),
        "mm_per_px": jnp.arange(b) + 0.5,
    }


def random_batch(count=6, channels=3):
    images = RNG.integers(0, 256, (count, *SIZE, channels)).astype(np.uint8)
    return batch_of(images, RNG.uniform(10, 60, (count, 5, 2)), RNG.random((count, 5)) < 0.8)


def keys_of(count, seed=7):
    return jax.random.split(jax.random.key(seed), count)


def apply_jitted(spec, batch, *, channels=1, flip=None, seed=7):
    """Applies `augment.build(spec, ...)` to the batch, jitted as a whole."""
    return jax.jit(augment.build(spec, channels=channels, flip=flip).apply)(keys_of(len(batch["points"]), seed), batch)


def dots(points, size=SIZE, sigma=1.2):
    """Draws a uint8 image with a Gaussian dot at each of the points (K, 2), each darker than the one before."""
    x, y = np.arange(size[1]) + 0.5, np.arange(size[0])[:, None] + 0.5
    levels = np.linspace(255, 120, len(points))
    image = sum(
        v * np.exp(-((x - p[0]) ** 2 + (y - p[1]) ** 2) / (2 * sigma**2)) for v, p in zip(levels, points, strict=True)
    )
    return np.round(image).clip(0, 255).astype(np.uint8)[..., None]


def centroid_near(image, point, radius=5):
    """Returns the centre of mass of the image (H, W) within `radius` of a point, recentred three times."""
    x, y = np.meshgrid(np.arange(image.shape[1]) + 0.5, np.arange(image.shape[0]) + 0.5)
    for _ in range(3):
        weight = np.where((x - point[0]) ** 2 + (y - point[1]) ** 2 < radius**2, image, 0)
        point = np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()
    return point


# -- position


APART = np.array([[28.0, 22.0], [68.5, 21.3], [47.2, 35.8], [27.4, 50.6], [70.1, 49.9]])


@pytest.mark.parametrize(
    ("options", "within"),
    [
        ({"rotation": 30, "elastic": 0}, 0.1),
        ({"scale": 0.2, "aspect": 0.2}, 0.1),
        ({"shear": 10}, 0.1),
        ({"translation": 0.1}, 0.1),
        ({"mirror": 1.0}, 0.1),
        ({"rotation": 20, "scale": 0.1, "shear": 5, "translation": 0.05, "mirror": 0.5}, 0.1),
        ({"elastic": 1.0}, 0.3),
        ({"elastic": 1.0, "rotation": 20, "mirror": 0.5}, 0.3),
    ],
)
def test_points_follow_pixels(options, within):
    count = 6
    batch = batch_of(np.stack([dots(APART)] * count), np.stack([APART] * count))
    found = apply_jitted(STILL | UNMOVED | options, batch, flip=tuple(range(5)))
    moved, errors = 0.0, []
    for image, points in zip(np.asarray(found["images"])[..., 0], np.asarray(found["points"]), strict=True):
        for point, old in zip(points, APART, strict=True):
            if 10 < point[0] < SIZE[1] - 10 and 10 < point[1] < SIZE[0] - 10:
                errors.append(np.linalg.norm(centroid_near(image, point) - point))
                moved = max(moved, np.linalg.norm(point - old))
    assert len(errors) > 2 * count
    assert moved > 1
    assert max(errors) < within
    assert np.mean(errors) < 0.1


def test_zero_strengths_change_nothing():
    batch = random_batch()
    found = apply_jitted(STILL | UNMOVED, batch, channels=3, flip=FLIP)
    np.testing.assert_allclose(found["images"], np.asarray(batch["images"]) / 255, atol=1e-5)
    np.testing.assert_allclose(found["points"], batch["points"], atol=1e-4)
    np.testing.assert_array_equal(found["visible"], batch["visible"])


def test_random_affine_stays_within_its_strengths():
    draw = lambda **strengths: np.asarray(
        jax.vmap(lambda key: spatial.random_affine(key, SIZE, **strengths))(keys_of(400))
    )
    centre = np.array([SIZE[1] / 2, SIZE[0] / 2])

    turned = draw(rotation=20.0)
    angles = np.rad2deg(np.arctan2(turned[:, 1, 0], turned[:, 0, 0]))
    assert 17 < angles.max() <= 20.001 and -20.001 <= angles.min() < -17
    np.testing.assert_allclose(np.linalg.det(turned[:, :, :2]), 1, rtol=1e-5)
    np.testing.assert_allclose(turned[:, :, :2] @ centre + turned[:, :, 2], np.tile(centre, (400, 1)), atol=1e-4)

    factors = np.sqrt(np.linalg.det(draw(scale=0.25)[:, :, :2]))
    assert 1.2 < factors.max() <= 1.2501 and 0.7999 <= factors.min() < 0.83

    wide = draw(aspect=0.5)
    ratio = wide[:, 0, 0] / wide[:, 1, 1]
    assert 1.4 < ratio.max() <= 1.5001 and 0.6666 <= ratio.min() < 0.72

    lean = np.rad2deg(np.arctan(draw(shear=10.0)[:, 0, 1]))
    assert 8.5 < lean.max() <= 10.001 and -10.001 <= lean.min() < -8.5

    shifts = np.abs(draw(translation=0.1)[:, :, 2])
    assert 8.5 < shifts[:, 0].max() <= 9.6001 and 6.3 < shifts[:, 1].max() <= 7.2001


def test_elastic_is_smooth_with_the_given_strength():
    flow = np.asarray(jax.vmap(lambda key: spatial.elastic(key, (60, 80), strength=2.0))(keys_of(40)))
    assert flow.shape == (40, 60, 80, 2)
    # Cubic interpolation averages between grid points, so the flow's deviation is a little below the grid's.
    assert 1.2 < flow.std() < 2.2
    # Small first and second differences between rows: no steps and no noise from pixel to pixel.
    assert np.abs(np.diff(flow, axis=1)).mean() < 0.2 and np.abs(np.diff(flow, n=2, axis=1)).max() < 0.3


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_through_flow_solves_its_equation(seed):
    """q + flow(q) = p, with the flow interpolated by SciPy."""
    flow = np.asarray(spatial.elastic(jax.random.key(seed), SIZE, strength=1.5))
    points = np.random.default_rng(seed).uniform(10, 60, (6, 2)).astype(np.float32)
    found = np.asarray(spatial.through_flow(jnp.array(flow), points))
    at = [found[:, 1] - 0.5, found[:, 0] - 0.5]
    moved = np.stack([ndimage.map_coordinates(flow[..., c], at, order=1, mode="nearest") for c in (0, 1)], -1)
    np.testing.assert_allclose(found + moved, points, atol=1e-2)


def test_mirror_by_hand():
    """In a frame 96 px wide x becomes 96 - x, rows of pixels are reversed, and landmarks are reordered by FLIP."""
    batch = random_batch()
    found = apply_jitted(STILL | UNMOVED | {"mirror": 1.0}, batch, channels=3, flip=FLIP)
    np.testing.assert_allclose(found["images"], np.asarray(batch["images"])[:, :, ::-1] / 255, atol=1e-5)
    old = np.asarray(batch["points"])
    for new, source in enumerate(FLIP):
        np.testing.assert_allclose(found["points"][:, new, 0], 96 - old[:, source, 0], atol=1e-4)
        np.testing.assert_allclose(found["points"][:, new, 1], old[:, source, 1], atol=1e-4)
        np.testing.assert_array_equal(found["visible"][:, new], batch["visible"][:, source])


def test_mirror_is_its_own_inverse():
    spec, batch = STILL | UNMOVED | {"mirror": 1.0}, random_batch()
    found = apply_jitted(spec, apply_jitted(spec, batch, channels=3, flip=FLIP), channels=3, flip=FLIP)
    np.testing.assert_allclose(found["images"], np.asarray(batch["images"]) / 255, atol=1e-5)
    np.testing.assert_allclose(found["points"], batch["points"], atol=1e-4)
    np.testing.assert_array_equal(found["visible"], batch["visible"])


def test_mirror_follows_its_probability_and_needs_a_flip():
    batch = batch_of(np.stack([dots(APART)] * 200), np.stack([APART] * 200))
    half = apply_jitted(STILL | UNMOVED | {"mirror": 0.5}, batch, channels=1, flip=FLIP)
    mirrored = ~np.isclose(half["points"][:, 4, 0], APART[4, 0], atol=1e-3)
    assert 70 < mirrored.sum() < 130
    none = apply_jitted(STILL | UNMOVED | {"mirror": 1.0}, batch, channels=1, flip=None)
    np.testing.assert_allclose(none["points"], batch["points"], atol=1e-4)


def test_landmarks_that_leave_the_frame_become_invisible():
    """Rotations of up to 40 degrees move some near the corners out; an invisible one in the middle stays invisible."""
    points = np.array([[3.0, 3.0], [93.0, 3.0], [48.0, 36.0], [3.0, 69.0], [48.0, 36.0]])
    visible = np.tile([True, True, True, True, False], (30, 1))
    batch = batch_of(np.zeros((30, *SIZE, 1), np.uint8), np.tile(points, (30, 1, 1)), visible)
    found = apply_jitted(STILL | UNMOVED | {"rotation": 40}, batch, channels=1)
    x, y = np.moveaxis(np.asarray(found["points"]), -1, 0)
    within = (x >= 0) & (x <= 96) & (y >= 0) & (y <= 72)
    np.testing.assert_array_equal(found["visible"], within & visible)
    assert np.asarray(found["visible"])[:, 2].all()
    assert 0 < np.asarray(found["visible"])[:, [0, 1, 3]].mean() < 1


def box_batch(boxes, count=8):
    """The same boxes (M, 4) in each of `count` black frames, with their corners (4 M) as landmarks."""
    boxes = np.asarray(boxes, np.float32)
    points = boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]].reshape(1, -1, 2)
    batch = batch_of(np.zeros((count, *SIZE, 1), np.uint8), np.repeat(points, count, axis=0))
    tiled = {"boxes": np.tile(boxes, (count, 1, 1)), "labels": np.zeros((count, len(boxes)), np.int32)}
    return batch | {name: jnp.asarray(array) for name, array in tiled.items()}


@pytest.mark.parametrize("options", [{"rotation": 30}, {"elastic": 2.0}], ids=str)
def test_a_moved_box_bounds_its_moved_corners(options):
    found = apply_jitted(STILL | UNMOVED | options, box_batch([[30, 20, 60, 40]]))
    corners = np.asarray(found["points"])
    boxes = np.concatenate([corners.min(1), corners.max(1)], axis=-1)
    np.testing.assert_allclose(found["boxes"][:, 0], boxes, atol=1e-3)
    assert np.abs(boxes - [30, 20, 60, 40]).max() > 0.5


def test_objects_centred_outside_the_frame_are_dropped():
    """One is in the corner, where most shifts of up to a fifth of the frame move it out, and one in the middle."""
    found = apply_jitted(STILL | UNMOVED | {"translation": 0.2}, box_batch([[0, 0, 4, 4], [46, 34, 50, 38]]))
    x, y = np.moveaxis(np.asarray(found["boxes"]).reshape(8, 2, 2, 2).mean(2), -1, 0)
    within = (x >= 0) & (x <= 96) & (y >= 0) & (y <= 72)
    np.testing.assert_array_equal(np.asarray(found["labels"]) >= 0, within)
    assert within[:, 1].all() and not within[:, 0].all()


def test_quarter_turns_match_numpy_rot90():
    """All four occur, and rotate pixels and landmarks before the aspect change and the shift."""
    options = STILL | UNMOVED | {"aspect": 0.3, "translation": 0.1}
    image, point, batches = np.arange(400, dtype=np.uint8).reshape(20, 20, 1), np.array([3.5, 6.5]), []
    for _ in range(4):
        batches.append(batch_of(np.stack([image] * 40), np.tile(point, (40, 1, 1))))
        image, point = np.rot90(image), np.array([point[1], 20 - point[0]])  # counterclockwise: right becomes top
    expected = [apply_jitted(options, batch) for batch in batches]
    found, seen = apply_jitted(options | {"quarter_turns": True}, batches[0]), set()
    for n in range(40):
        alike = [k for k in range(4) if np.allclose(found["images"][n], expected[k]["images"][n], atol=1e-3)]
        assert len(alike) == 1
        np.testing.assert_allclose(found["points"][n], expected[alike[0]]["points"][n], atol=1e-3)
        seen.update(alike)
    assert seen == {0, 1, 2, 3}


def test_angle_and_shear_are_uncorrelated():
    draw = lambda key: spatial.random_affine(key, SIZE, rotation=20.0, shear=10.0)
    linear = np.asarray(jax.vmap(draw)(keys_of(300)))[:, :, :2]
    angle = np.arctan2(linear[:, 1, 0], linear[:, 0, 0])
    # Rotated back by the angle, the image of (0, 1) leans to the right by the shear.
    lean = np.arctan(np.cos(angle) * linear[:, 0, 1] + np.sin(angle) * linear[:, 1, 1])
    assert abs(np.corrcoef(angle, lean)[0, 1]) < 0.2  # its standard deviation for 300 draws is 0.06


# -- colour

IMAGE = RNG.uniform(0, 1, (20, 28, 3)).astype(np.float32)


def test_brightness_adds_one_number():
    added = np.stack([colour.brightness(key, IMAGE, strength=0.3) for key in keys_of(40)]) - IMAGE
    np.testing.assert_allclose(added, np.broadcast_to(added[:, :1, :1, :1], added.shape), atol=1e-6)
    assert 0.2 < added.max() <= 0.3001 and -0.3001 <= added.min() < -0.2


def test_contrast_keeps_the_mean_and_scales_the_deviation():
    factors = []
    for key in keys_of(40):
        found = np.asarray(colour.contrast(key, IMAGE, strength=0.4))
        factor = found.std() / IMAGE.std()
        np.testing.assert_allclose(found, (IMAGE - IMAGE.mean()) * factor + IMAGE.mean(), atol=1e-5)
        factors.append(factor)
    assert 1.25 < max(factors) <= 1.4001 and 0.5999 <= min(factors) < 0.75


def test_brightness_and_contrast_are_uncorrelated():
    columns = np.tile(np.uint8([60, 180]), (4, 2))[..., None]
    batch = batch_of(np.stack([columns] * 200), np.zeros((200, 0, 2)))
    found = np.asarray(apply_jitted(STILL | UNMOVED | {"brightness": 0.1, "contrast": 0.3}, batch)["images"])
    # Nothing is clipped at 0 or 1, so the mean reflects the brightness and the deviation the contrast.
    mean, deviation = found.mean((1, 2, 3)), found.std((1, 2, 3))
    assert np.ptp(mean) > 0.15 and np.ptp(deviation) > 0.1
    assert abs(np.corrcoef(mean, deviation)[0, 1]) < 0.2  # its standard deviation for 200 draws is 0.07


def test_gamma_is_a_power():
    powers = []
    for key in keys_of(40):
        found = np.asarray(colour.gamma(key, np.concatenate([IMAGE, IMAGE * 0, IMAGE * 0 + 2]), strength=1.0))
        power = np.log(found[0, 0, 0]) / np.log(IMAGE[0, 0, 0])
        np.testing.assert_allclose(found[:20], IMAGE**power, atol=1e-4)
        np.testing.assert_allclose(found[20:40], 0, atol=1e-3)
        np.testing.assert_allclose(found[40:], 1)
        powers.append(power)
    assert 1.6 < max(powers) <= 2.001 and 0.499 <= min(powers) < 0.62


def test_gamma_gradient_is_finite_at_black():
    slope = jax.grad(lambda image: colour.gamma(KEY, image, strength=1.0).sum())(jnp.zeros((2, 2, 1)))
    assert np.isfinite(slope).all()


def test_channel_scales_channels_independently():
    ratio = np.stack([colour.channel(key, IMAGE + 0.1, strength=0.2) for key in keys_of(30)]) / (IMAGE + 0.1)
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1, :1], ratio.shape), rtol=1e-4)
    assert (np.abs(np.diff(ratio[:, 0, 0])) > 1e-4).all()
    assert 1.15 < ratio.max() <= 1.2001 and 0.7999 <= ratio.min() < 0.85


def test_noise_is_gaussian_with_a_random_deviation():
    added = np.stack([colour.noise(key, jnp.zeros((64, 64, 1)), strength=0.1) for key in keys_of(60)])
    deviations = added.std(axis=(1, 2, 3))
    assert 0.09 < deviations.max() <= 0.104 and deviations.min() < 0.015
    scaled = (added / deviations[:, None, None, None]).reshape(-1)
    assert abs(scaled.mean()) < 0.01 and abs((scaled**4).mean() - 3) < 0.05  # kurtosis of the normal distribution


def test_normal_numbers_are_the_same_on_all_platforms():
    key, shape = jax.random.key(3), (40, 30, 3)
    with platforms.tracing_for("plain"):
        computed = colour.normal(key, shape)
    looked_up = colour.normal(key, shape)
    assert len(np.unique(looked_up)) > 900
    np.testing.assert_allclose(computed, looked_up, rtol=0, atol=5e-6)
    np.testing.assert_allclose(colour._computed(jnp.arange(1024)), colour.NORMAL, rtol=0, atol=5e-6)


@pytest.mark.parametrize("shape", [(41, 61, 3), (97, 77, 1)])
def test_normal_numbers_are_normal_and_uncorrelated(shape):
    """Against SciPy's distribution; neighbours, such as the three from one random word, are uncorrelated."""
    numbers = np.asarray(jax.vmap(lambda key: colour.normal(key, shape))(keys_of(20)))
    assert stats.kstest(numbers.reshape(-1), "norm").statistic < 0.01
    assert abs(numbers.var() - 1) < 0.01
    for shift in (1, 2, 3):
        lagged = numbers.reshape(20, -1)
        assert abs(np.corrcoef(lagged[:, shift:].reshape(-1), lagged[:, :-shift].reshape(-1))[0, 1]) < 0.01
    assert abs(np.corrcoef(numbers[0].reshape(-1), numbers[1].reshape(-1))[0, 1]) < 0.05


@pytest.mark.parametrize("strength", [0.4, 2.5])
def test_blur_matches_scipy(strength):
    sigma = float(jax.random.uniform(KEY)) * strength
    radius = max(1, round(3 * strength))
    expected = ndimage.gaussian_filter(IMAGE, (sigma, sigma, 0), mode="nearest", radius=(radius, radius, 0))
    assert np.abs(expected - IMAGE).max() > 1e-3
    np.testing.assert_allclose(colour.blur(KEY, IMAGE, strength=strength), expected, atol=1e-5)


def test_cutout_fills_one_box_with_the_mean():
    sides = []
    for key in keys_of(20):
        changed = (np.asarray(colour.cutout(key, IMAGE, strength=0.5)) != IMAGE).all(-1)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        if changed.any():
            assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            filled = np.asarray(colour.cutout(key, IMAGE, strength=0.5))[changed]
            np.testing.assert_allclose(filled, np.broadcast_to(IMAGE.mean((0, 1)), filled.shape), atol=1e-5)
        sides.append((len(rows), len(columns)))
    assert 5 < max(r for r, _ in sides) <= 11 and 7 < max(c for _, c in sides) <= 15


def test_luminance_by_hand():
    """(100, 200, 50): 0.299 x 100 + 0.587 x 200 + 0.114 x 50 = 153."""
    image = colour.to_float(jnp.array([[[100, 200, 50]]], jnp.uint8))
    np.testing.assert_allclose(colour.to_channels(image, 1) * 255, [[[153.0]]], rtol=1e-6)
    np.testing.assert_array_equal(colour.to_channels(jnp.array([[[0.25]]]), 3), [[[0.25, 0.25, 0.25]]])
    with pytest.raises(ValueError, match="4 channels"):
        colour.to_channels(jnp.zeros((2, 2, 4)), 1)


# -- the beetle paper's versions


def paper_batch(colours, *, versions=range(7), index=5):
    """One pixel of the given colour, once for each of the versions."""
    count = len(versions)
    images = np.broadcast_to(np.array(colours, np.uint8), (count, 1, 1, 3))
    return batch_of(images, np.zeros((count, 1, 2))) | {
        "version": jnp.array(versions),
        "index": jnp.full(count, index, jnp.int32),
    }


def test_paper_versions_by_hand():
    """(100, 200, 50), luminance 153, with a constant of 1: red, green or blue plus 1; each alone; unchanged."""
    found = augment.build({"name": "paper_x7", "maximum": 1}, channels=1)
    assert found.versions == 7
    grey = found.apply(keys_of(7), paper_batch((100, 200, 50)))["images"][:, 0, 0, 0] * 255
    np.testing.assert_allclose(grey, [153.299, 153.587, 153.114, 100, 200, 50, 153], rtol=1e-6)


def test_paper_caps_at_255():
    """(255, 255, 255) is unchanged in every version."""
    grey = augment.build({"name": "paper_x7"}, channels=1).apply(keys_of(7), paper_batch((255, 255, 255)))["images"]
    np.testing.assert_allclose(grey, 1, rtol=1e-6)


def constants(indices, *, keys_seed=0, **options):
    """Recovers the constants of the samples' version 0 from a black pixel: added to red, whose weight is 0.299."""
    count = len(indices)
    batch = paper_batch((0, 0, 0), versions=[0] * count) | {"index": jnp.array(indices, jnp.int32)}
    apply = augment.build({"name": "paper_x7", **options}, channels=1).apply
    grey = np.asarray(jax.jit(apply)(keys_of(count, keys_seed), batch)["images"])[:, 0, 0, 0]
    return grey * 255 / 0.299


def test_paper_constants_are_integers_from_1_to_maximum():
    found = constants(range(600), maximum=20)
    np.testing.assert_allclose(found, np.round(found), atol=1e-3)
    assert set(np.round(found)) == set(range(1, 21))


def test_paper_constants_depend_on_index_and_seed_not_on_keys():
    found = constants(range(50))
    np.testing.assert_array_equal(found[::-1], constants(range(49, -1, -1), keys_seed=99))
    assert (constants(range(50), seed=1) != found).mean() > 0.8
    of_index_5 = jax.random.randint(jax.random.fold_in(jax.random.key(0), 5 * 7 + 0), (), 1, 51)
    np.testing.assert_allclose(found[5], of_index_5, rtol=1e-5)


def test_paper_versions_have_distinct_keys():
    keys = jax.vmap(lambda v: jax.random.key_data(paper.constant_key(0, 3, v)))(jnp.arange(7))
    assert len({tuple(k) for k in np.asarray(keys)}) == 7


def test_paper_refuses_unsupported_input():
    with pytest.raises(ValueError, match="channels=1"):
        augment.build({"name": "paper_x7"}, channels=3)
    with pytest.raises(ValueError, match="maximum=0"):
        augment.build({"name": "paper_x7", "maximum": 0}, channels=1)
    apply = augment.build({"name": "paper_x7"}, channels=1).apply
    with pytest.raises(ValueError, match="colour images"):
        apply(keys_of(6), random_batch(channels=1))
    with pytest.raises(ValueError, match="uint8"):
        apply(keys_of(6), random_batch() | {"images": jnp.zeros((6, *SIZE, 3))})


# -- the batch

SPECS = [{"name": "none"}, {"name": "paper_x7"}, EVERYTHING]


def name_of(spec):
    return spec["name"] + "+" * (len(spec) > 1)


@pytest.mark.parametrize("spec", SPECS, ids=name_of)
def test_batches_keep_their_structure(spec):
    batch = random_batch() | {"version": jnp.arange(6, dtype=jnp.int32)}
    found = apply_jitted(ml_collections.ConfigDict(spec), batch, flip=FLIP)
    assert found.keys() == batch.keys()
    assert found["images"].shape == (6, *SIZE, 1) and found["images"].dtype == jnp.float32
    assert 0 <= found["images"].min() and found["images"].max() <= 1
    assert found["points"].shape == (6, 5, 2) and found["points"].dtype == jnp.float32
    assert found["visible"].dtype == bool
    np.testing.assert_array_equal(found["mm_per_px"], batch["mm_per_px"])


@pytest.mark.parametrize("spec", [EVERYTHING, {"name": "paper_x7"}], ids=name_of)
def test_samples_are_independent_of_their_batch_and_of_jit(spec):
    apply = augment.build(spec, channels=1, flip=FLIP).apply
    batch, keys = random_batch() | {"version": jnp.arange(6, dtype=jnp.int32)}, keys_of(6)
    compiled = jax.jit(apply)
    whole = compiled(keys, batch)
    order = np.array([4, 1, 5, 4, 0, 1])
    part = compiled(keys[order], {name: value[order] for name, value in batch.items()})
    eager = apply(keys, batch)
    alone = jax.jit(jax.vmap(lambda key, one: apply(key[None], jax.tree.map(lambda v: v[None], one))))(keys, batch)
    for name in ("images", "points", "visible"):
        np.testing.assert_allclose(part[name], whole[name][order], atol=1e-4)
        np.testing.assert_allclose(eager[name], whole[name], atol=1e-4)
        np.testing.assert_allclose(alone[name][:, 0], whole[name], atol=1e-4)


def test_modern_depends_on_the_key():
    apply = jax.jit(augment.build({"name": "modern"}, channels=3).apply)
    batch = random_batch()
    one, other = apply(keys_of(6, 1), batch), apply(keys_of(6, 2), batch)
    assert (np.abs(one["points"] - other["points"]).max(axis=(1, 2)) > 0.05).all()
    assert np.abs(one["images"] - other["images"]).mean() > 0.01


def test_grey_images_become_three_channels():
    found = apply_jitted({"name": "modern", "noise": 0}, random_batch(channels=1), channels=3)
    assert found["images"].shape == (6, *SIZE, 3)


def test_plain_by_hand():
    images = np.full((1, 2, 2, 3), (100, 200, 50), np.uint8)
    batch = {"images": jnp.array(images), "other": 1}
    found = augment.plain(batch, channels=1)
    np.testing.assert_allclose(found["images"], np.full((1, 2, 2, 1), 0.6), rtol=1e-6)
    assert found["other"] == 1
    np.testing.assert_allclose(augment.plain(batch, channels=3)["images"], images / 255, rtol=1e-6)


def test_invalid_specs_are_refused():
    with pytest.raises(ValueError, match="none, paper_x7, modern"):
        augment.build({"name": "mixup"}, channels=1)
    with pytest.raises(ValueError, match="none, paper_x7, modern"):
        augment.build({}, channels=1)
    with pytest.raises(ValueError, match=r"augment\.rotations: unknown option; modern has rotation, scale"):
        augment.build({"name": "modern", "rotations": 3}, channels=1)
    with pytest.raises(ValueError, match="none has no options"):
        augment.build({"name": "none", "noises": 3}, channels=1)
    # Options of other augmentations are ignored, so that changing the name alone switches between them.
    for name in ("none", "paper_x7"):
        augment.build({"name": name, "rotation": 15.0, "noise": 0.1}, channels=1)
    with pytest.raises(ValueError, match="channels=2"):
        augment.build({"name": "none"}, channels=2)
    for flip in ((1, 2, 0), (0, 0), (1, 7), (-2, 1)):
        with pytest.raises(ValueError, match="mirroring twice"):
            augment.build({"name": "modern"}, channels=1, flip=flip)


def test_keys_come_first_and_optional_arguments_are_keyword_only():
    functions = {
        function
        for module in (augment, colour, modern, paper, spatial, geometry)
        for name, function in vars(module).items()
        if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_")
    }
    assert len(functions) > 20
    for function in functions:
        parameters = inspect.signature(function).parameters
        assert "key" not in list(parameters)[1:], function.__name__
        for parameter in parameters.values():
            assert parameter.default is parameter.empty or parameter.kind is parameter.KEYWORD_ONLY, function.__name__


def test_points_on_a_real_wing_keep_their_pixel_values(real_data):
    """The image value at each of two points is the same before and after they are moved with the pixels."""
    path = sorted((real_data / "wings" / "images").iterdir())[0]
    image = np.asarray(Image.open(path).convert("L").resize((96, 72)))[..., None]
    batch = batch_of(image[None], np.array([[[40.0, 30.0], [60.0, 45.0]]]))
    found = apply_jitted(STILL | {"mirror": 0}, batch, channels=1)
    values = lambda images, points: np.asarray(geometry.sample(images, points[:, None]))[:, 0, :, 0]
    np.testing.assert_allclose(
        values(found["images"], found["points"]), values(batch["images"], batch["points"]) / 255, atol=0.06
    )


def test_resizing_scales_pixels_points_and_boxes():
    """From 24x32 to 48x96, twice as high and three times as wide; a smooth image keeps its values, at new positions."""
    y, x = np.mgrid[:24, :32] + 0.5
    smooth = np.repeat(np.uint8(4 * x + 3 * y)[None, ..., None], 3, axis=-1)
    spec = {"name": "modern"} | dict.fromkeys(
        ("rotation", "scale", "aspect", "shear", "translation", "mirror", "brightness", "contrast", "gamma", "channel", "noise"), 0.0
    )  # fmt: skip
    batch = {
        "images": jnp.asarray(smooth), "points": jnp.float32([[[10, 5], [31, 23]]]), "visible": jnp.ones((1, 2), bool),
        "boxes": jnp.float32([[[4, 6, 12, 10]]]), "labels": jnp.zeros((1, 1), jnp.int32),
    }  # fmt: skip
    found = jax.jit(augment.build(spec, channels=1, size=(48, 96)).apply)(keys_of(1), batch)
    assert found["images"].shape == (1, 48, 96, 1)
    np.testing.assert_allclose(found["points"], [[[30, 10], [93, 46]]], rtol=1e-6)
    np.testing.assert_allclose(found["boxes"], [[[12, 12, 36, 20]]], rtol=1e-6)
    rows, columns = np.mgrid[4:44, 6:90] + 0.5
    expected = (4 * (columns / 3) + 3 * (rows / 2)) / 255
    np.testing.assert_allclose(found["images"][0, 4:44, 6:90, 0], expected, atol=1.0 / 255)
    with pytest.raises(ValueError, match="sizes"):
        augment.build({"name": "none"}, channels=1, size=(48, 96))


@pytest.mark.parametrize("mirror", [0.0, 1.0])
def test_coco_visibility_flags_count_as_booleans(mirror):
    batch = batch_of(RNG.integers(0, 256, (2, *SIZE, 1), np.uint8), RNG.uniform(10, 60, (2, 5, 2)))
    flags = jnp.array([[2, 2, 1, 0, 2], [0, 1, 2, 2, 1]])
    transform = augment.build(STILL | UNMOVED | {"mirror": mirror}, channels=1, flip=FLIP)
    keys = jax.random.split(KEY, 2)
    found, due = (transform.apply(keys, batch | {"visible": v})["visible"] for v in (flags, flags > 0))
    np.testing.assert_array_equal(found, due)
    np.testing.assert_array_equal(found, np.asarray(flags > 0)[:, FLIP if mirror else slice(None)])


def test_a_flip_of_the_wrong_length_is_refused():
    batch = batch_of(np.zeros((1, *SIZE, 1), np.uint8), np.ones((1, 5, 2)))
    for flip in ((0,), (1, 0, 2)):
        transform = augment.build(STILL, channels=1, flip=flip)
        with pytest.raises(ValueError, match=f"flip has {len(flip)} entries, but there are 5 landmarks"):
            transform.apply(jax.random.split(KEY, 1), batch)


def test_paper_versions_are_float32_under_x64():
    with jax.enable_x64(True):
        transform = augment.build({"name": "paper_x7"}, channels=1)
        batch = batch_of(np.zeros((1, *SIZE, 3), np.uint8), np.ones((1, 5, 2)))
        assert transform.apply(jax.random.split(KEY, 1), batch)["images"].dtype == "float32"
