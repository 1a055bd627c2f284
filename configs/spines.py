"""Dendritic spines, and other small objects: a centre heatmap, YOLOv2-tiny, Faster R-CNN and a shape-prior CNN.

    python -m jaxmarks.main --config=configs/spines.py[:variant,...] [--workdir=DIR] [--config.key=value]

Variants, which combine:
  (none)         spines drawn by code, the centre heatmap
  smoke          everything once; its numbers mean nothing
  own            for photographs of one's own: --config.data.images=DIR --config.data.boxes=FILE, five folds by group
"""

import ml_collections

from jaxmarks import config as configs


def get_config(text: str = "") -> ml_collections.ConfigDict:
    """The config of the variants in `text`, separated by commas."""
    chosen = configs.variants(text, flags=("smoke", "own", "centre"))
    config = configs.base()
    data = {
        "images": "",
        "boxes": "",  # a CSV, COCO or VOC file of boxes; drawn dendrites where both are empty
        "size": (160, 160),
        "fit": "tile",  # photographs at a fixed scale, large ones in tiles; or pad, stretch: each whole in one frame
        "scale": 1.0,  # pixels of the frame for one of the photograph
        "overlap": 32,  # of tiles, pixels of the frame
        "classes": 1,  # of what is drawn
        "count": 300,
        "seed": 0,
    }
    config.data = ml_collections.ConfigDict(data)
    config.model = ml_collections.ConfigDict({"name": "unet", "width": 16, "depth": 3, "stride": 2, "norm": "batch"})
    config.head = ml_collections.ConfigDict({"name": "centre", "sigma": 3.0, "limit": 100})
    config.augment.update({"rotation": 0.0, "shear": 0.0, "quarter_turns": True, "translation": 0.1, "noise": 0.03})
    config.optimizer.learning_rate = 2e-3
    config.train.batch_size, config.train.steps = 16, 500
    config.split.valid = 0.1
    config.baselines = ()
    if "own" in chosen:
        config.split.run = ()
    if "smoke" in chosen:
        config.data.size, config.data.count = (96, 96), 24
        config.split.folds, config.split.valid = 3, 0.2
        config.model.width, config.train.batch_size, config.train.steps = 8, 8, 6
    return config
