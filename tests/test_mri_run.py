"""Volume calibration end to end on the phantom head: train, evaluate, evaluate as new data, calibrate scouts."""

import json
import runpy
from pathlib import Path

import nibabel
import numpy as np

from jaxmarks import evaluate, predict, report, train
from jaxmarks.data import brains, loading, slices

CONFIG = Path(__file__).parent.parent / "configs" / "mri.py"


def tiny():
    config = runpy.run_path(str(CONFIG))["get_config"]("smoke")
    config.update_from_flattened_dict(
        {"data.size": (32, 32), "data.spacing": 8.0, "data.count": 6, "model.width": 4, "model.depth": 2}
        | {"train.steps": 2, "train.devices": 1, "split.run": (0,), "baselines": ()}
    )
    return config


def test_a_run_is_evaluated_and_calibrates_scouts(tmp_path):
    config, run = tiny(), tmp_path / "run"
    dataset = train.train(config, run)["train"]
    assert loading.known_facts(config.data)["landmarks"] == len(brains.LANDMARKS)
    summary = evaluate.of_run(config, run, dataset)
    page = report.write(run, dataset.photograph).read_text()
    assert "2 triples of scouts, of which" in page and f"{summary['volume']['median_iou'] or 0:.3f}" in page
    assert summary["volume"]["triples"] == 2 and len((run / "volumes.csv").read_text().splitlines()) == 3
    again = evaluate.of_new_data(run, dataset, tmp_path / "again")
    assert again["volume"]["triples"] == 6 and json.loads((tmp_path / "again" / "summary.json").read_text())["volume"]
    for one in brains.draw(brains.phantom(pixel=4.0), np.random.default_rng(0)).scouts.values():
        affine = np.eye(4)
        affine[:3, :2], affine[:3, 2] = one.plane[:, :2], 5 * slices.normal(one.plane)
        affine[:3, 3] = one.plane @ [0.5, 0.5, 1]
        (tmp_path / "scouts").mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(one.image.T[..., None], affine), tmp_path / "scouts" / f"{one.name}.nii.gz")
    found = predict.on_folder(run, tmp_path / "scouts", tmp_path / "out")
    about = json.loads((tmp_path / "out" / "scouts" / "calibration.json").read_text())
    assert found["images"] == 1 and about["refused"] == bool(found["failures"])
    assert (tmp_path / "out" / "scouts" / "scouts.png").stat().st_size > 0
