"""Reading a folder of photographs as Samples: frames, file names, image formats and the problems that are reported."""

import errno
import json
import os
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from PIL import Image

from jaxmarks import atomic
from jaxmarks import config as configs
from jaxmarks.data import fitting, folder, formats, objects, photographs
from jaxmarks.data.ahead import ahead
from jaxmarks.data.samples import FormatError


def dot(size, at, radius=6):
    """A dark disc at a continuous point on a bright image (H, W, 3)."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    inside = np.hypot(x - at[0], y - at[1]) < radius
    return np.where(inside[..., None], 10, 240).astype(np.uint8).repeat(3, -1)


def centroid(image):
    weight = 240 - image[..., 0].astype(float)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


@pytest.mark.parametrize("fit", ["pad", "stretch"])
@pytest.mark.parametrize("source", [(90, 200), (200, 90), (240, 320)])
def test_points_stay_on_their_pixels_in_the_frame(fit, source, tmp_path):
    at = (61.3, 47.8)
    Image.fromarray(dot(source, at)).save(tmp_path / "a.png")
    (tmp_path / "a.csv").write_text(f"image,x1,y1\na.png,{at[0]},{at[1]}\n")
    samples, _, problems = folder.load(tmp_path, tmp_path / "a.csv", size=(60, 80), fit=fit)
    assert samples.images.shape == (1, 60, 80, 3) and not problems
    np.testing.assert_allclose(centroid(samples.images[0]), samples.points[0, 0], atol=0.1)
    np.testing.assert_allclose(samples.source_points[0, 0], at, atol=1e-4)


def test_a_large_jpeg_stays_in_place_in_a_small_frame(tmp_path):
    at = (1603.2, 911.7)
    Image.fromarray(dot((1224, 1632), at, radius=25)).save(tmp_path / "a.jpg", quality=95)
    image, source = folder.framed(tmp_path / "a.jpg", size=(96, 128), channels=3, fit="pad")
    assert source == (1224, 1632) and image.shape == (96, 128, 3)
    np.testing.assert_allclose(centroid(np.minimum(image, 240)) / (128 / 1632), at, atol=8)


@pytest.mark.parametrize("size", [(3073, 4097), (1539, 2051), (779, 1031)])
def test_reduced_jpegs_of_indivisible_sides_stay_in_place(size, tmp_path):
    """The last column of a reduced decode reaches beyond the photograph, by up to seven of its pixels."""
    at = (0.95 * size[1], 0.95 * size[0])
    Image.fromarray(dot(size, at, radius=size[0] / 40)).save(tmp_path / "a.jpg", quality=95)
    for fit in ("pad", "stretch"):
        (samples, (drawn,)), *_ = folder.batches(tmp_path, size=(192, 256), fit=fit, problems=[])
        trained, _ = folder.framed(tmp_path / "a.jpg", size=(192, 256), channels=3, fit=fit)
        (sx, _, left), (_, sy, top) = samples.to_source[0]
        for image in (samples.images[0], trained):
            found = centroid(np.where(image > 220, 240, image)) * (sx, sy) + (left, top)
            np.testing.assert_allclose(found, at, atol=0.05 * sx)  # 0.05 pixels of the frame
        share = np.array(size[::-1]) / drawn.shape[1::-1]
        np.testing.assert_allclose(centroid(np.where(drawn > 220, 240, drawn)) * share, at, atol=0.05 * sx)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16", "LA"])
def test_image_modes_become_rgb(mode, tmp_path):
    grey = np.linspace(0, 255, 64).reshape(8, 8).astype(np.uint8)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 200 + 7)
    else:
        image = Image.fromarray(grey).convert("RGB" if mode == "CMYK" else "L").convert(mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "I;16") else "a.png")
    image.save(path)
    found = photographs.decode(path)
    assert found.shape == (8, 8, 3) and found.dtype == np.uint8
    if mode != "1":
        np.testing.assert_allclose(found[..., 0].astype(int), grey, atol=3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # from the truncated file
def test_16_bit_colours_are_stretched_and_losses_reported(tmp_path):
    rng = np.random.default_rng(0)
    deep = rng.integers(0, 4096, (40, 50, 3), dtype=np.uint16)  # 12 bits
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb")
    np.testing.assert_allclose(photographs.decode(tmp_path / "deep.tif"), deep / 4095 * 255, atol=1.5)
    assert photographs.not_decoded(tmp_path / "deep.tif") == []
    tifffile.imwrite(tmp_path / "stack.tif", deep.transpose(2, 0, 1), photometric="minisblack")
    assert "3 pages" in photographs.not_decoded(tmp_path / "stack.tif")[0]
    (tmp_path / "deep.png").write_bytes(png_of(deep))
    assert "16 bits per colour" in photographs.not_decoded(tmp_path / "deep.png")[0]
    assert photographs.not_decoded(tmp_path / "none.png") == []
    assert not photographs._read_deep(
        SimpleNamespace(format="TIFF", info={"compression": "tiff_lzw"})
    )  # needs imagecodecs
    tifffile.imwrite(tmp_path / "small.tif", deep, photometric="rgb", compression="zlib")
    np.testing.assert_array_equal(photographs.decode(tmp_path / "small.tif"), photographs.decode(tmp_path / "deep.tif"))
    problems: list[dict] = []
    list(folder.batches(tmp_path, size=(16, 16), problems=problems))
    assert {p["image"] for p in problems} == {"stack.tif", "deep.png"}
    for name, how in {
        "planes": {},
        "small": {"compression": "zlib"},
        "alpha": {"extrasamples": ["unassalpha"]},
    }.items():
        planes = np.concatenate([deep, deep[..., :1]], -1) if name == "alpha" else deep
        about = {"photometric": "rgb", "planarconfig": "separate"} | how
        tifffile.imwrite(tmp_path / "planes.tiff", planes.transpose(2, 0, 1), **about)
        np.testing.assert_array_equal(
            photographs.decode(tmp_path / "planes.tiff"), photographs.decode(tmp_path / "deep.tif")
        )
    tifffile.imwrite(tmp_path / "planes.tiff", np.concatenate([deep, deep[..., :1]], -1), photometric="separated")
    with pytest.raises(OSError, match="16 bits per colour in a layout that is not read: save it as interleaved RGB"):
        photographs.decode(tmp_path / "planes.tiff")
    (tmp_path / "planes.tiff").unlink()
    (tmp_path / "marks.csv").write_text("image,x1,y1\nstack.tif,2,3\ndeep.tif,2,3\ndeep.png,2,3\nsmall.tif,2,3\n")
    _, _, problems = folder.load(tmp_path, tmp_path / "marks.csv", size=(16, 16))
    assert {p["image"] for p in problems} == {"stack.tif", "deep.png"}
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "cut.tif").write_bytes((tmp_path / "stack.tif").read_bytes()[:-40])
    photographs.not_decoded(tmp_path / "none" / "cut.tif")  # must not raise, whatever it returns


def test_scans_beyond_pillows_limit_are_refused(tmp_path, monkeypatch):
    Image.new("L", (2100, 1000)).save(tmp_path / "scan.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    with pytest.raises(OSError, match="more than 2 megapixels: scale it down, and its annotations with it"):
        photographs.image_size(tmp_path / "scan.png")


def png_of(values):
    """Encodes colours (H, W, 3) uint16 as a 16-bit PNG, which Pillow cannot write."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_a_few_saturated_or_missing_pixels_do_not_make_an_image_black(tmp_path):
    grey = np.linspace(0, 4095, 2500).reshape(50, 50)
    hot = grey.astype(np.uint16)
    hot[7, 7] = 65535
    Image.fromarray(hot).save(tmp_path / "hot.png")
    assert np.percentile(photographs.decode(tmp_path / "hot.png"), 50) == pytest.approx(127, abs=2)
    odd = grey.astype(np.float32)
    odd[0, :3] = np.nan, np.inf, -np.inf
    Image.fromarray(odd).save(tmp_path / "odd.tif")
    found = photographs.decode(tmp_path / "odd.tif")[..., 0]
    assert found[0, :3].tolist() == [0, 255, 0] and np.percentile(found, 50) == pytest.approx(127, abs=2)
    Image.fromarray(np.full((5, 5), np.nan, np.float32)).save(tmp_path / "none.tif")
    with pytest.raises(OSError, match="no pixel is a finite number"):
        photographs.decode(tmp_path / "none.tif")


