"""Shape priors: a centre map whose peaks are rewarded where the image's edges look like an object (SP-CNN).

The printed loss (the spine paper, equation 3, after Tofighi et al. 2018) is

    MSE(y, target) - weight R,    R = sum_i || (maxpool_p(y) . edges(x)) * S_i ||^2

with y above a threshold in R, and the target a dot at each centre. The paper's network came to predict nothing, and
`form="printed"` does the same, for three reasons that are in the formula. (Numbers: drawn dendrites of 96x96, four rings
of norm 1.)

1. R sleeps. What lies below the threshold has no part in R and no gradient from it, so a network that begins with small
   outputs is trained by the MSE alone, whatever the weight. Fitted to dots, the best y is the probability that the centre
   lies in that very pixel, which is a few percent: no y reaches the threshold. And an empty map has a MSE of 9e-5
   already: there is almost nothing to gain. This is the paper's "singleton loss value".
2. R awake has no bound. It is as quadratic as the MSE, with the opposite sign, and a sum where the MSE is a mean: for the
   perfect map R is 480, so that from a weight of 2e-7 on, larger outputs are always better, and the loss falls without
   end (threshold 0, or targets wide enough to be learned). Well below that weight R changes nothing. No weight helps.
3. R praises quantity: it only grows with y, wherever there are edges, most of all along the shaft.

`form="bounded"`, the default, is the smallest change that trains:

- y is a sigmoid, in R too, where it needs no threshold: R wakes at once and cannot grow without end;
- R is the share of what it would be if y were 1 everywhere, times the number of objects; and the error is a sum for each
  object, its unit the sum of squares of a peak. Both are then numbers of order 1 an object;
- targets are Gaussians, and their pixels weigh `positive` times more: with plain MSE a network without normalisation
  stays at the empty map on drawn dendrites (held-out F1 0.00 without, 0.93 and 0.95 with it, in two short runs).

The third reason remains in small: at a weight of 0.1 a peak in a wrong place costs 7 times (one pixel) to 30 times (a
Gaussian) what R pays for it. Whether R is of use is another question: those two runs reached 0.93 and 0.95 without it.

Shapes that are learned maximise their share of R: they become filters that answer to the edges near the peaks more than
to the others. They are positive (softplus), as rings are: else edges could cancel each other in R for a y of 1
everywhere, and gaps in y would pay without a bound. R depends on the autocorrelation of a shape alone: a shape and its
reflection through the centre are one.
"""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxmarks.heads import Head, agreement, candidates, need_map, objects, stride_of, suppressed
from jaxmarks.heads.centre import is_peak
from jaxmarks.ops import boxes as box_ops
from jaxmarks.ops import edges, geometry, heatmaps

FORMS = ("bounded", "printed")
# Sigma of a mark of one pixel.
DOT = 0.3
# A value that counts as none, so that quotients and logarithms stay finite.
TINY = 1e-6


class Outputs(NamedTuple):
    """Maps (B, h, w, C), and the shapes (S, n, n) that are learned with them, or None."""

    maps: jax.Array
    shapes: Any


class ShapeMaps(nn.Module):
    """Features (B, h, w, F) -> `Outputs`: a map for each class by a 1x1 convolution, and `learned` shapes of `extent`.

    That is in pixels of the frame of `size`, the shapes' own in the map's.
    """

    classes: int
    bias: float
    learned: int
    extent: float
    size: tuple[int, int]

    @nn.compact
    def __call__(self, features):
        need_map(features)
        maps = nn.Dense(self.classes, bias_init=nn.initializers.constant(self.bias), name="maps")(features)
        drawn = nn.initializers.normal(1.0)
        side = odd(self.extent / stride_of(maps, self.size))
        shape = (self.learned, side, side)
        return Outputs(maps, self.param("shapes", drawn, shape, jnp.float32) if self.learned else None)


