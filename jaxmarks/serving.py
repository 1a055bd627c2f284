"""A trained run as an artefact that any JAX program runs, without this code: `jax.export`'s function and its parameters.

The folder holds `function.bin`, the lowered function for batches of any size; `parameters.npz`, what it takes beside the
images; and `about.json`. Artefacts are for serving, not for the archive: JAX promises six months of compatibility.
"""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.export
import numpy as np

from jaxmarks import predict

# An artefact made on one of them runs on all.
PLATFORMS = ("cpu", "cuda", "tpu")


def export(
    workdir: Path, folder: Path, *, size: tuple[int, int] | None = None, fold: int | None = None, set: str = ""
) -> dict:
    """Writes the artefact of a run.

    Args:
      workdir: a run's folder.
      folder: where the artefact goes.
      size: (H, W) of the photographs that it will take; by default the network's frame.
      fold: the network of that fold alone; None takes all.
      set: of a run over several datasets the one whose landmarks are wanted.

    Returns:
      What `about.json` says: the size, and the names and shapes of the outputs.
    """
    exporting = exporter()
    task, settings, networks, notes = predict.networks_of(workdir, fold=fold, set=set)
    call, frame = predict.function(task, settings, notes[0]["facts"]), tuple(size or settings.data.size)
    names = ("boxes", "scores", "classes") if "boxes" in settings.data else ("points", "scores")
    leaves, structure = jax.tree.flatten(networks)

    def function(leaves, images):
        return dict(zip(names, call(jax.tree.unflatten(structure, leaves), images), strict=True))

    (batch,) = exporting.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *frame, 3), np.uint8)
    like = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    exported = exporting.export(jax.jit(function), platforms=PLATFORMS)(like, images)
    about = {
        "images": ["batch", *frame, 3],
        "outputs": {name: ["batch", *out.shape[1:]] for name, out in zip(sorted(names), exported.out_avals, strict=True)},
        "facts": notes[0]["facts"],
        "threshold": float(np.mean([note["threshold"] for note in notes])) if "threshold" in notes[0] else None,
        "jax": jax.__version__,
    }  # fmt: skip
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "function.bin").write_bytes(exported.serialize())
    np.savez(folder / "parameters.npz", *map(np.asarray, leaves))
    (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    return about


def load(folder: Path) -> Callable:
    """The artefact as a function: images (B, H, W, 3) uint8 of its size -> dict of the outputs that `about.json` names."""
    function = exporter().deserialize(bytearray((Path(folder) / "function.bin").read_bytes()))
    with np.load(Path(folder) / "parameters.npz") as file:
        parameters = [file[f"arr_{i}"] for i in range(len(file.files))]
    return jax.tree_util.Partial(function.call, parameters)


def exporter():
    """The module `jax.export`, which needs flatbuffers."""
    try:
        import flatbuffers  # noqa: F401
    except ImportError as error:
        raise ImportError("artefacts need flatbuffers: pip install 'jaxmarks[serve]'") from error
    return jax.export