def test_hidden_files_are_skipped_and_umlauts_are_normalised(tmp_path):
    (tmp_path / ".hidden").mkdir()
    for name in (".hidden/b.jpg", "Flu\u0308gel.jpg", "._Flu\u0308gel.jpg", ".DS_Store"):  # as macOS writes them
        Image.new("RGB", (4, 4)).save(tmp_path / name, format="JPEG")
    assert [p.name for p in photographs.listing(tmp_path)] == ["Flu\u0308gel.jpg"]
    assert photographs.find(tmp_path, "Fl\u00fcgel.jpg").name == "Flu\u0308gel.jpg"


def test_unreadable_folders_and_names_that_are_not_utf_8_are_reported(tmp_path, monkeypatch):
    for name in (b"a.jpg", b"k\xe4fer.jpg", b"notes \xe4.md", b"\xe4/b.jpg", b"locked/c.jpg"):
        path = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            Image.new("RGB", (40, 30)).save(file, format="JPEG")
    scandir = os.scandir

    def denied(path):
        if os.fspath(path).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    expected = [
        ("\\xe4", "its name is not UTF-8: left out; rename it"),
        ("k\\xe4fer.jpg", "its name is not UTF-8: left out; rename it"),
        ("locked", "this folder cannot be read (Permission denied): left out; change its permissions"),
    ]
    problems = []
    ((samples, _),) = folder.batches(tmp_path, size=(16, 16), problems=problems)
    (tmp_path / "marks.csv").write_text("image,x1,y1\na.jpg,2,3\n")
    *_, of_load = folder.load(tmp_path, tmp_path / "marks.csv", size=(16, 16))
    for found in (problems, of_load):
        assert [(p["image"], p["what"]) for p in found] == expected
    atomic.write_records(tmp_path / "failures.csv", problems)
    assert samples.name.tolist() == ["a.jpg"]
    with pytest.raises(FormatError, match=r"\\xe4: its name is not UTF-8; rename it"):
        photographs.files_in(tmp_path, {".json"})
    with pytest.raises(FormatError, match=r"locked: this folder cannot be read"):
        photographs.files_in(tmp_path / "locked", {".json"})


