"""Landmarks and boxes as dlib's imglab, DeepLabCut and ImageJ write them."""

import math
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jaxmarks import formats
from jaxmarks.data import folder
from jaxmarks.data.formats import boxes
from jaxmarks.data.samples import FormatError

name = st.text("abcXYZ0189_-. ()=é,;'\"<&", min_size=1, max_size=8).map(str.strip).filter(bool)
pixel = st.one_of(st.integers(0, 4000).map(float), st.floats(0, 4000))


def read(tmp_path, content, file="marks.xml", problems=None):
    (tmp_path / file).write_text(content)
    return formats.read(tmp_path / file, problems=problems)


def dataset(*images):
    """An imglab file with these images."""
    head = "<?xml version='1.0' encoding='ISO-8859-1'?>\n<?xml-stylesheet type='text/xsl' href='a.xsl'?>\n"
    return f"{head}<dataset>\n<name>x</name>\n<comment/>\n<images>\n{''.join(images)}</images>\n</dataset>\n"


def image(*found, file="a.png", sides=""):
    return f"<image file={quoteattr(file)}{sides}>{''.join(found)}</image>\n"


def box(*parts, left=3, top=5, label="", rest=""):
    inner = "".join(f"<part name={quoteattr(k)} x='{x!r}' y='{y!r}'/>" for k, x, y in parts)
    label = f"<label>{label}</label>" if label else ""
    return f"<box top='{top}' left='{left}' width='30' height='20'{rest}>{label}{inner}</box>"


def test_imglab_parts_are_landmarks_in_natural_order(tmp_path):
    parts = [(f"{k:02}", 10 * k, k + 0.5) for k in (10, 2, 0, 1, *range(3, 10))]
    text = dataset(
        image(box(*parts), file="train/a.png", sides=" width='40' height='30'"),
        image(box(*parts[1:], rest=" ignore='0'"), file="train\\b.png"),
        image(box(("00", 1, 2), rest=" ignore='1'"), box(), file="c.png"),
    )
    problems: list = []
    a, b, c = read(tmp_path, text, problems=problems)
    assert (a.image, a.size, a.names, b.image, b.size) == ("train/a.png", (30, 40), (), "train\\b.png", None)
    np.testing.assert_array_equal(a.points, [[10 * k, k + 0.5] for k in range(11)])
    assert a.visible.all() and not a.upright
    np.testing.assert_array_equal(b.visible, [True] * 10 + [False])
    assert not c.visible.any()
    assert [(p["image"], p["what"]) for p in problems] == [
        ("c.png", "box 1 is marked as ignored: left out"), ("c.png", "no parts: all landmarks are missing"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "names"),
    [("01", ()), ("12", ()), ("13", ("1", "3")), (("eye", "fin"), ("eye", "fin")), (("l1", "l2"), ())],
)
def test_imglab_part_names_are_kept_unless_they_are_a_numbering(labels, names, tmp_path):
    (found,) = read(tmp_path, dataset(image(box(*((label, 1, 2) for label in labels)))))
    assert found.names == names and len(found.points) == 2


