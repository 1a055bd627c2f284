"""The proofreading page: saved files read back, photographs are linked or copied, and edits are stored and undone."""

import os
from importlib import resources
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxmarks import detection, landmarks
from jaxmarks.data import formats
from jaxmarks.data.formats.boxes import BoxAnnotation
from jaxmarks.data.photographs import decode
from jaxmarks.report import proofread


@pytest.fixture(scope="module")
def page():
    """Calls a function of the page's scripts by name: page(name, *arguments)."""
    engine = pytest.importorskip("py_mini_racer", reason="the page's scripts run in mini-racer").MiniRacer()
    for name in ("proofread", "proofread_landmarks", "proofread_boxes"):
        engine.eval((resources.files("jaxmarks.report") / f"{name}.js").read_text())
    return engine.call


def photograph(name="a.png", items=((1.0, 2.0),), size=(30, 40), **about):
    given = [item and list(item) for item in items]
    return {"name": name, "size": list(size), "items": given, "doubt": [0.0] * len(items)} | about


WORDS = (
    st.text("abä ,;\"'#%&<>/é-_1", min_size=1, max_size=8).map(str.strip).filter(lambda t: t and not t.startswith("/"))
)
POINTS = st.none() | st.tuples(*(st.integers(0, 30_000).map(lambda n: n / 1000) for _ in "xy"))


@st.composite
def photographs(draw):
    count, names = draw(st.integers(1, 4)), draw(st.lists(WORDS, min_size=1, max_size=4, unique_by=str.lower))
    some = st.lists(POINTS, min_size=count, max_size=count)
    scale = st.none() | st.integers(1, 999).map(lambda n: n / 1e4)
    return [
        photograph(f"{n} {name}.png", draw(some), id=str(n), group=draw(st.sampled_from(["", "1", "2"])), mm_per_px=draw(scale))
        for n, name in enumerate(names)
    ]  # fmt: skip


WRITERS = {"tps": "tps", "csv": "landmarks_csv"}


@settings(max_examples=60)
@given(each=photographs())
@pytest.mark.parametrize("ending", ["tps", "csv"])
def test_saved_landmarks_read_back(page, tmp_path_factory, ending, each):
    assume(not any(len(one["items"]) > 1 and one["items"] == [[0, 0]] * len(one["items"]) for one in each))
    path = tmp_path_factory.mktemp("saved") / f"corrected.{ending}"
    path.write_text(page(WRITERS[ending], each), newline="", encoding="utf-8")
    if ending == "tps":
        specimens = formats.tps.read(path)
        found = formats.tps.to_annotations(specimens, [one["size"][0] for one in each])
    else:
        found = formats.read(path, problems=[])  # few coordinates may look like fractions
    assert [a.image for a in found] == [one["name"] for one in each]
    for a, one in zip(found, each, strict=True):
        assert a.visible.tolist() == [p is not None for p in one["items"]]
        expected = [p or (0, 0) for p in one["items"]]
        np.testing.assert_allclose(a.points, expected, atol=1e-9)
        assert a.id == one["id"]
        np.testing.assert_equal(a.mm_per_px, one["mm_per_px"] or np.nan)
        assert a.group == (one["group"] if ending == "csv" else "")


def test_saved_files_equal_the_librarys(page, tmp_path):
    one = photograph("a.jpg", [(1.5, 2.25), None], size=(30, 40), id="7", mm_per_px=0.5)
    annotation = formats.Annotation(
        image="a.jpg", points=np.array([[1.5, 2.25], [0, 0]]), visible=np.array([True, False]), mm_per_px=0.5, id="7"
    )
    formats.write(tmp_path / "a.tps", [annotation], {"a.jpg": 30})
    assert page("tps", [one]) == (tmp_path / "a.tps").read_text()
    formats.write(tmp_path / "a.csv", [annotation])
    assert page("landmarks_csv", [one]) == (tmp_path / "a.csv").read_bytes().decode()


def test_the_most_doubtful_come_first(page):
    each = [photograph(items=[None] * 3, doubt=doubt) for doubt in ([1, 5, None], [None] * 3, [9, 0, 2], [5, 4, 5])]
    assert [page("worst", one) for one in each] == [1, 0, 0, 0]
    ordered = "((images, by) => order(images, (image) => image.doubt[worst(image)], by))"
    assert page(ordered, each, "doubt") == [2, 0, 3, 1]
    assert page(ordered, each, "name") == [0, 1, 2, 3]


