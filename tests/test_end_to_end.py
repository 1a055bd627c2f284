"""The command line end to end: train, evaluate, predict, export, describe, a killed run, and faulty data."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jaxmarks import checkpoint, formats, phantoms, predict, serving, tps

ROOT = Path(__file__).parent.parent
# One device, as users have. The compilation cache is shared, so that a second run compiles nothing.
ENVIRONMENT = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}


def command(*arguments):
    return [sys.executable, "-m", "jaxmarks.main", *map(str, arguments)]


def run(*arguments, fails=False, cwd=ROOT):
    done = subprocess.run(command(*arguments), cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert bool(done.returncode) == fails, done.stdout + done.stderr
    return done.stderr if fails else done.stdout


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("smoke")
    said = run("--config=configs/beetle.py:smoke", f"--workdir={workdir}")
    return workdir, said


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of eight drawn photographs, twice as large as the frame, with a TPS file: y up, one landmark missing."""
    folder = tmp_path_factory.mktemp("photographs")
    lines = []
    for s in range(8):
        image, points = phantoms.draw("pronotum", s, size=(96, 128))
        Image.fromarray(image).save(folder / f"beetle_{s}.png")
        rows = [f"{x:.4f} {96 - y:.4f}" for x, y in points]
        if s == 3:
            rows[2] = "-1 -1"
        lines += ["LM=8", *rows, f"IMAGE=beetle_{s}.png", f"ID={s}", "SCALE=0.01"]
    (folder / "landmarks.tps").write_text("\n".join(lines) + "\n")
    return folder


def test_smoke_run_writes_every_file(smoke):
    workdir, said = smoke
    for name in "config.json metrics.jsonl predictions.csv predictions.tps summary.json report.html".split():
        assert (workdir / name).stat().st_size > 0, name
    assert list((workdir / "figures").glob("**/*.png"))
    assert "mean distance" in said and "images/s" in said
    assert {p.parent.name for p in workdir.glob("checkpoints/train/*/best")} == {"fold0", "fold1"}
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    keys = {
        "stage",
        "fold",
        "epoch",
        "train/loss",
        "valid/loss",
        "learning_rate",
        "momentum",
        "images_per_s",
        "seconds",
    }
    assert all(keys <= set(line) for line in lines)
    epochs = [line["epoch"] for line in lines if line["fold"] == 0]
    assert epochs == list(range(1, len(epochs) + 1))


def test_summary_agrees_with_the_predictions(smoke):
    workdir, _ = smoke
    summary = json.loads((workdir / "summary.json").read_text())
    rows = list(csv.DictReader((workdir / "predictions.csv").read_text().splitlines()))
    value = lambda row, *names: np.array([float(row[n]) for n in names])
    distances = [np.hypot(*(value(r, "x", "y") - value(r, "x_true", "y_true"))) for r in rows]
    np.testing.assert_allclose(distances, [float(r["distance"]) for r in rows], atol=2e-3)
    assert summary["mean_distance_px"] == pytest.approx(np.mean(distances), abs=1e-3)
    assert (summary["images"], summary["landmarks"], summary["failures"]) == (18, 8, [])
    assert len(rows) == 18 * 8 and {r["landmark"] for r in rows} == set("12345678")
    assert len({r["image"] for r in rows}) == 18  # every image is predicted once
    for name in ("r2", "explained_variance", "pearson"):
        assert isinstance(summary[name], float)
    assert {"mean_shape", "registration"} == set(summary["baselines"])
    true = {r["image"]: value(r, "x_true", "y_true") for r in rows if r["landmark"] == "1"}
    name = next(iter(true))
    specimen = int(re.search(r"(\d+)", name)[1])
    np.testing.assert_allclose(true[name], phantoms.draw("pronotum", specimen, size=(192, 256))[1][0], atol=0.01)


def test_predictions_tps_has_the_same_points_with_y_up(smoke):
    workdir, _ = smoke
    rows = list(csv.DictReader((workdir / "predictions.csv").read_text().splitlines()))
    specimen = tps.read(workdir / "predictions.tps")[0]
    mine = [(float(r["x"]), 192 - float(r["y"])) for r in rows if r["image"] == specimen.image]
    np.testing.assert_allclose(specimen.points, mine, atol=2e-3)


def test_rerun_trains_nothing_and_another_config_is_refused(smoke):
    workdir, _ = smoke
    before = (workdir / "metrics.jsonl").read_text()
    assert "epoch" not in run("--config=configs/beetle.py:smoke", f"--workdir={workdir}")
    assert (workdir / "metrics.jsonl").read_text() == before
    error = run("--config=configs/beetle.py:smoke", f"--workdir={workdir}", "--config.seed=5", fails=True)
    assert "seed: 0 / 5" in error and "--workdir" in error and "Traceback" not in error


