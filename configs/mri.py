"""MRI volume calibration: three scouts -> landmarks -> position, orientation and size of the volume to acquire.

    python -m jaxmarks.main --config=configs/mri.py[:variant] --workdir=RUN \\
        --config.data.volume=T1w.nii.gz --config.data.landmarks=afids.fcsv        # trains and scores
    python -m jaxmarks.main --config=configs/mri.py --workdir=RUN --mode=predict --config.data.images=SCOUTS

The second is the operator's one command. SCOUTS is a folder with three NIfTI or DICOM scouts, or with one such folder for
each patient, or a NIfTI volume whose middle slices are the scouts. For each it writes `calibration.json` (the volume in
patient coordinates, RAS, its uncertainty, and whether and why it is refused), `box.nii.gz` (the volume as a NIfTI header)
and `scouts.png` (landmarks and volume drawn), and `summary.json` with what failed.

**One volume is the training set**: one T1-weighted head with its AFIDs, cut into scouts in random poses with other sizes
of its sides, smooth deformations, contrasts, shading, noise and slice offsets. All variety is synthetic; nothing here has
seen a second person, a tumour, or a scanner. The volume is the user's (NIfTI, and 3D Slicer's .fcsv or .mrk.json of its
AFIDs); without one a head is drawn from ellipsoids, which shows that everything works and calibrates nobody.

Reached on the MNI template (ICBM 2009c) in 10 minutes on two cores, on 100 held-out triples drawn alike: centre 1.3 mm,
angle 1.7 degrees, IoU 0.945 (medians), one refused. Most of the angle is pitch: the two commissures are 27 mm apart.

`--mode=evaluate --config.data.volume=OTHER --config.data.landmarks=OTHER.fcsv` scores a run on another head, in poses drawn
alike; `volumes.csv` has each.

Variants:
  (none)  minutes on a laptop
  smoke   everything once on the drawn head, in about a minute; its numbers mean nothing
"""

import ml_collections

from jaxmarks import config as configs


def get_config(text: str = "") -> ml_collections.ConfigDict:
    """The config of the variants in `text`, separated by commas."""
    chosen = configs.variants(text, flags=("smoke",))
    config = configs.base()
    config.data = {
        "volume": "",  # a T1-weighted NIfTI volume of a head, and
        "landmarks": "",  # 3D Slicer's file of its AFIDs; the drawn head where these are empty
        "images": "",  # scouts, for --mode=predict
        "size": (128, 128),  # height and width of the network's frame
        "spacing": 2.0,  # mm of a pixel of it
        "fit": "pad",  # how `jaxmarks.predict.load` brings an image of another size into it
        "count": 800,  # triples that are cut
        "turn": 20.0,  # degrees by which the head is turned at most about each axis
        "tilt": 8.0,  # degrees by which each slice is
        "elastic": 1.0,  # mm, the deviation of the smooth deformation
        "seed": 0,
    }
    config.split.folds, config.split.valid = 8, 0.05
    config.model = {"name": "unet", "width": 16, "stride": 2, "norm": "batch"}
    config.head = {
        "name": "heatmap",
        "target": "gaussian",
        "sigma": 3.0,
        "loss": "cross_entropy",
        "decoder": "local_soft_argmax",
    }
    config.augment.rotation, config.augment.scale, config.augment.shear = 8.0, 0.05, 0.0
    config.augment.translation, config.augment.channel, config.augment.blur = 0.05, 0.0, 0.5
    config.optimizer.learning_rate = 2e-3
    config.train.batch_size, config.train.steps = 24, 1600
    config.baselines = ("mean_shape",)
    if "smoke" in chosen:
        config.data.size, config.data.spacing, config.data.count = (64, 64), 4.0, 18
        config.split.folds, config.split.valid = 3, 0.2
        config.model.width = 8
        config.train.batch_size, config.train.steps = 8, 8
    return configs.complete(config)
