"""The contract of heads and bodies: each compatible pair trains a step and predicts, with missing points in a batch."""

import inspect
import runpy
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.spatial
import scipy.special

from jaxmarks import config as configs
from jaxmarks import find, heads, models, optim, runs, steps, tasks
from jaxmarks.heads.centre import is_peak
from jaxmarks.models import layers
from jaxmarks.ops import decode, heatmaps

CONFIGS = Path(__file__).parent.parent / "configs"
SIZE, LANDMARKS = (64, 32), 3
FACTS = {
    "landmarks": {"landmarks": LANDMARKS},
    "objects": {"classes": 2, "sizes": (10.0, 12.0), "anchors": [[10.0, 12.0], [20.0, 20.0]]},
}
# Most of a test's time is compilation.
QUICK = {"xla_backend_optimization_level": 1}  # at 0 XLA returns wrong gradients
BODIES = [
    name
    for name in find.names("jaxmarks.models")
    if hasattr(find.module("jaxmarks.models", name, needs="__name__"), "build")
]
HEADS = {
    name: "objects" if "classes" in inspect.signature(find.module("jaxmarks.heads", name, needs="build").build).parameters else "landmarks"
    for name in find.names("jaxmarks.heads")
    if hasattr(find.module("jaxmarks.heads", name, needs="__name__"), "build")
}  # fmt: skip


def bodies():
    """Every body at its `TINY` size, once for each kind of features that it can output."""
    for name in BODIES:
        body = find.module("jaxmarks.models", name, needs="build")
        for output in ("map", "vector") if "output" in inspect.signature(body.build).parameters else (None,):
            yield {"name": name, **body.TINY} | ({"output": output} if output else {})


def landmarks(visible):
    """The landmarks of three images."""
    rng = np.random.default_rng(0)
    points = jnp.asarray(rng.uniform(0, 32, (3, LANDMARKS, 2)), jnp.float32)
    return {"points": points, "visible": jnp.asarray(visible)}


def objects(labels):
    """The boxes of three images; one box crosses the border."""
    boxes = jnp.float32([[4, 5, 14, 17], [20, 40, 30, 70], [0, 0, 9, 9]])
    return {
        "points": jnp.zeros((3, 0, 2)), "visible": jnp.zeros((3, 0), bool),
        "boxes": jnp.tile(boxes, (3, 1, 1)), "labels": jnp.asarray(labels, jnp.int32),
    }  # fmt: skip


# The bodies that take longest to compile; all but the first are also trained in test_bodies.py and test_networks.py.
LONG = ("inception_v2-None", "hrnet-None", "hourglass-None", "resnet50-map", "unet_pp-None")


def pairs(long=LONG):
    """Every body with every landmark head, and two bodies with the detectors' heads, which ask no more of a body.

    Most of the time goes into compiling. The pairs that are not marked slow therefore have each head at least once, and
    each body except those that take longest.
    """
    for body in bodies():
        for head, kind in HEADS.items():
            if kind == "landmarks" or (body["name"], body.get("output")) in (("unet", "map"), ("sp_cnn", None)):
                usual = "direct" if body.get("output") == "vector" or body["name"] == "beetle" else "heatmap"
                name = f"{body['name']}-{body.get('output')}"
                quick = name not in long and (head == usual or body["name"] == "unet")
                yield pytest.param(body, head, id=f"{name}-{head}", marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("body", "head"), list(pairs()))
