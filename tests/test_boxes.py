"""Box operations against naive NumPy loops, pycocotools, and values computed by hand."""

import contextlib
import io
import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmarks import heads, platforms
from jaxmarks.ops import boxes as bx
from jaxmarks.ops import metrics

FEW = settings(max_examples=12)
SEEDS = st.integers(0, 10**6)
EMPTY = np.zeros((0, 4), np.float32)


def compiled(name, *static):
    """Returns the jitted function with NumPy results; `test_eager_jit_and_vmap_agree` also runs it eagerly."""
    jitted = jax.jit(getattr(bx, name), static_argnames=static)
    return lambda *args, **options: jax.tree.map(np.asarray, jitted(*args, **options))


iou = compiled("iou")
nms = compiled("nms", "limit")
soft_nms = compiled("soft_nms", "limit", "method")
agreed = compiled("merge_networks")
rcnn_encode = compiled("rcnn_encode")
rcnn_decode = compiled("rcnn_decode")
yolo_encode = compiled("yolo_encode", "size")
yolo_decode = compiled("yolo_decode")
kmeans_anchors = compiled("kmeans_anchors", "count", "restarts", "iterations")
match = compiled("match")
roi_align = compiled("roi_align", "size", "sampling")
pair_detections = compiled("pair_detections")
precision_recall = compiled("precision_recall")
average_precision = compiled("average_precision", "rule")
mean_average_precision = compiled("mean_average_precision", "count", "rule")


def draw_boxes(rng, *shape):
    """Draws boxes with integer corners, so that overlaps and ties are exact; some are degenerate, reversed or equal."""
    low = rng.integers(-2, 16, (*shape, 2))
    return np.concatenate([low, low + rng.integers(-1, 9, (*shape, 2))], -1).astype(np.float32)


def draw_scores(rng, *shape):
    """Draws scores with many ties."""
    return (rng.integers(1, 8, shape) / 8).astype(np.float32)


def naive_iou(a, b):
    a, b = (tuple(map(float, box)) for box in (a, b))
    area = lambda box: max(box[2] - box[0], 0) * max(box[3] - box[1], 0)
    shared = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    return shared / (area(a) + area(b) - shared) if shared > 0 else 0.0


def naive_ious(a, b):
    return np.array([[naive_iou(x, y) for y in b] for x in a]).reshape(len(a), len(b))


# Geometry


@given(SEEDS)
@FEW
def test_iou_matches_the_naive_loop(seed):
    rng = np.random.default_rng(seed)
    a, b = draw_boxes(rng, 2, 7), draw_boxes(rng, 2, 5)
    np.testing.assert_allclose(iou(a, b), [naive_ious(*pair) for pair in zip(a, b, strict=True)], rtol=1e-6)


def test_degenerate_boxes_have_zero_iou_and_finite_gradients():
    odd = jnp.array([[0.0, 0, 0, 0], [3, 3, 3, 9], [9, 9, 3, 3], [3, 9, 9, 3], [np.nan] * 4])
    np.testing.assert_array_equal(iou(odd, odd), 0)
    np.testing.assert_array_equal(iou(odd, jnp.array([[0.0, 0, 10, 10]])), 0)
    np.testing.assert_array_equal(bx.area(odd[:4]), 0)
    total = lambda a: bx.iou(a, odd[:4]).sum()
    assert np.isfinite(jax.jit(jax.grad(total))(odd[:4])).all()


@given(SEEDS)
@FEW
def test_crowding_matches_the_naive_loop(seed):
    rng = np.random.default_rng(seed)
    boxes, classes, valid = draw_boxes(rng, 7), rng.integers(0, 2, 7), rng.random(7) < 0.8
    expected = [
        max((naive_iou(boxes[i], boxes[j]) for j in range(7) if i != j and valid[j] and classes[i] == classes[j]), default=0)
        if valid[i] else 0
        for i in range(7)
    ]  # fmt: skip
    np.testing.assert_allclose(jax.jit(bx.crowding)(boxes, classes, valid), expected, rtol=1e-6)


def test_crowding_without_neighbours_is_zero():
    assert bx.crowding(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool)).shape == (0,)
    assert bx.crowding(np.array([[0, 0, 9, 9]]), [0], [True]).tolist() == [0]


def test_geometry_by_hand():
    box = np.array([[2.0, 1, 8, 5]])
    np.testing.assert_array_equal(bx.area(box), [24])
    np.testing.assert_array_equal(bx.to_centres(box), [[5, 3, 6, 4]])
    np.testing.assert_array_equal(bx.to_corners(bx.to_centres(box)), box)
    np.testing.assert_array_equal(bx.centre_distance(box, box + [3, 4, 3, 4]), [[5]])
    # A frame 4 high and 7 wide; the second box lies to the right of it.
    clipped = bx.clip(np.array([[-3.0, 1, 9, 6], [9, 1, 12, 3]]), (4, 7))
    np.testing.assert_array_equal(clipped, [[0, 1, 7, 4], [7, 1, 7, 3]])
    np.testing.assert_array_equal(bx.area(clipped), [21, 0])


# Suppression


def naive_nms(boxes, scores, iou, classes, valid):
    kept = []
    for i in sorted(np.flatnonzero(valid), key=lambda i: (-scores[i], i)):
        if all(classes[i] != classes[j] or naive_iou(boxes[i], boxes[j]) <= iou for j in kept):
            kept.append(i)
    return kept


@given(SEEDS, st.booleans())
@FEW
def test_nms_matches_the_naive_loop(seed, by_class):
    rng = np.random.default_rng(seed)
    boxes, scores, valid = draw_boxes(rng, 20), draw_scores(rng, 20), rng.random(20) < 0.8
    classes = rng.integers(0, 3, 20) if by_class else None
    expected = naive_nms(boxes, scores, 0.25, np.zeros(20) if classes is None else classes, valid)
    for limit in (5, 25):
        indices, kept = nms(boxes, scores, limit=limit, iou=0.25, classes=classes, valid=valid)
        assert indices.shape == kept.shape == (limit,)
        assert indices[kept].tolist() == expected[:limit]
        assert not indices[~kept].any()


def test_nms_by_hand():
    # The first two have an IoU of 2/3; the third is a point, the fourth is reversed, and the fifth's score is NaN.
    boxes = np.array([[0.0, 0, 10, 10], [0, 2, 10, 12], [5, 5, 5, 5], [8, 8, 2, 2], [0, 0, 10, 10]])
    scores = np.array([0.5, 0.5, 0.9, -3.0, np.nan])
    expect = lambda found, rows: np.testing.assert_array_equal(found[0][found[1]], rows)
    expect(nms(boxes, scores, limit=6, iou=0.5), [2, 0, 3])
    expect(nms(boxes, scores, limit=6, iou=0.7), [2, 0, 1, 3])
    expect(nms(boxes, scores, limit=6, iou=0.5, classes=np.array([0, 1, 0, 0, 0])), [2, 0, 1, 3])
    expect(nms(boxes, scores, limit=6, valid=np.zeros(5, bool)), [])
    expect(nms(EMPTY, EMPTY[:, 0], limit=6), [])
    # A box whose IoU is exactly the threshold is kept: 50 of 100.
    half = np.array([[0.0, 0, 10, 10], [0, 0, 10, 5]])
    expect(nms(half, np.ones(2), limit=2, iou=0.5), [0, 1])


