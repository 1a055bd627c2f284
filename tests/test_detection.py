"""Detection: tiles and their boxes, merging, thresholds and scores worked out by hand, heads against naive loops."""

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
    """A fake detector that finds the boxes of bright regions, the largest first, at most four per image."""

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
        # A pixel's colour encodes its position: twice the coordinate of its centre minus a half.
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
    # The fake detector finds at most four objects per tile: enough for this grid.
    result = detection.predict(seer((96, 96)), [], samples)
    names, found, scores, _ = result
    assert names.tolist() == ["a.png"]
    whole = found[0][scores[0] > 0]
    # A square that a tile's border cuts off is whole in another tile.
    result = detection.with_truth(result, {"a.png": annotation}, ("s",), 0)
    assert len(whole) == len(boxes)
    assert detection.recalled(result, np.array([0.0])).all()


@pytest.mark.parametrize("turned", [False, True])
def test_predict_drops_pieces_at_tile_borders(turned):
    """Tiles 96 px wide at 0 and 72 share 24 px: each shows 3 of the 9 px of a square that the other shows whole."""
    size, corners = (96, 168), [(66, 20), (93, 50)]
    if turned:
        size, corners = size[::-1], [corner[::-1] for corner in corners]
    image, boxes = squares(size, corners)
    annotation = BoxAnnotation("a.png", boxes, ("s",) * 2)
    tiles = [(annotation, 0, *tile) for tile in objects.cut(image, (96, 96), fit="tile", overlap=24)]
    assert len(tiles) == 2
    found = detection.predict(seer((96, 96)), [], objects.samples(tiles, (96, 96), ("s",)))
    assert sorted(found.boxes[0][found.scores[0] > 0].tolist()) == sorted(boxes.tolist())


def test_networks_are_decoded_before_they_are_joined():
    # Outputs for different proposals must not be averaged: the mean of these boxes lies where there is no object.
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


def test_cut_off_marks_boxes_at_inner_tile_borders():
    # Two adjacent tiles of a photograph 100 high and 180 wide; they share 20 columns.
    boxes = np.tile(np.array([[0.0, 5, 10, 20], [95, 5, 100, 20], [40, 0, 50, 100], [1, 5, 99, 20]]), (2, 1, 1))
    found = detection.cut_off(boxes, np.array([(0, 0), (0, 80)]), np.array([(100, 180)] * 2), (100, 100))
    np.testing.assert_array_equal(found, [[False, True, False, False], [True, False, False, False]])


def test_merging_drops_pieces_covered_by_a_whole_box():
    # Two tiles 100 px wide share 20 columns; a square of side 15 crosses the border of the first, which shows a third.
    boxes = np.array([[[95, 40, 100, 55], [10, 10, 25, 25]], [[95, 40, 110, 55], [0, 0, 0, 0]]], float)
    scores, classes = np.array([[0.9, 0.8], [0.7, 0.0]]), np.zeros((2, 2), int)
    cut = np.array([[True, False], [False, False]])
    merged = functools.partial(detection.merged, overlap=0.4)
    found, values, _ = merged(boxes, scores, classes, cut)
    np.testing.assert_allclose(found, [[10, 10, 25, 25], [95, 40, 110, 55]])
    np.testing.assert_allclose(values, [0.8, 0.7])
    # Boxes of the same tile do not suppress each other.
    assert len(merged(boxes[:1, [0, 0]], scores[:1], classes[:1], cut[:1])[0]) == 2
    # A piece is kept if no tile shows the object whole, or if the whole box is of another class.
    assert len(merged(boxes, scores * [[1, 1], [0, 0]], classes, cut)[0]) == 2
    assert len(merged(boxes, scores, classes + [[0, 0], [1, 0]], cut)[0]) == 3
    # It is kept, too, if the whole box scores less than half as much: else a threshold could lose the object.
    _, values, _ = merged(boxes, np.array([[0.9, 0.8], [0.44, 0.0]]), classes, cut)
    assert values.tolist() == [0.9, 0.8, 0.44]
    # Of two whole boxes only the better one is kept if their IoU, 5 / 25, exceeds `overlap`.
    both = np.array([[[40, 40, 55, 55]], [[50, 40, 65, 55]]], float), np.array([[0.9], [0.8]])
    for overlap, left in ((0.21, 2), (0.19, 1)):
        assert len(detection.merged(*both, np.zeros((2, 1), int), np.zeros((2, 1), bool), overlap=overlap)[0]) == left
        # The same holds if a border may have cut one off and the other covers only a third of it.
        assert (
            len(detection.merged(*both, np.zeros((2, 1), int), np.array([[0], [1]], bool), overlap=overlap)[0]) == left
        )


