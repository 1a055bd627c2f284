"""Landmark files: round trips, variants that programs and people write, and errors that name the faulty place."""

import contextlib
import csv
import dataclasses
import io
import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jaxmarks import formats, tps
from jaxmarks.data import folder, photographs
from jaxmarks.data.formats import coco, labelme, table
from jaxmarks.data.samples import Annotation, FormatError

number = st.floats(allow_nan=False, allow_infinity=False, min_value=0, max_value=1e300)
text = st.text("abcXYZ0189_-. ()=é", min_size=1, max_size=12).map(str.strip).filter(bool)
# A point of a curve may lie anywhere, or be missing.
curve_point = st.one_of(st.tuples(*2 * [st.floats(allow_nan=False, allow_infinity=False)]), st.just((np.nan, np.nan)))
curve = st.lists(curve_point, max_size=3).map(lambda rows: np.array(rows, float).reshape(-1, 2))


@st.composite
def specimens(draw):
    count = draw(st.integers(0, 5))
    visible = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool)
    points = np.array(draw(st.lists(st.tuples(number, number), min_size=count, max_size=count)), float).reshape(-1, 2)
    depth = None
    if draw(st.booleans()):
        depth = np.where(visible, draw(st.lists(number, min_size=count, max_size=count)), 0.0)
    return tps.Specimen(
        points=np.where(visible[:, None], points, 0.0),
        visible=visible,
        depth=depth,
        image=draw(st.one_of(st.just(""), text)),
        id=draw(st.one_of(st.just(""), text)),
        comment=draw(st.one_of(st.just(""), text)),
        scale=draw(st.one_of(st.none(), st.floats(1e-12, 1e12))),
        curves=draw(st.lists(curve, max_size=2)),
        outlines=draw(st.lists(curve, max_size=1)),
        extra=draw(st.one_of(st.just({}), text.map(lambda value: {"VARIABLES": value}))),
    )


