"""From networks and Samples to honest tables: every image predicted by a network that did not see it."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarks import baselines, calibration, caveats, checkpoint, detection, runs, steps, tasks
from jaxmarks import config as configs
from jaxmarks.baselines import blobs, mean_shape, registration
from jaxmarks.data import formats, splits
from jaxmarks.data.loading import Dataset, facts
from jaxmarks.data.samples import Annotation, Samples, to_source
from jaxmarks.ops import boxes, metrics

# Thresholds of the success rates, in pixels of the photograph.
THRESHOLDS = (1, 2, 3, 4, 5, 10, 20, 40)
# Those of the hit rates, in pixels of the network's frame (fish paper's delta).
MULTIPLES = (1, 2, 3, 4, 5)
# Those of the successful detection rates in mm, of the cephalogram challenges.
MILLIMETRES = (2, 2.5, 3, 4)
# Those of PCK, shares of the longer side of the box around an image's landmarks.
FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2)


class Predictions(NamedTuple):
    """N images' predicted landmarks beside the true ones, in source pixels, y down.

    `fold` (N,) int64 is the fold whose network predicted the image, -1 for the mean of all. `delta` (N,) is the size of
    a pixel of the network's frame in source pixels, `id` (N,) what the landmark file calls an image. Where several
    datasets are joined, the scores of landmarks that an image's dataset does not have are NaN.
    """

    name: np.ndarray
    fold: np.ndarray
    points: np.ndarray
    scores: np.ndarray
    true: np.ndarray
    visible: np.ndarray
    mm_per_px: np.ndarray
    source_size: np.ndarray
    delta: np.ndarray
    id: np.ndarray


def predictor(task: steps.Task):
    """The jitted function (networks, images uint8 in their frame) -> mean points (B, K, 2) and scores (B, K).

    `networks` is a list of variables: those of one fold, or of several, whose predictions are averaged.
    """

    def predict(networks, images):
        found = [steps.predict_step(variables, images, task=task) for variables in networks]
        return jax.tree.map(lambda *values: sum(values) / len(values), *found)

    return jax.jit(predict)


def predict(call, networks, samples: Samples, *, batch_size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, K, 2) in source pixels and scores (N, K) of the samples; `call` is a `predictor`."""
    points: list[np.ndarray] = []
    scores: list[np.ndarray] = []
    for rows in steps.batches(np.arange(len(samples)), batch_size):
        found = call(networks, jnp.asarray(samples.images[steps.samples_of(rows, 1)]))
        for kept, part in zip((points, scores), found, strict=True):
            kept.append(np.asarray(part)[rows >= 0])
    return to_source(samples.to_source, np.concatenate(points)), np.concatenate(scores)


def beside(samples: Samples, points, scores, fold: int) -> Predictions:
    """The predictions of samples with what is known of them."""
    return Predictions(
        name=samples.name,
        fold=np.full(len(samples), fold),
        points=points,
        scores=scores,
        true=samples.source_points,
        visible=samples.visible,
        mm_per_px=samples.mm_per_px,
        source_size=samples.source_size,
        delta=samples.delta,
        id=samples.id,
    )


