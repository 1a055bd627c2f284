"""Computes the position, orientation and size of the acquisition volume from landmarks found in scout planes.

The volume is a box. Its axes are those of the head (x to the patient's right, y along the line from the posterior to
the anterior commissure, z upwards). A template gives each landmark's position in it, relative to the centre and in
fractions of the sides: landmarks on the six faces have one coordinate of +-0.5. Positions are in mm in the patient's
RAS coordinates; LPS input is converted where it is read (`data.scouts`).

A scout shows a landmark that lies off its plane at the orthogonal projection onto the plane. It thus determines two of
the landmark's coordinates; the residual along the plane's normal is left out of the sum of squares.

The landmarks' mean is subtracted before distances are computed. So float32 is accurate to 1e-5 mm and 1e-5 degrees, and
double precision on the host is not needed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxmarks.ops.floats import at_least_float32, root

# Tukey's biweight: landmarks beyond this many tolerances have weight 0 (95 % efficiency on normal errors).
TUKEY = 4.685
# Standard deviation in mm of the errors of correct landmarks, from a network or an annotator.
TOLERANCE = 3.0
# Gauss-Newton steps from each start. They converge quadratically, the robust weights more slowly.
STEPS = 24
# Prior standard deviation of the log ratio of a side to the typical one; it decides between two solutions.
SIZE_SPREAD = 0.15
# A side that differs from the typical one by more than this factor is implausible for a head.
SIZE_LIMIT = 1.6
# The share of the landmarks' total weight that must agree with the volume.
AGREEING = 0.6
# If the smallest eigenvalue of the scaled normal matrix is below this, the landmarks do not determine the volume.
SINGULAR = 1e-3
# 1 / p and 1 / p^2 in units of 2^-32, where p^3 = p + 1: uint32 overflow keeps exactly the fraction of their multiples.
R2 = 0xC13FA9A9, 0x91E10DA5


class Template(NamedTuple):
    """The positions of K landmarks in the volume.

    Attributes:
      shares: (K, 3), relative to the centre, in fractions of the volume's sides.
      size: (3,) mm, the side lengths of a typical volume.
    """

    shares: jax.Array
    size: jax.Array


class Calibration(NamedTuple):
    """The volume fitted to K landmarks.

    Attributes:
      centre: (3,) mm.
      rotation: (3, 3), whose columns are the volume's axes in patient coordinates.
      size: (3,) mm, its side lengths.
      residuals: (K,) mm between each landmark and its position in the volume; NaN if it was not found.
      weights: (K,) in [0, 1]: each landmark's weight in the fit; 0 for one that contradicts the others.
      covariance: (9, 9) of centre (mm), rotation about the patient's axes (degrees) and size (mm), from the residuals
        and the number of landmarks; it omits errors that landmarks share, as those found in one image may.
      contradicts: () bool, whether the landmarks do not agree on one volume of plausible size.
      undetermined: () bool, whether the landmarks are too few or too badly placed to determine the volume.
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
    """Returns the matrix product (..., I, J) x (..., J, K), in full precision on accelerators, too."""
    return jnp.sum(a[..., :, :, None] * b[..., None, :, :], axis=-2)


def to_space(plane, points):
    """Maps continuous pixels (..., K, 2) of a plane (..., 3, 3) to positions (..., K, 3) in mm.

    The plane's columns are the steps in mm from one pixel to the next along x and y, and the position of the pixel
    coordinate (0, 0), the corner of the image.
    """
    x, y, corner = (plane[..., None, :, column] for column in range(3))
    return x * points[..., :1] + y * points[..., 1:] + corner


def normal(plane):
    """Returns the unit normal (..., 3) of a plane (..., 3, 3)."""
    found = jnp.cross(plane[..., 0], plane[..., 1])
    return found / jnp.linalg.norm(found, axis=-1, keepdims=True)


def rotation_vector(rotation):
    """Returns the rotation vectors (..., 3), axis times angle in degrees, of rotations (..., 3, 3) below 180 degrees.

    The angle is computed from its sine and cosine, so small angles are accurate.
    """
    sine, cosine, axis_sine = _turn(rotation)
    stretch = jnp.where(sine > 0, jnp.arctan2(sine, cosine) / jnp.where(sine > 0, sine, 1), 1.0)
    return jnp.rad2deg(axis_sine * stretch[..., None])


