"""Draws the contact sheet of the phantoms: a row for each of the five parts, with the landmarks marked.

For example: `python launch/gallery.py docs/beetles.jpg`.
"""

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from jaxmarks.data import phantoms

SPECIMENS = (90, 12, 35, 13, 30)


def sheet(specimens, *, seed=0, width=480):
    """Returns a figure with a row per part and a column per specimen, drawn as images `width` pixels wide."""
    rows, columns = len(phantoms.PARTS), len(specimens)
    figure, axes = plt.subplots(rows, columns, figsize=(2.4 * columns, 1.8 * rows), squeeze=False, facecolor="#15161a")
    figure.subplots_adjust(0.004, 0.005, 0.996, 0.995, wspace=0.016, hspace=0.02)
    for row, part in zip(axes, phantoms.PARTS, strict=True):
        for axis, specimen in zip(row, specimens, strict=True):
            image, points = phantoms.draw(part, specimen, size=(width * 3 // 4, width), seed=seed)
            height = image.shape[0]
            # imshow puts pixel centres at integers; with this extent its axes are in our coordinates.
            axis.imshow(image, extent=(0, width, height, 0), interpolation="lanczos")
            axis.scatter(*points.T, s=13, c="#ffd23f", edgecolors="#15161a", linewidths=0.6)
            axis.set_axis_off()
    return figure


def main(arguments: list[str] | None = None) -> None:
    """Draws the sheet that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", help="the PNG or JPEG to write")
    parser.add_argument("--specimens", type=int, nargs="+", default=SPECIMENS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dpi", type=int, default=100, help="resolution; 100 makes five specimens 1200 pixels wide")
    options = parser.parse_args(arguments)
    try:
        figure = sheet(options.specimens, seed=options.seed)
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(options.out, dpi=options.dpi)
    except (ValueError, OSError) as error:
        sys.exit(f"gallery: {options.out}: {error}")


if __name__ == "__main__":
    main()
