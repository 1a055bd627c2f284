"""Evaluation of landmarks: predictions in the photographs' pixels, their scores, and the files that hold them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarks import atomic, steps
from jaxmarks.data import formats
from jaxmarks.data.loading import Dataset
from jaxmarks.data.samples import Annotation, Samples, to_source
from jaxmarks.ops import boxes, metrics

# Thresholds of the success rates, in pixels of the photograph.
THRESHOLDS = (1, 2, 3, 4, 5, 10, 20, 40)
# Thresholds of the hit rates, in pixels of the frame (the fish paper's delta).
MULTIPLES = (1, 2, 3, 4, 5)
# Thresholds of the successful detection rates (SDR) of the cephalogram challenges, in mm.
MILLIMETRES = (2, 2.5, 3, 4)
# Thresholds of PCK, as shares of the longer side of the box around an image's landmarks.
FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2)


class Predictions(NamedTuple):
    """N images' predicted landmarks beside the true ones, in source pixels, y down.

    `fold` (N,) int64 is the fold whose networks predicted the image, -1 for the mean of all. `delta` (N,) is the size
    of a pixel of the frame in source pixels, `id` (N,) the image's ID in the landmark file. If several datasets are
    joined, the scores of landmarks that an image's dataset lacks are NaN.
    """

    name: np.ndarray
    fold: np.ndarray
    points: np.ndarray
    scores: np.ndarray
    true: np.ndarray
    visible: np.ndarray
    mm_per_px: np.ndarray
    source_size: np.ndarray
    delta: np.ndarray
    id: np.ndarray


def predict(call, networks, samples: Samples, *, batch_size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Predicts points (N, K, 2) in source pixels and scores (N, K) of the samples; `call` is a `steps.predictor`."""
    points, scores = steps.predict(call, networks, samples.images, batch_size=batch_size)
    return to_source(samples.to_source, points), scores


def with_truth(samples: Samples, points, scores, fold: int) -> Predictions:
    """Combines the predictions of samples with their ground truth and metadata."""
    return Predictions(
        name=samples.name,
        fold=np.full(len(samples), fold),
        points=points,
        scores=scores,
        true=samples.source_points,
        visible=samples.visible,
        mm_per_px=samples.mm_per_px,
        source_size=samples.source_size,
        delta=samples.delta,
        id=samples.id,
    )


