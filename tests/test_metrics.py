"""Metrics against NumPy, SciPy, pycocotools and formulas, eager, jitted and vmapped, with landmarks missing."""

import csv
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial
import scipy.stats
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jaxmarks import boxes, landmarks, metrics, tps

RNG = np.random.default_rng(0)
TRUE = RNG.uniform(0, 3264, (40, 6, 2))
PREDICTED = TRUE + RNG.normal(0, 8, TRUE.shape)
VISIBLE = RNG.random((40, 6)) > 0.2


def test_distances_by_hand():
    found = metrics.distances(np.array([[[3.0, 4.0], [1, 1]]]), np.zeros((1, 2, 2)), np.array([[True, False]]))
    np.testing.assert_array_equal(found, [[5, np.nan]])


def test_distances_eager_jit_and_vmap_agree_with_numpy():
    expected = np.where(VISIBLE, np.linalg.norm(PREDICTED - TRUE, axis=-1), np.nan)
    for way in (metrics.distances, jax.jit(metrics.distances), jax.vmap(metrics.distances)):
        np.testing.assert_allclose(way(PREDICTED, TRUE, VISIBLE), expected, atol=1e-3)  # float32 at 3,264


def test_summary_against_numpy():
    d = np.where(VISIBLE, np.linalg.norm(PREDICTED - TRUE, axis=-1), np.nan).astype(np.float32)
    for way in (metrics.summarise, jax.jit(metrics.summarise)):
        found = way(d)
        expected = [np.nanmean(d), np.nanmedian(d), np.nanpercentile(d, 95), np.nanstd(d), np.nanmax(d), VISIBLE.sum()]
        np.testing.assert_allclose(
            [found[n] for n in ("mean", "median", "p95", "std", "max", "count")], expected, rtol=1e-5
        )
    np.testing.assert_allclose(metrics.per_landmark(d), np.nanmean(d, 0), rtol=1e-6)


def scores(true, predicted):
    """Returns scikit-learn's r2_score and explained_variance_score for one output, written out."""
    error, spread = true - predicted, ((true - true.mean()) ** 2).mean()
    return 1 - (error**2).mean() / spread, 1 - error.var() / spread


@pytest.mark.parametrize("bias", [0.0, 300.0])
def test_correlations_against_their_formulas(bias):
    predicted = PREDICTED + bias
    for way in (metrics.correlations, jax.jit(metrics.correlations)):
        found = way(predicted, TRUE, VISIBLE)
        expected = scores(TRUE[VISIBLE].ravel(), predicted[VISIBLE].ravel())
        np.testing.assert_allclose([found["r2"], found["explained_variance"]], expected, atol=1e-6)
        pearson = scipy.stats.pearsonr(predicted[VISIBLE].ravel(), TRUE[VISIBLE].ravel())[0]
        np.testing.assert_allclose(found["pearson"], pearson, atol=1e-6)
    # Uniform in [0, 3264] the variance is 888,000: a bias of 300 lowers r2 by 0.1, explained variance not at all.
    assert (expected[1] - expected[0] > 0.05) == bool(bias)


def test_shares_by_hand():
    # The mean is 8: 1 and 3 lie below it, 8 and 10 between it and 10, 18 above; the missing one is not counted.
    d = np.array([[1.0], [3], [8], [10], [18], [np.nan]])
    np.testing.assert_allclose(metrics.shares(d), [[0.4, 0.4, 0.2]])


def test_success_rates_by_hand():
    d = np.array([[1.0, 2], [3, np.nan]])
    np.testing.assert_allclose(metrics.success_rates(d, (0.5, 2, 10)), [0, 2 / 3, 1], rtol=1e-6)


