"""Shape priors: centre maps whose peaks are rewarded where the image's edges look like an object (SP-CNN).

The loss as printed (the spine paper, equation 3, after Tofighi et al. 2018) is

    MSE(y, target) - weight R,    R = sum_i || (maxpool_p(y) . edges(x)) * S_i ||^2

where R uses only values of y above a threshold, and the target is a dot at each centre. The paper's network ended up
predicting nothing, and so does `form="printed"`, for three reasons that follow from the formula. (Numbers: drawn
dendrites in tiles of 96x96 with 2.0 spines on average, four rings of norm 1.)

1. R is never active. Values below the threshold contribute neither to R nor to its gradient, so a network whose initial
   outputs are small is trained by the MSE alone, whatever the weight. With dots as the target, the optimal y is the
   probability that the centre lies in exactly that pixel, a few percent: no y reaches the threshold. And an empty map
   already has an MSE of 2e-4, so there is almost nothing to gain. This is the paper's "singleton loss value".
2. Once active, R is unbounded. Like the MSE it is quadratic in y, but with the opposite sign, and it is a sum where the
   MSE is a mean. For the perfect map R is 1,080, so from a weight of 2e-7 on larger outputs always lower the loss,
   without limit (threshold 0, or targets wide enough to be learned). Well below that weight R has no effect. No weight
   works.
3. R rewards quantity: it grows with y wherever there are edges, most of all along the dendrite's shaft.

`form="bounded"`, the default, is the smallest change that trains:

- y is a sigmoid, in R too, where no threshold is needed: R is active from the start and bounded;
- R is divided by its value for y = 1 everywhere and multiplied by the number of objects; the squared error is summed
  over the pixels and divided by the sum of squares of one peak. Both are then of order 1 per object;
- targets are Gaussians, and their pixels have up to `1 + positive` times the weight in the error. With a plain MSE a
  network without normalisation stays at the empty map on drawn dendrites (held-out F1 0.00; with this weight 0.93 and
  0.95 in two short runs).

To a small extent the third problem remains: at a weight of 0.1 a peak in a wrong place costs 7 times (one pixel) to 30
times (a Gaussian) what it gains from R. Whether R helps at all is another question: those two runs reached 0.93 and
0.95 without it.

Learned shapes maximise their share of R: they become filters that respond more to edges near the peaks than to others.
They are positive (softplus), as rings are: otherwise edges could cancel each other in R for y = 1 everywhere, and gaps
in y would be rewarded without limit. R depends only on a shape's autocorrelation, so a shape and its point reflection
give the same R.
"""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxmarks.heads import Head, candidate_count, detection_merger, need_map, objects, stride_of, suppressed
from jaxmarks.heads.centre import is_peak
from jaxmarks.ops import boxes as box_ops
from jaxmarks.ops import edges, geometry, heatmaps

FORMS = ("bounded", "printed")
# Sigma of a target that is a single dot, in pixels of the map.
DOT = 0.3
# Added to values or used as their lower limit, so that quotients and logarithms stay finite.
TINY = 1e-6


class Outputs(NamedTuple):
    """Maps (B, h, w, C), and the learned shapes (S, n, n) before softplus, or None."""

    maps: jax.Array
    shapes: Any


