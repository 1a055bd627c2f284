"""The process beside each of several training processes: it tells the others that its own lives, and names who is lost.

    python sidecar.py FOLDER SESSION INDEX COUNT SILENCE

Each writes FOLDER/INDEX.json once a second and reads those of the others. What the training process says on its end
comes through the standard input; that it ends without a word means that it was killed or crashed. Where another process
is lost this one is told so, and killed if it does not end by itself, as one that waits for the lost one's gradient.
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

# Seconds in which the others' words arrive once one of them is lost, and that the training process then has to end.
SETTLING, GRACE = 2, 5
# The state of a process that ended without a word.
KILLED = "was killed or crashed"


def main(folder: Path, session: str, index: int, count: int, silence: float) -> int:
    """Returns 0 when the training process has ended, or 1 when it has been told whom it lost."""
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
        alone = state != "running" and (
            state == "done" or all(other.ended for other in others.values()) or now - ended > silence
        )
        if gone and (alone or now - noticed > SETTLING):
            for number, what in sorted(gone.items()):
                about = others[number].entry
                print(
                    f"jaxmarks: process {number} of {count} (host {about['host']}, pid {about['process']}) {what}."
                    " Start the same command again: the run goes on from its last checkpoint",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
            if state == "running" and not said(GRACE):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(parent, signal.SIGKILL)
            return 1
        if alone:
            return 0
        if state != "running":
            time.sleep(0.5)
        elif said(1):
            state, ended = sys.stdin.readline().strip() or KILLED, now


class Other:
    """What is known of another process."""

    def __init__(self):
        self.entry, self.new = {"state": "running", "host": "unknown", "process": "unknown"}, time.monotonic()

    def look(self, path: Path, session: str) -> None:
        """Takes notice of what it wrote in this session."""
        with contextlib.suppress(OSError, json.JSONDecodeError):
            found = json.loads(path.read_text())
            if found["session"] == session and found != self.entry:
                self.entry, self.new = found, time.monotonic()

    @property
    def ended(self) -> bool:
        return self.entry["state"] != "running"

    def lost(self, state: str, silence: float) -> str:
        """How it ended before its time, or nothing.

        `state` is one's own: whoever failed alike, or after this one was killed, is not to blame.
        """
        if not self.ended and time.monotonic() - self.new > silence:
            return f"has shown no sign of life for {silence:g} s"
        blameless = ("running", "done", state)
        failed_after = state == KILLED and self.entry["state"].startswith("failed")
        return "" if self.entry["state"] in blameless or failed_after else self.entry["state"]


def said(seconds: float) -> bool:
    """Whether the training process says something, or has ended, within so many seconds."""
    return bool(select.select([sys.stdin], [], [], seconds)[0])


if __name__ == "__main__":
    place, session, index, count, silence = sys.argv[1:]
    sys.exit(main(Path(place), session, int(index), int(count), float(silence)))
