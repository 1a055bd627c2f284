"""The thesis's networks: output sizes, parameter counts, gradients, and comparisons with PyTorch and each other."""

import itertools
import runpy
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_bodies import InTorch, bchw, count, images_of, randomised, same, shape_of

from jaxmarks import find, heads, models, tasks
from jaxmarks.models import deeplab_v3, encoders, flat_net, hourglass, layers, unet_pp

QUICK = {"xla_backend_optimization_level": 1}  # most of a test's time is compilation
PLAIN = {"name": "plain", "width": 4}
SMALL = {
    "hourglass": {"width": 2, "depth": 1},
    "flat_net": {"width": 2, "rates": (1, 2), "stride": 2},
    "unet": {"width": 4, "stride": 4, "encoder": PLAIN},
    "unet_pp": {"width": 4, "stride": 4, "encoder": PLAIN, "deep_supervision": True},
    "deeplab_v3": {"width": 4, "source": 32, "rates": (1, 2), "encoder": PLAIN},
}


def small(name, **options):
    return models.build({"name": name} | SMALL[name] | options)


def quick(f, *args):
    return jax.jit(f, compiler_options=QUICK)(*args)


# --- Sizes ---


@pytest.mark.parametrize("height, width", [(64, 96), (31, 33)])
def test_output_sizes(height, width):
    images = (2, height, width, 1)
    up = lambda stride: (2, -(-height // stride), -(-width // stride))
    assert shape_of(small("hourglass"), images)[1] == (*up(4), 8)
    for stride in (1, 2, 4):
        assert shape_of(small("flat_net", stride=stride), images)[1] == (*up(stride), 4)
        assert shape_of(small("deeplab_v3", stride=stride), images)[1] == (*up(stride), 4)
        for name in ("unet", "unet_pp"):
            assert shape_of(small(name, stride=stride), images)[1] == (*up(stride), 2 if stride == 1 else 4)


@pytest.mark.parametrize("name", ["hourglass", "unet", "deeplab_v3"])
def test_frames_are_padded_by_repeating_their_edge(name):
    net = small(name, norm="none")
    images = images_of(1, 40, 50, 1)
    variables = randomised(net, images)
    whole = quick(net.apply, variables, jnp.asarray(np.pad(images, ((0, 0), (0, 24), (0, 14), (0, 0)), mode="edge")))
    mine = quick(net.apply, variables, images)
    rows, columns = mine.shape[1:3]
    if name == "hourglass":  # pads to multiples of 4 * 2^depth = 8: 40 is one, 50 becomes 56
        whole = quick(net.apply, variables, jnp.asarray(np.pad(images, ((0, 0), (0, 0), (0, 6), (0, 0)), mode="edge")))
    np.testing.assert_allclose(mine, whole[:, :rows, :columns], atol=1e-4 * np.abs(whole).max())


def conv(size, into, out):
    """Returns the number of parameters of a convolution and its batch norm."""
    return size * size * into * out + 2 * out


def double(into, out):
    return conv(3, into, out) + conv(3, out, out)


def up(into, out):
    return 4 * into * out + out


def test_parameter_counts_of_encoder_and_unets():
    levels = [32 * 2**i for i in range(5)]
    plain = double(12, 32) + sum(double(a, b) for a, b in itertools.pairwise(levels))
    assert count(shape_of_maps(encoders.build({"name": "plain"}))) == plain
    net = models.build({"name": "unet_pp", "stride": 1})
    nodes = sum(
        up(2 * levels[i], levels[i]) + double((j + 1) * levels[i], levels[i]) for i in range(4) for j in range(1, 5 - i)
    )
    assert count(shape_of(net, (1, 64, 64, 3))[0]) == plain + nodes + up(32, 16) + double(16, 16)
    # U-Net on the plain encoder has as many as with its own, which at stride 2 also folds 2x2 squares first.
    net = models.build({"name": "unet", "width": 32, "stride": 2, "encoder": {"name": "plain"}})
    own = models.build({"name": "unet", "width": 32, "stride": 2})
    assert count(shape_of(net, (1, 64, 64, 3))[0]) == count(shape_of(own, (1, 64, 64, 3))[0])


def shape_of_maps(encoder):
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(encoder.init, jax.random.key(0), images)
    maps = jax.eval_shape(encoder.apply, variables, images)
    assert [m.shape[1] for m in maps] == [32, 16, 8, 4, 2]
    return variables


def test_parameter_count_of_unet_pp_on_vgg19():
    """VGG19's maps have 128, 256, 512, 512 and 512 channels; VGG19 itself has 20,024,384 parameters."""
    into, out = [128, 256, 512, 512, 512], [32, 64, 128, 256]
    nodes = 0
    for i in range(4):
        for j in range(1, 5 - i):
            below = into[i + 1] if j == 1 else out[i + 1]
            nodes += up(below, out[i]) + double(into[i] + j * out[i], out[i])
    net = unet_pp.UNetPP(encoder=Maps(tuple(into)), stride=1)
    variables, _ = shape_of(net, (1, 64, 64, 3))
    assert count(variables) == nodes + up(32, 16) + double(16, 16)
    assert round((count(variables) + 20_024_384) / 1e6, 1) == 26.5


class Maps(nn.Module):
    """An encoder without parameters."""

    channels: tuple[int, ...]

    @nn.compact
    def __call__(self, images, train=False):
        b, h, w, _ = images.shape
        return [jnp.ones((b, h >> i, w >> i, c)) for i, c in enumerate(self.channels, 1)]


def test_parameter_count_of_the_hourglass():
    def block(into, out):
        half, quarter = out // 2, out // 4
        branch = conv(3, into, half) + conv(3, half, quarter) + conv(3, quarter, out - half - quarter)
        return branch + (conv(1, into, out) if into != out else 0)

    def level(depth, into, width, out):
        low = block(into, width) + 2 * block(width, width) + block(out, out)
        high = block(into, width) + block(width, width) + block(width, out)
        return low + high + (level(depth - 1, width, width, out) if depth > 1 else block(width, out))

    n = 24
    entry = conv(7, 3, n) + block(n, 2 * n) + 2 * block(2 * n, 2 * n) + block(2 * n, 4 * n)
    mix = conv(1, 8 * n, 8 * n) + conv(1, 8 * n, 4 * n)
    assert count(shape_of(hourglass.build(), (1, 256, 256, 3))[0]) == entry + level(6, 4 * n, 4 * n, 8 * n) + mix
    twice = shape_of(hourglass.build(stacks=2, depth=1), (1, 64, 64, 3))[0]
    assert count(twice) == entry + 2 * (level(1, 4 * n, 4 * n, 8 * n) + mix)


def test_parameter_count_of_the_published_flat_net():
    """Three channels, five landmarks, by hand: 5 (9 9 3 32 + 32 + 9 9 32 64 + 64) + 5 5 320 256 + 256 + the 1x1s."""
    net = models.Network(
        flat_net.build(norm="none"), heads.build({"name": "heatmap"}, landmarks=5, size=(64, 64)).layer
    )
    first = 5 * (7776 + 32 + 165_888 + 64)
    last = 2_048_000 + 256 + 256 * 128 + 128 + 128 * 64 + 64 + 64 * 5 + 5
    assert count(shape_of(net, (1, 64, 64, 3))[0]) == first + last


# --- Training ---


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_has_a_gradient(name):
    # Not group norm: of a single channel it cancels the bias before it, whose gradient is then mere rounding.
    net = small(name, norm="none" if name == "hourglass" else "batch")
    images = images_of(8, 32, 32, 3)
    variables = randomised(net, images)
    target = images_of(*shape_of(net, images.shape)[1], seed=2)

    def loss(params):
        rngs = {"dropout": jax.random.key(0)}
        out, _ = net.apply(variables | {"params": params}, images, train=True, mutable=["batch_stats"], rngs=rngs)
        return ((out - target) ** 2).mean()

    for path, g in jax.tree_util.tree_leaves_with_path(quick(jax.grad(loss), variables["params"])):
        assert np.isfinite(g).all() and np.abs(g).max() > 0, jax.tree_util.keystr(path)


def test_deep_supervision_trains_one_random_map_and_predicts_the_mean():
    net = unet_pp.UNetPP(encoder=Maps((1,) * 5), deep_supervision=True)
    maps = [jnp.full((400, 2, 1, 1), float(i)) for i in range(4)]
    call = lambda train, seed=0: net.apply({}, maps, train, method="one_of", rngs={"dropout": jax.random.key(seed)})
    np.testing.assert_array_equal(call(False), np.full((400, 2, 1, 1), 1.5))
    drawn = call(True)
    np.testing.assert_array_equal(drawn[:, 0], drawn[:, 1])  # one map for the whole image
    np.testing.assert_allclose(np.bincount(np.int32(drawn[:, 0, 0, 0]), minlength=4) / 400, 0.25, atol=0.08)
    assert (call(True, 1) != drawn).any()


@pytest.mark.slow
def test_unnormalised_hourglass_starts_with_moderate_outputs():
    """With ordinary initialisation the variance would double with each of its dozens of blocks."""
    net = hourglass.build(width=8, depth=2, norm="none")
    images = images_of(2, 32, 32, 1)
    out = quick(lambda key, x: net.init_with_output(key, x)[0], jax.random.key(0), images)
    assert 1e-2 < np.std(out) < 10


# --- Against PyTorch, and against each other ---


def double_conv(net, x, path):
    return net.conv_norm(net.conv_norm(x, f"{path}/conv1").relu(), f"{path}/conv2").relu()


def plain_encoder(net, x):
    """Returns the plain encoder's maps, computed in PyTorch."""
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(b, 4 * c, h // 2, w // 2)
    maps = []
    for level in range(5):
        x = double_conv(net, net.f.max_pool2d(x, 2) if level else x, f"encoder/down{level}")
        maps.append(x)
    return maps


def upsampled(net, x, path):
    kernel = net.at(f"{path}/kernel").permute(0, 3, 1, 2)
    return net.f.conv_transpose2d(x, kernel, net.at(f"{path}/bias"), stride=2)


def test_unet_pp_equals_its_equation_in_pytorch():
    """The paper's equation 1: x^{i,j} = H([x^{i,0}, ..., x^{i,j-1}, U(x^{i+1,j-1})])."""
    net = small("unet_pp", stride=1)
    images = images_of(2, 32, 64, 3)
    variables = randomised(net, images)
    t = InTorch(variables)
    maps = plain_encoder(t, bchw(t.torch, images))

    def x(i, j):
        if j == 0:
            return maps[i]
        below = upsampled(t, x(i + 1, j - 1), f"up{i}_{j}")
        return double_conv(t, t.torch.cat([*(x(i, k) for k in range(j)), below], 1), f"node{i}_{j}")

    mean = sum(x(0, j) for j in range(1, 5)) / 4
    expected = double_conv(t, upsampled(t, mean, "finish/up"), "finish/merge")
    same(quick(net.apply, variables, images), expected)


def test_unet_pp_without_its_inner_nodes_is_the_unet():
    images = images_of(2, 32, 32, 1)
    deep, plain = small("unet_pp", deep_supervision=False), small("unet")
    variables = randomised(plain, images)
    params = dict(randomised(deep, images)["params"]) | {"encoder": variables["params"]["encoder"]}
    stats = {"encoder": variables["batch_stats"]["encoder"]}
    for i in range(3):
        for j in range(1, 4 - i):
            if i + j < 3:
                stats[f"node{i}_{j}"] = variables["batch_stats"][f"merge{i}"]
                continue
            params[f"up{i}_{j}"] = variables["params"][f"up{i}"]
            merge, stats[f"node{i}_{j}"] = variables["params"][f"merge{i}"], variables["batch_stats"][f"merge{i}"]
            kernel = merge["conv1"]["conv"]["kernel"]
            skip = 4 * 2 ** (
                i + 1
            )  # channels of the encoder's map; those of the inner nodes and the upsampled map follow
            wide = np.concatenate(
                [kernel[:, :, :skip], np.zeros((3, 3, (j - 1) * 4 * 2**i, 4 * 2**i)), kernel[:, :, skip:]], 2
            )
            first = merge["conv1"] | {"conv": {"kernel": np.float32(wide)}}
            params[f"node{i}_{j}"] = merge | {"conv1": first}
    expected = quick(plain.apply, variables, images)
    assert np.std(expected) > 1e-2
    mine = quick(deep.apply, {"params": params, "batch_stats": stats}, images)
    np.testing.assert_allclose(mine, expected, atol=1e-4 * np.abs(expected).max())


def test_unet_on_the_plain_encoder_is_the_unet():
    images = images_of(2, 32, 64, 1)
    mine = models.build({"name": "unet", "width": 4, "stride": 2, "encoder": PLAIN})
    own = models.build({"name": "unet", "width": 4, "stride": 2})
    variables = randomised(own, images)

    def moved(tree):
        names = {"bottom": "down4"}
        inner = {names.get(k, k): v for k, v in tree.items() if k in names or k.startswith("down")}
        return {k: v for k, v in tree.items() if k.startswith(("up", "merge"))} | {"encoder": inner}

    expected = quick(own.apply, variables, images)
    assert np.std(expected) > 1e-2
    np.testing.assert_allclose(
        quick(mine.apply, {kind: moved(tree) for kind, tree in variables.items()}, images),
        expected,
        rtol=1e-5,
        atol=1e-5,
    )


def test_aspp_equals_pytorch():
    net = deeplab_v3.ASPP(6, (1, 2, 5), "batch", 0.0)
    x = images_of(2, 9, 11, 5) - 0.5
    variables = randomised(net, x, train=False)
    t = InTorch(variables)

    def block(x, path, rate=1):
        kernel = t.at(f"{path}/conv/kernel").permute(3, 2, 0, 1)
        x = t.f.conv2d(x, kernel, padding=kernel.shape[-1] // 2 * rate, dilation=rate)
        at, norm = t.at, f"{path}/norm/batch"
        mean, var = at(f"{norm}/mean", "batch_stats"), at(f"{norm}/var", "batch_stats")
        return t.f.batch_norm(x, mean, var, at(f"{norm}/scale"), at(f"{norm}/bias"), eps=1e-5).relu()

    given = bchw(t.torch, x)
    views = [block(given, "point"), *(block(given, f"rate{r}", r) for r in (1, 2, 5))]
    views.append(block(t.f.adaptive_avg_pool2d(given, 1), "mean").expand(-1, -1, 9, 11))
    expected = block(t.torch.cat(views, 1), "project")
    same(net.apply(variables, x, train=False), expected)
    batched = jax.vmap(lambda one: net.apply(variables, one[None], train=False)[0])(x)
    np.testing.assert_allclose(batched, expected.permute(0, 2, 3, 1), atol=1e-4)


def test_a_linear_head_commutes_with_deeplabs_upsampling():
    x, kernel = images_of(1, 4, 5, 3) - 0.5, images_of(3, 2, seed=1)
    np.testing.assert_allclose(layers.resize(x, (16, 20)) @ kernel, layers.resize(x @ kernel, (16, 20)), atol=1e-5)


def test_hourglass_equals_pytorch():
    net = small("hourglass", depth=2, stacks=2)
    images = images_of(1, 32, 32, 3)
    variables = randomised(net, images)
    t = InTorch(variables)

    def block(x, path):
        first = t.conv_norm(x, f"{path}/conv1").relu()
        second = t.conv_norm(first, f"{path}/conv2").relu()
        third = t.conv_norm(second, f"{path}/conv3")
        shortcut = t.conv_norm(x, f"{path}/shortcut") if x.shape[1] != 2 * first.shape[1] else x
        return shortcut + t.torch.cat([first, second, third], 1)

    def run(x, path, names):
        for name in names:
            x = block(x, f"{path}{name}")
        return x

    def level(x, path, depth):
        low = run(t.f.max_pool2d(x, 2), path, ("/low1", "/low2", "/low3"))
        low = level(low, f"{path}/inner", depth - 1) if depth > 1 else block(low, f"{path}/low4")
        low = t.f.interpolate(block(low, f"{path}/low5"), x.shape[2:], mode="bilinear", align_corners=False)
        return run(x, path, ("/high1", "/high2", "/high3")) + low

    x = t.conv_norm(bchw(t.torch, images), "entry", 2).relu()
    x = run(t.f.max_pool2d(block(x, "entry1"), 2), "entry", (2, 3, 4))
    out = None
    for stack in range(2):
        x = x if out is None else x + out
        out = level(x, f"hourglass{stack}", 2)
        out = t.conv_norm(t.conv_norm(out, f"mix{stack}_1").relu(), f"mix{stack}_2").relu()
    same(quick(net.apply, variables, images), out)


def test_flat_net_with_its_head_equals_the_published_network_in_pytorch():
    head = heads.build({"name": "heatmap", "tanh": True, "loss": "l1", "sigma": 4.0}, landmarks=2, size=(24, 20))
    net = models.Network(flat_net.build(width=2, norm="none"), head.layer)
    images = images_of(2, 24, 20, 3)
    variables = randomised(net, images)
    t = InTorch(variables)

    def conv(x, path, rate=1):
        kernel = t.at(f"{path}/kernel")
        kernel = kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T[:, :, None, None]
        return t.f.conv2d(x, kernel, t.at(f"{path}/bias"), padding=kernel.shape[-1] // 2 * rate, dilation=rate)

    views = []
    for rate in (1, 2, 3, 4, 5):
        x = conv(bchw(t.torch, images), f"body/L1_{rate}/conv", rate).relu()
        views.append(conv(x, f"body/L2_{rate}/conv", rate).relu())
    x = t.torch.cat(views, 1)
    for name in ("L4", "L5", "L6"):
        x = conv(x, f"body/{name}/conv").relu()
    maps = conv(x, "head/maps").tanh()
    outputs = quick(net.apply, variables, images)
    same(outputs, maps)
    # Its loss: the mean absolute error from Gaussians, here computed by formula.
    points = np.float32([[[5.5, 9.0], [12.0, 3.0]], [[1.0, 20.0], [9.5, 9.5]]])
    total, landmarks = head.loss(
        outputs, head.targets({"points": jnp.asarray(points), "visible": jnp.ones((2, 2), bool)})
    )
    rows, columns = np.mgrid[:24, :20] + 0.5
    gaussians = np.stack(
        [[np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 32) for x, y in each] for each in points], 0
    )
    np.testing.assert_allclose(total / landmarks, np.abs(maps.numpy() - gaussians).mean(), rtol=1e-4)


# --- Flat-net's receptive field ---


@pytest.mark.parametrize(("rates", "stride", "view"), [((1, 2, 3, 4, 5), 1, 85), ((1, 2), 1, 37), ((1, 2), 2, 74)])
def test_receptive_field_of_flat_net(rates, stride, view):
    """The middle output depends on all pixels of a square of side `view`, and on no others."""
    net = flat_net.build(width=1, rates=rates, stride=stride, norm="none")
    side = 2 * view - view % 2 + 10 - 10 % stride
    images = images_of(1, side, side, 1)
    variables = jax.tree.map(lambda x: np.float32(np.abs(x) + 0.01), randomised(net, images))  # every ReLU is active
    middle = side // stride // 2
    seen = np.abs(quick(jax.grad(lambda x: net.apply(variables, x)[0, middle, middle].sum()), images))[0, :, :, 0] > 0
    rows, columns = np.nonzero(seen.any(1))[0], np.nonzero(seen.any(0))[0]
    assert len(rows) == len(columns) == np.ptp(rows) + 1 == np.ptp(columns) + 1 == view
    assert seen[np.ix_(rows, columns)].all()
    assert (rows[0] + rows[-1] + 1) / 2 == (middle + 0.5) * stride  # centred on the output's own cell


def test_flat_net_is_translation_equivariant():
    net = flat_net.build(width=2, rates=(1, 2), stride=4, norm="none")
    image = np.zeros((1, 176, 176, 1), np.float32)
    image[:, 80:96, 80:96] = images_of(1, 16, 16, 1)
    variables = randomised(net, image)
    call = lambda x: quick(net.apply, variables, jnp.asarray(x))
    one, moved = call(image), call(np.roll(image, (8, -4), (1, 2)))
    inside = (
        slice(None),
        slice(13, 31),
        slice(13, 31),
    )  # where L2 and L4 do not reach the border, before or after the shift
    np.testing.assert_allclose(moved[inside], np.roll(one, (2, -1), (1, 2))[inside], atol=1e-4)
    assert np.std(one[inside]) > 1e-2


# --- Options ---


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"name": "unet", "encoder": PLAIN, "stride": 8}, "model.stride=8"),
        ({"name": "unet", "encoder": PLAIN, "depth": 3}, "model.depth=3"),
        ({"name": "unet_pp", "stride": 3}, "model.stride=3"),
        ({"name": "unet_pp", "encoder": {"name": "plane"}}, "no jaxmarks.models.encoders.plane; choose one of .*plain"),
        ({"name": "deeplab_v3", "source": 4}, "model.source=4"),
        ({"name": "hourglass", "depth": 0}, "model.depth=0"),
        ({"name": "flat_net", "stride": 3}, "model.stride=3"),
        ({"name": "encoders"}, "no jaxmarks.models.encoders; choose one of"),
    ],
)
def test_invalid_options_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        models.build(spec)


