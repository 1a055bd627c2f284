"""From heatmaps to landmarks: pure functions maps (..., H, W, K) -> (points (..., K, 2), scores (..., K)).

Maps hold evidence that is not negative: regressed heatmaps (what is below 0 counts as 0) or probabilities (a softmax
over the map). Points are (x, y) in continuous pixels of the map, the centre of its first pixel at (0.5, 0.5). The score
is the map's largest value. Every decoder but `argmax` is exact to 0.05 of a pixel on the maps of `ops.heatmaps` with a
sigma from 1 to 10 pixels (an exponential's from 1.5) wherever the frame does not cut their peak off (`soft_argmax`: in a
frame of at least twelve sigmas); the peaks of smaller sigmas fall between the pixels. A Gaussian's peak is found as
closely at the border; an exponential's, of which one side is missing there, to 0.9 pixels in the first pixel, 0.3 in the
second and 0.1 in the third: a part of one side looks like the whole.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxmarks.ops import filters, names
from jaxmarks.ops.floats import root, single

# A value that counts as none, so that logarithms and quotients stay finite.
TINY = 1e-12


def argmax(maps):
    """The centre of the pixel with the largest value; of several the first, row by row."""
    maps = single(maps)
    height, width, count = maps.shape[-3:]
    flat = maps.reshape(*maps.shape[:-3], height * width, count)
    index = jnp.argmax(flat, axis=-2)
    row, column = jnp.divmod(index, width)
    # Not the maximum, which on a CPU may pass over what is no number.
    scores = jnp.take_along_axis(flat, index[..., None, :], axis=-2)[..., 0, :]
    return jnp.stack([column, row], axis=-1).astype(maps.dtype) + 0.5, scores


def soft_argmax(maps, *, temperature=0.25):
    """The expected position under weights maps^(1 / temperature) over the whole map.

    Of probabilities p = softmax(z) these weights are softmax(z / temperature). It is the only decoder that is
    differentiable throughout. The whole map takes part: a lower temperature keeps the background out, and a map whose
    peak the frame cuts off gives a point that lies too far inside.

    Args:
      maps: (..., H, W, K).
      temperature: above 0; towards 0 the result is that of `argmax`.
    """
    maps = single(maps)
    _, scores = argmax(maps)
    evidence = jnp.where(scores[..., None, None, :] > 0, _evidence(maps, scores), 1)  # none is as much everywhere
    # A root has no gradient at 0; and what is next to nothing has no weight, or many such pixels would have some together.
    weights = jnp.where(evidence > TINY, jnp.maximum(evidence, TINY) ** (1 / temperature), 0)
    return _mean(weights, *_centres(maps)), scores


def local_soft_argmax(maps, *, window=2.0, iterations=4):
    """The expected position near the peak: under the map times a Gaussian window that follows the estimate.

    A fixed window draws the estimate towards its own centre. The product of two Gaussians tells by how much: for a
    window of deviation w about c, whose product with the map has mean m and variance v, the map's own centre is
    c + (m - c) w^2 / (w^2 - v). That becomes the window's next centre, and a symmetric peak of any shape is where it rests.

    Args:
      maps: (..., H, W, K).
      window: the window's standard deviation in pixels: about that of the peak, or less where peaks are close.
      iterations: how often the window moves.
    """
    maps = single(maps)
    points, scores = argmax(maps)
    radius = math.ceil(3 * window) + 1
    patch, x, y = _patch(_evidence(maps, scores), points, radius)
    limit = points

    def follow(_, points):
        near = lambda at, c: jnp.exp(-0.5 * ((at - c) / window) ** 2)
        weights = patch * near(x, points[..., None, None, 0]) * near(y, points[..., None, None, 1])
        total = weights.sum((-2, -1)) + TINY
        step = []
        for axis, at in enumerate((x, y)):
            off = at - points[..., None, None, axis]
            mean = (weights * off).sum((-2, -1)) / total
            variance = (weights * off**2).sum((-2, -1)) / total - mean**2
            # A flat or cut-off map is as wide as the window: no step beyond one of fifty times.
            step.append(mean * window**2 / jnp.maximum(window**2 - variance, 0.02 * window**2))
        return limit + jnp.clip(points + jnp.stack(step, -1) - limit, -1.0, 1.0)

    points = lax.fori_loop(0, iterations, follow, points)
    return _unless_cut_off(maps, limit, radius + 0.5, points), scores


def dark(maps, *, sigma=1.0):
    """The peak of a parabola that touches the logarithm of the smoothed map (Zhang et al. 2020, DARK).

    The map is smoothed by a Gaussian, and from the pixel of its peak one step of Newton's method leads to the peak,
    with first and second derivatives as central differences. Exact for a Gaussian, which smoothing leaves a Gaussian.

    Args:
      maps: (..., H, W, K).
      sigma: of the smoothing, pixels.
    """
    maps = single(maps)
    weights = filters.gaussian_weights(sigma, math.ceil(3 * sigma))
    smooth = filters.separable(jnp.maximum(maps, 0), weights, (-3, -2), mode="constant")
    points, _ = argmax(smooth)
    _, scores = argmax(maps)
    patch, x, y = _patch(_evidence(smooth, jnp.max(smooth, axis=(-3, -2))), points, 1)
    log = jnp.log(patch + TINY)
    at = lambda row, column: log[..., row, column]
    gx, gy = (at(1, 2) - at(1, 0)) / 2, (at(2, 1) - at(0, 1)) / 2
    hxx, hyy = at(1, 2) - 2 * at(1, 1) + at(1, 0), at(2, 1) - 2 * at(1, 1) + at(0, 1)
    hxy = (at(2, 2) - at(2, 0) - at(0, 2) + at(0, 0)) / 4
    centre = jnp.stack([x[..., 0, 1], y[..., 1, 0]], axis=-1)
    return _unless_cut_off(maps, points, 3 * sigma + 1, _newton(centre, points, gx, gy, hxx, hxy, hyy)), scores


def quadratic(maps, *, radius=3, iterations=4):
    """The peak of the parabola in x and y that fits the logarithm of the map around its largest pixel best.

    Least squares over (2 radius + 1)^2 pixels, each weighted by the square of its value, so that the noise of the map
    weighs alike in all of them (Guo 2011), and by a Gaussian around the last estimate, so that a peak that is no
    parabola is fitted evenly on both sides. Exact for a Gaussian, also where the frame cuts it off.

    Args:
      maps: (..., H, W, K).
      radius: pixels.
      iterations: how often the Gaussian follows the estimate.
    """
    maps = single(maps)
    peaks, scores = argmax(maps)
    patch, x, y = _patch(_evidence(maps, scores), peaks, radius)
    flat = lambda grid: grid.reshape(*grid.shape[:-2], math.prod(grid.shape[-2:]))
    u, v = (flat(a) for a in jnp.broadcast_arrays(x - peaks[..., None, None, 0], y - peaks[..., None, None, 1]))
    value = flat(patch)
    basis = jnp.stack([jnp.ones_like(u), u, v, u * u / 2, u * v, v * v / 2], axis=-1)

    def follow(_, points):
        du, dv = (points - peaks)[..., :1], (points - peaks)[..., 1:]
        weight = (value**2 * jnp.exp(-2.5 * ((u - du) ** 2 + (v - dv) ** 2) / radius**2))[..., None]
        normal = (weight[..., None] * basis[..., :, None] * basis[..., None, :]).sum(-3)
        right = (weight * basis * jnp.log(value + TINY)[..., None]).sum(-2)
        # Where few pixels hold anything, many parabolas fit: the flattest, and a gradient that is finite.
        ridge = 1e-6 * jnp.trace(normal, axis1=-2, axis2=-1) + 1e-9
        fit = _solve(normal + ridge[..., None, None] * jnp.eye(6, dtype=maps.dtype), right)
        return _newton(peaks, peaks, *(fit[..., i] for i in range(1, 6)))

    # In a loop it is compiled once: written out it takes several times as long to compile, and no less to run.
    return _in_frame(maps, lax.fori_loop(0, iterations, follow, peaks)), scores


def spread(maps, points):
    """The root mean square distance (..., K) in pixels of a map's evidence from its landmark (..., K, 2).

    The second half of a score: a landmark that the network is sure of has a narrow map. Two peaks, or a haze over the
    whole frame, give a wide one.
    """
    maps = single(maps)
    _, scores = argmax(maps)
    weights = _evidence(maps, scores)
    x, y = _centres(maps)
    total = weights.sum((-3, -2)) + TINY
    squared = [(weights * (at - points[..., None, None, :, axis]) ** 2).sum((-3, -2)) for axis, at in enumerate((x, y))]
    return root((squared[0] + squared[1]) / total)


def named(text):
    """The decoder of a name, with its options, as "soft_argmax:temperature=0.5" (`names.function`)."""
    return names.function(text, (argmax, soft_argmax, local_soft_argmax, dark, quadratic), key="head.decoder")


def _evidence(maps, peaks):
    """Maps without what is negative, their largest value brought to 1."""
    return jnp.maximum(maps, 0) / jnp.maximum(peaks, TINY)[..., None, None, :]


def _centres(maps):
    """x (1, W, 1) and y (H, 1, 1) of the pixels' centres."""
    height, width = maps.shape[-3:-1]
    return jnp.arange(width, dtype=maps.dtype)[:, None] + 0.5, jnp.arange(height, dtype=maps.dtype)[:, None, None] + 0.5