@given(st.dictionaries(name, st.dictionaries(st.sampled_from("pqrs"), st.tuples(pixel, pixel)), min_size=1, max_size=4))
def test_imglab_coordinates_are_read_to_the_last_digit(tmp_path_factory, marks):
    images = [image(box(*((k, *at) for k, at in parts.items())), file=file) for file, parts in marks.items()]
    labels = sorted({k for parts in marks.values() for k in parts})
    (path := tmp_path_factory.mktemp("imglab") / "a.xml").write_text(dataset(*images), encoding="utf-8")
    if not labels:
        with pytest.raises(FormatError, match="no <part> in any box"):
            formats.read(path)
        return
    for found, (file, parts) in zip(formats.read(path, problems=[]), marks.items(), strict=True):
        assert found.image == file
        np.testing.assert_array_equal(found.visible, [k in parts for k in labels])
        np.testing.assert_array_equal(found.points, [parts.get(k, (0, 0)) for k in labels])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotation/>", "the root is <annotation>, not <dataset>"),
        ("<dataset>", "line 1: not valid XML"),
        ("<!DOCTYPE a><dataset/>", "a DOCTYPE"),
        (dataset(), "no <part> in any box"),
        (dataset(image(file=" ")), "image 1: no file"),
        (dataset(image(), image(box(("", 1, 2)))), "image 2, box 1: a part without a name"),
        (dataset(image(box(("p", 1, 2), ("p", 1, 2)))), "image 1, box 1: part p is given twice"),
        (dataset(image(box(("p", 1, 2)).replace("'2'", "'2,5'"))), "image 1, box 1: y='2,5' of <part> is not a number"),
        (dataset(image(box(("p", 1, 2)), box(("p", 1, 2)))), "image 1, box 2: a second box with parts on a.png"),
    ],
)
def test_imglab_errors_name_the_place_and_the_cause(content, message, tmp_path):
    with pytest.raises(FormatError) as error:
        read(tmp_path, content, problems=[])
    assert str(error.value).startswith(f"{tmp_path / 'marks.xml'}: {message}"), str(error.value)


def test_nan_parts_are_missing_and_reported(tmp_path):
    problems: list = []
    (found,) = read(tmp_path, dataset(image(box(("p", 1, 2), ("q", math.nan, 2)))), problems=problems)
    np.testing.assert_array_equal(found.visible, [True, False])
    assert [p["what"] for p in problems] == ["part q at (nan, 2.0): treated as missing"]


def test_imglab_boxes_span_their_width_and_height(tmp_path):
    text = dataset(
        image(box(label="spine"), box(left=10, label="stub"), sides=" width='40' height='30'"),
        image(box(), box(left=-2.5, rest=" ignore='1'"), file="b.png"),
        image(file="c.png"),
    )
    (tmp_path / "a.xml").write_text(text)
    problems: list = []
    a, b, c = boxes.read(tmp_path / "a.xml", problems)
    np.testing.assert_array_equal(a.boxes, [[3, 5, 33, 25], [10, 5, 40, 25]])
    assert (a.classes, a.size, b.classes, len(c.boxes)) == (("spine", "stub"), (30, 40), ("object",), 0)
    np.testing.assert_array_equal(b.boxes, [[3, 5, 33, 25]])
    assert [p["what"] for p in problems] == ["box 2 is marked as ignored: left out"]
    (tmp_path / "a.xml").write_text(text.replace("width='30'", "", 1))
    with pytest.raises(FormatError, match="image 1, box 1: width='' of <box> is not a number"):
        boxes.read(tmp_path / "a.xml", [])


CUT = """scorer,Ann,Ann,Ann,Ann
bodyparts,snout,snout,tail,tail
coords,x,y,x,y
labeled-data/one/img001.png,10.5,20.25,,
labeled-data/two/img001.png,1,2,3,4
"""


def test_deeplabcut_frames_are_grouped_by_video(tmp_path):
    one, two = read(tmp_path, CUT, "CollectedData_Ann.csv")
    assert (one.image, one.group) == ("labeled-data/one/img001.png", "labeled-data/one")
    assert (two.group, two.names) == ("labeled-data/two", ("snout", "tail"))
    np.testing.assert_array_equal(one.visible, [True, False])
    np.testing.assert_array_equal(one.points, [[10.5, 20.25], [0, 0]])
    np.testing.assert_array_equal(two.points, [[1, 2], [3, 4]])


def test_deeplabcut_paths_in_three_cells_read_the_same(tmp_path):
    lines = CUT.replace("labeled-data/", "labeled-data,").replace("/img", ",img").splitlines()
    wide = [line.replace(",", ",,,", 1) for line in lines[:3]] + lines[3:]
    old, new = read(tmp_path, CUT, "a.csv"), read(tmp_path, "\n".join(wide), "b.csv")
    assert [(a.image, a.group, a.names) for a in old] == [(a.image, a.group, a.names) for a in new]
    for a, b in zip(old, new, strict=True):
        np.testing.assert_array_equal(a.points, b.points)


