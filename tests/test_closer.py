"""The second look: the views of training and validation, the predictions, and runs from photographs to files."""

import functools
import json
import runpy

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from PIL import Image
from test_predict import ROOT, untrained

from jaxmarks import augment, closer, evaluate, heads, predict, runs, serving, steps, tasks, train
from jaxmarks import config as configs
from jaxmarks.data import fitting, loading, phantoms
from jaxmarks.data.samples import Annotation
from jaxmarks.ops import geometry, heatmaps, views

FRAME, SIZE, ZOOM = (192, 256), (48, 64), 4.0
RNG = np.random.default_rng(0)


def marked(points, sigma=3.0):
    """Frames (B, *FRAME, K) uint8 whose channel k shows landmark k alone."""
    return np.asarray(jnp.round(255 * heatmaps.gaussian(points, FRAME, sigma=sigma))).astype(np.uint8)


def fish(variants):
    return runpy.run_path(str(ROOT / "configs" / "fish.py"))["get_config"](variants)


def task_of(landmarks=3, decoder="local_soft_argmax"):
    """A task whose network returns its input images as the landmarks' heatmaps."""
    head = heads.build({"name": "heatmap", "sigma": 2.0, "decoder": decoder}, landmarks=landmarks, size=SIZE)
    plain = lambda batch: batch | {"images": batch["images"].astype(jnp.float32) / 255}
    return steps.Task(lambda variables, images, train: images, head, lambda keys, batch: plain(batch), plain)


def closely(task):
    return closer.with_second_look(task, SIZE, ZOOM)


def laid(task, mean, mirror=False):
    """The task with a second look that shows each specimen in the mean shape's pose."""
    return closer.with_second_look(task, SIZE, ZOOM, fitted_shape=(mean, np.full(len(mean), 0.02)), mirror=mirror)


def batch_of(count, landmarks=3, scatter=20):
    centres = RNG.uniform((60, 50), (196, 142), (count, 1, 2))
    points = (centres + RNG.uniform(-scatter, scatter, (count, landmarks, 2))).astype(np.float32)
    return {
        "images": marked(points),
        "points": points,
        "visible": np.ones((count, landmarks), bool),
        "marked": np.ones((count, landmarks), bool),
        "index": np.arange(count),
        "delta": np.full(count, 3.0, np.float32),
    }


def test_the_second_look_more_than_halves_the_error():
    batch = batch_of(8)
    once = task_of(decoder="argmax")
    call = functools.partial(steps.predict_step, None, task=closely(once))
    small = geometry.resize(jnp.asarray(batch["images"]), SIZE)
    first = 4 * steps.predict_step(None, small, task=once)[0]
    for found, scores in (call(batch["images"]), jax.jit(call)(batch["images"])):
        far = np.linalg.norm(found - batch["points"], axis=-1)
        assert far.max() < 1 and np.linalg.norm(first - batch["points"], axis=-1).mean() > 2 * far.mean()
        assert scores.shape == (8, 3)


def test_a_low_scoring_landmark_does_not_widen_the_view():
    points = np.array([[[100.0, 100.0], [112.0, 104.0], [104.0, 110.0], [30.0, 30.0]]], np.float32)
    images = marked(points)
    images[..., 3] //= 8  # the last landmark is barely visible
    seen = []
    task = task_of(4)

    def plain(batch):
        seen.append(batch["images"])
        return task.plain(batch)

    steps.predict_step(None, images, task=closely(task._replace(plain=plain)))
    three = views.close(points, np.array([[True, True, True, False]]), FRAME, SIZE, most=2 * ZOOM)
    np.testing.assert_allclose(
        np.asarray(seen[1], float), np.asarray(views.resample(images, three, SIZE), float), atol=12
    )


