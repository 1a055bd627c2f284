"""Beetles drawn by code: five parts of 293 specimens at any resolution, with landmarks exact to a fraction of a pixel.

All parts of a specimen share one genome (form, colour, gloss), and each part is photographed separately. Parts,
landmark counts and landmark order are those of the beetle data of Le et al. The landmarks are points of the very curves
that are drawn and are mapped like the drawing, so the ground truth depends on no annotator.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxmarks.data.phantoms import backdrop, canvas, elytra, genome, head, mandible, pronotum
from jaxmarks.data.samples import Samples

SPECIMENS = 293


class _Part(NamedTuple):
    """A part of a beetle.

    Attributes:
      landmarks: number of landmarks.
      draw: the function that draws the part.
      millimetres: mm per frame unit (1/256 of the frame's width), for ground beetles of about 15 mm.
      flip: landmark order after mirroring horizontally; None for a mandible: its mirror image is one of the other side.
    """

    landmarks: int
    draw: Callable
    millimetres: float
    flip: tuple[int, ...] | None = None


# Add new parts at the end: a part's index is part of its random seeds.
_PARTS = {
    "left_mandible": _Part(16, functools.partial(mandible.draw, part="left_mandible"), 0.018),
    "right_mandible": _Part(18, functools.partial(mandible.draw, part="right_mandible"), 0.018),
    "pronotum": _Part(8, pronotum.draw, 0.04, pronotum.FLIP),
    "elytra": _Part(11, elytra.draw, 0.07, elytra.FLIP),
    "head": _Part(10, head.draw, 0.03, head.FLIP),
}
# For each part: the number of landmarks, and the landmark order after mirroring.
PARTS = {name: part.landmarks for name, part in _PARTS.items()}
FLIP = {name: part.flip for name, part in _PARTS.items()}


def draw(part, specimen, *, size=(192, 256), seed=0, share=1.0, turn=0.0):
    """Draws one part of one specimen.

    The same part, specimen and seed give the same beetle in the same scene at every resolution; only the sensor noise
    is drawn per pixel.

    Args:
      part: a key of `PARTS`.
      specimen: its number, from 0; by default `load` uses those below `SPECIMENS`.
      size: height and width in pixels; the subject fits the largest centred 4:3 frame.
      seed: each seed gives another collection.
      share: if less than 1, the frame has this share of its largest width and height, and lies anywhere in the image.
      turn: largest rotation of the subject in degrees, either way, on top of the up to 15 that it always has.

    Returns:
      image: (H, W, 3) uint8, sRGB-like.
      points: (K, 2) float64 landmarks (x, y) in pixels, y down, the origin at the corner of the top-left pixel.

    Raises:
      ValueError: unknown part, negative specimen, a size below 1, or a share that is not above 0 and at most 1.
    """
    if part not in PARTS:
        raise ValueError(f"part: unknown phantom part {part!r}; choose one of {', '.join(PARTS)}")
    if specimen < 0:
        raise ValueError(f"specimen: {specimen} is negative; number the specimens from 0")
    if min(size) < 1:
        raise ValueError(f"size: {tuple(size)} has no pixels; give (height, width), both at least 1")
    if not 0 < share <= 1:
        raise ValueError(f"share: {share} is out of range; give more than 0 and at most 1")
    genes = genome.genome(specimen, seed)
    rng = np.random.default_rng([seed, specimen, 1 + list(PARTS).index(part)])
    camera, place = rng.spawn(2)
    pose = genome.pose(rng, mirror=-1 if part == "right_mandible" else 1)
    scene = canvas.blank(size, rng, share=share, place=place.uniform(share / 2, 1 - share / 2, 2))
    pose = pose._replace(angle=pose.angle + np.deg2rad(place.uniform(-turn, turn)))
    backdrop.card(scene, rng)
    backdrop.litter(scene, rng)
    points = _PARTS[part].draw(scene, genes, pose, rng)
    backdrop.dust(scene, rng, round(rng.integers(3, 12) / share**2))
    return canvas.develop(scene, camera), points / scene.pixel + scene.centre


def load(part, *, size=(192, 256), seed=0, count=SPECIMENS, channels=3, share=1.0, turn=0.0):
    """Draws specimens 0 ... count-1 of a part as `Samples`, one group per specimen.

    Args:
      part: a key of `PARTS`.
      size: height and width of the images in pixels.
      seed: each seed gives another collection.
      count: number of specimens.
      channels: 3, or 1 for luminance (0.299 R + 0.587 G + 0.114 B, rounded).
      share, turn: as in `draw`.

    Raises:
      ValueError: as `draw`; a count below 1; channels other than 1 or 3.
    """
    if count < 1:
        raise ValueError(f"count: {count} phantoms are too few; give at least 1")
    if channels not in (1, 3):
        raise ValueError(f"channels: {channels} is neither 1 (luminance) nor 3 (RGB)")

    def one(specimen):
        image, points = draw(part, specimen, size=size, seed=seed, share=share, turn=turn)
        return image if channels == 3 else luminance(image), points

    images, points = zip(*map(one, range(count)), strict=True)
    scale = share * min(size[0] / canvas.FRAME[1], size[1] / canvas.FRAME[0])
    return Samples(
        images=np.stack(images),
        points=np.stack(points).astype(np.float32),
        visible=np.ones((count, PARTS[part]), bool),
        group=np.arange(count),
        name=np.array([f"{part}_{specimen:03d}.png" for specimen in range(count)]),
        to_source=np.tile(np.eye(2, 3), (count, 1, 1)),
        mm_per_px=np.full(count, _PARTS[part].millimetres / scale),
        source_size=np.tile(np.array(size, np.int64), (count, 1)),
    )


def luminance(image):
    """Converts (H, W, 3) uint8 RGB to (H, W, 1) uint8 luminance as in ITU-R BT.601, rounded."""
    weighted = image @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.round(weighted).astype(np.uint8)[..., None]
