"""Two virtual CPU devices for all tests, a cache of compiled steps, and the folder of real data."""

import importlib.metadata
import json
import os
import re
import tempfile
from pathlib import Path

import hypothesis
import pytest

XLA_FLAGS = ["--xla_force_host_platform_device_count=2"]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # XLA aborts at an unknown flag
    # Most of the suite's time is compilation. Without the fusion emitters, steps take a third less time to compile and
    # 5 % more to run. Code generation in one piece, as each worker has only one core, saves another tenth.
    XLA_FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *XLA_FLAGS])
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # tolerances and claims of bit-equality hold on the CPU
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share a GPU
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "jaxmarks-tests"))
os.environ.setdefault("JAXMARKS_CACHE", "")  # empty: phantoms are drawn anew
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# Slow files run first, the slowest before the others, so that no worker is left alone with one at the end.
LONG = "heads detection fish same_data end_to_end networks decode augment bodies steps transfer boxes encoders".split()


def pytest_collection_modifyitems(items):
    names = [f"test_{name}" for name in LONG]
    items.sort(key=lambda item: names.index(item.path.stem) if item.path.stem in names else len(names))


hypothesis.settings.register_profile("unhurried", deadline=None)  # the first example compiles
hypothesis.settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def real_data():
    """The folder of real data; the test is skipped if JAXMARKS_DATA is unset and fails if it names no folder."""
    folder = os.environ.get("JAXMARKS_DATA")
    if not folder:
        pytest.skip("JAXMARKS_DATA is not set: no real data here")
    assert Path(folder).is_dir(), f"JAXMARKS_DATA={folder} is not a folder"
    return Path(folder)


@pytest.fixture(scope="session")
def about_of():
    """A function that reads the data shown by a proofreading page, given its path."""
    line = re.compile(r"^const about = (.*);$", re.MULTILINE)
    return lambda page: json.loads(line.search(page.read_text(encoding="utf-8"))[1])