def _turn(r):
    """Returns the sine and cosine (...) of the angle of rotations (..., 3, 3), and the axis times the sine (..., 3)."""
    twice = jnp.stack([r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]], -1)
    return root(jnp.sum(twice**2, -1)) / 2, (jnp.trace(r, axis1=-2, axis2=-1) - 1) / 2, twice / 2


def rotation_of(vector):
    """Returns the rotations (..., 3, 3) of rotation vectors (..., 3) in degrees, by Rodrigues' formula."""
    radians = jnp.deg2rad(vector)
    square = jnp.sum(radians**2, -1)[..., None, None]
    safe = jnp.where(square > 1e-8, square, 1.0)
    angle = jnp.sqrt(safe)
    sine = jnp.where(square > 1e-8, jnp.sin(angle) / angle, 1 - square / 6)
    versine = jnp.where(square > 1e-8, (1 - jnp.cos(angle)) / safe, 0.5 - square / 24)
    k = cross_matrix(radians)
    return jnp.eye(3, dtype=radians.dtype) + sine * k + versine * product(k, k)


def cross_matrix(vector):
    """Returns the matrix (..., 3, 3) whose product with w is the cross product of the vector (..., 3) and w."""
    x, y, z = (vector[..., i] for i in range(3))
    zero = jnp.zeros_like(x)
    rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def angle_between(one, other):
    """Returns the angle (...) in degrees, up to 180, between two rotations (..., 3, 3)."""
    sine, cosine, _ = _turn(product(jnp.swapaxes(one, -1, -2), other))
    return jnp.rad2deg(jnp.arctan2(sine, cosine))


def rigid(source, target, weights):
    """Returns the rotation (3, 3) and shift (3,) that best map source (K, 3) to target (K, 3), with weights (K,).

    Weighted least squares by Kabsch (1976), with Umeyama's sign (1991, equation 43) to exclude reflections.
    """
    share = weights / jnp.maximum(jnp.sum(weights), 1e-12)
    a, b = (jnp.sum(share[:, None] * p, 0) for p in (source, target))
    covariance = product((share[:, None] * (target - b)).T, source - a)
    u, _, vt = jnp.linalg.svd(covariance)
    sign = jnp.where(jnp.linalg.det(u) * jnp.linalg.det(vt) < 0, -1.0, 1.0)
    rotation = product(u * jnp.array([1.0, 1.0, 0.0], u.dtype), vt) + sign * product(u[:, 2:], vt[2:])
    return rotation, b - jnp.sum(rotation * a, -1)


def corners(centre, rotation, size):
    """Returns the boxes' corners (..., 8, 3) in mm; corner 4i + 2j + k is at the far end of x, y, z if i, j, k is 1."""
    shares = jnp.stack(
        jnp.meshgrid(*[jnp.array([-0.5, 0.5], at_least_float32(size).dtype)] * 3, indexing="ij"), -1
    ).reshape(8, 3)
    return centre[..., None, :] + product(shares * size[..., None, :], jnp.swapaxes(rotation, -1, -2))