def test_exif_rotated_photographs_are_reported_if_marks_give_no_size(tmp_path):
    turn = Image.Exif()
    turn[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=turn)
    Image.new("RGB", (40, 30)).save(tmp_path / "b.jpg")
    (tmp_path / "marks.csv").write_text("image,x1,y1\na.jpg,2,3\nb.jpg,2,3\n")
    _, _, problems = folder.load(tmp_path, tmp_path / "marks.csv", size=(16, 16))
    assert [(p["image"], p["what"][:53]) for p in problems] == [
        ("a.jpg", "1 photographs, this one among them, have an EXIF rota")
    ]
    unmarked: list[dict] = []  # those without annotations are reported, too
    assert len(list(folder.batches(tmp_path, size=(16, 16), problems=unmarked))) == 1
    assert [(p["image"], p["what"][:53]) for p in unmarked] == [
        ("a.jpg", "1 photographs, this one among them, have an EXIF rota")
    ]
    with pytest.raises(FormatError, match=r"a\.jpg: this is a file; give the folder that it is in"):
        next(folder.batches(tmp_path / "a.jpg", size=(16, 16), problems=[]))


def test_ambiguous_exif_rotations_are_reported_though_marks_give_a_size(tmp_path):
    for name, turn, size in (("a", 3, (4, 6)), ("b", 6, (5, 5)), ("c", 6, (4, 6)), ("d", 1, (4, 6))):
        exif = Image.Exif()
        exif[photographs.ORIENTATION] = turn
        Image.new("RGB", size[::-1]).save(tmp_path / f"{name}.jpg", exif=exif)
    images = [
        {"id": i, "file_name": f"{name}.jpg", "height": h, "width": w}
        for i, (name, h, w) in enumerate([("a", 4, 6), ("b", 5, 5), ("c", 4, 6), ("d", 4, 6)])
    ]
    marks = [{"image_id": i, "keypoints": [1, 2, 2], "bbox": [1, 1, 2, 2], "category_id": 1} for i in range(4)]
    document = {"images": images, "annotations": marks, "categories": [{"id": 1, "name": "spine"}]}
    (tmp_path / "coco.json").write_text(json.dumps(document))
    _, _, of_landmarks = folder.load(tmp_path, tmp_path / "coco.json", size=(8, 8))
    *_, of_boxes = objects.load(tmp_path, tmp_path / "coco.json", size=(8, 8), overlap=2)
    for problems in (of_landmarks, of_boxes):
        told = [p["what"] for p in problems if "EXIF" in p["what"]]
        assert len(told) == 1 and told[0].startswith("2 photographs")


