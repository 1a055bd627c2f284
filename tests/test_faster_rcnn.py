"""Faster R-CNN: its loss against loops in NumPy, what each phase trains, proposals, and decoding."""

import re
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarks import config as configs
from jaxmarks import heads, models, runs
from jaxmarks.heads import faster_rcnn

SIZE, SIDE, STRIDE = (32, 40), 10.0, 8
QUICK = {"xla_backend_optimization_level": 1}


def build(**options):
    spec = {"name": "faster_rcnn", "scales": (1.0, 2.0), "proposals": 6, "hidden": 8, "pool": 3, **options}
    return heads.build(spec, classes=2, sizes=(SIDE, SIDE), size=SIZE)


def made_up(seed=0, class_agnostic=True):
    """Returns random outputs for two images, and targets: three objects in the first image, none in the second.

    Of the three, the frame's corner cuts the second to less than half its area, and the third's centre lies outside.
    """
    rng = np.random.default_rng(seed)
    grid = SIZE[0] // STRIDE, SIZE[1] // STRIDE
    proposals = np.zeros((2, 6, 4), np.float32)
    proposals[:, :5, :2] = rng.uniform(0, 25, (2, 5, 2))
    proposals[:, :5, 2:] = proposals[:, :5, :2] + rng.uniform(4, 14, (2, 5, 2))
    boxes = np.float32([[[3, 4, 13, 14], [32, 24, 44, 36], [30, 2, 52, 12], [0, 0, 0, 0]]] * 2)
    proposals[0, 0] = boxes[0, 0] + 1
    proposals[0, 1], proposals[0, 2] = [31, 24, 40, 32], [30, 2, 40, 12]
    labels = np.array([[1, 0, 1, -1], [-1, -1, -1, -1]], np.int32)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    outputs = faster_rcnn.Outputs(
        normal(2, *grid, 2), normal(2, *grid, 2, 4), proposals, normal(2, 6, 3), normal(2, 6, 1 if class_agnostic else 2, 4)
    )  # fmt: skip
    return outputs, (boxes, labels, np.array([True, True]))


def overlap(a, b):
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    area = lambda box: (box[2] - box[0]) * (box[3] - box[1])
    return shared / (area(a) + area(b) - shared)


def offsets(box, anchor):
    """Ren et al., equation 2, times (10, 10, 5, 5)."""
    size = lambda b: np.array([b[2] - b[0], b[3] - b[1]])
    centre = lambda b: np.array([b[0] + b[2], b[1] + b[3]]) / 2
    return np.concatenate([10 * (centre(box) - centre(anchor)) / size(anchor), 5 * np.log(size(box) / size(anchor))])


def smooth_l1(x):
    return sum(0.5 * v * v if abs(v) < 1 else abs(v) - 0.5 for v in x)


def mean_of_draws(labels, values, count, share):
    """The expected mean of a random sample: at most count * share positives, negatives for the rest."""
    positive, negative = ([v for v, label in zip(values, labels, strict=True) if label == kind] for kind in (1, 0))
    p = min(len(positive), int(count * share))
    n = min(len(negative), count - p)
    return ((p * np.mean(positive) if p else 0) + (n * np.mean(negative) if n else 0)) / max(p + n, 1)


