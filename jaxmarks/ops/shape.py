"""The shape of landmarks: what they have in common over specimens, and where most of an image's put each of them.

Points (x, y) are complex numbers here, in which a similarity (turn, scale, shift) is z -> a z + t.
"""

import jax.numpy as jnp
import numpy as np

# Pairs of landmarks that are tried as those that are right.
PAIRS = 300
# Standard deviations beyond which a landmark counts less among those that say where the others are.
SURE = 3.0


def procrustes(points: np.ndarray, visible: np.ndarray, *, rounds: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """The mean shape of specimens and how far each landmark strays from it: generalised Procrustes analysis (Gower 1975).

    Args:
      points: (N, K, 2).
      visible: (N, K); specimens with fewer than two landmarks have no part in it.
      rounds: how often specimens are laid over their mean.

    Returns:
      The mean (K, 2), with its centroid at 0 and a root mean square of 1 from there, and of each landmark (K,) the
      standard deviation along an axis in that unit, its square half that of all, since few specimens tell it badly. A
      landmark that no specimen shows lies at the centroid.

    Raises:
      ValueError: no specimen shows two landmarks at different places.
    """
    z, weight = np.asarray(points, np.float64) @ [1, 1j], np.asarray(visible, np.float64)
    fullest = int(np.argmax(weight.sum(1))) if len(z) else 0
    known = weight[fullest] > 0 if len(z) else np.zeros(0, bool)
    if known.sum() < 2 or not np.ptp(np.abs(z[fullest][known] - z[fullest][known][0])) > 0:
        raise ValueError("no image shows two landmarks at different places: there is no shape")
    mean = _normalised(z[fullest], known)
    for _ in range(rounds):
        shared = weight * known
        part = shared.sum(1) >= 2
        laid = _laid(z[part], mean, shared[part])
        count = weight[part].sum(0)
        known = count > 0
        mean = _normalised((weight[part] * laid).sum(0) / np.maximum(count, 1), known)
    away = np.abs(_laid(z[part], mean, shared[part]) - mean) ** 2 / 2
    variance = (weight[part] * away).sum(0) / np.maximum(count, 1)
    pooled = (weight[part] * away).sum() / count.sum()
    spread = np.sqrt((np.where(known, variance, pooled) + pooled) / 2)
    return np.stack([mean.real, mean.imag], axis=-1), np.maximum(spread, 1e-3)


def _normalised(z, known):
    """Landmarks (K,) about the centroid of those that are known, of root mean square 1 from there; 0 of the others."""
    z = np.where(known, z - z[known].mean(), 0)
    return z / np.sqrt((np.abs(z[known]) ** 2).mean())


def _laid(z, onto, weight):
    """Specimens (N, K) laid `onto` (K,) by the similarity of least squares over the weights (N, K)."""
    a, t = similarity(z, onto, weight)
    return a[:, None] * z + t[:, None]


def similarity(z, onto, weight):
    """The similarity (a, t) that brings points (..., K) nearest to `onto` in the sense of weighted least squares."""
    total = weight.sum(-1)
    centre, target = (weight * z).sum(-1) / total, (weight * onto).sum(-1) / total
    moved = z - centre[..., None]
    turned = (weight * (onto - target[..., None]) * moved.conj()).sum(-1)
    a = turned / ((weight * abs(moved) ** 2).sum(-1) + 1e-12)  # points that are one are not turned
    return a, target - a * centre


def expected(points, mean: np.ndarray, spread: np.ndarray):
    """Where most of an image's landmarks put each of them.

    Of the similarities through two landmarks that are far from each other (at most `PAIRS`) the one counts from which the
    median landmark strays least (Rousseeuw 1984), so that nearly half of them may be anywhere; then all landmarks
    lay the shape over themselves, those beyond `SURE` standard deviations hardly.

    Args:
      points: (K, 2), at least 4.
      mean, spread: of `procrustes`.

    Returns:
      Points (K, 2), and the standard deviation of each there (K,).
    """
    shape, z = mean @ np.array([1, 1j]), points[..., 0] + 1j * points[..., 1]
    first, second = np.triu_indices(len(shape), 1)
    apart = np.abs(shape[first] - shape[second])
    far = np.flatnonzero(apart >= np.median(apart))
    some = np.random.default_rng(0).permutation(far)[:PAIRS]
    i, j = first[some], second[some]

    def strays(a, t):
        """How many standard deviations each landmark is from where similarities put it."""
        unit = jnp.maximum(abs(a), 1e-6)[..., None] * jnp.asarray(spread)
        return abs(a[..., None] * shape + t[..., None] - z) / jnp.maximum(unit, 1e-6)

    a = (z[j] - z[i]) / (shape[j] - shape[i])
    t = z[i] - a * shape[i]
    best = jnp.argmin(jnp.median(strays(a, t), axis=-1))
    a, t = a[best], t[best]
    for _ in range(5):
        weight = 1 / (jnp.asarray(spread) * (1 + (strays(a, t) / SURE) ** 2)) ** 2
        a, t = similarity(jnp.asarray(shape), z, weight)
    there = a * shape + t
    return jnp.stack([there.real, there.imag], axis=-1), abs(a) * jnp.asarray(spread)
