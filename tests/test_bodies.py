"""FCN8, ResNet50 and HRNet: the paper's parameter counts, and each or its main part against PyTorch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarks import models
from jaxmarks.models import encoders, fcn8, hrnet, layers, resnet50
from jaxmarks.models.encoders.resnet50 import COLOURS, Bottleneck

SMALL = {
    "fcn8": {"width": 4},
    "resnet50": {"width": 4, "depths": (1, 1, 1, 1)},
    "hrnet": {"width": 4, "modules": (1, 1, 1, 1), "blocks": 1},
}


def small(name, **options):
    return models.build({"name": name} | SMALL[name] | options)


def shape_of(net, shape):
    """Returns the shapes of the variables and of the output for images of this shape, without computing them."""
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), images)
    return variables, jax.eval_shape(net.apply, variables, images).shape


def count(variables):
    return sum(x.size for x in jax.tree.leaves(variables["params"]))


def images_of(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).random(shape, np.float32))


def randomised(net, *args, **kwargs):
    """Returns variables of the network with random values throughout: biases, scales and running statistics, too."""
    rng = np.random.default_rng(1)

    def draw(path, x):
        name = path[-1].key
        if name == "kernel":
            return np.float32(rng.normal(0, np.sqrt(2 / (x.size / x.shape[-1])), x.shape))
        if name in ("scale", "var"):
            return np.float32(rng.uniform(0.5, 1.5, x.shape))
        return np.float32(rng.normal(0, 0.3, x.shape))

    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), *args, **kwargs))
    return jax.tree_util.tree_map_with_path(draw, shapes)


# --- Sizes ---


# By hand. FCN8: VGG16's convolutions 14,710,464 + 8,448 of their norms; fc6 2,359,296 + 1,024 and fc7 262,144 + 1,024;
# scores (256 + 512 + 512) 32 + 96; transposed convolutions 32 32 (16 + 16 + 256).
# ResNet50: torchvision's 25,557,032 without the 2,049,000 of its classifier.
@pytest.mark.parametrize(
    "net, expected", [(fcn8.build(), 17_678_368), (encoders.build({"name": "resnet50"}), 23_508_032)]
)
def test_parameter_counts_by_hand(net, expected):
    images = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    assert count(jax.eval_shape(net.init, jax.random.key(0), images)) == expected


@pytest.mark.parametrize(
    "net, paper",
    [(fcn8.build(), 17e6), (resnet50.build(), 51e6), (resnet50.build(output="vector"), 30e6), (hrnet.build(), 6.5e6)],
    ids=["fcn8", "resnet50", "resnet50 vector", "hrnet"],
)
def test_parameter_counts_are_near_the_papers(net, paper):
    variables, (_, *size, features) = shape_of(net, (1, 256, 256, 3))
    outputs = 25 if size else 50  # a 1x1 convolution to 25 heatmaps, or a dense layer to 25 points
    assert abs(count(variables) + (features + 1) * outputs - paper) < 0.05 * paper


@pytest.mark.parametrize("height, width", [(64, 96), (50, 70), (31, 33), (7, 5)])
def test_output_sizes(height, width):
    images = (2, height, width, 1)
    up = lambda n, stride: (n + stride - 1) // stride
    assert shape_of(small("fcn8", score=9), images)[1] == (2, height, width, 9)
    assert shape_of(small("resnet50"), images)[1] == (2, height, width, 4)
    cells = up(height, 32) * up(width, 32)
    assert shape_of(small("resnet50", output="vector"), images)[1] == (2, cells * 4 * 32)
    for stride in (1, 2, 4):
        assert shape_of(small("hrnet", stride=stride), images)[1] == (2, up(height, stride), up(width, stride), 4)


@pytest.mark.parametrize("name", SMALL)
def test_frames_are_padded_to_multiples_of_32_by_repeating_their_edge(name):
    net = small(name, norm="group")
    images = images_of(1, 40, 50, 3)
    variables = randomised(net, images)
    whole = jax.jit(net.apply)(variables, jnp.asarray(np.pad(images, ((0, 0), (0, 24), (0, 14), (0, 0)), mode="edge")))
    mine = jax.jit(net.apply)(variables, images)
    # Group norm averages over the whole frame, so a network that cropped before its last norm would differ.
    np.testing.assert_allclose(mine, whole[:, : mine.shape[1], : mine.shape[2]], atol=1e-5)


# --- Training ---


@pytest.mark.parametrize("name", SMALL)
def test_parameters_get_gradients_and_only_training_moves_statistics(name):
    net = small(name)
    images = images_of(2, 64, 64, 3)
    variables = randomised(net, images)
    target = images_of(*shape_of(net, images.shape)[1], seed=2)

    @jax.jit
    def step(params):
        def loss(params, train):
            given = variables | {"params": params}
            out, new = net.apply(given, images, train=train, mutable=["batch_stats"])
            return ((out - target) ** 2).mean(), new["batch_stats"]

        return *jax.grad(loss, has_aux=True)(params, True), loss(params, False)[1]

    grads, moved, kept = step(variables["params"])
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(g).all() and np.abs(g).max() > 0, jax.tree_util.keystr(path)
    change = jax.tree.map(lambda a, b: np.abs(a - b).max(), variables["batch_stats"], moved)
    for path, most in jax.tree_util.tree_leaves_with_path(change):
        assert most > 1e-6, jax.tree_util.keystr(path)
    jax.tree.map(np.testing.assert_array_equal, kept, variables["batch_stats"])


def test_without_normalisation_residual_branches_start_at_zero():
    """Otherwise the variance would double with each of HRNet's forty blocks."""
    x = images_of(1, 8, 8, 16) - 0.5
    branches = [x, x[:, ::2, ::2, :8]]
    begin = lambda net, x: net.init_with_output(jax.random.key(0), x, train=True)[0]
    np.testing.assert_array_equal(begin(Bottleneck(4, norm="none"), x), nn.relu(x))
    np.testing.assert_array_equal(begin(hrnet.BasicBlock("none"), x), nn.relu(x))
    for mine, branch in zip(begin(hrnet.Exchange(2, "none"), branches), branches, strict=True):
        np.testing.assert_array_equal(mine, nn.relu(branch))


