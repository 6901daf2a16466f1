"""The student: an encoder from timm and a MiniDPT decoder, built from a frozen config."""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from msgspec import Meta
from torch import Tensor, nn

from delta.config import Config
from delta.context import Context
from delta.decoder import Fusion, Head, LightDecoder, SeedDecoder
from delta.encoder import STRIDES, build_encoder, channels_last, level_channels, level_strides, normalization
from delta.errors import DeltaError

SIDE_MULTIPLE = 64  # MobileViT unfolds 2x2 patches at stride 32; other sides make it resize inside
LIGHT_STRIDES, SEED_STRIDES = (4, 8, 16, 32), (2, 4, 8, 16)


class StudentConfig(Config, frozen=True, kw_only=True):
    """What decides a student.

    `encoder` is any timm name whose `features_only` levels have strides 4, 8, 16, 32 (and 2 for the seed's decoder).
    `encoder_weights` says where these start: "imagenet" (timm's, see `delta.imagenet`), "none" (at random), or the path
    of a `.safetensors` file of that timm model or of a Delta student; in a student's card, where they did start.
    `decoder` is Delta's light one or the seed's; `width`, `fusion` and `head` shape the light one (the seed's is
    fixed). `context` lists the strides whose level passes a MobileViT block first; by `stage32` = "mobilevit" the
    encoder ends at stride 16 and a MobileViT stage makes the level of stride 32.
    """

    encoder: str = "mobilevitv2_050"
    encoder_weights: str = "none"
    context: tuple[Literal[8, 16, 32], ...] = ()
    stage32: Literal["encoder", "mobilevit"] = "encoder"
    decoder: Literal["light", "seed"] = "light"
    width: Annotated[int, Meta(ge=2)] = 64
    fusion: Fusion = "add"
    head: Head = "stride2"


class Student(nn.Module):
    """Images in [0, 1] to disparity, larger = nearer, in the teacher's units divided by the cache's constant."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, config: StudentConfig, encoder: nn.Module, decoder: nn.Module, context: Context | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.context = context or Context(level_channels(encoder))
        self.decoder = decoder
        self.channels = self.context.channels
        self._strides = level_strides(encoder)
        self._turn = channels_last(encoder)
        self._used = SEED_STRIDES if config.decoder == "seed" else LIGHT_STRIDES
        mean, std = normalization(config.encoder)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b h w"]:
        """Predict disparity; `h` and `w` are multiples of 64."""
        return self.forward_with_features(image)[0]

    def forward_with_features(
        self, image: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b h w"], dict[int, Tensor]]:
        """Predict disparity and return the encoder's levels with it, "b c h/stride w/stride" by stride, fine to coarse.

        `channels` has the same keys.
        """
        return self.decode(self.encoder((image - self.mean) / self.std))

    def decode(self, outputs: list[Tensor]) -> tuple[Float[Tensor, "b h w"], dict[int, Tensor]]:
        """Predict disparity from the encoder's outputs and return the levels by stride with it."""
        levels = dict(zip(self._strides, outputs, strict=True))
        levels = {
            stride: level.permute(0, 3, 1, 2) if self._turn else level
            for stride, level in levels.items()
            if stride in STRIDES
        }
        levels = self.context(levels)
        return self.decoder([levels[stride] for stride in self._used]).squeeze(1), levels


def build_student(config: StudentConfig) -> Student:
    """Build a student with random weights; `encoder.load_encoder_weights` gives it others to start from.

    Raises:
        DeltaError: the encoder is none that timm knows, or lacks levels the decoder needs.
    """
    stage = config.stage32 == "mobilevit"
    encoder = build_encoder(config.encoder, deepest=16 if stage else 32)
    channels = level_channels(encoder)
    needed, there = {*config.context}, {*channels}
    if stage:
        needed, there = needed | {16}, there | {32}
    missing = sorted(needed - there)
    if missing:
        raise DeltaError(
            f"{config.encoder} has no level of stride {missing[0]} for a MobileViT block",
            "choose strides of its own in student.context, or a pyramid such as mobilevitv2_050",
        )
    context = Context(channels, config.context, stage)
    channels = context.channels
    used = SEED_STRIDES if config.decoder == "seed" else LIGHT_STRIDES
    if not set(used) <= channels.keys():
        have, need = ", ".join(map(str, channels)) or "none of them", ", ".join(map(str, used))
        raise DeltaError(
            f"the {config.decoder} decoder needs levels of strides {need}; {config.encoder} has {have}",
            "choose a pyramid such as mobilevitv2_050, or another student.decoder",
        )
    widths = [channels[stride] for stride in used]
    if config.decoder == "seed":
        return Student(config, encoder, SeedDecoder(widths), context)
    decoder = LightDecoder(widths, config.width, config.fusion, config.head)
    return Student(config, encoder, decoder, context)