@given(SEEDS, st.booleans())
@FEW
def test_accelerator_nms_matches_cpu_nms(seed, by_class):
    rng = np.random.default_rng(seed)
    boxes, scores, valid = draw_boxes(rng, 40), draw_scores(rng, 40), rng.random(40) < 0.8
    scores[:2] = np.nan, -np.inf
    options = {"valid": valid, "classes": rng.integers(0, 3, 40) if by_class else None}
    for limit in (5, 45):
        here = nms(boxes, scores, limit=limit, iou=0.2, **options)
        with platforms.tracing_for("plain"):
            there = jax.jit(partial(bx.nms, limit=limit, iou=0.2))(boxes, scores, **options)
        for one, other in zip(here, there, strict=True):
            np.testing.assert_array_equal(one, other)


def test_accelerator_nms_resolves_a_long_chain():
    """Each box suppresses only the next one and scores less than the one before: each round settles one more box."""
    left = 3.0 * np.arange(200)
    boxes = np.stack([left, np.zeros(200), left + 10, np.full(200, 10.0)], axis=-1)
    scores = np.linspace(1, 0.5, 200)
    with platforms.tracing_for("plain"):
        chosen, kept = jax.jit(partial(bx.nms, limit=200, iou=0.4))(boxes, scores)
    assert np.asarray(chosen)[np.asarray(kept)].tolist() == list(range(0, 200, 2))


def naive_soft_nms(boxes, scores, valid, decay, floor):
    left = {i: float(scores[i]) for i in np.flatnonzero(valid)}
    taken = []
    while left := {i: s for i, s in left.items() if s >= floor}:
        best = max(left, key=lambda i: (left[i], -i))
        taken.append((best, left.pop(best)))
        left = {i: s * decay(naive_iou(boxes[best], boxes[i])) for i, s in left.items()}
    return taken


@pytest.mark.parametrize("method", ["gaussian", "linear"])
@given(SEEDS)
@FEW
def test_soft_nms_matches_the_naive_loop(method, seed):
    decay = {"gaussian": lambda o: math.exp(-(o**2) / 0.3), "linear": lambda o: 1 - o if o > 0.25 else 1.0}[method]
    rng = np.random.default_rng(seed)
    # Distinct scores with random offsets, so that decay makes no two equal: rounding would decide between equal ones.
    boxes, scores, valid = draw_boxes(rng, 20), rng.permutation(20) / 20 + rng.random(20) / 100, rng.random(20) < 0.8
    expected = naive_soft_nms(boxes, scores, valid, decay, 0.1)
    indices, decayed = soft_nms(boxes, scores, valid=valid, limit=25, method=method, sigma=0.3, iou=0.25, floor=0.1)
    count = int((decayed > 0).sum())
    assert indices[:count].tolist() == [i for i, _ in expected]
    np.testing.assert_allclose(decayed[:count], [s for _, s in expected], rtol=1e-5)
    assert not indices[count:].any() and not decayed[count:].any()


def test_soft_nms_by_hand():
    # The first two boxes, of 100 pixels each, share 50: an IoU of 1/3. The third overlaps neither.
    boxes = np.array([[0.0, 0, 10, 10], [5, 0, 15, 10], [40, 40, 50, 50]])
    scores = np.array([0.9, 0.8, 0.6])
    indices, decayed = soft_nms(boxes, scores, limit=4, method="linear", iou=0.3)
    np.testing.assert_array_equal(indices, [0, 2, 1, 0])
    np.testing.assert_allclose(decayed, [0.9, 0.6, 0.8 * 2 / 3, 0], rtol=1e-6)
    _, decayed = soft_nms(boxes, scores, limit=4, sigma=0.5)
    np.testing.assert_allclose(decayed, [0.9, 0.8 * math.exp(-2 / 9), 0.6, 0], rtol=1e-6)
    _, apart = soft_nms(boxes, scores, limit=3, classes=np.array([0, 1, 0]))
    np.testing.assert_allclose(apart, scores, rtol=1e-6)
    np.testing.assert_array_equal(soft_nms(EMPTY, EMPTY[:, 0], limit=2)[1], 0)
    with pytest.raises(ValueError, match="hard"):
        soft_nms(boxes, scores, limit=1, method="hard")


# Anchors and encodings


def test_anchor_grid_by_hand():
    found = bx.anchor_grid((2, 3), 16, [(10, 4), (20, 20)])
    assert found.shape == (2, 3, 2, 4)
    np.testing.assert_array_equal(found[0, 0], [[3, 6, 13, 10], [-2, -2, 18, 18]])
    np.testing.assert_array_equal(found[1, 2, 0], [35, 22, 45, 26])  # centre (40, 24)


def test_rcnn_encode_by_hand():
    # The anchor has centre (5, 10) and size 10 x 20, the box centre (15, 20) and size 20 x 20.
    anchor, box = np.array([0.0, 0, 10, 20]), np.array([5.0, 10, 25, 30])
    np.testing.assert_allclose(rcnn_encode(box, anchor), [1, 0.5, math.log(2), 0], atol=1e-6)
    weighted = rcnn_encode(box, anchor, weights=(10, 10, 5, 5))
    np.testing.assert_allclose(weighted, [10, 5, 5 * math.log(2), 0], atol=1e-5)
    np.testing.assert_allclose(rcnn_decode(weighted, anchor, weights=(10, 10, 5, 5)), box, atol=1e-5)


@given(SEEDS)
@FEW
def test_rcnn_decode_inverts_encode(seed):
    rng = np.random.default_rng(seed)
    low, other = rng.uniform(-50, 500, (2, 9, 2))
    box, anchor = (np.concatenate([c, c + rng.uniform(4, 90, (9, 2))], -1) for c in (low, other))
    for weights in ((1, 1, 1, 1), (10, 10, 5, 5)):
        offsets = rcnn_encode(box, anchor, weights=weights)
        np.testing.assert_allclose(rcnn_decode(offsets, anchor, weights=weights), box, atol=2e-3)


def test_padding_and_huge_outputs_stay_finite():
    points, box = jnp.zeros((1, 4)), jnp.array([[0.0, 0, 8, 8]])
    for a, b in ((points, box), (box, points), (points, points)):
        assert np.isfinite(rcnn_encode(a, b)).all()
        assert np.isfinite(jax.jit(jax.grad(lambda a, b: bx.rcnn_encode(a, b).sum()))(a, b)).all()
    wild = jnp.full((1, 4), 1e4)
    np.testing.assert_allclose(bx.to_centres(bx.rcnn_decode(wild, box))[0, 2:], 8 * 62.5, rtol=1e-3)
    wide = bx.to_centres(yolo_decode(wild.reshape(1, 1, 1, 4), [(8, 4)], stride=32))[..., 2:]
    np.testing.assert_allclose(wide.ravel(), [8 * 62.5, 4 * 62.5], rtol=1e-3)