@pytest.mark.parametrize("turn", range(1, 9))
def test_8_and_16_bit_tiffs_are_rotated_alike_and_reported(turn, tmp_path):
    values = np.zeros((20, 30, 3), np.uint8)
    values[2:6, 20:24] = 255
    for name, image in (("a.tif", values), ("b.tif", values.astype(np.uint16) * 257)):
        tag = [(photographs.ORIENTATION, "H", 1, turn, True)]
        tifffile.imwrite(tmp_path / name, image, photometric="rgb", extratags=tag)
        assert ("orientation" in " ".join(photographs.not_decoded(tmp_path / name))) == (turn > 1)
    deep, plain = (photographs.decode(tmp_path / name) for name in ("b.tif", "a.tif"))
    np.testing.assert_array_equal(deep, plain)
    assert plain.shape[:2] == photographs.image_size(tmp_path / "a.tif") == photographs.image_size(tmp_path / "b.tif")


def test_damaged_exif_or_pixels_do_not_stop_loading(tmp_path):
    rng = np.random.default_rng(0)
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=b"Exif\0\0no header of a TIFF" + bytes(20))
    tifffile.imwrite(
        tmp_path / "b.tif", rng.integers(0, 4096, (20, 30, 3), np.uint16), photometric="rgb", compression="zlib"
    )
    whole = (tmp_path / "b.tif").read_bytes()
    (tmp_path / "b.tif").write_bytes(whole[:900] + bytes([whole[900] ^ 255]) + whole[901:])
    Image.new("RGB", (30, 20)).save(tmp_path / "c.jpg")
    assert photographs.orientation(tmp_path / "a.jpg") == 1
    with pytest.raises(OSError):
        photographs.decode(tmp_path / "b.tif")
    (tmp_path / "marks.csv").write_text("image,x1,y1\na.jpg,2,3\nb.tif,2,3\nc.jpg,2,3\n")
    samples, _, problems = folder.load(tmp_path, tmp_path / "marks.csv", size=(16, 16))
    assert samples.name.tolist() == ["a.jpg", "c.jpg"] and [p["image"] for p in problems] == ["b.tif"]
    problems = []
    assert [s.name.tolist() for s, _ in folder.batches(tmp_path, size=(16, 16), problems=problems)] == [
        ["a.jpg", "c.jpg"]
    ]
    assert [p["image"] for p in problems] == ["b.tif"]


