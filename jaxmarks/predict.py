"""Prediction: a trained run as a pure function of photographs, or applied to a folder of them."""

import functools
import itertools
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarks import atomic, calibration, detection, landmarks, report, steps, tasks, trained
from jaxmarks.data import folder as folders
from jaxmarks.data import formats, loading, objects
from jaxmarks.data.ahead import ahead
from jaxmarks.data.formats.boxes import BoxAnnotation
from jaxmarks.ops import geometry
from jaxmarks.ops.frames import placement

# Every body accepts frames whose sides are multiples of this.
STRIDE = 32


def load(workdir: Path, *, fold: int | None = None, set: str = "") -> Callable:
    """Loads a trained run as a pure function that other JAX code can jit, vmap and differentiate.

    Args:
      workdir: a run's folder.
      fold: the fold whose networks predict; None for all that were trained. Several networks predict their mean, or as
        detectors the objects on which they agree.
      set: for a run over several datasets, the one whose landmarks are wanted.

    Returns:
      images (B, H, W, C) of any size, uint8 or floats from 0 to 1 -> (points (B, K, 2) in the images' pixels, scores
      (B, K)). A detector returns `heads.Detections`, with boxes in the images' pixels: at most its head's `limit` per
      image, since large photographs are not cut into tiles here. The function is a `jax.tree_util.Partial` over the
      variables, so it can be an argument of a jitted function. It raises ValueError for images of another shape or
      type.
    """
    task, settings, networks, notes = trained.networks_of(workdir, fold=fold, set=set)
    return jax.tree_util.Partial(function(task, settings, notes[0]["facts"]), networks)


def function(task, settings, facts: dict) -> Callable:
    """Returns the pure function (networks, images) to which `load` binds the networks."""
    call = detector_predictor(settings, facts) if "boxes" in settings.data else landmark_predictor(task, settings)

    def predict(networks, images):
        images = photographs(images)
        if images.shape[0] == 0:  # a network may divide by the batch size: it gets one image, whose results are dropped
            blank = jnp.zeros((1, *images.shape[1:]), images.dtype)
            return jax.tree.map(lambda leaf: leaf[:0], call(networks, blank))
        return call(networks, images)

    return predict


def photographs(images):
    """Returns photographs (B, H, W, C): uint8 unchanged, floats as float32.

    Raises:
      ValueError: images of another shape, without pixels, or of a type that is neither uint8 nor floating point.
    """
    images = jnp.asarray(images)
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(f"images of shape {images.shape}: give (B, H, W, C), or image[None] for a single photograph")
    if images.dtype == jnp.uint8:
        return images
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images of type {images.dtype}: give uint8, or floats from 0 to 1")
    return images.astype(jnp.float32)


def landmark_predictor(task, settings) -> Callable:
    """Returns the pure function (networks, images) of a network that finds landmarks."""
    call = steps.predictor(task)
    size, fit = loading.frame_size(settings.data), settings.data.fit

    def predict(networks, images):
        source_size = images.shape[1:3]
        frames = geometry.to_frame(images, size, fit=fit)
        points, scores = call(networks, frames)
        return geometry.affine(geometry.frame(source_size, size, fit), points), scores

    return predict


