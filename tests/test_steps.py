"""One device and two give the same; padding weighs nothing; missing landmarks have no gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarks import heads, models, optim, steps

SIZE, LANDMARKS = (20, 24), 4


SYSTEMS = {
    "dropout": ({"name": "beetle", "width": 16, "dropout": (0.1, 0.2, 0.3, 0.5)}, {"name": "direct"}),
    "batch statistics": ({"name": "unet", "width": 4, "depth": 2}, {"name": "heatmap", "sigma": 2.0}),
}


@functools.cache
def setup(system="dropout"):
    body, head = SYSTEMS[system]
    head = heads.build(head, landmarks=LANDMARKS, size=SIZE)
    net = models.Network(models.build(body), head.layer)

    def plain(batch):
        return batch | {"images": batch["images"] / jnp.float32(255)}

    def noisy(keys, batch):
        noise = jax.vmap(lambda key: jax.random.normal(key, (*SIZE, 1)))(keys)
        return plain(batch) | {"images": plain(batch)["images"] + 0.1 * noise}

    task = steps.Task(net.apply, head.targets, head.loss, head.decode, noisy, plain)
    rng = np.random.default_rng(0)
    data = {
        "images": jnp.asarray(rng.integers(0, 256, (10, *SIZE, 1), dtype=np.uint8)),
        "points": jnp.asarray(rng.uniform(0, 20, (10, LANDMARKS, 2)), jnp.float32),
        "visible": jnp.asarray(rng.random((10, LANDMARKS)) > 0.3),
    }
    return task, data, jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, *SIZE, 1)))


def train(devices, epochs=4, system="dropout"):
    task, data, variables = setup(system)
    tx = optim.ramps((0.1, 0.01), epochs=epochs, steps_per_epoch=3)
    run = steps.runner(task, tx, devices=devices)
    state, losses = run.put(steps.create(jax.tree.map(jnp.copy, variables), tx)), []
    rows = steps.batches(np.arange(10, dtype=np.int32), 4)
    for epoch in range(epochs):
        state, loss = run.epoch(state, run.put(data), rows, jax.random.key(epoch))
        losses.append(loss)
    return losses, run.get(state)


@pytest.mark.parametrize("system", SYSTEMS)
def test_two_devices_under_pmap_train_as_one(system):
    assert jax.local_device_count() == 2
    (one, state), (two, other) = train(1, system=system), train(2, system=system)
    # Batch statistics are differences of large sums: rounding shows in what they divide.
    np.testing.assert_allclose(two, one, rtol=1e-5 if system == "dropout" else 1e-3)
    assert one[0] > 1.02 * one[-1]  # it learns, so equality says something
    assert int(state.step) == int(other.step) == 12
    for mine, theirs in zip(jax.tree.leaves(state.variables), jax.tree.leaves(other.variables), strict=True):
        np.testing.assert_allclose(theirs, mine, rtol=1e-4, atol=1e-5 if system == "dropout" else 1e-3)


def test_scanned_epoch_is_the_steps_one_by_one(monkeypatch):
    one = train(1, epochs=1)[0]
    monkeypatch.setattr(jax, "default_backend", lambda: "imagined accelerator")
    np.testing.assert_allclose(train(1, epochs=1)[0], one, rtol=1e-5)
    np.testing.assert_allclose(train(2, epochs=1)[0], one, rtol=1e-5)


def test_batches_pad_the_last_with_its_own_rows():
    np.testing.assert_array_equal(steps.batches(np.arange(5), 2), [[0, 1], [2, 3], [4, ~4]])
    np.testing.assert_array_equal(steps.batches(np.array([7, 3, 9, 5, 6]), 8), [[7, 3, 9, 5, 6, ~7, ~3, ~9]])
    np.testing.assert_array_equal(steps.batches(np.arange(4), 2), [[0, 1], [2, 3]])


def test_padding_leaves_batch_statistics_alone():
    task, data, variables = setup("batch statistics")
    tx = optim.ramps(epochs=1)
    plain = task._replace(augment=lambda keys, batch: task.plain(batch))
    run = lambda rows: steps.train_step(
        steps.create(variables, tx), data, jnp.asarray(rows), jax.random.key(0), task=plain, tx=tx
    )
    (one, (total, count)), (padded, (same, number)) = run([1, 2]), run([1, 2, ~1, ~2])
    np.testing.assert_allclose((same, number), (total, count), rtol=1e-5)
    for mine, theirs in zip(jax.tree.leaves(one.variables), jax.tree.leaves(padded.variables), strict=True):
        np.testing.assert_allclose(theirs, mine, rtol=1e-4, atol=1e-5)
    before, after = variables["batch_stats"]["body"]["bottom"], one.variables["batch_stats"]["body"]["bottom"]
    assert np.abs(after["conv1"]["norm"]["batch"]["mean"] - before["conv1"]["norm"]["batch"]["mean"]).max() > 1e-3


def test_padding_weighs_nothing_in_the_loss():
    task, data, variables = setup()
    loss = lambda rows: np.asarray(steps.loss_step(variables, data, jnp.asarray(rows), task=task, prepare=task.plain))
    np.testing.assert_allclose(loss([1, 2, ~1, ~0]), loss([1, 2]), rtol=1e-6)
    np.testing.assert_allclose(loss([1]) + loss([2]), loss([1, 2]), rtol=1e-6)


def test_a_missing_landmark_has_no_part_in_loss_or_gradient():
    task, data, variables = setup()
    moved = data | {"points": jnp.where(data["visible"][..., None], data["points"], 1e6)}
    rows, tx = jnp.arange(4), optim.ramps(epochs=1)
    states = [
        steps.train_step(steps.create(variables, tx), d, rows, jax.random.key(0), task=task, tx=tx)
        for d in (data, moved)
    ]
    for mine, theirs in zip(*(jax.tree.leaves(s) for s in states), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_batch_without_landmarks_changes_nothing():
    task, data, variables = setup()
    blind, tx = data | {"visible": jnp.zeros_like(data["visible"])}, optim.ramps(epochs=1)
    state, (total, count) = steps.train_step(
        steps.create(variables, tx), blind, jnp.arange(4), jax.random.key(0), task=task, tx=tx
    )
    assert (float(total), float(count)) == (0, 0)
    for mine, theirs in zip(jax.tree.leaves(state.variables), jax.tree.leaves(variables), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_the_statistics_of_a_batch_alone():
    """What a batch's own statistics give in evaluation is what it gives in training, whatever the running ones were."""
    task, data, variables = setup("batch statistics")
    variables = variables | {"batch_stats": jax.tree.map(lambda x: x + 7.0, variables["batch_stats"])}
    rows = jnp.array([3, 0, 5])
    found = steps.statistics_step(variables, data, rows, task=task, prepare=task.plain)
    images = task.plain({"images": data["images"][rows]})["images"]
    trained, _ = task.apply(variables, images, train=True, mutable=["batch_stats"])
    # A batch's variance is a difference of large sums in float32.
    np.testing.assert_allclose(
        task.apply(variables | {"batch_stats": found}, images, train=False), trained, atol=2e-3 * np.abs(trained).max()
    )
    first = variables["params"]["body"]["down0"]["conv1"]["conv"]["kernel"]
    convolved = jax.lax.conv_general_dilated(images, first, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    mean = found["body"]["down0"]["conv1"]["norm"]["batch"]["mean"]
    np.testing.assert_allclose(mean, np.asarray(convolved).mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
