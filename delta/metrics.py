"""How far a student agrees with its teacher when an affine map of disparity is forgiven; needs no ground truth.

Everything is computed on the CPU in float64, so that a number does not depend on the device it was measured on. What
lies under a mask is never read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from delta.config import Config
from delta.errors import DeltaError
from delta.truth import CONSTANT_VARIANCE, DELTA_RATIO, FLOOR_SHARE

# Images compared at a time: float64 and its temporaries take some 100 bytes a pixel.
SLICE = 8


class Agreement(Config, frozen=True, kw_only=True):
    """Agreement with the teacher: means over the `n` images that have pixels to compare."""

    pearson_r: float
    delta1: float
    abs_rel: float
    n: int


@dataclass(frozen=True, kw_only=True)
class ImageAgreement:
    """One value for each image; NaN where `pixels`, the number compared, is 0."""

    pearson_r: Float[Tensor, " b"]
    delta1: Float[Tensor, " b"]
    abs_rel: Float[Tensor, " b"]
    pixels: Int[Tensor, " b"]


def align(
    prediction: Float[Tensor, "b h w"], target: Float[Tensor, "b h w"], valid: Bool[Tensor, "b h w"] | None = None
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Fit scale and shift for each image, so that scale * prediction + shift is nearest to target in least squares.

    A constant prediction gets scale 0 and the target's mean, an image without valid pixels 0 and 0; an inverted
    prediction gets a negative scale.
    """
    return _fit(_moments(*_in_float64(prediction, target, valid)))


def agreement(
    student: Float[Tensor, "b h w"], teacher: Float[Tensor, "b h w"], valid: Bool[Tensor, "b h w"] | None = None
) -> Agreement:
    """Average over the images what `agreement_per_image` finds."""
    counted = torch.ones_like(teacher, dtype=torch.bool) if valid is None else valid
    slices = zip(student.split(SLICE), teacher.split(SLICE), counted.split(SLICE), strict=True)
    return mean_agreement([agreement_per_image(*maps) for maps in slices])


def agreement_per_image(
    student: Float[Tensor, "b h w"], teacher: Float[Tensor, "b h w"], valid: Bool[Tensor, "b h w"] | None = None
) -> ImageAgreement:
    """Compare disparities after aligning each image of the student to the teacher's.

    Counted are the valid pixels where the teacher exceeds 1 % of the image's maximum; the aligned student is clipped
    from below at that floor. delta1 is the share of pixels with max(a/t, t/a) < 1.25 and AbsRel the mean of
    |a - t| / t; Pearson's r is that of the unaligned maps, and 0 where either is constant.
    """
    student, teacher, counted = _in_float64(student, teacher, valid)
    floor = FLOOR_SHARE * teacher.amax(dim=(1, 2)).clamp(min=0)[:, None, None]
    student, teacher, counted = _in_float64(student, teacher, (counted > 0) & (teacher > floor))
    moments = _moments(student, teacher, counted)
    scale, shift = _fit(moments)
    aligned = (scale[:, None, None] * student + shift[:, None, None]).maximum(floor)
    divisor = teacher.where(counted > 0, 1)
    error = (aligned - teacher).abs() / divisor
    near = torch.maximum(aligned / divisor, divisor / aligned) < DELTA_RATIO
    pixels = counted.sum(dim=(1, 2))
    return ImageAgreement(
        pearson_r=_correlation(moments).where(pixels > 0, torch.nan),
        delta1=(near * counted).sum(dim=(1, 2)) / pixels,
        abs_rel=(error * counted).sum(dim=(1, 2)) / pixels,
        pixels=pixels.long(),
    )


def mean_agreement(parts: Sequence[ImageAgreement]) -> Agreement:
    """Average over the images of all parts; images without a pixel to compare are left out of `n`."""
    pixels = torch.cat([part.pixels for part in parts])
    used = pixels > 0
    if not used.any():
        raise DeltaError(
            f"none of {len(pixels)} images has a pixel to compare",
            hint="the teacher's disparity is nowhere positive where the mask is valid: check the cache and the mask",
        )
    return Agreement(
        pearson_r=float(torch.cat([part.pearson_r for part in parts])[used].mean()),
        delta1=float(torch.cat([part.delta1 for part in parts])[used].mean()),
        abs_rel=float(torch.cat([part.abs_rel for part in parts])[used].mean()),
        n=int(used.sum()),
    )


@dataclass(frozen=True, kw_only=True)
class _Moments:
    """Means, variances and covariance of each image's counted pixels; a variance that is only rounding is 0."""

    x_mean: Tensor
    y_mean: Tensor
    x_variance: Tensor
    y_variance: Tensor
    covariance: Tensor


def _in_float64(x: Tensor, y: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Bring two maps to the CPU, zero under the mask, and the mask as 0 and 1."""
    x, y = (z.detach().cpu().double() for z in (x, y))
    if valid is None:
        return x, y, torch.ones_like(x)
    valid = valid.cpu()
    return x.where(valid, 0), y.where(valid, 0), valid.double()


def _moments(x: Tensor, y: Tensor, counted: Tensor) -> _Moments:
    count = counted.sum(dim=(1, 2)).clamp(min=1)
    x_mean, y_mean = x.sum(dim=(1, 2)) / count, y.sum(dim=(1, 2)) / count
    x_centered, y_centered = (x - x_mean[:, None, None]) * counted, (y - y_mean[:, None, None]) * counted
    x_variance, y_variance = x_centered.square().sum(dim=(1, 2)) / count, y_centered.square().sum(dim=(1, 2)) / count
    return _Moments(
        x_mean=x_mean,
        y_mean=y_mean,
        x_variance=x_variance.where(x_variance > CONSTANT_VARIANCE * x_mean.square(), 0),
        y_variance=y_variance.where(y_variance > CONSTANT_VARIANCE * y_mean.square(), 0),
        covariance=(x_centered * y_centered).sum(dim=(1, 2)) / count,
    )


def _fit(moments: _Moments) -> tuple[Tensor, Tensor]:
    varies = moments.x_variance > 0
    scale = (moments.covariance / moments.x_variance.where(varies, 1)).where(varies, 0)
    return scale, moments.y_mean - scale * moments.x_mean


def _correlation(moments: _Moments) -> Float[Tensor, " b"]:
    spread = (moments.x_variance * moments.y_variance).sqrt()
    return (moments.covariance / spread.where(spread > 0, 1)).where(spread > 0, 0).clamp(-1, 1)
