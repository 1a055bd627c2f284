"""From networks and tiles to the objects of each photograph, and to honest scores: the detectors' part of `evaluate`."""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxmarks import atomic, heads, steps
from jaxmarks.data.formats.boxes import BoxAnnotation
from jaxmarks.data.samples import Samples, problem
from jaxmarks.ops import boxes as box_ops
from jaxmarks.ops import metrics

# What counts as found: overlap with the truth, or the distance of the centres in pixels of the photograph (spine paper).
OVERLAP, GOLDEN_DISTANCE = 0.4, 6.0
# The share of a box cut off at a tile's border that the whole object covers in another tile.
PIECE = 0.4
# A threshold is as good as the best, seen on the few objects of validation images, where its F1 is less by no more than
# this share of the best F1, or of what that lacks to 1.
FLAT = 0.2
# The threshold where none was chosen; of the blobs the scores are made for it.
EVEN = 0.5
# Detections that score less are not even listed.
FLOOR = 0.05


class Objects(NamedTuple):
    """Found and true objects of N photographs in their pixels; a score of 0 is no object, as is a label of -1."""

    name: np.ndarray  # (N,)
    fold: np.ndarray  # (N,)
    boxes: np.ndarray  # (N, L, 4)
    scores: np.ndarray  # (N, L)
    classes: np.ndarray  # (N, L)
    true: np.ndarray  # (N, M, 4)
    labels: np.ndarray  # (N, M)


class Found(NamedTuple):
    """Detections in N photographs, in their pixels; a score of 0 is no object."""

    name: np.ndarray  # (N,)
    boxes: np.ndarray  # (N, L, 4)
    scores: np.ndarray  # (N, L)
    classes: np.ndarray  # (N, L)


def predict(call, networks, samples: Samples, *, overlap: float = heads.OVERLAP, batch_size: int = 16) -> Found:
    """The objects of each photograph in its pixels, its tiles joined.

    Args:
      call: a `steps.predictor`.
      networks: what it takes.
      samples: tiles, those of a photograph one after the other.
      overlap: IoU up to which boxes of two tiles are two objects.
      batch_size: tiles at a time.
    """
    boxes, scores, classes = steps.predict(call, networks, samples.images, batch_size=batch_size)
    scale, shift = samples.to_source[:, [0, 1], [0, 1]], samples.to_source[:, :, 2]
    source = boxes * np.tile(scale, 2)[:, None] + np.tile(shift, 2)[:, None]
    centres = (source[..., :2] + source[..., 2:]) / 2
    inside = ((centres >= 0) & (centres <= samples.source_size[:, None, ::-1])).all(-1)
    scores = np.where(inside & (scores >= FLOOR), scores, 0)
    names = list(dict.fromkeys(samples.name.tolist()))
    if len(names) == len(samples):
        return Found(np.array(names), source, scores, classes)
    corners, sizes = np.rint(shift / scale)[:, ::-1], np.rint(samples.source_size / scale[:, ::-1])
    cut = cut_off(boxes, corners, sizes, samples.images.shape[1:3])
    tiles = [np.flatnonzero(samples.name == name) for name in names]
    joined = [merged(source[t], scores[t], classes[t], cut[t], overlap=overlap) for t in tiles]
    most = max(len(s) for _, s, _ in joined)
    pad = lambda array: np.pad(array, ((0, most - len(array)),) + ((0, 0),) * (array.ndim - 1))
    return Found(np.array(names), *(np.stack([pad(j[i]) for j in joined]) for i in range(3)))


def cut_off(boxes, corners, sizes, tile, *, edge=1.0):
    """Which detections (T, N, 4) of T tiles touch a border that the tile does not share with its photograph.

    Args:
      boxes: in pixels of their tile.
      corners: (T, 2) (top, left) of the tiles.
      sizes: (T, 2) height and width of their photograph.
      tile: (h, w).
      edge: a box nearer to a border than this touches it, in pixels.

    Returns:
      (T, N) bool.
    """
    low, whole, extent = corners[:, None, ::-1], sizes[:, None, ::-1], np.array(tile[::-1])
    before = (boxes[..., :2] < edge) & (low > 0)
    after = (boxes[..., 2:] > extent - edge) & (low + extent < whole)
    return (before | after).any(-1)


