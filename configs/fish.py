"""The fish paper: landmarks by heatmaps or by direct regression, with U-Net, FCN8, ResNet50 and HRNet.

    python -m jaxmarks.main --config=configs/fish.py[:variant,...] [--workdir=DIR] [--config.key=value]

Variants, which combine:
  (none)         phantom pronota (drawn by code), a small U-Net at half the frame's resolution: minutes on a laptop
  smoke          runs everything once, in less than a minute; its numbers mean nothing
  own            for your own photographs: five folds, so that each image is predicted by a network not trained on it;
                 a frame in the photographs' proportions, which heatmap networks first see at a lower resolution
  net=NAME       unet (default), fcn8, resnet50 or hrnet
  target=NAME    gaussian (default), exponential, or direct: coordinates from a fully connected layer on the encoder
  reduced        the paper's folds and heatmaps at laptop size: small networks, 64x64 frames, and 300 steps, in which
                 cross-entropy (used here) starts to learn and mean squared error does not
                 (configs/ablations/fish_losses.py)
  paper          the paper's protocol: networks at full width, 256x256x3, heatmaps of the input's size (sigma 5 for
                 Gaussian, 3 for exponential), mean squared error, argmax, RMSProp, learning rate x 0.2 after 200 epochs
                 without progress, a stop after 400 such epochs or 2,000 in all, five folds with the remaining images
                 split 3:1 into training and validation
  imagenet       with paper,net=resnet50: starts from ImageNet weights, as the paper does, instead of random ones

The paper's tables: table 1, the mean model, is the baseline "mean shape" of every run; table 2 is `paper,target=direct`
with `net=unet` and with `net=resnet50,imagenet`; table 3 is configs/ablations/fish_sigma.py; table 4 is
configs/ablations/fish_table4.py; table 5, the hit rates, is in every run's summary and report.
"""

import ml_collections

from jaxmarks import config as configs

NETS = ("unet", "fcn8", "resnet50", "hrnet")


def get_config(text: str = "") -> ml_collections.ConfigDict:
    """Returns the config for the comma-separated variants in `text`."""
    chosen = configs.variants(
        text,
        flags=("smoke", "own", "reduced", "paper", "imagenet"),
        options={"net": NETS, "target": ("gaussian", "exponential", "direct")},
    )
    net, target = chosen.get("net", "unet"), chosen.get("target", "gaussian")
    config = configs.base()
    config.channels = 3
    config.model = model(net, small="paper" not in chosen, direct=target == "direct")
    config.data.size = (192, 256)
    config.train.batch_size, config.train.steps = 16, 400
    config.optimizer.learning_rate = 2e-3
    config.head = head(target)
    if "own" in chosen:
        own(config, target)
    if "paper" in chosen:
        paper(config, target)
    elif "reduced" in chosen:
        reduced(config, target)
    if "imagenet" in chosen:
        config.weights = "imagenet"
    if "smoke" in chosen:
        configs.smoke(config)
    return configs.complete(config)


def own(config, target):
    """Adapts the config to a few dozen photographs: all five folds, no validation split, a frame in their proportions.

    The frame and the coarse steps of the heatmap networks are those of docs/measurements.md, "The frame".
    """
    config.data.size, config.data.zoom, config.data.pose = (), 0.0, ""
    config.split.run, config.split.valid = (), 0.0
    if target == "direct":
        config.train.steps = 500
    else:
        config.data.pixels, config.head.leap = 288 * 384, 8.0
        config.train.steps, config.train.coarse = 400, 0.75


def model(net, *, small, direct):
    """Returns the body's options: the paper's full width, or small and, if supported, at half the resolution."""
    options = {"name": net, "norm": "batch"}
    if net in ("unet", "hrnet"):
        options["stride"] = 2 if small else 1
    if small:
        options["width"] = 16
    if small and net == "hrnet":
        options |= {"modules": (1, 1, 1, 1), "blocks": 2}
    if direct and net not in ("unet", "resnet50"):
        raise ValueError(f"config variant net={net}: target=direct needs net=unet or net=resnet50")
    if direct:
        options |= {"output": "vector"}
    return options


def head(target):
    """Returns the options of the head that did best on a few dozen images."""
    if target == "direct":
        return {"name": "direct", "loss": "smooth_l1", "interval": "unit"}
    return {"name": "heatmap", "target": target, "sigma": 3.0, "loss": "cross_entropy"}


def paper(config, target):
    """Applies sections 4.3 to 4.5 of the paper."""
    protocol(config, target, frame=256)
    config.augment = {"name": "none"}
    config.optimizer = {"name": "rmsprop", "learning_rate": 1e-3, "plateau": 200, "plateau_factor": 0.2, "clip": 0.0}
    config.train.epochs, config.train.steps, config.train.patience = 2000, 0, 400
    config.head.loss = "mse"
    if target != "direct":
        config.head.decoder = "argmax"


def reduced(config, target):
    """Scales the paper's protocol down to what two CPU cores can train in minutes."""
    protocol(config, target, frame=64)
    if "stride" in config.model:
        config.model.stride = 1
    config.data.source_size = (256, 256)  # of the phantoms' photographs
    config.train.steps = 300
    config.baselines = ("mean_shape",)


def protocol(config, target, *, frame):
    """Sets the paper's folds, and its sigma (5 or 3) in proportion to a frame of `frame` x `frame` pixels."""
    config.data.size, config.data.zoom, config.data.pose = (frame, frame), 1.0, "upright"
    config.split.run, config.split.valid, config.train.coarse = (), 0.25, 0.0
    if target != "direct":
        config.head.sigma, config.head.leap = {"gaussian": 5.0, "exponential": 3.0}[target] * frame / 256, 0.0
