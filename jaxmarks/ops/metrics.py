"""Distances between predicted and true landmarks, and metrics from them. Missing landmarks are always left out.

Points are (..., K, 2), distances (..., K) in the points' unit, NaN where a landmark is missing.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxmarks.ops import shape
from jaxmarks.ops.floats import at_least_float32, root

# Smallest variance of manual shapes to which another is compared: below it lies the rounding of float32 coordinates.
LEAST_VARIANCE = 1e-10


def distances(predicted, true, visible=None):
    """Returns Euclidean distances (..., K): NaN where `visible` (..., K) is False, infinite for visible NaN points.

    Without `visible`, NaN points have NaN distances.
    """
    predicted, true = at_least_float32(predicted), at_least_float32(true)
    if visible is None:
        return root(jnp.sum((predicted - true) ** 2, axis=-1))
    visible = jnp.asarray(visible)
    # The input is guarded as well as the result: missing points may be NaN, and would make the gradient NaN.
    euclidean = root(jnp.sum(jnp.where(visible[..., None], predicted - true, 0) ** 2, axis=-1))
    return jnp.where(visible, jnp.where(jnp.isnan(euclidean), jnp.inf, euclidean), jnp.nan)


def mean(values, axis=None, *, known=None):
    """Returns the mean of the `known` values, by default those that are not NaN; NaN if there are none."""
    values = at_least_float32(values)
    known = ~jnp.isnan(values) if known is None else known
    count = jnp.sum(known, axis)
    return jnp.where(count > 0, jnp.sum(jnp.where(known, values, 0), axis) / jnp.maximum(count, 1), jnp.nan)


def per_landmark(distances):
    """Returns each landmark's mean (K,) over all images of distances (..., K)."""
    return mean(distances, tuple(range(jnp.ndim(distances) - 1)))


def summarise(distances):
    """Returns a dict of mean, median, p95, std, max and count of the visible landmarks' distances."""
    values = jnp.append(at_least_float32(distances), jnp.nan)  # so that there are quantiles without any distances, too
    known = ~jnp.isnan(values)
    levels = jnp.array([0.5, 0.95, 1.0])
    interpolated = jnp.nanquantile(values, levels)
    # Interpolation may multiply an infinite neighbour by a weight of 0, which is NaN.
    quantiles = jnp.where(jnp.isnan(interpolated), jnp.nanquantile(values, levels, method="higher"), interpolated)
    average, (median, p95, largest) = mean(values), quantiles
    # Inputs are guarded as well as results, here and below: the gradient of a NaN is NaN.
    offset = jnp.where(known, values, average) - average
    return {
        "mean": average,
        "median": median,
        "p95": p95,
        "std": root(mean(offset**2, known=known & ~jnp.isnan(offset))),
        "max": largest,
        "count": jnp.sum(known),
    }


def correlations(predicted, true, visible=None):
    """Returns r2, explained variance and Pearson's correlation of predicted and true coordinates (..., K, 2).

    All coordinates are pooled, x and y of every landmark and image. Of the possible averages this one comes closest to
    the beetle paper's Table 2 (0.9952, 0.9951, 0.9974 on pronota from scratch): its authors' published predictions give
    0.9966, 0.9966, 0.9984, without the landmark that is wrong in the published file. Pairs with a NaN are left out.
    """
    predicted, true = at_least_float32(predicted), at_least_float32(true)
    known = ~(jnp.isnan(predicted) | jnp.isnan(true))
    if visible is not None:
        known &= (jnp.asarray(visible) != 0)[..., None]
    p, t = (jnp.where(known, a, 0) for a in (predicted, true))
    known_mean = functools.partial(mean, known=known)
    # Centred first: float32 squares of coordinates in the thousands would lose small differences.
    a, b, error = (v - known_mean(v) for v in (p, t, t - p))
    spread = known_mean(b**2)
    return {
        "r2": 1 - known_mean((t - p) ** 2) / spread,
        "explained_variance": 1 - known_mean(error**2) / spread,
        "pearson": known_mean(a * b) / jnp.sqrt(known_mean(a**2) * spread),
    }


def shares(distances, limit=10.0):
    """Returns the shares (K, 3) of images below a landmark's mean distance, up to `limit`, and above (beetle paper)."""
    *images, landmarks = jnp.shape(distances)
    values = jnp.reshape(jnp.asarray(distances), (math.prod(images), landmarks))
    known, average = ~jnp.isnan(values), per_landmark(values)
    under = values < average
    above = ~under & (values > limit)
    parts = jnp.stack([under, ~under & ~above, above], axis=-1) & known[..., None]
    return jnp.sum(parts, 0) / jnp.sum(known, 0)[:, None]


