"""What the tensorflow-datasets builders prepare is read back exactly, without TensorFlow; the cache of phantoms."""

import sys

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from jaxmarks import phantoms
from jaxmarks.data import loading
from jaxmarks.data.datasets import public


def test_a_source_is_prepared_and_read_back(tmp_path):
    (tmp_path / "manual" / "images").mkdir(parents=True)
    truth, lines = {}, []
    for s in range(3):
        image, points = phantoms.draw("elytra", s, size=(60, 80))
        Image.fromarray(image).save(tmp_path / "manual" / "images" / f"{s}.png")
        rows = [f"{x} {60 - y}" for x, y in points]
        rows[4] = "NA NA" if s == 1 else rows[4]
        lines += ["LM=11", *rows, f"IMAGE={s}.png", "SCALE=0.5"]
        truth[f"{s}.png"] = image, points
    (tmp_path / "manual" / "elytra.tps").write_text("\n".join(lines))
    builder = public.PublicLandmarks(config="beetle_elytra", data_dir=tmp_path / "data", file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=tmp_path / "manual"))
    samples = public.to_samples(builder.as_data_source("train"), size=(60, 80))
    assert sorted(samples.name) == ["0.png", "1.png", "2.png"] and set(samples.mm_per_px) == {0.5}
    for i, name in enumerate(samples.name):
        image, points = truth[name]
        np.testing.assert_array_equal(samples.images[i], image)
        seen = samples.visible[i]
        np.testing.assert_allclose(samples.points[i][seen], points[seen], atol=1e-3)
        assert seen.sum() == (10 if name == "1.png" else 11)
    half = public.to_samples(builder.as_data_source("train"), size=(30, 40))
    np.testing.assert_allclose(half.source_points, samples.source_points, atol=1e-3)
    assert "tensorflow" not in sys.modules


def test_every_source_has_its_metadata():
    for source in public.SOURCES:
        assert source.home.startswith("https://") and source.count and source.landmarks and source.description


def test_phantoms_are_cached_and_redrawn_if_the_file_is_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXMARKS_CACHE", str(tmp_path))
    options = {"size": (24, 32), "seed": 3, "count": 2}
    expected = vars(phantoms.load("head", **options))

    def check():
        found = vars(loading._drawn("head", **options))
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value)
            assert found[key].dtype == value.dtype

    check()
    (file,) = (tmp_path / "phantoms").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(loading.phantoms, "load", None)
        check()
    file.write_bytes(file.read_bytes()[:100])
    check()


def test_phantoms_of_each_seed_are_cached_separately(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXMARKS_CACHE", str(tmp_path))
    drawn = lambda seed: loading._drawn("head", size=(24, 32), seed=seed, count=2).images
    one, other = drawn(0), drawn(1)
    assert (one != other).any()
    assert len(list((tmp_path / "phantoms").iterdir())) == 2
    np.testing.assert_array_equal(drawn(0), one)
