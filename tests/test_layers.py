"""The layers against XLA's own convolution and pooling, and dropout's independence of the devices."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import PartitionSpec

from jaxmarks import platforms
from jaxmarks.models import layers


def normal(draw, shape, dtype="float32"):
    """Draws with NumPy, which need not be compiled for every shape."""
    return jnp.asarray(draw.normal(size=shape), dtype)


def reference(x, kernel, padding, strides=(1, 1), dilation=1, groups=1):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, rhs_dilation=(dilation, dilation), dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )  # fmt: skip


# Samples cases for each rule by which the CPU path chooses for small maps, and cases outside all rules: odd, even and
# 1x1 kernels, maps of few pixels, one channel, channels above 16 that are and are not multiples of 16; strides and
# dilation.
@settings(max_examples=6)
@given(
    size=st.sampled_from([(5, 5), (2, 3), (7, 9)]),
    channels=st.tuples(st.sampled_from([1, 3, 24, 32]), st.sampled_from([1, 5])),
    kernel=st.sampled_from([(1, 1), (3, 3), (2, 2), (3, 2), (1, 4)]),
    padding=st.sampled_from(["VALID", "SAME", ((1, 2), (0, 1))]),
    stride_dilation=st.sampled_from([(1, 1), (2, 1), (1, 2)]),
    seed=st.integers(0, 99),
)
def test_conv_and_its_gradients_match_lax(size, channels, kernel, padding, stride_dilation, seed):
    (stride, dilation) = stride_dilation
    how = {"strides": (stride, stride), "dilation": dilation}
    draw = np.random.default_rng(seed)
    x = normal(draw, (2, *size, channels[0]))
    w = normal(draw, (*kernel, *channels))
    theirs, reference_pull = jax.vjp(lambda x, w: reference(x, w, padding, **how), x, w)
    ours, pull = jax.vjp(lambda x, w: layers.conv(x, w, padding=padding, **how), x, w)
    predicted = layers.conv(x, w, padding=padding, **how)  # without a gradient another implementation may be used
    assert ours.shape == predicted.shape == theirs.shape
    if not theirs.size:
        return
    cotangent = normal(draw, theirs.shape)
    expected = theirs, theirs, *reference_pull(cotangent)
    for mine, other in zip((ours, predicted, *pull(cotangent)), expected, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-5 * float(jnp.abs(other).max()))


# A case for each implementation of the kernel's gradient: patches with the channels first, patches, one matmul for each
# row of the kernel, the same for each image, and XLA's own.
LARGE = {
    "_by_patches_channels_first": ((8, 9, 3), (3, 3, 3, 5), "SAME"),
    "_by_patches": ((9, 8, 16), (2, 3, 16, 8), ((1, 0), (0, 2))),
    "_by_rows": ((20, 21, 32), (3, 3, 32, 64), "VALID"),
    "_by_images": ((40, 41, 16), (3, 3, 16, 34), ((0, 1), (1, 2))),
    None: ((12, 12, 32), (3, 3, 32, 16), "SAME"),
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 2e-2), ("float64", 1e-12)])
def test_each_kernel_gradient_matches_lax(name, dtype, tolerance):
    size, shape, padding = LARGE[name]
    chosen = layers._kernel_gradient((1, *size), shape)
    assert (chosen and chosen.__name__) == name
    with jax.enable_x64(dtype == "float64"):
        draw = np.random.default_rng(0)
        exact = "float64" if dtype == "float64" else "float32"
        x = normal(draw, (2, *size), dtype)
        w = normal(draw, shape, dtype)
        conv = functools.partial(layers.conv, padding=padding)
        g = normal(draw, jax.eval_shape(conv, x, w).shape, dtype)

        @jax.jit
        def ours(x, w, g):
            out, pull = jax.vjp(conv, x, w)
            return out, conv(x, w), *pull(g)

        @jax.jit
        def theirs(x, w, g):
            out, pull = jax.vjp(lambda x, w: reference(x, w, padding), x, w)
            return out, out, *pull(g)

        for mine, other in zip(ours(x, w, g), theirs(*(a.astype(exact) for a in (x, w, g))), strict=True):
            assert mine.dtype == dtype
            largest = float(jnp.abs(other).max())
            np.testing.assert_allclose(np.asarray(mine, exact), other, rtol=tolerance, atol=tolerance * largest)


def test_short_rows_are_laid_side_by_side():
    size, kernel, pads = (2, 12, 9, 8), (3, 2, 8, 5), ((1, 1), (0, 1))
    assert layers._short_rows(size, kernel) and not layers._short_rows((1, 256, 256, 64), (3, 3, 64, 64))
    x, w = normal(np.random.default_rng(0), size), normal(np.random.default_rng(1), kernel)
    expected = reference(x, w, pads)
    for way in (layers._side_by_side, layers._conv_same_size):
        np.testing.assert_allclose(way(x, w, pads), expected, rtol=1e-5, atol=1e-4)
    wide = jax.make_jaxpr(lambda x, w: layers.conv(x, w, padding=pads))(x, w)
    assert "f32[1,14,20,8]" in str(wide)  # two images of 9 columns, and one column of padding each


def test_exports_have_the_convolution_of_their_platform():
    x, kernel = jnp.ones((2, 8, 8, 20)), jnp.ones((1, 1, 20, 4))  # a matmul on the CPU
    matmul = lambda text: ("dot_general" in text, "stablehlo.convolution" in text)

    def lowered(what, *where):
        with platforms.tracing_for(what):
            exported = jax.export.export(jax.jit(lambda *operands: layers.conv(*operands)), platforms=where)(x, kernel)
        return exported, matmul(exported.mlir_module())

    assert lowered("any", "cpu")[1] == (True, False)
    assert lowered("any", "cuda")[1] == lowered("plain", "cpu")[1] == (False, True)
    exported, both = lowered("any", "cpu", "cuda", "tpu")
    assert both == (True, True)
    np.testing.assert_array_equal(exported.call(x, kernel), np.full((2, 8, 8, 4), 20.0))


def test_conv_and_pooling_under_vmap_export_and_a_second_derivative():
    kernel = normal(np.random.default_rng(0), (2, 2, 3, 4))
    x = normal(np.random.default_rng(1), (2, 5, 7, 3))
    plain = lambda x, k: nn.max_pool(reference(x, k, "VALID"), (2, 2), (2, 2))
    ours = lambda x, k: layers.max_pool(layers.conv(x, k, padding="VALID"))
    loss = lambda net: lambda k: jnp.sum(net(x, k) ** 3)
    assert layers._kernel_gradient(x.shape, kernel.shape)
    np.testing.assert_allclose(
        jax.vmap(jax.grad(loss(ours)))(kernel[None]), jax.vmap(jax.grad(loss(plain)))(kernel[None]), rtol=1e-4
    )
    twice = lambda net: jax.grad(lambda k: jnp.sum(jnp.sin(jax.grad(loss(net))(k))))(kernel)
    np.testing.assert_allclose(twice(ours), twice(plain), rtol=1e-3, atol=1e-3 * float(jnp.abs(twice(plain)).max()))
    batch = jax.export.symbolic_shape("b")[0]
    exported = jax.export.export(jax.jit(jax.grad(lambda x, k: jnp.sum(ours(x, k)), 1)))(
        jax.ShapeDtypeStruct((batch, 5, 7, 3), x.dtype), kernel
    )
    assert exported.call(x, kernel).shape == kernel.shape


# Depthwise with one and with two outputs per channel; groups as one, two and three dense convolutions.
@pytest.mark.parametrize(
    "channels, features, groups, kernel, padding, how",
    [
        (6, 6, 6, (5, 3), "SAME", {"strides": (2, 2)}),
        (6, 6, 6, (3, 2), ((1, 2), (0, 1)), {"strides": (1, 3), "dilation": 2}),
        (6, 12, 6, (3, 3), "VALID", {}),
        (8, 12, 2, (3, 3), "SAME", {"dilation": 2}),
        (128, 64, 32, (3, 3), ((1, 1), (1, 1)), {"strides": (2, 2)}),
        (192, 192, 3, (1, 2), "SAME", {}),
    ],
)
def test_grouped_convolutions_and_their_gradients_match_lax(channels, features, groups, kernel, padding, how):
    draw = np.random.default_rng(groups)
    x = normal(draw, (2, 6, 7, channels))
    w = normal(draw, (*kernel, channels // groups, features))
    shape = jax.eval_shape(lambda x, w: reference(x, w, padding, groups=groups, **how), x, w).shape
    cotangent = normal(draw, shape)

    @jax.jit
    def both(x, w):
        theirs, reference_pull = jax.vjp(lambda x, w: reference(x, w, padding, groups=groups, **how), x, w)
        ours, pull = jax.vjp(lambda x, w: layers.conv(x, w, padding=padding, groups=groups, **how), x, w)
        return (ours, *pull(cotangent)), (theirs, *reference_pull(cotangent))

    for mine, other in zip(*both(x, w), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-5 * float(jnp.abs(other).max()))


@pytest.mark.parametrize("size", [(6, 8), (7, 9), (2, 3)])
def test_max_pool_and_its_gradient_match_linen(size):
    x = normal(np.random.default_rng(0), (2, *size, 3))
    ours, pull = jax.vjp(layers.max_pool, x)
    theirs, reference_pull = jax.vjp(lambda x: nn.max_pool(x, (2, 2), (2, 2)), x)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(pull(jnp.ones_like(ours))[0], reference_pull(jnp.ones_like(ours))[0])


def test_pooling_a_map_of_one_row_is_refused():
    with pytest.raises(
        ValueError, match=r"a map of 1x4 cannot be halved: the frame \(--config.data.size\) is too small"
    ):
        layers.max_pool(jnp.ones((2, 1, 4, 3)))


def test_equal_maxima_share_the_gradient_of_pooling():
    x = jnp.zeros((1, 3, 4, 2)).at[0, 0, 0, 0].set(1.0)
    pull = jax.vjp(layers.max_pool, x)[1]
    (found,) = pull(jnp.ones((1, 1, 2, 2)))
    expected = np.full((1, 3, 4, 2), 0.25)
    expected[0, 2], expected[0, :2, :2, 0] = 0, 0
    expected[0, 0, 0, 0] = 1
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("pool", [layers.max_pool, layers.max_pool_3x3])
def test_pooling_gradient_tolerates_a_recomputed_input(pool):
    """XLA may compute the pooled input twice, for the pooling and for its gradient, and round it differently; here it
    does so without LLVM's optimisation, under the flags of these tests. A maximum equal to no value of its window would
    give NaN."""
    first, second, third = (layers.ConvNorm(8, norm="batch") for _ in range(3))

    def network(variables, x):
        for layer, each in zip((first, second), variables[:2], strict=True):
            x = nn.relu(layer.apply(each, x, train=True, mutable=["batch_stats"])[0])
        x, _ = third.apply(variables[2], pool(x), train=True, mutable=["batch_stats"])
        return jnp.sum(nn.relu(x) ** 2)

    draw = np.random.default_rng(0)
    x = normal(draw, (4, 10, 10, 8))
    fresh = jax.jit(functools.partial(first.init, train=False))(jax.random.key(0), x)
    random = lambda leaf: jnp.asarray(
        draw.normal(leaf.ndim == 1, 0.1 if leaf.ndim == 1 else 1, leaf.shape), jnp.float32
    )
    variables = [jax.tree.map(random, fresh) for _ in range(3)]
    slope = lambda level: jax.jit(jax.grad(network), compiler_options={"xla_backend_optimization_level": level})
    for found, expected in zip(*(jax.tree.leaves(slope(level)(variables, x)) for level in (0, 3)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_conv_module_matches_linen():
    x = normal(np.random.default_rng(0), (1, 6, 6, 2))
    ours = layers.Conv(3, (3, 2)).init(jax.random.key(1), x)
    theirs = nn.Conv(3, (3, 2)).init(jax.random.key(1), x)
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, theirs)
    np.testing.assert_allclose(
        layers.Conv(3, (3, 2)).apply(ours, x), nn.Conv(3, (3, 2)).apply(ours, x), rtol=1e-5, atol=1e-6
    )


def dropped(x, rate, key):
    return layers.Dropout(rate).apply({}, x, train=True, rngs={"dropout": key})


def test_dropout_drops_its_rate_and_keeps_the_mean():
    x = jnp.ones((8, 50, 50))
    y = dropped(x, 0.3, jax.random.key(0))
    assert abs(float((y == 0).mean()) - 0.3) < 0.015  # five standard errors of 20,000 draws are 0.016
    assert abs(float(y.mean()) - 1) < 0.02
    np.testing.assert_allclose(y[y > 0], 1 / 0.7, rtol=1e-6)
    np.testing.assert_array_equal(layers.Dropout(0.3).apply({}, x, train=False), x)


def test_dropout_is_the_same_on_two_devices_as_on_one():
    x, key = jnp.ones((4, 100)), jax.random.key(3)
    split = jax.pmap(lambda x, key: dropped(x, 0.5, key), layers.DEVICE_AXIS, in_axes=(0, None))
    np.testing.assert_array_equal(split(x.reshape(2, 2, 100), key).reshape(4, 100), dropped(x, 0.5, key))
    assert (dropped(x, 0.5, key)[0] != dropped(x, 0.5, key)[1]).any()


@pytest.mark.parametrize("layer", [layers.Norm(), layers.Dropout(0.5)])
def test_training_under_a_device_axis_of_another_name_is_refused(layer):
    x, keys = jnp.ones((2, 3, 4)), {"dropout": jax.random.key(0)}
    variables = layer.init(jax.random.key(0), x[0], train=False)

    def run(x, train=True):
        return layer.apply(variables, x, train=train, rngs=keys, mutable=["batch_stats"])[0]

    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    over_devices = functools.partial(
        jax.shard_map, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data")
    )
    for split, name in (
        (jax.pmap(run, "batch"), "batch"),
        (jax.jit(over_devices(run)), "data"),
        (jax.pmap(run), "pmap"),
    ):
        with pytest.raises(ValueError, match=f"axis is .*{name}.*: name it 'devices'"):
            split(x)
    jax.pmap(functools.partial(run, train=False), "batch")(x)
    jax.pmap(run, layers.DEVICE_AXIS)(x)
    alone = jnp.stack([run(one) for one in x])  # networks that train side by side on one device
    np.testing.assert_allclose(jax.vmap(run, axis_name="networks")(x), alone, rtol=1e-6)


@pytest.mark.parametrize("old, new", [((6, 8), (12, 16)), ((7, 5), (9, 20)), ((12, 9), (5, 4)), ((1, 3), (4, 3))])
def test_resize_interpolates_between_pixel_centres(old, new):
    x = expected = np.asarray(normal(np.random.default_rng(0), (2, *old, 3)))
    for axis, (before, after) in enumerate(zip(old, new, strict=True), 1):
        centres, places = np.arange(before) + 0.5, (np.arange(after) + 0.5) * before / after
        expected = np.apply_along_axis(lambda row: np.interp(places, centres, row), axis, expected)  # noqa: B023
    np.testing.assert_allclose(layers.resize(x, new), expected, atol=1e-5)
    np.testing.assert_allclose(jax.jit(layers.resize, static_argnums=1)(x, new), expected, atol=1e-5)
    assert layers.resize(jnp.asarray(x, jnp.bfloat16), new).dtype == jnp.bfloat16


@pytest.mark.parametrize("size", [(4, 6), (5, 6), (7, 9)])
def test_extending_repeats_the_last_row_and_column(size):
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
    missing = [(0, 0), (0, size[0] - 4), (0, size[1] - 6), (0, 0)]
    np.testing.assert_array_equal(layers.extend(x, size), np.pad(x, missing, mode="edge"))
    multiple = np.pad(x, [(0, 0), (0, 1), (0, 4), (0, 0)], mode="edge")
    np.testing.assert_array_equal(layers.pad_to(x, 5), multiple)


def test_full_dropout_has_a_zero_gradient():
    drop = lambda x: layers.Dropout(1.0).apply({}, x, train=True, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_array_equal(drop(jnp.ones((2, 3))), 0)
    np.testing.assert_array_equal(jax.grad(lambda x: drop(x).sum())(jnp.ones((2, 3))), 0)


@pytest.mark.parametrize("layer", [layers.Conv(3, (1, 1)), layers.UpConv(3)])
def test_a_bfloat16_bias_gets_the_sum_over_all_pixels_as_its_gradient(layer):
    """Each of 64 x 64 x 4 outputs adds 1; a sum in bfloat16 would stop at 256."""
    x = jnp.ones((4, 64, 64, 2), jnp.bfloat16)
    variables = jax.tree.map(lambda p: p.astype(jnp.bfloat16), layer.init(jax.random.key(0), x))

    @jax.grad
    def gradient(params):
        outputs = layer.apply({"params": params}, x)
        assert outputs.dtype == jnp.bfloat16
        return outputs.astype(jnp.float32).sum()

    pixels = x[..., 0].size * (4 if isinstance(layer, layers.UpConv) else 1)
    np.testing.assert_array_equal(jax.jit(gradient)(variables["params"])["bias"].astype(np.float32), pixels)
