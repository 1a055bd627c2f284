"""A dendrite and its spines under a two-photon microscope, drawn in pixels with the exact box of every spine.

The drawings are modelled on the images of Smirnov et al. (2018), at 15.36 px per micrometre: a bright shaft, dim heads
on necks that are often invisible, shot noise, and the black margins left by registration. The ground truth is the very
centre at which a head is drawn.
"""

from typing import NamedTuple

import numpy as np

# In the order of their labels. The box of a spine or stub is a square of fixed side (px) around its centre; that of a
# filopodium is the bounding box of its thread from the shaft's edge on, extended by `RIM` px on all sides.
CLASSES = ("spine", "filopodium", "stub")
SIDES = {"spine": 15.0, "stub": 11.0}
RIM = 4.0

MOST = 8  # most objects in an image
_COUNTS = np.array([3, 20, 26, 22, 15, 9, 2.5, 2.5]) / 100  # probabilities of 1, ..., 8 objects
_SHARES = {1: (1.0,), 2: (0.65, 0.35), 3: (0.5, 0.25, 0.25)}
_APART = 11.0  # least distance between two objects, px
_LEAST = 64


class Shaft(NamedTuple):
    """A thick bright thread around the axis v = course(u), in coordinates u along it and v across it.

    `turn` (2, 2) has the unit vectors of u and v as its columns; `middle` (2,) is the origin in pixels; `waves` are
    rows of (amplitude, wave number, phase); `radius` (px) is the half-width at half maximum.
    """

    turn: np.ndarray
    middle: np.ndarray
    waves: np.ndarray
    radius: float


def draw(index, *, size=(144, 160), seed=0, classes=1):
    """Draws one image of a dendrite with 1 to 8 objects.

    Args:
      index: the image's number, from 0.
      size: height and width in pixels, each at least 64; another size gives another scene, not a scaled one.
      seed: each seed gives another collection.
      classes: how many of `CLASSES` occur: 1 for spines only, 2 adds filopodia, 3 adds stubs.

    Returns:
      image: (H, W, 3) uint8, three equal channels.
      boxes: (M, 4) float64, (x0, y0, x1, y1) in pixels, y down, from the corner of the top-left pixel; they may extend
        beyond the image.
      labels: (M,) int64, indices into `CLASSES`.

    Raises:
      ValueError: a negative index, a size below 64 x 64, or classes not among 1, 2 and 3.
    """
    if index < 0:
        raise ValueError(f"index: {index} is negative; number the images from 0")
    if min(size) < _LEAST:
        raise ValueError(f"size: {tuple(size)} is too small for a dendrite; give at least {_LEAST} x {_LEAST}")
    if classes not in _SHARES:
        raise ValueError(f"classes: {classes}; choose 1 ({CLASSES[0]}), 2 or 3 ({', '.join(CLASSES)})")
    rng = np.random.default_rng([seed, index])
    frame = margins(size, rng)
    shaft = lay_out(frame, rng)
    labels, ends = place(shaft, frame, classes, rng)

    light = np.zeros(size, np.float32)
    paint_shaft(light, shaft, 1.0, rng)
    for label, (root, tip) in zip(labels, ends, strict=True):
        paint_object(light, CLASSES[label], root, tip, rng)
    clutter(light, shaft, ends[:, 1], frame, rng)
    boxes = np.array([box(CLASSES[label], *end) for label, end in zip(labels, ends, strict=True)])
    return develop(light, frame, rng), boxes, labels


def margins(size, rng):
    """Returns the part of the image that registration does not leave black: (x0, y0, x1, y1) in whole pixels."""
    (height, width), black = size, rng.random(4) ** 2 / 9
    low_x, low_y, high_x, high_y = (black * [width, height, width, height]).astype(int)
    return np.array([low_x, low_y, width - high_x, height - high_y])


def lay_out(frame, rng):
    """Returns a slightly wavy shaft through about the middle of the frame, in any direction."""
    angle = rng.uniform(0, np.pi)
    along = np.array([np.cos(angle), np.sin(angle)])
    turn = np.stack([along, [-along[1], along[0]]], 1)
    middle = (frame[:2] + frame[2:]) / 2 + turn[:, 1] * rng.uniform(-10, 10)
    heights, numbers = rng.normal(0, (6, 1.5)), rng.uniform((0.02, 0.05), (0.035, 0.1))
    waves = np.stack([heights, numbers, rng.uniform(0, 2 * np.pi, 2)], 1)
    return Shaft(turn, middle, waves, rng.uniform(3.0, 6.0))