@pytest.mark.parametrize("class_agnostic", [True, False])
def test_the_loss_matches_loops(class_agnostic):
    options = {"anchor_samples": 12, "proposal_samples": 4, "alpha": 2.0, "class_agnostic": class_agnostic}
    outputs, (boxes, labels, real) = made_up(class_agnostic=class_agnostic)
    expected = {"rpn": 0.0, "detector": 0.0}
    for n in range(2):
        truth = [
            (np.minimum(box, [40, 32, 40, 32]), label)
            for box, label in zip(boxes[n], labels[n], strict=True)
            if label >= 0 and box[0] + box[2] <= 80 and box[1] + box[3] <= 64
        ]
        anchors, logits, deltas = [], [], []
        for row in range(4):
            for column in range(5):
                for a, side in enumerate((SIDE, 2 * SIDE)):
                    x, y = (column + 0.5) * STRIDE, (row + 0.5) * STRIDE
                    anchors.append(np.array([x - side / 2, y - side / 2, x + side / 2, y + side / 2]))
                    logits.append(outputs.logits[n, row, column, a])
                    deltas.append(outputs.offsets[n, row, column, a])
        table = np.array([[overlap(anchor, box) for box, _ in truth] for anchor in anchors]).reshape(len(anchors), -1)
        best = {int(table[:, m].argmax()): m for m in range(len(truth))}
        kinds, values = [], []
        for i in range(len(anchors)):
            top = table[i].max() if truth else 0
            kind = 1 if top >= 0.7 or i in best else 0 if top < 0.3 else -1
            value = np.log1p(np.exp(logits[i])) - (logits[i] if kind == 1 else 0)
            if kind == 1:
                box, _ = truth[best.get(i, int(table[i].argmax()) if truth else 0)]
                value += 2 * smooth_l1(deltas[i] - offsets(box, anchors[i]))
            kinds.append(kind)
            values.append(value)
        assert 1 in kinds or not truth
        expected["rpn"] += mean_of_draws(kinds, values, 12, 0.5)
        kinds, values = [], []
        for k, proposal in enumerate(outputs.proposals[n][:5]):  # the sixth is padding
            tops = [overlap(proposal, box) for box, _ in truth]
            kind = int(bool(truth) and max(tops) >= 0.5)
            box, label = truth[int(np.argmax(tops))] if kind else (None, -1)
            scores = outputs.classes[n, k]
            value = np.log(np.exp(scores).sum()) - scores[label + 1]
            if kind:
                mine = outputs.boxes[n, k, 0 if class_agnostic else label]
                value += 2 * smooth_l1(mine - offsets(box, proposal))
            kinds.append(kind)
            values.append(value)
        assert 1 in kinds or not truth
        expected["detector"] += mean_of_draws(kinds, values, 4, 0.25)
    expected["joint"] = expected["rpn"] + expected["detector"]
    for phase, value in expected.items():
        total, count = jax.jit(build(**options, phase=phase).loss)(outputs, (boxes, labels, real))
        np.testing.assert_allclose([total, count], [value, 2], rtol=1e-4)
    half, count = jax.jit(build(**options).loss)(outputs, (boxes, labels, np.array([True, False])))
    assert count == 1
    assert half < expected["joint"]


def test_sampling_weights_match_random_draws():
    """1,000 draws without replacement, each of positives up to their share, and of negatives for the rest."""
    rng = np.random.default_rng(0)
    for labels, count, share in (
        ([1, 1, 1, 0, 0, 0, 0, -1, 0], 5, 0.4),
        ([1, 0, 0, 0, 0], 4, 0.5),
        ([1, 1, 0], 9, 0.5),
    ):
        labels, often = np.array(labels), np.zeros(len(labels))
        for _ in range(1000):
            positive = rng.permutation(np.flatnonzero(labels == 1))[: int(count * share)]
            negative = rng.permutation(np.flatnonzero(labels == 0))[: count - len(positive)]
            often[positive] += 1e-3
            often[negative] += 1e-3
        weights = faster_rcnn.sampling_weights(jnp.asarray(labels), count=count, share=share)
        np.testing.assert_allclose(weights, often, atol=0.06)  # four standard deviations
        np.testing.assert_allclose(weights.sum(), often.sum(), rtol=1e-5)


def network_and_grads(phase):
    head = build(phase=phase)
    network = models.Network(
        models.build({"name": "unet", "width": 4, "depth": 1, "stride": 4, "norm": "group"}), head.layer
    )
    images = jnp.asarray(np.random.default_rng(0).random((2, *SIZE, 1)), jnp.float32)
    variables = jax.jit(network.init, compiler_options=QUICK)(jax.random.key(0), images)
    _, targets = made_up()
    loss = lambda params: head.loss(network.apply({"params": params}, images), targets)[0]
    return variables["params"], jax.jit(jax.grad(loss), compiler_options=QUICK)(variables["params"])


def test_each_phase_trains_its_own_parts():
    moved = {}
    for phase in faster_rcnn.PHASES:
        _, grads = network_and_grads(phase)
        moved[phase] = {
            name: any(np.abs(g).max() > 0 for g in jax.tree.leaves(tree))
            for name, tree in {"body": grads["body"], **grads["head"]}.items()
        }
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert moved["joint"] == {"body": True, "rpn": True, "roi": True}
    assert moved["rpn"] == {"body": True, "rpn": True, "roi": False}
    # The proposals are constants: no gradient of the second stage reaches the first through their corners.
    assert moved["detector"] == {"body": True, "rpn": False, "roi": True}