def build(
    *,
    classes,
    sizes,
    size,
    form="bounded",
    weight=0.1,
    positive=10.0,
    shapes="rings",
    count=4,
    sigma=None,
    threshold=0.5,
    window=None,
    smooth=1.0,
    contrast=0.1,
    edge_sigma=1.5,
    low=0.1,
    high=0.2,
    floor=0.05,
    overlap=None,
    limit=300,
):
    """The shape-prior head.

    Args:
      classes: their number C.
      sizes: (width, height) of a typical box in pixels of the frame: every detection's.
      size: (H, W) of the frame.
      form: `bounded`, or `printed`, which does not train (see above).
      weight: of R.
      positive: how much more the pixel of a peak weighs in the error than the background (bounded form).
      shapes: `rings`, ellipses from half of the typical box to all of it; `learned`; or an array (S, n, n) in pixels of
        the map, of which only the form counts, not the brightness.
      count: how many rings or learned shapes.
      sigma: of the target's peaks in pixels of the frame; by default 3, and in the printed form a dot.
      threshold: of the outputs in R (printed form).
      window: p of the max-pooling in pixels of the map, odd; by default the side of the typical box.
      smooth: sigma of the bilateral filter before the edges, pixels; 0 for none.
      contrast: its sigma of grey values, which are from 0 to 1.
      edge_sigma: Canny's, pixels.
      low, high: Canny's thresholds (`ops.edges.canny`).
      floor: what scores less is no detection.
      overlap: IoU up to which two boxes are two objects; by default what the data's objects show.
      limit: how many objects an image may have.
    """
    if form not in FORMS:
        raise ValueError(f"head.form={form!r}: there are {', '.join(FORMS)}")
    if isinstance(shapes, str) and shapes not in ("rings", "learned"):
        raise ValueError(f"head.shapes={shapes!r}: rings, learned, or an array (S, n, n)")
    bounded = form == "bounded"
    sigma = (3.0 if bounded else DOT) if sigma is None else sigma
    learned = isinstance(shapes, str) and shapes == "learned"
    width, height = (float(side) for side in sizes)
    across = max(width, height)

    def prior(outputs, step):
        if learned:
            return jax.nn.softplus(outputs.shapes)
        return rings((width / step, height / step), count) if isinstance(shapes, str) else jnp.asarray(shapes)

    def evidence(outputs):
        return jax.nn.sigmoid(outputs.maps) if bounded else outputs.maps

    def targets(batch):
        """Boxes, labels, "real", and the edges (B, H, W) of batch["images"] (B, H, W, C), float in [0, 1]."""
        grey = batch["images"].mean(-1)
        calm = edges.bilateral(grey, sigma_space=smooth, sigma_colour=contrast) if smooth else grey
        return *objects(batch), edges.canny(calm, sigma=edge_sigma, low=low, high=high)

    def loss(outputs, targets):
        boxes, labels, real, contours = targets
        labels = jnp.where(geometry.inside(box_ops.to_centres(boxes)[..., :2], size), labels, -1)
        step = stride_of(outputs.maps, size)
        y = evidence(outputs)
        target = draw(boxes, labels, classes, y.shape[1:3], step, sigma)
        error = (y - target) ** 2
        contours = coarser(contours.astype(y.dtype), step)
        any_class = jnp.max(y, axis=-1)  # the shapes are those of an object of any class
        reach = odd(across / step) if window is None else window
        energy = lambda centres: regulariser(centres, contours, prior(outputs, step), window=reach).sum(-1)
        if bounded:
            error = jnp.sum((1 + positive * target) * error, axis=(1, 2, 3)) / (math.pi * (sigma / step) ** 2)
            most = energy(jnp.ones_like(any_class))
            share = energy(any_class) / jnp.maximum(most, TINY)  # an image without edges has none of either
            number = jnp.sum(labels >= 0, axis=1)
            total = error - weight * number * share
            return jnp.sum(total * real), jnp.sum(number * real).astype(y.dtype)
        awake = jnp.where(any_class > threshold, any_class, 0)
        total = error.mean((1, 2, 3)) - weight * energy(awake)
        return jnp.sum(total * real), jnp.sum(real.astype(y.dtype))

    def decode(outputs):
        step = stride_of(outputs.maps, size)
        y = jnp.clip(evidence(outputs), 0, 1)
        b, _, w, _ = y.shape
        peaks = jnp.where(is_peak(outputs.maps) & (y > floor), y, 0).reshape(b, -1)
        scores, place = lax.top_k(peaks, candidates(limit, 2, peaks.shape[1]))
        pixel, label = place // classes, place % classes
        corner = jnp.stack([pixel % w, pixel // w], axis=-1)
        shift = jnp.take_along_axis(vertex(y).reshape(b, -1, 2), place[..., None], axis=1)
        centre = (corner + 0.5 + shift) * step
        extent = jnp.broadcast_to(jnp.array([width, height], y.dtype), centre.shape)
        boxes = box_ops.to_corners(jnp.concatenate([centre, extent], axis=-1))

        return jax.vmap(functools.partial(suppressed, limit=limit, overlap=overlap))(boxes, scores, label)

    bias = -math.log(9) if bounded else 0.0
    layer = ShapeMaps(classes, bias, count if learned else 0, across, tuple(size))
    return Head(layer, targets, loss, decode, agreement(overlap))


def regulariser(y, contours, shapes, *, window):
    """||(maxpool_p(y) . edges(x)) * S_i||^2 of each image and shape (the spine paper, equation 3, before its sum).

    Args:
      y: (B, h, w) evidence of a centre.
      contours: (B, h, w) edges of the image, 0 or 1.
      shapes: (S, n, n), brought to norm 1, for else a learned one would grow without end.
      window: p, pixels, odd.

    Returns:
      (B, S).
    """
    near = max_pool(y[..., None], window) * contours[..., None]
    shapes = (shapes / jnp.sqrt(jnp.sum(shapes**2, axis=(1, 2), keepdims=True) + TINY)).astype(near.dtype)
    kernels = jnp.moveaxis(shapes[:, ::-1, ::-1], 0, -1)[:, :, None]  # flipped: lax correlates
    match = lax.conv_general_dilated(near, kernels, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.sum(match**2, axis=(1, 2))


def rings(extent, count):
    """`count` ellipses one pixel thick, from half of `extent` (w, h) to all of it: (count, n, n), pixels of the map."""
    reach = odd(max(extent)) // 2 + 1
    at = jnp.arange(-reach, reach + 1)
    radius = jnp.hypot(at[None, :] / (extent[0] / 2), at[:, None] / (extent[1] / 2))  # 1 on the box's ellipse
    thick = 2 / min(extent)  # a pixel, in that unit
    return jnp.maximum(0, 1 - jnp.abs(radius - jnp.linspace(0.5, 1, count)[:, None, None]) / thick)


def draw(boxes, labels, classes, shape, step, sigma):
    """The target maps (B, h, w, C): of each class the largest of its objects' Gaussians, exact at sub-pixel centres."""
    centres = box_ops.to_centres(boxes)[..., :2]
    return heatmaps.largest_of_class(heatmaps.gaussian(centres / step, shape, sigma / step), labels, classes)


def coarser(maps, step):
    """The largest value of each square of `step` pixels: (B, H, W) -> (B, ceil(H / step), ceil(W / step))."""
    b, h, w = maps.shape
    padded = jnp.pad(maps, ((0, 0), (0, -h % step), (0, -w % step)))
    return padded.reshape(b, -(-h // step), step, -(-w // step), step).max((2, 4))


def max_pool(maps, window):
    """The largest value within an odd window round each pixel, stride 1: (B, h, w, C) -> the same shape."""
    for axis in (1, 2):
        pads = [(window // 2, window // 2) if a == axis else (0, 0) for a in range(4)]
        maps, span = jnp.pad(maps, pads, constant_values=-jnp.inf), 1
        while span < window:  # what a pixel knows doubles each time
            step = min(span, window - span)
            left = maps.shape[axis] - step
            maps = jnp.maximum(*(lax.slice_in_dim(maps, i, i + left, axis=axis) for i in (0, step)))
            span += step
    return maps


def vertex(maps):
    """From each pixel to the vertex of the parabolas through its logarithm and its neighbours', in x and in y.

    Exact where the map is a Gaussian; half a pixel at most. (B, h, w, C) -> (B, h, w, C, 2).
    """
    log = jnp.log(jnp.maximum(maps, TINY))
    padded = jnp.pad(log, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    h, w = maps.shape[1:3]

    def along(before, after):
        bend = 2 * log - before - after
        return jnp.where(bend > 0, jnp.clip((after - before) / (2 * jnp.where(bend > 0, bend, 1)), -0.5, 0.5), 0)

    return jnp.stack(
        [along(padded[:, 1:-1, :w], padded[:, 1:-1, 2:]), along(padded[:, :h, 1:-1], padded[:, 2:, 1:-1])], axis=-1
    )


def odd(length):
    """The odd number of pixels nearest to a length."""
    return 2 * math.floor(length / 2) + 1
