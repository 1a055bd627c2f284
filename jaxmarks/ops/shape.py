"""Landmark shape: the mean shape of specimens, and where most of an image's landmarks predict each of them.

Points (x, y) are represented as complex numbers, so a similarity (rotation, scale, translation) is z -> a z + t.
"""

import jax.numpy as jnp
from jax import lax

from jaxmarks.ops import geometry
from jaxmarks.ops.floats import at_least_float32

# Maximum number of landmark pairs from which a candidate similarity is computed.
PAIRS = 300
# Standard deviations beyond which a landmark has little weight in predicting the others.
SURE = 3.0


def procrustes(points, visible, *, start=None, mirror=False, rounds=20):
    """Fits the mean shape and each landmark's spread around it by generalised Procrustes analysis (Gower 1975).

    Args:
      points: (N, K, 2), N at least 1.
      visible: (N, K); specimens with fewer than two visible landmarks are ignored.
      start: points (K, 2) and visible (K,), at least two, of the specimen whose orientation the mean takes. None: the
        first specimen with the most visible landmarks.
      mirror: whether specimens may be mirror images of each other: each is aligned mirrored if that fits better.
      rounds: how often the specimens are aligned with their mean.

    Returns:
      The mean (K, 2), with centroid 0 and a root mean square distance of 1 from it; and each landmark's standard
      deviation (K,) along an axis in that unit, at least 0.001. A landmark's variance is averaged with the variance of
      all landmarks, since few specimens estimate it badly. A landmark that is visible in no specimen lies at the
      centroid, as do all landmarks if no specimen shows two distinct points.
    """
    visible = jnp.asarray(visible) != 0
    weight = at_least_float32(visible)
    z = jnp.where(visible, _complex(at_least_float32(points)), 0)

    def align(z, mean, shared):
        a, t = similarity(z, mean, shared)
        return a[:, None] * z + t[:, None]

    def align_all(mean, known):
        """Returns the specimens aligned with the mean, and their landmarks' weights."""
        shared = weight * known
        aligned = align(z, mean, shared)
        if mirror:
            mirrored = align(z.conj(), mean, shared)
            squared_errors = lambda z: (shared * abs(z - mean) ** 2).sum(1, keepdims=True)
            aligned = jnp.where(squared_errors(mirrored) < squared_errors(aligned), mirrored, aligned)
        return aligned, weight * (shared.sum(1, keepdims=True) >= 2)

    def update(_, state):
        aligned, counts = align_all(*state)
        count = counts.sum(0)
        return _normalised((counts * aligned).sum(0) / jnp.maximum(count, 1), count > 0)

    fullest = jnp.argmax(weight.sum(1))
    first, known = (z[fullest], visible[fullest]) if start is None else (_complex(at_least_float32(start[0])), start[1])
    mean, known = lax.fori_loop(0, rounds, update, _normalised(first, known))
    aligned, counts = align_all(mean, known)
    squared_errors = counts * abs(aligned - mean) ** 2 / 2
    pooled = squared_errors.sum() / jnp.maximum(counts.sum(), 1)
    variance = jnp.where(known, squared_errors.sum(0) / jnp.maximum(counts.sum(0), 1), pooled)
    return _pairs(mean), jnp.maximum(jnp.sqrt((variance + pooled) / 2), 1e-3)


def _complex(points):
    return points[..., 0] + 1j * points[..., 1]


def _pairs(z):
    return jnp.stack([z.real, z.imag], axis=-1)


def _normalised(z, known):
    """Centres the known landmarks (K,), scales them to root mean square 1, sets others to 0; also returns `known`."""
    count = jnp.maximum(known.sum(), 1)
    z = jnp.where(known, z - jnp.where(known, z, 0).sum() / count, 0)
    size = jnp.sqrt((abs(z) ** 2).sum() / count)
    return z / jnp.where(size > 0, size, 1), known


def align_principal_axis(points, visible, *, tall=False):
    """Normalises points (K, 2) so that the visible ones (K,) spread most along the x axis or, if `tall`, the y axis.

    The visible points get centroid 0 and a root mean square distance of 1 from it; the others are 0.
    """
    z, _ = _normalised(_complex(at_least_float32(points)), visible)
    turn = jnp.exp(-0.5j * jnp.angle((z**2).sum()))
    return _pairs(z * turn * (1j if tall else 1))