def same(a, b):
    arrays = lambda s: [s.points, s.visible, np.zeros(0) if s.depth is None else s.depth, *s.curves, *s.outlines]
    plain = lambda s: (s.image, s.id, s.comment, s.scale, s.depth is None, s.extra, len(s.curves))
    assert plain(a) == plain(b)
    for mine, theirs in zip(arrays(a), arrays(b), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@settings(deadline=None)
@given(st.lists(specimens(), min_size=1, max_size=3), st.sampled_from(["\n", "\r\n", "\r"]))
def test_tps_round_trip_is_exact(records, newline):
    read = tps.loads(tps.dumps(records).replace("\n", newline))
    assert len(read) == len(records)
    for mine, theirs in zip(records, read, strict=True):
        same(mine, theirs)


@pytest.mark.parametrize("column", ["group", "specimen", "Individual"])
def test_csv_group_column_has_synonyms(tmp_path, column):
    (tmp_path / "marks.csv").write_text(f"file,{column},x1,y1\na.png,7,1,2\nb.png,7,3,4\n")
    found = formats.read(tmp_path / "marks.csv")
    assert [(a.image, a.group) for a in found] == [("a.png", "7"), ("b.png", "7")]


@given(
    st.integers(1, 99_999),
    st.lists(st.tuples(st.integers(0, 10**13), st.integers(0, 10**13)), min_size=1, max_size=4),
)
def test_y_up_to_y_down_and_back_is_exact(height, digits):
    # Coordinates with up to nine decimals.
    points = np.array([[float(f"{x}e-9"), float(f"{y}e-9")] for x, y in digits])
    record = tps.Specimen(points, np.ones(len(points), bool), image="a.png")
    (annotation,) = tps.to_annotations([record], [height])
    np.testing.assert_allclose(annotation.points[:, 1], height - points[:, 1])
    (back,) = tps.from_annotations([annotation], [height])
    np.testing.assert_array_equal(back.points, points)
    assert tps.dumps([back]) == tps.dumps([record])


def test_tps_variants_in_the_wild_are_read():
    (first, second) = tps.loads(
        "\ufefflm = 5\r\n1.5e+02\t2E1\r\n\r\n12,5 33,1\r\nNA NA\r\n-1 -1\r\n7, 8\r\nIMAGE=C:\\pics\\a b.JPG\r\n"
        "id = 7\r\nSCALE=0,0125\r\nCOMMENT=left = right\r\nCURVES=1\r\nPOINTS=2\r\n1 2\r\n3 4\r\nVARIABLES=a=1\r\n"
        "LM3=1\r\n1 2 3\r\n"
    )
    np.testing.assert_array_equal(first.points, [[150, 20], [12.5, 33.1], [0, 0], [0, 0], [7, 8]])
    np.testing.assert_array_equal(first.visible, [True, True, False, False, True])
    assert (first.image, first.id, first.scale, first.comment) == ("C:\\pics\\a b.JPG", "7", 0.0125, "left = right")
    np.testing.assert_array_equal(first.curves[0], [[1, 2], [3, 4]])
    assert first.extra == {"VARIABLES": "a=1"} and (first.line, second.line) == (1, 17)
    np.testing.assert_array_equal(second.depth, [3])


def test_curve_points_may_be_negative_and_missing_ones_are_nan():
    (record,) = tps.loads("LM=0\nCURVES=1\nPOINTS=3\n1 2\n-3 -4\nNA NA\n")
    np.testing.assert_array_equal(record.curves[0], [[1, 2], [-3, -4], [np.nan, np.nan]])


def test_tps_refuses_to_write_what_it_cannot_hold():
    record = tps.Specimen(np.array([[-1.0, 2], [-1, -2]]), np.array([True, True]), image="a.png")
    with pytest.raises(ValueError, match=r"a\.png: landmark 2 at \(-1, -2\)"):
        tps.dumps([record])
    record.points[1] = 3, np.inf
    assert tps.dumps([record]) == "LM=2\n-1 2\nNA NA\nIMAGE=a.png\n"
    record.comment = "two\nLM=1"
    with pytest.raises(ValueError, match="line break"):
        tps.dumps([record])


MALFORMED = {
    "empty": ("", 1),
    "blank": ("\n \n", 1),
    "json": ('{"shapes": []}', 1),
    "prose": ("these are my landmarks\n", 1),
    "rows before LM": ("1 2\nLM=1\n1 2\n", 1),
    "key before LM": ("IMAGE=a.png\nLM=1\n1 2\n", 1),
    "count is a word": ("LM=three\n1 2\n", 1),
    "count is negative": ("LM=-2\n1 2\n", 1),
    "count is a fraction": ("LM=1.5\n1 2\n", 1),
    "count is missing": ("LM=\n1 2\n", 1),
    "too few rows": ("LM=3\n1 2\n3 4\nIMAGE=a.png\n", 4),
    "too many rows": ("LM=1\n1 2\n3 4\nIMAGE=a.png\n", 3),
    "count is immense": ("LM=99999999999\n1 2\n", 2),
    "the file ends": ("LM=3\n1 2\n", 2),
    "one number": ("LM=2\n1 2\n3\n", 3),
    "three numbers": ("LM=2\n1 2\n3 4 5\n", 3),
    "two in LM3": ("LM3=1\n1 2\n", 2),
    "a word": ("LM=1\n1 two\n", 2),
    "a broken exponent": ("LM=1\n1e 2\n", 2),
    "half missing": ("LM=2\n1 2\n12 NA\n", 3),
    "a Python number": ("LM=1\n1_0 2\n", 2),
    "curves twice": ("LM=0\nCURVES=1\nPOINTS=1\n1 2\nCURVES=1\nPOINTS=1\n1 2\n", 5),
    "infinite": ("LM=1\n1 inf\n", 2),
    "key twice": ("LM=1\n1 2\nID=1\nID=2\n", 4),
    "scale is a word": ("LM=1\n1 2\nSCALE=big\n", 3),
    "scale is zero": ("LM=1\n1 2\nSCALE=0\n", 3),
    "curves is a word": ("LM=1\n1 2\nCURVES=x\n", 3),
    "curves without points": ("LM=1\n1 2\nCURVES=1\nIMAGE=a\n", 4),
    "curve cut short": ("LM=1\n1 2\nCURVES=1\nPOINTS=2\n1 2\n", 5),
    "curves at the end": ("LM=1\n1 2\nCURVES=2\nPOINTS=0\n", 3),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_tps_errors_name_file_and_line(name, tmp_path):
    content, line = MALFORMED[name]
    (tmp_path / "bad.tps").write_text(content)
    with pytest.raises(FormatError) as error:
        tps.read(tmp_path / "bad.tps")
    assert "bad.tps" in str(error.value) and f"line {line}:" in str(error.value), str(error.value)


def test_binary_tps_is_refused(tmp_path):
    (tmp_path / "bad.tps").write_bytes(b"\x89PNG\0\0")
    with pytest.raises(FormatError, match=r"bad\.tps: line 1: binary"):
        tps.read(tmp_path / "bad.tps")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_text_encodings_are_detected(encoding, tmp_path):
    (tmp_path / "a.tps").write_bytes("LM=1\n1 2\nCOMMENT=Käfer\n".encode(encoding))
    assert tps.read(tmp_path / "a.tps")[0].comment == "Käfer"
    (tmp_path / "a.csv").write_bytes("image,x1,y1\nKäfer.png,1,2\n".encode(encoding))
    assert formats.read(tmp_path / "a.csv")[0].image == "Käfer.png"


def annotations():
    return [
        Annotation("a.png", np.array([[1.5, 2.25], [0.1, 1e-7]]), np.array([True, True]), 0.02, "1", "g1"),
        Annotation("b.png", np.array([[3.0, 4.0], [0, 0]]), np.array([True, False]), id="2", group="g2"),
    ]


@pytest.mark.parametrize("layout", ["wide", "long"])
def test_csv_round_trip_is_exact(layout, tmp_path):
    table.write(tmp_path / "a.csv", annotations(), layout=layout)
    for mine, theirs in zip(annotations(), formats.read(tmp_path / "a.csv"), strict=True):
        np.testing.assert_array_equal(mine.points, theirs.points)
        np.testing.assert_array_equal(mine.visible, theirs.visible)
        assert (mine.image, mine.id, mine.group) == (theirs.image, theirs.id, theirs.group)
        np.testing.assert_equal(mine.mm_per_px, theirs.mm_per_px)


@pytest.mark.parametrize(
    "content",
    [
        "image,x1,y1,x2,y2\na.png,1.5,2,,\n",
        "\ufeffimage;x1;y1;x2;y2\r\na.png;1,5;2;NA;NA\r\n",
        "image\tx1\ty1\tx2\ty2\na.png\t1.5\t2\t\t\n",
        "image,landmark,x,y,score\na.png,1,1.5,2,0.9\na.png,2,NA,NA,0.1\n",
        "image,landmark,x,y\na.png,tip,,\na.png,base,1.5,2\n",
    ],
)
def test_csv_layouts_and_delimiters_are_recognised(content, tmp_path):
    (tmp_path / "a.csv").write_text(content)
    (found,) = formats.read(tmp_path / "a.csv")
    np.testing.assert_array_equal(found.points, [[1.5, 2], [0, 0]])
    np.testing.assert_array_equal(found.visible, [True, False])


@pytest.mark.parametrize(
    "content, line, value",
    [
        ("name,x1,y1\na,1,2\n", 1, "image"),
        ("image,x1,y1\na.png,1,oops\n", 2, "oops"),
        ("image,x1,y1\na.png,1\n", 2, "2 cells"),
        ("image,x1,y1,x1\na.png,1,2,3\n", 1, "x1"),
        ("image,x1,y1,x2\na.png,1,2,3\n", 1, "y2"),
        ("image,landmark,x,y\na.png,1,1,2\na.png,1,1,2\n", 3, "is given twice"),
        ("image,landmark,x,y\na.png,0,1,2\n", 2, "landmark 0"),
        ("image,landmark,x,y\na.png,1,1,2\na.png,00,1,2\n", 3, "landmark 00"),
        ("image,x1,y1,y2\na.png,1,2,3\n", 1, "x2"),
        ("image,x0,y0,x1,y1\na.png,1,2,3,4\n", 1, "x2"),
        ("image,x1,y1\na.png,1,inf\n", 2, "inf"),
        ('image,x1,y1\na.png,"1,234",2\n', 2, "1,234"),  # thousands separator or decimal comma: ambiguous
        ("image,x1,y1,mm_per_px\na.png,1,2,-0.5\n", 2, "-0.5"),
        ("image,x1,y1,mm_per_px\na.png,1,2,0\n", 2, "a scale mm_per_px of 0"),
        ("image,landmark,x,y\na.png,10001,1,2\n", 2, "landmark 10001"),
        ('image,x1,y1\n\n"a.png,1,2\nb.png,1,2\n', 3, "unclosed quote"),
        (f"image,x1,y1\n{'a' * 200_000},1,2\n", 2, "not valid CSV"),
        ("image,x1,y1\n,1,2\n", 2, "no image name"),
        ("image,x1,y1\n", 1, "without rows"),
        ('"', 1, "empty"),
        ("", 1, "empty"),
    ],
)
def test_csv_errors_name_file_line_and_value(content, line, value, tmp_path):
    (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(FormatError) as error:
        formats.read(tmp_path / "bad.csv")
    assert f"bad.csv: line {line}:" in str(error.value) and value in str(error.value)


def test_row_names_of_r_are_refused_with_the_remedy(tmp_path):
    """R's write.table gives them no heading."""
    (tmp_path / "a.csv").write_text('"image","x1","y1"\n"1","a.png",1,2\n"2","b.png",3,4\n')
    with pytest.raises(FormatError, match=r"line 1: all rows have 4 cells where .* 3; .*row\.names=FALSE"):
        formats.read(tmp_path / "a.csv")


def test_csv_nan_is_missing_and_reported(tmp_path):
    (tmp_path / "a.csv").write_text("image,x1,y1\na.png,nan,2\n")
    problems: list = []
    (found,) = formats.read(tmp_path / "a.csv", problems=problems)
    assert not found.visible.any() and "NaN" in problems[0]["what"] and "line 2" in problems[0]["where"]
    with pytest.raises(FormatError, match="NaN"):
        formats.read(tmp_path / "a.csv")


def test_fractions_of_the_sides_are_reported(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    what = "all coordinates are from 0 to 1, like fractions of the photograph's sides: pixels are expected"
    for name, content in (
        ("a.csv", "image,x1,y1,x2,y2\na.png,{},1,NA,NA\n"),
        ("a.tps", "LM=2\n{} 1\nNA NA\nIMAGE=a.png\n"),
    ):
        for share, count in (("0.25", 1), ("1", 0), ("1.5", 0)):
            problems: list[dict] = []
            (tmp_path / name).write_text(content.format(share))
            formats.read(tmp_path / name, tmp_path, problems)
            assert [(p["image"], p["what"]) for p in problems] == [("a.png", what)] * count


def test_landmark_with_one_coordinate_is_missing_and_reported(tmp_path):
    (tmp_path / "a.csv").write_text("image,x1,y1,x2,y2\na.png,12,,NA,NA\n")
    problems: list = []
    (found,) = formats.read(tmp_path / "a.csv", problems=problems)
    assert not found.visible.any()
    assert [p["what"] for p in problems] == ["landmark 1 has only one coordinate: treated as missing"]


@pytest.mark.parametrize("labels", [["²", "1a"], ["p10", "p9", "p²"]])
def test_labels_with_superscript_digits_are_read(labels, tmp_path):
    rows = "".join(f"a.png,{label},1,2\n" for label in labels)
    (tmp_path / "a.csv").write_text("image,landmark,x,y\n" + rows, encoding="utf-8")
    shapes = [{"label": label, "points": [[1, 2]]} for label in labels]
    (tmp_path / "a.json").write_text(json.dumps({"shapes": shapes, "imagePath": "a.png"}))
    for name in ("a.csv", "a.json"):
        assert formats.read(tmp_path / name)[0].visible.tolist() == [True] * len(labels)


def test_labelme_files_do_not_overwrite_each_other(tmp_path):
    names = ["s/a.png", "t/a.png", "t/a.png", "a_2.png"]
    labelme.write(
        tmp_path / "out", [Annotation(n, np.array([[k, 1.0]]), np.array([True])) for k, n in enumerate(names)]
    )
    found = formats.read(tmp_path / "out", problems=[])
    assert sorted((a.points[0, 0], a.image) for a in found) == list(enumerate(names))


def test_coco_and_labelme_round_trips_keep_images_and_points(tmp_path):
    coco.write(tmp_path / "a.json", annotations())
    labelme.write(tmp_path / "labelme", annotations())
    for path in (tmp_path / "a.json", tmp_path / "labelme"):
        for mine, theirs in zip(annotations(), formats.read(path), strict=True):
            np.testing.assert_array_equal(mine.points, theirs.points)
            np.testing.assert_array_equal(mine.visible, theirs.visible)
            assert mine.image == theirs.image


@pytest.mark.parametrize(
    "document, message",
    [
        ({"images": [], "annotations": [{"keypoints": [1, 2]}]}, r"annotations\[0\]"),
        ({"images": [], "annotations": [{"keypoints": [1, 2, 2], "image_id": 4}]}, "image_id 4"),
        ({"images": [{"id": 1}], "annotations": [{"keypoints": [1, 2, 2], "image_id": 1}]}, r"images\[0\]"),
        (
            {"images": [{"id": 1, "file_name": "a"}], "annotations": [{"keypoints": [1, 2, 2], "image_id": 1}] * 2},
            r"annotations\[1\].*second specimen",
        ),
        (
            {
                "images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}],
                "annotations": [{"keypoints": [1, 2, 2], "image_id": 1}],
            },
            r"images\[1\].*id 1 is given twice",
        ),
        (
            {
                "images": [{"id": 1, "file_name": "a", "mm_per_px": 0}],
                "annotations": [{"keypoints": [1, 2, 2], "image_id": 1}],
            },
            r"images\[0\].*mm_per_px 0",
        ),
        (
            {"images": [{"id": 1, "file_name": "a"}], "annotations": [{"keypoints": [10**400, 2, 2], "image_id": 1}]},
            "not all numbers",
        ),
        ({"shapes": [{"label": "a", "points": [[10**400, 1]]}]}, "is not a list of points"),
        ({"annotations": []}, "images"),
        ({"nothing": 1}, "neither COCO"),
        ({"shapes": [{"label": "a", "points": [[1]]}]}, r"shapes\[0\]"),
        ({"shapes": []}, "no point shape"),
    ],
)
def test_json_errors_name_file_and_entry(document, message, tmp_path):
    (tmp_path / "bad.json").write_text(json.dumps(document))
    with pytest.raises(FormatError, match=message) as error:
        formats.read(tmp_path / "bad.json")
    assert "bad.json" in str(error.value)


def test_json_with_an_overlong_integer_is_refused(tmp_path):
    (tmp_path / "bad.json").write_text(f'{{"shapes": {"1" * 9_000}}}')
    with pytest.raises(FormatError, match="not valid JSON"):
        formats.read(tmp_path / "bad.json")


def test_truncated_json_error_names_the_line(tmp_path):
    (tmp_path / "bad.json").write_text('{"images": [\n{"id": 1')
    with pytest.raises(FormatError, match=r"bad\.json: line 2"):
        formats.read(tmp_path / "bad.json")


def test_labels_sort_naturally_and_duplicates_are_reported(tmp_path):
    shapes = [{"label": f"l{k}", "points": [[k, 2]]} for k in (10, 2, 1)] + [{"label": "l2", "points": [[5, 5]]}]
    (tmp_path / "a.json").write_text(json.dumps({"shapes": shapes, "imagePath": "..\\x\\a.png"}))
    problems: list = []
    (found,) = formats.read(tmp_path / "a.json", problems=problems)
    assert found.image == "a.png" and "l2 is marked twice" in problems[0]["what"]
    np.testing.assert_array_equal(found.points[:, 0], [1, 0, 10])
    np.testing.assert_array_equal(found.visible, [True, False, True])


def test_tps_y_is_flipped_by_the_image_height(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "Beetle.PNG")
    (tmp_path / "a.tps").write_text("LM=1\n4 10\nIMAGE=D:\\photos\\beetle.png\nSCALE=0.5\n")
    (found,) = formats.read(tmp_path / "a.tps", tmp_path)
    np.testing.assert_array_equal(found.points, [[4, 20]])
    assert (found.image, found.mm_per_px) == ("Beetle.PNG", 0.5)
    # By default the photographs are looked for beside the file.
    np.testing.assert_array_equal(formats.read(tmp_path / "a.tps")[0].points, [[4, 20]])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match="no such image"):
        formats.read(tmp_path / "a.tps", tmp_path / "empty")
    formats.write(tmp_path / "b.tps", [found], {"Beetle.PNG": 30})
    np.testing.assert_array_equal(tps.read(tmp_path / "b.tps")[0].points, [[4, 10]])


def test_an_absolute_path_may_leave_the_image_folder(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    (tmp_path / "a.tps").write_text(f"LM=1\n4 10\nIMAGE={tmp_path / 'a.png'}\n")
    (found,) = formats.read(tmp_path / "a.tps", tmp_path / "images")
    np.testing.assert_array_equal(found.points, [[4, 20]])
    samples, _, problems = folder.load(tmp_path / "images", tmp_path / "a.tps", size=(30, 40))
    assert len(samples) == 1 and not problems


def test_too_deeply_nested_json_is_refused(tmp_path):
    (tmp_path / "bad.json").write_text("[" * 200_000)
    with pytest.raises(FormatError, match=r"bad\.json: line 1"):
        formats.read(tmp_path / "bad.json")


def test_recoverable_tps_problems_are_reported(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    Image.new("RGB", (40, 30)).save(tmp_path / "b.png")
    record = "LM=1\n4 10\nIMAGE={}\nID={}\n".format
    (tmp_path / "a.tps").write_text(
        record("a.png", 1) + record("gone.png", 2) + record("b.png", 1) + record("a.png", 3)
    )
    problems: list = []
    found = formats.read(tmp_path / "a.tps", tmp_path, problems)
    assert [a.image for a in found] == ["a.png", "b.png", "a.png"]
    assert [p["image"] for p in problems] == ["gone.png", "b.png", "a.png"]
    for problem, word in zip(problems, ("no such image", "ID 1 is also that of", "annotated twice"), strict=True):
        assert word in problem["what"]


def test_landmark_count_error_names_both_records(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    (tmp_path / "a.tps").write_text("LM=1\n4 10\nIMAGE=a.png\nLM=2\n4 10\n5 6\nIMAGE=a.png\n")
    with pytest.raises(FormatError, match=r"line 4.*2 landmarks, but 1 in .*line 1"):
        formats.read(tmp_path / "a.tps", tmp_path)


def test_unknown_formats_and_missing_files_are_refused(tmp_path):
    (tmp_path / "a.xyz").write_text("")
    with pytest.raises(FormatError, match=r"'\.xyz'.*\.tps"):
        formats.read(tmp_path / "a.xyz")
    with pytest.raises(FormatError, match="no such file"):
        formats.read(tmp_path / "none.tps")


def test_real_datasets_are_read(real_data):
    wings = formats.read(real_data / "wings" / "wings.tps", real_data / "wings" / "images")
    assert len(wings) == 58 and all(a.visible.all() for a in wings)
    np.testing.assert_array_equal(wings[0].points[0], [290, 480 - 108])
    fish = formats.read(real_data / "fish" / "keypoints.json")
    assert len(fish) == 1563 and sum(a.visible.all() for a in fish) == 386
    problems: list = []
    ceph = formats.read(real_data / "ceph" / "annotator_a", problems=problems)
    assert len(ceph) == 101 and len(ceph[0].points) == 19 and len(problems) == 1
    np.testing.assert_array_equal(ceph[0].points[0], [225.105, 366.645])
    assert len(formats.read(real_data / "chest" / "landmarks.csv")) == 669


@pytest.mark.parametrize("part", ["elytra", "left_mandible", "right_mandible"])
def test_beetle_tps_matches_the_published_landmarks_y_down(part, real_data):
    published: dict = {}
    with (real_data / "beetle" / "published_landmarks.csv").open() as file:
        for row in csv.DictReader(file):
            if row["part"] == part:
                published.setdefault(int(row["specimen"]), []).append((float(row["x_manual"]), float(row["y_manual"])))
    images = real_data / "beetle" / "images"
    for a in formats.read(real_data / "beetle" / f"{part}.tps", images):
        scale = 3264 / photographs.image_size(images / a.image)[1]  # published in pixels of the original photographs
        np.testing.assert_allclose(a.points * scale, published[int(a.id)], atol=0.01)


def two_annotators(tmp_path, second):
    """Writes two annotators' wide CSV files of two landmarks, two.csv with the rows `second`; returns both paths."""
    (tmp_path / "one.csv").write_text("image,x1,y1,x2,y2\na.png,10,20,30,40\nb.png,1,2,3,4\n")
    (tmp_path / "two.csv").write_text("image,x1,y1,x2,y2\n" + second)
    return f"{tmp_path}/one.csv,{tmp_path}/two.csv"


def test_marks_of_several_annotators_are_averaged(tmp_path):
    problems = []
    path = two_annotators(tmp_path, "b.png,4,6,NA,NA\na.png,12,20,30,44\n")
    a, b = formats.read(path, problems=problems)
    np.testing.assert_array_equal(a.points, [[11, 20], [30, 42]])
    np.testing.assert_array_equal(b.points, [[2.5, 4], [3, 4]])  # only one annotator marked the second landmark
    assert b.visible.all()
    assert [(p["image"], p["what"]) for p in problems] == [
        ("b.png", "landmark 2 is marked by only 1 of 2 annotators: the existing marks are used")
    ]
    # The annotators' marks are 2, 4 and 5 px apart.
    np.testing.assert_allclose(formats.disagreement(path), (2 + 4 + 5) / 3)
    assert formats.disagreement(tmp_path / "one.csv") is None


def test_annotators_metadata_is_merged_and_conflicts_are_reported(tmp_path):
    (tmp_path / "one.csv").write_text("image,x1,y1,group,mm_per_px\na,1,1,NA,\nb,1,1,s1,0.5\nc,1,1,NA,NA\n")
    (tmp_path / "two.csv").write_text("image,x1,y1,group,mm_per_px\na,3,1,s1,0.5\nb,1,1,s2,0.5\nc,1,1,,\n")
    problems = []
    a, b, c = formats.read(f"{tmp_path}/one.csv,{tmp_path}/two.csv", problems=problems)
    assert [(x.group, x.mm_per_px) for x in (a, b)] == [("s1", 0.5)] * 2
    assert c.group == "" and np.isnan(c.mm_per_px)
    assert [(p["image"], p["what"], p["where"]) for p in problems] == [
        ("b", f"group s2, but s1 in {tmp_path}/one.csv: line 3: the latter is used", f"{tmp_path}/two.csv: line 3")
    ]


def test_images_that_one_annotator_skipped_are_one_problem(tmp_path):
    rows = "".join(f"{i}.png,1,2,3,4\n" for i in range(30))
    for name, some in (("a.csv", rows), ("b.csv", "3.png,1,2,NA,NA\n")):
        (tmp_path / name).write_text("image,x1,y1,x2,y2\n" + some)
    problems: list[dict] = []
    assert len(formats.read(f"{tmp_path / 'a.csv'},{tmp_path / 'b.csv'}", problems=problems)) == 30
    assert [(p["image"], p["what"].split(":")[0]) for p in problems] == [
        ("0.png", "29 images, this one among them, are not marked by all 2 annotators"),
        ("3.png", "landmark 2 is marked by only 1 of 2 annotators"),
    ]


def test_annotators_with_other_landmark_names_are_refused(tmp_path):
    for name, labels in (("a.csv", ("nose", "tail")), ("b.csv", ("mouth", "nose"))):
        rows = "".join(f"1.png,{label},{k},2\n" for k, label in enumerate(labels))
        (tmp_path / name).write_text("image,landmark,x,y\n" + rows)
    with pytest.raises(FormatError, match=r"landmark 1 is called 'mouth', but 'nose' in .*a\.csv"):
        formats.read(f"{tmp_path / 'a.csv'},{tmp_path / 'b.csv'}")
    for name, labels in (("a.json", ["nose", "tail"]), ("b.json", ["tail", "nose"])):
        document = {
            "images": [{"id": 1, "file_name": "a.png"}],
            "annotations": [{"image_id": 1, "keypoints": [1, 2, 2, 3, 4, 2]}],
            "categories": [{"id": 1, "keypoints": labels}],
        }
        (tmp_path / name).write_text(json.dumps(document))
    with pytest.raises(FormatError, match="landmark 1 is called 'tail', but 'nose' in"):
        formats.read(f"{tmp_path / 'a.json'},{tmp_path / 'b.json'}")


def test_landmark_names_round_trip_and_numbers_are_not_names(tmp_path):
    named = Annotation("a.png", np.array([[1.0, 2], [3, 4]]), np.ones(2, bool), size=(9, 9), names=("tail", "nose"))
    formats.write(tmp_path / "a.json", [named])
    assert formats.read(tmp_path / "a.json")[0].names == ("tail", "nose")
    formats.write(tmp_path / "labelme", [named])
    (found,) = formats.read(tmp_path / "labelme")
    assert found.names == ("nose", "tail") and found.points.tolist() == [[3, 4], [1, 2]]
    for place in ("b.json", "marks"):
        formats.write(tmp_path / place, [dataclasses.replace(named, names=())])
        assert formats.read(tmp_path / place)[0].names == ()
    formats.write(tmp_path / "b.csv", [named])
    for pair in ("b.csv,a.json", "a.json,b.json"):
        both = ",".join(str(tmp_path / name) for name in pair.split(","))
        assert formats.read(both)[0].names == ("tail", "nose")


def test_annotators_with_unequal_counts_or_repeated_images_are_refused(tmp_path):
    path = two_annotators(tmp_path, "a.png,1,2,3,4\n")
    (tmp_path / "two.csv").write_text("image,x1,y1\na.png,1,2\n")
    with pytest.raises(formats.FormatError, match="must mark the same"):
        formats.read(path)
    (tmp_path / "two.csv").write_text("image,x1,y1,x2,y2\na.png,1,2,3,4\na.png,1,2,3,4\n")
    with pytest.raises(formats.FormatError, match="twice"):
        formats.read(path, problems=[])


def test_a_path_with_a_comma_is_one_file(tmp_path):
    (tmp_path / "left,right.csv").write_text("image,x1,y1\na.png,1,2\n")
    assert len(formats.read(tmp_path / "left,right.csv")) == 1


def test_csv_quirks_of_programs_are_handled(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes("image,x1,y1\nŠkoda 1.jpg,1,2\n".encode("cp1252"))
    assert formats.read(file)[0].image == "Škoda 1.jpg"
    file.write_text("id,image,landmark,x,y\n1,a.jpg,1,2,3\n2,a.jpg,2,4,5\n")  # IDs that number the rows are dropped
    assert [(a.id, a.points.tolist()) for a in formats.read(file)] == [("", [[2, 3], [4, 5]])]
    file.write_text("image,x1,y1,scale\na.jpg,1,2,118.5\n")  # ignored: it may be in pixels per mm
    assert np.isnan(formats.read(file)[0].mm_per_px)
    file.write_text("image,x0,y0,x1,y1\na.jpg,1,2,3,4\n")
    with pytest.raises(FormatError, match="no column 'x2', columns are numbered from 1"):
        formats.read(file)
    (tmp_path / "a.tsv").write_text("image\tx1\ty1\na.jpg\t1,5\t2\n")
    assert formats.read(tmp_path / "a.tsv")[0].points.tolist() == [[1.5, 2]]
    # Only a decimal point in a coordinate excludes decimal commas, not one in the group.
    (tmp_path / "a.tsv").write_text("image\tgroup\tx1\ty1\na.jpg\t1.2\t3,5\t4\n")
    assert formats.read(tmp_path / "a.tsv")[0].points.tolist() == [[3.5, 4]]
    (tmp_path / "a.tsv").write_text("image\tx1\ty1\na.jpg\t1,234\t2.5\n")  # perhaps a thousand
    with pytest.raises(FormatError, match="'1,234' is not a number"):
        formats.read(tmp_path / "a.tsv")


def test_coco_size_0_is_unknown_and_a_folder_of_coco_is_refused(tmp_path):
    Image.new("L", (60, 40)).save(tmp_path / "a.png")
    image = {"id": 1, "file_name": "a.png", "width": 0, "height": 0}
    (tmp_path / "a.json").write_text(
        json.dumps({"images": [image], "annotations": [{"image_id": 1, "keypoints": [1, 2, 2]}]})
    )
    assert formats.read(tmp_path / "a.json", tmp_path)[0].points.tolist() == [[1, 2]]
    (tmp_path / "marks").mkdir()
    (tmp_path / "a.json").rename(tmp_path / "marks" / "_annotations.coco.json")
    with pytest.raises(FormatError, match="a COCO file, not LabelMe"):
        formats.read(tmp_path / "marks")


# Photographs with an EXIF orientation


@pytest.fixture
def turned(tmp_path):
    """JPEGs of 20x30 px, bright around the stored (22, 4), one per EXIF orientation; and the upright points, sizes."""
    points = {}
    for turn in range(1, 9):
        image = np.zeros((20, 30, 3), np.uint8)
        image[2:6, 20:24] = 255
        exif = Image.Exif()
        exif[0x0112] = turn
        file = tmp_path / f"{turn}.jpg"
        Image.fromarray(image).save(file, quality=100, exif=exif)
        upright = np.asarray(ImageOps.exif_transpose(Image.open(file)).convert("L"), float)
        y, x = np.mgrid[: upright.shape[0], : upright.shape[1]] + 0.5
        points[turn] = (x * upright).sum() / upright.sum(), (y * upright).sum() / upright.sum(), upright.shape
    return tmp_path, points


def test_labelme_points_are_turned_to_stored_pixels(turned):
    images, points = turned
    (images / "marks").mkdir()
    for turn, (x, y, (h, w)) in points.items():
        shapes = [{"label": "a", "points": [[x, y]], "shape_type": "point"}]
        document = {"imagePath": f"{turn}.jpg", "shapes": shapes, "imageHeight": h, "imageWidth": w}
        (images / "marks" / f"{turn}.json").write_text(json.dumps(document))
    for a in formats.read(images / "marks", images):
        np.testing.assert_allclose(a.points, [[22, 4]], atol=0.2, err_msg=a.image)
        assert not a.upright and a.size == (20, 30)
    samples, _, problems = folder.load(images, images / "marks", size=(20, 30))
    np.testing.assert_allclose(samples.points[:, 0], [[22, 4]] * 8, atol=0.2)
    assert problems == []


def test_coco_size_gives_the_orientation_and_a_wrong_one_is_reported(turned):
    images, points = turned
    x, y, (h, w) = points[6]
    entry = lambda turn, size: {"id": turn, "file_name": f"{turn}.jpg", "height": size[0], "width": size[1]}
    # 6.jpg was annotated upright, 1.jpg as stored; the marks on 3.jpg are from an image of half the size.
    document = {
        "images": [entry(6, (h, w)), entry(1, (20, 30)), entry(3, (10, 15))],
        "annotations": [
            {"image_id": 6, "keypoints": [x, y, 2]},
            {"image_id": 1, "keypoints": [22, 4, 2]},
            {"image_id": 3, "keypoints": [4, 8, 2]},
        ],
    }
    (images / "coco.json").write_text(json.dumps(document))
    problems = []
    found = formats.read(images / "coco.json", images, problems)
    assert [a.image for a in found] == ["6.jpg", "1.jpg"]
    np.testing.assert_allclose([a.points[0] for a in found], [[22, 4]] * 2, atol=0.2)
    assert [p["what"] for p in problems] == ["annotated at 15x10 pixels, but the photograph has 30x20: left out"]


# Content that is not used, or that only some records or files have


def test_empty_tps_records_and_unused_curves_are_reported(tmp_path):
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    (tmp_path / "a.tps").write_text("LM=1\n1 1\nCURVES=1\nPOINTS=2\n1 1\n2 2\nIMAGE=a.png\nLM=0\nIMAGE=b.png\n")
    problems = []
    assert [a.image for a in formats.read(tmp_path / "a.tps", problems=problems)] == ["a.png"]
    assert [(p["image"], p["what"]) for p in problems] == [
        (
            "a.png",
            "CURVES of 1 records are not used: only landmarks (LM=) are learnt; --config.data.curves=10 adds ten points of each curve",
        ),
        ("b.png", "LM=0, no landmark is marked yet: left out"),
    ]
    (tmp_path / "b.tps").write_text("LM=0\nIMAGE=a.png\nLM=0\nIMAGE=b.png\n")
    with pytest.raises(FormatError, match=r"b\.tps.* no image has a landmark"):
        formats.read(tmp_path / "b.tps")


def test_records_that_are_not_digitised_yet_are_left_out(tmp_path):
    """As in a session of geomorph's digitize2d that was not finished."""
    for name in "abc":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    blank = "LM=2\n{0} {0}\n{0} {0}\nIMAGE={1}.png\nID={1}\nSCALE={2}\n".format
    (tmp_path / "a.tps").write_text(
        "LM=2\n1 1\n0 0\nIMAGE=a.png\nSCALE=0.5\n" + blank(0, "b", "0") + blank(3, "c", "0.0")
    )
    problems = []
    (found,) = formats.read(tmp_path / "a.tps", problems=problems)
    assert found.points.tolist() == [[1, 7], [0, 8]] and found.mm_per_px == 0.5
    what = "all landmarks on one point, not digitised yet: left out"
    assert [(p["image"], p["what"]) for p in problems] == [("b.png", what), ("c.png", what)]
    (tmp_path / "a.csv").write_text("image,x1,y1,x2,y2\na.png,1,1,0,0\nb.png,0,0,0.0,0\nc.png,3,3,3,3\n")
    problems = []
    assert [a.image for a in formats.read(tmp_path / "a.csv", problems=problems)] == ["a.png", "c.png"]
    what = "all landmarks at (0, 0), not digitised yet: left out"
    assert [(p["image"], p["what"]) for p in problems] == [("b.png", what)]


CURVED = """LM=1
1 1
CURVES=2
POINTS=3
0 0
6 0
6 2
POINTS=2
4 4
4 4
OUTLINES=1
POINTS=1
3 3
IMAGE=a.png
LM=1
2 2
CURVES=2
POINTS=1
5 5
POINTS=3
1 1
NA NA
3 3
IMAGE=b.png
LM=1
3 3
IMAGE=c.png
LM=0
IMAGE=d.png
"""


def test_curve_points_follow_the_landmarks(tmp_path):
    for name in "abcd":
        Image.new("RGB", (8, 10)).save(tmp_path / f"{name}.png")
    (tmp_path / "a.tps").write_text(CURVED)
    problems = []
    a, b, c = formats.read(tmp_path / "a.tps", problems=problems, curves=3)
    # The midpoint of a curve with sides of 6 and 2 px is on the first; all points of a curve of length 0 coincide.
    assert a.points.tolist() == [[1, 9], [0, 10], [4, 10], [6, 8], [4, 6], [4, 6], [4, 6]] and a.visible.all()
    assert [x.visible.tolist() for x in (b, c)] == [[True] + [False] * 6] * 2
    assert (c.points[0] == [3, 7]).all() and not c.points[1:].any()
    lacking = "curve {} is not there: treated as missing"
    assert [(p["image"], p["what"]) for p in problems] == [
        ("a.png", "OUTLINES of 1 records are not used: only landmarks (LM=) are learnt"),
        ("b.png", "curve 1 has 1 points: treated as missing"),
        ("b.png", "curve 2 has a missing point: treated as missing"),
        *(("c.png", lacking.format(k)) for k in (1, 2)),
        ("d.png", "LM=0, no landmark is marked yet: left out"),
    ]


def test_curves_suffice_and_files_without_curves_stay_as_they_are(tmp_path):
    Image.new("RGB", (8, 10)).save(tmp_path / "a.png")
    (tmp_path / "a.tps").write_text("LM=0\nCURVES=1\nPOINTS=2\n0 0\n4 0\nIMAGE=a.png\n")
    with pytest.raises(FormatError, match=r"line 1: CURVES, but no record has a landmark.*; --config\.data\.curves=10"):
        formats.read(tmp_path / "a.tps", problems=[])
    (alone,) = formats.read(tmp_path / "a.tps", curves=5)
    assert alone.points.tolist() == [[x, 10] for x in range(5)]
    # The predictions of a network trained on curves are such a file.
    formats.write(tmp_path / "b.tps", [alone], {"a.png": 10})
    assert formats.read(tmp_path / "b.tps", curves=5)[0].points.tolist() == alone.points.tolist()


def test_unequal_numbers_of_curves_and_curves_of_1_point_are_refused(tmp_path):
    (tmp_path / "a.tps").write_text(CURVED.replace("CURVES=2\nPOINTS=1\n5 5\n", "CURVES=1\n"))
    with pytest.raises(FormatError, match=r"line 15.* CURVES=1, but CURVES=2 in the record of line 1.*digitise"):
        formats.read(tmp_path / "a.tps", curves=3)
    with pytest.raises(ValueError, match=r"curves=1: give 0 or at least 2"):
        formats.read(tmp_path / "a.tps", curves=1)


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=2, max_size=12), st.integers(2, 30))
def test_resampled_points_are_equally_spaced_along_the_curve(corners, count):
    """Compares with a loop that walks along the curve from corner to corner and measures its length."""
    curve = np.array(corners)
    points = tps.resample(curve, count)
    sides = np.linalg.norm(np.diff(curve, axis=0), axis=1)
    total = sides.sum()
    np.testing.assert_allclose(points[[0, -1]], curve[[0, -1]], atol=1e-6)
    expected = []
    for k in range(count):
        due, before = total * k / (count - 1), 0.0
        for start, stop, side in zip(curve[:-1], curve[1:], sides, strict=True):
            if before + side >= due and side > 0:
                expected.append(start + (due - before) / side * (stop - start))
                break
            before += side
        else:
            expected.append(curve[-1])
    np.testing.assert_allclose(points, expected, atol=1e-6 * max(total, 1))


def test_labelme_subfolders_are_read_and_rare_labels_reported(tmp_path):
    (tmp_path / "s").mkdir()
    for n in range(12):
        label = "L1" if n == 3 else "l1 "
        shapes = [{"label": label, "points": [[n, 1]]}] if n else []
        ending = "JSON" if n == 1 else "json"
        (tmp_path / "s" / f"{n}.{ending}").write_text(json.dumps({"imagePath": f"{n}.png", "shapes": shapes}))
    problems = []
    found = formats.read(tmp_path, problems=problems)
    assert len(found) == 12
    assert {(p["image"], p["what"]) for p in problems} == {
        ("3.png", "landmark L1 is in only 1 of 12 images: is its name misspelt?"),
        ("0.png", "no points: all landmarks are missing"),
    }


def test_rare_landmark_names_are_reported_for_csv_and_dlib_xml(tmp_path):
    names = ["tip", "tip", "tpi", "tip"]
    rows = [f"{n}.png,{name},1,2\n{n}.png,base,3,4" for n, name in enumerate(names)]
    (tmp_path / "a.csv").write_text("\n".join(["image,landmark,x,y", *rows]))
    boxes = [
        f"<image file='{n}.png'><box top='0' left='0' width='9' height='9'><part name='{name}' x='1' y='2'/>"
        "<part name='base' x='3' y='4'/></box></image>"
        for n, name in enumerate(names)
    ]
    (tmp_path / "a.xml").write_text(f"<dataset><images>{''.join(boxes)}</images></dataset>")
    for file in ("a.csv", "a.xml"):
        problems: list[dict] = []
        formats.read(tmp_path / file, problems=problems)
        assert [(p["image"], p["what"]) for p in problems] == [
            ("2.png", "landmark tpi is in only 1 of 4 images: is its name misspelt?")
        ]
    # Of two images, neither name can be called rare.
    (tmp_path / "a.csv").write_text("image,landmark,x,y\n0.png,tip,1,2\n1.png,base,1,2\n")
    assert len(formats.read(tmp_path / "a.csv")) == 2


def test_csv_refuses_unequal_landmark_counts(tmp_path):
    marked = [Annotation(f"{k}.png", np.ones((k, 2)), np.ones(k, bool)) for k in (3, 2)]
    with pytest.raises(ValueError, match=r"2.png has 2 landmarks, but 3.png has 3: read all with the same `curves`"):
        formats.write(tmp_path / "a.csv", marked)


def test_metadata_in_one_row_holds_for_the_whole_image(tmp_path):
    (tmp_path / "a.csv").write_text("image,landmark,x,y,group,mm_per_px\na,1,1,1,,NA\na,2,2,2,g,0.5\n")
    (a,) = formats.read(tmp_path / "a.csv")
    assert (a.group, a.mm_per_px) == ("g", 0.5)
    (tmp_path / "a.csv").write_text("image,landmark,x,y,group\na,1,1,1,f\na,2,2,2,g\n")
    with pytest.raises(FormatError, match="line 3: group g of a, but f in an earlier row"):
        formats.read(tmp_path / "a.csv")


def test_coco_nulls_are_unknown_and_differing_categories_are_refused(tmp_path):
    image = {"id": 1, "file_name": "a.png", "group": None, "mm_per_px": None}
    document = {"images": [image], "annotations": [{"image_id": 1, "category_id": 1, "keypoints": [1, 1, 2]}]}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document))
    (a,) = formats.read(path)
    assert a.group == "" and np.isnan(a.mm_per_px)
    path.write_text(json.dumps(document | {"images": [image | {"mm_per_px": np.inf}]}))
    with pytest.raises(FormatError, match="mm_per_px inf is not a length"):
        formats.read(path)
    categories = [{"id": 1, "keypoints": ["head"]}, {"id": 2, "keypoints": ["tail"]}]
    second = {"image_id": 2, "category_id": 2, "keypoints": [1, 1, 2]}
    document["images"].append(image | {"id": 2})
    path.write_text(
        json.dumps(document | {"annotations": [*document["annotations"], second], "categories": categories})
    )
    with pytest.raises(FormatError, match=r"annotations\[1\].*another category"):
        formats.read(path)


def test_coco_categories_without_annotations_are_ignored_and_ids_may_be_floats(tmp_path):
    document = {
        "images": [{"id": 7.0, "file_name": "a.png"}],
        "annotations": [{"image_id": 7, "category_id": 2.0, "keypoints": [1, 2, 2, 3, 4, 2]}],
        "categories": [{"id": 1, "keypoints": ["head"]}, {"id": 2, "keypoints": ["nose", "tail"]}],
    }
    (tmp_path / "a.json").write_text(json.dumps(document))
    (a,) = formats.read(tmp_path / "a.json")
    assert (a.id, a.names, a.points.tolist()) == ("7", ("nose", "tail"), [[1, 2], [3, 4]])
    document["images"][0]["id"] = 7.5
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(FormatError, match=r"images\[0\]: no id"):
        formats.read(tmp_path / "a.json")


def test_csv_groups_and_ids_of_na_are_empty(tmp_path):
    for text in (
        "image,x1,y1,group,id\na,1,1,NA,na\nb,1,1,s,7\n",
        "image,landmark,x,y,group,id\na,1,1,1,NA,na\nb,1,1,1,s,7\n",
    ):
        (tmp_path / "a.csv").write_text(text)
        assert [(a.group, a.id) for a in formats.read(tmp_path / "a.csv")] == [("", ""), ("s", "7")]


@pytest.mark.parametrize("row", ["10 ,20", "10, 20", "10\t,20", "10,20", "10 20", "10 , 20", "10,0 20,0"])
def test_tps_commas_are_separators_or_decimals(row):
    (found,) = tps.loads(f"LM=1\n{row}\nIMAGE=a.png\n")
    np.testing.assert_array_equal(found.points, [[10, 20]])


def test_labelme_image_paths_start_at_the_files_own_folder(tmp_path):
    for number, place in enumerate((".", "s1", "s2")):
        for folder_ in ("photographs", "marks"):
            (tmp_path / folder_ / place).mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 9), 100 * number).save(tmp_path / "photographs" / place / "dorsal.png")
        for file, path in (
            (tmp_path / "photographs" / place / "dorsal.json", "dorsal.png"),
            (tmp_path / "marks" / place / "dorsal.json", "dorsal.png"),  # same relative place in another folder
            (
                tmp_path / "marks" / place / "far.json",
                f"{'' if place == '.' else '../'}../photographs/{place}/dorsal.png",
            ),
        ):
            shapes = [{"label": "a", "points": [[number, 1]], "shape_type": "point"}]
            file.write_text(json.dumps({"imagePath": path, "shapes": shapes}))
    expected = [("dorsal.png", 0), ("s1/dorsal.png", 1), ("s2/dorsal.png", 2)]
    for marks in ("photographs", "marks"):
        found = formats.read(tmp_path / marks, tmp_path / "photographs", problems=[])
        assert sorted({(a.image, a.points[0, 0]) for a in found}) == expected
    assert len(found) == 6
    found = formats.read(tmp_path / "photographs")
    assert sorted((a.image, a.points[0, 0]) for a in found) == expected


def test_labelme_shapes_other_than_points_are_reported(tmp_path):
    shapes = [{"label": "a", "points": [[1, 1]]}] + 2 * [
        {"label": "b", "points": [[1, 1], [2, 2]], "shape_type": "line"}
    ]
    (tmp_path / "a.json").write_text(json.dumps({"imagePath": "a.png", "shapes": shapes}))
    problems = []
    (a,) = formats.read(tmp_path / "a.json", problems=problems)
    assert len(a.points) == 1 and [p["what"] for p in problems] == [
        "shapes that are not points (2 of type line): not used"
    ]


def test_labelme_refuses_a_landmark_that_is_visible_nowhere(tmp_path):
    a = Annotation("a.png", np.ones((3, 2)), np.array([True, False, True]))
    with pytest.raises(ValueError, match="landmark 2 is visible in no image"):
        formats.write(tmp_path / "out", [a])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": float("nan")}, "the scale nan"),
        ({"scale": 0.0}, "the scale 0"),
        ({"extra": {"LM": "3"}}, "LM= in extra"),
        ({"extra": {"a-b": "3"}}, "would be read differently"),
        ({"extra": {"variables": "3"}}, "would be read differently"),
        ({"comment": " lead"}, "would be read differently"),
        ({"image": "a\nb"}, "would be read differently"),
        ({"id": "a\rb"}, "would be read differently"),
    ],
)
def test_tps_refuses_to_write_invalid_scales_keys_and_texts(changes, message):
    with pytest.raises(ValueError, match=message):
        tps.dumps([tps.Specimen(np.ones((1, 2)), np.ones(1, bool), **changes)])


