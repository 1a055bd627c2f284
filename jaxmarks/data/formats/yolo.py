"""YOLO's labels: a .txt for each photograph, a line for each object, in shares of the upright photograph's sides.

A line is `class x y width height`, x and y those of the box's centre, or `class x1 y1 x2 y2 ...`, the corners of an
outline, whose box is the one around it. Where data.yaml has a `kpt_shape`, keypoints follow the box, which are left out. A
file without lines is a photograph without objects.
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

# Where programs write the classes' names: a name a line, or `names` of a YAML file.
LISTS, YAML = ("classes.txt", "obj.names", "_darknet.labels"), ("data.yaml", "data.yml")
# Lists of photographs, by the splits whose they are.
SPLITS = ("train.txt", "val.txt", "valid.txt", "test.txt", "trainval.txt")
# By how much shares may be below 0 or above 1, for rounding's sake.
SLACK = 0.01


class Classes(NamedTuple):
    """The names of the classes by their numbers, the file that tells them, and how many numbers of keypoints follow a box."""

    names: dict[int, str]
    file: Path
    keypoints: int = 0


def files_of(folder: Path) -> list[Path]:
    """The labels' files in a folder and its subfolders: the .txt that are neither README nor lists of names or photographs."""

    def other(file):
        name = file.name.lower()
        return name in LISTS or name.startswith("readme") or (name in SPLITS and _lists_photographs(file))

    return [file for file in files_in(folder, {".txt"}) if not other(file)]


def is_label(file: Path) -> bool:
    """Whether the first line of a file is that of an object."""
    try:
        first = next(filter(str.strip, _lines(file)), "")
        return len([text.number(word) for word in first.split()]) >= 5
    except (FormatError, ValueError):
        return False


def photograph_of(file: Path, root: Path) -> str:
    """The photograph of a labels' file by its path from the `root` on, without `labels`, as beside images/, and its ending."""
    path = file.relative_to(root).with_suffix("")
    return "/".join([*(part for part in path.parts[:-1] if part.lower() != "labels"), path.name])


def classes(folder: Path, root: Path) -> Classes:
    """What is told of the labels in a folder, `root` or one below it: in there or in a folder above, as far as two above `root`.

    Raises:
      FormatError: nothing tells the classes' names, a file that is damaged, or two that tell different ones.
    """
    folder, root = (Path(os.path.abspath(path)) for path in (folder, root))
    last = [root, *root.parents][:3][-1]
    places = [place for place in (folder, *folder.parents) if place.is_relative_to(last)]
    found = [one for place in places for one in _told_in(place)]
    if not found:
        what = f"no {', '.join((*LISTS, *YAML))} there or above says what YOLO's classes are called"
        raise FormatError(
            folder, "", what, "write classes.txt into it, a name a line in the order of their numbers from 0"
        )
    for other in found[1:]:
        if other.names != found[0].names:
            raise FormatError(found[0].file, "", f"other names than in {other.file}", "delete the one that is wrong")
    return found[0]._replace(keypoints=max(one.keypoints for one in found))


def _told_in(place):
    """The `Classes` of each file of a folder that tells them."""
    with contextlib.suppress(PermissionError):
        files = sorted(file for file in place.iterdir() if file.name.lower() in (*LISTS, *YAML) and file.is_file())
        return [(_of_yaml if file.suffix.lower() in (".yaml", ".yml") else _of_list)(file) for file in files]
    return []


def _lines(file):
    """The lines of a text file; those that str.splitlines finds break names in Latin-1, too."""
    return re.split(r"\r\n|\r|\n", text.read(file, "text"))


def _lists_photographs(file):
    lines = [line.strip().lower() for line in _lines(file) if line.strip()]
    return bool(lines) and all(line.endswith(tuple(ENDINGS)) for line in lines)


