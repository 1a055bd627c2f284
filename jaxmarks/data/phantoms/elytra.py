"""The elytra from above, between the pronotum's hind margin and the abdomen's tip: 11 landmarks."""

import numpy as np

from jaxmarks.data.phantoms import canvas as cv
from jaxmarks.data.phantoms import limbs, pronotum, shapes, surface

FLIP = (0, 2, 1, 10, 9, 8, 7, 6, 5, 4, 3)
BASE, APEX = -56.0, 60.0
SINUS = 0.885  # relative position along the elytra of the notch before the apex


def draw(canvas, genome, pose, rng):
    """Paints the elytra and returns their landmarks (11, 2) in frame units.

    0 tip of the scutellum; 1, 2 neck at the pronotum's hind margin, right and left; 3, 10 basal corners of the
    scutellum; 4, 9 shoulders; 5, 8 subapical notches; 6, 7 apices on either side of the suture.
    """
    form, uneven = genome.form, genome.uneven
    width, apex, split = 37 * (1 + 0.07 * form[0]), APEX * (1 + 0.035 * form[3]), 3.4 + 0.4 * form[5]
    shape = elytra_outline(width, apex, form, uneven)
    shoulder = BASE + 2.5 + 0.8 * form[4]
    front = surface.steps(
        [-1, -0.7, -0.2, 0.2, 0.7, 1],
        [shoulder + 0.5 * uneven[2], BASE - 0.6, BASE + 0.8, BASE + 0.8, BASE - 0.6, shoulder - 0.5 * uneven[2]],
    )

    def hind(_, off):
        # Each elytron has its own apex; between the two the suture gapes a little.
        off = np.abs(off)
        return apex - 4 - np.where(off < split, 2.8 * (1 - off / split), 0.16 * (off - split))

    limbs.legs(canvas, pose, rng, genome, [(0.9 * width, -44), (0.92 * width, -2)])
    abdomen(canvas, pose, genome, width, apex)
    neck = waist(canvas, pose, rng, genome)
    box = ((-width - 4, BASE - 4), (width + 4, apex))
    surface.plate(canvas, pose, shape, box, genome.skin, front=front, hind=hind, relief=striate(genome, rng))
    side = 8.2 + 0.4 * form[6]
    scutellum = np.array([(side, BASE + 0.8), (0.5 * uneven[3], BASE + 10.5 + form[7]), (-side, BASE + 0.8)])
    triangle(canvas, pose, scutellum, genome.skin)
    if rng.random() < 0.3:
        limbs.pin(canvas, shapes.to_frame(pose, [0.45 * width, -22]), rng)

    sinus = BASE + SINUS * (apex - BASE)
    suture = shapes.margin(shape, apex - 4, 0)
    base = [scutellum[1], *neck, scutellum[0], surface.corner(shape, 1, front)]
    end = [shapes.margin(shape, sinus, 1), suture + [split, 0], suture - [split, 0], shapes.margin(shape, sinus, -1)]
    return shapes.to_frame(pose, [*base, *end, surface.corner(shape, -1, front), scutellum[2]])


def elytra_outline(width, apex, form, uneven):
    """Returns the outline of the two closed elytra."""
    taper, flat = 0.04 * form[1], 0.03 * form[2]
    line = shapes.curve([0, 0.05, 0.3, 0.6, 0.8, 1], [0.79, 0.86, 0.97 - flat, 1.04 + taper, 1.04 + taper / 2, 1.0])

    def half(v):
        t = np.maximum(v - BASE, 0) / (apex - BASE)
        cap = np.sqrt(np.maximum(1 - t ** (5.2 + 0.5 * form[2]), 0))
        notch = 2.2 * np.maximum(1 - np.abs(t - SINUS) / 0.035, 0)
        return (width * line(t) - notch) * cap

    return shapes.symmetric_outline(BASE - 8, apex, half, uneven=0.008 * uneven[0], lean=0.012 * uneven[1])


