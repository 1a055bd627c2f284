"""Loads the dataset of a config's `data` as `Samples`: the user's own files, drawn phantoms, or several of either."""

import contextlib
import dataclasses
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ml_collections
import numpy as np
import scipy

from jaxmarks import atomic
from jaxmarks.data import brains, folder, formats, objects, phantoms, records
from jaxmarks.data.brains import Volumes
from jaxmarks.data.formats import boxes
from jaxmarks.data.formats.boxes import BoxAnnotation
from jaxmarks.data.phantoms import dendrite
from jaxmarks.data.photographs import content
from jaxmarks.data.samples import DRAWN, FormatError, Samples, concatenate, problem


class JoinedSet(NamedTuple):
    """One of several joined datasets: the (start, stop) of its landmarks, and its annotators' disagreement."""

    columns: tuple[int, int]
    disagreement: float | None


class Dataset(NamedTuple):
    """A run's data.

    Attributes:
      samples: the images and landmarks.
      problems: what was left out or masked during loading (`samples.problem`).
      flip: the landmarks' order after a horizontal mirror, or None where mirroring is not allowed; -1 marks a landmark
        whose images must not be mirrored, where images of another dataset may be.
      photograph: name -> (H, W, 3) uint8 at source resolution, for figures.
      objects: for a dataset of boxes, the photographs' annotations in source pixels.
      classes: the names of the boxes' classes.
      names: the landmarks' names, if their file has them.
      volumes: for scout triples, the volumes to acquire (ground truth).
      disagreement: the mean distance in px between annotators, if there are several.
      images: the folder of the photographs, to which their names are relative; empty for drawn images.
      sets: if several datasets are joined, the datasets by name, in the order of their domain indices.
    """

    samples: Samples
    problems: list[dict]
    flip: tuple[int, ...] | None
    photograph: Callable[[str], np.ndarray]
    disagreement: float | None = None
    objects: tuple[BoxAnnotation, ...] = ()
    classes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    volumes: Volumes | None = None
    images: str = ""
    sets: dict[str, JoinedSet] = {}  # noqa: RUF012  # never changed

    @property
    def columns(self) -> list[slice]:
        """The slice of the landmarks that belongs to each domain."""
        return [slice(*member.columns) for member in self.sets.values()] or [slice(None)]

    def own(self, samples: Samples) -> np.ndarray:
        """Marks the landmarks of each sample's domain, (N, K) bool."""
        is_own = np.zeros(samples.visible.shape, bool)
        for domain, columns in enumerate(self.columns):
            is_own[samples.domain == domain, columns] = True
        return is_own


def frame_size(spec) -> tuple[int, int]:
    """Returns the height and width of the samples' frame under a config's `data`: `zoom` times the network's `size`."""
    zoom = spec.get("zoom", 1)  # configs of objects and volumes have no such key
    height, width = spec.size
    return round(zoom * height), round(zoom * width)


def load(spec) -> Dataset:
    """Loads the dataset of a config's `data`: the user's own files if it names any, else drawn images.

    Copies of a photograph, under other names or in another of several datasets, get one group.
    If `spec.keep` names a folder, the images are `records.Records` there.
    """
    dataset, keep = _merge_copies(_load(spec)), spec.get("keep")  # configs of volumes have no such key
    images = dataset.samples.images
    if keep and isinstance(images, np.ndarray):
        saved = records.cache_images(images, keep, key=records.fingerprint(list(images.shape), images), notes=[])
        dataset = dataset._replace(samples=dataclasses.replace(dataset.samples, images=saved))  # type: ignore[arg-type]
    return dataset


def _load(spec) -> Dataset:
    if spec.get("sets"):
        return _load_sets(spec)
    if "boxes" in spec:
        return _objects(spec)
    if "volume" in spec:
        samples, volumes, photograph = brains.load(spec)
        return Dataset(_as_drawn(samples, spec), [], None, photograph, volumes=volumes)
    if bool(spec.images) != bool(spec.landmarks):
        missing = "landmarks" if spec.images else "images"
        raise ValueError(
            f"--config.data.{missing} is empty: your own dataset needs both --config.data.images=DIR and"
            " --config.data.landmarks=FILE"
        )
    return _own(spec) if spec.images else _phantoms(spec)


def inputs_of(spec, keys=("images", "landmarks", "boxes", "volume")) -> list[str]:
    """Returns the files and folders that a config's `data` names, under these keys."""
    sections = [spec, *(spec.get("sets") or {}).values()]
    paths = [one.get(key) for one in sections for key in keys if one.get(key)]
    return [part.strip() for path in paths for part in ([path] if Path(path).exists() else path.split(","))]


