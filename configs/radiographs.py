"""The calibration thesis's networks, for cephalograms, chest radiographs and other images of one anatomy.

    python -m jaxmarks.main --config=configs/radiographs.py[:variant,...] [--workdir=DIR] [--config.key=value]

Variants, which combine:
  (none)         phantom pronota (drawn by code), a small U-Net: minutes on a laptop
  smoke          runs everything once, in less than a minute; its numbers mean nothing
  own            for your own radiographs: five folds, so that each image is predicted by a network not trained on it
  network=NAME   hourglass, flat_net, unet (default), unet_pp or deeplab_v3
  encoder=NAME   of the last three: plain (default), or one of jaxmarks/models/encoders
  thesis         the thesis's networks at full width in frames of 256x256, VGG19 as encoder, and its losses as printed:
                 for the hourglass, soft-argmax with the wing loss alone; for Flat-net, mean absolute error of heatmaps
                 after a tanh. For the others the thesis only says Gaussian heatmaps; mean squared error is used here.
                 No weight decay; training stops after 50 epochs without progress

On a laptop all heatmaps are trained with cross-entropy, which starts to learn within a few hundred steps, and the
soft-argmax adds to the wing loss a divergence that keeps its maps narrow. One fold of 80 cephalograms with two
annotators:

    python -m jaxmarks.main --config=configs/radiographs.py:own,network=unet_pp --workdir=runs/ceph
      --config.data.images=ceph/images --config.data.landmarks=ceph/annotator_a,ceph/annotator_b
      --config.data.size="(256,208)" --config.split.run="(0,)"
"""

import ml_collections

from jaxmarks import config as configs

NETWORKS = ("hourglass", "flat_net", "unet", "unet_pp", "deeplab_v3")
WITHOUT_ENCODER = ("hourglass", "flat_net")


def get_config(text: str = "") -> ml_collections.ConfigDict:
    """Returns the config for the comma-separated variants in `text`."""
    chosen = configs.variants(text, flags=("smoke", "own", "thesis"), options={"network": NETWORKS, "encoder": ()})
    network, encoder = chosen.get("network", "unet"), chosen.get("encoder")
    if encoder and network in WITHOUT_ENCODER:
        raise ValueError(
            f"config variant encoder={encoder}: network={network} has no replaceable encoder; omit one of the two"
        )
    config = configs.base()
    config.data.size = (192, 256)
    config.train.batch_size, config.train.steps = 16, 400
    config.optimizer.learning_rate = 2e-3
    config.model = small(network, encoder or "plain")
    config.head = head(network)
    if "own" in chosen:
        config.data.size, config.data.zoom, config.data.pose = (), 0.0, ""
        config.split.run, config.split.valid = (), 0.0
        if network != "hourglass":
            config.head.leap = 8.0
    if "thesis" in chosen:
        thesis(config, network, encoder or "vgg19")
    if "smoke" in chosen:
        configs.smoke(config, width=4)
        if network == "hourglass":
            config.model.depth = 2
    return configs.complete(config)


def small(network, encoder):
    """Returns the options of a laptop-sized body whose maps have a quarter of the frame's resolution."""
    options = {
        "hourglass": {"width": 8, "depth": 3, "dropout": 0.1},
        "flat_net": {"width": 8, "stride": 4},
        "unet": {"width": 32, "stride": 4},
        "unet_pp": {"width": 32, "stride": 4, "deep_supervision": True},
        # At stride 8 a frame of 256 gives as many cells as the paper's 513 at stride 16, so the rates are the same.
        "deeplab_v3": {"width": 64, "source": 8, "rates": (6, 12, 18), "stride": 4},
    }[network]
    if network not in WITHOUT_ENCODER:
        options["encoder"] = {"name": encoder} | ({"width": 16} if encoder == "plain" else {})
    return {"name": network, "norm": "batch"} | options


def head(network):
    """Returns the options of the head that did best on a few dozen images."""
    if network == "hourglass":
        return {"name": "softargmax", "loss": "wing", "divergence": 1.0, "sigma": 4.0}
    return {"name": "heatmap", "sigma": 4.0, "loss": "cross_entropy"}


def thesis(config, network, encoder):
    """Applies section 4.2 of the thesis and, where it is silent, the networks' own papers."""
    config.data.size, config.data.zoom, config.data.pose = (256, 256), 1.0, "upright"
    config.split.valid = 0.2
    config.optimizer = {"name": "adam", "learning_rate": 1e-4, "warmup": 0.0, "weight_decay": 0.0, "clip": 0.0}
    config.train.epochs, config.train.steps, config.train.patience = 300, 0, 50
    config.model = (
        {"name": network, "norm": "none" if network == "flat_net" else "batch"}
        | ({} if network in WITHOUT_ENCODER else {"encoder": {"name": encoder}})
        | ({"stride": 1} if network in ("unet", "unet_pp", "deeplab_v3") else {})
        | ({"width": 32} if network == "unet" else {})
    )
    if network == "hourglass":
        config.head.divergence = 0.0
    else:
        config.head.loss, config.head.decoder, config.head.leap = "mse", "argmax", 0.0
    if network == "flat_net":
        config.head.loss, config.head.tanh, config.head.sigma = "l1", True, 10.0