def test_compatible_bodies_and_heads_train_and_predict_with_missing_points(body, head):
    built = heads.build({"name": head}, size=SIZE, **FACTS[HEADS[head]])
    network = models.Network(models.build(body), built.layer)
    init = lambda key: network.init(key, jnp.zeros((1, *SIZE, 3)))
    try:
        jax.eval_shape(init, jax.random.key(0))
    except ValueError as error:
        assert "--config.model.output" in str(error)  # an incompatible pair; the message says what to change
        pytest.skip("this head needs another kind of features")
    variables = jax.jit(init, compiler_options=QUICK)(jax.random.key(0))
    plain = lambda batch: batch | {"images": batch["images"] / jnp.float32(255)}
    task = steps.Task(network.apply, built, lambda keys, batch: plain(batch), plain)
    tx = optim.build({"name": "adam", "learning_rate": 1e-3, "warmup": 0.0}, epochs=1, steps_per_epoch=1)
    call = lambda s, d, rows: steps.train_step(s, d, rows, jax.random.key(1), task=task, tx=tx)
    step = jax.jit(call, compiler_options=QUICK)
    images = jnp.asarray(np.random.default_rng(1).integers(0, 256, (3, *SIZE, 3), dtype=np.uint8))
    start, rows = steps.create(variables, tx), jnp.arange(3)
    if HEADS[head] == "landmarks":
        known = np.array([[True, False, True], [True, False, False], [False, False, False]])
        given, hidden = landmarks(known), {"points": jnp.where(known[..., None], landmarks(known)["points"], 1e3)}
    else:
        known = np.array([[0, -1, 1], [1, -1, -1], [-1, -1, -1]])
        given, hidden = objects(known), {"boxes": jnp.where(known[..., None] >= 0, objects(known)["boxes"], 1e3)}
    state, (total, count) = step(start, given | {"images": images}, rows)
    assert np.isfinite(jax.tree.leaves(total)).all()
    assert count > 0
    # The coordinates of what is not visible have no effect.
    other, _ = step(start, given | {"images": images} | hidden, rows)
    for one, two in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_array_equal(one, two)
    changed = jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, state.variables["params"], variables["params"])
    assert any(jax.tree.leaves(changed))
    predict = jax.jit(lambda v, x: steps.predict_step(v, x, task=task), compiler_options=QUICK)
    found = predict(state.variables, images)
    assert all(np.isfinite(part).all() for part in found)
    # Exported functions take batches of any size.
    (batch,) = jax.export.symbolic_shape("batch")
    each = jax.eval_shape(predict, variables, jax.ShapeDtypeStruct((batch, *SIZE, 3), np.uint8))
    assert [out.shape[1:] for out in each] == [part.shape[1:] for part in found]
    if HEADS[head] == "objects":
        boxes, scores, classes = found
        assert (*scores.shape, 4) == boxes.shape
        assert (np.diff(scores, axis=1) <= 0).all()  # best first
        assert ((classes >= 0) & (classes < 2)).all()
        _, (total, _) = step(start, objects(np.full((3, 3), -1)) | {"images": images}, rows)
        assert np.isfinite(jax.tree.leaves(total)).all()  # images without objects train the background
        return
    points, scores = found
    assert (points.shape, scores.shape) == ((3, LANDMARKS, 2), (3, LANDMARKS))
    # A batch in which nothing is visible changes only the batch statistics.
    blind, (total, count) = step(start, landmarks(np.zeros_like(known)) | {"images": images}, rows)
    assert not any(jax.tree.leaves((total, count)))
    for one, two in zip(jax.tree.leaves(blind.variables["params"]), jax.tree.leaves(variables["params"]), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.skipif(jax.__version__.startswith("0.11."), reason="its XLA ends the process over arrays of no elements")
@pytest.mark.parametrize(
    "head",
    [pytest.param(n, marks=[pytest.mark.slow] * (n != "centre")) for n, kind in HEADS.items() if kind == "objects"],
)
def test_two_devices_train_a_detector_like_one(head):
    """The devices' images have different numbers of objects, and one device has padding."""
    built = heads.build({"name": head}, size=SIZE, **FACTS["objects"])
    network = models.Network(models.build({"name": "sp_cnn", "width": 4}), built.layer)
    plain = lambda batch: batch | {"images": batch["images"] / jnp.float32(255)}
    task = steps.Task(network.apply, built, lambda keys, batch: plain(batch), plain)
    variables = jax.jit(lambda key: network.init(key, jnp.zeros((1, *SIZE, 3))))(jax.random.key(0))
    images = jnp.asarray(np.random.default_rng(1).integers(0, 256, (3, *SIZE, 3), dtype=np.uint8))
    data = objects(np.array([[0, -1, 1], [1, -1, -1], [-1, -1, -1]])) | {"images": images}
    tx, found = optax.sgd(0.1), []
    for devices in (1, 2):
        run = steps.runner(task, tx=tx, devices=devices)
        state = run.put(steps.create(variables, tx))
        state, sums = run.run(state, run.put(data), np.array([[0, 1, 2, ~2]], np.int32), jax.random.key(1))
        found.append((run.get(state).variables, steps.summed(sums)))
    for one, two in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)


