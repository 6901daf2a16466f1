"""A disparity against measured depth: aligned for each image, then errors are taken in metres; all in float64."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from jaxtyping import Bool, Float, Float32, Float64
from PIL import Image

from delta.config import Config
from delta.errors import DeltaError
from delta.images import resize_disparity

NEAREST_M, FARTHEST_M = 1e-3, 10.0  # the range of the NYUv2 protocol; depth beyond it is not counted
DELTA_RATIO = 1.25  # delta1 is the share of pixels within it, delta2 and delta3 within its square and cube
FLOOR_SHARE = 0.01  # of an image's largest disparity: below it, as in the sky, a ratio or an inverse means nothing
CONSTANT_VARIANCE = 1e-24  # a map's variance beside its mean square that is only rounding, in float64

Alignment = Literal["affine_disparity", "median_scale", "least_squares_depth"]
ALIGNMENTS: tuple[Alignment, ...] = ("affine_disparity", "median_scale", "least_squares_depth")


class DepthScore(Config, frozen=True, kw_only=True):
    """Errors of one image, as Eigen et al. (2014) define them: z the prediction, gt the truth [m], g = ln z - ln gt.

    `abs_rel` mean |z - gt| / gt, `sq_rel` mean (z - gt)^2 / gt [m], `rmse` [m], `rmse_log` root mean square of g,
    `log10` mean |log10 z - log10 gt|, `silog` 100 sqrt(mean g^2 - (mean g)^2), `delta1` to `delta3` the share of pixels
    with max(z/gt, gt/z) < 1.25, 1.25^2, 1.25^3.
    """

    abs_rel: float
    sq_rel: float
    rmse: float
    rmse_log: float
    log10: float
    silog: float
    delta1: float
    delta2: float
    delta3: float


def score_depth(disparity: Float32[np.ndarray, "_ _"], depth_m: Float32[np.ndarray, "h w"]) -> DepthScore:
    """Score a disparity of any size against `depth_m` [m], 0 where it was not measured, over the whole image.

    The disparity is resized bilinearly and aligned by `fit_depth`; depth counts between `NEAREST_M` and `FARTHEST_M`.

    Raises:
        DeltaError: fewer than two pixels were measured.
    """
    counted = (depth_m > NEAREST_M) & (depth_m < FARTHEST_M)
    if counted.sum() < 2:
        raise DeltaError("a depth map has no pixel to compare", f"depth counts between {NEAREST_M} and {FARTHEST_M} m")
    z = fit_depth(resize_disparity(disparity, *depth_m.shape), depth_m, counted)
    return depth_errors(z[counted], depth_m[counted].astype(np.float64))


def fit_depth(
    disparity: Float[np.ndarray, "h w"],
    depth_m: Float[np.ndarray, "h w"],
    counted: Bool[np.ndarray, "h w"],
    *,
    alignment: Alignment = "affine_disparity",
    nearest_m: float = NEAREST_M,
    farthest_m: float = FARTHEST_M,
) -> Float64[np.ndarray, "h w"]:
    """Turn a disparity into depth z [m] by what its counted pixels have in common with the truth.

    - "affine_disparity": scale and shift of the disparity nearest to 1 / gt in least squares, then
      z = clip(1 / max(aligned, 1 / farthest), nearest, farthest); the protocol of MiDaS and Depth Anything.
    - "median_scale": the scale alone, by the ratio of medians, then as above. A disparity whose median is not positive
      has no scale and is taken for infinitely far.
    - "least_squares_depth": scale and shift of 1 / disparity nearest to gt in least squares, then clipped.
    """
    wide, truth = disparity.astype(np.float64), depth_m[counted].astype(np.float64)
    if alignment == "least_squares_depth":
        inverse = 1 / np.maximum(wide, max(FLOOR_SHARE * float(wide.max()), np.finfo(np.float32).tiny))
        scale, shift = fit_line(inverse[counted], truth)
        return np.clip(scale * inverse + shift, nearest_m, farthest_m)
    if alignment == "median_scale":
        middle = float(np.median(wide[counted]))
        scale, shift = (float(np.median(1 / truth)) / middle if middle > 0 else 0.0), 0.0
    else:
        scale, shift = fit_line(wide[counted], 1 / truth)
    return np.clip(1 / np.maximum(scale * wide + shift, 1 / farthest_m), nearest_m, farthest_m)


def fit_line(x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " n"]) -> tuple[float, float]:
    """Fit scale and shift, so that scale * x + shift is nearest to y in least squares; a constant x gets scale 0."""
    x_mean, y_mean = float(x.mean()), float(y.mean())
    centered = x - x_mean
    variance = float(centered @ centered) / len(x)
    if variance <= CONSTANT_VARIANCE * x_mean**2:
        return 0.0, y_mean
    scale = float(centered @ (y - y_mean)) / len(x) / variance
    return scale, y_mean - scale * x_mean


def depth_errors(z: Float64[np.ndarray, " n"], truth: Float64[np.ndarray, " n"]) -> DepthScore:
    """Measure the errors of positive depths [m], pixel by pixel; `DepthScore` has the formulas."""
    difference, g = z - truth, np.log(z / truth)
    ratio = np.exp(np.abs(g))
    return DepthScore(
        abs_rel=float((np.abs(difference) / truth).mean()),
        sq_rel=float((difference**2 / truth).mean()),
        rmse=float(np.sqrt((difference**2).mean())),
        rmse_log=float(np.sqrt((g**2).mean())),
        log10=float(np.abs(g).mean() / np.log(10)),
        silog=float(100 * g.std()),
        delta1=float((ratio < DELTA_RATIO).mean()),
        delta2=float((ratio < DELTA_RATIO**2).mean()),
        delta3=float((ratio < DELTA_RATIO**3).mean()),
    )


def mean_score(scores: Sequence[DepthScore]) -> DepthScore:
    """Average over images."""
    rows = [msgspec.structs.asdict(score) for score in scores]
    return DepthScore(**{name: float(np.mean([row[name] for row in rows])) for name in DepthScore.__struct_fields__})


def read_depth_png(path: Path, levels_per_m: float = 1000.0) -> Float32[np.ndarray, "h w"]:
    """Read a 16-bit PNG as metres; by default its levels are millimetres, and 0 is not measured.

    Raises:
        DeltaError: missing, not an image, or not of 16 bits.
    """
    try:
        with Image.open(path) as image:
            if not image.mode.startswith("I"):
                raise DeltaError(f"{path} is no depth map: its pixels are {image.mode}", "depth is 16-bit PNG in mm")
            return np.asarray(image, dtype=np.float32) / np.float32(levels_per_m)
    except (OSError, SyntaxError) as error:  # Pillow's word for a broken PNG is SyntaxError
        raise DeltaError(f"there is no depth map {path}: {error}", "depth is 16-bit PNG in mm") from None