def test_a_nan_prediction_is_infinitely_far_and_refused_in_a_summary():
    predicted = PREDICTED.copy()
    predicted[0, 0], visible = np.nan, np.ones_like(VISIBLE)
    found = metrics.distances(predicted, TRUE, visible)
    assert np.isinf(found[0, 0]) and np.isinf(found).sum() == 1
    assert float(metrics.success_rates(found, [1e9])[0]) == pytest.approx(239 / 240)
    without = visible.copy()
    without[0, 0] = False
    # Correlations leave it out.
    some, all_but_one = metrics.correlations(predicted, TRUE, visible), metrics.correlations(PREDICTED, TRUE, without)
    for name, value in some.items():
        assert float(value) == pytest.approx(float(all_but_one[name]), rel=1e-6)
    names = np.array([f"{n}.png" for n in range(40)])
    each = np.zeros(40)
    diverged = landmarks.Predictions(names, each, predicted, visible * 1.0, TRUE, visible, each, each, each + 1, names)
    with pytest.raises(FloatingPointError, match=r"0.png and 0 other images: the predictions are not finite"):
        landmarks.summarise(diverged)
    scores = visible * 1.0
    scores[3, 1] = np.nan  # as decoders give for a heatmap of NaN
    with pytest.raises(FloatingPointError, match=r"3.png and 0 other images"):
        landmarks.summarise(diverged._replace(points=PREDICTED, scores=scores))


def test_correlations_in_half_precision():
    whole = np.round(TRUE / 4) + 1000, np.round(PREDICTED / 4) + 1000
    half = metrics.correlations(*(np.asarray(points, np.float16) for points in whole))
    for name, value in metrics.correlations(*whole).items():
        assert float(half[name]) == pytest.approx(float(value), abs=1e-3)


def test_nothing_visible_gives_nan_and_no_warning():
    d = metrics.distances(PREDICTED, TRUE, np.zeros_like(VISIBLE))
    assert np.isnan(metrics.summarise(d)["mean"]) and np.isnan(metrics.per_landmark(d)).all()
    assert np.isnan(metrics.correlations(PREDICTED, TRUE, np.zeros_like(VISIBLE))["r2"])


EXTENT = RNG.uniform(100, 900, 40)


def test_pck_eager_and_jitted_against_numpy():
    d = np.where(VISIBLE, np.linalg.norm(PREDICTED - TRUE, axis=-1), np.nan).astype(np.float32)
    lengths = np.where(np.arange(40) == 3, np.nan, EXTENT)
    known = VISIBLE & (np.arange(40) != 3)[:, None]
    expected = [(d <= a * lengths[:, None])[known].mean() for a in (0.01, 0.03, 0.1)]
    assert 0.1 < expected[0] < expected[1] < expected[2]
    for way in (metrics.pck, jax.jit(metrics.pck)):
        np.testing.assert_allclose(way(d, lengths, (0.01, 0.03, 0.1)), expected, rtol=1e-6)


def test_presence_eager_and_jitted_against_scipy():
    visible, scores = RNG.random((60, 5)) < 0.7, RNG.random((60, 5)).round(1)  # many ties
    scores = np.where(visible, np.maximum(scores, RNG.random((60, 5)).round(1)), scores)
    scores[3, 2] = np.nan
    known = np.isfinite(scores)
    shown, absent = scores[known & visible], scores[known & ~visible]
    auc = scipy.stats.mannwhitneyu(shown, absent).statistic / (len(shown) * len(absent))
    thresholds = np.unique(scores[known]) - 0.05
    best = max(np.mean(shown >= t) + np.mean(absent < t) for t in thresholds)
    for way in (metrics.presence, jax.jit(metrics.presence)):
        found = {name: float(value) for name, value in way(scores, visible).items()}
        assert found["auc"] == pytest.approx(auc, rel=1e-5) and 0.5 < auc < 1
        assert found["kept"] == pytest.approx(np.mean(shown >= found["threshold"]))
        assert found["excluded"] == pytest.approx(np.mean(absent < found["threshold"]))
        assert found["kept"] + found["excluded"] == pytest.approx(best)
    many = jax.vmap(metrics.presence)(np.stack([scores, scores]), np.stack([visible, ~visible]))
    np.testing.assert_allclose(many["auc"], [auc, 1 - auc], rtol=1e-5)


