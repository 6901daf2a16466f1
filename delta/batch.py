"""A batch as the student sees it, and the geometry that makes one from stored views, on the device they are on.

One affine map an image moves pixels, disparity, features and attention alike. What is done to the student's pixels
alone is in `photometric`. Knows nothing of stores.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from delta.augment import AugmentConfig
from delta.config import Config
from delta.photometric import ColorDraws, cut_mix, distort, draw_color

FEATURE_STRIDE = 16
NOTHING: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType({})


class Batch(Config, frozen=True, kw_only=True):
    """What one training step needs.

    `image` is "b 3 s s" in [0, 1]; `disparity` and `valid` are "b s s"; `features` and `attention` map a teacher tap to
    "b c g g" and "b heads g g" on a grid of stride 16. `feature_weight` "b" is what an image counts in the terms that
    look at these: 0 where the view is not one the teacher has answered for, and on average 1 over the whole batch.
    `samples` "b" are the numbers of the samples in their store.
    """

    image: Tensor
    disparity: Tensor
    valid: Tensor
    features: dict[str, Tensor]
    attention: dict[str, Tensor]
    feature_weight: Tensor
    samples: Tensor

    def split(self, parts: int) -> "list[Batch]":
        """Cut the batch into `parts` of equal size, in order."""
        size = len(self.samples) // parts
        return [self._rows(slice(first, first + size)) for first in range(0, parts * size, size)]

    def _rows(self, rows: slice) -> "Batch":
        return Batch(**{name: _at(getattr(self, name), rows) for name in self.__struct_fields__})


class Targets(Config, frozen=True, kw_only=True):
    """Stored views and the teacher's answers for them, any of these on any device and in any real type.

    `image` is u8 "b h w 3", `disparity` "b h w", `features` and `attention` "b c g g" by tap, `samples` "b".
    """

    image: Tensor
    disparity: Tensor
    features: dict[str, Tensor]
    attention: dict[str, Tensor]
    samples: Tensor

    def each(self, change: Callable[[Tensor], Tensor]) -> "Targets":
        """Change every tensor, such as by copying it to a device."""

        def changed(value: Any) -> Any:
            return {k: change(v) for k, v in value.items()} if isinstance(value, dict) else change(value)

        return Targets(**{name: changed(getattr(self, name)) for name in self.__struct_fields__})


class Draws(Config, frozen=True, kw_only=True):
    """What chance decided for each image of a batch; rows of it are what it decided for rows of the batch.

    `matrix` "b 2 3" maps output to view coordinates, both in [-1, 1]; `mixed` "b 4" is the box that CutMix covers:
    left, top, right and bottom in [0, 1], or nothing (zeros).
    """

    matrix: Tensor
    mirrored: Tensor
    mixed: Tensor
    feature_weight: Tensor
    color: ColorDraws

    def rows(self, rows: slice) -> "Draws":
        """Take some images' draws."""
        taken = {name: _at(getattr(self, name), rows) for name in self.__struct_fields__ if name != "color"}
        return Draws(**taken, color=self.color.rows(rows))


def draw(count: int, config: AugmentConfig, generator: torch.Generator) -> Draws:
    """Decide the augmentation of a whole batch, on the CPU, so that any share of it is the same on any device."""
    matrix, mirrored, angle_deg = sample_views(count, config, generator)
    mixed = _sample_boxes(count, config.cutmix, generator)
    replayed = ~mirrored & (angle_deg.abs() <= config.replay_deg) & (mixed.sum(dim=1) == 0)
    return Draws(
        matrix=matrix,
        mirrored=mirrored,
        mixed=mixed,
        feature_weight=replayed * (count / replayed.sum().clamp(min=1)),
        color=draw_color(count, config, generator),
    )


