"""Box files: each format's coordinate convention, round trips, and errors that name the faulty place."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxmarks.data import objects
from jaxmarks.data.formats import boxes
from jaxmarks.data.formats.boxes import BoxAnnotation
from jaxmarks.data.samples import FormatError

HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax,group\n"


def voc(objects, head="<filename>a.png</filename><size><width>40</width><height>30</height></size>"):
    box = (
        "<object><name>{}</name><bndbox><ymin>{}</ymin><xmin>{}</xmin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
    )
    return f"<annotation>{head}{''.join(box.format(*o) for o in objects)}</annotation>"


def coco(*annotations, images=({"id": 7, "file_name": "a.png", "width": 40, "height": 30},), names=("spine", "stub")):
    categories = [{"id": i, "name": name} for i, name in enumerate(names)]
    entries = [{"image_id": 7, "category_id": c, "bbox": bbox} | more for c, bbox, more in annotations]
    return json.dumps({"images": list(images), "annotations": entries, "categories": categories})


def read(tmp_path, name, content, problems=None):
    (tmp_path / name).write_text(content, encoding="utf-8")
    return boxes.read(tmp_path / name, problems)


# Columns 3 to 17 of row 5, counted from 0, in each format's convention: a box 15 wide and 1 high at (3, 5).
@pytest.mark.parametrize(
    "name, content",
    [
        ("a.csv", HEADER + "a.png,40,30,spine,3,5,17,5,\n"),
        ("a.csv", "ymin;LABEL;xmax;Image;xmin;ymax;score;height;width\r\n5,0;spine;17;a.png;3;5;0,5;30;40\r\n"),
        ("a.tsv", "image\tclass\txmin\tymin\txmax\tymax\theight\twidth\n\na.png\tspine\t3\t5\t17\t5\t30\t40\n"),
        ("a.json", coco((0, [3, 5, 15, 1], {}))),
        ("a.xml", voc([("spine", 6, 4, 18, 6)])),
    ],
)
def test_every_format_gives_the_same_box(name, content, tmp_path):
    (found,) = read(tmp_path, name, content)
    assert found.boxes.dtype == np.float64
    np.testing.assert_array_equal(found.boxes, [[3, 5, 18, 6]])
    assert (found.image, found.classes, found.size, found.group) == ("a.png", ("spine",), (30, 40), "")
    assert str(tmp_path / name) in found.where


def test_empty_images_and_boxes_beyond_the_image_are_read(tmp_path):
    rows = "b.png,40,30,,,,,,g\na.png,40,30,spine,-4,25,10,39,\nc.png,,,NA,nan,nan,nan,nan,\n"
    b, a, c = read(tmp_path, "a.csv", HEADER + rows)
    assert [x.image for x in (b, a, c)] == ["b.png", "a.png", "c.png"]
    assert b.boxes.shape == c.boxes.shape == (0, 4) and b.classes == () and b.size == (30, 40) and c.size is None
    np.testing.assert_array_equal(a.boxes, [[-4, 25, 11, 40]])
    (a,) = read(tmp_path, "a.json", coco(images=[{"id": 1, "file_name": "a.png", "group": 0}]))
    assert a.boxes.shape == (0, 4) and a.group == "0" and a.size is None
    assert read(tmp_path, "a.xml", voc([], head=""))[0].image == "a"


def test_csv_fractions_of_the_sides_are_reported(tmp_path):
    problems: list = []
    read(tmp_path, "a.csv", HEADER + "a.png,,,spine,0.1,0.2,1,0.3,\nb.png,,,spine,0,0,.5,.5,\n", problems)
    ((image, what),) = [(p["image"], p["what"]) for p in problems]
    assert image == "a.png" and what.endswith("fractions of the photograph's sides: pixels are expected")


def test_csv_without_classes_or_sizes_is_read(tmp_path):
    header = "image,xmin,ymin,xmax,ymax\n"
    a, b = read(tmp_path, "a.csv", header + "a.png,3,5,17,9\nb.png,,,,\n")
    assert (a.classes, b.classes) == ((boxes.DEFAULT_CLASS,), ()) and a.size is None and b.boxes.shape == (0, 4)
    # Some programs write 0 for an unknown size.
    for name, content in (
        ("b.csv", HEADER + "a.png,0,0,spine,1,1,2,2,\n"),
        ("b.json", coco((0, [1, 2, 3, 4], {}), images=[{"id": 7, "file_name": "a.png", "width": 0, "height": 0}])),
    ):
        (found,) = read(tmp_path, name, content)
        assert found.size is None and found.classes == ("spine",)


def test_a_folder_of_voc_files_is_read(tmp_path):
    for stem, shift in (("b", 10), ("a", 0)):
        head = f"<filename>{stem}.png</filename>"
        (tmp_path / f"{stem}.xml").write_text(voc([("spine", 1, 1 + shift, 5 + shift, 5), ("stub", 1, 1, 1, 1)], head))
    a, b = boxes.read(tmp_path)
    np.testing.assert_array_equal(a.boxes, [[0, 0, 5, 5], [0, 0, 1, 1]])
    np.testing.assert_array_equal(b.boxes, [[10, 0, 15, 5], [0, 0, 1, 1]])
    assert (a.image, b.image, b.classes, b.where) == ("a.png", "b.png", ("spine", "stub"), str(tmp_path / "b.xml"))


@pytest.mark.parametrize(
    "name, content, word, where, kept",
    [
        ("a.csv", "a.png,,,spine,17,5,3,5,\n", "reversed corners, (17, 5, 3, 5): swapped", "line 2", [[3, 5, 18, 6]]),
        ("a.csv", "a.png,,,spine,3,5,2,9,\n", "without area", "line 2", []),
        ("a.csv", "a.png,,,s,1,1,2,2,\na.png,,,s,1,1,2.0,2,\n", "line 2: kept once", "line 3", [[1, 1, 3, 3]]),
        ("a.csv", "a.png,,,spine,3,NaN,17,5,\n", "NaN", "line 2", []),
        ("a.csv", "a.png,,,spine,3,5,,5,\n", "missing", "line 2", []),
        ("a.csv", "a.png,,,s,1,1,2,2,g\na.png,,,,,,,,h\n", "group h, but g", "line 3", [[1, 1, 3, 3]]),
        ("a.csv", "a.png,40,30,s,1,1,2,2,\na.png,40,31,,,,,,\n", "size (31, 40)", "line 3", [[1, 1, 3, 3]]),
        ("a.json", coco((0, [9, 9, -4, 2], {})), "reversed", "annotations[0]", [[5, 9, 9, 11]]),
        ("a.json", coco((0, [9, 9, 4, 0], {})), "without area", "annotations[0]", []),
        ("a.json", coco((0, [9, float("nan"), 4, 1], {})), "NaN", "annotations[0]", []),
        ("a.json", coco((0, [1, 2, 3, 4], {"iscrowd": 1})), "crowd", "annotations[0]", []),
        ("a.json", coco((0, [1, 2, 3, 4], {}), (0, [1, 2, 3.0, 4], {})), "kept once", "annotations[1]", [[1, 2, 4, 6]]),
        ("a.json", coco(images=[{"id": i, "file_name": "a.png"} for i in (1, 7)]), "occurs twice", "images[1]", []),
        ("a.xml", voc([("spine", 6, 18, 4, 6)]), "reversed", "object 1", [[3, 5, 18, 6]]),
    ],
)
def test_recoverable_problems_are_reported_or_raised(name, content, word, where, kept, tmp_path):
    content = HEADER + content if name == "a.csv" else content
    problems: list = []
    (found,) = read(tmp_path, name, content, problems)
    np.testing.assert_array_equal(found.boxes, np.reshape(kept, (-1, 4)))
    assert len(found.classes) == len(kept)
    ((image, what, place),) = [(p["image"], p["what"], p["where"]) for p in problems]
    assert image == "a.png" and word in what and place == f"{tmp_path / name}: {where}"
    with pytest.raises(FormatError) as error:
        boxes.read(tmp_path / name)
    assert str(error.value) == f"{place}: a.png: {what}; correct it"


def test_the_same_corners_in_another_class_are_another_object(tmp_path):
    (found,) = read(tmp_path, "a.json", coco((0, [1, 2, 3, 4], {}), (1, [1, 2, 3, 4], {})))
    assert found.classes == ("spine", "stub")


def test_coco_ids_may_be_written_as_floats(tmp_path):
    (found,) = read(tmp_path, "a.json", coco((1.0, [1, 2, 3, 4], {"image_id": 7.0})))
    assert found.classes == ("stub",)
    images = [{"id": 7.0, "file_name": "a.png"}]
    assert read(tmp_path, "a.json", coco((1, [1, 2, 3, 4], {}), images=images))[0].classes == ("stub",)


ENTITIES = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><annotation><filename>&b;</filename></annotation>'


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", "", "line 1: the file is empty"),
        ("a.csv", ",,\n", "line 1: the file is empty"),
        ("a.csv", HEADER, "the file names no image"),
        ("a.csv", HEADER.replace("xmax", "x2"), "line 1: no column 'xmax'"),
        ("a.csv", HEADER.replace("group", "class"), "line 1: column 'class' occurs twice"),
        ("a.csv", HEADER + "\na.png,40,30,spine,3,oops,17,5,\n", "line 3: 'oops' is not a number"),
        ("a.csv", HEADER + "a.png,40,30,spine,3,1e999,17,5,\n", "line 2: (3, inf, 17, 5) is not finite"),
        ("a.csv", HEADER + 'a.png,,,spine,3,"1,5",17,5,\n', "line 2: '1,5' is not a number"),
        ("a.csv", HEADER + "a.png,40,30,spine,3\n", "line 2: 5 cells where the header has 9"),
        ("a.csv", HEADER + ",40,30,spine,3,5,17,5,\n", "line 2: no image name"),
        ("a.csv", HEADER + "a.png,40,30,,3,5,17,5,\n", "line 2: a box without a class"),
        ("a.csv", HEADER + "a.png,40,,spine,3,5,17,5,\n", "line 2: an image size of 40 x nan pixels"),
        ("a.csv", HEADER + "a.png,40,29.5,spine,3,5,17,5,\n", "line 2: an image size of 40 x 29.5 pixels"),
        ("a.csv", HEADER + "a" * 200_000, "line 2: not valid CSV"),
        ("a.csv", "\0", "line 1: binary data"),
        ("a.json", '{"images": [\n{"id": 1', "line 2: not valid JSON"),
        ("a.json", "[" * 200_000, "line 1: not valid JSON"),
        ("a.json", f'{{"images": {"1" * 9_000}}}', "line 1: not valid JSON"),
        ("a.json", "[]", "line 1: not a COCO document"),
        ("a.json", "{}", "key 'categories': no such list"),
        ("a.json", coco(images=[3]), "images[0]: 3 is not an object"),
        ("a.json", coco(images=[{"file_name": "a.png"}]), "images[0]: no id"),
        ("a.json", coco(images=[{"id": 1, "file_name": x} for x in "ab"]), "images[1]: id 1 is given twice"),
        ("a.json", coco(images=[{"id": 1}]), "images[0]: no file_name"),
        ("a.json", coco(images=[{"id": 1, "file_name": "a", "width": 0, "height": 1}]), "images[0]: an image size"),
        ("a.json", coco(images=[]), "the file names no image"),
        ("a.json", coco((0, [1, 2, 3, 4], {"image_id": 8})), "annotations[0]: image_id 8 is not in the file"),
        ("a.json", coco((0, [1, 2, 3, 4], {"image_id": []})), "annotations[0]: image_id [] is not in the file"),
        ("a.json", coco((5, [1, 2, 3, 4], {})), "annotations[0]: category_id 5 is not in the file"),
        ("a.json", coco((0, [1, 2, 3, 4], {}), names=[None]), "annotations[0]: category 0 has no name"),
        ("a.json", coco((0, [1, 2, 3], {})), "annotations[0]: bbox [1, 2, 3]"),
        ("a.json", coco((0, [1, 2, 3, True], {})), "annotations[0]: True is not a number"),
        ("a.json", coco((0, [1, 2, 3, 10**400], {})), "annotations[0]: 1000"),
        ("a.json", coco((0, [1e308, 0, 1e308, 1], {})), "annotations[0]: (1e+308, 0, inf, 1) is not finite"),
        ("a.xml", "", "line 1: not valid XML"),
        ("a.xml", "<annotation>\n<object>", "line 2: not valid XML"),
        ("a.xml", "<svg/>", "the root is <svg>, not <annotation>"),
        ("a.xml", ENTITIES, "a DOCTYPE"),
        ("a.xml", voc([("", 6, 4, 18, 6)]), "object 1: a box without a class"),
        ("a.xml", voc([("s", 6, 4, 18, "x")]), "object 1: 'x' is not a number"),
        ("a.xml", voc([("s", 6, 4, 18, 6)]).replace("xmax", "xmas"), "object 1: no <xmax>"),
        ("a.xyz", "", "unknown format '.xyz'"),
    ],
)
def test_errors_name_the_place_and_the_value(name, content, message, tmp_path):
    with pytest.raises(FormatError) as error:
        read(tmp_path, name, content, [])
    assert str(error.value).startswith(f"{tmp_path / name}: {message}"), str(error.value)


def test_a_doctype_in_utf_16_is_refused(tmp_path):
    (tmp_path / "a.xml").write_bytes(('<?xml version="1.0" encoding="utf-16"?>' + ENTITIES).encode("utf-16"))
    with pytest.raises(FormatError, match="DOCTYPE"):
        boxes.read(tmp_path / "a.xml")


def test_missing_files_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(FormatError, match="no such file"):
        boxes.read(tmp_path / "none.csv")
    with pytest.raises(FormatError, match=r"no \.xml, no \.json and no \.txt"):
        boxes.read(tmp_path)


text = st.text('abcXYZ0189_-. ()=é,;"', min_size=1, max_size=8).map(str.strip).filter(bool)
milli = lambda low, high: st.integers(low * 1000, high * 1000).map(lambda n: n / 1000)  # CSV keeps three decimals
side = st.one_of(st.integers(1, 50).map(float), milli(0, 9).filter(bool))
box = st.tuples(milli(-9, 99), st.integers(-9, 99).map(float), side, side).map(
    lambda b: (*b[:2], b[0] + b[2], b[1] + b[3])
)


@st.composite
def annotation(draw, image):
    objects = draw(st.lists(st.tuples(box, text), max_size=4, unique=True))
    size = draw(st.none() | st.tuples(st.integers(1, 9999), st.integers(1, 9999)))
    corners = np.array([b for b, _ in objects], np.float64).reshape(-1, 4)
    return BoxAnnotation(image, corners, tuple(c for _, c in objects), draw(st.just("") | text), size=size)


dataset = st.lists(text, min_size=1, max_size=3, unique=True).flatmap(lambda names: st.tuples(*map(annotation, names)))


@settings(max_examples=40)
@given(dataset, st.sampled_from([".csv", ".json"]), st.booleans())
def test_round_trip_keeps_boxes_and_metadata(written, suffix, scored):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        boxes.write(path, written, [np.linspace(0, 1, len(a.boxes)) for a in written] if scored else None)
        found = boxes.read(path, [])  # tiny boxes look like fractions
    for mine, theirs in zip(written, found, strict=True):
        np.testing.assert_allclose(theirs.boxes, mine.boxes, rtol=0, atol=1e-9)
        assert (theirs.image, theirs.classes, theirs.group, theirs.size) == (
            mine.image, mine.classes, mine.group, mine.size
        )  # fmt: skip


def test_written_csv_has_the_expected_lines(tmp_path):
    a = BoxAnnotation("a.png", np.array([[3.0, 5, 18, 6], [0.5, 1 / 3, 2, 9.99999]]), ("s", "t"), "g", size=(30, 40))
    boxes.write(tmp_path / "a.csv", [a, BoxAnnotation("b.png", np.zeros((0, 4)), ())], [[1, 0.25], []])
    assert (tmp_path / "a.csv").read_text().splitlines() == [
        HEADER.strip() + ",score",
        "a.png,40,30,s,3,5,17,5,g,1",
        "a.png,40,30,t,0.500,0.333,1,9,g,0.25",
        "b.png,,,,,,,,,",
    ]


def test_written_coco_has_the_expected_entries(tmp_path):
    a = BoxAnnotation("a.png", np.array([[3.0, 5, 18, 6]]), ("s",), size=(30, 40))
    boxes.write(tmp_path / "a.json", [a], [[0.5]])
    document = json.loads((tmp_path / "a.json").read_text())
    assert document["images"] == [{"id": 1, "file_name": "a.png", "height": 30, "width": 40}]
    assert document["annotations"] == [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [3, 5, 15, 1], "area": 15, "iscrowd": 0, "score": 0.5}
    ]
    assert document["categories"] == [{"id": 1, "name": "s"}]
    boxes.write(tmp_path / "b.json", [a], [[0.5]], classes=("r", "s"))  # all of a run's classes, found or not
    document = json.loads((tmp_path / "b.json").read_text())
    assert document["annotations"][0]["category_id"] == 2
    assert document["categories"] == [{"id": 1, "name": "r"}, {"id": 2, "name": "s"}]
    with pytest.raises(ValueError, match="boxes of class s, but the classes are r"):
        boxes.write(tmp_path / "c.json", [a], [[0.5]], classes=("r",))


@pytest.mark.parametrize("side", [None, 0])
def test_coco_size_null_or_0_is_unknown(side, tmp_path):
    images = [{"id": 1, "file_name": "a.png", "width": side, "height": side}]
    (found,) = read(tmp_path, "a.json", coco(images=images))
    assert found.size is None


@pytest.mark.parametrize(
    "written, scores, message",
    [
        ([BoxAnnotation("", np.zeros((0, 4)), ())], None, "is empty"),
        ([BoxAnnotation("a", np.zeros((0, 4)), ())] * 2, None, "occurs twice"),
        ([BoxAnnotation("a", np.ones((1, 4)), ())], None, "one class"),
        ([BoxAnnotation("a", np.ones((1, 4)), ("s",))], [[]], "one score"),
        ([BoxAnnotation("a", np.ones((1, 4)), (" ",))], None, "no class"),
        ([BoxAnnotation("a", np.full((1, 4), np.nan), ("s",))], None, "not finite"),
    ],
)
def test_writing_invalid_annotations_raises(written, scores, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        boxes.write(tmp_path / "a.csv", written, scores)
    with pytest.raises(ValueError, match=r"unknown format '\.xml'"):
        boxes.write(tmp_path / "a.xml", [])


VALID = {
    ".csv": HEADER + 'a.png,40,30,"spine",3,5,17,5,g\nb.png,,,,,,,,\n',
    ".json": coco((0, [3, 5, 15, 1], {"iscrowd": 0}), (1, [-1.5, 2e0, 3, 4], {})),
    ".xml": voc([("spine", 6, 4, 18, 6), ("stub", 1, 1, 2, 2)]),
}
SCRAPS = [
    "nan",
    "inf",
    "-1e999",
    "null",
    "[]",
    "{}",
    "true",
    '"',
    ",",
    "\n",
    "\r",
    "<",
    "&x;",
    "</object>",
    "\0",
    "ÿ",
    "9" * 5000,
]


def damaged(data, content, scraps):
    """Replaces 0 to 8 characters of a text by a draw from the strategy `scraps`, in one to four places."""
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        content = content[:start] + data.draw(scraps) + content[start + data.draw(st.integers(0, 8)) :]
    return content


@settings(max_examples=60)
@given(st.sampled_from(sorted(VALID)), st.data())
def test_damaged_files_give_valid_boxes_or_a_format_error(suffix, data):
    content = damaged(data, VALID[suffix], st.sampled_from(SCRAPS) | st.text(max_size=3))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        path.write_bytes(content.encode(data.draw(st.sampled_from(["utf-8", "latin-1", "utf-16"])), "replace"))
        try:
            found = boxes.read(path, [])
        except FormatError as error:
            assert str(path) in str(error)
            return
    for a in found:
        assert a.image and len(a.boxes) == len(a.classes) and all(a.classes)
        assert np.isfinite(a.boxes).all() and (a.boxes[:, :2] < a.boxes[:, 2:]).all()


@settings(deadline=None)
@given(st.tuples(side, side), st.floats(-400, 400) | st.sampled_from([0.0, 45.0, 90.0, -90.0, 180.0, 360.0]))
def test_rotated_boxes_of_cvat_become_the_upright_boxes_around_them(sides, degrees):
    (width, height), angle = sides, np.radians(degrees)
    corners = np.array([[x, y] for x in (-width / 2, width / 2) for y in (-height / 2, height / 2)])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    expected = np.array([50.0, 30]) + [(corners @ turn.T).min(0), (corners @ turn.T).max(0)]
    bbox = [50 - width / 2, 30 - height / 2, width, height]
    with tempfile.TemporaryDirectory() as folder:
        problems: list = []
        (found,) = read(Path(folder), "a.json", coco((0, bbox, {"attributes": {"rotation": degrees}})), problems)
        np.testing.assert_allclose(found.boxes, [expected.reshape(-1)], atol=1e-9)
        what = "1 boxes, one on this image among them, are rotated: the upright box around each is used"
        assert [(p["image"], p["what"]) for p in problems] == [("a.png", what)] * bool(degrees % 180)


def test_rotations_in_voc_and_beside_segmentations_and_other_attributes(tmp_path):
    attribute = "<attribute><name>{}</name><value>{}</value></attribute>".format
    attributes = f"<attributes>{attribute('occluded', 7)}{attribute('rotation', 90.0)}</attributes>"
    problems: list = []
    text = voc([("spine", 10, 11, 31, 16)]).replace("</object>", f"{attributes}</object>")
    (found,) = read(tmp_path, "a.xml", text, problems)
    np.testing.assert_allclose(found.boxes, [[17, 2, 24, 23]])
    assert "rotated" in problems[0]["what"]
    outlined = {"attributes": {"rotation": 45.0}, "segmentation": [[1, 2, 4, 2, 4, 6]]}
    for more in (outlined, {"attributes": {"rotation": "left"}}, {"attributes": []}):
        (found,) = read(tmp_path, "a.json", coco((0, [1, 2, 3, 4], more)))
        assert found.boxes.tolist() == [[1, 2, 4, 6]]


def test_real_spines_file_round_trips_to_the_letter(real_data, tmp_path):
    file = real_data / "spines" / "boxes.csv"
    found = boxes.read(file)
    assert len(found) == 1653 and sum(len(a.boxes) for a in found) == 6248
    outside = [(a.boxes < 0).any(1) | (a.boxes[:, 2:] > [a.size[1], a.size[0]]).any(1) for a in found]
    assert sum(int(o.sum()) for o in outside) == 71
    sides = np.concatenate([a.boxes[:, 2:] - a.boxes[:, :2] for a in found])
    assert (np.median(sides, 0) == 15).all() and {label for a in found for label in a.classes} == {"dendrite"}
    boxes.write(tmp_path / "a.json", found)
    boxes.write(tmp_path / "a.csv", boxes.read(tmp_path / "a.json"))
    assert (tmp_path / "a.csv").read_text().splitlines() == file.read_text().splitlines()


def test_csv_group_of_na_is_empty(tmp_path):
    rows = "a.png,,,spine,1,1,5,5,NA\nb.png,,,spine,1,1,5,5,g\n"
    assert [a.group for a in read(tmp_path, "a.csv", HEADER + rows)] == ["", "g"]


def labelme(*shapes, image="a.png", size=(30, 40)):
    """Returns a LabelMe document with `shapes` (type, label, points) for an image of `size` (h, w)."""
    entries = [{"shape_type": kind, "label": label, "points": points} for kind, label, points in shapes]
    return json.dumps({"shapes": entries, "imagePath": image, "imageHeight": size[0], "imageWidth": size[1]})


def test_labelme_shapes_become_bounding_boxes(tmp_path):
    text = labelme(
        ("rectangle", "spine", [[17.5, 6], [3, 5]]),  # any two opposite corners
        ("polygon", "stub", [[4, 4], [9, 6.5], [5, 8]]),
        ("circle", "cell", [[10, 10], [13, 14]]),
        ("mask", "spine", [[20, 1], [25, 3]]),
        image="..\\photographs\\a.png",
    )
    (tmp_path / "a.json").write_text(text)
    for path in (tmp_path, tmp_path / "a.json"):
        (found,) = boxes.read(path)
        np.testing.assert_allclose(found.boxes, [[3, 5, 17.5, 6], [4, 4, 9, 8], [5, 5, 15, 15], [20, 1, 25, 3]])
        assert found.classes == ("spine", "stub", "cell", "spine")
        assert (found.image, found.size, found.upright) == ("a.png", (30, 40), True)
        assert found.places[1] == f"{tmp_path / 'a.json'}: shapes[1]"


def test_labelme_empty_files_subfolders_and_repeated_images_are_read(tmp_path):
    for place, shapes in (("s1", []), ("s2", [("rectangle", "spine", [[1, 2], [3, 4]]), ("point", "tip", [[1, 1]])])):
        (tmp_path / place).mkdir()
        (tmp_path / place / "a.json").write_text(labelme(*shapes))
    problems = []
    found = boxes.read(tmp_path, problems)
    assert [(a.image, len(a.classes)) for a in found] == [("s1/a.png", 0), ("s2/a.png", 1)]
    (problem,) = problems
    assert problem["what"] == "shapes that are not areas (1 of type point): not used"
    (tmp_path / "s1" / "b.json").write_text(labelme(("circle", "spine", [[5, 5], [5, 8]]), image="b.png"))
    (tmp_path / "s1" / "c.json").write_text(labelme(("rectangle", "spine", [[1, 2], [3, 4]]), image="b.png"))
    joined = {a.image: a for a in boxes.read(tmp_path, problems)}
    np.testing.assert_allclose(joined["b.png"].boxes, [[2, 2, 8, 8], [1, 2, 3, 4]])
    assert "the image occurs twice" in problems[-1]["what"]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (("rectangle", " ", [[1, 2], [3, 4]]), r"shapes\[0\]: a rectangle without a label"),
        (("rectangle", "a", [[1, 2], 3]), r"shapes\[0\]: \[\[1, 2\], 3\] is not a list of points"),
        (("polygon", "a", []), r"shapes\[0\]: \[\] is not a list of points"),
        (("rectangle", "a", [[1, 2], [1, 4]]), "without area"),
        (("rectangle", "a", [[1, 2], [float("nan"), 4]]), "NaN"),
    ],
)
def test_malformed_labelme_shapes_are_refused(shape, message, tmp_path):
    (tmp_path / "a.json").write_text(labelme(shape))
    with pytest.raises(FormatError, match=message):
        boxes.read(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a.xml", "a.json"), r"1 VOC \.xml and 1 LabelMe \.json files in one folder"),
        (("a.xml", "b.txt"), r"1 VOC \.xml and 1 YOLO \.txt files in one folder"),
        (("a.json", "b.txt", "c.txt"), r"1 LabelMe \.json and 2 YOLO \.txt files in one folder"),
    ],
)
def test_a_folder_of_two_formats_is_refused(names, message, tmp_path):
    contents = {".xml": voc([]), ".json": labelme(), ".txt": "0 .5 .5 .1 .1"}
    for name in names:
        (tmp_path / name).write_text(contents[Path(name).suffix])
    with pytest.raises(FormatError, match=message):
        boxes.read(tmp_path)


def test_other_files_beside_annotations_are_ignored(tmp_path):
    """Text files beside LabelMe's, and what YOLO exports contain; but an empty test.txt is a label file."""
    (tmp_path / "labelme").mkdir()
    (tmp_path / "labelme" / "a.json").write_text(labelme())
    for name, content in (("labels.txt", "spine\nstub"), ("notes.txt", "see 3"), ("empty.txt", ""), ("b.txt", "\0")):
        (tmp_path / "labelme" / name).write_text(content)
    assert len(boxes.read(tmp_path / "labelme")) == 1
    folder = yolo(tmp_path / "yolo", a="0 0.5 0.5 0.1 0.1", test="")
    for name, content in (
        ("README.dataset.txt", "# spines"), ("train.txt", "data/a.jpg\ndata/test.JPG\n"), ("notes.json", "{}"),
    ):  # fmt: skip
        (folder / name).write_text(content)
    assert [a.image for a in boxes.read(folder)] == ["a", "test"]