# --- Against PyTorch ---


def bchw(torch, x):
    return torch.from_numpy(np.array(x).transpose(0, 3, 1, 2))


class InTorch:
    """The three networks' layers in PyTorch, with flax parameters and fixed running statistics."""

    def __init__(self, variables):
        self.torch = pytest.importorskip("torch")
        self.f = self.torch.nn.functional
        self.variables = variables

    def at(self, path, collection="params"):
        node = self.variables[collection]
        for part in path.split("/"):
            node = node[part]
        return self.torch.from_numpy(np.array(node))

    def conv(self, x, path, stride=1, bias=False):
        kernel = self.at(f"{path}/kernel").permute(3, 2, 0, 1)
        return self.f.conv2d(
            x, kernel, self.at(f"{path}/bias") if bias else None, stride, padding=kernel.shape[-1] // 2
        )

    def conv_norm(self, x, path, stride=1):
        x = self.conv(x, f"{path}/conv", stride)
        at, norm = self.at, f"{path}/norm/batch"
        mean, var = at(f"{norm}/mean", "batch_stats"), at(f"{norm}/var", "batch_stats")
        return self.f.batch_norm(x, mean, var, at(f"{norm}/scale"), at(f"{norm}/bias"), eps=1e-5)

    def up(self, x, path, stride):
        kernel = self.at(f"{path}/kernel").permute(0, 3, 1, 2)
        return self.f.conv_transpose2d(x, kernel, stride=stride, padding=stride // 2)


def same(mine, theirs):
    theirs = theirs.numpy().transpose(0, 2, 3, 1)
    assert theirs.std() > 1e-2  # else the comparison would be meaningless
    np.testing.assert_allclose(mine, theirs, atol=1e-4 * np.abs(theirs).max())


def test_resnet_encoder_equals_pytorch():
    net = encoders.build({"name": "resnet50", "depths": (2, 1, 1, 1)})
    images = images_of(2, 64, 75, 3)  # maps with even and odd sides
    variables = randomised(net, images)
    net_torch = InTorch(variables)
    mean, std = (np.float32(c) for c in COLOURS)
    x = net_torch.conv_norm(bchw(net_torch.torch, (images - mean) / std), "stem", 2).relu()
    expected = [x]
    x = net_torch.f.max_pool2d(x, 3, 2, 1)
    for block, stride in (("layer1_0", 1), ("layer1_1", 1), ("layer2_0", 2), ("layer3_0", 2), ("layer4_0", 2)):
        y = net_torch.conv_norm(x, f"{block}/conv1").relu()
        y = net_torch.conv_norm(y, f"{block}/conv2", stride).relu()
        y = net_torch.conv_norm(y, f"{block}/conv3")
        x = (y + (x if block == "layer1_1" else net_torch.conv_norm(x, f"{block}/downsample", stride))).relu()
        if block != "layer1_0":
            expected.append(x)
    maps = jax.jit(net.apply)(variables, images)
    assert [m.shape[-1] for m in maps] == [64, 256, 512, 1024, 2048]
    for mine, theirs in zip(maps, expected, strict=True):
        same(mine, theirs)


def test_fcn8_equals_pytorch():
    net = small("fcn8", score=5)
    images = images_of(2, 64, 96, 3)
    variables = randomised(net, images)
    net_torch = InTorch(variables)
    x, pooled = bchw(net_torch.torch, images), []
    for block, depth in enumerate((2, 2, 3, 3, 3), 1):
        for i in range(depth):
            x = net_torch.conv_norm(x, f"conv{block}_{i + 1}").relu()
        x = net_torch.f.max_pool2d(x, 2)
        pooled.append(x)
    for name in ("fc6", "fc7"):
        x = net_torch.conv_norm(x, name).relu()
    x = net_torch.up(net_torch.conv(x, "score_fc7", bias=True), "up_fc7", 2)
    x = net_torch.up(x + net_torch.conv(pooled[3], "score_pool4", bias=True), "up_pool4", 2)
    x = net_torch.up(x + net_torch.conv(pooled[2], "score_pool3", bias=True), "up_pool3", 8)
    same(jax.jit(net.apply)(variables, images), x)


def test_hrnet_exchange_equals_pytorch():
    branches = [images_of(2, 16 >> b, 24 >> b, 3 << b, seed=b) for b in range(3)]
    net = hrnet.Exchange(3)
    variables = randomised(net, branches, train=False)
    t = InTorch(variables)
    fine, middle, coarse = (bchw(t.torch, b) for b in branches)
    resized = lambda x, like: t.f.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)
    expected = [
        fine + resized(t.conv_norm(middle, "from1_to0"), fine) + resized(t.conv_norm(coarse, "from2_to0"), fine),
        t.conv_norm(fine, "from0_to1", 2) + middle + resized(t.conv_norm(coarse, "from2_to1"), middle),
        t.conv_norm(t.conv_norm(fine, "from0_to2_1", 2).relu(), "from0_to2", 2)
        + t.conv_norm(middle, "from1_to2", 2) + coarse,
    ]  # fmt: skip
    for mine, theirs in zip(net.apply(variables, branches, train=False), expected, strict=True):
        same(mine, theirs.relu())


