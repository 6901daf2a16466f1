"""Photos in: found, decoded, oriented, resized. One preprocessing for teacher, student, evaluation and app.

Knows numpy and Pillow only, so that prediction runs without torch.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import ExifTags, Image

from delta.errors import DeltaError, UnreadablePhoto

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MIN_SIDE_PX = 32  # one step of the encoder; below it there is no scene to see
MAX_MEGAPIXELS = 100  # a decoded photo of this size already takes 300 MB
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation -> what undoes it


def find_photos(path: Path) -> list[Path]:
    """List the photos at `path`, a file or a folder searched recursively, in a stable order.

    A link that leads nowhere is listed too: reading it says so, where leaving it out would lose a photo silently.

    Raises:
        DeltaError: `path` does not exist or holds no JPEG, PNG or WebP file.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DeltaError(f"there is no folder {path}", "name an existing folder of photos")
    photos = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and _is_listed(p))
    if not photos:
        raise DeltaError(
            f"no photos in {path}: looked for {', '.join(SUFFIXES)} there and below",
            "name a folder that holds JPEG, PNG or WebP files",
        )
    return photos


def read_photo(source: Path | BytesIO) -> UInt8[np.ndarray, "h w 3"]:
    """Decode a photo to RGB as a person would see it: EXIF orientation applied, first frame, no alpha.

    Raises:
        UnreadablePhoto: not an image, cut short, smaller than `MIN_SIDE_PX`, or above `MAX_MEGAPIXELS`.
    """
    try:
        with Image.open(source) as image:
            _require_usable_size(image)
            image.load()
            return np.asarray(_to_rgb(_upright(image)))
    except (UnreadablePhoto, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise UnreadablePhoto("it is not an image in a known format") from None
    except Image.DecompressionBombError:
        raise UnreadablePhoto(f"it is above {MAX_MEGAPIXELS} megapixels; scale it down first") from None
    except Exception as error:  # Pillow's parsers let out what they stumble on: OSError, SyntaxError, struct.error, ...
        raise UnreadablePhoto(f"it cannot be decoded: {error}") from error


def resize(image: UInt8[np.ndarray, "h w 3"], height_px: int, width_px: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Resize by antialiased bicubic, the teacher's own filter, without keeping the aspect ratio."""
    if image.shape[:2] == (height_px, width_px):
        return image
    return np.asarray(Image.fromarray(image).resize((width_px, height_px), Image.Resampling.BICUBIC))


def size_of_short_side(height_px: int, width_px: int, side_px: int, multiple: int) -> tuple[int, int]:
    """Work out (height, width) near the photo's aspect ratio: the short side `side_px`, both multiples of `multiple`.

    As Depth Anything evaluates (`resize_method="lower_bound"`, `ensure_multiple_of`): 480x640 is 518x686 at 518 px.
    transformers' DPTImageProcessor says the same of photos with a side near or above `side_px`, but scales a photo
    smaller than that by its long side.
    """
    scale = side_px / min(height_px, width_px)
    least = -(-side_px // multiple) * multiple
    height, width = (max(least, round(side * scale / multiple) * multiple) for side in (height_px, width_px))
    return height, width


def resize_box(
    image: UInt8[np.ndarray, "h w 3"], box: tuple[float, float, float, float], side_px: int
) -> UInt8[np.ndarray, "side side 3"]:
    """Cut `box` (left, top, width, height in pixels) out of a photo and resize it to a square."""
    left, top, width, height = box
    edges = (left, top, left + width, top + height)
    return np.asarray(Image.fromarray(image).resize((side_px, side_px), Image.Resampling.BICUBIC, box=edges))


def resize_disparity(
    disparity: Float32[np.ndarray, "h w"], height_px: int, width_px: int
) -> Float32[np.ndarray, "h2 w2"]:
    """Resize a disparity bilinearly; where it shrinks, antialiased."""
    if disparity.shape == (height_px, width_px):
        return disparity
    return np.asarray(Image.fromarray(disparity).resize((width_px, height_px), Image.Resampling.BILINEAR))


def to_tensor_layout(image: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "3 h w"]:
    """Convert u8 pixels to float32 in [0, 1], channels first."""
    return np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32) / np.float32(255)


def _is_listed(path: Path) -> bool:
    return path.is_file() or (path.is_symlink() and not path.exists())


def _require_usable_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_MEGAPIXELS * 1_000_000:
        raise UnreadablePhoto(f"it is {width}x{height} px, above {MAX_MEGAPIXELS} megapixels; scale it down first")
    if min(width, height) < MIN_SIDE_PX:
        raise UnreadablePhoto(f"it is {width}x{height} px, below {MIN_SIDE_PX} px on a side")


def _upright(image: Image.Image) -> Image.Image:
    """Undo the EXIF orientation; ImageOps.exif_transpose would also rewrite the EXIF, and fail where it is damaged."""
    method = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray: Pillow's own conversion would clip it at 255
        wide = np.asarray(image, dtype=np.int64).clip(0, 65535)
        image = Image.fromarray((wide >> 8).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:  # Pillow warns when the alpha is dropped at once
        image = image.convert("RGBA")
    return image.convert("RGB")
