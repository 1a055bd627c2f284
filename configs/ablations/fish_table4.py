"""Table 4 of the fish paper: Gaussian and exponential heatmaps by U-Net, FCN8, ResNet50 and HRNet.

    python launch/ablate.py --grid=configs/ablations/fish_table4.py[:paper] [--seeds=0,1,2]
        --config.data.images=PHOTOS --config.data.landmarks=FILE

Eight runs of five folds, on any data, on phantoms without a file. They are reduced to what two CPU cores do within two
hours (`reduced` in configs/fish.py, which says in what it departs from the paper); with `paper` each is the paper's own
protocol, for a GPU, where ResNet50 begins with ImageNet's weights (`--config.weights=` lets it begin at random).
"""

from jaxmarks import config as configs


def get_grid(text: str = "") -> dict:
    """The grid of the variants in `text`."""
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
