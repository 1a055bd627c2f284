"""A run recognises the images that its networks have seen, whatever happens to the files; and stop signals."""

import contextlib
import csv
import dataclasses
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest
from PIL import Image

from jaxmarks import caveats, checkpoint, evaluate, formats, phantoms, processes, runs, tps, train
from jaxmarks import config as configs
from jaxmarks.data import loading, photographs, splits
from jaxmarks.data.samples import Annotation, Samples
from jaxmarks.trained import part_of, with_training_names

ROOT = Path(__file__).parent.parent
get_config = runpy.run_path(str(ROOT / "configs" / "fish.py"))["get_config"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two folds on eight of ten photographs, and the annotations of all ten."""
    folder = tmp_path_factory.mktemp("same")
    (folder / "photographs").mkdir()
    annotations = []
    for s in range(10):
        image, points = phantoms.draw("pronotum", s, size=(48, 64))
        Image.fromarray(image).save(folder / "photographs" / f"{s}.png")
        visible = np.ones(8, bool)
        annotations.append(Annotation(image=f"{s}.png", points=points.astype(float), visible=visible, id=f"M{9 - s}"))
    formats.write(folder / "marks.csv", annotations[:8])
    train.train(config_of(folder), folder / "run")
    return folder, annotations


def config_of(folder):
    config = get_config("own,smoke")
    config.update_from_flattened_dict(
        {
            "data.images": str(folder / "photographs"), "data.landmarks": str(folder / "marks.csv"), "data.size": (32, 32),
            "data.zoom": 1.0, "split.folds": 2, "model.width": 4, "model.depth": 2, "train.devices": 1, "train.steps": 4, "baselines": ("mean_shape",),
        }
    )  # fmt: skip
    return config


def seen_by(workdir, fold):
    images = checkpoint.note(runs.folder_of(workdir, "train", runs.Member(fold)) / "best")["data"]["images"]
    return {*images["train"], *images["valid"]}, images


def test_the_split_is_saved_with_each_network(trained):
    folder, _ = trained
    for fold in range(2):
        seen, images = seen_by(folder / "run", fold)
        assert not seen & set(images["test"]) and len(seen) + len(images["test"]) == 8 and not images["unused"]


def test_predictions_have_the_order_and_the_ids_of_the_landmark_file(trained, tmp_path):
    folder, _ = trained
    config = config_of(folder)
    evaluate.of_run(config, folder / "run", loading.load(config.data), out=tmp_path)
    found = tps.read(tmp_path / "predictions.tps")
    assert [(s.image, s.id) for s in found] == [(f"{s}.png", f"M{9 - s}") for s in range(8)]
    rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    assert [r["image"] for r in rows[::8]] == [s.image for s in found] and {r["fold"] for r in rows} == {"0", "1"}
    # TPS has y up; the photographs have 48 rows
    np.testing.assert_allclose(found[3].points[0], [float(rows[24]["x"]), 48 - float(rows[24]["y"])], atol=2e-3)


@contextlib.contextmanager
def marks(folder, annotations):
    """Replaces the annotations in the landmark file within the block."""
    before = (folder / "marks.csv").read_text()
    formats.write(folder / "marks.csv", annotations)
    try:
        yield
    finally:
        (folder / "marks.csv").write_text(before)


def rewritten(folder, annotations):
    """Loads the dataset with other annotations in its landmark file."""
    with marks(folder, annotations):
        return loading.load(config_of(folder).data)


def test_new_images_are_scored_by_all_networks_others_by_their_fold(trained, tmp_path):
    folder, annotations = trained
    dataset = rewritten(folder, annotations)
    summary = evaluate.of_run(config_of(folder), folder / "run", dataset, out=tmp_path)
    with (tmp_path / "predictions.csv").open() as file:
        fold = {row["image"]: int(row["fold"]) for row in csv.DictReader(file)}
    assert len(fold) == 10 and [name for name, f in fold.items() if f < 0] == ["8.png", "9.png"]
    assert all(name not in seen_by(folder / "run", f)[0] for name, f in fold.items() if f >= 0)
    assert [f["image"] for f in summary["failures"]] == ["8.png"]
    assert "2 images are new since the training" in summary["failures"][0]["what"]
    each = {f["fold"]: f["mean_distance_px"] for f in summary["folds"]}
    assert set(each) == {-1, 0, 1} and summary["std_over_folds_px"] == pytest.approx(np.std([each[0], each[1]]))
    fewer = evaluate.of_run(config_of(folder), folder / "run", rewritten(folder, annotations[:4]), out=tmp_path)
    assert fewer["images"] == 4
    with pytest.raises(ValueError, match="landmarks, but the run's network finds 8"):
        short = [Annotation(a.image, a.points[:5], a.visible[:5]) for a in annotations]
        evaluate.of_run(config_of(folder), folder / "run", rewritten(folder, short), out=tmp_path)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda a: a, r"2 images are new \(8.png, 9.png\)"),
        (lambda a: a[1:8], r"1 images are gone \(0.png\)"),
        (lambda a: [Annotation(x.image, x.points + (n == 3), x.visible) for n, x in enumerate(a[:8])], "landmarks"),
    ],
)
def test_a_finished_run_refuses_changed_data(trained, change, what):
    folder, annotations = trained
    with marks(folder, change(annotations)):
        with pytest.raises(ValueError, match=f"fold 0: the data have changed since it was trained: {what}"):
            train.train(config_of(folder), folder / "run")
    train.train(config_of(folder), folder / "run")  # with the original annotations there is nothing to do


def test_a_finished_run_refuses_other_pixels_under_the_same_names(trained):
    folder, _ = trained
    photograph = next(path for path in sorted(folder.rglob("3.png")) if "run" not in path.parts)
    original = photograph.read_bytes()
    Image.fromarray(255 - np.asarray(Image.open(photograph))).save(photograph)
    with pytest.raises(ValueError, match=r"the data have changed .*: 1 images have other contents \(3\.png\)"):
        train.train(config_of(folder), folder / "run")
    photograph.write_bytes(original)
    train.train(config_of(folder), folder / "run")


def test_a_stopped_training_resumes_only_on_the_same_images(trained, tmp_path, monkeypatch):
    folder, annotations = trained
    config = config_of(folder)
    config.train.checkpoint_seconds = 0
    monkeypatch.setattr(train.processes, "stop_requested", lambda: (tmp_path / "checkpoints" / "train").exists())
    with pytest.raises(InterruptedError):
        train.train(config, tmp_path)
    monkeypatch.undo()
    assert checkpoint.note(tmp_path / "checkpoints" / "train" / "fold0" / "resume")
    with marks(folder, annotations):
        with pytest.raises(ValueError, match="2 images are new"):
            train.train(config, tmp_path)
    train.train(config, tmp_path)


def test_corrected_landmarks_are_scored_by_the_held_out_fold(trained, tmp_path):
    folder, annotations = trained
    formats.write(tmp_path / "better.csv", [Annotation(a.image, a.points + 1, a.visible) for a in annotations[:8]])
    said = run(
        "--mode=evaluate", f"--workdir={folder / 'run'}", f"--config.data.images={folder / 'photographs'}",
        f"--config.data.landmarks={tmp_path / 'better.csv'}", "--config.data.size=(16,16)", "--config.split.folds=2",
    )  # fmt: skip
    assert "--config.data.size has no effect" in said and "folds" not in said
    with (folder / "run" / "evaluate" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 64 and all(r["image"] not in seen_by(folder / "run", int(r["fold"]))[0] for r in rows)
    truth = {(a.image, k + 1): p + 1 for a in annotations for k, p in enumerate(a.points)}
    for r in rows:
        np.testing.assert_allclose(
            truth[r["image"], int(r["landmark"])], (float(r["x_true"]), float(r["y_true"])), atol=2e-3
        )
    error = run("--mode=evaluate", f"--workdir={folder / 'run'}", f"--config.data.images={tmp_path}", fails=True)
    assert "name its landmarks, too" in error


def run(*arguments, fails=False):
    """Runs jaxmarks.main with these arguments; returns its stdout, or with `fails` its stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "jaxmarks.main", *arguments],
        cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}, capture_output=True, text=True,
    )  # fmt: skip
    assert bool(done.returncode) == fails and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done.stderr if fails else done.stdout


