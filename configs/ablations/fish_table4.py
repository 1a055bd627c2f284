"""Table 4 of the fish paper: Gaussian and exponential heatmaps by U-Net, FCN8, ResNet50 and HRNet.

    python launch/ablate.py --grid=configs/ablations/fish_table4.py[:paper] [--seeds=0,1,2]
        --config.data.images=PHOTOS --config.data.landmarks=FILE

Eight runs of five folds, on any data; without files, on phantoms. They are reduced to what two CPU cores can do within
two hours (`reduced` in configs/fish.py, which lists the departures from the paper). With `paper` each follows the
paper's protocol, for a GPU; ResNet50 then starts from ImageNet weights (`--config.weights=` starts it at random).
"""

from jaxmarks import config as configs


def get_grid(text: str = "") -> dict:
    """Returns the grid for the variants in `text`."""
    paper = "paper" in configs.variants(text, flags=("paper",))
    resnet50 = "net=resnet50,imagenet" if paper else "net=resnet50"
    return {
        "config": "configs/fish.py:paper" if paper else "configs/fish.py:reduced",
        "cells": configs.product(
            heatmap={"Gaussian": "target=gaussian", "exponential": "target=exponential"},
            network={"U-Net": "net=unet", "FCN8": "net=fcn8", "ResNet50": resnet50, "HRNet": "net=hrnet"},
        ),
        "metrics": ("mean_distance_px", "median_px", "hit_rates.2"),
    }
