"""The phantoms' ground truth against their images: silhouettes measured with scikit-image, symmetry, resolution."""

import collections
import itertools
import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import find_contours

from jaxmarks.data import loading, phantoms
from jaxmarks.data.phantoms import backdrop, canvas, genome, limbs, shapes, surface

SYMMETRIC = [part for part, flip in phantoms.FLIP.items() if flip]


@pytest.fixture(scope="module")
def truth():
    """{part: (293, K, 2)} landmarks in the 256x192 frame, from tiny drawings (the points scale exactly)."""
    return {
        part: 8 * np.stack([phantoms.draw(part, s, size=(24, 32))[1] for s in range(phantoms.SPECIMENS)])
        for part in phantoms.PARTS
    }


@pytest.fixture
def silhouette(monkeypatch):
    """`draw` with each plate in its own flat grey (1, 2, ...) on 0: in focus, without shadow, noise or limbs."""

    def nothing(*_, **__):
        pass

    def focused(size, rng, blank=canvas.blank, **where):
        return blank(size, rng, **where)._replace(edge=1e-3)

    greys = itertools.count(1)
    monkeypatch.setattr(canvas, "blank", focused)
    monkeypatch.setattr(canvas, "shade", lambda *_, **__: [float(next(greys))] * 3)
    monkeypatch.setattr(canvas, "shadow", nothing)
    monkeypatch.setattr(canvas, "stroke", nothing)
    monkeypatch.setattr(limbs, "stroke", nothing)
    monkeypatch.setattr(phantoms.head, "stroke", nothing)
    monkeypatch.setattr(backdrop, "stroke", nothing)
    monkeypatch.setattr(backdrop, "tissue", nothing)
    monkeypatch.setattr(backdrop, "card", lambda scene, _: scene.light.fill(0))
    monkeypatch.setattr(backdrop, "litter", nothing)
    monkeypatch.setattr(canvas, "ramp", lambda inside, _: (np.asarray(inside) > 0).astype(np.float32))
    monkeypatch.setattr(canvas, "develop", lambda scene, _: scene.light[0].copy())
    return phantoms.draw


def edge_distance(labels, points):
    """Distance of each point to the nearest border between two flat greys, in pixels."""
    labels = np.round(labels, 3)
    borders = []
    rows, columns = np.nonzero(labels[:, 1:] != labels[:, :-1])
    borders.append(np.stack([columns + 1.0, rows + 0.5], 1))
    rows, columns = np.nonzero(labels[1:] != labels[:-1])
    borders.append(np.stack([columns + 0.5, rows + 1.0], 1))
    borders = np.concatenate(borders)
    return np.sqrt(((points[:, None] - borders) ** 2).sum(-1)).min(1)


@pytest.mark.parametrize("part", phantoms.PARTS)
def test_every_landmark_lies_on_a_drawn_outline(silhouette, part):
    for specimen in (0, 5, 17):
        image, points = silhouette(part, specimen, size=(1536, 2048))
        # Pixel borders lie up to 0.7 px off a curve and 1.3 px inside an acute corner; half that at a width of 1024.
        distance = edge_distance(image, points)
        assert distance.max() < 1.4
        assert distance.mean() < 0.6


def side_between(contour, start, stop):
    """Centre and direction of the line fitted to a contour between two landmarks, without their neighbourhoods."""
    chord = stop - start
    normal = np.array([-chord[1], chord[0]]) / np.linalg.norm(chord)
    along = (contour - start) @ chord / (chord @ chord)
    side = contour[(along > 0.12) & (along < 0.88) & (np.abs((contour - start) @ normal) < 3)]
    return side.mean(0), np.linalg.svd(side - side.mean(0))[2][0]


def corners_by_fit(contour, points):
    """For each inner point of a chain, the intersection of the lines fitted to the sides that meet there."""
    lines = [side_between(contour, *pair) for pair in itertools.pairwise(points)]
    corners = []
    for (c1, d1), (c2, d2) in itertools.pairwise(lines):
        t = np.linalg.solve(np.stack([d1, -d2], 1), c2 - c1)[0]
        corners.append(c1 + t * d1)
    return np.array(corners)


