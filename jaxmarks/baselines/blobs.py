"""Detects objects as bright or dark spots by Laplacians of Gaussians, the classical detector of small objects."""

from typing import NamedTuple

import numpy as np
import scipy
import skimage

from jaxmarks.data.samples import stack_padded

# Ranges of sigma that are tried, in units of the boxes' median side. A Gaussian spot that looks as wide as its box has
# a sigma of about a fifth of the side; a disc that fills its box responds most at a sigma of the side / (2 sqrt 2).
RANGES = ((0.12, 0.25), (0.2, 0.3), (0.25, 0.4))
SIGMAS = 4
# Weaker responses are certainly noise (that of a Gaussian spot is at most half its contrast, in an image from 0 to 1).
FAINTEST = 0.01
# IoU from which on a spot counts as a hit, as in `jaxmarks.detection`.
OVERLAP = 0.4


class SpotDetector(NamedTuple):
    """The fitted detector of one class; sigmas and sizes in pixels.

    Attributes:
      label: the class.
      threshold: the response, of an image in [0, 1] to -sigma^2 times the Laplacian of a Gaussian, above which a spot
        is an object.
      sigmas: (smallest, largest).
      size: (width, height) of the box drawn around each spot.
      sign: 1 for spots brighter than their surroundings, -1 for darker ones.
    """

    label: int
    threshold: float
    sigmas: tuple[float, float]
    size: tuple[float, float]
    sign: int


def fit(images: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> tuple[SpotDetector, ...]:
    """Chooses for each class the range of sigmas and the threshold with the best F1 on the training images.

    Args:
      images: (N, H, W, C) uint8.
      boxes: (N, M, 4) corners in pixels.
      labels: (N, M) int; -1 where there is no box.

    Returns:
      One `SpotDetector` for each class that has a box.
    """
    grey = _grey(images)
    return tuple(_fit(grey, boxes, labels == label, int(label)) for label in np.unique(labels[labels >= 0]))


def predict(
    parameters: tuple[SpotDetector, ...], images: np.ndarray, *, limit: int = 300
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the spots of each image, the best first, including faint ones: a score of 0.5 is at the fitted threshold.

    Args:
      parameters: from `fit`.
      images: (N, H, W, C) uint8.
      limit: largest number of spots per image.

    Returns:
      boxes (N, limit, 4), scores (N, limit) and classes (N, limit) int. A score is response / (response + threshold);
      0 means no object.
    """
    per_image = []
    for image in _grey(np.asarray(images)):
        per_class = [(detector, *_spots(image, detector)) for detector in parameters]
        boxes = np.concatenate([np.zeros((0, 4)), *(b for _, b, _ in per_class)])
        scores = np.concatenate([np.zeros(0), *(r / (r + detector.threshold) for detector, _, r in per_class)])
        classes = np.concatenate([np.zeros(0, int), *(np.full(len(r), detector.label) for detector, _, r in per_class)])
        order = np.argsort(-scores, kind="stable")[:limit]
        per_image.append((boxes[order], scores[order], classes[order]))
    boxes, scores, classes = (stack_padded(column, length=limit) for column in zip(*per_image, strict=True))
    return boxes, scores, classes


def _grey(images):
    """(N, H, W, C) uint8 -> (N, H, W) in [0, 1]."""
    return images.mean(-1) / 255


def _fit(grey, boxes, mine, label):
    """Fits the `SpotDetector` of class `label`, whose boxes are those in the mask `mine` (N, M)."""
    size = np.median((boxes[..., 2:] - boxes[..., :2])[mine], axis=0)
    sign, side, best = _sign(grey, boxes, mine), float(size.mean()), (-1.0, None)
    for low, high in RANGES:
        detector = SpotDetector(label, FAINTEST, (low * side, high * side), tuple(size.tolist()), sign)
        responses, hits = [], []
        for image, image_boxes, in_class in zip(grey, boxes, mine, strict=True):
            spot_boxes, response = _spots(image, detector)
            responses.append(response)
            hits.append(_hits(spot_boxes, image_boxes[in_class]))
        f1, threshold = _best(np.concatenate(responses), np.concatenate(hits), mine.sum())
        if f1 > best[0]:
            best = f1, detector._replace(threshold=threshold)
    return best[1]


def _sign(grey, boxes, mine):
    """Returns 1 if the boxes' centres are on average brighter than their images' means, else -1."""
    contrasts = []
    for image, image_boxes, in_class in zip(grey, boxes, mine, strict=True):
        centres = ((image_boxes[:, :2] + image_boxes[:, 2:]) / 2)[in_class]
        column, row = (np.clip(centres[:, i].astype(int), 0, image.shape[1 - i] - 1) for i in (0, 1))
        contrasts.append(image[row, column] - image.mean())
    return 1 if np.concatenate(contrasts).mean() >= 0 else -1


def _spots(image, spots):
    """Returns boxes (L, 4) and responses (L,) of the spots in an image (H, W), the strongest first."""
    image = spots.sign * image
    low, high = spots.sigmas
    blobs = skimage.feature.blob_log(image, low, high, SIGMAS, threshold=FAINTEST)
    row, column, sigma = blobs.T
    responses = np.zeros(len(blobs))
    for s in np.unique(sigma):
        laplacian = -(s**2) * scipy.ndimage.gaussian_laplace(image, s)
        at_scale = sigma == s
        responses[at_scale] = laplacian[row[at_scale].astype(int), column[at_scale].astype(int)]
    centre = np.stack([column, row], axis=-1) + 0.5
    half = np.array(spots.size) / 2
    order = np.argsort(-responses, kind="stable")
    return np.concatenate([centre - half, centre + half], axis=-1)[order], responses[order]


def _hits(found, true):
    """Marks the boxes (L, 4), the best first, that match a true one (M, 4) which no better box has matched."""
    free, hits = np.ones(len(true), bool), np.zeros(len(found), bool)
    overlap = _iou(found[:, None], true[None])
    for i in range(len(found) if len(true) else 0):
        candidates = np.where(free, overlap[i], -1)
        k = int(np.argmax(candidates))
        if candidates[k] >= OVERLAP:
            free[k], hits[i] = False, True
    return hits


def _iou(a, b):
    area = lambda box: np.prod(np.maximum(box[..., 2:] - box[..., :2], 0), axis=-1)
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    shared = area(np.concatenate([low, high], axis=-1))
    return shared / np.maximum(area(a) + area(b) - shared, 1e-9)


def _best(responses, hits, total):
    """Returns the best F1 over all thresholds, and its threshold: halfway to the next lower response."""
    order = np.argsort(-responses, kind="stable")
    if not len(order):
        return 0.0, FAINTEST
    f1 = 2 * np.cumsum(hits[order]) / (np.arange(1, len(order) + 1) + total)
    k = int(np.argmax(f1))
    below = responses[order[k + 1]] if k + 1 < len(order) else FAINTEST
    return float(f1[k]), float((responses[order[k]] + below) / 2)