def test_a_faint_landmark_outside_the_view_keeps_its_first_position():
    points = np.array([[[40.0, 40.0], [60.0, 44.0], [46.0, 62.0], [52.0, 50.0], [150.0, 90.0]]], np.float32)
    images = marked(points, sigma=5.0)
    images[..., 4] = images[..., 4] // 5 * 2
    call = functools.partial(steps.predict_step, None, task=closely(task_of(5)))
    found, scores = call(images)
    np.testing.assert_allclose(found, points, atol=0.3)
    assert 0.3 < scores[0, 4] < 0.45


def test_a_padding_row_gets_the_view_of_the_row_it_repeats():
    data = {key: jnp.asarray(value) for key, value in batch_of(3).items() if key != "index"}
    task = closely(task_of())
    rows = np.array([0, 1, 2, ~0, ~1, ~2])
    for prepare in (task.plain, task.training_views):
        seen = prepare(steps.gather(data, rows, 1))
        np.testing.assert_array_equal(seen["images"][:3], seen["images"][3:])
        assert seen["visible"][:3].all() and not seen["visible"][3:].any()


def test_views_transform_images_points_and_pixel_size_alike():
    batch = batch_of(12)
    task = closely(task_of())
    keys = jax.vmap(jax.random.key)(np.arange(12))
    for seen in (
        task.plain(batch),
        task.training_views(batch),
        task.augment(keys, batch),
        jax.jit(task.augment)(keys, batch),
    ):
        assert seen["images"].shape == (12, *SIZE, 3)
        found, _ = task.head.decode(seen["images"])
        np.testing.assert_allclose(found, seen["points"], atol=0.2)
        for n in range(12):  # distances in the photograph's pixels do not change
            before, after = (np.ptp(points[n], axis=0) for points in (batch["points"], np.asarray(seen["points"])))
            np.testing.assert_allclose(after * seen["delta"][n], 3 * before, rtol=1e-3)
    assert tasks.inputs(fish(""), task) == (task.plain, task.training_views)
    sizes = np.asarray(task.training_views(batch)["delta"])
    whole = np.isclose(sizes, 12.0)
    assert 0 < whole.sum() < 7 and (sizes[~whole] < 6).all() and (np.asarray(task.plain(batch)["delta"]) < 6).all()


def test_the_scale_of_the_second_look_is_limited():
    """For a tiny specimen, and one that reaches beyond the frame; a frame is four times as high and wide as a view."""
    mean = np.array([[0.0, 0.0], [10.0, 0.0], [4.0, 6.0]], np.float32)
    tiny, huge = 100 + mean / 50, 100 + 80 * mean
    points, visible = np.stack([tiny, huge]).astype(np.float32), np.ones((2, 3), bool)
    lying = closer.posed_views(SIZE, 2 * ZOOM, mean, np.full(3, 0.02), mirror=False)
    np.testing.assert_allclose(geometry.scale(lying(points, visible, frame=FRAME)), [0.5, 2 * ZOOM], rtol=1e-5)
    upright = views.close(points, visible, FRAME, SIZE, most=2 * ZOOM)
    np.testing.assert_allclose(geometry.scale(upright), [0.5, ZOOM], rtol=1e-5)  # at most the whole frame


def test_training_rotates_whole_frames_about_their_centre():
    mean = np.array([[0.0, 0.0], [10.0, 0.0], [4.0, 6.0]], np.float32)
    batch = batch_of(60, scatter=3)
    batch["points"][:, 0] = FRAME[1] / 2, FRAME[0] / 2
    keys = jax.vmap(jax.random.key)(np.arange(60))
    seen = laid(task_of(), mean).augment(keys, batch)
    whole = np.isclose(seen["delta"], 3.0 * ZOOM, rtol=1e-4)
    assert 5 < whole.sum() < 30
    middle = np.asarray(seen["points"])[whole, 0]
    np.testing.assert_allclose(middle, np.tile([SIZE[1] / 2, SIZE[0] / 2], (len(middle), 1)), atol=1e-3)


