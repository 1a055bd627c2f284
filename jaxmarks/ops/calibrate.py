"""From landmarks found in scout planes to the position, orientation and size of the acquisition volume.

The volume is a box. Its axes are those of the head (x to the patient's right, y along the line from the posterior to the
anterior commissure, z upwards), and a template says where each landmark lies in it, in shares of its sides from its
centre: the landmarks at its six faces have one coordinate of +-0.5. Millimetres are the patient's, RAS throughout; what
comes as LPS is converted where it is read (`data.scouts`).

A scout shows a landmark that lies beside its plane at the foot of its perpendicular on the plane: of where it lies the
plane tells two coordinates and not the third, so the third has no part in the sum of squares.

Distances are differences of numbers near each other, taken after the landmarks' mean is subtracted: float32 keeps 1e-5 mm
and 1e-5 degrees, and needs no double precision on the host.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxmarks.ops.floats import root, single

# Tukey's biweight: beyond so many tolerances a landmark has no weight (95 % as good as least squares on normal errors).
TUKEY = 4.685
# The spread in mm of landmarks that are right, of a network or of an annotator.
TOLERANCE = 3.0
# Steps of Gauss-Newton from each start; it converges quadratically, the weights more slowly.
STEPS = 24
# Unlike the typical size by more than this in its logarithm, a volume is unlikely: it decides between two readings.
SIZE_SPREAD = 0.15
# Not a head: a side that differs by more than this factor from the typical one.
SIZE_LIMIT = 1.6
# The share of the landmarks' weight that has to agree.
AGREEING = 0.6
# Below this smallest eigenvalue of the scaled normal equations something of the volume does not follow from the landmarks.
SINGULAR = 1e-3
# 1 / p and 1 / p^2 in units of 2^-32, where p^3 = p + 1: whole numbers that overflow have the fractions of their multiples.
R2 = 0xC13FA9A9, 0x91E10DA5


class Template(NamedTuple):
    """Where K landmarks lie in the volume.

    Attributes:
      shares: (K, 3), in shares of the volume's sides from its centre.
      size: (3,) mm, the sides of a typical volume.
    """

    shares: jax.Array
    size: jax.Array


class Calibration(NamedTuple):
    """The volume that K landmarks tell.

    Attributes:
      centre: (3,) mm.
      rotation: (3, 3), whose columns are the volume's axes in the patient's.
      size: (3,) mm, its sides.
      residuals: (K,) mm between each landmark and where the volume has it; NaN of one that was not found.
      weights: (K,) in [0, 1]: how far each landmark was believed; 0 for one that contradicts the others.
      covariance: (9, 9) of centre (mm), rotation about the patient's axes (degrees) and size (mm), from the residuals
        and the number of landmarks; an error that landmarks share, as those found in one image may, is not in it.
      contradicts: () bool, the landmarks do not agree on one volume of a plausible size.
      undetermined: () bool, they are too few, or lie so that something of the volume does not follow from them.
    """

    centre: jax.Array
    rotation: jax.Array
    size: jax.Array
    residuals: jax.Array
    weights: jax.Array
    covariance: jax.Array
    contradicts: jax.Array
    undetermined: jax.Array


def product(a, b):
    """The matrix product (..., I, J) x (..., J, K), as sums that no accelerator rounds to fewer digits."""
    return jnp.sum(a[..., :, :, None] * b[..., None, :, :], axis=-2)


def to_space(plane, points):
    """Continuous pixels (..., K, 2) of a plane (..., 3, 3) -> (..., K, 3) mm.

    The plane's columns are the steps in mm from one pixel to the next along x and y, and where the pixel (0, 0), the
    corner of the image, lies.
    """
    x, y, corner = (plane[..., None, :, column] for column in range(3))
    return x * points[..., :1] + y * points[..., 1:] + corner


def normal(plane):
    """The unit normal (..., 3) of a plane (..., 3, 3)."""
    found = jnp.cross(plane[..., 0], plane[..., 1])
    return found / jnp.linalg.norm(found, axis=-1, keepdims=True)


def rotation_vector(rotation):
    """The axis times the angle in degrees (..., 3) of rotations (..., 3, 3) by less than 180 degrees.

    The angle comes from its sine as well as its cosine, so that small ones are exact.
    """
    sine, cosine, along = _turn(rotation)
    stretch = jnp.where(sine > 0, jnp.arctan2(sine, cosine) / jnp.where(sine > 0, sine, 1), 1.0)
    return jnp.rad2deg(along * stretch[..., None])


def _turn(r):
    """Of rotations (..., 3, 3) the sine and cosine (...) of their angle, and their axis times the sine (..., 3)."""
    twice = jnp.stack([r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]], -1)
    return root(jnp.sum(twice**2, -1)) / 2, (jnp.trace(r, axis1=-2, axis2=-1) - 1) / 2, twice / 2


def rotation_of(vector):
    """The rotation (..., 3, 3) about an axis by its length in degrees (..., 3): Rodrigues' formula."""
    radians = jnp.deg2rad(vector)
    square = jnp.sum(radians**2, -1)[..., None, None]
    safe = jnp.where(square > 1e-8, square, 1.0)
    angle = jnp.sqrt(safe)
    sine = jnp.where(square > 1e-8, jnp.sin(angle) / angle, 1 - square / 6)
    versine = jnp.where(square > 1e-8, (1 - jnp.cos(angle)) / safe, 0.5 - square / 24)
    k = cross_matrix(radians)
    return jnp.eye(3, dtype=radians.dtype) + sine * k + versine * product(k, k)