def known_facts(spec) -> dict:
    """Returns those of a dataset's `facts` that are known without decoding or drawing an image."""
    if spec.get("sets"):
        counts = {name: known_facts(of_set(spec, name))["landmarks"] for name in spec.sets}
        return {"landmarks": sum(counts.values()), "sets": _columns(counts)}
    if "boxes" in spec:
        names = {name for a in boxes.read(spec.boxes, []) for name in a.classes} if spec.boxes else ()
        return {"classes": len(names) or spec.classes, "sizes": (16.0, 16.0)}
    if "volume" in spec:
        return {"landmarks": len(brains.LANDMARKS)}
    if spec.landmarks:
        problems: list[dict] = []
        annotations = formats.read(spec.landmarks, spec.images, problems=problems, curves=spec.curves)
        if not annotations:
            reasons = "; ".join(sorted({each["what"] for each in problems})[:3]) or "the landmark file names no image"
            raise FormatError(
                spec.landmarks, "", f"not one usable photograph in {spec.images} ({reasons})", "check both paths"
            )
        return {"landmarks": annotations[0].points.shape[0]}
    return {"landmarks": len(_kept(spec, spec.part.split("+")[0]))}


def of_set(spec, name: str):
    """Returns the `data` of the dataset `name` in `spec.sets`; `spec` itself if it has no sets and the name is empty.

    Raises:
      ValueError: there is no dataset of that name, or it sets a key that it cannot change; the message lists the valid
        ones.
    """
    sets = spec.get("sets") or {}
    if bool(name) != bool(sets) or (name and name not in sets):
        available = (
            f"datasets {', '.join(sets)}: name one of them, such as --set={next(iter(sets))}"
            if sets
            else "one dataset, which has no name: leave --set out"
        )
        raise ValueError(f"--set={name}: the run has {available}")
    if not name:
        return spec
    if not hasattr(sets[name], "items"):
        raise ValueError(
            f"--config.data.sets.{name}={sets[name]}: give the keys in which it differs, such as {{'images': 'DIR'}}"
        )
    common = [key for key in spec if key not in ("sets", "size", "pixels", "zoom", "pose", "keep")]
    if unknown := [key for key in sets[name] if key not in common]:
        raise ValueError(f"--config.data.sets.{name}.{unknown[0]}: a dataset may only set {', '.join(common)}")
    return ml_collections.ConfigDict(dict(spec) | dict(sets[name]) | {"sets": {}, "keep": ""})


def _columns(counts):
    """Turns landmark counts by dataset into each dataset's (start, stop), with all landmarks side by side."""
    ends = np.cumsum(list(counts.values())).tolist()
    return {name: (end - count, end) for (name, count), end in zip(counts.items(), ends, strict=True)}


def _load_sets(spec):
    """Loads the datasets of `spec.sets` as one, landmarks side by side; an image has only its own dataset's visible."""
    if "boxes" in spec or "volume" in spec:
        raise ValueError("--config.data.sets: only datasets of landmarks can be joined, not boxes or volumes")
    for name in spec.sets:
        if not name.isidentifier() or name in ("loss", "distance_px"):  # names that the log uses already
            raise ValueError(
                f"--config.data.sets.{name}: choose another name, of letters, digits and _, not loss or distance_px"
            )
    each = {name: _load(of_set(spec, name)) for name in spec.sets}
    columns = _columns({name: one.samples.points.shape[1] for name, one in each.items()})
    width, parts, problems = sum(one.samples.points.shape[1] for one in each.values()), [], []
    for domain, (name, one) in enumerate(each.items()):
        samples, padding = one.samples, [(0, 0), (columns[name][0], width - columns[name][1])]
        parts.append(
            dataclasses.replace(
                samples,
                points=np.pad(samples.points, [*padding, (0, 0)]),
                visible=np.pad(samples.visible, padding),
                name=np.array([f"{name}/{image}" for image in samples.name]),
                specimen=np.array([one and f"{name}/{one}" for one in samples.specimen.tolist()]),
                domain=np.full(len(samples), domain, np.int32),
            )
        )
        problems += [each | {"image": f"{name}/{each['image']}"} for each in one.problems]

    def photograph(name):
        set_name, _, image = name.partition("/")
        return each[set_name].photograph(image)

    # A dataset that must not be mirrored gets -1, which matters only if another one may be.
    orders = [
        np.add(one.flip, start) if one.flip else np.full(stop - start, -1)
        for one, (start, stop) in zip(each.values(), columns.values(), strict=True)
    ]
    flip = tuple(np.concatenate(orders).tolist()) if any(one.flip for one in each.values()) else None
    sets = {name: JoinedSet(columns[name], one.disagreement) for name, one in each.items()}
    samples = concatenate(parts)
    _, group = np.unique(np.stack([samples.domain, samples.group]), axis=1, return_inverse=True)
    samples = dataclasses.replace(samples, group=group.reshape(-1))
    return Dataset(samples, problems, flip, photograph, sets=sets)