def join(parts: list[Predictions]) -> Predictions:
    """Concatenates the predictions of several folds."""
    return Predictions(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def ordered(predictions: Predictions, names: np.ndarray) -> Predictions:
    """Sorts predictions by the order of their images in `names`, those of the dataset."""
    rank = {name: n for n, name in reversed(list(enumerate(names.tolist())))}
    order = np.argsort([rank[name] for name in predictions.name.tolist()], kind="stable")
    return Predictions(*(column[order] for column in predictions))


def check(dataset: Dataset, notes: list[dict]) -> None:
    """Raises ValueError if the number or the names of the landmarks differ between the networks and the dataset."""
    landmark_count, facts = dataset.samples.points.shape[1], notes[0]["facts"]
    if landmark_count != facts["landmarks"]:
        raise ValueError(f"the data have {landmark_count} landmarks, but the run's network finds {facts['landmarks']}")
    run_names = facts.get("names") or dataset.names
    for k, (name, wanted) in enumerate(zip(dataset.names, run_names, strict=False)):
        if name != wanted:
            raise ValueError(
                f"landmark {k + 1} is {name!r} in the data, but {wanted!r} in the run: put the data's landmarks in the"
                f" run's order, {', '.join(run_names)}"
            )


def summarise(predictions: Predictions) -> dict:
    """Computes the numbers of `summary.json` that follow from predictions; NaN becomes None.

    Raises:
      FloatingPointError: the prediction of a visible landmark is not finite.
    """
    # From maps of NaN, decoders make finite points with scores of NaN.
    lost = (predictions.visible & ~(np.isfinite(predictions.points).all(-1) & np.isfinite(predictions.scores))).any(-1)
    if lost.any():
        raise FloatingPointError(
            f"{predictions.name[lost][0]} and {lost.sum() - 1} other images: the predictions are not finite, as the training"
            " has diverged; lower --config.optimizer.learning_rate"
        )
    sides, fold_numbers = extents(predictions.true, predictions.visible), np.unique(predictions.fold)
    computed = measure(
        predictions.points, predictions.true, predictions.visible, predictions.scores, predictions.mm_per_px, predictions.delta, sides,
        predictions.fold == fold_numbers[:, None],
    )  # fmt: skip
    measured = jax.tree.map(np.asarray, computed)
    overall, by_fold = measured["overall"], measured["by_fold"]
    folds = [
        {
            "fold": int(f),
            "mean_distance_px": by_fold["overall"]["mean"][i],
            "images": int((predictions.fold == f).sum()),
        }
        for i, f in enumerate(fold_numbers)
    ]
    has_scale = np.isfinite(measured["mean_mm"])
    is_annotated = predictions.visible.any(-1, keepdims=True)
    missing_count = int((is_annotated & ~predictions.visible & np.isfinite(predictions.scores)).sum())
    scores_vary = np.ptp(np.nanmean(predictions.scores, axis=-1))  # equal scores do not rank images
    rates = lambda name, limits, measured=measured: dict(zip(map(str, limits), measured[name], strict=True))
    deviations = jax.tree.map(lambda values: deviation(values[fold_numbers >= 0]), by_fold)
    summary = {
        "mean_distance_px": overall["mean"],
        "median_px": overall["median"],
        "p95_px": overall["p95"],
        "std_px": overall["std"],
        "std_over_folds_px": deviations["overall"]["mean"],
        "std_over_folds_median_px": deviations["overall"]["median"],
        "std_over_folds_p95_px": deviations["overall"]["p95"],
        "std_over_folds_success_rates": rates("success", THRESHOLDS, deviations),
        "std_over_folds_hit_rates": rates("hits", MULTIPLES, deviations),
        "mean_distance_mm": measured["mean_mm"],
        "per_landmark_px": measured["per_landmark"],
        "per_landmark_mm": measured["per_landmark_mm"] if has_scale else None,
        **{name: measured["correlations"][name] for name in ("r2", "explained_variance", "pearson")},
        "success_rates": rates("success", THRESHOLDS),
        "hit_rates": rates("hits", MULTIPLES),
        "sdr_mm": rates("success_mm", MILLIMETRES) if has_scale else None,
        "pck": rates("pck", FRACTIONS),
        "presence": measured["presence"] | {"missing": missing_count} if missing_count else None,
        "oks": measured["oks"],
        "map_oks": measured["map_oks"] if scores_vary else None,
        "shares": measured["shares"],
        "shape": measured["shape"],
        "images": len(predictions.name),
        "landmarks": predictions.points.shape[1],
        "folds": folds,
    }
    return atomic.plain(summary)


@jax.jit
def measure(points, true, visible, scores, mm_per_px, delta, sides, folds) -> dict:
    """Computes the metrics that `summarise` reports, in one compiled function.

    The arguments are fields of `Predictions`, the `extents` (`sides`), and `folds` (F, N) bool, which marks each fold's
    images.
    """
    distances = metrics.distances(points, true, visible)

    def summary_of(distances):
        return {
            "overall": metrics.summarise(distances),
            "success": metrics.success_rates(distances, THRESHOLDS),
            "hits": metrics.success_rates(distances / delta[:, None], MULTIPLES),
        }

    in_mm = distances * mm_per_px[:, None]
    similarities = metrics.oks(distances, jnp.sqrt(jnp.prod(sides, -1)))
    ranking = boxes.keypoint_average_precision(similarities, jnp.nanmean(scores, axis=-1))
    return summary_of(distances) | {
        "by_fold": jax.vmap(lambda in_fold: summary_of(jnp.where(in_fold[:, None], distances, jnp.nan)))(folds),
        "mean_mm": metrics.mean(in_mm),
        "per_landmark": metrics.per_landmark(distances),
        "per_landmark_mm": metrics.per_landmark(in_mm),
        "correlations": metrics.correlations(points, true, visible),
        "success_mm": metrics.success_rates(in_mm, MILLIMETRES),
        "pck": metrics.pck(distances, jnp.max(sides, -1), FRACTIONS),
        "presence": metrics.presence(jnp.where(visible.any(-1, keepdims=True), scores, jnp.nan), visible),
        "oks": metrics.mean(similarities),
        "map_oks": ranking["mAP"],
        "shares": metrics.shares(distances),
        "shape": measure_shape(points, true, visible),
    }


def measure_shape(points, true, visible) -> dict:
    """Computes what morphometric analyses of the predicted landmarks (N, K, 2) depend on; NaN for fewer than three.

    If datasets are joined, no image shows all landmarks, and the ratio of variances is NaN.
    """
    visible = visible & (points.shape[1] >= 3)
    sizes = metrics.summarise(metrics.centroid_size_error(points, true, visible))
    return {
        "centroid_size_error": sizes["mean"],
        "centroid_size_std": sizes["std"],
        "procrustes_distance": metrics.mean(metrics.procrustes_distance(points, true, visible)),
        "variance_ratio": metrics.shape_variance_ratio(points, true, visible),
    }


def extents(points: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Returns width and height (N, 2) of the boxes around visible landmarks; both NaN unless both are positive."""
    shown = visible[..., None]
    low, high = (f(np.where(shown, points, fill), axis=1) for f, fill in ((np.min, np.inf), (np.max, -np.inf)))
    return np.where((high > low).all(-1, keepdims=True), high - low, np.nan)


def to_proofread(predictions: Predictions, groups: Mapping[str, str] | None = None) -> list[dict]:
    """Returns the photographs for the proofreading page (`report.proofread.landmarks`).

    If any landmark was marked by hand, the page corrects the manual ones and shows the network's beside them; the doubt
    is their distance in px. Otherwise it corrects the network's, and the doubt is 1 - score.

    Args:
      predictions: the predictions for photographs that lie in one folder.
      groups: the specimen of each photograph by name, where known.
    """
    is_annotated = predictions.visible.any()
    if is_annotated:
        points = np.where(predictions.visible[..., None], predictions.true, np.nan)
        doubt = np.linalg.norm(points - predictions.points, axis=-1)
    else:
        points, doubt = predictions.points, 1 - predictions.scores
    return [
        {"name": str(predictions.name[n]), "size": predictions.source_size[n], "items": points[n], "doubt": np.round(doubt[n], 3),
         "id": str(predictions.id[n]), "group": (groups or {}).get(str(predictions.name[n]), ""), "mm_per_px": predictions.mm_per_px[n]}
        | ({"found": predictions.points[n]} if is_annotated else {})
        for n in range(len(predictions.name))
    ]  # fmt: skip


def deviation(values: np.ndarray) -> np.ndarray:
    """Returns the standard deviation (...) of F values (F, ...), without those not finite; NaN for fewer than two."""
    is_finite = np.isfinite(values)
    count = is_finite.sum(0)
    average = lambda array: np.where(is_finite, array, 0).sum(0) / np.maximum(count, 1)
    return np.where(count > 1, np.sqrt(average((values - average(values)) ** 2)), np.nan)


def by_set(found: Predictions, dataset: Dataset) -> dict[str, Predictions]:
    """Splits predictions by dataset, each with its own images and landmarks; omits datasets without predictions."""
    domain_of = dict(zip(dataset.samples.name.tolist(), dataset.samples.domain.tolist(), strict=True))
    domains, by_name = np.array([domain_of[name] for name in found.name.tolist()]), {}
    for number, name in enumerate(dataset.sets):
        if not (domains == number).any():
            continue
        predictions, columns = Predictions(*(column[domains == number] for column in found)), dataset.columns[number]
        selected = {key: getattr(predictions, key)[:, columns] for key in ("points", "scores", "true", "visible")}
        by_name[name] = predictions._replace(**selected)
    return by_name


def write(folder: Path, parts: list[Predictions]) -> None:
    """Writes `predictions.csv` and `predictions.tps` to the folder, one part after the other."""
    columns = "image landmark x y score x_true y_true distance fold".split()
    atomic.write_csv(Path(folder) / "predictions.csv", [columns, *(row for part in parts for row in rows(part))])
    write_tps(Path(folder) / "predictions.tps", parts)


def rows(predictions: Predictions) -> Iterator[list]:
    """Yields a row of `predictions.csv` for each landmark; one that is predicted as missing (NaN) has no x and y."""
    distances = np.asarray(metrics.distances(predictions.points, predictions.true, predictions.visible))
    for n, name in enumerate(predictions.name):
        for k in range(predictions.points.shape[1]):
            point, true = ([f"{v:.3f}" for v in points[n, k]] for points in (predictions.points, predictions.true))
            yield (
                [name, k + 1, *(point if np.isfinite(predictions.points[n, k]).all() else ["", ""])]
                + [f"{predictions.scores[n, k]:.4f}"]
                + ([*true, f"{distances[n, k]:.3f}"] if predictions.visible[n, k] else ["", "", ""])
                + [predictions.fold[n]]
            )


def write_tps(path: Path, parts: list[Predictions]) -> None:
    """Writes the predicted landmarks for tpsDig, y up; names and IDs without line breaks and surrounding blanks.

    IDs are those of the landmark file, or numbers from 0 if it has none.
    """
    one_line = lambda text: " ".join(str(text).splitlines()).strip()
    name_of = lambda part, n: one_line(part.name[n])
    images = [(part, n) for part in parts for n in range(len(part.name))]
    has_ids = any(part.id[n] for part, n in images)
    annotations = [
        Annotation(
            image=name_of(part, n), points=part.points[n], id=one_line(part.id[n]) if has_ids else str(i),
            mm_per_px=float(part.mm_per_px[n]),
            # In TPS, two negative coordinates stand for a missing landmark, as NaN does here.
            visible=(part.points[n, :, 0] >= 0) | (part.points[n, :, 1] <= part.source_size[n, 0]),
        )
        for i, (part, n) in enumerate(images)
    ]  # fmt: skip
    heights = {name_of(part, n): int(part.source_size[n, 0]) for part, n in images}
    formats.write(path, annotations, heights)
