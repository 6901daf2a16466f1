"""Photos on their way to the teacher: listed, read, cut to the view the store keeps."""

import hashlib
import io
import math
from pathlib import Path

import numpy as np

from delta import images
from delta.config import Config
from delta.errors import DeltaError, UnreadablePhoto
from delta_cache.codec import decode_jpeg, encode_jpeg
from delta_cache.schema import VIEW_COLUMNS, Photo, SampleRecord
from delta_cache.storage import LocalStorage, Storage, open_storage
from delta_pipelines.cache_recipe import CacheRecipe, ViewsRecipe


class View(Config, frozen=True, kw_only=True):
    """A box of the upright source photo, in pixels, resized to a square and perhaps mirrored."""

    left: float
    top: float
    width: float
    height: float
    mirrored: bool = False


class DecodedPhoto(Config, frozen=True, kw_only=True):
    """One sample as the teacher will see it; a zero image where `record.failure` says why there is none.

    `jpeg` is the file that `image` was decoded from, where the recipe keeps JPEG.
    """

    record: SampleRecord
    image: np.ndarray
    jpeg: bytes
    view: np.ndarray


def open_photos(url: str | Path) -> Storage:
    """Open the folder that photo paths are relative to; that of a single photo is the one it lies in."""
    storage = open_storage(url)
    if isinstance(storage, LocalStorage) and storage.root.is_file():
        return LocalStorage(storage.root.parent)
    return storage


def list_photos(url: str | Path) -> list[Photo]:
    """List the photos of a folder or URL with their sizes, by relative paths.

    Raises:
        DeltaError: none there, or a file name that no other machine could read.
    """
    storage = open_photos(url)
    if isinstance(storage, LocalStorage):
        found = images.find_photos(open_storage(url).root)  # pyright: ignore[reportAttributeAccessIssue]
        return [Photo(path=_portable_name(path.relative_to(storage.root)), bytes=_size(path)) for path in found]
    sizes = storage.sizes()
    photos = [Photo(path=n, bytes=size) for n, size in sorted(sizes.items()) if n.lower().endswith(images.SUFFIXES)]
    if not photos:
        raise DeltaError(f"no photos at {url}", f"name a place that holds {', '.join(images.SUFFIXES)} files")
    return photos


def choose_view(name: str, path: str, width_px: int, height_px: int, recipe: ViewsRecipe, seed: int) -> View:
    """Work out a view of a photo; random ones are a function of the seed, the photo's path and the view's name.

    "plain" is the largest centered square. A crop is torchvision's RandomResizedCrop: a share of the area at an aspect
    ratio (log-uniform), mirrored half of the time.
    """
    side = min(width_px, height_px)
    if name in ("plain", "mirrored"):
        left, top = (width_px - side) / 2, (height_px - side) / 2
        return View(left=left, top=top, width=side, height=side, mirrored=name == "mirrored")
    digest = hashlib.sha256(f"{seed}:{name}:{path}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    area = width_px * height_px * generator.uniform(*recipe.crop_scale)
    ratio = math.exp(generator.uniform(math.log(recipe.crop_ratio[0]), math.log(recipe.crop_ratio[1])))
    width, height = min(math.sqrt(area * ratio), width_px), min(math.sqrt(area / ratio), height_px)
    left, top = generator.uniform(0, width_px - width), generator.uniform(0, height_px - height)
    return View(left=left, top=top, width=width, height=height, mirrored=bool(generator.random() < 0.5))


def cut_view(source: np.ndarray, view: View, side_px: int) -> np.ndarray:
    """Cut a view out of an upright photo u8 (h, w, 3) and resize it to u8 (side, side, 3)."""
    pixels = images.resize_box(source, (view.left, view.top, view.width, view.height), side_px)
    return np.ascontiguousarray(pixels[:, ::-1]) if view.mirrored else pixels


def decode_view(storage: Storage, photo: Photo, name: str, recipe: CacheRecipe, side_px: int) -> DecodedPhoto:
    """Read a photo and cut one of its views; what is wrong with it becomes the record's failure."""
    digest, failure, jpeg = "", "", b""
    pixels, row = np.zeros((side_px, side_px, 3), np.uint8), np.zeros(len(VIEW_COLUMNS), np.float32)
    try:
        content = storage.read(photo.path)
        digest = hashlib.sha256(content).hexdigest()
        source = images.read_photo(io.BytesIO(content))
        height, width = source.shape[:2]
        view = choose_view(name, photo.path, width, height, recipe.views, recipe.seed)
        pixels = cut_view(source, view, side_px)
        row = np.array([view.left, view.top, view.width, view.height, width, height, view.mirrored], np.float32)
        if recipe.image.kind == "jpeg":
            jpeg = encode_jpeg(pixels, recipe.image.quality, jpeg_limit(side_px))
            pixels = decode_jpeg(jpeg)
    except UnreadablePhoto as error:
        failure = str(error)
    except OSError as error:
        failure = f"it cannot be read: {error.strerror or error}"
    record = SampleRecord(path=photo.path, sha256=digest, failure=failure)
    return DecodedPhoto(record=record, image=pixels, jpeg=jpeg, view=row)


def jpeg_limit(side_px: int) -> int:
    """Bytes a JPEG row has: one a pixel, twice what a busy photo needs at quality 95."""
    return side_px * side_px


def _portable_name(path: Path) -> str:
    name = path.as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DeltaError(f"the file name {name!a} is not UTF-8", "rename that file") from None
    return name


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a link that leads nowhere: why it is left out is recorded when it is read
        return 0
