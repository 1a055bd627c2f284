"""Losses against their formulas in float64, and their gradients against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax, softmax

import jaxmarks
from jaxmarks.ops import heatmaps, losses


def wing(r, w=0.08, e=0.016):
    return w * np.log(1 + abs(r) / e) if abs(r) < w else abs(r) - (w - w * np.log(1 + w / e))


def soft_wing(r, w1=0.016, w2=0.16, e=0.004):
    return abs(r) if abs(r) < w1 else w2 * np.log(1 + abs(r) / e) + w1 - w2 * np.log(1 + w1 / e)


PENALTIES = {
    "mse": lambda r: r**2,
    "l1": abs,
    "smooth_l1": lambda r: r**2 / 0.1 if abs(r) < 0.05 else abs(r) - 0.025,
    "wing": wing,
    "soft_wing": soft_wing,
}


def adaptive_wing(f, t, alpha=2.1, omega=14, e=1, theta=0.5):
    p = alpha - t
    slope = omega * (1 / (1 + (theta / e) ** p)) * p * (theta / e) ** (p - 1) / e
    constant = theta * slope - omega * np.log(1 + (theta / e) ** p)
    d = abs(f - t)
    return np.where(d < theta, omega * np.log(1 + (d / e) ** p), slope * d - constant).mean()


def flat(t):
    return t.ravel() / t.sum()


MAPS = {
    "heatmap_mse": lambda f, t: ((f - t) ** 2).mean(),
    "heatmap_l1": lambda f, t: np.abs(f - t).mean(),
    "heatmap_weighted_mse": lambda f, t: ((1 + 20 * t) * (f - t) ** 2).mean(),
    "heatmap_adaptive_wing": adaptive_wing,
    "heatmap_cross_entropy": lambda f, t: -(flat(t) * log_softmax(f.ravel())).sum(),
    "heatmap_jensen_shannon": lambda f, t: jensenshannon(softmax(f.ravel()), flat(t)) ** 2,
}


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_match_their_formulas(name):
    residual = np.array([-3, -0.5, -0.05, -0.011, 0, 0.002, 0.015, 0.017, 0.079, 0.081, 0.3])
    ours = losses.named(name)(jnp.asarray(residual, jnp.float32))
    np.testing.assert_allclose(ours, [PENALTIES[name](r) for r in residual], rtol=1e-5, atol=1e-7)
    assert np.isfinite(jax.vmap(jax.grad(losses.named(name)))(jnp.asarray(residual, jnp.float32))).all()


@pytest.mark.parametrize(("name", "edge"), [("smooth_l1", 0.05), ("wing", 0.08), ("soft_wing", 0.016)])
def test_piecewise_penalties_are_continuous(name, edge):
    below, above = losses.named(name)(jnp.float32([edge * (1 - 1e-5), edge * (1 + 1e-5)]))
    np.testing.assert_allclose(below, above, rtol=1e-4)


@pytest.fixture(scope="module")
def maps():
    rng = np.random.default_rng(0)
    targets = np.asarray(heatmaps.gaussian(rng.uniform(2, 8, (2, 3, 2)).astype(np.float32), (9, 10), 1.5))
    found = 0.7 * targets + 0.4 * rng.normal(size=targets.shape)
    return found.astype(np.float32), targets


@pytest.mark.parametrize("name", MAPS)
def test_heatmap_losses_match_their_formulas(name, maps):
    found, targets = maps
    ours = getattr(jaxmarks.losses, name)(found, targets)
    assert ours.shape == (2, 3)
    expected = [[MAPS[name](*(m[b, :, :, k].astype(float) for m in maps)) for k in range(3)] for b in range(2)]
    np.testing.assert_allclose(ours, expected, rtol=2e-5)
    np.testing.assert_allclose(jax.jit(getattr(losses, name))(found, targets), ours, rtol=1e-5)


@pytest.mark.parametrize("name", MAPS)
def test_heatmap_loss_gradients_match_finite_differences(name, maps):
    found, targets = maps
    with jax.enable_x64(True):
        loss = lambda f: getattr(losses, name)(f, jnp.asarray(targets, jnp.float64)).sum()
        at = jnp.asarray(found, jnp.float64)
        gradient = jax.grad(loss)(at)
        for place in [(0, 3, 4, 1), (1, 0, 0, 2), (0, 8, 9, 0)]:
            step = jnp.zeros_like(at).at[place].set(1e-6)
            difference = (loss(at + step) - loss(at - step)) / 2e-6
            np.testing.assert_allclose(gradient[place], difference, rtol=1e-5, atol=1e-9)


# Except L1, whose slope is 1 however near the target.
@pytest.mark.parametrize("name", [name for name in MAPS if name != "heatmap_l1"])
def test_the_gradient_is_zero_where_map_equals_target(name, maps):
    _, targets = maps
    at = jnp.log(jnp.asarray(targets) + 1e-30) if name.endswith(("entropy", "shannon")) else jnp.asarray(targets)
    gradient = jax.grad(lambda f: getattr(losses, name)(f, targets).sum())(at)
    np.testing.assert_allclose(gradient, 0, atol=2e-5)


def test_jensen_shannon_is_finite_for_confident_networks():
    targets = heatmaps.gaussian(jnp.array([[[2.5, 2.5]]]), (20, 20), 0.7)
    logits = jnp.zeros((1, 20, 20, 1)).at[0, 15, 15, 0].set(300.0)
    value, gradient = jax.value_and_grad(lambda f: losses.heatmap_jensen_shannon(f, targets).sum())(logits)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-5)
    assert np.isfinite(gradient).all()


def test_unknown_losses_list_the_known_ones():
    with pytest.raises(ValueError, match="choose one of mse, l1, smooth_l1, wing, soft_wing"):
        losses.named("huber")
    with pytest.raises(
        ValueError, match="choose one of mse, l1, weighted_mse, adaptive_wing, cross_entropy, jensen_shannon"
    ):
        losses.named("dice", prefix="heatmap_")


def test_loss_names_accept_options():
    residual = jnp.linspace(-1, 1, 41)
    mine = losses.named("wing:width=0.3,epsilon=0.1")(residual)
    np.testing.assert_allclose(mine, losses.wing(residual, width=0.3, epsilon=0.1))
    assert losses.named("wing") is losses.wing and losses.named("wing:") is losses.wing
    maps, targets = jnp.full((4, 4, 1), 0.5), jnp.eye(4)[..., None]
    weighted = losses.named("weighted_mse:weight=3", prefix="heatmap_")(maps, targets)
    np.testing.assert_allclose(weighted, losses.heatmap_weighted_mse(maps, targets, weight=3.0))
    for text, message in (
        ("wing:breadth=1", "wing has no option 'breadth'; it has width, epsilon"),
        ("l1:width=1", "l1 has no option 'width'; it has no options"),
        ("wing:width=wide", "width must be a number, as 0.08"),
        ("wing:width", "width must be a number"),
        ("wing:width=nan", "width must be finite and above 0"),
        ("wing:epsilon=0", "epsilon must be finite and above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            losses.named(text)