def join(parts: list[Predictions]) -> Predictions:
    """Predictions of several folds as one."""
    return Predictions(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def choose(task: steps.Task, variables, dataset: Dataset, held: np.ndarray, shown: np.ndarray) -> dict:
    """What is saved with a network because it is chosen on its validation images.

    Of a detector the threshold, where they show no object on those that it was shown; of a network for volumes by how
    much their uncertainty is told too small.

    Args:
      task: of its stage.
      variables: its own.
      dataset: that it was trained on.
      held, shown: the samples of validation, and of training.
    """
    if dataset.objects:
        telling = (dataset.samples.labels[held] >= 0).any()
        samples = dataset.samples.take(held if telling else shown)
        return {"threshold": detection.choose_threshold(task, variables, samples, dataset)}
    if dataset.volumes and len(held):
        samples = dataset.samples.take(held)
        found, volumes = predict(predictor(task), [variables], samples), dataset.volumes
        return {"spread": calibration.choose_spread(samples.name, *found, volumes, volumes.template)}
    return {}


class Held(NamedTuple):
    """A fold's networks with the notes that were saved with them, and who was trained on and who is tested (samples)."""

    fold: int
    networks: list
    notes: list[dict]
    trained: np.ndarray
    tested: np.ndarray


def trained_folds(settings, workdir: Path, stage: str, samples: Samples) -> Iterator[Held]:
    """The folds of a stage; where nothing is held back for a test the validation images take its place.

    Which images are whose is saved with the networks. What they were not split from follows as the fold -1, of all
    networks.
    """
    rows = lambda names: np.flatnonzero(np.isin(samples.name, list(names)))
    known, trained, some = set[str](), set[str](), False
    for fold in runs.folds(settings):
        networks, notes = runs.restore(workdir, stage, runs.members(settings, fold))
        mine = images_of(notes[0], settings, samples, fold)
        known, trained = known.union(*mine.values()), trained.union(mine["train"])
        if len(held := rows(mine["test"] or mine["valid"])):
            some = True
            yield Held(fold, networks, notes, rows(mine["train"]), held)
    if len(new := np.flatnonzero(~np.isin(samples.name, list(known)))):
        networks, notes = runs.restore(workdir, stage, runs.members(settings))
        what = f"{len(new)} images are new since the training, this the first: the mean of all networks predicts them"
        caveat = {"image": str(samples.name[new[0]]), "what": what, "where": "the images"}
        # The folds have told their own.
        alone = [note | {"caveats": [] if n else [caveat]} for n, note in enumerate(notes)]
        yield Held(-1, networks, alone, rows(trained), new)
    elif not some:
        raise ValueError("of the images that the run holds back none is here: there is nothing to score it on")


def images_of(note: dict, settings, samples: Samples, fold: int) -> dict[str, list[str]]:
    """The images of a network's split by name (`splits.names`), from what is saved with it."""
    if "data" in note:
        return note["data"]["images"]
    _, task = tasks.build(settings, note["facts"])  # a run that is older than this is split once more
    return splits.names(splits.of_member(settings, samples, runs.Member(fold), task.versions), samples, task.versions)


def check_landmarks(samples: Samples, notes: list[dict]) -> None:
    """Raises ValueError where networks find another number of landmarks than the samples have."""
    here, there = samples.points.shape[1], notes[0]["facts"]["landmarks"]
    if here != there:
        raise ValueError(f"the data have {here} landmarks, the run's network finds {there}")


def held_out(
    settings, workdir: Path, stage: str, dataset: Dataset
) -> tuple[Predictions, dict[str, Predictions], dict[int, list[dict]]]:
    """Each fold's test images by its own networks, and by the baselines that `settings.baselines` names.

    The last of what is returned are the notes that are saved with a fold's networks.
    """
    baselines.check(settings.baselines, objects=False)
    found: dict[str, list[Predictions]] = {"network": [], **{name: [] for name in settings.baselines}}
    samples, own = dataset.samples, dataset.own(dataset.samples)
    _, task = tasks.build(settings, facts(dataset))
    call, noted = predictor(task), {}
    for fold, networks, notes, trained, tested in trained_folds(settings, workdir, stage, samples):
        check_landmarks(samples, notes)
        noted[fold] = notes
        rest, mine = samples.take(trained), samples.take(tested)
        print(f"scoring {len(mine)} images" + (f" of fold {fold}" if fold >= 0 else ""), flush=True)
        points, scores = predict(call, networks, mine)
        found["network"].append(beside(mine, points, np.where(own[tested], scores, np.nan), fold))
        for name in settings.baselines if len(trained) else ():
            points = np.zeros_like(mine.source_points)
            for domain, columns in enumerate(dataset.columns):
                points[mine.domain == domain, columns] = baseline(
                    name, rest.of(domain, columns), mine.of(domain, columns)
                )
            found[name].append(beside(mine, points, np.where(own[tested], 1.0, np.nan), fold))
    joined = {name: join(parts) for name, parts in found.items() if len(parts) == len(found["network"])}
    place = {name: n for n, name in reversed(list(enumerate(samples.name.tolist())))}
    order = np.argsort([place[name] for name in joined["network"].name.tolist()], kind="stable")  # the file's
    joined = {name: Predictions(*(column[order] for column in part)) for name, part in joined.items()}
    return joined.pop("network"), joined, noted


def baseline(name: str, rest: Samples, tested: Samples) -> np.ndarray:
    """Points (N, K, 2) in source pixels of the tested samples by a method without learning, fitted on the rest."""
    methods = {
        "mean_shape": lambda: mean_shape.predict(mean_shape.fit(rest.points, rest.visible), len(tested)),
        "registration": lambda: registration.predict(registration.fit(rest), tested.images)[0],
    }
    return to_source(tested.to_source, methods[name]())


def summarise(found: Predictions) -> dict:
    """The numbers of `summary.json` that follow from predictions; NaN becomes None.

    Raises:
      FloatingPointError: a visible landmark's prediction is no number.
    """
    lost = (found.visible & ~np.isfinite(found.points).all(-1)).any(-1)
    if lost.any():
        raise FloatingPointError(
            f"{found.name[lost][0]} and {lost.sum() - 1} other images: the network predicts no numbers, its training has"
            " diverged; lower --config.optimizer.learning_rate"
        )
    sides = extents(found.true, found.visible)
    known = measure(found.points, found.true, found.visible, found.scores, found.mm_per_px, found.delta, sides)
    measured = jax.tree.map(np.asarray, known)
    distances, in_mm, overall = (measured[key] for key in ("distances", "in_mm", "overall"))
    folds = [
        {"fold": int(f), "mean_distance_px": mean(distances[found.fold == f]), "images": int((found.fold == f).sum())}
        for f in np.unique(found.fold)
    ]
    of_folds = [f["mean_distance_px"] for f in folds if f["fold"] >= 0 and np.isfinite(f["mean_distance_px"])]
    scaled = np.isfinite(in_mm).any()
    ranked = np.ptp(np.nanmean(found.scores, axis=-1))  # scores that are all alike rank nothing
    rates = lambda name, limits: dict(zip(map(str, limits), measured[name], strict=True))
    summary = {
        "mean_distance_px": overall["mean"],
        "median_px": overall["median"],
        "p95_px": overall["p95"],
        "std_px": overall["std"],
        "std_over_folds_px": float(np.std(of_folds)) if len(of_folds) > 1 else None,
        "mean_distance_mm": mean(in_mm),
        "per_landmark_px": measured["per_landmark"],
        "per_landmark_mm": measured["per_landmark_mm"] if scaled else None,
        **{name: measured["correlations"][name] for name in ("r2", "explained_variance", "pearson")},
        "success_rates": rates("success", THRESHOLDS),
        "hit_rates": rates("hits", MULTIPLES),
        "sdr_mm": rates("success_mm", MILLIMETRES) if scaled else None,
        "pck": rates("pck", FRACTIONS),
        "oks": measured["oks"],
        "map_oks": measured["map_oks"] if ranked else None,
        "shares": measured["shares"],
        "images": len(found.name),
        "landmarks": found.points.shape[1],
        "folds": folds,
    }
    return plain(summary)


@jax.jit
def measure(points, true, visible, scores, mm_per_px, delta, sides) -> dict:
    """What `summarise` tells of `Predictions`, in one compiled function; `sides` are `extents`."""
    distances = metrics.distances(points, true, visible)
    in_mm = distances * mm_per_px[:, None]
    similarities = metrics.oks(distances, jnp.sqrt(jnp.prod(sides, -1)))
    ranking = boxes.keypoint_average_precision(similarities, jnp.nanmean(scores, axis=-1))
    return {
        "distances": distances,
        "in_mm": in_mm,
        "overall": metrics.summarise(distances),
        "per_landmark": metrics.per_landmark(distances),
        "per_landmark_mm": metrics.per_landmark(in_mm),
        "correlations": metrics.correlations(points, true, visible),
        "success": metrics.success_rates(distances, THRESHOLDS),
        "success_mm": metrics.success_rates(in_mm, MILLIMETRES),
        "hits": metrics.success_rates(distances / delta[:, None], MULTIPLES),
        "pck": metrics.pck(distances, jnp.max(sides, -1), FRACTIONS),
        "oks": metrics.mean(similarities),
        "map_oks": ranking["mAP"],
        "shares": metrics.shares(distances),
    }


def extents(points: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Width and height (N, 2) of the boxes around the visible landmarks; NaN where these lie on one line or point."""
    shown = visible[..., None]
    low, high = (f(np.where(shown, points, fill), axis=1) for f, fill in ((np.min, np.inf), (np.max, -np.inf)))
    return np.where((high > low).all(-1, keepdims=True), high - low, np.nan)


def mean(values) -> float:
    """The mean of what is not NaN; NaN where nothing is left."""
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else float("nan")


def plain(value):
    """Arrays and NaN as JSON can hold them: lists, numbers, None."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple) or getattr(value, "ndim", 0):
        return (
            [plain(item) for item in np.asarray(value).tolist()]
            if getattr(value, "ndim", 0)
            else list(map(plain, value))
        )
    if value is None or isinstance(value, str | bool | int):
        return value
    number = float(value)
    return number if np.isfinite(number) else None


def by_set(found: Predictions, dataset: Dataset) -> dict[str, Predictions]:
    """The predictions of each of several datasets by name, of its images and its landmarks alone."""
    domain = dict(zip(dataset.samples.name.tolist(), dataset.samples.domain.tolist(), strict=True))
    domains, each = np.array([domain[name] for name in found.name.tolist()]), {}
    for number, name in enumerate(dataset.sets):
        mine, columns = Predictions(*(column[domains == number] for column in found)), dataset.columns[number]
        cut = {key: getattr(mine, key)[:, columns] for key in ("points", "scores", "true", "visible")}
        each[name] = mine._replace(**cut)
    return each


def write(folder: Path, found: Predictions | list[Predictions], summary: dict) -> None:
    """Writes `predictions.csv`, `predictions.tps` and `summary.json` to the folder; several `found` one after the other."""
    folder, parts = Path(folder), found if isinstance(found, list) else [found]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow("image landmark x y score x_true y_true distance fold".split())
        for part in parts:
            write_rows(rows, part)
    write_tps(folder / "predictions.tps", parts)
    (folder / "summary.json").write_text(json.dumps(plain(summary), indent=1) + "\n")


def write_rows(rows, found: Predictions) -> None:
    """A row of `predictions.csv` for each landmark."""
    distances = np.asarray(metrics.distances(found.points, found.true, found.visible))
    for n, name in enumerate(found.name):
        for k in range(found.points.shape[1]):
            known = [*(f"{v:.3f}" for v in found.true[n, k]), f"{distances[n, k]:.3f}"]
            rows.writerow(
                [name, k + 1, *(f"{v:.3f}" for v in found.points[n, k]), f"{found.scores[n, k]:.4f}"]
                + (known if found.visible[n, k] else ["", "", ""])
                + [found.fold[n]]
            )


def write_tps(path: Path, parts: list[Predictions]) -> None:
    """The predicted landmarks as tpsDig reads them, y up; names without the blanks about them, which TPS has not.

    IDs are those of the landmark file, and numbers from 0 where it has none.
    """
    name = lambda found, n: str(found.name[n]).strip()
    each = [(found, n) for found in parts for n in range(len(found.name))]
    known = any(found.id[n] for found, n in each)
    annotations = [
        Annotation(
            image=name(found, n), points=found.points[n], id=str(found.id[n]) if known else str(i),
            mm_per_px=float(found.mm_per_px[n]),
            # Where both coordinates would be negative TPS reads a missing landmark.
            visible=(found.points[n, :, 0] >= 0) | (found.points[n, :, 1] <= found.source_size[n, 0]),
        )
        for i, (found, n) in enumerate(each)
    ]  # fmt: skip
    heights = {name(found, n): int(found.source_size[n, 0]) for found, n in each}
    formats.write(path, annotations, heights)


def of_run(config, workdir: Path, dataset, *, out: Path | None = None, **about) -> dict:
    """Scores the last stage of a run on its held-out images and writes the files to `out` (by default the workdir).

    `about` is added to the summary.
    """
    stage = runs.stages(config)[-1]
    settings = configs.stage(config, stage)
    about |= {"stage": stage, "parameters": parameters(workdir, stage), "seconds": runs.seconds(config, workdir)}
    if dataset.objects:
        found, others, threshold, milliseconds, noted, names = objects_held_out(settings, workdir, stage, dataset)
        about["failures"] = dataset.problems + noted
        about["baselines"] = {
            name: plain(detection.summarise(other, detection.EVEN, names)) for name, other in others.items()
        }
        return of_objects(out or workdir, found, threshold, names, ms_per_image=milliseconds, **about)
    found, others, notes = held_out(settings, workdir, stage, dataset)
    noted = [each for fold in notes.values() for each in caveats.of_notes(fold)]
    summary = summarise(found) | {
        "baselines": {name: summarise(other) for name, other in others.items()},
        "annotators_px": dataset.disagreement,
        **about,
        "failures": dataset.problems + noted,
    }
    if dataset.sets:
        return of_sets(out or workdir, found, others, summary, dataset)
    if dataset.volumes:
        volumes, spread = dataset.volumes, np.array([calibration.spread_of(notes[fold]) for fold in found.fold])
        summary["volume"] = calibration.score(
            found.name, found.points, found.scores, volumes, volumes.template, out or workdir, spread
        )
    write(out or workdir, found, summary)
    return summary


def of_sets(folder: Path, found: Predictions, others: dict[str, Predictions], summary: dict, dataset: Dataset) -> dict:
    """Scores each of several datasets by itself, and writes the files of all to the folder, its own to `sets/NAME`.

    Returns:
      The summary with "sets", the datasets' own summaries by name.
    """
    parts = by_set(found, dataset)
    methods = {name: by_set(other, dataset) for name, other in others.items()}
    summary["sets"] = {}
    for name, part in parts.items():
        mine = summary["sets"][name] = summarise(part) | {
            "baselines": {method: summarise(each[name]) for method, each in methods.items()},
            "annotators_px": dataset.sets[name].disagreement,
            # What names no image is of the networks, which all sets share.
            "failures": [p for p in summary["failures"] if not p["image"] or p["image"].startswith(f"{name}/")],
        }
        write(Path(folder) / "sets" / name, part, mine)
    write(folder, list(parts.values()), summary)
    return summary


def objects_held_out(settings, workdir: Path, stage: str, dataset):
    """Each fold's test photographs by its own detectors, and by the baselines that `settings.baselines` names.

    Returns:
      `detection.Objects`, those of the baselines by name, the threshold of each photograph's fold (N,), the
      milliseconds that a photograph took, the caveats of the training, and the classes' names.
    """
    baselines.check(settings.baselines, objects=True)
    truth, names = {a.image: a for a in dataset.objects}, dataset.classes
    parts: dict[str, list] = {"network": [], **{name: [] for name in settings.baselines}}
    thresholds, spent, noted = [], [], []
    for fold, networks, notes, trained, tested in trained_folds(settings, workdir, stage, dataset.samples):
        noted += caveats.of_notes(notes)
        names = detection.names_of(notes, dataset.classes)
        mine = dataset.samples.take(tested)
        _, task = tasks.build(settings, notes[0]["facts"])
        found, milliseconds = detection.timed(task, networks, mine)
        parts["network"].append(detection.beside(found, truth, names, fold))
        thresholds.append(np.full(len(found.name), detection.threshold_of(notes)))
        spent.append(milliseconds)
        for name in settings.baselines if len(trained) else ():
            found = spotted(dataset.samples.take(trained), mine)
            found = found._replace(classes=np.array([names.index(c) for c in dataset.classes])[found.classes])
            parts[name].append(detection.beside(found, truth, names, fold))
    joined = {name: detection.join(part) for name, part in parts.items() if len(part) == len(thresholds)}
    each_took = float(np.average(spent, weights=[len(each) for each in thresholds]))
    return joined.pop("network"), joined, np.concatenate(thresholds), each_took, noted, names


def spotted(rest: Samples, tested: Samples) -> detection.Found:
    """The objects of the tested photographs as blobs, whose detector is fitted on at most 300 tiles of the rest."""
    some = rest.take(np.random.default_rng(0).permutation(len(rest))[:300])
    spots = blobs.fit(np.asarray(some.images), some.boxes, some.labels)
    return detection.predict(blobs.predict, spots, tested)


def of_objects(folder: Path, found: detection.Objects, threshold, classes, **about) -> dict:
    """Scores detections, and writes `predictions.csv` and `summary.json` to the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    folds = [
        {"fold": int(fold)}
        | detection.summarise(detection.Objects(*(a[rows] for a in found)), threshold[rows], classes)
        for fold, rows in ((fold, found.fold == fold) for fold in np.unique(found.fold))
    ]
    each = [one for one in folds if one["fold"] >= 0]
    spread = {}
    for key in ("f1", "f1_golden", "map50"):
        known = [one[key] for one in each if np.isfinite(one[key])]  # a fold without objects and detections has none
        spread[f"std_over_folds_{key}"] = float(np.std(known)) if len(known) > 1 else np.nan
    summary = plain(
        detection.summarise(found, threshold, classes)
        | (spread if len(each) > 1 else {})
        | {"folds": folds, "baselines": {}, "classes": list(classes)}
        | about
    )
    detection.write(folder, found, threshold, classes)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def parameters(workdir: Path, stage: str) -> int:
    """How many parameters a stage's network has."""
    variables, _ = checkpoint.restore(runs.pick(workdir, stage, runs.Member(0)))
    return sum(np.size(leaf) for leaf in jax.tree.leaves(variables["params"]))