def merged(boxes, scores, classes, cut, *, overlap):
    """One photograph's detections (T, N, ...) as (L, ...), without what two tiles both found.

    A box gives way to one of another tile that scores more, or was seen whole and scores at least half as much, where
    they overlap by more than `overlap`, or the other covers `PIECE` of what the border of its tile may have `cut` off
    (T, N). Boxes of one tile leave each other alone: the head has seen to them.
    """
    order = np.flatnonzero(scores > 0)
    order = order[np.lexsort((-scores.flat[order], cut.flat[order]))]  # the whole ones first, each kind by score
    tile = order // scores.shape[1]
    boxes, scores, classes, cut = boxes.reshape(-1, 4)[order], scores.flat[order], classes.flat[order], cut.flat[order]
    areas, others, kept = np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1), neighbours(boxes, tile), []
    of_tile: dict[int, list[int]] = {t: [] for t in others}
    for i, mine in enumerate(tile.tolist()):
        better = np.array([n for t in others[mine] for n in of_tile[t]], int)
        better = better[(classes[better] == classes[i]) & (2 * scores[better] >= scores[i])]
        low, high = np.maximum(boxes[better, :2], boxes[i, :2]), np.minimum(boxes[better, 2:], boxes[i, 2:])
        shared = np.prod(np.maximum(high - low, 0), axis=-1)
        most = PIECE * areas[i] if cut[i] else overlap * (areas[i] + areas[better] - shared)
        if not (shared > most).any():
            of_tile[mine].append(i)
            kept.append(i)
    best = np.array(kept, int)[np.argsort(-scores[kept], kind="stable")]
    return boxes[best], scores[best], classes[best]


def neighbours(boxes, tile) -> dict[int, list[int]]:
    """For each of the tiles (L,) of boxes (L, 4) those others whose boxes it may share: where the hulls of theirs meet."""
    names = np.unique(tile)
    hulls = np.array([[*boxes[tile == t, :2].min(0), *boxes[tile == t, 2:].max(0)] for t in names]).reshape(-1, 4)
    meet = ((hulls[:, None, :2] < hulls[:, 2:]) & (hulls[:, None, 2:] > hulls[:, :2])).all(-1)
    return {t: names[row & (names != t)].tolist() for t, row in zip(names.tolist(), np.asarray(meet), strict=True)}


def names_of(notes: list[dict]) -> tuple[str, ...]:
    """The names of the classes that networks find, by what is saved with them."""
    return tuple(notes[0]["facts"]["names"])


def renamed(names: tuple[str, ...], classes: tuple[str, ...]) -> list[dict]:
    """The problem, if there is one, with data of other `classes` than the `names` that networks know.

    A single class is that of networks that know one, whatever it is called.

    Raises:
      ValueError: the data have several, or the networks do, and not all are known.
    """
    unknown = sorted(set(classes) - set(names))
    if not unknown:
        return []
    if len(names) == len(classes) == 1:
        what = f"the objects are called {classes[0]}; they are taken for those that the run calls {names[0]}"
        return [problem("", what, "the classes")]
    raise ValueError(
        f"the data have objects of class {', '.join(unknown)}; the run knows {', '.join(names)}: leave out the boxes of"
        " others, or train on them"
    )


def numbers(names: Sequence[str], known: tuple[str, ...]) -> list[int]:
    """The number of each of the `names` among the classes `known`, -1 for another; a single class is any (`renamed`)."""
    return [0 if len(known) == 1 else known.index(name) if name in known else -1 for name in names]


def threshold_of(notes: list[dict]) -> float:
    """The threshold of several networks together, from what is saved with each."""
    return float(np.mean([note["threshold"] for note in notes]))


def overlap_of(notes: list[dict]) -> float:
    """The IoU up to which two boxes are two objects, from what is saved with networks; without any box none is learnt."""
    return notes[0]["facts"].get("overlap", heads.OVERLAP)


def timed(call, networks, samples: Samples, *, overlap: float) -> tuple[Found, float]:
    """The objects of each photograph, one at a time, and the milliseconds that one takes once compiled; as `predict`."""
    predict(call, networks, samples.take(np.arange(1)), batch_size=1)  # compiles
    started = time.perf_counter()
    found = predict(call, networks, samples, overlap=overlap, batch_size=1)
    return found, 1000 * (time.perf_counter() - started) / len(found.name)


def beside(found: Found, truth: Mapping, known: tuple[str, ...], fold: int) -> Objects:
    """Detections with the annotations `truth` (by image name) of the classes `known`."""
    mine = [truth[name] for name in found.name]
    most = max((len(a.classes) for a in mine), default=0)
    true, labels = np.zeros((len(mine), most, 4)), np.full((len(mine), most), -1)
    for n, annotation in enumerate(mine):
        true[n, : len(annotation.classes)] = annotation.boxes
        labels[n, : len(annotation.classes)] = numbers(annotation.classes, known)
    return Objects(found.name, np.full(len(mine), fold), *found[1:], true, labels)