def test_deeplabcut_folder_combines_all_its_videos(tmp_path):
    """As in a project: photographs beside each file, and body parts that only some videos have."""
    videos = {"one": CUT, "two": CUT.replace("tail", "fin")}
    for video, text in videos.items():
        (place := tmp_path / "labeled-data" / video).mkdir(parents=True)
        rows = [row for row in text.splitlines() if not row.startswith("labeled") or f"/{video}/" in row]
        (place / "CollectedData_Ann.csv").write_text("\n".join(rows))
        Image.new("RGB", (40, 30)).save(place / "img001.png")
    marks = tmp_path / "labeled-data"
    for photographs in (tmp_path, marks):
        samples, names, problems = folder.load(photographs, marks, size=(30, 40))
        assert names == ("snout", "tail", "fin") and not problems
        assert samples.specimen.tolist() == ["labeled-data/one", "labeled-data/two"]
        np.testing.assert_array_equal(samples.visible, [[True, False, False], [True, False, True]])
        np.testing.assert_array_equal(samples.points[1], [[1, 2], [0, 0], [3, 4]])
    (marks / "two" / "img001.json").write_text("{}")
    *_, (problem,) = folder.load(tmp_path, marks, size=(30, 40))
    assert problem["what"].startswith("1 .json files such as img001.json are not read")


def test_frames_of_only_one_video_are_reported(tmp_path):
    problems: list = []
    found = read(tmp_path, CUT.replace("two/img001", "one/img002"), "a.csv", problems)
    assert [a.group for a in found] == ["", ""]
    assert "all 2 frames are of one video" in problems[0]["what"]


SEVERAL = """scorer,Ann,Ann,Ann,Ann,Ann,Ann,Ann,Ann
individuals,m1,m1,m2,m2,m2,m2,single,single
bodyparts,snout,snout,snout,snout,tail,tail,cage,cage
coords,x,y,x,y,x,y,x,y
a/1.png,1,2,,,,,7,8
b/1.png,,,3,4,5,6,NaN,nan
"""


def test_only_one_animal_may_be_marked_per_frame(tmp_path):
    one, two = read(tmp_path, SEVERAL, "a.csv")
    assert one.names == ("snout", "tail", "cage")
    np.testing.assert_array_equal(one.points, [[1, 2], [0, 0], [7, 8]])
    np.testing.assert_array_equal(two.points, [[3, 4], [5, 6], [0, 0]])
    with pytest.raises(FormatError, match=r"a\.csv: line 5: two animals are marked, m1 and m2"):
        read(tmp_path, SEVERAL.replace("1,2,,", "1,2,3,4"), "a.csv")


def test_deeplabcut_likelihoods_are_ignored(tmp_path):
    text = "scorer,N,N,N\nbodyparts,p,p,p\ncoords,x,y,likelihood\na/1.png,1,2,0.9\nb/1.png,3,4,0.1\n"
    np.testing.assert_array_equal([a.points for a in read(tmp_path, text, "a.csv")], [[[1, 2]], [[3, 4]]])


