"""The proof-reading page: landmarks or boxes are checked, corrected by hand and saved as a file (fish paper)."""

import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from jaxmarks import atomic
from jaxmarks.data.ahead import ahead
from jaxmarks.data.photographs import browsable, decode
from jaxmarks.report.pages import page

PAGE, COPIES = "proofread.html", "proofread"


def landmarks(out: Path, images: Path, photographs: list[dict], *, names: Iterable[str] = ()) -> Path:
    """Writes the proof-reading page for landmarks.

    Args:
      out: the folder into which the page is written.
      images: the folder of the photographs.
      photographs: a dict for each: "name", its path within the folder; "size" (height, width); "items" (K, 2), its
        landmarks in its pixels, y down, NaN where one is missing; "doubt" (K,), 1 - score of each landmark, NaN where
        it is unknown; and, where known, "id", "group" and "mm_per_px". If the items were marked by hand, "found" (K, 2)
        are the network's landmarks, and "doubt" is the distance between the two in px.
      names: names of the landmarks.

    Returns:
      The path of the page.
    """
    by_hand = any("found" in entry for entry in photographs)
    help = "Drag a landmark, or move it with the arrow keys (Shift: ten times as far)." + (
        " Orange: the network's landmarks." if by_hand else ""
    )
    first = "largest difference from the network first" if by_hand else "least certain first"
    entries = [entry | {key: _points(entry[key]) for key in {"items", "found"} & entry.keys()} for entry in photographs]
    about = {"names": names, "unit": "px" if by_hand else ""}
    return _write(out, images, entries, "landmarks", about, first=first, help=help)


def boxes(
    out: Path, images: Path, photographs: list[dict], *, names: Iterable[str], threshold: float, least: float = 0.0
) -> Path:
    """Writes the proof-reading page for boxes.

    Args:
      out, images: as for `landmarks`.
      photographs: a dict for each: "name"; "size"; "items", lists (x0, y0, x1, y1, class, score) of its boxes, with
        None as the score of boxes marked by hand; and, where known, "group". If the items were marked by hand, "found"
        are the network's boxes, None for a photograph that it did not predict.
      names: names of the classes.
      threshold: lowest score at which boxes are shown; it can be changed on the page.
      least: lowest value to which the threshold can be changed.

    Returns:
      The path of the page.
    """
    by_hand = any("found" in entry for entry in photographs)
    help = "Drag a box or its corner. With Shift, drag to draw a new box, or click for one of typical size."
    if by_hand:
        help += " Dashed: the network's boxes; a click accepts one."
    first = "largest difference from the network first" if by_hand else "least certain first"
    about = {"names": names, "threshold": threshold, "least": least}
    return _write(out, images, photographs, "boxes", about, first=first, help=help)


def _write(out, images, photographs: list[dict], kind: str, about: dict, **words: str) -> Path:
    """Writes the page, which links to the photographs, or to copies (in `COPIES`) if a browser would not show them."""
    out, images = Path(out), Path(images).absolute()
    link_of = lambda numbered: _source(images / numbered[1]["name"], out, numbered[0])
    links = ahead(link_of, enumerate(photographs), most=32)
    entries = [entry | link for entry, link in zip(photographs, links, strict=True)]
    about = atomic.plain(about | {"names": list(about["names"]), "images": entries})
    title = "/".join(images.parts[-2:])
    atomic.write(out / PAGE, page("proofread.html.jinja", title=title, kind=kind, about=about, **words))
    return out / PAGE


def _source(file: Path, out: Path, number: int) -> dict:
    """Returns the URL, relative to `out`, of a photograph, or of a copy if a browser would show it unlike `decode`."""
    if copied := not browsable(file):
        try:
            pixels = decode(file)
        except OSError:  # it is no longer there: the page will ask for it
            copied = False
        else:
            file = out / COPIES / f"{number:05d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file, quality=92)
    return {"source": quote(Path(os.path.relpath(file, out)).as_posix()), "copied": copied}


def _points(points) -> list:
    """Rounds points (K, 2) to a thousandth of a pixel; missing ones become None."""
    return [np.round(point, 3).tolist() if np.isfinite(point).all() else None for point in points]
