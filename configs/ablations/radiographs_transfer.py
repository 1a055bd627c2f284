"""What a network learns from 20 radiographs, starting from ImageNet, from another anatomy, from both, or from nothing.

    python launch/ablate.py --grid=configs/ablations/radiographs_transfer.py[:FOLDER] --seeds=0,1,2

FOLDER (by default `radiographs`) holds `ceph/images` with the annotators' folders `ceph/annotator_a` and
`ceph/annotator_b`, and `chest/images` with `chest/landmarks.csv`. Each network is a U-Net on EfficientNet-Lite0, tested
on the same fifth of its anatomy's images; the 20 differ between seeds. The first two rows are networks trained on all
remaining images; those that transfer from another anatomy start from them.
"""

STARTS = {"from scratch": {}, "from ImageNet": {"weights": "imagenet"}}


def get_grid(text: str = "") -> dict:
    """Returns the grid for the radiographs in the folder `text`."""
    text = text or "radiographs"
    images = {
        "cephalograms": {
            "data.images": f"{text}/ceph/images",
            "data.landmarks": f"{text}/ceph/annotator_a,{text}/ceph/annotator_b",
        },
        "chests": {
            "data.images": f"{text}/chest/images",
            "data.landmarks": f"{text}/chest/landmarks.csv",
        },
    }
    other = dict(zip(images, reversed(images), strict=True))
    cells = [
        {"row": f"all images, {start}", "column": anatomy, "overrides": data | weights}
        for start, weights in STARTS.items()
        for anatomy, data in images.items()
    ]
    few = {"split.few": 20, "train.steps": 120, "train.batch_size": 10}
    for anatomy, data in images.items():
        for start, weights in STARTS.items():
            cells.append({"row": f"20 images, {start}", "column": anatomy, "overrides": data | few | weights})
        for start in STARTS:
            before = f"all images, {start} / {other[anatomy]}"
            row = f"20 images, {start} and the other anatomy"
            cells.append({"row": row, "column": anatomy, "overrides": data | few, "after": before})
    return {
        "config": "configs/radiographs.py:network=unet,encoder=efficientnet_lite0",
        "cells": cells,
        "overrides": {"data.size": (128, 128), "train.steps": 150, "split.valid": 0.0, "baselines": ("mean_shape",)},
        "seeds": (0, 1, 2),
    }
