"""Landmarks and boxes drawn on photographs, with Pillow."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Okabe and Ito's colours, which colour-blind readers can distinguish.
BLUE, ORANGE, GREEN, SKY, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#56B4E9", "#CC79A7", "#6b7280"
METHODS = (BLUE, ORANGE, GREEN, PURPLE, SKY)


def make_empty(folder: Path) -> None:
    """Creates an empty folder for drawings; an existing one is deleted first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def overlay(image, predicted, true=None, visible=None, *, path: Path | None = None, longest: int = 1000) -> np.ndarray:
    """Draws predicted landmarks (numbered orange discs), joined to the true ones (blue rings), on a photograph.

    Args:
      image: (H, W), (H, W, 1) or (H, W, 3), uint8 or float in [0, 1].
      predicted: (K, 2) in pixels of the image, with the origin at its corner; points that are NaN are left out.
      true: (K, 2) or None.
      visible: (K,) bool, which of `true` to draw; None means all that are not NaN.
      path: where to write the drawing, as PNG or JPEG by its ending.
      longest: largest length of the drawing's longer side, in px; a larger image is scaled down.

    Returns:
      The drawing, (H', W', 3) uint8.
    """
    canvas, project = _canvas(image, longest=longest)
    draw, unit = ImageDraw.Draw(canvas), max(1.5, max(canvas.size) / 220)
    predicted = project(predicted)
    true = np.full_like(predicted, np.nan) if true is None else project(true)
    if visible is not None:
        true = np.where(np.asarray(visible, bool)[:, None], true, np.nan)
    has_prediction, has_truth = (np.isfinite(points).all(-1) for points in (predicted, true))
    # Light marks have a dark rim and dark ones a light rim, so that they are visible on any photograph.
    for k in np.flatnonzero(has_prediction & has_truth):
        for grow, colour in ((2, "black"), (0, "white")):
            draw.line([*predicted[k], *true[k]], fill=colour, width=max(1, round(unit / 2)) + grow)
    for u, v in true[has_truth]:
        for grow, colour in ((unit / 2, "white"), (0, BLUE)):
            r = 1.7 * unit + grow
            draw.ellipse([u - r, v - r, u + r, v + r], outline=colour, width=max(1, round(unit / 2 + grow)))
    for k in np.flatnonzero(has_prediction):
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


def rectangles(image, layers, *, path: Path | None = None, longest: int = 2000) -> np.ndarray:
    """Draws boxes on a photograph, enlarging it if it is small; lines and names shrink with the boxes.

    Args:
      image: (H, W), (H, W, 1) or (H, W, 3), uint8 or float in [0, 1].
      layers: for each kind of box a tuple (boxes (M, 4) in pixels of the image, their colour, M names to write beside
        them or an empty sequence); the last is on top.
      path: where to write the drawing, as PNG or JPEG by its ending.
      longest: largest length of the drawing's longer side, in px; a larger image is scaled down.

    Returns:
      The drawing, (H', W', 3) uint8.
    """
    canvas, project = _canvas(image, longest=longest, least=400)
    corners = [np.zeros((0, 2, 2)), *(np.reshape(boxes, (-1, 2, 2)) for boxes, *_ in layers)]
    sides, canvas_side = np.abs(np.diff(project(np.concatenate(corners)), axis=1)), max(canvas.size)
    typical_side = float(np.median(sides)) if len(sides) else canvas_side
    width, size = max(1, round(min(canvas_side / 400, typical_side / 12))), max(10, min(canvas_side / 70, typical_side))
    draw = ImageDraw.Draw(canvas)
    for boxes, colour, names in layers:
        for n, box in enumerate(np.asarray(boxes, float).reshape(-1, 2, 2)):
            (x0, y0), (x1, y1) = project(box)
            draw.rectangle([x0, y0, max(x0, x1), max(y0, y1)], outline=colour, width=width)
            if len(names):
                position = x0 + 1, y0 if y0 > 1.2 * size else y1 + 1.2 * size
                draw.text(
                    position, names[n], fill="white", stroke_fill=colour, stroke_width=2, font_size=size, anchor="lb"
                )
    if path:
        canvas.save(path, quality=90)
    return np.asarray(canvas)


