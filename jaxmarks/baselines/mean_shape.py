"""The mean training position of each landmark, predicted for every image.

It differs from the fish paper's "Mean model" in two ways: that one averages over the validation images, too, and in
pixels of the photographs; this one in those of the network's frame.
"""

import numpy as np


def fit(points: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Returns the mean (K, 2) of points (N, K, 2) over the images in which they are `visible` (N, K).

    A landmark that is visible in no image is put at the mean of all visible points; if none is visible, all are 0.
    """
    weight = visible[..., None].astype(float)
    count = weight.sum(0)
    everywhere = (points * weight).sum((0, 1)) / max(count.sum(), 1)
    return np.where(count > 0, (points * weight).sum(0) / np.maximum(count, 1), everywhere)


def predict(mean: np.ndarray, count: int) -> np.ndarray:
    """Repeats the mean (K, 2) for each of `count` images: (count, K, 2)."""
    return np.repeat(mean[None], count, axis=0)