def test_yolo_decode_by_hand():
    raw = np.zeros((2, 3, 2, 4), np.float32)
    raw[1, 2, 1] = [math.log(3), 0, math.log(2), 0]  # the sigmoid of log 3 is 3/4
    found = yolo_decode(raw, [(10, 4), (20, 20)], stride=16)
    np.testing.assert_allclose(found[0, 0], [[3, 6, 13, 10], [-2, -2, 18, 18]], atol=1e-5)
    np.testing.assert_allclose(found[1, 2, 1], [44 - 20, 24 - 10, 44 + 20, 24 + 10], atol=1e-4)


def test_yolo_encode_by_hand():
    boxes = np.array(
        [
            [3.0, 6, 13, 10],  # centre (8, 8): cell (0, 0), the flat anchor exactly
            [16, 16, 32, 32],  # centre (24, 24): cell (1, 1), the square anchor
            [15, 15, 33, 33],  # same cell and best anchor, not further left: gets the flat anchor
            [17, 17, 33, 33],  # same cell, with no anchor left: not assigned
            [38, 22, 58, 42],  # centre (48, 32) is the frame's corner: the last cell
            [50, 0, 60, 10],  # centre outside the frame
            [24, 8, 24, 12],  # no area
            [20, 0, 30, 4],  # not valid
        ]
    )
    valid = np.arange(8) < 7
    targets, matched = yolo_encode(boxes, valid, [(10, 4), (20, 20)], size=(2, 3), stride=16)
    expected = np.full((2, 3, 2), -1)
    expected[0, 0, 0], expected[1, 1, 1], expected[1, 1, 0], expected[1, 2, 1] = 0, 1, 2, 4
    np.testing.assert_array_equal(matched, expected)
    np.testing.assert_allclose(targets[0, 0, 0], [0.5, 0.5, 0, 0], atol=1e-6)
    np.testing.assert_allclose(targets[1, 1, 1], [0.5, 0.5, math.log(0.8), math.log(0.8)], atol=1e-6)
    np.testing.assert_allclose(targets[1, 1, 0], [0.5, 0.5, math.log(18 / 10), math.log(18 / 4)], atol=1e-6)
    np.testing.assert_allclose(targets[1, 2, 1], [1, 1, 0, 0], atol=1e-6)
    assert not targets[matched < 0].any()
    targets, matched = yolo_encode(EMPTY, valid[:0], [(10, 4)], size=(2, 3), stride=16)
    assert (matched == -1).all() and targets.shape == (2, 3, 1, 4) and not targets.any()


