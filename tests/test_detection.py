"""Detection: tiles and their boxes, joining, thresholds and scores by hand, the heads against naive computations."""

import collections
import csv
import dataclasses
import functools
import json
import re
import runpy
import shutil
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from jaxmarks import caveats, detection, evaluate, heads, main, predict, report, runs, steps, tasks, train
from jaxmarks import config as configs
from jaxmarks.data import fitting, folder, loading, objects, splits
from jaxmarks.data.formats import boxes as box_files
from jaxmarks.data.formats.boxes import BoxAnnotation
from jaxmarks.heads import Detections
from jaxmarks.ops import boxes as box_ops

ROOT = Path(__file__).parent.parent
get_config = runpy.run_path(str(ROOT / "configs" / "spines.py"))["get_config"]


def squares(size, corners, side=9):
    """A dark image with bright squares at (x, y), and their boxes."""
    image = np.zeros((*size, 3), np.uint8)
    for x, y in corners:
        image[y : y + side, x : x + side] = 255
    return image, np.array([[x, y, x + side, y + side] for x, y in corners], float).reshape(-1, 4)


def seer(size):
    """A detector that sees squares: the boxes of bright regions, larger ones first, four at most."""

    def call(networks, images):
        del networks
        found = np.zeros((len(images), 4, 4), np.float32), np.zeros((len(images), 4), np.float32)
        for n, image in enumerate(np.asarray(images)):
            labelled, _ = ndimage.label(image[..., 0] > 127)
            regions = sorted(
                ndimage.find_objects(labelled), key=lambda r: -(r[0].stop - r[0].start) * (r[1].stop - r[1].start)
            )
            for k, (rows, columns) in enumerate(regions[:4]):
                found[0][n, k] = columns.start, rows.start, columns.stop, rows.stop
                found[1][n, k] = 0.9 - 0.1 * k
        return heads.Detections(*found, np.zeros(found[1].shape, np.int32))

    return call


@given(
    source=st.tuples(st.integers(5, 90), st.integers(5, 90)), size=st.tuples(st.integers(20, 50), st.integers(20, 50)),
    scale=st.sampled_from([0.5, 1.0, 2.0]), fit=st.sampled_from(["tile", "pad", "stretch"]),
)  # fmt: skip
def test_tiles_cover_the_image_and_map_back_to_it(source, size, scale, fit):
    y, x = np.mgrid[: source[0], : source[1]]
    image = np.stack([2 * x, 2 * y, np.full_like(x, 200)], axis=-1).astype(np.uint8)
    seen = np.zeros(source, bool)
    for tile, matrix, of in objects.cut(image, size, fit=fit, scale=scale, overlap=5):
        assert (of, tile.shape) == (source, (*size, 3))
        ys, xs = np.mgrid[: size[0], : size[1]] + 0.5
        u, v = xs * matrix[0, 0] + matrix[0, 2], ys * matrix[1, 1] + matrix[1, 2]
        inside = (u > 0) & (u < source[1]) & (v > 0) & (v < source[0])
        seen[np.floor(v[inside]).astype(int), np.floor(u[inside]).astype(int)] = True
        deep = (u > 2) & (u < source[1] - 2) & (v > 2) & (v < source[0] - 2)
        # A pixel shows the colour of its place: twice the coordinate of a pixel's centre, less a half.
        np.testing.assert_allclose(tile[deep][:, 0], 2 * (u[deep] - 0.5), atol=1 + 2 * matrix[0, 0])
        np.testing.assert_allclose(tile[deep][:, 1], 2 * (v[deep] - 0.5), atol=1 + 2 * matrix[1, 1])
    if fit == "tile" and scale >= 1:
        assert seen.all()


def test_a_box_belongs_to_the_tiles_that_hold_its_centre():
    image, boxes = squares((60, 100), [(2, 3), (46, 20), (88, 45)])
    annotation = BoxAnnotation("a.png", boxes, ("s", "t", "s"))
    tiles = list(objects.cut(image, (60, 60), fit="tile", overlap=20))
    found = objects.samples([(annotation, 0, *tile) for tile in tiles], (60, 60), ("s", "t"))
    assert found.labels.tolist() == [[0, 1], [1, 0]]
    for n in range(2):
        for box in found.boxes[n]:
            x0, y0, x1, y1 = box.astype(int)
            assert (found.images[n, y0:y1, x0:x1] == 255).all()


@pytest.mark.parametrize("size", [(20, 20), (130, 90), (700, 900), (3000, 4000)])
def test_objects_of_an_image_of_any_size_are_found_once(size):
    rng = np.random.default_rng(0)
    grid = [(x, y) for y in range(2, size[0] - 10, 48) for x in range(2, size[1] - 10, 48)]
    corners = [tuple(np.add(p, rng.integers(0, 2, 2)).tolist()) for p in grid]
    image, boxes = squares(size, corners)
    annotation = BoxAnnotation("a.png", boxes, ("s",) * len(boxes))
    tiles = [(annotation, 0, *tile) for tile in objects.cut(image, (96, 96), fit="tile", overlap=24)]
    samples = objects.samples(tiles, (96, 96), ("s",))
    # The seer names four of a tile: enough for this grid.
    result = detection.predict(seer((96, 96)), [], samples)
    names, found, scores, _ = result
    assert names.tolist() == ["a.png"]
    whole = found[0][scores[0] > 0]
    # Squares that a tile's border cuts are seen in part there and whole elsewhere.
    result = detection.with_truth(result, {"a.png": annotation}, ("s",), 0)
    assert len(whole) == len(boxes)
    assert detection.recalled(result, np.array([0.0])).all()


@pytest.mark.parametrize("turned", [False, True])
def test_pieces_at_the_borders_of_two_tiles_give_way(turned):
    """Tiles 96 wide at 0 and 72 share 24: each shows three of nine pixels of a square that the other shows whole."""
    size, corners = (96, 168), [(66, 20), (93, 50)]
    if turned:
        size, corners = size[::-1], [corner[::-1] for corner in corners]
    image, boxes = squares(size, corners)
    annotation = BoxAnnotation("a.png", boxes, ("s",) * 2)
    tiles = [(annotation, 0, *tile) for tile in objects.cut(image, (96, 96), fit="tile", overlap=24)]
    assert len(tiles) == 2
    found = detection.predict(seer((96, 96)), [], objects.samples(tiles, (96, 96), ("s",)))
    assert sorted(found.boxes[0][found.scores[0] > 0].tolist()) == sorted(boxes.tolist())


def test_networks_are_decoded_each_by_itself():
    # What two networks say of their own proposals cannot be averaged: the mean of these boxes is where nothing is.
    decoded = lambda variables, images, train: Detections(*(jnp.asarray(v)[None] for v in variables))
    head = heads.Head(
        layer=None, targets=None, loss=None, decode=lambda outputs: outputs, join=heads.detection_merger(0.4)
    )
    task = steps.Task(decoded, head, augment=None, plain=lambda batch: batch)
    near = [[[0.0, 0, 10, 10]], [0.9], [0]]
    far = [[[50.0, 50, 60, 60]], [0.8], [0]]
    found = steps.predictor(task)([near, near, far], jnp.zeros((1, 64, 64, 3), jnp.uint8))
    np.testing.assert_allclose(found.boxes, [near[0]])
    np.testing.assert_allclose(found.scores, [[0.6]])


def test_cut_off_by_hand():
    # Two tiles side by side of a photograph 100 high and 180 wide, which they share 20 columns of.
    boxes = np.tile(np.array([[0.0, 5, 10, 20], [95, 5, 100, 20], [40, 0, 50, 100], [1, 5, 99, 20]]), (2, 1, 1))
    found = detection.cut_off(boxes, np.array([(0, 0), (0, 80)]), np.array([(100, 180)] * 2), (100, 100))
    np.testing.assert_array_equal(found, [[False, True, False, False], [True, False, False, False]])


def test_pieces_at_a_tiles_border_give_way_to_the_whole_object():
    # Two tiles 100 wide that share 20 columns: a square of 15 lies over the first's border, which shows a third of it.
    boxes = np.array([[[95, 40, 100, 55], [10, 10, 25, 25]], [[95, 40, 110, 55], [0, 0, 0, 0]]], float)
    scores, classes = np.array([[0.9, 0.8], [0.7, 0.0]]), np.zeros((2, 2), int)
    cut = np.array([[True, False], [False, False]])
    merged = functools.partial(detection.merged, overlap=0.4)
    found, values, _ = merged(boxes, scores, classes, cut)
    np.testing.assert_allclose(found, [[10, 10, 25, 25], [95, 40, 110, 55]])
    np.testing.assert_allclose(values, [0.8, 0.7])
    # Boxes of one tile leave each other alone.
    assert len(merged(boxes[:1, [0, 0]], scores[:1], classes[:1], cut[:1])[0]) == 2
    # Where no tile saw it whole the piece is all there is; an object of another class does not cover it.
    assert len(merged(boxes, scores * [[1, 1], [0, 0]], classes, cut)[0]) == 2
    assert len(merged(boxes, scores, classes + [[0, 0], [1, 0]], cut)[0]) == 3
    # Nor does one that is hardly believed: the piece would be lost to every threshold.
    _, values, _ = merged(boxes, np.array([[0.9, 0.8], [0.44, 0.0]]), classes, cut)
    assert values.tolist() == [0.9, 0.8, 0.44]
    # Of boxes that both tiles saw whole the better one stays where they overlap by more than two objects do: 5 / 25.
    both = np.array([[[40, 40, 55, 55]], [[50, 40, 65, 55]]], float), np.array([[0.9], [0.8]])
    for overlap, left in ((0.21, 2), (0.19, 1)):
        assert len(detection.merged(*both, np.zeros((2, 1), int), np.zeros((2, 1), bool), overlap=overlap)[0]) == left
        # So they do where a border may have cut one, of which the other covers a third.
        assert (
            len(detection.merged(*both, np.zeros((2, 1), int), np.array([[0], [1]], bool), overlap=overlap)[0]) == left
        )


