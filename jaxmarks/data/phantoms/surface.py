"""A sclerite: a domed plate bounded by an outline and, across it, by a front and a hind edge."""

import numpy as np

from jaxmarks.data.phantoms import canvas as cv
from jaxmarks.data.phantoms import shapes


def plate(canvas, pose, shape, box, skin, *, front=None, hind=None, relief=None, cast=(0.7, 5.0)):
    """Paints a plate and its shadow.

    Args:
      shape: its `Outline`.
      box: ((u0, v0), (u1, v1)) around it in the part's axes.
      front, hind: functions (across, off) giving the v where the plate begins and ends, by the place across (-1 left
        margin ... +1 right margin) or by the offset from the centre line; without them the outline's own ends.
      relief: function (across, v) -> (nx, ny, dim), the surface's slopes and a factor on its diffuse light.
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
    # The rim turns down and lies in its own shade.
    rim = 0.45 + 0.55 * cv.ramp(-inside - 1.2, 3.0)
    colours = cv.shade(canvas, where, pose, nx, ny, skin, dim * rim)
    cv.lay(canvas, where, cv.ramp(-inside, canvas.edge), colours)


def vault(across):
    """The sideways slope of a rounded plate."""
    return 0.94 * across * (0.55 + 0.45 * np.abs(across))


def dome(across):
    """The relief of a plain rounded plate."""
    return vault(across), np.float32(0), np.float32(1)


def lens(shape, start, stop, side, bulge):
    """A compound eye: it meets the outline's margin exactly at v = start and v = stop and stands out by `bulge`."""
    middle, half = (start + stop) / 2, (stop - start) / 2

    def edge(sign):
        def line(v):
            centre, half2, _, _ = shapes.lookup(shape, v)
            root = centre + side * np.sqrt(np.maximum(half2, 0))
            return root + sign * bulge * np.sqrt(np.maximum(1 - ((v - middle) / half) ** 2, 0))

        return line

    return shapes.outline(start, stop, edge(-1), edge(1))


def corner(shape, side, edge):
    """The exact point where a margin (side -1 or +1, or a place between) meets an edge that is given by `across`."""
    return shapes.margin(shape, float(edge(np.float64(side), None)), side)


def steps(places, heights):
    """An edge of straight pieces by the place across, exact at its corners."""

    def edge(across, _):
        return np.interp(across, places, heights).astype(across.dtype)

    return edge


def bent(places, heights):
    """A smooth edge through knots by the place across (PCHIP)."""
    line = shapes.curve(places, heights)

    def edge(across, _):
        # Looked up between close nodes: evaluating the polynomial at every pixel costs more than the rest of a plate.
        nodes = np.linspace(places[0], places[-1], 513)
        return np.interp(across, nodes, line(nodes)).astype(across.dtype)

    return edge
