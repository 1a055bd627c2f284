"""Ensembles of regression trees (Kazemi and Sullivan, CVPR 2014) as dlib trains them: the method of ml-morph.

A cascade of trees moves all landmarks together from the mean shape, by differences between pixels near them. On a few
dozen photographs it trains in seconds. ml-morph first finds the specimen with a detector; here a specimen is taken to
lie where the mean shape does, and training starts from shapes moved about there. dlib rounds landmarks to whole pixels.
"""

import os
from typing import Any, NamedTuple

import numpy as np

from jaxmarks.baselines import mean_shape, registration
from jaxmarks.data.samples import Samples

# Coordinate by which dlib recognises a missing landmark.
MISSING = 0x7FFFFFFFFFFFF
# dlib's options that differ from its defaults, chosen on the wings (docs/measurements.md, "dlib's regression trees").
OPTIONS = {
    "cascade_depth": 15,
    "feature_pool_size": 500,
    "oversampling_amount": 100,
    "oversampling_translation_jitter": 0.1,
    "tree_depth": 3,
}


class Model(NamedTuple):
    """A trained model.

    Attributes:
      mean: (K, 2), the mean shape.
      known: (K,) bool, the landmarks that are visible in a training image.
      box: dlib's rectangle around them.
      trees: dlib's shape predictor of them; None if there are none.
    """

    mean: np.ndarray
    known: np.ndarray
    box: Any
    trees: Any


def fit(samples: Samples) -> Model:
    """Trains on samples, of which landmarks may be missing. `baselines.check` says whether dlib is installed."""
    import dlib

    mean, known = mean_shape.fit(samples.points, samples.visible), np.any(samples.visible, axis=0)
    if not known.any():
        return Model(mean, known, None, None)
    corners = mean[known].min(0), mean[known].max(0)
    margin = 0.1 * np.maximum(corners[1] - corners[0], 0.1 * np.array(samples.images.shape[2:0:-1]))
    box = dlib.rectangle(*np.concatenate([corners[0] - margin, corners[1] + margin]).round().astype(int).tolist())
    pixels = np.where(samples.visible[..., None], np.floor(samples.points).astype(np.int64), MISSING)[:, known]
    shapes = [[dlib.full_object_detection(box, [dlib.point(*xy) for xy in shape])] for shape in pixels.tolist()]
    options = dlib.shape_predictor_training_options()
    for name, value in OPTIONS.items():
        setattr(options, name, value)
    options.num_threads = os.cpu_count()
    trees = dlib.train_shape_predictor([luminance(image) for image in samples.images], shapes, options)
    return Model(mean, known, box, trees)


def predict(model: Model, images: np.ndarray) -> np.ndarray:
    """Returns points (N, K, 2) in pixels of the images (N, H, W, C); a landmark that is not known keeps its mean."""
    points = mean_shape.predict(model.mean, len(images))
    if model.trees is not None:
        for shape, image in zip(points, images, strict=True):
            shape[model.known] = [(p.x + 0.5, p.y + 0.5) for p in model.trees(luminance(image), model.box).parts()]
    return points


def luminance(image: np.ndarray) -> np.ndarray:
    """(H, W, C) uint8 -> luminance (H, W) uint8."""
    return registration.grey(image).round().astype(np.uint8)
