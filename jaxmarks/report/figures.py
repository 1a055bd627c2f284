"""The figures of a run, drawn from its files with Matplotlib's object interface (no global state)."""

from pathlib import Path

import numpy as np

from jaxmarks.report import tables
from jaxmarks.report.drawings import BLUE, GREEN, GREY, METHODS, ORANGE, PURPLE, SKY


def axes(rows=1, columns=1, *, size=(7.2, 3.4), **options):
    """Creates a figure and its axes, an array (rows, columns)."""
    from matplotlib.figure import Figure  # takes a third of a second, and a training run needs it only at its end

    figure = Figure(figsize=size, dpi=130, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in grid.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(True, color="#e5e7eb", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.tick_params(labelsize=8, colors="#374151")
    return figure, grid


def loss(metrics: list[dict], path: Path) -> None:
    """Plots losses per epoch (log axis), a column per stage, a line per network; below, learning rate and momentum."""
    stages = list(dict.fromkeys(m["stage"] for m in metrics))
    best = tables.best_epochs(metrics)
    figure, grid = axes(2, len(stages), size=(4 + 3.2 * len(stages), 4.6), sharex="col", height_ratios=(3, 1))
    for (top, below), stage in zip(grid.T, stages, strict=True):
        networks = sorted({m["network"] for m in metrics if m["stage"] == stage})
        for network, shade in zip(networks, np.linspace(1, 0.45, len(networks)), strict=True):
            column = lambda key, network=network, stage=stage: tables.of_network(metrics, stage, network, key)
            label_once = lambda text, first=network == networks[0]: text if first else None
            epoch = column("epoch")
            style = {
                "lw": 1.2 if len(networks) == 1 else 0.7,
                "marker": "." if len(epoch) == 1 else None,
                "alpha": shade,
            }
            for key, colour, text in (("train/loss", GREY, "training"), ("valid/loss", BLUE, "validation")):
                # A log axis cannot show a loss of 0.
                values = np.where(column(key) > 0, column(key), np.nan)
                if np.isfinite(values).any():
                    top.plot(epoch, values, color=colour, label=label_once(text), **style)
                    top.set_yscale("log")
            if best.get((stage, network), (0, 0))[1] > 0:
                top.plot(
                    *best[stage, network],
                    "o",
                    ms=5,
                    color=ORANGE,
                    mec="white",
                    mew=0.7,
                    label=label_once("best epoch"),
                    zorder=3,
                )
        below.plot(epoch, column("learning_rate"), color=GREEN, lw=1)
        below.set_ylabel("learning rate", fontsize=8, color=GREEN)
        below.set_xlabel("epoch", fontsize=8)
        momentum = column("momentum")
        if np.isfinite(momentum).any():
            momentum_axes = below.twinx()
            momentum_axes.plot(epoch, momentum, color=PURPLE, lw=1)
            momentum_axes.set_ylabel("momentum", fontsize=8, color=PURPLE)
            momentum_axes.tick_params(labelsize=7)
            momentum_axes.spines["top"].set_visible(False)
        top.set_title(f"{stage}, {len(networks)} network{'s' if len(networks) > 1 else ''}", fontsize=9, loc="left")
        top.set_ylabel("loss", fontsize=8)
        if top.lines:
            top.legend(fontsize=7, frameon=False)
    figure.savefig(path)


def histograms(distances: np.ndarray, path: Path) -> None:
    """Plots the distribution of each landmark's distances (N, K) in px, with its mean and 95th percentile."""
    count = distances.shape[1]
    columns = min(count, 6)
    rows = -(-count // columns)
    figure, grid = axes(rows, columns, size=(1.5 * columns + 0.6, 1.15 * rows + 0.5), sharex=True)
    finite = distances[np.isfinite(distances)]
    limit = np.quantile(finite, 0.99) if finite.size else 1.0
    for k, ax in enumerate(grid.flat):
        if k >= count:
            ax.set_visible(False)
            continue
        values = distances[np.isfinite(distances[:, k]), k]
        ax.set_yticks([])
        ax.text(0.97, 0.95, str(k + 1), transform=ax.transAxes, ha="right", va="top", fontsize=9, weight="bold")
        if values.size:
            ax.hist(np.minimum(values, limit), bins=24, range=(0, limit), color=SKY)
            ax.axvline(values.mean(), color=BLUE, lw=1.2)
            ax.axvline(min(np.quantile(values, 0.95), limit), color=ORANGE, lw=1.2, ls="--")
    figure.supxlabel("distance (px)", fontsize=8)
    figure.savefig(path)


def per_landmark(methods: dict[str, list], path: Path) -> None:
    """Plots the mean distance of each landmark in px, one curve per method."""
    figure, grid = axes(size=(7.2, 3.2))
    ax = grid[0, 0]
    for (name, values), colour in zip(methods.items(), METHODS * 9, strict=False):
        y = np.array([np.nan if v is None else v for v in values], float)
        ax.plot(np.arange(1, len(y) + 1), y, "o-", color=colour, ms=3.5, lw=1.4, label=name)
    ax.set_ylim(bottom=0)
    ax.set_xticks(range(1, len(y) + 1, max(1, len(y) // 20)))
    ax.set_xlabel("landmark", fontsize=8)
    ax.set_ylabel("mean distance (px)", fontsize=8)
    ax.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=4)
    figure.savefig(path)


def cumulative(distances: np.ndarray, path: Path) -> None:
    """Plots the share of landmarks within each distance."""
    figure, grid = axes(size=(7.2, 2.8))
    ax, values = grid[0, 0], np.sort(distances[np.isfinite(distances)])
    if values.size:
        ax.step(values, np.arange(1, len(values) + 1) / len(values), color=BLUE, lw=1.5, where="post")
        ax.set_xlim(0, np.quantile(values, 0.995) or 1)
        for share, colour, text in ((0.5, GREEN, "half of them"), (0.95, ORANGE, "95 %")):
            x = np.quantile(values, share)
            ax.plot([0, x, x], [share, share, 0], color=colour, lw=0.9, ls="--")
            ax.annotate(
                f"{text} within {x:.3g} px", (x, share), xytext=(6, -5), textcoords="offset points",
                fontsize=8, color=colour, va="top", ha="left" if share < 0.9 else "right",
            )  # fmt: skip
    ax.set_ylim(0, 1.01)
    ax.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    ax.set_xlabel("distance (px)", fontsize=8)
    ax.set_ylabel("share of landmarks", fontsize=8)
    figure.savefig(path)
