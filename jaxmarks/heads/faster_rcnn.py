"""Faster R-CNN (Ren et al. 2015; the spine paper): a network proposes regions, a second stage says what they show.

The region proposal network (RPN) gives each anchor of each cell a score and offsets; the best of the boxes that result,
without their doubles, are the proposals. RoIAlign cuts each out of the same features, and two dense layers give it a class,
or the background, and a better box. The proposals are the RPN's alone, in training too: Ren et al. add the truth to them.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxmarks.heads import Head, agreement, need_map, objects, stride_of, suppressed, with_none
from jaxmarks.ops import boxes as box_ops
from jaxmarks.ops import geometry, losses

# Which losses count: all; or those of one stage, for training in alternating phases.
PHASES = ("joint", "rpn", "detector")
# Of the offsets in both stages: small differences of boxes become numbers of the size of 1.
WEIGHTS = (10.0, 10.0, 5.0, 5.0)
# Of the layers that give numbers with a meaning (Ren et al., section 3.1.3).
SMALL = nn.initializers.normal(0.01)


class Outputs(NamedTuple):
    """What both stages say of A anchors in each cell and of P proposals; D is 1, or C where each class has its box."""

    logits: jax.Array  # (B, h, w, A) of an object
    offsets: jax.Array  # (B, h, w, A, 4) from the anchors
    proposals: jax.Array  # (B, P, 4) corners in pixels of the frame, the best first; one without area is none
    classes: jax.Array  # (B, P, 1 + C) logits: the background, then the classes
    boxes: jax.Array  # (B, P, D, 4) offsets from the proposals


class RegionProposals(nn.Module):
    """Features (B, h, w, F) -> logits (B, h, w, A) and offsets (B, h, w, A, 4) of the anchors."""

    anchors: int
    hidden: int

    @nn.compact
    def __call__(self, features):
        x = nn.relu(nn.Conv(self.hidden, (3, 3), kernel_init=nn.initializers.he_normal(), name="conv")(features))
        logits = nn.Dense(self.anchors, kernel_init=SMALL, name="logits")(x)
        offsets = nn.Dense(self.anchors * 4, kernel_init=SMALL, name="offsets")(x)
        return logits, offsets.reshape(*logits.shape, 4)


class Regions(nn.Module):
    """What RoIAlign cut out (B, P, r, r, F) -> logits (B, P, 1 + C) and offsets (B, P, D, 4)."""

    classes: int
    boxes: int
    hidden: int

    @nn.compact
    def __call__(self, x):
        x = x.reshape(*x.shape[:2], -1)
        for i in (1, 2):
            x = nn.relu(nn.Dense(self.hidden, kernel_init=nn.initializers.he_normal(), name=f"fc{i}")(x))
        offsets = nn.Dense(self.boxes * 4, kernel_init=SMALL, name="boxes")(x)
        logits = nn.Dense(1 + self.classes, kernel_init=SMALL, name="classes")(x)
        return logits, offsets.reshape(*x.shape[:2], self.boxes, 4)


class FasterRCNN(nn.Module):
    """Features (B, h, w, F) -> `Outputs`; the parameters are {"rpn": ..., "roi": ...}."""

    classes: int
    size: tuple[int, int]
    anchors: tuple[tuple[float, float], ...]
    class_agnostic: bool
    proposals: int
    candidates: int
    overlap: float
    pool: int
    hidden: int

    @nn.compact
    def __call__(self, features):
        need_map(features)
        stride = stride_of(features, self.size)
        logits, offsets = RegionProposals(len(self.anchors), self.hidden, name="rpn")(features)
        anchors = box_ops.anchor_grid(features.shape[1:3], stride, self.anchors)
        proposals = jax.vmap(
            lambda logits, offsets: propose(
                logits.ravel(), box_ops.clip(box_ops.rcnn_decode(offsets, anchors, weights=WEIGHTS), self.size),
                count=self.proposals, candidates=self.candidates, overlap=self.overlap,
            )
        )(*lax.stop_gradient((logits, offsets)))  # fmt: skip
        cut = jax.vmap(lambda f, b: box_ops.roi_align(f, b / stride, size=(self.pool, self.pool)))(features, proposals)
        boxes = 1 if self.class_agnostic else self.classes
        return Outputs(logits, offsets, proposals, *Regions(self.classes, boxes, self.hidden, name="roi")(cut))


def propose(scores, boxes, *, count, candidates, overlap):
    """The best boxes of an image without those that overlap a better one.

    Args:
      scores: (N,), of any range.
      boxes: (..., 4), N in all; one without area is never proposed.
      count: P, static, how many are proposed at most.
      candidates: how many of the best are looked at, static.
      overlap: IoU up to which two boxes are two proposals.

    Returns:
      (P, 4) by falling score, 0 where there are no more.
    """
    boxes = boxes.reshape(-1, 4)
    scores, place = lax.top_k(jnp.where(box_ops.area(boxes) > 0, scores, -jnp.inf), min(candidates, len(boxes)))
    boxes = boxes[place]
    chosen, kept = box_ops.nms(boxes, scores, limit=count, iou=overlap, valid=scores > -jnp.inf)
    return jnp.where(kept[:, None], boxes[chosen], 0)


def sampling_weights(labels, *, count, share):
    """The probability with which each anchor or proposal would be drawn (Ren et al. 2015, section 3.1.3).

    They draw `count` at random for each step, up to a `share` of them positive; where there are fewer, negatives take
    their place. Weighted by these probabilities all of them give that draw's mean loss: the same training without its
    noise, and without a key.

    Args:
      labels: (N,) int: 1 positive, 0 negative, -1 ignored.
      count: how many would be drawn.
      share: of positives at most.

    Returns:
      (N,), whose sum is the number that would be drawn.
    """
    positive, negative = labels == 1, labels == 0
    positives = jnp.minimum(positive.sum(), int(count * share))
    negatives = jnp.minimum(negative.sum(), count - positives)
    weight = lambda drawn, among: drawn / jnp.maximum(among.sum(), 1).astype(jnp.float32)
    return positive * weight(positives, positive) + negative * weight(negatives, negative)


def build(
    *,
    classes,
    sizes,
    size,
    scales=(0.5, 1.0, 2.0),
    ratios=(1.0,),
    proposals=300,
    candidates=1000,
    proposal_overlap=0.7,
    pool=7,
    hidden=128,
    class_agnostic=True,
    phase="joint",
    alpha=1.0,
    anchor_samples=256,
    proposal_samples=128,
    overlap=None,
    limit=300,
):
    """The Faster R-CNN head, for maps of stride 4 to 16.

    The loss of an image is that of its anchors and that of its proposals; each is the mean over the weights of
    `sampling_weights` of the cross-entropy and, of positives, alpha times the smooth L1 of the offsets (section 3.1).
    Anchors are positive from an IoU of 0.7 on, or as the best of an object, and negative below 0.3; proposals are
    positive from 0.5 on. An anchor that crosses the border counts. The proposals are constants of the second stage.
    Objects are those whose centre lies in the frame, and of them what the frame shows, for so proposals are cut, too.

    Ren et al.'s four phases (section 3.2, "4-step alternating training") are four stages of a run, each from the one
    before: phase "rpn"; "detector" with head/rpn frozen; "rpn" with body and head/roi frozen; "detector" with body and
    head/rpn frozen. Here phase 2 goes on with the body of phase 1, where theirs begins again from ImageNet's, and its
    proposals follow that body as it changes, where theirs are those of phase 1: they get worse the faster it learns.

    Args:
      classes: their number C.
      sizes: (width, height) of a typical box in pixels of the frame: the square of its area is the anchor of scale 1.
      size: (H, W) of the frame.
      scales: of the anchors' sides.
      ratios: of the anchors' height to their width; the spine paper has squares alone.
      proposals: their number P.
      candidates: of how many boxes they are chosen.
      proposal_overlap: up to this IoU two boxes are two proposals.
      pool: bins of RoIAlign along each side.
      hidden: channels of the RPN's convolution and of the second stage's layers.
      class_agnostic: whether the second stage gives a proposal one box, or one for each class.
      phase: which losses count: `joint`, all; `rpn` or `detector`, those of one stage.
      alpha: weight of the boxes' loss beside that of the classes.
      anchor_samples: over how many anchors the first loss is the mean, positives at most half of them.
      proposal_samples: the same of proposals, positives at most a quarter.
      overlap: IoU up to which two boxes are two objects; by default what the data's objects show.
      limit: how many objects an image may have.
    """
    if phase not in PHASES:
        raise ValueError(f"head.phase={phase!r}: there are {', '.join(PHASES)}")
    side = math.sqrt(sizes[0] * sizes[1])
    shapes = tuple((side * s / math.sqrt(r), side * s * math.sqrt(r)) for s in scales for r in ratios)
    layer = FasterRCNN(
        classes, tuple(size), shapes, class_agnostic, proposals, candidates, proposal_overlap, pool, hidden
    )

    def loss(outputs, targets):
        truth, labels, real = targets
        labels = jnp.where(geometry.inside(box_ops.to_centres(truth)[..., :2], size), labels, -1)
        truth = box_ops.clip(truth, size)
        anchors = box_ops.anchor_grid(outputs.logits.shape[1:3], stride_of(outputs.logits, size), shapes).reshape(-1, 4)

        def of_anchors(outputs, truth, labels):
            index, label = box_ops.match(anchors, truth, labels >= 0, positive=0.7, negative=0.3)
            weights = sampling_weights(label, count=anchor_samples, share=0.5)
            logits = outputs.logits.ravel()
            entropy = jax.nn.softplus(logits) - logits * (label == 1)
            wanted = box_ops.rcnn_encode(truth[index], anchors, weights=WEIGHTS)
            return weighted(weights, entropy, label, outputs.offsets.reshape(-1, 4) - wanted)

        def of_proposals(outputs, truth, labels):
            proposed = outputs.proposals
            index, label = box_ops.match(proposed, truth, labels >= 0, positive=0.5, negative=0.5, force=False)
            label = jnp.where(box_ops.area(proposed) > 0, label, -1)
            weights = sampling_weights(label, count=proposal_samples, share=0.25)
            row, of_class = jnp.arange(len(proposed)), jnp.maximum(labels[index], 0)
            entropy = -jax.nn.log_softmax(outputs.classes)[row, jnp.where(label == 1, 1 + of_class, 0)]
            wanted = box_ops.rcnn_encode(truth[index], proposed, weights=WEIGHTS)
            offsets = outputs.boxes[row, 0 if class_agnostic else of_class]
            return weighted(weights, entropy, label, offsets - wanted)

        def weighted(weights, entropy, label, residual):
            box = losses.smooth_l1(residual, beta=1.0).sum(-1)
            return jnp.sum(weights * (entropy + jnp.where(label == 1, alpha * box, 0))) / jnp.maximum(weights.sum(), 1)

        truth, labels = with_none(truth, labels)
        counted = {"joint": (of_anchors, of_proposals), "rpn": (of_anchors,), "detector": (of_proposals,)}[phase]
        each = sum(jax.vmap(stage)(outputs, truth, labels) for stage in counted)
        return jnp.sum(jnp.where(real, each, 0)), jnp.sum(real.astype(each.dtype))

    def decode(outputs):
        def one(proposed, logits, offsets):
            scores = jax.nn.softmax(logits)[:, 1:] * (box_ops.area(proposed) > 0)[:, None]
            boxes = box_ops.clip(box_ops.rcnn_decode(offsets, proposed[:, None], weights=WEIGHTS), size)
            boxes = jnp.broadcast_to(boxes, (*scores.shape, 4)).reshape(-1, 4)
            labels = jnp.tile(jnp.arange(classes), len(scores))
            return suppressed(boxes, scores.ravel(), labels, limit=limit, overlap=overlap, vote=True)

        return jax.vmap(one)(outputs.proposals, outputs.classes, outputs.boxes)

    return Head(layer, objects, loss, decode, agreement(overlap))