@given(
    st.lists(st.lists(st.one_of(st.none(), st.tuples(pixel, pixel)), min_size=3, max_size=3), min_size=1, max_size=4)
)
def test_deeplabcut_coordinates_are_read_to_the_last_digit(tmp_path_factory, frames):
    heads = ["scorer" + 6 * ",Ann", "bodyparts,a,a,b,b,c,c", "coords" + 3 * ",x,y"]
    rows = [
        ",".join([f"labeled-data/{n}/f.png", *("," if at is None else f"{at[0]!r},{at[1]!r}" for at in points)])
        for n, points in enumerate(frames)
    ]
    (path := tmp_path_factory.mktemp("cut") / "a.csv").write_text("\n".join(heads + rows))
    for found, points in zip(formats.read(path, problems=[]), frames, strict=True):
        np.testing.assert_array_equal(found.visible, [at is not None for at in points])
        np.testing.assert_array_equal(found.points, [at or (0, 0) for at in points])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("scorer,a,a\n", "line 1: no row 'bodyparts'"),
        ("scorer,a,a\nbodyparts,p,p\n", "line 1: no row 'coords'"),
        ("scorer,a,a\nbodyparts,p\n", "line 2: 2 cells where the header has 3"),
        ("scorer,a,a\nbodyparts,p,p\ncoords,u,v\n", "no column x in the row 'coords'"),
        ("scorer,a,a\nbodyparts,p,p\ncoords,x,z\n", "p has no x or no y column"),
        ("scorer,a,a\nbodyparts,p,p\ncoords,x,y\n", "a header without frames"),
        (CUT + "labeled-data/two/img002.png,1,2,3\n", "line 6: 4 cells where the header has 5"),
        (CUT + ",1,2,3,4\n", "line 6: no frame"),
        (CUT + "a.png,1,2,x,4\n", "line 6: tail at 'x', '4' is not a pair of numbers"),
        (CUT + "a.png,1,inf,3,4\n", "line 6: snout at (1.0, inf) is not finite"),
    ],
)
def test_deeplabcut_errors_name_the_place_and_the_cause(content, message, tmp_path):
    with pytest.raises(FormatError) as error:
        read(tmp_path, content, "a.csv", [])
    assert str(error.value).startswith(f"{tmp_path / 'a.csv'}: {message}"), str(error.value)


def test_deeplabcut_point_with_one_coordinate_is_reported(tmp_path):
    problems: list = []
    read(tmp_path, CUT.replace("1,2,3,4", "1,,3,4"), "a.csv", problems)
    assert [p["what"] for p in problems] == ["snout has only one coordinate: treated as missing"]


def test_rows_of_imagej_results_are_landmarks_in_order(tmp_path):
    text = " ,Label,Area,X,Y,Slice\n1,a.jpg,0,10.5,20,1\n2,a.jpg:0012-0034,0,30,40.25,1\n3,b.tif,0,NaN,6,1\n4,b.tif,0,7,8,1\n"
    problems: list = []
    a, b = read(tmp_path, text, "Results.csv", problems)
    assert (a.image, b.image, a.names) == ("a.jpg", "b.tif", ())
    np.testing.assert_array_equal(a.points, [[10.5, 20], [30, 40.25]])
    np.testing.assert_array_equal(b.visible, [False, True])
    assert [(p["image"], p["where"]) for p in problems] == [("b.tif", f"{tmp_path / 'Results.csv'}: line 4")]


@pytest.mark.parametrize("title", ["photos", "photos.tif", "photos:0012-0034"])
def test_imagej_slices_of_an_image_sequence_are_photographs(title, tmp_path):
    for file in ("a.jpg", "b.JPG"):
        Image.new("RGB", (60, 40)).save(tmp_path / file, format="JPEG")
    rows = "".join(f"{title}:{name},{n},1\n" for n, name in enumerate(("a", "a", "b.jpg", "b.jpg")))
    (tmp_path / "a.csv").write_text(f"Label,X,Y\n{rows}")
    a, b = formats.read(tmp_path / "a.csv", tmp_path)
    assert [(x.image, x.points[:, 0].tolist()) for x in (a, b)] == [("a.jpg", [0, 1]), ("b.JPG", [2, 3])]
    for label in ("a.jpg:b", "a.jpg:0012-0034:b"):  # a region called like a photograph
        (tmp_path / "a.csv").write_text(f"Label,X,Y\n{label},1,2\n")
        assert [x.image for x in formats.read(tmp_path / "a.csv", tmp_path)] == ["a.jpg"]


def test_label_column_beside_image_names_the_landmark(tmp_path):
    (found,) = read(tmp_path, "image,label,x,y\na.png,tail,3,4\na.png,eye,1,2\n", "a.csv")
    assert found.names == ("eye", "tail")
    np.testing.assert_array_equal(found.points, [[1, 2], [3, 4]])