def join(parts: list[Objects]) -> Objects:
    """Photographs of several folds as one."""
    found, true = (max(getattr(p, key).shape[1] for p in parts) for key in ("scores", "labels"))

    def widen(p):
        more = lambda a, n, fill: np.pad(
            a, ((0, 0), (0, n - a.shape[1])) + ((0, 0),) * (a.ndim - 2), constant_values=fill
        )
        return p._replace(
            boxes=more(p.boxes, found, 0), scores=more(p.scores, found, 0), classes=more(p.classes, found, 0),
            true=more(p.true, true, 0), labels=more(p.labels, true, -1),
        )  # fmt: skip

    return Objects(*(np.concatenate(column) for column in zip(*map(widen, parts), strict=True)))


_pair = jax.jit(box_ops.pair_detections, static_argnames=("iou", "within"))
_average_precision = jax.jit(box_ops.mean_average_precision, static_argnames=("count", "thresholds", "rule"))


def pairs(found: Objects, *, golden: bool = False) -> np.ndarray:
    """(N, L) the true object of its class that a detection finds, at `OVERLAP` or within `GOLDEN_DISTANCE`; -1 for none."""
    how = {"within": GOLDEN_DISTANCE} if golden else {"iou": OVERLAP}
    result = np.full(found.scores.shape, -1)
    for label in np.unique(found.labels[found.labels >= 0]):
        valid = (found.scores > 0) & (found.classes == label)
        mine = _pair(found.boxes, found.scores, valid, found.true, found.labels == label, **how)
        result = np.maximum(result, np.asarray(mine))
    return result


def hits(found: Objects, *, golden: bool = False) -> np.ndarray:
    """(N, L) which detections find a true object."""
    return pairs(found, golden=golden) >= 0


def reach(found: Objects, threshold) -> np.ndarray:
    """(N, M) which true objects a detection of at least the threshold (N,) finds."""
    result, paired = np.zeros(found.labels.shape, bool), pairs(found)
    n, k = np.nonzero((paired >= 0) & (found.scores >= threshold[:, None]))
    result[n, paired[n, k]] = True
    return result


def best_threshold(found: Objects) -> float:
    """The middle of the scores above which the F1 at `OVERLAP` is largest, or nearly (`FLAT`); 0.5 where nothing was found.

    Where on a flat top the very best lies is chance.
    """
    right, total = hits(found), (found.labels >= 0).sum()
    order = np.argsort(-found.scores, axis=None)
    scores, correct = found.scores.ravel()[order], np.cumsum(right.ravel()[order])
    f1 = 2 * correct / (np.arange(1, len(order) + 1) + max(total, 1))
    lasts = np.append(scores[1:] < scores[:-1], True)[: len(scores)]  # of equal scores, between which no threshold is
    some = lasts & (scores > 0)
    scores, f1 = scores[some], f1[some]
    if not len(f1) or f1.max() <= 0:
        return EVEN
    at, best = int(np.argmax(f1)), f1.max()
    worse = np.flatnonzero(f1 < best - FLAT * min(best, 1 - best))
    first = max(worse[worse < at], default=-1) + 1
    end = min(worse[worse > at], default=len(scores))  # the first that does not count
    return float((scores[first] + (scores[end] if end < len(scores) else 0.0)) / 2)


def summarise(found: Objects, threshold, classes: tuple[str, ...]) -> dict:
    """The numbers of `summary.json`, NaN where there is none: at the threshold (of each photograph, or one), and over all."""
    limit = np.broadcast_to(threshold, (len(found.name),))[:, None]
    used = (found.scores >= limit) & (found.scores > 0)
    rounded = lambda share: round(float(share), 7)  # what single precision knows

    def at(right, used=used, true=found.labels >= 0):
        shares = box_ops.precision_recall(right, found.scores, used, true.sum())
        return jax.tree.map(rounded, shares) | {"objects": int(true.sum()), "detections": int(used.sum())}

    ap = _average_precision(
        found.boxes, found.scores, found.scores > 0, found.true, found.labels >= 0, classes=found.classes,
        truth_classes=found.labels, count=len(classes),
    )  # fmt: skip
    right = hits(found)
    return {
        **at(right),
        "f1_golden": at(hits(found, golden=True))["f1"],
        "map50": float(metrics.mean(ap["AP"][0])),
        "map": float(ap["mAP"]),
        "by_class": {
            name: at(right, used & (found.classes == c), found.labels == c) | {"ap50": float(ap["AP"][0, c])}
            for c, name in enumerate(classes)
        },
        "threshold": float(np.mean(threshold)),
        "images": len(found.name),
    }