def cross_matrix(vector):
    """(..., 3, 3), whose product with w is the cross product of the vector (..., 3) and w."""
    x, y, z = (vector[..., i] for i in range(3))
    none = jnp.zeros_like(x)
    rows = [[none, -z, y], [z, none, -x], [-y, x, none]]
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def angle_between(one, other):
    """The angle in degrees (...), up to 180, between two rotations (..., 3, 3)."""
    sine, cosine, _ = _turn(product(jnp.swapaxes(one, -1, -2), other))
    return jnp.rad2deg(jnp.arctan2(sine, cosine))


def rigid(source, target, weights):
    """The rotation (3, 3) and shift (3,) that bring source (K, 3) nearest to target (K, 3), weighted (K,).

    Kabsch (1976) with the sign of Umeyama (1991, equation 43), so that it is no reflection.
    """
    share = weights / jnp.maximum(jnp.sum(weights), 1e-12)
    a, b = (jnp.sum(share[:, None] * p, 0) for p in (source, target))
    spread = product((share[:, None] * (target - b)).T, source - a)
    u, _, vt = jnp.linalg.svd(spread)
    sign = jnp.where(jnp.linalg.det(u) * jnp.linalg.det(vt) < 0, -1.0, 1.0)
    rotation = product(u * jnp.array([1.0, 1.0, 0.0], u.dtype), vt) + sign * product(u[:, 2:], vt[2:])
    return rotation, b - jnp.sum(rotation * a, -1)


def corners(centre, rotation, size):
    """(..., 8, 3) mm, the corners of boxes; corner 4 i + 2 j + k is at the far end of x, y, z where i, j, k are 1."""
    shares = jnp.stack(jnp.meshgrid(*[jnp.array([-0.5, 0.5], single(size).dtype)] * 3, indexing="ij"), -1).reshape(8, 3)
    return centre[..., None, :] + product(shares * size[..., None, :], jnp.swapaxes(rotation, -1, -2))