def by_hand():
    """Two images: two of three objects found and a false alarm 7 px from the third; one object, detected 5 px off."""
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
    # At 0.25 the fourth counts: no hit with an IoU of 1/3, but its centre is within 6 px, unlike the false alarm's.
    lower = detection.summarise(found, 0.25, ("s",))
    np.testing.assert_allclose([lower["f1"], lower["f1_golden"]], [4 / 8, 6 / 8])
    assert detection.summarise(found, 0.0, ("s",))["detections"] == 4  # a score of 0 is no detection
    assert detection.recalled(found, np.array([0.35, 0.35])).tolist() == [[True, True, False], [False, False, False]]
    # F1 with one, two, three and four detections: 2/5, 2/6, 4/7, 4/8. The last counts as good as the best, 4/7, as it
    # is lower by less than a fifth of 3/7: the threshold is the middle of 0.4 and 0.
    np.testing.assert_allclose(detection.best_threshold(found), 0.2)
    # All objects outscore the false alarm: between 0.9 and 0.2 the F1 is 1, so the threshold is the middle; with three
    # detections it is 6/7, which is not as good.
    perfect = found._replace(boxes=np.pad(found.true, ((0, 0), (0, 2), (0, 0))), scores=np.array([[0.95, 0.92, 0.91, 0.2, 0], [0.9, 0, 0, 0, 0]]),
                             classes=np.zeros((2, 5), int))  # fmt: skip
    np.testing.assert_allclose(detection.best_threshold(perfect), 0.55)
    # COCO's AP: precision 1 up to a recall of 1/4 (26 of 101 points), 2/3 up to 1/2 (25 more).
    np.testing.assert_allclose(summary["map50"], (26 + 25 * 2 / 3) / 101, rtol=1e-5)
    assert np.isnan(detection.summarise(found, 0.95, ("s",))["precision"])


def test_no_threshold_lies_between_equal_scores():
    true = np.float64([[[0, 0, 10, 10], [20, 0, 30, 10]]])
    far = [[x, 50, x + 10, 60] for x in (0, 20, 40)]
    found = detection.Objects(
        np.array(["a"]), np.zeros(1, int), np.float64([[*true[0], *far]]), np.array([[0.95, 0.9, 0.9, 0.9, 0.9]]),
        np.zeros((1, 5), int), true, np.zeros((1, 2), int),
    )  # fmt: skip
    # F1 of all five: 2 * 2 / (5 + 2) = 0.571; of the first alone: 2 / (1 + 2) = 0.667.
    assert detection.best_threshold(found) == pytest.approx((0.95 + 0.9) / 2)


def naive_threshold(scores, right, total):
    """Tries each number of top detections; extends from the best F1 to both sides while it is nearly as good."""
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
def test_best_threshold_matches_an_exhaustive_search(seed):
    rng = np.random.default_rng(seed)
    true = np.zeros((2, 4, 4))
    true[:, :, :2] = rng.integers(0, 5, (2, 4, 2)) * 12
    true[:, :, 2:] = true[:, :, :2] + 10
    scores = (rng.permutation(20) / 20).reshape(2, 10) * (rng.random((2, 10)) > 0.2)  # no ties but at 0
    pick = rng.integers(0, 4, (2, 10))
    boxes = np.take_along_axis(true, pick[..., None], 1) + rng.normal(size=(2, 10, 1)) * 3
    classes, labels = np.zeros((2, 10), int), np.zeros((2, 4), int)
    found = detection.Objects(np.array(["a", "b"]), np.zeros(2, int), boxes, scores, classes, true, labels)
    assert detection.best_threshold(found) == pytest.approx(naive_threshold(scores, detection.hits(found), 8))


def test_folds_with_different_numbers_of_objects_are_joined():
    one = by_hand()
    # The other fold has room for one detection and two objects per image, this one for three of each.
    other = one._replace(
        boxes=one.boxes[:, :1], scores=one.scores[:, :1], classes=one.classes[:, :1], fold=np.ones(2, int),
        true=one.true[:, :2], labels=one.labels[:, :2],
    )  # fmt: skip
    both = detection.join([one, other])
    assert both.boxes.shape == both.true.shape == (4, 3, 4)
    assert (both.scores[2:, 1:] == 0).all()
    assert both.labels.tolist() == [[0, 0, 0], [0, -1, -1], [0, 0, -1], [0, -1, -1]]


def two_classes():
    """One image with an object of each of two classes; both are detected in place, as the second class."""
    true = np.array([[[0, 0, 10, 10], [40, 0, 50, 10]]], float)
    scores, classes, labels = np.array([[0.9, 0.8]]), np.array([[1, 1]]), np.array([[0, 1]])
    return detection.Objects(np.array(["a"]), np.zeros(1, int), true.copy(), scores, classes, true, labels)


# Boxes of 10x10 that lie d pixels apart have an IoU of (10 - d) / (10 + d): 0.41, 0.39; 0.51, 0.49.
@pytest.mark.parametrize(
    ("far", "f1", "map50"), [(4.17, 1, 0), (4.4, 0, 0), (3.24, 1, 1), (3.43, 1, 0)], ids="0.41 0.39 0.51 0.49".split()
)
def test_hits_need_an_iou_of_0_4_and_map50_of_0_5(far, f1, map50):
    true = np.array([[[20.0, 20, 30, 30]]])
    one = np.ones((1, 1))
    found = detection.Objects(np.array(["a"]), np.zeros(1, int), true + [far, 0, far, 0], one, 0 * one, true, 0 * one)
    summary = detection.summarise(found, 0.5, ("p",))
    assert (summary["f1"], summary["map50"]) == (f1, pytest.approx(map50))
    assert summary["map"] == pytest.approx(map50 / 10)  # 0.51 is enough for one of COCO's ten thresholds


@pytest.mark.parametrize(("far", "f1"), [(5.95, 1), (6.05, 0)])
def test_golden_hits_need_centres_within_6_px(far, f1):
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
    # For q a false alarm outscores the hit: a precision of 1/2 at every recall.
    both = {key: [one[key] for one in summary["by_class"].values()] for key in summary["by_class"]["p"]}
    assert both["objects"] == [1, 1] and both["detections"] == [0, 2] and both["ap50"] == [0, pytest.approx(1 / 2)]
    assert both["recall"] == [0, 1] and both["precision"] == [pytest.approx(np.nan, nan_ok=True), 1 / 2]
    assert both["f1"] == [0, pytest.approx(2 / 3)]