def course(shaft, u):
    """Returns the axis's v and its slope at u (any shape); the axis passes through the origin."""
    v = sum(height * (np.sin(number * u + phase) - np.sin(phase)) for height, number, phase in shaft.waves)
    return v, sum(height * number * np.cos(number * u + phase) for height, number, phase in shaft.waves)


def on_shaft(shaft, u):
    """Returns the points (..., 2) of the axis in pixels and the unit normals (..., 2) there."""
    v, slope = course(shaft, u)
    normal = np.stack([-slope, np.ones_like(slope)], -1) / np.sqrt(1 + slope**2)[..., None]
    return np.stack([u, v], -1) @ shaft.turn.T + shaft.middle, normal @ shaft.turn.T


def place(shaft, frame, classes, rng, *, tries=60):
    """Chooses the objects, at least one, from `tries` random candidates.

    Returns:
      labels: (M,) int64.
      ends: (M, 2, 2), the root, at the shaft's edge, and the tip, the centre of the head.
    """
    reach = np.hypot(*(frame[2:] - frame[:2])) / 2
    u, sides = rng.uniform(-reach, reach, tries), rng.choice([-1, 1], tries)
    labels = rng.choice(classes, tries, p=_SHARES[classes])
    # The last candidate lies inside even the smallest frame: a spine at the shaft's middle, facing the frame's centre.
    offset = (shaft.middle - (frame[:2] + frame[2:]) / 2) @ shaft.turn[:, 1]
    u[-1], sides[-1], labels[-1] = 0, -1 if offset > 0 else 1, 0
    shortest, longest = np.array([(5, 14), (13, 20), (1, 2.5)])[labels].T  # from the shaft's edge to the tip, px
    length = rng.uniform(shortest, longest)[:, None]
    root, normal = on_shaft(shaft, u)
    slant = np.where(labels == 2, 0, rng.normal(0, 0.35, tries))[:, None]
    along = normal @ np.array([[0, 1], [-1, 0]])
    direction = (sides[:, None] * normal + slant * along) / np.sqrt(1 + slant**2)
    root = root + shaft.radius * direction
    ends = np.stack([root, root + length * direction], 1)
    inside = ((ends > frame[:2] + 4) & (ends < frame[2:] - 4)).all((1, 2))
    wanted, chosen = 1 + rng.choice(MOST, p=_COUNTS), []
    for i in np.flatnonzero(inside):
        if len(chosen) < wanted and all(apart(ends[i], ends[k]) >= _APART for k in chosen):
            chosen.append(i)
    return labels[chosen], ends[chosen]


def apart(one, other):
    """Returns the least distance between the outer halves of two objects, from five points of each."""
    outer = np.linspace(0.5, 1, 5)[:, None]
    points = [end[0] + outer * (end[1] - end[0]) for end in (one, other)]
    return np.sqrt(((points[0][:, None] - points[1]) ** 2).sum(-1)).min()


def box(name, root, tip):
    """Returns the box (4,) of an object from its root at the shaft's edge and its tip."""
    if name == "filopodium":
        return np.concatenate([np.minimum(root, tip) - RIM, np.maximum(root, tip) + RIM])
    return np.concatenate([tip - SIDES[name] / 2, tip + SIDES[name] / 2])


def grid(size):
    """Returns the pixel centres, x (1, W) and y (H, 1)."""
    return (np.arange(size[1], dtype=np.float32) + 0.5)[None], (np.arange(size[0], dtype=np.float32) + 0.5)[:, None]


def paint_shaft(light, shaft, brightness, rng):
    """Adds a shaft of uneven width with a few bright varicosities and the haze around it."""
    x, y = grid(light.shape)
    x, y = x - np.float32(shaft.middle[0]), y - np.float32(shaft.middle[1])
    (ux, vx), (uy, vy) = shaft.turn.astype(np.float32)
    u, v = ux * x + uy * y, vx * x + vy * y
    # Quantities that depend on u alone are tabulated.
    reach = float(np.abs(u).max())
    table = np.linspace(-reach, reach, 256, dtype=np.float32)
    centre, slope = course(shaft, table)
    beads = rng.uniform(-reach, reach, 5)
    bulge = np.exp(-0.5 * ((table[:, None] - beads) / rng.uniform(3, 6, 5)) ** 2) @ rng.uniform(0, 0.5, 5)
    number, phase = rng.uniform(0.03, 0.12), rng.uniform(0, 6)
    radius = shaft.radius * (1 + 0.12 * np.sin(number * table + phase) + 0.3 * bulge)
    strength = brightness * (0.8 + 0.15 * np.sin(0.6 * number * table - phase) + 0.9 * bulge)
    at = ((u + reach) * np.float32(255 / (2 * reach))).astype(np.intp)
    look = lambda values: values.astype(np.float32)[at]
    off = (v - look(centre)) * look(1 / (np.sqrt(1 + slope**2) * radius))
    off *= off
    light += look(strength) * np.exp(np.float32(-np.log(2)) * off) + 0.06 * np.float32(brightness) / (1 + off / 9)