def test_predict_writes_points_in_source_pixels(smoke, photographs, tmp_path, about_of):
    workdir, _ = smoke
    (photographs / "broken.jpg").write_bytes(b"no image")
    said = run("--mode=predict", f"--workdir={workdir}", f"--config.data.images={photographs}")
    (photographs / "broken.jpg").unlink()
    assert "broken.jpg" in said
    summary = json.loads((workdir / "predict" / "summary.json").read_text())
    assert summary["images"] == 8 and [f["image"] for f in summary["failures"]] == ["broken.jpg"]
    found = formats.read(workdir / "predict" / "predictions.csv")
    assert len(list((workdir / "predict" / "overlays").glob("*.jpg"))) == 8
    page = about_of(workdir / "predict" / "proofread.html")["images"]
    assert [one["name"] for one in page] == [a.image for a in found] and not any("found" in one for one in page)
    np.testing.assert_allclose([one["items"] for one in page], [a.points for a in found], atol=1e-3)
    # The public function finds the same in the whole photographs, inside the caller's jit.
    network = predict.load(workdir)
    images = np.stack([np.asarray(Image.open(photographs / a.image)) for a in found])
    points, scores = jax.jit(lambda network, images: network(images))(network, images)
    assert points.shape == (8, 8, 2) and scores.shape == (8, 8)
    np.testing.assert_allclose(points, [a.points for a in found], atol=0.3)


def test_out_sets_the_folder_and_misplaced_flags_are_reported(smoke, photographs, tmp_path):
    workdir, _ = smoke
    out = tmp_path / "new" / "found"
    run("--mode=predict", f"--workdir={workdir}", f"--config.data.images={photographs}", f"--out={out}")
    assert {"predictions.csv", "predictions.tps", "summary.json", "overlays"} <= {path.name for path in out.iterdir()}
    said = run("--config=configs/beetle.py:smoke", f"--workdir={workdir}", f"--out={out}", fails=True)
    assert "--out: this flag is for --mode=predict and evaluate and export, not for --mode=train" in said
    said = run(
        "--mode=predict",
        "--config=configs/fish.py:smoke",
        f"--workdir={workdir}",
        f"--config.data.images={photographs}",
    )
    assert f"--config has the model unet, but the run in {workdir} has beetle, which is used" in said
    for flags, what in (
        (["--coordinator=h:1", "--process=2"], "--coordinator: this flag is for several processes"),
        (["--mode=predict", "--format=onnx"], "--format: this flag is for --mode=export, not for --mode=predict"),
        (["--config=configs/fish.py:paper", "--config.train.steps=9"], "steps=9 has no effect, as --config.train"),
    ):
        assert what in run(*flags, f"--workdir={workdir}", f"--config.data.images={photographs}", fails=True)


ALONE = """
import pathlib, sys
import jax.export, numpy as np
folder, images, out = map(pathlib.Path, sys.argv[1:])
function = jax.export.deserialize(bytearray((folder / "function.bin").read_bytes()))
parameters = np.load(folder / "parameters.npz")
found = function.call([parameters[name] for name in parameters], np.load(images))
assert not any(name.startswith(("jaxmarks", "flax")) for name in sys.modules)
np.savez(out, **found)
"""


def test_exported_function_runs_without_jaxmarks_on_any_batch(smoke, photographs, tmp_path):
    workdir, _ = smoke
    # From another folder, which has no configs.
    said = run("--mode=export", f"--workdir={workdir}", "--size=96,128", cwd=tmp_path)
    assert "'batch', 96, 128, 3" in said
    images = np.stack([np.asarray(Image.open(photographs / f"beetle_{s}.png")) for s in range(3)])
    np.save(tmp_path / "images.npy", images)
    arguments = [workdir / "export", tmp_path / "images.npy", tmp_path / "found.npz"]
    subprocess.run([sys.executable, "-c", ALONE, *map(str, arguments)], cwd=tmp_path, env=ENVIRONMENT, check=True)
    points, scores = predict.load(workdir)(images)
    with np.load(tmp_path / "found.npz") as found:
        np.testing.assert_allclose(found["points"], points, atol=1e-3)
        np.testing.assert_allclose(found["scores"], scores, atol=1e-5)
    one = serving.load(workdir / "export")(images[:1])
    np.testing.assert_allclose(one["points"], points[:1], atol=1e-3)


def test_onnx_export_refuses_a_size(smoke):
    said = run("--mode=export", "--format=onnx", "--size=96,128", f"--workdir={smoke[0]}", fails=True)
    assert "--size=96,128: ONNX networks take images of the frame's size only" in said


