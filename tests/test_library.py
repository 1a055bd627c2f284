"""The code of docs/library.md runs as it stands, and does what the page says."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

PAGE = Path(__file__).parent.parent / "docs" / "library.md"


@pytest.fixture(scope="module")
def page():
    """The names that the page's blocks define, run one after the other."""
    text, names = PAGE.read_text(encoding="utf-8"), {}
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], str(PAGE), "exec"), names)  # an error names the page's own line
    return names


def test_landmarks_are_learned(page):
    assert page["head"].decode(page["outputs"])[0].shape == (32, 8, 2)
    assert len(page["history"]) == 10 and page["history"][-1] < 4 < page["history"][0]


def test_objects_are_learned_without_points(page):
    assert page["object_history"][-1] < 0.5 * page["object_history"][0]
    assert page["found"].boxes.shape == (32, 10, 4)
    assert page["average_precision"] > 0.3


def test_own_loop_learns_and_two_devices_update_like_one(page):
    assert page["devices"] == jax.local_device_count() == 2
    assert page["own_history"][-1] < 0.8 * page["own_history"][0]
    np.testing.assert_allclose(page["parallel_loss"], page["own_history"][1], rtol=1e-3)
    separate = page["on_one"](*page["start"], *jax.tree.map(lambda part: part[0], page["parts"]), jax.random.key(0))
    assert abs(separate[3] - page["own_history"][0]) > 1e-3  # one device's half alone is another batch


def test_functions_alone(page):
    assert page["drawn"].shape == page["slope"].shape == (32, 32, 48, 8)
    assert np.max(page["errors"]) < 0.05
    assert np.isfinite(page["slope"]).all() and np.abs(page["slope"]).max() > 0