def blob(light, centre, sigma, brightness, angle=0.0, stretch=1.0):
    """Adds a Gaussian spot, `stretch` times as long in the direction `angle`."""
    reach = 3.5 * sigma * max(stretch, 1)
    rows, columns, x, y = around(light, centre, centre, reach)
    x, y = x - centre[0], y - centre[1]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    light[rows, columns] += brightness * np.exp(-0.5 * ((along / stretch) ** 2 + across**2) / sigma**2)


def thread(light, start, stop, sigma, brightness):
    """Adds a thin thread with round ends: a neck or a filopodium."""
    rows, columns, x, y = around(light, start, stop, 3.5 * sigma)
    (dx, dy), length2 = stop - start, np.sum((stop - start) ** 2)
    t = np.clip(((x - start[0]) * dx + (y - start[1]) * dy) / length2, 0, 1)
    off2 = (x - start[0] - t * dx) ** 2 + (y - start[1] - t * dy) ** 2
    light[rows, columns] += brightness * np.exp(-0.5 * off2 / sigma**2)


def around(light, one, other, pad):
    """Returns the rows, columns and pixel centres of the window around two points."""
    low = np.maximum(np.floor(np.minimum(one, other) - pad), 0).astype(int)
    high = np.maximum(np.ceil(np.maximum(one, other) + pad), low).astype(int)
    rows, columns = slice(low[1], high[1]), slice(low[0], high[0])
    x, y = grid(light.shape)
    return rows, columns, x[:, columns], y[rows]


def paint_object(light, name, root, tip, rng):
    """Adds an object of the class `name`; its brightness is a fraction of the shaft's."""
    angle = np.arctan2(*(tip - root)[::-1])
    if name == "spine":
        brightness = rng.uniform(0.25, 0.95)
        thread(light, root, tip, rng.uniform(1.5, 2.3), brightness * rng.uniform(0.1, 0.5))
        blob(light, tip, rng.uniform(2.7, 4.2), brightness, angle, rng.uniform(0.8, 1.2))
    elif name == "filopodium":
        thread(light, root, tip, rng.uniform(1.4, 2.0), rng.uniform(0.25, 0.5))
    else:
        blob(light, tip, rng.uniform(2.4, 3.0), rng.uniform(0.6, 0.9), angle, rng.uniform(0.9, 1.2))


def clutter(light, shaft, tips, frame, rng):
    """Adds distractors: another dendrite at the rim, wide out-of-focus blobs, and specks smaller than any head."""
    if rng.random() < 0.3:
        side = shaft.turn[:, 1] * rng.choice([-1, 1]) * rng.uniform(0.5, 0.65) * np.hypot(*(frame[2:] - frame[:2]))
        away = shaft._replace(middle=shaft.middle + side, radius=rng.uniform(4, 9))
        paint_shaft(light, away, rng.uniform(0.15, 0.6), rng)
    for centre in rng.uniform(frame[:2], frame[2:], (rng.integers(0, 5), 2)):
        blob(light, centre, rng.uniform(9, 16), rng.uniform(0.02, 0.08), rng.uniform(0, np.pi), rng.uniform(1, 1.6))
    for centre in rng.uniform(frame[:2], frame[2:], (rng.integers(0, 6), 2)):
        if np.hypot(*(tips - centre).T).min() > _APART:
            blob(light, centre, rng.uniform(0.6, 1.0), rng.uniform(0.15, 0.4))


def develop(light, frame, rng):
    """Applies the detector: black level, gain, photon noise and saturation, on the registered part only."""
    x0, y0, x1, y1 = frame
    exposure = rng.choice([150, 500], p=[0.85, 0.15]) * np.exp(rng.normal(0, 0.35))  # some are overexposed
    gain = rng.uniform(0.8, 1.8)  # grey values per photon
    photons = rng.poisson((light[y0:y1, x0:x1] * exposure + rng.uniform(0, 2)) / gain)
    image = np.zeros(light.shape, np.uint8)
    image[y0:y1, x0:x1] = np.minimum(photons * gain, 255)
    return np.repeat(image[..., None], 3, axis=2)
