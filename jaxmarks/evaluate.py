"""Evaluation: predicts each image with networks that were not trained on it, and writes scores and tables."""

from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import numpy as np

from jaxmarks import atomic, baselines, calibration, detection, landmarks, report, runs, trained
from jaxmarks import config as configs
from jaxmarks.baselines import blobs, mean_shape, registration, regression_trees
from jaxmarks.data import records
from jaxmarks.data.loading import Dataset
from jaxmarks.data.samples import Samples, to_source
from jaxmarks.trained import Held


def choose_on_validation(
    call: Callable, variables, note: dict, dataset: Dataset, valid: np.ndarray, training: np.ndarray
) -> dict:
    """Chooses parameters of a trained network on its validation images; returns them for its note.

    A detector gets its score threshold, chosen on the training images if no validation image shows an object. A network
    that finds volumes gets the factors by which their uncertainty is underestimated (`calibration.choose_spread`).

    Args:
      call: the `steps.predictor` of the network's task.
      variables: the network's variables.
      note: its note so far.
      dataset: the dataset that it was trained on.
      valid, training: indices of the validation samples, and of the training samples.
    """
    if dataset.objects:
        has_objects = (dataset.samples.labels[valid] >= 0).any()
        samples = dataset.samples.take(valid if has_objects else training)
        overlap = detection.overlap_of([note])
        return {"threshold": detection.choose_threshold(call, [variables], samples, dataset, overlap=overlap)}
    if dataset.volumes and len(valid):
        samples = dataset.samples.take(valid)
        predictions, volumes = landmarks.predict(call, [variables], samples), dataset.volumes
        return {"spread": calibration.choose_spread(samples.name, *predictions, volumes, volumes.template)}
    return {}


def of_run(config, workdir: Path, dataset: Dataset, *, out: Path | None = None, **about) -> dict:
    """Scores the last stage of a run on its held-out images and writes the files to `out` (by default the workdir).

    Returns the summary, with `about` added.
    """
    stage = runs.stages(config)[-1]
    settings = configs.stage(config, stage)
    same_folder = Path(dataset.images).resolve() == Path(settings.data.get("images", "")).resolve()
    folds = trained.folds(settings, workdir, stage, dataset.samples, same=same_folder)
    about |= {"stage": stage, "seconds": runs.seconds(config, workdir)}
    return score(folds, settings.baselines, dataset, Path(out or workdir), **about)


def of_new_data(workdir: Path, dataset: Dataset, out: Path, *, set: str = "") -> dict:
    """Scores all networks of a run together on a dataset outside its split; writes files as `of_run` does.

    For a run over several datasets, `set` names the one whose landmarks these are.
    """
    return score([trained.all_on(workdir, dataset.samples, set=set)], (), dataset, Path(out))


def score(folds: Iterable[Held], baseline_names: tuple[str, ...], dataset: Dataset, out: Path, **about) -> dict:
    """Scores networks and the baselines `baseline_names` on their test images, and writes the files to `out`.

    Returns the summary, with `about` added, as `summary.json` has it.
    """
    baselines.check(baseline_names, objects=bool(dataset.objects))
    out.mkdir(parents=True, exist_ok=True)
    score_dataset = score_objects if dataset.objects else score_landmarks
    summary = atomic.plain(score_dataset(folds, baseline_names, dataset, out) | about)
    atomic.write_json(out / "summary.json", summary)
    return summary


