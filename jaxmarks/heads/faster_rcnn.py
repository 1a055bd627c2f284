"""Faster R-CNN (Ren et al. 2015; the spine paper): a network proposes regions, a second stage classifies them.

The region proposal network (RPN) predicts a score and box offsets for each anchor of each cell; the best of these boxes
that remain after non-maximum suppression are the proposals. RoIAlign extracts each proposal from the same features, and
two dense layers classify it, as an object or background, and refine its box. In training, too, all proposals come from
the RPN; Ren et al. add the ground-truth boxes.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxmarks.heads import Head, detection_merger, need_map, objects, stride_of, suppressed, with_padding_box
from jaxmarks.ops import boxes as box_ops
from jaxmarks.ops import geometry, losses

# Which losses are trained: all, or those of one stage, for alternating training.
PHASES = ("joint", "rpn", "detector")
# Weights of the box offsets in both stages; they scale small differences between boxes to order 1.
WEIGHTS = (10.0, 10.0, 5.0, 5.0)
# Initialiser of the output layers (Ren et al., section 3.1.3).
SMALL = nn.initializers.normal(0.01)


class Outputs(NamedTuple):
    """Outputs of both stages for A anchors per cell and P proposals; D is 1, or C with one box per class."""

    logits: jax.Array  # (B, h, w, A) of being an object
    offsets: jax.Array  # (B, h, w, A, 4) from the anchors
    proposals: jax.Array  # (B, P, 4) corners in pixels of the frame, best first; zero area is padding
    classes: jax.Array  # (B, P, 1 + C) logits: background, then the classes
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
    """RoIAlign's features (B, P, r, r, F) -> logits (B, P, 1 + C) and offsets (B, P, D, 4)."""

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
        rois = jax.vmap(lambda f, b: box_ops.roi_align(f, b / stride, size=(self.pool, self.pool)))(features, proposals)
        box_count = 1 if self.class_agnostic else self.classes
        return Outputs(logits, offsets, proposals, *Regions(self.classes, box_count, self.hidden, name="roi")(rois))


def propose(scores, boxes, *, count, candidates, overlap):
    """Returns an image's proposals: its best boxes, without those that overlap a better one.

    Args:
      scores: (N,), of any range.
      boxes: (..., 4), N in total; boxes of zero area are never proposed.
      count: P, the maximum number of proposals, static.
      candidates: how many of the best boxes enter the suppression, static.
      overlap: IoU up to which both of two boxes are kept.

    Returns:
      (P, 4) by descending score, padded with 0.
    """
    boxes = boxes.reshape(-1, 4)
    scores, top_indices = lax.top_k(jnp.where(box_ops.area(boxes) > 0, scores, -jnp.inf), min(candidates, len(boxes)))
    boxes = boxes[top_indices]
    chosen, kept = box_ops.nms(boxes, scores, limit=count, iou=overlap, valid=scores > -jnp.inf)
    return jnp.where(kept[:, None], boxes[chosen], 0)