def test_curve_points_that_are_not_finite_are_missing():
    curve = np.array([[1.0, 2], [np.nan, 3], [np.inf, 4]])
    (read,) = tps.loads(tps.dumps([tps.Specimen(np.ones((1, 2)), np.ones(1, bool), curves=[curve])]))
    np.testing.assert_array_equal(read.curves[0], [[1, 2], [np.nan] * 2, [np.nan] * 2])


def test_excel_sep_line_and_dos_end_of_file_are_ignored(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"sep=;\r\nimage;x1;y1\r\na.png;1,5;2\r\nb.png;x;3\r\n\x1a")
    with pytest.raises(FormatError, match="line 4: 'x' is not a number"):
        formats.read(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_bytes(b"sep=;\nimage;x1;y1\na.png;1,5;2\n\x1a")
    np.testing.assert_array_equal(formats.read(tmp_path / "a.csv")[0].points, [[1.5, 2]])
    (tmp_path / "a.csv").write_bytes(b"sep=;\nimage;x0;y0\na.png;1,5;2\n")
    with pytest.raises(FormatError, match=r"line 2: no column 'x1'"):
        formats.read(tmp_path / "a.csv")
    assert tps.loads("LM=1\n1 2\nIMAGE=a.png\n")[0].image == "a.png"
    (tmp_path / "a.tps").write_bytes(b"LM=1\r\n1 2\r\nIMAGE=a.png\r\n\x1a")
    assert len(tps.read(tmp_path / "a.tps")) == 1


def test_without_a_problems_list_the_first_problem_raises(tmp_path):
    (tmp_path / "a.csv").write_text("image,x1,y1,x2,y2\nA.png,1,2,3,4\n")
    (tmp_path / "b.csv").write_text("image,x1,y1,x2,y2\nA.png,1,2,NA,NA\n")
    both = f"{tmp_path / 'a.csv'},{tmp_path / 'b.csv'}"
    problems: list = []
    assert formats.read(both, problems=problems)[0].visible.all() and len(problems) == 1
    with pytest.raises(FormatError, match="landmark 2 is marked by only 1 of 2") as error:
        formats.read(both)
    assert str(error.value).count("a.csv") == 1
    (tmp_path / "c.csv").write_text("image,x1,y1\nA.png,nan,2\n")
    with pytest.raises(FormatError) as error:
        formats.read(tmp_path / "c.csv")
    assert str(error.value).count("c.csv") == 1


def test_format_errors_can_be_pickled():
    error = pickle.loads(pickle.dumps(FormatError("a.csv", "line 2", "3 cells", "mend it")))
    assert str(error) == "a.csv: line 2: 3 cells; mend it"


def test_written_coco_is_scored_by_pycocotools(tmp_path):
    points = np.array([[2.0, 3], [12, 23], [7, 9]])
    one = Annotation("a.png", points, np.array([True, True, False]), size=(40, 60))
    none = Annotation("b.png", points, np.zeros(3, bool))
    formats.write(tmp_path / "a.json", [one, none])
    assert formats.read(tmp_path / "a.json", problems=[])[0].size == (40, 60)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "a.json"))
        found = [{"image_id": 1, "category_id": 1, "keypoints": truth.anns[1]["keypoints"], "score": 1.0}]
        scored = COCOeval(truth, truth.loadRes(found), "keypoints")
        scored.params.kpt_oks_sigmas = np.full(3, 0.05)
        scored.evaluate()
        scored.accumulate()
    assert truth.anns[1]["bbox"] == [2, 3, 10, 20] and truth.anns[1]["area"] == 200
    np.testing.assert_allclose(scored.eval["precision"][0, 0, 0, 0, 0], 1)