def test_a_caveat_of_a_fold_is_reported_once(trained, tmp_path):
    folder, annotations = trained
    note = runs.folder_of(folder / "run", "train", runs.Member(0)) / "best" / "note.json"
    before = note.read_text()
    warned = json.loads(before) | {"caveats": [{"image": "", "what": "fold 0: beware", "where": ""}]}
    note.write_text(json.dumps(warned))
    summary = evaluate.of_run(config_of(folder), folder / "run", rewritten(folder, annotations), out=tmp_path)
    assert [f["what"] for f in summary["failures"]].count("fold 0: beware") == 1
    note.write_text(before)


def test_a_trained_run_needs_no_training_devices(trained, tmp_path, monkeypatch):
    """The same command can write the report again on a machine that could not train it, as one with fewer devices."""
    folder, _ = trained
    shutil.copytree(folder / "run", tmp_path / "run")

    def none(*_):
        raise ValueError("no such devices")

    monkeypatch.setattr(train, "devices_of", none)
    assert len(train.train(config_of(folder), tmp_path / "run")["train"].samples) == 8
    shutil.rmtree(runs.folder_of(tmp_path / "run", "train", runs.Member(1)))
    with pytest.raises(ValueError, match="no such devices"):
        train.train(config_of(folder), tmp_path / "run")


