"""Checkpoints are restored exactly, detect damage, survive a kill between renames, and merge by path and shape."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from jaxmarks import checkpoint, optim, steps


def state():
    params = {"body": {"w": jnp.arange(6.0).reshape(2, 3)}, "head": {"b": jnp.ones(2)}}
    return steps.create({"params": params}, optim.ramps(epochs=3))


def test_a_state_is_restored_bit_for_bit(tmp_path):
    saved = {"state": state(), "best": {"w": jnp.float32([np.pi, np.nan])}}
    checkpoint.save(tmp_path / "resume", saved, {"epoch": 7})
    found, note = checkpoint.restore(tmp_path / "resume", saved)
    assert note["epoch"] == 7 and checkpoint.note(tmp_path / "resume")["epoch"] == 7
    assert checkpoint.fingerprint(found) == checkpoint.fingerprint(saved)
    assert isinstance(found["state"], steps.TrainState)


def test_parameters_are_restored_without_a_template(tmp_path):
    checkpoint.save(tmp_path / "best", state().variables, {})
    found, _ = checkpoint.restore(tmp_path / "best")
    np.testing.assert_array_equal(found["params"]["body"]["w"], np.arange(6.0).reshape(2, 3))


def test_arrays_that_are_not_those_of_the_note_are_refused(tmp_path):
    for name, value in (("best", 0.0), ("other", 1e-45)):
        checkpoint.save(tmp_path / name, {"w": jnp.full(3, value)}, {})
    shutil.rmtree(tmp_path / "best" / "arrays")
    (tmp_path / "other" / "arrays").rename(tmp_path / "best" / "arrays")
    with pytest.raises(ValueError, match="SHA-256"):
        checkpoint.restore(tmp_path / "best")


def test_a_hash_mismatch_is_refused(tmp_path):
    checkpoint.save(tmp_path / "best", {"w": jnp.zeros(3)}, {})
    note = tmp_path / "best" / "note.json"
    note.write_text(note.read_text().replace(checkpoint.fingerprint({"w": jnp.zeros(3)}), "0" * 64))
    with pytest.raises(ValueError, match="SHA-256"):
        checkpoint.restore(tmp_path / "best")
    assert checkpoint.fingerprint({"w": jnp.zeros(3)}) != checkpoint.fingerprint({"w": jnp.float32([0, 0, 1e-45])})


def test_save_replaces_and_a_kill_between_renames_loses_nothing(tmp_path):
    for epoch in (1, 2):
        checkpoint.save(tmp_path / "resume", {"w": jnp.full(2, epoch)}, {"epoch": epoch})
    assert checkpoint.note(tmp_path / "resume")["epoch"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["resume"]
    (tmp_path / "resume").rename(tmp_path / "resume.old")  # killed after the first rename
    assert checkpoint.note(tmp_path / "resume")["epoch"] == 2
    checkpoint.remove(tmp_path / "resume")
    assert checkpoint.note(tmp_path / "resume") is None
    with pytest.raises(FileNotFoundError, match="train this run first"):
        checkpoint.restore(tmp_path / "resume")


def test_merge_takes_what_fits_and_lists_the_rest():
    mine = {"body": {"w": jnp.zeros((2, 3)), "new": jnp.zeros(1)}, "head": {"b": jnp.zeros(4)}, "tail": jnp.zeros(2)}
    theirs = {"body": {"w": np.ones((2, 3))}, "head": {"b": np.ones(2)}, "tail": np.ones(2), "old": np.ones(1)}
    merged, report = checkpoint.merge(mine, theirs, skip="tail")
    np.testing.assert_array_equal(merged["body"]["w"], 1)
    np.testing.assert_array_equal(merged["head"]["b"], 0)
    np.testing.assert_array_equal(merged["tail"], 0)
    assert report["loaded"] == ["body/w"]
    assert report["new"] == [
        "body/new (not in the source)",
        "head/b (source has (2,), network (4,))",
        "tail (skipped)",
    ]
    assert report["unused"] == ["head/b", "old", "tail"]


def test_merge_adapts_kernel_channels_and_keeps_grey_responses():
    rng = np.random.default_rng(0)
    kernels = {"first": rng.normal(size=(3, 3, 1, 4)), "second": rng.normal(size=(3, 3, 3, 4))}
    mine = {"first": jnp.zeros((3, 3, 3, 4)), "second": jnp.zeros((3, 3, 1, 4)), "third": jnp.zeros((3, 3, 2, 4))}
    merged, report = checkpoint.merge(mine, kernels | {"third": np.ones((3, 3, 1, 4))})
    grey = rng.random((5, 6))
    see = lambda kernel, channels: sum(
        scipy.signal.correlate(grey, kernel[:, :, c, 2], mode="valid") for c in range(channels)
    )
    np.testing.assert_allclose(see(merged["first"], 3), see(kernels["first"], 1), rtol=1e-5)
    np.testing.assert_allclose(see(merged["second"], 1), see(kernels["second"], 3), rtol=1e-5)
    assert report["adapted"] == ["first (from 1 to 3 channels)", "second (from 3 to 1 channels)"]
    assert report["new"] == ["third (source has (3, 3, 1, 4), network (3, 3, 2, 4))"] and report["unused"] == ["third"]
    assert checkpoint.merge(mine, kernels, skip="first")[1]["adapted"] == ["second (from 3 to 1 channels)"]
    # A U-Net at half the resolution stacks four pixels as input channels, in the order (dy, dx, channel).
    four = rng.normal(size=(3, 3, 4, 5))
    merged, _ = checkpoint.merge({"w": jnp.zeros((3, 3, 12, 5))}, {"w": four})
    np.testing.assert_allclose(merged["w"].reshape(3, 3, 4, 3, 5), np.stack([four / 3] * 3, axis=3), rtol=1e-6)
    back, _ = checkpoint.merge({"w": jnp.zeros((3, 3, 4, 5))}, {"w": np.asarray(merged["w"])})
    np.testing.assert_allclose(back["w"], four, rtol=1e-5)


def test_remove_deletes_leftovers_of_a_killed_save_too(tmp_path):
    checkpoint.save(tmp_path / "a", {"w": np.ones(3, np.float32)}, {})
    for suffix in (".old", ".new"):
        (tmp_path / f"a{suffix}").mkdir()
        (tmp_path / f"a{suffix}" / "note.json").write_text('{"sha256": ""}')
    checkpoint.remove(tmp_path / "a")
    assert checkpoint.note(tmp_path / "a") is None and not list(tmp_path.iterdir())


def test_fingerprints_differ_by_shape_dtype_and_name():
    trees = [{"a": np.zeros(shape, dtype)} for shape in ((2, 3), (3, 2), (6,)) for dtype in (np.float32, np.int32)]
    assert len({checkpoint.fingerprint(tree) for tree in [*trees, {"b": trees[0]["a"]}]}) == 7


def test_kernels_that_differ_beyond_colour_are_not_adapted():
    assert [
        checkpoint.stacked_pixels((3, 3, 1, 8), other)
        for other in ((3, 3, 3, 8), (5, 5, 3, 8), (3, 5, 3, 8), (3, 3, 3, 9), (3, 3, 2, 8), (3, 3, 1, 8))
    ] == [1] + 5 * [None]
