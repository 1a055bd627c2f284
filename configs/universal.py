"""One network for several datasets: one body that learns from all of them, and a head for the landmarks of each.

    python -m jaxmarks.main --config=configs/universal.py[:variant,...] [--workdir=DIR] [--config.key=value]

Variants, which combine:
  (none)         three datasets of phantoms (drawn by code), pronota, elytra and heads: a small U-Net
  smoke          runs everything once; its numbers mean nothing
  own=A+B+...    your own datasets, named A, B and so on, each with its files; five folds, so that each image is
                 predicted by a network not trained on it

    python -m jaxmarks.main --config=configs/universal.py:own=ceph+chest --workdir=runs/universal
      --config.data.sets.ceph.images=ceph/images --config.data.sets.ceph.landmarks=ceph/annotator_a,ceph/annotator_b
      --config.data.sets.chest.images=chest/images --config.data.sets.chest.landmarks=chest/landmarks.csv
    python -m jaxmarks.main --mode=predict --workdir=runs/universal --set=chest --config.data.images=NEW_PHOTOS

A dataset may override every key of `data` except `sets`, `size`, `pixels`, `zoom`, `pose` and `keep`. Every fold has
images of every dataset, and batches show each dataset equally often (`--config.train.balance=image`: each image equally
often). Any other config becomes universal when it is given `data.sets`: its head is then built once per dataset.
"""

import ml_collections

from jaxmarks import config as configs

# Keys of each dataset of your own, among them its files, the regular expression for specimens and the mirrored order.
OWN = {"images": "", "landmarks": "", "curves": 0, "group_by": "", "fit": "pad", "flip": ()}


def get_config(text: str = "") -> ml_collections.ConfigDict:
    """Returns the config for the comma-separated variants in `text`."""
    chosen = configs.variants(text, flags=("smoke",), options={"own": ()})
    config = configs.base()
    config.model = {"name": "unet", "norm": "batch", "width": 16, "stride": 2}
    config.head = {"name": "heatmap", "sigma": 2.0, "loss": "cross_entropy"}
    config.data.sets = {part: {"part": part} for part in ("pronotum", "elytra", "head")}
    config.train.steps, config.optimizer.learning_rate = 600, 2e-3
    if "own" in chosen:
        config.data.size, config.head.sigma = (192, 256), 3.0
        names = chosen["own"].split("+")
        if wrong := [name for name in names if not name.isidentifier()]:
            raise ValueError(
                f"config variant own={chosen['own']}: {wrong[0]!r} is not a valid dataset name; use letters, digits and _, and"
                " begin with no digit"
            )
        config.data.sets = {name: dict(OWN) for name in names}
        config.split.run, config.split.valid = (), 0.0
    if "smoke" in chosen:
        configs.smoke(config, count=12)
    return configs.complete(config)