def test_training_shows_a_quarter_whole_drawn_by_each_samples_key():
    batch = batch_of(4)
    rows = np.arange(400) % 4
    many = {key: value[rows] for key, value in batch.items()} | {"images": batch["images"][rows][:, ::8, ::8]}
    many["points"] = many["points"] / 8
    task = closely(task_of())
    keys = jax.vmap(jax.random.key)(np.arange(400))
    seen = jax.jit(task.augment)(keys, many)
    whole = np.isclose(seen["delta"], 3.0 * 24 / 48)
    assert 70 < whole.sum() < 130
    some = np.array([3, 77, 200])
    alone = task.augment(keys[some], {key: value[some] for key, value in many.items()})
    for key in ("images", "points"):
        np.testing.assert_allclose(alone[key], seen[key][some], atol=2 / 255 if key == "images" else 1e-4)


def test_the_papers_augmentation_gets_integer_views():
    augmentation = augment.build({"name": "paper_x7"}, channels=1)
    task = task_of()._replace(augment=augmentation.apply, versions=7)
    batch = batch_of(4) | {"version": np.arange(4)}
    seen = closely(task).augment(jax.vmap(jax.random.key)(np.arange(4)), batch)
    assert seen["images"].shape == (4, *SIZE, 1)
    # Where versions are validated, each image is shown whole or closely by its own draw, the same in every epoch.
    settings = fish("")
    settings.split.by = "random"
    many = {key: np.repeat(value, 10, 0) for key, value in batch.items()} | {"index": np.arange(40)}
    to_judge, to_settle = tasks.inputs(settings, closely(task))
    assert to_settle is to_judge
    sizes = np.asarray(to_judge(many)["delta"])
    assert 3 <= np.isclose(sizes, 12.0).sum() <= 20
    np.testing.assert_array_equal(sizes, to_judge(many)["delta"])


# A long, asymmetric shape; its long side lies along the view's.
WING = np.array([[-1.4, 0.1], [-0.9, -0.5], [0.2, -0.6], [1.3, -0.1], [0.6, 0.5], [0.2, 0.6]])
WING = (WING - WING.mean(0)) / np.sqrt(((WING - WING.mean(0)) ** 2).sum(-1).mean())


def lying(count, mirror=False, seed=0):
    """A batch of specimens of one shape at random angles; with `mirror`, every second one is mirrored."""
    draw = np.random.default_rng(seed)
    points = []
    for n in range(count):
        angle, size = draw.uniform(-np.pi, np.pi), draw.uniform(22, 34)
        turn = size * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        points.append(WING * [1, -1 if mirror and n % 2 else 1] @ turn.T + draw.uniform((80, 70), (176, 122)))
    points = np.stack(points).astype(np.float32)
    batch = batch_of(count, len(WING)) | {"points": points, "images": marked(points)}
    return batch


@pytest.mark.parametrize("mirror", [False, True])
def test_posed_views_show_all_specimens_in_one_pose(mirror):
    batch = lying(8, mirror)
    task = laid(task_of(len(WING)), WING, mirror)
    for seen in (task.plain(batch), jax.jit(task.plain)(batch)):
        found, _ = task.head.decode(seen["images"])
        np.testing.assert_allclose(found, seen["points"], atol=0.1)  # pixels are moved like the points
        np.testing.assert_allclose(found, np.broadcast_to(found[:1], found.shape), atol=0.1)
        sides = np.ptp(found[0], axis=0)
        assert np.isclose((sides / SIZE[::-1]).max(), 0.8, atol=0.01) and sides[0] > sides[1]
        for n in range(8):  # distances in the photograph's pixels do not change
            before, after = (np.linalg.norm(p[n, 0] - p[n, 3]) for p in (batch["points"], np.asarray(seen["points"])))
            np.testing.assert_allclose(after * seen["delta"][n], 3 * before, rtol=1e-3)
    far = lambda task: np.linalg.norm(
        steps.predict_step(None, batch["images"], task=task)[0] - batch["points"], axis=-1
    )
    assert far(task).max() < 0.6 and far(laid(task_of(len(WING), "argmax"), WING, mirror)).max() < 1.3