def test_without_training_images_there_is_no_baseline(trained, tmp_path):
    folder, annotations = trained
    summary = evaluate.of_run(config_of(folder), folder / "run", rewritten(folder, annotations[8:]), out=tmp_path)
    assert summary["images"] == 2 and summary["baselines"] == {}


def test_two_different_runs_do_not_share_a_folder(trained, tmp_path):
    """The second command starts before the first has written a checkpoint."""
    config = config_of(trained[0])
    configs.save(config, tmp_path / "config.json")
    (tmp_path / "metrics.jsonl").write_text("")  # its training has begun
    config.seed = 5
    with pytest.raises(ValueError, match="seed: 0 / 5"):
        runs.refuse_another(config, tmp_path)


def test_a_failed_first_command_does_not_lock_the_folder(trained, tmp_path):
    folder, _ = trained
    slip = config_of(folder)
    slip.data.images = str(folder / "nowhere")
    with pytest.raises(ValueError, match="no such folder"):
        train.train(slip, tmp_path / "run")
    train.train(config_of(folder), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["images"] == str(folder / "photographs")
    with pytest.raises(ValueError, match="no such folder"):
        train.train(slip, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["images"] == str(folder / "photographs")


def test_a_run_recognises_its_data_in_another_folder(trained, tmp_path):
    """Only the content of the data counts: schedulers copy them to a new folder for each job."""
    folder, _ = trained
    for name in ("run", "photographs"):
        shutil.copytree(folder / name, tmp_path / name)
    shutil.copy(folder / "marks.csv", tmp_path / "marks.csv")
    weights = sorted((tmp_path / "run" / "checkpoints").rglob("*"))
    before = [path.stat().st_mtime_ns for path in weights]
    config = config_of(tmp_path)
    config.train.checkpoint_seconds = 7
    train.train(config, tmp_path / "run")
    assert [path.stat().st_mtime_ns for path in weights] == before
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["images"] == str(tmp_path / "photographs")
    config.seed = 5
    with pytest.raises(ValueError, match="seed: 0 / 5"):
        train.train(config, tmp_path / "run")
    # Scored in a folder other than the config's, each image is still scored by the network that held it out.
    config = config_of(folder)
    configs.save(config, tmp_path / "run" / "config.json")
    said = run(
        "--mode=evaluate", f"--workdir={tmp_path / 'run'}", f"--config.data.images={tmp_path / 'photographs'}",
        f"--config.data.landmarks={tmp_path / 'marks.csv'}",
    )  # fmt: skip
    summary = json.loads((tmp_path / "run" / "evaluate" / "summary.json").read_text())
    assert [fold["fold"] for fold in summary["folds"]] == [0, 1] and "optimistic" not in said
    # With other landmarks as well, since only the photographs are compared; the output says so.
    formats.write(tmp_path / "marks.csv", formats.read(tmp_path / "marks.csv")[:5])
    said = run(
        "--mode=evaluate", f"--workdir={tmp_path / 'run'}", f"--config.data.images={tmp_path / 'photographs'}",
        f"--config.data.landmarks={tmp_path / 'marks.csv'}",
    )  # fmt: skip
    assert "each is scored by the networks that did not see it" in said
    summary = json.loads((tmp_path / "run" / "evaluate" / "summary.json").read_text())
    assert sum(fold["images"] for fold in summary["folds"]) == 5 and all(f["fold"] >= 0 for f in summary["folds"])
    # Images that every trained network has seen are not scored; the output says so.
    config.split.run = (0,)
    configs.save(config, tmp_path / "run" / "config.json")
    said = run(
        "--mode=evaluate", f"--workdir={tmp_path / 'run'}", f"--config.data.images={tmp_path / 'photographs'}",
        f"--config.data.landmarks={tmp_path / 'marks.csv'}",
    )  # fmt: skip
    assert re.search(r"[1-4] images are not scored: no trained fold holds them out", said)
    # Renamed images are recognised, also in one folder with new images, which all networks predict.
    shutil.move(tmp_path / "photographs", tmp_path / "others")
    for path in (tmp_path / "others").glob("*.png"):
        path.rename(path.with_stem(f"other-{path.stem}"))
    marked = [dataclasses.replace(a, image=f"other-{a.image}") for a in trained[1]]
    formats.write(tmp_path / "marks.csv", marked)
    data = (f"--config.data.images={tmp_path / 'others'}", f"--config.data.landmarks={tmp_path / 'marks.csv'}")
    said = run("--mode=evaluate", f"--workdir={tmp_path / 'run'}", *data)
    summary = json.loads((tmp_path / "run" / "evaluate" / "summary.json").read_text())
    assert {fold["fold"]: fold["images"] for fold in summary["folds"]} == {0: 4, -1: 2} and summary["unscored"] == 4
    assert "4 images are not scored: no trained fold holds them out" in said
    for path in (tmp_path / "others").glob("*.png"):  # with another pixel an image is a new one
        with Image.open(path) as image:
            image.putpixel((0, 0), 77)
            image.save(path)
    run("--mode=evaluate", f"--workdir={tmp_path / 'run'}", *data)
    summary = json.loads((tmp_path / "run" / "evaluate" / "summary.json").read_text())
    assert [fold["fold"] for fold in summary["folds"]] == [-1] and summary["failures"] == []
    # If all have names of the run's images, they are treated as those images saved again; the output says so.
    for path in (tmp_path / "others").glob("*.png"):
        path.rename(path.with_name(path.name.removeprefix("other-")))
    formats.write(tmp_path / "marks.csv", trained[1][:8])
    said = run("--mode=evaluate", f"--workdir={tmp_path / 'run'}", *data)
    summary = json.loads((tmp_path / "run" / "evaluate" / "summary.json").read_text())
    assert [fold["fold"] for fold in summary["folds"]] == [0]
    assert "4 images have the names of images of the run but different file contents" in said


def test_an_older_versions_run_can_be_scored_and_started_from(trained, tmp_path):
    """It saved only the names of its images."""
    folder, _ = trained
    shutil.copytree(folder / "run", tmp_path / "old")
    for path in (tmp_path / "old" / "checkpoints").rglob("best/note.json"):
        note = json.loads(path.read_text())
        del note["data"]["contents"], note["data"]["specimens"]
        path.write_text(json.dumps(note | {"before": {"": {"train": ["a.png"]}}}))
    dataset = loading.load(config_of(folder).data)
    summary = evaluate.of_run(config_of(folder), tmp_path / "old", dataset, out=tmp_path / "out")
    assert {fold["fold"]: fold["images"] for fold in summary["folds"]} == {0: 4, 1: 4}
    assert [each["what"] for each in summary["failures"]] == ["2 photographs have no landmarks: 8.png, 9.png"]
    config = config_of(folder)
    config.init_from, config.split.run, config.split.seed = str(tmp_path / "old"), (0,), 5
    train.train(config, tmp_path / "new")
    note = checkpoint.note(runs.folder_of(tmp_path / "new", "train", runs.Member(0)) / "best")
    assert any("have the names of images used in earlier training" in each["what"] for each in note["caveats"])


def test_a_training_stopped_by_a_signal_resumes_bit_for_bit(trained, tmp_path, monkeypatch):
    folder, _ = trained
    config, judge = config_of(folder), train.Training.validate
    assert threading.current_thread() is threading.main_thread()  # otherwise the signal would end the tests

    def signalled(self, epoch):
        os.kill(os.getpid(), signal.SIGTERM)
        return judge(self, epoch)

    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    monkeypatch.setattr(train.Training, "validate", signalled)
    with pytest.raises(InterruptedError, match="fold 0, epoch 2: stopped on request, and saved"):
        train.train(config, tmp_path)
    monkeypatch.undo()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    note = checkpoint.note(tmp_path / "checkpoints" / "train" / "fold0" / "resume")
    assert note["epoch"] == 1 and note["batch"] > 0
    train.train(config, tmp_path)
    for fold in range(2):  # equal to an uninterrupted training, bit for bit
        mine, other = (
            checkpoint.restore(runs.folder_of(at, "train", runs.Member(fold)) / "last")[0]
            for at in (tmp_path, folder / "run")
        )
        jax.tree.map(np.testing.assert_array_equal, mine, other)
    assert evaluate.of_run(config, tmp_path, loading.load(config.data))["seconds"] == runs.seconds(config, tmp_path) > 0


@pytest.fixture
def interrupts():
    """Sets the handler of SIGINT; restores the previous one after the test."""
    before = signal.getsignal(signal.SIGINT)
    yield lambda handler: signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGINT, before)


def test_a_signal_in_the_last_epoch_acts_once_the_network_is_saved(trained, tmp_path, monkeypatch, interrupts):
    """Training does not poll for it any more; if it were lost, the next fold would be trained."""
    interrupts(signal.default_int_handler)
    judge = train.Training.validate

    def signalled(self, epoch):
        if epoch == self.plan.epochs:
            os.kill(os.getpid(), signal.SIGINT)
        return judge(self, epoch)

    monkeypatch.setattr(train.Training, "validate", signalled)
    with pytest.raises(KeyboardInterrupt):
        train.train(config_of(trained[0]), tmp_path)
    folders = [runs.folder_of(tmp_path, "train", runs.Member(fold)) for fold in range(2)]
    assert checkpoint.note(folders[0] / "last") and not folders[1].exists()


def test_a_second_signal_acts_at_once(interrupts):
    interrupts(signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), processes.deferring_signals():
        os.kill(os.getpid(), signal.SIGINT)
        assert processes.stop_requested()
        os.kill(os.getpid(), signal.SIGINT)
    assert not processes.stop_requested()


def test_an_ignored_signal_stays_ignored(interrupts):
    interrupts(signal.SIG_IGN)
    with processes.deferring_signals():
        os.kill(os.getpid(), signal.SIGINT)
        assert not processes.stop_requested()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split.valid": 0.99}, "lower --config.split.valid=0.99"),
        ({"split.valid": 1.0}, "give a fraction from 0 to below 1"),
        ({"data.group_by": "((a"}, "not a valid regular expression"),
    ],
)
def test_impossible_split_settings_are_refused(trained, changes, message):
    config = config_of(trained[0])
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        splits.member_split(config, loading.load(config.data).samples, runs.Member(0), 1)