def test_labelme_round_trip_keeps_stored_pixels_despite_exif_rotation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg", exif=exif)
    one = Annotation("a.jpg", np.array([[10.0, 5]]), np.array([True]), size=(40, 60))
    formats.write(tmp_path / "marks", [one])
    (read,) = formats.read(tmp_path / "marks", tmp_path)
    np.testing.assert_array_equal(read.points, [[10, 5]])


def test_blanks_after_quotes_are_read_and_open_quotes_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text('image,x1,y1,id\n"a.png" ,1,2,7\n')
    assert formats.read(tmp_path / "a.csv")[0].image == "a.png"
    (tmp_path / "a.csv").write_text('image,x1,y1,id\na.png,1,2,7\nb.png,1,2,"8\nc.png,3,4,9\n')
    with pytest.raises(FormatError, match="line 3: not valid CSV: it ends within quotes"):
        formats.read(tmp_path / "a.csv")


def test_tps_landmarks_are_missing_only_if_both_coordinates_are_negative():
    """A landmark with one negative coordinate lies just outside the image."""
    (found,) = tps.loads("LM=4\n-1 5\n5 -1\n-1 -1\n-0.5 0\nIMAGE=a.png\n")
    np.testing.assert_array_equal(found.visible, [True, True, False, True])
    np.testing.assert_array_equal(found.points, [[-1, 5], [5, -1], [0, 0], [-0.5, 0]])


