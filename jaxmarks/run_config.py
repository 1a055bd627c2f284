"""The config of a trained run without its data: what `main` reads where a mode is given a --workdir and no --config."""

from pathlib import Path

import ml_collections
from ml_collections import config_dict

from jaxmarks import runs

DATA = ("images", "landmarks", "boxes", "volume", "group_by")


def get_config(workdir: str) -> ml_collections.ConfigDict:
    """The config of the run in a folder, in which the data are to be named anew."""
    config = runs.config_of(Path(workdir))
    config.data.update({key: "" for key in DATA if key in config.data})
    return ml_collections.ConfigDict(_settable(config.to_dict()))


def _settable(value):
    """What flags can set: JSON's lists as the tuples that they were, and None as what takes any value."""
    if value is None:
        return config_dict.placeholder(object)
    if isinstance(value, dict):
        return {key: _settable(part) for key, part in value.items()}
    return tuple(map(_settable, value)) if isinstance(value, list) else value