def test_landmarks_stay_within_their_photograph(page):
    assert page("inside", [12.34567, -3], [30, 40]) == [12.346, 0]
    assert page("inside", [99, 31], [30, 40]) == [40, 30]


@settings(max_examples=50)
@given(
    sides=st.tuples(*[st.integers(1, 5000)] * 4), factor=st.floats(0.1, 10), x=st.floats(0, 900), y=st.floats(0, 900)
)
def test_fit_centres_and_zoom_keeps_the_point_under_the_cursor(page, sides, factor, x, y):
    height, width, rows, columns = sides
    view = page("fitted", [height, width], [rows, columns])
    right, bottom = view["left"] + view["scale"] * width, view["top"] + view["scale"] * height
    assert view["left"] == pytest.approx(columns - right, abs=1e-6) and view["top"] == pytest.approx(
        rows - bottom, abs=1e-6
    )
    assert 0 <= view["left"] and 0 <= view["top"]  # the whole picture, centred,
    assert min(view["left"] / columns, view["top"] / rows) == pytest.approx(0.02)  # as large as a margin of 2 % allows
    closer = page("zoomed", view, factor, x, y)
    assert closer["scale"] == pytest.approx(factor * view["scale"])
    for axis, at in (("left", x), ("top", y)):  # the pixel at (x, y) stays there
        pixel = (at - view[axis]) / view["scale"]
        assert closer[axis] + closer["scale"] * pixel == pytest.approx(
            at, abs=1e-6 * max(1, abs(pixel) * view["scale"])
        )


SLIDER = {"value": 0, "parentElement": {}, "nextElementSibling": {}}


@pytest.fixture(scope="module")
def play(page):
    """Runs a script in a session: (images, script, kind=, stored=) -> its images, the store and the session's state."""

    def played(images, script, *, kind="landmarks", stored=None, **about):
        code = f"""((images, about, stored, slider) => {{
            const saved = new Map(Object.entries(stored));
            const set = (key, text) => text === null ? saved.delete(key) : saved.set(key, text);
            const kind = {kind}({{ ...about, images }}, slider);
            const now = session(images, kind, {{ get: (key) => saved.get(key) ?? null, set }});
            {script};
            const {{ place, selected, others, done, kept, image: {{ name }} }} = now;
            return {{ images, place, selected, others, done, kept, name, stored: Object.fromEntries(saved) }};
        }})"""
        return page(code, images, {"names": ["a", "b"], "unit": "", "threshold": 0.5} | about, stored or {}, SLIDER)

    return played


def some(count=3):
    """Returns photographs in descending order of doubt."""
    return [photograph(f"{n}.png", [(n, 1), (n, 2)], doubt=[0.9 - n / 10, 0.1]) for n in range(count)]


def test_a_session_advances_and_resumes_at_the_first_unchecked(play):
    now = play(some(), "")
    assert (now["place"], now["selected"], now["done"], now["stored"]) == (0, 0, 0, {})
    now = play(some(), "now.next()")
    assert (now["name"], now["done"]) == ("1.png", 1)
    now = play(some(), "now.next(); now.next(); now.next(); now.next()")
    assert (now["place"], now["done"]) == (2, 3)  # the last photograph stays open, and checked
    now = play(some(), "", stored=now["stored"] | {"1 1.png": None})
    assert (now["name"], now["done"]) == ("1.png", 2)  # the first unchecked one
    now = play(some(), "now.sort('name'); now.open(2)")
    assert now["name"] == "2.png"


def test_stored_corrections_are_restored(play):
    done = play(some(), "now.change(kind.removed(now.image, 0)); now.open(2); now.check(true)")
    assert (
        done["images"][0]["items"] == [None, [0, 2]]
        and done["selected"] == 0
        and set(done["stored"]) == {"1 0.png", "1 2.png"}
    )
    again = play(some(), "", stored=done["stored"])
    assert again["images"] == done["images"] and again["others"] == 0
    # Also with photographs added since; and a later session keeps other photographs' stored entries.
    more = play([photograph("new.png"), *some()], "", stored=done["stored"])
    assert more["images"][1:] == done["images"]
    both = play(some(), "now.open(1); now.check(true)", stored=done["stored"])["stored"]
    assert set(both) == {"1 0.png", "1 1.png", "1 2.png"}
    # If a photograph's marks have changed since, its correction is not used, but counted, and stays stored.
    other = some()
    other[0]["items"][1] = [9, 9]
    now = play(other, "", stored=done["stored"])
    assert now["others"] == 1 and now["images"][0]["items"] == [[0, 1], [9, 9]] and now["stored"] == done["stored"]
    # The two entries of a photograph that is marked twice are stored separately.
    twice = [photograph("a.png"), photograph("a.png")]
    done = play(twice, "now.open(1); now.change(kind.removed(now.image, 0))")
    again = play([photograph("a.png"), photograph("a.png")], "", stored=done["stored"])
    assert [one["items"] for one in again["images"]] == [[[1, 2]], [None]]


