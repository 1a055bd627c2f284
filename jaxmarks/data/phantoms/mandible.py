"""A dissected mandible on a card: 16 landmarks on the left one, 18 on the right one, which has a second large tooth.

Both are drawn in the left one's axes, with the cutting (inner) margin to the right; the pose mirrors the right one.
"""

import numpy as np

from jaxmarks.data.phantoms import backdrop, limbs, shapes, surface
from jaxmarks.data.phantoms import canvas as cv

TIP = -58.0
# Positions (v) of the corners on the cutting margin, alternately notch and tooth, and how far they stand out.
TEETH = {
    "left_mandible": ((1, 5, 11, 18, 22, 26, 30, 34), (-1.5, 4.5, -0.5, 3.0, -0.8, 2.6, -0.8, 2.8)),
    "right_mandible": ((-8, -4, 1, 6, 18, 22, 25, 29, 32, 36), (-1.2, 4.5, -0.3, 4.2, -1.0, 2.6, -0.8, 2.6, -0.8, 2.8)),
}


def draw(canvas, genome, pose, rng, part):
    """Paints a mandible and returns its landmarks (16 or 18, 2) in frame units.

    In order: the tip; alternating notches and teeth along the cutting margin; its basal corner; the groove in the base;
    the condyle's lower and outer corners; the notch beside it; the ridge; the scrobe's bristle on the outer margin.
    """
    form, uneven = genome.form, genome.uneven
    places, heights = TEETH[part]
    places = np.array(places) + 1.2 * form[3] + np.linspace(0, 1.0, len(places)) * uneven[0]
    heights = np.array(heights) * (1 + 0.18 * form[4])
    outer_v = np.array([57.0, 43.0, 36.5, 28.0, -16.0 + 2 * form[5]])
    whole = blade(form, uneven, places, heights, outer_v)
    core = blade(form, uneven, places, 0 * heights, outer_v)
    groove = -0.40 + 0.04 * form[6]
    hind = surface.steps(
        [-1, -0.8, groove, groove + 0.24, 0.4, 1], np.array([57, 58.5, 53.5, 57.5, 54, 45]) + [0, 0, 0, 0, 0, uneven[1]]
    )

    flesh(canvas, pose, rng, whole)
    skin = chitin(genome, rng)
    paint(canvas, pose, whole, core, hind, skin, rng)
    root = shapes.margin(whole, outer_v[4], -1)
    limbs.seta(canvas, pose, root + [1.5, 0], root + [-rng.uniform(9, 14), rng.normal(-3, 3)])

    points = [shapes.margin(whole, TIP, 0)]
    points += [shapes.margin(whole, v, 1) for v in places]
    points += [surface.corner(whole, place, hind) for place in (1, groove, -1)]
    points += [shapes.margin(whole, v, -1) for v in outer_v[1:]]
    return shapes.to_frame(pose, points)


def blade(form, uneven, places, heights, outer_v):
    """Returns the outline of a mandible with the given corners on the cutting margin."""
    girth, hook = 1 + 0.07 * form[0], 4.0 * form[1]
    lower, outer, notch, ridge, scrobe = outer_v
    inner = shapes.curve([TIP, -48, -24, 0, 45, 62], girth * np.array([17, 12.5, 12 + form[2], 18, 27, 26]))
    back = shapes.curve(
        [TIP, -50, -36, scrobe, 8, ridge, lower, 62], girth * np.array([17, 0, -12 - form[2], -25, -32, -35, -33, -30])
    )
    corners = np.array([places[0] - 8, *places, places[-1] + 6])
    stand_out = np.array([0, *heights, 0])
    # The outer margin's own corners: ridge, notch, condyle and the small pit of the scrobe's bristle.
    outer_corners = [scrobe - 2.5, scrobe, scrobe + 2.5, ridge - 7, ridge, notch, outer, lower]
    outer_out = np.array([0, 1.3, 0, 0, -1.8, 2.6, -4.5, 0.0]) * (np.ptp(heights) > 0)

    def bend(v):
        t = np.clip((v - TIP) / 100, 0, 1)
        return hook * (1 - t) ** 2 + 0.8 * uneven[2] * (t - 0.5)

    def blunt(v):
        # Rounds the tip as if worn: if it were infinitely thin, the landmark would be invisible.
        return 0.7 * np.sqrt(1 - np.exp(np.minimum(TIP - v, 0) / 1.5))

    return shapes.outline(
        TIP,
        62,
        lambda v: back(v) + bend(v) + np.interp(v, outer_corners, outer_out) - blunt(v),
        lambda v: inner(v) + bend(v) + np.interp(v, corners, stand_out) + blunt(v),
    )