def make_batch(
    targets: Targets,
    draws: Draws,
    *,
    size_px: int,
    config: AugmentConfig,
    decode: Mapping[str, Callable[[Tensor], Tensor]] = NOTHING,
) -> Batch:
    """Cut, mirror, turn and resample stored views to `size_px`, then change the student's image.

    `decode` turns the int8 codes of a tap into its features. That is linear, so it comes after the resampling, which
    leaves fewer places to decode.

    The guard of the views: a mirrored sample has feature weight 0, since a ViT's features of a mirrored photo are not
    its features mirrored (cosine 0.7 to 0.84, measured). Crops and small turns are replayed by interpolation.
    """
    device = targets.image.device
    matrix = draws.matrix.to(device)
    pixels = targets.image.permute(0, 3, 1, 2).to(torch.float32) / 255
    depth = targets.disparity.to(torch.float32).unsqueeze(1)
    grid = _grid(matrix, size_px)
    warped = functional.grid_sample(torch.cat([pixels, depth], dim=1), grid, padding_mode="border", align_corners=False)
    cells = _grid(matrix, max(1, size_px // FEATURE_STRIDE))
    image, covered = cut_mix(warped[:, :3].clamp(0, 1), draws.mixed)
    return Batch(
        image=distort(image, draws.color, config),
        disparity=warped[:, 3],
        valid=(grid.abs() <= 1).all(dim=-1) & ~covered,
        features={tap: _features(value, cells, decode.get(tap)) for tap, value in targets.features.items()},
        attention={tap: _resample(value, cells, "zeros") for tap, value in targets.attention.items()},
        feature_weight=draws.feature_weight.to(device, torch.float32),
        samples=targets.samples,
    )


def sample_views(
    count: int, config: AugmentConfig, generator: torch.Generator
) -> tuple[Float[Tensor, "b 2 3"], Bool[Tensor, " b"], Float[Tensor, " b"]]:
    """Draw affine maps from output to view coordinates in [-1, 1], which of them mirror, and their angles [deg]."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    area = uniform(*config.crop_scale)
    ratio = torch.exp(uniform(math.log(config.crop_ratio[0]), math.log(config.crop_ratio[1])))
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    center_x, center_y = uniform(-1, 1) * (1 - width), uniform(-1, 1) * (1 - height)
    mirrored = torch.rand(count, generator=generator) < config.mirror
    angle = uniform(-1, 1) * math.radians(config.rotation_deg)
    sign = torch.where(mirrored, -1.0, 1.0)
    cos, sin = torch.cos(angle), torch.sin(angle)
    first = torch.stack([cos * width * sign, -sin * height, center_x], dim=1)
    second = torch.stack([sin * width * sign, cos * height, center_y], dim=1)
    return torch.stack([first, second], dim=1), mirrored, torch.rad2deg(angle)


def _sample_boxes(count: int, probability: float, generator: torch.Generator) -> Float[Tensor, "b 4"]:
    """Boxes of 10 to 50 % of the area, log-uniform aspect 1:2 to 2:1, all zeros for images left alone."""
    chance, area, ratio, x, y = torch.rand(5, count, generator=generator)
    area, ratio = 0.1 + 0.4 * area, torch.exp((2 * ratio - 1) * math.log(2))
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    left, top = x * (1 - width), y * (1 - height)
    return torch.stack([left, top, left + width, top + height], dim=1) * (chance < probability)[:, None]


def _features(value: Tensor, grid: Tensor, decode: Callable[[Tensor], Tensor] | None) -> Tensor:
    resampled = _resample(value, grid, "border")
    return decode(resampled) if decode and is_coded(value) else resampled


def is_coded(features: Tensor) -> bool:
    """Whether features are int8 codes rather than numbers."""
    return features.dtype == torch.int8


def _resample(value: Tensor, grid: Tensor, padding: str) -> Tensor:
    return functional.grid_sample(value.to(torch.float32), grid, padding_mode=padding, align_corners=False)


def _grid(matrix: Float[Tensor, "b 2 3"], side: int) -> Float[Tensor, "b s s 2"]:
    return functional.affine_grid(matrix, [matrix.shape[0], 1, side, side], align_corners=False)


def _at(value: Any, rows: slice) -> Any:
    """Rows of a tensor, or of each in a dict."""
    return {name: each[rows] for name, each in value.items()} if isinstance(value, dict) else value[rows]