def test_kept_is_false_until_all_corrections_are_stored(page):
    code = """((images) => {
        let room = 0;
        const saved = [], told = [];
        const set = (key) => { if (!(room-- > 0)) throw new Error("full"); saved.push(key); };
        const now = session(images, landmarks({ names: [], unit: "" }), { get: () => null, set });
        now.next();
        told.push(now.kept);
        room = 1; // for one of the two
        now.next();
        told.push(now.kept);
        room = 9;
        now.next();
        return [...told, now.kept, now.done, saved];
    })"""
    assert page(code, some()) == [False, False, True, 3, ["1 0.png", "1 1.png", "1 2.png"]]


def test_everything_can_be_undone(play):
    edits = {
        "now.change(kind.removed(now.image, 0))": "removed",
        "now.change(kind.added(now.image, now.selected, [3, 4]))": "added nothing, for it is there",
        "now.next()": "right",
        "now.remember(); now.drag([7, 7])": "dragged",
    }
    fresh = play(some(), "")
    for edit, what in edits.items():
        now = play(some(), f"{edit}; while (now.undo()) {{}}")
        assert (now["images"], now["stored"], now["place"]) == (fresh["images"], {}, 0), what
    now = play(some(), "now.next(); now.change(kind.removed(now.image, 1)); now.open(2); now.undo()")
    assert (
        now["selected"] == 0
        and now["name"] == "1.png"
        and now["images"][0]["checked"]
        and now["images"][1]["items"] == [[1, 1], [1, 2]]
    )


def test_a_click_places_a_missing_landmark_only_once_it_is_selected(play):
    removed = "now.remove()"
    click = "now.change(kind.added(now.image, now.selected, [30, -5]))"
    now = play(some(), f"{removed}; {click}")  # the next landmark is selected, so a click does not bring it back
    assert now["images"][0]["items"] == [None, [0, 2]] and now["selected"] == 1
    now = play(some(), f"{removed}; now.change(kind.chips(now.image, 1)[0].chosen()); {click}")
    assert now["images"][0]["items"] == [[30, 0], [0, 2]]
    now = play(some(), f"{removed}; {removed}; {click}")
    assert now["images"][0]["items"] == [None, None] and now["selected"] == -1
    steps = [
        play(
            [photograph(items=[(1, 1), None, (3, 3)])],
            f"now.selected = 0; now.selected = kind.next(now.image, 0, {by})",
        )
        for by in (1, -1)
    ]
    assert [now["selected"] for now in steps] == [2, 2]


def test_the_networks_landmark_can_be_accepted(play):
    one = photograph(items=[(1, 1), None], found=[[2, 2.5], [99, 3]])
    now = play([one], "now.change(kind.taken(now.image, kind.beside(now.image, 1)))", unit="px")
    assert now["images"][0]["items"] == [[1, 1], [40, 3]] and now["selected"] == 1
    assert play([photograph()], "now.change(kind.taken(now.image, kind.beside(now.image, 0)))")["stored"] == {}


def test_files_are_found_by_path_suffix(page):
    files = [["photos/old/a.png", 1], ["photos/a.png", 2], ["photos/b/c.png", 3]]
    found = page("((files) => Object.fromEntries(by_path(files)))", files)
    assert found["a.png"] == 2 and found["old/a.png"] == 1 and found["b/c.png"] == 3 and found["photos/a.png"] == 2
    assert page("((files) => Object.fromEntries(by_path(files)))", files[::-1]) == found


