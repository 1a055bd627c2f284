"""Evaluation of detectors: merges the detections of tiles into photographs, scores them, and writes their files."""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxmarks import atomic, heads, steps
from jaxmarks.data.formats.boxes import BoxAnnotation
from jaxmarks.data.samples import Samples, problem, stack_padded
from jaxmarks.ops import boxes as box_ops
from jaxmarks.ops import metrics

# A detection is a hit from this IoU on, or within this distance of the centres, in px of the photograph (spine paper).
OVERLAP, GOLDEN_DISTANCE = 0.4, 6.0
# A box cut off at a tile's border is dropped if a box of another tile covers more than this share of it.
CUT_COVERAGE = 0.4
# Thresholds count as equally good, on the few objects of validation images, if their F1 is below the best F1 by at most
# this share of it, or of its distance from 1 if that is smaller.
F1_TOLERANCE = 0.2
# The threshold if none can be chosen; the scores of the blob baseline are scaled to it.
DEFAULT_THRESHOLD = 0.5
# Detections with lower scores are dropped.
FLOOR = 0.05


class Objects(NamedTuple):
    """Detections and true objects of N photographs, in their pixels; a score of 0 or a label of -1 marks no object."""

    name: np.ndarray  # (N,)
    fold: np.ndarray  # (N,)
    boxes: np.ndarray  # (N, L, 4)
    scores: np.ndarray  # (N, L)
    classes: np.ndarray  # (N, L)
    true: np.ndarray  # (N, M, 4)
    labels: np.ndarray  # (N, M)


class Found(NamedTuple):
    """Detections in N photographs, in their pixels; a score of 0 marks no object."""

    name: np.ndarray  # (N,)
    boxes: np.ndarray  # (N, L, 4)
    scores: np.ndarray  # (N, L)
    classes: np.ndarray  # (N, L)


def predict(call, networks, samples: Samples, *, overlap: float = heads.OVERLAP, batch_size: int = 16) -> Found:
    """Detects the objects of each photograph, in its pixels; detections of its tiles are merged.

    Args:
      call: a `steps.predictor`.
      networks: its first argument.
      samples: tiles; those of a photograph have its name.
      overlap: IoU up to which boxes of two tiles are two objects.
      batch_size: tiles per batch.
    """
    boxes, scores, classes = steps.predict(call, networks, samples.images, batch_size=batch_size)
    scale, shift = samples.to_source[:, [0, 1], [0, 1]], samples.to_source[:, :, 2]
    source_boxes = boxes * np.tile(scale, 2)[:, None] + np.tile(shift, 2)[:, None]
    centres = (source_boxes[..., :2] + source_boxes[..., 2:]) / 2
    inside = ((centres >= 0) & (centres <= samples.source_size[:, None, ::-1])).all(-1)
    scores = np.where(inside & (scores >= FLOOR), scores, 0)
    names = list(dict.fromkeys(samples.name.tolist()))
    if len(names) == len(samples):
        return Found(np.array(names), source_boxes, scores, classes)
    corners, sizes = np.rint(shift / scale)[:, ::-1], np.rint(samples.source_size / scale[:, ::-1])
    cut = cut_off(boxes, corners, sizes, samples.images.shape[1:3])
    tiles = [np.flatnonzero(samples.name == name) for name in names]
    per_photograph = [merged(source_boxes[t], scores[t], classes[t], cut[t], overlap=overlap) for t in tiles]
    return Found(np.array(names), *map(stack_padded, zip(*per_photograph, strict=True)))


def cut_off(boxes, corners, sizes, tile, *, edge=1.0):
    """Marks the detections of T tiles that touch a tile border which is not a border of the photograph.

    Args:
      boxes: (T, N, 4), in pixels of their tile.
      corners: (T, 2) (top, left) of the tiles.
      sizes: (T, 2) height and width of their photograph, in pixels of the tiles.
      tile: (h, w).
      edge: distance in pixels below which a box touches a border.

    Returns:
      (T, N) bool.
    """
    tile_start, photograph_size, tile_size = corners[:, None, ::-1], sizes[:, None, ::-1], np.array(tile[::-1])
    cut_at_start = (boxes[..., :2] < edge) & (tile_start > 0)
    cut_at_end = (boxes[..., 2:] > tile_size - edge) & (tile_start + tile_size < photograph_size)
    return (cut_at_start | cut_at_end).any(-1)


