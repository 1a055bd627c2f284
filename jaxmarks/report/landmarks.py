"""The report of a landmark network: its errors, and its predictions on the photographs."""

from pathlib import Path

import numpy as np

from jaxmarks.report import drawings, figures, tables


def draw(out: Path, summary: dict, metrics: list[dict], photograph) -> tuple[str, dict]:
    """Draws every figure for which the files in `out` have data; returns the page's template and more values for it."""
    folder, predictions = out / "figures", tables.read_predictions(out / "predictions.csv")
    if np.isfinite(predictions.distances).any():
        methods = {"network": summary} | (summary.get("baselines") or {})
        curves = {name.replace("_", " "): method.get("per_landmark_px") for name, method in methods.items()}
        if "sets" not in summary:
            figures.per_landmark({name: curve for name, curve in curves.items() if curve}, folder / "per_landmark.png")
            figures.histograms(predictions.distances, folder / "histogram.png")
        figures.cumulative(predictions.distances, folder / "cumulative.png")
    if "volume" in summary:  # a scout shows only its plane's landmarks: predictions of others are meaningless
        predictions = predictions._replace(
            points=np.where(np.isfinite(predictions.distances)[..., None], predictions.points, np.nan)
        )
    overlays(predictions, photograph, folder)
    best = {key: value for key, value in tables.best_epochs(metrics).items() if key[0] == metrics[-1]["stage"]}
    has_sets = "sets" in summary
    rows = [] if has_sets else tables.per_landmark(predictions.distances, summary.get("shares"), summary.get("names"))
    return "landmarks.html.jinja", {
        "success": threshold_reached_by(summary.get("success_rates") or {}),
        "landmarks": rows,
        "shapes": shapes(summary),
        "best": {fold: [value for (_, (f, _)), value in best.items() if f == fold] for _, (fold, _) in best},
        "worst": tables.worst(predictions.images, predictions.distances),
    }


def shapes(summary: dict) -> list[tuple[str, dict]]:
    """Returns names and measures of shape of the network, the other methods and each of several datasets, if known."""
    methods = {"network": summary} | (summary.get("baselines") or {})
    named = [(name.replace("_", " "), one) for name, one in methods.items()] + list(summary.get("sets", {}).items())
    known = [(name, one.get("shape") or {}) for name, one in named]
    return [(name, shape) for name, shape in known if any(value is not None for value in shape.values())]


def overlays(predictions: tables.Predictions, photograph, folder: Path, *, most: int = 9) -> None:
    """Draws up to `most` images, evenly from the best to the worst, each by itself and all on one sheet."""
    has_distance = np.isfinite(predictions.distances)
    with_truth = has_distance.any(axis=1)
    means = np.where(has_distance, predictions.distances, 0).sum(1) / np.maximum(has_distance.sum(1), 1)
    # Images without ground truth can be neither best nor worst: they are drawn only if there are no others.
    order = np.flatnonzero(with_truth if with_truth.any() else ~with_truth)
    order = order[np.argsort(means[order], kind="stable")]

    def draw_one(rank, image, path):
        i = order[rank]
        marks = predictions.points[i], predictions.true[i], has_distance[i]
        drawings.overlay(image, *marks, path=path)
        label = f"{Path(predictions.images[i]).name}  {means[i]:.1f} px" if with_truth[i] else predictions.images[i]
        return drawings.overlay(image, *marks, longest=400), label

    names = [predictions.images[i] for i in order]
    drawings.draw_examples(names, photograph, draw_one, folder, most=most, columns=3, width=400)


def threshold_reached_by(rates: dict[str, float | None], *, share: float = 0.9) -> tuple[str, float] | None:
    """Returns the smallest threshold within which `share` of the landmarks lie, or else the largest, and its rate.

    Returns None if there is no rate.
    """
    available = [(limit, rate) for limit, rate in rates.items() if rate is not None]
    return next((pair for pair in available if pair[1] >= share), available[-1] if available else None)
