"""YOLOv2-tiny: its shapes, and Darknet's weights compared with PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarks import heads, models
from jaxmarks.models import yolo_tiny


def write_darknet(path, *, version=(0, 2), seed=0):
    """Writes a file as Darknet does; returns its layers as (bias, scale, mean, variance, kernel (out, in, 3, 3))."""
    rng = np.random.default_rng(seed)
    chunks = [np.array([*version, 5], "<i4").tobytes(), np.array([32013312], "<i8" if version >= (0, 2) else "<i4").tobytes()]  # fmt: skip
    into, known = 3, []
    for out in yolo_tiny.WIDTHS:
        kernel = rng.normal(0, (2 / (9 * into)) ** 0.5, (out, into, 3, 3)).astype(np.float32)
        layer = (
            *rng.normal(0, 0.2, (3, out)).astype(np.float32),
            rng.uniform(0.5, 1.5, out).astype(np.float32),
            kernel,
        )
        layer = (layer[0], 1 + layer[1], *layer[2:])
        chunks += [part.tobytes() for part in layer]
        known.append(layer)
        into = out
    chunks.append(rng.normal(size=125 * 1025).astype("<f4").tobytes())  # the last convolution
    path.write_bytes(b"".join(chunks))
    return known


@pytest.mark.parametrize("version", [(0, 1), (0, 2)])
def test_darknet_weights_match_torch(tmp_path, version):
    torch = pytest.importorskip("torch")
    known = write_darknet(tmp_path / "tiny.weights", version=version)
    variables = yolo_tiny.read_weights(tmp_path / "tiny.weights")
    images = np.random.default_rng(1).random((2, 64, 96, 3), np.float32)
    x = torch.tensor(images.transpose(0, 3, 1, 2))
    for i, (bias, scale, mean, variance, kernel) in enumerate(known, 1):
        x = torch.nn.functional.conv2d(x, torch.tensor(kernel), padding=1)
        x = torch.nn.functional.batch_norm(x, *(torch.tensor(v) for v in (mean, variance, scale, bias)), eps=1e-5)
        x = torch.nn.functional.leaky_relu(x, 0.1)
        if i <= 5:
            x = torch.nn.functional.max_pool2d(x, 2)
    body = {kind: tree["body"] for kind, tree in variables.items()}
    found = models.build({"name": "yolo_tiny"}).apply(body, images)
    expected = x.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    grey = np.repeat(images[..., :1], 3, axis=-1)
    one = yolo_tiny.read_weights(tmp_path / "tiny.weights", channels=1)
    one = {kind: tree["body"] for kind, tree in one.items()}
    three, single = (models.build({"name": "yolo_tiny"}).apply(v, x) for v, x in ((body, grey), (one, images[..., :1])))
    np.testing.assert_allclose(three, single, atol=1e-4 * np.abs(three).max())


def test_damaged_darknet_files_are_refused(tmp_path):
    write_darknet(tmp_path / "tiny.weights")
    raw = (tmp_path / "tiny.weights").read_bytes()
    (tmp_path / "short.weights").write_bytes(raw[:1000])
    with pytest.raises(ValueError, match=r"short\.weights: its 1000 bytes end within convolution 1"):
        yolo_tiny.read_weights(tmp_path / "short.weights")
    (tmp_path / "other.weights").write_bytes(raw[:20] + np.full(len(raw) // 4, -1.0, "<f4").tobytes())
    with pytest.raises(ValueError, match="variances of convolution 1"):
        yolo_tiny.read_weights(tmp_path / "other.weights")
    # A NaN in the first convolution's bias, scale or mean (16 values each), or, behind the variances, in its kernel.
    for at in (0, 17, 33, 65):
        odd = bytearray(raw)
        odd[20 + 4 * at : 24 + 4 * at] = np.array(np.nan, "<f4").tobytes()
        (tmp_path / "odd.weights").write_bytes(odd)
        with pytest.raises(ValueError, match=r"odd\.weights: convolution 1 has numbers that are not finite"):
            yolo_tiny.read_weights(tmp_path / "odd.weights")


@pytest.mark.parametrize(("tail", "layers"), [(0, 7), (1000 * 1025, 7), (-4, None), (8, None)])
def test_the_first_layers_of_darknets_imagenet_network_are_read(tmp_path, tail, layers):
    """With or without the convolution to 1,000 classes that follows them; a file that ends elsewhere is refused."""
    write_darknet(tmp_path / "tiny.weights")
    raw = (tmp_path / "tiny.weights").read_bytes()
    seven = 20 + 4 * sum(
        out * (4 + 9 * into) for into, out in zip((3, *yolo_tiny.WIDTHS), yolo_tiny.WIDTHS[:7], strict=False)
    )
    (tmp_path / "darknet.weights").write_bytes(raw[: seven + min(tail, 0)] + bytes(4 * max(tail, 0)))
    if layers is None:
        with pytest.raises(ValueError, match=r"darknet\.weights: its \d+ bytes end within convolution [78]"):
            yolo_tiny.read_weights(tmp_path / "darknet.weights")
        return
    found, whole = (yolo_tiny.read_weights(tmp_path / name) for name in ("darknet.weights", "tiny.weights"))
    for kind in ("params", "batch_stats"):
        assert list(found[kind]["body"]) == [f"conv{i}" for i in range(1, layers + 1)]
        jax.tree.map(
            np.testing.assert_array_equal, found[kind]["body"], {k: whole[kind]["body"][k] for k in found[kind]["body"]}
        )


@pytest.mark.parametrize("source", ["imagenet", "hf:timm/resnet50.tv_in1k", "."])
def test_unknown_weights_error_suggests_a_darknet_file(source):
    with pytest.raises(FileNotFoundError, match=f"weights={source}: there is no such file; .*yolov2-tiny-voc.weights"):
        models.read_weights({"name": "yolo_tiny"}, source, channels=3)


def test_shapes_of_the_papers_network():
    head = heads.build({"name": "yolo"}, size=(416, 416), classes=1, anchors=[[10.0, 10.0]] * 3)
    network = models.Network(models.build({"name": "yolo_tiny"}), head.layer)
    image = jnp.zeros((1, 416, 416, 3))
    variables = jax.eval_shape(network.init, jax.random.key(0), image)
    kernels = [x.shape for x in jax.tree.leaves(variables["params"]) if len(x.shape) > 1]
    assert len(kernels) == 9
    assert jax.eval_shape(network.apply, variables, image).shape == (1, 13, 13, 3, 6)
    with pytest.raises(ValueError, match="multiples of 32"):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 400, 416, 3)))


def test_boxes_are_placed_right_if_the_stride_does_not_divide_the_frame():
    """300 pixels at stride 16 make 19 cells, of which the last extends to 304."""
    head = heads.build({"name": "yolo"}, size=(300, 300), classes=1, anchors=[[16.0, 16.0]])
    outputs = np.full((1, 19, 19, 1, 6), -20.0, np.float32)
    outputs[..., :4] = 0
    outputs[0, 18, 17, 0, 4] = 20
    found = head.decode(jnp.asarray(outputs))
    np.testing.assert_allclose(
        found.boxes[0, 0], [17.5 * 16 - 8, 18.5 * 16 - 8, 17.5 * 16 + 8, 18.5 * 16 + 8], atol=0.01
    )
