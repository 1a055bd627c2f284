"""The page on which landmarks are looked through and put right by hand, and saved as a landmark file (fish paper)."""

import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from jaxmarks import atomic
from jaxmarks.data.ahead import ahead
from jaxmarks.data.photographs import browsable, decode
from jaxmarks.report.drawings import emptied
from jaxmarks.report.pages import page

PAGE, COPIES = "proofread.html", "proofread"


def write(
    out: Path, images: Path, photographs: list[dict], *, title: str, names: Iterable[str] = (), unit: str = ""
) -> Path:
    """Writes `proofread.html`, which shows photographs where they lie, and copies of those that no browser shows.

    Args:
      out: where to; copies go to its `proofread/`.
      images: the folder of the photographs.
      photographs: of each its "name" from the folder on, "size" (height, width), "points" (K, 2) in its pixels, y down, NaN
        where one is missing, and the "doubt" (K,) of each, NaN where it is not known; and, where they are known, "found"
        (K, 2), what the network found where the points were marked by hand, "id", "group" and "mm_per_px".
      title: what the page is called.
      names: those of the landmarks.
      unit: that of the doubts, "px" or none.

    Returns:
      The path of the page.
    """
    out, copies = Path(out), Path(out) / COPIES
    emptied(copies)
    sources = ahead(lambda each: _source(out, Path(images), each["name"]), photographs, most=32)
    shown = [_plain(each) | {"source": source} for each, source in zip(photographs, sources, strict=True)]
    if not any(copies.iterdir()):
        copies.rmdir()
    about = {"title": title, "names": list(names), "unit": unit, "images": shown}
    atomic.write(out / PAGE, page("proofread.html.jinja", page=about))
    return out / PAGE


def _source(out: Path, images: Path, name: str) -> str:
    """The address, from `out` on, of a photograph, or of a copy as it is read here where a browser would not show that."""
    file = images / name
    if browsable(file):
        return quote(Path(os.path.relpath(file, out)).as_posix())
    copy = out / COPIES / f"{name}.jpg"
    copy.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(decode(file)).save(copy, quality=92)
    return quote(copy.relative_to(out).as_posix())


def _plain(photograph: dict) -> dict:
    """A photograph's numbers as JSON has them: to a thousandth of a pixel, None for what is missing."""
    point = lambda p: np.round(p, 3).tolist() if np.isfinite(p).all() else None
    plain = atomic.plain(photograph)
    for key in {"points", "found"} & photograph.keys():
        plain[key] = [point(p) for p in photograph[key]]
    return plain
