"""The report: its numbers are the summary's, names are escaped, data may be missing, drawings hit the right pixels."""

import csv
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from jaxmarks import report
from jaxmarks.report import drawings, figures, landmarks, objects, tables


def workdir(tmp_path, *, images=6, landmarks=3, visible=None, valid=True, folds=1, name="im{}.png"):
    """Writes the files of a made-up run; returns its summary."""
    rng = np.random.default_rng(0)
    true = rng.uniform(10, 80, (images, landmarks, 2))
    points = true + rng.normal(0, 2, true.shape)
    distances = np.linalg.norm(points - true, axis=-1)
    visible = np.ones((images, landmarks), bool) if visible is None else visible
    with (tmp_path / "predictions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow("image landmark x y score x_true y_true distance fold".split())
        for i in range(images):
            for k in range(landmarks):
                known = [*true[i, k], distances[i, k]] if visible[i, k] else ["", "", ""]
                rows.writerow([name.format(i), k + 1, *points[i, k], 1.0, *known, 0])
    seen = np.where(visible, distances, np.nan)
    mean = float(seen[visible].mean()) if visible.any() else None
    each = [float(np.nanmean(seen[:, k])) if visible[:, k].any() else None for k in range(landmarks)]
    summary = {
        "mean_distance_px": mean, "median_px": mean, "p95_px": mean, "std_over_folds_px": None, "pearson": 0.99,
        "mean_distance_mm": None, "per_landmark_px": each, "r2": None, "explained_variance": 0.98,
        "success_rates": {"1": 0.1, "4": None}, "sdr_mm": {"2.5": 0.375}, "shares": [[0.5, 0.4, 0.1]] * landmarks, "images": images,
        "landmarks": landmarks, "folds": [{"fold": 0, "mean_distance_px": mean, "images": images}],
        "baselines": {"mean_shape": {"mean_distance_px": 20.25, "per_landmark_px": [20.0] * landmarks}},
        "failures": [{"image": "<i>x</i>.png", "what": "cannot be read", "where": "a.tps: line 3"}],
    }  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "config.json").write_text('{"seed": 0}')
    lines = [
        json.dumps(
            {"stage": "train", "fold": fold, "epoch": e, "train/loss": 1 / e, "valid/loss": 2 / e if valid else None,
             "learning_rate": 0.1, "momentum": 0.9}
        )
        for fold in range(folds) for e in range(1, 6)
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"stage": "tr')  # cut off by a kill
    return summary


class Text(HTMLParser):
    def __init__(self):
        super().__init__()
        self.text, self.tags, self.sources = [], set(), []

    def handle_data(self, data):
        self.text.append(data)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.sources += [value for key, value in attrs if key in ("src", "href")]


def photograph(name):
    return np.full((90, 100, 3), 128, np.uint8)


def parse(path):
    page = Text()
    page.feed(path.read_text())
    return page, re.sub(r"\s+", " ", " ".join(page.text))


def test_the_page_shows_the_summary_and_escapes_names(tmp_path):
    summary = workdir(tmp_path, name="<b>{}.png")
    page, text = parse(report.write(tmp_path, photograph))
    assert f"{summary['mean_distance_px']:.2f} px" in text and "20.25 px" in text and "0.9900" in text
    assert "<b>0.png" in text and "b" in page.tags  # the page's own bold numbers
    assert "<i>x</i>.png" in text and "i" not in page.tags
    assert "a.tps: line 3" in text
    assert "within mm 2.5 landmarks 37.5 %" in text
    assert page.sources and all(s.startswith("data:image/png;base64,") for s in page.sources)  # self-contained
    for value in summary["per_landmark_px"]:
        assert f"{value:.2f}" in text


@pytest.mark.parametrize(
    ("presence", "volume", "said"),
    [
        ({"excluded": 0.74, "kept": 0.85, "threshold": 0.3875}, None, "74.0 % of them and 15.0 % of the visible ones"),
        ({"excluded": 0.74, "kept": 0.85, "threshold": 1.5}, None, "score less than 1.50"),
        ({"excluded": 0.0, "kept": 1.0, "threshold": 1.0}, None, ""),  # regressed coordinates, whose scores are all 1
        (
            {"excluded": 0.74, "kept": 0.85, "threshold": 0.3875},
            {"triples": 1, "refused": 0},
            "",
        ),  # each scout lacks some
    ],
)
def test_the_report_suggests_a_threshold_only_where_it_separates_missing_landmarks(presence, volume, said):
    summary = {"presence": presence | {"auc": 0.87, "missing": 695}, "volume": volume}
    page = report.page("landmarks.html.jinja", title="", summary=summary, figures={})
    assert ("695 landmarks are missing" in page) == bool(said) and said in page
    assert ("--threshold=0.39" in page) == ("74.0 %" in said)


def test_size_and_shape_of_methods_and_datasets_by_hand():
    keys = ("centroid_size_error", "centroid_size_std", "procrustes_distance", "variance_ratio")
    shape = dict(zip(keys, (-0.0123, 0.02, 0.04567, None), strict=True))
    sets = {"heads": {"shape": shape | {"variance_ratio": 0.875}}, "two landmarks": {"shape": dict.fromkeys(shape)}}
    summary = {"shape": shape, "baselines": {"mean_shape": {"shape": shape}, "registration": {}}, "sets": sets}
    rows = landmarks.shapes(summary)
    assert rows == [("network", shape), ("mean shape", shape), ("heads", sets["heads"]["shape"])]
    page = report.page("landmarks.html.jinja", title="", summary=summary, figures={}, shapes=rows)
    text = " ".join(re.sub("<[^>]*>", " ", page).split())
    numbers = "-1.23 % ± 2.00 0.0457"
    assert f"network {numbers} – mean shape {numbers} – heads {numbers} 0.88" in text  # noqa: RUF001
    assert "two landmarks" not in text.partition("Size and shape")[2]


def test_the_figures_are_drawn(tmp_path):
    workdir(tmp_path, folds=3)
    report.write(tmp_path, photograph)
    for name in ("loss", "per_landmark", "histogram", "cumulative", "overlays"):
        image = np.asarray(Image.open(tmp_path / "figures" / f"{name}.png").convert("RGB"))
        assert min(image.shape[:2]) > 80 and image.std() > 3, name
    assert len(list((tmp_path / "figures" / "overlays").glob("*.png"))) == 6


HIDDEN = np.ones((6, 3), bool)
HIDDEN[:, 1] = False


@pytest.mark.parametrize(
    "how",
    [
        {"valid": False},
        {"images": 1},
        {"visible": HIDDEN},
        {"visible": np.zeros((6, 3), bool)},
        {"landmarks": 40},
    ],
    ids=str,
)
def test_missing_data_does_not_stop_the_report(tmp_path, how):
    workdir(tmp_path, **how)
    assert report.write(tmp_path, lambda name: None).exists()


def test_a_report_in_another_folder_needs_no_metrics(tmp_path):
    workdir(tmp_path)
    out = tmp_path / "evaluate"
    out.mkdir()
    for name in ("summary.json", "predictions.csv"):
        (tmp_path / name).rename(out / name)
    (tmp_path / "metrics.jsonl").unlink()
    assert report.write(tmp_path, photograph, out=out) == out / "report.html"


def test_an_overlay_hits_the_right_pixels(tmp_path):
    image = np.full((600, 800, 3), 128, np.uint8)
    drawn = report.overlay(image, [[200.5, 300.5]], [[600.5, 300.5]], path=tmp_path / "o.png")
    orange = np.argwhere((drawn == (0xD5, 0x5E, 0x00)).all(-1))
    np.testing.assert_allclose(orange.mean(0), [300, 200], atol=0.5)  # rows, columns: pixel 200 has its centre at 200.5
    blue = np.argwhere((drawn == (0x00, 0x72, 0xB2)).all(-1))
    np.testing.assert_allclose(blue.mean(0), [300, 600], atol=1)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "o.png")), drawn)
    # Far-off predictions of a diverged network are clipped: drawing them would take very long.
    far = report.overlay(image, [[1e12, -3e8]], [[600.5, 300.5]])
    assert far.shape == image.shape
    large = report.overlay(np.zeros((3000, 4000, 1), np.uint8), [[2000, 1500]])
    assert large.shape == (750, 1000, 3)


