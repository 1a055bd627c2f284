"""MRI volume calibration: three scouts -> landmarks -> position, orientation and size of the volume to acquire.

    python -m jaxmarks.main --config=configs/mri.py[:variant] --workdir=RUN \\
        --config.data.volume=T1w.nii.gz --config.data.landmarks=afids.fcsv        # trains and scores
    python -m jaxmarks.main --config=configs/mri.py --workdir=RUN --mode=predict --config.data.images=SCOUTS

The second command is the only one that an operator needs. SCOUTS is a folder with three NIfTI or DICOM scouts, or with
one such folder per patient, or a NIfTI volume whose middle slices serve as scouts. For each patient it writes
`calibration.json` (the volume in patient coordinates, RAS; its uncertainty; whether it is refused, and why),
`box.nii.gz` (the volume as a NIfTI header) and `scouts.png` (landmarks and volume drawn), and a `summary.json` that
lists failures.

**One volume is the training set**: one T1-weighted head with its AFIDs, cut into scouts with random poses, proportions,
smooth deformations, contrasts, shading, noise and slice offsets. All variation is synthetic: the network has never seen
a second person, a tumour, or a scanner. The user supplies the volume (NIfTI, with its AFIDs as 3D Slicer's .fcsv or
.mrk.json). Without one, a head is drawn from ellipsoids, which shows that everything works but calibrates nobody.

Results on the MNI template (ICBM 2009c) after 10 minutes on two cores, on 100 held-out triples drawn in the same way:
centre 1.3 mm, angle 1.7 degrees, IoU 0.945 (medians); one triple was refused. Most of the angle error is pitch, because
the two commissures are only 27 mm apart.

`--mode=evaluate --config.data.volume=OTHER --config.data.landmarks=OTHER.fcsv` scores a run on another head, in poses
drawn in the same way; `volumes.csv` lists each triple.

Variants:
  (none)  minutes on a laptop
  smoke   runs everything once on the drawn head, in about a minute; its numbers mean nothing
"""

import ml_collections

from jaxmarks import config as configs


def get_config(text: str = "") -> ml_collections.ConfigDict:
    """Returns the config for the comma-separated variants in `text`."""
    chosen = configs.variants(text, flags=("smoke",))
    config = configs.base()
    config.data = {
        "volume": "",  # a T1-weighted NIfTI volume of a head, and
        "landmarks": "",  # 3D Slicer's file of its AFIDs; with both empty, the drawn head
        "images": "",  # scouts, for --mode=predict
        "size": (128, 128),  # height and width of the network's frame
        "spacing": 2.0,  # mm per pixel of that frame
        "fit": "pad",  # how `jaxmarks.predict.load` fits an image of another size into the frame
        "count": 800,  # scout triples to cut
        "turn": 20.0,  # largest rotation of the head about each axis, degrees
        "tilt": 8.0,  # largest rotation of each slice about each axis, degrees
        "elastic": 1.0,  # standard deviation of the smooth deformation, mm
        "seed": 0,
    }
    config.split.folds, config.split.valid = 8, 0.05
    config.model = {"name": "unet", "width": 16, "stride": 2, "norm": "batch"}
    config.head = {"name": "heatmap", "sigma": 3.0, "loss": "cross_entropy"}
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