def box_iou(one, other, *, count=32_768):
    """The intersection over union () of two boxes, each (centre (3,), rotation (3, 3), size (3,)) in mm.

    The mean over `count` lines along the first box's z axis of how long each runs inside the second, which is exact. The
    lines are spread so evenly (`R2`, the sequence of Roberts 2018) that the error stays below 0.001, also of boxes whose
    faces are nearly parallel, where a square grid gains or loses whole rows.
    """
    (centre, rotation, size), (other_centre, other_rotation, other_size) = one, other
    places = jnp.arange(1, count + 1, dtype=jnp.uint32)[:, None] * jnp.array(R2, jnp.uint32) / 2.0**32
    places = places.astype(single(size).dtype)
    feet = jnp.pad((places + 0.5) % 1 - 0.5, ((0, 0), (0, 1)), constant_values=-0.5)
    # In the second box's axes and shares of its sides: where each line starts, and its way to the other end.
    turn = product(other_rotation.T, rotation)
    shift = jnp.sum(other_rotation * (centre - other_centre)[:, None], 0)
    start = (shift + product(feet * size, turn.T)) / other_size
    way = turn[:, 2] * size[2] / other_size
    parallel = jnp.abs(way) < 1e-9
    ends = (jnp.array([-0.5, 0.5], start.dtype)[:, None, None] - start) / jnp.where(parallel, 1.0, way)
    inside = jnp.abs(start) <= 0.5
    enter = jnp.where(parallel, jnp.where(inside, 0.0, 1.0), ends.min(0)).max(-1)
    leave = jnp.where(parallel, jnp.where(inside, 1.0, 0.0), ends.max(0)).min(-1)
    length = jnp.clip(jnp.minimum(leave, 1) - jnp.maximum(enter, 0), 0)
    both = jnp.mean(length) * jnp.prod(size)
    return both / (jnp.prod(size) + jnp.prod(other_size) - both)