def by_hand():
    """Two images: two of three objects found, and a false alarm 7 px from the third; one found 5 px beside it."""
    true = np.zeros((2, 3, 4))
    true[0] = [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]]
    true[1, 0] = [0, 0, 10, 10]
    labels = np.array([[0, 0, 0], [0, -1, -1]])
    boxes, scores = np.zeros((2, 3, 4)), np.zeros((2, 3))
    boxes[0] = [[1, 0, 11, 10], [47, 0, 57, 10], [20, 0, 30, 12]]
    scores[0] = [0.9, 0.6, 0.4]
    boxes[1, 0], scores[1, 0] = [5, 0, 15, 10], 0.3
    return detection.Objects(np.array(["a", "b"]), np.zeros(2, int), boxes, scores, np.zeros((2, 3), int), true, labels)


def test_scores_by_hand():
    found = by_hand()
    summary = detection.summarise(found, 0.35, ("s",))
    # Above 0.35: a hit (IoU 9/11), a false alarm, a hit (IoU 10/12); four objects.
    np.testing.assert_allclose([summary[k] for k in ("precision", "recall", "f1")], [2 / 3, 1 / 2, 4 / 7])
    np.testing.assert_allclose(summary["f1_golden"], 4 / 7)
    # At 0.25 there is the fourth: no hit at an IoU of 1/3, but its centre is within 6 px, as the false alarm's is not.
    lower = detection.summarise(found, 0.25, ("s",))
    np.testing.assert_allclose([lower["f1"], lower["f1_golden"]], [4 / 8, 6 / 8])
    assert detection.summarise(found, 0.0, ("s",))["detections"] == 4  # what scores 0 is none at any threshold
    assert detection.recalled(found, np.array([0.35, 0.35])).tolist() == [[True, True, False], [False, False, False]]
    # F1 with one, two, three and four detections: 2/5, 2/6, 4/7, 4/8. The last is less than a fifth of 3/7 below the
    # one before, and as good: the middle of 0.4 and 0.
    np.testing.assert_allclose(detection.best_threshold(found), 0.2)
    # All are found before anything false is: below 0.9 and above 0.2 the F1 is 1, so the threshold is the middle; three
    # detections, an F1 of 6/7, are not as good.
    perfect = found._replace(boxes=np.pad(found.true, ((0, 0), (0, 2), (0, 0))), scores=np.array([[0.95, 0.92, 0.91, 0.2, 0], [0.9, 0, 0, 0, 0]]),
                             classes=np.zeros((2, 5), int))  # fmt: skip
    np.testing.assert_allclose(detection.best_threshold(perfect), 0.55)
    # AP by COCO: precision 1 up to a recall of 1/4 (26 of 101 points), 2/3 up to 1/2 (25 more).
    np.testing.assert_allclose(summary["map50"], (26 + 25 * 2 / 3) / 101, rtol=1e-5)
    assert np.isnan(detection.summarise(found, 0.95, ("s",))["precision"])


def test_no_threshold_lies_between_equal_scores():
    true = np.float64([[[0, 0, 10, 10], [20, 0, 30, 10]]])
    far = [[x, 50, x + 10, 60] for x in (0, 20, 40)]
    found = detection.Objects(
        np.array(["a"]), np.zeros(1, int), np.float64([[*true[0], *far]]), np.array([[0.95, 0.9, 0.9, 0.9, 0.9]]),
        np.zeros((1, 5), int), true, np.zeros((1, 2), int),
    )  # fmt: skip
    # All five: 2 * 2 / (5 + 2) = 0.571; the first alone: 2 / (1 + 2) = 0.667.
    assert detection.best_threshold(found) == pytest.approx((0.95 + 0.9) / 2)


def naive_threshold(scores, right, total):
    """With each number of the best detections in turn: how far around the best F1 it is nearly as good."""
    ranked = [pair for pair in sorted(zip(scores.ravel(), right.ravel(), strict=True), reverse=True) if pair[0] > 0]
    f1 = [2 * sum(hit for _, hit in ranked[: n + 1]) / (n + 1 + total) for n in range(len(ranked))]
    best = max(f1, default=0)
    if best == 0:
        return 0.5
    least = best - 0.2 * min(best, 1 - best)
    first = last = f1.index(best)
    while first > 0 and f1[first - 1] >= least:
        first -= 1
    while last + 1 < len(f1) and f1[last + 1] >= least:
        last += 1
    following = ranked[last + 1][0] if last + 1 < len(ranked) else 0
    return (ranked[first][0] + following) / 2


@given(seed=st.integers(0, 200))
def test_best_threshold_against_trying_all(seed):
    rng = np.random.default_rng(seed)
    true = np.zeros((2, 4, 4))
    true[:, :, :2] = rng.integers(0, 5, (2, 4, 2)) * 12
    true[:, :, 2:] = true[:, :, :2] + 10
    scores = (rng.permutation(20) / 20).reshape(2, 10) * (rng.random((2, 10)) > 0.2)  # no two alike
    pick = rng.integers(0, 4, (2, 10))
    boxes = np.take_along_axis(true, pick[..., None], 1) + rng.normal(size=(2, 10, 1)) * 3
    classes, labels = np.zeros((2, 10), int), np.zeros((2, 4), int)
    found = detection.Objects(np.array(["a", "b"]), np.zeros(2, int), boxes, scores, classes, true, labels)
    assert detection.best_threshold(found) == pytest.approx(naive_threshold(scores, detection.hits(found), 8))


def test_folds_of_different_widths_are_joined():
    one = by_hand()
    # Of the other fold one detection and two objects at most, where this one has three of each.
    other = one._replace(
        boxes=one.boxes[:, :1], scores=one.scores[:, :1], classes=one.classes[:, :1], fold=np.ones(2, int),
        true=one.true[:, :2], labels=one.labels[:, :2],
    )  # fmt: skip
    both = detection.join([one, other])
    assert both.boxes.shape == both.true.shape == (4, 3, 4)
    assert (both.scores[2:, 1:] == 0).all()
    assert both.labels.tolist() == [[0, 0, 0], [0, -1, -1], [0, 0, -1], [0, -1, -1]]


def two_classes():
    """An object of each of two classes in one image; both are found in place, and said to be of the second."""
    true = np.array([[[0, 0, 10, 10], [40, 0, 50, 10]]], float)
    scores, classes, labels = np.array([[0.9, 0.8]]), np.array([[1, 1]]), np.array([[0, 1]])
    return detection.Objects(np.array(["a"]), np.zeros(1, int), true.copy(), scores, classes, true, labels)


# Beside each other by d pixels boxes of 10x10 overlap with an IoU of (10 - d) / (10 + d): 0.41, 0.39; 0.51, 0.49.
@pytest.mark.parametrize(
    ("far", "f1", "map50"), [(4.17, 1, 0), (4.4, 0, 0), (3.24, 1, 1), (3.43, 1, 0)], ids="0.41 0.39 0.51 0.49".split()
)
def test_what_counts_as_found_by_overlap(far, f1, map50):
    true = np.array([[[20.0, 20, 30, 30]]])
    one = np.ones((1, 1))
    found = detection.Objects(np.array(["a"]), np.zeros(1, int), true + [far, 0, far, 0], one, 0 * one, true, 0 * one)
    summary = detection.summarise(found, 0.5, ("p",))
    assert (summary["f1"], summary["map50"]) == (f1, pytest.approx(map50))
    assert summary["map"] == pytest.approx(map50 / 10)  # 0.51 is enough for one of COCO's ten thresholds


@pytest.mark.parametrize(("far", "f1"), [(5.95, 1), (6.05, 0)])
def test_what_counts_as_found_by_centres(far, f1):
    true = np.array([[[20.0, 20, 30, 30]]])
    one = np.ones((1, 1))
    aside = np.tile(np.array([0.6, 0.8]) * far, 2)
    found = detection.Objects(np.array(["a"]), np.zeros(1, int), true + aside, one, 0 * one, true, 0 * one)
    assert detection.summarise(found, 0.5, ("p",))["f1_golden"] == f1


def test_a_box_of_another_class_is_no_hit():
    found = two_classes()
    assert detection.hits(found).tolist() == [[False, True]]
    summary = detection.summarise(found, 0.5, ("p", "q"))
    assert summary["f1"] == 0.5
    # Of q a false alarm comes before the hit: a precision of 1/2 at every recall.
    both = {key: [one[key] for one in summary["by_class"].values()] for key in summary["by_class"]["p"]}
    assert both["objects"] == [1, 1] and both["detections"] == [0, 2] and both["ap50"] == [0, pytest.approx(1 / 2)]
    assert both["recall"] == [0, 1] and both["precision"] == [pytest.approx(np.nan, nan_ok=True), 1 / 2]
    assert both["f1"] == [0, pytest.approx(2 / 3)]


