"""Table 3 of the fish paper: the width of the heatmaps' peaks, sigma from 1 to 10, with U-Net.

    python launch/ablate.py --grid=configs/ablations/fish_sigma.py[:paper] [--seeds=0,1,2]
        --config.data.images=PHOTOS --config.data.landmarks=FILE

By default reduced as in configs/ablations/fish_table4.py, with cross-entropy, one fold each, and sigma in proportion to
the frame; with `paper`, the paper's protocol.
"""

from jaxmarks import config as configs


def get_grid(text: str = "") -> dict:
    """Returns the grid for the variants in `text`."""
    paper = "paper" in configs.variants(text, flags=("paper",))
    return {
        "config": "configs/fish.py:paper" if paper else "configs/fish.py:reduced",
        "cells": configs.product(
            sigma={f"{sigma}": {"head.sigma": float(sigma if paper else sigma / 4)} for sigma in range(1, 11)},
            heatmap={"Gaussian": "target=gaussian", "exponential": "target=exponential"},
        ),
        "overrides": {} if paper else {"split.run": (0,)},
    }
