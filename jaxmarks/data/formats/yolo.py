"""YOLO labels: a .txt file per photograph, a line per object, in fractions of the upright photograph's sides.

A line is `class x y width height`, with x and y of the box's centre, or `class x1 y1 x2 y2 ...`, the corners of an
outline, which is read as its bounding box. If data.yaml has a `kpt_shape`, keypoints follow the box; they are ignored.
A file without lines is a photograph without objects.
"""

import contextlib
import math
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from jaxmarks.data.formats import text
from jaxmarks.data.photographs import ENDINGS, files_in
from jaxmarks.data.samples import FormatError

# Files with the class names: one name per line, or the key `names` of a YAML file.
LISTS, YAML = ("classes.txt", "obj.names", "_darknet.labels"), ("data.yaml", "data.yml")
# Files that list the photographs of a split.
SPLITS = ("train.txt", "val.txt", "valid.txt", "test.txt", "trainval.txt")
# By how much fractions may lie below 0 or above 1, to allow for rounding; and how far inside a centre is then put.
SLACK, INSET = 0.01, 1e-6


class Classes(NamedTuple):
    """The class names by number, the file that defines them, and how many keypoint values follow a box."""

    names: dict[int, str]
    file: Path
    keypoints: int = 0


def files_of(folder: Path) -> list[Path]:
    """Returns the label files of a folder and its subfolders: all .txt but README and lists of names or photographs."""

    def is_list_or_readme(file):
        name = file.name.lower()
        return name in LISTS or name.startswith("readme") or (name in SPLITS and _lists_photographs(file))

    return [file for file in files_in(folder, {".txt"}) if not is_list_or_readme(file)]


def is_label(file: Path) -> bool:
    """Whether the first line of a file that is not blank describes an object."""
    try:
        first = next(filter(str.strip, _lines(file)), "")
        return len([text.number(word) for word in first.split()]) >= 5
    except (FormatError, ValueError):
        return False


def photograph_of(file: Path, root: Path) -> str:
    """Returns a label file's photograph: its path relative to `root` without the extension and any folder labels/."""
    path = file.relative_to(root).with_suffix("")
    return "/".join([*(part for part in path.parts[:-1] if part.lower() != "labels"), path.name])


def classes(folder: Path, root: Path) -> Classes:
    """Finds the class names for the labels in `folder`, which is `root` or a folder below it.

    Looks in `folder` and the folders above it, up to two levels above `root`.

    Raises:
      FormatError: no file defines class names, a file is damaged, or two files define different names.
    """
    folder, root = (Path(os.path.abspath(path)) for path in (folder, root))
    top_folder = [root, *root.parents][:3][-1]
    searched_folders = [place for place in (folder, *folder.parents) if place.is_relative_to(top_folder)]
    definitions = [definition for place in searched_folders for definition in _classes_files_in(place)]
    if not definitions:
        what = f"no {', '.join((*LISTS, *YAML))} in this folder or one above it gives the class names"
        raise FormatError(
            folder, "", what, "add a classes.txt to it, with one name per line in the order of the class numbers from 0"
        )
    for other in definitions[1:]:
        if other.names != definitions[0].names:
            raise FormatError(
                definitions[0].file, "", f"its class names differ from those in {other.file}", "delete the wrong file"
            )
    return definitions[0]._replace(keypoints=max(definition.keypoints for definition in definitions))


def _classes_files_in(place):
    """Returns the `Classes` of each file in a folder that defines class names."""
    with contextlib.suppress(PermissionError):
        files = sorted(file for file in place.iterdir() if file.name.lower() in (*LISTS, *YAML) and file.is_file())
        return [(_of_yaml if file.suffix.lower() in (".yaml", ".yml") else _of_list)(file) for file in files]
    return []


def _lines(file):
    """Returns the lines of a text file; str.splitlines would also split within names in Latin-1."""
    return re.split(r"\r\n|\r|\n", text.read(file, "text"))


def _lists_photographs(file):
    lines = [line.strip().lower() for line in _lines(file) if line.strip()]
    return bool(lines) and all(line.endswith(tuple(ENDINGS)) for line in lines)


