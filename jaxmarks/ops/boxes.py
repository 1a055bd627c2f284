"""Boxes for detectors: overlap, suppression, encodings, anchors, RoIAlign, tiles, and detection metrics.

A box is (x0, y0, x1, y1) in continuous pixels, y down, (0, 0) the corner of the top-left pixel, so its width is
x1 - x0. The size of a box is (w, h); the size of a frame or a grid is (H, W), as in an array's shape. Sets of boxes are
padded to a static shape, with a `valid` mask (N,) bool. A degenerate box (zero or negative width or height) has area 0
and overlaps nothing.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxmarks import platforms
from jaxmarks.ops import metrics
from jaxmarks.ops.floats import at_least_float32
from jaxmarks.ops.frames import tiles as tiles  # re-exported: positions of the tiles of a large image

# Lower limit of widths and heights in quotients and logarithms, so that padding stays finite.
SMALLEST = 1e-6
# Upper limit of decoded log scales, a factor of 62.5: exp() of an untrained network's output must not overflow.
LARGEST_SCALE = math.log(1000 / 16)
# COCO averages over these IoU thresholds.
COCO_THRESHOLDS = tuple((50 + 5 * i) / 100 for i in range(10))


# Geometry


def area(boxes):
    """Returns the areas (...,) of boxes (..., 4), in square pixels."""
    boxes = at_least_float32(boxes)
    return jnp.prod(jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1)


def to_centres(boxes):
    """Converts corners (..., 4) to (centre x, centre y, width, height) (..., 4)."""
    boxes = at_least_float32(boxes)
    low, high = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


def to_corners(centred):
    """Converts (centre x, centre y, width, height) (..., 4) to corners (..., 4): the inverse of `to_centres`."""
    centred = at_least_float32(centred)
    centre, half = centred[..., :2], centred[..., 2:] / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def clip(boxes, size):
    """Clips boxes (..., 4) to a frame (H, W); a box outside it gets area 0."""
    height, width = size
    return jnp.clip(at_least_float32(boxes), 0, jnp.array([width, height, width, height]))


def iou(a, b):
    """Returns the intersection over union of each a (..., N, 4) with each b (..., M, 4): (..., N, M), in [0, 1]."""
    a, b = at_least_float32(a), at_least_float32(b)
    return _iou(a[..., :, None, :], b[..., None, :, :])


def centre_distance(a, b):
    """Returns the distance in pixels between the centres of each a (..., N, 4) and each b (..., M, 4): (..., N, M)."""
    centre = lambda boxes: to_centres(boxes)[..., :2]
    return metrics.distances(centre(a)[..., :, None, :], centre(b)[..., None, :, :])


def crowding(boxes, classes, valid):
    """Returns each box's largest IoU with another box of its class: how closely objects crowd.

    Args:
      boxes: (N, 4).
      classes: (N,) int.
      valid: (N,) bool.

    Returns:
      (N,), 0 for a box without neighbours and where `valid` is False.
    """
    classes, valid = jnp.asarray(classes), jnp.asarray(valid)
    is_neighbour = (classes[:, None] == classes) & valid[:, None] & valid & ~jnp.eye(len(classes), dtype=bool)
    return jnp.max(iou(boxes, boxes), axis=-1, initial=0, where=is_neighbour)


def _join(low, high):
    return jnp.concatenate([low, high], axis=-1)


def _intersection(a, b):
    return area(_join(jnp.maximum(a, b)[..., :2], jnp.minimum(a, b)[..., 2:]))


def _iou(a, b):
    """Returns the elementwise IoU of boxes (..., 4) and boxes (..., 4), broadcast."""
    shared = _intersection(a, b)
    # The denominator is guarded as well as the quotient: otherwise the gradient of two empty boxes would be NaN.
    return jnp.where(shared > 0, shared / jnp.where(shared > 0, area(a) + area(b) - shared, 1), 0)


# Suppression


def nms(boxes, scores, *, limit, iou=0.5, classes=None, valid=None):
    """Performs greedy non-maximum suppression: keeps the best box, removes those that overlap it, and repeats.

    Args:
      boxes: (N, 4).
      scores: (N,), of any range; ties rank by index, and NaN counts as not valid.
      limit: K, static, the maximum number of boxes to keep.
      iou: a box is removed if its IoU with a better one is larger.
      classes: (N,) int; boxes of different classes do not suppress each other.
      valid: (N,) bool; all by default.

    Returns:
      indices (K,) int32 by descending score, and kept (K,) bool; indices that are not kept are 0.
    """
    if not len(boxes):
        return jnp.zeros(limit, jnp.int32), jnp.zeros(limit, bool)
    one_by_one, at_once = (functools.partial(way, limit=limit, iou=iou) for way in (_one_by_one, _at_once))
    optional = (None if array is None else jnp.asarray(array) for array in (classes, valid))
    return platforms.chosen(one_by_one, at_once, jnp.asarray(boxes), at_least_float32(scores), *optional)


def _one_by_one(boxes, scores, classes, valid, *, limit, iou):
    """Implements `nms` for CPUs: one kept box after another, best first."""
    indices, scores = _suppress(
        boxes, scores, classes, valid, limit, lambda remaining, overlap: jnp.where(overlap > iou, -jnp.inf, remaining)
    )
    return indices, scores > -jnp.inf


def _at_once(boxes, scores, classes, valid, *, limit, iou):
    """Implements `nms` for accelerators, where a step costs more than its arithmetic: updates all boxes at once.

    A box is kept if no better kept box overlaps it; this is evaluated until nothing changes. The best box is final from
    the first round, the boxes that depend only on it from the second, and so on. Such chains are short, so a few rounds
    suffice for a thousand boxes.
    """
    usable = (True if valid is None else valid) & (scores > -jnp.inf)  # False for NaN
    order = jnp.argsort(jnp.where(usable, -scores, jnp.inf)).astype(jnp.int32)
    ranked, usable, rank = boxes[order], usable[order], jnp.arange(len(boxes))
    suppresses = (_iou(ranked[:, None], ranked) > iou) & (rank[:, None] < rank)
    if classes is not None:
        classes = jnp.asarray(classes)[order]
        suppresses &= classes[:, None] == classes
    step = lambda kept: usable & ~(suppresses & kept[:, None]).any(0)
    _, kept = lax.while_loop(lambda s: (s[0] != s[1]).any(), lambda s: (s[1], step(s[1])), (usable, step(usable)))
    slot = jnp.where(kept, jnp.cumsum(kept) - 1, limit)
    chosen = jnp.zeros(limit, jnp.int32).at[slot].set(order, mode="drop")
    return chosen, jnp.arange(limit) < kept.sum()


def soft_nms(boxes, scores, *, limit, method="gaussian", sigma=0.5, iou=0.3, floor=0.001, classes=None, valid=None):
    """Performs soft-NMS (Bodla et al. 2017): a box that overlaps a better one is not removed, but its score decays.

    Args:
      boxes: (N, 4).
      scores: (N,), not negative.
      limit: K, static, the maximum number of boxes to keep.
      method: scores are multiplied by exp(-IoU^2 / sigma), "gaussian", or by 1 - IoU for an IoU above `iou`, "linear".
      sigma: scale of the Gaussian, in IoU^2.
      iou: IoU up to which the linear method leaves a score unchanged.
      floor: boxes whose score falls below this are removed.
      classes: (N,) int; boxes of different classes do not affect each other.
      valid: (N,) bool; all by default.

    Returns:
      indices (K,) int32 and decayed scores (K,), descending; both are 0 where no box is left.

    Raises:
      ValueError: an unknown method.
    """
    if method not in ("gaussian", "linear"):
        raise ValueError(f"method={method!r}: give 'gaussian' or 'linear'")

    def decay(remaining, overlap):
        factor = jnp.exp(-(overlap**2) / sigma) if method == "gaussian" else jnp.where(overlap > iou, 1 - overlap, 1)
        alive = remaining >= floor  # guarded twice: removed boxes are -inf, with a NaN gradient
        return jnp.where(alive, jnp.where(alive, remaining, 0) * factor, -jnp.inf)

    indices, decayed = _suppress(boxes, scores, classes, valid, limit, decay)
    kept = decayed >= floor
    return jnp.where(kept, indices, 0), jnp.where(kept, decayed, 0)


def _suppress(boxes, scores, classes, valid, limit, decay):
    """Takes the best box `limit` times, each time replacing the scores by decay(scores, IoU with that box).

    Computes one row of IoUs at a time, so that N^2 of them never lie in memory. Returns indices (K,) and scores (K,), 0
    and -inf where nothing is left.
    """
    if not len(boxes):
        return jnp.zeros(limit, jnp.int32), jnp.full(limit, -jnp.inf)
    boxes, scores, classes = (
        jnp.asarray(boxes),
        at_least_float32(scores),
        None if classes is None else jnp.asarray(classes),
    )
    usable = ~jnp.isnan(scores) if valid is None else valid & ~jnp.isnan(scores)

    def step(remaining, _):
        best = jnp.argmax(remaining).astype(jnp.int32)
        overlap = _iou(boxes[best], boxes)
        if classes is not None:
            overlap = jnp.where(classes == classes[best], overlap, 0)
        return decay(remaining, overlap).astype(remaining.dtype).at[best].set(-jnp.inf), (best, remaining[best])

    _, (indices, best_scores) = lax.scan(step, jnp.where(usable, scores, -jnp.inf), length=limit)
    return jnp.where(best_scores > -jnp.inf, indices, 0), best_scores


def vote(winners, boxes, weights, *, iou):
    """Replaces each winner by the mean of the boxes on its object: box voting (Gidaris & Komodakis 2015, section 4).

    The boxes that a detector predicts for one object from several anchors, proposals or cells have partly independent
    errors, which averaging reduces. A box votes only for the winner that it overlaps most; otherwise the boxes of one
    object would pull the winner of a touching object towards them.

    Args:
      winners: (K, 4), the boxes that suppression kept.
      boxes: (N, 4), the boxes before suppression.
      weights: (K, N), not negative; usually a box's score, 0 for another class or a winner that is padding.
      iou: a box votes for a winner only if their IoU is larger.

    Returns:
      (K, 4); a winner without votes is unchanged. A box whose weights are all 0 may be NaN.
    """
    winners, boxes, weights = at_least_float32(winners), at_least_float32(boxes), at_least_float32(weights)
    overlap = jnp.where(weights > 0, _iou(winners[:, None], boxes), 0)
    weights = jnp.where((overlap > iou) & (overlap == overlap.max(0, initial=0)), weights, 0)
    boxes = jnp.where((weights > 0).any(0)[:, None], boxes, 0)
    total = weights.sum(-1, keepdims=True)
    mean = jnp.matmul(weights, boxes, precision=lax.Precision.HIGHEST) / jnp.where(total > 0, total, 1)
    return jnp.where(total > 0, mean, winners)


# Several networks


def merge_networks(boxes, scores, classes, *, iou):
    """Merges the detections of several networks in one image into one list with scores averaged over the networks.

    Of overlapping detections the best is kept. Each network contributes the score of its own best detection that
    overlaps it, or 0, and the box is the `vote` of all of them.

    Args:
      boxes: (T, N, 4), of T networks.
      scores: (T, N), not negative; 0 and NaN are padding.
      classes: (T, N) int; detections of different classes are different objects.
      iou: two detections with a larger IoU are one object.

    Returns:
      boxes (N, 4), scores (N,), descending, and classes (N,).
    """
    boxes, scores, classes = map(jnp.asarray, (boxes, scores, classes))
    scores = jnp.where(scores > 0, scores, 0)
    flat, labels, count = boxes.reshape(-1, 4), classes.ravel(), boxes.shape[1]
    chosen, kept = nms(flat, scores.ravel(), limit=count, iou=iou, classes=labels, valid=scores.ravel() > 0)
    same_class = labels[chosen][:, None] == labels
    overlaps = same_class & (_iou(flat[chosen][:, None], flat) > iou)
    is_itself = jnp.arange(flat.shape[0]) == chosen[:, None]  # True even for a box without area
    network_scores = jnp.where(overlaps | is_itself, scores.ravel(), 0).reshape(count, *scores.shape).max(-1, initial=0)
    mean = jnp.where(kept, network_scores.mean(-1), 0)
    order = jnp.argsort(-mean)
    voted_boxes = vote(flat[chosen], flat, jnp.where(same_class & kept[:, None], scores.ravel(), 0), iou=iou)
    return voted_boxes[order], mean[order], labels[chosen][order]


# Anchors and encodings


def anchor_grid(size, stride, sizes):
    """Returns the anchors (h, w, A, 4) of a grid, in pixels of the image: every size at the centre of every cell.

    Args:
      size: (h, w) of the grid, static.
      stride: pixels of the image per cell.
      sizes: (A, 2) widths and heights in pixels of the image.
    """
    centres = (_cells(size) + 0.5) * stride
    sizes = jnp.asarray(sizes, centres.dtype)
    shape = (*size, len(sizes), 2)
    return to_corners(_join(jnp.broadcast_to(centres, shape), jnp.broadcast_to(sizes, shape)))


def rcnn_encode(boxes, anchors, *, weights=(1.0, 1.0, 1.0, 1.0)):
    """Encodes boxes (..., 4) relative to anchors (..., 4) as R-CNN's targets (dx, dy, log dw, log dh) (..., 4).

    dx = (x - xa) / wa and log dw = log(w / wa) (Girshick et al. 2014, appendix C; Ren et al. 2015, eq. 2), each times
    its weight. The second stage, whose offsets are small, usually has weights (10, 10, 5, 5).
    """
    box, anchor = to_centres(boxes), to_centres(anchors)
    sizes, unit = jnp.maximum(box[..., 2:], SMALLEST), jnp.maximum(anchor[..., 2:], SMALLEST)
    offsets = _join((box[..., :2] - anchor[..., :2]) / unit, jnp.log(sizes / unit))
    return offsets * jnp.asarray(weights, offsets.dtype)


def rcnn_decode(offsets, anchors, *, weights=(1.0, 1.0, 1.0, 1.0)):
    """Decodes offsets (..., 4) from anchors (..., 4) to boxes (..., 4): inverts `rcnn_encode` up to `LARGEST_SCALE`."""
    offsets, anchor = at_least_float32(offsets), to_centres(anchors)
    offsets = offsets / jnp.asarray(weights, offsets.dtype)
    unit = jnp.maximum(anchor[..., 2:], SMALLEST)
    scale = jnp.exp(jnp.minimum(offsets[..., 2:], LARGEST_SCALE))
    return to_corners(_join(anchor[..., :2] + offsets[..., :2] * unit, scale * unit))


def yolo_decode(raw, anchors, *, stride):
    """Decodes a grid's raw outputs to boxes in pixels of the image (YOLOv2, Redmon & Farhadi 2017, section 2).

    The centre is the cell's corner plus sigmoid(tx, ty) in cells, so it stays in its cell; the size is the anchor's
    times exp(tw, th), limited by `LARGEST_SCALE`.

    Args:
      raw: (..., h, w, A, 4) of (tx, ty, tw, th).
      anchors: (A, 2) widths and heights in pixels of the image.
      stride: pixels of the image per cell.

    Returns:
      (..., h, w, A, 4).
    """
    raw = at_least_float32(raw)
    centre = (_cells(raw.shape[-4:-2]) + jax.nn.sigmoid(raw[..., :2])) * stride
    return to_corners(_join(centre, jnp.exp(jnp.minimum(raw[..., 2:], LARGEST_SCALE)) * jnp.asarray(anchors)))


def yolo_encode(boxes, valid, anchors, *, size, stride):
    """Returns a grid's targets for ground-truth boxes: a box is assigned to its centre's cell and best-fitting anchor.

    That is the anchor with the best IoU when both share a centre. If several boxes in a cell fit the same anchor best,
    the leftmost gets it and the others get the best free anchor, so that a cell holds as many objects as anchors
    (YOLOv2 keeps one). Boxes without area or with their centre outside the frame are not assigned.

    Args:
      boxes: (N, 4) in pixels of the image.
      valid: (N,) bool.
      anchors: (A, 2) widths and heights in pixels of the image.
      size: (h, w) of the grid, static.
      stride: pixels of the image per cell.

    Returns:
      targets (h, w, A, 4) of (sigmoid(tx), sigmoid(ty), tw, th), 0 where no box is assigned; and matched (h, w, A)
      int32, the index of the assigned box, -1 for none.
    """
    anchors, count, columns_rows = jnp.asarray(anchors), len(boxes), jnp.array(size[::-1])
    centred = to_centres(boxes)
    position = centred[:, :2] / stride
    unassigned = valid & (area(boxes) > 0) & ((position >= 0) & (position <= columns_rows)).all(-1)
    cell = jnp.clip(jnp.floor(position), 0, columns_rows - 1)
    column, row = jnp.where(unassigned[:, None], cell, 0).astype(jnp.int32).T
    fit = _shape_iou(centred[:, 2:], anchors)
    from_left = jnp.argsort(position[:, 0])
    rank = jnp.zeros(count, jnp.int32).at[from_left].set(jnp.arange(count, dtype=jnp.int32))
    owner = jnp.full((*size, len(anchors)), count, jnp.int32)  # rank from the left of the assigned box; free: `count`
    for _ in range(len(anchors)):
        free = owner[row, column] == count
        best_anchor = jnp.argmax(jnp.where(free, fit, -1), axis=-1)
        unassigned &= free.any(-1)
        # The leftmost box wins in whatever order the device scatters; a row beyond the grid is dropped.
        owner = owner.at[jnp.where(unassigned, row, size[0]), column, best_anchor].min(rank, mode="drop")
        unassigned &= owner[row, column, best_anchor] != rank
    matched = jnp.append(from_left.astype(jnp.int32), -1)[owner]
    encoded = _join(position - cell, jnp.log(jnp.maximum(centred[:, 2:], SMALLEST)))
    targets = jnp.pad(encoded, ((0, 1), (0, 0)))[matched] - _join(jnp.zeros_like(anchors), jnp.log(anchors))
    return jnp.where(matched[..., None] >= 0, targets, 0), matched


def kmeans_anchors(sizes, key, *, count, restarts=8, iterations=50):
    """Computes a data set's anchors by k-means of its box sizes under the distance 1 - IoU (YOLOv2, section 2).

    Initial centres are drawn with probability proportional to their distance from those before (k-means++ squares it).

    Args:
      sizes: (N, 2) widths and heights of the ground-truth boxes, in pixels of the network's frame.
      key: random key of the initial centres, which determines the result.
      count: A, the number of anchors, static.
      restarts: number of random initialisations, of which the best result is returned; static.
      iterations: of k-means, static; it usually converges sooner.

    Returns:
      anchors (A, 2), by ascending area; and the boxes' mean IoU with their best anchor.
    """
    sizes = jnp.asarray(sizes, jnp.float32)

    def draw(centres, row_key):
        row, key = row_key
        distance = 1 - _shape_iou(sizes, centres).max(-1) + SMALLEST  # 1 from unset centres, which are (0, 0)
        return centres.at[row].set(sizes[jax.random.categorical(key, jnp.log(distance))]), None

    def refine(centres, _):
        member = jax.nn.one_hot(jnp.argmax(_shape_iou(sizes, centres), -1), count, dtype=sizes.dtype)
        total = member.sum(0)[:, None]
        mean = (member[:, :, None] * sizes[:, None]).sum(0) / jnp.maximum(total, 1)
        return jnp.where(total > 0, mean, centres), None

    def cluster(key):
        unset, rows = jnp.zeros((count, 2), sizes.dtype), jnp.arange(count)
        centres, _ = lax.scan(draw, unset, (rows, jax.random.split(key, count)))
        centres, _ = lax.scan(refine, centres, length=iterations)
        return centres, _shape_iou(sizes, centres).max(-1).mean()

    centres, quality = jax.vmap(cluster)(jax.random.split(key, restarts))
    best = jnp.argmax(quality)
    return centres[best][jnp.argsort(jnp.prod(centres[best], -1))], quality[best]


def _cells(size):
    """Returns column and row of the cells of a grid (h, w): (h, w, 1, 2), to broadcast over anchors."""
    return jnp.stack(jnp.meshgrid(jnp.arange(size[1]), jnp.arange(size[0])), axis=-1)[:, :, None].astype(jnp.float32)


def _shape_iou(a, b):
    """Returns the IoU (N, M) of sizes (N, 2) and (M, 2), as boxes that share a corner."""
    return iou(_join(jnp.zeros_like(a), a), _join(jnp.zeros_like(b), b))


# Training targets of a detector with anchors or proposals


def match(anchors, truth, valid, *, positive=0.7, negative=0.3, force=True):
    """Assigns each anchor to a ground-truth box, as positive, negative or ignored (Ren et al. 2015, section 3.1.2).

    An anchor is positive from an IoU of `positive`, negative below `negative`, and ignored between. The best anchor of
    each ground-truth box is also positive, however small their IoU if it is not 0, and assigned to that box; if it is
    the best of several boxes, to the one that it overlaps most. Proposals are matched without this last rule.

    Args:
      anchors: (N, 4), N > 0; of equally good anchors the first is the best.
      truth: (M, 4).
      valid: (M,) bool.
      positive: IoU.
      negative: IoU.
      force: whether each ground-truth box's best anchor is positive, static.

    Returns:
      index (N,) int32 of the ground-truth box (meaningless unless the label is 1), and label (N,) int32: 1 positive, 0
      negative, -1 ignored.
    """
    if not len(truth):
        return jnp.zeros(len(anchors), jnp.int32), jnp.zeros(len(anchors), jnp.int32)
    overlap = jnp.where(valid, iou(anchors, truth), 0)
    best_overlap = overlap.max(-1)
    best_of_box = (jnp.arange(len(anchors))[:, None] == jnp.argmax(overlap, 0)) & (overlap > 0) & force
    forced = best_of_box.any(-1)
    index = jnp.argmax(jnp.where(forced[:, None] & ~best_of_box, 0, overlap), -1).astype(jnp.int32)
    label = jnp.where(forced | (best_overlap >= positive), 1, jnp.where(best_overlap < negative, 0, -1))
    return index, label.astype(jnp.int32)


def roi_align(features, boxes, *, size=(7, 7), sampling=2):
    """Performs RoIAlign (He et al. 2017, section 3): averages bilinear samples in each bin of each box.

    Equals torchvision's `roi_align(aligned=True)`: up to one pixel beyond the outermost pixel centres the edge is
    repeated; farther out samples are 0. Sampling, interpolation and averaging are separable in x and y, so the result
    is a product with one matrix per axis. On a CPU this takes half the time of gathers, gradient included, for 300
    boxes on a map of 28 x 28 x 512; unlike theirs, its cost grows with the map.

    Args:
      features: (H, W, C).
      boxes: (N, 4) in pixels of the features: image coordinates divided by the stride.
      size: (h, w) bins, static.
      sampling: samples per bin and axis, static.

    Returns:
      (N, h, w, C).
    """
    boxes = at_least_float32(boxes)
    rows = _bin_weights(boxes[:, 1], boxes[:, 3], size[0], sampling, features.shape[0])
    columns = _bin_weights(boxes[:, 0], boxes[:, 2], size[1], sampling, features.shape[1])
    return jnp.einsum("niy,njx,yxc->nijc", rows, columns, features, precision=lax.Precision.HIGHEST)


def _bin_weights(low, high, bins, sampling, length):
    """Returns the weights (N, bins, length) of an axis's pixels in the bins of the intervals low..high (N,)."""
    share = (jnp.arange(bins * sampling) + 0.5) / (bins * sampling)
    position = low[:, None] + (high - low)[:, None] * share - 0.5  # shifted so that the first pixel's centre is 0
    clipped = jnp.clip(position, 0, length - 1)[..., None]
    weights = jnp.maximum(1 - jnp.abs(clipped - jnp.arange(length)), 0)
    weights = jnp.where(((position >= -1) & (position <= length))[..., None], weights, 0)
    return weights.reshape(-1, bins, sampling, length).mean(2)


