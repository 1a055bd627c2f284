"""The detectors on two splits: whole groups of near-identical frames held out, or single photographs at random.

    python launch/ablate.py --grid=configs/ablations/spines_detectors.py
        --config.data.images=PHOTOS --config.data.boxes=FILE

One fold of each split; --config.split.run="()" runs all folds, five by group and ten at random.
"""

from jaxmarks import config as configs


def get_grid(text: str = "") -> dict:
    """Returns the grid; there are no variants."""
    configs.variants(text, flags=())
    return {
        "config": "configs/spines.py",
        "cells": configs.product(
            detector={"centre": "centre", "YOLO": "yolo", "Faster R-CNN": "faster_rcnn", "SP-CNN": "sp_cnn"},
            split={"by group": {}, "at random": "random"},
        ),
        "metrics": ("f1", "f1_golden", "map50", "ms_per_image"),
    }