def striate(genome, rng):
    """Returns the relief of two vaulted elytra with striae, punctures and the suture between them."""
    count, depth = genome.striae, rng.uniform(0.15, 0.5)
    pits, spacing = rng.uniform(0, 0.7) * (rng.random() < 0.6), rng.uniform(2.6, 3.6)

    def relief(across, v):
        place = np.abs(across)
        phase = count * place * (1.12 - 0.12 * place) * np.float32(2 * np.pi)
        wave = np.cos(phase)
        groove = np.maximum(wave, 0)
        groove = groove * groove * groove
        if pits:
            groove = groove * (1 - pits + pits * np.cos(v * np.float32(2 * np.pi / spacing)))
        suture = np.exp(-((place / 0.022) ** 2))
        bead = 1 - 1.5 * np.clip((place - 0.95) * 30, 0, 1)
        nx = surface.vault(across) * bead - np.sign(across) * depth * np.sin(phase) * (0.4 + 0.6 * wave)
        fall = np.clip((v - 12) / 62, 0, 1)
        ny = 0.8 * fall * fall - 0.5 * np.clip((BASE + 9 - v) / 12, 0, 1)
        return nx, ny, (1 - 1.2 * depth * np.clip(groove, 0, 1)) * (1 - 0.8 * suture)

    return relief


def abdomen(canvas, pose, genome, width, apex):
    """Paints the tip of the abdomen, which shows behind the elytra."""

    def half(v):
        return 0.62 * width * np.sqrt(np.maximum(1 - ((v - apex + 18) / 24) ** 2, 0))

    shape = shapes.symmetric_outline(apex - 42, apex + 6, half)
    skin = genome.skin._replace(top=0.5 * genome.limb, slant=0.5 * genome.limb, gloss=0.4 * genome.skin.gloss)
    surface.plate(canvas, pose, shape, ((-0.65 * width, apex - 25), (0.65 * width, apex + 7)), skin)


def waist(canvas, pose, rng, genome):
    """Paints the mesothorax's neck and the pronotum's hind part; returns the right and left neck points (u, v)."""
    half, top = 8.6 + 0.5 * genome.form[6], BASE - 4.6 - 0.4 * genome.form[4]
    skin = genome.skin._replace(relief=2.5 * genome.skin.relief, gloss=0.5 * genome.skin.gloss)
    shape = shapes.symmetric_outline(BASE - 20, BASE + 4, lambda v: np.full_like(v, half))
    surface.plate(canvas, pose, shape, ((-12, BASE - 12), (12, BASE + 4)), skin, cast=(0.3, 2.0))
    width = 30 * (1 + 0.06 * genome.form[0])
    shape = shapes.symmetric_outline(
        -150, top + 6, shapes.curve([-150, -90, top], [0.90 * width, 1.16 * width, 1.02 * width])
    )

    disc = pronotum.disc(rng, top - 80, top)

    def hind(_, off):
        # The margin passes the neck points at exactly `top` and bows forward to the sides.
        return top - 0.03 * np.abs(np.abs(off) - half)

    surface.plate(
        canvas, pose, shape, ((-1.2 * width, -130), (1.2 * width, top + 1)), genome.skin, hind=hind, relief=disc
    )
    return np.array([(half, top), (-half, top)])


def triangle(canvas, pose, corners, skin):
    """Paints the scutellum; `corners` are the right base corner, the tip and the left base corner."""
    right, tip, left = corners
    where = cv.around(canvas, pose, ((left[0] - 2, left[1] - 3), (right[0] + 2, tip[1] + 2)))
    u, v = shapes.to_part(pose, canvas.x[:, where[1]], canvas.y[where[0]])
    inside = v - np.float32(right[1])
    for start, stop in ((right, tip), (tip, left)):
        du, dv = ((stop - start) / np.hypot(*(stop - start))).tolist()
        inside = np.minimum(inside, du * (v - float(start[1])) - dv * (u - float(start[0])))
    inside *= np.float32(pose.scale)
    # A dark seam sets it off from the elytra.
    for plane in canvas.light:
        plane[where] *= 1 - 0.6 * cv.ramp(inside + 0.8, 2.0)
    nx, ny, dim = 0.03 * u, 0.04 * (v - float(tip[1]) + 4), 0.6 + 0.5 * cv.ramp(inside - 0.5, 2.0)
    cv.lay(canvas, where, cv.ramp(inside, canvas.edge), cv.shade(canvas, where, pose, nx, ny, skin, dim))
