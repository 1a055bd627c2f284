"""The networks of launch/bench.py in plain PyTorch and Keras: the same layers, losses and optimisers.

    python launch/peers.py torch|torch_channels_last|torch_compile|torch_channels_last_compile|keras|keras_xla

runs a worker: it reads commands from stdin, a JSON object per line, and answers each with one on stdout (see `serve`).
It imports only NumPy and the library, so that the library may live in its own environment.

A spec is {"network": one of NETWORKS, "batch": B, "settings": the config, "facts": of the data}. Images are random
uint8 (B, H, W, C), scaled to [0, 1] in the step; targets are computed in the step, as ours are. A prediction ends with
the network's outputs: decoding is left out, in the peers' favour.
"""

import itertools
import json
import math
import os
import resource
import sys
import time

import numpy as np

NETWORKS = ("network3", "unet31", "unet_small", "yolo_tiny", "hourglass")


def serve(build, **others):
    """Answers commands until stdin ends.

    {"set": spec} builds the network: {"parameters": their number}. {"run": "train" or "predict", "steps": n} takes n
    steps: {"seconds": per step, "cpu": CPU seconds of all cores per step}. {"memory": true}: {"peak_mb": the process's
    peak memory so far}. Any other first key calls one of `others`, or one of the functions that `build` returned. An
    exception is answered with {"error": text}, and the worker goes on.

    Args:
      build: spec -> (parameters, {"train": n -> None, "predict": n -> None, ...}); they return once the device is done.
      others: name -> a function of the command that returns the answer, or None to leave it to this function.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to stderr, not among the answers
    runs: dict = {}

    def answer(command):
        word = next(iter(command))
        if word in others and (reply := others[word](command)) is not None:
            return reply
        if word == "memory":
            return {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
        if word == "set":
            runs.clear()  # frees the old network before the next takes memory
            parameters, functions = build(command["set"])
            runs.update(functions)
            return {"parameters": parameters}
        if word == "run":
            started, cpu_started = time.perf_counter(), time.process_time()
            runs[command["run"]](command["steps"])
            elapsed = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu_started}
            return {key: value / command["steps"] for key, value in elapsed.items()}
        return runs[word]()

    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(reply), file=answers, flush=True)


def examples(spec):
    """Returns the batch, from a fixed seed: images (B, H, W, C) uint8, points (B, K, 2) in pixels, boxes (B, M, 4)."""
    rng = np.random.default_rng(0)
    settings, batch = spec["settings"], spec["batch"]
    height, width = settings["data"]["size"]
    points = rng.uniform((0, 0), (width, height), (batch, spec["facts"].get("landmarks", 0), 2))
    corners = rng.uniform((0, 0), (width - 24, height - 24), (batch, 6, 2))
    return {
        "images": rng.integers(0, 256, (batch, height, width, settings["channels"]), np.uint8),
        "points": points.astype(np.float32),
        "boxes": np.concatenate([corners, corners + 24], -1).astype(np.float32),
    }


def torch_worker(side):
    """Returns `build` of `serve` for PyTorch: eager, channels-last, compiled, or both."""
    import torch

    def build(spec):
        torch.manual_seed(0)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        network, loss = torch_network(spec), torch_loss(spec)
        layout = torch.channels_last if "channels_last" in side else torch.contiguous_format
        network = network.to(device, memory_format=layout)
        optimizer = torch_optimizer(spec, network.parameters())
        data = {name: torch.as_tensor(array, device=device) for name, array in examples(spec).items()}
        data["images"] = data["images"].permute(0, 3, 1, 2).contiguous(memory_format=layout)

        def compute_loss():
            return loss(network(data["images"] / 255), data)

        outputs = lambda: network(data["images"] / 255)
        if "compile" in side:
            compute_loss, outputs = torch.compile(compute_loss), torch.compile(outputs)

        def train(steps):
            network.train()
            for _ in range(steps):
                optimizer.zero_grad()
                result = compute_loss()
                result.backward()
                optimizer.step()
            result.item()

        @torch.inference_mode()
        def predict(steps):
            network.eval()
            for _ in range(steps):
                result = outputs()
            result.sum().item()

        return sum(p.numel() for p in network.parameters()), {"train": train, "predict": predict}

    return build


def torch_network(spec):
    """Returns the module of a spec: images (B, C, H, W) -> outputs as the loss takes them."""
    import torch
    import torch.nn as nn
    import torch.nn.functional as F

    settings, model = spec["settings"], spec["settings"]["model"]
    channels, size = settings["channels"], settings["data"]["size"]
    landmarks = spec["facts"].get("landmarks")

    def conv_norm(into, out, size=3, stride=1):
        conv = nn.Conv2d(into, out, size, stride, size // 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(out))

    def beetle():
        height, width, rates = *size, model["dropout"] or (0.1, 0.2, 0.3, 0.5)
        parts, into = [], channels
        for features, kernel, rate in zip((32, 64, 128), (3, 2, 2), rates, strict=False):
            parts += [nn.Conv2d(into, features, kernel), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(rate)]
            into, height, width = features, (height - kernel + 1) // 2, (width - kernel + 1) // 2
        hidden = model["width"] or 1000
        parts += [nn.Flatten(), nn.Linear(into * height * width, hidden), nn.ReLU(), nn.Dropout(rates[3])]
        return nn.Sequential(*parts, nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2 * landmarks))

    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            stride, depth = model["stride"], model.get("depth", 4)
            self.fold = nn.PixelUnshuffle(stride)
            widths = [model.get("width", 64) * 2**level for level in range(depth + 1)]
            double = lambda into, out: nn.Sequential(conv_norm(into, out), nn.ReLU(), conv_norm(out, out), nn.ReLU())
            input_widths = [channels * stride**2, *widths]
            self.down = nn.ModuleList(double(into, out) for into, out in zip(input_widths, widths, strict=False))
            self.up = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, 2) for width in widths[:-1])
            self.merge = nn.ModuleList(double(2 * width, width) for width in widths[:-1])
            self.maps = nn.Conv2d(widths[0], landmarks, 1)

        def forward(self, x):
            x, skips = self.fold(x), []
            for down in self.down[:-1]:
                skips.append(down(x))
                x = F.max_pool2d(skips[-1], 2)
            x = self.down[-1](x)
            for skip, up, merge in zip(skips[::-1], self.up[::-1], self.merge[::-1], strict=True):
                x = merge(torch.cat([skip, up(x)], 1))
            return self.maps(x)

    def yolo():
        parts, into = [], channels
        for i, out in enumerate((16, 32, 64, 128, 256, 512, 1024, 1024), 1):
            out = out * model["width"] // 16
            parts += [conv_norm(into, out), nn.LeakyReLU(0.1), *([nn.MaxPool2d(2)] if i <= 5 else [])]
            into = out
        anchors, classes = len(spec["facts"]["anchors"]), spec["facts"]["classes"]
        return nn.Sequential(*parts, nn.Conv2d(into, anchors * (5 + classes), 1))

    class Block(nn.Module):
        def __init__(self, into, out):
            super().__init__()
            half, quarter = out // 2, out // 4
            chain = (into, half, quarter, out - half - quarter)
            self.convs = nn.ModuleList(conv_norm(a, b) for a, b in itertools.pairwise(chain))
            self.shortcut = conv_norm(into, out, 1) if into != out else nn.Identity()

        def forward(self, x):
            first = F.relu(self.convs[0](x))
            second = F.relu(self.convs[1](first))
            return self.shortcut(x) + torch.cat([first, second, self.convs[2](second)], 1)

    class Level(nn.Module):
        def __init__(self, depth, into, width, out):
            super().__init__()
            three_blocks = lambda last: [Block(into, width), Block(width, width), Block(width, last)]
            inner = Level(depth - 1, width, width, out) if depth > 1 else Block(width, out)
            self.low = nn.Sequential(nn.MaxPool2d(2), *three_blocks(width), inner, Block(out, out))
            self.high = nn.Sequential(*three_blocks(out))

        def forward(self, x):
            low = F.interpolate(self.low(x), scale_factor=2, mode="bilinear", align_corners=False)
            return self.high(x) + low

    def hourglass():
        n, rate = model["width"], model["dropout"]
        entry = [conv_norm(channels, n, 7, 2), nn.ReLU(), Block(n, 2 * n), nn.MaxPool2d(2)]
        entry += [Block(2 * n, 2 * n), Block(2 * n, 2 * n), Block(2 * n, 4 * n)]
        mix = lambda into, out: [nn.Dropout(rate), conv_norm(into, out, 1), nn.ReLU()]
        out = [*mix(8 * n, 8 * n), *mix(8 * n, 4 * n), nn.Conv2d(4 * n, landmarks, 1)]
        return nn.Sequential(*entry, Level(model["depth"], 4 * n, 4 * n, 8 * n), *out)

    builders = {"network3": beetle, "yolo_tiny": yolo, "hourglass": hourglass}
    return builders.get(spec["network"], UNet)()


def torch_loss(spec):
    """Returns the config's loss for PyTorch: (outputs, data) -> a scalar over the batch."""
    import torch
    import torch.nn.functional as F

    head, (height, width) = spec["settings"]["head"], spec["settings"]["data"]["size"]
    frame = lambda points: torch.tensor([width, height], device=points.device, dtype=points.dtype)

    def direct(outputs, data):
        return torch.mean((outputs.reshape(data["points"].shape) - (2 * data["points"] / frame(outputs) - 1)) ** 2)

    def gaussians(outputs, points):
        """Returns Gaussians (B, K, h, w), and the stride of the maps."""
        step = 2 ** math.ceil(math.log2(height / outputs.shape[2]))
        sigma = head["sigma"] / step
        axis = lambda n, at: torch.exp(-0.5 * ((torch.arange(n, device=at.device) + 0.5 - at[..., None]) / sigma) ** 2)
        points = points / step
        down, across = axis(outputs.shape[2], points[..., 1]), axis(outputs.shape[3], points[..., 0])
        return down[..., :, None] * across[..., None, :], step

    normalised = lambda target: target / (target.sum(dim=(2, 3), keepdim=True) + 1e-12)
    log_softmax = lambda maps: F.log_softmax(maps.flatten(2), -1).reshape(maps.shape)

    def heatmap(outputs, data):
        target, _ = gaussians(outputs, data["points"])
        if head["loss"] == "mse":
            return torch.mean((outputs - target) ** 2)
        return -(normalised(target) * log_softmax(outputs)).sum(dim=(2, 3)).mean()

    def softargmax(outputs, data):
        target, step = gaussians(outputs, data["points"])
        log_p = log_softmax(outputs)
        p, q = log_p.exp(), normalised(target)
        centres = lambda n: torch.arange(n, device=p.device) + 0.5
        x, y = (p.sum(2) * centres(p.shape[3])).sum(-1), (p.sum(3) * centres(p.shape[2])).sum(-1)
        error = (2 * (torch.stack([x, y], -1) * step - data["points"]) / frame(outputs)).abs()
        limit, epsilon = 0.08, 0.016
        beyond = error - (limit - limit * math.log1p(limit / epsilon))
        wing = torch.where(error < limit, limit * torch.log1p(error / epsilon), beyond).mean()
        middle = torch.log((p + q) / 2 + 1e-30)
        divergence = ((p * (log_p - middle) + q * (torch.log(q + 1e-30) - middle)) / 2).sum(dim=(2, 3)).mean()
        return wing + head["divergence"] * divergence

    def yolo(outputs, data):
        anchors = torch.tensor(spec["facts"]["anchors"], device=outputs.device)
        b, _, h, w = outputs.shape
        step = height // h
        outputs = outputs.permute(0, 2, 3, 1).reshape(b, h, w, len(anchors), -1)
        boxes = data["boxes"]
        centre, extent = (boxes[..., :2] + boxes[..., 2:]) / 2 / step, boxes[..., 2:] - boxes[..., :2]
        intersection = torch.minimum(extent[..., None, :], anchors).prod(-1)
        union = extent.prod(-1)[..., None] + anchors.prod(-1) - intersection
        anchor_iou = intersection / union  # (B, M, A)
        column, row = centre.floor().long().unbind(-1)
        image = torch.arange(b, device=outputs.device)[:, None]
        cell = (image * h + row) * w + column
        # If several boxes want one anchor, the leftmost gets it, and the others the best one left in their cell.
        from_left = centre[..., 0].argsort(-1)
        rank, no_box = from_left.argsort(-1), boxes.shape[1]
        owner = torch.full((b * h * w + 1, len(anchors)), no_box, device=outputs.device)  # the last row is discarded
        pending = torch.ones_like(row, dtype=torch.bool)
        for _ in range(len(anchors)):
            free = owner[cell] == no_box
            best = torch.where(free, anchor_iou, -1).argmax(-1)
            pending = pending & free.any(-1)
            slot = torch.where(pending, cell, b * h * w) * len(anchors) + best
            owner = owner.flatten().scatter_reduce(0, slot.flatten(), rank.flatten(), "amin").reshape(owner.shape)
            pending = pending & (owner[cell, best] != rank)
        image_index = image[..., None, None]
        index = torch.cat([from_left, torch.full_like(image, no_box)], 1)[image_index, owner[:-1].reshape(b, h, w, -1)]
        has_box = index < no_box
        targets = torch.cat([centre - centre.floor(), torch.log(extent)], -1)
        targets = torch.cat([targets, torch.zeros_like(targets[:, :1])], 1)[image_index, index]
        goal = (targets - torch.cat([torch.zeros_like(anchors), torch.log(anchors)], -1)) * has_box[..., None]
        cells = torch.stack(
            torch.meshgrid(torch.arange(w, device=index.device), torch.arange(h, device=index.device), indexing="xy"),
            -1,
        )[:, :, None]
        at = (cells + outputs[..., :2].sigmoid()) * step
        half = torch.exp(outputs[..., 2:4]) * anchors / 2
        predicted = torch.cat([at - half, at + half], -1).reshape(b, -1, 1, 4)
        low, high = torch.maximum(predicted[..., :2], boxes[:, None, :, :2]), torch.minimum(
            predicted[..., 2:], boxes[:, None, :, 2:]
        )  # fmt: skip
        shared = (high - low).clamp(min=0).prod(-1)
        overlap = shared / ((predicted[..., 2:] - predicted[..., :2]).prod(-1) + extent.prod(-1)[:, None] - shared)
        iou = overlap.gather(-1, index.reshape(b, -1, 1).clamp(max=boxes.shape[1] - 1)).reshape(has_box.shape).detach()
        best_iou = overlap.amax(-1).reshape(has_box.shape).detach()
        regressed = torch.cat([outputs[..., :2].sigmoid(), outputs[..., 2:4]], -1)
        confidence = outputs[..., 4].sigmoid()
        total = ((regressed - goal) ** 2).sum(-1) * has_box + 5 * has_box * (iou - confidence) ** 2
        return (total + ~has_box * (best_iou < 0.6) * confidence**2).sum() / b

    return {"direct": direct, "heatmap": heatmap, "softargmax": softargmax, "yolo": yolo}[head["name"]]