def success_rates(distances, thresholds):
    """Returns the share (T,) of visible landmarks within each threshold: the successful detection rate (SDR)."""
    values = jnp.ravel(at_least_float32(distances))
    return jnp.sum(values[None] <= jnp.asarray(thresholds, values.dtype)[:, None], 1) / jnp.sum(~jnp.isnan(values))


def presence(scores, visible):
    """Returns how well scores separate visible landmarks from missing ones, and the score that separates them best.

    Args:
      scores: (...) finite; those that are NaN are left out.
      visible: (...) bool.

    Returns:
      a dict of "auc", the area under the ROC curve (Hanley and McNeil 1982: the probability that a visible landmark
      scores higher than a missing one, equal scores counting half); "threshold", with the largest sum of the other two
      (Youden 1950), halfway between two scores; "kept", the share of visible landmarks that score as much; and
      "excluded", the share of missing ones that score less. All NaN unless there are both kinds.
    """
    scores, visible = jnp.ravel(at_least_float32(scores)), jnp.ravel(jnp.asarray(visible) != 0)
    known = ~jnp.isnan(scores)
    ordered = lambda mask: jnp.sort(jnp.where(mask, scores, jnp.inf))
    shown, absent = ordered(known & visible), ordered(known & ~visible)
    shown_count, absent_count = jnp.sum(known & visible), jnp.sum(known & ~visible)
    below = lambda ranked, count, side: jnp.minimum(jnp.searchsorted(ranked, scores, side=side), count) / count
    wins = (below(absent, absent_count, "left") + below(absent, absent_count, "right")) / 2
    kept, excluded = 1 - below(shown, shown_count, "left"), below(absent, absent_count, "left")
    total = jnp.where(known & visible, kept + excluded, -jnp.inf)
    best = jnp.argmax(jnp.where(total >= jnp.max(total, initial=-jnp.inf) - 1e-6, kept, -1))  # of equal ones the lowest
    lower = jnp.max(jnp.where(scores < scores[best], scores, -jnp.inf), initial=-jnp.inf)
    found = {
        "auc": mean(jnp.where(visible, wins, jnp.nan), known=known & visible),
        "threshold": jnp.where(lower > -jnp.inf, (scores[best] + lower) / 2, scores[best]),
        "kept": kept[best],
        "excluded": excluded[best],
    }
    return {name: jnp.where((shown_count > 0) & (absent_count > 0), value, jnp.nan) for name, value in found.items()}


def pck(distances, reference, fractions):
    """Returns the share (T,) of visible landmarks within each fraction of their image's reference length (PCK).

    Args:
      distances: (..., K), NaN where a landmark is missing.
      reference: (...,) the length, in the distances' unit: the longer side of the object's box (Yang and Ramanan 2013),
        or the head's length (PCKh). Images with NaN are left out.
      fractions: (T,).
    """
    return success_rates(distances / jnp.asarray(reference)[..., None], fractions)


def oks(distances, extent, sigmas=0.05):
    """Returns object keypoint similarities (...,): the mean exp(-d^2 / (2 s_i^2 s^2)) of landmarks (thesis, metrics).

    Args:
      distances: (..., K), NaN where a landmark is missing and left out.
      extent: (...,) s, the object's size in the distances' unit: the root of its area.
      sigmas: s_i, a number or (K,): annotation uncertainty as a fraction of the extent. COCO uses twice the standard
        deviation of its annotators (`kpt_oks_sigmas` in pycocotools, which is 0.025 for eyes and 0.107 for hips).

    Returns:
      in [0, 1]; NaN where no landmark is visible or the extent is NaN. `boxes.keypoint_average_precision` computes mAP
      from it.
    """
    known = ~jnp.isnan(distances)
    share = jnp.where(known, distances, 0) / (jnp.asarray(extent)[..., None] * jnp.asarray(sigmas))
    return mean(jnp.exp(-(share**2) / 2), axis=-1, known=known)


def centroid_size(points, visible=None):
    """Returns the centroid size (...) of configurations: the root of the summed squares from the centroid.

    It is the measure of size that is uncorrelated with shape if all landmarks vary alike (Bookstein 1991).

    Args:
      points: (..., K, 2).
      visible: (..., K); the other landmarks are left out. None: all are visible.

    Returns:
      The size in the points' unit, NaN for fewer than two visible landmarks.
    """
    offset, count = _centred(points, visible)
    return jnp.where(count >= 2, root(jnp.sum(offset**2, (-2, -1))), jnp.nan)


def centroid_size_error(predicted, true, visible=None):
    """Returns by what share (...) predicted configurations (..., K, 2) are larger than the true ones.

    Both centroid sizes are over the landmarks that are `visible` (..., K) in the manual annotation. NaN for fewer than
    two of them, or if they coincide.
    """
    found, size = centroid_size(predicted, visible), centroid_size(true, visible)
    has_size = size > 0
    return jnp.where(has_size, found / jnp.where(has_size, size, 1) - 1, jnp.nan)


