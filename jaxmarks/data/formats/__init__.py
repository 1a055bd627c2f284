"""Reads landmark files (TPS, CSV, COCO keypoints, LabelMe, dlib's XML, DeepLabCut) and writes the first four formats.

An `Annotation` holds continuous pixel coordinates, y down; no format is shifted by half a pixel. TPS files count y up,
so their y is subtracted from the height of the image.
"""

import dataclasses
import math
import operator
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxmarks.data.formats import coco, deeplabcut, imglab, labelme, table, text, tps
from jaxmarks.data.photographs import EXIF_TURNS, files_in, finder, image_size, name_of, turn_of, unsure
from jaxmarks.data.samples import Annotation, FormatError, problem

KNOWN = (
    ".tps, .csv, .tsv, .txt (tables, or DeepLabCut), .json (COCO or LabelMe), .xml (dlib), a folder of LabelMe .json or"
    " of DeepLabCut CollectedData*.csv files"
)


def read(path, images=None, problems: list[dict] | None = None, *, curves: int = 0) -> list[Annotation]:
    """Reads a file of landmarks; its extension and content determine the format.

    Args:
      path: the file, or a folder of LabelMe or DeepLabCut files. Several paths, separated by commas, are taken as
        different annotators of the same images, and their `consensus` is returned.
      images: the folder of photographs; TPS needs their heights and by default looks in the file's own folder and its
        subfolders. Each annotation whose photograph is found there is named by the photograph's path relative to the
        folder, and its coordinates refer to the stored pixels: an EXIF rotation is undone for LabelMe, and for other
        formats if the file gives the image's height and width exchanged. If it remains unclear whether the annotator
        saw the image rotated, `size` is None.
      problems: a list to which recoverable problems are appended (`samples.problem`): a photograph that is missing or
        unreadable (its annotation is left out if the image size is needed), a NaN (the landmark is missing), an ID or
        an image given twice, a landmark name that few images have. With None the first problem raises.
      curves: number of points, equally spaced from end to end, that are added after the landmarks for each curve of a
        TPS file with CURVES=; with 0, curves are left out.

    Returns:
      Annotations with the same number of landmarks each, in pixels, y down.

    Raises:
      FormatError: a file cannot be read; the message names the file, the place and the value.
    """
    reported: list[dict] = [] if problems is None else problems
    by_annotator = [_read(file, images, reported, curves) for file in annotators(path)]
    annotations = by_annotator[0] if len(by_annotator) == 1 else consensus(by_annotator, reported)
    if problems is None and reported:
        raise FormatError(reported[0]["where"], "", f"{reported[0]['image']}: {reported[0]['what']}", "correct it")
    return annotations


def _read(path: Path, images, problems: list[dict], curves: int) -> list[Annotation]:
    """Reads one annotator's landmarks for `read`."""
    if not path.exists():
        raise FormatError(path, "", "no such file", "give the path of a landmark file")
    suffix = path.suffix.lower()
    if path.is_dir() and (files := deeplabcut.files_of(path)):
        if unread := files_in(path, {".json"}):
            what = f"{len(unread)} .json files such as {unread[0].name} are not read, because {files[0].name} is there"
            problems.append(problem("", what, str(unread[0])))
        annotations = deeplabcut.read({file: text.csv_cells(file, deeplabcut.HEADER)[0] for file in files}, problems)
    elif path.is_dir():
        annotations = labelme.read(path, problems, images)
    elif suffix == ".tps":
        annotations = _read_tps(path, images, problems, curves)
    elif suffix in (".csv", ".tsv", ".txt"):
        cells = text.csv_cells(path, "image,x1,y1,... or image,landmark,x,y")
        rows, _ = cells
        is_deeplabcut = rows[0][1][0].lower() == "scorer"
        if is_deeplabcut:
            annotations = deeplabcut.read({path: rows}, problems)
        else:
            annotations = table.read(path, cells, problems, images)
    elif suffix == ".xml":
        annotations = imglab.read(path, problems)
    elif suffix == ".json":
        annotations = _read_json(path, problems, images)
    else:
        raise FormatError(path, "", f"unknown format {suffix or '(no ending)'!r}", f"the known formats are {KNOWN}")
    if annotations and suffix != ".tps":  # whose y is subtracted from the height already
        text.report_fractions((a.points[a.visible] for a in annotations), annotations[0].image, path, problems)
    if images is not None:
        annotations = _beside_photographs(annotations, Path(images), problems)
    _check(path, annotations, problems)
    return annotations


def annotators(path) -> list[Path]:
    """Splits comma-separated paths of several annotators' files; an existing path that contains commas is not split."""
    return (
        [Path(path)] if Path(path).exists() else [Path(part.strip()) for part in str(path).split(",") if part.strip()]
    )


