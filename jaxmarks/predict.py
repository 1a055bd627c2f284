"""A trained run as a function of photographs, and a folder of photographs to files of landmarks."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarks import checkpoint, evaluate, report, train
from jaxmarks import config as configs
from jaxmarks.data import folder as folders
from jaxmarks.ops import geometry


def load(workdir: Path, *, fold: int | None = None) -> Callable:
    """A trained run as a pure function that other JAX code can jit, vmap and differentiate.

    Args:
      workdir: a run's folder.
      fold: the network of that fold alone; None takes the mean of all that were trained.

    Returns:
      images (B, H, W, C) uint8 of any size -> (points (B, K, 2) in the images' pixels, scores (B, K)). It is a
      `jax.tree_util.Partial` over the variables, so it can be an argument of a jitted function.
    """
    task, settings, networks = networks_of(workdir, fold=fold)
    call = evaluate.predictor(task)
    size, fit = tuple(settings.data.size), settings.data.fit

    def predict(networks, images):
        source = images.shape[1:3]
        framed = geometry.to_frame(images, size, fit=fit)
        points, scores = call(networks, framed)
        return geometry.affine(jnp.asarray(geometry.frame(source, size, fit), points.dtype), points), scores

    return jax.tree_util.Partial(predict, networks)


def networks_of(workdir: Path, *, fold: int | None = None):
    """The task, the settings and the trained networks' variables (a list) of a run's last stage."""
    workdir = Path(workdir)
    config = configs.load(workdir / "config.json")
    stage = train.stages(config)[-1]
    settings = configs.stage(config, stage)
    chosen = train.folds(settings) if fold is None else [fold]
    restored = [checkpoint.restore(train.fold_folder(workdir, stage, f) / "best") for f in chosen]
    _, task = train.build(settings, restored[0][1]["facts"])
    return task, settings, [jax.tree.map(jnp.asarray, variables) for variables, _ in restored]


def evaluate_on(workdir: Path, dataset, out: Path) -> dict:
    """Scores a run's networks on a dataset that they did not see, and writes the files and the report to `out`."""
    task, _, networks = networks_of(workdir)
    samples = dataset.samples
    points, scores = evaluate.predict(evaluate.predictor(task), networks, samples)
    if points.shape != samples.points.shape:
        raise ValueError(
            f"the data have {samples.points.shape[1]} landmarks, the network of {workdir} finds {points.shape[1]}"
        )
    found = evaluate.beside(samples, points, scores, -1)
    summary = evaluate.summarise(found) | {"baselines": {}, "failures": dataset.problems}
    evaluate.write(out, found, summary)
    return summary


def on_folder(workdir: Path, images: Path, out: Path, *, overlays: bool = True) -> dict:
    """Predicts every photograph of a folder and writes `predictions.csv`, `predictions.tps` and overlays to `out`.

    Photographs are read, predicted and written in batches, so memory stays bounded. One that cannot be read is listed
    in `summary.json` under "failures".
    """
    task, settings, networks = networks_of(workdir)
    call = evaluate.predictor(task)
    parts: list[evaluate.Predictions] = []
    problems: list[dict] = []
    for samples in folders.batches(
        images, size=tuple(settings.data.size), channels=3, fit=settings.data.fit, batch_size=32, problems=problems
    ):
        points, scores = evaluate.predict(call, networks, samples)
        unknown = np.zeros(points.shape[:2], bool)
        parts.append(evaluate.beside(samples, points, scores, -1)._replace(true=np.zeros_like(points), visible=unknown))
        for name, shape in zip(samples.name, points, strict=True) if overlays else ():
            path = Path(out) / "overlays" / Path(str(name)).with_suffix(".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            image = folders.photograph(images, str(name))
            if image is not None:
                report.overlay(image, shape, path=path)
    if not parts:
        raise ValueError(f"{images}: no photograph could be read; {'; '.join(p['what'] for p in problems)}")
    found = evaluate.join(parts)
    summary = {"images": len(found.name), "landmarks": found.points.shape[1], "failures": problems}
    evaluate.write(out, found, summary)
    return summary
