"""Decoders from heatmaps to landmarks: pure functions maps (..., H, W, K) -> (points (..., K, 2), scores (..., K)).

Maps hold non-negative evidence: regressed heatmaps (values below 0 count as 0) or probabilities (a softmax over the
map). Points are (x, y) in continuous pixels of the map, with the centre of the first pixel at (0.5, 0.5). The score is
the map's largest value.

On maps drawn by `ops.heatmaps` with a sigma of 1 to 10 pixels (exponential: from 1.5) all decoders but `argmax` are
accurate to 0.05 pixels where the frame does not cut the peak off (`soft_argmax`: in a frame of at least twelve sigmas);
peaks of smaller sigmas fall between the pixels. At the border a Gaussian's peak is found equally well. An exponential,
which lacks one side there, is found to 0.9 pixels if the peak lies in the first pixel, 0.3 in the second and 0.1 in the
third, because part of one side looks like a whole peak.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxmarks.ops import filters, names
from jaxmarks.ops.floats import at_least_float32, root

# Values up to this count as 0. Adding it keeps logarithms and quotients finite.
TINY = 1e-12


def argmax(maps):
    """Returns the centre of the pixel with the largest value, the first of them in row-major order."""
    maps = at_least_float32(maps)
    height, width, count = maps.shape[-3:]
    flat = maps.reshape(*maps.shape[:-3], height * width, count)
    index = jnp.argmax(flat, axis=-2)
    row, column = jnp.divmod(index, width)
    # Not jnp.max, which on a CPU may skip NaN.
    scores = jnp.take_along_axis(flat, index[..., None, :], axis=-2)[..., 0, :]
    return jnp.stack([column, row], axis=-1).astype(maps.dtype) + 0.5, scores


def soft_argmax(maps, *, temperature=0.25):
    """Returns the expected position under weights maps^(1 / temperature) over the whole map.

    For probabilities p = softmax(z) the normalised weights are softmax(z / temperature). It is the only decoder that is
    differentiable everywhere. The whole map contributes: a lower temperature suppresses the background, and if the
    frame cuts off the peak, the point lies too far inside.

    Args:
      maps: (..., H, W, K).
      temperature: above 0; in the limit of 0 the result is that of `argmax`.
    """
    maps = at_least_float32(maps)
    _, scores = argmax(maps)
    evidence = jnp.where(scores[..., None, None, :] > 0, _evidence(maps, scores), 1)  # an empty map is uniform
    # A root has no finite gradient at 0. Tiny values get weight 0, since many of them would add up.
    weights = jnp.where(evidence > TINY, jnp.maximum(evidence, TINY) ** (1 / temperature), 0)
    return _mean(weights, *_centres(maps)), scores


def local_soft_argmax(maps, *, window=2.0, iterations=4):
    """Returns the expected position under the map times a Gaussian window that follows the estimate.

    A fixed window biases the estimate towards its own centre. For a Gaussian peak the bias can be removed: if the
    window has centre c and standard deviation w, and its product with the map has mean m and variance v, the peak is at
    c + (m - c) w^2 / (w^2 - v). This becomes the window's next centre; the iteration's fixed point is the centre of any
    symmetric peak.

    Args:
      maps: (..., H, W, K).
      window: the window's standard deviation in pixels: about that of the peak, or less if peaks are close together.
      iterations: number of moves of the window.
    """
    maps = at_least_float32(maps)
    points, scores = argmax(maps)
    radius = math.ceil(3 * window) + 1
    patch, x, y = _patch(_evidence(maps, scores), points, radius)
    peaks = points

    def follow(_, points):
        gaussian = lambda position, c: jnp.exp(-0.5 * ((position - c) / window) ** 2)
        weights = patch * gaussian(x, points[..., None, None, 0]) * gaussian(y, points[..., None, None, 1])
        total = weights.sum((-2, -1)) + TINY
        step = []
        for axis, position in enumerate((x, y)):
            offset = position - points[..., None, None, axis]
            mean = (weights * offset).sum((-2, -1)) / total
            variance = (weights * offset**2).sum((-2, -1)) / total - mean**2
            # With a flat or cut-off map the variance approaches window^2: the factor is limited to 50.
            step.append(mean * window**2 / jnp.maximum(window**2 - variance, 0.02 * window**2))
        return peaks + jnp.clip(points + jnp.stack(step, -1) - peaks, -1.0, 1.0)

    points = lax.fori_loop(0, iterations, follow, points)
    return _unless_cut_off(maps, peaks, radius + 0.5, points), scores


def dark(maps, *, sigma=1.0):
    """Returns the peak of the smoothed map's logarithm by one Newton step (Zhang et al. 2020, DARK).

    The map is smoothed by a Gaussian; the step starts at its largest pixel, with derivatives from central differences.
    Exact for a Gaussian, which remains a Gaussian under smoothing.

    Args:
      maps: (..., H, W, K).
      sigma: standard deviation of the smoothing, in pixels.
    """
    maps = at_least_float32(maps)
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
    """Returns the peak of the quadratic in x and y fitted to the map's logarithm around its largest pixel.

    Least squares over (2 radius + 1)^2 pixels. Each is weighted by the square of its value, so that noise in the map
    has equal influence in all of them (Guo 2011), and by a Gaussian around the last estimate, so that a peak that is
    not a parabola is fitted equally on both sides. Exact for a Gaussian, even where the frame cuts it off.

    Args:
      maps: (..., H, W, K).
      radius: in pixels.
      iterations: number of fits, each with the Gaussian around the last estimate.
    """
    maps = at_least_float32(maps)
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
        # If few pixels are non-zero, many quadratics fit: the ridge selects the flattest and keeps the gradient finite.
        ridge = 1e-6 * jnp.trace(normal, axis1=-2, axis2=-1) + 1e-9
        fit = _solve(normal + ridge[..., None, None] * jnp.eye(6, dtype=maps.dtype), right)
        return _newton(peaks, peaks, *(fit[..., i] for i in range(1, 6)))

    # Unrolled, it would take several times as long to compile and run no faster.
    return _in_frame(maps, lax.fori_loop(0, iterations, follow, peaks)), scores


def spread(maps, points):
    """Returns the root mean square distance (..., K) in pixels of each map's evidence from its landmark (..., K, 2).

    It complements the score as a measure of confidence: where the network is certain the map is narrow; two peaks or a
    haze over the whole frame give a wide one.
    """
    maps = at_least_float32(maps)
    _, scores = argmax(maps)
    weights = _evidence(maps, scores)
    x, y = _centres(maps)
    total = weights.sum((-3, -2)) + TINY
    squared = [(weights * (at - points[..., None, None, :, axis]) ** 2).sum((-3, -2)) for axis, at in enumerate((x, y))]
    return root((squared[0] + squared[1]) / total)


def named(text):
    """Returns the decoder for a name with options, such as "soft_argmax:temperature=0.5" (see `names.resolve`)."""
    return names.resolve(text, (argmax, soft_argmax, local_soft_argmax, dark, quadratic), key="head.decoder")


def _evidence(maps, peaks):
    """Returns the maps with negative values set to 0, scaled to a maximum of 1."""
    return jnp.maximum(maps, 0) / jnp.maximum(peaks, TINY)[..., None, None, :]


def _centres(maps):
    """Returns x (W, 1) and y (H, 1, 1) of the pixels' centres."""
    height, width = maps.shape[-3:-1]
    return jnp.arange(width, dtype=maps.dtype)[:, None] + 0.5, jnp.arange(height, dtype=maps.dtype)[:, None, None] + 0.5


