"""Two fake CPU devices for all tests, strict numerics, and the folder of real data."""

import os
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "/tmp/jaxmarks-test-cache")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "allow")


@pytest.fixture(scope="session")
def real_data():
    """The folder of real data; the test is skipped where JAXMARKS_DATA is unset and fails where it names nothing."""
    folder = os.environ.get("JAXMARKS_DATA")
    if not folder:
        pytest.skip("JAXMARKS_DATA is not set: no real data here")
    assert Path(folder).is_dir(), f"JAXMARKS_DATA={folder} is not a folder"
    return Path(folder)
