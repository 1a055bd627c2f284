"""The beetle paper's augmentation: seven versions of each photograph (its section on data augmentation)."""

import jax
import jax.numpy as jnp

from jaxmarks.augment import colour

VERSIONS = 7


def build(*, channels: int, maximum: int = 50, seed: int = 0):
    """Builds `apply(keys, batch)`, which produces the version of each sample given by "version" (B,), 0..6.

    0..2: one colour channel plus an integer from U[1, maximum], capped at 255; 3..5: one channel as grey; 6: the
    photograph. The integer is the same in every epoch: it depends on `seed`, the sample's "index" and the version, and
    the keys are not used. 0..2 and 6 are converted to luminance, since the paper's networks take one channel.

    Raises:
      ValueError: if `channels` is not 1 or `maximum` below 1; and from `apply` if the images are not (B, H, W, 3)
        uint8.
    """
    if channels != 1:
        raise ValueError(f"augment paper_x7 makes grey images: set --config.channels=1, not {channels}")
    if maximum < 1:
        raise ValueError(f"augment.maximum={maximum}: give at least 1: the constant is drawn from 1..maximum")

    def make_version(image, index, version):
        constant = jax.random.randint(constant_key(seed, index, version), (), 1, maximum + 1)
        is_channel = jnp.arange(3) == version % 3
        brighter = jnp.minimum(image.astype(jnp.int32) + constant * (is_channel & (version < 3)), 255)
        single = (version >= 3) & (version < 6)
        return colour.mix(
            brighter.astype(jnp.float32) / 255, jnp.where(single, is_channel, jnp.array(colour.LUMINANCE, jnp.float32))
        )

    def apply(keys, batch):
        del keys
        images = batch["images"]
        if images.shape[-1] != 3 or images.dtype != jnp.uint8:
            raise ValueError(f"augment paper_x7 needs uint8 colour images, not {images.dtype} {images.shape}")
        return batch | {"images": jax.vmap(make_version)(images, batch["index"], batch["version"])}

    return apply


def constant_key(seed, index, version):
    """Returns the random key of the constant of a sample's version, the same in every epoch."""
    return jax.random.fold_in(jax.random.key(seed), index * VERSIONS + version)
