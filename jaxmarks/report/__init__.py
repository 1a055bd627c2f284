"""The report of a run: figures and one self-contained page, made from the files in its folder and the photographs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxmarks import atomic
from jaxmarks.report import figures, landmarks, objects, proofread, tables
from jaxmarks.report.drawings import class_layers, contact_sheet, make_empty, overlay, rectangles, slices
from jaxmarks.report.pages import embed, page

__all__ = [
    "class_layers",
    "contact_sheet",
    "make_empty",
    "overlay",
    "page",
    "proofread",
    "rectangles",
    "slices",
    "write",
]

# Names of all figures in `figures/`, of reports on landmarks and on objects.
FIGURES = ("loss", "per_landmark", "histogram", "cumulative", "precision_recall", "threshold", "overlays")


def write(workdir, photograph: Callable[[str], np.ndarray | None], *, out=None) -> Path:
    """Writes `figures/` and `report.html` for the run in `workdir`.

    The page leaves out what the files lack (a training log, a validation loss, a landmark's ground truth, baselines).
    With several datasets each has its own page in `sets/NAME`, and the results of single landmarks are only there.

    Args:
      workdir: the run's folder with `config.json` and `metrics.jsonl`.
      photograph: image name -> (H, W, 3) uint8 at source resolution, or None if it is not available.
      out: the folder with `summary.json`, `predictions.csv` and, for objects, `objects.csv`, into which the report is
        written; by default `workdir`.

    Returns:
      The path of the page.

    Raises:
      FileNotFoundError: `summary.json`, `predictions.csv` or, for objects, `objects.csv` is missing.
    """
    workdir = Path(workdir)
    out = Path(out or workdir)
    summary = tables.read_summary(out / "summary.json")
    for name in summary.get("sets", {}):
        write(workdir, photograph, out=out / "sets" / name)
    report_module = objects if "f1" in summary else landmarks
    metrics, folder = tables.read_metrics(workdir / "metrics.jsonl"), out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name in FIGURES:
        (folder / f"{name}.png").unlink(missing_ok=True)  # from an earlier report, perhaps on other data
    if metrics:
        figures.loss(metrics, folder / "loss.png")
    template, page_values = report_module.draw(out, summary, metrics, photograph)
    config = workdir / "config.json"
    html = page(
        template,
        title=f"{workdir.name}, {out.name}" if out.parent.name == "sets" else workdir.name,
        summary=summary,
        figures={name: embed(path) for name in FIGURES if (path := folder / f"{name}.png").exists()},
        config=config.read_text() if config.exists() else "",
        proofread=(out / proofread.PAGE).exists(),
        **page_values,
    )
    atomic.write(out / "report.html", html)
    return out / "report.html"