def test_one_fold_with_objects_has_no_deviation():
    found = two_classes()
    empty = found._replace(
        name=np.array(["b"]), fold=np.ones(1, int), scores=0 * found.scores, labels=0 * found.labels - 1
    )
    both = detection.join([found, empty])
    for folds in ([0, 1], [0, 0]):
        both = both._replace(fold=np.array(folds))
        spread = detection.by_fold(both, np.full(2, 0.5), ("p", "q")).get("std_over_folds_f1", np.nan)
        assert np.isnan(spread)
    twice = detection.join([found, found._replace(fold=np.ones(1, int))])
    assert detection.by_fold(twice, np.full(2, 0.5), ("p", "q"))["std_over_folds_f1"] == 0


def test_a_class_that_is_nowhere_found_is_named():
    counts = {"p": (2, 1), "q": (3, 0), "r": (0, 0), "s": (0, 2)}
    (told,) = detection.undetected_class_problems(
        {name: {"objects": n, "detections": m} for name, (n, m) in counts.items()}
    )
    assert told["what"].startswith("there are 3 objects of class q, but no detection of it above")


def test_the_threshold_of_all_is_the_folds_mean_however_many_photographs_each_has():
    found = two_classes()
    thrice = detection.join([found, found, found])._replace(fold=np.array([0, 0, 1]))
    summary = detection.by_fold(thrice, np.array([0.2, 0.2, 0.6]), ("p", "q"))
    assert summary["threshold"] == pytest.approx(detection.threshold_of([{"threshold": 0.2}, {"threshold": 0.6}]))


def test_a_fold_is_scored_as_if_it_were_alone():
    rng = np.random.default_rng(0)
    true = rng.uniform(0, 90, (9, 4, 2)).repeat(2, 1).reshape(9, 4, 4) + [0, 0, 10, 10]
    boxes = true[:, rng.integers(4, size=6)] + rng.uniform(-4, 4, (9, 6, 4))
    scores = np.round(rng.uniform(0, 1, (9, 6)), 1)  # ties, and some of 0
    labels = rng.integers(-1, 2, (9, 4))
    each = detection.Objects(
        np.array([f"{n}.png" for n in range(9)]), np.arange(9) % 3, boxes, scores, rng.integers(0, 2, (9, 6)), true, labels
    )  # fmt: skip
    threshold = rng.uniform(0, 1, 9)
    for found in detection.by_fold(each, threshold, ("p", "q"))["folds"]:
        mine = each.fold == found.pop("fold")
        alone = detection.summarise(detection.Objects(*(x[mine] for x in each)), threshold[mine], ("p", "q"))
        assert json.dumps(alone, sort_keys=True) == json.dumps(found, sort_keys=True)


def test_objects_are_written_with_what_became_of_them(tmp_path):
    detection.write(tmp_path, two_classes(), 0.5, ("p", "q"))
    with (tmp_path / "objects.csv").open() as file:
        assert [(row["class"], row["hit"]) for row in csv.DictReader(file)] == [("p", "0"), ("q", "1")]


def test_the_threshold_where_nothing_is_found_and_of_several_networks():
    found = two_classes()
    assert detection.best_threshold(found._replace(scores=np.zeros((1, 2)))) == 0.5
    assert detection.threshold_of([{"threshold": 0.2}, {"threshold": 0.6}, {"threshold": 0.7}]) == pytest.approx(0.5)


def test_objects_of_a_class_that_the_run_does_not_know_are_none():
    found = detection.Found(np.array(["a"]), np.zeros((1, 1, 4)), np.zeros((1, 1)), np.zeros((1, 1), int))
    annotation = BoxAnnotation("a", np.array([[0, 0, 9, 9], [20, 0, 29, 9]], float), ("q", "unknown"))
    assert detection.with_truth(found, {"a": annotation}, ("p", "q"), 0).labels.tolist() == [[1, -1]]


# The heads.


def batch_of(boxes, labels, size):
    return {
        "boxes": jnp.asarray(boxes, jnp.float32), "labels": jnp.asarray(labels, jnp.int32),
        "real": jnp.array([True, True, False])[: len(boxes)],
        "images": jnp.zeros((len(boxes), *size, 1)),
    }  # fmt: skip


BOXES = np.array([[[4, 6, 14, 18], [30, 40, 42, 50], [0, 0, 0, 0]], [[20, 20, 31, 33], [0, 0, 0, 0], [0, 0, 0, 0]], [[5, 5, 9, 9]] * 3], float)  # fmt: skip
LABELS = np.array([[0, 1, -1], [1, -1, -1], [0, 0, 0]])


def test_centre_head_decodes_what_it_is_trained_towards():
    head = heads.build({"name": "centre", "limit": 5}, size=(64, 64), classes=2, sizes=(10.0, 12.0))
    outputs = np.full((3, 32, 32, 6), -9.0, np.float32)
    for b, k in ((0, 0), (0, 1), (1, 0)):
        x0, y0, x1, y1 = BOXES[b, k]
        cx, cy = (x0 + x1) / 4, (y0 + y1) / 4
        row, column = int(cy), int(cx)
        outputs[b, row, column, LABELS[b, k]] = 9
        outputs[b, row, column, 2:] = cx - column, cy - row, np.log((x1 - x0) / 10), np.log((y1 - y0) / 12)
    perfect = jnp.asarray(outputs)
    batch = batch_of(BOXES, LABELS, (64, 64))
    loss = jax.jit(head.loss)
    total, count = loss(perfect, head.targets(batch))
    assert count == 3
    assert total < 0.05
    found = jax.jit(head.decode)(perfect)
    for b, k in ((0, 0), (0, 1), (1, 0)):
        n = int(np.argmin(np.abs(np.asarray(found.boxes[b]) - BOXES[b, k]).sum(-1)))
        np.testing.assert_allclose(found.boxes[b, n], BOXES[b, k], atol=1e-4)
        assert found.classes[b, n] == LABELS[b, k]
        assert found.scores[b, n] > 0.99
    gradient = jax.grad(lambda o: loss(o, head.targets(batch))[0])(jnp.zeros_like(perfect))
    assert np.isfinite(gradient).all()
    assert (np.asarray(gradient[2]) == 0).all()  # padding


def test_centre_loss_by_its_formula():
    head = heads.build({"name": "centre", "sigma": 4.0, "size_weight": 0.5}, size=(32, 32), classes=1, sizes=(8.0, 8.0))
    outputs = np.random.default_rng(0).normal(size=(1, 16, 16, 5)).astype(np.float32)
    # A box of 9x12 about (9.5, 15): in maps of stride 2 about (4.75, 7.5), which is in the pixel (4, 7).
    batch = batch_of([[[5, 9, 14, 21]]], [[0]], (32, 32))
    total, count = head.loss(jnp.asarray(outputs), head.targets(batch))
    y, x = np.mgrid[:16, :16]
    target = np.exp(-((x - 4) ** 2 + (y - 7) ** 2) / (2 * 2.0**2))
    p = 1 / (1 + np.exp(-outputs[0, ..., 0].astype(float)))
    focal = np.where(target == 1, -((1 - p) ** 2) * np.log(p), -((1 - target) ** 4) * p**2 * np.log(1 - p))
    offset = np.abs(outputs[0, 7, 4, 1:3] - [0.75, 0.5])
    extent = np.abs(outputs[0, 7, 4, 3:] - np.log([9 / 8, 12 / 8]))
    np.testing.assert_allclose(total, focal.sum() + offset.sum() + 0.5 * extent.sum(), rtol=1e-4)
    assert count == 1


def test_centre_head_finds_boxes_of_five_times_and_a_fifth_of_the_typical_size():
    head = heads.build({"name": "centre", "limit": 1}, size=(64, 64), classes=1, sizes=(8.0, 8.0))
    outputs = np.full((1, 32, 32, 5), -9.0, np.float32)
    outputs[0, 16, 16] = 9, 0.5, 0.5, np.log(5), np.log(1 / 5)
    found = head.decode(jnp.asarray(outputs))
    # 40 wide and 1.6 high about (33, 33).
    np.testing.assert_allclose(found.boxes[0, 0], [13, 32.2, 53, 33.8], atol=1e-3)


def test_focal_loss_against_its_formula():
    from jaxmarks.heads import centre

    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=50) * 3, np.concatenate([np.ones(5), rng.random(45)])
    p = 1 / (1 + np.exp(-logits))
    expected = np.where(target == 1, -((1 - p) ** 2) * np.log(p), -((1 - target) ** 4) * p**2 * np.log(1 - p))
    np.testing.assert_allclose(centre.focal(jnp.float32(logits), jnp.float32(target)), expected, rtol=2e-5, atol=1e-6)


