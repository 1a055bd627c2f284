"""`predict.load` on all types of images, compared with --mode=predict, and on damaged runs and artefacts."""

import json
import runpy
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jaxmarks import checkpoint, detection, predict, runs, serving, steps, tasks, trained
from jaxmarks import config as configs
from jaxmarks.data import objects
from jaxmarks.data.formats import tps
from jaxmarks.ops import geometry
from jaxmarks.report import tables

# With damaged arrays Orbax fails in a thread, whose exception is reported whenever it is garbage-collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ROOT = Path(__file__).parent.parent
OBJECTS = {"classes": 2, "names": ("a", "b"), "sizes": (12.0, 9.0)}


def untrained(workdir, name, variants, facts, **changes):
    """Writes a run's folder as training without a step would: the config with these variants, and its networks."""
    config = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"](variants)
    config.update_from_flattened_dict(changes)
    Path(workdir).mkdir(parents=True, exist_ok=True)
    configs.save(config, Path(workdir) / "config.json")
    stage = runs.stages(config)[-1]
    settings = configs.stage(config, stage)
    network, _ = tasks.build(settings, facts)
    note = {"facts": facts} | ({"threshold": 0.1} if "classes" in facts else {})
    for member in runs.members(settings):
        variables = tasks.initial(network, settings, jax.random.key(member.seed))
        checkpoint.save(runs.folder_of(workdir, stage, member) / "best", variables, note)
    return workdir


def test_earlier_overlays_are_kept_if_there_is_nothing_to_draw(tmp_path):
    def nothing():
        raise ValueError("no photograph in this folder")
        yield

    one = "a.png", lambda path: Image.fromarray(noise(8, 8, 3)).save(path)
    draw_all = lambda drawings: predict.draw_all(drawings, "photographs", [{"what": "torn"}], tmp_path)
    draw_all(iter([one, ("b.png", one[1])]))
    with pytest.raises(ValueError, match="no photograph in"):
        draw_all(nothing())
    with pytest.raises(ValueError, match="photographs: no photograph could be read; torn"):
        draw_all(iter([]))
    assert sorted(p.name for p in (tmp_path / "overlays").iterdir()) == ["a.png.jpg", "b.png.jpg"]
    draw_all(iter([one]))
    assert [p.name for p in (tmp_path / "overlays").iterdir()] == ["a.png.jpg"]


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def direct(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("direct"), "beetle", "smoke", {"landmarks": 5}, **{"split.run": (0,)})


@pytest.fixture(scope="module")
def centre(tmp_path_factory):
    """An untrained detector, whose scores are about 0.1 everywhere, even outside the photograph."""
    changes = {"data.size": (64, 96), "split.run": (0, 1)}
    return untrained(tmp_path_factory.mktemp("centre"), "spines", "centre,smoke", OBJECTS, **changes)


def test_landmarks_below_the_threshold_are_missing_in_the_files(tmp_path):
    run = untrained(tmp_path / "run", "fish", "smoke", {"landmarks": 5}, **{"split.run": (0,)})
    (tmp_path / "photographs").mkdir()
    for i, image in enumerate(noise(3, 40, 60, 3)):
        Image.fromarray(image).save(tmp_path / "photographs" / f"{i}.png")
    predict.on_folder(run, tmp_path / "photographs", tmp_path / "all")
    every = tables.read_predictions(tmp_path / "all" / "predictions.csv")
    rows = (tmp_path / "all" / "predictions.csv").read_text().splitlines()[1:]
    scores = np.array([float(row.split(",")[4]) for row in rows]).reshape(3, 5)
    assert np.isfinite(every.points).all()
    threshold = float(np.sort(scores, axis=None)[6:8].mean())
    summary = predict.on_folder(run, tmp_path / "photographs", tmp_path / "some", threshold=threshold)
    missing = scores < threshold
    assert 0 < missing.sum() < 15 and summary["missing"] == missing.sum()
    found = tables.read_predictions(tmp_path / "some" / "predictions.csv")
    np.testing.assert_array_equal(found.points, np.where(missing[..., None], np.nan, every.points))
    read = tps.read(tmp_path / "some" / "predictions.tps")
    assert [list(one.visible) for one in read] == (~missing).tolist()
    page = (tmp_path / "some" / "proofread.html").read_text()
    assert page.count("null") >= missing.sum() and "NaN" not in page