def _mean(weights, x, y):
    total = weights.sum((-3, -2)) + TINY
    return jnp.stack([(weights * at).sum((-3, -2)) / total for at in (x, y)], axis=-1)


def _patch(maps, points, radius):
    """The pixels around points (..., K, 2): (..., K, n, n), and their x (..., K, 1, n) and y (..., K, n, 1).

    n is 2 radius + 1, or less where the map is smaller. A patch that would reach out of the frame is moved inside.
    """
    height, width, count = maps.shape[-3:]
    rows, columns = min(height, 2 * radius + 1), min(width, 2 * radius + 1)
    lead = maps.shape[:-3]
    corner = lambda at, side, n: jnp.clip(at.astype(jnp.int32) - n // 2, 0, side - n)
    left, top = corner(points[..., 0], width, columns), corner(points[..., 1], height, rows)

    def cut(image, top, left):
        return lax.dynamic_slice(image, (top, left), (rows, columns))

    each = math.prod((*lead, count))
    images = jnp.moveaxis(maps, -1, -3).reshape(each, height, width)
    patch = jax.vmap(cut)(images, top.reshape(each), left.reshape(each)).reshape(*lead, count, rows, columns)
    x = left[..., None, None] + jnp.arange(columns) + 0.5
    y = top[..., None, None] + jnp.arange(rows)[:, None] + 0.5
    return patch, x.astype(maps.dtype), y.astype(maps.dtype)


def _unless_cut_off(maps, peaks, margin, points):
    """`points`, or those of `quadratic`, which the frame's border does not disturb, for `peaks` within `margin` of it."""
    height, width = maps.shape[-3:-1]
    cut_off = ((peaks < margin) | (peaks > jnp.array([width, height], peaks.dtype) - margin)).any(-1)
    return jnp.where(cut_off[..., None], quadratic(maps)[0], _in_frame(maps, points))


def _in_frame(maps, points):
    """Points, moved to the border of their maps where they lie beyond it."""
    height, width = maps.shape[-3:-1]
    return jnp.clip(points, 0, jnp.array([width, height], points.dtype))


def _solve(matrix, right):
    """x (..., N) of matrix x = right, for matrices (..., N, N) that are symmetric and positive, and small.

    Gauss and Jordan's elimination, which such matrices let go without a search for pivots. In a loop it compiles fifteen
    times as fast as written out; of a solver of matrices an accelerator makes dozens of calls.
    """
    count = right.shape[-1]

    def clear(k, rows):
        """The rows of matrix and right side with a 1 in row k and 0 in all others, of the column k."""
        column = lax.dynamic_slice_in_dim(rows, k, 1, -1)
        pivot = lax.dynamic_slice_in_dim(rows, k, 1, -2) / lax.dynamic_slice_in_dim(column, k, 1, -2)
        return jnp.where(jnp.arange(count)[:, None] == k, pivot, rows - column * pivot)

    return lax.fori_loop(0, count, clear, jnp.concatenate([matrix, right[..., None]], axis=-1))[..., -1]


def _newton(centre, peak, gx, gy, hxx, hxy, hyy):
    """centre - H^-1 g where the Hessian H is that of a peak and the result within 1.5 px of `peak`, else `peak`."""
    determinant = hxx * hyy - hxy**2
    is_peak = (determinant > TINY) & (hxx < 0)
    safe = jnp.where(is_peak, determinant, 1.0)
    step = jnp.stack([hyy * gx - hxy * gy, hxx * gy - hxy * gx], axis=-1) / safe[..., None]
    found = centre - step
    good = is_peak & (jnp.abs(found - peak) <= 1.5).all(-1)
    return jnp.where(good[..., None], found, peak)