def test_yolo_loss_against_loops():
    anchors = np.array([[10.0, 12.0], [4.0, 4.0]])
    head = heads.build({"name": "yolo", "ignore": 0.5}, size=(64, 64), classes=2, anchors=anchors.tolist())
    rng = np.random.default_rng(1)
    outputs = rng.normal(size=(3, 2, 2, 2, 7)).astype(np.float32)
    batch = batch_of(BOXES, LABELS, (64, 64))
    total, count = jax.jit(head.loss)(outputs, head.targets(batch))
    assert count == 2
    sigmoid = lambda x: 1 / (1 + np.exp(-x.astype(float)))
    expected = 0.0
    for b in range(2):
        truth = [(box, label) for box, label in zip(BOXES[b], LABELS[b], strict=True) if label >= 0]
        owner = {}
        for box, label in truth:
            w, h = box[2] - box[0], box[3] - box[1]
            shape = [min(w, a) * min(h, c) / (w * h + a * c - min(w, a) * min(h, c)) for a, c in anchors]
            row, column = int((box[1] + box[3]) / 64), int((box[0] + box[2]) / 64)
            owner.setdefault((row, column, int(np.argmax(shape))), (box, label))
        for place in np.ndindex(2, 2, 2):
            o, (row, column, a) = outputs[b][place], place
            centre = (np.array([column, row]) + sigmoid(o[:2])) * 32
            extent = np.exp(o[2:4]) * anchors[a]
            proposed = np.concatenate([centre - extent / 2, centre + extent / 2])
            overlap = lambda box, p=proposed: float(jax.jit(box_ops.iou)(box[None], p[None])[0, 0])
            if place in owner:
                box, label = owner[place]
                place_in_cell = (box[:2] + box[2:]) / 64 - [column, row]
                scale = np.log((box[2:] - box[:2]) / anchors[a])
                expected += ((sigmoid(o[:2]) - place_in_cell) ** 2).sum() + ((o[2:4] - scale) ** 2).sum()
                expected += 5 * (overlap(box) - sigmoid(o[4])) ** 2
                expected += np.log(np.exp(o[5:]).sum()) - o[5 + label]
            elif max(overlap(box) for box, _ in truth) < 0.5:
                expected += sigmoid(o[4]) ** 2
    np.testing.assert_allclose(total, expected, rtol=1e-4)


def test_yolo_decodes_what_it_encodes_and_suppresses_doubles():
    anchors = [[10.0, 12.0], [30.0, 30.0]]
    head = heads.build({"name": "yolo", "limit": 6}, size=(64, 64), classes=2, anchors=anchors)
    outputs = np.full((1, 2, 2, 2, 7), -9.0, np.float32)
    box = np.array([4.0, 6, 14, 18])
    centre = (box[:2] + box[2:]) / 64
    for a in range(2):
        outputs[0, 0, 0, a, :2] = np.log(centre / (1 - centre))
        outputs[0, 0, 0, a, 2:4] = np.log((box[2:] - box[:2]) / anchors[a])
        outputs[0, 0, 0, a, 4:] = 5 - a, -3, 3
    found = head.decode(jnp.asarray(outputs))
    np.testing.assert_allclose(found.boxes[0, 0], box, atol=1e-3)
    assert found.classes[0, 0] == 1
    assert (np.asarray(found.scores[0]) > 0.1).sum() == 1


def test_yolo_boxes_do_not_move_for_the_sake_of_their_confidence():
    """The overlap that the confidence is to tell is a constant: with `coordinates` of 0 no box has a gradient."""
    spec = {"name": "yolo", "coordinates": 0.0, "without_object": 0.0}
    head = heads.build(spec, size=(64, 64), classes=1, anchors=[[10.0, 12.0]])
    targets = head.targets(batch_of([[[4, 6, 14, 18]]], [[0]], (64, 64)))
    gradient = jax.grad(lambda outputs: head.loss(outputs, targets)[0])(jnp.zeros((1, 2, 2, 1, 6)))
    assert not gradient[..., :4].any()
    assert gradient[0, 0, 0, 0, 4] != 0


def test_suppression_is_of_one_class_and_leaves_room_for_others():
    # The third is a double of the first, the second of another class: with room for three the fourth comes in.
    boxes = jnp.float32([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 30, 30]])
    found = heads.suppressed(boxes, jnp.float32([0.9, 0.8, 0.7, 0.6]), jnp.array([0, 1, 0, 0]), limit=3, overlap=0.4)
    np.testing.assert_allclose(found.scores, [0.9, 0.8, 0.6])
    assert found.classes.tolist() == [0, 1, 0]


def test_what_is_suppressed_may_move_the_box_that_stays():
    # Of the same class, a pixel to the right, with half its score; another class has no say.
    boxes = jnp.float32([[0, 0, 10, 10], [1.5, 0, 11.5, 10], [4, 0, 14, 10]])
    for vote, shift in ((True, 0.5), (False, 0)):
        scores, classes = jnp.float32([0.8, 0.4, 0.3]), jnp.array([0, 0, 1])
        found = heads.suppressed(boxes, scores, classes, limit=3, overlap=0.4, vote=vote)
        np.testing.assert_allclose(found.boxes[:2], [[shift, 0, 10 + shift, 10], [4, 0, 14, 10]], rtol=1e-6)
        np.testing.assert_allclose(found.scores, [0.8, 0.3, 0])


@pytest.mark.parametrize("name", ["yolo", "faster_rcnn", "centre", "sp_cnn"])
def test_networks_join_by_the_overlap_of_the_head(name):
    config = get_config(f"{name},smoke")
    facts = {"classes": 1, "sizes": (10.0, 10.0), "anchors": [[10.0, 10.0]] * 3}
    # Two networks see one object 4 pixels apart: an IoU of 3/7.
    two = heads.Detections(
        np.float32([[[[0, 0, 10, 10]], [[4, 0, 14, 10]]]]), np.float32([[[0.8], [0.4]]]), np.zeros((1, 2, 1), int)
    )
    for overlap, expected in ((None, 0.6), (0.5, 0.4), (0.3, 0.6)):  # as one object, or as one that a network missed
        spec = {**config.head.to_dict(), "overlap": overlap}
        spec.pop("anchor_count", None)
        known = {key: facts[key] for key in facts if key != "anchors" or name in ("yolo", "faster_rcnn")}
        joined = heads.build(spec, size=(64, 64), **known).join(two)
        np.testing.assert_allclose(joined.scores, [[expected]], rtol=1e-6)


def crowd(pairs):
    """100 photographs of two boxes of one class and one of another; those of one class overlap in the first of them."""
    boxes = np.tile(np.float32([[0, 0, 10, 10], [20, 20, 30, 30], [20, 20, 30, 30]]), (100, 1, 1))
    for n, shift in enumerate(pairs):
        boxes[n, 1] = [shift, 0, 10 + shift, 10]
    labels = np.tile(np.int32([0, 0, 1]), (100, 1))
    return types.SimpleNamespace(boxes=boxes, labels=labels)


@pytest.mark.parametrize(
    ("pairs", "overlap"),
    [
        ([], 0.2),  # of different classes the third is no neighbour
        ([2.0], 0.2),  # one pair in a hundred photographs may be a mistake
        ([4.0] * 20, 6 / 14),
        ([2.0] * 20, 0.5),
        ([1.0] * 20, 0.2),  # one object that was marked twice
    ],
)
def test_how_close_two_objects_come_is_learnt_from_the_data(pairs, overlap):
    config = get_config("yolo")
    found = tasks.fitted_facts(config, crowd(pairs), ())
    np.testing.assert_allclose(found["overlap"], overlap, rtol=1e-6)
    assert len(found["anchors"]) == 3
    assert "anchors" not in tasks.fitted_facts(get_config("centre"), crowd(pairs), ())
    config.head.overlap = 0.6  # chosen, for a tile and for what its neighbours find
    assert detection.overlap_of([{"facts": tasks.fitted_facts(config, crowd(pairs), ())}]) == 0.6


def test_an_overlap_that_is_chosen_goes_before_that_of_the_data():
    # Two peaks 8 pixels apart, of boxes of 16: an IoU of a third.
    outputs = np.full((1, 16, 16, 5), -9.0, np.float32)
    outputs[0, 4, [4, 6]] = [[3, 0.5, 0.5, 0, 0], [2, 0.5, 0.5, 0, 0]]
    count = {}
    for name, option, facts in (("data", None, 0.2), ("mine", 0.4, 0.2), ("neither", None, None)):
        known = {"overlap": facts} if facts else {}
        spec = {"name": "centre", "overlap": option}
        head = heads.build(spec, size=(64, 64), classes=1, sizes=(16.0, 16.0), **known)
        found = head.decode(jnp.asarray(outputs))
        count[name] = int((found.scores[0] > 0.5).sum())
        joined = head.join(jax.tree.map(lambda x: x[:, None], found))
        assert int((joined.scores[0] > 0.5).sum()) == count[name]
    assert count == {"data": 1, "mine": 2, "neither": 2}


