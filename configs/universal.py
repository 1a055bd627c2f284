"""One network for several datasets: one body that learns from all of them, and a head for the landmarks of each.

    python -m jaxmarks.main --config=configs/universal.py[:variant,...] [--workdir=DIR] [--config.key=value]

Variants, which combine:
  (none)         three datasets drawn by code, pronota, elytra and heads: a small U-Net
  smoke          everything once; its numbers mean nothing
  own=A+B+...    datasets of one's own, called A, B and so on, each with its files; five folds, so that every image is
                 predicted by a network that never saw it

    python -m jaxmarks.main --config=configs/universal.py:own=ceph+chest --workdir=runs/universal
      --config.data.sets.ceph.images=ceph/images --config.data.sets.ceph.landmarks=ceph/annotator_a,ceph/annotator_b
      --config.data.sets.chest.images=chest/images --config.data.sets.chest.landmarks=chest/landmarks.csv
    python -m jaxmarks.main --mode=predict --workdir=runs/universal --set=chest --config.data.images=NEW_PHOTOS

A dataset may change every key of `data` but the frame's size. Every dataset is in every fold, and the batches show each
equally often (`--config.train.balance=image`: every image). Any other config becomes universal by its `data.sets`: the
head is built once for each.
"""

import ml_collections

from jaxmarks import config as configs

# What a dataset of one's own names: its photographs and landmarks, specimens, and the order after a mirror.
OWN = {"images": "", "landmarks": "", "curves": 0, "group_by": "", "fit": "pad", "flip": ()}


def get_config(text: str = "") -> ml_collections.ConfigDict:
    """The config of the variants in `text`, separated by commas."""
    chosen = configs.variants(text, flags=("smoke",), options={"own": ()})
    config = configs.base()
    config.model = {"name": "unet", "norm": "batch", "width": 16, "stride": 2}
    config.head = {
        "name": "heatmap",
        "target": "gaussian",
        "sigma": 2.0,
        "loss": "cross_entropy",
        "decoder": "local_soft_argmax",
    }
    config.data.sets = {part: {"part": part} for part in ("pronotum", "elytra", "head")}
    config.train.steps, config.optimizer.learning_rate = 600, 2e-3
    if "own" in chosen:
        config.data.size, config.head.sigma = (192, 256), 3.0
        names = chosen["own"].split("+")
        if wrong := [name for name in names if not name.isidentifier()]:
            raise ValueError(f"config variant own={chosen['own']}: {wrong[0]!r}; a name has letters, digits and _")
        config.data.sets = {name: dict(OWN) for name in names}
        config.split.run, config.split.valid = (), 0.0
    if "smoke" in chosen:
        smoke(config)
    return configs.complete(config)


def smoke(config):
    """Small enough that a minute is plenty."""
    config.data.size, config.data.count = (64, 64), 12
    config.split.folds, config.split.run, config.split.valid = 3, (0, 1), 0.2
    config.model.width = 8
    config.train.batch_size, config.train.steps, config.train.epochs = 8, 6, 0