def merged(boxes, scores, classes, cut, *, overlap):
    """Merges one photograph's detections (T, N, ...) from T tiles to (L, ...), without duplicates, by falling score.

    Whole boxes rank before those that their tile's border may have `cut` off (T, N), each kind by falling score. A box
    is dropped if a better-ranked box of its class in another tile scores at least half as much and overlaps it: by an
    IoU above `overlap` or, if it is cut, by more than `CUT_COVERAGE` of its own area. Boxes of one tile do not suppress
    each other: the head has done that.
    """
    order = np.flatnonzero(scores > 0)
    order = order[np.lexsort((-scores.flat[order], cut.flat[order]))]  # the whole ones first, each kind by score
    tile = order // scores.shape[1]
    boxes, scores, classes, cut = boxes.reshape(-1, 4)[order], scores.flat[order], classes.flat[order], cut.flat[order]
    areas, adjacent_tiles, kept = np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1), neighbours(boxes, tile), []
    kept_in_tile: dict[int, list[int]] = {t: [] for t in adjacent_tiles}
    for i, current_tile in enumerate(tile.tolist()):
        better = np.array([n for t in adjacent_tiles[current_tile] for n in kept_in_tile[t]], int)
        better = better[(classes[better] == classes[i]) & (2 * scores[better] >= scores[i])]
        low, high = np.maximum(boxes[better, :2], boxes[i, :2]), np.minimum(boxes[better, 2:], boxes[i, 2:])
        intersection = np.prod(np.maximum(high - low, 0), axis=-1)
        max_intersection = overlap * (areas[i] + areas[better] - intersection)
        max_intersection = np.minimum(max_intersection, CUT_COVERAGE * areas[i]) if cut[i] else max_intersection
        if not (intersection > max_intersection).any():
            kept_in_tile[current_tile].append(i)
            kept.append(i)
    ranked = np.array(kept, int)[np.argsort(-scores[kept], kind="stable")]
    return boxes[ranked], scores[ranked], classes[ranked]


def neighbours(boxes, tile) -> dict[int, list[int]]:
    """Maps each tile to the others whose boxes may overlap its own, given boxes (L, 4) and the tile (L,) of each.

    Those are the tiles whose hulls, the rectangles around all of their boxes, intersect its own.
    """
    tiles = np.unique(tile)
    hulls = np.array([[*boxes[tile == t, :2].min(0), *boxes[tile == t, 2:].max(0)] for t in tiles]).reshape(-1, 4)
    meet = ((hulls[:, None, :2] < hulls[:, 2:]) & (hulls[:, None, 2:] > hulls[:, :2])).all(-1)
    return {t: tiles[row & (tiles != t)].tolist() for t, row in zip(tiles.tolist(), np.asarray(meet), strict=True)}


def names_of(notes: list[dict]) -> tuple[str, ...]:
    """Returns the names of the classes that networks find, from their notes."""
    return tuple(notes[0]["facts"]["names"])


def class_name_problems(names: tuple[str, ...], classes: tuple[str, ...]) -> list[dict]:
    """Returns a problem if the data's `classes` are not among the `names` of the networks' classes.

    If data and networks have one class each, they are taken for the same; the problem says so.

    Raises:
      ValueError: the networks do not know a class of the data, and either of them has several.
    """
    unknown = sorted(set(classes) - set(names))
    if not unknown:
        return []
    if len(names) == len(classes) == 1:
        what = (
            f"the data call the objects {classes[0]}, the run calls them {names[0]}; the two are treated as one class"
        )
        return [problem("", what, "the classes")]
    raise ValueError(
        f"the data have objects of class {', '.join(unknown)}; the run knows only {', '.join(names)}: leave out the"
        " boxes of other classes, or train on them"
    )