def detector_predictor(settings, facts: dict) -> Callable:
    """Returns the pure function (networks, images) of a detector; it drops what `detection.predict` drops.

    If photographs have a fixed scale (`fit` "tile"), each is a single frame here, however large: there are no tiles to
    merge.
    """
    fit, scale = settings.data.fit, settings.data.scale

    @functools.cache
    def predictor(size):  # one for each size: a new one in every call would be compiled in every call
        return steps.predictor(tasks.build(settings, facts, size=size)[1])

    def predict(networks, images):
        source_size, size = images.shape[1:3], tuple(settings.data.size)
        matrix = geometry.frame(source_size, size, fit, scale)
        if fit == "tile":
            top, left, *extent = placement(source_size, size, fit, scale)
            size = tuple(side if n <= side else n + -n % STRIDE for n, side in zip(extent, size, strict=True))
            pads = [(before, n - before - m) for before, n, m in zip((top, left), size, extent, strict=True)]
            frames = jnp.pad(geometry.resize(images, extent), ((0, 0), *pads, (0, 0)))
        else:
            frames = geometry.to_frame(images, size, fit=fit)
        detections = predictor(size)(networks, frames)
        corners = geometry.affine(matrix, detections.boxes.reshape(*detections.boxes.shape[:-1], 2, 2))
        is_valid = geometry.inside(corners.mean(-2), source_size) & (detections.scores >= detection.FLOOR)
        detections = detections._replace(
            boxes=corners.reshape(detections.boxes.shape), scores=jnp.where(is_valid, detections.scores, 0)
        )
        order = jnp.argsort(-detections.scores)
        return jax.vmap(lambda one, order: jax.tree.map(lambda x: x[order], one))(detections, order)

    return predict


def on_folder(
    workdir: Path, images: Path, out: Path, *, set: str = "", scale: float | None = None, threshold: float | None = None
) -> dict:
    """Predicts every photograph of a folder and writes predictions (CSV, TPS), overlays and `proofread.html` to `out`.

    For detectors see `objects_in_folder`, for scouts `calibration.of_folder`.

    While a batch is predicted, the next are read and the previous are drawn, so that memory stays bounded and all cores
    are busy. A photograph that cannot be read is listed in `summary.json` under "failures". For a run over several
    datasets, `set` names the one that the photographs resemble. For a detector, `scale` replaces `data.scale`, and
    `threshold` the one chosen on validation images; landmarks that score less than a `threshold` are missing.

    Raises:
      ValueError: no photograph could be read, or a `threshold` is given for scouts.
    """
    task, settings, networks, notes = trained.networks_of(workdir, set=set)
    if "boxes" in settings.data:
        settings.data.scale = settings.data.scale if scale is None else scale
        threshold = detection.threshold_of(notes) if threshold is None else threshold
        return objects_in_folder(task, settings, networks, notes, images, out, threshold)
    call = steps.predictor(task)
    if "volume" in settings.data:
        if threshold is not None:
            raise ValueError(f"--threshold={threshold}: scouts are calibrated without one; leave it out")
        calibrator = calibration.Calibrator(
            functools.partial(call, networks), tuple(settings.data.size), settings.data.spacing,
            notes[0]["facts"]["template"], calibration.spread_of(notes),
        )  # fmt: skip
        return calibration.of_folder(calibrator, images, out)
    parts: list[landmarks.Predictions] = []
    problems: list[dict] = []

    def drawings():
        size, fit = loading.frame_size(settings.data), settings.data.fit
        for samples, photographs in folders.batches(images, size=size, fit=fit, problems=problems):
            points, scores = landmarks.predict(call, networks, samples)
            if threshold is not None:
                points = np.where(scores[..., None] >= threshold, points, np.nan)
            none_visible = np.zeros(points.shape[:2], bool)
            batch_predictions = landmarks.with_truth(samples, points, scores, -1)
            parts.append(batch_predictions._replace(true=np.zeros_like(points), visible=none_visible))
            for name, photograph, image_points, source_size in zip(
                samples.name, photographs, points, samples.source_size, strict=True
            ):
                yield name, functools.partial(report.overlay, photograph, shrunk(image_points, photograph, source_size))

    draw_all(drawings(), images, problems, out)
    predictions = landmarks.join(parts)
    summary = {"images": len(predictions.name), "landmarks": predictions.points.shape[1], "failures": problems}
    if threshold is not None:
        summary |= {"threshold": threshold, "missing": int(np.isnan(predictions.points[..., 0]).sum())}
    summary["names"] = notes[0]["facts"].get("names", ())
    landmarks.write(out, [predictions])
    report.proofread.landmarks(out, images, landmarks.to_proofread(predictions), names=summary["names"])
    atomic.write_json(Path(out) / "summary.json", summary)
    return summary