def chitin(genome, rng):
    """Returns the hard, dark cuticle of a mandible, reddish at a slant."""
    top = 0.22 * genome.skin.top + np.array([0.020, 0.011, 0.008]) * np.exp(rng.normal(0, 0.4))
    slant = top + np.array([0.05, 0.016, 0.006]) * np.exp(rng.normal(0, 0.5))
    return genome.skin._replace(top=top, slant=slant, gloss=rng.uniform(0.3, 1.0), relief=rng.uniform(0.015, 0.06))


def paint(canvas, pose, whole, core, hind, skin, rng):
    """Paints the blade: a ridge along the back, scratches on the inner half, a reddish glow where it is thin."""
    ridge, depth = rng.uniform(-0.45, -0.25), rng.uniform(0.4, 0.9)
    scratch, pitch = rng.uniform(0, 0.09), rng.uniform(0.6, 1.0)
    box = ((-45, TIP - 2), (38, 62))

    def distance(u, v):
        inside, across, _ = shapes.signed_distance(whole, u, v)
        edge = np.maximum(v - hind(np.clip(across, -1.2, 1.2), None), np.float32(TIP) - v)
        return np.maximum(inside, edge)

    cv.shadow(canvas, pose, box, distance, 0.65, 6.0)
    where = cv.around(canvas, pose, box)
    u, v = shapes.to_part(pose, canvas.x[:, where[1]], canvas.y[where[0]])
    inside = distance(u, v) * np.float32(pose.scale)
    # The relief follows the blade without its teeth; with them, ridges would run across the whole surface.
    across = np.clip(shapes.signed_distance(core, u, v)[1], -0.94, 0.94)
    low = np.clip((v - TIP) / 100, 0, 1)
    line = (across - ridge - 0.25 * (low - 0.5)) / 0.07
    crest = depth * np.exp(-line * line) * np.clip(3 * low - 0.6, 0, 1)
    nx = surface.vault(across) + line * crest
    ny = scratch * np.sin(pitch * (v + 14 * across)) * (across > 0) + 0.5 * np.clip((v - 46) / 10, 0, 1)
    thin = np.clip(1 - 5 * low, 0, 1) + 0.7 * np.clip(across - 0.55, 0, 1)
    rim = 0.4 + 0.6 * cv.ramp(-inside - 1.2, 3.0)
    colours = cv.shade(canvas, where, pose, nx, ny, skin, rim * (1 - 0.4 * crest))
    glow = 0.05 * thin
    colours = [c + glow * g for c, g in zip(colours, (1.0, 0.3, 0.1), strict=True)]
    cv.lay(canvas, where, cv.ramp(-inside, canvas.edge), colours)


def flesh(canvas, pose, rng, whole):
    """Paints membrane and torn muscle at the base, under the blade."""
    tint = np.array([0.42, 0.26, 0.13]) * np.exp(rng.normal(0, 0.3))
    for place, v, size in ((0.75, 52, 13), (0.2, 58, 8), (-0.4, 57, 7)):
        centre = shapes.margin(whole, v, place) + rng.normal(0, 2.5, 2)
        radius = size * rng.uniform(0.7, 1.2)
        where = cv.around(canvas, pose, (centre - radius - 4, centre + radius + 4))
        u, v = shapes.to_part(pose, canvas.x[:, where[1]], canvas.y[where[0]])
        stretch = rng.uniform(0.7, 1.1)
        inside = radius - np.hypot((u - np.float32(centre[0])) / np.float32(stretch), v - np.float32(centre[1]))
        backdrop.tissue(canvas, where, inside, tint * rng.uniform(0.6, 1.1), 2.2)
    for _ in range(rng.integers(1, 5)):
        start = shapes.margin(whole, 54, rng.uniform(-0.3, 0.9))
        stop = start + [rng.normal(3, 8), rng.uniform(8, 24)]
        cv.stroke(canvas, *shapes.to_frame(pose, [start, stop]), (1.8, 0.3), tint, bow=rng.normal(0, 4), cover=0.8)