# The whole road.


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Fourteen images of different sizes with squares, one of them without any."""
    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    annotations = []
    for n in range(14):
        size = (60 + 3 * n, 70)
        corners = [] if n == 5 else [(int(x), int(y)) for x, y in zip(rng.integers(2, 50, 2), (5, 30), strict=True)]
        image, boxes = squares(size, corners)
        Image.fromarray(image).save(folder / f"{n}.png")
        annotations.append(BoxAnnotation(f"{n}.png", boxes, ("square",) * len(boxes), group=str(n // 2)))
    box_files.write(folder / "boxes.csv", annotations)
    return folder


def small(data, **changes):
    config = get_config("own,smoke")
    config.train.devices = 1
    config.augment.update({"scale": 0.0, "translation": 0.0, "contrast": 0.1, "brightness": 0.0, "gamma": 0.0})
    config.update_from_flattened_dict(
        {
            "data.images": str(data), "data.boxes": str(data / "boxes.csv"), "data.size": (64, 64), "data.scale": 1.0,
            "split.folds": 2, "model.width": 8, "model.depth": 2, "model.stride": 2, "train.steps": 200,
            "train.batch_size": 4, "optimizer.learning_rate": 5e-3,
        } | changes
    )  # fmt: skip
    return config


@pytest.fixture(scope="module")
def squares_found(data, tmp_path_factory):
    """A run on the squares, and its dataset."""
    run = tmp_path_factory.mktemp("squares_found") / "run"
    return run, train.train(small(data), run)["train"]


def test_a_detector_from_files_to_report_and_back(data, squares_found, tmp_path, about_of):
    run, dataset = squares_found
    summary = evaluate.of_run(small(data), run, dataset)
    assert set(summary["baselines"]) == {"blobs"}
    page = report.write(run, dataset.photograph).read_text()
    assert summary["images"] == 14
    assert summary["objects"] == 26
    assert summary["f1"] > 0.8  # squares on black are easy
    assert f"{summary['f1']:.3f}" in page
    with (run / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    used = [row for row in rows if row["above_threshold"] == "1"]
    hits = sum(row["hit"] == "1" for row in used)
    np.testing.assert_allclose(summary["f1"], 2 * hits / (len(used) + 26))
    proof = about_of(run / "proofread.html")
    marked = {one["name"]: one for one in proof["images"]}
    assert 'href="proofread.html"' in page and proof["names"] == list(dataset.classes)
    for annotation in dataset.objects:
        one = marked[annotation.image]
        np.testing.assert_allclose(np.reshape([box[:4] for box in one["items"]], (-1, 4)), annotation.boxes, atol=1e-3)
        assert [proof["names"][box[4]] for box in one["items"]] == list(annotation.classes)
    assert sum(len(one["found"]) for one in proof["images"]) == len(used)
    groups = {row["image"]: row["fold"] for row in rows}
    for n in range(0, 14, 2):  # a group is never divided
        assert len({groups.get(f"{n}.png"), groups.get(f"{n + 1}.png")} - {None}) == 1
    found = predict.on_folder(run, data, tmp_path / "out")
    assert found["images"] == 14
    more, none = (predict.on_folder(run, data, tmp_path / str(t), threshold=t) for t in (0.0, 1.0))
    assert none["objects"] == 0 < found["objects"] <= more["objects"] and none["threshold"] == 1
    assert len(box_files.read(tmp_path / "out" / "predictions.csv")) == 14
    proof = about_of(tmp_path / "out" / "proofread.html")
    scores = [box[5] for one in proof["images"] for box in one["items"]]
    assert sum(score >= proof["threshold"] for score in scores) == found["objects"] and len(proof["images"]) == 14
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["annotations"]
    pure = jax.jit(predict.load(run))(jnp.asarray(dataset.photograph("0.png"))[None])
    alike = next(a for a in box_files.read(tmp_path / "out" / "predictions.csv") if a.image == "0.png").boxes
    assert len(alike)
    order = np.lexsort(np.round(alike / 5).T)
    mine = np.asarray(pure.boxes[0, : len(alike)])
    # The two networks disagree by a pixel or two, and rounding decides whose box is shown.
    np.testing.assert_allclose(mine[np.lexsort(np.round(mine / 5).T)], alike[order], atol=3)
    again = evaluate.of_new_data(run, dataset, tmp_path / "again")
    assert again["f1"] > 0.8
    # Without a config, on photographs of twice the scale; and one alone, whose drawing is then the only one.
    more = tmp_path / "more"
    (more / "one").mkdir(parents=True)
    annotations = box_files.read(data / "boxes.csv")
    for a in annotations:
        Image.open(data / a.image).resize(np.multiply(2, Image.open(data / a.image).size), 0).save(more / a.image)
    shutil.copy(more / "0.png", more / "one")
    twice = [dataclasses.replace(a, boxes=2 * a.boxes) for a in annotations]
    box_files.write(tmp_path / "twice.csv", twice)
    command = [sys.executable, "-m", "jaxmarks.main", f"--workdir={run}"]
    for mode, images, *others in (
        ("evaluate", more, f"--config.data.boxes={tmp_path / 'twice.csv'}", "--config.data.scale=0.5"),
        ("predict", more, "--config.data.scale=0.5"),
        ("predict", more / "one", "--config.data.scale=0.5"),
    ):
        arguments = [f"--mode={mode}", f"--config.data.images={images}", *others]
        done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert json.loads((run / "evaluate" / "summary.json").read_text())["f1"] > 0.8
    assert [p.name for p in (run / "predict" / "overlays").iterdir()] == ["0.png.jpg"]
    doubled = box_files.read(run / "predict" / "predictions.csv")[0].boxes
    true = next(a for a in annotations if a.image == "0.png").boxes
    off = lambda boxes: np.abs(true[:, None] - boxes).max(-1).min(-1)  # of the nearest, of each object
    assert (off(alike) < 4).any() and (off(doubled / 2)[off(alike) < 4] < 6).all()


def scored(run, images, boxes, out):
    """The summary of a run on other data, as --mode=evaluate loads them."""
    data = runs.settings_of(run).data
    data.update({"images": str(images), "boxes": str(boxes)})
    return evaluate.of_new_data(run, loading.load(data), out)


def test_one_class_is_found_whatever_it_is_called(data, squares_found, tmp_path):
    run, dataset = squares_found
    expected = evaluate.of_new_data(run, dataset, tmp_path / "same")
    head, *rows = (data / "boxes.csv").read_text().splitlines()
    called = [row.replace(",square,", ",Spine,") for row in rows]
    (tmp_path / "called.csv").write_text("\n".join([head, *called]))
    without = [",".join(cell for i, cell in enumerate(row.split(",")) if i != 3) for row in (head, *rows)]
    assert "class" not in without[0]
    (tmp_path / "without.csv").write_text("\n".join(without))
    for name, label in (("called", "Spine"), ("without", box_files.DEFAULT_CLASS)):
        summary = scored(run, data, tmp_path / f"{name}.csv", tmp_path / name)
        assert (summary["f1"], summary["map50"], summary["objects"]) == (expected["f1"], expected["map50"], 26)
        (told,) = [each["what"] for each in summary["failures"] if each not in expected["failures"]]
        assert f"call the objects {label}," in told and "calls them square;" in told
        report.write(run, dataset.photograph, out=tmp_path / name)
    (tmp_path / "two.csv").write_text("\n".join([head, called[0], *rows[1:]]))
    with pytest.raises(ValueError, match="class Spine; the run knows only square"):
        scored(run, data, tmp_path / "two.csv", tmp_path / "two")


def test_photographs_without_objects_have_false_alarms_alone(squares_found, tmp_path):
    """Four black photographs, and one with a square that nobody marked."""
    run, _ = squares_found
    for n in range(4):
        Image.new("RGB", (70, 60)).save(tmp_path / f"{n}.png")
    Image.fromarray(squares((60, 70), [(20, 20)])[0]).save(tmp_path / "4.png")
    (tmp_path / "none.csv").write_text(
        "filename,class,xmin,ymin,xmax,ymax\n" + "".join(f"{n}.png,,,,,\n" for n in range(5))
    )
    summary = scored(run, tmp_path, tmp_path / "none.csv", tmp_path / "out")
    assert (summary["objects"], summary["images"], summary["detections"]) == (0, 5, 1)
    assert summary["precision"] == 0 and summary["f1"] == 0 and summary["recall"] is None and summary["map50"] is None
    report.write(run, functools.partial(folder.photograph, tmp_path), out=tmp_path / "out")
    config = small(tmp_path, **{"data.boxes": str(tmp_path / "none.csv")})
    with pytest.raises(ValueError, match=r"none.csv: no photograph has a box"):
        train.train(config, tmp_path / "trained")


CLASSES = {"bar": (8, 20), "box": (20, 18), "dot": (8, 8)}  # (w, h), from 0.8 to 1.5 of which an object is


@pytest.fixture(scope="module")
def three_classes(tmp_path_factory):
    """Ninety images of bright objects of three classes, of 6 to 30 px; one in ten is empty, some lie across the border."""
    folder = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(1)
    annotations = []
    for n in range(90):
        image = rng.integers(20, 50, (64, 64, 3), dtype=np.uint8)
        taken, corners, names = np.zeros((64, 64), bool), [], []
        for name in rng.permutation(list(CLASSES) * 2) if n % 10 else ():
            w, h = np.rint(np.multiply(CLASSES[name], rng.uniform(0.8, 1.5))).astype(int)
            x, y = rng.integers((-w // 3, -h // 3), (64 - 2 * w // 3, 64 - 2 * h // 3))
            where = np.s_[max(y - 2, 0) : y + h + 2, max(x - 2, 0) : x + w + 2]
            if taken[where].any():
                continue
            taken[where] = True
            image[max(y, 0) : y + h, max(x, 0) : x + w] = rng.integers(150, 250)
            corners.append([x, y, x + w, y + h])
            names.append(str(name))
        Image.fromarray(image).save(folder / f"{n}.png")
        annotations.append(BoxAnnotation(f"{n}.png", np.array(corners, float).reshape(-1, 4), tuple(names)))
    box_files.write(folder / "boxes.json", annotations)
    return folder


@pytest.mark.parametrize(
    ("detector", "changes"),
    [
        ("centre", {"data.size": (64, 64), "model.width": 16, "train.steps": 400}),
        pytest.param(
            "yolo", {"data.size": (128, 128), "data.scale": 2.0, "train.sizes": (), "model.width": 4, "train.steps": 1000},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "faster_rcnn",
            {"data.size": (64, 64), "model.width": 8, "model.depth": 2, "train.steps": 250, "head.proposals": 60},
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_three_classes_of_mixed_sizes(three_classes, detector, changes, tmp_path):
    config = get_config(f"own,{detector}")
    config.train.devices = 1
    config.augment.update({"scale": 0.0, "aspect": 0.0, "quarter_turns": False})
    data = {"data.images": str(three_classes), "data.boxes": str(three_classes / "boxes.json"), "data.scale": 1.0}
    more = {"split.run": (0,), "train.batch_size": 8, "optimizer.learning_rate": 3e-3, "baselines": ()}
    config.update_from_flattened_dict(data | more | changes)
    dataset = train.train(config, tmp_path)["train"]
    summary = evaluate.of_run(config, tmp_path, dataset)
    assert summary["classes"] == ["bar", "box", "dot"]
    assert summary["f1"] > 0.8
    assert min(one["ap50"] for one in summary["by_class"].values()) > 0.6
    close = collections.defaultdict(list)  # the IoU of each that was found with its object
    true = {image: np.float64([box for _, box in boxes]) for image, boxes in rows_of(tmp_path / "objects.csv").items()}
    for image, found in rows_of(tmp_path / "predictions.csv").items():
        for row, box in found:
            if row["hit"] == "1" and row["above_threshold"] == "1":
                close[row["class"]].append(float(box_ops.iou(np.float64([box]), true[image]).max()))
    assert sorted(close) == sorted(CLASSES) and min(map(np.median, close.values())) > 0.6


def rows_of(path):
    """The rows of a table of boxes by image, each with its box."""
    rows = collections.defaultdict(list)
    with path.open() as file:
        for row in csv.DictReader(file):
            rows[row["image"]].append((row, [float(row[key]) for key in ("x0", "y0", "x1", "y1")]))
    return rows


def test_the_papers_split_divides_groups_but_no_photograph(data):
    config = get_config("random")
    config.update_from_flattened_dict(
        {"data.images": str(data), "data.boxes": str(data / "boxes.csv"), "data.size": (64, 64), "split.folds": 5}
    )
    samples = loading.load(config.data).samples
    assert len(samples) > 14  # tiles
    parts = [samples.take(rows) for rows in splits.member_split(config, samples, runs.Member(0), 1)]
    assert [len(np.unique(part.name)) for part in parts] == [10, 1, 3]
    assert not set(parts[0].name) & set(parts[2].name)
    assert set(parts[0].group) & set(parts[2].group)  # the other frame of a group has been seen


def test_one_photograph_under_several_names_is_one(tmp_path):
    """Else its parts would be divided between training and test, and the boxes of one be false alarms in the other."""
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    rows = [
        "a.jpg,spot,2,2,8,8,",
        "A.JPG,spot,20,2,26,8,g",
        "C:\\photos\\a.jpg,spot,2,2,8,8,",
        "a,dot,2,20,8,26,h",
        "b.jpg,spot,1,1,9,9,",
    ]
    (tmp_path / "boxes.csv").write_text("filename,class,xmin,ymin,xmax,ymax,group\n" + "\n".join(rows) + "\n")
    samples, annotations, _, problems = objects.load(tmp_path, tmp_path / "boxes.csv", size=(32, 48), overlap=8)
    assert [a.image for a in annotations] == ["a.jpg", "b.jpg"] and samples.name.tolist() == ["a.jpg", "b.jpg"]
    assert annotations[0].boxes.tolist() == [[2, 2, 9, 9], [20, 2, 27, 9], [2, 20, 9, 27]]
    assert annotations[0].classes == ("spot", "spot", "dot") and annotations[0].group == "g"
    assert [line[-1] for line in annotations[0].places] == ["2", "3", "5"]
    said = [(p["where"][-1], p["what"]) for p in problems]
    assert [where for where, what in said if "joined" in what] == ["3", "4", "5"]
    assert ("4", "1 boxes given twice: kept once") in said and any(w == "5" and "group h, but g" in t for w, t in said)


def test_what_is_wrong_with_all_photographs_is_said_at_once(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    header = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
    (tmp_path / "boxes.csv").write_text(header + "a.png,30,40,spot,2,2,8,8\n")
    with pytest.raises(ValueError, match="annotated at 30x40 pixels, but the photograph has 40x30"):
        objects.load(tmp_path, tmp_path / "boxes.csv", size=(32, 48))


def naive_merge(boxes, scores, classes, cut, overlap):
    """One box after the other, the whole and best first, against all that are kept."""
    tiles, count = scores.shape
    each = [(cut[t, n], -scores[t, n], t, n) for t in range(tiles) for n in range(count) if scores[t, n] > 0]
    kept = []
    for is_cut, _, t, n in sorted(each):
        x0, y0, x1, y1 = boxes[t, n]
        for s, m in kept:
            u0, v0, u1, v1 = boxes[s, m]
            shared = max(0, min(x1, u1) - max(x0, u0)) * max(0, min(y1, v1) - max(y0, v0))
            own, both = (x1 - x0) * (y1 - y0), (x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - shared
            rival = s != t and classes[s, m] == classes[t, n] and scores[s, m] >= scores[t, n] / 2
            if rival and (shared > overlap * both or (is_cut and shared > 0.4 * own)):
                break
        else:
            kept.append((t, n))
    return sorted((-scores[t, n], *boxes[t, n].tolist(), classes[t, n]) for t, n in kept)


@pytest.mark.parametrize("seed", range(8))
def test_joining_tiles_equals_a_loop(seed):
    rng = np.random.default_rng(seed)
    tiles, count = rng.integers(1, 7), rng.integers(1, 12)
    corners = rng.integers(0, 3, (tiles, 1, 2)) * 30 + rng.integers(0, 40, (tiles, count, 2))
    boxes = np.concatenate([corners, corners + rng.integers(4, 16, (tiles, count, 2))], -1).astype(float)
    scores = rng.permutation(tiles * count).reshape(tiles, count) / 100  # one of them 0
    classes, cut = rng.integers(0, 2, (tiles, count)), rng.random((tiles, count)) < 0.3
    overlap = (0.2, 0.4)[seed % 2]
    found, values, labels = detection.merged(boxes, scores, classes, cut, overlap=overlap)
    assert sorted(
        (-v, *b, c) for b, v, c in zip(found.tolist(), values.tolist(), labels.tolist(), strict=True)
    ) == naive_merge(boxes, scores, classes, cut, overlap)
    assert (np.diff(values) <= 0).all()
    nothing = detection.merged(boxes, 0 * scores, classes, cut, overlap=0.4)
    assert [part.shape for part in nothing] == [(0, 4), (0,), (0,)]


def test_photographs_without_an_entry_are_counted(data, tmp_path):
    shutil.copytree(data, tmp_path / "more")
    for name in ("x.png", "y.png"):
        shutil.copy(data / "3.png", tmp_path / "more" / name)
    *_, problems = objects.load(tmp_path / "more", data / "boxes.csv", size=(64, 64))
    assert [p["image"] for p in problems] == ["x.png"]
    assert problems[0]["what"].startswith("2 photographs")


def test_boxes_of_another_photograph_are_named(tmp_path):
    """Photographs of 40x30: as they are, marked at twice the size, marked upright by EXIF, and with boxes outside."""
    image = Image.fromarray(np.zeros((30, 40), np.uint8))
    turn = Image.Exif()
    turn[0x0112] = 6
    for name in ("a.png", "double.png", "upright.jpg", "outside.png"):
        image.save(tmp_path / name, **({"exif": turn} if name == "upright.jpg" else {}))
    box = lambda x0, y0, x1, y1: np.array([[x0, y0, x1, y1]], float)
    boxes = [
        BoxAnnotation("a.png", box(4, 5, 14, 15), ("spine",), size=(30, 40)),
        BoxAnnotation("double.png", box(8, 10, 28, 30), ("spine",), size=(60, 80)),
        BoxAnnotation("upright.jpg", box(2, 4, 8, 14), ("spine",), size=(40, 30)),
        BoxAnnotation("outside.png", np.concatenate([box(30, 20, 60, 50), box(30, 20, 44, 34)]), ("spine", "stub")),
    ]
    box_files.write(tmp_path / "boxes.csv", boxes)
    samples, annotations, classes, problems = objects.load(tmp_path, tmp_path / "boxes.csv", size=(32, 48), overlap=8)
    assert [(p["image"], p["what"]) for p in problems] == [
        ("double.png", "annotated at 80x60 pixels, but the photograph has 40x30: left out"),
        ("outside.png", "the box from (30, 20) to (60, 50) has its centre outside the photograph of 40x30: left out"),
    ]
    assert "boxes.csv: line 3" in problems[0]["where"]
    a, upright, outside = annotations
    np.testing.assert_array_equal(a.boxes, boxes[0].boxes)
    # Upright the photograph is 30 wide, and its top is the stored one's left: x is y from below, y is x.
    np.testing.assert_array_equal(upright.boxes, [[4, 22, 14, 28]])
    assert outside.classes == ("stub",) and classes == ("spine", "stub")
    assert [label[label >= 0].tolist() for label in samples.labels] == [[0], [0], [1]]


def test_labelme_marks_a_photograph_as_it_stands_upright(tmp_path):
    """Turned by half, so that no side says it; a photograph that nothing turns beside it."""
    turn = Image.Exif()
    turn[0x0112] = 3
    Image.fromarray(np.zeros((30, 40), np.uint8)).save(tmp_path / "half.jpg", exif=turn)
    Image.fromarray(np.zeros((30, 40), np.uint8)).save(tmp_path / "plain.jpg")
    (tmp_path / "marks").mkdir()
    for name in ("half", "plain"):
        shape = {"label": "spine", "shape_type": "rectangle", "points": [[4, 5], [14, 12]]}
        about = {"shapes": [shape], "imagePath": f"../{name}.jpg", "imageHeight": 30, "imageWidth": 40}
        (tmp_path / "marks" / f"{name}.json").write_text(json.dumps(about))
    _, (half, plain), classes, problems = objects.load(tmp_path, tmp_path / "marks", size=(32, 48), overlap=8)
    np.testing.assert_array_equal(half.boxes, [[26, 18, 36, 25]])
    np.testing.assert_array_equal(plain.boxes, [[4, 5, 14, 12]])
    assert classes == ("spine",) and problems == []


def test_the_facts_of_drawn_dendrites():
    config = get_config("")
    config.data.update({"count": 5, "classes": 3, "size": (96, 96)})
    dataset = loading.load(config.data)
    facts = loading.facts(dataset)
    assert facts["names"] == ("spine", "filopodium", "stub")
    assert len(dataset.objects) == 5
    assert len(dataset.samples) > 5  # an image of 144x160 is several tiles
    image = dataset.photograph("dendrite_3.png")
    assert image.shape == (144, 160, 3)


def test_the_typical_size_is_the_median_of_the_boxes_that_there_are(data):
    dataset = loading.load(small(data).data)
    boxes = np.float32([[[0, 0, 10, 20], [0, 0, 12, 22], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]])
    facts = lambda labels: loading.facts(
        dataset._replace(samples=dataclasses.replace(dataset.samples, boxes=boxes, labels=np.array([labels])))
    )
    assert facts([0, 0, -1, -1, -1])["sizes"] == (11, 21)  # (width, height)
    assert facts([-1] * 5)["sizes"] == (16, 16)


@pytest.mark.parametrize("detector", ["centre", "yolo", "faster_rcnn", "sp_cnn"])
def test_every_detector_is_described_without_an_image(detector):
    assert "parameters: " in tasks.describe(get_config(f"{detector},smoke"), "train")


@pytest.mark.parametrize("folds", [1, 2])
def test_photographs_are_not_divided_at_random(data, tmp_path, folds):
    with pytest.raises(ValueError, match=r"split\.by=random would divide a photograph's tiles"):
        train.train(small(data, **{"split.by": "random", "split.folds": folds}), tmp_path)


def test_an_ensemble_on_streamed_images_without_validation(data, tmp_path):
    """Both networks predict, the blobs are fitted on what is kept, and the report says where the thresholds are from."""
    changes = {"split.valid": 0.0, "train.steps": 2, "split.run": (0,), "train.ensemble": 2}
    config = small(data, **changes, **{"data.keep": str(tmp_path / "kept")})
    dataset = train.train(config, tmp_path / "run")["train"]
    summary = evaluate.of_run(config, tmp_path / "run", dataset)
    assert len(list(tmp_path.glob("run/checkpoints/train/*/best"))) == 2
    assert set(summary["baselines"]) == {"blobs"}
    *told, silent = summary["failures"]
    for number, caveat in zip(("0", "0.1"), told, strict=True):
        assert caveat["what"].startswith(f"fold {number}: no image is held out for validation")
    assert "no detection of it above the threshold" in silent["what"]


def test_yolo_labels_are_the_same_samples_as_a_csv(data, tmp_path):
    """Also those of a photograph without objects, and beside the names of the classes."""
    (tmp_path / "classes.txt").write_text("square\nunused\n")
    for a in box_files.read(data / "boxes.csv"):
        width, height = Image.open(data / a.image).size
        centres, sides = (a.boxes[:, :2] + a.boxes[:, 2:]) / 2, a.boxes[:, 2:] - a.boxes[:, :2]
        shares = np.hstack([centres, sides]) / (width, height, width, height)
        (tmp_path / f"{a.image[:-4]}.txt").write_text("".join(f"0 {x} {y} {w} {h}\n" for x, y, w, h in shares))
    mine, theirs = (loading.load(small(data, **{"data.boxes": str(b)}).data) for b in (data / "boxes.csv", tmp_path))
    assert mine.classes == theirs.classes == ("square",) and theirs.problems == []
    place = np.argsort(theirs.samples.name, kind="stable"), np.argsort(mine.samples.name, kind="stable")
    for key in ("name", "images", "labels"):
        np.testing.assert_array_equal(
            *(getattr(d.samples, key)[at] for d, at in zip((theirs, mine), place, strict=True))
        )
    np.testing.assert_allclose(theirs.samples.boxes[place[0]], mine.samples.boxes[place[1]], atol=1e-4)


def test_what_a_detector_cannot_know_is_told(data):
    """Its threshold is chosen where there are objects, and who gives colours is told that it does not see them."""
    config = small(data)
    dataset = loading.load(config.data)
    samples, names = dataset.samples, dataset.samples.name
    empty = names == "5.png"
    coloured = dataclasses.replace(samples, images=np.array(samples.images) * np.uint8([1, 0, 0]))
    assert not (samples.labels[empty] >= 0).any()

    def told(samples, valid, classes=dataset.classes, **changes):
        config.update(changes)
        images = {"train": names[~empty & ~valid].tolist(), "valid": names[valid].tolist(), "test": ["none"]}
        split = {"images": images, "contents": {name: name for part in images.values() for name in part}}
        data = dataset._replace(samples=samples, classes=classes)
        return [c["what"] for c in caveats.of_training(config, data, runs.Member(0), split, None, [])]

    some = np.isin(names, ["0.png", "1.png"])
    assert told(samples, some) == []
    (caveat,) = caveats.of_test(0, {"train": [], "valid": [], "test": []})
    assert "no image is held out for testing" in caveat["what"] and caveats.of_test(0, {"test": ["a.png"]}) == []
    (what,) = told(samples, empty)
    assert "no validation image shows an object: the threshold is chosen on training images" in what
    (what,) = told(samples, some, classes=(*dataset.classes, "ring"))
    assert "no training image shows an object of class ring" in what
    (what,) = told(coloured, some)
    assert "--config.channels=3" in what
    assert told(coloured, some, channels=3) == []


def test_a_threshold_is_chosen_where_there_are_objects(data, monkeypatch):
    dataset = loading.load(small(data).data)
    empty = np.flatnonzero((dataset.samples.labels < 0).all(1))
    others = np.setdiff1d(np.arange(len(dataset.samples)), empty)
    asked = []
    monkeypatch.setattr(
        detection, "choose_threshold", lambda call, networks, samples, data, overlap: asked.append(samples)
    )
    for held in (others[:2], empty):
        evaluate.choose_on_validation(None, None, {"facts": {}}, dataset, held, others[2:5])
    assert [s.name.tolist() for s in asked] == [
        dataset.samples.name[rows].tolist() for rows in (others[:2], others[2:5])
    ]


def test_tiles_with_objects_crowd_training_not_validation():
    settings, split = get_config("own"), splits.Split(np.arange(8), np.arange(8, 12), np.arange(0))
    empty = np.array([1] * 7 + [0] + [1, 1, 1, 0])
    plan = train.plan_of(settings, split, empty, runs.Member(0), 1)
    np.testing.assert_array_equal(plan.valid, np.arange(8, 12))
    shown = np.concatenate([splits.epoch(plan.train, plan.stratum, np.random.default_rng(n)) for n in range(200)])
    np.testing.assert_allclose((shown == 7).mean(), 0.5, atol=0.05)
    settings.train.balance = "group"
    assert len(train.plan_of(settings, split, empty, runs.Member(0), 1).valid) == 6


@pytest.mark.parametrize(("side", "scale"), [(3, 4), (14, 1.4), (15, 1), (28, 1), (29, 0.69), (100, 0.2)])
def test_an_open_scale_gives_the_typical_object_its_side(side, scale, tmp_path):
    """20 px, if it has not nearly that; of YOLO's labels, which are shares of their photographs, too."""
    drawn(tmp_path, side, count=2)
    known = box_files.read(tmp_path / "boxes.csv")
    missing = [BoxAnnotation(f"missing_{n}.png", np.float64([[0, 0, 300, 300]]), ("square",)) for n in range(9)]
    box_files.write(tmp_path / "boxes.csv", known + missing)
    assert objects.fitting_scale(tmp_path, tmp_path / "boxes.csv", side=20) == scale
    (tmp_path / "classes.txt").write_text("square\n")
    for n in range(2):
        share = side / 400
        (tmp_path / f"s0_{n}.txt").write_text(f"0 0.5 0.5 {share} {share}\n")
    assert objects.fitting_scale(tmp_path, tmp_path, side=20) == scale


