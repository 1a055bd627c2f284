"""Several processes that train one network together: they find each other, agree on values, and notice a loss.

The first process (`lead`) writes the run's files and all read them, so the workdir must lie on a shared file system.
With a single process there is nothing to coordinate; only the handling of signals has an effect.
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

# Seconds without a sign of life after which a process counts as lost.
SILENCE = 20
# Seconds that a process which ends waits for its sidecar to find out whether another process was lost first.
PATIENCE = SILENCE + 10


def join(count: int = 0, *, coordinator: str = "", index: int = -1) -> None:
    """Joins `count` processes; omitted arguments are taken from SLURM, a TPU pod, Open MPI or Kubernetes.

    Args:
      count: the number of processes.
      coordinator: address of the first process, HOST:PORT.
      index: the number of this process, from 0.
    """
    if coordinator and not re.fullmatch(r".+:\d+", coordinator):
        raise ValueError(f"--coordinator={coordinator}: give HOST:PORT of the first process")
    try:
        jax.distributed.initialize(
            coordinator or None,
            count or None,
            index if index >= 0 else None,
            local_device_ids=devices_of_node(),
            heartbeat_timeout_seconds=2 * PATIENCE,
        )
    except ValueError as error:
        advice = "give --processes=N --coordinator=HOST:PORT --process=I, as no cluster that sets them was found"
        raise ValueError(f"{error} To train with several processes, {advice}") from None


def devices_of_node() -> list[int] | None:
    """Returns all GPUs of a SLURM node with one task, where JAX takes the first only; else None, JAX's default."""
    if os.environ.get("JAX_LOCAL_DEVICE_IDS"):
        return None
    tasks, gpus = (os.environ.get(f"SLURM_{key}", "") for key in ("STEP_TASKS_PER_NODE", "GPUS_ON_NODE"))
    single_task = re.fullmatch(r"1(\(x\d+\))?", tasks)
    return list(range(int(gpus))) if single_task and gpus.isdecimal() else None


def lead() -> bool:
    """Whether this process is the one that writes the run's files."""
    return jax.process_index() == 0


def agree(value: Any) -> Any:
    """Returns the lead's `value`, which must be JSON-serialisable, in every process; waits for all of them."""
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
    """Calls `function` in the lead first, then in the others, which find what it wrote; returns its result."""
    if not lead():
        wait()
    result = function()
    if lead():
        wait()
    return result


class Watch:
    """Context manager that tells the other processes that this one is alive, and ends this one if another is lost.

    A separate process (`sidecar`) does this, since it survives what may end this one: a kill, or JAX, which aborts when
    the first process is gone.
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
                message = " ".join(f"failed: {error}".split())[:500]
                self.child.communicate(f"{message if kind else 'done'}\n", timeout=PATIENCE)
            except (subprocess.TimeoutExpired, BrokenPipeError):
                self.child.kill()


def leave() -> bool:
    """Disconnects the processes once all have called this; returns whether this is the lead, which goes on alone."""
    is_lead = lead()
    if jax.process_count() > 1:
        jax.distributed.shutdown()
    return is_lead


def tell(text: str) -> None:
    """Prints a line, in the lead only."""
    if lead():
        print(text, flush=True)


def abandon(text: str, status: int = 1) -> None:
    """Prints `text` to stderr and exits at once: an orderly exit would wait for other processes, which may be lost."""
    print(text, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)


def stop_requested() -> bool:
    """Whether this process, or one of several, has received a stop signal; all then return True at the same call.

    A single process receives it while `deferring_signals`; in joined processes, JAX handles the signal, and all of them
    must call this equally often.
    """
    return bool(_heard) if jax.process_count() == 1 else multihost_utils.reached_preemption_sync_point(next(_calls))


@contextlib.contextmanager
def deferring_signals():
    """Defers the first SIGTERM (sent by schedulers before they kill) or Ctrl-C in the block, for a single process.

    The code in the block polls `stop_requested` and ends in order. If it completes all the same, the signal is raised
    again afterwards. A second signal acts as it would outside the block, and so does one that is ignored there, as
    Ctrl-C is in background jobs. Outside the main thread, nothing is deferred.
    """
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    handlers = {number: handler for number, handler in handlers.items() if handler not in (None, signal.SIG_IGN)}

    def restore():
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def on_signal(number, _):
        restore()
        _heard.append(number)
        os.write(2, b"jaxmarks: stop requested; saving. A second signal stops at once\n")

    for number in handlers:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        restore()
        received = _heard.copy()
        _heard.clear()
    for number in received:
        signal.raise_signal(number)


_calls = itertools.count()
_heard: list[int] = []  # signals received while `deferring_signals`