def test_the_deviation_over_folds_needs_two_folds_with_objects():
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


def test_a_class_without_detections_is_named():
    counts = {"p": (2, 1), "q": (3, 0), "r": (0, 0), "s": (0, 2)}
    (told,) = detection.undetected_class_problems(
        {name: {"objects": n, "detections": m} for name, (n, m) in counts.items()}
    )
    assert told["what"].startswith("there are 3 objects of class q, but no detection of it above")


def test_the_overall_threshold_is_the_unweighted_mean_over_folds():
    found = two_classes()
    thrice = detection.join([found, found, found])._replace(fold=np.array([0, 0, 1]))
    summary = detection.by_fold(thrice, np.array([0.2, 0.2, 0.6]), ("p", "q"))
    assert summary["threshold"] == pytest.approx(detection.threshold_of([{"threshold": 0.2}, {"threshold": 0.6}]))


def test_a_fold_is_scored_as_if_it_were_alone():
    rng = np.random.default_rng(0)
    true = rng.uniform(0, 90, (9, 4, 2)).repeat(2, 1).reshape(9, 4, 4) + [0, 0, 10, 10]
    boxes = true[:, rng.integers(4, size=6)] + rng.uniform(-4, 4, (9, 6, 4))
    scores = np.round(rng.uniform(0, 1, (9, 6)), 1)  # with ties, and some 0
    labels = rng.integers(-1, 2, (9, 4))
    each = detection.Objects(
        np.array([f"{n}.png" for n in range(9)]), np.arange(9) % 3, boxes, scores, rng.integers(0, 2, (9, 6)), true, labels
    )  # fmt: skip
    threshold = rng.uniform(0, 1, 9)
    for found in detection.by_fold(each, threshold, ("p", "q"))["folds"]:
        mine = each.fold == found.pop("fold")
        alone = detection.summarise(detection.Objects(*(x[mine] for x in each)), threshold[mine], ("p", "q"))
        assert json.dumps(alone, sort_keys=True) == json.dumps(found, sort_keys=True)


def test_objects_csv_marks_which_objects_are_hit(tmp_path):
    detection.write(tmp_path, two_classes(), 0.5, ("p", "q"))
    with (tmp_path / "objects.csv").open() as file:
        assert [(row["class"], row["hit"]) for row in csv.DictReader(file)] == [("p", "0"), ("q", "1")]


def test_threshold_without_detections_and_of_several_networks():
    found = two_classes()
    assert detection.best_threshold(found._replace(scores=np.zeros((1, 2)))) == 0.5
    assert detection.threshold_of([{"threshold": 0.2}, {"threshold": 0.6}, {"threshold": 0.7}]) == pytest.approx(0.5)


def test_objects_of_unknown_classes_are_ignored():
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


def test_centre_head_decodes_outputs_of_low_loss_to_the_boxes():
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


def test_centre_loss_matches_its_formula():
    head = heads.build({"name": "centre", "sigma": 4.0, "size_weight": 0.5}, size=(32, 32), classes=1, sizes=(8.0, 8.0))
    outputs = np.random.default_rng(0).normal(size=(1, 16, 16, 5)).astype(np.float32)
    # A 9x12 box centred at (9.5, 15): in maps of stride 2 its centre is (4.75, 7.5), in pixel (4, 7).
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


def test_centre_head_decodes_5_times_and_a_fifth_of_the_typical_size():
    head = heads.build({"name": "centre", "limit": 1}, size=(64, 64), classes=1, sizes=(8.0, 8.0))
    outputs = np.full((1, 32, 32, 5), -9.0, np.float32)
    outputs[0, 16, 16] = 9, 0.5, 0.5, np.log(5), np.log(1 / 5)
    found = head.decode(jnp.asarray(outputs))
    # 40 px wide and 1.6 px high, centred at (33, 33).
    np.testing.assert_allclose(found.boxes[0, 0], [13, 32.2, 53, 33.8], atol=1e-3)


def test_focal_loss_matches_its_formula():
    from jaxmarks.heads import centre

    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=50) * 3, np.concatenate([np.ones(5), rng.random(45)])
    p = 1 / (1 + np.exp(-logits))
    expected = np.where(target == 1, -((1 - p) ** 2) * np.log(p), -((1 - target) ** 4) * p**2 * np.log(1 - p))
    np.testing.assert_allclose(centre.focal(jnp.float32(logits), jnp.float32(target)), expected, rtol=2e-5, atol=1e-6)


def test_yolo_loss_matches_a_naive_loop():
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


def test_yolo_decodes_boxes_and_suppresses_duplicates():
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


def test_yolo_confidence_loss_has_no_gradient_for_boxes():
    """The IoU that the confidence is trained to predict is a constant: with `coordinates` 0 boxes have no gradient."""
    spec = {"name": "yolo", "coordinates": 0.0, "without_object": 0.0}
    head = heads.build(spec, size=(64, 64), classes=1, anchors=[[10.0, 12.0]])
    targets = head.targets(batch_of([[[4, 6, 14, 18]]], [[0]], (64, 64)))
    gradient = jax.grad(lambda outputs: head.loss(outputs, targets)[0])(jnp.zeros((1, 2, 2, 1, 6)))
    assert not gradient[..., :4].any()
    assert gradient[0, 0, 0, 0, 4] != 0