def test_training_without_held_out_images_is_refused(trained, tmp_path):
    config = config_of(trained[0])
    config.split.valid, config.split.folds, config.split.run = 0.0, 1, (0,)
    with pytest.raises(ValueError, match="no image is held out"):
        train.train(config, tmp_path / "run")


def test_a_config_for_own_data_asks_for_their_files(tmp_path):
    for config, marks in (("fish", "landmarks"), ("spines", "boxes")):
        said = run(f"--config=configs/{config}.py:own,smoke", f"--workdir={tmp_path / 'run'}", fails=True)
        assert f"--config.data.{marks}=FILE" in said and not (tmp_path / "run").exists()


def samples_of(*images):
    """Returns samples with these (name, content, specimen)."""
    name, content, specimen = np.array(images).T
    return Samples(
        images=np.zeros((len(images), 4, 4, 1), np.uint8),
        points=np.zeros((len(images), 1, 2), np.float32),
        visible=np.ones((len(images), 1), bool),
        group=np.arange(len(images)),
        name=name,
        to_source=np.tile(np.eye(2, 3), (len(images), 1, 1)),
        mm_per_px=np.ones(len(images)),
        source_size=np.full((len(images), 2), 4),
        content=content,
        specimen=specimen,
    )


KNOWN = {
    "images": {"train": ["set/a.png", "set/b.png"], "valid": ["set/c.png"], "test": ["set/d.png"], "unused": []},
    "contents": {"set/a.png": "1", "set/b.png": "2", "set/c.png": "3", "set/d.png": "4"},
    "specimens": {"set/a.png": "set/M1", "set/d.png": "set/M2"},
}


