"""Two fake CPU devices for all tests, a cache of compiled steps, and the folder of real data."""

import os
import tempfile
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share a GPU
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "jaxmarks-tests"))
os.environ.setdefault("JAXMARKS_CACHE", "")  # phantoms are drawn anew
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import hypothesis
import pytest

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
