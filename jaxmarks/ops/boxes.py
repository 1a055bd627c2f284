"""Boxes for detectors: overlap, suppression, encodings, anchors, RoIAlign, tiles, and the scores of detections.

A box is (x0, y0, x1, y1) in continuous pixels, y down, (0, 0) the corner of the top-left pixel, so its width is
x1 - x0. A size of one box is (w, h); a size of a frame or a grid is (H, W), as in an array's shape. Sets of boxes are
padded to a static shape, with a `valid` mask (N,) bool. A degenerate box (no width, no height, or reversed) has no area
and overlaps nothing.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxmarks import platforms
from jaxmarks.ops import metrics
from jaxmarks.ops.floats import single
from jaxmarks.ops.frames import tiles as tiles  # where those of a large image lie

# Widths and heights below it count as it in quotients and logarithms, so that padding stays finite.
SMALLEST = 1e-6
# The largest log-scale that a decoder believes, a factor of 62.5: an untrained network's exp() must not overflow.
LARGEST_SCALE = math.log(1000 / 16)
# The IoU thresholds over which COCO averages.
COCO_THRESHOLDS = tuple((50 + 5 * i) / 100 for i in range(10))


# Geometry


def area(boxes):
    """(...,) areas of boxes (..., 4), in square pixels."""
    boxes = single(boxes)
    return jnp.prod(jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1)


def to_centres(boxes):
    """Corners (..., 4) -> (centre x, centre y, width, height) (..., 4)."""
    boxes = single(boxes)
    low, high = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


def to_corners(centred):
    """(centre x, centre y, width, height) (..., 4) -> corners (..., 4): the inverse of `to_centres`."""
    centred = single(centred)
    centre, half = centred[..., :2], centred[..., 2:] / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def clip(boxes, size):
    """Cuts boxes (..., 4) at the border of a frame (H, W); one that lies outside keeps no area."""
    height, width = size
    return jnp.clip(single(boxes), 0, jnp.array([width, height, width, height]))


def iou(a, b):
    """Intersection over union of every a (..., N, 4) with every b (..., M, 4) -> (..., N, M), in [0, 1]."""
    a, b = single(a), single(b)
    return _iou(a[..., :, None, :], b[..., None, :, :])


def centre_distance(a, b):
    """Euclidean distance of the centres of every a (..., N, 4) and every b (..., M, 4) -> (..., N, M), in pixels."""
    centre = lambda boxes: to_centres(boxes)[..., :2]
    return metrics.distances(centre(a)[..., :, None, :], centre(b)[..., None, :, :])


def crowding(boxes, classes, valid):
    """How close objects come to each other: the largest IoU of each box with another of its class.

    Args:
      boxes: (N, 4).
      classes: (N,) int.
      valid: (N,) bool.

    Returns:
      (N,), 0 for a box without neighbours and where `valid` is False.
    """
    classes, valid = jnp.asarray(classes), jnp.asarray(valid)
    other = (classes[:, None] == classes) & valid[:, None] & valid & ~jnp.eye(len(classes), dtype=bool)
    return jnp.max(iou(boxes, boxes), axis=-1, initial=0, where=other)


def _join(low, high):
    return jnp.concatenate([low, high], axis=-1)


def _intersection(a, b):
    return area(_join(jnp.maximum(a, b)[..., :2], jnp.minimum(a, b)[..., 2:]))


def _iou(a, b):
    """IoU of boxes (..., 4) with boxes (..., 4), broadcast."""
    shared = _intersection(a, b)
    # Not only the quotient but its denominator is guarded: else the gradient of two empty boxes would be NaN.
    return jnp.where(shared > 0, shared / jnp.where(shared > 0, area(a) + area(b) - shared, 1), 0)


# Suppression


def nms(boxes, scores, *, limit, iou=0.5, classes=None, valid=None):
    """Greedy non-maximum suppression: the best box stays, all that overlap it more than `iou` go, and so on.

    Args:
      boxes: (N, 4).
      scores: (N,), of any range; equal ones rank by their index, and one that is not a number counts as not valid.
      limit: K, static, how many boxes stay at most.
      iou: overlap up to which a box stays beside a better one.
      classes: (N,) int; boxes of different classes do not suppress each other.
      valid: (N,) bool; all by default.

    Returns:
      indices (K,) int32 by falling score and kept (K,) bool; an index that is not kept is 0.
    """
    if not len(boxes):
        return jnp.zeros(limit, jnp.int32), jnp.zeros(limit, bool)
    one_by_one, at_once = (functools.partial(way, limit=limit, iou=iou) for way in (_one_by_one, _at_once))
    given = (None if array is None else jnp.asarray(array) for array in (classes, valid))
    return platforms.chosen(one_by_one, at_once, jnp.asarray(boxes), single(scores), *given)


def _one_by_one(boxes, scores, classes, valid, *, limit, iou):
    """`nms` on a CPU, which is done with the best box before it looks at the next."""
    indices, scores = _suppress(
        boxes, scores, classes, valid, limit, lambda left, o: jnp.where(o > iou, -jnp.inf, left)
    )
    return indices, scores > -jnp.inf


def _at_once(boxes, scores, classes, valid, *, limit, iou):
    """`nms` where a step costs more than its arithmetic: all boxes are judged together, until nothing changes.

    A box stays where no better one that stays overlaps it. The best is right from the first round on, the next best that
    it has a say in from the second, and so on: chains of boxes are short, so a few rounds do for a thousand.
    """
    usable = (True if valid is None else valid) & (scores > -jnp.inf)  # which what is no number is not
    order = jnp.argsort(jnp.where(usable, -scores, jnp.inf)).astype(jnp.int32)
    ranked, usable, rank = boxes[order], usable[order], jnp.arange(len(boxes))
    covers = (_iou(ranked[:, None], ranked) > iou) & (rank[:, None] < rank)
    if classes is not None:
        classes = jnp.asarray(classes)[order]
        covers &= classes[:, None] == classes
    again = lambda kept: usable & ~(covers & kept[:, None]).any(0)
    _, kept = lax.while_loop(lambda s: (s[0] != s[1]).any(), lambda s: (s[1], again(s[1])), (usable, again(usable)))
    place = jnp.where(kept, jnp.cumsum(kept) - 1, limit)
    chosen = jnp.zeros(limit, jnp.int32).at[place].set(order, mode="drop")
    return chosen, jnp.arange(limit) < kept.sum()


def soft_nms(boxes, scores, *, limit, method="gaussian", sigma=0.5, iou=0.3, floor=0.001, classes=None, valid=None):
    """Soft-NMS (Bodla et al. 2017): what overlaps a better box is not removed, its score decays.

    Args:
      boxes: (N, 4).
      scores: (N,), not negative.
      limit: K, static, how many boxes stay at most.
      method: "gaussian", a factor exp(-IoU^2 / sigma); or "linear", 1 - IoU for overlaps above `iou`.
      sigma: of the Gaussian, in IoU^2.
      iou: overlap up to which the linear method leaves a score alone.
      floor: a score that falls below it is removed.
      classes: (N,) int; boxes of different classes do not touch each other.
      valid: (N,) bool; all by default.

    Returns:
      indices (K,) int32 and decayed scores (K,), falling; where no box is left, both are 0.

    Raises:
      ValueError: an unknown method.
    """
    if method not in ("gaussian", "linear"):
        raise ValueError(f"method={method!r}: give 'gaussian' or 'linear'")

    def decay(left, overlap):
        factor = jnp.exp(-(overlap**2) / sigma) if method == "gaussian" else jnp.where(overlap > iou, 1 - overlap, 1)
        alive = left >= floor  # not only the product is guarded: what is gone is -inf, which has no gradient
        return jnp.where(alive, jnp.where(alive, left, 0) * factor, -jnp.inf)

    indices, decayed = _suppress(boxes, scores, classes, valid, limit, decay)
    kept = decayed >= floor
    return jnp.where(kept, indices, 0), jnp.where(kept, decayed, 0)


def _suppress(boxes, scores, classes, valid, limit, decay):
    """Takes the best box `limit` times, each time giving the others the scores decay(scores, IoU with it).

    A row of overlaps a time, so that N^2 of them never lie in memory. Returns indices (K,) and scores (K,), 0 and -inf
    where nothing is left.
    """
    if not len(boxes):
        return jnp.zeros(limit, jnp.int32), jnp.full(limit, -jnp.inf)
    boxes, scores, classes = jnp.asarray(boxes), single(scores), None if classes is None else jnp.asarray(classes)
    usable = ~jnp.isnan(scores) if valid is None else valid & ~jnp.isnan(scores)

    def step(left, _):
        best = jnp.argmax(left).astype(jnp.int32)
        overlap = _iou(boxes[best], boxes)
        if classes is not None:
            overlap = jnp.where(classes == classes[best], overlap, 0)
        return decay(left, overlap).astype(left.dtype).at[best].set(-jnp.inf), (best, left[best])

    _, (indices, taken) = lax.scan(step, jnp.where(usable, scores, -jnp.inf), length=limit)
    return jnp.where(taken > -jnp.inf, indices, 0), taken


def vote(winners, boxes, weights, *, iou):
    """Box voting (Gidaris & Komodakis 2015, section 4): each winner becomes the mean of the boxes on its object.

    What a detector says of one object from several anchors, proposals or cells errs in part each for itself. A box votes
    for the winner that it overlaps most alone: those of an object would draw one that touches it to them.

    Args:
      winners: (K, 4), what suppression left.
      boxes: (N, 4), what there was before it.
      weights: (K, N), not negative; usually a box's score, 0 for another class or a winner that is padding.
      iou: a box is on a winner's object where it overlaps the winner more.

    Returns:
      (K, 4); a winner that no box of any weight overlaps stays as it is. A box without weight may be no number.
    """
    winners, boxes, weights = single(winners), single(boxes), single(weights)
    overlap = jnp.where(weights > 0, _iou(winners[:, None], boxes), 0)
    weights = jnp.where((overlap > iou) & (overlap == overlap.max(0, initial=0)), weights, 0)
    boxes = jnp.where((weights > 0).any(0)[:, None], boxes, 0)
    total = weights.sum(-1, keepdims=True)
    mean = jnp.matmul(weights, boxes, precision=lax.Precision.HIGHEST) / jnp.where(total > 0, total, 1)
    return jnp.where(total > 0, mean, winners)


# Several networks


def agreed(boxes, scores, classes, *, iou):
    """The detections of several networks in one image as one list, each with its mean score over the networks.

    Of detections that overlap the best stays; a network gives it the score of its own best detection there, or 0. Its
    place is where all of them `vote` it to be.

    Args:
      boxes: (T, N, 4) of T networks.
      scores: (T, N), not negative; 0 is no detection, as is what is no number.
      classes: (T, N) int; different classes are different objects.
      iou: overlap of two detections that are one object.

    Returns:
      boxes (N, 4), scores (N,) falling and classes (N,).
    """
    boxes, scores, classes = map(jnp.asarray, (boxes, scores, classes))
    scores = jnp.where(scores > 0, scores, 0)
    flat, labels, count = boxes.reshape(-1, 4), classes.ravel(), boxes.shape[1]
    chosen, kept = nms(flat, scores.ravel(), limit=count, iou=iou, classes=labels, valid=scores.ravel() > 0)
    alike = labels[chosen][:, None] == labels
    same = alike & (_iou(flat[chosen][:, None], flat) > iou)
    own = jnp.arange(flat.shape[0]) == chosen[:, None]  # of a box without area too
    each = jnp.where(same | own, scores.ravel(), 0).reshape(count, *scores.shape).max(-1, initial=0)
    mean = jnp.where(kept, each.mean(-1), 0)
    order = jnp.argsort(-mean)
    placed = vote(flat[chosen], flat, jnp.where(alike & kept[:, None], scores.ravel(), 0), iou=iou)
    return placed[order], mean[order], labels[chosen][order]


# Anchors and encodings


def anchor_grid(size, stride, sizes):
    """Anchors of a grid (h, w): every size at the centre of every cell -> (h, w, A, 4), in pixels of the image.

    Args:
      size: (h, w) of the grid, static.
      stride: pixels of the image from cell to cell.
      sizes: (A, 2) widths and heights in pixels of the image.
    """
    centres = (_cells(size) + 0.5) * stride
    sizes = jnp.asarray(sizes, centres.dtype)
    shape = (*size, len(sizes), 2)
    return to_corners(_join(jnp.broadcast_to(centres, shape), jnp.broadcast_to(sizes, shape)))


def rcnn_encode(boxes, anchors, *, weights=(1.0, 1.0, 1.0, 1.0)):
    """Boxes (..., 4) seen from anchors (..., 4) -> (dx, dy, log dw, log dh) (..., 4): R-CNN's targets.

    dx = (x - xa) / wa and log dw = log(w / wa) (Girshick et al. 2014, appendix C; Ren et al. 2015, eq. 2), each times
    its weight. Weights (10, 10, 5, 5) are the usual ones of the second stage, whose offsets are small.
    """
    box, anchor = to_centres(boxes), to_centres(anchors)
    sizes, unit = jnp.maximum(box[..., 2:], SMALLEST), jnp.maximum(anchor[..., 2:], SMALLEST)
    offsets = _join((box[..., :2] - anchor[..., :2]) / unit, jnp.log(sizes / unit))
    return offsets * jnp.asarray(weights, offsets.dtype)


def rcnn_decode(offsets, anchors, *, weights=(1.0, 1.0, 1.0, 1.0)):
    """Offsets (..., 4) from anchors (..., 4) -> boxes (..., 4): the inverse of `rcnn_encode` up to `LARGEST_SCALE`."""
    offsets, anchor = single(offsets), to_centres(anchors)
    offsets = offsets / jnp.asarray(weights, offsets.dtype)
    unit = jnp.maximum(anchor[..., 2:], SMALLEST)
    scale = jnp.exp(jnp.minimum(offsets[..., 2:], LARGEST_SCALE))
    return to_corners(_join(anchor[..., :2] + offsets[..., :2] * unit, scale * unit))


def yolo_decode(raw, anchors, *, stride):
    """A grid's raw outputs -> boxes in pixels of the image (YOLOv2, Redmon & Farhadi 2017, section 2).

    The centre is the cell's corner plus sigmoid(tx, ty) of a cell, so it never leaves its cell; the size is the
    anchor's times exp(tw, th).

    Args:
      raw: (..., h, w, A, 4) of (tx, ty, tw, th).
      anchors: (A, 2) widths and heights in pixels of the image.
      stride: pixels of the image from cell to cell.

    Returns:
      (..., h, w, A, 4).
    """
    raw = single(raw)
    centre = (_cells(raw.shape[-4:-2]) + jax.nn.sigmoid(raw[..., :2])) * stride
    return to_corners(_join(centre, jnp.exp(jnp.minimum(raw[..., 2:], LARGEST_SCALE)) * jnp.asarray(anchors)))


def yolo_encode(boxes, valid, anchors, *, size, stride):
    """Truth -> the targets of a grid (h, w): each box belongs to the cell of its centre and the anchor of its shape.

    The anchor is the one with the best IoU when both share a centre. Of several boxes in a cell that have the same the
    leftmost gets it, and the others the best of those that are left, so that a cell holds as many objects as there are
    anchors (YOLOv2 keeps one of them). Boxes with no area or with their centre outside the frame belong nowhere.

    Args:
      boxes: (N, 4) in pixels of the image.
      valid: (N,) bool.
      anchors: (A, 2) widths and heights in pixels of the image.
      size: (h, w) of the grid, static.
      stride: pixels of the image from cell to cell.

    Returns:
      targets (h, w, A, 4) of (sigmoid(tx), sigmoid(ty), tw, th), 0 where no box belongs; and matched (h, w, A) int32,
      the index of the box, -1 where none belongs.
    """
    anchors, count, columns_rows = jnp.asarray(anchors), len(boxes), jnp.array(size[::-1])
    centred = to_centres(boxes)
    position = centred[:, :2] / stride
    wanting = valid & (area(boxes) > 0) & ((position >= 0) & (position <= columns_rows)).all(-1)
    cell = jnp.clip(jnp.floor(position), 0, columns_rows - 1)
    column, row = jnp.where(wanting[:, None], cell, 0).astype(jnp.int32).T
    fit = _shape_iou(centred[:, 2:], anchors)
    from_left = jnp.argsort(position[:, 0])
    place = jnp.zeros(count, jnp.int32).at[from_left].set(jnp.arange(count, dtype=jnp.int32))
    taken = jnp.full((*size, len(anchors)), count, jnp.int32)  # by which of the boxes from the left
    for _ in range(len(anchors)):
        free = taken[row, column] == count
        best = jnp.argmax(jnp.where(free, fit, -1), axis=-1)
        wanting &= free.any(-1)
        # The smallest place wins, whatever the order in which a device scatters; a row beyond the grid is dropped.
        taken = taken.at[jnp.where(wanting, row, size[0]), column, best].min(place, mode="drop")
        wanting &= taken[row, column, best] != place
    matched = jnp.append(from_left.astype(jnp.int32), -1)[taken]
    known = _join(position - cell, jnp.log(jnp.maximum(centred[:, 2:], SMALLEST)))
    targets = jnp.pad(known, ((0, 1), (0, 0)))[matched] - _join(jnp.zeros_like(anchors), jnp.log(anchors))
    return jnp.where(matched[..., None] >= 0, targets, 0), matched


def kmeans_anchors(sizes, key, *, count, restarts=8, iterations=50):
    """Anchors for a data set: k-means of its boxes' sizes under the distance 1 - IoU (YOLOv2, section 2).

    The first centres are drawn in proportion to their distance from those before (k-means++ takes the square of it).

    Args:
      sizes: (N, 2) widths and heights of the truth, in pixels of the network's frame.
      key: decides the first centres; the result is a function of it.
      count: A, static.
      restarts: static, from how many draws the best result is taken.
      iterations: static; mostly it comes to rest sooner.

    Returns:
      anchors (A, 2), by area; and the mean over the boxes of the IoU with their best anchor.
    """
    sizes = jnp.asarray(sizes, jnp.float32)

    def draw(centres, row_key):
        row, key = row_key
        distance = 1 - _shape_iou(sizes, centres).max(-1) + SMALLEST  # 1 from the centres that are still (0, 0)
        return centres.at[row].set(sizes[jax.random.categorical(key, jnp.log(distance))]), None

    def refine(centres, _):
        member = jax.nn.one_hot(jnp.argmax(_shape_iou(sizes, centres), -1), count, dtype=sizes.dtype)
        total = member.sum(0)[:, None]
        mean = (member[:, :, None] * sizes[:, None]).sum(0) / jnp.maximum(total, 1)
        return jnp.where(total > 0, mean, centres), None

    def once(key):
        none, rows = jnp.zeros((count, 2), sizes.dtype), jnp.arange(count)
        centres, _ = lax.scan(draw, none, (rows, jax.random.split(key, count)))
        centres, _ = lax.scan(refine, centres, length=iterations)
        return centres, _shape_iou(sizes, centres).max(-1).mean()

    centres, quality = jax.vmap(once)(jax.random.split(key, restarts))
    best = jnp.argmax(quality)
    return centres[best][jnp.argsort(jnp.prod(centres[best], -1))], quality[best]


def _cells(size):
    """(h, w, 1, 2) column and row of the cells of a grid, ready to broadcast over anchors."""
    return jnp.stack(jnp.meshgrid(jnp.arange(size[1]), jnp.arange(size[0])), axis=-1)[:, :, None].astype(jnp.float32)


def _shape_iou(a, b):
    """IoU of sizes (N, 2) and (M, 2) as boxes that share a corner -> (N, M)."""
    return iou(_join(jnp.zeros_like(a), a), _join(jnp.zeros_like(b), b))


# Training targets of a detector with anchors or proposals


def match(anchors, truth, valid, *, positive=0.7, negative=0.3, force=True):
    """Which anchor answers for which truth (Ren et al. 2015, section 3.1.2).

    An anchor is positive from an IoU of `positive` on, negative below `negative`, and ignored between. Each truth's best
    anchor is positive too, however little they overlap, if they do, and belongs to that truth: of several truths with
    the same best anchor to the one that it overlaps most. Proposals are matched the same way, without that last rule.

    Args:
      anchors: (N, 4), N > 0; equal anchors rank by their index.
      truth: (M, 4).
      valid: (M,) bool.
      positive: IoU.
      negative: IoU.
      force: static, whether each truth's best anchor is positive.

    Returns:
      index (N,) int32 of the truth (of no meaning where the label is not 1), and label (N,) int32: 1 positive,
      0 negative, -1 ignored.
    """
    if not len(truth):
        return jnp.zeros(len(anchors), jnp.int32), jnp.zeros(len(anchors), jnp.int32)
    overlap = jnp.where(valid, iou(anchors, truth), 0)
    best = overlap.max(-1)
    chosen = (jnp.arange(len(anchors))[:, None] == jnp.argmax(overlap, 0)) & (overlap > 0) & force
    forced = chosen.any(-1)
    index = jnp.argmax(jnp.where(forced[:, None] & ~chosen, 0, overlap), -1).astype(jnp.int32)
    label = jnp.where(forced | (best >= positive), 1, jnp.where(best < negative, 0, -1))
    return index, label.astype(jnp.int32)


def roi_align(features, boxes, *, size=(7, 7), sampling=2):
    """RoIAlign (He et al. 2017, section 3): the mean of bilinear samples in each bin of each box.

    As torchvision's `roi_align(aligned=True)`: up to a pixel beyond the outermost centres the edge is repeated, further
    out there is 0. Samples, interpolation and mean act on x and y apart, so all of it is a product with one matrix an
    axis: on a CPU half the time of gathers, gradient included, for 300 boxes of a map 28 x 28 x 512. Its cost grows with
    the map, that of gathers would not.

    Args:
      features: (H, W, C).
      boxes: (N, 4) in pixels of the features: those of the image over the stride.
      size: (h, w) bins, static.
      sampling: samples per bin and axis, static.

    Returns:
      (N, h, w, C).
    """
    boxes = single(boxes)
    rows = _bin_weights(boxes[:, 1], boxes[:, 3], size[0], sampling, features.shape[0])
    columns = _bin_weights(boxes[:, 0], boxes[:, 2], size[1], sampling, features.shape[1])
    return jnp.einsum("niy,njx,yxc->nijc", rows, columns, features, precision=lax.Precision.HIGHEST)


def _bin_weights(low, high, bins, sampling, length):
    """(N, bins, length) weight of each pixel of an axis in each bin of the stretches low..high (N,)."""
    share = (jnp.arange(bins * sampling) + 0.5) / (bins * sampling)
    at = low[:, None] + (high - low)[:, None] * share - 0.5  # the first pixel's centre is at 0
    near = jnp.clip(at, 0, length - 1)[..., None]
    weights = jnp.maximum(1 - jnp.abs(near - jnp.arange(length)), 0)
    weights = jnp.where(((at >= -1) & (at <= length))[..., None], weights, 0)
    return weights.reshape(-1, bins, sampling, length).mean(2)


# Scores of detections


def pair_detections(boxes, scores, valid, truth, truth_valid, *, iou=None, within=None):
    """Which truth each detection finds, by COCO's rule: the best score first takes the best truth that is still free.

    Of truths that are equally near that is the last.

    A detection counts at an IoU of at least `iou`, or with its centre at most `within` pixels from the truth's. They are
    the spine paper's two definitions: IoU 0.4, and the "golden distance" of 6 px (its "minimum distance between a
    successful prediction and a ground truth label", which can only be the maximum). What scores less never takes a truth
    from what scores more, so the pairs above a score threshold are those that the detections above it make alone.

    Args:
      boxes: (..., N, 4) detections; leading axes are images.
      scores: (..., N); equal ones rank by their index, and one that is not a number counts as not valid.
      valid: (..., N) bool.
      truth: (..., M, 4).
      truth_valid: (..., M) bool.
      iou: the least IoU; give it or `within`.
      within: the largest distance of the centres, in pixels.

    Returns:
      (..., N) int32, the index of the truth, -1 for a false positive and where `valid` is False.

    Raises:
      ValueError: not exactly one of `iou` and `within` is given.
    """
    if (iou is None) == (within is None):
        raise ValueError(f"iou={iou}, within={within}: give one of them")
    boxes, scores, truth = single(boxes), single(scores), single(truth)
    valid, truth_valid = jnp.asarray(valid), jnp.asarray(truth_valid)
    if iou is not None:
        nearness, least = _iou(boxes[..., :, None, :], truth[..., None, :, :]), iou
    else:
        nearness, least = -centre_distance(boxes, truth), -within
    return _pair(nearness, scores, valid, truth_valid, least)


def _pair(nearness, scores, valid, truth_valid, least):
    """Greedy pairs (..., N) from nearness (..., N, M) of at least `least`."""
    scores, valid = single(scores), valid & ~jnp.isnan(scores)
    if 0 in nearness.shape:
        return jnp.full(scores.shape, -1, jnp.int32)

    def one(nearness, scores, valid, free):
        def step(free, row):
            candidates = jnp.where(free, nearness[row], -jnp.inf)
            best = len(free) - 1 - jnp.argmax(candidates[::-1]).astype(jnp.int32)  # of equally near ones the last
            hit = valid[row] & (candidates[best] >= jnp.asarray(least, nearness.dtype))
            return free & ~(hit & (jnp.arange(len(free)) == best)), jnp.where(hit, best, -1)

        order = jnp.argsort(-scores)
        _, found = lax.scan(step, free, order)
        return jnp.zeros_like(found).at[order].set(found)

    return jnp.vectorize(one, signature="(n,m),(n),(n),(m)->(n)")(nearness, scores, valid, truth_valid)


def precision_recall(hits, scores, valid, total, *, threshold=0.0):
    """Precision, recall and F1 of the detections of a data set that score at least `threshold`.

    Args:
      hits: (...) bool, which detections found a truth: `pair_detections(...) >= 0`.
      scores: (...).
      valid: (...) bool.
      total: the number of truths in the data set.
      threshold: score.

    Returns:
      a dict of precision (NaN where nothing is detected), recall (NaN without truth) and f1 (NaN where both are).
    """
    used = valid & (scores >= threshold)
    found, detected = jnp.sum(hits & used), jnp.sum(used)
    share = lambda part, whole: jnp.where(whole > 0, part / jnp.maximum(whole, 1), jnp.nan)
    return {
        "precision": share(found, detected),
        "recall": share(found, total),
        "f1": share(2 * found, detected + total),
    }


def precision_recall_curve(hits, scores, valid, total):
    """Precision and recall as the threshold falls past each detection of a data set, best score first.

    Args:
      hits: (...) bool, D in all; equal scores rank in this order, each a point of its own as in COCO and VOC.
      scores: (...).
      valid: (...) bool.
      total: the number of truths in the data set.

    Returns:
      precision (D,), recall (D,) and scores (D,); NaN at the end in place of detections that are not valid.
    """
    found, scores = _ranked(hits, scores, valid)
    known = scores > -jnp.inf
    precision = found / (jnp.arange(len(found)) + 1)
    recall = jnp.where(total > 0, found / jnp.maximum(total, 1), jnp.nan)
    return tuple(jnp.where(known, values, jnp.nan) for values in (precision, recall, scores))


def average_precision(hits, scores, valid, total, *, rule="coco"):
    """The mean over recall of the best precision that is reached at that recall or a higher one.

    Args:
      hits: (...) bool, which detections of a data set found a truth.
      scores: (...).
      valid: (...) bool.
      total: the number of truths in the data set.
      rule: "coco", the mean at the recalls 0, 0.01, ... 1; or "voc", the area under the curve (VOC since 2010).

    Returns:
      a scalar, NaN without truth. Recalls are compared as integers: pycocotools, whose 0.35 is 0.35000000000000003,
      skips a recall of exactly 35/100 and so may differ by a hundredth of a step of the curve.

    Raises:
      ValueError: an unknown rule.
    """
    if rule not in ("coco", "voc"):
        raise ValueError(f"rule={rule!r}: give 'coco' or 'voc'")
    found, _ = _ranked(hits, scores, valid)
    # Detections that are not valid come last and find nothing, so they are never the best.
    best = lax.cummax(found / (jnp.arange(len(found)) + 1), reverse=True)
    if rule == "coco":
        reached = jnp.searchsorted(100 * found, jnp.arange(101) * total)
        result = jnp.append(best, 0)[reached].mean()  # 0 beyond the last recall
    else:
        result = jnp.sum(best * jnp.diff(found, prepend=0)) / jnp.maximum(total, 1)
    return jnp.where(total > 0, result, jnp.nan)


def mean_average_precision(
    boxes,
    scores,
    valid,
    truth,
    truth_valid,
    *,
    classes=None,
    truth_classes=None,
    count=None,
    thresholds=COCO_THRESHOLDS,
    rule="coco",
):
    """Average precision of each class at each IoU threshold over a data set of padded images, and their mean.

    Args:
      boxes: (B, N, 4) detections.
      scores: (B, N).
      valid: (B, N) bool.
      truth: (B, M, 4).
      truth_valid: (B, M) bool.
      classes: (B, N) int in 0..count-1; all 0 by default.
      truth_classes: (B, M) int; all 0 by default.
      count: the number of classes C, static; 1 where no classes are given.
      thresholds: T IoU thresholds.
      rule: of `average_precision`.

    Returns:
      a dict of AP (T, C), NaN for a class without truth, and its mean mAP, which leaves such classes out.

    Raises:
      ValueError: classes without their number.
    """
    if count is None and not (classes is None and truth_classes is None):
        raise ValueError("classes need count, their number: those from there on would not be looked at")
    count = 1 if count is None else count
    classes = jnp.zeros(scores.shape, jnp.int32) if classes is None else classes
    truth_classes = jnp.zeros(truth_valid.shape, jnp.int32) if truth_classes is None else truth_classes
    overlap = iou(boxes, truth)

    def one(least, wanted):
        known, real = valid & (classes == wanted), truth_valid & (truth_classes == wanted)
        hits = _pair(overlap, scores, known, real, least) >= 0
        return average_precision(hits, scores, known, real.sum(), rule=rule)

    over_classes = jax.vmap(one, (None, 0))
    ap = jax.vmap(over_classes, (0, None))(jnp.asarray(thresholds), jnp.arange(count))
    return {"mAP": metrics.mean(ap), "AP": ap}


def keypoint_average_precision(similarities, scores, *, thresholds=COCO_THRESHOLDS):
    """Average precision of landmarks, one object an image, and its mean over thresholds (COCO's AP of keypoints).

    Args:
      similarities: (N,) each image's `metrics.oks`; where it is NaN the image is left out.
      scores: (N,) the confidence of each image's landmarks, which ranks them.
      thresholds: of the similarity from which an image's landmarks are right.

    Returns:
      a dict of "mAP", and "AP" (T,) at each threshold.
    """
    similarities = single(similarities)
    known = ~jnp.isnan(similarities)
    one = lambda least: average_precision(similarities >= least, scores, known, known.sum())
    ap = jax.vmap(one)(jnp.asarray(thresholds, similarities.dtype))
    return {"mAP": metrics.mean(ap), "AP": ap}


def _ranked(hits, scores, valid):
    """By falling score: how many truths are found so far (D,) int32, and the scores (D,), -inf where not valid."""
    scores, valid = single(scores), valid & ~jnp.isnan(scores)
    scores = jnp.where(valid, scores, -jnp.inf).ravel()
    order = jnp.argsort(-scores)
    return jnp.cumsum((hits & valid).ravel()[order].astype(jnp.int32)), scores[order]