def shrunk(points, photograph, source):
    """Scales points (..., 2) from pixels of the `source` size (h, w) to those of the smaller `photograph` to draw."""
    return points * np.divide(photograph.shape[1::-1], source[::-1])


def draw_all(drawings: Iterable[tuple[str, Callable]], images: Path, problems: list[dict], out: Path) -> None:
    """Writes all drawings as JPEGs to `out`/overlays while the next are computed.

    A drawing is a photograph's name and a function that writes the overlay to its argument `path`. Progress is printed
    every ten seconds.

    Raises:
      ValueError: there is no drawing, because of the `problems` with the folder `images`; earlier overlays are kept.
    """

    def draw(drawing: tuple[str, Callable]):
        name, write = drawing
        path = Path(out) / "overlays" / (name if name.lower().endswith((".jpg", ".jpeg")) else f"{name}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path=path)

    drawings = iter(drawings)
    if not (first_drawing := list(itertools.islice(drawings, 1))):
        raise ValueError(f"{images}: no photograph could be read; {'; '.join(p['what'] for p in problems)}")
    drawings = itertools.chain(first_drawing, drawings)
    report.make_empty(Path(out) / "overlays")
    last_print = time.perf_counter()
    for count, _ in enumerate(ahead(draw, drawings, most=32), 1):
        if time.perf_counter() - last_print > 10:
            last_print = time.perf_counter()
            print(f"{count} photographs done", flush=True)


def objects_in_folder(task, settings, networks, notes, images: Path, out: Path, threshold: float) -> dict:
    """Detects the objects in a folder's photographs; writes `predictions.csv`, `predictions.json` (COCO), overlays."""
    names, overlap = detection.names_of(notes), detection.overlap_of(notes)
    call, options = steps.predictor(task), {key: settings.data[key] for key in ("fit", "scale", "overlap")}
    annotations: list[BoxAnnotation] = []
    scores: list[np.ndarray] = []
    problems: list[dict] = []
    to_proofread: list[dict] = []
    minimum_score = max(detection.FLOOR, threshold / 4)  # for users who lower the threshold on the proofreading page

    def drawings():
        size = tuple(settings.data.size)
        for samples, photographs in objects.batches(images, size=size, **options, problems=problems):
            source_sizes = dict(zip(samples.name.tolist(), samples.source_size, strict=True))
            found = detection.predict(call, networks, samples, overlap=overlap)
            for n, (photograph, name, boxes, image_scores, classes) in enumerate(zip(photographs, *found, strict=True)):
                is_kept = (image_scores >= threshold) & (image_scores > 0)
                boxes, classes, source_size = boxes[is_kept], classes[is_kept], source_sizes[str(name)]
                labels = tuple(names[c] for c in classes)
                annotations.append(BoxAnnotation(str(name), boxes, labels, size=tuple(source_size.tolist())))
                scores.append(image_scores[is_kept])
                items = detection.detections(found, n, minimum_score)
                to_proofread.append({"name": str(name), "size": source_size, "items": items})
                corners = shrunk(boxes.reshape(-1, 2, 2), photograph, source_size)
                layers = report.class_layers(corners.reshape(-1, 4), classes, names)
                yield name, functools.partial(report.rectangles, photograph, layers)

    draw_all(drawings(), images, problems, out)
    for ending in ("csv", "json"):
        formats.boxes.write(Path(out) / f"predictions.{ending}", annotations, scores, classes=names)
    report.proofread.boxes(out, images, to_proofread, names=names, threshold=threshold, least=minimum_score)
    found = sum(len(image_scores) for image_scores in scores)
    summary = {"images": len(annotations), "objects": found, "threshold": threshold, "failures": problems}
    atomic.write_json(Path(out) / "summary.json", summary)
    return summary
