"""Geometry of the phantoms: outlines given by a left and a right margin, and the pose that places them in the frame.

Everything is in *frame units*: 1/256 of the width of a 4:3 frame, the origin at the frame's centre, y down. A part has
its own axes (u to its right, v towards its hind end); `Pose` maps them to the frame. Landmarks are taken from the very
curves that are drawn (`margin`), so they are exact at any resolution.
"""

from typing import NamedTuple

import numpy as np
import scipy

SAMPLES = 4096  # nodes of an outline's table: a step of about 0.03 frame units


class Pose(NamedTuple):
    """A similarity transform of the plane, `frame = matrix @ part + shift`, mirrored along u if `mirror` is -1."""

    angle: float
    scale: float
    shift: np.ndarray
    mirror: int = 1

    @property
    def matrix(self):
        """The (2, 2) linear part."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return self.scale * np.array([[cos, -sin], [sin, cos]]) @ np.diag([self.mirror, 1])


class Outline(NamedTuple):
    """The region (u - centre(v))^2 < half2(v), both functions tabulated at `SAMPLES` points in steps from `start` on.

    The squared half-width is interpolated instead of the half-width because it is smooth through a rounded end, where
    the margins' slopes are infinite.
    """

    start: float
    step: float
    centre: np.ndarray
    half2: np.ndarray


def outline(start, stop, left, right):
    """Tabulates the region between two margins, functions v (n,) -> u (n,) with left <= right, from start to stop."""
    v = np.linspace(start, stop, SAMPLES)
    left, right = left(v), right(v)
    return Outline(float(start), float(stop - start) / (SAMPLES - 1), (left + right) / 2, ((right - left) / 2) ** 2)


def symmetric_outline(start, stop, half, *, uneven=0.0, lean=0.0):
    """Tabulates a nearly symmetric region.

    Args:
      start, stop: range of v.
      half: function from v (n,) to the half-width (n,).
      uneven: the right side is wider than the left by this share of the width.
      lean: the centre line's drift to the right per unit of v.
    """
    v = np.linspace(start, stop, SAMPLES)
    width = half(v)
    return Outline(float(start), float(stop - start) / (SAMPLES - 1), uneven * width + lean * v, width**2)


def curve(knots, values):
    """Returns the smooth curve through the knots that adds no extremum between them (PCHIP)."""
    return scipy.interpolate.PchipInterpolator(knots, values)


def margin(shape, v, side):
    """Returns the exact point (2,) of an outline at height v: side -1 is the left margin, +1 the right, 0 midway."""
    centre, half2, _, _ = lookup(shape, np.float64(v))
    return np.array([centre + side * np.sqrt(max(half2, 0.0)), v])


def lookup(shape, v):
    """Returns centre and squared half-width at v, and their slopes; beyond the table's ends both continue linearly."""
    position = (v - shape.start) / shape.step
    cell = np.clip(position, 0, SAMPLES - 2).astype(np.int32)
    offset = position - cell.astype(v.dtype)
    values, slopes = [], []
    for table in (shape.centre, shape.half2):
        table = table.astype(v.dtype)
        rise = (table[1:] - table[:-1]).take(cell)
        values.append(table.take(cell) + offset * rise)
        slopes.append(rise / v.dtype.type(shape.step))
    return *values, *slopes


def signed_distance(shape, u, v):
    """Returns the signed distance to the outline, negative inside, and the position across it.

    Returns:
      distance: f / |grad f| of the implicit form, exact to first order at the outline.
      across: -1 at the left margin, 0 at the centre, +1 at the right margin.
      off: u - centre(v).
    """
    centre, half2, centre_slope, half2_slope = lookup(shape, v)
    off = u - centre
    gradient = np.sqrt(4 * off * off + (2 * off * centre_slope + half2_slope) ** 2) + 1e-3
    return (off * off - half2) / gradient, off / np.sqrt(np.maximum(half2, 0.04)), off


def to_frame(pose, points):
    """Maps points (..., 2) of the part's axes to the frame."""
    return np.asarray(points) @ pose.matrix.T + pose.shift


def to_part(pose, x, y):
    """Maps frame coordinates (broadcast together) to the part's axes (u, v)."""
    (a, b), (c, d) = np.linalg.inv(pose.matrix).astype(np.float32)
    x, y = x - np.float32(pose.shift[0]), y - np.float32(pose.shift[1])
    return a * x + b * y, c * x + d * y
