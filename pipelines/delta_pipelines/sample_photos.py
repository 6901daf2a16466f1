"""Some photos of a folder or of a store, evenly spread, for calibration and comparison."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from delta import images
from delta.config import Config
from delta.errors import DeltaError, UnreadablePhoto
from delta.truth import read_depth_png


class PhotoSample(Config, frozen=True, kw_only=True):
    """Names and u8 pixels (height, width, 3) of photos, measured depth [m] where asked for, and who was left out."""

    names: tuple[str, ...]
    images: tuple[np.ndarray, ...]
    depths_m: tuple[np.ndarray, ...] = ()
    left_out: tuple[str, ...] = ()


def sample_photos(source: Path, count: int, truth: Path | None = None) -> PhotoSample:
    """Read up to `count` photos of a folder (or of a store), passing over those that cannot be read.

    Args:
        truth: folder of 16-bit PNGs in millimetres, named as the photos are, in the same folders below.

    Raises:
        DeltaError: no photo can be read, or one has no depth map.
    """
    if (source / "zarr.json").is_file():
        if truth:
            raise DeltaError(f"{source} is a store: measured depth goes with a folder of photos", "name that folder")
        return _sample_store(source, count)
    found = images.find_photos(source)
    root = source if source.is_dir() else source.parent
    names, pixels, left_out = [], [], []
    for photo in spread(found, count):
        try:
            pixels.append(images.read_photo(photo))
        except UnreadablePhoto as error:
            left_out.append(f"{photo}: {error}")
            continue
        names.append(photo.relative_to(root).as_posix())
        if len(names) == count:
            break
    if not names:
        raise DeltaError(f"no photo at {source} can be used; {left_out[0]}", "name a folder with readable photos")
    depths_m = [read_depth_png((truth / name).with_suffix(".png")) for name in names] if truth else []
    return PhotoSample(names=tuple(names), images=tuple(pixels), depths_m=tuple(depths_m), left_out=tuple(left_out))


def _sample_store(source: Path, count: int) -> PhotoSample:
    """Read the photos of a store as it keeps them; the one place where export touches the store's reader."""
    from delta_cache.reader import Store
    from delta_cache.schema import Status
    from delta_pipelines.feed import read_samples

    store = Store.open(source)
    samples = np.sort(spread(np.flatnonzero(store.status() == Status.OK).tolist(), count)[:count])
    if not len(samples):
        raise DeltaError(f"{source} holds no photo yet", f"`delta cache build … {source}` goes on with it")
    pixels: UInt8[np.ndarray, "n h w 3"] = read_samples(store, samples, ["image"])["image"]
    return PhotoSample(names=tuple(store.photos[i].path for i in samples), images=tuple(pixels))


def to_pixels(photos: Sequence[np.ndarray], size_px: tuple[int, int]) -> list[Float32[np.ndarray, "3 h w"]]:
    """Resize photos and lay them out as a graph takes them."""
    return [images.to_tensor_layout(images.resize(photo, *size_px)) for photo in photos]


def spread(items: list, count: int) -> list:
    """Order items so that the first `count` are spread evenly; the others follow, to stand in for unreadable ones."""
    if len(items) <= count:
        return list(items)
    chosen = np.unique(np.linspace(0, len(items) - 1, count).round().astype(int))
    taken = set(chosen.tolist())
    return [items[i] for i in chosen] + [item for index, item in enumerate(items) if index not in taken]
