"""The config of a trained run without its data: the default --config of all modes but train if --workdir is given."""

from pathlib import Path

import ml_collections
from ml_collections import config_dict

from jaxmarks import runs

DATA = ("images", "landmarks", "boxes", "volume", "group_by")


def get_config(workdir: str) -> ml_collections.ConfigDict:
    """Returns the config of the run in `workdir` with the keys `DATA` empty, so that the data must be named again."""
    config = runs.config_of(Path(workdir))
    config.data.update({key: "" for key in DATA if key in config.data})
    return ml_collections.ConfigDict(_settable(config.to_dict()))


def _settable(value):
    """Makes a value from JSON settable by flags: lists become tuples again, None a placeholder of any type."""
    if value is None:
        return config_dict.placeholder(object)
    if isinstance(value, dict):
        return {key: _settable(part) for key, part in value.items()}
    return tuple(map(_settable, value)) if isinstance(value, list) else value