def _canvas(image, *, longest: int, least: int = 0):
    """Returns an image in RGB, its longer side scaled to `least`-`longest` px, and the map from its pixels to Pillow's.

    The centre of pixel i is at i + 0.5 in continuous coordinates, and at i in Pillow's. Pillow draws a line pixel by
    pixel, so points far outside, from a network that diverged, are clipped to one image size beyond the border.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8:
        image = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    height, width = image.shape[:2]
    factor = min(longest / max(height, width), max(1.0, least / max(height, width)))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    project = lambda points: np.clip(
        np.asarray(points, float) * np.divide(size, (width, height)) - 0.5, np.negative(size), np.multiply(2, size)
    )
    return Image.fromarray(image.squeeze(-1) if image.shape[2:] == (1,) else image).convert("RGB").resize(size), project


def class_layers(boxes, classes, names) -> list[tuple]:
    """Makes the layers of `rectangles`, one per class, from boxes (M, 4) of classes (M,).

    Each class has its own colour and, if there are several classes, its name beside the boxes.
    """
    by_class = [(boxes[classes == c], METHODS[c % len(METHODS)], name) for c, name in enumerate(names)]
    return [(group, colour, [name] * len(group) if len(names) > 1 else ()) for group, colour, name in by_class]


def contact_sheet(images, path: Path, *, labels=None, columns: int = 4, width: int = 300, gap: int = 4) -> None:
    """Lays out drawings (H, W, 3) uint8 in a grid of cells that are `width` px wide, with their labels below them."""
    cells = [Image.fromarray(image) for image in images]
    cells = [cell.resize((width, max(1, round(width * cell.height / cell.width)))) for cell in cells]
    label_height = 18 if labels else 0
    columns = min(columns, len(cells))
    step_x, step_y = width + gap, max(cell.height for cell in cells) + label_height + gap
    sheet = Image.new("RGB", (columns * step_x - gap, -(-len(cells) // columns) * step_y - gap), "#1f2937")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for i, cell in enumerate(cells):
        x, y = i % columns * step_x, i // columns * step_y
        sheet.paste(cell, (x, y))
        if labels:
            draw.text((x + 6, y + cell.height + 2), labels[i], fill="#e5e7eb", font=font)
    sheet.save(path)


def draw_examples(names, photograph: Callable, one: Callable, folder: Path, *, most: int, **layout) -> None:
    """Draws up to `most` photographs, evenly from the first to the last.

    Each drawing is in `folder`/overlays, and all are on the `contact_sheet` `folder`/overlays.png.
    `photograph` (name) returns (H, W, 3) uint8, or None if it is not available. `one` (index into `names`, photograph,
    path) writes a drawing to the path, and returns a drawing for the sheet and its label.
    """
    make_empty(folder / "overlays")
    indices, examples = np.unique(np.linspace(0, len(names) - 1, min(most, len(names))).round().astype(int)), []
    for rank, index in enumerate(indices, 1):
        name = str(names[index])
        if (image := photograph(name)) is not None:
            examples.append(one(index, image, folder / "overlays" / f"{rank:02d}_{Path(name).stem}.png"))
    if examples:
        drawings, labels = zip(*examples, strict=True)
        contact_sheet(drawings, folder / "overlays.png", labels=labels, **layout)


def slices(images, points, outlines, path: Path, *, labels, enlarge: int = 4) -> None:
    """Draws scouts (H, W) uint8 side by side, each with its landmarks (K, 2) and the box's outline (E, 2) in px."""
    cells = []
    for image, marks, polygon in zip(images, points, outlines, strict=True):
        large = np.asarray(image)[..., None].repeat(enlarge, 0).repeat(enlarge, 1)
        canvas = Image.fromarray(overlay(large, enlarge * np.asarray(marks)))
        if len(polygon):
            closed = [tuple(enlarge * corner - 0.5) for corner in (*polygon, polygon[0])]
            ImageDraw.Draw(canvas).line(closed, fill=SKY, width=max(1, enlarge // 2), joint="curve")
        cells.append(np.asarray(canvas))
    contact_sheet(cells, path, labels=labels, columns=len(cells), width=cells[0].shape[1])
