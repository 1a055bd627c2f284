"""The modern augmentation: affine map, mirroring and elastic deformation in a single resampling, and colour."""

import functools

import jax
import jax.numpy as jnp

from jaxmarks.augment import colour, spatial
from jaxmarks.ops import geometry

# Batch entries that are transformed together with the pixels.
SPATIAL_KEYS = ("points", "visible", "boxes", "labels")


def build(
    *,
    channels: int,
    flip: tuple[int, ...] | None = None,
    size: tuple[int, int] | None = None,
    rotation: float = 15.0,
    scale: float = 0.15,
    aspect: float = 0.05,
    shear: float = 3.0,
    translation: float = 0.08,
    quarter_turns: bool = False,
    mirror: float = 0.5,
    elastic: float = 0.0,
    brightness: float = 0.15,
    contrast: float = 0.25,
    gamma: float = 0.3,
    channel: float = 0.1,
    blur: float = 0.0,
    noise: float = 0.02,
    cutout: float = 0.0,
):
    """Builds `apply(keys, batch)`; each strength is that of the function with its name, and 0 turns it off.

    Landmarks that leave the frame become invisible; objects whose centre leaves it get label -1. A box becomes the
    axis-aligned box around its transformed corners, which is larger than the object unless it is rotated by a multiple
    of 90 degrees.

    Args:
      channels: channels of the output.
      flip: the landmarks' order in a mirrored sample; None: no sample is mirrored.
      size: (H, W) to which the frame is resized; None: its own.
      rotation, shear: the largest angle, in degrees either way.
      scale, aspect: the largest relative change of size and aspect ratio.
      translation: the largest shift, as a share of the frame's width and height.
      quarter_turns: whether each sample is first rotated by 0, 90, 180 or 270 degrees.
      mirror: probability of mirroring.
      elastic, blur: in pixels of the output.
      brightness, contrast, gamma, channel, noise: as in `colour`.
      cutout: as a share of the frame.
    """
    tints = [(colour.channel, channel)] if channel else []
    tones = [
        (function, strength)
        for function, strength in (
            (colour.contrast, contrast),
            (colour.brightness, brightness),
            (colour.gamma, gamma),
            (colour.blur, blur),
            (colour.noise, noise),
            (colour.cutout, cutout),
        )
        if strength
    ]

    def place(key, points, visible, boxes, labels, frame):
        """Returns one sample's sampling positions (H, W, 2), points, visible, boxes and labels."""
        affine_key, mirror_key, elastic_key = jax.random.split(key, 3)
        visible = visible != 0
        matrix = spatial.random_affine(
            affine_key, frame, rotation=rotation, scale=scale, aspect=aspect, shear=shear, translation=translation
        )
        if quarter_turns:
            turn = spatial.quarter_turn(jax.random.fold_in(key, 3), frame)
            matrix = geometry.compose(turn, matrix)
        if flip is not None and mirror:
            order = jnp.array(flip, jnp.int32)
            if len(order) != len(points):
                raise ValueError(f"flip has {len(order)} entries, but there are {len(points)} landmarks")
            mirrored = jax.random.bernoulli(mirror_key, mirror) & ~jnp.any(visible & (order < 0))
            matrix = jnp.where(mirrored, geometry.compose(spatial.mirror(frame), matrix), matrix)
            points = jnp.where(mirrored, points[order], points)
            visible = jnp.where(mirrored, visible[order] & (order >= 0), visible)
        new_size = size or frame
        if size:
            matrix = geometry.compose(matrix, jnp.asarray(geometry.frame(frame, size, "stretch"), matrix.dtype))
        new = lambda points: geometry.affine(geometry.invert(matrix), points)
        points, corners = new(points), new(boxes[:, jnp.array([[0, 1], [2, 1], [2, 3], [0, 3]])].reshape(-1, 2))
        source = geometry.pixel_centres(new_size)
        if elastic:
            flow = spatial.elastic(elastic_key, new_size, strength=elastic)
            source = source + flow
            points, corners = spatial.through_flow(flow, points), spatial.through_flow(flow, corners)
        corners = corners.reshape(-1, 4, 2)
        boxes = jnp.concatenate([corners.min(1), corners.max(1)], axis=-1)
        labels = jnp.where(geometry.inside((boxes[:, :2] + boxes[:, 2:]) / 2, new_size), labels, -1)
        return geometry.affine(matrix, source), points, visible & geometry.inside(points, new_size), boxes, labels

    def paint(functions, keys, images):
        for number, (function, strength) in enumerate(functions):
            step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
            images = jax.vmap(functools.partial(function, strength=strength))(step_keys, images)
        return images

    def apply(keys, batch):
        frame, count = batch["images"].shape[1:3], len(batch["images"])
        annotations = {
            "points": jnp.zeros((count, 0, 2)), "visible": jnp.zeros((count, 0), bool),
            "boxes": jnp.zeros((count, 0, 4)), "labels": jnp.zeros((count, 0), jnp.int32),
        } | batch  # fmt: skip
        place_keys, tint_keys, tone_keys = jax.vmap(lambda key: tuple(jax.random.split(key, 3)))(keys)
        source, *new = jax.vmap(lambda *sample: place(*sample, frame))(
            place_keys, *(annotations[name] for name in SPATIAL_KEYS)
        )
        moved = dict(zip(SPATIAL_KEYS, new, strict=True))
        # Channel-wise colour before conversion to grey, and that before resampling, which then has one channel.
        images = colour.to_channels(paint(tints, tint_keys, colour.to_float(batch["images"])), channels)
        images = paint(tones, tone_keys, geometry.sample(images, source))
        dtypes = {"visible": jnp.bool_, "labels": jnp.int32}
        moved = {name: moved[name].astype(dtypes.get(name, jnp.float32)) for name in SPATIAL_KEYS if name in batch}
        return batch | {"images": jnp.clip(images, 0, 1).astype(jnp.float32)} | moved

    return apply