def test_photographs_are_linked_or_copied_if_browsers_cannot_show_them(tmp_path, about_of):
    images, out = tmp_path / "photo graphs", tmp_path / "runs" / "mine"
    (images / "s 1").mkdir(parents=True)
    out.mkdir(parents=True)
    pixels = np.stack([*np.meshgrid(8 * np.arange(30), 12 * np.arange(20)), np.full((20, 30), 99)], -1).astype(np.uint8)
    plain, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = 6
    plain.save(images / "s 1" / "a#1 50%.png")
    plain.save(images / "b.JPG", format="JPEG")
    copied = {
        "turned.jpg": lambda path: plain.save(path, exif=exif),
        "c.tif": plain.save,
        "deep.png": lambda path: Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)).save(path),
        "print.jpg": lambda path: plain.convert("CMYK").save(path),
        "../beside.tif": plain.save,
        f"{tmp_path}/elsewhere.tif": plain.save,
    }
    for name, save in copied.items():
        save(images / name)
    linked, before = ["s 1/a#1 50%.png", "b.JPG"], sorted(tmp_path.rglob("*.*"))
    each = [photograph(name, size=(20, 30)) for name in [*linked, *copied]]
    about = about_of(proofread.landmarks(out, images, each, names=["l"]))
    sources = {one["name"]: out / unquote(one["source"]) for one in about["images"]}
    written = set(tmp_path.rglob("*.*")) - set(before)
    assert written == {out / "proofread.html", *(sources[name] for name in copied)} and len(written) == 7
    for name in linked:
        assert os.path.samefile(sources[name], images / name)
    for name in copied:
        assert sources[name].parent == out / "proofread"
        seen = decode(sources[name]).astype(int)
        assert seen.shape == (20, 30, 3) and np.abs(seen - decode(images / name)).mean() < 3


def test_names_cannot_break_the_page(tmp_path, about_of):
    folder = tmp_path / "<b>"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    each = [photograph("a.png", id="</script><b>&")]
    about = about_of(proofread.landmarks(tmp_path, folder, each, names=["</script>"]))
    assert about["images"][0]["id"] == "</script><b>&" and about["names"] == ["</script>"]
    text = (tmp_path / "proofread.html").read_text()
    assert text.count("</script>") == 1 and "<b>" not in text


def test_unit_and_order_depend_on_whether_marks_are_manual(tmp_path, about_of):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    one = photograph("a.png")
    beside = [one | {"found": np.ones_like(one["items"])}]
    for each, unit, order in (
        ([one], "", "least certain first"),
        (beside, "px", "largest difference from the network"),
    ):
        page = proofread.landmarks(tmp_path, tmp_path, each)
        assert about_of(page)["unit"] == unit and order in page.read_text()


def predictions(**changes):
    found = {
        "name": np.array(["a", "b", "c"]), "fold": np.zeros(3, int), "points": np.ones((3, 2, 2)),
        "scores": np.array([[0.8, 0.5], [0.4, 0.5], [0.8, 0.6]]), "true": np.zeros((3, 2, 2)), "visible": np.zeros((3, 2), bool),
        "mm_per_px": np.full(3, np.nan), "source_size": np.full((3, 2), 9), "delta": np.ones(3), "id": np.array(["", "", ""]),
    }  # fmt: skip
    return landmarks.Predictions(**found | changes)


def test_doubt_is_one_minus_score_or_distance_to_manual_landmarks():
    each = landmarks.to_proofread(predictions())
    assert not any("found" in one for one in each)
    np.testing.assert_allclose([one["doubt"] for one in each], [[0.2, 0.5], [0.6, 0.5], [0.2, 0.4]], atol=1e-9)
    np.testing.assert_array_equal(each[0]["items"], np.ones((2, 2)))

    visible = np.array([[True, True], [True, False], [False, False]])
    each = landmarks.to_proofread(predictions(visible=visible), {"a": "7"})
    assert [one["group"] for one in each] == ["7", "", ""]
    np.testing.assert_allclose(
        [one["doubt"] for one in each], [[1.414, 1.414], [1.414, np.nan], [np.nan, np.nan]], atol=1e-9
    )
    np.testing.assert_array_equal(each[1]["items"], [[0, 0], [np.nan, np.nan]])
    np.testing.assert_array_equal(each[1]["found"], np.ones((2, 2)))


CORNERS = st.tuples(*[st.integers(0, 20_000)] * 2, *[st.integers(1000, 9000)] * 2).map(
    lambda b: [b[0] / 1000, b[1] / 1000, (b[0] + b[2]) / 1000, (b[1] + b[3]) / 1000]
)
BOXES = st.tuples(CORNERS, st.integers(0, 1)).map(lambda b: [*b[0], b[1], None])
ONES = st.lists(BOXES, max_size=5, unique_by=lambda b: tuple(b))