def test_presence_by_hand():
    # 0.9 and 0.5 are visible; 0.6 and 0.1 are missing: three of four pairs are in order.
    found = metrics.presence(np.array([0.9, 0.5, 0.6, 0.1]), np.array([True, True, False, False]))
    assert float(found["auc"]) == 0.75
    # Half of the missing ones can be excluded without a visible one, below 0.3, or all with one; the former is taken.
    assert float(found["threshold"]) == pytest.approx(0.3)
    assert (float(found["kept"]), float(found["excluded"])) == (1.0, 0.5)
    alone = metrics.presence(np.array([0.9, 0.5]), np.array([True, True]))
    assert all(np.isnan(value) for value in alone.values())
    # Where all scores are equal, as of regressed coordinates, nothing is excluded.
    equal = metrics.presence(np.ones(4), np.array([True, True, False, False]))
    assert (float(equal["auc"]), float(equal["kept"]), float(equal["excluded"])) == (0.5, 1.0, 0.0)


def coco(sigmas, area, scores):
    """Returns pycocotools' OKS and AP of 37 images, one instance each: of 40, rounding would lose recall 35/100."""
    rows = np.concatenate([TRUE, 2.0 * VISIBLE[..., None]], axis=-1).reshape(40, -1)
    corners = [[*p.min(0), *np.ptp(p, axis=0)] for p in TRUE]
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i} for i in range(1, 38)],
        "categories": [{"id": 1, "name": "fish", "keypoints": list("abcdef"), "skeleton": []}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "iscrowd": 0, "keypoints": rows[i - 1].tolist(),
             "num_keypoints": int(VISIBLE[i - 1].sum()), "area": float(area[i - 1]), "bbox": corners[i - 1]}
            for i in range(1, 38)
        ],
    }  # fmt: skip
    truth.createIndex()
    points = np.concatenate([PREDICTED, np.ones((40, 6, 1))], axis=-1).reshape(40, -1)
    found = truth.loadRes(
        [
            {"image_id": i, "category_id": 1, "keypoints": points[i - 1].tolist(), "score": float(scores[i - 1])}
            for i in range(1, 38)
        ]
    )
    evaluation = COCOeval(truth, found, "keypoints")
    evaluation.params.kpt_oks_sigmas = np.asarray(sigmas)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    similarities = np.array([np.squeeze(evaluation.ious[i, 1]) for i in range(1, 38)])
    return similarities, evaluation.stats[0]


def test_oks_and_its_ap_against_pycocotools():
    sigmas, scores = RNG.uniform(0.02, 0.06, 6), RNG.random(40)
    similarities, ap = coco(sigmas, EXTENT**2, scores)
    d = np.where(VISIBLE, np.linalg.norm(PREDICTED - TRUE, axis=-1), np.nan)
    for way in (metrics.oks, jax.jit(metrics.oks), jax.vmap(metrics.oks, (0, 0, None))):
        np.testing.assert_allclose(way(d, EXTENT, 2 * sigmas)[:37], similarities, atol=1e-5)
    assert 0.2 < ap < 0.9
    for way in (boxes.keypoint_average_precision, jax.jit(boxes.keypoint_average_precision)):
        np.testing.assert_allclose(way(similarities, scores[:37])["mAP"], ap, atol=1e-6)
    # An image without visible landmarks changes nothing.
    more = np.append(similarities, np.nan), np.append(scores[:37], 2.0)
    np.testing.assert_allclose(boxes.keypoint_average_precision(*more)["mAP"], ap, atol=1e-6)


def test_oks_by_hand():
    # d = 0 and d = s_i s: (1 + exp(-1/2)) / 2, the missing landmark left out; NaN if no landmark is visible.
    d = np.array([[0, 10.0, np.nan], [np.nan] * 3])
    np.testing.assert_allclose(metrics.oks(d, np.full(2, 200.0)), [(1 + np.exp(-0.5)) / 2, np.nan], rtol=1e-6)


def test_a_similarity_equal_to_the_threshold_counts():
    for threshold, expected in ((0.5, 1), (0.5001, 0)):
        found = boxes.keypoint_average_precision(np.array([0.5]), np.ones(1), thresholds=(threshold,))
        assert float(found["mAP"]) == pytest.approx(expected)