def test_every_hrnet_exchange_reaches_the_output():
    """Zeroing the weights from any coarser branch to the finest one changes the output."""
    net = small("hrnet", modules=(1, 1, 1, 2))
    images = images_of(1, 64, 64, 3)
    variables = randomised(net, images)
    apply = jax.jit(net.apply)
    expected = apply(variables, images)
    for stage, module in ((2, 0), (3, 0), (4, 0), (4, 1)):
        name = f"stage{stage}_{module}_exchange"
        exchange = variables["params"][name]
        for source in range(1, stage):
            silent = exchange | {f"from{source}_to0": jax.tree.map(np.zeros_like, exchange[f"from{source}_to0"])}
            out = apply(variables | {"params": variables["params"] | {name: silent}}, images)
            assert np.abs(out - expected).max() > 1e-3, (name, source)


@pytest.mark.parametrize("height, width", [(1, 1), (2, 5), (8, 9)])
def test_max_pool_3x3_and_its_gradient_equal_pytorch(height, width):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, height, width, 3)).astype(np.float32)
    theirs = bchw(torch, x).requires_grad_()
    pooled = torch.nn.functional.max_pool2d(theirs, 3, 2, 1)
    mine, pull = jax.vjp(layers.max_pool_3x3, x)
    np.testing.assert_array_equal(mine, pooled.detach().permute(0, 2, 3, 1))
    g = rng.normal(size=mine.shape).astype(np.float32)
    pooled.backward(bchw(torch, g))
    np.testing.assert_allclose(pull(g)[0], theirs.grad.permute(0, 2, 3, 1), atol=1e-6)


@pytest.mark.parametrize("stride", [2, 8])
def test_transposed_convolutions_begin_as_bilinear_upsampling(stride):
    """A map that is linear in the position stays so: each output pixel has the value at its own centre."""
    rows, columns = np.meshgrid(np.arange(5) + 0.5, np.arange(6) + 0.5, indexing="ij")
    plane = lambda y, x: np.stack([3 * x - 2 * y, x + y], -1).astype(np.float32)
    out, _ = fcn8.Upsample(stride).init_with_output(jax.random.key(0), plane(rows, columns)[None])
    fine = [(np.arange(n * stride) + 0.5) / stride for n in (5, 6)]
    expected = plane(*np.meshgrid(*fine, indexing="ij"))
    inside = slice(stride // 2, -(stride // 2))  # beyond the outermost centres there is nothing to interpolate with
    np.testing.assert_allclose(out[0, inside, inside], expected[inside, inside], atol=1e-5)


# --- Options ---


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"name": "resnet50", "output": "maps"}, "model.output='maps'"),
        ({"name": "resnet50", "depths": (3, 4, 6)}, "four numbers of bottlenecks"),
        ({"name": "hrnet", "stride": 8}, "model.stride=8"),
        ({"name": "hrnet", "modules": (1, 1, 0, 1)}, "at least 1"),
    ],
)
def test_invalid_options_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        models.build(spec)


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="instance"):
        shape_of(small("hrnet", norm="instance"), (1, 32, 32, 1))
