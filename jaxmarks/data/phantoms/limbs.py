"""Legs, antennae, setae and the pin, painted as strokes."""

import numpy as np

from jaxmarks.data.phantoms import shapes
from jaxmarks.data.phantoms.canvas import stroke


def leg(canvas, pose, rng, genome, coxa, side, forward):
    """Paints a leg outwards from its coxa (u, v): femur, tibia, tarsus; `forward` is +1 if it bends to the front."""
    girth = 1 + 0.12 * genome.form[6]
    lean = rng.normal(-0.35 * forward, 0.18)
    knee = coxa + 34 * np.array([side * np.cos(lean), np.sin(lean)])
    drop = lean + rng.uniform(0.9, 1.6) * (1 if forward < 0 else -1)
    ankle = knee + 33 * np.array([side * np.cos(drop), np.sin(drop)])
    foot = ankle + 26 * np.array([side * np.cos(drop + rng.normal(0, 0.4)), np.sin(drop + rng.normal(0, 0.3))])
    coxa, knee, ankle, foot = (shapes.to_frame(pose, p) for p in (coxa, knee, ankle, foot))
    for shift, cover in (((-4.0, 4.0) * -np.sign(canvas.sun[:2]), 0.16), (np.zeros(2), 1.0)):
        colour = genome.limb if cover == 1 else (0.05, 0.05, 0.06)
        stroke(canvas, ankle + shift, foot + shift, (1.9, 1.3), colour, beads=5, bow=rng.normal(0, 2), cover=cover)
        stroke(
            canvas, knee + shift, ankle + shift, (2.3 * girth, 2.7 * girth), colour, bow=rng.normal(0, 1), cover=cover
        )
        stroke(canvas, coxa + shift, knee + shift, (5.2 * girth, 3.1 * girth), colour, cover=cover)


def legs(canvas, pose, rng, genome, coxae):
    """Paints pairs of legs at the given right coxae and their mirror images."""
    for u, v in coxae:
        for side in (-1, 1):
            leg(canvas, pose, rng, genome, np.array([side * abs(u), v]), side, 1 if v < -20 else -1)


def antenna(canvas, pose, rng, genome, root, side):
    """Paints a beaded antenna from its root (u, v): a scape and two arcs of flagellum."""
    turn = rng.uniform(-1.2, -0.5)
    place = np.asarray(root, float)
    for length, beads, radii in ((11, 1, (2.4, 2.2)), (30, 5, (1.9, 1.7)), (34, 6, (1.7, 1.2))):
        tip = place + length * np.array([side * np.cos(turn), np.sin(turn)])
        ends = shapes.to_frame(pose, [place, tip])
        stroke(canvas, *ends, radii, genome.limb * 1.3, beads=beads, bow=rng.normal(0, 0.06) * length)
        place, turn = tip, turn + rng.uniform(0.1, 0.7)


def seta(canvas, pose, root, tip, bow=1.0):
    """Paints a stiff, dark bristle that tapers to nothing."""
    stroke(canvas, *shapes.to_frame(pose, [root, tip]), (0.45, 0.1), (0.06, 0.04, 0.03), bow=bow, round_light=0)


def pin(canvas, place, rng):
    """Paints an insect pin seen almost from above, with a leaning shaft and a shiny head; `place` is in frame units."""
    lean = place + rng.normal(0, 7, 2) + np.array([0, -4])
    stroke(canvas, place, lean, (0.9, 1.0), (0.25, 0.25, 0.27), round_light=0.9)
    stroke(canvas, lean, lean + 0.05, (3.1, 3.1), (0.42, 0.40, 0.36), round_light=0.9)
    glint = lean + canvas.sun[:2]
    stroke(canvas, glint, glint + 0.05, (0.7, 0.7), (1.6, 1.6, 1.6), round_light=0)
