"""The figures of a run, drawn from its files with Matplotlib's object interface (no global state)."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

# Okabe and Ito's colours, which colour-blind readers tell apart.
BLUE, ORANGE, GREEN, SKY, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#56B4E9", "#CC79A7", "#6b7280"
METHODS = (BLUE, ORANGE, GREEN, PURPLE, SKY)


def axes(rows=1, columns=1, *, size=(7.2, 3.4), **options):
    """A figure and its axes, an array (rows, columns)."""
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in grid.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(True, color="#e5e7eb", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.tick_params(labelsize=8, colors="#374151")
    return figure, grid


def loss(metrics: list[dict], path: Path) -> None:
    """Training and validation loss per epoch on a log axis, a column for each stage; below it rate and momentum."""
    stages = list(dict.fromkeys(m["stage"] for m in metrics))
    figure, grid = axes(2, len(stages), size=(4 + 3.2 * len(stages), 4.6), sharex="col", height_ratios=(3, 1))
    for column, stage in enumerate(stages):
        top, below = grid[:, column]
        folds = sorted({m["fold"] for m in metrics if m["stage"] == stage})
        for fold in folds:
            mine = [m for m in metrics if m["stage"] == stage and m["fold"] == fold]
            epoch = np.array([m["epoch"] for m in mine])
            value = lambda key, mine=mine: np.array([m.get(key) or np.nan for m in mine], float)
            alpha = 1.0 if len(folds) == 1 else 0.55
            first = fold == folds[0]
            top.plot(epoch, value("train/loss"), color=GREY, lw=0.9, alpha=alpha, label="training" if first else None)
            valid = value("valid/loss")
            if np.isfinite(valid).any():
                top.plot(epoch, valid, color=BLUE, lw=0.9, alpha=alpha, label="validation" if first else None)
                best = int(np.nanargmin(valid))
                top.plot(epoch[best], valid[best], "o", ms=4, color=ORANGE, label="best epoch" if first else None)
        below.plot(epoch, value("learning_rate"), color=GREEN, lw=1)
        below.set_ylabel("learning rate", fontsize=8, color=GREEN)
        other = below.twinx()
        other.plot(epoch, value("momentum"), color=PURPLE, lw=1)
        other.set_ylabel("momentum", fontsize=8, color=PURPLE)
        other.tick_params(labelsize=7)
        other.spines["top"].set_visible(False)
        top.set_yscale("log")
        top.set_title(f"{stage}, {len(folds)} fold{'s' if len(folds) > 1 else ''}", fontsize=9, loc="left")
        top.set_ylabel("loss", fontsize=8)
        below.set_xlabel("epoch", fontsize=8)
        top.legend(fontsize=7, frameon=False)
    figure.savefig(path)


def histograms(distances: np.ndarray, path: Path) -> None:
    """The distribution of each landmark's distances (N, K) in px, with its mean and 95th percentile."""
    count = distances.shape[1]
    columns = min(count, 6)
    rows = -(-count // columns)
    figure, grid = axes(rows, columns, size=(1.5 * columns + 0.6, 1.15 * rows + 0.5), sharex=True)
    known = distances[np.isfinite(distances)]
    top = np.quantile(known, 0.99) if known.size else 1.0
    for k, ax in enumerate(grid.flat):
        if k >= count:
            ax.set_visible(False)
            continue
        values = distances[np.isfinite(distances[:, k]), k]
        ax.set_yticks([])
        ax.text(0.97, 0.95, str(k + 1), transform=ax.transAxes, ha="right", va="top", fontsize=9, weight="bold")
        if values.size:
            ax.hist(np.minimum(values, top), bins=24, range=(0, top), color=SKY)
            ax.axvline(values.mean(), color=BLUE, lw=1.2)
            ax.axvline(min(np.quantile(values, 0.95), top), color=ORANGE, lw=1.2, ls="--")
    figure.supxlabel("distance (px)", fontsize=8)
    figure.savefig(path)


def per_landmark(methods: dict[str, list], path: Path) -> None:
    """The mean distance of each landmark by several methods, as curves beside each other."""
    figure, grid = axes(size=(7.2, 3.2))
    ax = grid[0, 0]
    for (name, values), colour in zip(methods.items(), METHODS * 9, strict=False):
        y = np.array([np.nan if v is None else v for v in values], float)
        ax.plot(np.arange(1, len(y) + 1), y, "o-", color=colour, ms=3.5, lw=1.4, label=name)
    ax.set_ylim(bottom=0)
    ax.set_xticks(range(1, len(y) + 1, max(1, len(y) // 20)))
    ax.set_xlabel("landmark", fontsize=8)
    ax.set_ylabel("mean distance (px)", fontsize=8)
    ax.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=4)
    figure.savefig(path)


def cumulative(distances: np.ndarray, path: Path) -> None:
    """The share of landmarks within each distance."""
    figure, grid = axes(size=(7.2, 2.8))
    ax, values = grid[0, 0], np.sort(distances[np.isfinite(distances)])
    if values.size:
        ax.step(values, np.arange(1, len(values) + 1) / len(values), color=BLUE, lw=1.5, where="post")
        ax.set_xlim(0, np.quantile(values, 0.995) or 1)
    ax.set_ylim(0, 1.01)
    ax.set_xlabel("distance (px)", fontsize=8)
    ax.set_ylabel("share of landmarks within", fontsize=8)
    figure.savefig(path)


def overlay(image: np.ndarray, predicted, true=None, visible=None, *, path: Path | None = None) -> np.ndarray:
    """Draws landmarks on a photograph: predicted as orange discs with numbers, true ones as blue rings, joined.

    Args:
      image: (H, W, C) uint8 with C of 1 or 3.
      predicted: (K, 2) in its pixels, corner origin.
      true: (K, 2) or None.
      visible: (K,) bool of the true ones; None means all.
      path: where to write it as PNG.

    Returns:
      The drawing, (H', W', 3) uint8, its longest side 1000 px at most.
    """
    scale = min(1.0, 1000 / max(image.shape[:2]))
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    canvas = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).convert("RGB").resize(size)
    draw, unit = ImageDraw.Draw(canvas), max(1.5, max(size) / 220)
    # The centre of pixel i is i + 0.5 in continuous coordinates, and i in Pillow's.
    place = lambda points: np.asarray(points, float) * scale - 0.5
    predicted = place(predicted)
    if true is not None:
        seen = np.ones(len(predicted), bool) if visible is None else visible
        for (x, y), (u, v), known in zip(predicted, place(true), seen, strict=True):
            if known:
                draw.line([x, y, u, v], fill="white", width=round(unit))
                for grow, colour in ((unit / 2, "white"), (0, BLUE)):
                    r = 1.7 * unit + grow
                    draw.ellipse([u - r, v - r, u + r, v + r], outline=colour, width=max(1, round(unit / 2 + grow)))
    for k, (x, y) in enumerate(predicted):
        if not np.isfinite([x, y]).all():
            continue
        for r, colour in ((1.25 * unit, "black"), (0.9 * unit, ORANGE)):
            draw.ellipse([x - r, y - r, x + r, y + r], fill=colour)
        draw.text(
            (x + 1.6 * unit, y - 3.4 * unit), str(k + 1), fill="white", stroke_fill="black", stroke_width=1,
            font_size=max(8, 4.2 * unit),
        )  # fmt: skip
    if path:
        canvas.save(path)
    return np.asarray(canvas)


def contact_sheet(images: list[np.ndarray], path: Path, *, columns: int = 4, width: int = 300) -> None:
    """Puts drawings side by side in cells of one width."""
    cells = []
    for image in images:
        cell = Image.fromarray(image)
        cells.append(cell.resize((width, max(1, round(width * cell.height / cell.width)))))
    height = max(cell.height for cell in cells)
    sheet = Image.new("RGB", (columns * (width + 4) - 4, -(-len(cells) // columns) * (height + 4) - 4), "#1f2937")
    for i, cell in enumerate(cells):
        sheet.paste(cell, (i % columns * (width + 4), i // columns * (height + 4)))
    sheet.save(path)