def box_iou(one, other, *, count=32_768):
    """Returns the intersection over union () of two boxes, each (centre (3,), rotation (3, 3), size (3,)) in mm.

    Averages, over `count` lines along the first box's z axis, the exact length inside the second box. The lines are
    spaced so evenly (`R2`, the sequence of Roberts 2018) that the error stays below 0.001 even for boxes with nearly
    parallel faces, where a square grid gains or loses whole rows.
    """
    (centre, rotation, size), (other_centre, other_rotation, other_size) = one, other
    places = jnp.arange(1, count + 1, dtype=jnp.uint32)[:, None] * jnp.array(R2, jnp.uint32) / 2.0**32
    places = places.astype(at_least_float32(size).dtype)
    feet = jnp.pad((places + 0.5) % 1 - 0.5, ((0, 0), (0, 1)), constant_values=-0.5)
    # Each line's start and its vector to the other end, in the second box's axes and fractions of its sides.
    turn = product(other_rotation.T, rotation)
    shift = jnp.sum(other_rotation * (centre - other_centre)[:, None], 0)
    start = (shift + product(feet * size, turn.T)) / other_size
    direction = turn[:, 2] * size[2] / other_size
    parallel = jnp.abs(direction) < 1e-9
    ends = (jnp.array([-0.5, 0.5], start.dtype)[:, None, None] - start) / jnp.where(parallel, 1.0, direction)
    inside = jnp.abs(start) <= 0.5
    enter = jnp.where(parallel, jnp.where(inside, 0.0, 1.0), ends.min(0)).max(-1)
    leave = jnp.where(parallel, jnp.where(inside, 1.0, 0.0), ends.max(0)).min(-1)
    length = jnp.clip(jnp.minimum(leave, 1) - jnp.maximum(enter, 0), 0)
    intersection = jnp.mean(length) * jnp.prod(size)
    return intersection / (jnp.prod(size) + jnp.prod(other_size) - intersection)


