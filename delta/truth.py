"""A disparity against measured depth: scale and shift are fitted for each image, then errors are taken in metres."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from PIL import Image

from delta.config import Config
from delta.errors import DeltaError

NEAREST_M, FARTHEST_M = 1e-3, 10.0  # the range of the NYUv2 protocol; depth beyond it is not counted
DELTA1_RATIO = 1.25


class DepthScore(Config, frozen=True, kw_only=True):
    """Mean |z - gt| / gt, and the share of pixels with max(z/gt, gt/z) < 1.25."""

    abs_rel: float
    delta1: float


def score_depth(disparity: Float32[np.ndarray, "_ _"], depth_m: Float32[np.ndarray, "h w"]) -> DepthScore:
    """Score a disparity of any size against `depth_m` [m], 0 where it was not measured.

    The disparity is resized bilinearly, fitted to 1 / depth by least squares in float64 on the measured pixels, and
    inverted: z = clip(1 / max(fitted, 1 / FARTHEST_M), NEAREST_M, FARTHEST_M), as Depth Anything's evaluation does.

    Raises:
        DeltaError: fewer than two pixels were measured.
    """
    valid = (depth_m > NEAREST_M) & (depth_m < FARTHEST_M)
    if valid.sum() < 2:
        raise DeltaError("a depth map has no pixel to compare", f"depth counts between {NEAREST_M} and {FARTHEST_M} m")
    height, width = depth_m.shape
    resized = np.asarray(Image.fromarray(disparity).resize((width, height), Image.Resampling.BILINEAR))
    predicted, truth = resized[valid].astype(np.float64), depth_m[valid].astype(np.float64)
    columns = np.stack([predicted, np.ones_like(predicted)], axis=1)
    fitted = columns @ np.linalg.lstsq(columns, 1 / truth, rcond=None)[0]
    z = np.clip(1 / np.maximum(fitted, 1 / FARTHEST_M), NEAREST_M, FARTHEST_M)
    ratio = np.maximum(z / truth, truth / z)
    return DepthScore(abs_rel=float((np.abs(z - truth) / truth).mean()), delta1=float((ratio < DELTA1_RATIO).mean()))


def mean_score(scores: Sequence[DepthScore]) -> DepthScore:
    """Average over images."""
    return DepthScore(
        abs_rel=float(np.mean([score.abs_rel for score in scores])),
        delta1=float(np.mean([score.delta1 for score in scores])),
    )


def read_depth_png(path: Path) -> Float32[np.ndarray, "h w"]:
    """Read a 16-bit PNG of millimetres as metres.

    Raises:
        DeltaError: missing, not an image, or not of 16 bits.
    """
    try:
        with Image.open(path) as image:
            if not image.mode.startswith("I"):
                raise DeltaError(f"{path} is no depth map: its pixels are {image.mode}", "depth is 16-bit PNG in mm")
            return np.asarray(image, dtype=np.float32) / np.float32(1000)
    except OSError as error:
        raise DeltaError(f"there is no depth map {path}: {error}", "depth is 16-bit PNG in mm") from None