def test_suppression_is_per_class_and_frees_places_for_others():
    # The third duplicates the first, the second is of another class: with room for three, the fourth is kept.
    boxes = jnp.float32([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 30, 30]])
    found = heads.suppressed(boxes, jnp.float32([0.9, 0.8, 0.7, 0.6]), jnp.array([0, 1, 0, 0]), limit=3, overlap=0.4)
    np.testing.assert_allclose(found.scores, [0.9, 0.8, 0.6])
    assert found.classes.tolist() == [0, 1, 0]


def test_suppressed_boxes_move_the_kept_box_if_they_vote():
    # The second box has the first's class and half its score, 1.5 px to the right; another class does not vote.
    boxes = jnp.float32([[0, 0, 10, 10], [1.5, 0, 11.5, 10], [4, 0, 14, 10]])
    for vote, shift in ((True, 0.5), (False, 0)):
        scores, classes = jnp.float32([0.8, 0.4, 0.3]), jnp.array([0, 0, 1])
        found = heads.suppressed(boxes, scores, classes, limit=3, overlap=0.4, vote=vote)
        np.testing.assert_allclose(found.boxes[:2], [[shift, 0, 10 + shift, 10], [4, 0, 14, 10]], rtol=1e-6)
        np.testing.assert_allclose(found.scores, [0.8, 0.3, 0])


@pytest.mark.parametrize("name", ["yolo", "faster_rcnn", "centre", "sp_cnn"])
def test_networks_are_joined_by_the_heads_overlap(name):
    config = get_config(f"{name},smoke")
    facts = {"classes": 1, "sizes": (10.0, 10.0), "anchors": [[10.0, 10.0]] * 3}
    # Two networks detect one object 4 pixels apart: an IoU of 3/7.
    two = heads.Detections(
        np.float32([[[[0, 0, 10, 10]], [[4, 0, 14, 10]]]]), np.float32([[[0.8], [0.4]]]), np.zeros((1, 2, 1), int)
    )
    for overlap, expected in ((None, 0.6), (0.5, 0.4), (0.3, 0.6)):  # one object, or two that one network each missed
        spec = {**config.head.to_dict(), "overlap": overlap}
        spec.pop("anchor_count", None)
        known = {key: facts[key] for key in facts if key != "anchors" or name in ("yolo", "faster_rcnn")}
        joined = heads.build(spec, size=(64, 64), **known).join(two)
        np.testing.assert_allclose(joined.scores, [[expected]], rtol=1e-6)


def crowd(pairs):
    """100 photographs with one box of class 1 and two of class 0, `pairs` px apart in the first photographs."""
    boxes = np.tile(np.float32([[0, 0, 10, 10], [20, 20, 30, 30], [20, 20, 30, 30]]), (100, 1, 1))
    for n, shift in enumerate(pairs):
        boxes[n, 1] = [shift, 0, 10 + shift, 10]
    labels = np.tile(np.int32([0, 0, 1]), (100, 1))
    return types.SimpleNamespace(boxes=boxes, labels=labels)


@pytest.mark.parametrize(
    ("pairs", "overlap"),
    [
        ([], 0.2),  # the third box is of another class, so no neighbour
        ([2.0], 0.2),  # one pair in a hundred photographs may be a mistake
        ([4.0] * 20, 6 / 14),
        ([2.0] * 20, 0.5),
        ([1.0] * 20, 0.2),  # one object, annotated twice
    ],
)
def test_the_overlap_of_adjacent_objects_is_learnt_from_the_data(pairs, overlap):
    config = get_config("yolo")
    found = tasks.fitted_facts(config, crowd(pairs), ())
    np.testing.assert_allclose(found["overlap"], overlap, rtol=1e-6)
    assert len(found["anchors"]) == 3
    assert "anchors" not in tasks.fitted_facts(get_config("centre"), crowd(pairs), ())
    config.head.overlap = 0.6  # chosen by the user: also used to merge tiles
    assert detection.overlap_of([{"facts": tasks.fitted_facts(config, crowd(pairs), ())}]) == 0.6


def test_a_configured_overlap_overrides_the_learnt_one():
    # Two peaks 8 pixels apart, with boxes 16 wide: an IoU of a third.
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


