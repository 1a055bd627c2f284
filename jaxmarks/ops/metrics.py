"""Distances between predicted and true landmarks, and what is made of them. Missing landmarks are left out everywhere.

Points are (..., K, 2), distances (..., K) in the points' unit with NaN where a landmark is missing.
"""

import functools
import math

import jax.numpy as jnp

from jaxmarks.ops.floats import root, single


def distances(predicted, true, visible=None):
    """Euclidean distances (..., K); NaN where `visible` (..., K) is False, infinite where it is True but no number predicted.

    Without `visible` what is no number has no distance.
    """
    predicted, true = single(predicted), single(true)
    if visible is None:
        return root(jnp.sum((predicted - true) ** 2, axis=-1))
    visible = jnp.asarray(visible)
    # Not only the result is guarded: what is missing may be no number, and would have none for a gradient.
    found = root(jnp.sum(jnp.where(visible[..., None], predicted - true, 0) ** 2, axis=-1))
    return jnp.where(visible, jnp.where(jnp.isnan(found), jnp.inf, found), jnp.nan)


def mean(values, axis=None, *, known=None):
    """The mean of what is `known`, by default of what is not NaN; NaN where nothing is."""
    values = single(values)
    known = ~jnp.isnan(values) if known is None else known
    count = jnp.sum(known, axis)
    return jnp.where(count > 0, jnp.sum(jnp.where(known, values, 0), axis) / jnp.maximum(count, 1), jnp.nan)


def per_landmark(distances):
    """The mean of each landmark (K,) over all images of distances (..., K)."""
    return mean(distances, tuple(range(jnp.ndim(distances) - 1)))


def summarise(distances):
    """A dict of mean, median, p95, std, max and count of the visible landmarks' distances."""
    values = jnp.append(single(distances), jnp.nan)  # of no distances at all there are quantiles, too
    known = ~jnp.isnan(values)
    levels = jnp.array([0.5, 0.95, 1.0])
    between = jnp.nanquantile(values, levels)
    # Interpolation gives an infinite neighbour a weight of 0, which is no number.
    quantiles = jnp.where(jnp.isnan(between), jnp.nanquantile(values, levels, method="higher"), between)
    average, (median, p95, largest) = mean(values), quantiles
    # Not only the result is guarded, here and below: what is no number has none for a gradient.
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
    """r2, explained variance and Pearson's correlation between predicted and true coordinates (..., K, 2).

    All coordinates are pooled, x and y of every landmark and image: of the ways to average them this is the one that
    comes near the beetle paper's Table 2 (0.9952, 0.9951, 0.9974 on pronota from scratch) from its authors' published
    predictions, which give 0.9966, 0.9966, 0.9984 without the landmark that the published file has wrong. A pair of which
    one is NaN is left out.
    """
    predicted, true = single(predicted), single(true)
    known = ~(jnp.isnan(predicted) | jnp.isnan(true))
    if visible is not None:
        known &= (jnp.asarray(visible) != 0)[..., None]
    p, t = (jnp.where(known, a, 0) for a in (predicted, true))
    of_known = functools.partial(mean, known=known)
    # Centred first: coordinates of thousands of pixels would lose their small differences in float32 squares.
    a, b, error = (v - of_known(v) for v in (p, t, t - p))
    spread = of_known(b**2)
    return {
        "r2": 1 - of_known((t - p) ** 2) / spread,
        "explained_variance": 1 - of_known(error**2) / spread,
        "pearson": of_known(a * b) / jnp.sqrt(of_known(a**2) * spread),
    }


def shares(distances, limit=10.0):
    """(K, 3) shares of images under the landmark's mean distance, from it to `limit`, and above (beetle paper)."""
    *images, landmarks = jnp.shape(distances)
    values = jnp.reshape(jnp.asarray(distances), (math.prod(images), landmarks))
    known, average = ~jnp.isnan(values), per_landmark(values)
    under = values < average
    above = ~under & (values > limit)
    parts = jnp.stack([under, ~under & ~above, above], axis=-1) & known[..., None]
    return jnp.sum(parts, 0) / jnp.sum(known, 0)[:, None]


def success_rates(distances, thresholds):
    """(T,) the share of visible landmarks within each threshold, also called successful detection rate (SDR)."""
    values = jnp.ravel(single(distances))
    return jnp.sum(values[None] <= jnp.asarray(thresholds, values.dtype)[:, None], 1) / jnp.sum(~jnp.isnan(values))


def pck(distances, reference, fractions):
    """(T,) the share of visible landmarks within each fraction of their image's reference length (PCK).

    Args:
      distances: (..., K), NaN where a landmark is missing.
      reference: (...,) the length, in the distances' unit: the longer side of the object's box (Yang and Ramanan 2013),
        the head's length (PCKh). An image whose length is NaN is left out.
      fractions: (T,).
    """
    return success_rates(distances / jnp.asarray(reference)[..., None], fractions)


def oks(distances, extent, sigmas=0.05):
    """Object keypoint similarity (...,): the mean over visible landmarks of exp(-d^2 / (2 s_i^2 s^2)) (thesis, metrics).

    Args:
      distances: (..., K), NaN where a landmark is missing.
      extent: (...,) s, the object's size in the distances' unit: the root of its area.
      sigmas: s_i, a number or (K,): how far an annotator strays, as a share of the extent. COCO takes twice the standard
        deviation of its annotators for it (`kpt_oks_sigmas` in pycocotools, there 0.025 for eyes and 0.107 for hips).

    Returns:
      in [0, 1]; NaN where no landmark is visible or the extent is NaN. `boxes.keypoint_average_precision` makes mAP of it.
    """
    known = ~jnp.isnan(distances)
    share = jnp.where(known, distances, 0) / (jnp.asarray(extent)[..., None] * jnp.asarray(sigmas))
    return mean(jnp.exp(-(share**2) / 2), axis=-1, known=known)