def test_whole_training_views_are_rotated_and_mirrored_at_random():
    batch = lying(4, mirror=True)
    many = {key: np.repeat(value, 30, 0) for key, value in batch.items()} | {"index": np.arange(120)}
    task = laid(task_of(len(WING)), WING, mirror=True)
    seen = jax.tree.map(np.asarray, jax.jit(task.augment)(jax.vmap(jax.random.key)(np.arange(120)), many))
    whole = np.isclose(seen["delta"], 12.0)
    assert 15 < whole.sum() < 45
    z = (seen["points"] - seen["points"].mean(1, keepdims=True)) @ [1, 1j]
    shape = WING @ [1, 1j]
    direct, mirrored = abs(z.conj() @ shape), abs(z @ shape)
    assert (direct > mirrored)[~whole].all() and 0.3 < (direct > mirrored)[whole].mean() < 0.7
    angles = np.angle(np.where(direct > mirrored, z @ shape.conj(), z @ shape))
    assert abs(np.exp(1j * angles[whole]).mean()) < 0.35 and abs(angles[~whole]).max() < 0.05
    found, _ = task.head.decode(seen["images"])
    inside = ((seen["points"] > 2) & (seen["points"] < np.array(SIZE[::-1]) - 2)).all(-1)
    assert inside.mean() > 0.9
    np.testing.assert_allclose(found[inside], seen["points"][inside], atol=0.25)


def test_too_few_landmarks_give_the_whole_frame():
    batch = lying(3)
    visible = np.ones((3, len(WING)), bool)
    visible[1, 2:], visible[2, 1:] = False, False
    delta = lambda mirror: laid(task_of(len(WING)), WING, mirror).plain(batch | {"marked": visible})["delta"]
    np.testing.assert_array_equal(np.isclose(delta(False), 12.0), [False, False, True])  # two determine the angle,
    np.testing.assert_array_equal(np.isclose(delta(True), 12.0), [False, True, True])  # but not whether it is mirrored


@pytest.mark.parametrize("mirror", [False, True])
def test_coincident_landmarks_give_the_whole_frame(mirror):
    batch = lying(4)
    batch["points"][1:3] = [[70.0, 60.0]]
    batch["marked"] = batch["visible"] = np.arange(len(WING)) < np.array([[6], [6], [4], [6]])
    task = laid(task_of(len(WING)), WING, mirror)
    keys = jax.vmap(jax.random.key)(np.arange(4))
    for seen in (task.plain(batch), task.augment(keys, batch)):
        assert all(np.isfinite(seen[key]).all() for key in ("images", "points", "delta"))
    np.testing.assert_array_equal(np.isclose(task.plain(batch)["delta"], 12.0), [False, True, True, False])


def test_pose_tolerates_collinear_landmarks_and_swapped_labels():
    draw = np.random.default_rng(0)
    line = np.array([[-1.0, 0], [-0.2, 0], [0.5, 0], [0.9, 0]])
    of = lambda shape, angle: [
        Annotation(
            "a.png", 80 * (shape + draw.normal(size=shape.shape) * 0.05) @ turn(draw.uniform(-angle, angle)).T, seen
        )
        for seen in [np.ones(len(shape), bool)] * 50
    ]
    turn = lambda degrees: np.array([[c := np.cos(np.deg2rad(degrees)), -(s := np.sin(np.deg2rad(degrees)))], [s, c]])
    assert fitting.pose(of(line, 8)) == "upright" and fitting.pose(of(line, 180)) == "turned"
    wings = of(WING, 180)
    wings[0] = Annotation("a.png", wings[0].points[[1, 0, 3, 2, 5, 4]], wings[0].visible)
    assert fitting.pose(wings) == "turned"