def consensus(files: list[list[Annotation]], problems: list[dict]) -> list[Annotation]:
    """Averages several annotators' landmarks, image by image.

    A landmark is averaged over the annotators who marked it. Scale, group and ID come from the first annotator who
    gives one. `problems` reports landmarks that only some annotators of an image marked, conflicting scales, groups and
    IDs, and the number of images that only some annotated.

    Raises:
      FormatError: the annotators mark different numbers of landmarks or name them differently, or one of them annotates
        an image twice.
    """
    place_by_count = {len(a.points): a.where for annotations in files for a in annotations}
    if len(place_by_count) > 1:
        (count, place), (other, other_place) = list(place_by_count.items())[:2]
        raise FormatError(
            place, "", f"{count} landmarks, but {other} in {other_place}", "all annotators must mark the same ones"
        )
    place_by_names = {a.names: a.where for annotations in files for a in annotations if a.names}
    if len(place_by_names) > 1:
        (first_names, first_place), (other_names, where) = list(place_by_names.items())[:2]
        n = next(n for n, pair in enumerate(zip(first_names, other_names, strict=True)) if pair[0] != pair[1])
        what = f"landmark {n + 1} is called {other_names[n]!r}, but {first_names[n]!r} in {first_place}"
        raise FormatError(where, "", what, "all annotators must use the same names in the same order")
    names = next(iter(place_by_names), ())
    by_image = [{a.image: a for a in annotations} for annotations in files]
    for annotations, images in zip(files, by_image, strict=True):
        if len(images) < len(annotations):
            duplicate = next(a for a in annotations if images[a.image] is not a)
            raise FormatError(
                duplicate.where, "", f"{duplicate.image} is annotated twice", "give each image once per annotator"
            )
    merged, image_names = [], dict.fromkeys(a.image for annotations in files for a in annotations)
    if partial := [name for name in image_names if not all(name in images for images in by_image)]:
        what = (
            f"{len(partial)} images, this one among them, are not marked by all {len(files)} annotators: the existing"
            " marks are used"
        )
        problems.append(problem(partial[0], what, files[0][0].where if files[0] else ""))
    for name in image_names:
        marks = [images[name] for images in by_image if name in images]
        visible = np.stack([a.visible for a in marks])
        points = np.where(visible[..., None], np.stack([a.points for a in marks]), 0).sum(0)
        marked = np.logical_or.reduce(visible)
        for k in np.flatnonzero(marked & (visible.sum(0) < len(marks))):
            what = (
                f"landmark {k + 1} is marked by only {visible[:, k].sum()} of {len(marks)} annotators: the existing"
                " marks are used"
            )
            problems.append(problem(name, what, marks[0].where))
        points = points / np.maximum(visible.sum(0), 1)[:, None]
        merged.append(
            dataclasses.replace(
                marks[0], points=points, visible=marked, names=names, **_first_known_metadata(marks, problems)
            )
        )
    return merged


def _first_known_metadata(each: list[Annotation], problems) -> dict:
    """Returns an image's scale, group and ID, each from the first annotator who gives it; reports conflicting ones."""
    metadata: dict = {}
    for key, is_unknown in (("mm_per_px", math.isnan), ("group", operator.not_), ("id", operator.not_)):
        values = [(getattr(a, key), a) for a in each if not is_unknown(getattr(a, key))]
        for value, a in values:
            first = metadata.setdefault(key, value)
            if value != first:
                what = f"{key} {value}, but {first} in {values[0][1].where}: the latter is used"
                problems.append(problem(a.image, what, a.where))
    return metadata


def disagreement(path, images=None, *, curves: int = 0) -> float | None:
    """Returns the mean distance (px) between two annotators' marks of a landmark, over all pairs of annotators.

    None if there is one annotator, or no landmark that two of them marked.
    """
    paths = annotators(path)
    if len(paths) < 2:  # spares reading the file again
        return None
    by_annotator = [{a.image: a for a in read(one, images, [], curves=curves)} for one in paths]
    distances: list[float] = []
    for i, one in enumerate(by_annotator):
        for other in by_annotator[i + 1 :]:
            for image in one.keys() & other.keys():
                both_visible = one[image].visible & other[image].visible
                distances += np.linalg.norm(one[image].points - other[image].points, axis=1)[both_visible].tolist()
    return math.fsum(distances) / len(distances) if distances else None


def _read_json(path, problems, images):
    document = text.read_json(path)
    if isinstance(document, dict) and "shapes" in document:
        return labelme.read(path, problems, images)
    if isinstance(document, dict) and "annotations" in document:
        return coco.read(path, document, problems)
    raise FormatError(path, "line 1", "neither COCO (images, annotations) nor LabelMe (shapes)", "give one of these")


def _beside_photographs(found, images, problems) -> list[Annotation]:
    """Renames annotations after their photographs and maps them to stored pixels; without a photograph, keeps them."""
    find, annotations = finder(images), []
    for a in found:
        try:
            file = find(a.image)
            name = name_of(file, images)
            if a.size is None and not a.upright:  # without a size they can only refer to the stored pixels
                annotations.append(dataclasses.replace(a, image=name))
                continue
            stored_size = image_size(file)
            size = None if not a.upright and unsure(file, a.size, stored_size) else stored_size
        except OSError:  # whatever needs the photograph reports that it is missing
            annotations.append(a)
            continue
        try:
            turn = turn_of(file, a.size, stored_size, upright=a.upright)
        except OSError as error:
            problems.append(problem(name, f"{error}: left out", a.where))
            continue
        points = a.points
        if turn > 1:
            turned = np.stack(EXIF_TURNS[turn](points[:, 0], points[:, 1], *stored_size), axis=-1)
            points = np.where(a.visible[:, None], turned, 0.0)
        annotations.append(dataclasses.replace(a, image=name, points=points, size=size, upright=False))
    return annotations