def test_a_detector_is_compiled_once_for_each_size(centre):
    detector, images = predict.load(centre), noise(1, 64, 96, 3)
    detector(images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "build", lambda *args, **options: pytest.fail("the task is built again"))
        detector(images)


# Photographs at their own scale: smaller than the frame, equal to it, one row high, and wider than it.
@pytest.mark.parametrize("source", [(23, 37), (64, 96), (1, 96), (40, 131)])
def test_a_detector_finds_nothing_outside_the_photograph(centre, source):
    images = noise(3, *source, 3)
    found = predict.load(centre)(images)
    scores, middle = np.asarray(found.scores), np.asarray(found.boxes).reshape(3, -1, 2, 2).mean(2)
    assert (scores > 0).any() and ((scores == 0) | (scores >= detection.FLOOR)).all()
    assert (np.diff(scores) <= 0).all()
    inside = ((middle >= 0) & (middle <= source[::-1])).all(-1)
    assert inside[scores > 0].all()
    assert (scores == 0).any()


@pytest.mark.parametrize("source", [(23, 37), (64, 96), (50, 95)])
def test_a_detector_matches_mode_predict(centre, tmp_path, source):
    images = noise(2, *source, 3)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    task, settings, networks, _ = trained.networks_of(centre)
    options = {key: settings.data[key] for key in ("size", "fit", "scale", "overlap")}
    samples, _ = next(objects.batches(tmp_path, **options, problems=[]))
    expected = detection.predict(steps.predictor(task), networks, samples)
    found = predict.load(centre)(images)
    for boxes, scores, classes, *known in zip(*found, expected.boxes, expected.scores, expected.classes, strict=True):
        order = np.argsort(-known[1], kind="stable")
        assert (known[1] > 0).sum() == (np.asarray(scores) > 0).sum() > 5
        some = slice(0, (known[1] > 0).sum())
        np.testing.assert_allclose(scores[some], known[1][order][some], atol=1e-6)
        np.testing.assert_allclose(boxes[some], known[0][order][some], atol=1e-3)
        np.testing.assert_array_equal(classes[some], known[2][order][some])


def test_data_scale_is_applied_and_boxes_are_scaled_back(centre, tmp_path):
    twice = shutil.copytree(centre, tmp_path / "twice")
    config = configs.load(twice / "config.json")
    config.data.scale = 2.0
    configs.save(config, twice / "config.json")
    images = noise(2, 23, 37, 3) / np.float32(255)
    found, enlarged = predict.load(twice)(images), predict.load(centre)(geometry.resize(images, (46, 74)))
    assert (np.asarray(found.scores) > 0).sum() > 5
    np.testing.assert_allclose(found.scores, enlarged.scores, atol=1e-6)
    np.testing.assert_allclose(2 * found.boxes, enlarged.boxes, atol=1e-3)


def test_load_can_select_one_folds_networks(centre):
    images = noise(2, 64, 96, 3)
    for fold in (0, 1):
        task, _, networks, _ = trained.networks_of(centre, fold=fold)
        (alone,) = networks
        expected = steps.predict_step(alone, images, task=task)
        middle = np.asarray(expected.boxes).reshape(2, -1, 2, 2).mean(2)
        good = ((middle >= 0) & (middle <= (96, 64))).all(-1) & (np.asarray(expected.scores) >= detection.FLOOR)
        found = np.asarray(predict.load(centre, fold=fold)(images).scores)
        np.testing.assert_allclose(np.sort(found[found > 0]), np.sort(expected.scores[good]), atol=1e-6)
    assert (found != np.asarray(predict.load(centre, fold=0)(images).scores)).any()


def test_no_object_lies_in_the_padding_of_a_frame(tmp_path):
    changes = {"data.size": (64, 64), "data.fit": "pad", "split.run": (0,)}
    run = untrained(tmp_path / "run", "spines", "centre,smoke", OBJECTS, **changes)
    found = predict.load(run)(noise(2, 20, 90, 3))
    middle = np.asarray(found.boxes).reshape(2, -1, 2, 2).mean(2)
    good = np.asarray(found.scores) > 0
    assert good.any() and not good.all()
    assert ((middle >= 0) & (middle <= (90, 20))).all(-1)[good].all()


