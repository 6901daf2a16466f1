"""The pictures of an evaluation's panel: photo, what is right, what a model says, and where it is wrong."""

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw

from delta.colormaps import INVALID_RGB, colorize
from delta.predict import normalize_for_display

ERROR_SHOWN = 0.5  # relative errors from here on have the brightest color
RIGHT, WRONG = (46, 160, 67), (218, 54, 51)

Picture = UInt8[np.ndarray, "h w 3"]
Map = Float[np.ndarray, "h w"]


def depth_tiles(photo: Picture, z: Map, depth_m: Map, counted: Bool[np.ndarray, "h w"]) -> list[Picture]:
    """Photo, measured and predicted depth in the truth's colors (red is near), and the relative error.

    Gray is what does not count.
    """
    measured = np.where(counted, depth_m, np.nan)
    near, far = np.nanpercentile(measured, [1, 99]).astype(float)
    inverse = [(1 / np.where(counted, each, np.nan)).astype(np.float32) for each in (depth_m, z)]
    colored = [colorize(each, "spectral", vmin=1 / far, vmax=1 / near) for each in inverse]
    return [photo, *colored, error_tile(np.abs(z - measured) / measured)]


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