# Detection metrics


def pair_detections(boxes, scores, valid, truth, truth_valid, *, iou=None, within=None):
    """Matches detections to ground truth by COCO's rule: best score first, each takes the nearest box still free.

    Of equally near boxes it takes the last.

    A detection can match at an IoU of at least `iou`, or with centres at most `within` pixels apart. These are the
    spine paper's two definitions: IoU 0.4, and the "golden distance" of 6 px (its "minimum distance between a
    successful prediction and a ground truth label", which can only mean the maximum). A lower-scoring detection never
    takes a box from a higher-scoring one, so discarding detections below a score threshold does not change the other
    matches.

    Args:
      boxes: (..., N, 4) detections; leading axes are images.
      scores: (..., N); ties rank by index, and NaN counts as not valid.
      valid: (..., N) bool.
      truth: (..., M, 4).
      truth_valid: (..., M) bool.
      iou: the smallest IoU; give it or `within`.
      within: the largest distance of the centres, in pixels.

    Returns:
      (..., N) int32, the index of the matched ground-truth box, -1 for a false positive and where `valid` is False.

    Raises:
      ValueError: not exactly one of `iou` and `within` is given.
    """
    if (iou is None) == (within is None):
        raise ValueError(f"iou={iou}, within={within}: give exactly one of them")
    boxes, scores, truth = at_least_float32(boxes), at_least_float32(scores), at_least_float32(truth)
    valid, truth_valid = jnp.asarray(valid), jnp.asarray(truth_valid)
    if iou is not None:
        nearness, least = _iou(boxes[..., :, None, :], truth[..., None, :, :]), iou
    else:
        nearness, least = -centre_distance(boxes, truth), -within
    return _pair(nearness, scores, valid, truth_valid, least)