def _merge_copies(dataset: Dataset) -> Dataset:
    """Merges the groups that hold copies of one photograph, under other names or in another of several datasets.

    Copies within a single dataset are also listed as a problem.
    """
    samples, problems, originals = dataset.samples, list(dataset.problems), dict[str, str]()
    pairs = zip(samples.content.tolist(), samples.name.tolist(), strict=True)
    copies = {name: originals[content] for content, name in pairs if originals.setdefault(content, name) != name}
    if copies and not dataset.sets:
        image, of = next(iter(copies.items()))
        what = f"{len(copies)} photographs are copies of others, this one of {of}: each gets the group of its original"
        problems.append(problem(image, what, dataset.images))
    samples = dataclasses.replace(samples, group=_link_groups(samples.group, samples.content))
    return dataset._replace(samples=samples, problems=problems)


def _link_groups(group, content):
    """Merges those groups (N,) that share a content (N,)."""
    _, numbers = np.unique(content, return_inverse=True)
    groups, contents = group.max(initial=-1) + 1, numbers.max(initial=-1) + 1
    pairs = np.unique([group, numbers], axis=1)
    if pairs.shape[1] == contents:  # the usual case; scipy's graphs take 0.3 s to import
        return group
    graph = scipy.sparse.coo_array((np.ones(len(group)), (group, groups + numbers)), [groups + contents] * 2)
    return scipy.sparse.csgraph.connected_components(graph, directed=False)[1][group].astype(group.dtype)


def _kept(spec, part):
    """Returns the indices, from 0, of the landmarks of a phantom's part that `spec.drop` does not remove."""
    return [k for k in range(phantoms.PARTS[part]) if f"{part}/{k + 1}" not in spec.drop]


def _flip(spec, part):
    """Returns the kept landmarks' order after a mirror; None if there is none or a kept one's partner is dropped."""
    kept, order = _kept(spec, part), phantoms.FLIP[part]
    if order is None or not {order[k] for k in kept} <= set(kept):
        return None
    return tuple(kept.index(order[k]) for k in kept)


def _own(spec):
    samples, names, problems = folder.load(
        spec.images,
        spec.landmarks,
        size=frame_size(spec),
        channels=3,
        fit=spec.fit,
        group_by=spec.group_by,
        keep=spec.keep,
        curves=spec.curves,
    )
    flip = tuple(spec.flip) or None
    if flip and sorted(flip) != list(range(samples.points.shape[1])):
        raise ValueError(f"--config.data.flip={flip}: list each of 0..{samples.points.shape[1] - 1} exactly once")
    photograph = lambda name: folder.photograph(spec.images, name)
    disagreement = formats.disagreement(spec.landmarks, spec.images, curves=spec.curves)
    return Dataset(samples, problems, flip, photograph, disagreement, names=names, images=spec.images)


def _objects(spec):
    """Loads the user's own boxes, or draws dendrites with their spines."""
    if bool(spec.images) != bool(spec.boxes):
        missing = "boxes" if spec.images else "images"
        raise ValueError(
            f"--config.data.{missing} is empty: your own dataset needs both --config.data.images=DIR and"
            " --config.data.boxes=FILE"
        )
    size, options = tuple(spec.size), {"fit": spec.fit, "scale": spec.scale, "overlap": spec.overlap}
    if spec.fit == "tile" and not spec.overlap < min(size):
        raise ValueError(
            f"--config.data.overlap={spec.overlap}: give less than both sides of --config.data.size={size}"
        )
    if spec.images:
        samples, annotations, classes, problems = objects.load(
            spec.images, spec.boxes, size=size, group_by=spec.get("group_by", ""), **options
        )
        photograph = lambda name: folder.photograph(spec.images, name)
    else:
        classes, problems, annotations, parts = dendrite.CLASSES[: spec.classes], [], [], []
        for i in range(spec.count):
            image, corners, labels = dendrite.draw(i, seed=spec.seed, classes=spec.classes)
            annotation = BoxAnnotation(f"dendrite_{i}.png", corners, tuple(classes[label] for label in labels))
            annotations.append(annotation)
            parts += [(annotation, i, *tile) for tile in objects.cut(image, size, **options)]
        samples = _as_drawn(objects.samples(parts, size, classes), spec)
        number = lambda name: int(name.removeprefix("dendrite_").removesuffix(".png"))
        photograph = lambda name: dendrite.draw(number(name), seed=spec.seed, classes=spec.classes)[0]
    fields = {"objects": tuple(annotations), "classes": classes, "images": spec.images}
    return Dataset(samples, problems, (), photograph, **fields)


