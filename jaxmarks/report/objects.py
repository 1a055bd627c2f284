"""The report of a detector: precision against recall, the threshold, and its hits and misses on the photographs."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmarks.report import drawings, figures


class Boxes(NamedTuple):
    """The D boxes of all images: image, class `name`, `corners` (D, 4) in px, score, and whether `above` the threshold.

    `hit` marks detections that match an object, or objects that were found.
    """

    image: np.ndarray
    name: np.ndarray
    corners: np.ndarray
    score: np.ndarray
    above: np.ndarray
    hit: np.ndarray


def read(path: Path) -> Boxes:
    """Reads the boxes of `predictions.csv`, or the true ones of `objects.csv`, which have no score (it is set to 1)."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    column = lambda key, default: np.array([float(row.get(key) or default) for row in rows])
    corners = np.stack([column(key, 0) for key in ("x0", "y0", "x1", "y1")], axis=-1).reshape(-1, 4)
    hit = column("hit", 0) > 0
    image, name = (np.array([row[key] for row in rows], str) for key in ("image", "class"))
    return Boxes(image, name, corners, column("score", 1), column("above_threshold", 1) > 0, hit)


def draw(out: Path, summary: dict, _, photograph) -> tuple[str, dict]:
    """Draws every figure for which the files in `out` have data; returns the page's template and more values for it."""
    folder, detections, objects = out / "figures", read(out / "predictions.csv"), read(out / "objects.csv")
    if len(detections.score) and len(objects.image):
        curves(detections, len(objects.image), summary.get("threshold"), folder)
    overlays(detections, objects, photograph, folder)
    return "objects.html.jinja", {}


def curves(detections: Boxes, total: int, threshold: float | None, folder: Path) -> None:
    """Plots precision against recall, and F1, precision and recall by threshold; marks the thresholds in use."""
    order = np.argsort(-detections.score, kind="stable")
    correct, count = np.cumsum(detections.hit[order]), np.arange(1, len(order) + 1)
    precision, recall, f1 = correct / count, correct / total, 2 * correct / (count + total)
    figure, grid = figures.axes(size=(4.6, 3.6))
    grid[0, 0].plot(recall, precision, color=drawings.BLUE, lw=1.5)
    if detections.above.any():  # each fold has its own threshold, so the dot need not lie on the line
        hits = (detections.above & detections.hit).sum()
        grid[0, 0].plot(hits / total, hits / detections.above.sum(), "o", ms=6, color=drawings.ORANGE, mec="white")
    grid[0, 0].set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.01))
    figure.savefig(folder / "precision_recall.png")
    figure, grid = figures.axes(size=(7.2, 2.8))
    for values, colour, name in ((f1, drawings.BLUE, "F1"), (precision, drawings.GREEN, "precision"), (recall, drawings.PURPLE, "recall")):  # fmt: skip
        grid[0, 0].plot(detections.score[order], values, color=colour, lw=1.4, label=name)
    if threshold is not None:
        grid[0, 0].axvline(threshold, color=drawings.ORANGE, lw=1, ls="--")
    grid[0, 0].set(xlabel="score threshold", xlim=(0, 1), ylim=(0, 1.01))
    grid[0, 0].legend(fontsize=8, frameon=False, loc="lower left")
    figure.savefig(folder / "threshold.png")


def overlays(
    detections: Boxes, true: Boxes, photograph: Callable[[str], np.ndarray | None], folder: Path, *, most=12
) -> None:
    """Draws up to `most` images, evenly from the fewest to the most mistakes.

    Found objects are green, missed ones blue and false alarms orange; with several classes, boxes are labelled.
    """
    labelled = len(np.unique(np.concatenate([true.name, detections.name]))) > 1
    layer = lambda boxes, mask, colour: (boxes.corners[mask], colour, boxes.name[mask] if labelled else ())
    names = np.unique(np.concatenate([true.image, detections.image]))
    missed = {name: int((~true.hit[true.image == name]).sum()) for name in names}
    alarms = {name: int((detections.above & ~detections.hit & (detections.image == name)).sum()) for name in names}
    order = sorted(names, key=lambda name: (missed[name] + alarms[name], name))

    def draw_one(rank, image, path):
        name = order[rank]
        shown = detections.above & (detections.image == name)
        layers = (
            layer(true, (true.image == name) & ~true.hit, drawings.BLUE),
            layer(detections, shown & ~detections.hit, drawings.ORANGE),
            layer(detections, shown & detections.hit, drawings.GREEN),
        )
        label = f"{Path(name).name}  {missed[name]} missed, {alarms[name]} false"
        drawings.rectangles(image, layers, path=path)
        return drawings.rectangles(image, layers, longest=400), label

    drawings.draw_examples(order, photograph, draw_one, folder, most=most, columns=4, width=300)