def sampling_weights(labels, *, count, share):
    """Returns each anchor's or proposal's probability of being sampled (Ren et al. 2015, section 3.1.3).

    Ren et al. sample `count` of them at random in each step, at most a `share` of them positive; if there are fewer
    positives, negatives take their place. Weighting all of them by these probabilities gives the expectation of the
    sampled loss: the same training without the sampling noise and without a random key.

    Args:
      labels: (N,) int: 1 positive, 0 negative, -1 ignored.
      count: the number to sample.
      share: the largest share of positives.

    Returns:
      (N,), which sums to the number that would be sampled.
    """
    positive, negative = labels == 1, labels == 0
    positive_count = jnp.minimum(positive.sum(), int(count * share))
    negative_count = jnp.minimum(negative.sum(), count - positive_count)
    weight = lambda sampled, mask: sampled / jnp.maximum(mask.sum(), 1).astype(jnp.float32)
    return positive * weight(positive_count, positive) + negative * weight(negative_count, negative)


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
    """Builds the Faster R-CNN head, for maps of stride 4 to 16.

    An image's loss is the sum of its anchors' loss and its proposals' loss. Each is a mean weighted by
    `sampling_weights` of the cross-entropy plus, for positives, alpha times the smooth L1 loss of the offsets (section
    3.1). Anchors are positive from an IoU of 0.7 or as the best anchor of an object, and negative below 0.3; proposals
    are positive from 0.5, else negative. Anchors that cross the border are used. The second stage passes no gradient to
    the proposals. Ground-truth objects are those whose centre lies in the frame, clipped to it like the proposals.

    Ren et al.'s "4-step alternating training" (section 3.2) is a run of four stages, each of which continues the one
    before: phase "rpn"; "detector" with head/rpn frozen; "rpn" with body and head/roi frozen; "detector" with body and
    head/rpn frozen. Two things differ in step 2. It continues with the body of step 1, where theirs restarts from
    ImageNet weights; and its proposals change with that body, where theirs are fixed, so the faster the body learns the
    worse they get.

    Args:
      classes: the number of classes C.
      sizes: (width, height) of a typical box in pixels of the frame; the anchor of scale 1 has its area.
      size: (H, W) of the frame.
      scales: factors of the anchors' sides.
      ratios: height / width of the anchors; the spine paper uses only squares.
      proposals: the number of proposals P.
      candidates: how many of the best boxes the proposals are chosen from.
      proposal_overlap: IoU up to which both of two boxes are proposed.
      pool: bins of RoIAlign along each side.
      hidden: channels of the RPN's convolution and of the second stage's layers.
      class_agnostic: whether the second stage predicts one box per proposal instead of one per class.
      phase: which losses are trained: `joint`, all; `rpn` or `detector`, those of one stage.
      alpha: weight of the box loss relative to the classification loss.
      anchor_samples: `count` of `sampling_weights` for anchors, at most half of them positive.
      proposal_samples: the same for proposals, at most a quarter of them positive.
      overlap: IoU up to which two boxes count as two objects; by default the fact, estimated from the data.
      limit: the maximum number of objects in an image.
    """
    if phase not in PHASES:
        raise ValueError(f"head.phase={phase!r}: choose one of {', '.join(PHASES)}")
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

        def anchor_loss(outputs, truth, labels):
            index, label = box_ops.match(anchors, truth, labels >= 0, positive=0.7, negative=0.3)
            weights = sampling_weights(label, count=anchor_samples, share=0.5)
            logits = outputs.logits.ravel()
            entropy = jax.nn.softplus(logits) - logits * (label == 1)
            target_offsets = box_ops.rcnn_encode(truth[index], anchors, weights=WEIGHTS)
            return weighted_loss(weights, entropy, label, outputs.offsets.reshape(-1, 4) - target_offsets)

        def proposal_loss(outputs, truth, labels):
            proposed = outputs.proposals
            index, label = box_ops.match(proposed, truth, labels >= 0, positive=0.5, negative=0.5, force=False)
            label = jnp.where(box_ops.area(proposed) > 0, label, -1)
            weights = sampling_weights(label, count=proposal_samples, share=0.25)
            row, class_index = jnp.arange(len(proposed)), jnp.maximum(labels[index], 0)
            entropy = -jax.nn.log_softmax(outputs.classes)[row, jnp.where(label == 1, 1 + class_index, 0)]
            target_offsets = box_ops.rcnn_encode(truth[index], proposed, weights=WEIGHTS)
            offsets = outputs.boxes[row, 0 if class_agnostic else class_index]
            return weighted_loss(weights, entropy, label, offsets - target_offsets)

        def weighted_loss(weights, entropy, label, residual):
            box = losses.smooth_l1(residual, beta=1.0).sum(-1)
            return jnp.sum(weights * (entropy + jnp.where(label == 1, alpha * box, 0))) / jnp.maximum(weights.sum(), 1)

        truth, labels = with_padding_box(truth, labels)
        stages = {"joint": (anchor_loss, proposal_loss), "rpn": (anchor_loss,), "detector": (proposal_loss,)}[phase]
        image_losses = sum(jax.vmap(stage)(outputs, truth, labels) for stage in stages)
        return jnp.sum(jnp.where(real, image_losses, 0)), jnp.sum(real.astype(image_losses.dtype))

    def decode(outputs):
        def decode_image(proposed, logits, offsets):
            scores = jax.nn.softmax(logits)[:, 1:] * (box_ops.area(proposed) > 0)[:, None]
            boxes = box_ops.clip(box_ops.rcnn_decode(offsets, proposed[:, None], weights=WEIGHTS), size)
            boxes = jnp.broadcast_to(boxes, (*scores.shape, 4)).reshape(-1, 4)
            labels = jnp.tile(jnp.arange(classes), len(scores))
            return suppressed(boxes, scores.ravel(), labels, limit=limit, overlap=overlap, vote=True)

        return jax.vmap(decode_image)(outputs.proposals, outputs.classes, outputs.boxes)

    return Head(layer, objects, loss, decode, detection_merger(overlap))
