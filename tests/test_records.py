"""Images stored on disk: they read like an array, and training from them equals training from memory to the bit."""

import json
import runpy
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jaxmarks import checkpoint, evaluate, train
from jaxmarks import config as configs
from jaxmarks.data import folder, loading, records

CONFIG = Path(__file__).parent.parent / "configs" / "fish.py"


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "SHARD", 7 * 6 * 4 * 3)  # seven images per file
    images = np.random.default_rng(0).integers(0, 256, (23, 6, 4, 3), np.uint8)
    return images, records.cache_images(iter(images), tmp_path / "kept", key="k", notes=[])


def test_records_are_indexed_like_the_array(kept):
    images, found = kept
    assert len(list(found.folder.glob("*.array_record"))) == 4
    assert (found.shape, found.dtype, found.ndim, len(found)) == (images.shape, images.dtype, images.ndim, 23)
    np.testing.assert_array_equal(found, images)
    for index in (slice(3, 20, 2), np.array([5, 5, 0, 22]), np.arange(23) % 3 == 0, slice(0, 0)):
        assert isinstance(found[index], records.Records) and found[index].shape == images[index].shape
        np.testing.assert_array_equal(found[index], images[index])
    np.testing.assert_array_equal(found[4:][np.array([1, 0])][1], images[4])
    np.testing.assert_array_equal(found[-1], images[-1])
    rows = np.random.default_rng(1).integers(0, 23, (5, 2, 3))
    np.testing.assert_array_equal(list(found.stream(rows)), images[rows])


def test_images_are_written_again_only_under_another_key(kept):
    images, found = kept
    notes: list = ["of now"]
    folder = found.folder.parent
    again = records.cache_images((pytest.fail("made again") for _ in range(1)), folder, key="k", notes=notes)
    assert notes == [] and len(again) == 23
    fewer = records.cache_images(iter(images[:2]), folder, key="other", notes=notes)
    np.testing.assert_array_equal(fewer, images[:2])
    assert len(list(fewer.folder.glob("*.array_record"))) == 1
    np.testing.assert_array_equal(again, images)  # its first read, after another key was written

    def cut_short():
        yield images[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.cache_images(cut_short(), folder, key="third", notes=[])
    np.testing.assert_array_equal(records.cache_images(iter(images[:3]), folder, key="third", notes=[]), images[:3])


def test_concurrent_writers_store_the_images_once(tmp_path):
    """The second call waits for the first and reads what it has written."""
    images, began = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), np.uint8), threading.Event()

    def slowly():
        for image in images:
            began.set()
            time.sleep(0.05)
            yield image

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(records.cache_images, slowly(), tmp_path, key="k", notes=[])
        assert began.wait(10)
        second = records.cache_images((pytest.fail("written twice") for _ in range(1)), tmp_path, key="k", notes=[])
        np.testing.assert_array_equal(second, images)
        np.testing.assert_array_equal(first.result(), images)


def test_unreadable_photographs_are_remembered(tmp_path, monkeypatch):
    for name in "abc":
        Image.new("RGB", (8, 6), (ord(name), 0, 0)).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(b"broken")
    (tmp_path / "points.csv").write_text("image,x1,y1\na.png,1,2\nb.png,1,2\nc.png,3,4\ngone.png,1,2\n")
    load = lambda keep: folder.load(tmp_path, tmp_path / "points.csv", size=(6, 8), keep=keep)
    here, _, problems = load("")
    assert len(problems) == 2 and list(here.name) == ["a.png", "c.png"]
    for read in ("anew", "from the folder"):
        there, _, same = load(tmp_path / "kept")
        assert same == problems, read
        for name in vars(here):
            np.testing.assert_array_equal(getattr(there, name), getattr(here, name), err_msg=f"{name} {read}")
        monkeypatch.setattr(folder, "decode", lambda *_, **__: pytest.fail("decoded again"))
    monkeypatch.undo()
    Image.new("RGB", (8, 6), (7, 0, 0)).save(tmp_path / "a.png")  # a changed photograph is read again
    assert np.asarray(load(tmp_path / "kept")[0].images)[0, 0, 0, 0] == 7


def get_config(**changes):
    config = runpy.run_path(str(CONFIG))["get_config"]("smoke")
    config.model, config.baselines = {"name": "sp_cnn", "width": 4, "kernel": 3}, ()
    config.update_from_flattened_dict(
        {"data.size": (32, 32), "data.count": 24, "train.batch_size": 4, "train.devices": 1, "train.epochs": 3,
         "train.steps": 0, "train.span": 2, "split.run": (0,)} | changes
    )  # fmt: skip
    return config


def losses(workdir):
    entries = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in entry.items() if k not in ("images_per_s", "seconds")} for entry in entries]


@pytest.fixture(scope="module")
def resident(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("resident")
    config = get_config()
    dataset = train.train(config, workdir)["train"]
    return workdir, evaluate.of_run(config, workdir, dataset)


def same(workdir, resident):
    assert losses(workdir) == losses(resident)
    mine, theirs = (checkpoint.restore(w / "checkpoints/train/fold0/last")[0] for w in (workdir, resident))
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)


@pytest.mark.parametrize("keep", [True, False], ids=["streamed", "resident"])
def test_a_run_killed_mid_epoch_resumes_to_the_same_result(keep, resident, tmp_path, monkeypatch):
    config = get_config(**{"data.keep": str(tmp_path / "kept") if keep else ""})
    config.train.checkpoint_seconds = 0  # like data.keep, this has no effect on the result
    workdir, saves, save = tmp_path / "run", [], checkpoint.save

    def killed(folder, tree, note):
        save(folder, tree, note)
        saves.append(note)
        if note["epoch"] == 1 and note["batch"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        train.train(config, workdir)
    monkeypatch.undo()
    assert saves[-1]["sums"] and len(losses(workdir)) == 1
    dataset = train.train(config, workdir)["train"]
    assert isinstance(dataset.samples.images, records.Records) == keep
    same(workdir, resident[0])
    found = evaluate.of_run(config, workdir, dataset)
    assert found["mean_distance_px"] == resident[1]["mean_distance_px"]


def test_images_with_boxes_are_stored_too(tmp_path):
    path = CONFIG.with_name("spines.py")
    config = runpy.run_path(str(path))["get_config"]("smoke")
    config.data.count = 4
    here = loading.load(config.data).samples
    config.data.keep = str(tmp_path)
    there = loading.load(configs.stage(config, "train").data).samples
    assert isinstance(there.images, records.Records)
    np.testing.assert_array_equal(there.images, here.images)
    np.testing.assert_array_equal(there.take(np.array([1, 0])).images, here.images[[1, 0]])
