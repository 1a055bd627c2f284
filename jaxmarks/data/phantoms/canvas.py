"""Painting in linear light: antialiased surfaces and strokes, their lighting, and finally the camera.

Lengths are in frame units (see `shapes`). All random numbers belong to the scene and not to its pixels, so a scene
looks the same at every resolution; only the sensor noise is drawn per pixel.
"""

import functools
from typing import NamedTuple

import numpy as np

from jaxmarks.data.phantoms import shapes

FRAME = (256, 192)  # width and height in frame units


class Canvas(NamedTuple):
    """A picture that is being painted.

    `light` is (3, H, W) float32 linear light. `x` (1, W) and `y` (H, 1) are the pixel centres in frame units, whose
    origin lies at `centre` (2,) in pixels. `middle` (2,) is the picture's centre in frame units. `share` is the frame's
    size relative to the largest that fits. `pixel` is a pixel's width in frame units, `edge` the width over which an
    outline fades (pixel and defocus together), `sun` the unit vector to the main lamp, and `grain` (2, H, W) the fine
    relief of every surface.
    """

    light: np.ndarray
    x: np.ndarray
    y: np.ndarray
    centre: np.ndarray
    middle: np.ndarray
    share: float
    pixel: float
    edge: float
    sun: np.ndarray
    grain: np.ndarray


class Skin(NamedTuple):
    """A cuticle: linear RGB seen from above and at a slant, strength and exponent of its highlight, its relief."""

    top: np.ndarray
    slant: np.ndarray
    gloss: float
    polish: float
    relief: float


def blank(size, rng, *, share=1.0, place=(0.5, 0.5)):
    """Returns an empty canvas of (height, width) pixels with a random lamp, focus and grain.

    The frame is `share` times the largest that fits, its centre at `place`, (x, y) as fractions of width and height.
    """
    height, width = size
    scale = share * min(width / FRAME[0], height / FRAME[1])
    centre = np.array([width, height]) * place
    x = ((np.arange(width) + 0.5 - centre[0]) / scale).astype(np.float32)[None]
    y = ((np.arange(height) + 0.5 - centre[1]) / scale).astype(np.float32)[:, None]
    azimuth, altitude = rng.uniform(-2.6, -0.5), rng.uniform(0.7, 1.1)
    sun = np.array([np.cos(altitude) * np.cos(azimuth), np.cos(altitude) * np.sin(azimuth), np.sin(altitude)])
    edge = float(np.hypot(1 / scale, rng.uniform(0.5, 1.3)))
    grain = np.stack([noise(rng, size, 120) + 0.35 * noise(rng, size, 44) for _ in range(2)])
    light = np.empty((3, height, width), np.float32)
    middle = (np.array([width, height]) / 2 - centre) / scale
    return Canvas(light, x, y, centre, middle, share, 1 / scale, edge, sun.astype(np.float32), grain)


def anywhere(canvas, rng, count=None):
    """Returns random places in the picture, (2,) or (count, 2) in frame units."""
    half = np.array(FRAME) / 2
    return canvas.middle + rng.uniform(-half, half, None if count is None else (count, 2)) / canvas.share


def noise(rng, size, cells):
    """Returns smooth value noise (H, W), standard deviation about 1/2: `cells` random values across, interpolated."""
    rows = cells * 3 // 4
    values = rng.standard_normal((rows + 2, cells + 2), dtype=np.float32)
    return blend(size[0], rows) @ values @ blend(size[1], cells).T


@functools.lru_cache(maxsize=32)
def blend(pixels, cells):
    """Returns (pixels, cells + 2) weights of a quadratic B-spline, from values on a coarse line to pixel centres."""
    position = (np.arange(pixels) + 0.5) / pixels * cells + 0.5
    distance = np.abs(position[:, None] - np.arange(cells + 2))
    weights = np.where(distance < 0.5, 0.75 - distance**2, 0.5 * np.maximum(1.5 - distance, 0) ** 2)
    return weights.astype(np.float32)


def ramp(inside, edge):
    """Returns the coverage of a pixel whose centre lies `inside` units within an edge that wide: 0.5 on the edge."""
    step = np.clip(0.5 + inside * np.float32(0.6 / edge), 0, 1)
    return step * step * (3 - 2 * step)


def window(canvas, low, high):
    """Returns the slices (rows, columns) of the pixels between two corners in frame units; may be empty."""
    columns = np.searchsorted(canvas.x[0], [low[0], high[0]])
    rows = np.searchsorted(canvas.y[:, 0], [low[1], high[1]])
    return slice(*rows), slice(*columns)


def around(canvas, pose, box, pad=3.0):
    """Returns the window around a box ((u0, v0), (u1, v1)) in a part's axes, with a margin of `pad` frame units."""
    (u0, v0), (u1, v1) = box
    corners = shapes.to_frame(pose, [[u0, v0], [u1, v0], [u0, v1], [u1, v1]])
    return window(canvas, corners.min(0) - pad, corners.max(0) + pad)


def lay(canvas, where, cover, colour):
    """Covers a window with a colour (three scalars or arrays) at the given opacity."""
    for plane, value in zip(canvas.light, colour, strict=True):
        view = plane[where]
        view += cover * ((value if np.ndim(value) else float(value)) - view)


