"""Training steps: one device and two agree, padding has no weight, missing landmarks have no gradient."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmarks import augment, heads, models, optim, steps
from jaxmarks.models import layers
from jaxmarks.train import entries

SIZE, LANDMARKS = (20, 24), 4


SYSTEMS = {
    "dropout": ({"name": "beetle", "width": 16, "dropout": (0.1, 0.2, 0.3, 0.5)}, {"name": "direct"}),
    "batch statistics": ({"name": "unet", "width": 4, "depth": 1}, {"name": "heatmap", "sigma": 2.0}),
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

    task = steps.Task(net.apply, head, noisy, plain)
    rng = np.random.default_rng(0)
    data = {
        "images": jnp.asarray(rng.integers(0, 256, (10, *SIZE, 1), dtype=np.uint8)),
        "points": jnp.asarray(rng.uniform(0, 20, (10, LANDMARKS, 2)), jnp.float32),
        "visible": jnp.asarray(rng.random((10, LANDMARKS)) > 0.3),
    }
    return task, data, jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, *SIZE, 1)))


def stepped(task, tx):
    """The training step, compiled."""
    return jax.jit(functools.partial(steps.train_step, task=task, tx=tx))


def train(devices, epochs=4, system="dropout", mixup=0.0):
    task, data, variables = setup(system)
    tx = optim.ramps((0.1, 0.01), epochs=epochs, steps_per_epoch=3)
    run = steps.runner(task, tx=tx, devices=devices, mixup=mixup)
    state, losses = run.put(steps.create(variables, tx)), []
    rows = steps.batches(np.arange(10, dtype=np.int32), 4)
    for epoch in range(epochs):
        state, found = run.run(state, run.put(data), rows, jax.random.key(epoch))
        total, count = steps.summed(found)
        losses.append(total / count)
    return losses, run.get(state)


@pytest.mark.parametrize(("system", "mixup"), [("dropout", 0.75), ("batch statistics", 0.0)])
def test_two_devices_under_pmap_train_like_one(system, mixup):
    assert jax.local_device_count() == 2
    (one, state), (two, other) = (train(devices, system=system, mixup=mixup) for devices in (1, 2))
    # Batch variances are differences of large sums: their rounding errors show in what is divided by them.
    np.testing.assert_allclose(two, one, rtol=1e-5 if system == "dropout" else 1e-3)
    assert one[0] > 1.02 * one[-1]  # the loss falls, so that equality is meaningful
    assert int(state.step) == int(other.step) == 12
    for mine, theirs in zip(jax.tree.leaves(state.variables), jax.tree.leaves(other.variables), strict=True):
        np.testing.assert_allclose(theirs, mine, rtol=1e-4, atol=1e-5 if system == "dropout" else 1e-3)


def test_scanned_epoch_equals_single_steps(monkeypatch):
    one = train(1, epochs=1)[0]
    monkeypatch.setattr(jax, "default_backend", lambda: "imagined accelerator")
    np.testing.assert_allclose(train(1, epochs=1)[0], one, rtol=1e-5)
    np.testing.assert_allclose(train(2, epochs=1)[0], one, rtol=1e-5)


@pytest.mark.parametrize("numbers", [(0, 0, 1), (1, 1, 1)])
def test_each_batch_uses_its_task_scanned_or_not(numbers, monkeypatch):
    task, data, variables = setup()
    tx = optim.ramps((0.1, 0.01), epochs=1, steps_per_epoch=3)
    others = task._replace(augment=lambda keys, batch: task.plain(batch))
    rows, key = steps.batches(np.arange(10, dtype=np.int32), 4), jax.random.key(0)

    def losses(*tasks, numbers):
        run = steps.runner(*tasks, tx=tx)
        return steps.summed(run.run(steps.create(variables, tx), data, rows, key, task_index=np.array(numbers))[1])

    one = losses(task, others, numbers=numbers)
    alone = losses(others, numbers=(0, 0, 0))
    assert (one == alone) == (numbers == (1, 1, 1))
    monkeypatch.setattr(jax, "default_backend", lambda: "imagined accelerator")
    assert losses(task, others, numbers=numbers) == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize("devices", [1, 2])
def test_streamed_images_train_like_resident_ones_also_mid_epoch(devices):
    task, data, variables = setup("batch statistics")
    tx = optim.ramps((0.1, 0.01), epochs=1, steps_per_epoch=3)
    run, key = steps.runner(task, tx=tx, devices=devices), jax.random.key(0)
    rows = steps.batches(np.arange(10, dtype=np.int32)[::-1], 4)
    fresh = lambda: run.put(steps.create(variables, tx))
    read = []

    def stream(parts):
        for part in parts:
            read.append(part)
            yield np.asarray(data["images"])[steps.samples_of(part, 1)]

    resident, found = run.run(fresh(), run.put(data), rows, key)
    rest = run.put({name: array for name, array in data.items() if name != "images"})
    state, first = run.run(fresh(), rest, rows[:2], key, 0, stream)
    state, last = run.run(state, rest, rows[2:], key, 2, stream)
    assert steps.summed(first + last) == pytest.approx(steps.summed(found), rel=1e-6)
    assert [part.shape for part in read] == [(4,) if devices == 1 else (2, 2)] * 3
    for mine, theirs in zip(jax.tree.leaves(run.get(resident)), jax.tree.leaves(run.get(state)), strict=True):
        np.testing.assert_array_equal(theirs, mine)


@pytest.mark.parametrize("devices", [1, 2])
def test_second_step_does_not_recompile(devices):
    task, data, variables = setup("dropout")
    tx = optim.ramps((0.1, 0.01), epochs=1, steps_per_epoch=3)
    run, events = steps.runner(task, tx=tx, devices=devices), []
    state, data = run.put(steps.create(variables, tx)), run.put(data)
    rows, key = steps.batches(np.arange(4, dtype=np.int32), 4), jax.random.key(0)
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: events.append(event))
    compilations = lambda: sum("backend_compile" in event for event in events)
    state, _ = run.run(state, data, rows, key)
    first = compilations()
    run.run(state, data, rows, key)
    assert compilations() == first > 0


def test_last_batch_is_padded_with_its_inverted_rows():
    np.testing.assert_array_equal(steps.batches(np.arange(5), 2), [[0, 1], [2, 3], [4, ~4]])
    np.testing.assert_array_equal(steps.batches(np.array([7, 3, 9, 5, 6]), 8), [[7, 3, 9, 5, 6, ~7, ~3, ~9]])
    np.testing.assert_array_equal(steps.batches(np.arange(4), 2), [[0, 1], [2, 3]])


def test_row_is_sample_times_versions_plus_version():
    data = {"images": jnp.arange(4), "visible": jnp.ones((4, 1), bool)}
    # With seven versions: the first and last of sample 0, the first of 1, the last of 3; as padding, the last of 1.
    rows = np.array([0, 6, 7, 27, ~13])
    batch = steps.gather(data, jnp.asarray(rows), 7)
    assert batch["index"].tolist() == batch["images"].tolist() == [0, 0, 1, 3, 1]
    assert batch["version"].tolist() == [0, 6, 0, 6, 6]
    assert batch["real"].tolist() == [True] * 4 + [False]
    assert steps.samples_of(rows, 7).tolist() == [0, 0, 1, 3, 1]


def test_objects_need_no_points():
    objects = {"images": jnp.zeros((4, *SIZE, 1)), "boxes": jnp.ones((4, 2, 4)), "labels": jnp.zeros((4, 2), jnp.int32)}
    batch = steps.gather(objects, jnp.array([3, ~3]), 1)
    assert not {"points", "visible", "marked"} & set(batch) and batch["real"].tolist() == [True, False]
    augmented = augment.build({"name": "modern"}, channels=1).apply(
        steps.keys_of(jax.random.key(0), batch["index"]), batch
    )
    assert set(augmented) == set(batch)
    head = heads.build({"name": "centre"}, classes=1, sizes=(4.0, 4.0), size=SIZE)
    outputs = jnp.zeros((2, *SIZE, 5))
    task = steps.Task(lambda *_, **__: outputs, head, None, lambda batch: batch)
    assert list(steps.valid_step({}, objects, jnp.array([3, ~3]), task=task, prepare=task.plain)) == ["loss"]


def test_padding_does_not_affect_batch_statistics():
    task, data, variables = setup("batch statistics")
    tx = optim.ramps(epochs=1)
    plain = task._replace(augment=lambda keys, batch: task.plain(batch))
    run = lambda rows: stepped(plain, tx)(steps.create(variables, tx), data, jnp.asarray(rows), jax.random.key(0))
    (one, (total, count)), (padded, (same, number)) = run([1, 2]), run([1, 2, ~1, ~2])
    np.testing.assert_allclose((same, number), (total, count), rtol=1e-5)
    for mine, theirs in zip(jax.tree.leaves(one.variables), jax.tree.leaves(padded.variables), strict=True):
        np.testing.assert_allclose(theirs, mine, rtol=1e-4, atol=1e-5)
    before, after = variables["batch_stats"]["body"]["bottom"], one.variables["batch_stats"]["body"]["bottom"]
    assert np.abs(after["conv1"]["norm"]["batch"]["mean"] - before["conv1"]["norm"]["batch"]["mean"]).max() > 1e-3


def test_padding_has_no_weight_in_the_loss():
    task, data, variables = setup()
    data = data | {"delta": jnp.ones(10)}
    valid = jax.jit(functools.partial(steps.valid_step, task=task, prepare=task.plain))
    judge = lambda rows: valid(variables, data, jnp.asarray(rows))
    loss = lambda rows: np.asarray(list(judge(rows).values()))
    np.testing.assert_allclose(loss([1, 2, ~1, ~0]), loss([1, 2]), rtol=1e-6)
    np.testing.assert_allclose(loss([1]) + loss([2]), loss([1, 2]), rtol=1e-6)


def test_missing_landmark_does_not_affect_loss_or_gradient():
    task, data, variables = setup()
    moved = data | {"points": jnp.where(data["visible"][..., None], data["points"], 1e6)}
    rows, tx = jnp.arange(4), optim.ramps(epochs=1)
    step = stepped(task, tx)
    states = [step(steps.create(variables, tx), d, rows, jax.random.key(0)) for d in (data, moved)]
    for mine, theirs in zip(*(jax.tree.leaves(s) for s in states), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_batch_without_landmarks_changes_no_variables():
    task, data, variables = setup()
    blind, tx = data | {"visible": jnp.zeros_like(data["visible"])}, optim.ramps(epochs=1)
    state, (total, count) = stepped(task, tx)(steps.create(variables, tx), blind, jnp.arange(4), jax.random.key(0))
    assert (float(total), float(count)) == (0, 0)
    for mine, theirs in zip(jax.tree.leaves(state.variables), jax.tree.leaves(variables), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_statistics_step_uses_only_the_batch():
    """With its own statistics, a batch gives the same outputs in evaluation and training, whatever the running ones."""
    task, data, variables = setup("batch statistics")
    variables = variables | {"batch_stats": jax.tree.map(lambda x: x + 7.0, variables["batch_stats"])}
    rows = jnp.array([3, 0, 5])
    step = jax.jit(functools.partial(steps.statistics_step, task=task, prepare=task.plain))
    found = jax.tree.map(lambda total: total / len(rows), step(variables, data, rows)[0])
    images = task.plain({"images": data["images"][rows]})["images"]
    trained, _ = jax.jit(functools.partial(task.apply, train=True, mutable=["batch_stats"]))(variables, images)
    # A batch's variance is a difference of large sums in float32.
    np.testing.assert_allclose(
        jax.jit(functools.partial(task.apply, train=False))(variables | {"batch_stats": found}, images),
        trained,
        atol=2e-3 * np.abs(trained).max(),
    )
    first = variables["params"]["body"]["down0"]["conv1"]["conv"]["kernel"]
    convolved = jax.lax.conv_general_dilated(images, first, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    mean = found["body"]["down0"]["conv1"]["norm"]["batch"]["mean"]
    np.testing.assert_allclose(mean, np.asarray(convolved).mean((0, 1, 2)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("streamed", [False, True])
def test_statistics_weigh_rows_equally_with_a_short_last_batch(devices, streamed):
    task, data, variables = setup("batch statistics")
    run, rows = steps.runner(task, tx=optim.ramps(epochs=1), devices=devices), np.array([0, 3, 9, 4, 8])
    placed, stream = run.put(data), None
    if streamed:
        placed = run.put({name: array for name, array in data.items() if name != "images"})
        stream = lambda parts: (np.asarray(data["images"])[steps.samples_of(part, 1)] for part in parts)
    measure = run.evaluator(functools.partial(steps.statistics_step, task=task, prepare=task.plain))
    each = run.get(measure(run.put(variables), placed, steps.batches(rows, 4), stream))
    assert [count for _, count in each] == [4, 1]
    mean_of = lambda statistics: statistics["body"]["down0"]["conv1"]["norm"]["batch"]["mean"]
    kernel = variables["params"]["body"]["down0"]["conv1"]["conv"]["kernel"]
    images = task.plain({"images": data["images"][rows]})["images"]
    convolved = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    mean = sum(mean_of(total) for total, _ in each) / 5
    np.testing.assert_allclose(mean, np.asarray(convolved).mean((0, 1, 2)), rtol=1e-4, atol=1e-6)


def test_two_devices_validate_like_one():
    task, data, variables = setup("batch statistics")
    data, rows = data | {"delta": jnp.linspace(1, 3, 10)}, steps.batches(np.arange(7), 4)  # the last row is padding
    found = []
    for devices in (1, 2):
        run = steps.runner(task, tx=optim.ramps(epochs=1), devices=devices)
        score = run.evaluator(functools.partial(steps.valid_step, task=task, prepare=task.plain))
        found.append(steps.summed(run.get(score(run.put(variables), run.put(data), rows))))
    (one, two), visible = found, int(data["visible"][:7].sum())
    assert one["distance_px"][1] == two["distance_px"][1] == visible
    assert two == {name: pytest.approx(pair, rel=1e-5) for name, pair in one.items()} and one["loss"][0] > 0


@pytest.mark.parametrize("count", [4, 5])
def test_mixup_by_hand(count):
    rng = np.random.default_rng(0)
    images, points = rng.random((count, 3, 2, 1)), rng.random((count, 2))
    outputs, weight = rng.random((count, 2)), rng.random(count)
    pairs = [1, 0, 3, 2, 4][:count]  # the last of an odd number is its own neighbour

    def loss(outputs, targets):
        points, weight = targets
        each = ((outputs - points) ** 2).sum(-1)
        return {"near": (each * weight).sum(), "half": (0.5 * each).sum()}, weight.sum()

    mixed, both = steps.mix(images, loss, 0.3)
    total, number = both(outputs, (points, weight))
    np.testing.assert_allclose(mixed, [0.3 * images[i] + 0.7 * images[j] for i, j in enumerate(pairs)], rtol=1e-6)
    own, other = (((outputs - at) ** 2).sum(-1) for at in (points, points[pairs]))
    np.testing.assert_allclose(
        total["near"], 0.3 * (own * weight).sum() + 0.7 * (other * weight[pairs]).sum(), rtol=1e-5
    )
    np.testing.assert_allclose(total["half"], 0.15 * own.sum() + 0.35 * other.sum(), rtol=1e-5)
    np.testing.assert_allclose(number, weight.sum(), rtol=1e-5)
    assert jax.tree.leaves(steps.mix(images, loss, 1.0)[1](outputs, (points, weight)))[0] == pytest.approx(
        (own * 0.5).sum(), rel=1e-5
    )


def linear():
    """A task without noise whose network is one matrix, which compiles fast, and its variables."""
    task = setup()[0]
    weight = np.random.default_rng(1).normal(0, 0.01, (SIZE[0] * SIZE[1], 2 * LANDMARKS))

    def apply(variables, images, train, **_):
        outputs = (images.reshape(len(images), -1) @ variables["params"]["w"]).reshape(-1, LANDMARKS, 2)
        return (outputs, {}) if train else outputs

    quiet = task._replace(apply=apply, augment=lambda keys, batch: task.plain(batch))
    return quiet, {"params": {"w": jnp.asarray(weight, jnp.float32)}}


def test_train_step_draws_the_mixup_share_and_mixes_network_inputs():
    (task, variables), data, seen = linear(), setup()[1], []
    seeing = lambda v, images, **options: seen.append(images) or task.apply(v, images, **options)
    tx, key = optim.ramps(epochs=1), jax.random.key(3)
    for mixup in (0.0, 0.75):
        state = steps.create(variables, tx)
        steps.train_step(state, data, jnp.arange(4), key, task=task._replace(apply=seeing), tx=tx, mixup=mixup)
    share = jax.random.beta(jax.random.split(key, 3)[2], 0.75, 0.75)
    np.testing.assert_allclose(seen[1], share * seen[0] + (1 - share) * seen[0][jnp.array([1, 0, 3, 2])], rtol=1e-5)
    assert 0.01 < share < 0.99


def test_gradient_accumulation_equals_a_larger_batch():
    (task, variables), data = linear(), setup()[1]
    data = data | {"visible": jnp.ones_like(data["visible"])}
    adam = optim.build({"name": "adam", "learning_rate": 1e-2, "warmup": 0.0}, epochs=1, steps_per_epoch=2)
    ends = []
    for every, rows in ((1, np.arange(8).reshape(2, 4)), (2, np.arange(8).reshape(4, 2))):
        tx = optax.chain(adam, optim.average(0.9))
        tx = optax.MultiSteps(tx, every).gradient_transformation() if every > 1 else tx
        state = steps.create(variables, tx)
        state, found = steps.runner(task, tx=tx).run(state, data, rows, jax.random.key(0))
        total, count = steps.summed(found)
        ends.append((state.variables["params"]["w"], optim.averaged(state.opt_state, None)["w"], total / count))
    for whole, parts in zip(*ends, strict=True):
        np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=2e-5)
    assert np.abs(ends[0][0] - variables["params"]["w"]).max() > 1e-3


def test_loss_terms_are_summed_and_reported_separately():
    task, data, variables = setup()
    terms = lambda outputs, targets: (
        {"a": 0.25 * task.head.loss(outputs, targets)[0], "b": 0.75 * task.head.loss(outputs, targets)[0]}, task.head.loss(outputs, targets)[1]
    )  # fmt: skip
    tx, rows = optim.ramps(epochs=1), np.arange(4)[None]
    run = lambda task: steps.runner(task, tx=tx).run(steps.create(variables, tx), data, rows, jax.random.key(0))
    (state, one), (other, several) = run(task), run(task._replace(head=task.head._replace(loss=terms)))
    (loss, _), (found, _) = steps.summed(one), steps.summed(several)
    np.testing.assert_allclose([found["a"], found["b"]], [loss / 4, 3 * loss / 4], rtol=1e-5)
    for mine, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(theirs, mine, rtol=1e-4, atol=1e-6)
    assert entries("train", {"loss": found}) == {
        "train/loss": found["a"] + found["b"],
        "train/a": found["a"],
        "train/b": found["b"],
    }
    assert entries("valid", {"loss": 2.0, "distance_px": None}) == {"valid/loss": 2.0, "valid/distance_px": None}


def test_validation_distances_are_in_pixels_of_the_photographs():
    task, data, variables = setup()
    delta = np.linspace(1, 3, 10).astype(np.float32)
    rows = jnp.array([3, 0, ~3])
    valid = jax.jit(functools.partial(steps.valid_step, task=task, prepare=task.plain))
    found = valid(variables, data | {"delta": delta}, rows)
    points = np.asarray(jax.jit(functools.partial(steps.predict_step, task=task))(variables, data["images"])[0])
    far = np.linalg.norm(points - data["points"], axis=-1) * delta[:, None]
    seen = np.asarray(data["visible"])[[3, 0]]
    np.testing.assert_allclose(found["distance_px"], [far[[3, 0]][seen].sum(), seen.sum()], rtol=1e-4)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_bfloat16_keeps_parameters_statistics_and_losses_in_float32(norm):
    network = models.Network(layers.DoubleConv(8, norm), nn.Dense(2))
    apply = steps.computing_in("bfloat16", network.apply)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 3)), jnp.float32)
    variables = jax.jit(functools.partial(network.init, train=False))(jax.random.key(1), images)

    def loss(params):
        outputs, changed = apply(variables | {"params": params}, images, train=True, mutable=["batch_stats"])
        return jnp.mean((outputs - 1) ** 2), (outputs, changed)

    slope = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (first, (outputs, changed)), grads = slope(variables["params"])
    assert {x.dtype for x in jax.tree.leaves((outputs, changed, grads))} == {jnp.dtype("float32")}
    assert (outputs != outputs.astype(jnp.bfloat16).astype(jnp.float32)).mean() > 0.5  # not rounded to bfloat16
    exact, _ = jax.jit(functools.partial(network.apply, train=True, mutable=["batch_stats"]))(variables, images)
    np.testing.assert_allclose(outputs, exact, atol=0.1)
    params = variables["params"]
    for _ in range(5):
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, slope(params)[1])
    assert slope(params)[0][0] < first - 0.01
    with pytest.raises(ValueError, match="bfloat16"):
        steps.computing_in("float16", network.apply)


@pytest.mark.slow
def test_two_of_three_devices_train_like_one(tmp_path):
    """The first two of three devices, in a separate process that has three."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import jax, numpy as np, test_steps\n"
        "assert jax.local_device_count() == 3\n"
        "np.testing.assert_allclose(test_steps.train(2)[0], test_steps.train(1)[0], rtol=1e-5)\n"
    )
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=3", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], env=os.environ | flags, check=True)
