"""Several processes that train one network together: how they find each other, agree, and notice that one is lost.

One process (the first, `lead`) writes the run's files; all read them, so the workdir lies on a file system that they
share. Where there is one process everything here does nothing but to hear signals.
"""

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxmarks import sidecar

Result = TypeVar("Result")

# Seconds after which a process that shows no sign of life counts as lost.
SILENCE = 20
# Seconds that a process which failed waits for its sidecar to learn whether another was lost before.
PATIENCE = SILENCE + 10


def join(count: int = 0, *, coordinator: str = "", index: int = -1) -> None:
    """Makes this one of `count` processes; the arguments left out are taken from SLURM, a TPU pod, Open MPI or Kubernetes.

    Args:
      count: how many there are.
      coordinator: address of the first process, HOST:PORT.
      index: this one's number, from 0.
    """
    if coordinator and not re.fullmatch(r".+:\d+", coordinator):
        raise ValueError(f"--coordinator={coordinator}: give HOST:PORT, of the first process")
    try:
        jax.distributed.initialize(
            coordinator or None,
            count or None,
            index if index >= 0 else None,
            local_device_ids=devices_of_node(),
            heartbeat_timeout_seconds=2 * PATIENCE,
        )
    except ValueError as error:
        how = "give --processes=N --coordinator=HOST:PORT --process=I, for no cluster is found that knows them"
        raise ValueError(f"{error} Where there are several processes, {how}") from None


def devices_of_node() -> list[int] | None:
    """All GPUs of a SLURM node with one task, to which JAX would give the first alone; else None, which leaves it to JAX."""
    if os.environ.get("JAX_LOCAL_DEVICE_IDS"):
        return None
    tasks, gpus = (os.environ.get(f"SLURM_{key}", "") for key in ("STEP_TASKS_PER_NODE", "GPUS_ON_NODE"))
    one = re.fullmatch(r"1(\(x\d+\))?", tasks)
    return list(range(int(gpus))) if one and gpus.isdecimal() else None


def lead() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def agree(value: Any) -> Any:
    """The lead's `value`, which JSON can hold, in every process; waits for all of them."""
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.zeros(length, np.uint8)
    padded[: min(length, len(text))] = text[:length]
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8).tobytes())


def wait() -> None:
    """Waits for all processes."""
    agree(None)


def in_turn(function: Callable[[], Result]) -> Result:
    """What `function` returns, called by the lead first and then by the others, who find what it wrote."""
    if not lead():
        wait()
    result = function()
    if lead():
        wait()
    return result


class Watch:
    """Tells the other processes that this one lives, and ends it where another is lost; a context manager.

    It is a process of its own (`sidecar`), which outlives what may end this one: a kill, or JAX, which aborts when the
    first process is gone.
    """

    def __init__(self, workdir: Path):
        self.child: subprocess.Popen | None = None
        if jax.process_count() > 1:
            folder, session = Path(workdir) / "processes", str(agree(time.time_ns()))
            folder.mkdir(parents=True, exist_ok=True)
            numbers = map(str, (jax.process_index(), jax.process_count(), SILENCE))
            command = [sys.executable, sidecar.__file__, str(folder), session, *numbers]
            self.child = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if self.child:
            try:
                what = " ".join(f"failed: {error}".split())[:500]
                self.child.communicate(f"{what if kind else 'done'}\n", timeout=PATIENCE)
            except (subprocess.TimeoutExpired, BrokenPipeError):
                self.child.kill()


def leave() -> bool:
    """Ends the work together, once all processes are here; returns whether this one is the lead, which goes on alone."""
    mine = lead()
    if jax.process_count() > 1:
        jax.distributed.shutdown()
    return mine


def tell(text: str) -> None:
    """A line on the screen, from the lead."""
    if lead():
        print(text, flush=True)


def abandon(text: str, status: int = 1) -> None:
    """Says `text` and ends this process at once: an orderly end would wait for the others, one of whom may be lost."""
    print(text, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)


def told_to_stop() -> bool:
    """Whether this process was told to stop while `heeding`, or one of several was: then all say so at once.

    Several call it equally often; JAX takes the signal in processes that have joined.
    """
    return bool(_heard) if jax.process_count() == 1 else multihost_utils.reached_preemption_sync_point(next(_calls))


@contextlib.contextmanager
def heeding():
    """Within it a single process takes the first SIGTERM, as schedulers send it before they kill, and the first Ctrl-C.

    What runs asks `told_to_stop`, and ends in order; one that it did not ask for acts at the end. The second signal acts as
    outside, as does one that is ignored there, like Ctrl-C by what runs in the background.
    """
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    before = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    def hear(number, _):
        restore()
        _heard.append(number)
        os.write(2, b"jaxmarks: told to stop; saving. Again to stop at once\n")

    for number in before:
        signal.signal(number, hear)
    try:
        yield
    finally:
        restore()
        heard = _heard.copy()
        _heard.clear()
    for number in heard:
        signal.raise_signal(number)


_calls = itertools.count()
_heard: list[int] = []  # the signal that came while `heeding`
