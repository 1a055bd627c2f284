"""Two fake CPU devices for all tests, a cache of compiled steps, and the folder of real data."""

import importlib.metadata
import json
import os
import re
import tempfile
from pathlib import Path

import hypothesis
import pytest

XLA_FLAGS = ["--xla_force_host_platform_device_count=2"]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # XLA ends the process at a flag that it does not know
    # Most of the suite's time is compilation. Without the emitters steps take a third less to compile and 5 % more to run;
    # in one piece, and every worker has but one core, a tenth less again.
    XLA_FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *XLA_FLAGS])
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # of which are the tolerances, and what "to the bit" is said of
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share a GPU
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "jaxmarks-tests"))
os.environ.setdefault("JAXMARKS_CACHE", "")  # phantoms are drawn anew
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# Files that take long come first, the longest of all before the others, so that no worker is left alone with them.
LONG = "heads detection fish same_data end_to_end networks decode augment bodies steps transfer boxes encoders".split()


def pytest_collection_modifyitems(items):
    names = [f"test_{name}" for name in LONG]
    items.sort(key=lambda item: names.index(item.path.stem) if item.path.stem in names else len(names))


hypothesis.settings.register_profile("unhurried", deadline=None)  # the first example compiles
hypothesis.settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def real_data():
    """The folder of real data; the test is skipped where JAXMARKS_DATA is unset and fails where it names nothing."""
    folder = os.environ.get("JAXMARKS_DATA")
    if not folder:
        pytest.skip("JAXMARKS_DATA is not set: no real data here")
    assert Path(folder).is_dir(), f"JAXMARKS_DATA={folder} is not a folder"
    return Path(folder)


@pytest.fixture(scope="session")
def about_of():
    """What a page for proof-reading, a path, shows."""
    line = re.compile(r"^const about = (.*);$", re.MULTILINE)
    return lambda page: json.loads(line.search(page.read_text(encoding="utf-8"))[1])
