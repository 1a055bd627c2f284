"""From a config's `data` to `Samples`: drawn phantoms, or a folder of photographs with a file of landmarks."""

import contextlib
import hashlib
import os
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmarks.data import brains, folder, formats, objects, phantoms
from jaxmarks.data.brains import Volumes
from jaxmarks.data.formats import boxes
from jaxmarks.data.formats.boxes import BoxAnnotation
from jaxmarks.data.phantoms import dendrite
from jaxmarks.data.samples import Samples, concatenate


class Dataset(NamedTuple):
    """What a run works on.

    Attributes:
      samples: the images and landmarks.
      problems: what was left out or masked on the way, dicts of "image", "what" and "where".
      flip: the landmarks' order after a horizontal mirror, or None where mirroring is not allowed.
      photograph: name -> (H, W, 3) uint8 at source resolution, for figures.
      objects: of a dataset of boxes the photographs' annotations, in their pixels.
      classes: the names of the boxes' classes.
      volumes: of scout triples the volumes to acquire.
      disagreement: the mean distance in px between annotators, where there are several.
    """

    samples: Samples
    problems: list[dict]
    flip: tuple[int, ...] | None
    photograph: Callable[[str], np.ndarray]
    disagreement: float | None = None
    objects: tuple[BoxAnnotation, ...] = ()
    classes: tuple[str, ...] = ()
    volumes: Volumes | None = None


def load(spec) -> Dataset:
    """The dataset of a config's `data`: the user's own files where they are named, what is drawn else."""
    if "boxes" in spec:
        return _objects(spec)
    if "volume" in spec:
        samples, volumes, photograph = brains.load(spec)
        return Dataset(samples, [], None, photograph, volumes=volumes)
    if bool(spec.images) != bool(spec.landmarks):
        missing = "landmarks" if spec.images else "images"
        raise ValueError(
            f"--config.data.{missing} is empty: a dataset of one's own needs both --config.data.images=DIR and"
            " --config.data.landmarks=FILE"
        )
    return _own(spec) if spec.images else _phantoms(spec)


def known_facts(spec) -> dict:
    """The facts (see `facts`) of a dataset, as far as they are known without reading or drawing an image."""
    if "boxes" in spec:
        names = {name for a in boxes.read(spec.boxes, []) for name in a.classes} if spec.boxes else ()
        return {"classes": len(names) or spec.classes, "sizes": (16.0, 16.0)}
    if "volume" in spec:
        return {"landmarks": len(brains.LANDMARKS)}
    if spec.landmarks:
        return {"landmarks": formats.read(spec.landmarks, spec.images, problems=[])[0].points.shape[0]}
    return {"landmarks": len(_kept(spec, spec.part.split("+")[0]))}


def _kept(spec, part):
    """The landmarks of a phantom's part, from 0, that `spec.drop` leaves."""
    return [k for k in range(phantoms.PARTS[part]) if f"{part}/{k + 1}" not in spec.drop]


def _own(spec):
    samples, problems = folder.load(
        spec.images, spec.landmarks, size=tuple(spec.size), channels=3, fit=spec.fit, group_by=spec.group_by
    )
    flip = tuple(spec.flip) or None
    if flip and sorted(flip) != list(range(samples.points.shape[1])):
        raise ValueError(f"--config.data.flip={flip}: give each of 0..{samples.points.shape[1] - 1} once")
    photograph = lambda name: folder.photograph(spec.images, name)
    return Dataset(samples, problems, flip, photograph, formats.disagreement(spec.landmarks, spec.images))


def _objects(spec):
    """Boxes of the user's own, or drawn dendrites with their spines."""
    if bool(spec.images) != bool(spec.boxes):
        missing = "boxes" if spec.images else "images"
        raise ValueError(
            f"--config.data.{missing} is empty: a dataset of one's own needs both --config.data.images=DIR and"
            " --config.data.boxes=FILE"
        )
    size, options = tuple(spec.size), {"fit": spec.fit, "scale": spec.scale, "overlap": spec.overlap}
    if spec.images:
        samples, annotations, classes, problems = objects.load(spec.images, spec.boxes, size=size, **options)
        photograph = lambda name: folder.photograph(spec.images, name)
    else:
        classes, problems, annotations, parts = dendrite.CLASSES[: spec.classes], [], [], []
        for i in range(spec.count):
            image, corners, labels = dendrite.draw(i, seed=spec.seed, classes=spec.classes)
            annotation = BoxAnnotation(f"dendrite_{i}.png", corners, tuple(classes[label] for label in labels))
            annotations.append(annotation)
            parts += [(annotation, i, *tile) for tile in objects.cut(image, size, **options)]
        samples = objects.samples(parts, size, classes)
        number = lambda name: int(name.removeprefix("dendrite_").removesuffix(".png"))
        photograph = lambda name: dendrite.draw(number(name), seed=spec.seed, classes=spec.classes)[0]
    return Dataset(samples, problems, (), photograph, objects=tuple(annotations), classes=classes)