@pytest.mark.parametrize(
    ("part", "chains", "bound"),
    [
        ("left_mandible", [range(1, 9)], 0.3),  # notch, tooth, notch ...
        ("right_mandible", [range(1, 11)], 0.3),
        # Middle of the front edge, kink, front angle: an obtuse corner whose outer side is slightly curved.
        ("pronotum", [(0, 1, 2), (0, 7, 6)], 0.6),
    ],
)
def test_corner_landmarks_are_where_the_fitted_sides_meet(silhouette, part, chains, bound):
    errors = []
    for specimen in range(6):
        image, points = silhouette(part, specimen, size=(1536, 2048))
        x, y = points.mean(0).astype(int)
        plate = image == image[y, x] if part == "pronotum" else image > 0
        contour = max(find_contours(plate.astype(float), 0.5), key=len)[:, ::-1] + 0.5
        for chain in chains:
            errors.extend(corners_by_fit(contour, points[list(chain)]) - points[list(chain)[1:-1]])
    errors = np.array(errors) / 2  # pixels at a width of 1024
    assert np.linalg.norm(errors, axis=1).mean() < bound
    assert np.abs(errors.mean(0)).max() < 0.1  # no systematic shift such as half a pixel


def test_elytral_apices_are_where_suture_and_hind_edge_meet(silhouette, monkeypatch):
    """On an upright beetle: lines fitted to each elytron's lower edge, on both sides of its lowest point."""
    monkeypatch.setattr(genome, "pose", lambda *_, **__: shapes.Pose(0.0, 1.0, np.zeros(2)))
    for specimen in range(4):
        image, points = silhouette("elytra", specimen, size=(1536, 2048))
        plate = image == image[768, 1100]
        edge = plate.shape[0] - plate[::-1].argmax(0)
        middle = int(points[6:8, 0].mean())
        for landmark, way in ((6, 1), (7, -1)):
            tip = middle + way * int(edge[middle::way][:60].argmax())
            lines = [
                np.polyfit(c + 0.5, edge[c] - 0.5, 1)
                for c in (tip - way * np.arange(2, 18), tip + way * np.arange(8, 60))
            ]
            (a, b), (c, d) = lines
            x = (d - b) / (a - c)
            np.testing.assert_allclose([x, a * x + b], points[landmark], atol=1.0)  # half a pixel at a width of 1024


@pytest.mark.parametrize("part", ["left_mandible", "right_mandible"])
def test_mandible_rim_passes_through_the_landmarks(part):
    """In the finished image, too, the blade's dark rim passes through the landmarks of its back."""
    gaps = []
    for specimen in range(6):
        image, points = phantoms.draw(part, specimen, size=(768, 1024))
        grey = ndimage.gaussian_filter(image.astype(float).mean(2), 1)
        for x, y in points[-4:]:
            patch = grey[int(y) - 20 : int(y) + 21, int(x) - 20 : int(x) + 21]
            level = (np.percentile(patch, 5) + np.percentile(patch, 95)) / 2
            contours = np.concatenate(find_contours(patch, level))[:, ::-1] + 0.5 + [int(x) - 20, int(y) - 20]
            gaps.append(np.linalg.norm(contours - [x, y], axis=1).min())
    assert np.median(gaps) < 1.0


def test_drawn_disc_has_the_right_centre_and_area():
    """Measured on the pixels, whose coordinates start at the image's corner, while the scene's start at its centre."""
    scene = canvas.blank((192, 256), np.random.default_rng(0))
    scene.light.fill(0)
    centre = np.array([10.3, -20.6])
    canvas.stroke(scene, centre, centre + 1e-4, (6.0, 6.0), (1, 1, 1), round_light=0)
    row, column = ndimage.center_of_mass(scene.light[0])
    np.testing.assert_allclose([column + 0.5, row + 0.5], centre + [128, 96], atol=0.02)
    np.testing.assert_allclose(scene.light[0].sum(), np.pi * 36, rtol=0.02)


