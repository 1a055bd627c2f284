"""A specimen's random genome, seeded with its number: form, colour and gloss, the same in all of its parts."""

from typing import NamedTuple

import numpy as np

from jaxmarks.data.phantoms import canvas, shapes

# Linear RGB of the cuticle seen from above and at a slant (different if iridescent), and the livery's probability.
LIVERIES = (
    ("black", (0.012, 0.012, 0.014), (0.020, 0.018, 0.016), 0.22),
    ("piceous", (0.040, 0.020, 0.012), (0.060, 0.026, 0.012), 0.16),
    ("chestnut", (0.150, 0.055, 0.018), (0.110, 0.030, 0.010), 0.14),
    ("bronze", (0.070, 0.060, 0.026), (0.170, 0.070, 0.030), 0.14),
    ("green", (0.020, 0.110, 0.036), (0.110, 0.100, 0.016), 0.12),
    ("blue", (0.016, 0.042, 0.130), (0.060, 0.020, 0.120), 0.10),
    ("copper", (0.190, 0.070, 0.036), (0.060, 0.090, 0.030), 0.06),
    ("red", (0.260, 0.030, 0.012), (0.150, 0.014, 0.006), 0.06),
)


class Genome(NamedTuple):
    """The genome of one specimen.

    `form` holds eight shape modes (0: slenderness, 1: taper, 2: roundness; each part gives the others its own meaning),
    `uneven` eight left-right asymmetries; both are about N(0, 1), clipped to +-2. `skin` is the cuticle, `limb` the
    linear RGB of legs and antennae, `striae` the number of grooves on an elytron.
    """

    form: list[float]
    uneven: list[float]
    livery: str
    skin: canvas.Skin
    limb: np.ndarray
    striae: int


def genome(specimen, seed):
    """Returns the genome of a specimen; it depends on `(specimen, seed)` only."""
    rng = np.random.default_rng([seed, specimen])
    form, uneven = np.clip(rng.standard_normal((2, 8)), -2, 2).tolist()
    name, top, slant, _ = LIVERIES[rng.choice(len(LIVERIES), p=[share for *_, share in LIVERIES])]
    top = 0.8 * np.array(top) * np.exp(rng.normal(0, 0.15, 3) + rng.normal(0, 0.2))
    slant = np.array(slant) * np.exp(rng.normal(0, 0.2, 3))
    gloss = np.exp(rng.uniform(-1.2, 0.7))
    skin = canvas.Skin(top, slant, gloss, np.exp(rng.uniform(3.6, 5.3)), rng.uniform(0.012, 0.05))
    limb = np.array([0.032, 0.018, 0.012]) * np.exp(rng.normal(0, 0.5)) + 0.25 * top
    return Genome(form, uneven, name, skin, limb, int(rng.integers(7, 10)))


def pose(rng, mirror=1):
    """Draws a random pose: rotated by up to 15 degrees, shifted by up to 8 % of the frame, scaled by up to 15 %."""
    angle = np.deg2rad(15) * rng.triangular(-1, 0, 1)
    scale = 1 + 0.15 * rng.triangular(-1, 0, 1)
    shift = 0.08 * np.array(canvas.FRAME) * rng.uniform(-1, 1, 2)
    return shapes.Pose(angle, scale, shift, mirror)