# End to end.


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Fourteen images of different sizes, all but one with squares."""
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
            "data.overlap": 32, "split.folds": 2, "model.width": 8, "model.depth": 2, "model.stride": 2, "train.steps": 200,
            "train.batch_size": 4, "optimizer.learning_rate": 5e-3,
        } | changes
    )  # fmt: skip
    return config


@pytest.fixture(scope="module")
def squares_found(data, tmp_path_factory):
    """A run on the squares, and its dataset."""
    run = tmp_path_factory.mktemp("squares_found") / "run"
    return run, train.train(small(data), run)["train"]


def test_a_detector_is_trained_evaluated_reported_and_applied(data, squares_found, tmp_path, about_of):
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
    for n in range(0, 14, 2):  # no group is split between folds
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
    # The two folds' networks disagree by a pixel or two, and rounding decides whose box is shown.
    np.testing.assert_allclose(mine[np.lexsort(np.round(mine / 5).T)], alike[order], atol=3)
    again = evaluate.of_new_data(run, dataset, tmp_path / "again")
    assert again["f1"] > 0.8
    # From the command line without --config, on photographs enlarged twofold; then on one, whose overlay alone remains.
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
    off = lambda boxes: np.abs(true[:, None] - boxes).max(-1).min(-1)  # of each object's nearest box
    assert (off(alike) < 4).any() and (off(doubled / 2)[off(alike) < 4] < 6).all()


def scored(run, images, boxes, out):
    """Evaluates a run on other data, loaded as by --mode=evaluate, and returns the summary."""
    data = runs.settings_of(run).data
    data.update({"images": str(images), "boxes": str(boxes)})
    return evaluate.of_new_data(run, loading.load(data), out)


def test_a_single_class_is_evaluated_whatever_its_name(data, squares_found, tmp_path):
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


def test_photographs_without_objects_count_only_false_alarms(squares_found, tmp_path):
    """Four black photographs, and one with a square that is not annotated."""
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


CLASSES = {"bar": (8, 20), "box": (20, 18), "dot": (8, 8)}  # (w, h), scaled by 0.8 to 1.5 for each object


@pytest.fixture(scope="module")
def three_classes(tmp_path_factory):
    """Ninety images of bright objects of three classes, 6 to 30 px, some across the border; every tenth is empty."""
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
def test_three_classes_of_mixed_sizes_are_detected(three_classes, detector, changes, tmp_path):
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
    close = collections.defaultdict(list)  # by class, the IoU of each hit with its object
    true = {image: np.float64([box for _, box in boxes]) for image, boxes in rows_of(tmp_path / "objects.csv").items()}
    for image, found in rows_of(tmp_path / "predictions.csv").items():
        for row, box in found:
            if row["hit"] == "1" and row["above_threshold"] == "1":
                close[row["class"]].append(float(box_ops.iou(np.float64([box]), true[image]).max()))
    assert sorted(close) == sorted(CLASSES) and min(map(np.median, close.values())) > 0.6


def rows_of(path):
    """Reads a table of boxes; returns its rows by image, each with its box."""
    rows = collections.defaultdict(list)
    with path.open() as file:
        for row in csv.DictReader(file):
            rows[row["image"]].append((row, [float(row[key]) for key in ("x0", "y0", "x1", "y1")]))
    return rows


def test_the_papers_split_divides_groups_but_not_photographs(data):
    config = get_config("random")
    config.update_from_flattened_dict(
        {"data.images": str(data), "data.boxes": str(data / "boxes.csv"), "data.size": (64, 64), "split.folds": 5}
    )
    samples = loading.load(config.data).samples
    assert len(samples) > 14  # tiles
    parts = [samples.take(rows) for rows in splits.member_split(config, samples, runs.Member(0), 1)]
    assert [len(np.unique(part.name)) for part in parts] == [10, 1, 3]
    assert not set(parts[0].name) & set(parts[2].name)
    assert set(parts[0].group) & set(parts[2].group)  # the other photograph of a group is trained on


def test_entries_of_one_photograph_are_merged(tmp_path):
    """Otherwise they could be split between training and test, and the objects of one be false alarms in the other."""
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


def test_the_error_for_no_usable_photograph_has_the_reason(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    header = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
    (tmp_path / "boxes.csv").write_text(header + "a.png,30,40,spot,2,2,8,8\n")
    with pytest.raises(ValueError, match="annotated at 30x40 pixels, but the photograph has 40x30"):
        objects.load(tmp_path, tmp_path / "boxes.csv", size=(32, 48))


def naive_merge(boxes, scores, classes, cut, overlap):
    """Compares box by box, whole ones first and each kind by falling score, with all that are kept."""
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
def test_merging_tiles_matches_a_naive_loop(seed):
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


def test_photographs_absent_from_the_file_are_counted(data, tmp_path):
    shutil.copytree(data, tmp_path / "more")
    for name in ("x.png", "y.png"):
        shutil.copy(data / "3.png", tmp_path / "more" / name)
    *_, problems = objects.load(tmp_path / "more", data / "boxes.csv", size=(64, 64))
    assert [p["image"] for p in problems] == ["x.png"]
    assert problems[0]["what"].startswith("2 photographs")


def test_boxes_that_do_not_fit_are_reported(tmp_path):
    """Photographs of 40x30: annotated as stored, at twice the size, upright by EXIF, and with boxes outside."""
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
    # Upright, the photograph is 30 wide and its top is the stored left edge: x is 30 - the stored y, y the stored x.
    np.testing.assert_array_equal(upright.boxes, [[4, 22, 14, 28]])
    assert outside.classes == ("stub",) and classes == ("spine", "stub")
    assert [label[label >= 0].tolist() for label in samples.labels] == [[0], [0], [1]]


def test_labelme_boxes_are_in_upright_coordinates(tmp_path):
    """EXIF rotates the photograph by 180 degrees, which its sides do not reveal; beside it one that is not rotated."""
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


def test_the_typical_size_is_the_median_without_padding(data):
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
def test_splitting_tiles_at_random_is_refused(data, tmp_path, folds):
    with pytest.raises(ValueError, match=r"split\.by=random would divide a photograph's tiles"):
        train.train(small(data, **{"split.by": "random", "split.folds": folds}), tmp_path)


def test_an_ensemble_on_streamed_images_without_validation(data, tmp_path):
    """Two networks are trained, blobs are fitted on the streamed images, and caveats say how thresholds were chosen."""
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


def test_yolo_labels_load_as_the_same_samples_as_a_csv(data, tmp_path):
    """Including those of a photograph without objects, with classes.txt beside them."""
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


def test_gaps_in_a_detectors_data_are_caveats(data):
    """No test images, no objects in validation, a class without training images, and colours that it does not see."""
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


def test_thresholds_are_chosen_on_images_with_objects(data, monkeypatch):
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


def test_tiles_with_objects_are_oversampled_only_in_training():
    settings, split = get_config("own"), splits.Split(np.arange(8), np.arange(8, 12), np.arange(0))
    empty = np.array([1] * 7 + [0] + [1, 1, 1, 0])
    plan = train.plan_of(settings, split, empty, runs.Member(0), 1)
    np.testing.assert_array_equal(plan.valid, np.arange(8, 12))
    shown = np.concatenate([splits.epoch(plan.train, plan.stratum, np.random.default_rng(n)) for n in range(200)])
    np.testing.assert_allclose((shown == 7).mean(), 0.5, atol=0.05)
    settings.train.balance = "group"
    assert len(train.plan_of(settings, split, empty, runs.Member(0), 1).valid) == 6


@pytest.mark.parametrize(("side", "scale"), [(3, 4), (14, 1.4), (15, 1), (28, 1), (29, 0.69), (100, 0.2)])
def test_fitting_scale_makes_the_typical_object_20_px_wide(side, scale, tmp_path):
    """The scale is at most 4, and 1 if the size is nearly right; missing photographs do not count.

    Also from YOLO labels, which are fractions of the photograph.
    """
    drawn(tmp_path, side, count=2)
    known = box_files.read(tmp_path / "boxes.csv")
    missing = [BoxAnnotation(f"missing_{n}.png", np.float64([[0, 0, 300, 300]]), ("square",)) for n in range(9)]
    box_files.write(tmp_path / "boxes.csv", known + missing)
    assert objects.fitting_scale(objects.typical_sides(tmp_path, tmp_path / "boxes.csv"), side=20) == scale
    (tmp_path / "classes.txt").write_text("square\n")
    for n in range(2):
        share = side / 400
        (tmp_path / f"s0_{n}.txt").write_text(f"0 0.5 0.5 {share} {share}\n")
    assert objects.fitting_scale(objects.typical_sides(tmp_path, tmp_path), side=20) == scale


@pytest.mark.parametrize(
    ("sides", "scale"),
    [((20,), 1), ((5, 80), 1), ((10, 160), 1), ((20, 170), 0.5), ((40, 1000), 0.25), ((3, 6), 4), ((100, 60, 20), 0.5)],
)
def test_fitting_scale_suits_the_smallest_and_the_largest_class(sides, scale):
    """Their geometric mean becomes 20 px wide, unless the smallest class would be less than 10 px wide."""
    assert objects.fitting_scale(dict(zip("abc", sides, strict=False)), side=20) == scale


def test_fitting_scale_leaves_a_single_class_the_side_asked_for():
    assert objects.fitting_scale({"a": 100}, side=5) == 0.05
    assert objects.fitting_scale({}, side=20) == 1


@pytest.mark.parametrize(
    ("sides", "scale", "overlap"),
    [((), 1, 32), ((28,), 1, 32), ((20, 170.0), 0.5, 85), ((10, 57.2), 1, 58), ((10, 300), 1, 106)],
)
def test_fitting_overlap_holds_the_largest_class(sides, scale, overlap):
    """The overlap is at least the minimum, and at most two thirds of the tile."""
    sides = dict(zip("ab", sides, strict=False))
    assert objects.fitting_overlap(sides, scale=scale, size=(160, 200), minimum=32) == overlap


@pytest.mark.parametrize("detector", ["centre", "yolo"])
@pytest.mark.parametrize("side", [3, 20, 60])
def test_a_single_class_leaves_the_overlap_at_its_minimum(side, detector, tmp_path):
    drawn(tmp_path, side, count=2)
    config = get_config(f"own,{detector}")
    config.data.update({"images": str(tmp_path), "boxes": str(tmp_path / "boxes.csv")})
    fitting.fill_in(config.data)
    assert config.data.overlap == get_config(detector).data.overlap == {"centre": 32, "yolo": 64}[detector]


def test_a_run_keeps_the_overlap_fitted_to_its_largest_class(tmp_path, capsys):
    drawn_classes(tmp_path, {"small": 20, "large": 170})
    small_config = lambda **changes: small(
        tmp_path,
        **{"data.size": (160, 160), "data.scale": 0.0, "data.overlap": 0, "train.steps": 1, "split.run": (0,)}
        | changes,
    )
    for _ in range(2):  # the same command finds the same run
        config = small_config()
        train.train(config, tmp_path / "run")
        assert (config.data.scale, config.data.overlap) == (0.5, 85)
        assert runs.config_of(tmp_path / "run").data.overlap == 85
        assert "neighbouring tiles share 85 pixels" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"holds a run with --config.data.min_overlap=32, not 40. Name another"):
        train.train(small_config(**{"data.min_overlap": 40}), tmp_path / "run")
    config = small_config(**{"data.fit": "pad"})
    fitting.fill_in(config.data)
    assert config.data.overlap == 32


@pytest.mark.parametrize("overlap", [0, 32])
def test_a_run_older_than_min_overlap_keeps_its_overlap(overlap, tmp_path):
    """Also an overlap of 0, which then was not open."""
    drawn_classes(tmp_path, {"small": 20, "large": 170})
    older = small(tmp_path, **{"data.scale": 0.3, "data.overlap": overlap})
    del older.data["min_overlap"]
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    configs.save(older, tmp_path / "run" / "config.json")
    config = small(tmp_path, **{"data.scale": 0.0, "data.overlap": 0})
    train.fill_in(config, tmp_path / "run")
    assert (config.data.scale, config.data.overlap) == (0.3, overlap)
    assert configs.differences(older, config) == []
    fitting.fill_in(older.data)  # as --mode=describe does
    assert older.data.overlap == overlap


def test_a_run_keeps_the_scale_fitted_to_its_objects(tmp_path, capsys):
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


def test_the_scale_of_other_photographs_must_not_be_0(monkeypatch):
    data = get_config().data
    for said, found in (({}, None), ({"data.scale": 0.5}, 0.5)):
        monkeypatch.setattr(main, "overrides", lambda said=said: said)
        assert main.given_scale(data) == found
    monkeypatch.setattr(main, "overrides", lambda: {"data.scale": 0.0})
    with pytest.raises(ValueError, match=r"data\.scale=0.0: it must be from 0.01 to 100; the run has 1"):
        main.given_scale(data)


def drawn(folder, side, count=6, size=(400, 400)):
    """Writes photographs of two squares each, and their boxes."""
    annotations = []
    for n in range(count):
        image, boxes = squares(size, [(5, 5), (150, 200)], side)
        image[-1, -1] = n  # so that all contents differ
        Image.fromarray(image).save(folder / f"s{n // 2}_{n}.png")
        annotations.append(BoxAnnotation(f"s{n // 2}_{n}.png", boxes, ("square",) * 2))
    box_files.write(folder / "boxes.csv", annotations)


@pytest.mark.parametrize(("side", "advice"), [(3, "6.7"), (15, None), (100, "0.2")])
def test_objects_too_small_or_large_are_reported_with_a_better_scale(side, advice, tmp_path):
    drawn(tmp_path, side)
    problems = objects.load(tmp_path, tmp_path / "boxes.csv", size=(160, 160))[-1]
    assert [f"--config.data.scale={advice} makes it 20" in p["what"] for p in problems] == [True] * bool(advice)
    if side == 100:  # not to more than tiles share
        (told,) = objects.load(tmp_path, tmp_path / "boxes.csv", size=(160, 160), overlap=10)[-1]
        assert "tiles cut it apart: --config.data.scale=0.1 makes it 10" in told["what"]
    whole = objects.load(tmp_path, tmp_path / "boxes.csv", size=(416, 416))[-1]  # no photograph is cut into tiles
    assert len(whole) == (side == 3)
    (told,) = objects.load(tmp_path, tmp_path / "boxes.csv", size=(416, 416), scale=1 / (2 * side))[-1]
    advised = re.search(
        r"is 0\.[45]\d* pixels wide .* too small to be found reliably: --config\.data\.scale=(\S+) makes it 20",
        told["what"],
    )
    assert float(advised[1]) == pytest.approx(20 / side, rel=0.05)


def drawn_classes(folder, sides, size=(400, 400)):
    """Writes three photographs with a square of each class, of side `sides[class]`, and their boxes."""
    annotations = []
    for n in range(3):
        image, corners = np.zeros((*size, 3), np.uint8), np.cumsum([5, *(side + 5 for side in sides.values())])[:-1]
        boxes = [(at, at, at + side, at + side) for at, side in zip(corners, sides.values(), strict=True)]
        for x0, y0, x1, y1 in boxes:
            image[y0:y1, x0:x1] = 255
        image[-1, -1] = n
        Image.fromarray(image).save(folder / f"{n}.png")
        annotations.append(BoxAnnotation(f"{n}.png", np.array(boxes, float), tuple(sides)))
    box_files.write(folder / "boxes.csv", annotations)


@pytest.mark.parametrize(
    ("sides", "scale", "overlap", "told"),
    [
        ({"small": 20, "large": 170}, 0.5, 85, {}),
        (
            {"small": 20, "large": 170}, 0.5, 32,
            {"large": "large is 85.0 pixels wide in the network's frame, so large that tiles cut it apart: no scale suits"
             " all classes, but --config.data.overlap=85 lets tiles hold objects of up to 85 pixels whole"},
        ),
        (
            {"small": 20, "large": 170}, 1.0, 32,
            {"large": "--config.data.scale=0.5 --config.data.overlap=85 make the classes' typical objects 10 to 85"},
        ),
        (
            {"small": 10, "large": 170}, 0.5, 32,
            {"small": '--config.data.scale=1 --config.data.overlap=170 --config.data.size="(256,256)" make',
             "large": '--config.data.scale=1 --config.data.overlap=170 --config.data.size="(256,256)" make'},
        ),
        (
            {"small": 30, "large": 70}, 1.0, 32,
            {"large": "--config.data.scale=0.44 makes the classes' typical objects 13 to 31 pixels wide"},
        ),
        (
            {"small": 14, "large": 42}, 1.0, 32,
            {"large": "--config.data.scale=0.76 makes the classes' typical objects 11 to 32"},
        ),
        (
            {"small": 5, "middle": 7, "large": 12}, 1.0, 32,
            {"small": "--config.data.scale=2.6 makes the classes' typical objects 13 to 31 pixels wide"},
        ),
    ],
)  # fmt: skip
def test_classes_too_small_or_large_are_reported_with_keys_that_suit_all(sides, scale, overlap, told, tmp_path):
    drawn_classes(tmp_path, sides)
    load = functools.partial(objects.load, tmp_path, tmp_path / "boxes.csv")
    problems = load(size=(160, 160), scale=scale, overlap=overlap)[-1]
    by_class = {re.search(r"typical object of class (\w+) is", p["what"])[1]: p for p in problems}
    assert by_class.keys() == told.keys()
    for name, words in told.items():
        assert words in by_class[name]["what"]
        advised = dict(re.findall(r"--config\.data\.(\w+)=(\S+)", by_class[name]["what"]))
        side = int(re.search(r"\d+", advised.get("size", "160"))[0])
        keys = {"scale": float(advised.get("scale", scale)), "overlap": int(advised.get("overlap", overlap))}
        assert load(size=(side, side), **keys)[-1] == []
        assert by_class[name]["where"].split() == [f"--config.data.{key}" for key in advised]


def test_boxes_are_read_under_their_photographs_names(tmp_path):
    """So that corrected boxes can replace them, also YOLO's and those of a file that names photographs differently."""
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