def test_voc_subfolders_prefix_only_repeated_names(tmp_path):
    for place in ("s1", "s2"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "a.XML").write_text(voc([("spine", 1, 1, 5, 5)]))
    (tmp_path / "s2" / "b.xml").write_text(voc([], head="<filename>b.png</filename>"))
    problems = []
    found = boxes.read(tmp_path, problems)
    assert [a.image for a in found] == ["s1/a.png", "s2/a.png", "b.png"] and problems == []


def yolo(folder, names="spine\nstub\n", **labels):
    """Writes a folder of YOLO label files, their lines by stem, and its classes.txt; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, lines in labels.items():
        (folder / f"{stem}.txt").write_text(lines)
    if names:
        (folder / "classes.txt").write_text(names)
    return folder


def test_yolo_labels_are_fractions_of_the_image(tmp_path):
    # For an image of 40 x 30 pixels: the box of the first test and an outline; and an image without objects.
    lines = f"0 {10.5 / 40} {5.5 / 30} {15 / 40} {1 / 30}\n\n1 0.5 0.25 0.75 0.5 0.625 1\n"
    problems: list = []
    a, b = boxes.read(yolo(tmp_path, a=lines, b=""), problems)
    np.testing.assert_allclose(a.boxes * (40, 30, 40, 30), [[3, 5, 18, 6], [20, 7.5, 30, 30]])
    assert (a.image, a.classes, a.size, a.relative, a.upright) == ("a", ("spine", "stub"), None, True, True)
    assert a.places == tuple(f"{tmp_path / 'a.txt'}: line {n}" for n in (1, 3))
    assert (b.image, b.boxes.shape, b.relative, problems) == ("b", (0, 4), True, [])
    with pytest.raises(ValueError, match="a: boxes in fractions of the image's sides"):
        boxes.write(tmp_path / "a.csv", [a])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("../obj.names", "spine\r\n stub \r\n\r\n"),
        ("../../data.yaml", "path: ../x\nnames: [spine, stub]\nnc: 2"),
        ("data.yml", "names:\n  1: stub\n  0: spine\n"),
        ("data.yaml", "names: {'1': stub, 0: spine}"),
        ("Classes.txt", "sp\x85ine\nstub"),
    ],
)
def test_yolo_class_names_are_found_in_the_folder_or_above(name, text, tmp_path):
    folder = yolo(tmp_path / "train" / "labels", names="", a="1 0.5 0.5 0.1 0.1\n1.0 0.5 0.5 0.2 0.1\n")
    (folder / name).write_text(text, encoding="latin-1", newline="")
    (found,) = boxes.read(folder)
    assert found.classes == ("stub", "stub")


def test_yaml_class_names_are_kept_as_written(tmp_path):
    lines = "".join(f"{k} 0.5 0.5 0.1 0.{k + 1}\n" for k in range(5))
    folder = yolo(tmp_path, names="", a=lines)
    (folder / "data.yaml").write_text("names: [no, 010, 1.10, ~, 12:30]")
    assert boxes.read(folder)[0].classes == ("no", "010", "1.10", "~", "12:30")


def test_yolo_subfolders_have_their_own_class_names(tmp_path):
    for place, names in (("s1", "spine\nstub"), ("s2", "stub\nspine")):
        yolo(tmp_path / place, names=names, a="0 0.5 0.5 0.1 0.1\n")
    assert [a.classes for a in boxes.read(tmp_path)] == [("spine",), ("stub",)]
    (tmp_path / "obj.names").write_text("spine\nstub\n")
    with pytest.raises(FormatError, match=r"s2/classes\.txt: its class names differ from .*obj\.names; delete"):
        boxes.read(tmp_path)


def test_yolo_keypoints_after_a_box_are_ignored(tmp_path):
    folder = yolo(tmp_path, a="0 0.5 0.5 0.2 0.1 0.45 0.47 2 0.55 0.52 1\n", b="0 0.5 0.5 0.2 0.1\n")
    (folder / "data.yaml").write_text("names: [spine, stub]\nkpt_shape: [2, 3]\n")
    with pytest.raises(FormatError, match=r"b\.txt: line 1: 5 numbers; .* and the 6 numbers of data\.yaml's kpt_shape"):
        boxes.read(folder)
    (folder / "b.txt").unlink()
    np.testing.assert_allclose(boxes.read(folder)[0].boxes, [[0.4, 0.45, 0.6, 0.55]])


def test_yolo_labels_in_subfolders_are_named_by_their_paths(tmp_path):
    for place in ("s1", "s2"):
        yolo(tmp_path / place, names="", a="0 0.5 0.5 0.1 0.1\n")
    (tmp_path / "classes.txt").write_text("spine")
    (tmp_path / "s1" / "a.png").touch()
    assert [a.image for a in boxes.read(tmp_path)] == ["s1/a", "s2/a"]


@pytest.mark.parametrize(
    ("labels", "photographs", "found"),
    [
        # Labels beside their photographs, also if a deeper or an unlabelled folder has photographs of the same name.
        (("s1/cam/a", "s2/cam/a"), ("s1/cam/a.png", "s2/cam/a.png"), ("s1/cam/a.png", "s2/cam/a.png")),
        (("s1/a",), ("s1/a.png", "s2/a.png"), ("s1/a.png",)),
        (("a",), ("a.png", "s1/a.png"), ("a.png",)),
        # labels/ beside images/, within each split's folder or with the splits as subfolders.
        (
            ("train/labels/a", "valid/labels/a"),
            ("train/images/a.png", "valid/images/a.png"),
            ("train/images/a.png", "valid/images/a.png"),
        ),
        (
            ("labels/train/a", "labels/val/a"),
            ("images/train/a.png", "images/val/a.png"),
            ("images/train/a.png", "images/val/a.png"),
        ),
        (("labels/a",), ("images/a.png",), ("images/a.png",)),
        # A photograph of the same name in another folder does not match.
        (("labels/train/a",), ("images/val/a.png",), ()),
        (("a",), ("s1/a.png", "s2/a.png"), ()),
    ],
)
def test_yolo_labels_find_their_photographs(labels, photographs, found, tmp_path):
    yolo(tmp_path)
    for name in labels:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    for name in photographs:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    problems: list = []
    pairs = objects.by_photograph(boxes.read(tmp_path), tmp_path, problems)
    assert tuple(file.relative_to(tmp_path).as_posix() for _, file in pairs) == found
    assert len(problems) == len(labels) - len(found)


@pytest.mark.parametrize("turn", [1, 3, 6])
def test_yolo_labels_refer_to_the_upright_photograph(turn, tmp_path):
    """The label of a rectangle drawn in the upright photograph becomes its bounding box in the stored one."""
    upright = np.zeros((40, 60, 3), np.uint8)
    upright[4:12, 6:30] = 255
    stored = np.rot90(upright, {1: 0, 3: 2, 6: 1}[turn])  # 6: rotated by 90 degrees clockwise for display
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(stored).save(tmp_path / "a.jpg", exif=exif, quality=95)
    (annotation,) = boxes.read(yolo(tmp_path, a=f"0 {18 / 60} {8 / 40} {24 / 60} {8 / 40}"))
    placed, problems = objects.on_photograph(annotation, tmp_path / "a.jpg", stored.shape[:2])
    rows, columns = np.nonzero(stored[..., 0])
    expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(placed.boxes, [expected], atol=1e-9)
    assert problems == [] and not placed.relative


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            "0 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.1",
            "line 2: 4 numbers; a line is class x y width height, without a confidence",
        ),
        ("0 0.5 0.5 0.1 0.1 0.9", "line 1: 6 numbers"),
        ("see the notes", "line 1: 'see the notes' is not a label"),
        ("-1 0.5 0.5 0.1 0.1", "line 1: class '-1' has no name"),
        (f"{'9' * 5000} 0.5 0.5 0.1 0.1", f"line 1: class '{'9' * 40}' has no name"),
        ("spine 0.5 0.5 0.1 0.1", "line 1: class 'spine' is not a number; write its number: "),
        ("0 0.5 x 0.1 0.1", "line 1: a value is not a number"),
        ("0 120 80 15 15", "line 1: 120 is not a fraction"),
        ("0 nan 120 0.1 0.1", "line 1: 120 is not a fraction"),
        ("0 0.5 0.5 1.9 0.1", "line 1: 1.9 is not a fraction"),
        ("0 0.5 0.5 0.1 0.1 0.45 0.47 2", "line 1: 8 numbers"),
        ("0 0.5 0.5 0.1 0.1 0.45 0.47 2 0.5 0.5 2", "line 1: 2 is not a fraction"),
        ("0 0.5 0.5 inf 0.1", "line 1: inf is not a fraction"),
        ("0 0.5 0.5 -0.2 0.1", "line 1: -0.2 is not a fraction"),
        ("0 0.5 0.5 -0.005 0.1", "line 1: a: reversed corners"),
        ("0 0.5 0.5 nan 0.1", "line 1: a: a box with a corner that is NaN"),
        ("0 0.5 0.5 0 0.1", "line 1: a: a box without area"),
        ("0 .5 .5 .1 .1\n0 .5 .5 .1 .1", "line 2: a: the box (0.45, 0.45, 0.55, 0.55) is given twice"),
    ],
)
def test_yolo_label_errors_name_the_line(lines, message, tmp_path):
    with pytest.raises(FormatError) as error:
        boxes.read(yolo(tmp_path, a=lines))
    assert str(error.value).startswith(f"{tmp_path / 'a.txt'}: {message}"), str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("", "", "no classes.txt, obj.names, _darknet.labels, data.yaml, data.yml in this folder or one above"),
        ("data.yaml", "names: 3", "no list 'names'"),
        ("data.yaml", "nc: 2\nnames: [a", "line 2: not valid YAML: expected"),
        ("data.yaml", "- 1", "no list 'names'"),
        ("data.yaml", "names: {a: b}", "no list 'names'"),
        ("data.yaml", "[" * 3000, "not valid YAML"),
        ("data.yaml", "names: [a, '']", "class 1 is called ''"),
        ("data.yaml", "names: [a, [b]]", "class 1 is called \"['b']\""),
        ("data.yaml", "names: [a, b]\nnc: 3", "nc: 3, but 2 names"),
        ("classes.txt", "spine\n\nstub\n", "line 2: no name for class 1"),
        ("classes.txt", "", "line 1: no name for class 0"),
    ],
)
def test_missing_or_malformed_yolo_class_names_are_refused(name, text, message, tmp_path):
    folder = yolo(tmp_path / "a" / "b" / "c", names="", a="0 0.5 0.5 0.1 0.1")
    if name:
        (folder / name).write_text(text)
    with pytest.raises(FormatError) as error:
        boxes.read(folder)
    assert str(error.value).startswith(f"{folder / name}: {message}"), str(error.value)


def test_unnamed_yolo_class_error_says_where_to_add_the_name(tmp_path):
    message = r"class '2' has no name; .*classes\.txt has 0 spine, 1 stub: add its name"
    with pytest.raises(FormatError, match=message):
        boxes.read(yolo(tmp_path, a="2 0.5 0.5 0.1 0.1"))


@settings(max_examples=40)
@given(st.data())
def test_damaged_yolo_yaml_gives_names_or_a_format_error(data):
    of_yaml = st.sampled_from(["!!int ", "!!float x", "&a [*a]", "2001-99-99", "{", "[", "\t", "~", "- "])
    content = damaged(data, "nc: 2\nnames:\n  0: spine\n  1: 'stub'\nkpt_shape: [1, 2]\n", of_yaml)
    with tempfile.TemporaryDirectory() as folder:
        yolo(Path(folder), names="", a="1 0.5 0.5 0.1 0.1 0.5 0.5")
        (Path(folder) / "data.yaml").write_text(content)
        try:
            (found,) = boxes.read(folder)
        except FormatError as error:
            assert folder in str(error)
            return
    assert all(isinstance(name, str) and name for name in found.classes)


@settings(max_examples=40)
@given(st.data())
def test_damaged_yolo_labels_give_valid_boxes_or_a_format_error(data):
    content = "0 0.5 0.25 0.125 1e-3\n1 0.1 0.2 0.3 0.4 0.5 0.6\n"
    content = damaged(data, content, st.sampled_from(SCRAPS) | st.text(max_size=3))
    with tempfile.TemporaryDirectory() as folder:
        yolo(Path(folder), a="").joinpath("a.txt").write_bytes(content.encode("utf-8", "replace"))
        try:
            (found,) = boxes.read(folder, [])
        except FormatError as error:
            assert folder in str(error)
            return
    assert np.isfinite(found.boxes).all() and (found.boxes[:, :2] < found.boxes[:, 2:]).all()


def test_csv_columns_have_synonyms(tmp_path):
    (tmp_path / "a.csv").write_text("image,label,specimen,xmin,ymin,xmax,ymax\na.jpg,spine,S1,1,2,3,4\n")
    (found,) = boxes.read(tmp_path / "a.csv")
    assert (found.image, found.classes, found.group) == ("a.jpg", ("spine",), "S1")
    (tmp_path / "a.csv").write_text("filename,class,label,xmin,ymin,xmax,ymax\na.jpg,spine,7,1,2,3,4\n")
    assert boxes.read(tmp_path / "a.csv")[0].classes == ("spine",)  # a synonym beside the name itself is ignored


@pytest.mark.parametrize("column", ["label", "Name", "class_name", "label_name", "category", "category_name"])
def test_csv_class_column_has_synonyms(column, tmp_path):
    rows = "a.jpg,spine,1,2,3,4\nb.jpg,,,,,\na.jpg,stub,5,6,7,8\n"
    a, b = read(tmp_path, "a.csv", f"filename,{column},xmin,ymin,xmax,ymax\n{rows}")
    assert (a.classes, b.classes) == (("spine", "stub"), ())
    with pytest.raises(FormatError, match=r"line 1: the classes may be in column .*; call the one that has them class"):
        read(tmp_path, "a.csv", f"image,{column},{'name' if column == 'label' else 'label'},xmin,ymin,xmax,ymax\n")


def test_csv_column_that_may_hold_the_classes_is_reported(tmp_path):
    header, problems = "filename,xmin,ymin,xmax,ymax,id,split,species\n", []
    (found,) = read(tmp_path, "a.csv", f"{header}a.jpg,1,2,3,4,1,,Carabus\na.jpg,5,6,7,8,2,test,Cicindela\n", problems)
    assert found.classes == ("object", "object")
    assert [(p["image"], p["what"]) for p in problems] == [
        (
            "a.jpg",
            "no column class: all boxes are of the class 'object'; if column 'species' names their classes, call it class",
        )
    ]


@pytest.mark.parametrize(("share", "good"), [("1.005", True), ("-0.005", True), ("1.02", False), ("-0.02", False)])
def test_yolo_fractions_may_exceed_the_image_by_a_rounding_error(share, good, tmp_path):
    (tmp_path / "classes.txt").write_text("spine\n")
    (tmp_path / "a.txt").write_text(f"0 {share} 0.5 0.2 0.4\n")
    if not good:
        with pytest.raises(FormatError, match=f"{share} is not a fraction"):
            boxes.read(tmp_path)
        return
    x = np.clip(float(share), 0, 1)
    (found,) = boxes.read(tmp_path)
    np.testing.assert_allclose(found.boxes, [[x - 0.1, 0.3, x + 0.1, 0.7]], atol=2e-6)
    Image.new("L", (3, 7)).save(tmp_path / "a.png")
    kept, problems = objects.on_photograph(found, tmp_path / "a.png", (7, 3))
    assert len(kept.boxes) == 1 and not problems


def test_yolo_labels_folder_is_dropped_from_names_in_any_case(tmp_path):
    (tmp_path / "classes.txt").write_text("spine\n")
    (tmp_path / "Labels").mkdir()
    (tmp_path / "Labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.4\n")
    assert [a.image for a in boxes.read(tmp_path)] == ["a"]


def test_first_group_and_size_of_an_image_are_used(tmp_path):
    rows = "a.png,40,30,s,1,1,5,5,g\na.png,20,10,s,7,7,9,9,h\n"
    (tmp_path / "a.csv").write_text("filename,width,height,class,xmin,ymin,xmax,ymax,group\n" + rows)
    problems: list = []
    (found,) = boxes.read(tmp_path / "a.csv", problems)
    assert (found.group, found.size) == ("g", (30, 40)) and len(problems) == 2