def facts(dataset: Dataset) -> dict:
    """Returns what a head needs to know about the data.

    For landmarks: their number, their names and joined datasets if there are any, and for scouts the template of their
    positions. For boxes: their classes and typical size, the median over all boxes including those of test images.
    """
    samples = dataset.samples
    if not dataset.classes:
        template = {"template": dataset.volumes.template} if dataset.volumes else {}
        sets = {"sets": {name: member.columns for name, member in dataset.sets.items()}} if dataset.sets else {}
        names = {"names": dataset.names} if dataset.names else {}
        return {"landmarks": samples.points.shape[1]} | names | template | sets
    boxes = samples.boxes[samples.labels >= 0]
    extent = np.maximum(boxes[:, 2:] - boxes[:, :2], 1) if len(boxes) else np.full((1, 2), 16.0)
    return {
        "classes": len(dataset.classes),
        "names": dataset.classes,
        "sizes": tuple(np.median(extent, axis=0).tolist()),
    }


def _drawn(part, **options) -> Samples:
    """Returns `phantoms.load`, cached in the folder JAXMARKS_CACHE, by default ~/.cache/jaxmarks; empty: no cache.

    The file's name includes a digest of the drawing code, so what another version drew is not used.
    """
    folder = os.environ.get("JAXMARKS_CACHE", str(Path.home() / ".cache" / "jaxmarks"))
    if not folder:
        return phantoms.load(part, **options)
    code = [file.read_text() for file in sorted(Path(phantoms.__file__).parent.glob("*.py"))]
    fields = [field.name for field in dataclasses.fields(Samples)]
    digest = records.fingerprint(code, part, options, fields, np.__version__)
    path = Path(folder) / "phantoms" / f"{part}-{digest[:16]}.npz"
    try:
        with path.open("rb") as file, np.load(file) as archive:
            return Samples(**archive)
    except (OSError, ValueError, zipfile.BadZipFile):  # not cached yet, or truncated
        drawn = phantoms.load(part, **options)
    with contextlib.suppress(OSError):  # an unwritable folder costs time, but must not end the run
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.whole(path, binary=True) as target:
            np.savez(target, **vars(drawn))
    return drawn


def _phantoms(spec):
    """Draws phantoms of the part `spec.part`, or of several joined by "+", without the landmarks in `spec.drop`.

    The samples are drawn at the frame's size, their photographs at `spec.source_size`.
    """
    parts = spec.part.split("+")
    unknown = set(parts) - set(phantoms.PARTS)
    if unknown:
        raise ValueError(f"--config.data.part={spec.part}: the parts are {', '.join(phantoms.PARTS)}")
    landmark_names = {f"{part}/{k}" for part, count in phantoms.PARTS.items() for k in range(1, count + 1)}
    if wrong := [name for name in spec.drop if name not in landmark_names]:
        raise ValueError(
            f"--config.data.drop={tuple(spec.drop)}: there is no landmark {wrong[0]}; write them like elytra/1"
        )
    size, source_size = frame_size(spec), tuple(spec.source_size)
    options = {"share": spec.share, "turn": spec.turn}
    scale = np.array([source_size[1] / size[1], source_size[0] / size[0]])
    drawn = []
    for part in parts:
        kept = _kept(spec, part)
        samples = _drawn(part, size=size, seed=spec.seed, count=spec.count, **options)
        affine = np.concatenate([np.diag(scale), np.zeros((2, 1))], axis=1)
        drawn.append(
            dataclasses.replace(
                samples,
                points=samples.points[:, kept],
                visible=samples.visible[:, kept],
                to_source=np.broadcast_to(affine, (len(samples), 2, 3)),
                mm_per_px=samples.mm_per_px / scale[0],
                source_size=np.broadcast_to(source_size, (len(samples), 2)),
            )
        )
    counts = {part: d.points.shape[1] for part, d in zip(parts, drawn, strict=True)}
    if len(set(counts.values())) > 1:
        raise ValueError(f"the parts have different numbers of landmarks {counts}: drop some with --config.data.drop")

    def photograph(name):
        part, specimen = name.removesuffix(".png").rsplit("_", 1)
        return phantoms.draw(part, int(specimen), size=source_size, seed=spec.seed, **options)[0]

    flip = _flip(spec, parts[0]) if len(parts) == 1 else None
    return Dataset(_as_drawn(concatenate(drawn), spec), [], flip, photograph)


def _as_drawn(samples: Samples, spec) -> Samples:
    """Sets the `content` of drawn samples to what distinguishes equal names: their volume's digest, and the seed."""
    volume = f"{content(spec.volume)}, " if spec.get("volume") else ""
    contents = np.array([f"{DRAWN}{volume}seed {spec.seed}: {name}" for name in samples.name])
    return dataclasses.replace(samples, content=contents)