def test_a_run_keeps_the_scale_that_follows_its_objects(tmp_path, capsys):
    assert get_config().data.scale == get_config("centre,random").data.scale == 1
    assert get_config("own").data.scale == 0 and get_config("yolo").data.scale == 2
    drawn(tmp_path, 60)
    for _ in range(2):  # the same command finds the same run
        config = small(tmp_path, **{"data.scale": 0.0, "train.steps": 1, "split.run": (0,)})
        train.train(config, tmp_path / "run")
        assert runs.config_of(tmp_path / "run").data.scale == config.data.scale == 0.33
        assert "photographs are resized to 0.33 of their size" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"holds a run with --config.data.side=20.0, not 25.0. Name another"):
        train.train(small(tmp_path, **{"data.scale": 0.0, "data.side": 25.0}), tmp_path / "run")
    for changes in ({"data.boxes": "", "data.images": ""}, {"data.fit": "pad"}):
        config = small(tmp_path, **{"data.scale": 0.0} | changes)
        fitting.fill_in(config.data)
        assert config.data.scale == 1


def test_other_photographs_have_a_scale_above_0(monkeypatch):
    data = get_config().data
    for said, found in (({}, None), ({"data.scale": 0.5}, 0.5)):
        monkeypatch.setattr(main, "overrides", lambda said=said: said)
        assert main.given_scale(data) == found
    monkeypatch.setattr(main, "overrides", lambda: {"data.scale": 0.0})
    with pytest.raises(ValueError, match=r"data\.scale=0.0: it must be from 0.01 to 100; the run has 1"):
        main.given_scale(data)