def calibrate(points, weights, template, *, normals=None, tolerance=TOLERANCE):
    """The volume that landmarks tell: weighted least squares over its centre, rotation and three sides.

    Minimises sum_k w_k rho(|P_k (c + R (s * t_k) - p_k)|) by Gauss-Newton, where t_k are the template's shares, P_k takes
    away the part along the normal of the plane in which landmark k was found, and rho is Tukey's biweight, under which
    landmarks that are far off lose their weight. It is run from the rigid fit without each landmark in turn, so that one
    wrong landmark cannot lead all of them astray, and from that of all of them with a tolerance that starts wide, which
    bears several; the best end wins, where an unlikely size counts against it. All shapes are fixed: it can be jitted and
    mapped.

    Args:
      points: (K, 3) mm, where each landmark was found.
      weights: (K,) how sure it is, such as a heatmap's score; 0 for a landmark that was not found.
      template: where the landmarks lie in the volume; its size may be wrong by 30 %.
      normals: (K, 3), unit normals of the planes in which the landmarks were found; None where all three coordinates of
        every point are known.
      tolerance: mm, the spread of landmarks that are right.

    Returns:
      A Calibration.
    """
    points = single(points)
    count, dtype = len(points), points.dtype
    weights, shares, usual_size = (jnp.asarray(x, dtype) for x in (weights, template.shares, template.size))
    weights = weights / jnp.maximum(jnp.max(weights), 1e-12)
    points = jnp.where(weights[:, None] > 0, points, 0)  # what was not found may be no number
    middle = jnp.sum(weights[:, None] * points, 0) / jnp.maximum(jnp.sum(weights), 1e-12)
    points = jnp.where(weights[:, None] > 0, points - middle, 0)
    project = jnp.broadcast_to(jnp.eye(3, dtype=dtype), (count, 3, 3))
    if normals is not None:
        normals = jnp.where(weights[:, None] > 0, jnp.asarray(normals, dtype), 0)
        project = project - normals[:, :, None] * normals[:, None, :]
    known = jnp.trace(project, axis1=1, axis2=2)  # coordinates that a landmark tells: 3, or 2 in a plane

    def difference(centre, rotation, size):
        """(K, 3) mm from the landmarks to where the volume has them."""
        found = centre + product(shares * size, rotation.T)
        return jnp.sum(project * (found - points)[:, None, :], -1)

    def jacobian(rotation, size):
        """(K, 3, 9) of `difference` by shift in mm, turn in radians about the patient's axes, and growth of each side."""
        arms = product(shares * size, rotation.T)
        grown = rotation * (shares * size)[:, None, :]
        shift = jnp.broadcast_to(jnp.eye(3, dtype=dtype), (count, 3, 3))
        return product(project, jnp.concatenate([shift, -cross_matrix(arms), grown], -1))

    def equations(trust, rotation, size):
        """The normal matrix (9, 9) with ones on its diagonal, what it was divided by, and the Jacobian."""
        slope = jacobian(rotation, size)
        flat = (jnp.sqrt(trust)[:, None, None] * slope).reshape(-1, 9)
        matrix = product(flat.T, flat)
        scale = jnp.sqrt(jnp.maximum(jnp.diagonal(matrix), 1e-12))
        return matrix / scale / scale[:, None], scale, slope

    def step(volume, trust):
        centre, rotation, size = volume
        matrix, scale, slope = equations(trust, rotation, size)
        pull = jnp.sum(trust[:, None, None] * slope * difference(*volume)[..., None], (0, 1)) / scale
        # The ridge shortens steps where nothing is known; where the pull is zero there is no step to shorten.
        move = -jnp.linalg.solve(matrix + 1e-5 * jnp.eye(9, dtype=dtype), pull) / scale
        turned = product(rotation_of(jnp.rad2deg(move[3:6])), rotation)
        return centre + move[:3], turned, size * jnp.exp(jnp.clip(move[6:], -0.3, 0.3))

    def biweight(distance, limit):
        return jnp.square(jnp.clip(1 - jnp.square(distance / limit), 0))

    def length(vectors):
        return root(jnp.sum(vectors**2, -1))

    def descend(start, widths):
        rotation, shift = rigid(shares * usual_size, points, start)
        volume = shift, rotation, usual_size

        def one(volume, width):
            believed = weights * biweight(length(difference(*volume)), width * TUKEY * tolerance)
            return step(volume, jnp.where(jnp.isinf(width), start, believed)), None

        volume, _ = lax.scan(one, volume, widths)
        trusted = biweight(length(difference(*volume)), TUKEY * tolerance)
        loss = jnp.sum(weights * TUKEY**2 / 6 * (1 - trusted**1.5))
        unlike = jnp.log(volume[2] / usual_size) / SIZE_SPREAD
        return volume, loss + jnp.sum(unlike**2) / 2

    starts = jnp.concatenate([weights * (1 - jnp.eye(count, dtype=dtype)), weights[None]])
    # The first three steps of each are those of plain least squares from where it starts.
    steady = jnp.ones((count, STEPS), dtype).at[:, :3].set(jnp.inf)
    narrowing = jnp.maximum(2.0 ** jnp.linspace(4, -3, STEPS, dtype=dtype), 1).at[:3].set(jnp.inf)
    volumes, losses = jax.vmap(descend)(starts, jnp.concatenate([steady, narrowing[None]]))
    best = jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses))
    centre, rotation, size = jax.tree.map(lambda leaf: leaf[best], volumes)

    residuals = length(difference(centre, rotation, size))
    trusted = biweight(residuals, TUKEY * tolerance)
    trust = weights * trusted
    matrix, scale, _ = equations(trust, rotation, size)
    spare = jnp.sum(jnp.where(trust > 0, known * trusted, 0)) - 9
    variance = jnp.sum(trust * residuals**2) / jnp.maximum(spare, 1e-3)
    units = jnp.concatenate([jnp.ones(3, dtype), jnp.full(3, 180 / jnp.pi, dtype), size]) / scale
    # The ridge keeps the inverse finite where `undetermined` says that it means nothing.
    covariance = jnp.linalg.inv(matrix + 1e-6 * jnp.eye(9, dtype=dtype)) * variance * units * units[:, None]
    undetermined = (spare <= 0) | ~(jnp.linalg.eigvalsh(matrix)[0] > SINGULAR)
    agreeing = jnp.sum(weights * (residuals < TUKEY * tolerance / 2)) >= AGREEING * jnp.sum(weights)
    usual = jnp.all(jnp.abs(jnp.log(size / usual_size)) < jnp.log(SIZE_LIMIT))
    return Calibration(
        centre=centre + middle,
        rotation=rotation,
        size=size,
        residuals=jnp.where(weights > 0, residuals, jnp.nan),
        weights=trust,
        covariance=covariance,
        contradicts=~(agreeing & usual),
        undetermined=undetermined,
    )
