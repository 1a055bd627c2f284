"""YOLOv2's grid of anchors (Redmon and Farhadi 2017; the spine paper): each cell predicts one box per anchor."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxmarks.heads import Head, detection_merger, need_map, objects, stride_of, suppressed, with_padding_box
from jaxmarks.ops import boxes as box_ops


class Grid(nn.Module):
    """Features (B, h, w, F) -> (B, h, w, A, 5 + C): tx, ty, tw, th, the object logit, and the class logits."""

    anchors: int
    classes: int

    @nn.compact
    def __call__(self, features):
        need_map(features)
        outputs = nn.Dense(self.anchors * (5 + self.classes), name="grid")(features)
        return outputs.reshape(*features.shape[:3], self.anchors, 5 + self.classes)


def build(
    *,
    classes,
    anchors,
    size,
    anchor_count=3,
    coordinates=1.0,
    with_object=5.0,
    without_object=1.0,
    ignore=0.6,
    overlap=None,
    limit=300,
):
    """Builds the YOLO head.

    The loss differs from YOLOv2's in three ways: classes have a cross-entropy instead of squared errors, small boxes
    have no higher weight, and there is no initial phase that pulls all boxes to their anchors.

    Args:
      classes: the number of classes C.
      anchors: (A, 2) widths and heights of the anchors, in pixels of the frame.
      size: (H, W) of the frame.
      anchor_count: how many anchors `tasks.fitted_facts` clusters from the boxes' sizes; not used here.
      coordinates: weight of the box loss.
      with_object: weight of the confidence loss of anchors that are matched to an object.
      without_object: the same of all other anchors.
      ignore: IoU with an object from which an unmatched box has no confidence loss.
      overlap: IoU up to which two boxes count as two objects; by default the fact, estimated from the data.
      limit: the maximum number of objects in an image.
    """
    del anchor_count
    anchors = jnp.asarray(anchors, jnp.float32)

    def loss(outputs, targets):
        (boxes, labels), real = with_padding_box(*targets[:2]), targets[2]
        stride, grid = stride_of(outputs, size), outputs.shape[1:3]
        box_targets, matched = jax.vmap(
            lambda b, v: box_ops.yolo_encode(b, v, anchors, size=grid, stride=stride)
        )(boxes, labels >= 0)  # fmt: skip
        has_object = (matched >= 0).astype(outputs.dtype)
        proposed = box_ops.yolo_decode(outputs[..., :4], anchors, stride=stride)
        flat = proposed.reshape(len(boxes), -1, 4)
        overlaps = jnp.where((labels >= 0)[:, None], box_ops.iou(flat, boxes), 0)  # (B, h w A, M)
        best_iou = jnp.max(overlaps, axis=-1, initial=0.0).reshape(has_object.shape)
        index = jnp.maximum(matched, 0)
        own_iou = jnp.take_along_axis(overlaps, index.reshape(len(boxes), -1, 1), axis=-1).reshape(has_object.shape)

        box_outputs = jnp.concatenate([jax.nn.sigmoid(outputs[..., :2]), outputs[..., 2:4]], axis=-1)
        total = coordinates * jnp.sum((box_outputs - box_targets) ** 2, axis=-1) * has_object
        confidence = jax.nn.sigmoid(outputs[..., 4])
        total += with_object * has_object * (lax.stop_gradient(own_iou) - confidence) ** 2
        total += without_object * (1 - has_object) * (lax.stop_gradient(best_iou) < ignore) * confidence**2
        if classes > 1:
            label = jax.vmap(lambda labels, i: labels[i])(jnp.maximum(labels, 0), index)
            likelihood = jnp.take_along_axis(jax.nn.log_softmax(outputs[..., 5:]), label[..., None], axis=-1)
            total -= has_object * likelihood[..., 0]
        return jnp.sum(total * real[:, None, None, None]), jnp.sum(real.astype(outputs.dtype))

    def decode(outputs):
        boxes = box_ops.yolo_decode(outputs[..., :4], anchors, stride=stride_of(outputs, size))
        probabilities = jax.nn.softmax(outputs[..., 5:], axis=-1)
        scores = (jax.nn.sigmoid(outputs[..., 4:5]) * probabilities).reshape(outputs.shape[0], -1, classes)
        suppress = functools.partial(suppressed, limit=limit, overlap=overlap, vote=True)
        return jax.vmap(suppress)(boxes.reshape(outputs.shape[0], -1, 4), scores.max(-1), scores.argmax(-1))

    return Head(Grid(len(anchors), classes), objects, loss, decode, detection_merger(overlap))