def test_images_with_different_row_counts_are_refused(tmp_path):
    """It is unknown which landmark is missing."""
    with pytest.raises(FormatError, match=r"a.csv: line 4: b.png has 1 rows, but a.png has 2; add a column landmark"):
        read(tmp_path, "image,x,y\na.png,1,2\na.png,3,4\nb.png,5,6\n", "a.csv")


@pytest.mark.parametrize(
    ("header", "first", "second"),
    [("image,name,x,y", "eye", "Tail"), ("image,id,x,y", "01", "2.0"), ("image,mark,x,y", "3", "a")],
)
def test_column_that_names_landmarks_in_another_order_is_refused(header, first, second, tmp_path):
    """Even if that column has a mistake in some image."""
    named = [("a", first), ("a", second), ("b", second), ("b", first), ("c", first), ("c", "slip")]
    rows = "".join(f"{image}.png,{name},{n},{n}\n" for n, (image, name) in enumerate(named))
    column = header.split(",")[1]
    message = f"a.csv: line 4: {column} is '{second}' where .* '{first}', but rows are landmarks in order; rename"
    with pytest.raises(FormatError, match=message):
        read(tmp_path, f"{header}\n{rows}", "a.csv")


COUNTED = "a.png,{},1,1\na.png,{},2,2\nb.png,{},3,3\nb.png,{},4,4\n"  # two images without a landmark each


@pytest.mark.parametrize("column", ["landmark_id", "Landmark_Name", "keypoint", "point", "lm", "node", "bodypart", "part", "feature"])  # fmt: skip
def test_landmark_column_has_synonyms(column, tmp_path):
    a, b = read(tmp_path, f"image,{column},x,y\n" + COUNTED.format("1", "2", "3", "1"), "a.csv")
    assert [x.visible.tolist() for x in (a, b)] == [[True, True, False], [True, False, True]] and a.names == ()
    assert b.points.tolist() == [[4, 4], [0, 0], [3, 3]]
    (found,) = read(tmp_path, f"image,{column},x,y\na.png,tip,1,1\na.png,base,2,2\n", "a.csv")
    assert found.names == ("base", "tip")


@pytest.mark.parametrize("cells", ["1 2 3 4", "wing wing wing wing", "left wing left wing"])
def test_column_that_does_not_name_landmarks_is_none_of_their_names(cells, tmp_path):
    """It numbers the rows of the file, or names what all landmarks are on; but landmark_name names them."""
    text = "image,part,landmark_name,x,y\n" + "".join(
        f"{n // 2}.png,{cell},{'a' if n % 2 else 'b'},{n},1\n" for n, cell in enumerate(cells.split())
    )
    for number, found in enumerate(read(tmp_path, text, "a.csv")):
        assert found.names == ("a", "b") and found.points[:, 0].tolist() == [2 * number + 1, 2 * number]
    found = read(tmp_path, text.replace("landmark_name", "about").replace(",a,", ",,").replace(",b,", ",,"), "a.csv")
    assert [sorted(a.points[:, 0]) for a in found] == [[0, 1], [2, 3]] and all(a.visible.all() for a in found)


@pytest.mark.parametrize(("cells", "line"), [("eye tail eye fin", 5), ("1 2 2 3", 5), ("eye tail Fin eye", 4)])
def test_column_that_names_other_landmarks_in_some_image_is_refused(cells, line, tmp_path):
    message = rf"a\.csv: line {line}: mark is '(fin|3|Fin)', which the first image does not have, .*; rename"
    with pytest.raises(FormatError, match=message):
        read(tmp_path, "image,mark,x,y\n" + COUNTED.format(*cells.split()), "a.csv")


def test_region_names_in_another_order_are_refused(tmp_path):
    regions = "Label,X,Y\na.png:Point 1,10,10\na.png:Point 2,50,40\nb.png:point 2,51,41\nb.png:Point 1,11,11\n"
    with pytest.raises(FormatError, match=r"line 4: what follows the image's name is 'point 2' where .* 'Point 1'"):
        read(tmp_path, regions, "a.csv")


