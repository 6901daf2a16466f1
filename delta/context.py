"""MobileViT blocks between an encoder and its decoder: they let every pixel see the whole image.

An encoder of convolutions with ImageNet weights, such as EfficientNet-Lite, becomes a MobileViT by them: its own
inverted residuals, MobileViTv2's linear attention on top.
"""

from collections.abc import Collection
from typing import Any, cast

from jaxtyping import Float
from timm.models._efficientnet_blocks import InvertedResidual
from timm.models.mobilevit import MobileVitV2Block
from torch import Tensor, nn

MAX_WIDTH, DEPTH, PATCH = 128, 2, 2  # of the transformers; MobileViTv2's widths go from 64 to 256
STAGE_CHANNELS, STAGE_EXPANSION = 160, 4  # of the stage that stands in for the encoder's own of stride 32


class Context(nn.Module):
    """Levels by stride to levels by stride, some of them after a MobileViTv2 block.

    Args:
        channels: Of the encoder's levels, by stride.
        strides: Levels that pass a block, which adds to them and adds nothing before training.
        stage: Whether stride 32 is made here of stride 16, by an inverted residual and a block of its own.
    """

    def __init__(self, channels: dict[int, int], strides: Collection[int] = (), stage: bool = False) -> None:
        super().__init__()
        self.channels = channels | ({32: STAGE_CHANNELS} if stage else {})
        chosen: list[int] = sorted({*strides, *([32] if stage else [])})
        self.blocks = nn.ModuleDict({str(stride): _block(self.channels[stride]) for stride in chosen})
        self.down = _halve(channels[16]) if stage else None

    def forward(self, levels: dict[int, Float[Tensor, "b _ _ _"]]) -> dict[int, Float[Tensor, "b _ _ _"]]:
        """Keep the levels' sizes, fine to coarse."""
        levels = {stride: self._see(level, stride) for stride, level in levels.items()}
        return levels if self.down is None else levels | {32: self._see(self.down(levels[16]), 32)}

    def _see(self, level: Tensor, stride: int) -> Tensor:
        name = str(stride)
        return level + self.blocks[name](level) if name in self.blocks else level


def _block(channels: int) -> MobileVitV2Block:
    width = min(channels, MAX_WIDTH)
    block = MobileVitV2Block(channels, transformer_dim=width, transformer_depth=DEPTH, patch_size=PATCH)
    projection = cast(Any, block.conv_proj)
    nn.init.zeros_(projection.bn.weight)  # starts as the identity: the encoder's weights still hold
    return block


def _halve(channels: int) -> InvertedResidual:
    return InvertedResidual(
        channels, STAGE_CHANNELS, stride=2, pad_type="", exp_ratio=STAGE_EXPANSION, act_layer=nn.ReLU6
    )