def test_groups_are_captured_from_file_names(tmp_path):
    drawn(tmp_path, 15)
    by_name, alone = (
        objects.load(tmp_path, tmp_path / "boxes.csv", size=(416, 416), group_by=pattern)[0].group
        for pattern in (r"^s(\d)_", "")
    )
    assert by_name.tolist() == [0, 0, 1, 1, 2, 2] and alone.tolist() == list(range(6))


def test_tile_options_are_checked(data):
    with pytest.raises(ValueError, match=r"--config\.data\.fit=tiles: choose one of tile, pad, stretch"):
        configs.check(small(data, **{"data.fit": "tiles"}))
    with pytest.raises(ValueError, match=r"--config\.data\.overlap=64: give less than both sides"):
        loading.load(small(data, **{"data.overlap": 64}).data)


def two_of(fold, scores=(0.9, 0.8)):
    """One photograph of a fold with two objects, both detected in place, with these scores."""
    true = np.array([[[0, 0, 10, 10], [40, 0, 50, 10]]], float)
    zero = np.zeros((1, 2), int)
    return detection.Objects(
        np.array([f"{fold}.png"]), np.array([fold]), true.copy(), np.array([scores]), zero, true, zero
    )


def test_images_outside_all_folds_do_not_affect_the_deviation():
    both = detection.join([two_of(0), two_of(1, (0.9, 0.0)), two_of(-1, (0.0, 0.0))])
    summary = detection.by_fold(both, np.full(3, 0.5), ("s",))
    assert [one["f1"] for one in summary["folds"]] == pytest.approx([0, 1, 2 / 3])
    assert summary["std_over_folds_f1"] == pytest.approx(np.std([1, 2 / 3]))