def moved(points, seed=0):
    """Configurations (N, K, 2), each scaled, rotated and shifted at random."""
    draw, z = np.random.default_rng(seed), points[..., 0] + 1j * points[..., 1]
    factor, shift = draw.uniform(50, 500, (len(points), 1)), draw.uniform(0, 3000, (2, len(points), 1))
    z = factor * np.exp(1j * draw.uniform(0, 6.28, factor.shape)) * z + shift[0] + 1j * shift[1]
    return np.stack([z.real, z.imag], -1)


def unit(points):
    """A configuration (K, 2) with centroid 0 and centroid size 1."""
    return (points - points.mean(0)) / np.linalg.norm(points - points.mean(0))


def turned(points, onto):
    """Centred points (K, 2), turned without reflection so that they fit `onto` best: Kabsch's algorithm."""
    u, _, vt = np.linalg.svd(points.T @ onto)
    return points @ u @ np.diag([1, np.linalg.det(u @ vt)]) @ vt


def procrustes_variance(points):
    """The mean squared distance of configurations (N, K, 2) from their mean, all aligned with it again and again."""
    each = [unit(p) for p in points]
    for _ in range(100):
        average = np.mean(each, 0)
        each = [turned(p, average) for p in each]
    return ((np.stack(each) - np.mean(each, 0)) ** 2).sum((1, 2)).mean()


# Six landmarks whose places vary by 8 % of their spread between specimens, and predictions that err by 3 % of it.
SPECIMENS = moved(RNG.normal(size=(1, 6, 2)) + RNG.normal(0, 0.08, (40, 6, 2)))
MARKED = SPECIMENS + 0.03 * SPECIMENS.std(1, keepdims=True) * RNG.normal(size=SPECIMENS.shape)


def test_centroid_size_by_hand():
    # A rectangle of 6 by 8 around (13, 4): four landmarks 5 from the centroid. Without one: offsets (2, 8/3), (-4, 8/3)
    # and (2, -16/3), thus 4 + 16 + 4 + 64/9 + 64/9 + 256/9 = 200/3.
    corners = np.array([[10.0, 0], [16, 0], [16, 8], [10, 8]])
    visible = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
    for way in (metrics.centroid_size, jax.jit(metrics.centroid_size), jax.vmap(metrics.centroid_size)):
        np.testing.assert_allclose(
            way(np.tile(corners, (4, 1, 1)), visible), [10, np.sqrt(200 / 3), np.nan, np.nan], rtol=1e-6
        )
    # Twice as large, about 1,000 px away: an error of 100 %. Coincident true landmarks have no size.
    assert float(metrics.centroid_size_error(2 * corners + 1000, corners)) == pytest.approx(1, abs=1e-5)
    assert np.isnan(metrics.centroid_size_error(corners, np.full((4, 2), 1234.567)))


def test_centroid_size_errors_eager_jit_and_vmap_agree_with_numpy():
    true = np.where(VISIBLE[..., None], SPECIMENS, np.nan)
    size = lambda points: np.array([np.linalg.norm(p[v] - p[v].mean(0)) for p, v in zip(points, VISIBLE, strict=True)])
    expected = size(MARKED) / size(SPECIMENS) - 1
    error = metrics.centroid_size_error
    for way in (error, jax.jit(error), jax.vmap(error)):
        np.testing.assert_allclose(way(MARKED, true, VISIBLE), expected, atol=1e-5)


def test_procrustes_distances_eager_jit_and_vmap_agree_with_an_svd():
    true, has_shape = np.where(VISIBLE[..., None], SPECIMENS, np.nan), VISIBLE.sum(-1) >= 3
    assert not has_shape.all()
    pairs = [(unit(p[v]), unit(t[v])) for p, t, v in zip(MARKED, SPECIMENS, VISIBLE, strict=True)]
    expected = np.where(has_shape, [np.linalg.norm(turned(p, t) - t) for p, t in pairs], np.nan)
    distance = metrics.procrustes_distance
    for way in (distance, jax.jit(distance), jax.vmap(distance)):
        np.testing.assert_allclose(way(MARKED, true, VISIBLE), expected, rtol=1e-4, atol=1e-6)
    # SciPy has the squared full distance sin(rho)^2; the partial one is 2 sin(rho / 2).
    full = np.array([scipy.spatial.procrustes(t, p)[2] for p, t in pairs])[has_shape]
    np.testing.assert_allclose(2 * np.sin(np.arcsin(np.sqrt(full)) / 2), expected[has_shape], rtol=1e-6)


