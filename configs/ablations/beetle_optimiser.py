"""Optimiser and dropout: the beetle paper's against ours, on drawn pronota.

    python launch/ablate.py --grid=configs/ablations/beetle_optimiser.py[:full] [--seeds=0,1,2]

Four runs, small enough for two or three minutes on two CPU cores, and too small to show which choice is better. With
`full`, each is the default run of configs/beetle.py, which takes minutes.
"""

from jaxmarks import config as configs


def get_grid(text: str = "") -> dict:
    """Returns the grid for the variants in `text`."""
    chosen = configs.variants(text, flags=("full",))
    return {
        "config": "configs/beetle.py" if "full" in chosen else "configs/beetle.py:smoke",
        "overrides": {} if "full" in chosen else {"data.count": 60, "train.steps": 150},
        "cells": configs.product(
            dropout={
                "no dropout": {"model.dropout": (0.0, 0.0, 0.0, 0.0)},
                "the paper's dropout": {"model.dropout": (0.1, 0.2, 0.3, 0.5)},
            },
            optimiser={
                "Adam, one cycle": {},
                "Nesterov, the paper's ramps": {
                    "optimizer": {
                        "name": "nesterov",
                        "learning_rate": (0.03, 0.00001),
                        "momentum": (0.9, 0.9999),
                        "clip": 0.0,
                    },
                },
            },
        ),
        "metrics": ("mean_distance_px", "p95_px"),
    }