def calibrate(points, weights, template, *, normals=None, tolerance=TOLERANCE):
    """Fits the volume's centre, rotation and three side lengths to landmarks by robust weighted least squares.

    Minimises sum_k w_k rho(|P_k (c + R (s * t_k) - p_k)|) by Gauss-Newton, where t_k are the template's shares, P_k
    removes the component along the normal of the plane in which landmark k was found, and rho is Tukey's biweight,
    which gives outliers no weight. It starts from the rigid fits that leave out one landmark each, which tolerates one
    wrong landmark, and from the fit to all of them with an initially wide tolerance, which tolerates several. The
    result with the lowest loss wins, after a penalty for unlikely sizes (`SIZE_SPREAD`). All shapes are static: the
    function can be jitted and vmapped.

    Args:
      points: (K, 3) mm, the positions of the landmarks found.
      weights: (K,) confidences, such as heatmap scores; 0 for a landmark that was not found.
      template: the landmarks' positions in the volume; its size may be wrong by 30 %.
      normals: (K, 3), unit normals of the planes in which the landmarks were found; None if all three coordinates of
        every point are known.
      tolerance: mm, the standard deviation of the errors of correct landmarks.

    Returns:
      A Calibration.
    """
    points = at_least_float32(points)
    count, dtype = len(points), points.dtype
    weights, shares, typical_size = (jnp.asarray(x, dtype) for x in (weights, template.shares, template.size))
    weights = weights / jnp.maximum(jnp.max(weights), 1e-12)
    points = jnp.where(weights[:, None] > 0, points, 0)  # points that were not found may be NaN
    middle = jnp.sum(weights[:, None] * points, 0) / jnp.maximum(jnp.sum(weights), 1e-12)
    points = jnp.where(weights[:, None] > 0, points - middle, 0)
    projection = jnp.broadcast_to(jnp.eye(3, dtype=dtype), (count, 3, 3))
    if normals is not None:
        normals = jnp.where(weights[:, None] > 0, jnp.asarray(normals, dtype), 0)
        projection = projection - normals[:, :, None] * normals[:, None, :]
    coordinates = jnp.trace(projection, axis1=1, axis2=2)  # coordinates that a landmark determines: 3, or 2 in a plane

    def difference(centre, rotation, size):
        """Returns the vectors (K, 3) in mm from the landmarks to their positions in the volume, projected by P_k."""
        positions = centre + product(shares * size, rotation.T)
        return jnp.sum(projection * (positions - points)[:, None, :], -1)

    def jacobian(rotation, size):
        """Returns the Jacobian (K, 3, 9) of `difference`: shift (mm), rotation (radians, patient's axes), log sides."""
        arms = product(shares * size, rotation.T)
        grown = rotation * (shares * size)[:, None, :]
        shift = jnp.broadcast_to(jnp.eye(3, dtype=dtype), (count, 3, 3))
        return product(projection, jnp.concatenate([shift, -cross_matrix(arms), grown], -1))

    def equations(trust, rotation, size):
        """Returns the normal matrix (9, 9) scaled to a unit diagonal, the scale (9,), and the Jacobian."""
        slope = jacobian(rotation, size)
        flat = (jnp.sqrt(trust)[:, None, None] * slope).reshape(-1, 9)
        matrix = product(flat.T, flat)
        scale = jnp.sqrt(jnp.maximum(jnp.diagonal(matrix), 1e-12))
        return matrix / scale / scale[:, None], scale, slope

    def step(volume, trust):
        centre, rotation, size = volume
        matrix, scale, slope = equations(trust, rotation, size)
        gradient = jnp.sum(trust[:, None, None] * slope * difference(*volume)[..., None], (0, 1)) / scale
        # The ridge shortens steps in undetermined directions. The solution, where the gradient is zero, does not move.
        move = -jnp.linalg.solve(matrix + 1e-5 * jnp.eye(9, dtype=dtype), gradient) / scale
        turned = product(rotation_of(jnp.rad2deg(move[3:6])), rotation)
        return centre + move[:3], turned, size * jnp.exp(jnp.clip(move[6:], -0.3, 0.3))

    def biweight(distance, limit):
        return jnp.square(jnp.clip(1 - jnp.square(distance / limit), 0))

    def length(vectors):
        return root(jnp.sum(vectors**2, -1))

    def descend(start, widths):
        rotation, shift = rigid(shares * typical_size, points, start)
        volume = shift, rotation, typical_size

        def robust_step(volume, width):
            robust_weights = weights * biweight(length(difference(*volume)), width * TUKEY * tolerance)
            return step(volume, jnp.where(jnp.isinf(width), start, robust_weights)), None

        volume, _ = lax.scan(robust_step, volume, widths)
        biweights = biweight(length(difference(*volume)), TUKEY * tolerance)
        loss = jnp.sum(weights * TUKEY**2 / 6 * (1 - biweights**1.5))
        size_deviation = jnp.log(volume[2] / typical_size) / SIZE_SPREAD
        return volume, loss + jnp.sum(size_deviation**2) / 2

    starts = jnp.concatenate([weights * (1 - jnp.eye(count, dtype=dtype)), weights[None]])
    # The first three steps from each start are plain least squares with the start's weights.
    steady = jnp.ones((count, STEPS), dtype).at[:, :3].set(jnp.inf)
    narrowing = jnp.maximum(2.0 ** jnp.linspace(4, -3, STEPS, dtype=dtype), 1).at[:3].set(jnp.inf)
    volumes, losses = jax.vmap(descend)(starts, jnp.concatenate([steady, narrowing[None]]))
    best = jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses))
    centre, rotation, size = jax.tree.map(lambda leaf: leaf[best], volumes)

    residuals = length(difference(centre, rotation, size))
    biweights = biweight(residuals, TUKEY * tolerance)
    trust = weights * biweights
    matrix, scale, _ = equations(trust, rotation, size)
    degrees_of_freedom = jnp.sum(jnp.where(trust > 0, coordinates * biweights, 0)) - 9
    variance = jnp.sum(trust * residuals**2) / jnp.maximum(degrees_of_freedom, 1e-3)
    units = jnp.concatenate([jnp.ones(3, dtype), jnp.full(3, 180 / jnp.pi, dtype), size]) / scale
    # The ridge keeps the inverse finite where the volume is `undetermined` and the inverse meaningless.
    covariance = jnp.linalg.inv(matrix + 1e-6 * jnp.eye(9, dtype=dtype)) * variance * units * units[:, None]
    undetermined = (degrees_of_freedom <= 0) | ~(jnp.linalg.eigvalsh(matrix)[0] > SINGULAR)
    agreeing = jnp.sum(weights * (residuals < TUKEY * tolerance / 2)) >= AGREEING * jnp.sum(weights)
    plausible = jnp.all(jnp.abs(jnp.log(size / typical_size)) < jnp.log(SIZE_LIMIT))
    return Calibration(
        centre=centre + middle,
        rotation=rotation,
        size=size,
        residuals=jnp.where(weights > 0, residuals, jnp.nan),
        weights=trust,
        covariance=covariance,
        contradicts=~(agreeing & plausible),
        undetermined=undetermined,
    )