def test_procrustes_distance_ignores_similarities_but_not_reflections():
    found = metrics.procrustes_distance(moved(SPECIMENS), SPECIMENS)
    np.testing.assert_allclose(found, np.zeros(40), atol=1e-5)
    before = metrics.procrustes_distance(MARKED, SPECIMENS)
    np.testing.assert_allclose(metrics.procrustes_distance(moved(MARKED), moved(SPECIMENS, 1)), before, atol=1e-5)
    # An equilateral triangle and its mirror image are as far apart as shapes of triangles can be: rho is pi / 2.
    triangle = np.array([[0, 0], [1, 0], [0.5, np.sqrt(0.75)]])
    swapped = triangle[[1, 0, 2]]
    assert float(metrics.procrustes_distance(triangle, swapped)) == pytest.approx(np.sqrt(2), abs=1e-6)
    assert np.isnan(metrics.procrustes_distance(np.full((3, 2), 1234.567), triangle))


def test_shape_variance_ratio_eager_jit_and_vmap_agree_with_an_svd():
    # Predictions on the way to the mean shape; in every image with a missing landmark they are arbitrary.
    aligned = np.stack([turned(unit(p), unit(SPECIMENS[0])) for p in SPECIMENS])
    shrunk = moved(aligned.mean(0) + 0.6 * (aligned - aligned.mean(0)))
    shown = VISIBLE.all(-1)
    assert 5 < shown.sum() < 20
    predicted = np.where(shown[:, None, None], shrunk, PREDICTED)
    true = np.where(VISIBLE[..., None], SPECIMENS, np.nan)
    expected = procrustes_variance(shrunk[shown]) / procrustes_variance(SPECIMENS[shown])
    assert 0.3 < expected < 0.4
    ratio = metrics.shape_variance_ratio
    for way in (ratio, jax.jit(ratio), lambda *all: jax.vmap(ratio)(*(a[None] for a in all))[0]):
        np.testing.assert_allclose(way(predicted, true, VISIBLE), expected, rtol=1e-3)
    np.testing.assert_allclose(ratio(moved(predicted, 2), moved(true, 3), VISIBLE), expected, rtol=1e-3)
    np.testing.assert_allclose(
        ratio(MARKED, SPECIMENS), procrustes_variance(MARKED) / procrustes_variance(SPECIMENS), rtol=1e-3
    )


def test_shape_variance_ratio_is_nan_where_it_is_undefined():
    ratio, all_shown = jax.jit(metrics.shape_variance_ratio), np.ones((40, 6), bool)
    for few in (3, 2, 0):
        some = np.where(np.arange(40)[:, None] < few, True, np.arange(6) < 5)
        assert np.isfinite(ratio(MARKED, SPECIMENS, some)) == (few == 3)
    assert np.isnan(ratio(MARKED, moved(SPECIMENS[:1].repeat(40, 0)), all_shown))  # manual shapes that do not vary
    assert np.isnan(ratio(MARKED[:, :2], SPECIMENS[:, :2], all_shown[:, :2]))
    # A mean shape does not vary. Images for which all landmarks are predicted at one place are left out.
    assert float(ratio(moved(SPECIMENS[:1].repeat(40, 0)), SPECIMENS, all_shown)) < 1e-6
    collapsed = np.where(np.arange(40)[:, None, None] < 9, 777.7, MARKED)
    np.testing.assert_allclose(ratio(collapsed, SPECIMENS, all_shown), ratio(MARKED[9:], SPECIMENS[9:]), rtol=1e-4)


