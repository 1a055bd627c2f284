"""After a kill, `metrics.jsonl` holds each epoch once."""

import json
import sys

import pytest

from jaxmarks.metrics_log import MetricsLog


def epochs(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(m["stage"], m["fold"], m["epoch"]) for m in lines]


def test_lines_beyond_the_checkpoint_are_dropped(tmp_path):
    for fold, last in ((0, 2), (1, 3)):
        log = MetricsLog(tmp_path, "train", fold, after=0)
        for epoch in range(1, last + 1):
            log.write(epoch=epoch, loss=0.5)
        log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "train", "fo')  # cut short by a kill
    log = MetricsLog(tmp_path, "train", 1, after=1)
    log.write(epoch=2, loss=0.25)
    log.close()
    assert epochs(tmp_path) == [("train", 0, 1), ("train", 0, 2), ("train", 1, 1), ("train", 1, 2)]


def test_missing_tensorboard_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"jaxmarks\[tensorboard\]"):
        MetricsLog(tmp_path, "train", 0, after=0, tensorboard=True)
    assert not list(tmp_path.iterdir())  # nothing was written
