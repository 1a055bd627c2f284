"""The shape of landmarks: what they have in common over specimens, and where most of an image's put each of them.

Points (x, y) are complex numbers here, in which a similarity (turn, scale, shift) is z -> a z + t.
"""

import jax.numpy as jnp
from jax import lax

from jaxmarks.ops import geometry
from jaxmarks.ops.floats import single

# Pairs of landmarks that are tried as those that are right.
PAIRS = 300
# Standard deviations beyond which a landmark counts less among those that say where the others are.
SURE = 3.0


def procrustes(points, visible, *, start=None, mirror=False, rounds=20):
    """The mean shape of specimens and how far each landmark strays from it: generalised Procrustes analysis (Gower 1975).

    Args:
      points: (N, K, 2), N at least 1.
      visible: (N, K); specimens with fewer than two landmarks have no part in it.
      start: points (K, 2) and visible (K,) of a specimen as which the mean is to lie, two of its landmarks at least; None:
        it lies as one that has the most.
      mirror: whether a specimen may be the mirror image of others: each is laid over the mean as it fits better.
      rounds: how often specimens are laid over their mean.

    Returns:
      The mean (K, 2), with its centroid at 0 and a root mean square of 1 from there, and of each landmark (K,) the
      standard deviation along an axis in that unit, 0.001 at least; its square is half that of all, since few specimens
      tell it badly. A landmark that no specimen shows lies at the centroid, as do all where no specimen shows two places.
    """
    visible = jnp.asarray(visible) != 0
    weight = single(visible)
    z = jnp.where(visible, _complex(single(points)), 0)

    def over(z, mean, shared):
        a, t = similarity(z, mean, shared)
        return a[:, None] * z + t[:, None]

    def laid(mean, known):
        """The specimens laid over the mean, and what of them counts."""
        shared = weight * known
        each = over(z, mean, shared)
        if mirror:
            other = over(z.conj(), mean, shared)
            away = lambda z: (shared * abs(z - mean) ** 2).sum(1, keepdims=True)
            each = jnp.where(away(other) < away(each), other, each)
        return each, weight * (shared.sum(1, keepdims=True) >= 2)

    def again(_, state):
        each, counts = laid(*state)
        count = counts.sum(0)
        return _normalised((counts * each).sum(0) / jnp.maximum(count, 1), count > 0)

    fullest = jnp.argmax(weight.sum(1))
    first, known = (z[fullest], visible[fullest]) if start is None else (_complex(single(start[0])), start[1])
    mean, known = lax.fori_loop(0, rounds, again, _normalised(first, known))
    each, counts = laid(mean, known)
    away = counts * abs(each - mean) ** 2 / 2
    pooled = away.sum() / jnp.maximum(counts.sum(), 1)
    variance = jnp.where(known, away.sum(0) / jnp.maximum(counts.sum(0), 1), pooled)
    return _pairs(mean), jnp.maximum(jnp.sqrt((variance + pooled) / 2), 1e-3)


def _complex(points):
    return points[..., 0] + 1j * points[..., 1]


def _pairs(z):
    return jnp.stack([z.real, z.imag], axis=-1)


def _normalised(z, known):
    """Landmarks (K,) about the centroid of those that are known, of root mean square 1 from there, 0 of others; and known."""
    count = jnp.maximum(known.sum(), 1)
    z = jnp.where(known, z - jnp.where(known, z, 0).sum() / count, 0)
    size = jnp.sqrt((abs(z) ** 2).sum() / count)
    return z / jnp.where(size > 0, size, 1), known


def lengthwise(points, visible, *, tall=False):
    """Points (K, 2) about 0, turned so that those that are visible (K,) spread most along the x axis, or, `tall`, the y axis."""
    z, _ = _normalised(_complex(single(points)), visible)
    turn = jnp.exp(-0.5j * jnp.angle((z**2).sum()))
    return _pairs(z * turn * (1j if tall else 1))