def test_evaluate_scores_the_given_data(smoke, photographs, about_of):
    workdir, _ = smoke
    landmarks = photographs / "landmarks.tps"
    run(
        "--mode=evaluate",
        f"--workdir={workdir}",
        f"--config.data.images={photographs}",
        f"--config.data.landmarks={landmarks}",
    )
    rows = list(csv.DictReader((workdir / "evaluate" / "predictions.csv").read_text().splitlines()))
    assert len(rows) == 64
    missing = [r for r in rows if not r["distance"]]
    assert [(r["image"], r["landmark"]) for r in missing] == [("beetle_3.png", "3")]
    row = next(r for r in rows if r["image"] == "beetle_5.png" and r["landmark"] == "2")
    truth = phantoms.draw("pronotum", 5, size=(96, 128))[1][1]
    np.testing.assert_allclose([float(row["x_true"]), float(row["y_true"])], truth, atol=2e-3)
    summary = json.loads((workdir / "evaluate" / "summary.json").read_text())
    assert summary["mean_distance_mm"] == pytest.approx(0.01 * summary["mean_distance_px"], rel=1e-4)
    assert 'href="proofread.html"' in (workdir / "evaluate" / "report.html").read_text()
    page = about_of(workdir / "evaluate" / "proofread.html")["images"]
    known = formats.read(landmarks, photographs)
    assert [one["name"] for one in page] == [a.image for a in known] and page[3]["items"][2] is None
    for one, a in zip(page, known, strict=True):
        np.testing.assert_allclose([p for p in one["items"] if p], a.points[a.visible], atol=2e-3)
        assert (one["id"], one["mm_per_px"], one["size"]) == (a.id, 0.01, [96, 128]) and len(one["found"]) == 8


def test_describe_without_a_config_describes_the_run(smoke, tmp_path):
    workdir, _ = smoke
    said = run("--mode=describe", f"--workdir={workdir}", cwd=tmp_path)
    assert f"{json.loads((workdir / 'summary.json').read_text())['parameters']:,}" in said


def test_describe_counts_the_papers_parameters():
    said = run("--config=configs/beetle.py:paper", "--mode=describe")
    assert "92,323,488" in said and "block1" in said


def test_describe_uses_the_frame_size_of_training(tmp_path):
    Image.new("L", (60, 90)).save(tmp_path / "tall.png")
    (tmp_path / "marks.csv").write_text("image,x1,y1\ntall.png,3,4\n")
    own = [f"--config.data.images={tmp_path}", f"--config.data.landmarks={tmp_path / 'marks.csv'}"]
    said = run("--config=configs/fish.py:own", "--mode=describe", *own, "--config.data.pixels=1536")
    assert "float32[1,48,32,3]" in said


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config=configs/beetle.py:smok"], "smoke"),
        (["--config=configs/beetle.py", "--config.epocs=3"], "epocs"),
        (["--config=configs/beetle.py:smoke", "--config.data.images=nowhere"], "--config.data.landmarks"),
        (
            [
                "--config=configs/universal.py:own=a+b",
                "--config.data.sets.a.images=X",
                "--config.data.sets.a.landmarks=Y",
            ],
            "give --config.data.sets.b.images=DIR --config.data.sets.b.landmarks=FILE",
        ),
        (["--config=configs/beetle.py:smoke", "--mode=predict", "--config.data.images=nowhere"], "train the run first"),
    ],
)
def test_errors_explain_bad_arguments(arguments, message, tmp_path):
    assert message in run(*arguments, f"--workdir={tmp_path / 'none'}", fails=True)


SMALL = (
    "--config=configs/beetle.py:smoke",
    "--config.split.run=(0,)",
    "--config.train.checkpoint_seconds=0",
    "--config.train.steps=40",
    "--config.baselines=()",
)


def best(workdir):
    return [checkpoint.restore(workdir / "checkpoints/train/fold0" / name)[0] for name in ("best", "last")]


