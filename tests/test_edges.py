"""The bilateral filter and Canny's edges, compared with scikit-image and in cases known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage import feature, restoration

from jaxmarks.ops import edges


def scene(seed, shape=(40, 53)):
    """A smooth random image with a few steps, in [0, 1]; no two pixels are equal, so there are no ties."""
    rng = np.random.default_rng(seed)
    image = ndimage.gaussian_filter(rng.random(shape), 2) + 0.02 * rng.random(shape)
    for _ in range(3):
        y, x = rng.integers(0, shape[0] - 10), rng.integers(0, shape[1] - 10)
        image[y : y + rng.integers(4, 20), x : x + rng.integers(4, 20)] += rng.uniform(0.1, 0.5)
    return np.float32((image - image.min()) / np.ptp(image))


def spatial_weights(side, sigma, *, dtype=float):
    offset = np.arange(side) - side // 2
    return np.exp(-0.5 * (offset[:, None] ** 2 + offset**2) / sigma**2).astype(dtype).ravel()


@pytest.mark.parametrize(("space", "colour"), [(0.6, 0.1), (1.5, 0.3), (2.0, 5.0)])
def test_bilateral_matches_scikit_image(space, colour, monkeypatch):
    # scikit-image 0.25 and 0.26 tabulate (side + 1)^2 spatial weights but index them as side^2, which shifts each row
    # of the window against the previous one. The reference is its loop, with the table that its docstring promises.
    monkeypatch.setattr("skimage.restoration._denoise._compute_spatial_lut", spatial_weights)
    image = scene(0)
    expected = restoration.denoise_bilateral(
        image,
        win_size=2 * int(np.ceil(3 * space)) + 1,
        sigma_color=colour,
        sigma_spatial=space,
        bins=10**5,
        mode="edge",
    )
    found = edges.bilateral(jnp.asarray(image), sigma_space=space, sigma_colour=colour)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_bilateral_keeps_a_step_and_tends_to_a_gaussian():
    step = jnp.where(jnp.arange(20) < 10, 0.0, 1.0) * jnp.ones((20, 1))
    np.testing.assert_allclose(edges.bilateral(step, sigma_space=2.0, sigma_colour=0.1), step, atol=1e-6)
    # With a very large colour sigma, only the distance matters.
    image = scene(1)
    expected = ndimage.gaussian_filter(image.astype(float), 1.0, mode="nearest", radius=3)
    found = edges.bilateral(jnp.asarray(image), sigma_space=1.0, sigma_colour=1e4)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@given(seed=st.integers(0, 10_000), sigma=st.sampled_from([0.8, 1.5, 2.5]), low=st.sampled_from([0.05, 0.2]))
@settings(max_examples=25)
def test_canny_matches_scikit_image(seed, sigma, low):
    image = scene(seed)
    expected = feature.canny(image, sigma, low_threshold=low, high_threshold=2.5 * low, mode="nearest")
    found = np.asarray(jax.jit(edges.canny, static_argnames="sigma")(image, sigma=sigma, low=low, high=2.5 * low))
    # A pixel whose gradient is within rounding of a threshold may fall on either side, and its edge's tail with it.
    assert (found != expected).sum() <= 2
    assert found.any()


def test_canny_of_a_disc_is_its_circle():
    y, x = np.mgrid[:48, :48] + 0.5
    radius = np.hypot(x - 24.3, y - 22.8)
    disc = np.clip(12 - radius + 0.5, 0, 1).astype(np.float32)
    found = np.asarray(edges.canny(jnp.asarray(disc), sigma=1.0, low=0.3, high=0.6))
    assert np.abs(radius[found] - 12).max() < 1.0
    angles = np.sort(np.arctan2(y - 22.8, x - 24.3)[found])
    assert np.diff(angles).max() < 0.2  # a closed circle


def test_batches_match_single_images():
    images = np.stack([scene(seed) for seed in range(4)]).reshape(2, 2, 40, 53)
    for function in (
        lambda a: edges.canny(a, sigma=1.5, low=0.1, high=0.4),
        lambda a: edges.bilateral(a, sigma_space=1.0, sigma_colour=0.2),
    ):
        together = function(jnp.asarray(images))
        for n in np.ndindex(2, 2):
            np.testing.assert_array_equal(together[n], function(jnp.asarray(images[n])))


@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.3, 0.5, 0.7]))
def test_hysteresis_matches_connected_components(seed, share):
    rng = np.random.default_rng(seed)
    weak, strong = rng.random((20, 30)) < share, rng.random((20, 30)) < 0.02
    labels, _ = ndimage.label(weak, np.ones((3, 3)))
    expected = weak & np.isin(labels, labels[strong & weak])
    np.testing.assert_array_equal(edges.hysteresis(jnp.asarray(strong), jnp.asarray(weak)), expected)


def test_hysteresis_follows_a_long_winding_path():
    """The path winds through every second row and is much longer than the sum of the image's sides."""
    weak = np.zeros((21, 21), bool)
    weak[::2] = True
    weak[1::4, -1] = weak[3::4, 0] = True
    strong = np.zeros_like(weak)
    strong[0, 0] = True
    np.testing.assert_array_equal(edges.hysteresis(jnp.asarray(strong), jnp.asarray(weak)), weak)


def test_a_flat_image_has_no_edges_and_finite_gradients():
    flat = jnp.full((12, 12), 0.5)
    assert not edges.canny(flat, sigma=1.0, low=0.0, high=0.0).any()
    gradient = jax.grad(lambda a: edges.bilateral(a, sigma_space=1.0, sigma_colour=0.1).sum())(flat)
    np.testing.assert_allclose(gradient.sum(), 144, rtol=1e-4)  # the weights of each pixel's mean sum to 1
    assert np.isfinite(gradient).all()