@given(SEEDS)
@FEW
def test_yolo_decode_inverts_encode(seed):
    rng = np.random.default_rng(seed)
    cells = rng.permutation(12)[:6]  # six cells of a 3 x 4 grid, with one box each
    centre = (np.stack([cells % 4, cells // 4], -1) + rng.uniform(0.05, 0.95, (6, 2))) * 32
    half = rng.uniform(4, 60, (6, 2)) / 2
    boxes, anchors = np.concatenate([centre - half, centre + half], -1), np.array([(10, 20), (40, 40), (50, 15)])
    targets, matched = yolo_encode(boxes, np.ones(6, bool), anchors, size=(3, 4), stride=32)
    assert sorted(matched[matched >= 0].tolist()) == [0, 1, 2, 3, 4, 5]
    share = np.clip(targets[..., :2], 1e-6, 1 - 1e-6)
    raw = np.concatenate([np.log(share / (1 - share)), targets[..., 2:]], -1)
    decoded = yolo_decode(raw, anchors, stride=32)
    np.testing.assert_allclose(decoded[matched >= 0], boxes[matched[matched >= 0]], atol=2e-3)
    for row, column, anchor in np.argwhere(matched >= 0):
        i = matched[row, column, anchor]
        assert cells[i] == 4 * row + column
        corners = lambda size: (0, 0, *size)
        shapes = [naive_iou(corners(2 * half[i]), corners(size)) for size in anchors]
        assert anchor == np.argmax(shapes)


@given(SEEDS)
@FEW
def test_yolo_encode_of_crowded_cells_matches_the_naive_loop(seed):
    rng = np.random.default_rng(seed)
    centre, sizes = rng.uniform(-2, 34, (9, 2)), rng.choice([4.0, 8, 20], (9, 2))
    boxes, valid = np.concatenate([centre - sizes / 2, centre + sizes / 2], -1).astype(np.float32), rng.random(9) < 0.9
    anchors = np.array([(4, 8), (8, 8), (8, 8), (20, 4)][: 1 + seed % 4], float)
    _, matched = yolo_encode(boxes, valid, anchors, size=(2, 2), stride=16)
    expected, corners = np.full((2, 2, len(anchors)), -1), lambda size: (0, 0, *size)
    waiting = [i for i in range(9) if valid[i] and (centre[i] >= 0).all() and (centre[i] <= 32).all()]
    while waiting:
        asked: dict[tuple, list[int]] = {}
        for i in waiting:
            column, row = np.minimum(centre[i] // 16, 1).astype(int)
            free = [a for a in range(len(anchors)) if expected[row, column, a] < 0]
            if free:
                best = max(free, key=lambda a: naive_iou(corners(sizes[i]), corners(anchors[a])))
                asked.setdefault((row, column, best), []).append(i)
        for place, those in asked.items():
            expected[place] = min(those, key=lambda i: centre[i, 0])
        waiting = [i for those in asked.values() for i in those if i not in expected]
    np.testing.assert_array_equal(matched, expected)


def test_kmeans_finds_the_clusters():
    rng = np.random.default_rng(0)
    means = np.array([(10, 10), (80, 20), (30, 60)])
    sizes = (means[:, None] * rng.uniform(0.9, 1.1, (3, 40, 2))).reshape(-1, 2)
    for seed in range(3):
        anchors, quality = kmeans_anchors(sizes, jax.random.key(seed), count=3, iterations=10)
        np.testing.assert_allclose(anchors, sizes.reshape(3, 40, 2).mean(1), rtol=1e-5)
        shapes = lambda s: np.concatenate([np.zeros_like(s), s], -1)
        np.testing.assert_allclose(quality, naive_ious(shapes(sizes), shapes(anchors)).max(-1).mean(), rtol=1e-5)


def test_kmeans_converges_and_is_deterministic():
    sizes = np.random.default_rng(1).uniform(5, 100, (50, 2))
    find = lambda sizes: kmeans_anchors(sizes, jax.random.key(4), count=4, iterations=60)[0]
    anchors = find(sizes)
    np.testing.assert_array_equal(anchors, find(sizes))
    pair, _ = kmeans_anchors(sizes[48:], jax.random.key(0), count=2, restarts=1)
    np.testing.assert_allclose(pair, sorted(sizes[48:].tolist(), key=np.prod), rtol=1e-6)
    # After convergence each anchor is the mean of the sizes that are nearest to it.
    shapes = lambda s: np.concatenate([np.zeros_like(s), s], -1)
    nearest = naive_ious(shapes(sizes), shapes(anchors)).argmax(-1)
    np.testing.assert_allclose(anchors, [sizes[nearest == i].mean(0) for i in range(4)], rtol=1e-4)
    # Identical sizes, like those of the spines' boxes.
    anchors, quality = kmeans_anchors(np.full((9, 2), 15.0), jax.random.key(0), count=3)
    np.testing.assert_allclose(anchors, 15, rtol=1e-6)
    np.testing.assert_allclose(quality, 1, rtol=1e-6)


def test_kmeans_returns_the_best_of_its_restarts():
    """A single start is also the first of 16; on sizes without clusters, one of the others ends better."""
    sizes = np.random.default_rng(1).uniform(5, 100, (60, 2))
    find = lambda restarts: kmeans_anchors(sizes, jax.random.key(0), count=5, restarts=restarts, iterations=3)[1]
    assert find(16) > find(1) + 1e-4


# Training targets


def naive_match(anchors, truth, valid, positive, negative):
    overlap = naive_ious(anchors, truth) * valid
    index, label = np.zeros(len(anchors), int), np.zeros(len(anchors), int)
    for i, row in enumerate(overlap):
        index[i] = row.argmax()
        label[i] = 1 if row.max() >= positive else 0 if row.max() < negative else -1
    claims = {}
    for j in range(len(truth)):
        i = overlap[:, j].argmax()
        if overlap[i, j] > 0 and (i not in claims or overlap[i, j] > overlap[i, claims[i]]):
            claims[i] = j
    for i, j in claims.items():
        index[i], label[i] = j, 1
    return index, label


@given(SEEDS)
@FEW
def test_match_agrees_with_the_naive_loop(seed):
    rng = np.random.default_rng(seed)
    anchors, truth, valid = draw_boxes(rng, 25), draw_boxes(rng, 4), rng.random(4) < 0.8
    index, label = match(anchors, truth, valid, positive=0.5, negative=0.125)
    expected_index, expected_label = naive_match(anchors, truth, valid, 0.5, 0.125)
    np.testing.assert_array_equal(label, expected_label)
    np.testing.assert_array_equal(index[label == 1], expected_index[expected_label == 1])


def test_match_by_hand():
    truth = np.array([[0.0, 0, 10, 10], [0, 0, 10, 4], [50, 50, 60, 60], [90, 90, 99, 99]])
    anchors = np.array(
        [
            [0.0, 0, 10, 8],  # IoU 0.8 with truth 0, 0.5 with truth 1
            [0, 0, 10, 5],  # IoU 0.5 with truth 0, but the best anchor of truth 1, with 0.8
            [0, 5, 10, 10],  # IoU 0.5 with truth 0: ignored
            [58, 50, 68, 60],  # IoU 1/9 with truth 2, which has no better anchor
            [0, 9, 10, 19],  # IoU 1/19 with truth 0: negative
        ]
    )
    index, label = match(anchors, truth, np.ones(4, bool))
    np.testing.assert_array_equal(label, [1, 1, -1, 1, 0])
    np.testing.assert_array_equal(index[label == 1], [0, 1, 2])
    np.testing.assert_array_equal(match(anchors, truth, np.ones(4, bool), force=False)[1], [1, 1, -1, 0, 0])
    # The third anchor's IoU is exactly 0.5: enough for positive=0.5, and not below negative=0.5.
    for low, high, expected in ((0.3, 0.5, 1), (0.5, 0.7, -1)):
        assert match(anchors, truth, np.ones(4, bool), positive=high, negative=low)[1][2] == expected
    # The second anchor overlaps truth 0 more (0.8) than truth 1 (0.5), but truth 1 has no better anchor.
    index, label = match(np.array([[0.0, 0, 10, 10], [0, 0, 10, 8]]), truth[:2], np.ones(2, bool))
    assert index.tolist() == [0, 1] and label.tolist() == [1, 1]
    # A single anchor is the best of both: it is assigned to the one that it overlaps more, although that is second.
    index, label = match(np.array([[0.0, 0, 10, 6]]), truth[:2], np.ones(2, bool))
    assert (int(index[0]), int(label[0])) == (1, 1)
    for nothing in (EMPTY, truth):
        np.testing.assert_array_equal(match(anchors, nothing, np.zeros(len(nothing), bool))[1], 0)


def naive_roi_align(features, boxes, size, sampling):
    """Computes RoIAlign from its definition: loops over bins, samples, neighbours, at indices (x - 0.5, y - 0.5)."""
    height, width, channels = features.shape
    result = np.zeros((len(boxes), *size, channels))

    def bilinear(y, x):
        if y < -1 or y > height or x < -1 or x > width:
            return np.zeros(channels)
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        top, left = min(int(y), max(height - 2, 0)), min(int(x), max(width - 2, 0))
        total = np.zeros(channels)
        for row, part in ((top, 1 - (y - top)), (min(top + 1, height - 1), y - top)):
            total += part * (1 - (x - left)) * features[row, left]
            total += part * (x - left) * features[row, min(left + 1, width - 1)]
        return total

    for n, (x0, y0, x1, y1) in enumerate(boxes):
        bin_h, bin_w = (y1 - y0) / size[0], (x1 - x0) / size[1]
        for i, j in np.ndindex(*size):
            for a, b in np.ndindex(sampling, sampling):
                y = y0 - 0.5 + bin_h * (i + (a + 0.5) / sampling)
                x = x0 - 0.5 + bin_w * (j + (b + 0.5) / sampling)
                result[n, i, j] += bilinear(y, x) / sampling**2
    return result


@given(SEEDS)
@FEW
def test_roi_align_matches_its_definition(seed):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(9, 12, 3)).astype(np.float32)
    low = rng.uniform(-14, 20, (12, 2))
    boxes = np.concatenate([low, low + rng.uniform(-2, 9, (12, 2))], -1)  # some outside the frame, some reversed
    boxes[0] = rng.uniform(0, 9)  # a point
    for size, sampling in (((3, 2), 2), ((2, 3), 1), ((1, 1), 3)):
        expected = naive_roi_align(features, boxes, size, sampling)
        np.testing.assert_allclose(roi_align(features, boxes, size=size, sampling=sampling), expected, atol=2e-5)
    thin = features[:1, :1]
    np.testing.assert_allclose(roi_align(thin, boxes, size=(2, 2)), naive_roi_align(thin, boxes, (2, 2), 2), atol=1e-5)
    assert roi_align(features, EMPTY).shape == (0, 7, 7, 3)


def test_roi_align_of_a_linear_map_is_exact():
    # Inside the frame, a linear map's mean over a bin is its value at the bin's centre.
    y, x = np.mgrid[:10, :14] + 0.5
    features = np.stack([3 * x - y, 2 * y + 1], -1)
    box = np.array([[2.2, 1.5, 11.3, 8.7]])
    centre_x, centre_y = 2.2 + 9.1 * (np.arange(4) + 0.5) / 4, 1.5 + 7.2 * (np.arange(3) + 0.5) / 3
    expected = np.stack([3 * centre_x - centre_y[:, None], np.broadcast_to(2 * centre_y[:, None] + 1, (3, 4))], -1)
    np.testing.assert_allclose(roi_align(features, box, size=(3, 4))[0], expected, atol=1e-4)


# Scores


def naive_pairs(nearness, scores, valid, truth_valid, least):
    found, taken = np.full(len(scores), -1), set()
    for i in sorted(np.flatnonzero(valid), key=lambda i: (-scores[i], i)):
        free = [j for j in np.flatnonzero(truth_valid) if j not in taken]
        if free and nearness[i, best := max(free, key=lambda j: (nearness[i, j], j))] >= least:
            found[i] = best
            taken.add(best)
    return found


@given(SEEDS)
@FEW
def test_pair_detections_matches_the_naive_loop(seed):
    rng = np.random.default_rng(seed)
    detections, truth = draw_boxes(rng, 2, 12), draw_boxes(rng, 2, 5)
    scores, valid, truth_valid = draw_scores(rng, 2, 12), rng.random((2, 12)) < 0.8, rng.random((2, 5)) < 0.8
    by_iou = pair_detections(detections, scores, valid, truth, truth_valid, iou=0.25)
    by_distance = pair_detections(detections, scores, valid, truth, truth_valid, within=5)
    for b in range(2):
        ious = naive_ious(detections[b], truth[b])
        np.testing.assert_array_equal(by_iou[b], naive_pairs(ious, scores[b], valid[b], truth_valid[b], 0.25))
        centres = [(boxes[b, :, :2] + boxes[b, :, 2:]).astype(float) / 2 for boxes in (detections, truth)]
        # In single precision, as in the library, so that ties are the same: of equal distances the last truth is taken.
        near = -np.linalg.norm(centres[0][:, None] - centres[1], axis=-1).astype(np.float32)
        np.testing.assert_array_equal(by_distance[b], naive_pairs(near, scores[b], valid[b], truth_valid[b], -5))


def squares(centres, side=15.0):
    centres = np.asarray(centres, float)
    return np.concatenate([centres - side / 2, centres + side / 2], -1)


def test_pair_detections_by_hand():
    yes = lambda boxes: np.ones(len(boxes), bool)
    truth = squares([(20, 20), (26, 20)])
    found = lambda boxes, scores, **rule: pair_detections(
        boxes, np.array(scores), yes(boxes), truth, yes(truth), **rule
    ).tolist()
    # IoU 9/21 with its truth: a hit at 0.4, a miss at 0.5. A distance of 6 pixels is within 6, one of 6.1 is not.
    assert found(squares([(14, 20)]), [0.5], iou=0.4) == [0]
    assert found(squares([(14, 20)]), [0.5], iou=0.5) == [-1]
    assert found(squares([(14, 20), (32.1, 20)]), [0.5, 0.5], within=6) == [0, -1]
    # The higher score takes the nearest truth, the other the free one (by VOC's rule it would be a false positive).
    assert found(squares([(21, 20), (20, 20)]), [0.4, 0.9], within=6) == [1, 0]
    assert found(squares([(21, 20), (20, 20)]), [0.9, 0.4], within=6) == [0, 1]
    # With two truths, the third detection is a false positive.
    assert found(squares([(20, 20), (26, 20), (23, 20)]), [0.9, 0.8, 0.7], within=6) == [0, 1, -1]
    for options in ({}, {"iou": 0.5, "within": 6}):
        with pytest.raises(ValueError, match="give exactly one"):
            found(truth, [1, 1], **options)


def test_pairing_without_detections_or_truth():
    truth = squares([(20, 20)])
    yes = np.ones(1, bool)
    for rule in ({"iou": 0.5}, {"within": 6}):
        pairs = partial(pair_detections, **rule)
        assert pairs(EMPTY, EMPTY[:, 0], yes[:0], truth, yes).shape == (0,)
        assert pairs(truth, np.ones(1), yes, EMPTY, yes[:0]).tolist() == [-1]
        assert pairs(truth, np.ones(1), yes, truth, ~yes).tolist() == [-1]
        assert pairs(truth, np.ones(1), ~yes, truth, yes).tolist() == [-1]


def test_a_score_threshold_does_not_change_other_pairs():
    data = draw_data_set(np.random.default_rng(5))
    scores, truth = data["scores"], (data["truth"], data["truth_valid"])
    everything = pair_detections(data["boxes"], scores, scores > 0, *truth, iou=0.5)
    above = pair_detections(data["boxes"], scores, scores >= 0.5, *truth, iou=0.5)
    assert (everything >= 0).sum() > (above >= 0).sum() > 0
    np.testing.assert_array_equal(above, np.where(scores >= 0.5, everything, -1))


# By descending score: hit, miss, hit; three truths. Precision 1, 1/2, 2/3; recall 1/3, 1/3, 2/3.
HITS = np.array([[True, False], [False, True]])
SCORES = np.array([[0.5, 0.99], [0.8, 0.9]])
VALID = np.array([[True, False], [True, True]])


def test_precision_recall_by_hand():
    found = precision_recall(HITS, SCORES, VALID, 3)
    np.testing.assert_allclose([found[n] for n in ("precision", "recall", "f1")], [2 / 3, 2 / 3, 2 / 3], rtol=1e-6)
    found = precision_recall(HITS, SCORES, VALID, 3, threshold=0.8)  # a score of exactly 0.8 counts
    np.testing.assert_allclose([found[n] for n in ("precision", "recall", "f1")], [1 / 2, 1 / 3, 2 / 5], rtol=1e-6)
    found = precision_recall(HITS, SCORES, VALID, 3, threshold=2)
    np.testing.assert_array_equal([found[n] for n in ("precision", "recall", "f1")], [np.nan, 0, 0])
    found = precision_recall(HITS, SCORES, ~VALID & VALID, 0)
    np.testing.assert_array_equal([found[n] for n in ("precision", "recall", "f1")], [np.nan] * 3)


def test_precision_recall_curve_by_hand():
    precision, recall, scores = bx.precision_recall_curve(HITS, SCORES, VALID, 3)
    np.testing.assert_allclose(precision, [1, 1 / 2, 2 / 3, np.nan], rtol=1e-6)
    np.testing.assert_allclose(recall, [1 / 3, 1 / 3, 2 / 3, np.nan], rtol=1e-6)
    np.testing.assert_allclose(scores, [0.9, 0.8, 0.5, np.nan], rtol=1e-6)


def test_average_precision_by_hand():
    # The best precision at a recall or a higher one: 1 up to recall 1/3, 2/3 up to recall 2/3, then 0. COCO has 34
    # recalls from 0 to 0.33, and 33 from 0.34 to 0.66.
    ap = partial(average_precision, HITS, SCORES, VALID)
    np.testing.assert_allclose(ap(3, rule="voc"), 1 / 3 + 2 / 9, rtol=1e-6)
    np.testing.assert_allclose(ap(3, rule="coco"), (34 + 33 * 2 / 3) / 101, rtol=1e-6)
    np.testing.assert_allclose(ap(2, rule="voc"), 1 / 2 + 1 / 3, rtol=1e-6)
    # With two truths the first hit reaches recall 0.5 exactly: precision 1 at 51 recalls, 2/3 at the other 50.
    np.testing.assert_allclose(ap(2, rule="coco"), (51 + 50 * 2 / 3) / 101, rtol=1e-6)
    # With 20 truths the seventh hit reaches recall 0.35 exactly, which a comparison in floating point may miss.
    first = np.arange(10) < 7
    np.testing.assert_allclose(average_precision(first, -np.arange(10), first | True, 20), 36 / 101, rtol=1e-6)
    for rule in ("coco", "voc"):
        assert np.isnan(ap(0, rule=rule))
        assert average_precision(HITS, SCORES, VALID & False, 3, rule=rule) == 0
        assert average_precision(HITS[:0], SCORES[:0], VALID[:0], 3, rule=rule) == 0
        assert average_precision(np.ones(3, bool), np.ones(3), np.ones(3, bool), 3, rule=rule) == pytest.approx(1)
    with pytest.raises(ValueError, match="11-point"):
        ap(3, rule="11-point")


def draw_data_set(rng, images=6, detections=9, truths=5, classes=3):
    """Draws noisy copies of the truth, false detections and padding; some are points or lines, some off any frame."""
    low = rng.uniform(-30, 90, (images, truths, 2))
    truth = np.concatenate([low, low + rng.uniform(10, 40, low.shape) * (rng.random(low.shape) < 0.9)], -1)
    sources = rng.integers(0, truths, (images, detections))
    boxes = np.take_along_axis(truth, sources[..., None], 1) + rng.normal(0, 3, (images, detections, 4))
    boxes[..., 2:] = np.maximum(boxes[..., 2:], boxes[..., :2])  # to pycocotools a reversed box has a negative area
    truth_classes = rng.integers(0, classes - 1, (images, truths))  # the last class has no truth
    same = rng.random(sources.shape) < 0.8
    kinds = np.where(same, np.take_along_axis(truth_classes, sources, 1), rng.integers(0, classes, sources.shape))
    return {
        "boxes": boxes,
        "scores": draw_scores(rng, images, detections),
        "valid": rng.random(sources.shape) < 0.85,
        "truth": truth,
        "truth_valid": rng.random(low.shape[:2]) < 0.85,
        "classes": kinds,
        "truth_classes": truth_classes,
    }


def coco_precision(data, classes):
    """Returns pycocotools' AP (T, C) of the data set, -1 for a class without truth."""
    coco, evaluation = (pytest.importorskip(f"pycocotools.{name}") for name in ("coco", "cocoeval"))
    as_row = lambda box: [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]
    truth, found = [], []
    for image, row in np.argwhere(data["truth_valid"]):
        box = as_row(data["truth"][image, row])
        kind = int(data["truth_classes"][image, row])
        one = {"id": len(truth) + 1, "image_id": int(image), "category_id": kind, "bbox": box}
        truth.append({**one, "area": box[2] * box[3], "iscrowd": 0})
    for image, row in np.argwhere(data["valid"]):
        box, score = as_row(data["boxes"][image, row]), float(data["scores"][image, row])
        kind = int(data["classes"][image, row])
        found.append({"image_id": int(image), "category_id": kind, "bbox": box, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        reference = coco.COCO()
        reference.dataset = {
            "images": [{"id": i} for i in range(len(data["boxes"]))],
            "categories": [{"id": i} for i in range(classes)],
            "annotations": truth,
        }
        reference.createIndex()
        run = evaluation.COCOeval(reference, reference.loadRes(found), "bbox")
        run.evaluate()
        run.accumulate()
    return run.eval["precision"][:, :, :, 0, -1].mean(1)  # all areas, 100 detections an image


def prime(number):
    return number > 1 and all(number % i for i in range(2, number))


def comparable(seed, draw):
    """Returns the first data set, from `seed` on, without recalls of whole hundredths, which pycocotools may miss."""

    def compares(data):
        counts = [(data["truth_valid"] & (data["truth_classes"] == c)).sum() for c in range(2)]
        return all(prime(n) and n != 2 and n != 5 for n in counts)

    drawn = (draw(np.random.default_rng(each)) for each in itertools.count(seed))
    return next(filter(compares, drawn))


@given(SEEDS)
@FEW
def test_mean_average_precision_matches_pycocotools(seed):
    data = comparable(seed, draw_data_set)
    reference = coco_precision(data, 3)
    found = mean_average_precision(**data, count=3)
    np.testing.assert_allclose(found["AP"], np.where(reference < 0, np.nan, reference), atol=1e-6)
    np.testing.assert_allclose(found["mAP"], reference[reference >= 0].mean(), atol=1e-6)
    assert np.isnan(found["AP"][:, 2]).all() and 0 < found["mAP"] < 1


def test_mean_average_precision_matches_its_definition():
    data = draw_data_set(np.random.default_rng(3))
    found = mean_average_precision(**data, count=3, thresholds=(0.4, 0.6), rule="voc")["AP"]
    for t, c in np.ndindex(2, 2):
        known = data["valid"] & (data["classes"] == c)
        real = data["truth_valid"] & (data["truth_classes"] == c)
        pairs = pair_detections(data["boxes"], data["scores"], known, data["truth"], real, iou=(0.4, 0.6)[t])
        hits = pairs >= 0
        # The area under the interpolated precision-recall curve, by definition.
        rank = sorted(zip(-data["scores"][known], range(known.sum()), hits[known], strict=True))
        hit = np.array([h for *_, h in rank])
        precision = hit.cumsum() / (np.arange(len(hit)) + 1)
        area = sum(precision[i:].max() for i in np.flatnonzero(hit)) / real.sum()
        np.testing.assert_allclose(found[t, c], area, rtol=1e-5)
    plain = {name: data[name] for name in ("boxes", "scores", "valid", "truth", "truth_valid")}
    one = mean_average_precision(**plain)
    assert one["AP"].shape == (10, 1)
    np.testing.assert_allclose(one["mAP"], metrics.mean(one["AP"]), rtol=1e-6)


# Tiles


@given(st.integers(1, 90), st.integers(1, 90), st.integers(2, 40), st.integers(2, 40), st.data())
def test_tiles_cover_an_image(height, width, tall, wide, data):
    overlap = data.draw(st.integers(0, min(tall, wide) - 1))
    found = bx.tiles((height, width), (tall, wide), overlap)
    tops, lefts = sorted({top for top, _ in found}), sorted({left for _, left in found})
    assert found == [(top, left) for top in tops for left in lefts]
    for starts, length, part in ((tops, height, tall), (lefts, width, wide)):
        assert starts[0] == 0 and starts[-1] == max(length - part, 0)
        assert all(0 < b - a <= part - overlap for a, b in itertools.pairwise(starts))
        # One tile fewer would not cover the side.
        assert len(starts) == 1 or (len(starts) - 2) * (part - overlap) + part < length


def test_tiles_by_hand():
    assert bx.tiles((100, 260), (100, 100), 20) == [(0, 0), (0, 80), (0, 160)]
    assert bx.tiles((100, 250), (100, 100), 20) == [(0, 0), (0, 75), (0, 150)]  # spaced evenly, not by 80 and 70
    assert bx.tiles((50, 60), (100, 100), 20) == [(0, 0)]
    for overlap in (-1, 64):
        with pytest.raises(ValueError, match=f"overlap={overlap}"):
            bx.tiles((300, 300), (64, 128), overlap)


# Several networks


def naive_vote(winners, boxes, weights, iou):
    votes = [[] for _ in winners]
    for n, box in enumerate(boxes):
        rivals = [(naive_iou(winner, box), k) for k, winner in enumerate(winners) if weights[k][n] > 0]
        best = max((overlap for overlap, _ in rivals), default=0)
        for overlap, k in rivals:
            if overlap > iou and overlap > best - 1e-6:  # equal in single precision
                votes[k].append((weights[k][n], np.float64(box)))
    return [
        sum(w * b for w, b in mine) / sum(w for w, _ in mine) if mine else winner
        for winner, mine in zip(winners, votes, strict=True)
    ]


@given(SEEDS)
@FEW
def test_vote_matches_the_naive_loop(seed):
    rng = np.random.default_rng(seed)
    winners, boxes = draw_boxes(rng, 4), draw_boxes(rng, 12)
    weights = draw_scores(rng, 4, 12) * (rng.random((4, 12)) < 0.7)
    expected = naive_vote(winners, boxes, weights, 0.25)
    np.testing.assert_allclose(jax.jit(bx.vote, static_argnames="iou")(winners, boxes, weights, iou=0.25), expected, rtol=1e-5, atol=1e-5)  # fmt: skip
    gradient = jax.grad(lambda b: bx.vote(winners, b, weights, iou=0.25).sum())(jnp.asarray(boxes))
    assert np.isfinite(gradient).all()


def test_vote_by_hand():
    # The second box is on the winner's object, with a third of their total weight; the third box is elsewhere.
    boxes = np.array([[0, 0, 10, 10], [3, 0, 13, 10], [30, 30, 40, 40]])
    found = bx.vote(boxes[:1], boxes, np.array([[0.8, 0.4, 0.9]]), iou=0.5)
    np.testing.assert_allclose(found, [[1, 0, 11, 10]], rtol=1e-6)
    # At coordinates beyond 4,000 pixels, where half precision would be off by two.
    far = bx.vote(boxes[:1] + 4000, boxes + 4000, np.array([[0.8, 0.4, 0.9]]), iou=0.5)
    np.testing.assert_allclose(far, found + 4000, atol=1e-3)
    np.testing.assert_array_equal(bx.vote(boxes[:1], boxes, np.zeros((1, 3)), iou=0.5), boxes[:1])
    for kind in (jnp.bfloat16, jnp.float16):  # scores of a network in half precision
        half = bx.vote(boxes[:1] + 4000, boxes + 4000, jnp.array([[0.8, 0.4, 0.9]], kind), iou=0.5)
        np.testing.assert_allclose(half, far, atol=0.02)


def test_touching_objects_do_not_vote_for_each_other():
    # Two objects with an IoU of 3/17, each with a lower-scoring box a pixel to its right.
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [7, 0, 17, 10], [8, 0, 18, 10]], np.float32)
    weights = np.tile(np.float32([0.9, 0.6, 0.85, 0.5]), (2, 1))
    found = bx.vote(boxes[[0, 2]], boxes, weights, iou=0.17)
    np.testing.assert_allclose(found[:, 0], [0.6 / 1.5, (7 * 0.85 + 8 * 0.5) / 1.35], rtol=1e-6)
    both = agreed(np.stack([boxes, boxes]), weights, np.zeros((2, 4), int), iou=0.2)
    np.testing.assert_allclose(both[1], [0.9, 0.85, 0, 0], rtol=1e-6)
    once = agreed(*(np.stack([a[:2], a[:2]]) for a in both), iou=0.2)
    np.testing.assert_allclose(once[1], [0.9, 0.85], rtol=1e-6)


def test_a_nan_box_has_no_vote():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [np.nan, 0, np.inf, 10]], np.float32)
    clean = bx.vote(boxes[:1], boxes[:2], np.float32([[0.9, 0.6]]), iou=0.5)
    for weight in (0, 0.7):
        found = bx.vote(boxes[:1], boxes, np.float32([[0.9, 0.6, weight]]), iou=0.5)
        np.testing.assert_array_equal(found, clean)
    for bad in (0, np.nan):
        found, scores, _ = agreed(boxes[None], np.float32([[0.9, 0.6, bad]]), np.zeros((1, 3), int), iou=0.5)
        np.testing.assert_array_equal(found[0], clean[0])
        np.testing.assert_allclose(scores, [0.9, 0, 0], rtol=1e-6)


def naive_agreed(boxes, scores, classes, iou):
    left = [(n, k) for n, k in np.ndindex(scores.shape) if scores[n, k] > 0]
    found, chosen = [], []
    while left:
        best = max(left, key=lambda at: scores[at])
        near = [
            a
            for a in np.ndindex(scores.shape)
            if a == best or (classes[a] == classes[best] and naive_iou(boxes[best], boxes[a]) > iou)
        ]
        each = [max([scores[a] for a in near if a[0] == n], default=0) for n in range(len(scores))]
        found.append(np.mean(each))
        chosen.append(best)
        left = [a for a in left if a not in near]
    weights = [(scores * (classes == classes[best])).ravel() for best in chosen]
    placed = naive_vote([boxes[best] for best in chosen], boxes.reshape(-1, 4), weights, iou)
    return [(m, *p, classes[best]) for m, p, best in zip(found, placed, chosen, strict=True)]


@FEW
@given(SEEDS)
def test_merge_networks_matches_the_naive_loop(seed):
    rng = np.random.default_rng(seed)
    # Three networks see four objects, each at a slightly different place, but for one miss (score 0); padded to 12.
    here, there = draw_boxes(rng, 4), rng.normal(0, 2, (3, 4, 4))
    boxes = np.zeros((3, 12, 4))
    boxes[:, :4] = np.sort((here + there).reshape(3, 4, 2, 2), axis=2).reshape(3, 4, 4)
    scores, classes = np.zeros((3, 12)), np.zeros((3, 12), int)
    scores[:, :4], classes[:, :4] = rng.permutation(12).reshape(3, 4) / 12, rng.integers(0, 2, 4)
    found, mean, labels = agreed(boxes, scores, classes, iou=0.25)
    expected = naive_agreed(boxes, scores, classes, 0.25)
    known = [(m, *b, c) for m, b, c in zip(mean, found, labels, strict=True) if m > 0]
    ordered = lambda rows: sorted(rows, key=lambda row: np.round(row, 3).tolist())  # mean scores may tie in float32
    np.testing.assert_allclose(ordered(known), ordered(expected), rtol=1e-5)
    assert (np.diff(mean) <= 0).all()


def test_merge_networks_by_hand():
    # Both networks see one square, a pixel apart, and only the first the other; the fourth box (score 0) is padding.
    boxes = np.array([[[0, 0, 10, 10], [50, 50, 60, 60]], [[1, 0, 11, 10], [50, 50, 60, 60]]], float)
    found, scores, classes = agreed(boxes, np.array([[0.9, 0.5], [0.7, 0.0]]), np.array([[0, 0], [0, 1]]), iou=0.4)
    np.testing.assert_allclose(scores, [0.8, 0.25])
    np.testing.assert_allclose(found, [[0.7 / 1.6, 0, 10 + 0.7 / 1.6, 10], [50, 50, 60, 60]], rtol=1e-6)
    assert classes.tolist() == [0, 0]


def test_an_iou_of_exactly_the_threshold_means_two_objects():
    # The second box is half of the first: IoU 0.5. With room for one, two objects leave the better, averaged with 0.
    boxes = np.array([[[0, 0, 10, 10]], [[0, 0, 10, 5]]], float)
    scores, classes = np.array([[0.8], [0.6]]), np.zeros((2, 1), int)
    np.testing.assert_allclose(agreed(boxes, scores, classes, iou=0.5)[1], [0.8 / 2], rtol=1e-6)
    np.testing.assert_allclose(agreed(boxes, scores, classes, iou=0.49)[1], [(0.8 + 0.6) / 2], rtol=1e-6)


def test_a_box_without_area_keeps_its_score():
    """Its IoU is 0 even with itself."""
    _, scores, _ = agreed(np.full((1, 1, 4), 5.0), np.array([[0.8]]), np.zeros((1, 1), int), iou=0.5)
    np.testing.assert_allclose(scores, [0.8], rtol=1e-6)


# Ways to run


def cases():
    rng = np.random.default_rng(7)
    boxes, other, scores = draw_boxes(rng, 10), draw_boxes(rng, 10), draw_scores(rng, 10)
    valid, labels = rng.random(10) < 0.8, rng.integers(-1, 2, 10)
    raw = rng.normal(size=(2, 3, 2, 4)).astype(np.float32)
    anchors, features = np.array([(10.0, 4), (20, 20)]), rng.normal(size=(6, 8, 2)).astype(np.float32)
    yield "iou", bx.iou, (boxes, other)
    yield "clip", partial(bx.clip, size=(9, 12)), (boxes,)
    yield "nms", partial(bx.nms, limit=8), (boxes, scores)
    yield "soft_nms", partial(bx.soft_nms, limit=8), (boxes, scores)
    yield "merge_networks", partial(bx.merge_networks, iou=0.3), (boxes[None], scores[None], labels[None])
    yield "rcnn_encode", bx.rcnn_encode, (boxes, other)
    yield "rcnn_decode", bx.rcnn_decode, (scores[:, None] * boxes / 9, other)
    yield "yolo_decode", partial(bx.yolo_decode, anchors=anchors, stride=8), (raw,)
    yield "yolo_encode", partial(bx.yolo_encode, anchors=anchors, size=(2, 3), stride=8), (boxes, valid)
    yield "match", bx.match, (boxes, other, valid)
    yield "roi_align", partial(bx.roi_align, size=(2, 2)), (features, boxes)
    yield "pair_detections", partial(bx.pair_detections, iou=0.25), (boxes, scores, valid, other, valid)
    yield "curve", bx.precision_recall_curve, (valid, scores, valid, np.int32(9))
    yield "average_precision", bx.average_precision, (valid, scores, valid, np.int32(9))


@pytest.mark.parametrize("function, arguments", [pytest.param(f, a, id=n) for n, f, a in cases()])
def test_eager_jit_and_vmap_agree(function, arguments):
    eager = jax.tree.leaves(function(*arguments))
    jitted = jax.tree.leaves(jax.jit(function)(*arguments))
    # The second item of the batch is the first one flipped along all its axes.
    batched = jax.jit(jax.vmap(function))(*(np.stack([a, np.flip(a)]) for a in arguments))
    for one, two, three in zip(eager, jitted, jax.tree.leaves(batched), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(one, three[0], rtol=1e-5, atol=1e-5)


def test_equally_near_truths_are_paired_as_in_pycocotools():
    """Boxes with integer corners often have the same IoU with two truths: COCO's rule takes the last."""
    truth, found = np.array([[[0.0, 0, 4, 4], [2, 0, 6, 4]]]), np.array([[[1.0, 0, 5, 4], [0, 0, 4, 4]]])
    scores, known = np.array([[0.9, 0.8]]), np.ones((1, 2), bool)
    assert pair_detections(found, scores, known, truth, known, iou=0.5).tolist() == [[1, 0]]

    def of_whole_pixels(rng):
        data = draw_data_set(rng, images=4)
        for key in ("truth", "boxes"):
            low = rng.integers(0, 8, (*data[key].shape[:2], 2))
            data[key] = np.concatenate([low, low + rng.integers(2, 6, low.shape)], -1).astype(float)
        return data

    for seed in range(6):
        data = comparable(1000 * seed, of_whole_pixels)
        reference = coco_precision(data, 3)
        found = mean_average_precision(**data, count=3)
        np.testing.assert_allclose(found["AP"], np.where(reference < 0, np.nan, reference), atol=1e-6)


def test_classes_without_their_count_are_refused():
    box, one, yes = jnp.array([[[0, 0, 10, 10.0]]]), jnp.ones((1, 1)), jnp.ones((1, 1), bool)
    with pytest.raises(ValueError, match="give count, the number of classes"):
        bx.mean_average_precision(box, one, yes, box, yes, classes=jnp.ones((1, 1), jnp.int32))


def test_overlaps_on_a_threshold_are_hits_with_and_without_x64():
    box, whole = np.float32([[[0, 0, 10, 7]]]), np.float32([[[0, 0, 10, 10]]])
    one, yes = np.ones((1, 1), np.float32), np.ones((1, 1), bool)
    for wide in (False, True):
        with jax.enable_x64(wide):
            assert bx.mean_average_precision(box, one, yes, whole, yes)["mAP"] == 0.5  # hits at 0.5, 0.55 ... 0.7
            assert bx.keypoint_average_precision(np.float32([0.7]), np.ones(1))["mAP"] == 0.5


def test_the_limit_counts_objects_and_not_candidates():
    """Of eight boxes on one object and one on another, a limit of two keeps one of each."""
    found = heads.suppressed(
        jnp.array([[0, 0, 10, 10.0]] * 8 + [[50, 50, 60, 60.0]]), jnp.array([0.9] * 8 + [0.8]), jnp.zeros(9, jnp.int32),
        limit=2, overlap=0.5,
    )  # fmt: skip
    np.testing.assert_allclose(found.scores, [0.9, 0.8])
    maps = np.full((1, 16, 16, 5), -9.0, np.float32)
    maps[..., 1:3], maps[..., 3:] = 0.5, 0
    maps[0, 4, 4, 0], maps[0, 4, 6, 0], maps[0, 12, 12, 0] = 3, 2.5, 2
    head = heads.build({"name": "centre", "limit": 2}, size=(64, 64), classes=1, sizes=(30, 30))
    np.testing.assert_allclose(head.decode(jnp.asarray(maps)).scores, [[0.9526, 0.8808]], atol=1e-4)