def score_landmarks(folds: Iterable[Held], baseline_names: tuple[str, ...], dataset: Dataset, out: Path) -> dict:
    """Scores a dataset of landmarks: returns the summary, and writes every file except its `summary.json`."""
    samples, all_defined = dataset.samples, dataset.own(dataset.samples)
    parts: dict[str, list[landmarks.Predictions]] = {name: [] for name in ("network", *baseline_names)}
    problems, spread = list(dataset.problems), {}
    for held in folds:
        landmarks.check(dataset, held.notes)
        train, test, defined = samples.take(held.trained), samples.take(held.tested), all_defined[held.tested]
        print_progress(held, test)
        points, scores = landmarks.predict(held.call, held.networks, test)
        parts["network"].append(landmarks.with_truth(test, points, np.where(defined, scores, np.nan), held.fold))
        can_fit = not len(np.setdiff1d(test.domain, train.domain))  # every domain tested has training images
        for name in baseline_names if can_fit else ():
            points = baseline(name, train, test, dataset.columns)
            parts[name].append(landmarks.with_truth(test, points, np.where(defined, 1.0, np.nan), held.fold))
        problems += held.caveats
        spread[held.fold] = calibration.spread_of(held.notes)
    method_names = [name for name, part in parts.items() if len(part) == len(parts["network"])]
    methods = {name: landmarks.ordered(landmarks.join(parts[name]), samples.name) for name in method_names}
    summary = scores_of(methods, dataset.disagreement)
    predictions = methods["network"]
    summary |= {"names": dataset.names, "failures": problems, "parameters": parameters(held)}
    summary |= coverage(samples, predictions.name)
    if dataset.sets:
        summary["sets"] = score_sets(methods, problems, dataset, out)
    if dataset.volumes:
        template, spreads = held.notes[0]["facts"]["template"], np.array([spread[fold] for fold in predictions.fold])
        summary["volume"] = calibration.score(
            predictions.name, predictions.points, predictions.scores, dataset.volumes, template, out, spreads
        )
    landmarks.write(out, list(landmarks.by_set(predictions, dataset).values()) if dataset.sets else [predictions])
    if dataset.images:
        to_proofread(predictions, samples, dataset, out)
    return summary


def to_proofread(found: landmarks.Predictions, samples: Samples, dataset: Dataset, out: Path) -> None:
    """Writes the proofreading page for the landmarks of all samples, including those without a prediction."""
    unpredicted = samples.take(~np.isin(samples.name, found.name))
    groups = dict(zip(samples.name.tolist(), samples.specimen.tolist(), strict=True))
    no_points = np.full(unpredicted.points.shape, np.nan)
    predictions = landmarks.join([found, landmarks.with_truth(unpredicted, no_points, no_points[..., 0], -1)])
    photographs = landmarks.to_proofread(landmarks.ordered(predictions, samples.name), groups)
    report.proofread.landmarks(out, Path(dataset.images), photographs, names=dataset.names)


def scores_of(methods: dict[str, landmarks.Predictions], disagreement: float | None) -> dict:
    """Returns the summary's scores of the network, of all other methods ("baselines") and of the annotators."""
    summaries = {name: landmarks.summarise(predictions) for name, predictions in methods.items()}
    return summaries.pop("network") | {"baselines": summaries, "annotators_px": disagreement}


def score_sets(methods: dict[str, landmarks.Predictions], problems: list[dict], dataset: Dataset, out: Path) -> dict:
    """Scores each of several datasets that has predictions: returns summaries by name, and writes to `sets/NAME`."""
    parts = {method: landmarks.by_set(predictions, dataset) for method, predictions in methods.items()}
    summaries = {}
    for name in parts["network"]:
        set_methods = {method: part[name] for method, part in parts.items()}
        # A problem that names no image concerns the networks, which all sets share.
        failures = [problem for problem in problems if not problem["image"] or problem["image"].startswith(f"{name}/")]
        summaries[name] = scores_of(set_methods, dataset.sets[name].disagreement) | {"failures": failures}
        folder = out / "sets" / name
        folder.mkdir(parents=True, exist_ok=True)
        landmarks.write(folder, [set_methods["network"]])
        atomic.write_json(folder / "summary.json", summaries[name])
    return summaries


def baseline(name: str, train: Samples, tested: Samples, columns: list[slice]) -> np.ndarray:
    """Predicts points (N, K, 2) in source pixels for the tested samples with a baseline fitted on the samples `train`.

    Each domain is fitted separately, on its own landmarks: its `columns` of the K.
    """
    points = np.zeros_like(tested.source_points)
    for domain in np.unique(tested.domain):
        domain_columns = columns[domain]
        train_part, test_part = (
            train.select_domain(domain, domain_columns),
            tested.select_domain(domain, domain_columns),
        )
        if name == "mean_shape":
            frame_points = mean_shape.predict(mean_shape.fit(train_part.points, train_part.visible), len(test_part))
        elif name == "regression_trees":
            frame_points = regression_trees.predict(regression_trees.fit(train_part), test_part.images)
        else:
            frame_points, _ = registration.predict(registration.fit(train_part), test_part.images)
        points[tested.domain == domain, domain_columns] = to_source(test_part.to_source, frame_points)
    return points


