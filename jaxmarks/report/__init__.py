"""The report of a run: figures and one self-contained page, made from the files in its folder alone."""

import base64
from collections.abc import Callable
from pathlib import Path

import jinja2
import numpy as np

from jaxmarks import atomic
from jaxmarks.report import figures, objects, tables
from jaxmarks.report.figures import contact_sheet, emptied, of_classes, overlay, rectangles, slices
from jaxmarks.report.tables import markdown

__all__ = ["contact_sheet", "emptied", "markdown", "of_classes", "overlay", "page", "rectangles", "slices", "write"]


def write(workdir, photograph: Callable[[str], np.ndarray | None], *, out=None) -> Path:
    """Writes `figures/` and `report.html` for the run in `workdir`.

    What the files lack (a training log, a validation loss, a landmark's truth, baselines) is left out of the page. Of
    several datasets each has a page of its own in `sets/NAME`, and what is said of single landmarks stands there.

    Args:
      workdir: the run's folder with `config.json` and `metrics.jsonl`.
      photograph: image name -> (H, W, 3) uint8 at source resolution, or None where it is not to be had.
      out: the folder with `summary.json` and `predictions.csv`, where the report is written too; by default `workdir`.

    Returns:
      The path of the page.

    Raises:
      FileNotFoundError: `summary.json` or `predictions.csv` is not there.
    """
    workdir = Path(workdir)
    out = Path(out or workdir)
    summary = tables.read_summary(out / "summary.json")
    for name in summary.get("sets", {}):
        write(workdir, photograph, out=out / "sets" / name)
    metrics = tables.read_metrics(workdir / "metrics.jsonl")
    if "f1" in summary:
        boxes, true = objects.read(out / "predictions.csv"), objects.read(out / "objects.csv")
        objects.draw(out / "figures", summary, boxes, true, metrics, photograph)
        template, about = "objects.html.jinja", {}
    else:
        found = tables.read_predictions(out / "predictions.csv")
        draw(out / "figures", summary, found, metrics, photograph)
        best = {key: value for key, value in tables.best_epochs(metrics).items() if key[0] == metrics[-1]["stage"]}
        template, about = (
            "landmarks.html.jinja",
            {
                "success": success(summary.get("success_rates") or {}),
                "landmarks": [] if "sets" in summary else tables.per_landmark(found.distances, summary.get("shares")),
                "best": {fold: [value for (_, (f, _)), value in best.items() if f == fold] for _, (fold, _) in best},
                "worst": tables.worst(found.images, found.distances),
            },
        )
    config = workdir / "config.json"
    text = page(
        template,
        title=f"{workdir.name}, {out.name}" if out.parent.name == "sets" else workdir.name,
        summary=summary,
        figures={path.stem: embed(path) for path in (out / "figures").glob("*.png")},
        config=config.read_text() if config.exists() else "",
        **about,
    )
    atomic.write(out / "report.html", text)
    return out / "report.html"


def page(template: str, **values) -> str:
    """The HTML page of a template here (`*.html.jinja`), filled with the values."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("jaxmarks.report", "."), autoescape=True)
    return environment.get_template(template).render(values)


def draw(folder: Path, summary: dict, found: tables.Predictions, metrics: list[dict], photograph) -> None:
    """Draws every figure that the files have the numbers for."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("loss", "per_landmark", "histogram", "cumulative", "overlays"):
        (folder / f"{name}.png").unlink(missing_ok=True)  # of an earlier report, whose data may have been other
    if metrics:
        figures.loss(metrics, folder / "loss.png")
    if np.isfinite(found.distances).any():
        methods = {"network": summary} | (summary.get("baselines") or {})
        curves = {name.replace("_", " "): method.get("per_landmark_px") for name, method in methods.items()}
        if "sets" not in summary:
            figures.per_landmark({name: curve for name, curve in curves.items() if curve}, folder / "per_landmark.png")
            figures.histograms(found.distances, folder / "histogram.png")
        figures.cumulative(found.distances, folder / "cumulative.png")
    if (
        "volume" in summary
    ):  # a scout shows the landmarks of its own plane; what is predicted of the others means nothing
        found = found._replace(points=np.where(np.isfinite(found.distances)[..., None], found.points, np.nan))
    overlays(found, photograph, folder)


def overlays(found: tables.Predictions, photograph, folder: Path, *, most: int = 9) -> None:
    """Draws `most` images evenly from the best over the median to the worst, each by itself and all on one sheet."""
    known = np.isfinite(found.distances)
    with_truth = known.any(axis=1)
    means = np.where(known, found.distances, 0).sum(1) / np.maximum(known.sum(1), 1)
    # Images of which nothing is known can be neither best nor worst: they are drawn only where there are no others.
    order = np.flatnonzero(with_truth if with_truth.any() else ~with_truth)
    order = order[np.argsort(means[order], kind="stable")]
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(int))]
    cells, labels = [], []
    figures.emptied(folder / "overlays")
    for rank, i in enumerate(chosen, 1):
        image = photograph(found.images[i])
        if image is not None:
            marks = found.points[i], found.true[i], known[i]
            overlay(image, *marks, path=folder / "overlays" / f"{rank:02d}_{Path(found.images[i]).stem}.png")
            cells.append(overlay(image, *marks, longest=400))
            labels.append(f"{Path(found.images[i]).name}  {means[i]:.1f} px" if with_truth[i] else found.images[i])
    if cells:
        contact_sheet(cells, folder / "overlays.png", labels=labels, columns=3, width=400)


def success(rates: dict[str, float | None], *, share: float = 0.9) -> tuple[str, float] | None:
    """The smallest threshold that `share` of the landmarks keep, with its rate, or else the largest; None without any."""
    known = [(limit, rate) for limit, rate in rates.items() if rate is not None]
    return next((pair for pair in known if pair[1] >= share), known[-1] if known else None)


def embed(path: Path) -> str:
    """A PNG as a data URL."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