def similarity(z, onto, weight):
    """The similarity (a, t) that brings points (..., K) nearest to `onto` in the sense of weighted least squares."""
    total = jnp.maximum(weight.sum(-1), 1e-12)
    centre, target = (weight * z).sum(-1) / total, (weight * onto).sum(-1) / total
    moved = z - centre[..., None]
    turned = (weight * (onto - target[..., None]) * moved.conj()).sum(-1)
    a = turned / jnp.maximum((weight * abs(moved) ** 2).sum(-1), 1e-12)  # points that are one are not turned
    return a, target - a * centre


def expected(points, mean, spread):
    """Where most of an image's landmarks put each of them.

    Args:
      points: (K, 2), at least 4.
      mean, spread: (K, 2) and (K,), of `procrustes`.

    Returns:
      Points (K, 2), and the standard deviation of each there (K,).
    """
    matrix = laid(points, jnp.ones(len(points), bool), mean, spread)
    return geometry.affine(matrix, mean), geometry.scale(matrix) * spread


def laid(points, visible, mean, spread, *, mirror=False):
    """The similarity that lays the mean shape over most of an image's landmarks.

    Of the similarities through two landmarks (of more than `PAIRS` pairs some of the farther ones) the one counts from
    which the median landmark strays least (Rousseeuw 1984), so that nearly half of them may be anywhere; then all
    landmarks lay the shape over themselves, those beyond `SURE` standard deviations hardly.

    Args:
      points, visible: (K, 2) and (K,); what is not visible has no part in it. There are two at least.
      mean, spread: (K, 2) and (K,), of `procrustes`.
      mirror: whether the image may show the mirror image of the mean; it does where that fits better.

    Returns:
      the map (2, 3) from the mean to the image.
    """
    z = jnp.where(visible, _complex(single(points)), 0)
    shape = _complex(single(mean))
    a, t, away = _laid(z, visible, shape, spread)
    if not mirror:
        return _matrix(a, t, 1.0)
    b, s, farther = _laid(z, visible, shape.conj(), spread)
    return jnp.where(farther < away, _matrix(b, s, -1.0), _matrix(a, t, 1.0))


def _laid(z, visible, shape, spread):
    """The similarity (a, t) of `laid`, and how far the landmarks are from where it puts them: that is to be small."""
    i, j = jnp.triu_indices(len(shape), 1)
    farther = jnp.argsort(-abs(shape[i] - shape[j]))[: max(PAIRS, (len(i) + 1) // 2)]
    some = farther[:: -(-len(farther) // PAIRS)]
    i, j = i[some], j[some]

    def strays(a, t):
        """How many standard deviations each landmark is from where similarities put it."""
        unit = jnp.maximum(abs(a)[..., None] * spread, 1e-6)
        return abs(a[..., None] * shape + t[..., None] - z) / unit

    between = shape[j] - shape[i]
    a = (z[j] - z[i]) / jnp.where(between == 0, 1, between)
    t = z[i] - a * shape[i]
    median, seen = jnp.nanmedian(jnp.where(visible, strays(a, t), jnp.nan), axis=-1), visible[i] & visible[j]
    best = jnp.argmin(jnp.where(seen, median, jnp.inf))
    # Of many landmarks a few may be visible of which no pair is tried.
    first = [
        jnp.where(seen.any(), pair[best], whole)
        for pair, whole in zip((a, t), similarity(shape, z, visible), strict=True)
    ]

    def lay(_, found):
        weight = visible / (spread * (1 + (strays(*found) / SURE) ** 2)) ** 2
        return similarity(shape, z, weight)

    a, t = lax.fori_loop(0, 5, lay, tuple(first))
    return a, t, jnp.where(visible, jnp.log1p((strays(a, t) / SURE) ** 2), 0).sum()


def _matrix(a, t, side):
    """The map (2, 3) z -> a z + t, or with a `side` of -1 of the mirror image of z."""
    return jnp.array([[a.real, -side * a.imag, t.real], [a.imag, side * a.real, t.imag]])