@pytest.mark.parametrize("column", [("7", "8", "9", "10"), ("0.1", "0.2", "0.2", "0.1000"), ("ann", "ann", "ben", "ann"), ("eye", "tail", "Eye", "tail"), ("u", "v", "w", "z"), ("12-34", "5-6", "7-8", "12-34"), ("", "blurred", "blurred", "")])  # fmt: skip
def test_columns_that_do_not_name_landmarks_are_ignored(column, tmp_path):
    rows = zip(("a", "a", "b", "b"), column, range(4), strict=True)
    found = read(tmp_path, "image,about,x,y\n" + "".join(f"{i}.png,{c},{n},{n}\n" for i, c, n in rows), "a.csv")
    assert [a.points[:, 0].tolist() for a in found] == [[0, 1], [2, 3]]


def test_x_and_y_beside_numbered_columns_are_no_landmark(tmp_path):
    for label in ("", ",label"):
        text, problems = f"image,x,y,x1,y1,x2,y2{label}\na.png,1,1,10,20,30,40{label}\n", []
        (found,) = read(tmp_path, text, "a.csv", problems)
        assert found.points.tolist() == [[10, 20], [30, 40]]
        what = "columns x and y are not used beside x1 and y1: if they are a landmark, number them, too, from x1 on"
        assert [(p["image"], p["what"]) for p in problems] == [("a.png", what)]


@pytest.mark.parametrize("header", ["x,y,x.1,y.1,x.2,y.2", "X,Y,X.1,Y.1,X.2,Y.2", "x,y,x2,y2,x3,y3"])
def test_repeated_headings_that_a_program_has_renamed_are_landmarks(header, tmp_path):
    (found,) = read(tmp_path, f"image;{header}\na.png;1;2;3,5;4;5;6\n".replace(",", ";", 5), "a.csv")
    assert found.points.tolist() == [[1, 2], [3.5, 4], [5, 6]]


def test_x1_and_y1_are_ignored_if_images_have_several_rows(tmp_path):
    (found,) = read(tmp_path, "image,x,y,x1,y1\na.png,10,20,.1,.2\na.png,30,40,.3,.4\n", "a.csv")
    assert found.points.tolist() == [[10, 20], [30, 40]]


def test_other_table_named_like_a_deeplabcut_file_is_refused(tmp_path):
    (tmp_path / "CollectedData_Ann.csv").write_text("image,x1,y1\na.png,1,2\n")
    with pytest.raises(FormatError, match=r"CollectedData_Ann\.csv: line 1: no row 'scorer'"):
        formats.read(tmp_path)


def test_error_for_an_empty_table_shows_the_expected_header(tmp_path):
    with pytest.raises(FormatError, match=r"the expected header is image,x1,y1"):
        read(tmp_path, "\n", "a.csv")


def test_imagej_region_is_cut_off_after_a_four_letter_ending(tmp_path):
    text = "Label,X,Y\na.tiff:0012-0034,1,2\na.tiff:0013-0035,3,4\n"
    (a,) = read(tmp_path, text, "Results.csv")
    assert a.image == "a.tiff" and a.points.tolist() == [[1, 2], [3, 4]]


def test_imglab_empty_ignore_and_zero_size_count_as_absent(tmp_path):
    (found,) = read(tmp_path, dataset(image(box(("p", 1, 2), rest=" ignore=''"), sides=" width='0' height='0'")))
    assert found.visible.all() and found.size is None


def test_deeplabcut_frames_with_windows_paths_are_grouped_by_video(tmp_path):
    text = "scorer,A,A\nbodyparts,p,p\ncoords,x,y\nlabeled-data\\one\\1.png,1,2\nlabeled-data\\two\\1.png,3,4\n"
    assert [a.group for a in read(tmp_path, text, "a.csv", [])] == ["labeled-data/one", "labeled-data/two"]