@pytest.mark.parametrize("part", phantoms.PARTS)
def test_landmarks_lie_in_the_frame_and_vary(truth, part):
    points = truth[part]
    assert points.shape == (293, phantoms.PARTS[part], 2)
    assert (points > 4).all() and (points < np.array([252, 188])).all()
    gaps = np.linalg.norm(points[:, :, None] - points[:, None], axis=-1) + 99 * np.eye(points.shape[1])
    assert gaps.min() > 1.5  # no two landmarks coincide
    error = np.linalg.norm(points - points.mean(0), axis=2).mean()
    assert 12 < error < 16, f"the mean-position baseline of {part} errs by {error:.1f} px"


@pytest.mark.parametrize("part", phantoms.PARTS)
def test_scene_is_the_same_at_every_resolution(part):
    small, points = phantoms.draw(part, 11)
    large, large_points = phantoms.draw(part, 11, size=(768, 1024))
    np.testing.assert_allclose(large_points, 4 * points, rtol=1e-12)
    averaged = large.reshape(192, 4, 256, 4, 3).mean((1, 3))
    difference = np.abs(averaged - small)
    assert difference.mean() < 4  # the small one's sensor noise alone is about 2.5
    assert np.corrcoef(averaged.ravel(), small.ravel())[0, 1] > 0.99


def test_subject_stays_centred_at_other_aspect_ratios():
    _, points = phantoms.draw("head", 2)
    wide, wide_points = phantoms.draw("head", 2, size=(192, 400))
    assert wide.shape == (192, 400, 3)
    np.testing.assert_allclose(wide_points, points + [72, 0])


def test_draw_is_deterministic_and_seeds_differ():
    for part in phantoms.PARTS:
        image, points = phantoms.draw(part, 4, size=(48, 64))
        again, points_again = phantoms.draw(part, 4, size=(48, 64))
        np.testing.assert_array_equal(image, again)
        np.testing.assert_array_equal(points, points_again)
        assert np.abs(phantoms.draw(part, 4, size=(48, 64), seed=1)[1] - points).max() > 0.5
        assert np.abs(phantoms.draw(part, 5, size=(48, 64))[1] - points).max() > 0.5


def test_collection_holds_every_livery():
    counts = collections.Counter(genome.genome(s, 0).livery for s in range(phantoms.SPECIMENS))
    assert set(counts) == {name for name, *_ in genome.LIVERIES}
    assert max(counts.values()) < 0.4 * phantoms.SPECIMENS


@pytest.mark.parametrize("part", SYMMETRIC)
def test_flip_is_an_involution_and_keeps_a_symmetric_specimen(monkeypatch, part):
    flip = np.array(phantoms.FLIP[part])
    np.testing.assert_array_equal(flip[flip], np.arange(phantoms.PARTS[part]))
    genes = genome.genome(3, 0)._replace(uneven=[0.0] * 8)
    monkeypatch.setattr(genome, "genome", lambda *_: genes)
    monkeypatch.setattr(genome, "pose", lambda *_, **__: shapes.Pose(0.0, 1.0, np.zeros(2)))
    points = phantoms.draw(part, 3, size=(96, 128))[1]
    mirrored = (points * [-1, 1] + [128, 0])[flip]
    np.testing.assert_allclose(mirrored, points, atol=1e-9)


@pytest.mark.parametrize("part", SYMMETRIC)
def test_flip_nearly_maps_asymmetric_specimens_onto_themselves(truth, part):
    """After a least-squares rotation of the mirrored, permuted landmarks onto the originals, only asymmetry is left."""
    for points in truth[part][::40]:
        here = points - points.mean(0)
        there = (here * [-1, 1])[list(phantoms.FLIP[part])]
        u, _, vt = np.linalg.svd(there.T @ here)
        residual = np.linalg.norm(there @ u @ np.diag([1, np.linalg.det(u @ vt)]) @ vt - here, axis=1)
        assert residual.mean() < 2.5


def test_landmark_order_and_mirrored_mandibles(truth):
    """Left and right mandibles roughly mirror each other: tips above the base, cutting margins on opposite sides."""
    left, right = truth["left_mandible"], truth["right_mandible"]
    assert (left[:, 0, 1] < left[:, 10, 1] - 60).all() and (right[:, 0, 1] < right[:, 12, 1] - 60).all()
    # The cutting margin is to the right of the back on a left mandible, to the left on a right one.
    assert (left[:, 2, 0] > left[:, 15, 0]).all() and (right[:, 2, 0] < right[:, 17, 0]).all()
    for part, tip, end in (("pronotum", 0, 4), ("elytra", 0, 6), ("head", 8, 0)):
        assert (truth[part][:, tip, 1] < truth[part][:, end, 1]).all()


