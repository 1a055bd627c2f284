"""The blob detector on drawn discs, and on Gaussians, whose response is known in closed form."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmarks.baselines import blobs


def discs(count, *, radius=5.0, side=13.0, dark=False, seed=0, size=(64, 80)):
    """Images with one to three discs on a noisy slope, their boxes (N, 3, 4) and labels (N, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    images, boxes, labels = [], np.zeros((count, 3, 4)), np.full((count, 3), -1)
    for n in range(count):
        image, centres = 60 + 0.3 * x, []
        while len(centres) < 1 + n % 3:
            centre = rng.uniform(8, np.array(size[::-1]) - 8)
            if all(np.hypot(*(centre - other)) > 2.5 * radius + 4 for other in centres):
                centres.append(centre)
        for k, (cx, cy) in enumerate(centres):
            image = image + 70 * np.clip(radius - np.hypot(x - cx, y - cy) + 0.5, 0, 1)
            boxes[n, k] = cx - side / 2, cy - side / 2, cx + side / 2, cy + side / 2
            labels[n, k] = 0
        image = np.clip(image + rng.normal(0, 4, size), 0, 255)
        images.append(np.uint8(255 - image if dark else image)[..., None])
    return np.stack(images), boxes, labels


@pytest.mark.parametrize("dark", [False, True])
def test_discs_in_unseen_images_are_located(dark):
    parameters = blobs.fit(*discs(6, dark=dark))
    assert [(p.label, p.sign) for p in parameters] == [(0, -1 if dark else 1)]
    np.testing.assert_allclose(parameters[0].size, 13)
    images, boxes, labels = discs(9, dark=dark, seed=1)
    found, scores, classes = blobs.predict(parameters, images)
    assert found.shape == (*scores.shape, 4) and classes.shape == scores.shape
    hits = 0
    for n in range(9):
        sure = found[n][scores[n] > 0.5]
        distance = np.linalg.norm((sure[:, None, :2] - boxes[n, labels[n] >= 0][None, :, :2]), axis=-1)
        hits += (distance.min(0) < 1.0).sum()  # a peak is at a pixel's centre: 0.7 off at most, plus noise
    total = (labels >= 0).sum()
    assert hits == total
    assert (scores > 0.5).sum() == total
    assert (np.diff(scores, axis=1) <= 0).all()


def test_the_response_of_a_gaussian_is_half_its_contrast():
    """-sigma^2 times the Laplacian of a Gaussian, at the spot's own sigma s: 2 s^4 / (2 s^2)^2 of its height."""
    y, x = np.mgrid[:41, :41] + 0.5
    spot = 200 * np.exp(-((x - 20.5) ** 2 + (y - 18.5) ** 2) / (2 * 3.0**2))
    image = np.uint8(np.round(spot))[None, ..., None]
    for threshold in (0.1, 0.4):
        parameters = (blobs.SpotDetector(2, threshold, (3.0, 3.0), (10.0, 8.0), 1),)
        boxes, scores, classes = blobs.predict(parameters, image)
        response = 200 / 255 / 2
        np.testing.assert_allclose(scores[0, 0], response / (response + threshold), rtol=0.01)
        np.testing.assert_allclose(boxes[0, 0], [15.5, 14.5, 25.5, 22.5])
        assert classes[0, 0] == 2


def test_each_class_has_its_own_size():
    small, large = discs(4, radius=3.0, side=7.0), discs(4, radius=8.0, side=18.0, seed=3)
    images = np.concatenate([small[0], large[0]])
    boxes, labels = np.concatenate([small[1], large[1]]), np.concatenate([small[2], np.where(large[2] == 0, 4, -1)])
    parameters = blobs.fit(images, boxes, labels)
    assert [(p.label, round(p.size[0])) for p in parameters] == [(0, 7), (4, 18)]
    assert parameters[0].sigmas[1] < parameters[1].sigmas[1]
    _, scores, classes = blobs.predict(parameters, images)
    assert set(classes[:4][scores[:4] > 0.5]) == {0}  # no large spots are found on small discs


def test_without_boxes_or_spots_nothing_is_found():
    images, boxes, labels = discs(3)
    assert blobs.fit(images, boxes, np.full_like(labels, -1)) == ()
    found, scores, classes = blobs.predict((), images)
    assert (found.shape, scores.shape, classes.shape) == ((3, 300, 4), (3, 300), (3, 300))
    assert not scores.any()
    found, scores, _ = blobs.predict(blobs.fit(images, boxes, labels), np.full_like(images, 77))
    assert not (scores > 0).any()
    assert blobs.predict(blobs.fit(images, boxes, labels), images, limit=2)[1].shape == (3, 2)


@given(seed=st.integers(0, 1000))
def test_best_threshold_matches_an_exhaustive_search(seed):
    rng = np.random.default_rng(seed)
    responses, total = 0.02 + rng.permutation(12) / 10, 8
    hits = rng.random(12) < responses
    f1, threshold = blobs._best(responses, hits, total)
    tried = [2 * (hits & (responses > t)).sum() / ((responses > t).sum() + total) for t in np.arange(-0.03, 1.3, 0.05)]
    np.testing.assert_allclose(f1, max(tried))
    np.testing.assert_allclose(2 * (hits & (responses > threshold)).sum() / ((responses > threshold).sum() + total), f1)


def test_each_true_box_is_matched_once():
    true = np.array([[0, 0, 10, 10], [20, 0, 30, 10]], float)
    found = np.array([[1, 0, 11, 10], [0, 0, 10, 10], [24.5, 0, 34.5, 10], [23, 0, 33, 10]])
    # IoUs: 9/11; 1, but with a box already matched; 5.5/14.5 < 0.4; 7/13.
    assert blobs._hits(found, true).tolist() == [True, False, False, True]
    assert blobs._hits(found, np.zeros((0, 4))).tolist() == [False] * 4
