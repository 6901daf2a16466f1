"""A batch as the student sees it, and the augmentation that makes one from stored views.

Geometry is done once, with one transform for image, disparity and features. Color is the student's alone: the teacher
has answered for the clean photo. Knows nothing of stores.
"""

import math
from typing import Annotated

import torch
from jaxtyping import Bool, Float, UInt8
from msgspec import Meta
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as color

from delta.config import Config

Probability = Annotated[float, Meta(ge=0, le=1)]
Share = Annotated[float, Meta(gt=0, le=1)]
Ratio = Annotated[float, Meta(gt=0)]


class Batch(Config, frozen=True, kw_only=True):
    """What one training step needs.

    `image` is "b 3 s s" in [0, 1]; `disparity` and `valid` are "b s s"; `features` maps a teacher tap to "b c g g" on a
    grid of stride 16; `feature_weight` "b" is 0 where the view is not one the teacher has answered for.
    """

    image: Tensor
    disparity: Tensor
    valid: Tensor
    features: dict[str, Tensor]
    feature_weight: Tensor


class AugmentConfig(Config, frozen=True, kw_only=True):
    """Ranges of the augmentation; zeros and [1, 1] turn it off.

    `crop_scale` is the share of the view's area, `crop_ratio` the aspect ratio's range (log-uniform), `rotation_deg`
    the largest angle; jitters are as in torchvision's ColorJitter, applied to each image on its own.
    """

    crop_scale: tuple[Share, Share] = (0.4, 1.0)
    crop_ratio: tuple[Ratio, Ratio] = (0.75, 1.333)
    mirror: Probability = 0.5
    rotation_deg: Annotated[float, Meta(ge=0, le=45)] = 0.0
    brightness: Probability = 0.3
    contrast: Probability = 0.3
    saturation: Probability = 0.3
    hue: Annotated[float, Meta(ge=0, le=0.5)] = 0.05
    gray: Probability = 0.05
    blur: Probability = 0.1


NO_AUGMENTATION = AugmentConfig(
    crop_scale=(1.0, 1.0),
    crop_ratio=(1.0, 1.0),
    mirror=0,
    brightness=0,
    contrast=0,
    saturation=0,
    hue=0,
    gray=0,
    blur=0,
)


def make_batch(
    image: UInt8[Tensor, "b h w 3"],
    disparity: Float[Tensor, "b h w"],
    features: dict[str, Tensor],
    *,
    size_px: int,
    config: AugmentConfig,
    generator: torch.Generator,
) -> Batch:
    """Cut, mirror, turn and resample stored views to `size_px`, then color the student's image.

    Mirrored samples get feature weight 0: a ViT's features of a mirrored photo are not its features mirrored (cosine
    0.7 to 0.84, measured). Crops, scales and small rotations are replayed by interpolation.
    """
    count = image.shape[0]
    matrix, mirrored = sample_views(count, config, generator)
    matrix = matrix.to(image.device)
    pixels = image.permute(0, 3, 1, 2).to(torch.float32) / 255
    depth = disparity.to(torch.float32).unsqueeze(1)
    grid = _grid(matrix, size_px)
    inside = (grid.abs() <= 1).all(dim=-1)
    warped = functional.grid_sample(torch.cat([pixels, depth], dim=1), grid, padding_mode="border", align_corners=False)
    feature_grid = _grid(matrix, max(1, size_px // 16))
    return Batch(
        image=_color(warped[:, :3].clamp(0, 1), config, generator),
        disparity=warped[:, 3],
        valid=inside,
        features={
            tap: functional.grid_sample(
                value.to(torch.float32), feature_grid, padding_mode="border", align_corners=False
            )
            for tap, value in features.items()
        },
        feature_weight=(~mirrored).to(image.device, torch.float32),
    )


def sample_views(
    count: int, config: AugmentConfig, generator: torch.Generator
) -> tuple[Float[Tensor, "b 2 3"], Bool[Tensor, " b"]]:
    """Draw affine maps from output to view coordinates, both in [-1, 1], and which of them mirror."""

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
    return torch.stack([first, second], dim=1), mirrored


def _grid(matrix: Float[Tensor, "b 2 3"], side: int) -> Float[Tensor, "b s s 2"]:
    return functional.affine_grid(matrix, [matrix.shape[0], 1, side, side], align_corners=False)


def _color(image: Float[Tensor, "b 3 s s"], config: AugmentConfig, generator: torch.Generator) -> Tensor:
    draws = torch.rand(image.shape[0], 6, generator=generator).tolist()
    return torch.stack([_color_one(one, config, draw) for one, draw in zip(image, draws, strict=True)])


def _color_one(image: Float[Tensor, "3 s s"], config: AugmentConfig, draw: list[float]) -> Tensor:
    steps = ((config.brightness, color.adjust_brightness), (config.contrast, color.adjust_contrast))
    for (strength, adjust), where in zip((*steps, (config.saturation, color.adjust_saturation)), draw, strict=False):
        if strength > 0:
            image = adjust(image, 1 + strength * (2 * where - 1))
    if config.hue > 0:
        image = color.adjust_hue(image, config.hue * (2 * draw[3] - 1))
    if draw[4] < config.gray:
        image = color.rgb_to_grayscale(image, num_output_channels=3)
    if draw[5] < config.blur:
        image = color.gaussian_blur(image, [5, 5], [1.2])
    return image
