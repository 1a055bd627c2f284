"""The pronotum from above, the head before it and the elytra behind: 8 landmarks."""

import numpy as np

from jaxmarks.data.phantoms import limbs, shapes, surface

FLIP = (0, 7, 6, 5, 4, 3, 2, 1)
FRONT, HIND = -44.0, 48.0


def draw(canvas, genome, pose, rng):
    """Paints the pronotum and returns its landmarks (8, 2) in frame units.

    0 middle of the front edge; 1, 7 where the front angles rise from it, right and left; 2, 6 front angles; 3, 5 hind
    angles; 4 middle of the hind edge.
    """
    form, uneven = genome.form, genome.uneven
    width = 56 * (1 + 0.06 * form[0])
    length = 1 + 0.04 * form[3]
    shape = shield(width, length, form, uneven)
    lobe, rise = 0.62 + 0.03 * form[5], 6.5 + 1.2 * form[4]
    level = FRONT * length + 6 + np.array([0.5, 0, -0.5]) * uneven[2]
    front = surface.steps(
        [-1, -lobe, 0, lobe, 1], [level[0] - rise, level[0], level[1] - 0.8, level[2], level[2] - rise]
    )
    bay = 3.0 + form[6]
    end = HIND * length - 3
    hind = surface.bent(
        [-1, -0.6, 0, 0.6, 1], [end + 0.4 * uneven[3], end - 1, end + bay, end - 1, end - 0.4 * uneven[3]]
    )

    limbs.legs(canvas, pose, rng, genome, [(0.85 * width, -8)])
    paint_elytra(canvas, pose, genome, width, end)
    paint_head(canvas, pose, genome, width, level[1], rng)
    box = ((-1.12 * width, FRONT * length - 12), (1.12 * width, HIND * length + 6))
    relief = disc(rng, level[1], end)
    surface.plate(canvas, pose, shape, box, genome.skin, front=front, hind=hind, relief=relief)
    for side, v in ((1, -14), (-1, -14), (1, end - 9), (-1, end - 9)):
        root = shapes.margin(shape, v, 0.97 * side)
        limbs.seta(canvas, pose, root, root + [side * rng.uniform(8, 13), rng.normal(-3, 4)])

    places = ((0, front), (lobe, front), (1, front), (1, hind), (0, hind), (-1, hind), (-1, front), (-lobe, front))
    return shapes.to_frame(pose, [surface.corner(shape, place, edge) for place, edge in places])


def shield(width, length, form, uneven):
    """Returns the outline between the side margins, which extend beyond the front and hind edges."""
    knots = np.array([FRONT - 12, FRONT, -22, 4, 28, HIND + 6]) * length
    front, bulge, waist, foot = (
        0.66 + 0.02 * form[1],
        1.03 + 0.02 * form[2],
        0.98 - 0.03 * form[1],
        0.97 - 0.05 * form[7],
    )
    half = shapes.curve(knots, width * np.array([0.60, front, 0.90, bulge, waist, foot]))
    return shapes.symmetric_outline(knots[0], knots[-1], half, uneven=0.01 * uneven[0], lean=0.016 * uneven[1])


def disc(rng, front, hind):
    """Returns the relief of the disc: reflexed side margins, median line, basal pits, transverse wrinkles."""
    groove, pit, wrinkle = rng.uniform(0.3, 0.8), rng.uniform(0.3, 0.8), rng.uniform(0, 0.12)
    place, wave = rng.uniform(0.5, 0.62), rng.uniform(0.5, 0.8)

    def relief(across, v):
        off = np.abs(across)
        along = (v - front) / (hind - front)
        nx = surface.vault(across)
        gutter = np.exp(-(((off - 0.93) / 0.03) ** 2))
        nx = nx * (1 - 1.35 * np.clip((off - 0.92) * 25, 0, 1)) - np.sign(across) * 0.2 * gutter
        median = np.exp(-((across / 0.014) ** 2)) * np.clip(4 * along * (1 - along), 0, 0.6)
        dx, dy = (off - place) / 0.09, (along - 0.86) / 0.13
        hollow = pit * np.exp(-dx * dx - dy * dy)
        nx = nx - np.sign(across) * dx * hollow
        ends = 2 * along - 1
        ny = 0.62 * ends * ends * ends - dy * hollow + wrinkle * np.sin(wave * v + 9 * across * across)
        return nx, ny, (1 - groove * median) * (1 - 0.5 * gutter) * (1 - 0.5 * hollow)

    return relief


def paint_elytra(canvas, pose, genome, width, end):
    """Paints the elytra's shoulders behind the pronotum, extending beyond the frame."""
    top = end + 7.5

    half = shapes.curve(top + np.array([-8, 2, 14, 80, 140]), width * np.array([0.84, 0.92, 1.08, 1.3, 1.3]))
    shape = shapes.symmetric_outline(top - 8, top + 140, half)
    front = surface.bent([-1, -0.7, 0, 0.7, 1], [top + 3, top - 1, top, top - 1, top + 3])
    count = genome.striae

    def relief(across, v):
        place = np.abs(across)
        phase = count * place * np.float32(2 * np.pi)
        nx = surface.vault(across) - np.sign(across) * 0.35 * np.sin(phase)
        suture = np.exp(-((place / 0.015) ** 2))
        return nx, -0.6 * np.clip((top + 8 - v) / 10, 0, 1), (0.8 - 0.2 * np.cos(phase)) * (1 - 0.7 * suture)

    waist = shapes.symmetric_outline(end - 8, top + 8, lambda v: np.full_like(v, 0.66 * width))
    dull = genome.skin._replace(top=0.3 * genome.limb, slant=0.3 * genome.limb, gloss=0.05)
    surface.plate(canvas, pose, waist, ((-0.7 * width, end - 8), (0.7 * width, top + 6)), dull)
    surface.plate(
        canvas, pose, shape, ((-1.4 * width, top - 4), (1.4 * width, top + 70)), genome.skin, front=front, relief=relief
    )


def paint_head(canvas, pose, genome, width, front, rng):
    """Paints the hind part of the head, with its eyes, in front of the pronotum."""
    half = 0.56 * width
    for side in (-1, 1):
        limbs.antenna(canvas, pose, rng, genome, (side * 0.9 * half, front - 34), side)
    line = shapes.curve(front + np.array([-62, -58, -46, -30, 8]), half * np.array([0, 0.36, 0.7, 0.94, 1.0]))
    shape = shapes.symmetric_outline(front - 62, front + 8, line)
    for side in (-1, 1):
        eye = surface.lens(shape, front - 32, front - 12, side, 5.5)
        glassy = genome.skin._replace(top=np.full(3, 0.02), slant=np.full(3, 0.03), gloss=0.8, polish=60.0, relief=0.02)
        ends = sorted([side * (half - 9), side * (half + 9)])
        surface.plate(canvas, pose, eye, ((ends[0], front - 32), (ends[1], front - 12)), glassy)
    surface.plate(canvas, pose, shape, ((-1.1 * half, front - 64), (1.1 * half, front + 8)), genome.skin)