def test_the_papers_stages_freeze_the_right_parts():
    path = Path(__file__).parent.parent / "configs" / "spines.py"
    config = runpy.run_path(str(path))["get_config"]("faster_rcnn,paper")
    assert runs.stages(config) == ["rpn", "detector", "rpn_again", "detector_again"]
    params, _ = network_and_grads("rpn")
    names = [
        jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    frozen = {}
    for stage in runs.stages(config):
        pattern = configs.stage(config, stage).freeze
        hit = {name for name in names if pattern and re.match(pattern, name)}
        frozen[stage] = {
            part for part in ("body", "head/rpn", "head/roi") if all(n in hit for n in names if n.startswith(part))
        }
        assert hit == {n for n in names for part in frozen[stage] if n.startswith(part)}
    assert list(frozen.values()) == [set(), {"head/rpn"}, {"body", "head/roi"}, {"body", "head/rpn"}]


def test_proposals_are_the_best_boxes_after_nms():
    boxes = jnp.float32([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10], [5, 5, 5, 9], [0, 20, 10, 30]])
    scores = jnp.float32([0.5, 0.9, -1.0, 3.0, 0.1])
    found = faster_rcnn.propose(scores, boxes, count=4, candidates=5, overlap=0.7)
    np.testing.assert_array_equal(found, [[1, 0, 11, 10], [0, 20, 10, 30], [20, 0, 30, 10], [0, 0, 0, 0]])
    two = faster_rcnn.propose(scores, boxes, count=4, candidates=2, overlap=0.7)
    np.testing.assert_array_equal(two[1:], np.zeros((3, 4)))  # the other candidate is suppressed by the first


def test_second_stage_outputs_are_decoded():
    outputs, _ = made_up()
    proposals = np.zeros_like(outputs.proposals)
    proposals[:, 0] = [4, 4, 14, 14]
    proposals[:, 1] = [4.5, 4, 14.5, 14]
    proposals[:, 2] = [22, 10, 38, 30]
    box = np.array([6.0, 5, 16, 17])
    logits = np.full((2, 6, 3), -9.0, np.float32)
    logits[:, 0, 2], logits[:, 1, 2], logits[:, 2, 1], logits[:, 3:, 1] = 9, 8, 7, 20  # the last three are padding
    deltas = np.zeros((2, 6, 1, 4), np.float32)
    deltas[:, 0, 0] = offsets(box, proposals[0, 0])
    deltas[:, 1, 0] = offsets(box, proposals[0, 1])
    found = build().decode(outputs._replace(proposals=proposals, classes=logits, boxes=deltas))
    np.testing.assert_allclose(found.boxes[0, :2], [box, [22, 10, 38, 30]], atol=1e-4)
    assert found.classes[0, :2].tolist() == [1, 0]
    assert (np.asarray(found.scores[0, :2]) > 0.99).all()
    assert (np.asarray(found.scores[0, 2:]) < 1e-3).all()


def test_class_specific_boxes_are_clipped_to_the_frame():
    head = build(class_agnostic=False)
    outputs, _ = made_up(class_agnostic=False)
    proposals = np.zeros_like(outputs.proposals)
    proposals[:, 0] = [30, 10, 40, 20]
    logits = np.full((2, 6, 3), -9.0, np.float32)
    logits[:, :, 0] = 9
    logits[:, 0] = [-9, -9, 9]
    deltas = np.zeros((2, 6, 2, 4), np.float32)
    deltas[:, 0, 1] = offsets(np.array([35, 10, 45, 20]), proposals[0, 0])  # the frame is 40 wide
    found = head.decode(outputs._replace(proposals=proposals, classes=logits, boxes=deltas))
    np.testing.assert_allclose(found.boxes[0, 0], [35, 10, 40, 20], atol=1e-4)
    assert found.classes[0, 0] == 1


def test_an_anchor_of_a_ratio_has_the_area_of_the_typical_box():
    # 8 x 18 has the area of a square with side 12; four times as high as wide, that is 6 x 24.
    spec = {"name": "faster_rcnn", "scales": (1.0,), "ratios": (4.0,)}
    head = heads.build(spec, classes=1, sizes=(8.0, 18.0), size=SIZE)
    np.testing.assert_allclose(head.layer.anchors, [(6, 24)])


def test_proposals_lie_in_the_frame():
    spec = {"name": "faster_rcnn", "hidden": 4, "pool": 2, "proposals": 20}
    head = heads.build(spec, classes=1, sizes=(24.0, 24.0), size=SIZE)  # anchors of the outer cells cross the border
    features = jax.random.normal(jax.random.key(0), (1, 4, 5, 3))
    outputs, _ = jax.jit(head.layer.init_with_output, compiler_options=QUICK)(jax.random.key(1), features)
    assert (outputs.proposals >= 0).all()
    assert (outputs.proposals <= jnp.array([40, 32, 40, 32])).all()
    assert (outputs.proposals.max((0, 1))[2:] == jnp.array([40, 32])).all()  # some were clipped there


def test_an_unknown_phase_lists_the_valid_ones():
    with pytest.raises(ValueError, match="joint, rpn, detector"):
        build(phase="third")