def test_boxes_are_drawn_in_place_with_their_class_colour_and_name(tmp_path):
    image = np.full((600, 800, 3), 128, np.uint8)
    boxes, classes = np.array([[100.5, 50.5, 300.5, 250.5], [400.5, 300.5, 700.5, 500.5]]), np.array([1, 0])
    colours = [(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)]
    edges = lambda drawn, colour: np.argwhere((drawn == colour).all(-1))[:, ::-1]
    one = report.rectangles(image, report.class_layers(boxes, classes * 0, ("a",)), path=tmp_path / "o.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "o.png")), one)
    assert [edges(one, colours[0]).min(0).tolist(), edges(one, colours[0]).max(0).tolist()] == [[100, 50], [700, 500]]
    assert not (one == 255).all(-1).any()
    drawn = report.rectangles(image, report.class_layers(boxes, classes, ("a", "b")))
    for c, colour in enumerate(colours):  # the class name is above its box
        x0, y0, x1, y1 = boxes[classes == c][0] - 0.5
        rim = edges(drawn, colour)
        assert rim[:, 0].max() == x1 and rim[:, 1].max() == y1 and y0 - 25 < rim[:, 1].min() < y0
        white = np.argwhere((drawn > 200).all(-1))[:, ::-1]
        near = white[(white[:, 1] < y0) & (white[:, 1] > y0 - 25)]
        assert len(near) > 5 and x0 <= near[:, 0].min() and near[:, 0].max() < x0 + 25
    # A padded label of -1 draws no box; small images are enlarged; boxes of a diverged network are clipped.
    assert not (report.rectangles(image, report.class_layers(boxes, classes * 0 - 1, ("a",))) != 128).any()
    assert report.rectangles(np.zeros((20, 40, 1)), []).shape == (200, 400, 3)
    small = report.rectangles(np.zeros((3000, 4000, 1)), [([[2001, 1001, 2025, 1025]], "#ffffff", [])])
    assert small.shape == (1500, 2000, 3)
    lit = np.argwhere(small[..., 0] == 255)[:, ::-1]  # a line of one pixel, since the box is only twelve wide
    assert (lit.min(0).tolist(), lit.max(0).tolist(), len(lit)) == ([1000, 500], [1012, 512], 48)
    assert report.rectangles(image, [([[-1e12, -1e12, 1e12, 1e12]], "blue", ["far"])]).shape == image.shape


def epochs(*losses, fold=0, member=0, stage="train"):
    return [
        {"stage": stage, "fold": fold, "network": (fold, member), "epoch": n, "valid/loss": loss}
        for n, loss in enumerate(losses, 1)
    ]


def test_the_best_epoch_of_a_network_has_its_lowest_validation_loss():
    metrics = (
        epochs(3.0, None, 1.0, 2.0)
        + epochs(0.5, 0.7, float("nan"), member=1)
        + epochs(None, fold=1)
        + epochs(9.0, stage="tune")
    )
    assert tables.best_epochs(metrics) == {
        ("train", (0, 0)): (3, 1.0),
        ("train", (0, 1)): (1, 0.5),
        ("tune", (0, 0)): (1, 9.0),
    }


def test_worst_landmarks_come_first_and_missing_ones_are_left_out():
    distances = np.array([[1.0, np.nan, 7.0], [5.0, 7.0, np.nan]])
    rows = [(row["image"], row["landmark"], row["distance"]) for row in tables.worst(["a", "b"], distances)]
    assert rows == [("a", 3, 7), ("b", 2, 7), ("b", 1, 5), ("a", 1, 1)]
    assert [row["distance"] for row in tables.worst(["a", "b"], distances, most=2)] == [7, 7]


def test_per_landmark_table_by_hand():
    distances = np.stack([np.arange(101.0) ** 2, np.full(101, np.nan)], axis=-1)
    one, other = tables.per_landmark(distances, [[1, 0, 0], [0, 0, 1]], ["eye", "tail"])
    # The sum of the squares up to n is n (n + 1) (2 n + 1) / 6.
    assert (one["mean"], one["median"], one["p95"], one["images"]) == (pytest.approx(100 * 201 / 6), 50**2, 95**2, 101)
    assert (other["landmark"], other["images"], other["shares"]) == ("2 tail", 0, [0, 0, 1])
    assert other["mean"] is None and other["p95"] is None


def test_threshold_reached_by_90_percent_or_the_largest():
    assert landmarks.threshold_reached_by({"1": 0.2, "2": 0.9, "4": 1.0}) == ("2", 0.9)
    assert landmarks.threshold_reached_by({"1": 0.2, "2": None, "4": 0.5, "8": 0.6}) == ("8", 0.6)
    assert landmarks.threshold_reached_by({"1": None}) is landmarks.threshold_reached_by({}) is None


def test_overlays_show_the_best_the_median_and_the_worst(tmp_path):
    means = np.array([4.0, 1.0, np.nan, 5.0, 2.0, 3.0])
    points = np.full((6, 2, 2), 20.0)
    found = tables.Predictions([f"s/{n}.jpg" for n in range(6)], points, points, np.stack([means, means], -1))
    landmarks.overlays(found, lambda name: np.zeros((40, 50, 3), np.uint8), tmp_path, most=3)
    assert sorted(p.name for p in (tmp_path / "overlays").iterdir()) == ["01_1.png", "02_5.png", "03_3.png"]


def test_contact_sheets_fill_row_by_row(tmp_path):
    report.contact_sheet(
        [np.full((10, 20, 3), v, np.uint8) for v in (50, 150, 250)], tmp_path / "a.png", columns=2, width=20, gap=4
    )
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    assert sheet.shape == (24, 44, 3)
    assert [int(sheet[y, x, 0]) for y, x in ((5, 10), (5, 34), (19, 10))] == [50, 150, 250]


def detections():
    """Image a: one of two objects found, one false alarm; b: found; c: missed, and a false alarm below threshold."""
    box = lambda n: np.tile(np.array([[10, 10, 20, 20]], float), (n, 1))
    yes = lambda text: np.array([one == "1" for one in text])
    found = objects.Boxes(
        np.array(list("aabc")), np.full(4, "s"), box(4), np.array([0.9, 0.8, 0.7, 0.2]), yes("1110"), yes("1010")
    )
    true = objects.Boxes(np.array(list("aabc")), np.full(4, "s"), box(4), np.ones(4), yes("1111"), yes("1010"))
    return found, true


def test_overlays_of_objects_are_ordered_by_mistakes(tmp_path, monkeypatch):
    shown = {}

    def rectangles(image, layers, *, path=None, longest=2000):
        if path:
            shown[path.name] = {colour: len(boxes) for boxes, colour, _ in layers}
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr(drawings, "rectangles", rectangles)
    objects.overlays(*detections(), lambda name: np.zeros((40, 50, 3), np.uint8), tmp_path)
    assert list(shown.items()) == [
        ("01_b.png", {drawings.BLUE: 0, drawings.ORANGE: 0, drawings.GREEN: 1}),
        ("02_c.png", {drawings.BLUE: 1, drawings.ORANGE: 0, drawings.GREEN: 0}),
        ("03_a.png", {drawings.BLUE: 1, drawings.ORANGE: 1, drawings.GREEN: 1}),
    ]


def test_detector_curves_by_hand(tmp_path, monkeypatch):
    drawn, axes = [], figures.axes
    monkeypatch.setattr(figures, "axes", lambda **options: drawn.append(axes(**options)) or drawn[-1])
    objects.curves(detections()[0], 4, 0.5, tmp_path)
    (curve, dot), (f1, precision, recall, limit) = (grid[0, 0].lines for _, grid in drawn)
    np.testing.assert_allclose(curve.get_xydata(), [[1 / 4, 1], [1 / 4, 1 / 2], [2 / 4, 2 / 3], [2 / 4, 2 / 4]])
    np.testing.assert_allclose(dot.get_xydata(), [[2 / 4, 2 / 3]])
    np.testing.assert_allclose(f1.get_xydata(), [[0.9, 2 / 5], [0.8, 2 / 6], [0.7, 4 / 7], [0.2, 4 / 8]])
    np.testing.assert_allclose((precision.get_ydata(), recall.get_ydata()), (curve.get_ydata(), curve.get_xdata()))
    assert set(limit.get_xdata()) == {0.5}