def test_tps_comma_beside_a_decimal_point_is_a_separator():
    with pytest.raises(FormatError, match="3 values where 2 are expected"):
        tps.loads("LM=1\n1,234 2.5\n")


def test_tps_writes_invisible_landmarks_as_na():
    assert tps.dumps([tps.Specimen(np.array([[-1.0, -2]]), np.array([False]))]) == "LM=1\nNA NA\n"


def test_a_landmark_that_no_annotator_marks_is_not_reported(tmp_path):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("image,x1,y1,x2,y2\nA.png,1,2,NA,NA\n")
    problems: list = []
    (found,) = formats.read(f"{tmp_path / 'a.csv'},{tmp_path / 'b.csv'}", problems=problems)
    assert found.visible.tolist() == [True, False] and not problems


def test_repeated_image_with_its_id_is_reported_once(tmp_path):
    (tmp_path / "a.csv").write_text("image,x1,y1,id\na,1,1,7\na,2,2,7\nb,3,3,7\n")
    problems: list = []
    formats.read(tmp_path / "a.csv", problems=problems)
    assert [(p["image"], p["what"].split(":")[0]) for p in problems] == [
        ("a", "annotated twice"),
        ("b", "ID 7 is also that of a"),
    ]


def test_landmark_numbers_may_have_leading_zeros(tmp_path):
    (tmp_path / "a.csv").write_text("image,landmark,x,y\na.png,02,3,4\na.png,01,1,2\nb.png,1,5,6\n")
    a, b = formats.read(tmp_path / "a.csv")
    assert (a.points.tolist(), a.visible.all(), a.names) == ([[1, 2], [3, 4]], True, ())
    assert b.visible.tolist() == [True, False]