def test_unsupported_formats_are_reported(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jfif", format="JPEG")
    for name in ("b.HEIC", "c.nef"):
        (tmp_path / name).write_bytes(b"x")
    problems: list[dict] = []
    ((samples, _),) = folder.batches(tmp_path, size=(16, 16), problems=problems)
    assert samples.name.tolist() == ["a.jfif"] and problems[0]["what"].startswith("2 photographs are in formats")
    (tmp_path / "a.jfif").unlink()
    (tmp_path / "marks.csv").write_text("image,x1,y1\nb.HEIC,2,3\n")
    with pytest.raises(FormatError, match=r"2 photographs are in formats that are not read, such as \.HEIC"):
        list(folder.batches(tmp_path, size=(16, 16), problems=[]))
    with pytest.raises(FormatError, match=r"2 photographs are in formats that are not read, such as \.HEIC"):
        folder.load(tmp_path, tmp_path / "marks.csv", size=(16, 16))


def test_roboflow_copies_of_a_photograph_share_a_group():
    names = ["x/beetle_1_jpg.rf.0a1b2c.jpg", "x/beetle_1_JPG.rf.ffff.jpg", "x/beetle_2_png.rf.0a.jpg", "x/beetle_1.jpg"]
    assert [folder.group_of(name, {}, "") for name in names] == ["x/beetle_1", "x/beetle_1", "x/beetle_2", names[3]]
    assert folder.group_of(names[0], {names[0]: "told"}, "") == "told"


def test_names_match_in_any_case_path_or_extension(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("A.JPG", "b.png", "sub/c.tif"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    for name, expected in (("a.jpg", "A.JPG"), ("C:\\x\\b.png", "b.png"), ("b.tif", "b.png"), ("c", "sub/c.tif")):
        assert photographs.find(tmp_path, name) == tmp_path / expected, name
    for name in ("d.png", "b.2"):  # .2 is no image extension, so b.2 is not b.png
        with pytest.raises(OSError, match="no such image"):
            photographs.find(tmp_path, name)


def test_linked_folders_are_listed_once(tmp_path):
    inside, outside = tmp_path / "photographs", tmp_path / "elsewhere"
    for folder_ in (inside / "s2", outside):
        folder_.mkdir(parents=True)
        (folder_ / "a.png").touch()
    (inside / "s1").symlink_to(outside)
    (outside / "back").symlink_to(inside)
    (inside / "s3").symlink_to(inside / "s2")
    (inside / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert photographs.listing(inside) == [inside / "s1" / "a.png", inside / "s2" / "a.png"]


def test_a_relative_path_does_not_match_another_subfolder(tmp_path):
    (tmp_path / "s2").mkdir()
    for name in ("s2/a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    for name, expected in (("D:/x/y/a.png", "s2/a.png"), ("S2\\A.png", "s2/a.png"), ("train/b.png", "b.png")):
        assert photographs.find(tmp_path, name) == tmp_path / expected, name
    with pytest.raises(OSError, match="no such image"):
        photographs.find(tmp_path, "s1/a.png")


@pytest.mark.parametrize(
    "name", ["site2\\IMG_1.jpg", "C:\\data\\site2\\IMG_1.jpg", "SITE2/IMG_1.jpg", "site2/IMG_1.jpg"]
)
def test_a_photograph_in_the_named_folder_is_preferred(name, tmp_path):
    for place in ("IMG_1.jpg", "site2/IMG_1.jpg"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / place)
    assert photographs.find(tmp_path, name) == tmp_path / "site2" / "IMG_1.jpg"
    assert photographs.find(tmp_path, "IMG_1.jpg") == tmp_path / "IMG_1.jpg"


def test_one_photograph_under_several_names_is_one_specimen(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "points.csv").write_text("image,x1,y1,group\na.jpg,1,1,\nA.JPG,1,1,g\na,1,1,\nb,2,2,\n")
    samples, _, problems = folder.load(tmp_path, tmp_path / "points.csv", size=(8, 8))
    assert samples.name.tolist() == ["a.jpg"] * 3 + ["b.jpg"]
    assert samples.group.tolist() == [0, 0, 0, 1]
    assert [p["what"] for p in problems] == ["annotated twice: both annotations are kept, in one group"] * 2
    (tmp_path / "other.csv").write_text("image,x1,y1\nA.JPG,3,1\nb.jpg,2,2\n")
    (tmp_path / "one.csv").write_text("image,x1,y1\na,1,1\nb,2,2\n")
    both = formats.read(f"{tmp_path / 'one.csv'},{tmp_path / 'other.csv'}", tmp_path)
    assert [(a.image, a.points.tolist()) for a in both] == [("a.jpg", [[2, 1]]), ("b.jpg", [[2, 2]])]


def test_ambiguous_names_are_not_guessed(tmp_path):
    for side in ("left", "right"):
        (tmp_path / side).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / side / "a.png")
    assert photographs.find(tmp_path, "right/a.png") == tmp_path / "right" / "a.png"
    assert photographs.find(tmp_path, "D:/x/right/a.png") == tmp_path / "right" / "a.png"
    with pytest.raises(OSError, match=r"left/a\.png, right/a\.png"):
        photographs.find(tmp_path, "a.png")
    (tmp_path / "points.csv").write_text("image,x1,y1\na.png,1,1\nleft/a.png,2,2\n")
    samples, _, problems = folder.load(tmp_path, tmp_path / "points.csv", size=(8, 8))
    assert samples.name.tolist() == ["left/a.png"]
    assert "2 images match this name" in problems[0]["what"]


def test_problems_are_reported_and_the_rest_is_kept(tmp_path):
    for name in ("a.png", "b.png", "extra.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "a.csv").write_text(
        "image,x1,y1,x2,y2\na.png,1,2,40,30\nb.png,41,5,3,nan\ncut.png,1,2,3,4\ngone.png,1,2,3,4\n"
    )
    samples, _, problems = folder.load(tmp_path, tmp_path / "a.csv", size=(30, 40))
    assert list(samples.name) == ["a.png", "b.png"]
    np.testing.assert_array_equal(samples.visible, [[True, True], [False, False]])
    said = {p["image"]: p["what"] for p in problems}
    assert "NaN" in next(p["what"] for p in problems if p["image"] == "b.png")
    assert "landmark 1 at (41, 5) lies outside the image of 40x30" in said["b.png"]
    assert "cannot be read" in said["cut.png"] and "no such image" in said["gone.png"]
    assert "1 photographs have no landmarks: extra.png" in said["extra.png"]
    assert len(problems) == 5


@pytest.mark.parametrize(
    ("sources", "pixels", "size"),
    [
        ([(480, 632)], 192 * 256, (192, 256)),
        ([(1024, 821)], 192 * 256, (256, 208)),
        ([(1024, 821)], 4 * 192 * 256, (496, 400)),
        ([(30, 120), (300, 300), (3, 12)], 192 * 256, (112, 448)),
        ([(20, 4000)], 192 * 256, (16, 3136)),
        ([], 192 * 256, (192, 256)),
        ([(256, 256)], 288 * 384, (256, 256)),  # no more pixels than the photographs have
        ([(100, 120)], 288 * 384, (208, 256)),
        ([], 288 * 384, (288, 384)),
    ],
)
def test_an_unset_frame_size_has_the_photographs_proportions(sources, pixels, size, tmp_path):
    for n, source in enumerate([*sources, (8, 8), (8, 8), (8, 8)]):  # three without landmarks
        Image.fromarray(np.zeros(source, np.uint8)).save(tmp_path / f"{n}.png")
    (tmp_path / "broken.png").write_text("no image")
    marks = [f"{name}.png,1,1" for name in [*range(len(sources)), "broken", "missing"]]
    (tmp_path / "marks.csv").write_text("\n".join(["image,x1,y1", *marks]))
    data = configs.base().data
    data.update({"images": str(tmp_path), "landmarks": str(tmp_path / "marks.csv"), "size": (), "pixels": pixels})
    fitting.fill_in(data)
    assert data.size == size
    data.update({"size": (), "sets": {"a": {}, "b": {"pixels": 9}}})
    with pytest.raises(ValueError, match=r"sets\.b\.pixels: a dataset may only set count, curves"):
        fitting.fill_in(data)
    del data.sets.b.pixels
    fitting.fill_in(data)
    assert data.size == size
    data.size = (64, 80)  # an explicit size stays
    fitting.fill_in(data)
    assert data.size == (64, 80)


def test_group_by_captures_the_specimen(tmp_path):
    for name in ("s1_left.png", "s1_right.png", "s2_left.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    rows = "image,x1,y1\ns1_left.png,1,1\ns1_right.png,1,1\ns2_left.png,1,1\n"
    (tmp_path / "a.csv").write_text(rows)
    load = lambda **how: folder.load(tmp_path, tmp_path / "a.csv", size=(4, 4), **how)[0].group.tolist()
    assert load() == [0, 1, 2]
    assert load(group_by=r"^(s\d)") == [0, 0, 1]
    for unknown in ("x(.)", "s1_(left)|s._left|s1_right"):
        with pytest.raises(ValueError, match="group_by"):
            load(group_by=unknown)
    (tmp_path / "s").mkdir()
    for name in ("s1_left.png", "s1_right.png", "s2_left.png"):
        (tmp_path / name).rename(tmp_path / "s" / name)
    assert load(group_by=r"^(s\d)") == [0, 0, 1]  # in the file name, whatever its folder
    assert load(group_by=r"^(.)/") == [0, 0, 0]


def test_folders_without_usable_photographs_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("image,x1,y1\ngone.png,1,2\n")
    with pytest.raises(FormatError, match=r"a\.csv: not one usable photograph in .*no such image"):
        folder.load(tmp_path, tmp_path / "a.csv", size=(4, 4))
    with pytest.raises(FormatError, match="no such folder"):
        folder.load(tmp_path / "none", tmp_path / "a.csv", size=(4, 4))
    with pytest.raises(FormatError, match="no photograph"):
        list(folder.batches(tmp_path, size=(4, 4), problems=[]))


def test_batches_cover_the_folder_and_report_broken_files(tmp_path):
    for k in range(5):
        Image.new("RGB", (8, 6), (k, 0, 0)).save(tmp_path / f"{k}.png")
    (tmp_path / "2.png").write_bytes(b"broken")
    problems: list = []
    found = list(folder.batches(tmp_path, size=(6, 8), batch_size=2, problems=problems))
    assert [name for s, _ in found for name in s.name] == ["0.png", "1.png", "3.png", "4.png"]
    assert found[0][0].points.shape == (2, 0, 2) and [p["image"] for p in problems] == ["2.png"]
    assert [image[0, 0, 0] for _, images in found for image in images] == [0, 1, 3, 4]
    found = list(folder.batches(tmp_path, size=(6, 8), longest=4, problems=[]))
    assert [image.shape for image in found[0][1]] == [(3, 4, 3)] * 4


def test_ahead_keeps_order_and_bound_and_passes_on_errors():
    taken: list[int] = []

    def items():
        for i in range(20):
            taken.append(i)
            yield i

    def square(i):
        if i == 13:
            raise ValueError("thirteen")
        return i * i

    results = ahead(square, items(), most=3)
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(taken) == 5 + 3 - 1
    rest = []
    with pytest.raises(ValueError, match="thirteen"):
        for result in results:
            rest.append(result)
    assert rest == [i * i for i in range(5, 13)] and len(taken) < 20


def test_subsample_is_bounded_and_spread_over_all_annotations():
    for count in (0, 1, 199, 200, 201, 399, 400, 401, 1000):
        found = photographs.subsample(list(range(count)))
        assert len(found) <= 200 and len(found) >= min(count, 100)
        assert not count or (found[0] == 0 and found[-1] >= count - max(1, count / 100))


def test_paths_with_parent_folders_match_by_file_name(tmp_path):
    (tmp_path / "s2").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "s2" / "a.png")
    assert photographs.find(tmp_path, "../x/a.png") == tmp_path / "s2" / "a.png"


def test_photographs_shrink_and_do_not_grow():
    assert [photographs.shrunk(size, 100) for size in ((400, 200), (200, 400), (30, 60), (1, 1000))] == [
        (100, 50),
        (50, 100),
        (30, 60),
        (1, 100),
    ]
