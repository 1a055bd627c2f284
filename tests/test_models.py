"""The beetle paper's networks: parameter counts, and two training steps against an independent NumPy network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarks import heads, models, optim, steps


def network(version, landmarks, size, **options):
    head = heads.build({"name": "direct", "loss": "mse"}, landmarks=landmarks, size=size)
    return models.Network(models.build({"name": "beetle", "version": version, **options}), head.layer), head


# Counted by hand: the convolutions have 320 + 8,256 + 32,896; FC1 takes a flattened map of 31 x 23 x 128 = 91,264;
# the dense layers of network 1 have 91,264 x 500 + 500, 500 x 500 + 500 and 500 x 16 + 16.
@pytest.mark.parametrize(
    "version, landmarks, count",
    [(1, 8, 41_472 + 45_632_500 + 250_500 + 8_016), (2, 8, 92_323_488), (3, 8, 92_323_488), (3, 18, 92_343_508)],
)
def test_parameter_counts_at_the_papers_size(version, landmarks, count):
    net, _ = network(version, landmarks, (192, 256))
    shapes = jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 192, 256, 1), jnp.float32))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == count


def forward(p, x):
    """Runs the network in NumPy, float64, with loops; also returns the activations that the backward pass needs."""
    tape = []
    for name in ("block1", "block2", "block3"):
        w, b = p["body"][name]["conv"]["kernel"], p["body"][name]["conv"]["bias"]
        h, k = w.shape[:2]
        rows, columns = x.shape[1] - h + 1, x.shape[2] - k + 1
        y = np.zeros((len(x), rows, columns, w.shape[3])) + b
        for i in range(h):
            for j in range(k):
                y += x[:, i : i + rows, j : j + columns] @ w[i, j]
        r = np.maximum(y, 0)
        cropped = r[:, : rows // 2 * 2, : columns // 2 * 2]
        pooled = cropped.reshape(len(x), rows // 2, 2, columns // 2, 2, -1).max((2, 4))
        tape.append((x, y, r, pooled))
        x = pooled
    flat = x.reshape(len(x), -1)
    a1 = flat @ p["body"]["fc1"]["kernel"] + p["body"]["fc1"]["bias"]
    a2 = np.maximum(a1, 0) @ p["body"]["fc2"]["kernel"] + p["body"]["fc2"]["bias"]
    out = np.maximum(a2, 0) @ p["head"]["fc3"]["kernel"] + p["head"]["fc3"]["bias"]
    return out, (tape, flat, a1, a2)


def backward(p, saved, g):
    """Returns the gradient of sum(g * out), by the chain rule."""
    tape, flat, a1, a2 = saved
    dense = lambda a, g: {"kernel": a.T @ g, "bias": g.sum(0)}
    grads = {"head": {"fc3": dense(np.maximum(a2, 0), g)}, "body": {}}
    g = g @ p["head"]["fc3"]["kernel"].T * (a2 > 0)
    grads["body"]["fc2"] = dense(np.maximum(a1, 0), g)
    g = g @ p["body"]["fc2"]["kernel"].T * (a1 > 0)
    grads["body"]["fc1"] = dense(flat, g)
    g = (g @ p["body"]["fc1"]["kernel"].T).reshape(tape[-1][3].shape)
    for name, (x, y, r, pooled) in zip(("block3", "block2", "block1"), tape[::-1], strict=True):
        w = p["body"][name]["conv"]["kernel"]
        spread = np.zeros_like(y)
        for n, i, j, c in np.ndindex(pooled.shape):
            window = r[n, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c]
            di, dj = np.unravel_index(window.argmax(), (2, 2))
            spread[n, 2 * i + di, 2 * j + dj, c] = g[n, i, j, c]
        spread *= y > 0
        dw, dx = np.zeros_like(w), np.zeros_like(x)
        rows, columns = spread.shape[1:3]
        for i in range(w.shape[0]):
            for j in range(w.shape[1]):
                patch = x[:, i : i + rows, j : j + columns]
                dw[i, j] = np.einsum("nijc,nijf->cf", patch, spread)
                dx[:, i : i + rows, j : j + columns] += spread @ w[i, j].T
        grads["body"][name] = {"conv": {"kernel": dw, "bias": spread.sum((0, 1, 2))}}
        g = dx
    return grads


def test_two_training_steps_match_numpy(monkeypatch):
    size, landmarks = (22, 26), 3
    net, head = network(3, landmarks, size, width=20, dropout=(0.0,) * 4)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, *size, 1), dtype=np.uint8)
    points = rng.uniform(0, size[::-1], (5, landmarks, 2)).astype(np.float32)
    visible = rng.random((5, landmarks)) > 0.3
    params = net.init(jax.random.key(1), jnp.zeros((1, *size, 1)))["params"]
    plain = lambda batch: batch | {"images": batch["images"] / jnp.float32(255)}
    task = steps.Task(net.apply, head, lambda keys, batch: plain(batch), plain)
    rate, momentum = (0.3, 0.1), (0.9, 0.99)
    tx = optim.ramps(rate, momentum, epochs=2, steps_per_epoch=1)
    step = jax.jit(functools.partial(steps.train_step, task=task, tx=tx))
    state = steps.create({"params": params}, tx)
    data = {"images": jnp.asarray(images), "points": jnp.asarray(points), "visible": jnp.asarray(visible)}

    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    v = jax.tree.map(np.zeros_like, p)
    true = (points - [13, 11]) / [13, 11]
    rows = jnp.asarray([0, 3, 4, -1, 1])
    chosen = np.array([0, 3, 4, 1])
    mask = visible[chosen][..., None] * np.ones(2)
    for r, m in zip(rate, momentum, strict=True):
        state, (total, count) = step(state, data, rows, jax.random.key(2))
        out, saved = forward(p, images[chosen] / 255)
        error = (out.reshape(-1, landmarks, 2) - true[chosen]) * mask
        np.testing.assert_allclose(total / count, (error**2).sum() / mask.sum(), rtol=1e-5)
        grads = backward(p, saved, (2 * error / mask.sum()).reshape(len(chosen), -1))
        # Lasagne: v <- m v - r g, p <- p + m v - r g
        v = jax.tree.map(lambda v, g, m=m, r=r: m * v - r * g, v, grads)
        p = jax.tree.map(lambda p, v, g, m=m, r=r: p + m * v - r * g, p, v, grads)
    for mine, theirs in zip(jax.tree.leaves(state.variables), jax.tree.leaves(p), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
    moved = np.abs(
        np.asarray(state.variables["params"]["head"]["fc3"]["kernel"]) - np.asarray(params["head"]["fc3"]["kernel"])
    )
    assert moved.max() > 1e-3  # far above the tolerance, so the comparison is meaningful


def test_errors_for_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="beetle"):
        models.build({"name": "beatle"})
    with pytest.raises(ValueError, match="direct"):
        heads.build({"name": "driect"}, landmarks=2, size=(8, 8))
    with pytest.raises(ValueError, match="1, 2 or 3"):
        models.build({"name": "beetle", "version": 4})