@settings(max_examples=40)
@given(each=st.lists(st.tuples(ONES, st.sampled_from(["", "s 1"])), min_size=1, max_size=4))
@pytest.mark.parametrize("ending", ["csv", "json"])
def test_saved_boxes_read_back(page, tmp_path_factory, ending, each):
    images = [photograph(f'{n} "ä",.png', items, group=group) for n, (items, group) in enumerate(each)]
    path = tmp_path_factory.mktemp("saved") / f"corrected.{ending}"
    path.write_text(
        page({"csv": "boxes_csv", "json": "coco"}[ending], images, ["a,b", "c"]), newline="", encoding="utf-8"
    )
    found = formats.boxes.read(path, [])
    for a, one in zip(found, images, strict=True):
        assert (a.image, a.group, a.size) == (one["name"], one["group"], (30, 40))
        assert a.classes == tuple(["a,b", "c"][box[4]] for box in one["items"])
        np.testing.assert_allclose(a.boxes, np.reshape([box[:4] for box in one["items"]], (-1, 4)), atol=2e-3)


@settings(max_examples=60)
@given(boxes=ONES, others=ONES)
def test_unmatched_boxes_are_those_left_by_greedy_iou_matching(page, boxes, others):
    overlaps = np.zeros((len(boxes), len(others)))
    for i, j in np.ndindex(overlaps.shape):
        (a, b, c, d, *_), (e, f, g, h, *_) = boxes[i], others[j]
        shared = max(0, min(c, g) - max(a, e)) * max(0, min(d, h) - max(b, f))
        overlaps[i, j] = shared / ((c - a) * (d - b) + (g - e) * (h - f) - shared)
        assert page("iou", boxes[i], others[j]) == pytest.approx(overlaps[i, j], abs=1e-9)
    free, expected = set(range(len(others))), set(range(len(boxes)))
    for place in np.argsort(-overlaps, axis=None, kind="stable"):
        i, j = np.unravel_index(place, overlaps.shape)
        if boxes[i][4] == others[j][4] and overlaps[i, j] >= 0.4 and i in expected and j in free:
            expected.discard(i)
            free.discard(j)
    assert page("unmatched", boxes, others) == sorted(expected)


def test_boxes_stay_a_pixel_wide_and_in_the_image(page):
    box = [10, 10, 20, 16, 1, 0.5]
    moved = lambda part, by, box=box: page("shifted", box, part, by, [30, 40])
    assert moved(None, [2.5, -1]) == [12.5, 9, 22.5, 15, 1, None]
    assert moved(None, [-99, 99]) == [-5, 27, 5, 33, 1, None]  # its centre stays in the image
    assert moved("x0 y1", [3, 2]) == [13, 10, 20, 18, 1, None]
    assert moved("x1 y0", [-50, 50]) == [10, 15, 11, 16, 1, None]
    assert moved("x0 y0", [-500, -500]) == [0, 0, 20, 16, 1, None]
    assert moved("x0 y1", [-1, 99], [-4, 2, 5, 9, 0, None]) == [-4, 2, 5, 30, 0, None]  # a side outside may stay there
    drawn = lambda start, end, usual=(5, 5): page("between", start, end, usual, 1, [30, 40])
    assert drawn([8, 9], [2, 29]) == [2, 9, 8, 29, 1, None]
    assert drawn([8, 9], [-2, 99]) == [0, 9, 8, 30, 1, None]
    assert drawn([8, 9], None, (4, 6)) == [6, 6, 10, 12, 1, None]
    assert drawn([-8, 9], None) is None and drawn([8, 9], [8.5, 20]) is None and drawn([-9, -9], [-5, -5]) is None
    assert page("typical", [{"items": [box, [0, 0, 2, 9, 0, None]]}, {"items": [], "found": [[0, 0, 4, 4, 0, 1]]}]) == [
        4,
        6,
    ]


def scored(name="a.png", scores=(0.3, None, 0.7)):
    return photograph(name, [[k, k, k + 5, k + 5, 0, score] for k, score in enumerate(scores)])


def test_checked_images_keep_their_threshold(play):
    lines = lambda script: len(play([scored(), scored("b.png", [0.9])], f"""
        {script}; now.files = kind.files.csv([images.find(({{ name }}) => name === "a.png")]); images.push(now.files)
    """, kind="boxes")["images"][-1].splitlines()) - 1  # fmt: skip
    assert lines("") == 2  # score 0.7 and the manual box, at the slider's initial 0.5
    assert lines("slider.value = 0.3") == 3 and lines("slider.value = 0.8") == 1
    here = 'now.open(now.places.findIndex((n) => images[n].name === "a.png"))'
    assert lines(f"{here}; now.check(true); slider.value = 0.1") == 2
    assert lines(f"{here}; now.check(true); slider.value = 0.1; now.check(false)") == 3
    assert lines(f"{here}; now.check(true); slider.value = 0.1; now.undo()") == 3