@pytest.mark.parametrize(
    ("angles", "mirrored", "noise", "pose"),
    [
        (15, 0.0, 0.02, "upright"),
        (60, 0.0, 0.02, "turned"),
        (180, 0.0, 0.02, "turned"),
        (5, 0.3, 0.02, "mirrored"),
        (180, 0.5, 0.02, "mirrored"),
        (5, 1.0, 0.02, "upright"),  # all mirrored, so all alike
        (5, 0.02, 0.02, "upright"),  # one of fifty counts as a slip
        (180, 0.5, 0.3, "upright"),  # shapes that have little in common
    ],
)
def test_the_pose_is_recognised_from_landmarks(angles, mirrored, noise, pose):
    draw, found = np.random.default_rng(0), []
    for n in range(50):
        points = WING * [1, -1 if n < 50 * mirrored else 1] + draw.normal(size=WING.shape) * noise
        turn = np.exp(1j * np.deg2rad(draw.uniform(-angles, angles))) * draw.uniform(50, 90)
        z = points @ [1, 1j] * turn + draw.uniform(200, 400) * (1 + 1j)
        visible = np.arange(len(WING)) != (n % 9 if n else -1)
        found.append(Annotation("a.png", np.stack([z.real, z.imag], -1), visible))
    assert fitting.pose(found) == pose
    nobody = [Annotation("a.png", np.zeros((6, 2)), np.arange(6) < 2)] * 3
    assert fitting.pose([]) == fitting.pose(nobody) == "upright"


def test_the_zoom_of_turned_views_fits_the_long_side():
    points = np.array([[100, 100], [340, 340], [250, 190.0]])  # 339 px from end to end
    one = [(Annotation("a.png", points, np.ones(3, bool)), (600, 800))]
    assert fitting.zoom(one, (192, 256), "pad") == 2.0
    assert fitting.zoom(one, (192, 256), "pad", turned=True) == float(f"{0.8 * 800 / 339.4:.2g}")
    assert fitting.zoom(one, (256, 192), "pad", turned=True) == float(f"{0.8 * 800 / 339.4 * 256 / 192:.2g}")


@pytest.mark.parametrize(
    ("landmarks", "zoom"),
    [
        ([[100, 100], [420, 340]], 2.0),  # 320 of 800: 0.4 of the width, and 0.4 of the height
        ([[0, 0], [800, 600]], 1.0),
        ([[100, 100], [660, 100]], 1.0),  # 0.7, which is nearly 0.8
        ([[100, 100], [580, 100]], 1.3),
        ([[100, 100], [300, 100]], 3.1),  # 0.25 would give 3.2, but a frame pixel is only 3.125 photograph pixels
        ([[100, 100], [100, 100]], 1.0),
        ([[100, 100], None], 1.0),  # one landmark has no extent
        ([[100, 100], [420, 340], None, None], 2.0),  # half of the landmarks suffice,
        ([[100, 100], [420, 340], None, None, None], 1.0),  # fewer do not
    ],
)
def test_the_zoom_by_hand(landmarks, zoom):
    visible = np.array([point is not None for point in landmarks])
    points = np.array([point or (0, 0) for point in landmarks], float)
    assert fitting.zoom([(Annotation("a.png", points, visible), (600, 800))], (192, 256), "pad") == zoom
    # A photograph with too few landmarks does not count where others have enough.
    silent = Annotation("b.png", points * [[1], *[[0]] * (len(points) - 1)], np.arange(len(points)) == 0)
    found = [(Annotation("a.png", points, visible), (600, 800))] + 2 * [(silent, (600, 800))]
    assert fitting.zoom(found, (192, 256), "pad") == zoom