def test_leakage_is_found_by_content_name_and_specimen():
    samples = samples_of(
        ("x.png", "1", ""), ("a.png", "9", "M1"), ("c.png", "8", ""), ("d.png", "4", "M2"), ("n.png", "5", "M1"), ("e.png", "6", "")
    )  # fmt: skip
    settings = ml_collections.ConfigDict({"data": {"group_by": ""}})
    found = caveats.of_leakage(known := with_training_names(samples, settings, "set"), [{"data": KNOWN}], samples.name)
    assert [each["what"].split(":")[0] for each in found] == [
        "1 images are among the training and validation images (x.png)",
        "2 images have the names of training or validation images (a.png, c.png)",
        "1 images show specimens named like those of training or validation images (n.png)",
    ]
    assert splits.match_parts(KNOWN, known)["specimen"].tolist() == ["", "train", "", "test", "train", ""]
    (by_content,) = caveats.of_leakage(with_training_names(samples, settings), [{"data": KNOWN}], samples.name)
    assert by_content["image"] == "x.png"
    assert (
        caveats.of_leakage(with_training_names(samples, settings), [{"data": KNOWN}], np.full(len(samples), "")) == []
    )
    # Images of earlier stages and runs count, too; older versions saved them in another form, which is ignored.
    for note, images in (
        ({"data": KNOWN | {"images": {}}, "before": [KNOWN]}, ["x.png"]), ({"data": KNOWN | {"images": {}}, "before": {"": {}}}, [])
    ):  # fmt: skip
        assert [
            each["image"] for each in caveats.of_leakage(with_training_names(samples, settings), [note], samples.name)
        ] == images
    # As in training, the pattern takes precedence over the groups in the file.
    caught = with_training_names(samples, ml_collections.ConfigDict({"data": {"group_by": r"^([an])\."}}))
    assert caught.specimen.tolist() == ["", "a", "", "M2", "n", ""]
    # For several datasets, loading has already applied the pattern and prefixed the dataset's name.
    several = ml_collections.ConfigDict({"data": {"group_by": r"^([an])\.", "sets": {"one": {}}}})
    assert with_training_names(samples, several).specimen.tolist() == samples.specimen.tolist()


