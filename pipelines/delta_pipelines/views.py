"""Photos on their way to the teacher: listed, decoded ahead, cut to the view the store keeps."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from delta import images
from delta.config import Config
from delta.errors import DeltaError, UnreadablePhoto
from delta_cache.schema import VIEW_COLUMNS, Contract, Photo, SampleRecord


class DecodedPhoto(Config, frozen=True, kw_only=True):
    """One photo as the teacher will see it; a zero image where `record.failure` says why there is none."""

    record: SampleRecord
    image: np.ndarray
    view: np.ndarray


def list_photos(folder: Path, root: Path) -> list[Photo]:
    """List the photos of a folder with their sizes, by paths relative to `root`.

    Raises:
        DeltaError: none there, or a file name that no other machine could read.
    """
    found = images.find_photos(folder)
    return [Photo(path=_portable_name(path.relative_to(root)), bytes=_size(path)) for path in found]


def center_square(width_px: int, height_px: int) -> tuple[float, float, float, float]:
    """The plain view: the largest centered square as left, top, width, height in source pixels."""
    side = min(width_px, height_px)
    return (width_px - side) / 2, (height_px - side) / 2, side, side


def decode_ahead(
    chunks: list[int], contract: Contract, photos: list[Photo], root: Path
) -> Iterator[tuple[int, list[DecodedPhoto]]]:
    """Decode one chunk ahead of the one in the teacher's hands."""
    side = contract.recipe["size_px"]
    with ThreadPoolExecutor(thread_name_prefix="decode") as pool:

        def start(chunk: int) -> Iterator[DecodedPhoto]:
            return pool.map(lambda index: _decode(root, photos[index], side), contract.chunk_range(chunk))

        ahead = start(chunks[0]) if chunks else iter(())
        for chunk, following in zip(chunks, [*chunks[1:], None], strict=False):  # none at all where nothing is pending
            decoded = list(ahead)
            if following is not None:
                ahead = start(following)
            yield chunk, decoded


def _decode(root: Path, photo: Photo, side: int) -> DecodedPhoto:
    path = root / photo.path
    digest, failure = "", ""
    pixels, view = np.zeros((side, side, 3), np.uint8), np.zeros(len(VIEW_COLUMNS), np.float32)
    try:
        digest = _digest(path)
        source = images.read_photo(path)
        height, width = source.shape[:2]
        box = center_square(width, height)
        pixels = images.resize_box(source, box, side)
        view = np.array([*box, width, height, 0], np.float32)
    except UnreadablePhoto as error:
        failure = str(error)
    except OSError as error:
        failure = f"it cannot be read: {error.strerror or error}"
    return DecodedPhoto(record=SampleRecord(path=photo.path, sha256=digest, failure=failure), image=pixels, view=view)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
