"""The modern set: one affine map a sample, mirror and elastic deformation in a single resampling, then colour."""

import functools

import jax
import jax.numpy as jnp

from jaxmarks.augment import colour, spatial
from jaxmarks.ops import geometry


def build(
    *,
    channels: int,
    flip: tuple[int, ...] | None = None,
    rotation: float = 15.0,
    scale: float = 0.15,
    aspect: float = 0.05,
    shear: float = 3.0,
    translation: float = 0.08,
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
    """`apply(keys, batch)`; each strength is that of the function of its name, and 0 leaves that out.

    `mirror` is the probability of a mirrored sample where `flip`, the landmarks' order in it, is given. Landmarks that
    leave the frame become invisible.
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

    def place(key, points, visible, size):
        """One sample: where its pixels come from (H, W, 2), its points and what of them is seen."""
        affine_key, mirror_key, elastic_key = jax.random.split(key, 3)
        matrix = spatial.random_affine(
            affine_key, size, rotation=rotation, scale=scale, aspect=aspect, shear=shear, translation=translation
        )
        if flip is not None and mirror:
            mirrored = jax.random.bernoulli(mirror_key, mirror)
            matrix = jnp.where(mirrored, geometry.compose(spatial.mirror(size), matrix), matrix)
            order = jnp.array(flip)
            points = jnp.where(mirrored, points[order], points)
            visible = jnp.where(mirrored, visible[order], visible)
        points = geometry.affine(geometry.invert(matrix), points)
        source = geometry.pixel_centres(size)
        if elastic:
            flow = spatial.elastic(elastic_key, size, strength=elastic)
            source = source + flow
            points = spatial.through_flow(flow, points)
        return geometry.affine(matrix, source), points, visible & geometry.inside(points, size)

    def paint(functions, keys, images):
        for number, (function, strength) in enumerate(functions):
            own = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
            images = jax.vmap(functools.partial(function, strength=strength))(own, images)
        return images

    def apply(keys, batch):
        size = batch["images"].shape[1:3]
        place_keys, tint_keys, tone_keys = jax.vmap(lambda key: tuple(jax.random.split(key, 3)))(keys)
        source, points, visible = jax.vmap(lambda k, p, v: place(k, p, v, size))(
            place_keys, batch["points"], batch["visible"]
        )
        # Colour by channel comes before grey, and grey before resampling, which is then of one channel.
        images = colour.to_channels(paint(tints, tint_keys, colour.to_float(batch["images"])), channels)
        images = paint(tones, tone_keys, geometry.sample(images, source))
        return batch | {"images": jnp.clip(images, 0, 1), "points": points, "visible": visible}

    return apply