def test_parts_are_matched_by_content_first_and_train_takes_precedence():
    known = {
        "images": {"train": ["a", "b"], "valid": ["a", "c"], "test": ["d"]},
        "contents": {"a": "1", "b": "2", "c": "3", "d": "drawn, 4"},
    }
    found = splits.match_parts(known, samples_of(("a", "1", ""), ("b", "3", ""), ("x", "2", ""), ("d", "9", "")))
    assert found["content"].tolist() == ["train", "valid", "train", ""] and not found["specimen"].any()
    assert found["name"].tolist() == ["train", "train", "", ""]  # drawn images are not matched by name
    assert part_of(found).tolist() == ["train", "valid", "train", ""]
    # If several names share a content or specimen, the one trained on counts, in whatever order they are saved.
    for names in ("pq", "qp"):
        twice = {
            "images": {"train": ["p"], "unused": ["q"]}, "contents": dict.fromkeys(names, "7"),
            "specimens": dict.fromkeys(names, "M"),
        }  # fmt: skip
        again = splits.match_parts(twice, samples_of(("z", "7", ""), ("y", "8", "M")))
        assert again["content"].tolist() == ["train", ""] and again["specimen"].tolist() == ["", "train"]
    resaved = {"content": np.array(["", "", "test"]), "name": np.array(["train", "", "test"])}
    assert part_of(resaved).tolist() == ["", "", "test"] and part_of(resaved, same=True).tolist() == [
        "train",
        "",
        "test",
    ]
    resaved["name"][1] = "valid"
    assert part_of(resaved).tolist() == ["train", "valid", "test"]