def test_summary_of_size_and_shape():
    larger = np.where(np.arange(40) < 20, 1.1, 1.3)[:, None, None]
    found = landmarks.summarise(predictions_of(larger * SPECIMENS, true=SPECIMENS))["shape"]
    expected = {"centroid_size_error": 0.2, "centroid_size_std": 0.1, "procrustes_distance": 0, "variance_ratio": 1}
    assert found == pytest.approx(expected, abs=1e-4)
    # Without an image that shows all landmarks, only the ratio is unknown.
    five = np.arange(6) < np.full((40, 1), 5)
    partly = landmarks.summarise(predictions_of(larger * SPECIMENS, true=SPECIMENS, visible=five))
    assert partly["shape"] == pytest.approx(expected | {"variance_ratio": None}, abs=1e-4)
    two = landmarks.summarise(predictions_of(SPECIMENS[:, :2], true=SPECIMENS[:, :2]))["shape"]
    assert two == dict.fromkeys(expected)


# Mean distance of each landmark after fine-tuning, in pixels of 256x192: the paper's tables 6, 8, 10, 11 and 12.
PUBLISHED = {
    "pronotum": "2.49 2.72 2.65 2.77 2.49 3.05 2.68 2.87",
    "elytra": "2.34 2.27 2.27 2.25 2.27 3.14 3.14 3.29 3.42 2.49 2.30",
    "head": "3.03 2.94 2.96 2.88 2.76 2.67 2.29 2.20 2.57 2.44",
    "left_mandible": "6.77 5.30 5.35 5.33 5.44 5.30 5.53 5.65 5.89 5.92 5.97 6.58 6.11 5.63 5.85 7.17",
    "right_mandible": "6.32 5.13 5.16 5.05 5.14 5.30 5.21 5.52 5.69 5.75 6.20 6.19 6.76 7.07 6.53 6.11 6.29 6.84",
}


def published(folder):
    """Yields each part with the authors' manual and fine-tuned landmarks, (N, K, 2) in pixels of 256x192."""
    specimens: dict = defaultdict(lambda: defaultdict(list))
    with (folder / "beetle" / "published_landmarks.csv").open() as file:
        for row in csv.DictReader(file):
            specimens[row["part"]][row["specimen"]].append(
                (int(row["landmark"]), *(float(row[f"{axis}_{of}"]) for of in ("manual", "finetuned") for axis in "xy"))
            )
    for part, found in specimens.items():
        table = np.array([sorted(rows) for rows in found.values()])[..., 1:] / 12.75
        yield part, table[..., :2], table[..., 2:]


def test_the_authors_predictions_reproduce_their_tables(real_data):
    parts = set()
    for part, manual, tuned in published(real_data):
        found = metrics.per_landmark(metrics.distances(tuned, manual))
        expected = np.array([float(v) for v in PUBLISHED[part].split()])
        assert len(found) == len(expected)
        assert np.abs(found - expected).mean() < 0.15, part
        if part in ("pronotum", "elytra", "head"):
            assert metrics.correlations(tuned, manual)["pearson"] >= 0.995
        parts.add(part)
    assert parts == set(PUBLISHED)


