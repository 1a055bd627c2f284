"""Drawn dendrites: the boxes have the stated sizes and match the drawn light, and each call draws the same image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from jaxmarks.data.phantoms import dendrite

SPINE, FILOPODIUM, STUB = range(3)


@pytest.fixture(scope="module")
def drawn():
    """40 images for each number of classes, as {classes: [(image, boxes, labels)]}."""
    return {classes: [dendrite.draw(i, classes=classes) for i in range(40)] for classes in (1, 2, 3)}


@pytest.fixture
def heads_alone(monkeypatch):
    """`draw` with only heads and filopodia, bright on black, as linear light without noise."""
    monkeypatch.setattr(dendrite, "paint_shaft", lambda *_: None)
    monkeypatch.setattr(dendrite, "clutter", lambda *_: None)
    monkeypatch.setattr(dendrite, "develop", lambda light, *_: light)

    def paint(light, name, root, tip, rng, original=dendrite.thread):
        if name == "filopodium":
            original(light, root, tip, 1.4, 1.0)
        else:
            dendrite.blob(light, tip, 2.5, 1.0, 0.3, 1.1)

    monkeypatch.setattr(dendrite, "paint_object", paint)
    return dendrite.draw


def centres(boxes):
    return (boxes[:, :2] + boxes[:, 2:]) / 2


@settings(max_examples=15)
@given(
    st.integers(0, 10**6), st.integers(0, 99), st.tuples(st.integers(64, 200), st.integers(64, 200)), st.integers(1, 3)
)
def test_every_image_is_valid_and_reproducible(index, seed, size, classes):
    image, boxes, labels = dendrite.draw(index, size=size, seed=seed, classes=classes)
    assert image.shape == (*size, 3) and image.dtype == np.uint8 and (image == image[..., :1]).all()
    assert boxes.shape == (len(labels), 4) and boxes.dtype == np.float64 and labels.dtype == np.int64
    assert 1 <= len(boxes) <= 8 and labels.min() >= 0 and labels.max() < classes
    sides = boxes[:, 2:] - boxes[:, :2]
    np.testing.assert_allclose(sides[labels == SPINE], 15)
    np.testing.assert_allclose(sides[labels == STUB], 11)
    # A thread of 13 to 20 px in any direction, with 4 px around it.
    length = np.hypot(*(sides[labels == FILOPODIUM] - 8).T)
    assert ((length > 13 - 1e-9) & (length < 20 + 1e-9)).all()
    assert (centres(boxes) > 0).all() and (centres(boxes) < size[::-1]).all()
    again = dendrite.draw(index, size=size, seed=seed, classes=classes)
    for one, other in zip((image, boxes, labels), again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_even_the_smallest_image_has_a_spine():
    """With `tries=1` only the last candidate is left, which must lie inside the frame."""
    for seed in range(300):
        rng = np.random.default_rng(seed)
        frame = np.array([7, 7, 57, 57])  # 64 x 64 without the widest black margins
        labels, ends = dendrite.place(dendrite.lay_out(frame, rng), frame, 3, rng, tries=1)
        assert labels.tolist() == [SPINE] and (ends > 7).all() and (ends < 57).all()


def test_another_seed_or_index_gives_another_image():
    (image, boxes, _), *others = (dendrite.draw(*a) for a in ((3,), (4,)))
    others.append(dendrite.draw(3, seed=1))
    for other, other_boxes, _ in others:
        assert (image != other).mean() > 0.3
        assert boxes.shape != other_boxes.shape or np.abs(boxes - other_boxes).min() > 0


def test_counts_classes_and_directions_vary(drawn):
    counts = {len(boxes) for _, boxes, _ in drawn[1]}
    assert min(counts) <= 2 and max(counts) >= 6
    for classes, images in drawn.items():
        assert set(np.concatenate([labels for _, _, labels in images])) == set(range(classes))
    sides = np.concatenate([b[l == FILOPODIUM] for _, b, l in drawn[3]])
    width, height = (sides[:, 2:] - sides[:, :2]).T
    assert (width > 1.3 * height).any() and (height > 1.3 * width).any()


def test_heads_are_at_least_10_px_apart(drawn):
    for classes in drawn:
        for _, boxes, labels in drawn[classes]:
            where = centres(boxes[labels != FILOPODIUM])
            apart = np.hypot(*(where[:, None] - where).T) + 99 * np.eye(len(where))
            assert apart.min(initial=99) >= 10


def test_a_head_is_drawn_at_the_exact_centre_of_its_box(heads_alone):
    """Compares the centre with the centroid of the light around each isolated head."""
    found = 0
    for i in range(60):
        light, boxes, labels = heads_alone(i, size=(96, 180), classes=3)
        where = centres(boxes)
        for k in np.flatnonzero(labels != FILOPODIUM):
            others = np.delete(boxes, k, 0)
            gap = np.maximum(np.maximum(others[:, :2] - where[k], where[k] - others[:, 2:]), 0)
            if np.hypot(*gap.T).min(initial=99) < 12 or (where[k] < 10).any() or (where[k] > [170, 86]).any():
                continue
            x, y = np.floor(where[k]).astype(int)
            patch = light[y - 9 : y + 10, x - 9 : x + 10].astype(np.float64)
            offsets = np.arange(-9, 10) + 0.5
            centroid = [x + (patch.sum(0) @ offsets) / patch.sum(), y + (patch.sum(1) @ offsets) / patch.sum()]
            np.testing.assert_allclose(centroid, where[k], atol=0.03)
            found += 1
    assert found > 40


def test_a_filopodium_fills_its_box_up_to_the_rim(heads_alone):
    """A thread's half maximum is 1.177 sigma = 1.65 px from its axis, so it ends 4 - 1.65 px inside the box."""
    found = 0
    for i in range(60):
        light, boxes, labels = heads_alone(i, size=(96, 180), classes=2)
        parts, _ = ndimage.label(light > 0.5)
        of = parts[tuple(centres(boxes).astype(int).T[::-1])]  # the connected component at each object's centre
        for k in np.flatnonzero(labels == FILOPODIUM):
            if of[k] == 0 or (of == of[k]).sum() > 1:
                continue
            rows, columns = np.nonzero(parts == of[k])
            low, high = [columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose([low - boxes[k, :2], boxes[k, 2:] - high], 4 - 1.177 * 1.4, atol=0.8)
            found += 1
    assert found > 30


def test_the_centres_of_the_boxes_are_bright(drawn):
    """In the finished image, the mean of the 3 x 3 pixels there is over 10 grey values above the median."""
    for classes in drawn:
        for image, boxes, _ in drawn[classes]:
            grey = image[..., 0].astype(float)
            ground = np.median(grey)
            for x, y in centres(boxes).astype(int):
                assert grey[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].mean() > ground + 10


def test_grey_values_resemble_a_fluorescence_image(drawn):
    """A dark background, a bright shaft, and a varying exposure that saturates some images."""
    grey = np.stack([image[..., 0] for image, _, _ in drawn[1]])
    median, high = np.percentile(grey, [50, 99], axis=(1, 2))
    assert np.median(median) < 12 and 100 < np.median(high) < 240
    assert high.std() > 25 and (grey.max((1, 2)) == 255).any()


def test_noise_is_photon_noise():
    """Variance / mean is the gain, 0.8 to 1.8 grey values, in dim and in bright light alike; the margins are black."""
    light = np.full((100, 200), 0.1, np.float32)
    light[:, 100:] = 0.6
    tested = 0
    for seed in range(12):
        image = dendrite.develop(light, np.array([0, 0, 200, 100]), np.random.default_rng(seed))
        halves = image[:, :100, 0].astype(float), image[:, 100:, 0].astype(float)
        dim, bright = (half.var() / half.mean() for half in halves)
        if halves[1].max() < 255:
            assert 0.7 < bright < 1.9 and 0.85 < dim / bright < 1.2
            tested += 1
    assert tested >= 6
    black = dendrite.develop(light, np.array([20, 10, 190, 95]), np.random.default_rng(0))[..., 0]
    assert black[10:95, 20:190].any(0).all() and black[10:95, 20:190].any(1).all()
    black[10:95, 20:190] = 0
    assert not black.any()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(index=-1), "index: -1"),
        (dict(index=0, size=(63, 100)), r"size: \(63, 100\)"),
        (dict(index=0, classes=4), "classes: 4"),
        (dict(index=0, classes=0), "classes: 0"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        dendrite.draw(**arguments)