def test_load_fills_all_fields_of_samples():
    samples = phantoms.load("head", size=(48, 64), count=3)
    assert samples.images.shape == (3, 48, 64, 3) and samples.images.dtype == np.uint8
    assert samples.points.shape == (3, 10, 2) and samples.points.dtype == np.float32
    assert samples.visible.all() and samples.visible.shape == (3, 10)
    assert samples.group.tolist() == [0, 1, 2] and samples.group.dtype == np.int64
    assert samples.name.tolist() == ["head_000.png", "head_001.png", "head_002.png"]
    np.testing.assert_allclose(samples.source_points, samples.points)
    assert samples.source_size.tolist() == [[48, 64]] * 3
    image, points = phantoms.draw("head", 2, size=(48, 64))
    np.testing.assert_array_equal(samples.images[2], image)
    np.testing.assert_allclose(samples.points[2], points, rtol=1e-6)
    finer = phantoms.load("head", size=(96, 128), count=1)
    np.testing.assert_allclose(finer.mm_per_px * 2, samples.mm_per_px[:1])


def test_luminance_of_pure_colours():
    pure = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [10, 20, 30]]], np.uint8)
    # 76.245, 149.685, 29.07, 255, and 2.99 + 11.74 + 3.42 = 18.15
    assert phantoms.luminance(pure)[0, :, 0].tolist() == [76, 150, 29, 255, 18]
    grey = phantoms.load("elytra", size=(24, 32), count=1, channels=1).images
    assert grey.shape == (1, 24, 32, 1)
    colour = phantoms.load("elytra", size=(24, 32), count=1).images
    np.testing.assert_array_equal(grey[0], phantoms.luminance(colour[0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: phantoms.draw("wing", 0), "wing.*left_mandible"),
        (lambda: phantoms.draw("head", -1), "specimen: -1"),
        (lambda: phantoms.draw("head", 0, size=(0, 5)), "no pixels"),
        (lambda: phantoms.load("head", count=0), "count: 0"),
        (lambda: phantoms.load("head", channels=4), "channels: 4"),
    ],
)
def test_invalid_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@given(
    angle=st.floats(-3, 3),
    scale=st.floats(0.5, 2),
    shift=st.tuples(st.floats(-30, 30), st.floats(-30, 30)),
    mirror=st.sampled_from([-1, 1]),
    point=st.tuples(st.floats(-90, 90), st.floats(-90, 90)),
)
def test_to_part_inverts_to_frame(angle, scale, shift, mirror, point):
    pose = shapes.Pose(angle, scale, np.array(shift), mirror)
    x, y = shapes.to_frame(pose, point)
    u, v = shapes.to_part(pose, np.float32([x]), np.float32([y]))
    np.testing.assert_allclose([u[0], v[0]], point, atol=1e-3)
    assert np.sign(np.linalg.det(pose.matrix)) == mirror


@settings(deadline=None)
@given(radius=st.floats(5, 60), theta=st.floats(0, 6.28), ratio=st.floats(0.8, 1.2), shift=st.floats(-20, 20))
def test_signed_distance_of_a_circle(radius, theta, ratio, shift):
    """f / |grad f| of a circle is (r^2 - R^2) / 2r, by hand; it agrees with r - R to first order."""
    half = lambda v: np.sqrt(np.maximum(radius**2 - v**2, 0))
    circle = shapes.outline(-radius, radius, lambda v: shift - half(v), lambda v: shift + half(v))
    r = radius * ratio
    u, v = np.array([shift + r * np.cos(theta)]), np.array([r * np.sin(theta)])
    distance = shapes.signed_distance(circle, u, v)[0]
    if abs(v[0]) < radius:  # beyond its ends the table continues linearly
        np.testing.assert_allclose(distance, (r**2 - radius**2) / (2 * r), atol=0.02)
    assert np.sign(distance[0]) == np.sign(ratio - 1) or abs(ratio - 1) < 1e-3