def procrustes_distance(predicted, true, visible=None):
    """Returns partial Procrustes distances (...) between predicted and true configurations (..., K, 2).

    Both are centred and scaled to a centroid size of 1, then one is rotated onto the other, without reflection; the
    distance is the root of the summed squares that remain (Dryden and Mardia 2016; type "partial" of
    `procdist` in R's shapes). With the Riemannian distance rho it is 2 sin(rho / 2), at most the root of 2; the full
    Procrustes distance, which also fits the scale, is sin(rho).

    Args:
      predicted, true: (..., K, 2), in any units.
      visible: (..., K); the other landmarks are left out. None: all are visible.

    Returns:
      The distances, without unit. NaN for fewer than three visible landmarks, or if those of either coincide.
    """
    (z, has_shape), (onto, has_other) = _pre_shape(predicted, visible), _pre_shape(true, visible)
    return jnp.where(has_shape & has_other, root(_squares(_rotated(z, onto) - onto)), jnp.nan)


def shape_variance_ratio(predicted, true, visible=None):
    """Returns the predicted configurations' Procrustes variance as a share of that of the true ones.

    Procrustes variance is the mean over configurations of the summed squares from their mean, after all were aligned by
    generalised Procrustes analysis at a centroid size of 1 (Gower 1975, Zelditch et al. 2012; `morphol.disparity` in R,
    package geomorph). Below 1, predictions shrink towards the mean shape; independent errors of landmarks enlarge it.
    Configurations are not mirrored: if some specimens are mirror images of others, that is most of both variances.

    Args:
      predicted, true: (N, K, 2), N at least 1.
      visible: (N, K); only images in which all landmarks are visible count. None: all are visible.

    Returns:
      The ratio (). NaN for fewer than three such images or fewer than three landmarks, or if the true configurations
      all have the same shape. Images in which all predicted or all true landmarks coincide are left out.
    """
    both = jnp.stack([at_least_float32(predicted), at_least_float32(true)])
    known = jnp.ones(both.shape[1:-1], bool) if visible is None else jnp.asarray(visible) != 0
    z, has_shape = _pre_shape(both, known)
    usable = has_shape.all(0) & known.all(-1)

    def variance(z):
        z = jnp.where(usable[:, None], z, 0)
        consensus, _ = shape.procrustes(jnp.stack([z.real, z.imag], -1), jnp.broadcast_to(usable[:, None], z.shape))
        aligned = _rotated(z, lax.complex(consensus[..., 0], consensus[..., 1]))
        average = jnp.sum(aligned, 0) / jnp.maximum(jnp.sum(usable), 1)  # those left out are 0
        return mean(_squares(aligned - average), known=usable)

    found, manual = jax.vmap(variance)(z)
    is_defined = (jnp.sum(usable) >= 3) & (manual > LEAST_VARIANCE)
    return jnp.where(is_defined, found / jnp.where(is_defined, manual, 1), jnp.nan)


def _centred(points, visible):
    """Returns the offsets (..., K, 2) of visible landmarks from their centroid, 0 for others, and their count (...)."""
    points = at_least_float32(points)
    known = jnp.ones(points.shape[:-1], bool) if visible is None else jnp.asarray(visible) != 0
    shown = known[..., None]
    # From a corner of their box: else rounding would give coincident landmarks a size.
    corner = lax.stop_gradient(jnp.min(jnp.where(shown, points, jnp.inf), -2, keepdims=True, initial=jnp.inf))
    points = jnp.where(shown, points - corner, 0)
    count = jnp.sum(known, -1)
    centroid = jnp.sum(points, -2, keepdims=True) / jnp.maximum(count, 1)[..., None, None]
    return jnp.where(shown, points - centroid, 0), count


def _pre_shape(points, visible):
    """Returns configurations (..., K) as complex numbers with centroid 0 and centroid size 1, and which have a shape.

    Those have at least three visible landmarks, not all at one place. Landmarks that are not visible are 0.
    """
    offset, count = _centred(points, visible)
    size = root(jnp.sum(offset**2, (-2, -1)))
    has_shape = (count >= 3) & (size > 0)
    unit = offset / jnp.where(has_shape, size, 1)[..., None, None]
    return lax.complex(unit[..., 0], unit[..., 1]), has_shape


def _rotated(z, onto):
    """Rotates centred configurations (..., K) of complex numbers so that they fit `onto` best."""
    product = jnp.sum(onto * z.conj(), -1, keepdims=True)
    product = jnp.where(product == 0, 1, product)  # all rotations fit equally
    return z * product / abs(product)


def _squares(z):
    """Returns the summed squares (...) of complex numbers (..., K)."""
    return jnp.sum(z.real**2 + z.imag**2, -1)
