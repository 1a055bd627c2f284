"""Helpers for configs: the variants after the colon, a stage's settings, and configs as JSON."""

import json
from pathlib import Path

import ml_collections


def variants(text: str | None, *, flags: tuple[str, ...], options: dict[str, tuple[str, ...]] | None = None) -> dict:
    """Reads "smoke,part=elytra": -> {"smoke": True, "part": "elytra"}.

    Args:
      text: what stands after the colon of `--config=file.py:TEXT`.
      flags: the variants that take no value.
      options: the variants that take one, with the values allowed (an empty tuple allows all).

    Raises:
      ValueError: an unknown variant or value; it names those that exist.
    """
    options = options or {}
    found: dict = {}
    for word in filter(None, (text or "").split(",")):
        key, given, value = word.partition("=")
        if not given and key in flags:
            found[key] = True
        elif given and key in options:
            if options[key] and value not in options[key]:
                raise ValueError(f"config variant {word!r}: {key} is one of {', '.join(options[key])}")
            found[key] = value
        else:
            known = [*flags, *(f"{name}=..." for name in options)]
            raise ValueError(f"unknown config variant {word!r}: there are {', '.join(known)}")
    return found


def stage(config: ml_collections.ConfigDict, name: str) -> ml_collections.ConfigDict:
    """The settings of one stage: the config with the keys that `config.stage[name]` changes.

    Raises:
      KeyError: the stage changes a key that the config does not have.
    """
    settings = ml_collections.ConfigDict(json.loads(config.to_json()))
    changes = ml_collections.ConfigDict(json.loads(config.to_json()))["stage"].get(name, {})
    for path, value in _leaves(changes):
        target = settings
        for key in path[:-1]:
            target = target[key]
        if path[-1] not in target:
            raise KeyError(f"config.stage.{name}.{'.'.join(path)}: the config has no such key to change")
        target[path[-1]] = value
    return settings


def _leaves(tree, path=()):
    for key, value in tree.items():
        if isinstance(value, ml_collections.ConfigDict) and len(value):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def save(config: ml_collections.ConfigDict, path: Path) -> None:
    """Writes the config as JSON."""
    Path(path).write_text(json.dumps(json.loads(config.to_json()), indent=1) + "\n")


def load(path: Path) -> ml_collections.ConfigDict:
    """Reads a config that `save` wrote."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such run; train it first, or name the workdir of one with --workdir")
    return ml_collections.ConfigDict(json.loads(path.read_text()))


def differences(one: ml_collections.ConfigDict, other: ml_collections.ConfigDict) -> list[str]:
    """The keys in which two configs differ, with both values."""
    flat = [{".".join(path): value for path, value in _leaves(c)} for c in (one, other)]
    as_json = lambda value: json.dumps(value, default=list)
    return [
        f"{key}: {flat[0].get(key)} / {flat[1].get(key)}"
        for key in sorted(set(flat[0]) | set(flat[1]))
        if as_json(flat[0].get(key)) != as_json(flat[1].get(key))
    ]
