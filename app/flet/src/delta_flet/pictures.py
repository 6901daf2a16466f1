"""Disparities as pictures: fast enough for live frames, exact for files. Knows no Flet."""

import io
import struct
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from delta import bundled
from delta.colormaps import color_table, colorize
from delta.predict import normalize_for_display, save_disparity_png16

SCREEN_PX = 1280  # the longer side of what is sent to be looked at; files keep the photo's own size
SAMPLES = 4  # more would only make a phone's app larger
THUMBNAIL_PX = 112  # twice the 56 that it is drawn at, for dense screens


def sample_photos() -> list[Path]:
    """List the photos of Delta's own that the welcome offers."""
    paths = sorted(bundled.PHOTOS.glob("*.jpg"))
    return paths[:: max(1, len(paths) // SAMPLES)][:SAMPLES]


@cache
def bmp_head(colormap: str, width_px: int, height_px: int) -> bytes:
    """Write what stands before the pixels of an 8-bit BMP: sizes and the colormap as its palette.

    After Microsoft's BITMAPFILEHEADER and BITMAPINFOHEADER; a negative height is a picture from the top down.

    Raises:
        DeltaError: there is no colormap of that name.
    """
    palette = np.zeros((256, 4), dtype=np.uint8)
    palette[:, :3] = color_table(colormap)[:, ::-1]
    start, size = 14 + 40 + palette.nbytes, width_px * height_px
    file_header = struct.pack("<2sIHHI", b"BM", start + size, 0, 0, start)
    info_header = struct.pack("<IiiHHIIiiII", 40, width_px, -height_px, 1, 8, 0, size, 0, 0, 256, 0)
    return file_header + info_header + palette.tobytes()


def paint(disparity: Float32[np.ndarray, "h w"], colormap: str, low: float, high: float) -> bytes:
    """Paint a live frame: one byte a pixel behind a palette, `low` and below in the first color, `high` and above last.

    No color is computed and nothing compressed, so it costs some passes over a small map, and a quarter of what flat
    RGBA weighs. At most one of 256 levels away from `delta.colormaps.colorize`, which works in float64; what is not
    finite is painted as `low`.
    """
    height, width = disparity.shape
    levels = np.nan_to_num(disparity, nan=low, posinf=low, neginf=low)
    levels -= np.float32(low)
    levels *= np.float32(255 / (high - low) if high > low else 0)
    levels += np.float32(0.5 if high > low else 128)
    rows = np.zeros((height, -width % 4 + width), dtype=np.uint8)  # a row is padded to four bytes
    rows[:, :width] = np.clip(levels, 0, 255, out=levels)
    return bmp_head(colormap, width, height) + rows.tobytes()


def colors_of(disparity: Float32[np.ndarray, "h w"], colormap: str) -> UInt8[np.ndarray, "h w 3"]:
    """Paint a photo's map as `delta predict` does: between its 2nd and 98th percentile."""
    return colorize(normalize_for_display(disparity), colormap, vmin=0.0, vmax=1.0)


def for_screen(photo: UInt8[np.ndarray, "h w 3"]) -> Image.Image:
    """Scale a picture down to what a screen shows."""
    picture = Image.fromarray(photo)
    picture.thumbnail((SCREEN_PX, SCREEN_PX), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return picture


def depth_for_screen(disparity: Float32[np.ndarray, "h w"], colormap: str) -> Image.Image:
    """Scale a map down to what a screen shows, then paint it."""
    share = SCREEN_PX / max(disparity.shape)
    if share < 1:
        height, width = disparity.shape
        size = (max(1, round(width * share)), max(1, round(height * share)))
        disparity = np.asarray(Image.fromarray(disparity).resize(size, Image.Resampling.BOX))
    return Image.fromarray(colors_of(disparity, colormap))


def as_rgba(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Turn RGB pixels into flat RGBA8888, fully opaque."""
    return Image.fromarray(pixels).convert("RGBA").tobytes()


def thumbnail(photo: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Make the small square JPEG that stands for a photo in the strip."""
    height, width = photo.shape[:2]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    square = Image.fromarray(photo).resize((THUMBNAIL_PX, THUMBNAIL_PX), box=(left, top, left + side, top + side))
    return _encoded(square, "JPEG")


def depth_png(disparity: Float32[np.ndarray, "h w"], colormap: str) -> bytes:
    """Encode the colored depth at the photo's own size."""
    return _encoded(Image.fromarray(colors_of(disparity, colormap)), "PNG")


def depth_png16(disparity: Float32[np.ndarray, "h w"]) -> bytes:
    """Encode the disparity as 16-bit gray with its two ends inside, as `delta predict --png16` does.

    Raises:
        DeltaError: the map holds NaN or infinity.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "disparity.png"
        save_disparity_png16(path, disparity)
        return path.read_bytes()


def side_by_side_png(photo: UInt8[np.ndarray, "h w 3"], disparity: Float32[np.ndarray, "h w"], colormap: str) -> bytes:
    """Encode the photo and its colored depth beside each other."""
    return _encoded(Image.fromarray(np.hstack([photo, colors_of(disparity, colormap)])), "PNG")


def gradient_png(colormap: str, height_px: int = 8) -> bytes:
    """Draw a colormap as a strip, far on the left."""
    return _encoded(Image.fromarray(np.broadcast_to(color_table(colormap), (height_px, 256, 3)).copy()), "PNG")


def _encoded(picture: Image.Image, file_format: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=file_format)
    return buffer.getvalue()