def test_tanh_is_refused_with_cross_entropy():
    with pytest.raises(ValueError, match=r"head\.tanh=True: head\.loss=cross_entropy needs unbounded maps"):
        heads.build({"name": "heatmap", "tanh": True, "loss": "cross_entropy"}, landmarks=1, size=(8, 8))


# --- configs/radiographs.py ---


def get_config(text):
    path = Path(__file__).parent.parent / "configs" / "radiographs.py"
    return runpy.run_path(str(path))["get_config"](text)


@pytest.mark.parametrize("variant", ["own", "smoke", "thesis,encoder=plain"])
@pytest.mark.parametrize("name", ["hourglass", "flat_net", "unet", "unet_pp", "deeplab_v3"])
def test_every_config_variant_builds_a_network(name, variant):
    """Only shapes are computed."""
    if name in ("hourglass", "flat_net"):
        variant = variant.removesuffix(",encoder=plain")
    config = get_config(f"{variant},network={name}")
    if variant == "own":
        config.data.size = (208, 240)  # which `own` leaves to be chosen from the photographs
    network, task = tasks.build(config, {"landmarks": 19})
    images = jnp.zeros((1, *config.data.size, config.channels))
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    maps = jax.eval_shape(network.apply, variables, images)
    stride = 4 if name == "hourglass" or "thesis" not in variant else 1
    assert maps.shape == (1, *(side // stride for side in config.data.size), 19)
    assert jax.eval_shape(task.head.decode, maps)[0].shape == (1, 19, 2)


def test_the_thesis_variant_has_its_settings():
    assert get_config("thesis,network=unet_pp").model.encoder.name == "vgg19"
    config = get_config("thesis,network=hourglass")
    assert (config.head.name, config.head.loss, config.head.divergence) == ("softargmax", "wing", 0.0)
    config = get_config("thesis,network=flat_net")
    assert (config.head.loss, config.head.tanh, config.model.norm, config.head.sigma) == ("l1", True, "none", 10.0)
    assert (config.optimizer.weight_decay, config.train.patience) == (0.0, 50)
    with pytest.raises(ValueError, match="network=flat_net has no replaceable encoder"):
        get_config("network=flat_net,encoder=plain")
    assert "plain" in find.names("jaxmarks.models.encoders")
