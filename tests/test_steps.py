"""One device and two give the same; padding weighs nothing; missing landmarks have no gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarks import heads, models, optim, steps

SIZE, LANDMARKS = (20, 24), 4


def setup(dropout=(0.1, 0.2, 0.3, 0.5)):
    head = heads.build({"name": "direct"}, landmarks=LANDMARKS, size=SIZE)
    net = models.Network(models.build({"name": "beetle", "width": 16, "dropout": dropout}), head.layer)

    def plain(batch):
        return batch | {"images": batch["images"] / jnp.float32(255)}

    def noisy(keys, batch):
        noise = jax.vmap(lambda key: jax.random.normal(key, (*SIZE, 1)))(keys)
        return plain(batch) | {"images": plain(batch)["images"] + 0.1 * noise}

    apply = lambda params, images, **how: net.apply({"params": params}, images, **how)
    task = steps.Task(apply, head.targets, head.loss, head.decode, noisy, plain)
    rng = np.random.default_rng(0)
    data = {
        "images": jnp.asarray(rng.integers(0, 256, (10, *SIZE, 1), dtype=np.uint8)),
        "points": jnp.asarray(rng.uniform(0, 20, (10, LANDMARKS, 2)), jnp.float32),
        "visible": jnp.asarray(rng.random((10, LANDMARKS)) > 0.3),
    }
    params = net.init(jax.random.key(0), jnp.zeros((1, *SIZE, 1)))["params"]
    return task, data, params


def train(devices, epochs=4):
    task, data, params = setup()
    tx = optim.ramps((0.1, 0.01), epochs=epochs, steps_per_epoch=3)
    run = steps.runner(task, tx, devices=devices)
    state, losses = run.put(steps.create(jax.tree.map(jnp.copy, params), tx)), []
    rows = steps.batches(np.arange(10, dtype=np.int32), 4)
    for epoch in range(epochs):
        state, loss = run.epoch(state, run.put(data), rows, jax.random.key(epoch))
        losses.append(loss)
    return losses, run.get(state)


def test_two_devices_under_pmap_train_as_one():
    assert jax.local_device_count() == 2
    (one, state), (two, other) = train(1), train(2)
    np.testing.assert_allclose(two, one, rtol=1e-5)
    assert one[0] > 1.02 * one[-1]  # it learns, so equality says something
    assert int(state.step) == int(other.step) == 12
    for mine, theirs in zip(jax.tree.leaves(state.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_allclose(theirs, mine, rtol=1e-4, atol=1e-6)


def test_scanned_epoch_is_the_steps_one_by_one(monkeypatch):
    one = train(1, epochs=1)[0]
    monkeypatch.setattr(jax, "default_backend", lambda: "imagined accelerator")
    np.testing.assert_allclose(train(1, epochs=1)[0], one, rtol=1e-5)
    np.testing.assert_allclose(train(2, epochs=1)[0], one, rtol=1e-5)


def test_batches_pad_the_last_with_minus_one():
    np.testing.assert_array_equal(steps.batches(np.arange(5), 2), [[0, 1], [2, 3], [4, -1]])


def test_padding_weighs_nothing_in_the_loss():
    task, data, params = setup()
    loss = lambda rows: np.asarray(steps.loss_step(params, data, jnp.asarray(rows), task=task, prepare=task.plain))
    np.testing.assert_allclose(loss([1, 2, -1, -1]), loss([1, 2]), rtol=1e-6)
    np.testing.assert_allclose(loss([1]) + loss([2]), loss([1, 2]), rtol=1e-6)


def test_a_missing_landmark_has_no_part_in_loss_or_gradient():
    task, data, params = setup()
    moved = data | {"points": jnp.where(data["visible"][..., None], data["points"], 1e6)}
    rows, tx = jnp.arange(4), optim.ramps(epochs=1)
    states = [
        steps.train_step(steps.create(params, tx), d, rows, jax.random.key(0), task=task, tx=tx) for d in (data, moved)
    ]
    for mine, theirs in zip(*(jax.tree.leaves(s) for s in states), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_batch_without_landmarks_changes_nothing():
    task, data, params = setup()
    blind, tx = data | {"visible": jnp.zeros_like(data["visible"])}, optim.ramps(epochs=1)
    state, (total, count) = steps.train_step(
        steps.create(params, tx), blind, jnp.arange(4), jax.random.key(0), task=task, tx=tx
    )
    assert (float(total), float(count)) == (0, 0)
    for mine, theirs in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("loss", ["mse", "l1", "smooth_l1"])
def test_direct_head_against_its_formula(loss):
    head = heads.build({"name": "direct", "loss": loss}, landmarks=2, size=(192, 256))
    points = jnp.float32([[[128, 96], [256, 0]]])
    targets = head.targets({"points": points})
    np.testing.assert_allclose(targets, [[[0, 0], [1, -1]]])  # x' = (x - 128) / 128, y' = (y - 96) / 96
    np.testing.assert_allclose(head.decode(targets)[0], points)
    residual = np.float32([[[0.5, -0.02], [0.1, 3]]])
    each = {
        "mse": residual**2,
        "l1": np.abs(residual),
        "smooth_l1": np.where(np.abs(residual) < 0.05, residual**2 / 0.1, np.abs(residual) - 0.025),
    }[loss]
    total, count = head.loss(targets + residual, targets, jnp.array([[True, False]]))
    np.testing.assert_allclose([total, count], [each[0, 0].sum(), 2], rtol=1e-5)