def score_objects(folds: Iterable[Held], baseline_names: tuple[str, ...], dataset: Dataset, out: Path) -> dict:
    """Scores a dataset of objects: returns the summary, and writes every file except its `summary.json`."""
    annotations, samples = {a.image: a for a in dataset.objects}, dataset.samples
    parts: dict[str, list[detection.Objects]] = {name: [] for name in ("network", *baseline_names)}
    problems, thresholds, milliseconds = list(dataset.problems), [], []
    for held in folds:
        classes = detection.names_of(held.notes)
        train, test = samples.take(held.trained), samples.take(held.tested)
        class_problems = detection.class_name_problems(classes, dataset.classes)
        print_progress(held, test)
        overlap = detection.overlap_of(held.notes)
        detections, image_milliseconds = detection.timed(held.call, held.networks, test, overlap=overlap)
        parts["network"].append(detection.with_truth(detections, annotations, classes, held.fold))
        thresholds += [detection.threshold_of(held.notes)] * len(detections.name)
        milliseconds += [image_milliseconds] * len(detections.name)
        for name in baseline_names if len(train) else ():
            detections = blob_detections(train, test)
            detections = detections._replace(
                classes=np.array(detection.class_indices(dataset.classes, classes))[detections.classes]
            )
            parts[name].append(detection.with_truth(detections, annotations, classes, held.fold))
        problems += held.caveats
    method_names = [name for name, part in parts.items() if len(part) == len(parts["network"])]
    methods = {name: detection.join(parts[name]) for name in method_names}
    predictions, threshold = methods.pop("network"), np.array(thresholds)
    detection.write(out, predictions, threshold, classes)
    if dataset.images:
        sizes = dict(zip(samples.name.tolist(), samples.source_size, strict=True))
        photographs = detection.to_proofread(dataset.objects, predictions, threshold, sizes, classes)
        report.proofread.boxes(out, Path(dataset.images), photographs, names=classes, threshold=float(threshold.mean()))
    summary = detection.by_fold(predictions, threshold, classes)
    return summary | {
        "baselines": {
            name: detection.summarise(each, detection.DEFAULT_THRESHOLD, classes) for name, each in methods.items()
        },
        "failures": problems + class_problems + detection.undetected_class_problems(summary["by_class"]),
        "parameters": parameters(held),
        "ms_per_image": np.mean(milliseconds),
        **coverage(samples, predictions.name),
    }


def coverage(samples: Samples, scored: np.ndarray) -> dict:
    """Returns the summary's "unscored", the number of images that no trained fold held out, and "scored".

    "scored" is the SHA-256 of the names of the scored images, by which runs on different test images are told apart.
    """
    return {
        "unscored": len(np.setdiff1d(samples.name, scored)),
        "scored": records.fingerprint(np.unique(scored).tolist()),
    }


def blob_detections(train: Samples, tested: Samples) -> detection.Found:
    """Detects objects of the tested photographs as blobs, with a detector fitted on at most 300 tiles of `train`."""
    train_tiles = train.take(np.random.default_rng(0).permutation(len(train))[:300])
    detectors = blobs.fit(np.asarray(train_tiles.images), train_tiles.boxes, train_tiles.labels)
    return detection.predict(blobs.predict, detectors, tested)


def print_progress(held: Held, tested: Samples) -> None:
    """Prints how many images are being scored, and for which fold."""
    of_fold = f" of fold {held.fold}" if held.fold >= 0 else ""
    print(f"scoring {len(np.unique(tested.name))} images{of_fold}", flush=True)


def parameters(held: Held) -> int:
    """Counts the parameters of a network."""
    return sum(np.size(leaf) for leaf in jax.tree.leaves(held.networks[0]["params"]))
