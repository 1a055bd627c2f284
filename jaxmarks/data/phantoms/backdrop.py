"""The bench under the specimen: card, squared paper, label, scale bar, fibres and dust."""

import numpy as np

from jaxmarks.data.phantoms.canvas import anywhere, lay, noise, ramp, stroke, window

# Linear RGB of the cards: cool white, blue-grey, cream, grey, dull green.
CARDS = ((0.62, 0.68, 0.76), (0.42, 0.50, 0.62), (0.70, 0.64, 0.52), (0.46, 0.47, 0.48), (0.46, 0.54, 0.44))


def card(canvas, rng):
    """Fills the canvas with an unevenly lit card."""
    size = canvas.light.shape[1:]
    colour = np.array(CARDS[rng.integers(len(CARDS))]) * rng.uniform(0.75, 1.15) * np.exp(rng.normal(0, 0.04, 3))
    slope = canvas.share * rng.normal(0, 0.0018, 2).astype(np.float32)
    mottle = 0.06 * noise(rng, size, 6) + 0.02 * noise(rng, size, 26) + 0.014 * canvas.grain[0]
    even = 1 + slope[0] * canvas.x + slope[1] * canvas.y + mottle
    for plane, value in zip(canvas.light, colour, strict=True):
        np.multiply(even, np.float32(value), out=plane)


def litter(canvas, rng):
    """Paints fibres and, in most images, squared paper, a label or a scale bar around the specimen."""
    side = 1 if rng.random() < 0.5 else -1
    thing = rng.random()
    if thing < 0.30:
        squared_paper(canvas, rng, side)
    elif thing < 0.48:
        label(canvas, rng, side)
    elif thing < 0.78:
        scale_bar(canvas, rng)
    for _ in range(round(rng.integers(1, 5) / canvas.share**2)):
        fibre(canvas, rng)


def squared_paper(canvas, rng, side):
    """Paints millimetre paper along the left or right border, slightly rotated."""
    where, across, down = border(canvas, side, rng.uniform(70, 92), rng.normal(0, 0.02))
    mesh = rng.uniform(9, 15)
    paper, ink = rng.uniform(0.7, 1.1) * np.array([0.62, 0.66, 0.70]), (0.30, 0.20, 0.09)
    lines = np.maximum(*(ramp(1.1 - np.abs((z + mesh / 2) % mesh - mesh / 2), 1.6) for z in (across, down)))
    lines *= 1 + 0.1 * canvas.grain[1][where]
    shade = 1 - 0.25 * ramp(across + 2.5, 6)
    inside = ramp(across, canvas.edge)
    for plane, light, dark in zip(canvas.light, paper.tolist(), ink, strict=True):
        plane[where] *= shade
        plane[where] += inside * (light + lines * (dark - light) - plane[where])


def label(canvas, rng, side):
    """Paints the edge of a printed label in a corner."""
    where, across, down = border(canvas, side, rng.uniform(84, 104), rng.normal(0, 0.12))
    down = down - np.float32(rng.uniform(-30, 40))
    inside = np.minimum(across, down)
    lines = ramp(np.sin(0.9 * down) - 0.25, 1.2) * ramp(np.minimum(across - 5, down - 6), 1)
    letters = ramp(np.sin(2.1 * across + 3 * np.sin(down // 7 * 2.3 + 0.37 * across)) + 0.3, 2)
    shade = 1 - 0.3 * ramp(inside + 2, 5)
    cover, ink = ramp(inside, canvas.edge), 1 - 0.85 * lines * letters
    paper = rng.uniform(0.8, 1.0) * np.array([0.86, 0.83, 0.74])
    for plane, value in zip(canvas.light, paper.tolist(), strict=True):
        plane[where] *= shade
        plane[where] += cover * (value * ink - plane[where])


def border(canvas, side, start, turn):
    """Returns a sheet's window along the left (-1) or right (+1) border, and the sheet's coordinates in it.

    The coordinates are `across`, which grows from 0 at the sheet's edge towards the border, and `down`.
    """
    reach = start - 100 * abs(turn) - 8
    far = 1000 / canvas.share
    ends = sorted([side * reach, side * far])
    where = window(canvas, (ends[0], -far), (ends[1], far))
    x, y = canvas.x[:, where[1]], canvas.y[where[0]]
    return where, side * (x + turn * y) - np.float32(start), y - turn * x


def scale_bar(canvas, rng):
    """Paints a ruler's ticks near the lower border."""
    x, y, gap = rng.uniform(-118, 30), rng.uniform(82, 90), rng.uniform(6, 9)
    ink = (0.03, 0.03, 0.035)
    stroke(canvas, (x, y), (x + 10 * gap, y), (0.5, 0.5), ink, round_light=0)
    for tick in range(11):
        length = 6 if tick % 5 == 0 else 3.5
        stroke(canvas, (x + tick * gap, y), (x + tick * gap, y - length), (0.4, 0.4), ink, round_light=0)


def fibre(canvas, rng):
    """Paints a hair or a paper fibre at a random place."""
    start = anywhere(canvas, rng)
    stop = start + rng.normal(0, 16, 2)
    shade = rng.choice([0.05, 0.15, 0.9])
    colour = shade * np.array([1.0, 0.95, 0.85])
    width = rng.uniform(0.15, 0.45)
    stroke(
        canvas, start, stop, (width, width), colour, bow=rng.normal(0, 6), round_light=0, cover=rng.uniform(0.3, 0.9)
    )


def dust(canvas, rng, count):
    """Paints `count` specks and crumbs, on the specimen too."""
    for place in anywhere(canvas, rng, count):
        radius = np.exp(rng.normal(-0.6, 0.5))
        colour = np.array([0.5, 0.46, 0.4]) * np.exp(rng.normal(-0.6, 0.9))
        stroke(
            canvas, place, place + rng.normal(0, radius, 2), (radius, 0.6 * radius), colour, cover=rng.uniform(0.3, 0.9)
        )


def tissue(canvas, where, inside, colour, ragged):
    """Paints membrane or muscle: a soft-edged patch whose outline the grain makes ragged."""
    grain = canvas.grain[(slice(None), *where)]
    lit = 1 + 0.25 * grain[1]
    lay(canvas, where, ramp(inside + ragged * grain[0], 2.5), [c * lit for c in colour])
