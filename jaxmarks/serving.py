"""Exports a trained run to run without this code: as an artefact of `jax.export`, or as ONNX files.

The artefact is a folder with `function.bin`, the lowered function for batches of any size; `parameters.npz`, its other
argument beside the images; and `about.json`. It is for serving, not for archiving: JAX promises six months of
compatibility. ONNX files hold the networks alone, from frame to output: the converter (jax2onnx) cannot convert the
code that brings photographs into the frame, nor most decoders.
"""

import functools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.export
import numpy as np

from jaxmarks import atomic, detection, platforms, predict, runs, tasks, trained
from jaxmarks.data.fitting import SINGLE_LOOK
from jaxmarks.data.loading import frame_size

# An artefact exported on one of these platforms runs on all of them.
PLATFORMS = ("cpu", "cuda", "tpu")


def export(
    workdir: Path, folder: Path, *, size: tuple[int, int] | None = None, fold: int | None = None, set: str = ""
) -> dict:
    """Writes the artefact of a run.

    Args:
      workdir: a run's folder.
      folder: where the artefact goes.
      size: (H, W) of the photographs that it will take; by default the frame of the data.
      fold: the fold whose networks are exported; None for all.
      set: for a run over several datasets, the one whose landmarks are wanted.

    Returns:
      The content of `about.json`: among others, the shape of the images, and the names and shapes of the outputs.
    """
    jax_export = exporter()
    task, settings, networks, notes = trained.networks_of(workdir, fold=fold, set=set)
    call, frame = predict.function(task, settings, notes[0]["facts"]), tuple(size or frame_size(settings.data))
    names = ("boxes", "scores", "classes") if "boxes" in settings.data else ("points", "scores")
    leaves, structure = jax.tree.flatten(networks)

    def function(leaves, images):
        return dict(zip(names, call(jax.tree.unflatten(structure, leaves), images), strict=True))

    (batch,) = jax_export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *frame, 3), np.uint8)
    leaf_shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    with platforms.tracing_for("any"):
        exported = jax_export.export(jax.jit(function), platforms=PLATFORMS)(leaf_shapes, images)
    about = {
        "images": ["batch", *frame, 3],
        "outputs": {name: ["batch", *out.shape[1:]] for name, out in zip(sorted(names), exported.out_avals, strict=True)},
        "facts": notes[0]["facts"],
        "threshold": detection.threshold_of(notes) if "threshold" in notes[0] else None,
        "jax": jax.__version__,
    }  # fmt: skip
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic.whole(folder / "function.bin", binary=True) as file:
        file.write(exported.serialize())
    with atomic.whole(folder / "parameters.npz", binary=True) as file:
        np.savez(file, *map(np.asarray, leaves))
    atomic.write_json(folder / "about.json", about)
    return about


def export_onnx(workdir: Path, folder: Path, *, fold: int | None = None, set: str = "") -> dict:
    """Writes a run's networks as `network_FOLD.onnx` (in ensembles also `network_FOLD.MEMBER.onnx`), and `onnx.json`.

    Each takes "images" (batch, H, W, 3), float32 RGB from 0 to 255 in the network's frame. A network with a direct head
    returns points (batch, K, 2) in the frame's pixels and their scores; others return the outputs of the head's layer:
    heatmaps before their softmax, or a detector's maps. All compute in float32, whatever the run was trained in.

    Args:
      workdir, fold, set: as in `export`.
      folder: where the files go.

    Returns:
      The content of `onnx.json`: the files, the inputs and outputs with their shapes, the dataset `set` that they are
      for, the head, how photographs are fitted into the frame, and the second look that the run takes (zoom, pose).

    Raises:
      ValueError: the run is of Faster R-CNN, whose proposals the converter cannot convert.
    """
    try:
        import jax2onnx
    except ImportError as error:
        raise ImportError("ONNX files need jax2onnx: pip install 'jaxmarks[onnx]'") from error
    _, settings, networks, notes = trained.networks_of(workdir, fold=fold, set=set)
    if settings.head.name == "faster_rcnn":
        raise ValueError(
            f"{workdir}: Faster R-CNN cannot be exported to ONNX, as its proposals cannot be converted;"
            " use --format=jax"
        )
    second_look = {key: settings.data.get(key, value) for key, value in SINGLE_LOOK.items()}
    settings.train.dtype = "float32"
    settings.data.update({key: value for key, value in SINGLE_LOOK.items() if key in settings.data})
    _, task = tasks.build(settings, notes[0]["facts"])
    shape, is_direct = (*settings.data.size, 3), settings.head.name == "direct"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    def function(variables, images):
        outputs = task.apply(variables, task.plain({"images": images / 255})["images"], train=False)
        if is_direct:
            return dict(zip(("points", "scores"), task.head.decode(outputs), strict=True))
        # Learned shapes depend on no image: they are parameters of the loss.
        return outputs._replace(shapes=None) if hasattr(outputs, "shapes") else outputs

    output_shapes = jax.eval_shape(function, networks[0], jax.ShapeDtypeStruct((1, *shape), np.float32))
    outputs = {
        jax.tree_util.keystr(path, simple=True, separator="_") or "outputs": ["batch", *leaf.shape[1:]]
        for path, leaf in jax.tree_util.tree_leaves_with_path(output_shapes)
    }
    files = []
    for member, variables in zip(runs.members(settings, fold), networks, strict=True):
        files.append(f"network_{member}.onnx")
        with platforms.tracing_for("plain"):
            jax2onnx.to_onnx(
                functools.partial(function, variables), [("batch", *shape)], return_mode="file",
                output_path=str(folder / files[-1]), input_names=["images"], output_names=list(outputs),
            )  # fmt: skip
    about = {
        "files": files,
        "images": ["batch", *shape],
        "outputs": outputs,
        "set": set,
        "head": settings.head.to_dict(),
        "fit": settings.data.fit,
        "facts": notes[0]["facts"],
    } | second_look
    atomic.write_json(folder / "onnx.json", about)
    return about


def load(folder: Path) -> Callable:
    """Loads an artefact as a function: images (B, H, W, 3) uint8 of its size -> dict of the outputs in `about.json`.

    Raises:
      ValueError: one of its files is damaged.
    """
    jax_export, path = exporter(), Path(folder) / "function.bin"
    try:
        function = jax_export.deserialize(bytearray(path.read_bytes()))
        path = Path(folder) / "parameters.npz"
        with np.load(path) as file:
            parameters = [file[f"arr_{i}"] for i in range(len(file.files))]
    except (struct.error, zipfile.BadZipFile, EOFError, ValueError) as error:
        raise ValueError(f"{path}: the file is damaged ({error}); copy the artefact again") from None
    return jax.tree_util.Partial(function.call, parameters)


def exporter():
    """Returns the module `jax.export`; raises ImportError without flatbuffers, which it needs."""
    try:
        import flatbuffers  # noqa: F401
    except ImportError as error:
        raise ImportError("artefacts need flatbuffers: pip install 'jaxmarks[serve]'") from error
    return jax.export