def class_indices(names: Sequence[str], classes: tuple[str, ...]) -> list[int]:
    """Returns the index of each name in the classes `classes`, -1 if absent; a single class has any name."""
    return [0 if len(classes) == 1 else classes.index(name) if name in classes else -1 for name in names]


def threshold_of(notes: list[dict]) -> float:
    """Returns the threshold of several networks together, the mean of those in their notes."""
    return float(np.mean([note["threshold"] for note in notes]))


def overlap_of(notes: list[dict]) -> float:
    """Returns the IoU up to which two boxes are two objects, from networks' notes; the default if they saw no box."""
    return notes[0]["facts"].get("overlap", heads.OVERLAP)


def timed(call, networks, samples: Samples, *, overlap: float) -> tuple[Found, float]:
    """Runs `predict` with one tile per batch; returns its result and the milliseconds per photograph once compiled."""
    predict(call, networks, samples.take(np.arange(1)), batch_size=1)  # compiles
    started = time.perf_counter()
    found = predict(call, networks, samples, overlap=overlap, batch_size=1)
    return found, 1000 * (time.perf_counter() - started) / len(found.name)


def with_truth(found: Found, truth: Mapping, classes: tuple[str, ...], fold: int) -> Objects:
    """Combines detections with the annotations `truth` (by image name), labelled by index in the classes `classes`."""
    annotations = [truth[name] for name in found.name]
    true = stack_padded([a.boxes for a in annotations])
    labels = stack_padded([np.array(class_indices(a.classes, classes), int) for a in annotations], fill=-1)
    return Objects(found.name, np.full(len(annotations), fold), *found[1:], true, labels)


def join(parts: list[Objects]) -> Objects:
    """Concatenates the photographs of several folds, padded to the same numbers of objects."""
    rows = lambda key: [row for part in parts for row in getattr(part, key)]
    return Objects(
        name=np.array(rows("name")), fold=np.array(rows("fold")),
        boxes=stack_padded(rows("boxes")), scores=stack_padded(rows("scores")), classes=stack_padded(rows("classes")),
        true=stack_padded(rows("true")), labels=stack_padded(rows("labels"), fill=-1),
    )  # fmt: skip


_pair = jax.jit(box_ops.pair_detections, static_argnames=("iou", "within"))
_average_precision = jax.jit(box_ops.mean_average_precision, static_argnames=("count", "thresholds", "rule"))


def pairs(objects: Objects, *, golden: bool = False) -> np.ndarray:
    """Returns (N, L) the index of the true object of its class that each detection finds, -1 for none.

    The criterion is `OVERLAP`, or, if `golden`, `GOLDEN_DISTANCE`.
    """
    criterion = {"within": GOLDEN_DISTANCE} if golden else {"iou": OVERLAP}
    result = np.full(objects.scores.shape, -1)
    for label in np.unique(objects.labels[objects.labels >= 0]):
        valid = (objects.scores > 0) & (objects.classes == label)
        class_pairs = _pair(objects.boxes, objects.scores, valid, objects.true, objects.labels == label, **criterion)
        result = np.maximum(result, np.asarray(class_pairs))
    return result


def hits(objects: Objects, *, golden: bool = False) -> np.ndarray:
    """Returns (N, L) bool, which detections find a true object (`pairs`)."""
    return pairs(objects, golden=golden) >= 0


def recalled(objects: Objects, threshold) -> np.ndarray:
    """Returns (N, M) bool, which true objects are found by a detection that scores at least the threshold (N,)."""
    result, paired = np.zeros(objects.labels.shape, bool), pairs(objects)
    n, k = np.nonzero((paired >= 0) & (objects.scores >= threshold[:, None]))
    result[n, paired[n, k]] = True
    return result