def test_proofreading_uses_each_photographs_threshold_inclusively():
    found = detection.join([two_of(0, (0.9, 0.25)), two_of(1, (0.75, 0.25))])
    marks = [BoxAnnotation(f"{n}.png", np.zeros((0, 4)), ()) for n in range(3)]
    sizes = {f"{n}.png": (60, 80) for n in range(3)}
    shown = detection.to_proofread(marks, found, np.array([0.25, 0.75]), sizes, ("s",))
    scores = [[box[5] for box in each["found"]] if each["found"] is not None else None for each in shown]
    assert scores == [[0.9, 0.25], [0.75], None]


def test_boxes_centred_outside_the_photograph_are_left_out(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    corners = np.array(
        [[-9, 5, 8, 9], [5, -9, 9, 8], [-8, 5, 9, 9], [-4, -4, 4, 4], [32, 5, 49, 9], [5, 22, 9, 39]], float
    )
    annotation = BoxAnnotation("a.png", corners, tuple("abcdef"))
    found, problems = objects.on_photograph(annotation, tmp_path / "a.png", (30, 40))
    assert found.classes == ("c", "d") and len(problems) == 4
    assert all("has its centre outside the photograph of 40x30" in each["what"] for each in problems)


def test_a_photograph_named_twice_keeps_its_first_known_size(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    one = lambda name, size: BoxAnnotation(name, np.zeros((0, 4)), (), size=size, where=name)
    for sizes, size, count in (
        ((None, (30, 40)), (30, 40), 1),
        (((30, 40), (20, 10)), (30, 40), 2),
        (((30, 40), None), (30, 40), 1),
    ):
        problems: list = []
        ((found, _),) = objects.by_photograph([one("a.png", sizes[0]), one("A.PNG", sizes[1])], tmp_path, problems)
        assert found.size == size and len(problems) == count  # the boxes are joined; the sizes differ


def test_photographs_without_boxes_come_in_batches_of_32_at_most(tmp_path):
    for n in range(40):
        Image.new("L", (8, 8), n).save(tmp_path / f"{n:02d}.png")
    each = list(objects.batches(tmp_path, size=(16, 16), fit="tile", scale=1.0, overlap=4, problems=[]))
    assert [(len(samples), len(photographs)) for samples, photographs in each] == [(32, 32), (8, 8)]


def test_whole_photographs_are_padded_with_their_edge_and_tiles_with_0():
    image = np.full((10, 20, 3), 200, np.uint8)
    for fit, beside in (("pad", 200), ("tile", 0)):
        ((frame, _, _),) = objects.cut(image, (20, 20), fit=fit)
        assert (frame[5:15] == 200).all() and (frame[:5] == beside).all() and (frame[15:] == beside).all()


def test_boxes_count_as_at_least_a_pixel_wide():
    samples = types.SimpleNamespace(boxes=np.float32([[[0, 0, 0.25, 3]]]), labels=np.zeros((1, 1), int))
    assert loading.facts(loading.Dataset(samples, [], None, None, classes=("s",)))["sizes"] == (1, 3)


def test_images_are_coloured_if_1_percent_of_pixels_differ_by_32():
    for differ, by, coloured in ((1, 32, True), (1, 31, False), (0, 0, False)):
        images = np.full((1, 10, 10, 3), 100, np.uint8)
        images[0, 0, :differ, 2] += np.uint8(by)
        assert caveats.coloured(images) == coloured
        # Beside a grey image the share is half as large.
        assert not caveats.coloured(np.concatenate([images, np.full_like(images, 100)]))
    assert not caveats.coloured(images[:0])