def unfound(by_class: Mapping[str, dict]) -> list[dict]:
    """The problems with classes of which there are objects, and of which none scores above the threshold."""
    return [
        problem(
            "",
            f"of {one['objects']} objects of class {name} none scores above the threshold, which is one for all"
            " classes: train longer, on more of them, or give --threshold to --mode=predict",
            "the classes",
        )
        for name, one in by_class.items()
        if one["objects"] and not one["detections"]
    ]


def by_fold(found: Objects, threshold: np.ndarray, classes: tuple[str, ...]) -> dict:
    """`summarise` of all photographs with their thresholds (N,), and of each fold's, with their standard deviation."""
    folds = []
    for fold in np.unique(found.fold):
        mine = found.fold == fold
        # The others' objects are hidden, not left out: arrays of every fold's own length would each be compiled for.
        scores, labels = np.where(mine[:, None], found.scores, 0), np.where(mine[:, None], found.labels, -1)
        own = {"threshold": float(np.mean(threshold[mine])), "images": int(mine.sum())}
        shown = found._replace(scores=scores, labels=labels)
        folds.append({"fold": int(fold)} | summarise(shown, threshold, classes) | own)
    each, spread = [one for one in folds if one["fold"] >= 0], {}
    for key in ("f1", "f1_golden", "map50", "map") if len(each) > 1 else ():
        known = [one[key] for one in each if np.isfinite(one[key])]  # a fold without objects and detections has none
        spread[f"std_over_folds_{key}"] = float(np.std(known)) if len(known) > 1 else np.nan
    together = float(np.mean([one["threshold"] for one in folds]))  # as `threshold_of` all networks, which predict
    about = {"threshold": together, "folds": folds, "classes": list(classes)}
    return summarise(found, threshold, classes) | spread | about


def write(folder: Path, found: Objects, threshold, classes: tuple[str, ...]) -> None:
    """Writes `predictions.csv`, every detection, and `objects.csv`, every true object, with what became of each."""
    limit = np.broadcast_to(threshold, (len(found.name),))
    right = hits(found)
    reached, corners = reach(found, limit), lambda box: [f"{v:.2f}" for v in box]
    rows = [
        [found.name[n], classes[found.labels[n, k]], *corners(found.true[n, k]), int(reached[n, k]), found.fold[n]]
        for n, k in np.argwhere(found.labels >= 0)
    ]
    atomic.write_csv(Path(folder) / "objects.csv", ["image class x0 y0 x1 y1 hit fold".split(), *rows])
    rows = [
        [found.name[n], classes[found.classes[n, k]], *corners(found.boxes[n, k]), f"{found.scores[n, k]:.4f}"]
        + [int(found.scores[n, k] >= limit[n]), int(right[n, k]), found.fold[n]]
        for n, k in np.argwhere(found.scores > 0)
    ]
    columns = "image class x0 y0 x1 y1 score above_threshold hit fold".split()
    atomic.write_csv(Path(folder) / "predictions.csv", [columns, *rows])


def to_proofread(
    annotations: Iterable[BoxAnnotation], found: Objects, threshold, sizes: Mapping, classes: tuple[str, ...]
) -> list[dict]:
    """The photographs of `report.proofread.boxes`: what was marked, beside what was found at the threshold (of each, or one).

    `sizes` are (height, width) by name; a photograph that no network here predicted has no detections.
    """
    limits = dict(zip(found.name.tolist(), np.broadcast_to(threshold, (len(found.name),)), strict=True))
    place = {name: n for n, name in enumerate(found.name.tolist())}
    photographs = []
    for a in annotations:
        corners = np.round(a.boxes, 3).tolist()
        items = [[*box, c, None] for box, c in zip(corners, numbers(a.classes, classes), strict=True)]
        mine = detections(found, place[a.image], limits[a.image]) if a.image in place else None
        photographs.append({"name": a.image, "size": sizes[a.image], "items": items, "found": mine, "group": a.group})
    return photographs


def detections(found: Found | Objects, n: int, least: float) -> list[list]:
    """The detections (x0, y0, x1, y1, class, score) in photograph `n` that score `least` or more."""
    good = (found.scores[n] >= least) & (found.scores[n] > 0)
    columns = np.round(found.boxes[n][good], 3), found.classes[n][good], np.round(found.scores[n][good], 7)
    return [[*box, c, score] for box, c, score in zip(*(column.tolist() for column in columns), strict=True)]


def choose_threshold(call, networks, samples: Samples, dataset, *, overlap: float) -> float:
    """The threshold of the best F1 on these samples (the validation images) of the dataset; as `predict`."""
    found = predict(call, networks, samples, overlap=overlap)
    return best_threshold(beside(found, {a.image: a for a in dataset.objects}, dataset.classes, 0))