def _pair(nearness, scores, valid, truth_valid, least):
    """Matches greedily: the index (..., N) for nearness (..., N, M), where it is at least `least`, else -1."""
    scores, valid = at_least_float32(scores), valid & ~jnp.isnan(scores)
    if 0 in nearness.shape:
        return jnp.full(scores.shape, -1, jnp.int32)

    def pair_image(nearness, scores, valid, free):
        def step(free, row):
            candidates = jnp.where(free, nearness[row], -jnp.inf)
            best = len(free) - 1 - jnp.argmax(candidates[::-1]).astype(jnp.int32)  # the last of equally near ones
            hit = valid[row] & (candidates[best] >= jnp.asarray(least, nearness.dtype))
            return free & ~(hit & (jnp.arange(len(free)) == best)), jnp.where(hit, best, -1)

        order = jnp.argsort(-scores)
        _, matched = lax.scan(step, free, order)
        return jnp.zeros_like(matched).at[order].set(matched)

    return jnp.vectorize(pair_image, signature="(n,m),(n),(n),(m)->(n)")(nearness, scores, valid, truth_valid)


def precision_recall(hits, scores, valid, total, *, threshold=0.0):
    """Returns precision, recall and F1 of a data set's detections with a score of at least `threshold`.

    Args:
      hits: (...) bool, which detections are matched: `pair_detections(...) >= 0`.
      scores: (...).
      valid: (...) bool.
      total: the number of ground-truth boxes in the data set.
      threshold: score.

    Returns:
      a dict of precision (NaN without detections), recall (NaN without ground truth) and f1 (NaN where both are NaN).
    """
    used = valid & (scores >= threshold)
    matched, detected = jnp.sum(hits & used), jnp.sum(used)
    share = lambda part, whole: jnp.where(whole > 0, part / jnp.maximum(whole, 1), jnp.nan)
    return {
        "precision": share(matched, detected),
        "recall": share(matched, total),
        "f1": share(2 * matched, detected + total),
    }


