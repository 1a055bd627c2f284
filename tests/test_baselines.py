"""The baselines for landmarks on shapes whose transform is known, and what they refuse."""

import contextlib
import dataclasses
import importlib.util
import sys
import types

import numpy as np
import pytest
from skimage.draw import polygon2mask

from jaxmarks import baselines
from jaxmarks.baselines import mean_shape, registration, regression_trees
from jaxmarks.data.samples import Samples

# An asymmetric polygon with a notch; x and y relative to its centre.
SHAPE = np.array([[-40, -12], [-8, -22], [-2, -8], [6, -20], [44, -10], [30, 6], [38, 18], [-20, 16]], float)


def draw(angle, scale, shift, *, size=(120, 160)):
    """Draws the polygon dark on bright, rotated (radians), scaled and shifted; returns the image and the corners."""
    c, s = np.cos(angle), np.sin(angle)
    points = SHAPE @ (scale * np.array([[c, -s], [s, c]])).T + shift
    fine = polygon2mask((size[0] * 4, size[1] * 4), points[:, ::-1] * 4 - 0.5)
    cover = fine.reshape(size[0], 4, size[1], 4).mean((1, 3))
    return np.round(220 - 180 * cover).astype(np.uint8)[..., None].repeat(3, -1), points


def samples(*poses):
    images, points = zip(*(draw(*pose) for pose in poses), strict=True)
    n = len(images)
    return Samples(
        np.stack(images), np.stack(points).astype(np.float32), np.ones((n, len(SHAPE)), bool), np.arange(n),
        np.arange(n).astype(str), np.tile(np.eye(2, 3), (n, 1, 1)), np.full(n, np.nan), np.full((n, 2), (120, 160)),
    )  # fmt: skip


@pytest.mark.parametrize("angle", [-2.5, -0.3, 0.0, 0.6, 1.5, 3.0])
def test_a_known_similarity_is_recovered(angle):
    model = registration.fit(samples((0.1, 1.0, (80, 60))))
    image, points = draw(angle, 1.15, (76, 62))
    found, registered = registration.predict(model, image[None])
    assert registered.all()
    assert np.linalg.norm(found[0] - points, axis=-1).mean() < 1.5


@pytest.mark.parametrize("size", [(480, 640), (490, 661)])
def test_large_frames_are_downscaled(size):
    image, points = draw(0.1, 4.0, (320, 240), size=size)
    model = registration.fit(
        dataclasses.replace(samples((0.1, 1.0, (80, 60))), images=image[None], points=points[None])
    )
    assert model.factor == 2 and model.size == (size[0] // 2, size[1] // 2)
    image, points = draw(0.4, 4.2, (330, 250), size=size)
    found, registered = registration.predict(model, image[None])
    assert registered.all() and np.linalg.norm(found[0] - points, axis=-1).mean() < 3


THREE = (0.0, 1.0, (60, 60)), (0.0, 1.0, (80, 60)), (0.0, 1.0, (101, 60))


def test_the_model_is_the_image_nearest_to_the_mean_shape():
    chosen = registration.fit(samples(*THREE), candidates=1)
    np.testing.assert_allclose(chosen.points, draw(*THREE[1])[1], atol=1e-4)


def test_an_image_with_a_wrong_outline_is_not_chosen_as_model():
    spoilt = samples(*THREE)
    spoilt.images[1, 62:110, 70:140] = 40  # a dark object that touches the part
    chosen = registration.fit(spoilt)
    assert np.abs(chosen.points - draw(*THREE[1])[1]).max() > 10


def test_without_segmentation_the_model_is_returned_unchanged():
    model = registration.fit(samples((0.0, 1.0, (80, 60))))
    found, registered = registration.predict(model, np.full((1, 120, 160, 3), 128, np.uint8))
    assert not registered.any()
    np.testing.assert_array_equal(found[0], model.points)
    blank = samples((0.0, 1.0, (80, 60)))
    blank.images[:] = 128
    found, registered = registration.predict(registration.fit(blank), draw(0, 1, (80, 60))[0][None])
    assert not registered.any() and np.isfinite(found).all()


def test_similarity_matches_least_squares():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(9, 2)), rng.normal(size=(9, 2))
    linear, shift = registration.similarity(a, b)
    # x' = p x - q y + u, y' = q x + p y + v, solved as one linear system
    zero, one = np.zeros(9), np.ones(9)
    rows = np.concatenate([np.stack([a[:, 0], -a[:, 1], one, zero], 1), np.stack([a[:, 1], a[:, 0], zero, one], 1)])
    p, q, u, v = np.linalg.lstsq(rows, b.T.reshape(-1), rcond=None)[0]
    np.testing.assert_allclose(linear, [[p, -q], [q, p]], atol=1e-9)
    np.testing.assert_allclose(shift, [u, v], atol=1e-9)