def facts(dataset: Dataset) -> dict:
    """What a head needs to know of the data: how many landmarks (of scouts also where), or which classes and sizes of boxes."""
    samples = dataset.samples
    if not dataset.classes:
        template = {"template": dataset.volumes.template} if dataset.volumes else {}
        return {"landmarks": samples.points.shape[1]} | template
    boxes = samples.boxes[samples.labels >= 0]
    extent = np.maximum(boxes[:, 2:] - boxes[:, :2], 1) if len(boxes) else np.full((1, 2), 16.0)
    return {
        "classes": len(dataset.classes),
        "names": dataset.classes,
        "sizes": tuple(np.median(extent, axis=0).tolist()),
    }


def _drawn(part, **options) -> Samples:
    """`phantoms.load`, kept for the next start in JAXMARKS_CACHE, by default ~/.cache/jaxmarks; empty: not kept.

    The file's name has a digest of the code that draws, so what another version drew is not taken.
    """
    folder = os.environ.get("JAXMARKS_CACHE", str(Path.home() / ".cache" / "jaxmarks"))
    if not folder:
        return phantoms.load(part, **options)
    code = b"".join(file.read_bytes() for file in sorted(Path(phantoms.__file__).parent.glob("*.py")))
    digest = hashlib.sha256(code + repr((part, sorted(options.items()), np.__version__)).encode()).hexdigest()
    path = Path(folder) / "phantoms" / f"{part}-{digest[:16]}.npz"
    try:
        with path.open("rb") as file, np.load(file) as kept:
            return Samples(**kept)
    except (OSError, ValueError, zipfile.BadZipFile):  # not drawn yet, or cut short
        drawn = phantoms.load(part, **options)
    with contextlib.suppress(OSError):  # a folder that cannot be written to costs time, not the run
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.npz")
        np.savez(whole, **vars(drawn))
        whole.replace(path)
    return drawn


def _phantoms(spec):
    """Phantoms of `spec.part`, or of several joined by "+", each without the landmarks that `spec.drop` takes from it.

    They are drawn at the network's size; their photograph is the drawing at `spec.source_size`.
    """
    parts = spec.part.split("+")
    unknown = set(parts) - set(phantoms.PARTS)
    if unknown:
        raise ValueError(f"--config.data.part={spec.part}: the parts are {', '.join(phantoms.PARTS)}")
    size, source = tuple(spec.size), tuple(spec.source_size)
    scale = np.array([source[1] / size[1], source[0] / size[0]])
    drawn = []
    for part in parts:
        kept = _kept(spec, part)
        one = _drawn(part, size=size, seed=spec.seed, count=spec.count)
        affine = np.concatenate([np.diag(scale), np.zeros((2, 1))], axis=1)
        drawn.append(
            Samples(
                images=one.images,
                points=one.points[:, kept],
                visible=one.visible[:, kept],
                group=one.group,
                name=one.name,
                to_source=np.broadcast_to(affine, (len(one), 2, 3)),
                mm_per_px=one.mm_per_px / scale[0],
                source_size=np.broadcast_to(source, (len(one), 2)),
            )
        )
    counts = {part: d.points.shape[1] for part, d in zip(parts, drawn, strict=True)}
    if len(set(counts.values())) > 1:
        raise ValueError(f"the parts have different landmark counts {counts}: drop some with config.data.drop")

    def photograph(name):
        part, specimen = name.removesuffix(".png").rsplit("_", 1)
        return phantoms.draw(part, int(specimen), size=source, seed=spec.seed)[0]

    return Dataset(concatenate(drawn), [], phantoms.FLIP[parts[0]] if len(parts) == 1 else None, photograph)
