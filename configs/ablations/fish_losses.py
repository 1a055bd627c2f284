"""Heatmap losses and decoders, compared after a short training.

    python launch/ablate.py --grid=configs/ablations/fish_losses.py [--seeds=0,1,2]
        --config.data.images=PHOTOS --config.data.landmarks=FILE

U-Net with Gaussian heatmaps, reduced as in configs/ablations/fish_table4.py, one fold each.
"""

from jaxmarks import config as configs


def get_grid(text: str = "") -> dict:
    """Returns the grid; there are no variants."""
    configs.variants(text, flags=())
    losses = ("mse", "weighted_mse", "adaptive_wing", "cross_entropy", "jensen_shannon")
    return {
        "config": "configs/fish.py:reduced",
        "cells": configs.product(
            loss={loss.replace("_", " "): {"head.loss": loss} for loss in losses},
            decoder={"argmax": {"head.decoder": "argmax"}, "local soft-argmax": {}},
        ),
        "overrides": {"split.run": (0,)},
    }