QUICK_PAIRS = [pair for pair in pairs(LONG[:1]) if not pair.marks]  # what follows does not compile


@pytest.mark.parametrize(("body", "head"), [p.values for p in QUICK_PAIRS], ids=[p.id for p in QUICK_PAIRS])
def test_training_and_prediction_stay_float32_in_x64_mode(body, head):
    """If jax_enable_x64 is set for other reasons, the state still keeps its dtypes, as a scan requires."""
    with jax.enable_x64(True):
        built = heads.build({"name": head}, size=SIZE, **FACTS[HEADS[head]])
        network = models.Network(models.build(body), built.layer)
        plain = lambda batch: batch | {"images": batch["images"] / jnp.float32(255)}
        task = steps.Task(network.apply, built, lambda _, batch: plain(batch), plain)
        adam = optim.build({"name": "adam", "learning_rate": 1e-3}, epochs=1, steps_per_epoch=1)
        tx = optax.chain(adam, optim.average(0.9))
        batch = objects(np.zeros((3, 3))) if HEADS[head] == "objects" else landmarks(np.ones((3, LANDMARKS), bool))
        batch |= {"images": jnp.zeros((3, *SIZE, 3), jnp.uint8)}
        begin = lambda: network.init(jax.random.key(0), jnp.zeros((1, *SIZE, 3), jnp.float32))
        try:
            state = jax.eval_shape(lambda: steps.create(begin(), tx))
        except ValueError as error:
            assert "--config.model.output" in str(error)
            pytest.skip("this head needs another kind of features")
        train = lambda s: steps.train_step(s, batch, jnp.arange(3), jax.random.key(1), task=task, tx=tx, mixup=0.5)[0]
        kinds = lambda tree: jax.tree.map(lambda leaf: leaf.dtype, tree)
        assert {kind for kind in jax.tree.leaves(kinds(state.variables))} == {jnp.dtype("float32")}
        assert kinds(jax.eval_shape(train, state)) == kinds(state)
        found = jax.eval_shape(lambda s: steps.predict_step(s.variables, batch["images"], task=task), state)
        assert "float64" not in {part.dtype.name for part in found}


@pytest.mark.parametrize("variant", ["centre", "yolo"])
def test_detector_run_starts_in_x64_mode(variant):
    config = runpy.run_path(str(CONFIGS / "spines.py"))["get_config"](f"{variant},smoke")
    settings = configs.stage(config, runs.stages(config)[0])
    known = {"classes": 1, "sizes": (10.0, 10.0), "overlap": 0.2}
    with jax.enable_x64(True):
        network, images = tasks.untrained(settings, known)
        assert images.dtype == "float32"
        variables = tasks.initial(network, settings, jax.random.key(0))
        assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}
        tasks.sizes(settings)


@pytest.mark.parametrize("interval", ["symmetric", "unit"])
@pytest.mark.parametrize("loss", ["mse", "l1"])
def test_direct_head_matches_its_formula(loss, interval):
    head = heads.build({"name": "direct", "loss": loss, "interval": interval}, landmarks=2, size=(192, 256))
    points = jnp.float32([[[128, 96], [256, 0]]])
    targets, visible = head.targets({"points": points, "visible": jnp.array([[True, False]])})
    # x' = (x - 128) / 128, y' = (y - 96) / 96; or x / 256, y / 192; what is not visible is at pixel (0, 0)
    np.testing.assert_allclose(targets, [[[0, 0], [-1, -1]]] if interval == "symmetric" else [[[0.5, 0.5], [0, 0]]])
    np.testing.assert_allclose(head.decode(targets)[0], [[[128, 96], [0, 0]]])
    residual = np.float32([[[0.5, -0.02], [0.1, 3]]])
    each = {"mse": residual**2, "l1": np.abs(residual)}[loss]
    total, count = head.loss(targets + residual, (targets, visible))
    np.testing.assert_allclose([total, count], [each[0, 0].sum(), 2], rtol=1e-5)


