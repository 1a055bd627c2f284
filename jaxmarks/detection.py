"""From networks and tiles to the objects of each photograph, and to honest scores: the detectors' part of `evaluate`."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarks import steps
from jaxmarks.data.samples import Samples
from jaxmarks.ops import boxes as box_ops

# What counts as found: overlap with the truth, or the distance of the centres in pixels of the photograph (spine paper).
OVERLAP, GOLDEN_DISTANCE = 0.4, 6.0
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


def predictor(task: steps.Task):
    """The jitted function (networks, images uint8 in their frame) -> `heads.Detections` of the networks' mean output."""

    def predict(networks, images):
        plain = task.plain({"images": images})["images"]
        outputs = [task.apply(variables, plain, train=False) for variables in networks]
        return task.decode(jax.tree.map(lambda *values: sum(values) / len(values), *outputs))

    return jax.jit(predict)


def predict(call, networks, samples: Samples, *, batch_size: int = 16, iou: float = 0.4, limit: int = 0):
    """The objects of each photograph, its tiles joined.

    Args:
      call: a `predictor`.
      networks: what it takes.
      samples: tiles, those of a photograph one after the other.
      batch_size: tiles at a time.
      iou: of two detections that are one object.
      limit: detections of a photograph at most; 0 for as many as a tile gives for each tile.

    Returns:
      `Found`, in source pixels.
    """
    parts = []
    for rows in steps.batches(np.arange(len(samples)), batch_size):
        found = call(networks, jnp.asarray(samples.images[np.where(rows < 0, ~rows, rows)]))
        parts.append(jax.tree.map(lambda x, keep=rows >= 0: np.asarray(x)[keep], found))
    boxes, scores, classes = (np.concatenate(column) for column in zip(*parts, strict=True))
    corners = boxes.reshape(*boxes.shape[:2], 2, 2)
    scale, shift = samples.to_source[:, [0, 1], [0, 1]], samples.to_source[:, :, 2]
    source = (corners * scale[:, None, None] + shift[:, None, None]).reshape(boxes.shape)
    centres = (source[..., :2] + source[..., 2:]) / 2
    inside = ((centres >= 0) & (centres <= samples.source_size[:, None, ::-1])).all(-1)
    scores = np.where(inside & (scores >= FLOOR), scores, 0)
    names = list(dict.fromkeys(samples.name.tolist()))
    tiles = [np.flatnonzero(samples.name == name) for name in names] if len(names) < len(samples) else None
    if tiles is None:
        return Found(np.array(names), source, scores, classes)
    joined = [merged(source[t], scores[t], classes[t], samples, t, iou, limit) for t in tiles]
    most = max(len(s) for _, s, _ in joined)
    pad = lambda array: np.pad(array, ((0, most - len(array)),) + ((0, 0),) * (array.ndim - 1))
    return Found(np.array(names), *(np.stack([pad(j[i]) for j in joined]) for i in range(3)))


def merged(boxes, scores, classes, samples, tiles, iou, limit):
    """One photograph's detections (T, N, ...) as (L, ...), without what two tiles both found."""
    flat, values, labels = boxes.reshape(-1, 4), scores.ravel(), classes.ravel()
    order = np.argsort(-values, kind="stable")[: int((values > 0).sum())]
    size = max(1, 2 ** int(np.ceil(np.log2(max(len(order), 1)))))  # few shapes, few compilations
    pick = np.resize(order, size) if len(order) else np.zeros(size, int)
    valid = np.arange(size) < len(order)
    indices, kept = _nms(flat[pick].astype(np.float32), values[pick].astype(np.float32), labels[pick], valid, iou=iou)
    chosen = pick[np.asarray(indices)[np.asarray(kept)]][: limit or None]
    return flat[chosen], values[chosen], labels[chosen]


@jax.jit
def _nms(boxes, scores, classes, valid, iou):
    return box_ops.nms(boxes, scores, limit=len(boxes), iou=iou, classes=classes, valid=valid)


