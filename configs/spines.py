"""Dendritic spines, and other small objects: a centre heatmap, YOLOv2-tiny, Faster R-CNN and a shape-prior CNN.

    python -m jaxmarks.main --config=configs/spines.py[:variant,...] [--workdir=DIR] [--config.key=value]

F1 at IoU 0.4 on 166 photographs with 638 spines, held out at random (variant `random`), trained from scratch on two
cores with one seed: centre 0.984 in 6 minutes (0.979 when repeated, 0.974 and 0.957 on other tenths of the data),
faster_rcnn 0.980 in 14, yolo 0.969 in 30 (0.967 when repeated), a blob detector 0.461.

Variants, which combine:
  (none)         drawn spines, the centre heatmap
  centre, yolo, faster_rcnn, sp_cnn   the detector
  own            for your own photographs: --config.data.images=DIR --config.data.boxes=FILE
  random         holds out a random tenth of the photographs for the test (the spine paper's split) instead of whole
                 groups; light augmentation (the paper's without its rotations by 90 degrees)
  paper          the spine paper's frame size, network and schedule for the detector, and its split: for a GPU
  smoke          runs everything once; its numbers mean nothing
"""

import ml_collections

from jaxmarks import config as configs

# Mirroring, and slight changes of brightness and contrast: the paper's augmentation without rotations by 90 degrees.
LIGHT = {
    "scale": 0.0, "aspect": 0.0, "translation": 0.0, "quarter_turns": False, "brightness": 0.05, "contrast": 0.1,
    "gamma": 0.0, "noise": 0.0,
}  # fmt: skip
# The paper's augmentation; for Faster R-CNN the paper only mentions mirroring.
PAPER_AUGMENT = LIGHT | {"quarter_turns": True, "channel": 0.0}
MIRRORED = PAPER_AUGMENT | {"quarter_turns": False, "brightness": 0.0, "contrast": 0.0}


def get_config(text: str = "") -> ml_collections.ConfigDict:
    """Returns the config for the comma-separated variants in `text`."""
    chosen = configs.variants(text, flags=(*DETECTORS, "own", "random", "paper", "smoke"))
    detectors = [name for name in DETECTORS if name in chosen]
    if len(detectors) > 1:
        raise ValueError(f"config variants {', '.join(detectors)}: choose only one detector")
    detector = detectors[0] if detectors else "centre"
    config = configs.base()
    config.data = {
        "images": "",
        "boxes": "",  # a CSV or COCO file, or a folder of VOC, LabelMe or YOLO; with both empty, drawn dendrites
        "keep": "",  # a folder to which images are written, to be streamed from there
        "group_by": "",  # a regular expression whose first group is the scene; replaces the file's column `group`
        "size": (160, 160),
        "fit": "tile",  # photographs at a fixed scale, large ones in tiles; or pad, stretch: each whole in one frame
        "scale": 1.0,  # frame pixels per photograph pixel; 0: for your own photographs, as `side` requires
        "side": 20.0,  # of the typical object, in frame pixels; of several classes, between the smallest and largest
        "overlap": 32,  # of tiles, in frame pixels; 0: for your own photographs, as the largest class requires, but
        "min_overlap": 32,  # at least this
        "classes": 1,  # of drawn objects
        "count": 300,
        "seed": 0,
    }
    config.augment.update({"rotation": 0.0, "shear": 0.0, "quarter_turns": True, "translation": 0.1, "noise": 0.03})
    config.train.batch_size, config.train.balance = 16, "object"
    config.baselines = ("blobs",)
    configure, configure_paper = DETECTORS[detector]
    configure(config)
    if "own" in chosen:
        config.split.run, config.data.scale, config.data.overlap = (), 0.0, 0
    if "random" in chosen or "paper" in chosen:
        config.split.by, config.split.folds, config.split.run = "image", 10, (0,)
        config.augment.update(LIGHT)
    if "paper" in chosen:
        config.augment.update(PAPER_AUGMENT)
        configure_paper(config)
    if "smoke" in chosen:
        smoke(config)
    return configs.complete(config)


def centre(config):
    """Sets up a U-Net that predicts a map of centres at a quarter of the resolution (Zhou et al. 2019)."""
    config.model = {"name": "unet", "width": 32, "depth": 3, "stride": 4, "norm": "batch"}
    config.head = {"name": "centre", "sigma": 3.0}
    config.optimizer.learning_rate = 2e-3
    config.train.steps = 1500