def best_threshold(objects: Objects) -> float:
    """Returns the middle of the thresholds whose F1 at `OVERLAP` is best or nearly so (`F1_TOLERANCE`); 0.5 without a hit.

    Where exactly the best lies on a flat maximum is chance.
    """
    is_hit, object_count = hits(objects), (objects.labels >= 0).sum()
    order = np.argsort(-objects.scores, axis=None)
    scores, correct = objects.scores.ravel()[order], np.cumsum(is_hit.ravel()[order])
    f1 = 2 * correct / (np.arange(1, len(order) + 1) + max(object_count, 1))
    is_last = np.append(scores[1:] < scores[:-1], True)[: len(scores)]  # of equal scores, which no threshold separates
    usable = is_last & (scores > 0)
    scores, f1 = scores[usable], f1[usable]
    if not len(f1) or f1.max() <= 0:
        return DEFAULT_THRESHOLD
    best_index, best_f1 = int(np.argmax(f1)), f1.max()
    worse = np.flatnonzero(f1 < best_f1 - F1_TOLERANCE * min(best_f1, 1 - best_f1))
    first = max(worse[worse < best_index], default=-1) + 1
    end = min(worse[worse > best_index], default=len(scores))  # the first after the flat maximum
    return float((scores[first] + (scores[end] if end < len(scores) else 0.0)) / 2)


def summarise(objects: Objects, threshold, classes: tuple[str, ...]) -> dict:
    """Returns the numbers of `summary.json` at the threshold (one, or one per image) and over all, NaN if undefined."""
    thresholds = np.broadcast_to(threshold, (len(objects.name),))[:, None]
    accepted = (objects.scores >= thresholds) & (objects.scores > 0)
    rounded = lambda share: round(float(share), 7)  # the digits of float32

    def rates(is_hit, accepted=accepted, is_object=objects.labels >= 0):
        ratios = box_ops.precision_recall(is_hit, objects.scores, accepted, is_object.sum())
        return jax.tree.map(rounded, ratios) | {"objects": int(is_object.sum()), "detections": int(accepted.sum())}

    ap = _average_precision(
        objects.boxes, objects.scores, objects.scores > 0, objects.true, objects.labels >= 0, classes=objects.classes,
        truth_classes=objects.labels, count=len(classes),
    )  # fmt: skip
    is_hit = hits(objects)
    return {
        **rates(is_hit),
        "f1_golden": rates(hits(objects, golden=True))["f1"],
        "map50": float(metrics.mean(ap["AP"][0])),
        "map": float(ap["mAP"]),
        "by_class": {
            name: rates(is_hit, accepted & (objects.classes == c), objects.labels == c)
            | {"ap50": float(ap["AP"][0, c])}
            for c, name in enumerate(classes)
        },
        "threshold": float(np.mean(threshold)),
        "images": len(objects.name),
    }


def undetected_class_problems(by_class: Mapping[str, dict]) -> list[dict]:
    """Returns a problem for each class that has objects but no detection above the threshold."""
    return [
        problem(
            "",
            f"there are {one['objects']} objects of class {name}, but no detection of it above the threshold, which all"
            " classes share: train longer or on more of them, or lower --threshold for --mode=predict",
            "the classes",
        )
        for name, one in by_class.items()
        if one["objects"] and not one["detections"]
    ]