def _of_list(file):
    names = [line.strip() for line in _lines(file)]
    while names and not names[-1]:
        names.pop()
    if "" in names or not names:
        what = f"no name of class {names.index('') if names else 0}"
        raise FormatError(
            file, f"line {names.index('') + 1 if names else 1}", what, "the lines are those of the classes from 0 on"
        )
    return Classes(dict(enumerate(names)), file)


def _of_yaml(file):
    try:
        found = yaml.load(text.read(file, "YAML"), yaml.BaseLoader)  # words as they are written: "no" is a name
    except (yaml.YAMLError, RecursionError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        place = f"line {mark.line + 1}" if mark else ""
        raise FormatError(file, place, f"no YAML: {problem or str(error).splitlines()[0]}", "mend it") from None
    found = found if isinstance(found, dict) else {}
    names, wrong = (
        found.get("names"),
        FormatError(file, "", "no list 'names' of the classes", "write names: [spine, stub]"),
    )
    if not names or not isinstance(names, list | dict):
        raise wrong
    try:
        pairs = enumerate(names) if isinstance(names, list) else ((int(n), name) for n, name in names.items())
        known = dict(pairs)
        keypoints = math.prod(map(int, found["kpt_shape"])) if "kpt_shape" in found else 0
    except (ValueError, TypeError):
        raise wrong from None
    for number, name in known.items():
        if not isinstance(name, str) or not name.strip():
            raise FormatError(file, "", f"class {number} is called {str(name)[:40]!r}", "write a name")
    if found.get("nc", str(len(known))) != str(len(known)):
        raise FormatError(file, "", f"nc: {found['nc']}, and {len(known)} names", "name each class once")
    return Classes({number: name.strip() for number, name in known.items()}, file, keypoints)


def boxes(file: Path, known: Classes) -> list[tuple[list[float], str, str]]:
    """(x0, y0, x1, y1) in shares of the photograph, class and place of each object of a file.

    Args:
      file: the labels of one photograph.
      known: what is told of them.

    Raises:
      FormatError: a line of another form, or of a class that has no name.
    """
    found = []
    for n, line in enumerate(_lines(file), 1):
        if not (words := line.split()):
            continue
        where = f"{file}: line {n}"
        label = _class(words[0])
        if len(words) != 5 + known.keypoints if known.keypoints else len(words) < 5 or not len(words) % 2:
            what = f"{len(words)} numbers" if label is not None else f"{line.strip()[:60]!r} is no label"
            keypoints = f" and the {known.keypoints} numbers of data.yaml's kpt_shape" if known.keypoints else ""
            form = keypoints or ", without a confidence, or class x1 y1 x2 y2 ..."
            advice = f"a line is class x y width height{form}, in shares of the photograph"
            raise FormatError(where, "", what, advice)
        if label not in known.names:
            there = ", ".join(f"{number} {name}" for number, name in list(known.names.items())[:10])
            raise FormatError(
                where, "", f"class {words[0][:40]!r} has no name", f"{known.file} has {there}: add its name"
            )
        try:
            values = np.array([text.number(word) for word in words[1:]])
        except ValueError as error:
            raise FormatError(where, "", f"a word that is no number ({error})", "write shares, as 0.25") from None
        values = values[:4] if known.keypoints else values
        beyond = (values < -SLACK) | (values > 1 + SLACK)
        if beyond.any():
            what = f"{words[1 + np.argmax(beyond)]} is no share of the photograph's side"
            raise FormatError(where, "", what, "write from 0 to 1: divide pixels by its width and height")
        if len(values) == 4:
            centre, half = values[:2], values[2:] / 2
            low, high = centre - half, centre + half
        else:
            low, high = (extreme(values.reshape(-1, 2), axis=0) for extreme in (np.min, np.max))
        found.append(([*low.tolist(), *high.tolist()], known.names[label], where))
    return found


def _class(word):
    """The number of a class, which some programs write as 0.0; None where it is none."""
    try:
        value = text.number(word)
    except ValueError:
        return None
    return int(value) if value.is_integer() and value >= 0 else None
