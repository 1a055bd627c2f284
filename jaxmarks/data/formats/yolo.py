"""YOLO's labels: a .txt for each photograph, a line for each object, in shares of the photograph's width and height.

A line is `class x y width height`, x and y those of the box's centre, or `class x1 y1 x2 y2 ...`, the corners of an
outline, whose box is the one around it. A file without lines is a photograph without objects.
"""

from pathlib import Path

import numpy as np
import yaml

from jaxmarks.data.formats import text
from jaxmarks.data.photographs import files_in
from jaxmarks.data.samples import FormatError

# Where programs write the classes' names: a name a line, or `names` of a YAML file. In the labels' folder or one of the
# two above it.
LISTS, YAML = ("classes.txt", "obj.names"), ("data.yaml", "data.yml")
# Shares are about from 0 to 1, a little more where an object reaches out of the photograph; pixels are not.
FURTHEST = 2.0


def files_of(folder: Path) -> list[Path]:
    """The labels' files in a folder and its subfolders."""
    return [file for file in files_in(folder, {".txt"}) if file.name.lower() not in LISTS]


def classes(folder: Path) -> dict[int, str]:
    """The names of the classes by their numbers.

    Raises:
      FormatError: no file tells them, or one that is damaged.
    """
    folder = folder.absolute()
    for place in (folder, *folder.parents[:2]):
        for file in (place / name for name in LISTS if (place / name).is_file()):
            return dict(enumerate(line.strip() for line in text.read(file, "text").splitlines() if line.strip()))
        for file in (place / name for name in YAML if (place / name).is_file()):
            return _of_yaml(file)
    what = f"no {', '.join((*LISTS, *YAML))} there or above says what YOLO's classes are called"
    raise FormatError(folder, "", what, "write classes.txt into it, a name a line in the order of their numbers from 0")


def _of_yaml(file):
    try:
        found = yaml.safe_load(text.read(file, "YAML"))
    except yaml.YAMLError as error:
        raise FormatError(file, "", f"no YAML: {str(error).splitlines()[0]}", "mend it") from None
    names = found.get("names") if isinstance(found, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(isinstance(number, int) for number in names):
        raise FormatError(file, "", "no list 'names' of the classes", "write names: [spine, stub]")
    return {number: str(name).strip() for number, name in names.items()}


def boxes(file: Path, known: dict[int, str]) -> list[tuple[list[float], str, str]]:
    """(x0, y0, x1, y1) in shares of the photograph, class and place of each object of a file.

    Args:
      file: the labels of one photograph.
      known: the names of the classes by their numbers.

    Raises:
      FormatError: a line of another form, or of a class that has no name.
    """
    found = []
    for n, line in enumerate(text.read(file, "text").splitlines(), 1):
        if not (words := line.split()):
            continue
        where = f"{file}: line {n}"
        if len(words) < 5 or not len(words) % 2:
            what = f"{len(words)} numbers" if words[0].isdecimal() else repr(line.strip()[:60])
            advice = "a line is: class x y width height, or class x1 y1 x2 y2 ..., in shares of the photograph"
            raise FormatError(where, "", what, advice)
        if not words[0].isdecimal() or int(words[0]) not in known:
            there = ", ".join(f"{number} {name}" for number, name in known.items())
            raise FormatError(where, "", f"class {words[0]!r} has no name", f"there are {there}: add its name")
        try:
            values = np.array([text.number(word) for word in words[1:]])
        except ValueError as error:
            raise FormatError(where, "", f"a word that is no number ({error})", "write shares, as 0.25") from None
        if (np.abs(values) > FURTHEST).any():
            what = f"{words[1 + np.argmax(np.abs(values))]} is no share of the photograph's side"
            raise FormatError(where, "", what, "divide pixels by its width and height")
        if len(values) == 4:
            centre, half = values[:2], values[2:] / 2
            low, high = centre - half, centre + half
        else:
            low, high = (extreme(values.reshape(-1, 2), axis=0) for extreme in (np.min, np.max))
        found.append(([*low.tolist(), *high.tolist()], known[int(words[0])], where))
    return found