def by_fold(objects: Objects, threshold: np.ndarray, classes: tuple[str, ...]) -> dict:
    """Runs `summarise` on all photographs, with thresholds (N,), and on each fold; adds their standard deviations."""
    folds = []
    for fold in np.unique(objects.fold):
        in_fold = objects.fold == fold
        # Other folds' objects are masked, not removed: each new length of the arrays would need a compilation.
        scores, labels = np.where(in_fold[:, None], objects.scores, 0), np.where(in_fold[:, None], objects.labels, -1)
        overrides = {"threshold": float(np.mean(threshold[in_fold])), "images": int(in_fold.sum())}
        fold_only = objects._replace(scores=scores, labels=labels)
        folds.append({"fold": int(fold)} | summarise(fold_only, threshold, classes) | overrides)
    numbered, spread = [one for one in folds if one["fold"] >= 0], {}
    for key in ("f1", "f1_golden", "map50", "map") if len(numbered) > 1 else ():
        valid = [one[key] for one in numbered if np.isfinite(one[key])]  # NaN for a fold without objects and detections
        spread[f"std_over_folds_{key}"] = float(np.std(valid)) if len(valid) > 1 else np.nan
    mean_threshold = float(np.mean([one["threshold"] for one in folds]))  # as `threshold_of` all networks has it
    extras = {"threshold": mean_threshold, "folds": folds, "classes": list(classes)}
    return summarise(objects, threshold, classes) | spread | extras


def write(folder: Path, objects: Objects, threshold, classes: tuple[str, ...]) -> None:
    """Writes all detections to `predictions.csv` and all true objects to `objects.csv`, each marked as a hit or not."""
    thresholds = np.broadcast_to(threshold, (len(objects.name),))

    def write_table(file, is_object, boxes, labels, columns: dict[str, np.ndarray]):
        rows = [["image", "class", "x0", "y0", "x1", "y1", *columns, "fold"]]
        for n, k in np.argwhere(is_object):
            corners, marks = [f"{v:.2f}" for v in boxes[n, k]], [values[n, k] for values in columns.values()]
            rows.append([objects.name[n], classes[labels[n, k]], *corners, *marks, objects.fold[n]])
        atomic.write_csv(Path(folder) / file, rows)

    is_found = recalled(objects, thresholds).astype(int)
    write_table("objects.csv", objects.labels >= 0, objects.true, objects.labels, {"hit": is_found})
    columns = {
        "score": np.strings.mod("%.4f", objects.scores),
        "above_threshold": (objects.scores >= thresholds[:, None]).astype(int),
        "hit": hits(objects).astype(int),
    }
    write_table("predictions.csv", objects.scores > 0, objects.boxes, objects.classes, columns)


def to_proofread(
    annotations: Iterable[BoxAnnotation], objects: Objects, threshold, sizes: Mapping, classes: tuple[str, ...]
) -> list[dict]:
    """Returns the photographs for the proofreading page (`report.proofread.boxes`): manual boxes beside detections.

    The threshold is one, or one per predicted photograph; a photograph without prediction has None for detections.
    `sizes` are (height, width) by name.
    """
    thresholds = dict(zip(objects.name.tolist(), np.broadcast_to(threshold, (len(objects.name),)), strict=True))
    index = {name: n for n, name in enumerate(objects.name.tolist())}
    photographs = []
    for a in annotations:
        corners = np.round(a.boxes, 3).tolist()
        items = [[*box, c, None] for box, c in zip(corners, class_indices(a.classes, classes), strict=True)]
        boxes = detections(objects, index[a.image], thresholds[a.image]) if a.image in index else None
        photographs.append({"name": a.image, "size": sizes[a.image], "items": items, "found": boxes, "group": a.group})
    return photographs


def detections(objects: Found | Objects, n: int, min_score: float) -> list[list]:
    """Returns the detections (x0, y0, x1, y1, class, score) in photograph `n` that score `min_score` or more."""
    kept = (objects.scores[n] >= min_score) & (objects.scores[n] > 0)
    columns = np.round(objects.boxes[n][kept], 3), objects.classes[n][kept], np.round(objects.scores[n][kept], 7)
    return [[*box, c, score] for box, c, score in zip(*(column.tolist() for column in columns), strict=True)]


def choose_threshold(call, networks, samples: Samples, dataset, *, overlap: float) -> float:
    """Returns the `best_threshold` on samples of the dataset, its validation images; the rest is as in `predict`."""
    found = predict(call, networks, samples, overlap=overlap)
    return best_threshold(with_truth(found, {a.image: a for a in dataset.objects}, dataset.classes, 0))
