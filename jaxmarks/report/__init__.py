"""The report of a run: figures and one self-contained page, made from the files in its folder alone."""

import base64
import csv
import json
from collections.abc import Callable
from pathlib import Path

import jinja2
import numpy as np

from jaxmarks.report import figures
from jaxmarks.report.figures import contact_sheet, overlay

__all__ = ["contact_sheet", "overlay", "write"]

CAPTIONS = {
    "loss": "Loss per epoch on a logarithmic axis, and below it the learning rate and the momentum. Where validation rises"
    " while training falls, the network learns its images by heart.",
    "per_landmark": "Mean distance of each landmark, by method. The lower the better; a peak is a landmark that is hard to"
    " find, or hard to mark by hand.",
    "histogram": "The distances of each landmark: solid line the mean, dashed line the bound of 95 % of the images.",
    "cumulative": "The share of all landmarks that lie within a distance.",
    "overlays": "Held-out images, from the best to the worst: orange discs are predicted, blue rings were marked by hand.",
}


def write(workdir, photograph: Callable[[str], np.ndarray | None], *, out=None) -> Path:
    """Writes `figures/` and `report.html` for the run in `workdir`.

    Args:
      workdir: the run's folder with `config.json` and `metrics.jsonl`.
      photograph: image name -> (H, W, 3) uint8 at source resolution, or None where it is not to be had.
      out: the folder with `summary.json` and `predictions.csv`, where the report is written too; by default `workdir`.

    Returns:
      The path of the page.
    """
    workdir = Path(workdir)
    out = Path(out or workdir)
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    summary = json.loads((out / "summary.json").read_text())
    images, predicted, true, distances = read_predictions(out / "predictions.csv")

    metrics = read_metrics(workdir / "metrics.jsonl")
    if metrics:
        figures.loss(metrics, folder / "loss.png")
    if np.isfinite(distances).any():
        curves = {"network": summary["per_landmark_px"]}
        curves |= {name: b["per_landmark_px"] for name, b in summary.get("baselines", {}).items()}
        figures.per_landmark({name.replace("_", " "): v for name, v in curves.items()}, folder / "per_landmark.png")
        figures.histograms(distances, folder / "histogram.png")
        figures.cumulative(distances, folder / "cumulative.png")
    overlays(images, predicted, true, distances, photograph, folder)

    template = jinja2.Environment(loader=jinja2.PackageLoader("jaxmarks.report", "."), autoescape=True)
    rows = [
        {"image": image, "landmark": k + 1, "distance": distances[i, k]}
        for i, image in enumerate(images)
        for k in np.flatnonzero(np.isfinite(distances[i]))
    ]
    page = template.get_template("report.html.jinja").render(
        summary=summary,
        landmarks=landmark_table(distances, summary.get("shares")),
        worst=sorted(rows, key=lambda row: -row["distance"])[:20],
        figures=[(embed(folder / f"{n}.png"), text) for n, text in CAPTIONS.items() if (folder / f"{n}.png").exists()],
        config=(workdir / "config.json").read_text(),
        title=workdir.name,
    )
    (out / "report.html").write_text(page, encoding="utf-8")
    return out / "report.html"


def read_metrics(path: Path) -> list[dict]:
    """The objects of a `metrics.jsonl`; a last line that a kill cut short is left out."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def read_predictions(path: Path):
    """Image names (N), predicted and true points (N, K, 2), distances (N, K), NaN where missing, of a CSV."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    count = max(int(row["landmark"]) for row in rows)
    value = lambda key: np.array([float(row[key] or "nan") for row in rows]).reshape(-1, count)
    images = [row["image"] for row in rows[::count]]
    predicted, true = (np.stack([value("x" + end), value("y" + end)], -1) for end in ("", "_true"))
    return images, predicted, true, value("distance")


def overlays(images, predicted, true, distances, photograph, folder, *, most=12) -> None:
    """Draws `most` images spread evenly from the best to the worst, each by itself and all on one sheet."""
    known = np.isfinite(distances)
    means = np.where(known, distances, 0).sum(1) / np.maximum(known.sum(1), 1)
    order = np.argsort(means, kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(int))]
    drawings = []
    (folder / "overlays").mkdir(exist_ok=True)
    for rank, i in enumerate(chosen, 1):
        image = photograph(images[i])
        if image is not None:
            path = folder / "overlays" / f"{rank:02d}_{Path(images[i]).stem}.png"
            drawings.append(overlay(image, predicted[i], true[i], known[i], path=path))
    if drawings:
        contact_sheet(drawings, folder / "overlays.png")


def landmark_table(distances: np.ndarray, shares) -> list[dict]:
    """Per landmark its number, images, mean, median, p95 and the paper's three shares."""
    table = []
    for k in range(distances.shape[1]):
        values = distances[np.isfinite(distances[:, k]), k]
        numbers = (values.mean(), np.median(values), np.quantile(values, 0.95)) if values.size else (None,) * 3
        row = dict(zip(("mean", "median", "p95"), numbers, strict=True))
        table.append(row | {"landmark": k + 1, "images": len(values), "shares": shares[k] if shares else None})
    return table


def embed(path: Path) -> str:
    """A PNG as a data URL."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
