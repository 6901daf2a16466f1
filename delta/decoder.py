"""MiniDPT decoders: levels of an encoder, fine to coarse -> disparity at the size of the image."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Fusion = Literal["add", "concat"]
Head = Literal["stride4", "stride2", "stride1"]
HEADS = ("stride4", "stride2", "stride1")  # in order of the doublings before the head
SEED_WIDTHS = (64, 128, 160, 256)


class LightDecoder(nn.Module):
    """MiniDPT, light: 1x1 projections of strides 4 to 32, depthwise residual fusion, head at stride 2.

    Coarse to fine as DPT (Ranftl et al., 2021), with depthwise-separable instead of full 3x3 convolutions and no
    sigmoid: the seed's decoder spends 87 % of its multiplications in full convolutions at strides 2 and 4. `fusion`
    adds the finer level or concatenates it and mixes by a 1x1 convolution; `head` says at which stride the disparity
    is predicted, before the rest is upsampled.
    """

    def __init__(self, channels: Sequence[int], width: int, fusion: Fusion = "add", head: Head = "stride2") -> None:
        super().__init__()
        self.project = nn.ModuleList(_conv(c, width, 1) for c in channels)
        self.refine = nn.ModuleList(SeparableResidual(width) for _ in channels)
        self.mix = nn.ModuleList(_conv(2 * width, width, 1) for _ in channels[1:]) if fusion == "concat" else None
        self.head = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
            _conv(width, width // 2, 1),
            nn.Conv2d(width // 2, 1, 3, padding=1),
        )
        self._doublings = HEADS.index(head)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Fuse levels of strides 4, 8, 16, 32 from coarse to fine, then predict: "b 1 h w"."""
        skips = [project(level) for project, level in zip(self.project, levels, strict=True)]
        x = self.refine[-1](skips[-1])
        for index in range(len(skips) - 2, -1, -1):
            x = self.refine[index](self._fuse(_double(x), skips[index], index))
        for _ in range(self._doublings):
            x = _double(x)
        x = self.head(x)
        for _ in range(2 - self._doublings):
            x = _double(x)
        return x

    def _fuse(self, coarse: Tensor, fine: Tensor, index: int) -> Tensor:
        return coarse + fine if self.mix is None else self.mix[index](torch.cat([coarse, fine], dim=1))


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

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.project = nn.ModuleList(_conv(c, w, 1) for c, w in zip(channels, SEED_WIDTHS, strict=True))
        pairs = list(zip(SEED_WIDTHS[1:], SEED_WIDTHS[:-1], strict=True))
        self.upsample = nn.ModuleList(
            nn.Sequential(_separable(deep, fine), _separable(fine, fine)) for deep, fine in pairs
        )
        self.fuse = nn.ModuleList(nn.Sequential(_conv(2 * fine, fine, 3), _conv(fine, fine, 3)) for _, fine in pairs)
        width = SEED_WIDTHS[0]
        self.head_narrow = nn.Sequential(nn.Conv2d(width, width // 2, 3, padding=1), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(width // 2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 1, 1), nn.Sigmoid())

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Fuse levels of strides 2, 4, 8, 16 from coarse to fine, then predict at full size: "b 1 h w" in (0, 1)."""
        skips = [project(level) for project, level in zip(self.project, levels, strict=True)]
        x = skips[3]
        for index in (2, 1, 0):
            x = self.fuse[index](torch.cat([self.upsample[index](_double(x)), skips[index]], dim=1))
        return self.head(_double(self.head_narrow(x)))


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def _separable(inputs: int, outputs: int) -> nn.Sequential:
    depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
    return nn.Sequential(depthwise, nn.BatchNorm2d(inputs), nn.ReLU(), *_conv(inputs, outputs, 1))


def _double(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