def test_killed_run_resumes_to_the_same_result(tmp_path):
    run(*SMALL, f"--workdir={tmp_path / 'alone'}")
    killed, reached = tmp_path / "killed", 0
    for _ in range(2):  # kills the run as soon as it has come further than the last time
        process = subprocess.Popen(
            command(*SMALL, f"--workdir={killed}"), cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL
        )
        log = killed / "metrics.jsonl"
        while process.poll() is None and not (log.exists() and log.read_text().count("\n") > reached + 1):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        reached = checkpoint.note(killed / "checkpoints/train/fold0/resume")["epoch"]
    assert f"resumed after epoch {reached}" in run(*SMALL, f"--workdir={killed}")
    assert checkpoint.fingerprint(best(killed)) == checkpoint.fingerprint(best(tmp_path / "alone"))
    timeless = lambda folder: [
        {k: v for k, v in json.loads(line).items() if k not in ("images_per_s", "seconds")}
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert timeless(killed) == timeless(tmp_path / "alone")
    assert (killed / "predictions.csv").read_text() == (tmp_path / "alone" / "predictions.csv").read_text()


@pytest.mark.slow
def test_finetuning_starts_from_pretraining_with_a_new_output_layer(tmp_path):
    said = run(
        "--config=configs/beetle.py:finetune,smoke,part=elytra", f"--workdir={tmp_path}", "--config.freeze=body/block"
    )
    assert re.search(r"new: head/fc3/bias \(source has \(16,\), network \(22,\)\), head/fc3/kernel", said)
    before, after = (
        checkpoint.restore(tmp_path / "checkpoints" / s / "fold1" / "last")[0]["params"]
        for s in ("pretrain", "finetune")
    )
    pretrained = checkpoint.restore(tmp_path / "checkpoints/pretrain/fold1/best")[0]["params"]
    np.testing.assert_array_equal(
        after["body"]["block1"]["conv"]["kernel"], pretrained["body"]["block1"]["conv"]["kernel"]
    )
    assert (after["body"]["fc1"]["kernel"] != pretrained["body"]["fc1"]["kernel"]).any()
    assert before["head"]["fc3"]["kernel"].shape[1] == 16


def test_run_skips_bad_data_and_reports_it(photographs, tmp_path, about_of):
    text = (photographs / "landmarks.tps").read_text()
    text = text.replace("IMAGE=beetle_1.png", "IMAGE=gone.png").replace("ID=5", "ID=4")
    first = text.splitlines()[1]
    text = text.replace(first, "500 20", 1)  # outside its image
    for s in range(8):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"beetle_{s}.png").write_bytes((photographs / f"beetle_{s}.png").read_bytes())
    (tmp_path / "images" / "beetle_2.png").write_bytes(b"\x89PNG broken")
    (tmp_path / "bad.tps").write_text(text)
    run(
        "--config=configs/beetle.py:smoke", f"--workdir={tmp_path / 'run'}", "--config.train.steps=2",
        f"--config.data.images={tmp_path / 'images'}", f"--config.data.landmarks={tmp_path / 'bad.tps'}",
    )  # fmt: skip
    failures = json.loads((tmp_path / "run" / "summary.json").read_text())["failures"]
    named = " ".join(f["image"] + " " + f["what"] for f in failures)
    for expected in ("gone.png", "beetle_2.png", "500", "ID"):
        assert expected in named, (expected, named)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["images"] > 0
    # Evaluated on its training data, each image is still predicted by the networks of the fold that held it out.
    run(
        "--mode=evaluate", f"--workdir={tmp_path / 'run'}",
        f"--config.data.images={tmp_path / 'images'}", f"--config.data.landmarks={tmp_path / 'bad.tps'}",
    )  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "run" / "evaluate" / "predictions.csv").read_text().splitlines()))
    assert {row["fold"] for row in rows} == {"0", "1"}
    # The proofreading page has all readable images, even those of the third fold, on which no network was tested.
    page = about_of(tmp_path / "run" / "proofread.html")["images"]
    assert len({row["image"] for row in rows}) < len(page) == 6
    assert {one["name"] for one in page if not any(one["found"])} == {one["name"] for one in page} - {
        r["image"] for r in rows
    }


def test_error_without_any_image_names_the_folder(photographs, tmp_path):
    error = run(
        "--config=configs/beetle.py:smoke", f"--workdir={tmp_path / 'run'}",
        f"--config.data.images={tmp_path}", f"--config.data.landmarks={photographs / 'landmarks.tps'}", fails=True,
    )  # fmt: skip
    assert str(tmp_path) in error and "Traceback" not in error


def test_paper_protocol_at_small_scale(tmp_path):
    run(
        "--config=configs/beetle.py:paper,smoke",
        f"--workdir={tmp_path}",
        "--config.train.epochs=3",
        "--config.split.run=(0,)",
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    np.testing.assert_allclose([m["learning_rate"] for m in lines], np.linspace(0.03, 0.00001, 3), rtol=1e-5)
    np.testing.assert_allclose([m["momentum"] for m in lines], np.linspace(0.9, 0.9999, 3), rtol=1e-5)
    # 18 specimens are not in the test fold; a fifth of their 126 versions is for validation.
    note = checkpoint.note(tmp_path / "checkpoints/train/fold0/best")
    assert note["images"] == 18 and json.loads((tmp_path / "summary.json").read_text())["images"] == 9
