"""HRNet (Sun, Xiao, Liu and Wang 2019): parallel branches at strides 4, 8, 16 and 32 that exchange their features."""

import math

import flax.linen as nn

from jaxmarks.models import layers
from jaxmarks.models.encoders.resnet50 import Bottleneck

# The options of a network for tests.
TINY = {"width": 4, "modules": (1, 1, 1, 1), "blocks": 1}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, added to their input."""

    norm: str = "batch"

    @nn.compact
    def __call__(self, x, *, train):
        y = nn.relu(layers.ConvNorm(x.shape[-1], norm=self.norm, name="conv1")(x, train=train))
        y = layers.ConvNorm(x.shape[-1], norm=self.norm, kernel_init=layers.last_init(self.norm), name="conv2")(
            y, train=train
        )
        return nn.relu(x + y)


class Exchange(nn.Module):
    """The exchange unit: each of the first `outputs` branches becomes the sum of all, brought to its size and channels.

    Finer branches are reduced by strided 3x3 convolutions; coarser ones take a 1x1 convolution and bilinear upsampling.
    """

    outputs: int
    norm: str = "batch"

    @nn.compact
    def __call__(self, branches, *, train):
        def bring(x, source, target):
            """Brings the source's features to the target's size and channels."""
            *_, height, width, features = branches[target].shape
            name = f"from{source}_to{target}"
            for step in range(source + 1, target):
                x = nn.relu(layers.ConvNorm(x.shape[-1], 3, 2, self.norm, name=f"{name}_{step}")(x, train=train))
            size, stride = (3, 2) if source < target else (1, 1)
            x = layers.ConvNorm(features, size, stride, self.norm, layers.last_init(self.norm), name=name)(
                x, train=train
            )
            return layers.resize(x, (height, width))

        def fuse(target):
            return sum(x if source == target else bring(x, source, target) for source, x in enumerate(branches))

        return [nn.relu(fuse(target)) for target in range(self.outputs)]


class HRNet(nn.Module):
    """Images (B, H, W, C) in [0, 1] -> features of the finest branch (B, ceil(H / stride), ceil(W / stride), width)."""

    width: int = 18
    modules: tuple[int, ...] = (1, 1, 3, 2)
    blocks: int = 4
    stride: int = 4
    norm: str = "batch"

    @nn.compact
    def __call__(self, x, *, train=False):
        height, width = x.shape[1:3]
        # A multiple of 32, so that each branch has half the size of the one before.
        x = layers.pad_to(x, 32)
        for i in (1, 2):
            x = nn.relu(layers.ConvNorm(4 * self.width, 3, 2, self.norm, name=f"stem{i}")(x, train=train))
        for i in range(self.blocks * self.modules[0]):
            x = Bottleneck(4 * self.width, norm=self.norm, name=f"stage1_{i}")(x, train=train)
        branches = [nn.relu(layers.ConvNorm(self.width, norm=self.norm, name="branch0")(x, train=train))]

        for stage, modules in enumerate(self.modules[1:], 2):
            # The new branch starts from the coarsest one (in stage 2 from stage 1's wider output), at half its size.
            coarsest = x if stage == 2 else branches[-1]
            new_branch = layers.ConvNorm(self.width * 2 ** (stage - 1), 3, 2, self.norm, name=f"branch{stage - 1}")
            branches.append(nn.relu(new_branch(coarsest, train=train)))
            for module in range(modules):
                for b in range(stage):
                    for i in range(self.blocks):
                        name = f"stage{stage}_{module}_branch{b}_{i}"
                        branches[b] = BasicBlock(self.norm, name=name)(branches[b], train=train)
                # Only the finest branch of the last exchange is used.
                outputs = 1 if stage == 4 and module == modules - 1 else stage
                branches = Exchange(outputs, self.norm, name=f"stage{stage}_{module}_exchange")(branches, train=train)

        x = branches[0]
        for i in range(1, 1 + int(math.log2(4 // self.stride))):
            x = layers.resize(x, (2 * x.shape[1], 2 * x.shape[2]))
            x = nn.relu(layers.ConvNorm(self.width, norm=self.norm, name=f"up{i}")(x, train=train))
        return layers.crop(x, (height, width), self.stride)


def build(*, width=18, modules=(1, 1, 3, 2), blocks=4, stride=4, norm="batch"):
    """Builds HRNet, by default with 6.6 M parameters; the fish paper's has 6.5 M.

    The fish paper gives only that count, and the pose networks of Sun et al. are larger (W32: 28.5 M). The default is
    width 18, the narrowest they published, with the modules of their "W18-Small-v2", (1, 1, 3, 2); with (1, 1, 4, 3)
    it has 9.4 M. Like their pose networks it has bottlenecks in stage 1, and only the finest branch as output. Their
    stem has 64 channels at any width; here it has 4 `width`.

    Args:
      width: channels of the finest branch; the others have 2, 4 and 8 times as many, and the stem 4 times.
      modules: number in each of the four stages; a module is `blocks` blocks per branch and an exchange unit.
      blocks: residual blocks per branch in each module.
      stride: of the output: 4, that of the finest branch, or 2 or 1, reached by bilinear upsampling and a 3x3
        convolution for each factor of 2.
      norm: "batch", "group" or "none".
    """
    if stride not in (1, 2, 4):
        raise ValueError(f"model.stride={stride}: choose 1, 2 or 4")
    if len(modules) != 4 or min(modules) < 1:
        raise ValueError(f"model.modules={modules}: give four numbers of modules, one for each stage, all at least 1")
    return HRNet(width=width, modules=tuple(modules), blocks=blocks, stride=stride, norm=norm)