def test_held_out_images_used_in_earlier_training_give_caveats(tmp_path):
    data = {"images": {"train": ["p.png"], "valid": ["q.png"], "test": ["r.png", "s.png"]}}
    samples = samples_of(("p.png", "7", ""), ("q.png", "1", ""), ("r.png", "3", ""), ("s.png", "4", ""))
    earlier = {
        "images": {"train": ["a.png", "s.png"], "valid": ["b.png"], "test": []},
        "contents": {"a.png": "1", "b.png": "3", "s.png": "5"},
    }
    found = [
        c["what"] for c in caveats.seen_before(runs.Member(0), samples, data, tmp_path / "run" / "best", [earlier])
    ]
    assert "1 of its test images (r.png) were used in earlier training: the score may be too optimistic" in found[0]
    assert (
        "1 of its test images (s.png) have the names of images used in earlier training; if they are the same, the"
        in found[1]
    )
    assert "validation images (q.png) were used in earlier training: its best epoch may be badly chosen" in found[2]
    assert len(found) == 3 and caveats.seen_before(runs.Member(0), samples, data, tmp_path, []) == []


def test_copies_of_a_photograph_stay_in_one_part(trained, tmp_path):
    folder, annotations = trained
    shutil.copytree(folder / "photographs", tmp_path / "photographs")
    (tmp_path / "photographs" / "again").mkdir()
    shutil.copy(folder / "photographs" / "3.png", tmp_path / "photographs" / "again" / "copy.png")
    formats.write(
        tmp_path / "marks.csv", [*annotations, dataclasses.replace(annotations[3], image="again/copy.png", id="")]
    )
    dataset = loading.load(config_of(tmp_path).data)
    assert dataset.samples.group.tolist() == [*range(10), 3]
    (problem,) = dataset.problems
    assert (
        problem["image"] == "again/copy.png"
        and "1 photographs are copies of others, this one of 3.png" in problem["what"]
    )
    for by in ("group", "image"):
        config = config_of(tmp_path)
        config.split.by = by
        for fold in range(2):
            split = splits.member_split(config, dataset.samples, runs.Member(fold), 1)
            assert all({3, 10} <= {*part} or not {3, 10} & {*part} for part in split)


def test_a_new_image_is_scored_by_the_fold_that_tests_its_specimen(trained, tmp_path):
    folder, annotations = trained
    named = [dataclasses.replace(a, group=f"M{n}") for n, a in enumerate(annotations)]
    with marks(folder, named[:8]):
        train.train(config_of(folder), tmp_path / "run")
    config, again = config_of(folder), dataclasses.replace(named[9], group="M2")
    dataset = rewritten(folder, [*named[:8], again, named[8]])
    evaluate.of_run(config, tmp_path / "run", dataset, out=tmp_path / "out")
    with (tmp_path / "out" / "predictions.csv").open() as file:
        fold = {row["image"]: int(row["fold"]) for row in csv.DictReader(file)}
    assert fold["9.png"] == fold["2.png"] >= 0 and fold["8.png"] == -1


def test_only_identical_files_share_a_digest(tmp_path):
    draw = np.random.default_rng(0)
    one, other = (draw.bytes(200_000) for _ in range(2))
    for name, content in {
        "a": one,
        "b": one,
        "c": other,
        "d": one + b"0",
        "e": one[:-1] + b"0",
        "f": b"",
        "g": b"1",
    }.items():
        (tmp_path / name).write_bytes(content)
    found = {name: photographs.content(tmp_path / name) for name in "abcdefg"}
    assert found["a"] == found["b"] and len(set(found.values())) == 6


def test_validation_images_that_are_also_trained_on_give_no_caveat(tmp_path):
    samples = samples_of(("p", "1", ""), ("q", "2", ""), ("r", "3", ""))
    data = {"images": {"train": ["p", "q"], "valid": ["q"], "test": ["r"]}}
    earlier = {"images": {"train": ["a", "b"], "valid": [], "test": []}, "contents": {"a": "1", "b": "2"}}
    assert caveats.seen_before(runs.Member(0), samples, data, tmp_path, [earlier]) == []


def test_without_test_images_validation_leakage_biases_the_score(tmp_path):
    samples = samples_of(("p", "1", ""), ("q", "2", ""))
    data = {"images": {"train": ["p"], "valid": ["q"], "test": []}}
    earlier = {"images": {"train": ["b"], "valid": [], "test": []}, "contents": {"b": "2"}}
    (found,) = caveats.seen_before(runs.Member(0), samples, data, tmp_path, [earlier])
    assert found["what"].endswith("images (q) were used in earlier training: the score may be too optimistic")


def test_a_list_of_names_stops_after_three():
    assert [caveats.first(set(names)) for names in ("b", "cba", "dcba")] == ["b", "a, b, c", "a, b, c, ..."]
