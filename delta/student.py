"""The student: a MobileViT encoder from timm and a MiniDPT decoder, built from a frozen config."""

from typing import Annotated, Literal

import timm
import torch
from jaxtyping import Float
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional

from delta.config import Config
from delta.errors import DeltaError

SIDE_MULTIPLE = 64  # MobileViT unfolds 2x2 patches at stride 32; other sides make it resize inside
SEED_WIDTHS = (64, 128, 160, 256)


class StudentConfig(Config, frozen=True, kw_only=True):
    """What decides the shape of a student.

    `encoder` is a timm name `mobilevit_*` or `mobilevitv2_*`; `decoder` is Delta's light one or the seed's; `width` is
    the light decoder's channel count (the seed's widths are fixed).
    """

    encoder: str = "mobilevitv2_050"
    decoder: Literal["light", "seed"] = "light"
    width: Annotated[int, Meta(ge=2)] = 64


class Student(nn.Module):
    """Images in [0, 1] to disparity, larger = nearer, in the teacher's units divided by the cache's constant."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: StudentConfig, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.decoder = decoder
        mean, std = _normalization(config.encoder)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @property
    def channels(self) -> list[int]:
        """Channels of the encoder's levels at strides 2, 4, 8, 16, 32."""
        return _level_channels(self.encoder)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b h w"]:
        """Predict disparity; `h` and `w` are multiples of 64."""
        return self.forward_with_features(image)[0]

    def forward_with_features(self, image: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b h w"], list[Tensor]]:
        """Predict disparity and return the encoder's levels at strides 2, 4, 8, 16, 32 with it."""
        levels = self.encoder((image - self.mean) / self.std)
        return self.decoder(levels).squeeze(1), levels


class LightDecoder(nn.Module):
    """MiniDPT, light: 1x1 projections of strides 4 to 32, depthwise residual fusion, head at stride 2.

    Coarse to fine as DPT (Ranftl et al., 2021), with depthwise-separable instead of full 3x3 convolutions and no
    sigmoid: the seed's decoder spends 87 % of its multiplications in full convolutions at strides 2 and 4.
    """

    def __init__(self, channels: list[int], width: int) -> None:
        super().__init__()
        self.project = nn.ModuleList(_conv(c, width, 1) for c in channels[1:])
        self.refine = nn.ModuleList(SeparableResidual(width) for _ in channels[1:])
        self.head = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
            _conv(width, width // 2, 1),
            nn.Conv2d(width // 2, 1, 3, padding=1),
        )

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Fuse from stride 32 to stride 4, then predict at stride 2 and upsample: "b 1 h w"."""
        skips = [project(level) for project, level in zip(self.project, levels[1:], strict=True)]
        x = self.refine[-1](skips[-1])
        for skip, refine in zip(skips[-2::-1], list(self.refine)[-2::-1], strict=True):
            x = refine(_double(x) + skip)
        return _double(self.head(_double(x)))


class SeparableResidual(nn.Module):
    """x + two depthwise-separable 3x3 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_separable(width, width), _separable(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        return x + self.body(x)


class SeedDecoder(nn.Module):
    """The seed's MiniDPT, from its report: full 3x3 fusion up to stride 2, sigmoid head (1,440,417 parameters)."""

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.project = nn.ModuleList(_conv(c, w, 1) for c, w in zip(channels[:4], SEED_WIDTHS, strict=True))
        pairs = list(zip(SEED_WIDTHS[1:], SEED_WIDTHS[:-1], strict=True))
        self.upsample = nn.ModuleList(
            nn.Sequential(_separable(deep, fine), _separable(fine, fine)) for deep, fine in pairs
        )
        self.fuse = nn.ModuleList(nn.Sequential(_conv(2 * fine, fine, 3), _conv(fine, fine, 3)) for _, fine in pairs)
        width = SEED_WIDTHS[0]
        self.head_narrow = nn.Sequential(nn.Conv2d(width, width // 2, 3, padding=1), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(width // 2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 1, 1), nn.Sigmoid())

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Fuse from stride 16 to stride 2, then predict at full size: "b 1 h w" in (0, 1)."""
        skips = [project(level) for project, level in zip(self.project, levels[:4], strict=True)]
        x = skips[3]
        for index in (2, 1, 0):
            x = self.fuse[index](torch.cat([self.upsample[index](_double(x)), skips[index]], dim=1))
        return self.head(_double(self.head_narrow(x)))


def build_student(config: StudentConfig, pretrained: bool = False) -> Student:
    """Build a student; `pretrained` loads the encoder's ImageNet weights from the hub.

    Raises:
        DeltaError: the encoder is not a MobileViT that timm knows.
        OSError: `pretrained` and the hub cannot be reached.
    """
    if not config.encoder.startswith(("mobilevit_", "mobilevitv2_")) or not timm.is_model(config.encoder):
        known = ", ".join(timm.list_models(["mobilevit_*", "mobilevitv2_*"]))
        raise DeltaError(f"there is no MobileViT encoder named {config.encoder!r}", f"choose one of {known}")
    encoder = timm.create_model(config.encoder, features_only=True, pretrained=pretrained)
    channels = _level_channels(encoder)
    decoder = LightDecoder(channels, config.width) if config.decoder == "light" else SeedDecoder(channels)
    return Student(config, encoder, decoder)


def _level_channels(encoder: nn.Module) -> list[int]:
    return list(encoder.feature_info.channels())  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]


def _normalization(encoder: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    config = timm.get_pretrained_cfg(encoder)
    return (config.mean, config.std) if config else ((0.0,) * 3, (1.0,) * 3)


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def _separable(inputs: int, outputs: int) -> nn.Sequential:
    depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
    return nn.Sequential(depthwise, nn.BatchNorm2d(inputs), nn.ReLU(), *_conv(inputs, outputs, 1))


def _double(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