def test_correlations_are_near_the_papers_table_2(real_data):
    # r2, explained variance and Pearson of the pronotum from scratch. Its second landmark is left out: in the published
    # file it is a copy of the first.
    with (real_data / "beetle" / "published_landmarks.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["part"] == "pronotum" and r["landmark"] != "2"]
    manual, scratch = (
        np.array([[float(r[f"{axis}_{of}"]) for axis in "xy"] for r in rows])[None] / 12.75
        for of in ("manual", "scratch")
    )
    found = metrics.correlations(scratch, manual)
    np.testing.assert_allclose(
        [found["r2"], found["explained_variance"], found["pearson"]], [0.9952, 0.9951, 0.9974], atol=2e-3
    )


def test_pearson_of_the_published_predictions_equals_scipys(real_data):
    for part, manual, tuned in published(real_data):
        expected = scipy.stats.pearsonr(manual.ravel(), tuned.ravel())[0]
        assert metrics.correlations(tuned, manual)["pearson"] == pytest.approx(expected, abs=1e-5), part


def test_a_missing_nan_landmark_has_zero_gradient():
    found, true = jnp.array([[1.0, 2], [3, 4]]), jnp.array([[jnp.nan, jnp.nan], [3.0, 5]])
    far = lambda found: metrics.mean(metrics.distances(found, true, [False, True]))
    np.testing.assert_allclose(jax.grad(far)(found), [[0, 0], [0, -1]])


SHAPES = ("centroid_size_error", "procrustes_distance", "shape_variance_ratio")


@pytest.mark.parametrize("measure", ["r2", "explained_variance", "pearson", "std", "oks", *SHAPES])
def test_metric_gradients_are_right_with_missing_landmarks(measure):
    draw = np.random.default_rng(0)
    true = draw.uniform(0, 100, (6, 4, 2)).astype(np.float32)
    found, visible = true + draw.normal(size=true.shape).astype(np.float32), np.ones((6, 4), bool)
    visible[0, 0] = False
    true[0, 0] = np.nan

    def value(found):
        if measure == "std":
            return metrics.summarise(metrics.distances(found, true, visible))["std"]
        if measure == "oks":
            return metrics.oks(metrics.distances(found, true, visible), jnp.full(6, 50.0)).sum()
        if measure in SHAPES:
            return getattr(metrics, measure)(found, true, visible).sum()
        return metrics.correlations(found, true, visible)[measure]

    gradient = np.asarray(jax.grad(value)(jnp.asarray(found)), np.float64)
    assert np.isfinite(gradient).all() and (gradient[0, 0] == 0).all() and np.abs(gradient).max() > 0
    step = np.zeros_like(found)
    step[2, 1, 0] = 0.05
    slope = (value(jnp.asarray(found + step)) - value(jnp.asarray(found - step))) / 0.1
    np.testing.assert_allclose(gradient[2, 1, 0], slope, rtol=0.05, atol=1e-5)


def test_coco_visibility_flags_are_used_as_booleans():
    """In COCO 0 is missing, 1 hidden and 2 visible; only missing landmarks are left out."""
    draw = np.random.default_rng(1)
    true = draw.uniform(0, 100, (6, 4, 2))
    found, flags = true + draw.normal(size=true.shape), np.tile([2, 2, 1, 0], (6, 1))
    for name, value in metrics.correlations(found, true, flags).items():
        assert value == metrics.correlations(found, true, flags > 0)[name], name


def test_distances_on_a_threshold_count_in_both_precisions():
    for wide in (False, True):
        with jax.enable_x64(wide):
            np.testing.assert_array_equal(metrics.success_rates(np.float32([0.1, 0.7]), [0.1, 0.7]), [0.5, 1])


def predictions_of(points, **changes):
    points = np.asarray(points, float)
    n = len(points)
    about = {
        "name": np.array([f"{k}.png" for k in range(n)]), "fold": np.zeros(n, int), "points": points,
        "scores": np.ones(points.shape[:2]), "true": np.zeros_like(points), "visible": np.ones(points.shape[:2], bool),
        "mm_per_px": np.full(n, np.nan), "source_size": np.full((n, 2), (40, 60)), "delta": np.ones(n), "id": np.full(n, ""),
    }  # fmt: skip
    return landmarks.Predictions(**about | changes)


def test_tps_omits_only_predictions_with_two_negative_coordinates(tmp_path):
    # Of a photograph of 40 rows: left of it, below it, both, and left of it level with its lower edge.
    landmarks.write_tps(tmp_path / "a.tps", [predictions_of([[[-1, 5], [5, 43], [-1, 43], [-2, 40]]])])
    (found,) = tps.read(tmp_path / "a.tps")
    assert found.visible.tolist() == [True, True, False, True]
    np.testing.assert_array_equal(found.points, [[-1, 35], [5, -3], [0, 0], [-2, 0]])


def test_names_and_ids_are_written_to_tps_on_one_line(tmp_path):
    landmarks.write_tps(
        tmp_path / "a.tps", [predictions_of([[[1, 5]]], name=np.array([" a\rb.png "]), id=np.array(["1\n2 "]))]
    )
    (found,) = tps.read(tmp_path / "a.tps")
    assert (found.image, found.id) == ("a b.png", "1 2")