def torch_optimizer(spec, parameters):
    """Returns the config's optimiser at its initial learning rate, fused where PyTorch offers that."""
    import torch

    options = spec["settings"]["optimizer"]
    rate = options["learning_rate"]
    if options["name"] == "nesterov":
        return torch.optim.SGD(parameters, rate[0], momentum=options["momentum"][0], nesterov=True, fused=True)
    if options["name"] == "rmsprop":
        return torch.optim.RMSprop(parameters, rate, alpha=0.9, eps=1e-7)
    return torch.optim.Adam(parameters, rate, fused=True)


def keras_worker(side):
    """Returns `build` of `serve` for Keras on TensorFlow, in graph mode or compiled by XLA.

    It has network3 and the U-Nets only.
    """
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras
    import tensorflow as tf
    from keras import layers, ops

    def double(x, width):
        for _ in range(2):
            x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
            x = layers.ReLU()(layers.BatchNormalization(epsilon=1e-5, momentum=0.9)(x))
        return x

    def beetle(x, model, landmarks):
        rates = model["dropout"] or (0.1, 0.2, 0.3, 0.5)
        for features, kernel, rate in zip((32, 64, 128), (3, 2, 2), rates, strict=False):
            x = layers.MaxPooling2D()(layers.Conv2D(features, kernel, activation="relu")(x))
            x = layers.Dropout(rate)(x)
        x = layers.Dense(model["width"] or 1000, activation="relu")(layers.Flatten()(x))
        x = layers.Dense(model["width"] or 1000, activation="relu")(layers.Dropout(rates[3])(x))
        return layers.Dense(2 * landmarks)(x)

    def unet(x, model, landmarks):
        skips, width = [], model.get("width", 64)
        if model["stride"] > 1:
            x = layers.Lambda(lambda x: tf.nn.space_to_depth(x, model["stride"]))(x)
        depth = model.get("depth", 4)
        for level in range(depth):
            skips.append(double(x, width * 2**level))
            x = layers.MaxPooling2D()(skips[-1])
        x = double(x, width * 2**depth)
        for level in reversed(range(depth)):
            x = layers.Conv2DTranspose(width * 2**level, 2, 2)(x)
            x = double(layers.Concatenate()([skips[level], x]), width * 2**level)
        return layers.Conv2D(landmarks, 1)(x)

    def build(spec):
        keras.utils.set_random_seed(0)
        settings, landmarks = spec["settings"], spec["facts"].get("landmarks")
        builders = {"network3": beetle, "unet31": unet, "unet_small": unet}
        if spec["network"] not in builders:
            raise NotImplementedError(f"there is no Keras version of {spec['network']}")
        data, (height, width) = examples(spec), settings["data"]["size"]
        images = keras.Input(data["images"].shape[1:], dtype="uint8")
        outputs = builders[spec["network"]](ops.cast(images, "float32") / 255, settings["model"], landmarks)
        network = keras.Model(images, outputs)
        frame = tf.constant([width, height], tf.float32)
        sigma = settings["head"].get("sigma", 1.0)

        def loss(points, outputs):
            if spec["network"] == "network3":
                return tf.reduce_mean((tf.reshape(outputs, tf.shape(points)) - (2 * points / frame - 1)) ** 2)
            step = height // outputs.shape[1]
            axis = lambda n, at: tf.exp(
                -0.5 * ((tf.range(n, dtype=tf.float32)[:, None] + 0.5 - at[:, None] / step) / (sigma / step)) ** 2
            )
            down, across = axis(outputs.shape[1], points[..., 1]), axis(outputs.shape[2], points[..., 0])
            target = down[:, :, None] * across[:, None]
            if settings["head"]["loss"] == "mse":
                return tf.reduce_mean((outputs - target) ** 2)
            flat = lambda maps: tf.reshape(maps, (tf.shape(maps)[0], -1, landmarks))
            target, logits = flat(target), tf.nn.log_softmax(flat(outputs), axis=1)
            return -tf.reduce_mean(tf.reduce_sum(target / tf.reduce_sum(target, 1, keepdims=True) * logits, 1))

        network.compile(keras_optimizer(keras, settings["optimizer"]), loss, jit_compile=side == "keras_xla")
        images, points = tf.constant(data["images"]), tf.constant(data["points"])
        forward = tf.function(lambda: network(images, training=False), jit_compile=side == "keras_xla")

        def train(steps):
            for _ in range(steps):
                network.train_on_batch(images, points)

        def predict(steps):
            for _ in range(steps):
                outputs = forward()
            float(tf.reduce_sum(outputs))

        return sum(math.prod(v.shape) for v in network.trainable_variables), {"train": train, "predict": predict}

    return build


def keras_optimizer(keras, options):
    """Returns the config's optimiser at its initial learning rate."""
    rate = options["learning_rate"]
    if options["name"] == "nesterov":
        return keras.optimizers.SGD(rate[0], momentum=options["momentum"][0], nesterov=True)
    if options["name"] == "rmsprop":
        return keras.optimizers.RMSprop(rate, rho=0.9, epsilon=1e-7)
    return keras.optimizers.Adam(rate)


if __name__ == "__main__":
    side = sys.argv[1] if len(sys.argv) == 2 else ""
    if not side.startswith(("torch", "keras")):
        sys.exit(__doc__)
    serve(torch_worker(side) if side.startswith("torch") else keras_worker(side))
