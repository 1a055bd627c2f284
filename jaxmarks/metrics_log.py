"""The log `metrics.jsonl`, one JSON object per epoch, and TensorBoard events on request."""

import json
import os
from pathlib import Path

from jaxmarks import atomic


class MetricsLog:
    """Appends to `workdir/metrics.jsonl`, after dropping what a killed run wrote beyond its checkpoint.

    Args:
      workdir: the run's folder.
      stage, fold, member: those of the network, written into every object.
      after: the last epoch that is kept; later lines of this network are dropped.
      tensorboard: also write TensorBoard events to `workdir/tensorboard` (extra `jaxmarks[tensorboard]`).
      quiet: write nothing, since another process does.
    """

    def __init__(
        self,
        workdir: Path,
        stage: str,
        fold: int,
        member: int = 0,
        *,
        after: int,
        tensorboard: bool = False,
        quiet: bool = False,
    ):
        self.path = Path(workdir) / "metrics.jsonl"
        self.network = {"stage": stage, "fold": fold, "member": member}
        if quiet:
            self.file, self.events = open(os.devnull, "w"), None
            return
        name = f"fold{fold}.{member}" if member else f"fold{fold}"
        self.events = _events(Path(workdir) / "tensorboard" / stage / name) if tensorboard else None
        if self.path.exists():
            kept = [line for line in self.path.read_text().splitlines() if self._keep(line, after)]
            atomic.write(self.path, "".join(line + "\n" for line in kept))
        self.file = self.path.open("a")

    def _keep(self, line, after):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # the line that a kill cut short
            return False
        other = any(entry.get(key, 0) != value for key, value in self.network.items())
        return other or entry["epoch"] <= after

    def write(self, **values):
        """Appends one object and flushes it."""
        self.file.write(json.dumps(self.network | values) + "\n")
        self.file.flush()
        if self.events:
            for name, value in values.items():
                if value is not None and name != "epoch":
                    self.events.add_scalar(name, value, values["epoch"])

    def close(self):
        self.file.close()
        if self.events:
            self.events.close()


def _events(folder):
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError("--config.train.tensorboard needs the extra: pip install 'jaxmarks[tensorboard]'") from error
    return SummaryWriter(str(folder))