def test_the_zoom_is_limited_and_1_without_photographs():
    tiny = Annotation("a.png", np.array([[0.0, 0.0], [100.0, 100.0]]), np.ones(2, bool))
    assert fitting.zoom([(tiny, (6000, 8000))], (192, 256), "pad") == 4.0
    assert fitting.zoom([(tiny, (6000, 8000))], (288, 384), "pad") == 2.7  # as many pixels when magnified
    assert fitting.zoom([], (192, 256), "pad") == 1.0
    wide = Annotation("a.png", np.array([[0.0, 0.0], [400.0, 100.0]]), np.ones(2, bool))
    # Stretched, the landmarks take a quarter of the width (400 of 1600) and half of the height (100 of 200).
    assert fitting.zoom([(wide, (200, 1600))], (64, 64), "stretch") == 1.6


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Ten drawn photographs of small pronota, with their landmarks."""
    folder = tmp_path_factory.mktemp("small")
    rows = ["image," + ",".join(f"x{k},y{k}" for k in range(1, 9))]
    for s in range(10):
        image, points = phantoms.draw("pronotum", s, size=(240, 320), share=0.4)
        Image.fromarray(image).save(folder / f"{s}.png")
        rows.append(f"{s}.png," + ",".join(f"{v:.3f}" for v in points.ravel()))
    (folder / "marks.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_share_shrinks_and_shifts_a_phantom():
    whole = np.array([phantoms.draw("pronotum", s, size=(96, 128))[1] for s in range(20)])
    small = np.array([phantoms.draw("pronotum", s, size=(240, 320), share=0.4)[1] for s in range(20)])
    np.testing.assert_allclose(small - small[:, :1], whole - whole[:, :1], atol=1e-9)  # 0.4 of 320 is 128
    corner = small[:, 0] - whole[:, 0]
    assert (corner >= 0).all() and (corner <= (192, 144)).all() and np.ptp(corner, axis=0).min() > 90
    loaded = phantoms.load("pronotum", size=(240, 320), share=0.4, count=2)
    np.testing.assert_allclose(loaded.points, small[:2], atol=1e-4)
    np.testing.assert_allclose(loaded.mm_per_px, phantoms.load("pronotum", size=(96, 128), count=2).mm_per_px)
    for share in (0, 1.1, -0.2):
        with pytest.raises(ValueError, match="share: "):
            phantoms.draw("pronotum", 0, share=share)


def test_turn_rotates_a_phantom_by_any_angle():
    drawn = lambda turn: np.array([phantoms.draw("head", s, size=(96, 128), turn=turn)[1] for s in range(30)]) @ [1, 1j]
    upright, turned = drawn(0.0), drawn(180.0)
    ratio = np.diff(turned, axis=1) / np.diff(upright, axis=1)
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape), atol=1e-9)
    np.testing.assert_allclose(abs(ratio), 1, atol=1e-9)
    assert abs(ratio[:, 0].mean()) < 0.3
    image, points = phantoms.draw("head", 4, size=(96, 128), turn=180.0)
    loaded = phantoms.load("head", size=(96, 128), count=5, turn=180.0)
    np.testing.assert_array_equal(loaded.images[4], image)
    np.testing.assert_allclose(loaded.points[4], points, atol=1e-4)


@pytest.mark.parametrize("pose", ["upright", "mirrored"])
def test_all_ways_to_predict_agree(photographs, tmp_path, pose):
    """An untrained network predicts the same for a folder, through `predict.load` and from an exported artefact."""
    config = fish("own")
    config.data.update({"images": str(photographs), "landmarks": str(photographs / "marks.csv"), "pixels": 3072})
    fitting.fill_in(config.data)
    assert (config.data.size, config.data.zoom) == ((48, 64), 3.8)
    assert config.data.pose == "upright"
    changes = {"data.size": (48, 64), "data.zoom": 3.8, "data.pose": pose, "split.run": (0,), "model.width": 4}
    mean = np.random.default_rng(0).normal(size=(8, 2))
    facts = {"landmarks": 8, "shape": [mean.tolist(), [0.05] * 8]}
    run = untrained(tmp_path / "run", "fish", "own", facts, **changes)

    dataset = loading.load(config.data)
    assert dataset.samples.images.shape == (10, 182, 243, 3)
    _, true = phantoms.draw("pronotum", 3, size=(240, 320), share=0.4)
    np.testing.assert_allclose(dataset.samples.source_points[3], true, atol=0.01)

    summary = predict.on_folder(run, photographs, tmp_path / "out")
    assert summary["images"] == 10
    rows = [line.split(",") for line in (tmp_path / "out" / "predictions.csv").read_text().splitlines()[1:9]]
    written = np.array([row[2:4] for row in rows], float)
    images = np.stack([np.asarray(Image.open(photographs / f"{s}.png")) for s in range(2)])
    points, scores = predict.load(run)(images)
    assert ((points >= 0) & (points <= np.array([320, 240]))).all() and scores.shape == (2, 8)
    np.testing.assert_allclose(points[0], written, atol=0.6)  # Pillow's frames, which round differently than JAX's
    about = serving.export(run, tmp_path / "export", size=(240, 320))
    assert about["images"] == ["batch", 240, 320, 3]
    found = serving.load(tmp_path / "export")(images)
    np.testing.assert_allclose(found["points"], points, atol=0.05)
    if pose != "upright":
        config = runs.config_of(run)
        config.data.pose = "upright"
        configs.save(config, run / "config.json")
        assert np.abs(predict.load(run)(images)[0] - points).max() > 1  # the upright view differs
    assert serving.export(run, tmp_path / "export")["images"] == ["batch", 182, 243, 3]


def test_a_run_with_a_second_look(photographs, tmp_path, capsys):
    """Trains for a few steps; checks the message, the frames' size, and that scores are in the photographs' pixels."""
    config = fish("own")
    config.update_from_flattened_dict(
        {
            "data.images": str(photographs), "data.landmarks": str(photographs / "marks.csv"), "data.size": (32, 48),
            "model.width": 4, "split.folds": 2, "split.run": (0,), "split.valid": 0.2, "train.devices": 1,
            "train.batch_size": 4, "train.steps": 3,
        }
    )  # fmt: skip
    datasets = train.train(config, tmp_path)
    assert runs.config_of(tmp_path).data.zoom == config.data.zoom == 3.8
    assert "and then 3.8 times as closely at that part; --config.data.zoom=1 leaves out" in capsys.readouterr().out
    assert datasets["train"].samples.images.shape[1:3] == (122, 182)
    summary = evaluate.of_run(config, tmp_path, datasets["train"])
    assert summary["images"] == 5 and 0 < summary["mean_distance_px"] < 320
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert np.isfinite(last["valid/distance_px"])


def test_resumed_runs_keep_their_zoom_and_older_ones_look_once(photographs, tmp_path):
    small = {"data.images": str(photographs), "data.landmarks": str(photographs / "marks.csv"), "data.pixels": 1024}
    config = fish("own")
    config.update_from_flattened_dict(small)
    train.fill_in(config, tmp_path)
    assert (config.data.zoom, config.data.size) == (3.8, (32, 48))
    (tmp_path / "metrics.jsonl").touch()
    for theirs in (3.8, 2.0, None):
        known = ml_collections.ConfigDict(config.to_dict())
        known.data.zoom, known.data.pose = theirs or 1.0, "turned" if theirs == 2.0 else "upright"
        if theirs is None:
            del known.data.zoom, known.data.pose, known.data.share
        configs.save(known, tmp_path / "config.json")
        again = fish("own")
        again.update_from_flattened_dict(small)
        train.fill_in(again, tmp_path)
        assert (again.data.zoom, again.data.size) == (theirs or 1.0, (32, 48))
        assert again.data.pose == ("turned" if theirs == 2.0 else "upright")
        assert configs.differences(known, again) == []


@pytest.mark.parametrize("name", ["beetle:own,paper", "fish:own,paper", "fish:own,reduced", "radiographs:own,thesis"])
def test_paper_variants_have_no_second_look(name):
    module, variants = name.split(":")
    read = runpy.run_path(str(ROOT / "configs" / f"{module}.py"))["get_config"]
    assert (read(variants).data.zoom, read(variants).data.pose) == (1.0, "upright")
    assert (read("own").data.zoom, read("own").data.pose) == (0.0, "")


def test_joined_datasets_have_no_second_look(photographs):
    config = fish("own")
    own = {"images": str(photographs), "landmarks": str(photographs / "marks.csv")}
    config.data.sets = {"a": own, "b": own}
    fitting.fill_in(config.data)
    assert (config.data.zoom, config.data.pose) == (1.0, "upright")
    config.data.zoom = 2.0
    with pytest.raises(ValueError, match=r"config\.data\.zoom=2\.0: with several data\.sets"):
        configs.check(config)
    config.data.zoom, config.data.pose = 1.0, "turned"
    with pytest.raises(ValueError, match=r"config\.data\.pose=turned: with several data\.sets"):
        configs.check(config)
    config.data.pose = "flat"
    with pytest.raises(ValueError, match=r"config\.data\.pose=flat: choose one of upright, turned, mirrored"):
        configs.check(config)


def posed(shape, degrees, visible=None, mirror=False):
    """A specimen of the shape (K, 2), turned and perhaps mirrored, in pixels."""
    turn = np.exp(1j * np.deg2rad(degrees))
    z = 80 * (shape * [1, -1 if mirror else 1]) @ [1, 1j] * turn + 300 * (1 + 1j)
    visible = np.ones(len(shape), bool) if visible is None else visible
    return Annotation("a.png", np.stack([z.real, z.imag], -1), visible)


def test_references_that_are_all_mirrored_do_not_change_the_pose():
    """The references, the nine of 200 with the most landmarks, are mirror images of the other 191, which lie alike."""
    few = [posed(WING, 0, mirror=True) for _ in range(9)]
    others = [posed(WING, 0, np.arange(6) != n % 6) for n in range(191)]
    assert fitting.pose(few + others) == "upright"
    more = [posed(WING, 0, mirror=True) for _ in range(2)]
    assert fitting.pose(few + more + others) == "mirrored"  # 11 of 202 are more than 5 %


def test_two_landmarks_determine_no_pose_and_are_no_reference():
    two = [posed(WING, 40 * n, np.arange(6) < 2) for n in range(9)]
    assert fitting.pose(two) == "upright"  # two landmarks fit in any pose
    assert fitting.pose(two + [posed(WING, 40 * n) for n in range(9)]) == "turned"


def test_noisy_lines_are_not_taken_as_mirrored():
    """Mirrored, landmarks near a line sometimes fit slightly better, which is only noise."""
    draw = np.random.default_rng(0)
    line = np.stack([np.linspace(-1, 1, 6), np.zeros(6)], -1)
    found = [posed(line + draw.normal(size=line.shape) * 0.07, 0) for _ in range(60)]
    assert fitting.pose(found) == "upright"


def test_negative_scores_lead_to_the_same_second_look():
    """If all scores are negative, such as logarithms, the landmarks at or above the median determine the view."""
    points = np.array([[[98, 66], [118, 90], [130, 62]]], np.float32)  # all at the same place within a 4 px pixel
    images, once = marked(points), task_of(decoder="argmax")
    below = once._replace(plain=lambda batch: batch | {"images": once.plain(batch)["images"] - 2})
    due, _ = steps.predict_step(None, images, task=closely(once))
    found, scores = steps.predict_step(None, images, task=closely(below))
    assert (scores < 0).all() and np.abs(found - points).max() < 1
    np.testing.assert_allclose(found, due, atol=1e-4)


def test_whole_training_views_are_not_mirrored_unless_specimens_are():
    batch = lying(4)
    many = {key: np.repeat(value, 20, 0) for key, value in batch.items()} | {"index": np.arange(80)}
    seen = jax.jit(laid(task_of(len(WING)), WING).augment)(jax.vmap(jax.random.key)(np.arange(80)), many)
    points = np.asarray(seen["points"])
    z, shape = (points - points.mean(1, keepdims=True)) @ [1, 1j], WING @ [1, 1j]
    assert np.isclose(seen["delta"], 12.0).sum() > 8 and (abs(z.conj() @ shape) > abs(z @ shape)).all()