def beside(found: Found, truth: Mapping, known: tuple[str, ...], fold: int) -> Objects:
    """Detections with the annotations `truth` (by image name) of the classes `known`."""
    mine = [truth[name] for name in found.name]
    most = max((len(a.classes) for a in mine), default=0)
    true, labels = np.zeros((len(mine), most, 4)), np.full((len(mine), most), -1)
    for n, annotation in enumerate(mine):
        true[n, : len(annotation.classes)] = annotation.boxes
        labels[n, : len(annotation.classes)] = [
            known.index(name) if name in known else -1 for name in annotation.classes
        ]
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
        mine = _pair(
            jnp.asarray(found.boxes, jnp.float32), jnp.asarray(found.scores, jnp.float32), jnp.asarray(valid),
            jnp.asarray(found.true, jnp.float32), jnp.asarray(found.labels == label), **how,
        )  # fmt: skip
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
    """The score above which the F1 at `OVERLAP` is largest; 0.5 where nothing was found."""
    right, total = hits(found), (found.labels >= 0).sum()
    order = np.argsort(-found.scores, axis=None)
    scores, correct = found.scores.ravel()[order], np.cumsum(right.ravel()[order])
    f1 = 2 * correct / (np.arange(1, len(order) + 1) + max(total, 1))
    f1 = np.where(scores > 0, f1, -1)
    if not len(f1) or f1.max() <= 0:
        return EVEN
    at = int(np.argmax(f1))
    after = scores[at + 1] if at + 1 < len(scores) else 0.0
    return float((scores[at] + after) / 2)  # between the last that counts and the first that does not


def summarise(found: Objects, threshold, classes: tuple[str, ...]) -> dict:
    """The numbers of `summary.json`: at the threshold (of each photograph, or one), and over all of them."""
    limit = np.broadcast_to(threshold, (len(found.name),))[:, None]
    used, total = (found.scores >= limit) & (found.scores > 0), int((found.labels >= 0).sum())

    def at(right):
        tp, n = int((right & used).sum()), int(used.sum())
        share = lambda part, whole: part / whole if whole else None
        return share(tp, n), share(tp, total), share(2 * tp, n + total)

    precision, recall, f1 = at(hits(found))
    _, _, golden = at(hits(found, golden=True))
    ap = _average_precision(
        jnp.asarray(found.boxes, jnp.float32), jnp.asarray(found.scores, jnp.float32), jnp.asarray(found.scores > 0),
        jnp.asarray(found.true, jnp.float32), jnp.asarray(found.labels >= 0), classes=jnp.asarray(found.classes),
        truth_classes=jnp.asarray(found.labels), count=len(classes), thresholds=(0.5,),
    )  # fmt: skip
    return {
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "f1_golden": golden,
        "map50": float(ap["mAP"]),
        "ap50_by_class": dict(zip(classes, np.asarray(ap["AP"][0]).tolist(), strict=True)),
        "threshold": float(np.mean(threshold)),
        "images": len(found.name),
        "objects": total,
        "detections": int(used.sum()),
    }


def write(folder: Path, found: Objects, threshold, classes: tuple[str, ...]) -> None:
    """Writes `predictions.csv`, every detection, and `objects.csv`, every true object, with what became of each."""
    limit = np.broadcast_to(threshold, (len(found.name),))
    right = hits(found)
    with (Path(folder) / "objects.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow("image class x0 y0 x1 y1 hit fold".split())
        reached = reach(found, limit)
        for n, k in np.argwhere(found.labels >= 0):
            corners = [f"{v:.2f}" for v in found.true[n, k]]
            rows.writerow([found.name[n], classes[found.labels[n, k]], *corners, int(reached[n, k]), found.fold[n]])
    with (Path(folder) / "predictions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow("image class x0 y0 x1 y1 score above_threshold hit fold".split())
        for n, name in enumerate(found.name):
            for k in np.flatnonzero(found.scores[n] > 0):
                corners = [f"{v:.2f}" for v in found.boxes[n, k]]
                above = int(found.scores[n, k] >= limit[n])
                rows.writerow(
                    [name, classes[found.classes[n, k]], *corners, f"{found.scores[n, k]:.4f}", above, int(right[n, k])]
                    + [found.fold[n]]
                )


def choose_threshold(task: steps.Task, variables, samples: Samples, dataset) -> float:
    """The threshold of the best F1 on these samples (the validation images) of the dataset."""
    found = predict(predictor(task), [variables], samples)
    return best_threshold(beside(found, {a.image: a for a in dataset.objects}, dataset.classes, 0))
