"""The shape-prior head: its regulariser against NumPy, both losses by hand, why one collapses, and that one learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage, signal

from jaxmarks import heads, models
from jaxmarks.heads import shape_prior
from jaxmarks.ops import boxes as box_ops

SIZE, SIDE = (40, 40), 12.0


def build(**options):
    head = heads.build({"name": "shape_prior", **options}, classes=1, sizes=(SIDE, SIDE), size=SIZE)
    return head._replace(targets=jax.jit(head.targets), loss=jax.jit(head.loss), decode=jax.jit(head.decode))


def discs(count=8, seed=0):
    """A batch of noisy images (B, 40, 40, 1) with one to three bright discs each."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    images, boxes, labels = [], np.zeros((count, 4, 4), np.float32), np.full((count, 4), -1, np.int32)
    for n in range(count):
        centres = []
        while len(centres) < 1 + n % 3:
            centre = rng.uniform(6, 34, 2)
            if all(np.hypot(*(centre - other)) > 13 for other in centres):
                centres.append(centre)
        image = rng.normal(0.1, 0.03, SIZE)
        for k, (cx, cy) in enumerate(centres):
            image += 0.7 * np.clip(5.5 - np.hypot(x - cx, y - cy), 0, 1)
            boxes[n, k] = cx - SIDE / 2, cy - SIDE / 2, cx + SIDE / 2, cy + SIDE / 2
            labels[n, k] = 0
        images.append(np.float32(image)[..., None])
    return {
        "images": jnp.asarray(np.stack(images)), "boxes": jnp.asarray(boxes), "labels": jnp.asarray(labels),
        "real": jnp.ones(count, bool),
    }  # fmt: skip


def trained(head, batch, steps=120):
    """Trains a network with full-batch Adam; returns its outputs for the batch, and the loss before each step."""
    network = models.Network(models.build({"name": "sp_cnn", "width": 8, "kernel": 3}), head.layer)
    params = jax.jit(network.init)(jax.random.key(0), batch["images"][:1])["params"]
    targets, tx = head.targets(batch), optax.adam(3e-3)

    def loss(params):
        total, count = head.loss(network.apply({"params": params}, batch["images"]), targets)
        return total / count

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    state, losses = tx.init(params), []
    for _ in range(steps):
        params, state, value = step(params, state)
        losses.append(float(value))
    return jax.jit(network.apply)({"params": params}, batch["images"]), losses


def f1(found, batch, threshold):
    valid, true = found.scores > threshold, batch["labels"] >= 0
    hits = box_ops.pair_detections(found.boxes, found.scores, valid, batch["boxes"], true, iou=0.4) >= 0
    return float(2 * hits.sum() / (valid.sum() + true.sum()))


# --- Formulas ---


