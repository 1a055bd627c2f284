"""U-Net++ (Zhou et al. 2018) on any encoder: each level has densely connected nodes between encoder and decoder."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmarks.models import decoders, encoders, layers

# The options of a network for tests.
TINY = {"width": 4, "stride": 4, "norm": "none"}


class UNetPP(nn.Module):
    """Images (B, H, W, C) in [0, 1] -> a map (B, ceil(H / stride), ceil(W / stride), width; width // 2 at stride 1)."""

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
                # X^{i,j} (the paper's equation 1), from the earlier nodes on its level and the last on the level below.
                features = self.width * 2**i
                x = layers.UpConv(features, name=f"up{i}_{j}")(nodes[i + 1][j - 1])
                x = jnp.concatenate([*nodes[i], x], axis=-1)
                nodes[i].append(layers.DoubleConv(features, self.norm, name=f"node{i}_{j}")(x, train=train))
        x = self.one_of(nodes[0][1:], train) if self.deep_supervision else nodes[0][-1]
        return decoders.OutputStage(self.stride, self.norm, name="finish")(x, size, train=train)

    def one_of(self, maps, train):
        """Returns one random map per image in training, drawn by its row in the whole batch; otherwise their mean."""
        stacked = jnp.stack(maps)
        if not train:
            return stacked.mean(0)
        rows = maps[0].shape[0]
        keys = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("dropout"), layers.global_rows(rows))
        drawn = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(maps)))(keys)
        return stacked[drawn, jnp.arange(rows)]


def build(*, encoder=None, width=32, stride=2, deep_supervision=False, norm="batch"):
    """Builds U-Net++: 26.5 M parameters with VGG19 at stride 1.

    Nodes have the channels of their level, as in the paper; segmentation_models_pytorch gives the inner ones as many as
    the encoder's map has, which makes 44.7 M with VGG19. The map of the level below is doubled in size by 2x2
    transposed convolutions, as in our U-Net.

    Deep supervision: the paper puts an output layer on each of the finest level's nodes, trains with the mean of their
    losses and predicts with the mean of their outputs ("accurate mode"). Here the nodes share the head's layer. In
    training each image's loss is that of one node, drawn anew in every step: its expectation is the mean of their
    losses. In evaluation the head gets the mean of their maps; its layer is linear, so its output is the mean of their
    outputs. (Not at stride 1: there the last, nonlinear upsampling is applied to the mean of the maps.)

    Args:
      encoder: the spec of an encoder, as {"name": "vgg19"}; None means `plain` with this `width` and `norm`.
      width: channels of the finest level, doubled on each further one.
      stride: of the output: 1, 2 or 4. At 1 a last upsampling, to half of `width`, has no skip connection; at 4 the
        encoder's map at stride 2 is not used, which leaves four levels. On a laptop choose 2 or 4.
      deep_supervision: whether all nodes of the finest level are trained to give the output.
      norm: `batch`, `group` or `none`.
    """
    decoders.check_stride(stride)
    encoder = encoders.build(encoder or {"name": "plain", "width": width, "norm": norm})
    return UNetPP(encoder=encoder, width=width, stride=stride, deep_supervision=deep_supervision, norm=norm)
