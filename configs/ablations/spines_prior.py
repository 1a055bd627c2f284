"""The shape prior of SP-CNN: without it, with rings, with learned shapes, and the loss as printed.

    python launch/ablate.py --grid=configs/ablations/spines_prior.py --seeds=0,1,2
        --config.data.images=PHOTOS --config.data.boxes=FILE

The first of five folds, with whole groups held out.
"""

from jaxmarks import config as configs


def get_grid(text: str = "") -> dict:
    """Returns the grid; there are no variants."""
    configs.variants(text, flags=())
    priors = {
        "none": {"head.weight": 0.0},
        "rings": {},
        "learned shapes": {"head.shapes": "learned"},
        "as printed": {"head.form": "printed"},
    }
    return {
        "config": "configs/spines.py:sp_cnn",
        "cells": configs.product(prior=priors),
        "metrics": ("f1", "f1_golden", "map50"),
    }