@given(seed=st.integers(0, 1000), window=st.sampled_from([1, 3, 7]))
def test_regulariser_matches_numpy(seed, window):
    rng = np.random.default_rng(seed)
    y, contours = rng.random((2, 9, 11)), rng.random((2, 9, 11)) < 0.4
    shapes = rng.normal(size=(3, 5, 5))
    expected = np.zeros((2, 3))
    for b in range(2):
        near = ndimage.maximum_filter(y[b], window, mode="constant", cval=-np.inf) * contours[b]
        for i, shape in enumerate(shapes):
            expected[b, i] = (signal.convolve2d(near, shape / np.linalg.norm(shape), mode="same") ** 2).sum()
    found = shape_prior.regulariser(*(jnp.asarray(a, jnp.float32) for a in (y, contours, shapes)), window=window)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_regulariser_by_hand():
    # Max pooling spreads a peak of 2 over 3x3 pixels, whose middle column is edge: three pixels of 2. A shape of one
    # pixel gives their energy, 3 * 4. Two pixels side by side, 1/sqrt 2 each, give half of it twice: the same.
    y = jnp.zeros((1, 7, 7)).at[0, 3, 3].set(2.0)
    contours = jnp.zeros((1, 7, 7)).at[0, :, 3].set(1.0)
    dot, beside = jnp.zeros((2, 3, 3)).at[:, 1, 1].set(1.0)
    shapes = jnp.stack([dot, 5 * beside.at[1, 2].set(1.0)])
    np.testing.assert_allclose(shape_prior.regulariser(y, contours, shapes, window=3), [[12, 12]], rtol=1e-5)
    # Two pixels one below the other respond with 2, 4, 4, 2, each over sqrt 2.
    below = dot.at[2, 1].set(1.0)[None]
    np.testing.assert_allclose(shape_prior.regulariser(y, contours, below, window=3), [[20]], rtol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_both_losses_match_their_formulas(stride):
    batch = discs(3)
    batch["real"] = jnp.array([True, True, False])
    maps = jnp.asarray(np.random.default_rng(0).normal(0, 2, (3, 40 // stride, 40 // stride, 1)), jnp.float32)
    at = (np.arange(40 // stride) + 0.5) * stride
    target = np.zeros((3, 40 // stride, 40 // stride))
    for n, k in np.argwhere(np.asarray(batch["labels"]) >= 0):
        x0, y0, x1, y1 = np.asarray(batch["boxes"])[n, k]
        squared = (at - (x0 + x1) / 2) ** 2 + (at[:, None] - (y0 + y1) / 2) ** 2
        target[n] = np.maximum(target[n], np.exp(-squared / (2 * 2.0**2)))
    shapes = np.random.default_rng(1).random((2, 5, 5), np.float32)
    options = {"shapes": shapes, "sigma": 2.0, "window": 5, "weight": 0.3}
    energy = lambda y, contours: np.asarray(
        shape_prior.regulariser(jnp.asarray(y, jnp.float32), contours, jnp.asarray(shapes), window=5)
    ).sum(-1)

    head = build(form="bounded", positive=4.0, **options)
    targets = head.targets(batch)
    contours = targets[-1].reshape(3, 40 // stride, stride, 40 // stride, stride).any((2, 4)).astype(jnp.float32)
    p, objects = 1 / (1 + np.exp(-np.asarray(maps)[..., 0])), np.array([1, 2, 3])
    share = energy(p, contours) / energy(np.ones_like(p), contours)
    error = ((1 + 4 * target) * (p - target) ** 2).sum((1, 2)) / (np.pi * (2 / stride) ** 2)
    each = error - 0.3 * objects * share
    outputs = shape_prior.Outputs(maps, None)
    np.testing.assert_allclose(head.loss(outputs, targets), [each[:2].sum(), 3], rtol=1e-4)

    head = build(form="printed", threshold=0.5, **options)
    y = np.asarray(maps)[..., 0]
    each = ((y - target) ** 2).mean((1, 2)) - 0.3 * energy(np.where(y > 0.5, y, 0), contours)
    np.testing.assert_allclose(head.loss(outputs, targets), [each[:2].sum(), 2], rtol=1e-4)


def test_bounded_loss_of_empty_perfect_and_full_maps():
    """For one object, an empty map costs 1 + 2/3 positive (a Gaussian's cube sums to 2/3 of its square), a perfect map
    gains part of `weight`, and a full one all of it."""
    batch = {
        "images": jnp.asarray(discs(1)["images"]), "boxes": jnp.float32([[[14, 14, 26, 26]]]),
        "labels": jnp.zeros((1, 1), jnp.int32), "real": jnp.ones(1, bool),
    }  # fmt: skip
    head = build(weight=0.25, positive=6.0)
    targets = head.targets(batch)
    nothing = shape_prior.Outputs(jnp.full((1, *SIZE, 1), -30.0), None)
    np.testing.assert_allclose(head.loss(nothing, targets), [5, 1], rtol=1e-3)
    drawn = shape_prior.draw(batch["boxes"], batch["labels"], 1, SIZE, 1, 3.0)
    perfect = shape_prior.Outputs(jnp.log(drawn / (1 - drawn)), None)
    total, _ = head.loss(perfect, targets)
    assert -0.25 < total < 0
    whole = head.loss(shape_prior.Outputs(jnp.full((1, *SIZE, 1), 30.0), None), targets)[0]
    without = build(weight=0.0, positive=6.0).loss(shape_prior.Outputs(jnp.full((1, *SIZE, 1), 30.0), None), targets)[0]
    np.testing.assert_allclose(without - whole, 0.25, rtol=1e-2)  # a difference of losses of about 50
    # Without an object there is nothing to gain.
    empty = head.targets(batch | {"labels": -jnp.ones((1, 1), jnp.int32)})
    assert head.loss(nothing, empty)[0] < 1e-6
    assert head.loss(perfect, empty)[0] > 0.9


@pytest.mark.parametrize("form", shape_prior.FORMS)
@pytest.mark.parametrize("shapes", ["rings", "learned"])
def test_gradients_match_finite_differences(form, shapes):
    batch = discs(2)
    head = build(form=form, shapes=shapes, count=2, sigma=3.0, weight=0.1 if form == "bounded" else 1e-4)
    outputs = head.layer.init_with_output(jax.random.key(0), jax.random.normal(jax.random.key(1), (2, *SIZE, 3)))[0]
    assert (outputs.shapes is None) == (shapes == "rings")
    targets = head.targets(batch)
    loss = lambda o: head.loss(o, targets)[0]
    gradient = jax.jit(jax.grad(loss))(outputs)
    for key, leaf in enumerate(jax.tree.leaves(gradient)):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, key
    along = jax.tree.map(lambda a: jax.random.normal(jax.random.key(2), a.shape), outputs)
    ahead, behind = (loss(jax.tree.map(lambda a, d, e=e: a + e * d, outputs, along)) for e in (1e-3, -1e-3))
    slope = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(along), strict=True))
    np.testing.assert_allclose((ahead - behind) / 2e-3, slope, rtol=0.05, atol=2e-3)


def test_padding_has_no_gradient():
    batch = discs(3)
    batch["real"] = jnp.array([True, False, False])
    maps = jax.random.normal(jax.random.key(0), (3, *SIZE, 1))
    for form in shape_prior.FORMS:
        head = build(form=form)
        loss = jax.grad(lambda m, head=head: head.loss(shape_prior.Outputs(m, None), head.targets(batch))[0])
        gradient = loss(maps)
        assert np.abs(gradient[0]).max() > 0
        np.testing.assert_array_equal(gradient[1:], 0)


# --- Decoding ---


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("form", shape_prior.FORMS)
def test_perfect_maps_decode_to_their_boxes(stride, form):
    head = heads.build({"name": "shape_prior", "form": form, "limit": 6}, classes=2, sizes=(12, 8), size=(40, 50))
    centres = np.array([[8.3, 9.9], [30.2, 12.6], [41.5, 33.1]])
    boxes = np.concatenate([centres - [6, 4], centres + [6, 4]], axis=-1)[None]
    labels = jnp.array([[0, 1, 0]])
    drawn = shape_prior.draw(jnp.float32(boxes), labels, 2, (40 // stride, 50 // stride), stride, 3.0)
    maps = jnp.log(drawn / (1 - drawn) + 1e-20) if form == "bounded" else drawn
    found = jax.jit(head.decode)(shape_prior.Outputs(maps, None))
    assert found.boxes.shape == (1, 6, 4)
    # All three at sub-pixel positions, and nothing else. Peaks that are sampled better score more, hence the sorting.
    assert (np.asarray(found.scores[0]) > 0).tolist() == [True] * 3 + [False] * 3
    order = np.lexsort((found.classes[0, :3], found.boxes[0, :3, 0]))
    np.testing.assert_allclose(found.boxes[0, :3][order], boxes[0], atol=0.02)
    assert found.classes[0, :3][order].tolist() == [0, 1, 0]
    assert np.isfinite(found.boxes).all()


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_dot_is_one_pixel_wherever_in_it_the_centre_lies(stride):
    centres = np.array([[8.3, 9.9], [29.0, 12.01], [41.99, 33.1]])
    boxes = jnp.float32(np.concatenate([centres - 6, centres + 6], axis=-1)[None])
    drawn = np.asarray(shape_prior.draw(boxes, jnp.zeros((1, 3), int), 1, (40 // stride, 50 // stride), stride, None))
    expected = np.zeros(drawn.shape)
    expected[0, *(centres // stride).astype(int).T[::-1], 0] = 1
    np.testing.assert_allclose(drawn, expected, atol=0.01)


def test_close_peaks_are_one_object_and_border_peaks_are_found():
    head = build()
    drawn = shape_prior.draw(
        jnp.float32([[[0, 14, 12, 26], [2, 14, 14, 26], [34, 34, 46, 46]]]), jnp.array([[0, 0, 0]]), 1, SIZE, 1, 1.0
    )
    found = head.decode(shape_prior.Outputs(jnp.log(0.9 * drawn / (1 - 0.9 * drawn)), None))
    # Of three peaks, two are 2 px apart, and the third is at the frame's corner.
    assert int((found.scores > 0).sum()) == 2
    corner = found.boxes[0, np.argmax(found.boxes[0, :2, 0])]
    np.testing.assert_allclose(corner, [34, 34, 46, 46], atol=0.6)


# --- Shapes and edges ---


def test_rings_are_ellipses_of_the_box():
    shapes = np.asarray(shape_prior.rings((20.0, 12.0), 3))
    assert shapes.shape == (3, 23, 23)
    for shape, scale in zip(shapes, (0.5, 0.75, 1.0), strict=True):
        row, column = np.nonzero(shape)
        radius = np.hypot((column - 11) / 10, (row - 11) / 6)
        assert np.abs(radius - scale).max() < 1 / 6 + 1e-6  # a pixel to either side across the minor axis
        np.testing.assert_array_equal(shape, shape[::-1, ::-1])


def test_edges_lie_on_the_discs():
    batch = discs(3)
    for images in (batch["images"], jnp.repeat(batch["images"], 3, axis=-1)):
        contours = np.asarray(build().targets(batch | {"images": images})[-1])
        assert contours.any((1, 2)).all()
        for n, row, column in np.argwhere(contours):
            boxes = np.asarray(batch["boxes"][n])[np.asarray(batch["labels"][n]) >= 0]
            distance = np.hypot(*((boxes[:, :2] + SIDE / 2) - [column + 0.5, row + 0.5]).T)
            assert np.abs(distance - 5).min() < 1.6, (n, row, column)


def test_errors_for_wrong_options_name_the_choices():
    for options, message in [({"form": "new"}, "printed"), ({"shapes": "squares"}, "learned")]:
        with pytest.raises(ValueError, match=message):
            build(**options)
    with pytest.raises(ValueError, match="output=map"):
        build().layer.init(jax.random.key(0), jnp.zeros((1, 5)))


# --- Training ---


def test_printed_form_collapses_to_no_predictions():
    batch = discs()
    head = build(form="printed", weight=1.0)
    outputs, losses = trained(head, batch, steps=50)
    dots = shape_prior.draw(batch["boxes"], batch["labels"], 1, SIZE, 1, None)
    assert losses[-1] > 0.9 * float((dots**2).mean())  # no better than an empty map
    assert float(outputs.maps.max()) < 0.05
    assert not (head.decode(outputs).scores > 0).any()


def test_printed_prior_has_no_effect_below_its_threshold():
    batch = discs(2)
    maps = jax.random.uniform(jax.random.key(0), (2, *SIZE, 1), maxval=0.49)

    def gradient(weight, maps):
        head = build(form="printed", weight=weight)
        return jax.grad(lambda m: head.loss(shape_prior.Outputs(m, None), head.targets(batch))[0])(maps)

    np.testing.assert_array_equal(gradient(1.0, maps), gradient(0.0, maps))
    assert np.abs(gradient(1.0, maps + 0.1) - gradient(0.0, maps + 0.1)).max() > 0.1


def test_printed_loss_is_unbounded_once_its_prior_is_active():
    """Doubling the outputs quadruples the loss, which is negative even at a tiny weight."""
    batch = discs()
    perfect = shape_prior.draw(batch["boxes"], batch["labels"], 1, SIZE, 1, 3.0)
    head = build(form="printed", sigma=3.0, weight=1e-4, threshold=0.0)
    targets = head.targets(batch)
    losses = [float(head.loss(shape_prior.Outputs(c * perfect, None), targets)[0]) for c in (1, 100, 200)]
    assert losses[0] < 0
    np.testing.assert_allclose(losses[2] / losses[1], 4, rtol=0.02)
    outputs, losses = trained(head, batch, steps=50)
    assert losses[-1] < -1e3
    assert float(outputs.maps.max()) > 100  # while targets are at most 1


@pytest.mark.parametrize(("stride", "side"), [(1, 13), (2, 7), (4, 3)])
def test_learned_shapes_have_the_size_of_an_object_on_the_map(stride, side):
    features = jnp.zeros((1, SIZE[0] // stride, SIZE[1] // stride, 2))
    outputs = jax.eval_shape(build(shapes="learned", count=5).layer.init_with_output, jax.random.key(0), features)[0]
    assert outputs.shapes.shape == (5, side, side)


@pytest.mark.parametrize("shapes", ["rings", pytest.param("learned", marks=pytest.mark.slow)])
def test_default_form_learns_drawn_discs(shapes):
    batch = discs()
    head = build(shapes=shapes)
    outputs, losses = trained(head, batch)
    assert losses[-1] < 0 < losses[0]
    found = head.decode(outputs)
    assert f1(found, batch, 0.5) > 0.9
    assert f1(found, batch, 0.1) > 0.9