def drawn(folder, side, count=6, size=(400, 400)):
    """Photographs of two squares each, and their boxes."""
    annotations = []
    for n in range(count):
        image, boxes = squares(size, [(5, 5), (150, 200)], side)
        image[-1, -1] = n  # each is another
        Image.fromarray(image).save(folder / f"s{n // 2}_{n}.png")
        annotations.append(BoxAnnotation(f"s{n // 2}_{n}.png", boxes, ("square",) * 2))
    box_files.write(folder / "boxes.csv", annotations)


@pytest.mark.parametrize(("side", "advice"), [(3, "6.7"), (15, None), (100, "0.2")])
def test_objects_that_do_not_suit_the_frame_are_told_with_a_scale_that_does(side, advice, tmp_path):
    drawn(tmp_path, side)
    problems = objects.load(tmp_path, tmp_path / "boxes.csv", size=(160, 160))[-1]
    assert [f"--config.data.scale={advice} makes it 20" in p["what"] for p in problems] == [True] * bool(advice)
    whole = objects.load(tmp_path, tmp_path / "boxes.csv", size=(416, 416))[-1]  # where nothing is cut
    assert len(whole) == (side == 3)
    (told,) = objects.load(tmp_path, tmp_path / "boxes.csv", size=(416, 416), scale=1 / (2 * side))[-1]
    advised = re.search(
        r"is 0\.[45]\d* pixels wide .* too small to be found reliably: --config\.data\.scale=(\S+) makes it 20",
        told["what"],
    )
    assert float(advised[1]) == pytest.approx(20 / side, rel=0.05)


