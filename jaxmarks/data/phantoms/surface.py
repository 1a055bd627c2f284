"""Sclerites: domed plates bounded by an outline at the sides and by a front and a hind edge across it."""

import numpy as np

from jaxmarks.data.phantoms import canvas as cv
from jaxmarks.data.phantoms import shapes


def plate(canvas, pose, shape, box, skin, *, front=None, hind=None, relief=None, cast=(0.7, 5.0)):
    """Paints a plate and its shadow.

    Args:
      shape: its `Outline`.
      box: a box around it, ((u0, v0), (u1, v1)) in the part's axes.
      front, hind: functions (across, off) -> v at which the plate begins and ends; `across` is the position between the
        margins (-1 left ... +1 right), `off` the offset from the centre line. With None, the outline's own ends.
      relief: function (across, v) -> (nx, ny, dim): the surface's slopes and a factor on its light (`cv.shade`).
      cast: depth and reach of the shadow.
    """

    def distance(u, v):
        inside, across, off = shapes.signed_distance(shape, u, v)
        across = np.clip(across, -1.5, 1.5)
        if front is not None:
            inside = np.maximum(inside, front(across, off) - v)
        if hind is not None:
            inside = np.maximum(inside, v - hind(across, off))
        return inside, across

    cv.shadow(canvas, pose, box, lambda u, v: distance(u, v)[0], *cast)
    where = cv.around(canvas, pose, box)
    u, v = shapes.to_part(pose, canvas.x[:, where[1]], canvas.y[where[0]])
    inside, across = distance(u, v)
    inside *= np.float32(pose.scale)
    nx, ny, dim = relief(np.clip(across, -1, 1), v) if relief else dome(np.clip(across, -1, 1))
    # The rim bends down and shades itself.
    rim = 0.45 + 0.55 * cv.ramp(-inside - 1.2, 3.0)
    colours = cv.shade(canvas, where, pose, nx, ny, skin, dim * rim)
    cv.lay(canvas, where, cv.ramp(-inside, canvas.edge), colours)


def vault(across):
    """Returns the sideways slope of a rounded plate."""
    return 0.94 * across * (0.55 + 0.45 * np.abs(across))


def dome(across):
    """Returns the relief of a plain rounded plate."""
    return vault(across), np.float32(0), np.float32(1)


def lens(shape, start, stop, side, bulge):
    """Returns a compound eye's outline: meets `shape`'s margin exactly at v = start and stop, protrudes by `bulge`."""
    middle, half = (start + stop) / 2, (stop - start) / 2

    def edge(sign):
        def line(v):
            centre, half2, _, _ = shapes.lookup(shape, v)
            root = centre + side * np.sqrt(np.maximum(half2, 0))
            return root + sign * bulge * np.sqrt(np.maximum(1 - ((v - middle) / half) ** 2, 0))

        return line

    return shapes.outline(start, stop, edge(-1), edge(1))


def corner(shape, side, edge):
    """Returns the exact point where a margin (side -1 or +1, or a position between) meets an edge set by `across`."""
    return shapes.margin(shape, float(edge(np.float64(side), None)), side)


def steps(places, heights):
    """Returns a piecewise linear edge as a function of the position across, exact at its corners."""

    def edge(across, _):
        return np.interp(across, places, heights).astype(across.dtype)

    return edge


def bent(places, heights):
    """Returns a smooth edge through knots (PCHIP) as a function of the position across."""
    line = shapes.curve(places, heights)

    def edge(across, _):
        # Interpolated between close nodes: the polynomial itself, at every pixel, costs more than the rest of a plate.
        nodes = np.linspace(places[0], places[-1], 513)
        return np.interp(across, nodes, line(nodes)).astype(across.dtype)

    return edge
