"""Settings of the process that the command line applies before JAX starts."""

import ctypes
import os
import sys
from pathlib import Path


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory for the next step instead of handing it back to the kernel.

    XLA's CPU backend allocates the temporaries of every step anew; by default glibc maps and unmaps each of them, and
    the kernel clears their pages again in every step. Returns whether it took effect.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    trim_threshold, mmap_max, arena_max = -1, -4, -8
    return all(mallopt(option, value) for option, value in ((mmap_max, 0), (trim_threshold, -1), (arena_max, 1)))


def cache_compiled_steps() -> None:
    """Enables JAX's persistent compilation cache, for later starts of a run; call it before JAX is imported."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "jaxmarks" / "compiled"))
    # By default, functions that compile in less than a second are not cached, and a start has dozens of those.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
