"""Watchdog beside each of several training processes: reports that its own is alive, and names those that are lost.

    python sidecar.py FOLDER SESSION INDEX COUNT SILENCE

Each sidecar writes FOLDER/INDEX.json once a second and reads the files of the others. A training process that ends
writes its state to its sidecar's standard input; if that closes without a message, the process was killed or has
crashed. When another process is lost, the sidecar prints which one, and kills its own training process if that does
not end by itself, as when it waits for a gradient from the lost one.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path

# Seconds to wait for the others' states once one is lost, and then for the training process to end by itself.
SETTLING, GRACE = 2, 5
# The state of a process that ended without a message.
KILLED = "was killed or crashed"


def main(folder: Path, session: str, index: int, count: int, silence: float) -> int:
    """Runs until the training process has ended (returns 0), or until lost processes have been reported (returns 1)."""
    parent, state, beat = os.getppid(), "running", 0
    others = {number: Other() for number in set(range(count)) - {index}}
    ended = noticed = 0.0
    while True:
        beat += 1
        entry = {"session": session, "beat": beat, "state": state, "host": socket.gethostname(), "process": parent}
        fresh = folder / f"{index}.new"
        fresh.write_text(json.dumps(entry))
        fresh.replace(folder / f"{index}.json")
        for number, other in others.items():
            other.look(folder / f"{number}.json", session)
        now = time.monotonic()
        gone = {number: what for number, other in others.items() if (what := other.lost(state, silence))}
        noticed = noticed or (now if gone else 0.0)
        may_exit = state != "running" and (
            state == "done" or all(other.ended for other in others.values()) or now - ended > silence
        )
        if gone and (may_exit or now - noticed > SETTLING):
            for number, what in sorted(gone.items()):
                about = others[number].entry
                print(
                    f"jaxmarks: process {number} of {count} (host {about['host']}, pid {about['process']}) {what}."
                    " Start the same command again: the run resumes from its last checkpoint",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
            if state == "running" and not message_waiting(GRACE):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(parent, signal.SIGKILL)
            return 1
        if may_exit:
            return 0
        if state != "running":
            time.sleep(0.5)
        elif message_waiting(1):
            state, ended = sys.stdin.readline().strip() or KILLED, now


class Other:
    """The latest state of another process, as its sidecar reports it."""

    def __init__(self):
        self.entry, self.new = {"state": "running", "host": "unknown", "process": "unknown"}, time.monotonic()

    def look(self, path: Path, session: str) -> None:
        """Reads the file of that process, if it is of this session, and notes when it changed."""
        with contextlib.suppress(OSError, json.JSONDecodeError):
            found = json.loads(path.read_text())
            if found["session"] == session and found != self.entry:
                self.entry, self.new = found, time.monotonic()

    @property
    def ended(self) -> bool:
        return self.entry["state"] != "running"

    def lost(self, state: str, silence: float) -> str:
        """Returns how the process was lost; "" if it was not.

        `state` is that of this sidecar's own process: another that failed in the same way, or failed after this one was
        killed, is not to blame.
        """
        if not self.ended and time.monotonic() - self.new > silence:
            return f"has shown no sign of life for {silence:g} s"
        blameless = ("running", "done", state)
        failed_after = state == KILLED and self.entry["state"].startswith("failed")
        return "" if self.entry["state"] in blameless or failed_after else self.entry["state"]


def message_waiting(seconds: float) -> bool:
    """Whether the training process writes a message, or ends, within so many seconds."""
    return bool(select.select([sys.stdin], [], [], seconds)[0])


if __name__ == "__main__":
    place, session, index, count, silence = sys.argv[1:]
    sys.exit(main(Path(place), session, int(index), int(count), float(silence)))
