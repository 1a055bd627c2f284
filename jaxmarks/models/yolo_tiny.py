"""YOLOv2-tiny (Redmon and Farhadi 2017; the spine paper): eight convolutions, five poolings; the head is the ninth."""

from pathlib import Path

import flax.linen as nn
import numpy as np

from jaxmarks.models import layers

# The options of a network for tests.
TINY = {"width": 4}
# Output channels of Darknet's convolutions.
WIDTHS = (16, 32, 64, 128, 256, 512, 1024, 1024)
# Number of values in the convolution to ImageNet's classes, the eighth of Darknet's reference network.
IMAGENET_CONV_VALUES = 1000 * (1 + WIDTHS[6])


class YoloTiny(nn.Module):
    """Images (B, H, W, C) in [0, 1] -> features (B, H / 32, W / 32, 64 width); H and W must be multiples of 32."""

    width: int = 16
    norm: str = "batch"

    @nn.compact
    def __call__(self, x, *, train=False):
        if x.shape[1] % 32 or x.shape[2] % 32:
            raise ValueError(f"a frame of {x.shape[1]}x{x.shape[2]}: YOLO's grid needs sides that are multiples of 32")
        for i, channels in enumerate(WIDTHS, 1):
            x = layers.ConvNorm(channels * self.width // 16, norm=self.norm, name=f"conv{i}")(x, train=train)
            x = nn.leaky_relu(x, 0.1)
            if i <= 5:
                x = layers.max_pool(x)
        return x


def build(*, width=16, norm="batch"):
    """Builds YOLOv2-tiny's body, 15.7 M parameters without the head's convolution.

    Darknet's network has a sixth pooling, of stride 1; the spine paper has only the five others.

    Args:
      width: channels of the first convolution; the others are multiples of it.
      norm: `batch`, `group` or `none`.
    """
    return YoloTiny(width=width, norm=norm)


def read_weights(path, *, channels=3, width=16, norm="batch"):
    """Reads the body's variables from a Darknet file.

    The file is `yolov2-tiny-voc.weights`, its first layers, or ImageNet's `darknet.weights`: a header and, for each
    convolution, the bias, scale, mean and variance of its batch normalisation and the kernel, as little-endian float32.
    The last convolution, which predicts other classes, is not read. ImageNet's network (and `yolov2-tiny-voc.conv.13`,
    made from it) has only the first seven; layers that a file lacks are not in the result.

    Args:
      path: the file.
      channels: of the network's input: 3, or 1, for which the kernels of the three colours are summed.
      width, norm: the body's; they must be Darknet's (16 and "batch").

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file does not hold these layers, or the body has other ones.
    """
    if (width, norm) != (16, "batch"):
        raise ValueError(f"{path}: Darknet's weights need model.width=16 and norm=batch, not {width} and {norm}")
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"weights={path}: there is no such file; yolo_tiny takes Darknet's weights, such as"
            " --config.weights=yolov2-tiny-voc.weights"
        )
    raw = Path(path).read_bytes()
    major, minor = (int(n) for n in np.frombuffer(raw[:8].ljust(8, b"\0"), "<i4"))
    # Then come the revision and the number of images seen, which has 8 bytes since version 0.2.
    numbers = np.frombuffer(raw[20 if 10 * major + minor >= 2 else 16 :], np.uint8)
    numbers = numbers[: len(numbers) // 4 * 4].view("<f4")
    shapes = [(3, 3, into, out) for into, out in zip((3, *WIDTHS), WIDTHS, strict=False)]
    ends = np.cumsum([4 * shape[-1] + np.prod(shape) for shape in shapes])
    complete = int((ends <= len(numbers)).sum())
    rest = len(numbers) - (ends[complete - 1] if complete else 0)
    if not complete or (complete < len(shapes) and rest not in (0, IMAGENET_CONV_VALUES)):
        raise ValueError(
            f"{path}: its {len(raw)} bytes end within convolution {complete + 1} of YOLOv2-tiny; give a complete"
            " yolov2-tiny-voc.weights, or darknet.weights of ImageNet"
        )
    params, stats, position = {}, {}, 0

    def take(*shape):
        nonlocal position
        position += int(np.prod(shape))
        return numbers[position - int(np.prod(shape)) : position].reshape(shape)

    for i, (h, w, into, out) in enumerate(shapes[:complete], 1):
        bias, scale, mean, variance = (take(out) for _ in range(4))
        if not (np.isfinite(variance).all() and (variance >= 0).all()):
            raise ValueError(
                f"{path}: some variances of convolution {i} are negative or not finite; give a Darknet file of"
                " YOLOv2-tiny"
            )
        kernel = take(out, into, h, w).transpose(2, 3, 1, 0)
        if not all(np.isfinite(array).all() for array in (bias, scale, mean, kernel)):
            raise ValueError(f"{path}: convolution {i} has numbers that are not finite; download the file again")
        if i == 1 and channels == 1:
            kernel = kernel.sum(axis=2, keepdims=True)
        params[f"conv{i}"] = {"conv": {"kernel": kernel}, "norm": {"batch": {"bias": bias, "scale": scale}}}
        stats[f"conv{i}"] = {"norm": {"batch": {"mean": mean, "var": variance}}}
    return {"params": {"body": params}, "batch_stats": {"body": stats}}