def _mean(weights, x, y):
    total = weights.sum((-3, -2)) + TINY
    return jnp.stack([(weights * at).sum((-3, -2)) / total for at in (x, y)], axis=-1)


def _patch(maps, points, radius):
    """Returns the pixels around points (..., K, 2): (..., K, n, n), and their x (..., K, 1, n) and y (..., K, n, 1).

    n is 2 radius + 1, or the map's side if that is smaller. A patch that would leave the frame is moved inside.
    """
    height, width, count = maps.shape[-3:]
    rows, columns = min(height, 2 * radius + 1), min(width, 2 * radius + 1)
    leading = maps.shape[:-3]
    corner = lambda at, side, n: jnp.clip(at.astype(jnp.int32) - n // 2, 0, side - n)
    left, top = corner(points[..., 0], width, columns), corner(points[..., 1], height, rows)

    def cut(image, top, left):
        return lax.dynamic_slice(image, (top, left), (rows, columns))

    total = math.prod((*leading, count))
    images = jnp.moveaxis(maps, -1, -3).reshape(total, height, width)
    patch = jax.vmap(cut)(images, top.reshape(total), left.reshape(total)).reshape(*leading, count, rows, columns)
    x = left[..., None, None] + jnp.arange(columns) + 0.5
    y = top[..., None, None] + jnp.arange(rows)[:, None] + 0.5
    return patch, x.astype(maps.dtype), y.astype(maps.dtype)


def _unless_cut_off(maps, peaks, margin, points):
    """Returns `points`, or, for `peaks` within `margin` of the border, `quadratic`'s, which tolerate cut-off peaks."""
    height, width = maps.shape[-3:-1]
    cut_off = ((peaks < margin) | (peaks > jnp.array([width, height], peaks.dtype) - margin)).any(-1)
    return jnp.where(cut_off[..., None], quadratic(maps)[0], _in_frame(maps, points))


def _in_frame(maps, points):
    """Clips points to their maps."""
    height, width = maps.shape[-3:-1]
    return jnp.clip(points, 0, jnp.array([width, height], points.dtype))


def _solve(matrix, right):
    """Solves matrix x = right for x (..., N), with small symmetric positive definite matrices (..., N, N).

    Gauss-Jordan elimination, which needs no pivoting for such matrices. As a loop it compiles fifteen times as fast as
    unrolled. A library solver would run as dozens of calls on an accelerator.
    """
    count = right.shape[-1]

    def clear(k, rows):
        """Eliminates column k from the rows of matrix and right side: 1 in row k and 0 in the other rows."""
        column = lax.dynamic_slice_in_dim(rows, k, 1, -1)
        pivot = lax.dynamic_slice_in_dim(rows, k, 1, -2) / lax.dynamic_slice_in_dim(column, k, 1, -2)
        return jnp.where(jnp.arange(count)[:, None] == k, pivot, rows - column * pivot)

    return lax.fori_loop(0, count, clear, jnp.concatenate([matrix, right[..., None]], axis=-1))[..., -1]


def _newton(centre, peak, gx, gy, hxx, hxy, hyy):
    """Returns centre - H^-1 g if H is the Hessian of a maximum and the result within 1.5 px of `peak`, else `peak`."""
    determinant = hxx * hyy - hxy**2
    is_peak = (determinant > TINY) & (hxx < 0)
    safe = jnp.where(is_peak, determinant, 1.0)
    step = jnp.stack([hyy * gx - hxy * gy, hxx * gy - hxy * gx], axis=-1) / safe[..., None]
    vertex = centre - step
    accepted = is_peak & (jnp.abs(vertex - peak) <= 1.5).all(-1)
    return jnp.where(accepted[..., None], vertex, peak)