class ShapeMaps(nn.Module):
    """Features (B, h, w, F) -> `Outputs`: a map per class by a 1x1 convolution, and `learned` (a number) shapes.

    `extent` is the shapes' side in pixels of the frame of `size`; the shapes themselves are in pixels of the map.
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
        initialiser = nn.initializers.normal(1.0)
        side = odd(self.extent / stride_of(maps, self.size))
        shape = (self.learned, side, side)
        return Outputs(maps, self.param("shapes", initialiser, shape, jnp.float32) if self.learned else None)


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
    """Builds the shape-prior head.

    Args:
      classes: the number of classes C.
      sizes: (width, height) of a typical box in pixels of the frame; every detection has this size.
      size: (H, W) of the frame.
      form: `bounded`, or `printed`, which does not train (see above).
      weight: weight of R.
      positive: additional weight of a peak's pixels in the error; the background has weight 1 (bounded form).
      shapes: `rings`, ellipses from half of the typical box to all of it; `learned`; or an array (S, n, n) in pixels of
        the map, which is normalised.
      count: the number of rings or learned shapes.
      sigma: standard deviation of the target's peaks in pixels of the frame; by default 3, in the printed
        form that of dots of one pixel (`DOT`).
      threshold: outputs up to this value are left out of R (printed form).
      window: p, the window of the max-pooling in pixels of the map, odd; by default the typical box's longer side.
      smooth: spatial sigma of the bilateral filter before edge detection, in pixels; 0 turns the filter off.
      contrast: sigma of that filter in grey values, which range from 0 to 1.
      edge_sigma: sigma of Canny's Gaussian, in pixels.
      low, high: Canny's thresholds (`ops.edges.canny`).
      floor: the score that a detection must exceed.
      overlap: IoU up to which two boxes count as two objects; by default the fact, estimated from the data.
      limit: the maximum number of objects in an image.
    """
    if form not in FORMS:
        raise ValueError(f"head.form={form!r}: choose one of {', '.join(FORMS)}")
    if isinstance(shapes, str) and shapes not in ("rings", "learned"):
        raise ValueError(f"head.shapes={shapes!r}: give rings, learned, or an array (S, n, n)")
    bounded = form == "bounded"
    sigma = 3.0 if sigma is None and bounded else sigma
    learned = isinstance(shapes, str) and shapes == "learned"
    width, height = (float(side) for side in sizes)
    longer_side = max(width, height)

    def prior(outputs, stride):
        if learned:
            return jax.nn.softplus(outputs.shapes)
        return rings((width / stride, height / stride), count) if isinstance(shapes, str) else jnp.asarray(shapes)

    def evidence(outputs):
        return jax.nn.sigmoid(outputs.maps) if bounded else outputs.maps

    def targets(batch):
        """Returns boxes, labels, "real", and the edges (B, H, W) of batch["images"] (B, H, W, C), floats in [0, 1]."""
        grey = batch["images"].mean(-1)
        smoothed = edges.bilateral(grey, sigma_space=smooth, sigma_colour=contrast) if smooth else grey
        return *objects(batch), edges.canny(smoothed, sigma=edge_sigma, low=low, high=high)

    def loss(outputs, targets):
        boxes, labels, real, contours = targets
        labels = jnp.where(geometry.inside(box_ops.to_centres(boxes)[..., :2], size), labels, -1)
        stride = stride_of(outputs.maps, size)
        y = evidence(outputs)
        target = draw(boxes, labels, classes, y.shape[1:3], stride, sigma)
        error = (y - target) ** 2
        contours = coarser(contours.astype(y.dtype), stride)
        any_class = jnp.max(y, axis=-1)  # the shapes are shared by all classes
        pool_window = odd(longer_side / stride) if window is None else window
        energy = lambda centres: regulariser(centres, contours, prior(outputs, stride), window=pool_window).sum(-1)
        if bounded:
            error = jnp.sum((1 + positive * target) * error, axis=(1, 2, 3)) / (math.pi * (sigma / stride) ** 2)
            largest_energy = energy(jnp.ones_like(any_class))
            share = energy(any_class) / jnp.maximum(largest_energy, TINY)  # both are 0 for an image without edges
            object_count = jnp.sum(labels >= 0, axis=1)
            total = error - weight * object_count * share
            return jnp.sum(total * real), jnp.sum(object_count * real).astype(y.dtype)
        above_threshold = jnp.where(any_class > threshold, any_class, 0)
        total = error.mean((1, 2, 3)) - weight * energy(above_threshold)
        return jnp.sum(total * real), jnp.sum(real.astype(y.dtype))

    def decode(outputs):
        stride = stride_of(outputs.maps, size)
        y = jnp.clip(evidence(outputs), 0, 1)
        b, _, w, _ = y.shape
        peaks = jnp.where(is_peak(outputs.maps) & (y > floor), y, 0).reshape(b, -1)
        scores, top_indices = lax.top_k(peaks, candidate_count(limit, 2, peaks.shape[1]))
        pixel, label = top_indices // classes, top_indices % classes
        corner = jnp.stack([pixel % w, pixel // w], axis=-1)
        shift = jnp.take_along_axis(vertex(y).reshape(b, -1, 2), top_indices[..., None], axis=1)
        centre = (corner + 0.5 + shift) * stride
        extent = jnp.broadcast_to(jnp.array([width, height], y.dtype), centre.shape)
        boxes = box_ops.to_corners(jnp.concatenate([centre, extent], axis=-1))

        return jax.vmap(functools.partial(suppressed, limit=limit, overlap=overlap))(boxes, scores, label)

    bias = -math.log(9) if bounded else 0.0
    layer = ShapeMaps(classes, bias, count if learned else 0, longer_side, tuple(size))
    return Head(layer, targets, loss, decode, detection_merger(overlap))


def regulariser(y, contours, shapes, *, window):
    """Returns ||(maxpool_p(y) . edges(x)) * S_i||^2 per image and shape (the spine paper, equation 3, before the sum).

    Args:
      y: (B, h, w) evidence of an object's centre.
      contours: (B, h, w) edges of the image, 0 or 1.
      shapes: (S, n, n); normalised to norm 1, since learned ones would grow without limit otherwise.
      window: p, in pixels of the map, odd.

    Returns:
      (B, S).
    """
    near_edges = max_pool(y[..., None], window) * contours[..., None]
    shapes = (shapes / jnp.sqrt(jnp.sum(shapes**2, axis=(1, 2), keepdims=True) + TINY)).astype(near_edges.dtype)
    kernels = jnp.moveaxis(shapes[:, ::-1, ::-1], 0, -1)[:, :, None]  # flipped, since lax computes a correlation
    match = lax.conv_general_dilated(near_edges, kernels, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.sum(match**2, axis=(1, 2))


def rings(extent, count):
    """Draws `count` ellipses one map pixel thick, from half of `extent` (w, h) to all of it: (count, n, n)."""
    reach = odd(max(extent)) // 2 + 1
    at = jnp.arange(-reach, reach + 1)
    radius = jnp.hypot(at[None, :] / (extent[0] / 2), at[:, None] / (extent[1] / 2))  # 1 on the inscribed ellipse
    thick = 2 / min(extent)  # one pixel in units of `radius`
    return jnp.maximum(0, 1 - jnp.abs(radius - jnp.linspace(0.5, 1, count)[:, None, None]) / thick)


def draw(boxes, labels, classes, shape, stride, sigma):
    """Draws the targets (B, h, w, C): per class the maximum of its objects' Gaussians, at exact sub-pixel centres.

    Without a `sigma` each object is a dot, 1 in the pixel of its centre.
    """
    centres = box_ops.to_centres(boxes)[..., :2] / stride
    if sigma is None:
        gaussians = heatmaps.gaussian(jnp.floor(centres) + 0.5, shape, DOT)
    else:
        gaussians = heatmaps.gaussian(centres, shape, sigma / stride)
    return heatmaps.largest_of_class(gaussians, labels, classes)


def coarser(maps, stride):
    """Max-pools over squares of `stride` pixels: (B, H, W) -> (B, ceil(H / stride), ceil(W / stride))."""
    b, h, w = maps.shape
    padded = jnp.pad(maps, ((0, 0), (0, -h % stride), (0, -w % stride)))
    return padded.reshape(b, -(-h // stride), stride, -(-w // stride), stride).max((2, 4))


def max_pool(maps, window):
    """Max-pools over an odd window around each pixel with stride 1: (B, h, w, C) -> the same shape."""
    for axis in (1, 2):
        pads = [(window // 2, window // 2) if a == axis else (0, 0) for a in range(4)]
        maps, span = jnp.pad(maps, pads, constant_values=-jnp.inf), 1
        while span < window:  # doubles the span of pixels that each maximum covers
            step = min(span, window - span)
            length = maps.shape[axis] - step
            maps = jnp.maximum(*(lax.slice_in_dim(maps, i, i + length, axis=axis) for i in (0, step)))
            span += step
    return maps


def vertex(maps):
    """Returns the offset (x, y) from each pixel to the vertex of the parabolas through the log map there.

    Each parabola goes through a pixel and its two neighbours along one axis. Exact for a Gaussian map; limited to half
    a pixel. (B, h, w, C) -> (B, h, w, C, 2).
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
    """Returns the odd number of pixels nearest to a length."""
    return 2 * math.floor(length / 2) + 1
