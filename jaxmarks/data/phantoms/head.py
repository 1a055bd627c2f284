"""The head from above, extended from the pronotum: 10 landmarks."""

import numpy as np

from jaxmarks.data.phantoms import limbs, shapes, surface
from jaxmarks.data.phantoms.canvas import stroke

FLIP = (1, 0, 3, 2, 5, 4, 7, 6, 9, 8)


def draw(canvas, genome, pose, rng):
    """Paints the head and returns its landmarks (10, 2) in frame units, each pair right then left.

    0, 1 neck at the pronotum's front edge; 2, 3 hind and 4, 5 front end of the eyes; 6, 7 outer bases of the
    mandibles at the clypeus; 8, 9 front corners of the labrum.
    """
    form, uneven = genome.form, genome.uneven
    width = 1 + 0.06 * form[0]
    neck, clypeus, labrum = 44 + 1.5 * form[3], -32 - 1.2 * form[4], -51 - 1.5 * form[4]
    eyes = np.array([-13, 15]) + 1.4 * form[5] * np.array([-1, 1]) + 0.7 * np.array(uneven[:2])[:, None]
    shape = capsule(width, form, uneven, clypeus, neck)
    top = surface.bent([-1, -0.6, 0, 0.6, 1], [clypeus, clypeus + 2.5, clypeus + 1, clypeus + 2.5, clypeus])

    for side in (-1, 1):
        root = shapes.margin(shape, float(eyes[0, 0]) - 5, 0.93 * side)
        limbs.antenna(canvas, pose, rng, genome, root, side)
        mandible(canvas, pose, genome, rng, side, clypeus, width)
    lip = upper_lip(width, form, clypeus, labrum)
    lip_front = surface.bent([-1, -0.5, 0, 0.5, 1], [labrum, labrum - 0.6, labrum + 1.8, labrum - 0.6, labrum])
    lip_box = ((-24, labrum - 3), (24, clypeus + 6))
    surface.plate(canvas, pose, lip, lip_box, genome.skin, front=lip_front, cast=(0.5, 2.0))
    for side in (-1, 1):
        start, stop = eyes[(side + 1) // 2].tolist()
        eye = surface.lens(shape, start, stop, side, 6.5 + 0.8 * form[6])
        glassy = genome.skin._replace(
            top=np.full(3, 0.015), slant=np.full(3, 0.03), gloss=0.9, polish=70.0, relief=0.03
        )
        ends = sorted([side * 28 * width, side * 52 * width])
        surface.plate(canvas, pose, eye, ((ends[0], start), (ends[1], stop)), glassy)
    box = ((-46 * width, clypeus - 4), (46 * width, neck + 14))
    surface.plate(canvas, pose, shape, box, genome.skin, front=top, relief=front_of(rng, clypeus, neck))
    for side in (-1, 1):
        root = shapes.margin(shape, float(eyes[0, 0]) + 6, 0.8 * side)
        limbs.seta(canvas, pose, root, root + [side * rng.uniform(10, 15), rng.normal(-6, 3)])
    collar(canvas, pose, genome, rng, shape, neck)

    (left_front, left_hind), (right_front, right_hind) = eyes.tolist()
    points = [
        shapes.margin(shape, v, 1 - 2 * (i % 2))
        for i, v in enumerate((neck, neck, right_hind, left_hind, right_front, left_front))
    ]
    points += [surface.corner(shape, side, top) for side in (1, -1)]
    points += [surface.corner(lip, side, lip_front) for side in (1, -1)]
    return shapes.to_frame(pose, points)


def capsule(width, form, uneven, clypeus, neck):
    """Returns the outline of the head from the clypeus to where it enters the pronotum."""
    knots = [clypeus - 6, clypeus, -14, 2, 18, neck, neck + 20]
    line = shapes.curve(
        knots, width * np.array([21, 23 + 0.6 * form[1], 37, 39.5 + form[2], 39, 41 + 1.2 * form[7], 40])
    )
    return shapes.symmetric_outline(knots[0], knots[-1], line, uneven=0.01 * uneven[2], lean=0.014 * uneven[3])


def upper_lip(width, form, clypeus, labrum):
    """Returns the outline of the labrum."""
    knots = [labrum - 4, labrum, labrum + 9, clypeus + 8]
    return shapes.symmetric_outline(
        knots[0], knots[-1], shapes.curve(knots, width * np.array([14, 15.5, 16.5 + 0.5 * form[2], 15]))
    )


def front_of(rng, clypeus, neck):
    """Returns the relief of the frons: two furrows and the clypeal suture; the skin's grain serves as punctures."""
    depth, place = rng.uniform(0.3, 0.9), rng.uniform(0.38, 0.5)

    def relief(across, v):
        off = np.abs(across)
        along = (v - clypeus) / (neck - clypeus)
        bend = (off - place - 0.12 * np.sin(5 * along)) / 0.06
        furrow = depth * np.exp(-bend * bend) * np.clip(1.2 - 2.2 * np.abs(along - 0.3), 0, 1)
        suture = np.exp(-(((v - clypeus - 12 + 3 * np.cos(3 * across)) / 0.8) ** 2)) * (off < 0.8)
        nx = surface.vault(across) - np.sign(across) * bend * furrow * 0.8
        ny = -0.55 * np.clip(1 - 3.5 * along, 0, 1) + 0.35 * np.clip((along - 0.7) * 3, 0, 1)
        return nx, ny, (1 - 0.5 * furrow) * (1 - 0.5 * suture)

    return relief


def mandible(canvas, pose, genome, rng, side, clypeus, width):
    """Paints a closed mandible beside the labrum: two bowed strokes, with the tip beyond the midline."""
    base, elbow = np.array([side * 18.5 * width, clypeus + 4]), np.array([side * 17 * width, clypeus - 24])
    tip = np.array([-side * rng.uniform(0, 6), clypeus - rng.uniform(36, 42)])
    colour = 0.5 * genome.limb + 0.12 * genome.skin.top
    base, elbow, tip = shapes.to_frame(pose, [base, elbow, tip])
    stroke(canvas, base, elbow, (6.0, 5.2), colour, bow=-side * 2.0, round_light=0.9)
    stroke(canvas, elbow, tip, (5.2, 0.5), colour, bow=side * -2.5, round_light=0.9)


def collar(canvas, pose, genome, rng, shape, neck):
    """Paints the pronotum, whose front edge passes exactly through the head's margins at v = neck."""
    half = float(np.sqrt(shapes.lookup(shape, np.float64(neck))[1]))
    centre = shapes.margin(shape, neck, 0)[0]
    flare, bay = rng.uniform(0.10, 0.3), rng.uniform(5, 9)
    reach = half * 1.3

    def front(_, off):
        # Concave behind the head, then rising to the front angles beside it.
        away = np.abs(off) - half
        return neck + np.where(away < 0, -(away * (2 * half + away)) * (bay / half**2), -flare * away)

    knots = neck + np.array([-12, 0, 40, 90])
    line = shapes.curve(knots, reach * np.array([1.0, 1.04, 1.36, 1.45]))
    plate = shapes.outline(knots[0], knots[-1], lambda v: centre - line(v), lambda v: centre + line(v))
    box = ((-1.5 * reach, neck - 10), (1.5 * reach, neck + 80))

    def relief(across, v):
        off = np.abs(across)
        median = np.exp(-((across / 0.014) ** 2))
        ny = -0.5 * np.clip((neck + 14 - v) / 14, 0, 1)
        return surface.vault(across), ny, (1 - 0.5 * median) * (1 - 0.5 * np.exp(-(((off - 0.93) / 0.03) ** 2)))

    surface.plate(canvas, pose, plate, box, genome.skin, front=front, relief=relief)
