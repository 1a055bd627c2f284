"""Checkpoints: save and resume a state, and initialise a network from another run's (Orbax)."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util


def fingerprint(tree: Any) -> str:
    """Returns the SHA-256 over the paths, dtypes, shapes and bytes of a tree's arrays.

    Orbax restores a flipped byte without an error; this detects it.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()


def save(folder: Path, tree: Any, note: dict) -> None:
    """Writes tree and note (JSON) to `folder` as one: a kill leaves the former checkpoint or the new one."""
    folder = Path(folder).absolute()
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    tree = jax.device_get(tree)
    with checkpointer_of_one() as checkpointer:
        checkpointer.save(fresh / "arrays", tree)
    (fresh / "note.json").write_text(json.dumps(note | {"sha256": fingerprint(tree)}, indent=1))
    former = folder.with_name(folder.name + ".old")
    shutil.rmtree(former, ignore_errors=True)
    if folder.exists():
        folder.rename(former)
    fresh.rename(folder)
    shutil.rmtree(former, ignore_errors=True)


def checkpointer_of_one():
    """Returns an Orbax checkpointer for this process alone; the default one would wait for all processes."""
    import orbax.checkpoint as ocp  # takes 0.25 s, which must not delay the first step

    process = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"of{process}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=options)


def note(folder: Path) -> dict | None:
    """Returns a checkpoint's note, or None if none is complete; undoes a `save` killed between its two renames.

    Raises:
      ValueError: the note is damaged.
    """
    folder = Path(folder).absolute()
    former = folder.with_name(folder.name + ".old")
    if not folder.exists() and former.exists():
        former.rename(folder)
    path = folder / "note.json"
    try:
        content = json.loads(path.read_text())
        if "sha256" not in content:
            raise ValueError("the key 'sha256' is missing")
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: the file is damaged ({error}); copy the run's folder again, or delete {folder}"
        ) from None
    return content


def restore(folder: Path, like: Any = None) -> tuple[Any, dict]:
    """Reads (tree, note); `like` gives the tree's structure and shapes, else it is nested dicts of NumPy arrays.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the note is damaged, files of the arrays are missing or cut off, or the arrays do not match the
        SHA-256 that was taken when they were saved.
    """
    folder = Path(folder).absolute()
    saved_note = note(folder)
    if saved_note is None:
        raise FileNotFoundError(f"{folder}: no checkpoint; train this run first, or name another folder")
    with checkpointer_of_one() as checkpointer:
        if like is None:
            metadata = checkpointer.metadata(folder / "arrays").item_metadata  # None if a file is missing
            if metadata is None:
                raise ValueError(f"{folder}: files of its arrays are missing; copy the run's folder again")
            like = dict(metadata.tree)
        target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        try:
            tree = checkpointer.restore(folder / "arrays", target)
        except (OSError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"{folder}: its arrays cannot be read ({reason}); copy the run's folder again, or delete this one"
            ) from None
    if fingerprint(tree) != saved_note["sha256"]:
        raise ValueError(
            f"{folder}: its arrays are not those that were saved (SHA-256 differs); copy the run's"
            " folder again, or delete this one"
        )
    return tree, saved_note


def merge(params: Any, source: Any, *, skip: str = "") -> tuple[Any, dict[str, list[str]]]:
    """Takes from `source` every array whose path and shape agree with `params`.

    If one network's first convolution takes grey images (1 channel) and the other's colour (3), the kernel is adapted:
    its sum over a pixel's channels is divided evenly over the new channels, so that its response to a grey image stays
    the same.

    Args:
      params: the new network's parameters, nested dicts.
      source: another network's.
      skip: a regular expression; paths ("head/fc3/kernel") that it matches from their start are not taken over.

    Returns:
      The merged parameters, and lists of the paths that were "loaded", "adapted" (with the channels), kept "new" (with
      the reason), or "unused" in the source.
    """
    source_arrays, loaded, adapted, new = traverse_util.flatten_dict(source, sep="/"), [], {}, []

    def choose(name, array):
        if skip and re.match(skip, name):
            new.append(f"{name} (skipped)")
        elif name not in source_arrays:
            new.append(f"{name} (not in the source)")
        elif (pixels := stacked_pixels(source_arrays[name].shape, array.shape)) is not None:
            h, w, inputs, features = source_arrays[name].shape
            channels = array.shape[2] // pixels
            adapted[name] = f"{name} (from {inputs // pixels} to {channels} channels)"
            grey = source_arrays[name].reshape(h, w, pixels, -1, features).sum(3, keepdims=True)
            return jax.numpy.asarray(np.repeat(grey / channels, channels, axis=3).reshape(array.shape), array.dtype)
        elif source_arrays[name].shape != array.shape:
            new.append(f"{name} (source has {source_arrays[name].shape}, network {array.shape})")
        else:
            loaded.append(name)
            return jax.numpy.asarray(source_arrays[name], array.dtype)
        return array

    chosen = {name: choose(name, array) for name, array in traverse_util.flatten_dict(params, sep="/").items()}
    merged = traverse_util.unflatten_dict(chosen, sep="/")
    unused = sorted(set(source_arrays) - set(loaded) - set(adapted))
    return merged, {"loaded": loaded, "adapted": list(adapted.values()), "new": new, "unused": unused}


def stacked_pixels(one: tuple, other: tuple) -> int | None:
    """Returns how many pixels a first convolution has stacked in its input (space to depth), from two kernels' shapes.

    Kernels are (h, w, pixels x channels, features). None unless one has 1 channel, the other 3, and all else is equal.
    """
    if len(one) != 4 or len(other) != 4 or (*one[:2], one[3]) != (*other[:2], other[3]):
        return None
    few, many = sorted((one[2], other[2]))
    return few if many == 3 * few and few in (1, 4, 16, 64) else None


def remove(folder: Path) -> None:
    """Deletes a checkpoint and the leftovers of a killed `save`."""
    for suffix in ("", ".new", ".old"):
        shutil.rmtree(Path(str(folder) + suffix), ignore_errors=True)
