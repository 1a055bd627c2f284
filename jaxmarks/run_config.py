"""The config of a trained run without its data: what `main` reads where a mode is given a --workdir and no --config."""

from pathlib import Path

from jaxmarks import runs


def get_config(workdir: str):
    """The config of the run in a folder, in which the data are to be named anew."""
    config = runs.config_of(Path(workdir))
    for key in ("images", "landmarks", "boxes", "volume", "group_by"):
        if key in config.data:
            config.data[key] = ""
    return config