def _read_tps(path, images, problems, curves):
    specimens, heights, usable = _digitised(path, problems), [], []
    images = path.parent if images is None else Path(images)
    find = finder(images)
    unused_points = {
        "CURVES": (
            [s for s in specimens if s.curves and not curves],
            "; --config.data.curves=10 adds ten points of each curve",
        ),
        "OUTLINES": ([s for s in specimens if s.outlines], ""),
    }
    for key, (records, remedy) in unused_points.items():
        if records:
            what = f"{key} of {len(records)} records are not used: only landmarks (LM=) are learnt{remedy}"
            problems.append(problem(records[0].image or records[0].id, what, f"{path}: line {records[0].line}"))
    if curves:
        specimens = tps.with_curves(specimens, curves, path, problems)
    any_marked = any(len(s.points) for s in specimens)
    curved = next((s for s in specimens if s.curves), None)
    if curved and not any_marked:
        remedy = "--config.data.curves=10 reads ten points of each curve"
        raise FormatError(path, f"line {curved.line}", "CURVES, but no record has a landmark (LM=0)", remedy)
    for s in specimens:
        name, where = s.image or s.id, f"{path}: line {s.line}"
        if not name:
            raise FormatError(path, f"line {s.line}", "a record with neither IMAGE= nor ID=", "add IMAGE=file name")
        if any_marked and not len(s.points):
            problems.append(problem(name, "LM=0, no landmark is marked yet: left out", where))
            continue
        try:
            file = find(name)
            heights.append(image_size(file)[0])
            usable.append(dataclasses.replace(s, image=name_of(file, images)))
        except OSError as error:
            problems.append(problem(name, f"{error}: left out", where))
    if usable:
        text.report_fractions((s.points[s.visible] for s in usable), usable[0].image, path, problems)
    return tps.to_annotations(usable, heights, path)


def _digitised(path, problems):
    """Reads a TPS file without the records that are not digitised yet, which are reported."""
    specimens = []
    for s in tps.read(path):
        if tps.is_blank(s.points, s.visible) and not s.curves:
            what = "all landmarks on one point, not digitised yet: left out"
            problems.append(problem(s.image or s.id, what, f"{path}: line {s.line}"))
        else:
            specimens.append(s)
    return specimens


def _check(path, found, problems):
    """Requires the same number of landmarks, above 0, in all images; reports IDs and images that occur twice."""
    if found and not len(found[0].points):
        raise FormatError(found[0].where or path, "", "no image has a landmark", "digitise the photographs first")
    by_id: dict[str, Annotation] = {}
    by_image: dict[str, Annotation] = {}
    for a in found:
        if len(a.points) != len(found[0].points):
            what = f"{len(a.points)} landmarks, but {len(found[0].points)} in {found[0].where}"
            raise FormatError(a.where or path, "", what, "give every image the same landmarks, NA where one is missing")
        if a.id and a.id in by_id and by_id[a.id].image != a.image:
            problems.append(problem(a.image, f"ID {a.id} is also that of {by_id[a.id].image}", a.where))
        if a.image in by_image:
            where = f"{a.where}; {by_image[a.image].where}"
            problems.append(problem(a.image, "annotated twice: both annotations are kept, in one group", where))
        by_id.setdefault(a.id, a)
        by_image.setdefault(a.image, a)


def write(path, annotations: list[Annotation], heights: Mapping[str, int] | None = None) -> None:
    """Writes annotations in the format of the path's extension: .tps, .csv, .json (COCO), none (a LabelMe folder).

    Args:
      path: the file or folder to write.
      annotations: the landmarks to write.
      heights: image heights in pixels by image name; needed for TPS, which counts y up from the lower edge.

    CSV keeps everything but image sizes and landmark names. TPS keeps neither of these, nor groups. COCO keeps IDs only
    if all images have one and these are distinct whole numbers. LabelMe keeps no IDs, groups or scales.

    Raises:
      ValueError: an unknown extension, a missing height, or content that the format cannot hold.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".tps":
        missing = [a.image for a in annotations if a.image not in (heights or {})]
        if missing:
            raise ValueError(f"{path}: the height of {missing[0]} is not known; give heights={{name: pixels}}")
        tps.write(path, tps.from_annotations(annotations, [(heights or {})[a.image] for a in annotations]))
    elif suffix == ".csv":
        table.write(path, annotations)
    elif suffix == ".json":
        coco.write(path, annotations)
    elif not suffix:
        labelme.write(path, annotations)
    else:
        raise ValueError(f"{path}: unknown format {suffix!r}; give .tps, .csv, .json or a folder (LabelMe)")