def similarity(z, onto, weight):
    """Fits the similarity (a, t) that maps points z (..., K) to `onto` by weighted least squares."""
    total = jnp.maximum(weight.sum(-1), 1e-12)
    centre, target = (weight * z).sum(-1) / total, (weight * onto).sum(-1) / total
    moved = z - centre[..., None]
    turned = (weight * (onto - target[..., None]) * moved.conj()).sum(-1)
    a = turned / jnp.maximum((weight * abs(moved) ** 2).sum(-1), 1e-12)  # coincident points have no rotation
    return a, target - a * centre


def expected(points, mean, spread):
    """Predicts each of an image's landmarks from where most of them lie.

    Args:
      points: (K, 2), K at least 4.
      mean, spread: (K, 2) and (K,), from `procrustes`.

    Returns:
      The predicted points (K, 2), and the standard deviation (K,) of each in the image.
    """
    matrix = fit_pose(points, jnp.ones(len(points), bool), mean, spread)
    return geometry.affine(matrix, mean), geometry.scale(matrix) * spread


def fit_pose(points, visible, mean, spread, *, mirror=False):
    """Fits the similarity that maps the mean shape to most of an image's landmarks, tolerating outliers.

    Least median of squares (Rousseeuw 1984): of the similarities through pairs of landmarks (if there are more than
    `PAIRS` pairs, some of those far apart) it takes the one with the smallest median residual, so nearly half of the
    landmarks may be arbitrarily wrong. A reweighted least-squares fit to all landmarks follows, in which those beyond
    `SURE` standard deviations have little weight.

    Args:
      points, visible: (K, 2) and (K,); landmarks that are not visible are ignored. At least two are visible.
      mean, spread: (K, 2) and (K,), from `procrustes`.
      mirror: whether the image may show a mirrored specimen; it is fitted mirrored if that fits better.

    Returns:
      the map (2, 3) from the mean to the image.
    """
    z = jnp.where(visible, _complex(at_least_float32(points)), 0)
    shape = _complex(at_least_float32(mean))
    a, t, loss = _laid(z, visible, shape, spread)
    if not mirror:
        return _matrix(a, t, 1.0)
    b, s, mirrored_loss = _laid(z, visible, shape.conj(), spread)
    return jnp.where(mirrored_loss < loss, _matrix(b, s, -1.0), _matrix(a, t, 1.0))


def _laid(z, visible, shape, spread):
    """Returns the similarity (a, t) of `fit_pose`, and the robust loss of its fit to the visible landmarks."""
    i, j = jnp.triu_indices(len(shape), 1)
    farther = jnp.argsort(-abs(shape[i] - shape[j]))[: max(PAIRS, (len(i) + 1) // 2)]
    tried = farther[:: -(-len(farther) // PAIRS)]
    i, j = i[tried], j[tried]

    def deviations(a, t):
        """Returns each landmark's distance, in standard deviations, from where the similarities map the mean."""
        unit = jnp.maximum(abs(a)[..., None] * spread, 1e-6)
        return abs(a[..., None] * shape + t[..., None] - z) / unit

    difference = shape[j] - shape[i]
    a = (z[j] - z[i]) / jnp.where(difference == 0, 1, difference)
    t = z[i] - a * shape[i]
    median, usable = jnp.nanmedian(jnp.where(visible, deviations(a, t), jnp.nan), axis=-1), visible[i] & visible[j]
    best = jnp.argmin(jnp.where(usable, median, jnp.inf))
    # If only a few of many landmarks are visible, none of their pairs may be tried: start from the fit to all.
    start = [
        jnp.where(usable.any(), pair[best], overall)
        for pair, overall in zip((a, t), similarity(shape, z, visible), strict=True)
    ]

    def refine(_, pose):
        weight = visible / (spread * (1 + (deviations(*pose) / SURE) ** 2)) ** 2
        return similarity(shape, z, weight)

    a, t = lax.fori_loop(0, 5, refine, tuple(start))
    return a, t, jnp.where(visible, jnp.log1p((deviations(a, t) / SURE) ** 2), 0).sum()


def _matrix(a, t, side):
    """Returns the map (2, 3) z -> a z + t, which with a `side` of -1 first mirrors z (conjugation)."""
    return jnp.array([[a.real, -side * a.imag, t.real], [a.imag, side * a.real, t.imag]])