def test_a_detectors_artefact_matches_predict_load(centre, tmp_path):
    pytest.importorskip("flatbuffers")
    images = noise(3, 23, 37, 3)
    serving.export(centre, tmp_path, size=(23, 37))
    found, expected = serving.load(tmp_path)(images), predict.load(centre)(images)
    assert (np.asarray(found["scores"]) == 0).any()
    np.testing.assert_allclose(found["scores"], expected.scores, atol=1e-6)
    np.testing.assert_allclose(found["boxes"], expected.boxes, atol=1e-3)


@pytest.mark.parametrize("run", ["direct", "centre"])
def test_image_types_agree_or_are_refused(run, request):
    network = predict.load(request.getfixturevalue(run))
    images = noise(2, 61, 87, 3)
    expected = network(images)[0]
    for dtype in (np.float32, np.float64):
        np.testing.assert_allclose(network((images / 255).astype(dtype))[0], expected, atol=0.1)
    half = (images / 255).astype(np.float16)
    np.testing.assert_array_equal(network(half)[0], network(half.astype(np.float32))[0])
    for wrong in (images.astype(np.int32), images.astype(np.uint16), images > 127):
        with pytest.raises(ValueError, match=f"images of type {wrong.dtype}: give uint8, or floats from 0 to 1"):
            network(wrong)
    for wrong in (images[0], images[..., 0], images[:, :0], images[:, :, :0], images[None]):
        with pytest.raises(ValueError, match=r"images of shape \(.*\): give \(B, H, W, C\)"):
            network(wrong)
    none = network(images[:0])
    assert [x.shape for x in none] == [(0, *x.shape[1:]) for x in network(images)]


# --- Damaged folders ---


def copied(run, folder):
    shutil.copytree(run, folder)
    return folder, next((folder / "checkpoints").glob("*/fold0/best"))


@pytest.mark.parametrize("lost", ["arrays", "arrays/_METADATA", "arrays/manifest.ocdbt"])
def test_missing_array_files_are_reported(direct, tmp_path, lost):
    run, best = copied(direct, tmp_path / "run")
    shutil.rmtree(best / lost) if (best / lost).is_dir() else (best / lost).unlink()
    with pytest.raises(ValueError, match="fold0/best: files of its arrays are missing; copy the run's folder again"):
        predict.load(run)


def test_truncated_array_files_are_reported(direct, tmp_path):
    run, best = copied(direct, tmp_path / "run")
    largest = max((p for p in (best / "arrays").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"fold0/best: its arrays cannot be read .*; copy the run's folder again"):
        predict.load(run)
    (best / "arrays" / "_METADATA").write_text("")
    with pytest.raises(ValueError, match="fold0/best: files of its arrays are missing; copy the run's folder again"):
        predict.load(run)


def test_a_damaged_note_is_reported(direct, tmp_path):
    run, best = copied(direct, tmp_path / "run")
    whole = (best / "note.json").read_text()
    for text in ("", whole[:30], "[]", "7", '{"facts": {}}'):
        (best / "note.json").write_text(text)
        with pytest.raises(ValueError, match=r"fold0/best/note\.json: the file is damaged \(.*\); copy the run's"):
            predict.load(run)
    (best / "note.json").write_text(json.dumps({k: v for k, v in json.loads(whole).items() if k != "facts"}))
    with pytest.raises(ValueError, match=r"note\.json: the key 'facts' is missing; copy the run's folder again"):
        predict.load(run)


def test_a_damaged_artefact_is_reported(direct, tmp_path):
    pytest.importorskip("flatbuffers")
    serving.export(direct, tmp_path)
    for name in ("function.bin", "parameters.npz"):
        whole = (tmp_path / name).read_bytes()
        for end in (0, 1000):
            (tmp_path / name).write_bytes(whole[:end])
            with pytest.raises(ValueError, match=f"{name}: the file is damaged .*; copy the artefact again"):
                serving.load(tmp_path)
        (tmp_path / name).write_bytes(whole)
