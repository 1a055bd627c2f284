"""A run's files as arrays and rows: predictions, training metrics, and the tables made from them."""

import csv
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Predictions(NamedTuple):
    """Landmarks of N images: `points` and `true` (N, K, 2) and `distances` (N, K).

    They are in px of the photographs, y down; NaN where missing. With several datasets K is the largest number of
    landmarks.
    """

    images: list[str]
    points: np.ndarray
    true: np.ndarray
    distances: np.ndarray


def read_predictions(path: Path) -> Predictions:
    """Reads `predictions.csv`, a row per landmark, those of an image in succession; without rows N = K = 0."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    landmark = np.array([int(row["landmark"]) for row in rows], int) - 1
    image = np.cumsum(landmark == 0) - 1

    def column(key):
        array = np.full((sum(landmark == 0), max(landmark, default=-1) + 1), np.nan)
        array[image, landmark] = [float(row[key] or "nan") for row in rows]
        return array

    points, true = (np.stack([column("x" + end), column("y" + end)], -1) for end in ("", "_true"))
    return Predictions([row["image"] for row in rows if row["landmark"] == "1"], points, true, column("distance"))


def read_metrics(path: Path) -> list[dict]:
    """Reads the epochs in a `metrics.jsonl`; other lines, such as one that a kill cut off, are skipped.

    Each epoch has a "stage" and, added here, a "network": (fold, member of the fold's ensemble).
    """
    epochs = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and {"stage", "fold", "epoch"} <= entry.keys():
            epochs.append(entry | {"network": (entry["fold"], entry.get("member", 0))})
    return epochs


def read_summary(path: Path) -> dict:
    """Reads a `summary.json`, with NaN and infinities as None."""
    return json.loads(path.read_text(), parse_constant=lambda _: None)


def of_network(metrics: list[dict], stage: str, network: tuple[int, int], key: str) -> np.ndarray:
    """Returns the column `key` over the epochs of one network in one stage, NaN where it holds no finite number."""
    epochs = [m for m in metrics if (m["stage"], m["network"]) == (stage, network)]
    values = np.array([np.nan if m.get(key) is None else m[key] for m in epochs], float)
    return np.where(np.isfinite(values), values, np.nan)


def best_epochs(metrics: list[dict]) -> dict[tuple[str, tuple[int, int]], tuple[int, float]]:
    """Maps (stage, network) to (epoch, loss) at its lowest validation loss; networks without one are left out."""
    epochs = {}
    for stage, network in dict.fromkeys((m["stage"], m["network"]) for m in metrics):
        losses = of_network(metrics, stage, network, "valid/loss")
        if np.isfinite(losses).any():
            best = np.nanargmin(losses)
            epochs[stage, network] = int(of_network(metrics, stage, network, "epoch")[best]), float(losses[best])
    return epochs


def per_landmark(distances: np.ndarray, shares=None, names=()) -> list[dict]:
    """Returns a row per landmark: its number and name, image count, mean, median and p95 distance, and three shares.

    Args:
      distances: (N, K).
      shares: (K, 3) or None: shares of the images below the mean, from there to 10 px, and above
        (`ops.metrics.shares`).
      names: of the landmarks; may be empty.
    """
    table, names = [], names or ("",) * distances.shape[1]
    for k, column in enumerate(distances.T):
        values = column[np.isfinite(column)]
        numbers = (values.mean(), np.median(values), np.quantile(values, 0.95)) if values.size else (None,) * 3
        row = {
            "landmark": f"{k + 1} {names[k]}".rstrip(),
            "images": len(values),
            **dict(zip(("mean", "median", "p95"), numbers, strict=True)),
        }
        table.append(row | {"shares": shares[k] if shares else None})
    return table


def worst(images: list[str], distances: np.ndarray, *, most: int = 20) -> list[dict]:
    """Returns a row (image, landmark, distance) for each of the `most` largest distances (N, K), the largest first."""
    order = np.argsort(-distances, axis=None, kind="stable")  # NaN last
    places = [divmod(int(n), distances.shape[1]) for n in order[: min(most, np.isfinite(distances).sum())]]
    return [{"image": images[i], "landmark": k + 1, "distance": float(distances[i, k])} for i, k in places]


def markdown(rows: list[dict], columns: dict[str, str]) -> str:
    """Formats rows as a Markdown table: `columns` maps keys to headings; floats have two decimals, None is a dash."""

    def cell(value):
        if value is None:
            return "–"  # noqa: RUF001
        return f"{value:.2f}" if isinstance(value, float) else str(value).replace("|", "\\|")

    lines = [list(columns.values()), ["---"] * len(columns), *([cell(row[key]) for key in columns] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
