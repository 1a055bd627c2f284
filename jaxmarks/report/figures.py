"""The figures of a run, drawn from its files with Matplotlib's object interface (no global state)."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxmarks.report import tables

# Okabe and Ito's colours, which colour-blind readers tell apart.
BLUE, ORANGE, GREEN, SKY, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#56B4E9", "#CC79A7", "#6b7280"
METHODS = (BLUE, ORANGE, GREEN, PURPLE, SKY)


def emptied(folder: Path) -> None:
    """Makes a folder of drawings, without those of an earlier time."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def axes(rows=1, columns=1, *, size=(7.2, 3.4), **options):
    """A figure and its axes, an array (rows, columns)."""
    from matplotlib.figure import Figure  # a third of a second, which a training run needs at its end alone

    figure = Figure(figsize=size, dpi=130, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in grid.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(True, color="#e5e7eb", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.tick_params(labelsize=8, colors="#374151")
    return figure, grid


def loss(metrics: list[dict], path: Path) -> None:
    """Losses per epoch on a log axis, a column for each stage and a line for each network; below it rate and momentum."""
    stages = list(dict.fromkeys(m["stage"] for m in metrics))
    best = tables.best_epochs(metrics)
    figure, grid = axes(2, len(stages), size=(4 + 3.2 * len(stages), 4.6), sharex="col", height_ratios=(3, 1))
    for (top, below), stage in zip(grid.T, stages, strict=True):
        networks = sorted({m["network"] for m in metrics if m["stage"] == stage})
        for network, shade in zip(networks, np.linspace(1, 0.45, len(networks)), strict=True):
            column = lambda key, network=network, stage=stage: tables.of_network(metrics, stage, network, key)
            name = lambda text, first=network == networks[0]: text if first else None
            epoch = column("epoch")
            style = {
                "lw": 1.2 if len(networks) == 1 else 0.7,
                "marker": "." if len(epoch) == 1 else None,
                "alpha": shade,
            }
            for key, colour, text in (("train/loss", GREY, "training"), ("valid/loss", BLUE, "validation")):
                # A loss of 0 has no place on a log axis.
                values = np.where(column(key) > 0, column(key), np.nan)
                if np.isfinite(values).any():
                    top.plot(epoch, values, color=colour, label=name(text), **style)
                    top.set_yscale("log")
            if best.get((stage, network), (0, 0))[1] > 0:
                top.plot(
                    *best[stage, network],
                    "o",
                    ms=5,
                    color=ORANGE,
                    mec="white",
                    mew=0.7,
                    label=name("best epoch"),
                    zorder=3,
                )
        below.plot(epoch, column("learning_rate"), color=GREEN, lw=1)
        below.set_ylabel("learning rate", fontsize=8, color=GREEN)
        below.set_xlabel("epoch", fontsize=8)
        momentum = column("momentum")
        if np.isfinite(momentum).any():
            other = below.twinx()
            other.plot(epoch, momentum, color=PURPLE, lw=1)
            other.set_ylabel("momentum", fontsize=8, color=PURPLE)
            other.tick_params(labelsize=7)
            other.spines["top"].set_visible(False)
        top.set_title(f"{stage}, {len(networks)} network{'s' if len(networks) > 1 else ''}", fontsize=9, loc="left")
        top.set_ylabel("loss", fontsize=8)
        if top.lines:
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
        for share, colour, text in ((0.5, GREEN, "half of them"), (0.95, ORANGE, "95 %")):
            x = np.quantile(values, share)
            ax.plot([0, x, x], [share, share, 0], color=colour, lw=0.9, ls="--")
            ax.annotate(
                f"{text} within {x:.3g} px", (x, share), xytext=(6, -5), textcoords="offset points",
                fontsize=8, color=colour, va="top", ha="left" if share < 0.9 else "right",
            )  # fmt: skip
    ax.set_ylim(0, 1.01)
    ax.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    ax.set_xlabel("distance (px)", fontsize=8)
    ax.set_ylabel("share of landmarks within", fontsize=8)
    figure.savefig(path)


def overlay(image, predicted, true=None, visible=None, *, path: Path | None = None, longest: int = 1000) -> np.ndarray:
    """Draws landmarks on a photograph: predicted as orange discs with numbers, true ones as blue rings, joined.

    Args:
      image: (H, W), (H, W, 1) or (H, W, 3), uint8 or float in [0, 1].
      predicted: (K, 2) in its pixels, corner origin; a point that is NaN is left out.
      true: (K, 2) or None.
      visible: (K,) bool of the true ones; None means all that are not NaN.
      path: where to write it, as PNG or JPEG by its ending.
      longest: what the longest side is scaled down to where it is larger, px.

    Returns:
      The drawing, (H', W', 3) uint8.
    """
    canvas, place = _canvas(image, longest=longest)
    draw, unit = ImageDraw.Draw(canvas), max(1.5, max(canvas.size) / 220)
    predicted = place(predicted)
    true = np.full_like(predicted, np.nan) if true is None else place(true)
    if visible is not None:
        true = np.where(np.asarray(visible, bool)[:, None], true, np.nan)
    found, known = (np.isfinite(points).all(-1) for points in (predicted, true))
    # Light on dark or dark on light: every mark has a rim of the other kind, so it is seen on any photograph.
    for k in np.flatnonzero(found & known):
        for grow, colour in ((2, "black"), (0, "white")):
            draw.line([*predicted[k], *true[k]], fill=colour, width=max(1, round(unit / 2)) + grow)
    for u, v in true[known]:
        for grow, colour in ((unit / 2, "white"), (0, BLUE)):
            r = 1.7 * unit + grow
            draw.ellipse([u - r, v - r, u + r, v + r], outline=colour, width=max(1, round(unit / 2 + grow)))
    for k in np.flatnonzero(found):
        x, y = predicted[k]
        for r, colour in ((1.25 * unit, "black"), (0.9 * unit, ORANGE)):
            draw.ellipse([x - r, y - r, x + r, y + r], fill=colour)
        draw.text(
            (x + 1.6 * unit, y - 3.4 * unit), str(k + 1), fill="white", stroke_fill="black", stroke_width=1,
            font_size=max(9, 4.2 * unit),
        )  # fmt: skip
    if path:
        canvas.save(path, quality=90)
    return np.asarray(canvas)


def rectangles(image, layers, *, path: Path | None = None, longest: int = 1000) -> np.ndarray:
    """Draws boxes on a photograph, which is enlarged where it is small.

    Args:
      image: (H, W), (H, W, 1) or (H, W, 3), uint8 or float in [0, 1].
      layers: (boxes (M, 4) in its pixels, their colour, and M names beside them or none) of each kind, the last on top.
      path: where to write it, as PNG or JPEG by its ending.
      longest: what the longest side is scaled down to where it is larger, px.

    Returns:
      The drawing, (H', W', 3) uint8.
    """
    canvas, place = _canvas(image, longest=longest, least=400)
    draw, width, size = ImageDraw.Draw(canvas), round(max(canvas.size) / 400), max(10, max(canvas.size) / 70)
    for boxes, colour, names in layers:
        for n, box in enumerate(np.asarray(boxes, float).reshape(-1, 2, 2)):
            (x0, y0), (x1, y1) = place(box)
            draw.rectangle([x0, y0, max(x0, x1), max(y0, y1)], outline=colour, width=max(1, width))
            if len(names):
                where = x0 + 1, y0 if y0 > 1.2 * size else y1 + 1.2 * size
                draw.text(
                    where, names[n], fill="white", stroke_fill=colour, stroke_width=2, font_size=size, anchor="lb"
                )
    if path:
        canvas.save(path, quality=90)
    return np.asarray(canvas)


def _canvas(image, *, longest: int, least: int = 0):
    """An image in RGB with its longer side from `least` to `longest` px, and the function from its pixels to Pillow's.

    The centre of pixel i is i + 0.5 in continuous coordinates, and i in Pillow's. It walks along lines pixel by pixel:
    what a network that diverged has far away lies just out of sight.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8:
        image = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    height, width = image.shape[:2]
    factor = min(longest / max(height, width), max(1.0, least / max(height, width)))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    place = lambda points: np.clip(
        np.asarray(points, float) * np.divide(size, (width, height)) - 0.5, np.negative(size), np.multiply(2, size)
    )
    return Image.fromarray(image.squeeze(-1) if image.shape[2:] == (1,) else image).convert("RGB").resize(size), place


def of_classes(boxes, classes, names) -> list[tuple]:
    """The layers of boxes (M, 4) of classes (M,): each class in its colour, with its name where there are several."""
    kinds = [(boxes[classes == c], METHODS[c % len(METHODS)], name) for c, name in enumerate(names)]
    return [(mine, colour, [name] * len(mine) if len(names) > 1 else ()) for mine, colour, name in kinds]


def contact_sheet(images, path: Path, *, labels=None, columns: int = 4, width: int = 300, gap: int = 4) -> None:
    """Puts drawings (H, W, 3) uint8 side by side in cells of one width, in px, with their labels below them."""
    cells = [Image.fromarray(image) for image in images]
    cells = [cell.resize((width, max(1, round(width * cell.height / cell.width)))) for cell in cells]
    line = 18 if labels else 0
    columns = min(columns, len(cells))
    step_x, step_y = width + gap, max(cell.height for cell in cells) + line + gap
    sheet = Image.new("RGB", (columns * step_x - gap, -(-len(cells) // columns) * step_y - gap), "#1f2937")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for i, cell in enumerate(cells):
        x, y = i % columns * step_x, i // columns * step_y
        sheet.paste(cell, (x, y))
        if labels:
            draw.text((x + 6, y + cell.height + 2), labels[i], fill="#e5e7eb", font=font)
    sheet.save(path)


def slices(images, points, outlines, path: Path, *, labels, enlarge: int = 4) -> None:
    """Draws scouts (H, W) uint8 beside each other with their landmarks (K, 2) and the box's outline (E, 2), each in px."""
    cells = []
    for image, marks, polygon in zip(images, points, outlines, strict=True):
        large = np.asarray(image)[..., None].repeat(enlarge, 0).repeat(enlarge, 1)
        canvas = Image.fromarray(overlay(large, enlarge * np.asarray(marks)))
        if len(polygon):
            closed = [tuple(enlarge * corner - 0.5) for corner in (*polygon, polygon[0])]
            ImageDraw.Draw(canvas).line(closed, fill=SKY, width=max(1, enlarge // 2), joint="curve")
        cells.append(np.asarray(canvas))
    contact_sheet(cells, path, labels=labels, columns=len(cells), width=cells[0].shape[1])