def test_coco_occluded_keypoints_are_visible_and_written_as_2(tmp_path):
    document = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "annotations": [
            {"image_id": 1, "keypoints": [1, 2, 1, 3, 4, 2, 5, 6, 0]},
            {"image_id": 2, "keypoints": [1, 2, 1, 0, 0, 0, 0, 0, 0]},
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(document))
    a, b = formats.read(tmp_path / "a.json")
    assert (a.visible.tolist(), b.visible.tolist()) == ([True, True, False], [True, False, False])
    assert (a.points.tolist(), b.points[0].tolist()) == ([[1, 2], [3, 4], [0, 0]], [1, 2])
    formats.write(tmp_path / "b.json", [a])
    (entry,) = json.loads((tmp_path / "b.json").read_text())["annotations"]
    assert entry["keypoints"] == [1, 2, 2, 3, 4, 2, 0, 0, 0] and entry["num_keypoints"] == 2


@pytest.mark.parametrize(("ids", "kept"), [("7 0 12", True), ("7 7 1", False), ("7 x 1", False), ("7 07 1", False)])
def test_coco_keeps_ids_that_are_distinct_whole_numbers(ids, kept, tmp_path):
    mark = lambda n, own: Annotation(f"{n}.png", np.ones((1, 2)), np.ones(1, bool), id=own)
    formats.write(tmp_path / "a.json", [mark(n, own) for n, own in enumerate(ids.split())])
    assert [a.id for a in formats.read(tmp_path / "a.json")] == (ids.split() if kept else ["1", "2", "3"])
    found = COCO(tmp_path / "a.json")
    assert sorted(found.imgs) == sorted(entry["image_id"] for entry in found.anns.values())
