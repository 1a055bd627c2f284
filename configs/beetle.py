"""The beetle paper: landmarks of five parts, regressed by convolutional networks with fully connected layers.

    python -m jaxmarks.main --config=configs/beetle.py[:variant,...] [--workdir=DIR] [--config.key=value]

Variants, which combine:
  (none)         phantom pronota (drawn by code), half the paper's frame size, a modern optimiser: minutes on a laptop
  smoke          runs everything once, in less than a minute; its numbers mean nothing
  own            for your own photographs: five folds, so that each image is predicted by a network not trained on it
  part=NAME      left_mandible, right_mandible, pronotum, elytra or head (of the phantoms)
  network=N      the paper's network 1, 2 or 3 (default)
  pretrain       the paper's section 7: one network on pronotum, elytra and head together, 8 landmarks each
  finetune       the same, followed by fine-tuning that network on the part
  paper          the paper's exact protocol: network 3, 256x192, seven versions of every image, randomly split 60/40
                 into training and validation, Nesterov momentum with both ramps (learning rate, momentum), batch 128,
                 5,000 epochs, nine folds
"""

import ml_collections

from jaxmarks import config as configs

PARTS = ("left_mandible", "right_mandible", "pronotum", "elytra", "head")


def get_config(text: str = "") -> ml_collections.ConfigDict:
    """Returns the config for the comma-separated variants in `text`."""
    chosen = configs.variants(
        text,
        flags=("smoke", "own", "pretrain", "finetune", "paper"),
        options={"part": PARTS, "network": ("1", "2", "3")},
    )
    if "own" in chosen and "pretrain" in chosen:
        raise ValueError(
            "config variants own, pretrain: pretraining uses drawn beetles, not your photographs; choose own, finetune"
        )
    config = base()
    config.data.part = chosen.get("part", "pronotum")
    config.model.version = int(chosen.get("network", 3))
    if "own" in chosen:
        own(config)
    if "paper" in chosen:
        paper(config)
    if "smoke" in chosen:
        configs.smoke(config, size=(48, 64), count=27, width=64, batch_size=16, steps=8)
    if "pretrain" in chosen:
        config.stages = ("pretrain",)
    if "finetune" in chosen:
        config.stages = ("pretrain", "finetune")
    return configs.complete(config)


def base():
    """Returns the default config, which trains in about two minutes on two CPU cores."""
    config = configs.base()
    config.split.folds, config.split.valid = 9, 0.1
    config.model = {"name": "beetle", "version": 3, "width": 0, "dropout": (0.0, 0.0, 0.0, 0.2), "standardise": True}
    config.head = {"name": "direct", "loss": "smooth_l1"}
    config.train.batch_size, config.train.steps = 32, 700
    config.stage = {
        "pretrain": {
            "data": {
                "zoom": 1.0,
                "pose": "upright",
                "images": "",
                "landmarks": "",
                "part": "pronotum+elytra+head",
                "drop": ("elytra/1", "elytra/6", "elytra/9", "head/5", "head/6"),
            },
            "split": {"few": 0},
            "freeze": "",
        },
        "finetune": {},
    }
    return config


def own(config):
    """Adapts the config to a few dozen photographs: runs all five folds, without a validation split."""
    config.data.zoom, config.data.pose = 0.0, ""
    config.split.folds, config.split.run, config.split.valid = 5, (), 0.0
    config.train.batch_size = 16


def paper(config):
    """Applies sections 3 and 4 of the paper; to pretraining and fine-tuning, section 7 and the authors' code."""
    config.data.size, config.data.zoom, config.data.pose = (192, 256), 1.0, "upright"
    config.split.update({"by": "random", "folds": 9, "run": (), "valid": 0.4})
    config.augment = {"name": "paper_x7"}
    config.model.dropout, config.model.standardise, config.head.loss = (), False, "mse"
    config.optimizer = {"name": "nesterov", "learning_rate": (0.03, 0.00001), "momentum": (0.9, 0.9999), "clip": 0.0}
    config.train.batch_size, config.train.epochs, config.train.steps = 128, 5000, 0
    config.stage.pretrain.train = {"epochs": 10000}
    config.stage.finetune = {
        "optimizer": {"learning_rate": (0.01, 0.01), "momentum": (0.9, 0.9)},
        "train": {"epochs": 10000},
    }
