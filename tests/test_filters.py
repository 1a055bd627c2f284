"""Separable filters against scipy."""

import jax
import numpy as np
import pytest
from scipy import ndimage

from jaxmarks.ops import filters


@pytest.mark.parametrize(("mode", "theirs"), [("constant", "constant"), ("edge", "nearest")])
def test_separable_matches_scipy_along_each_axis(mode, theirs):
    images = np.random.default_rng(0).normal(size=(2, 9, 7, 3)).astype(np.float32)
    weights = [0.1, 0.2, 0.4, 0.5, -0.3]
    expected = images
    for axis in (1, 2):
        expected = ndimage.correlate1d(expected, weights, axis, mode=theirs)
    one = lambda x: filters.separable(x, weights, (-3, -2), mode=mode)
    for found in (one(images), jax.jit(one)(images), jax.vmap(one)(images)):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_gaussian_weights_match_scipy():
    impulse = np.zeros(11)
    impulse[5] = 1
    expected = ndimage.gaussian_filter1d(impulse, 1.3, radius=5)
    np.testing.assert_allclose(filters.gaussian_weights(1.3, 5), expected, rtol=1e-12)