def test_margin_and_edges_of_a_box():
    box = shapes.symmetric_outline(-10, 10, lambda v: np.full_like(v, 4.0), lean=0.1)
    np.testing.assert_allclose(shapes.margin(box, 5.0, 1), [4.5, 5.0])
    np.testing.assert_allclose(shapes.margin(box, -5.0, -1), [-4.5, -5.0])
    edge = surface.steps([-1, 0, 1], [2.0, 0.0, 6.0])
    np.testing.assert_allclose(surface.corner(box, 1, edge), [4.6, 6.0])
    np.testing.assert_allclose(surface.corner(box, 0, edge), [0.0, 0.0])
    np.testing.assert_allclose(surface.corner(box, 0.5, edge), [2.3, 3.0])


@given(pixels=st.integers(1, 300), cells=st.integers(1, 150))
def test_noise_weights_sum_to_one(pixels, cells):
    np.testing.assert_allclose(canvas.blend(pixels, cells).sum(1), 1, atol=1e-6)


def test_noise_does_not_depend_on_resolution():
    coarse = canvas.noise(np.random.default_rng(0), (96, 128), 20)
    fine = canvas.noise(np.random.default_rng(0), (384, 512), 20)
    np.testing.assert_allclose(fine.reshape(96, 4, 128, 4).mean((1, 3)), coarse, atol=0.02)


@pytest.mark.slow
def test_draw_at_the_papers_full_resolution():
    image, points = phantoms.draw("elytra", 0, size=(2448, 3264))
    assert image.shape == (2448, 3264, 3)
    np.testing.assert_allclose(points / 12.75, phantoms.draw("elytra", 0)[1])


def test_the_collection_is_frozen():
    """Results on seed 0 are compared across versions: if these numbers change, it is a new dataset under a new name."""
    centres = {part: phantoms.draw(part, 0, size=(24, 32))[1].mean(0) * 8 for part in phantoms.PARTS}
    frozen = {
        "left_mandible": (134.662, 109.979),
        "right_mandible": (130.721, 126.451),
        "pronotum": (124.843, 102.482),
        "elytra": (145.012, 79.157),
        "head": (139.115, 104.461),
    }
    for part, centre in centres.items():
        np.testing.assert_allclose(centre, frozen[part], atol=1e-3)


def test_flip_is_renumbered_when_landmarks_are_dropped():
    spec = runpy.run_path(str(Path(__file__).parent.parent / "configs" / "beetle.py"))["get_config"]("smoke").data
    spec.update(part="elytra", count=1)
    whole = loading.load(spec)
    assert whole.flip == phantoms.FLIP["elytra"]
    first, partner = next((k + 1, other + 1) for k, other in enumerate(whole.flip) if other != k)
    spec.drop = (f"elytra/{first}", f"elytra/{partner}")
    rest = loading.load(spec)
    # The mirror partners of the landmarks that are left, in the new numbering.
    kept = [k for k in range(11) if k + 1 not in (first, partner)]
    np.testing.assert_array_equal(np.array(kept)[list(rest.flip)], np.array(whole.flip)[kept])
    spec.drop = (f"elytra/{first}",)
    assert loading.load(spec).flip is None


def test_frames_with_another_aspect_ratio_than_the_photographs():
    """Frames of 32x64 from photographs of 64x256: `source_points` and `mm_per_px` are in pixels of the photographs."""
    spec = runpy.run_path(str(Path(__file__).parent.parent / "configs" / "beetle.py"))["get_config"]("smoke").data
    spec.update(part="pronotum", count=3, size=(32, 64), source_size=(64, 256), drop=("pronotum/1",))
    samples = loading.load(spec).samples
    drawn = phantoms.load("pronotum", size=(32, 64), seed=spec.seed, count=3)
    np.testing.assert_allclose(samples.points, drawn.points[:, 1:])
    np.testing.assert_allclose(samples.source_points, drawn.points[:, 1:] * [4, 2], rtol=1e-6)
    np.testing.assert_allclose(samples.mm_per_px * 256, drawn.mm_per_px * 64)  # both are the view's width in mm