def shade(canvas, where, pose, nx, ny, skin, dim=1.0):
    """Returns the light that a cuticle reflects.

    Args:
      nx, ny: slopes of the surface in the part's axes (components of its normal, each within about +-1).
      dim: factor on the diffuse light and the highlights (grooves, patterns).

    Returns:
      Three arrays of linear light.
    """
    # Rotates the lamp's vector into the part's axes; rotating every pixel's normal would cost more.
    turn = pose.matrix.T / pose.scale
    sun = np.append(turn @ canvas.sun[:2], canvas.sun[2]).astype(np.float32)
    grain = canvas.grain[(slice(None), *where)] * np.float32(skin.relief)
    nx, ny = nx + grain[0], ny + grain[1]
    nz = np.sqrt(np.clip(1 - nx * nx - ny * ny, 0.03, 1))
    diffuse = np.maximum(nx * sun[0] + ny * sun[1] + nz * sun[2], 0)
    lit = (1.15 * diffuse + 0.12 + 0.16 * nz) * dim
    half = sun + np.float32([0, 0, 1])
    half /= np.linalg.norm(half)
    facing = nx * half[0] + ny * half[1] + nz * half[2] - 1
    # A small lamp, its wide halo in the waxy layer, and a ring light that draws a streak along both flanks.
    flank = np.abs(nx) - 0.4
    flank = -0.5 * (flank * flank + 0.12 * ny * ny)
    polish = float(skin.polish)
    shine = np.exp(polish * facing) + 0.12 * np.exp(0.15 * polish * facing)
    shine += 0.25 * np.exp(polish * flank)
    shine *= float(skin.gloss) * dim
    sky = 0.05 * (1 - nz) * (1 - nz)
    return [
        (slant + (top - slant) * nz) * lit + shine * (0.35 + 2.0 * top) + sky * blue
        for top, slant, blue in zip(skin.top.tolist(), skin.slant.tolist(), (0.9, 1.0, 1.15), strict=True)
    ]


def stroke(canvas, start, stop, radii, colour, *, bow=0.0, beads=0, round_light=0.6, cover=1.0):
    """Paints a tapered, bowed thread in frame units: hair, leg segment, antenna, pin.

    Args:
      start, stop: (2,) ends of its axis.
      radii: at start and stop.
      bow: height of the arc over the chord (parabola).
      beads: number of swellings along it (antennal segments).
      round_light: how strongly it is shaded as a cylinder.
    """
    start, stop = np.asarray(start, np.float32), np.asarray(stop, np.float32)
    chord = stop - start
    length = float(np.hypot(*chord))
    along_x, along_y = (chord / length).tolist() if length > 1e-3 else (1.0, 0.0)
    length = max(length, 1e-3)
    thick, thin, bow = float(radii[0]), float(radii[1]), float(bow)
    pad = max(thick, thin) + abs(bow) + canvas.edge
    where = window(canvas, np.minimum(start, stop) - pad, np.maximum(start, stop) + pad)
    x, y = canvas.x[:, where[1]] - start[0], canvas.y[where[0]] - start[1]
    if x.size == 0 or y.size == 0:
        return
    t = (along_x * x + along_y * y) / length
    inner = np.clip(t, 0, 1)
    off = along_x * y - along_y * x
    if bow:
        off = off - 4 * bow * inner * (1 - inner)
        slope = (4 * bow / length) * (1 - 2 * inner)
        off /= np.sqrt(1 + slope * slope)
    radius = thick + (thin - thick) * inner
    if beads:
        radius = radius * (0.8 + 0.3 * np.abs(np.sin(np.float32(np.pi) * beads * inner)))
    beyond = (t - inner) * length
    distance = np.sqrt(off * off + beyond * beyond)
    opacity = ramp(radius - distance, canvas.edge) + ramp(radius + distance, canvas.edge) - 1
    if round_light:
        slope = np.clip(off / radius, -1, 1)
        toward = canvas.sun[1] * along_x - canvas.sun[0] * along_y
        lit = 1 + round_light * (slope * toward - 0.5 * slope * slope)
        glint = 0.05 * round_light * np.exp(-8 * (slope - 0.5 * toward) ** 2)
        colour = [float(c) * lit + glint for c in colour]
    lay(canvas, where, opacity * cover, colour)


def shadow(canvas, pose, box, distance, depth, reach):
    """Paints the soft shadow of a surface `reach` above the ground, whose signed distance is `distance(u, v)`."""
    shift = -canvas.sun[:2] * reach
    where = around(canvas, pose, box, pad=3 * reach)
    u, v = shapes.to_part(pose, canvas.x[:, where[1]] - shift[0], canvas.y[where[0]] - shift[1])
    fade = 1 - depth * ramp(-distance(u, v), 1.6 * reach)
    for plane in canvas.light:
        plane[where] *= fade


def develop(canvas, rng):
    """Applies the camera: vignetting, white balance, exposure, tone curve, sensor noise. Returns (H, W, 3) uint8."""
    light = canvas.light
    centre = (canvas.middle + rng.normal(0, 12, 2)).astype(np.float32)
    far = 160 / canvas.share
    radius2 = ((canvas.x - centre[0]) / far) ** 2 + ((canvas.y - centre[1]) / far) ** 2
    falloff = 1 - np.float32(rng.uniform(0.15, 0.5)) * radius2
    balance = rng.uniform(0.9, 1.12) * (1 + rng.normal(0, 0.025, 3))
    read = rng.uniform(0.006, 0.014)
    light *= np.maximum(falloff, 0.1)
    light *= balance.astype(np.float32)[:, None, None]
    np.maximum(light, 0, out=light)
    light /= 0.75 + 0.32 * light  # highlights roll off instead of clipping
    np.sqrt(light, out=light)  # the tone curve; it also makes photon noise independent of brightness
    light += np.float32(read) * rng.standard_normal(light.shape, dtype=np.float32)
    light *= 255
    light += 0.5
    return np.ascontiguousarray(np.clip(light, 0, 255).astype(np.uint8).transpose(1, 2, 0))
