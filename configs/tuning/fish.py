"""The U-Net with heatmaps on a few dozen photographs: rate, width of the network and of the heatmaps, augmentation.

    python launch/tune.py --space=configs/tuning/fish.py[:smoke] [--trials=50]
        --config.data.images=PHOTOS --config.data.landmarks=FILE

One fold of five, a quarter of the rest for validation; `smoke` is small enough for three trials in a minute or two.
"""

from jaxmarks import config as configs


def get_space(text: str = "") -> dict:
    """The space of the variants in `text`."""
    small = "smoke" in configs.variants(text, flags=("smoke",))
    return {
        "config": "configs/fish.py:smoke" if small else "configs/fish.py",
        "overrides": {"split.run": (0,), "split.valid": 0.25},
        "space": {
            "optimizer.learning_rate": ("float", 3e-4, 1e-2, "log"),
            "model.width": ("categorical", 4, 8) if small else ("categorical", 8, 16, 32),
            "head.sigma": ("float", 1.0, 6.0),
            "augment.rotation": ("float", 0.0, 30.0),
            "augment.elastic": ("float", 0.0, 4.0),
            "train.mixup": ("categorical", 0.0, 0.2, 0.75),
        },
    }