@pytest.mark.parametrize("interval", ["symmetric", "unit"])
def test_coordinates_outside_the_frame_are_clipped_and_score_zero(interval):
    head = heads.build({"name": "direct", "interval": interval}, landmarks=4, size=(192, 256))
    # (0, 0), (W, H), (2 W, H / 2) and (NaN, H / 2)
    outputs = jnp.float32([[[0, 0], [1, 1], [2, 0.5], [jnp.nan, 0.5]]])
    points, scores = head.decode(2 * outputs - 1 if interval == "symmetric" else outputs)
    np.testing.assert_allclose(points, [[[0, 0], [256, 192], [256, 96], [np.nan, 96]]])
    np.testing.assert_array_equal(scores, [[1, 1, 0, 0]])


@pytest.mark.parametrize("stride", [1, 2])
def test_softargmax_head_loss_terms_match_their_formulas(stride):
    """Points, sigma and loss refer to the frame, also for maps of half its size."""
    head = heads.build(
        {"name": "softargmax", "loss": "l1", "divergence": 0.5, "sigma": 2.0}, landmarks=2, size=(32, 48)
    )
    points, visible = jnp.float32([[[20.0, 10.0], [5.0, 5.0]]]), jnp.array([[True, False]])
    drawn = lambda at: heatmaps.gaussian(at / stride, (32 // stride, 48 // stride), 2.0 / stride)
    outputs = jnp.log(drawn(points + 2.0) + 1e-30)
    np.testing.assert_allclose(head.decode(outputs)[0][0, 0], [22, 12], atol=1e-2)
    total, count = head.loss(outputs, head.targets({"points": points, "visible": visible}))
    assert list(total) == ["l1", "0.5 divergence"] and count == 1
    np.testing.assert_allclose(total["l1"], (2 * 2 / 48 + 2 * 2 / 32) / 2, rtol=1e-3)
    near, true = (np.asarray(drawn(at), np.float64)[0, ..., 0] for at in (points + 2.0, points))
    distance = scipy.spatial.distance.jensenshannon(near.ravel(), true.ravel()) ** 2
    np.testing.assert_allclose(total["0.5 divergence"], 0.5 * distance, rtol=1e-4)


def test_softargmax_head_decodes_to_the_mean_position():
    head = heads.build({"name": "softargmax"}, landmarks=1, size=(4, 5))
    outputs = np.random.default_rng(0).normal(size=(1, 4, 5, 1))
    share = np.exp(outputs[0, ..., 0]) / np.exp(outputs).sum()
    y, x = np.mgrid[:4, :5] + 0.5
    found, _ = head.decode(jnp.float32(outputs))
    np.testing.assert_allclose(found[0, 0], [(share * x).sum(), (share * y).sum()], rtol=1e-5)


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("size", [(48, 64), (50, 70)])
def test_heatmap_head_uses_pixels_of_the_frame(size, stride):
    """Maps coarser than the frame decode to the frame's pixels, even if the stride does not divide its sides."""
    head = heads.build({"name": "heatmap", "sigma": 6.0}, landmarks=2, size=size)
    points = jnp.float32([[[20.3, 15.8], [40.1, 31.2]]])
    shape = tuple(-(-side // stride) for side in size)
    perfect = heatmaps.gaussian(points / stride, shape, 6.0 / stride)
    targets = head.targets({"points": points, "visible": jnp.array([[True, True]])})
    loss = jax.jit(head.loss)
    np.testing.assert_allclose(loss(perfect, targets), [0, 2], atol=1e-7)
    found, scores = jax.jit(head.decode)(perfect)
    np.testing.assert_allclose(found, points, atol=0.05)
    assert scores.min() > 0.9
    # By the formula: the mean squared error over a map whose values are half of the target's.
    total, _ = loss(perfect / 2, targets)
    np.testing.assert_allclose(total, (np.asarray(perfect) ** 2 / 4).mean((1, 2)).sum(), rtol=1e-5)


@pytest.mark.parametrize("target", ["gaussian", "exponential"])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_scores_mean_the_same_for_all_losses(loss, target):
    head = heads.build({"name": "heatmap", "loss": loss, "sigma": 2.0, "target": target}, landmarks=1, size=(96, 96))
    drawn, decode = (lambda x: np.asarray(getattr(heatmaps, target)([[[x, x]]], (96, 96), 2.0))), jax.jit(head.decode)
    perfect = drawn(48.5)
    outputs = np.log(perfect + 1e-30) if loss == "cross_entropy" else perfect
    np.testing.assert_allclose(decode(outputs)[1], 1, atol=0.02)
    doubtful = perfect + drawn(28.5)
    outputs = np.log(doubtful / 2 + 1e-30) if loss == "cross_entropy" else doubtful / 2
    np.testing.assert_allclose(decode(outputs)[1], 0.5, atol=0.05)


@pytest.mark.parametrize(("spec", "names"), [({"target": "laplace"}, "gaussian"), ({"loss": "dice"}, "jensen_shannon"), ({"decoder": "mean"}, "dark")])  # fmt: skip
def test_errors_for_unknown_options_list_the_choices(spec, names):
    with pytest.raises(ValueError, match=names):
        heads.build({"name": "heatmap", **spec}, landmarks=1, size=SIZE)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_several_networks_average_their_maps_not_their_points(loss):
    """Two networks see the landmark at one place and a third elsewhere: the point lies at the former, not between."""
    head = heads.build({"name": "heatmap", "sigma": 2.0, "loss": loss}, size=(32, 48), landmarks=1)
    drawn = [
        heatmaps.gaussian(jnp.array([[point]]), (32, 48), 2.0) for point in ([10.0, 9.0], [10.6, 9.0], [40.0, 20.0])
    ]
    outputs = [jnp.log(maps + 1e-6) for maps in drawn] if loss == "cross_entropy" else drawn
    blended = head.blend(outputs)
    if loss == "cross_entropy":
        np.testing.assert_allclose(
            scipy.special.softmax(blended, axis=(1, 2)),
            np.mean([scipy.special.softmax(each, axis=(1, 2)) for each in outputs], axis=0), atol=1e-7,
        )  # fmt: skip
    else:
        np.testing.assert_allclose(blended, np.mean(outputs, axis=0), atol=1e-7)
    points, scores = head.decode(blended)
    np.testing.assert_allclose(points[0, 0], [10.3, 9.0], atol=0.1)
    assert 0.6 < scores[0, 0] < 0.7  # two thirds of the networks agree
    task = steps.Task(lambda variables, images, train: variables, head, augment=None, plain=lambda batch: batch)
    for way in (steps.predict_jointly, jax.jit(steps.predict_jointly, static_argnames="task")):
        np.testing.assert_allclose(way(outputs, jnp.zeros((1, 32, 48, 1)), task=task)[0], points, atol=1e-4)
    both = heads.build(
        {"name": "heatmap", "sigma": 2.0, "loss": loss}, size=(32, 48), landmarks=2, sets={"a": (0, 1), "b": (1, 2)}
    )
    joined, _ = both.decode(both.blend([{"a": each, "b": each} for each in outputs]))
    np.testing.assert_allclose(joined[0], np.tile(points[0], (2, 1)), atol=1e-4)


def test_stride_is_the_larger_ratio_rounded_up_to_a_power_of_two():
    for size, shape, stride in (((33, 64), (9, 16), 4), ((64, 33), (16, 9), 4), ((50, 75), (4, 5), 16), ((20, 90), (1, 3), 32)):  # fmt: skip
        assert heads.stride_of(jnp.zeros((2, *shape, 3)), size) == stride


def test_only_the_first_of_equal_neighbours_is_a_peak():
    logits = np.full((6, 7), -9.0)
    logits[0, 2:4] = logits[4, 5] = logits[5, 4] = 3.0  # side by side, and diagonally adjacent
    logits[2, 0] = 2.0
    maps = jnp.asarray(logits, jnp.bfloat16)[None, :, :, None]
    found = np.argwhere(np.asarray(is_peak(maps))[0, :, :, 0] & (logits > 0))
    assert found.tolist() == [[0, 2], [2, 0], [4, 5]]


def test_up_convolution_matches_torch():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    up = layers.UpConv(6)
    variables = up.init(jax.random.key(0), x)
    kernel = np.asarray(variables["params"]["kernel"])
    reference = torch.nn.functional.conv_transpose2d(
        torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(kernel.transpose(0, 3, 1, 2)), stride=2
    )
    np.testing.assert_allclose(up.apply(variables, x), reference.numpy().transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("options", "millions"), [({}, 31.0), ({"output": "vector"}, 31.0)])
def test_unet_has_the_papers_parameter_count(options, millions):
    head = heads.build({"name": "direct" if options else "heatmap"}, landmarks=25, size=(256, 256))
    network = models.Network(models.build({"name": "unet", **options}), head.layer)
    params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 256, 256, 3)))["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == pytest.approx(millions * 1e6, rel=0.05)


def test_space_to_depth_keeps_the_pixel_order():
    from jaxmarks.models import layers

    x = np.arange(5 * 6 * 2).reshape(1, 5, 6, 2)
    folded = np.asarray(layers.space_to_depth(jnp.asarray(x), 2))
    assert folded.shape == (1, 3, 3, 8)
    np.testing.assert_array_equal(folded[0, 1, 2], x[0, 2:4, 4:6].reshape(-1))
    np.testing.assert_array_equal(folded[0, 2, 0], np.concatenate([x[0, 4, 0:2].ravel(), x[0, 4, 0:2].ravel()]))


def test_losses_and_decoders_take_their_own_options():
    points, size = jnp.array([[[20.3, 11.6]]]), (32, 48)
    batch = {"points": points, "visible": jnp.ones((1, 1), bool)}
    built = lambda **how: heads.build({"name": "heatmap", "sigma": 3.0, **how}, landmarks=1, size=size)
    one, other = (built(loss=f"weighted_mse:weight={weight}") for weight in (20, 2))
    maps = jnp.zeros((1, *size, 1))
    total = lambda head: float(head.loss(maps, head.targets(batch))[0])
    assert total(one) > total(other) > 0 and total(one) == pytest.approx(total(built(loss="weighted_mse")))
    maps = heatmaps.gaussian(points, size, 3.0).at[0, 4, 40].set(0.7)  # and a second peak
    near = np.asarray(built(decoder="local_soft_argmax:iterations=6").decode(maps)[0])
    np.testing.assert_allclose(near, points, atol=0.05)
    # For two overlapping peaks the result depends on the window, whose default is sigma.
    rough = heatmaps.gaussian(points, size, 3.0) + 0.8 * heatmaps.gaussian(points + jnp.array([6.0, 2.0]), size, 3.0)
    followed = built(decoder="local_soft_argmax:iterations=1").decode(rough)[0]
    at = lambda window: decode.local_soft_argmax(rough, window=window, iterations=1)[0]
    np.testing.assert_array_equal(followed, at(3.0))
    assert np.abs(followed - at(2.0)).max() > 1e-3
    soft, softer = (built(decoder=f"soft_argmax:temperature={t}").decode(maps)[0] for t in (0.1, 1))
    assert np.abs(soft - points).max() < 0.5 * np.abs(softer - points).max()
    soft = heads.build({"name": "softargmax", "loss": "wing:width=0.2", "divergence": 0.0}, landmarks=1, size=size)
    assert list(soft.loss(maps, soft.targets(batch))[0]) == ["wing"]
