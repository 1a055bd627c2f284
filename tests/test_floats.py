"""What users pass to functions: integers, half precision, empty arrays, missing values, and distances of exactly 0."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarks import augment, heads, optim
from jaxmarks.ops import boxes, calibrate, decode, edges, geometry, heatmaps, losses, metrics
from jaxmarks.ops.floats import at_least_float32, root

NARROW = (np.float16, jnp.bfloat16, np.int16, np.uint16, np.int32)
SUBPIXEL = (decode.local_soft_argmax, decode.dark, decode.quadratic)


def test_at_least_float32_widens_narrow_dtypes_and_keeps_float64():
    assert {at_least_float32(np.ones(2, dtype)).dtype for dtype in NARROW} == {jnp.dtype("float32")}
    with jax.enable_x64(True):
        assert at_least_float32(np.ones(2)).dtype == "float64"


def test_root_has_zero_gradient_at_zero_and_keeps_nan_and_inf():
    squares = jnp.array([0.0, 4.0, jnp.nan, jnp.inf])
    np.testing.assert_array_equal(root(squares), [0, 2, jnp.nan, jnp.inf])
    np.testing.assert_array_equal(jax.vmap(jax.grad(root))(squares[:2]), [0, 0.25])


@pytest.mark.parametrize("dtype", NARROW)
def test_coordinates_of_any_dtype_give_the_same_results(dtype):
    """In a frame of 300 pixels, areas and squared distances overflow float16 and int16; unsigned differences wrap."""
    a, b = np.array([[0, 0, 300, 300], [0, 0, 10, 10]]), np.array([[0, 0, 300, 296], [20, 20, 30, 30]])
    x, y = jnp.asarray(a.astype(dtype)), jnp.asarray(b.astype(dtype))
    np.testing.assert_allclose(boxes.iou(x, y), boxes.iou(a.astype(float), b.astype(float)), rtol=1e-6)
    _, kept = boxes.nms(jnp.stack([x[0], y[0]]), np.array([0.9, 0.8]), limit=2)
    assert kept.tolist() == [True, False]
    np.testing.assert_allclose(
        boxes.centre_distance(x, y), [[2, np.hypot(125, 125)], [np.hypot(145, 143), np.hypot(20, 20)]], rtol=1e-5
    )
    points, others = np.array([[0, 0], [400, 300]], dtype), np.array([[304, 400], [0, 0]], dtype)
    np.testing.assert_allclose(metrics.distances(points, others), [np.hypot(304, 400), 500], rtol=1e-6)
    assert geometry.inside(points, (350, 450)).tolist() == [True, True]
    np.testing.assert_allclose(geometry.normalise(points, (300, 400)), [[-1, -1], [1, 1]])


def test_lists_are_accepted_as_arrays():
    corners = [[0, 0, 10, 10], [1, 0, 11, 10], [40, 40, 50, 50]]
    _, kept = boxes.nms(corners, [0.9, 0.8, 0.7], limit=3, classes=[0, 0, 0], valid=[True, True, False])
    assert kept.tolist() == [True, False, False]
    pairs = boxes.pair_detections(corners, [0.9, 0.8, 0.7], [True] * 3, corners[:1], [True], iou=0.5)
    assert pairs.tolist() == [0, -1, -1]


def test_bilateral_filter_of_uint8_equals_that_of_float32():
    image = np.random.default_rng(0).integers(0, 256, (9, 9), dtype=np.uint8)
    options = {"sigma_space": 1.0, "sigma_colour": 30.0}
    np.testing.assert_allclose(edges.bilateral(image, **options), edges.bilateral(image.astype(np.float32), **options))


def test_scores_of_any_dtype_rank_alike():
    corners = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [1, 1, 11, 11]], np.float32)
    truth, real = corners[:1], np.ones(1, bool)
    for scores in (np.array([0, 200, 100], np.uint8), jnp.array([0.0, 200, 100], jnp.bfloat16)):
        assert boxes.pair_detections(corners, scores, np.ones(3, bool), truth, real, iou=0.5).tolist() == [-1, 0, -1]
        assert boxes.nms(corners, scores, limit=1)[0].tolist() == [1]
    for method in ("gaussian", "linear"):
        wide, narrow = (
            boxes.soft_nms(corners, jnp.array([0.5, 0.25, 0.75], dtype), limit=3, method=method)
            for dtype in (jnp.float32, jnp.bfloat16)
        )
        np.testing.assert_array_equal(wide[0], narrow[0])
        np.testing.assert_allclose(wide[1], narrow[1])


def test_nan_score_is_no_detection():
    corners = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], np.float32)
    scores, valid = np.array([np.nan, 0.5]), np.ones(2, bool)
    assert boxes.pair_detections(corners, scores, valid, corners, valid, iou=0.5).tolist() == [-1, 1]
    assert float(boxes.average_precision(valid, scores, valid, 2, rule="voc")) == 0.5
    _, _, ranked = boxes.precision_recall_curve(valid, scores, valid, 2)
    np.testing.assert_array_equal(ranked, [0.5, np.nan])


@pytest.mark.parametrize("decoder", [*SUBPIXEL, decode.argmax, decode.soft_argmax])
@pytest.mark.parametrize("shape", [(0, 12, 16, 2), (3, 12, 16, 0)])
def test_empty_maps_decode_to_no_points(decoder, shape):
    points, scores = decoder(np.zeros(shape, np.float32))
    assert points.shape == (shape[0], shape[3], 2) and scores.shape == (shape[0], shape[3])


def test_empty_inputs_are_summarised_and_merged():
    found = metrics.summarise(np.zeros((0, 3)))
    assert int(found.pop("count")) == 0 and all(np.isnan(value) for value in found.values())
    agreed = jax.jit(functools.partial(boxes.merge_networks, iou=0.5))(
        np.zeros((2, 0, 4)), np.zeros((2, 0)), np.zeros((2, 0), int)
    )
    assert [part.shape for part in agreed] == [(0, 4), (0,), (0,)]
    # A jitted function may close over NumPy boxes.
    one = jax.jit(lambda s: boxes.merge_networks(np.ones((1, 2, 4)), s, np.zeros((1, 2), int), iou=0.5))
    assert one(jnp.ones((1, 2)))[1].tolist() == [1, 1]


def test_soft_argmax_of_a_zero_map_is_its_centre():
    points, scores = decode.soft_argmax(jnp.zeros((6, 8, 1)))
    np.testing.assert_allclose(points, [[4, 3]])
    assert scores.tolist() == [0]


@pytest.mark.parametrize("function", [
    lambda x: metrics.distances(x, jnp.ones((2, 2))).mean(),
    lambda x: boxes.centre_distance(jnp.tile(x, 2), jnp.ones((2, 4))).mean(),
    lambda x: decode.spread(jnp.zeros((4, 4, 2)).at[1, 1].set(x[:, 0]), jnp.full((2, 2), 1.5)).sum(),
    lambda x: calibrate.rotation_vector(calibrate.rotation_of(jnp.append(x[0], 1.0) - 1)).sum(),
])  # fmt: skip
def test_gradients_are_finite_where_a_distance_is_zero(function):
    assert jnp.isfinite(jax.grad(function)(jnp.ones((2, 2)))).all()


# Missing landmarks and boxes


HEADS = [{"name": "heatmap", "loss": name.removeprefix("heatmap_")} for name in
         ("heatmap_mse", "heatmap_cross_entropy", "heatmap_jensen_shannon", "heatmap_adaptive_wing")]  # fmt: skip


@pytest.mark.parametrize(
    "spec", [*HEADS, {"name": "softargmax"}, {"name": "direct"}], ids=lambda s: "-".join(s.values())
)
def test_missing_landmark_may_be_nan(spec):
    head = heads.build(spec, size=(32, 48), landmarks=3)
    shape = (1, 3, 2) if spec["name"] == "direct" else (1, 8, 12, 3)
    outputs = jax.random.normal(jax.random.key(0), shape)
    visible = jnp.ones((1, 3), bool).at[0, 0].set(False)

    def total(outputs, hidden):
        points = jnp.full((1, 3, 2), 20.0).at[0, 0].set(hidden)
        return sum(jax.tree.leaves(head.loss(outputs, head.targets({"points": points, "visible": visible}))[0]))

    of_nan, of_zero = (jax.value_and_grad(total)(outputs, hidden) for hidden in (jnp.nan, 0.0))
    jax.tree.map(np.testing.assert_array_equal, of_nan, of_zero)
    assert jnp.isfinite(of_nan[0]) and jnp.isfinite(of_nan[1]).all() and of_nan[1].any()


OBJECTS = {
    "centre": {"sizes": (10.0, 8.0)},
    "yolo": {"anchors": ((10.0, 8.0), (20.0, 16.0))},
    "shape_prior": {"sizes": (10.0, 8.0)},
}


def of_objects(name):
    """A function from a batch's boxes and labels to the head's loss for random features, and its gradient."""
    head = heads.build({"name": name}, size=(32, 48), classes=2, **OBJECTS[name])
    stride = 8 if name == "yolo" else 4
    features = jax.random.normal(jax.random.key(0), (2, 32 // stride, 48 // stride, 5))
    variables = head.layer.init(jax.random.key(1), features)
    images = jax.random.uniform(jax.random.key(2), (2, 32, 48, 1))

    def total(variables, corners, labels):
        batch = {"boxes": jnp.asarray(corners, jnp.float32), "labels": jnp.asarray(labels), "images": images}
        return head.loss(head.layer.apply(variables, features), head.targets(batch | {"real": jnp.ones(2, bool)}))[0]

    return lambda corners, labels: jax.jit(jax.value_and_grad(total))(variables, corners, labels)


@pytest.mark.parametrize("name", OBJECTS)
def test_padding_and_boxes_outside_the_frame_have_no_effect(name):
    loss = of_objects(name)
    none, one = [2 * [box] for box in ([np.nan] * 4, [12.0, 9, 22, 17])]
    alone = loss(np.array(one)[:, None], np.array([[1], [0]]))
    padded = loss(np.stack([one, none], 1), np.array([[1, -1], [0, -1]]))
    beyond = loss(np.stack([one, np.add(one, 1000)], 1), np.array([[1, 1], [0, 0]]))
    for other in (padded, beyond):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), alone, other)
    empty = loss(np.zeros((2, 0, 4)), np.zeros((2, 0), int))
    hidden = loss(np.array(none)[:, None], np.full((2, 1), -1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), empty, hidden)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((alone, empty)))


# Losses, volumes, optimisers, augmentation


@pytest.mark.parametrize("loss", [losses.heatmap_cross_entropy, losses.heatmap_jensen_shannon])
def test_distribution_losses_take_half_precision_and_masked_pixels(loss):
    maps = jax.random.normal(jax.random.key(0), (12, 16, 1))
    for points in ([[5.0, 4.0]], [[500.0, 4.0]]):  # and one whose target lies off the map
        target = heatmaps.gaussian(jnp.array(points), (12, 16), 1.5)
        half = jax.value_and_grad(lambda m, t=target: loss(m, t.astype(jnp.float16)).sum())(maps.astype(jnp.float16))
        assert all(jnp.isfinite(part).all() for part in half)
    target = heatmaps.gaussian(jnp.array([[5.0, 4.0]]), (12, 16), 1.5).at[-1].set(0)
    small, grad = jax.value_and_grad(lambda m: loss(m, target).sum())(maps.at[-1].set(-jnp.inf))
    np.testing.assert_allclose(small, loss(maps[:-1], target[:-1])[0], rtol=1e-5)  # as if the row were not there
    assert jnp.isfinite(grad).all() and not grad[-1].any()


def test_landmark_that_was_not_found_has_no_residual():
    shares = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    template = calibrate.Template(jnp.asarray(shares), jnp.array([140.0, 170, 140]))
    points = shares * np.array(template.size) + 7
    found = calibrate.calibrate(np.concatenate([[[np.nan] * 3], points[1:]]), np.r_[0, np.ones(7)], template)
    assert np.isnan(found.residuals[0]) and float(found.residuals[1:].max()) < 1e-3
    np.testing.assert_allclose(found.centre, 7, atol=1e-3)
    whole = calibrate.calibrate(np.rint(points).astype(int), np.ones(8, int), template)
    np.testing.assert_allclose(whole.centre, 7, atol=1e-3)


def test_optimiser_states_keep_their_dtypes():
    optimiser = optim.ramps(epochs=4, steps_per_epoch=2)
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    state = optimiser.init(params)

    def step(state, _):
        updates, state = optimiser.update(params, state, params)
        return state, updates

    jax.lax.scan(step, state, length=3)  # raises if the state changes its dtypes
    average, seen = optim.average(0.9), optim.plateau(0.2, 3)
    jax.lax.scan(lambda s, _: (average.update(params, s, params)[1], None), average.init(params), length=2)
    first = seen.init(params)
    assert jax.typeof(optim.observe(first, jnp.float32(1)).best) == jax.typeof(first.best)  # else it compiles twice


@pytest.mark.parametrize(("batches", "accumulated"), [(1, 3), (11, 5), (9, 1), (4, 2)])
def test_update_takes_the_value_of_the_epoch_in_which_it_begins(batches, accumulated):
    rate = optim.per_epoch(0, 99, epochs=100, steps_per_epoch=batches, accumulate=accumulated)
    steps = np.arange(100 * batches // accumulated)
    np.testing.assert_allclose(jax.vmap(rate)(steps), np.minimum(steps * accumulated // batches, 99), rtol=1e-6)


def test_per_epoch_does_not_overflow_late_in_a_long_run():
    rate = optim.per_epoch(0, 9999, epochs=10_000, steps_per_epoch=300_001, accumulate=3000)
    steps = np.array([100, 101, 800_000, 900_000, 2_000_000])
    np.testing.assert_array_equal(jax.vmap(rate)(steps), [0, 1, 7999, 8999, 9999])


def test_infinite_distance_is_the_largest():
    found = metrics.summarise(jnp.array([1.0, 2, 3, jnp.inf]))
    assert found["max"] == found["p95"] == jnp.inf and found["median"] == 2.5
    assert metrics.summarise(jnp.array([1.0, jnp.inf, jnp.inf]))["median"] == jnp.inf


def test_means_in_half_precision_do_not_overflow():
    np.testing.assert_array_equal(metrics.per_landmark(jnp.full((200, 2), 500.0, jnp.float16)), [500, 500])


def test_soft_nms_has_a_gradient_for_the_boxes():
    corners = jnp.array([[0.0, 0, 10, 10], [1, 1, 11, 11], [30, 30, 40, 40]])
    scores = jnp.array([0.9, 0.8, 0.7])
    for method in ("gaussian", "linear"):
        total = lambda b, m=method: boxes.soft_nms(b, scores, limit=3, method=m)[1].sum()
        gradient = jax.grad(total)(corners)
        assert jnp.isfinite(gradient).all() and gradient[1].any()


def test_roi_align_computes_with_bfloat16_boxes_in_float32():
    features = jax.random.uniform(jax.random.key(0), (40, 40, 1))
    half = jnp.array([[10.5, 3, 33, 25.5]], jnp.bfloat16)
    whole = boxes.roi_align(features, half.astype(jnp.float32))
    np.testing.assert_array_equal(boxes.roi_align(features, half), whole)


def test_frame_map_can_be_inverted_and_composed():
    map = geometry.frame((10, 20), (8, 8), "pad")
    there = geometry.affine(map, [[3.0, 4.0]])
    np.testing.assert_allclose(geometry.affine(geometry.invert(map), there), [[3, 4]], atol=1e-6)
    np.testing.assert_allclose(geometry.compose(geometry.invert(map), map), [[1, 0, 0], [0, 1, 0]], atol=1e-6)


def test_float32_inputs_stay_float32_in_x64_mode():
    shares = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    size = np.array([140.0, 170, 140])
    with jax.enable_x64(True):
        template = calibrate.Template(jnp.asarray(shares), jnp.asarray(size))
        found = calibrate.calibrate(np.float32(shares * size), jnp.ones(8, jnp.float32), template, normals=np.eye(3)[np.zeros(8, int)])  # fmt: skip
        assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {"float32", "bool"}
        box = (found.centre, found.rotation, found.size)
        assert calibrate.corners(*box).dtype == calibrate.box_iou(box, box).dtype == "float32"
        corners = np.float32([[0, 0, 10, 10], [2, 2, 8, 9]])
        offsets = boxes.rcnn_encode(corners, corners, weights=(10, 10, 5, 5))
        assert offsets.dtype == boxes.rcnn_decode(offsets, corners).dtype == "float32"
        assert geometry.compose(jnp.eye(2, 3, dtype=jnp.float32), jnp.eye(2, 3, dtype=jnp.float32)).dtype == "float32"
        assert {part.dtype.name for part in boxes.match(corners, corners, np.ones(2, bool))} == {"int32"}
        anchors, _ = boxes.kmeans_anchors(corners[:, 2:], jax.random.key(0), count=2)
    np.testing.assert_array_equal(anchors, boxes.kmeans_anchors(corners[:, 2:], jax.random.key(0), count=2)[0])


def test_uint16_images_are_refused():
    with pytest.raises(ValueError, match="uint16"):
        augment.plain({"images": np.zeros((1, 4, 4, 3), np.uint16)}, channels=3)


def test_augmented_images_are_float32_in_x64_mode():
    spec = {"name": "modern", "elastic": 1.0, "blur": 0.5, "cutout": 0.1, "quarter_turns": True}
    batch = {
        "images": np.zeros((2, 16, 16, 3), np.uint8),
        "points": np.ones((2, 1, 2), np.float32),
        "visible": np.ones((2, 1), bool),
    }
    with jax.enable_x64(True):
        found = augment.build(spec, channels=1).apply(jax.random.split(jax.random.key(0), 2), batch)
    assert {key: found[key].dtype.name for key in batch} == {
        "images": "float32",
        "points": "float32",
        "visible": "bool",
    }


def test_half_precision_inputs_are_computed_in_float32():
    half = lambda values: jnp.asarray(values, jnp.bfloat16)
    ramp = jnp.broadcast_to(jnp.arange(400.0)[None, None, :, None], (1, 2, 400, 1))
    at = half([[[300.0, 1.0]]])
    np.testing.assert_array_equal(geometry.sample(ramp, at), [[[[299.5]]]])
    np.testing.assert_array_equal(boxes.clip(half([0, 0, 400, 400]), (303, 303)), [0, 0, 303, 303])
    raw, anchors = half(np.full((1, 1, 1, 4), 2.0)), np.float32([[100, 100]])
    of_single = boxes.yolo_decode(raw.astype(jnp.float32), anchors, stride=32)
    np.testing.assert_array_equal(boxes.yolo_decode(raw, anchors, stride=32), of_single)
    noise = half(np.random.default_rng(0).uniform(size=(40, 40)))
    found, due = (edges.canny(x, sigma=1.5, low=0.05, high=0.1) for x in (noise, noise.astype(jnp.float32)))
    assert due.any()
    np.testing.assert_array_equal(found, due)


def test_coco_visibility_flags_count_once():
    """COCO: 0 is missing, 1 hidden, 2 visible."""
    batch = {"points": jnp.full((1, 3, 2), 5.0), "visible": jnp.array([[2, 1, 0]])}
    head = heads.build({"name": "direct"}, landmarks=3, size=(8, 8))
    truth = head.targets(batch | {"visible": batch["visible"] > 0})
    for mine, theirs in zip(head.targets(batch), truth, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert head.loss(jnp.zeros((1, 3, 2)), head.targets(batch))[1] == 4  # coordinates


def test_shares_of_no_landmarks_and_scale_of_plain_tuples():
    assert metrics.shares(jnp.zeros((5, 0))).shape == (0, 3)
    assert geometry.scale(((2.0, 0.0, 1.0), (0.0, 2.0, 1.0))) == 2
