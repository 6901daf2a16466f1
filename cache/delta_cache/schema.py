"""The on-disk format, version 1: contract, fingerprint, arrays, file names. The prose is in cache/README.md.

Knows plain data only, neither zarr nor files.
"""

import hashlib
import json
import random
from typing import Any, Literal

import msgspec

FORMAT, VERSION = "delta-cache", 1
VIEW_COLUMNS = ("left_px", "top_px", "width_px", "height_px", "source_width_px", "source_height_px", "mirrored")


class Status:
    """Values of the `status` array."""

    MISSING, OK, FAILED = 0, 1, 2


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class ArraySpec(_Record, frozen=True, kw_only=True):
    """One array of the store: `shape` is that of a sample; the first axis on disk counts samples."""

    name: str
    shape: tuple[int, ...]
    dtype: Literal["uint8", "float16", "float32"]


class Photo(_Record, frozen=True, kw_only=True):
    """One source photo: path relative to the photo folder with forward slashes, and its size on disk."""

    path: str
    bytes: int


class Contract(_Record, frozen=True, kw_only=True):
    """All that decides the cached numbers. Two stores of one fingerprint hold the same answers.

    `teacher` names weights and preprocessing, `recipe` the view and what is kept, `photos` the source list.
    """

    format: str = FORMAT
    version: int = VERSION
    teacher: dict[str, Any]
    recipe: dict[str, Any]
    photos: dict[str, Any]
    arrays: tuple[ArraySpec, ...]
    codec: dict[str, Any]
    chunk_samples: int
    samples: int

    @property
    def chunks(self) -> int:
        return -(-self.samples // self.chunk_samples)

    def chunk_range(self, chunk: int) -> range:
        """Sample numbers of one chunk; the last may be short."""
        first = chunk * self.chunk_samples
        return range(first, min(first + self.chunk_samples, self.samples))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the contract as canonical JSON, in hex."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()


class SampleRecord(_Record, frozen=True, kw_only=True):
    """What became of one photo: `failure` is empty for a cached one, else the reason it was left out."""

    path: str
    sha256: str
    failure: str = ""


class ChunkRecord(_Record, frozen=True, kw_only=True):
    """The ledger's entry for one chunk, written only after its data is on disk."""

    chunk: int
    files: dict[str, tuple[int, str]]
    samples: tuple[SampleRecord, ...]


def order_photos(photos: list[Photo], seed: int) -> list[Photo]:
    """Permute the photos once, so that every chunk is a random sample of them."""
    ordered = sorted(photos, key=lambda photo: photo.path)
    random.Random(seed).shuffle(ordered)
    return ordered


def digest_photos(photos: list[Photo]) -> str:
    """SHA-256 of the ordered source list (paths and sizes; contents are hashed as they are read)."""
    return hashlib.sha256(msgspec.json.encode(photos)).hexdigest()


def difference(ours: Contract, theirs: Contract) -> list[str]:
    """Say what differs between two contracts, one readable line for each field."""
    left, right = (_flatten(msgspec.json.decode(msgspec.json.encode(contract))) for contract in (ours, theirs))
    lines = []
    for key in sorted(left.keys() | right.keys()):
        if left.get(key) != right.get(key):
            lines.append(f"{key}: store {_shorten(right.get(key))}, asked {_shorten(left.get(key))}")
    return lines


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        pairs = [(f"{prefix}.{key}" if prefix else key, item) for key, item in value.items()]
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        pairs = [(f"{prefix}.{item.get('name', index)}", item) for index, item in enumerate(value)]
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in pairs:
        flat |= _flatten(item, key)
    return flat


def _shorten(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:24]}…{text[-8:]}"