def test_a_set_threshold_is_restored_for_the_same_network(play):
    set_to = play([scored()], "slider.value = 0.2; now.keep()", kind="boxes")["stored"]
    told = "images.push(kind.told(images[0]))"
    assert play([scored()], told, kind="boxes")["images"][1] == "2"
    assert play([scored()], told, kind="boxes", stored=set_to)["images"][1] == "3"
    assert play([scored()], told, kind="boxes", stored=set_to, threshold=0.6)["images"][1] == "2"


def test_boxes_are_drawn_accepted_relabelled_and_deleted(play):
    one = photograph(items=[[1, 1, 6, 6, 0, None]], found=[[1, 1, 6, 7, 0, 0.9], [10, 10, 18, 20, 1, 0.8]])
    boxes = lambda script: play([one], script, kind="boxes")
    assert boxes("now.change(kind.drawn(now.image, [20, 20], null))")["images"][0]["items"][1] == [
        17.5,
        17,
        22.5,
        23,
        0,
        None,
    ]
    now = boxes("now.change(kind.taken(now.image, 1)); now.change(kind.chips(now.image, now.selected)[0].chosen())")
    assert now["images"][0]["items"][1] == [10, 10, 18, 20, 0, None] and now["selected"] == 1
    now = boxes("now.selected = 0; now.remove(); now.remove()")
    assert now["images"][0]["items"] == [] and now["selected"] == -1
    told = play([one, photograph("b.png", [], found=None)], "images.push(...images.map(kind.told))", kind="boxes")[
        "images"
    ][2:]
    assert told == ["1", ""]


def test_manual_boxes_are_shown_beside_detections():
    at = lambda *corners: np.array([corners], float)
    annotations = [BoxAnnotation("a", at(0, 0, 9, 9), ("y",), group="g"), BoxAnnotation("b", at(1, 1, 5, 5), ("x",))]
    found = detection.Objects(
        np.array(["a"]), np.zeros(1), np.array([[[0, 0, 8, 9], [1, 1, 2, 2], [0, 0, 0, 0]]], float), np.array([[0.9, 0.2, 0]]),
        np.array([[1, 0, 0]]), at(0, 0, 9, 9)[None], np.array([[1]]),
    )  # fmt: skip
    each = detection.to_proofread(annotations, found, 0.5, {"a": (10, 12), "b": (20, 22)}, ("x", "y"))
    assert each == [
        {
            "name": "a",
            "size": (10, 12),
            "items": [[0, 0, 9, 9, 1, None]],
            "found": [[0, 0, 8, 9, 1, 0.9]],
            "group": "g",
        },
        {"name": "b", "size": (20, 22), "items": [[1, 1, 5, 5, 0, None]], "found": None, "group": ""},
    ]


def test_the_pages_iou_threshold_is_that_of_detection(page):
    assert page("(() => FOUND)") == detection.OVERLAP


@pytest.mark.parametrize(("k", "after", "before"), [(1, 4, 6), (4, 6, 1), (6, 1, 4), (5, 6, 4), (-1, 1, 6)], ids=str)
def test_next_and_previous_item_wrap_around(page, k, after, before):
    assert (page("neighbour", [1, 4, 6], k, 1), page("neighbour", [1, 4, 6], k, -1)) == (after, before)
    assert page("neighbour", [], k, 1) == page("neighbour", [], k, -1) == -1
    assert page("neighbour", [2], 2, 1) == page("neighbour", [2], 2, -1) == 2


def test_the_selected_item_is_drawn_on_top(page):
    assert page("topmost", [[0, 0], None, [1, 1], [2, 2]], 2) == [0, 1, 3, 2]
    assert page("topmost", [[0, 0], [1, 1]], -1) == [0, 1]


def test_a_missing_photograph_is_linked_and_not_copied(tmp_path, about_of):
    one = {"name": "gone.tif", "size": (9, 9), "items": np.array([[1.0, 2], [np.nan, 3]]), "doubt": np.zeros(2)}
    (tmp_path / "out").mkdir()
    page = proofread.landmarks(tmp_path / "out", tmp_path, [one])
    (shown,) = about_of(page)["images"]
    assert (shown["source"], shown["copied"], shown["items"]) == ("../gone.tif", False, [[1, 2], None])