def precision_recall_curve(hits, scores, valid, total):
    """Returns the precision-recall curve: one point per detection of a data set, best score first.

    Args:
      hits: (...) bool, which of D detections are matched; ties rank in this order, each a point as in COCO and VOC.
      scores: (...).
      valid: (...) bool.
      total: the number of ground-truth boxes in the data set.

    Returns:
      precision (D,), recall (D,) and scores (D,); detections that are not valid are NaN at the end.
    """
    matched, scores = _ranked(hits, scores, valid)
    is_valid = scores > -jnp.inf
    precision = matched / (jnp.arange(len(matched)) + 1)
    recall = jnp.where(total > 0, matched / jnp.maximum(total, 1), jnp.nan)
    return tuple(jnp.where(is_valid, values, jnp.nan) for values in (precision, recall, scores))


def average_precision(hits, scores, valid, total, *, rule="coco"):
    """Returns the average precision: the mean over recalls of the best precision at that recall or a higher one.

    Args:
      hits: (...) bool, which detections of a data set are matched.
      scores: (...).
      valid: (...) bool.
      total: the number of ground-truth boxes in the data set.
      rule: "coco", the mean over the recalls 0, 0.01, ... 1; or "voc", the area under the curve (VOC since 2010).

    Returns:
      a scalar, NaN without ground truth. Recalls are compared as integers. pycocotools, whose 0.35 is
      0.35000000000000003, misses a recall of exactly 35/100 and so may differ by a hundredth of a step of the curve.

    Raises:
      ValueError: an unknown rule.
    """
    if rule not in ("coco", "voc"):
        raise ValueError(f"rule={rule!r}: give 'coco' or 'voc'")
    matched, _ = _ranked(hits, scores, valid)
    # Detections that are not valid come last and are not matched, so their precision is never the best.
    best_precision = lax.cummax(matched / (jnp.arange(len(matched)) + 1), reverse=True)
    if rule == "coco":
        reached = jnp.searchsorted(100 * matched, jnp.arange(101) * total)
        result = jnp.append(best_precision, 0)[reached].mean()  # 0 beyond the last recall
    else:
        result = jnp.sum(best_precision * jnp.diff(matched, prepend=0)) / jnp.maximum(total, 1)
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
    """Returns the average precision per class and IoU threshold over a data set of padded images, and the mean.

    Args:
      boxes: (B, N, 4) detections.
      scores: (B, N).
      valid: (B, N) bool.
      truth: (B, M, 4).
      truth_valid: (B, M) bool.
      classes: (B, N) int in 0..count-1; all 0 by default.
      truth_classes: (B, M) int; all 0 by default.
      count: the number of classes C, static; 1 if no classes are given.
      thresholds: T IoU thresholds.
      rule: as in `average_precision`.

    Returns:
      a dict of AP (T, C), NaN for a class without ground truth, and its mean mAP, which leaves such classes out.

    Raises:
      ValueError: classes are given without `count`.
    """
    if count is None and not (classes is None and truth_classes is None):
        raise ValueError("give count, the number of classes: without it only boxes of class 0 would be scored")
    count = 1 if count is None else count
    classes = jnp.zeros(scores.shape, jnp.int32) if classes is None else classes
    truth_classes = jnp.zeros(truth_valid.shape, jnp.int32) if truth_classes is None else truth_classes
    overlap = iou(boxes, truth)

    def class_ap(threshold, label):
        detected, real = valid & (classes == label), truth_valid & (truth_classes == label)
        hits = _pair(overlap, scores, detected, real, threshold) >= 0
        return average_precision(hits, scores, detected, real.sum(), rule=rule)

    over_classes = jax.vmap(class_ap, (None, 0))
    ap = jax.vmap(over_classes, (0, None))(jnp.asarray(thresholds), jnp.arange(count))
    return {"mAP": metrics.mean(ap), "AP": ap}