def _of_list(file):
    names = [line.strip() for line in _lines(file)]
    while names and not names[-1]:
        names.pop()
    if "" in names or not names:
        what = f"no name for class {names.index('') if names else 0}"
        raise FormatError(
            file, f"line {names.index('') + 1 if names else 1}", what, "write one name per line, from class 0 on"
        )
    return Classes(dict(enumerate(names)), file)


def _of_yaml(file):
    try:
        document = yaml.load(text.read(file, "YAML"), yaml.BaseLoader)  # keeps words as written: "no" is a name
    except (yaml.YAMLError, RecursionError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        place = f"line {mark.line + 1}" if mark else ""
        raise FormatError(
            file, place, f"not valid YAML: {problem or str(error).splitlines()[0]}", "correct it"
        ) from None
    document = document if isinstance(document, dict) else {}
    names, malformed = (
        document.get("names"),
        FormatError(
            file, "", "no list 'names' of the classes, or a kpt_shape that is not numbers", "write names: [spine, stub]"
        ),
    )
    if not names or not isinstance(names, list | dict):
        raise malformed
    try:
        pairs = enumerate(names) if isinstance(names, list) else ((int(n), name) for n, name in names.items())
        by_number = dict(pairs)
        keypoints = math.prod(map(int, document["kpt_shape"])) if "kpt_shape" in document else 0
    except (ValueError, TypeError):
        raise malformed from None
    for number, name in by_number.items():
        if not isinstance(name, str) or not name.strip():
            raise FormatError(file, "", f"class {number} is called {str(name)[:40]!r}", "write a name")
    if document.get("nc", str(len(by_number))) != str(len(by_number)):
        raise FormatError(file, "", f"nc: {document['nc']}, but {len(by_number)} names", "name each class once")
    return Classes({number: name.strip() for number, name in by_number.items()}, file, keypoints)


def boxes(file: Path, known: Classes) -> list[tuple[list[float], str, str]]:
    """Returns ([x0, y0, x1, y1] in fractions of the photograph's sides, class, place) for each object of a file.

    Args:
      file: the labels of one photograph.
      known: the classes that they use.

    Raises:
      FormatError: a malformed line, or a class without a name.
    """
    objects = []
    for n, line in enumerate(_lines(file), 1):
        if not (words := line.split()):
            continue
        where = f"{file}: line {n}"
        label = _class(words[0])
        if len(words) != 5 + known.keypoints if known.keypoints else len(words) < 5 or not len(words) % 2:
            what = f"{len(words)} numbers" if label is not None else f"{line.strip()[:60]!r} is not a label"
            keypoints = f" and the {known.keypoints} numbers of data.yaml's kpt_shape" if known.keypoints else ""
            form = keypoints or ", without a confidence, or class x1 y1 x2 y2 ..."
            advice = f"a line is class x y width height{form}, in fractions of the photograph's sides"
            raise FormatError(where, "", what, advice)
        if label not in known.names:
            listing = f"{known.file} has " + ", ".join(f"{n} {name}" for n, name in list(known.names.items())[:10])
            if label is None and not re.fullmatch(r"[+-]?[\d.]+", words[0]):
                raise FormatError(where, "", f"class {words[0][:40]!r} is not a number", f"write its number: {listing}")
            raise FormatError(where, "", f"class {words[0][:40]!r} has no name", f"{listing}: add its name")
        try:
            values = np.array([text.number(word) for word in words[1:]])
        except ValueError as error:
            raise FormatError(where, "", f"a value is not a number ({error})", "write fractions such as 0.25") from None
        values = values[:4] if known.keypoints else values
        outside = (values < -SLACK) | (values > 1 + SLACK)
        if outside.any():
            what = f"{words[1 + np.argmax(outside)]} is not a fraction of the photograph's side"
            raise FormatError(where, "", what, "write from 0 to 1: divide pixels by its width and height")
        if len(values) == 4:
            centre, half = np.clip(values[:2], INSET, 1 - INSET), values[2:] / 2  # else the box would be left out
            low, high = centre - half, centre + half
        else:
            low, high = (extreme(values.reshape(-1, 2), axis=0) for extreme in (np.min, np.max))
        objects.append(([*low.tolist(), *high.tolist()], known.names[label], where))
    return objects


def _class(word):
    """Parses a class number, which some programs write as 0.0; None if the word is not one."""
    try:
        value = text.number(word)
    except ValueError:
        return None
    return int(value) if value.is_integer() and value >= 0 else None
