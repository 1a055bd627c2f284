"""The image-processing method that the beetle paper compares with: segmentation, registration of outlines, SIFT.

The anatomical part is segmented in a model image and in a new one, the two outlines are aligned (principal axes, then
iterative closest points), the model's landmarks are transferred, and each is moved within a small neighbourhood to
where the SIFT descriptor resembles the model's most. The part must stand out from its background.
"""

import itertools
from typing import NamedTuple

import numpy as np
import scipy
import skimage

from jaxmarks.baselines import mean_shape
from jaxmarks.data.samples import Samples

# Width in px that is fine enough for outlines and descriptors: larger frames are downscaled, but to no less.
FINE = 320


class Model(NamedTuple):
    """The model image's data, which are transferred to other images.

    Attributes:
      outline: (M, 2) of the model image, None if it could not be segmented.
      opening: how far the masks are opened (morphologically), in pixels.
      points: (K, 2) landmarks.
      descriptors: (K, D) of the landmarks.
      size: (H, W) of the downscaled frame.
      factor: by which the frame is downscaled; all of the above is in downscaled pixels.
    """

    outline: np.ndarray | None
    opening: int
    points: np.ndarray
    descriptors: np.ndarray
    size: tuple[int, int]
    factor: int


def fit(samples: Samples, *, candidates: int = 3, judges: int = 10) -> Model:
    """Chooses the model among the `candidates` images nearest to the mean shape that can be segmented.

    Each is tried with a small opening of the mask and with one that removes legs and hairs. The image and opening with
    the smallest median error on `judges` training images win: a model whose outline includes some background registers
    badly everywhere. Landmarks that the model image lacks are taken from the mean shape.
    """
    mean = mean_shape.fit(samples.points, samples.visible)
    distance = np.linalg.norm(samples.points - mean, axis=-1)
    rank = np.where(samples.visible, distance, 0).sum(1) / np.maximum(samples.visible.sum(1), 1)
    order = np.argsort(rank + 1e6 * (~samples.visible).sum(1), kind="stable")  # complete images first
    usable: list[Model] = []
    for opening in sorted({1, max(1, samples.images.shape[2] // downscale_factor(samples.images) // 64)}):
        models = (model_of(samples, i, mean, opening) for i in order)
        usable += itertools.islice((m for m in models if m.outline is not None), candidates)
    if not usable:
        return model_of(samples, order[0], mean, 1)
    jury = samples.take(order[:: max(1, len(order) // judges)][:judges])

    def error(model):
        points, _ = predict(model, jury.images)
        return np.median(np.linalg.norm(points - jury.points, axis=-1)[jury.visible])

    return min(usable, key=error) if jury.visible.any() else usable[0]


def model_of(samples: Samples, i: int, mean: np.ndarray, opening: int) -> Model:
    """Makes a model of sample `i`; its outline is None if the sample cannot be segmented."""
    factor = downscale_factor(samples.images)
    image = downscale(samples.images[i], factor)
    points = np.where(samples.visible[i][:, None], samples.points[i], mean) / factor
    return Model(outline(image, opening), opening, points, describe(grey(image), points), image.shape[:2], factor)


def downscale_factor(images) -> int:
    """Returns the factor by which images (N, H, W, C) are downscaled."""
    return max(1, images.shape[2] // FINE)


def downscale(image: np.ndarray, factor: int) -> np.ndarray:
    """Downscales an image (H, W, C) uint8 to the means of `factor` x `factor` pixels; incomplete blocks are dropped."""
    height, width = (side - side % factor for side in image.shape[:2])
    means = skimage.transform.downscale_local_mean(image[:height, :width], (factor, factor, 1))
    return means.round().astype(np.uint8)


def predict(model: Model, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns landmarks (N, K, 2) in images (N, H, W, C) uint8, and whether each image was registered (N,).

    The images have the size of those in `fit`. Where segmentation fails, the landmarks are the model's, unchanged.
    """
    points, registered = [], []
    for image in images:
        image = downscale(image, model.factor)
        edge = outline(image, model.opening)
        registered.append(model.outline is not None and edge is not None)
        if model.outline is None or edge is None:
            points.append(model.points)
        else:
            points.append(refine(model, image, *register(model.outline, edge)))
    return model.factor * np.stack(points), np.array(registered)


def grey(image: np.ndarray) -> np.ndarray:
    """(H, W, C) uint8 -> luminance (H, W) float64."""
    return image[..., 0].astype(float) if image.shape[-1] == 1 else image @ np.array([0.299, 0.587, 0.114])


def outline(image: np.ndarray, opening: int = 1) -> np.ndarray | None:
    """Returns the border (M, 2) of the largest part that stands out from the background, or None if there is none.

    A part of less than 1 % or more than 90 % of the image does not count.
    """
    smooth = scipy.ndimage.gaussian_filter(grey(image), 1.0)
    if np.ptp(smooth) < 8:
        return None
    mask = smooth > skimage.filters.threshold_otsu(smooth)
    rim = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    mask = scipy.ndimage.binary_opening(mask if rim.mean() < 0.5 else ~mask, iterations=opening)
    labels, count = scipy.ndimage.label(scipy.ndimage.binary_fill_holes(mask))
    if not count:
        return None
    sizes = np.bincount(labels.ravel())[1:]
    part = labels == 1 + sizes.argmax()
    if not 0.01 < part.mean() < 0.9:
        return None
    border = part & ~scipy.ndimage.binary_erosion(part)
    rows, columns = np.nonzero(border)
    return np.column_stack([columns + 0.5, rows + 0.5])


def register(source: np.ndarray, target: np.ndarray, *, iterations: int = 25, keep: float = 0.8):
    """Finds the similarity x -> x @ linear.T + shift that aligns the outline `source` (M, 2) with `target` (N, 2).

    Starts from the principal axes, in both directions, and runs iterative closest points, of which only the nearest
    share `keep` counts. The photographs of a dataset are taken in the same pose, so the start that turns by more than a
    right angle wins only if it ends much nearer.
    """
    tree = scipy.spatial.cKDTree(target)
    best = (np.inf, np.eye(2), np.zeros(2))
    scale = np.sqrt(target.var(0).sum() / source.var(0).sum())
    turn = (principal_angle(target) - principal_angle(source) + np.pi / 2) % np.pi - np.pi / 2
    for angle, patience in ((turn, 1.0), (turn + np.pi, 0.7)):
        linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        shift = target.mean(0) - linear @ source.mean(0)
        for _ in range(iterations):
            distance, nearest = tree.query(source @ linear.T + shift)
            near = distance <= np.quantile(distance, keep)
            linear, shift = similarity(source[near], target[nearest[near]])
        residual = np.sort(tree.query(source @ linear.T + shift)[0])[: int(keep * len(source))].mean()
        if residual < patience * best[0]:
            best = (residual, linear, shift)
    return best[1:]


def principal_angle(points: np.ndarray) -> float:
    """Returns the direction of the longest axis of points (M, 2), in radians."""
    vector = np.linalg.eigh(np.cov(points.T))[1][:, -1]
    return float(np.arctan2(vector[1], vector[0]))


def similarity(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fits the least-squares similarity (linear (2, 2), shift (2,)) of corresponding points (M, 2) (Umeyama 1991)."""
    a, b = source - source.mean(0), target - target.mean(0)
    u, spread, vt = np.linalg.svd(b.T @ a)
    sign = np.array([1.0, np.sign(np.linalg.det(u @ vt))])
    linear = (u * sign) @ vt * ((spread * sign).sum() / (a**2).sum())
    return linear, target.mean(0) - linear @ source.mean(0)


def refine(model: Model, image: np.ndarray, linear: np.ndarray, shift: np.ndarray, *, reach: float = 0.025):
    """Transfers the model's landmarks to the image and moves each, within `reach` of the width, to the best descriptor.

    Moves are penalised by their squared length.
    """
    # The image is warped into the model's frame, so that descriptors need neither rotation nor scale of their own.
    centres = np.stack(np.meshgrid(*(np.arange(n) + 0.5 for n in model.size[::-1])), -1) @ linear.T + shift - 0.5
    warped = scipy.ndimage.map_coordinates(grey(image), [centres[..., 1], centres[..., 0]], order=1, mode="nearest")
    radius = max(1, round(reach * model.size[1]))
    steps = np.stack(np.meshgrid(*[np.arange(-radius, radius + 1.0)] * 2), -1).reshape(-1, 2)
    candidates = model.points[:, None] + steps
    descriptors = describe(warped, candidates.reshape(-1, 2)).reshape(*candidates.shape[:2], -1)
    cost = ((descriptors - model.descriptors[:, None]) ** 2).sum(-1) + 0.2 * (steps**2).sum(-1) / radius**2
    moved = candidates[np.arange(len(candidates)), cost.argmin(1)]
    return moved @ linear.T + shift


def describe(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Computes upright single-scale SIFT descriptors (M, 128) at points (M, 2) of an image (H, W).

    They have 4x4 cells of 8 orientations.
    """
    cell = max(2.0, image.shape[1] / 48)
    smooth = scipy.ndimage.gaussian_filter(image, 1.0)
    dy, dx = np.gradient(smooth)
    angle = np.arctan2(dy, dx)[None] - np.arange(8)[:, None, None] * np.pi / 4
    maps = np.hypot(dx, dy) * np.maximum(np.cos(angle), 0) ** 4
    maps = np.stack([scipy.ndimage.gaussian_filter(m, cell / 2) for m in maps])
    offsets = np.stack(np.meshgrid(*[(np.arange(4) - 1.5) * cell] * 2), -1).reshape(-1, 2)
    places = points[:, None] + offsets - 0.5
    values = np.stack(
        [scipy.ndimage.map_coordinates(m, [places[..., 1], places[..., 0]], order=1, mode="nearest") for m in maps], -1
    ).reshape(len(points), -1)
    unit = lambda v: v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-9)
    return unit(np.minimum(unit(values), 0.2))