def keypoint_average_precision(similarities, scores, *, thresholds=COCO_THRESHOLDS):
    """Returns COCO's keypoint AP for one object per image: per threshold and averaged over thresholds.

    Args:
      similarities: (N,) each image's `metrics.oks`; an image with NaN is left out.
      scores: (N,) the confidence of each image's landmarks, by which images are ranked.
      thresholds: (T,) an image's landmarks are correct if their similarity is at least this.

    Returns:
      a dict of "AP" (T,), per threshold, and its mean "mAP".
    """
    similarities = at_least_float32(similarities)
    is_valid = ~jnp.isnan(similarities)
    ap_at = lambda threshold: average_precision(similarities >= threshold, scores, is_valid, is_valid.sum())
    ap = jax.vmap(ap_at)(jnp.asarray(thresholds, similarities.dtype))
    return {"mAP": metrics.mean(ap), "AP": ap}


def _ranked(hits, scores, valid):
    """Returns by descending score: the number of matches so far (D,) int32; the scores (D,), -inf where not valid."""
    scores, valid = at_least_float32(scores), valid & ~jnp.isnan(scores)
    scores = jnp.where(valid, scores, -jnp.inf).ravel()
    order = jnp.argsort(-scores)
    return jnp.cumsum((hits & valid).ravel()[order].astype(jnp.int32)), scores[order]