def yolo(config):
    """Sets up YOLOv2-tiny with half the channels, on tiles enlarged twofold, trained at three frame sizes."""
    config.data.update({"size": (320, 320), "scale": 2.0, "side": 30.0, "overlap": 64, "min_overlap": 64})
    config.model = {"name": "yolo_tiny", "width": 8, "norm": "batch"}
    config.head = {"name": "yolo", "anchor_count": 3}
    config.optimizer.learning_rate = 1e-3
    config.train.steps, config.train.sizes = 2500, (288, 320, 352)


def faster_rcnn(config):
    """Sets up both stages, trained jointly, on a small U-Net's features at stride 4."""
    config.model = {"name": "unet", "width": 32, "depth": 3, "stride": 4, "norm": "batch"}
    config.head = {"name": "faster_rcnn", "phase": "joint"}
    config.optimizer.learning_rate = 1e-3
    config.train.steps = 1500


def sp_cnn(config):
    """Sets up six convolutions to a map of centres, which is rewarded where the edges look like a spine."""
    config.model = {"name": "sp_cnn", "width": 32, "kernel": 3, "stride": 2, "norm": "batch"}
    config.head = {"name": "shape_prior", "form": "bounded", "weight": 0.1, "shapes": "rings"}
    config.optimizer.learning_rate = 1e-3
    config.train.steps = 300


def paper_yolo(config):
    """Sets up YOLOv2-tiny at 416x416 with all channels.

    --config.weights=yolov2-tiny-voc.weights --config.channels=3 starts from Darknet's weights. Weight decay is
    decoupled from the gradient (AdamW).
    """
    config.data.update({"size": (416, 416), "scale": 1.0, "fit": "pad"})
    config.optimizer.update({"name": "adamw", "weight_decay": 5e-4, "schedule": "constant"})
    config.model.width = 16
    config.train.steps, config.train.sizes = 10_000, (320, 352, 384, 416, 448, 480, 512)


def paper_faster_rcnn(config):
    """Sets up Inception-v2 at 448x448 in four phases.

    The learning rate is the paper's, which is meant for a network pretrained on COCO; none is available here.
    """
    config.data.update({"size": (448, 448), "fit": "pad"})
    config.model = {"name": "inception_v2", "width": 1.0, "stride": 16, "norm": "batch"}
    config.optimizer.update({"learning_rate": 2e-5, "schedule": "constant"})
    config.augment.update(MIRRORED)
    config.train.steps = 9000 // 4
    # Body and RPN; body and second stage, on the RPN's proposals; then RPN and second stage again, with a frozen body.
    phases = {
        "rpn": {"head": {"phase": "rpn"}},
        "detector": {"head": {"phase": "detector"}, "freeze": "head/rpn"},
        "rpn_again": {"head": {"phase": "rpn"}, "freeze": "body|head/roi"},
        "detector_again": {"head": {"phase": "detector"}, "freeze": "body|head/rpn"},
    }
    config.stages, config.stage = tuple(phases), phases


def paper_sp_cnn(config):
    """Sets up full resolution, no normalisation, and the loss as printed, with which it learns to predict nothing."""
    config.model = {"name": "sp_cnn", "width": 64, "kernel": 5, "stride": 1, "norm": "none"}
    config.head = {"name": "shape_prior", "form": "printed"}


def smoke(config):
    """Shrinks the config to a small network and few steps."""
    config.data.count = 24
    config.split.folds, config.split.valid = 3, 0.2
    config.train.batch_size, config.train.steps = 8, 6
    config.model.width = 0.1 if config.model.name == "inception_v2" else 4
    if config.train.sizes:
        config.train.sizes = config.train.sizes[:2]
        config.data.size = config.train.sizes[-1:] * 2


# The laptop's and the paper's settings of each detector; the paper has no centre heatmap, which keeps the laptop's.
DETECTORS = {
    "centre": (centre, centre),
    "yolo": (yolo, paper_yolo),
    "faster_rcnn": (faster_rcnn, paper_faster_rcnn),
    "sp_cnn": (sp_cnn, paper_sp_cnn),
}
