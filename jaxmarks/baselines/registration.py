"""The image-processing method that the beetle paper compares with: segmentation, registration of outlines, SIFT.

The part is segmented in a model image and in a new one, the outlines are brought to coincide (principal axes, then
iterative closest points), the model's landmarks are carried over, and each is moved within a small neighbourhood to
where a SIFT descriptor resembles the model's most. It needs a part that stands out from its background.
"""

import itertools
from typing import NamedTuple

import numpy as np
import scipy
import skimage

from jaxmarks.baselines import mean_shape
from jaxmarks.data.samples import Samples

# So many pixels across are fine enough for outlines and descriptors: larger frames are made coarser, to no fewer.
FINE = 320


class Model(NamedTuple):
    """What is carried over to other images.

    Attributes:
      outline: (M, 2) of the model image, None where it could not be segmented.
      opening: of the masks, in pixels.
      points: (K, 2) landmarks.
      descriptors: (K, D) of the landmarks.
      size: (H, W) of the frame as it is registered.
      factor: how much coarser that is; all of the above is in its pixels.
    """

    outline: np.ndarray | None
    opening: int
    points: np.ndarray
    descriptors: np.ndarray
    size: tuple[int, int]
    factor: int


def fit(samples: Samples, *, candidates: int = 3, judges: int = 10) -> Model:
    """Takes as model one of the `candidates` images nearest to the mean shape that can be segmented.

    Each is tried with a little opening of the mask and with one that takes off legs and hairs. The pair with the
    smallest median error on `judges` training images wins: a model whose outline took in some background registers
    badly everywhere. Landmarks that the model image lacks are taken from the mean shape.
    """
    mean = mean_shape.fit(samples.points, samples.visible)
    distance = np.linalg.norm(samples.points - mean, axis=-1)
    rank = np.where(samples.visible, distance, 0).sum(1) / np.maximum(samples.visible.sum(1), 1)
    order = np.argsort(rank + 1e6 * (~samples.visible).sum(1), kind="stable")  # complete images first
    usable: list[Model] = []
    for opening in sorted({1, max(1, samples.images.shape[2] // factor_of(samples.images) // 64)}):
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
    """The model that sample `i` makes; its outline is None where it cannot be segmented."""
    factor = factor_of(samples.images)
    image = coarser(samples.images[i], factor)
    points = np.where(samples.visible[i][:, None], samples.points[i], mean) / factor
    return Model(outline(image, opening), opening, points, describe(grey(image), points), image.shape[:2], factor)


def factor_of(images) -> int:
    """How much coarser images (N, H, W, C) are made."""
    return max(1, images.shape[2] // FINE)


def coarser(image: np.ndarray, factor: int) -> np.ndarray:
    """An image (H, W, C) uint8 whose pixels are the means of `factor` x `factor` of it; those left over are left out."""
    height, width = (side - side % factor for side in image.shape[:2])
    means = skimage.transform.downscale_local_mean(image[:height, :width], (factor, factor, 1))
    return means.round().astype(np.uint8)


def predict(model: Model, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks (N, K, 2) in images (N, H, W, C) uint8 of the model's frame, and whether each was registered (N,).

    Where the segmentation fails the model's landmarks stay where they are.
    """
    points, registered = [], []
    for image in images:
        image = coarser(image, model.factor)
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
    """The border (M, 2) of the part that stands out from the background, or None where nothing does."""
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
    """The similarity x -> x @ linear.T + shift that lays the outline `source` (M, 2) on `target` (N, 2).

    Starts from the principal axes in both of their directions and iterates closest points, of which the nearest share
    `keep` counts. Photographs of one kind are taken alike, so the start that turns by more than a right angle wins only
    if it ends much nearer.
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
    """The direction of the longest axis of points (M, 2), in radians."""
    vector = np.linalg.eigh(np.cov(points.T))[1][:, -1]
    return float(np.arctan2(vector[1], vector[0]))


def similarity(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least-squares similarity (linear (2, 2), shift (2,)) of corresponding points (M, 2) (Umeyama 1991)."""
    a, b = source - source.mean(0), target - target.mean(0)
    u, spread, vt = np.linalg.svd(b.T @ a)
    sign = np.array([1.0, np.sign(np.linalg.det(u @ vt))])
    linear = (u * sign) @ vt * ((spread * sign).sum() / (a**2).sum())
    return linear, target.mean(0) - linear @ source.mean(0)


def refine(model: Model, image: np.ndarray, linear: np.ndarray, shift: np.ndarray, *, reach: float = 0.025):
    """The model's landmarks in the image: carried over, then moved within `reach` of the width by their descriptors."""
    # The image is laid into the model's frame, so that descriptors need neither rotation nor scale of their own.
    centres = np.stack(np.meshgrid(*(np.arange(n) + 0.5 for n in model.size[::-1])), -1) @ linear.T + shift - 0.5
    laid = scipy.ndimage.map_coordinates(grey(image), [centres[..., 1], centres[..., 0]], order=1, mode="nearest")
    radius = max(1, round(reach * model.size[1]))
    steps = np.stack(np.meshgrid(*[np.arange(-radius, radius + 1.0)] * 2), -1).reshape(-1, 2)
    candidates = model.points[:, None] + steps
    found = describe(laid, candidates.reshape(-1, 2)).reshape(*candidates.shape[:2], -1)
    cost = ((found - model.descriptors[:, None]) ** 2).sum(-1) + 0.2 * (steps**2).sum(-1) / radius**2
    moved = candidates[np.arange(len(candidates)), cost.argmin(1)]
    return moved @ linear.T + shift


def describe(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """SIFT descriptors (M, 128) at points (M, 2) of an image (H, W): 4x4 cells of 8 orientations, upright, one scale."""
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