def test_mean_shape_ignores_missing_landmarks():
    rng = np.random.default_rng(0)
    points, visible = rng.uniform(0, 99, (7, 3, 2)), rng.random((7, 3)) > 0.4
    visible[:, 2] = False
    masked = np.ma.array(points, mask=~visible[..., None].repeat(2, -1))
    found = mean_shape.fit(points, visible)
    np.testing.assert_allclose(found[:2], masked.mean(0)[:2])
    np.testing.assert_allclose(found[2], masked.mean((0, 1)))  # visible nowhere: the mean of all visible points
    assert mean_shape.predict(found, 4).shape == (4, 3, 2)
    assert np.isfinite(mean_shape.fit(points, np.zeros_like(visible))).all()


def test_images_with_all_landmarks_are_preferred_as_model():
    some = samples(*THREE)
    some.visible[1, 0] = False  # the image nearest to the mean shape
    chosen = registration.fit(some, candidates=1)
    assert min(np.abs(chosen.points - draw(*THREE[n])[1]).max() for n in (0, 2)) < 1e-3


def test_missing_landmarks_take_the_mean_and_featureless_ones_stay():
    some = samples(*THREE)
    some.visible[0, 2], some.points[0, 2] = False, 0
    mean = np.arange(16.0).reshape(8, 2)
    found = registration.model_of(some, 0, mean, 1).points
    np.testing.assert_allclose(np.delete(found, 2, 0), np.delete(draw(*THREE[0])[1], 2, 0), atol=1e-4)
    np.testing.assert_array_equal(found[2], mean[2])
    # Where all descriptors are equal, a landmark stays where the alignment of the outlines puts it.
    flat, points = np.full((120, 160, 3), 99, np.uint8), np.array([[30.5, 40.5], [90.0, 60.0]])
    model = registration.Model(None, 1, points, registration.describe(registration.grey(flat), points), (120, 160), 1)
    np.testing.assert_allclose(registration.refine(model, flat, np.eye(2), np.array([3.0, -2.0])), points + [3, -2])


def test_regression_trees_follow_the_shape(monkeypatch):
    pytest.importorskip("dlib", reason="the extra dlib is not installed")
    monkeypatch.setitem(regression_trees.OPTIONS, "oversampling_amount", 20)
    rng = np.random.default_rng(0)
    poses = [(rng.uniform(-0.3, 0.3), rng.uniform(0.9, 1.1), (80, 60) + rng.uniform(-8, 8, 2)) for _ in range(40)]
    train, test = samples(*poses[:32]), samples(*poses[32:])
    train.visible[::3, 1], train.points[::3, 1] = False, 0
    train.visible[:, 4], train.points[:, 4] = False, 0
    train.visible[5], train.points[5] = False, 0
    model = regression_trees.fit(train)
    points = regression_trees.predict(model, test.images)
    np.testing.assert_array_equal(points, regression_trees.predict(regression_trees.fit(train), test.images))
    error = lambda points: np.linalg.norm(points - test.points, axis=-1)[:, model.known].mean()
    assert error(points) < 0.2 * error(mean_shape.predict(model.mean, 8))
    np.testing.assert_array_equal(points[:, 4], np.tile(model.mean[4], (8, 1)))  # visible nowhere
    train.visible[:] = False
    np.testing.assert_array_equal(regression_trees.predict(regression_trees.fit(train), test.images), 0)


def test_regression_trees_give_dlib_whole_pixels_and_read_their_centres(monkeypatch):
    """dlib numbers pixels from 0, and its points lie on their centres; ours from the corner of the first pixel."""
    given = types.SimpleNamespace()

    def train(images, shapes, options):
        given.images, given.shapes, given.options = images, shapes, options
        parts = [types.SimpleNamespace(x=x, y=y) for x, y in shapes[0][0][1]]
        return lambda image, box: types.SimpleNamespace(parts=lambda: parts)

    dlib = types.SimpleNamespace(
        rectangle=lambda *corners: corners, point=lambda x, y: (x, y), train_shape_predictor=train,
        full_object_detection=lambda box, parts: (box, parts), shape_predictor_training_options=types.SimpleNamespace,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "dlib", dlib)
    some = samples(*THREE)
    some.visible[1, 2] = False
    points = regression_trees.predict(regression_trees.fit(some), some.images)
    np.testing.assert_array_equal(points, np.tile(np.floor(some.points[0]) + 0.5, (3, 1, 1)))
    assert given.shapes[1][0][1][2] == (regression_trees.MISSING, regression_trees.MISSING)
    assert all(image.dtype == np.uint8 and image.shape == (120, 160) for image in given.images)
    x0, y0, x1, y1 = given.shapes[0][0][0]
    low, high = (getattr(mean_shape.fit(some.points, some.visible), bound)(0) for bound in ("min", "max"))
    np.testing.assert_allclose([x0, y0], low - 0.1 * (high - low), atol=0.5)
    np.testing.assert_allclose([x1, y1], high + 0.1 * (high - low), atol=0.5)


@pytest.mark.parametrize("installed", [True, False])
def test_a_baseline_without_its_library_is_refused(installed, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    baselines.check(("mean_shape", "registration"), objects=False)
    with contextlib.nullcontext() if installed else pytest.raises(ValueError, match=r"pip install 'jaxmarks\[dlib\]'"):
        baselines.check(("regression_trees",), objects=False)