def test_boxes_are_read_as_those_of_their_photographs(tmp_path):
    """So that those put right can take their place: of YOLO's, too, and of a file that names photographs otherwise."""
    drawn(tmp_path, 40, count=2)
    known = box_files.read(tmp_path / "boxes.csv")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "classes.txt").write_text("square\n")
    for annotation in known:
        rows = [(x0 + x1, y0 + y1, 2 * (x1 - x0), 2 * (y1 - y0)) for x0, y0, x1, y1 in annotation.boxes / 800]
        text = "".join("0 {} {} {} {}\n".format(*row) for row in rows)
        (tmp_path / "labels" / annotation.image.replace("png", "txt")).write_text(text)
    bare = [dataclasses.replace(a, image=a.image.removesuffix(".png")) for a in known]
    box_files.write(tmp_path / "bare.csv", [*bare, dataclasses.replace(known[0], image="none.png")])
    for file in ("labels", "bare.csv"):
        problems: list[dict] = []
        found = objects.read(tmp_path / file, tmp_path, problems)
        assert [a.image for a in found] == [a.image for a in known]
        for mine, theirs in zip(found, known, strict=True):
            np.testing.assert_allclose(mine.boxes, theirs.boxes, atol=1e-9)
        assert [p["image"] for p in problems] == ["none.png"] * (file == "bare.csv")
        box_files.write(tmp_path / "all.csv", found)
        assert [a.image for a in box_files.read(tmp_path / "all.csv")] == [a.image for a in known]


def test_scenes_are_caught_in_file_names(tmp_path):
    drawn(tmp_path, 15)
    by_name, alone = (
        objects.load(tmp_path, tmp_path / "boxes.csv", size=(416, 416), group_by=pattern)[0].group
        for pattern in (r"^s(\d)_", "")
    )
    assert by_name.tolist() == [0, 0, 1, 1, 2, 2] and alone.tolist() == list(range(6))


def test_options_of_tiles_are_checked(data):
    with pytest.raises(ValueError, match=r"--config\.data\.fit=tiles: choose one of tile, pad, stretch"):
        configs.check(small(data, **{"data.fit": "tiles"}))
    with pytest.raises(ValueError, match=r"--config\.data\.overlap=64: give less than both sides"):
        loading.load(small(data, **{"data.overlap": 64}).data)


def two_of(fold, scores=(0.9, 0.8)):
    """A photograph of a fold with two objects, both found where they are, with these scores."""
    true = np.array([[[0, 0, 10, 10], [40, 0, 50, 10]]], float)
    zero = np.zeros((1, 2), int)
    return detection.Objects(
        np.array([f"{fold}.png"]), np.array([fold]), true.copy(), np.array([scores]), zero, true, zero
    )


def test_images_of_no_fold_have_no_part_in_the_deviation_over_folds():
    both = detection.join([two_of(0), two_of(1, (0.9, 0.0)), two_of(-1, (0.0, 0.0))])
    summary = detection.by_fold(both, np.full(3, 0.5), ("s",))
    assert [one["f1"] for one in summary["folds"]] == pytest.approx([0, 1, 2 / 3])
    assert summary["std_over_folds_f1"] == pytest.approx(np.std([1, 2 / 3]))


def test_each_photograph_is_proofread_at_its_own_threshold_and_what_scores_just_that_is_shown():
    found = detection.join([two_of(0, (0.9, 0.25)), two_of(1, (0.75, 0.25))])
    marks = [BoxAnnotation(f"{n}.png", np.zeros((0, 4)), ()) for n in range(3)]
    sizes = {f"{n}.png": (60, 80) for n in range(3)}
    shown = detection.to_proofread(marks, found, np.array([0.25, 0.75]), sizes, ("s",))
    scores = [[box[5] for box in each["found"]] if each["found"] is not None else None for each in shown]
    assert scores == [[0.9, 0.25], [0.75], None]


def test_a_box_whose_centre_is_left_of_or_above_the_photograph_is_left_out(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    corners = np.array(
        [[-9, 5, 8, 9], [5, -9, 9, 8], [-8, 5, 9, 9], [-4, -4, 4, 4], [32, 5, 49, 9], [5, 22, 9, 39]], float
    )
    annotation = BoxAnnotation("a.png", corners, tuple("abcdef"))
    found, problems = objects.on_photograph(annotation, tmp_path / "a.png", (30, 40))
    assert found.classes == ("c", "d") and len(problems) == 4
    assert all("has its centre outside the photograph of 40x30" in each["what"] for each in problems)


def test_the_size_of_a_photograph_that_is_named_twice_is_the_first_that_is_told(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    one = lambda name, size: BoxAnnotation(name, np.zeros((0, 4)), (), size=size, where=name)
    for sizes, size, count in (
        ((None, (30, 40)), (30, 40), 1),
        (((30, 40), (20, 10)), (30, 40), 2),
        (((30, 40), None), (30, 40), 1),
    ):
        problems: list = []
        ((found, _),) = objects.by_photograph([one("a.png", sizes[0]), one("A.PNG", sizes[1])], tmp_path, problems)
        assert found.size == size and len(problems) == count  # that they are joined, and that the sizes differ


def test_photographs_without_boxes_come_in_batches_of_32_at_most(tmp_path):
    for n in range(40):
        Image.new("L", (8, 8), n).save(tmp_path / f"{n:02d}.png")
    each = list(objects.batches(tmp_path, size=(16, 16), fit="tile", scale=1.0, overlap=4, problems=[]))
    assert [(len(samples), len(photographs)) for samples, photographs in each] == [(32, 32), (8, 8)]


def test_what_is_beside_a_photograph_is_its_edge_where_it_is_whole_and_dark_where_it_is_tiles():
    image = np.full((10, 20, 3), 200, np.uint8)
    for fit, beside in (("pad", 200), ("tile", 0)):
        ((frame, _, _),) = objects.cut(image, (20, 20), fit=fit)
        assert (frame[5:15] == 200).all() and (frame[:5] == beside).all() and (frame[15:] == beside).all()


def test_boxes_of_less_than_a_pixel_are_of_a_pixel():
    samples = types.SimpleNamespace(boxes=np.float32([[[0, 0, 0.25, 3]]]), labels=np.zeros((1, 1), int))
    assert loading.facts(loading.Dataset(samples, [], None, None, classes=("s",)))["sizes"] == (1, 3)


def test_images_are_coloured_where_a_hundredth_of_the_pixels_differs_by_32():
    for differ, by, coloured in ((1, 32, True), (1, 31, False), (0, 0, False)):
        images = np.full((1, 10, 10, 3), 100, np.uint8)
        images[0, 0, :differ, 2] += np.uint8(by)
        assert caveats.coloured(images) == coloured
    assert not caveats.coloured(np.concatenate([images, images]) + 0) and not caveats.coloured(images[:0])
