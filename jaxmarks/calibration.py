"""Calibration: the volume to acquire from a network's landmarks in scouts, its scores, and files for the operator."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarks import atomic, report
from jaxmarks.data import scouts, slices
from jaxmarks.data.brains import FACES, LANDMARKS, PLANE_OF, TURN_LIMIT, Volumes
from jaxmarks.data.samples import FormatError, problem
from jaxmarks.data.slices import PLANES
from jaxmarks.ops import calibrate

# The weight of a fiducial relative to a face of the box: between heads, its place in the box varies by a few mm.
FIDUCIAL = 0.25
# A volume is refused above these standard deviations of its centre, in mm, and of its axes, in degrees.
CENTRE_LIMIT, ANGLE_LIMIT = 5.0, 5.0
# A scout contradicts the other two if a smaller share of its landmarks agrees with the volume.
SCOUT_AGREES = 0.5
# A scout shows something else if its landmarks' mean score is below UNLIKE, and has a wrong orientation if another one
# scores more by over OTHER_WAY.
UNLIKE, OTHER_WAY = 0.4, 0.1
# Default factors for the standard deviations of centre, axes and size that follow from the landmarks' residuals.
DEFAULT_SPREAD = (1.0, 1.0, 1.0)
# The median of the absolute values of a standard normal variable.
MEDIAN = 0.6745


@jax.jit
def fit(points, scores, planes, template, spread=DEFAULT_SPREAD):
    """Fits the volume of one scout triple.

    Args:
      points: (3, K, 2) pixels of the sagittal, coronal and axial scout. Each has all landmarks; those of its own plane
        are used.
      scores: (3, K).
      planes: (3, 3, 3), the scouts' planes in RAS mm.
      template: as in `Volumes`.
      spread: (3,), factors for the standard deviations of centre, axes and size that follow from the residuals.

    Returns:
      A `calibrate.Calibration`, and the landmarks (K, 3) in RAS mm.
    """
    typical_box = calibrate.Template(*(jnp.asarray(template[key], jnp.float32) for key in ("shares", "size")))
    indices, landmark_planes = jnp.arange(len(PLANE_OF)), planes[PLANE_OF]
    positions = calibrate.to_space(landmark_planes, points[PLANE_OF, indices][:, None])[:, 0]
    weights = scores[PLANE_OF, indices] * jnp.array([1.0 if name in FACES else FIDUCIAL for _, name in LANDMARKS])
    fitted = calibrate.calibrate(positions, weights, typical_box, normals=calibrate.normal(landmark_planes))
    factors = jnp.repeat(jnp.asarray(spread), 3)
    return fitted._replace(covariance=fitted.covariance * factors * factors[:, None]), positions


def refusal_reasons(calibration: calibrate.Calibration) -> list[str]:
    """Returns the reasons why the volume of one triple must not be used; [] if it may."""
    why = []
    deviation = standard_deviations(calibration)
    agree, seen = calibration.residuals < calibrate.TUKEY * calibrate.TOLERANCE / 2, np.isfinite(calibration.residuals)
    turn_degrees = float(calibrate.angle_between(jnp.eye(3), calibration.rotation))
    if calibration.undetermined:
        why.append("too few landmarks were found, or they lie where they do not determine the volume")
    elif deviation[:3].max() > CENTRE_LIMIT or deviation[3:6].max() > ANGLE_LIMIT:
        why.append(f"the volume is uncertain by {deviation[:3].max():.1f} mm and {deviation[3:6].max():.1f} degrees")
    if calibration.contradicts:
        size = " x ".join(f"{side:.0f}" for side in calibration.size)
        why.append(f"the landmarks contradict each other: {agree.sum()} of {seen.sum()} agree on a volume of {size} mm")
    for n, plane in enumerate(() if calibration.contradicts else PLANES):
        hits, count = agree[PLANE_OF == n].sum(), seen[PLANE_OF == n].sum()
        if hits < SCOUT_AGREES * count:
            why.append(
                f"the {plane} scout contradicts the other two: {hits} of its {count} landmarks agree with the volume; if"
                " the patient has moved, acquire the scouts again"
            )
    if turn_degrees > TURN_LIMIT:
        why.append(f"the head would be turned by {turn_degrees:.0f} degrees: check the files' orientation")
    return why


def orientation_problems(scores) -> list[str]:
    """Returns which scouts do not look as their header's orientation says; [] if all do.

    A wrong header raises no error, but the network recognises an upright head. It cannot distinguish right from left: a
    coronal or axial scout and its mirror image look alike.

    Args:
      scores: (8, 3, K) of the three scouts as they are, turned by 90, 180 and 270 degrees, and of the mirrored scouts,
        turned likewise.
    """
    why = []
    for number, plane in enumerate(PLANES):
        means = np.minimum(scores[:, number, PLANE_OF == number], 1).mean(-1)
        if plane != "sagittal":
            means = np.delete(means, 4)
        if means[0] < UNLIKE:
            why.append(f"the {plane} scout does not look like one: the mean score of its landmarks is {means[0]:.2f}")
        elif means.max() > means[0] + OTHER_WAY:
            why.append(f"the {plane} scout looks turned or mirrored: check its file's orientation")
    return why


def fit_triples(names, points, scores, volumes: Volumes, template: dict, spread=DEFAULT_SPREAD):
    """Fits the volumes of triples with known ground truth.

    Args:
      names: (N,) the images; triples without all of their three images among them are left out.
      points: (N, K, 2) in the images' pixels.
      scores: (N, K).
      volumes: the ground truth.
      template: of the head that the network was trained on.
      spread: as in `fit`, for all images (3,) or for each (N, 3).

    Returns:
      The triples (T,), indices into `volumes`; a `calibrate.Calibration` of arrays (T, ...); the reasons to refuse
      each, a list of T lists; and the errors (T, 9), in the order of the covariance.
    """
    row, spread = {str(name): n for n, name in enumerate(names)}, np.broadcast_to(spread, (len(names), 3))
    triples = triples_of(names, volumes)
    per_triple = []
    for t in triples:
        images = [f"{volumes.names[t]}_{plane}" for plane in PLANES]
        rows, planes = [row[name] for name in images], np.array([volumes.planes[name] for name in images], np.float32)
        arguments = np.float32(points[rows]), np.float32(scores[rows]), planes, template, np.float32(spread[rows[0]])
        per_triple.append(jax.tree.map(np.asarray, fit(*arguments)[0]))
    fitted = jax.tree.map(lambda *leaves: np.stack(leaves), *per_triple)
    turns = calibrate.product(fitted.rotation, jnp.swapaxes(jnp.asarray(volumes.rotation[triples], jnp.float32), 1, 2))
    errors = [
        fitted.centre - volumes.centre[triples],
        np.asarray(calibrate.rotation_vector(turns)),
        fitted.size - volumes.size[triples],
    ]
    return np.array(triples), fitted, [refusal_reasons(one) for one in per_triple], np.concatenate(errors, axis=-1)


def triples_of(names, volumes: Volumes) -> list[int]:
    """Returns the triples, indices into `volumes`, whose three images are all among the names."""
    image_names = set(map(str, names))
    return [t for t, name in enumerate(volumes.names) if all(f"{name}_{plane}" in image_names for plane in PLANES)]


def standard_deviations(calibration: calibrate.Calibration) -> np.ndarray:
    """Returns the standard deviations (..., 9) of calibrations, from their covariance."""
    return np.sqrt(np.maximum(np.diagonal(calibration.covariance, axis1=-2, axis2=-1), 1e-12))


def choose_spread(names, points, scores, volumes: Volumes, template: dict) -> list[float]:
    """Returns the factors by which residuals underestimate the errors of centre, axes and size, from held-out triples.

    The landmarks of one image have errors in common, which residuals do not show. The factors bring half of the errors
    below 0.67 standard deviations, as in a normal distribution, and are at least 1. Without usable triples they are
    `DEFAULT_SPREAD`. The arguments are those of `fit_triples`.
    """
    if not triples_of(names, volumes):
        return list(DEFAULT_SPREAD)
    _, fitted, refusals, errors = fit_triples(names, points, scores, volumes, template)
    accepted = np.array([not why for why in refusals])
    if not accepted.any():
        return list(DEFAULT_SPREAD)
    ratios = np.abs(errors / standard_deviations(fitted))[accepted].reshape(-1, 3, 3)
    return np.maximum(np.median(ratios, axis=(0, 2)) / MEDIAN, 1).round(3).tolist()


def spread_of(notes: list[dict]) -> np.ndarray:
    """Returns the spread (3,) of several networks together, the mean of those in their notes."""
    return np.mean([note.get("spread", DEFAULT_SPREAD) for note in notes], axis=0)


def score(names, points, scores, volumes: Volumes, template: dict, out: Path, spread=DEFAULT_SPREAD) -> dict:
    """Scores the volumes of held-out triples, and writes `volumes.csv` to the folder `out`.

    The other arguments are those of `fit_triples`.

    Returns:
      For `summary.json`: the numbers of triples and of refused volumes; for the other volumes, medians, 95th
      percentiles (of the IoU the 5th), and the shares of errors within one standard deviation ("within_told").
    """
    if not triples_of(names, volumes):
        raise ValueError("no head has all three scouts held out together: set --config.split.by=group")
    triples, fitted, refusals, errors = fit_triples(names, points, scores, volumes, template, spread)
    truth = [jnp.asarray(array[triples], jnp.float32) for array in (volumes.centre, volumes.rotation, volumes.size)]
    columns = {
        "centre_mm": np.linalg.norm(errors[:, :3], axis=-1),
        "angle_degrees": np.linalg.norm(errors[:, 3:6], axis=-1),
        "iou": np.asarray(jax.vmap(calibrate.box_iou)((fitted.centre, fitted.rotation, fitted.size), tuple(truth))),
    }
    Path(out).mkdir(parents=True, exist_ok=True)
    rows = [
        [volumes.names[t], *(f"{c[n]:.4f}" for c in columns.values()), "; ".join(refusals[n])]
        for n, t in enumerate(triples)
    ]
    atomic.write_csv(Path(out) / "volumes.csv", [["triple", *columns, "refused"], *rows])
    accepted = np.array([not why for why in refusals], bool)
    is_within = (np.abs(errors) < standard_deviations(fitted))[accepted].reshape(-1, 3, 3)
    within_shares = is_within.mean((0, 2)).tolist() if accepted.any() else [None] * 3
    quantile = lambda values, q: float(np.quantile(values[accepted], q)) if accepted.any() else None
    return {
        "triples": len(triples),
        "refused": int((~accepted).sum()),
        # 0.68 if the estimated uncertainty is right.
        "within_told": dict(zip(("centre", "angles", "size"), within_shares, strict=True)),
        **{f"median_{name}": quantile(values, 0.5) for name, values in columns.items()},
        **{f"worst_5_percent_{name}": quantile(v, 0.05 if name == "iou" else 0.95) for name, v in columns.items()},
    }


class Calibrator(NamedTuple):
    """A run that calibrates scouts.

    `find` maps scouts (B, H, W, 1) uint8 to landmarks (B, K, 2) and scores (B, K). `size` (H, W) and `spacing` (mm per
    pixel) are those of its frame, `template` and `spread` those of `fit`.
    """

    find: Callable
    size: tuple[int, int]
    spacing: float
    template: dict
    spread: np.ndarray


def of_folder(calibrator: Calibrator, images: Path, out: Path) -> dict:
    """Calibrates each scout triple of a folder: writes `calibration.json`, `box.nii.gz`, `scouts.png` to `out/NAME/`.

    A triple that cannot be read or written, has the name of another, or has its volume refused, is listed in
    `summary.json` under "failures" and does not stop the others. A refused one has no `box.nii.gz`.
    """
    out, failures, names, volume_count = Path(out), [], set(), 0
    out.mkdir(parents=True, exist_ok=True)
    for name, files in scouts.triples(images):
        if name in names:
            why = [f"another triple of scouts is named {name}, too: rename this one"]
        else:
            names.add(name)
            try:
                why = of_files(calibrator, name, files, out / name)
            except OSError as error:
                why = [f"cannot be written: {error}"]
        volume_count += not why
        if why:
            failures.append(problem(name, f"refused: {'; '.join(why)}", str(files[0])))
    summary = {"images": volume_count + len(failures), "volumes": volume_count, "failures": failures}
    atomic.write_json(out / "summary.json", summary)
    return summary


def of_files(calibrator: Calibrator, name: str, files: list[Path], out: Path) -> list[str]:
    """Calibrates the scout triple in `files`, writes its folder `out`, and returns the reasons to refuse its volume."""
    out.mkdir(parents=True, exist_ok=True)
    for old in ("box.nii.gz", "scouts.png"):  # of an earlier calibration, which may not have been refused
        (out / old).unlink(missing_ok=True)
    try:
        triple, notes = scouts.read(files)
        inputs = {"scouts": {plane: one.file for plane, one in triple.items()}, "notes": notes}
        record = inputs | of_triple(calibrator, triple, out)
    except FormatError as error:
        record = {"refused": True, "why": [f"cannot be read: {error}"]}
    atomic.write_json(out / "calibration.json", {"name": name} | record)
    return record["why"]


def of_triple(calibrator: Calibrator, three: dict[str, slices.Scout], out: Path) -> dict:
    """Calibrates one triple, writes its box and its drawing, and returns the content of `calibration.json`."""
    framed = [scouts.framed(three[plane], calibrator.size, calibrator.spacing) for plane in PLANES]
    images = np.stack([f.image for f in framed])[..., None]
    oriented = np.stack([np.rot90(image, k, (1, 2)) for image in (images, images[:, :, ::-1]) for k in range(4)])
    points, scores = calibrator.find(oriented.reshape(-1, *images.shape[1:]))
    why = orientation_problems(np.reshape(scores, (8, 3, -1)))
    pixels, scores = np.asarray(points[:3]), np.asarray(scores[:3])
    planes = np.stack([f.plane for f in framed]).astype(np.float32)
    fitted, positions = jax.tree.map(np.asarray, fit(pixels, scores, planes, calibrator.template, calibrator.spread))
    why, deviation = why + refusal_reasons(fitted), standard_deviations(fitted)
    if not why:
        write_box(out / "box.nii.gz", fitted, space=three[PLANES[0]].space)
    plane_points = [pixels[n, PLANE_OF == n] for n in range(3)]
    outlines = [np.zeros((0, 2)) if why else outline(fitted, f.plane) for f in framed]
    report.slices([f.image for f in framed], plane_points, outlines, out / "scouts.png", labels=PLANES)
    rounded = lambda array: np.asarray(array, float).round(4).tolist()
    return {
        "refused": bool(why),
        "why": why,
        "space": "RAS",
        "centre_mm": rounded(fitted.centre),
        "rotation": rounded(fitted.rotation),  # its columns are the box's axes
        "axes": dict(zip(("right", "front", "up"), rounded(fitted.rotation.T), strict=True)),
        "size_mm": rounded(fitted.size),
        "turn_degrees": rounded(calibrate.rotation_vector(jnp.asarray(fitted.rotation))),
        "uncertainty": {
            "centre_mm": rounded(deviation[:3]), "angles_degrees": rounded(deviation[3:6]),
            "size_mm": rounded(deviation[6:]),
        },
        "in_LPS": {
            "centre_mm": rounded(slices.lps_to_ras(fitted.centre)),
            "rotation": rounded(slices.lps_to_ras(fitted.rotation.T).T),
        },
        "landmarks": [
            {
                "plane": plane,
                "name": name,
                "position_mm": rounded(positions[k]),
                "score": rounded(scores[PLANE_OF[k], k]),
                "weight": rounded(fitted.weights[k]),
                "residual_mm": rounded(fitted.residuals[k]) if np.isfinite(fitted.residuals[k]) else None,
            }
            for k, (plane, name) in enumerate(LANDMARKS)
        ],
    }  # fmt: skip


def outline(calibration: calibrate.Calibration, plane) -> np.ndarray:
    """Returns the polygon in which the box cuts a plane: ordered corners (E, 2) in the plane's pixels; E may be 0."""
    corners = np.asarray(
        calibrate.corners(*(jnp.asarray(a) for a in (calibration.centre, calibration.rotation, calibration.size))),
        float,
    )
    depth = (corners - plane[:, 2]) @ slices.normal(plane)
    edges = [(i, i | bit) for bit in (1, 2, 4) for i in range(8) if not i & bit and depth[i] * depth[i | bit] < 0]
    if not edges:
        return np.zeros((0, 2))
    crossings = np.array([(depth[j] * corners[i] - depth[i] * corners[j]) / (depth[j] - depth[i]) for i, j in edges])
    pixels = slices.pixels(plane, crossings)
    offsets = pixels - pixels.mean(0)
    return pixels[np.argsort(np.arctan2(offsets[:, 1], offsets[:, 0]))]


def write_box(path: Path, calibration: calibrate.Calibration, *, space: int = slices.SCANNER) -> None:
    """Writes an empty NIfTI volume of about 1 mm voxels whose header describes the box: what a scanner would acquire.

    `space` is the sform and qform code of the scouts' space.
    """
    try:
        import nibabel
    except ImportError as error:
        raise ImportError(f"{path}: writing NIfTI needs nibabel: pip install 'jaxmarks[nifti]'") from error
    shape = np.maximum(np.round(calibration.size), 1).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = calibration.rotation * (calibration.size / shape)
    affine[:3, 3] = calibration.centre - affine[:3, :3] @ ((shape - 1) / 2)
    image = nibabel.Nifti1Image(np.zeros(shape, np.uint8), affine)
    image.set_sform(affine, code=space)
    image.set_qform(affine, code=space)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
