"""U-Net++ (Zhou et al. 2018) on any encoder: between encoder and decoder each level has nodes, densely connected."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmarks.models import decoders, encoders, layers

# The options of a network for tests.
TINY = {"width": 4, "stride": 4, "norm": "none"}


class UNetPP(nn.Module):
    """Images (B, H, W, C) in [0, 1] -> a map (B, H / stride, W / stride, width)."""

    encoder: nn.Module
    width: int = 32
    stride: int = 2
    deep_supervision: bool = False
    norm: str = "batch"

    @nn.compact
    def __call__(self, x, *, train=False):
        size = x.shape[1:3]
        nodes = [[level] for level in decoders.encode(self.encoder, x, stride=self.stride, train=train)]
        for j in range(1, len(nodes)):
            for i in range(len(nodes) - j):
                # X^{i,j} of the paper's equation 1: all nodes before it on its level, and the last of the level below.
                features = self.width * 2**i
                x = layers.UpConv(features, name=f"up{i}_{j}")(nodes[i + 1][j - 1])
                x = jnp.concatenate([*nodes[i], x], axis=-1)
                nodes[i].append(layers.DoubleConv(features, self.norm, name=f"node{i}_{j}")(x, train=train))
        x = self.one_of(nodes[0][1:], train) if self.deep_supervision else nodes[0][-1]
        return decoders.Finish(self.stride, self.norm, name="finish")(x, size, train=train)

    def one_of(self, maps, train):
        """In training one of the maps for each image, drawn by its row in the whole batch; otherwise their mean."""
        stacked = jnp.stack(maps)
        if not train:
            return stacked.mean(0)
        rows = maps[0].shape[0]
        keys = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("dropout"), layers.global_rows(rows))
        drawn = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(maps)))(keys)
        return stacked[drawn, jnp.arange(rows)]


def build(*, encoder=None, width=32, stride=2, deep_supervision=False, norm="batch"):
    """U-Net++: 26.5 M parameters with VGG19 at stride 1.

    Nodes have the channels of their level, as in the paper; segmentation_models_pytorch gives the inner ones as many as the
    encoder's map has, which makes 44.7 M with VGG19. What comes from below is doubled in size by transposed convolutions of
    2x2, as in our U-Net.

    Deep supervision: the paper puts an output layer on each of the finest level's nodes, trains with the mean of their
    losses and predicts with the mean of their outputs ("accurate mode"). Here they share the head's layer. In training
    each image is judged by one of them, drawn anew in every step, whose loss is that mean in expectation; in evaluation
    the mean of their maps goes to the head, whose linear layer makes of it the mean of their outputs (at stride 1 the last
    step up lies between, and makes its own of the mean).

    Args:
      encoder: the spec of an encoder, as {"name": "vgg19"}; None is `plain` with this `width` and `norm`.
      width: channels of the finest level, doubled on each.
      stride: of the output, 1, 2 or 4. At 1 a last step up, to half of `width`, has no skip; at 4 the encoder's map at
        stride 2 has no part, and the levels are four. On a laptop take 2 or 4.
      deep_supervision: whether all nodes of the finest level are trained to give the output.
      norm: `batch`, `group` or `none`.
    """
    decoders.check_stride(stride)
    encoder = encoders.build(encoder or {"name": "plain", "width": width, "norm": norm})
    return UNetPP(encoder=encoder, width=width, stride=stride, deep_supervision=deep_supervision, norm=norm)
