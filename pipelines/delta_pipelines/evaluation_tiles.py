"""The pictures of an evaluation's panel: photo, what is right, what a model says, and where it is wrong."""

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFilter

from delta.colormaps import INVALID_RGB, colorize
from delta.predict import normalize_for_display

ERROR_SHOWN = 0.5  # relative errors from here on have the brightest color
SPARSE, POINT_PX = 0.25, 5  # below this share of pixels a point of LiDAR is drawn this large
RIGHT, WRONG = (46, 160, 67), (218, 54, 51)

Picture = UInt8[np.ndarray, "h w 3"]
Map = Float[np.ndarray, "h w"]


def depth_tiles(photo: Picture, z: Map, depth_m: Map, counted: Bool[np.ndarray, "h w"]) -> list[Picture]:
    """Photo, measured and predicted depth in the truth's colors (red is near), and the relative error.

    Gray is what does not count; where depth is sparse, its points are drawn larger than they are.
    """
    measured = np.where(counted, depth_m, np.nan)
    near, far = np.nanpercentile(measured, [1, 99]).astype(float)
    error = np.abs(z - measured) / measured
    shown, error = (_thickened(each) if counted.mean() < SPARSE else each for each in (1 / measured, error))
    colored = [colorize(each.astype(np.float32), "spectral", vmin=1 / far, vmax=1 / near) for each in (shown, 1 / z)]
    return [photo, *colored, error_tile(error)]


def disparity_tiles(photo: Picture, aligned: Map, teacher: Map) -> list[Picture]:
    """Photo, the teacher's and the aligned student's disparity in the teacher's colors, and the relative error."""
    low, high = np.percentile(teacher, [1, 99]).astype(float)
    colored = [colorize(each.astype(np.float32), "spectral", vmin=low, vmax=high) for each in (teacher, aligned)]
    return [photo, *colored, error_tile(np.abs(aligned - teacher) / np.where(teacher > 0, teacher, np.nan))]


def points_tiles(
    photo: Picture, disparity: Map, points: list[tuple[tuple[int, int], tuple[int, int], bool]]
) -> list[Picture]:
    """Photo with lines from the nearer to the farther point, green where the order is right, and the disparity."""
    picture = Image.fromarray(photo)
    draw, radius = ImageDraw.Draw(picture), max(3, round(max(photo.shape[:2]) / 120))
    for near, far, right in points:
        color = RIGHT if right else WRONG
        ends = [(float(column), float(row)) for row, column in (near, far)]
        draw.line(ends, fill=color, width=max(1, radius // 2))
        draw.circle(ends[0], radius, fill=color)
        draw.circle(ends[1], radius, outline=color, width=max(1, radius // 3))
    shown = normalize_for_display(disparity.astype(np.float32))
    return [np.asarray(picture), colorize(shown, "spectral", vmin=0.0, vmax=1.0)]


def error_tile(error: Map) -> Picture:
    """Color a relative error from dark (none) to bright (half or more); gray is what does not count."""
    colors = colorize(np.nan_to_num(error).astype(np.float32), "inferno", vmin=0.0, vmax=ERROR_SHOWN)
    return np.where(np.isfinite(error)[..., None], colors, np.array(INVALID_RGB, np.uint8))


def _thickened(values: Map) -> Map:
    """Spread each known value, all of them at least 0, over its neighbors; the largest wins."""
    known = np.where(np.isfinite(values), values, -1).astype(np.float32)
    spread = np.asarray(Image.fromarray(known).filter(ImageFilter.MaxFilter(POINT_PX)))
    return np.where(spread >= 0, spread, np.nan)
