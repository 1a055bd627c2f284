"""The encoders against timm's, with weights that went through the readers of files and the strict conversion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarks import find, models
from jaxmarks.models import encoders, weights
from jaxmarks.models.encoders import colours

NAMES = find.names("jaxmarks.models.encoders")
NAMES = [n for n in NAMES if hasattr(find.module("jaxmarks.models.encoders", n, needs="__name__"), "build")]
# Most of a test's time is compilation.
QUICK = {"xla_backend_optimization_level": 1}


def tiny(name, **options):
    """An encoder's spec at its size for tests."""
    return {"name": name, **find.module("jaxmarks.models.encoders", name, needs="build").TINY, **options}


def images_of(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def shapes(spec, channels=3):
    return jax.eval_shape(encoders.build(spec).init, jax.random.key(0), jnp.zeros((1, 32, 32, channels)))


def apply(spec, variables, images):
    return jax.jit(encoders.build(spec).apply, compiler_options=QUICK)(variables, images)


# --- Against timm ---


@pytest.fixture(scope="module")
def timm():
    torch = pytest.importorskip("torch")
    # torchvision registers these operators for its compiled part, which a build of PyTorch for the CPU may lack.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    pytest.importorskip("torchvision")
    yield pytest.importorskip("timm")


def maps_of(name, model):
    """The modules of timm's network that make the five maps."""
    if name.startswith("vgg"):  # before each pooling but the first, and the last pooling
        pools = [i for i, layer in enumerate(model.features) if type(layer).__name__ == "MaxPool2d"]
        return [model.features[i] for i in [*(i - 1 for i in pools[1:]), pools[-1]]]
    if name.startswith("res"):
        return [model.act1, model.layer1, model.layer2, model.layer3, model.layer4]
    return [model.bn1, *(model.blocks[i] for i in (1, 2, 4, 6))]  # (activations are part of timm's norms)


def reference(timm, name, images, mean_std, **options):
    """timm's network with random weights and statistics: its state_dict, and the five maps."""
    import torch

    torch.manual_seed(0)
    with torch.device("meta"):  # nothing is drawn twice
        model = timm.create_model(name, pretrained=False, **options).eval()
    if name.startswith("vgg"):
        del model.pre_logits  # a hundred million numbers of no use here
    model.to_empty(device="cpu")
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.ndim == 4:
                value.normal_(0, (1.5 / value[0].numel()) ** 0.5)
            elif key.endswith("weight"):
                value.uniform_(0.3, 0.9)  # larger ones, and B7's 55 blocks make chaos of the last bits
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
def test_an_encoder_equals_timms(timm, tmp_path, spec, theirs, options):
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
