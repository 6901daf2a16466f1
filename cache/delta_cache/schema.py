"""The on-disk format, version 2: contract, fingerprint, arrays, ledger entries. The prose is in cache/README.md.

Knows plain data only, neither zarr nor files.
"""

import hashlib
import json
import random
from typing import Any, Literal

import msgspec

FORMAT, VERSION = "delta-cache", 2
VIEW_COLUMNS = ("left_px", "top_px", "width_px", "height_px", "source_width_px", "source_height_px", "mirrored")


class Status:
    """Values of the `status` array."""

    MISSING, OK, FAILED = 0, 1, 2


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Plain(_Record, frozen=True, tag="plain", tag_field="kind"):
    """The numbers themselves."""


class Rounded(_Record, frozen=True, kw_only=True, tag="rounded", tag_field="kind"):
    """float16 whose mantissa keeps `bits` of its 10 bits; read as it is. Relative error at most 2^-(bits+1)."""

    bits: int


class Jpeg(_Record, frozen=True, kw_only=True, tag="jpeg", tag_field="kind"):
    """A row of bytes a sample: a JPEG file of `side_px` x `side_px`, then zeros (decoders stop at its end)."""

    side_px: int
    quality: int


class Basis(_Record, frozen=True, kw_only=True, tag="basis", tag_field="kind"):
    """int8 coefficients in the basis kept under `basis/TAP`: value = mean + (code * scale) @ axes."""

    channels: int


Encoding = Plain | Rounded | Jpeg | Basis


class ArraySpec(_Record, frozen=True, kw_only=True):
    """One array: `shape` is that of a sample as stored; the first axis on disk counts samples.

    `compressor` is a Blosc compressor's name, or "none" for the bytes as they are.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Literal["uint8", "int8", "float16", "float32"]
    axes: tuple[str, ...] = ()
    encoding: Encoding = Plain()
    compressor: Literal["zstd", "lz4", "none"] = "zstd"
    level: int = 3

    @property
    def shuffle(self) -> Literal["noshuffle", "bitshuffle"]:
        """Bytes of images and JPEG files do not repeat by bit position; everything else does."""
        return "noshuffle" if self.dtype == "uint8" else "bitshuffle"


class Photo(_Record, frozen=True, kw_only=True):
    """One source photo: path relative to the photo folder with forward slashes, and its size on disk."""

    path: str
    bytes: int


class Contract(_Record, frozen=True, kw_only=True):
    """All that decides the cached numbers. Two stores of one fingerprint hold the same answers.

    `teacher` tells weights, architecture, preprocessing and precision; `recipe` the resolution, the taps and how they
    are kept; `views` the names of the views, of which the store holds one sample a photo each, view by view; `photos`
    the source list; `basis_sha256` the bases that int8 features are written in ("" where there are none).
    """

    format: str = FORMAT
    version: int = VERSION
    teacher: dict[str, Any]
    recipe: dict[str, Any]
    views: tuple[str, ...] = ("plain",)
    photos: dict[str, Any]
    arrays: tuple[ArraySpec, ...]
    chunk_samples: int
    samples: int
    basis_sha256: str = ""

    @property
    def chunks(self) -> int:
        return -(-self.samples // self.chunk_samples)

    @property
    def photo_count(self) -> int:
        return self.samples // len(self.views)

    def chunk_range(self, chunk: int) -> range:
        """Sample numbers of one chunk; the last may be short."""
        first = chunk * self.chunk_samples
        return range(first, min(first + self.chunk_samples, self.samples))

    def photo_of(self, sample: int) -> int:
        """Number of the photo that a sample shows."""
        return sample % self.photo_count

    def view_of(self, sample: int) -> int:
        """Number of the view that a sample is."""
        return sample // self.photo_count

    def spec(self, name: str) -> ArraySpec:
        """The array of that name.

        Raises:
            KeyError: there is none.
        """
        return {spec.name: spec for spec in self.arrays}[name]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the contract as canonical JSON, in hex."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()


class SampleRecord(_Record, frozen=True, kw_only=True):
    """What became of one sample: `failure` is empty for a cached one, else the reason it was left out."""

    path: str
    sha256: str
    failure: str = ""


class Times(_Record, frozen=True, kw_only=True):
    """What a chunk took, in seconds of its worker, and when it was finished (UTC, ISO 8601).

    `total_s` runs from the worker's previous chunk (or start) to this one: the sum over a worker is its time at work.
    """

    decode_s: float = 0.0
    teacher_s: float = 0.0
    write_s: float = 0.0
    total_s: float = 0.0
    finished: str = ""
    worker: str = ""


class ChunkRecord(_Record, frozen=True, kw_only=True):
    """The ledger's entry for one chunk, written only after its data is on disk: file -> (bytes, SHA-256)."""

    chunk: int
    files: dict[str, tuple[int, str]]
    samples: tuple[SampleRecord, ...]
    times: Times = Times()


class _Entry(_Record, frozen=True, kw_only=True):
    record: msgspec.Raw
    sha256: str


def seal_entry(record: ChunkRecord) -> bytes:
    """Write a ledger entry with its own digest: {"record": ..., "sha256": of the record's bytes}."""
    content = msgspec.json.encode(record)
    return msgspec.json.encode(_Entry(record=msgspec.Raw(content), sha256=hashlib.sha256(content).hexdigest()))


def open_entry(content: bytes) -> ChunkRecord | None:
    """Read a ledger entry; None where a byte of it is not what was written."""
    try:
        entry = msgspec.json.decode(content, type=_Entry)
        if hashlib.sha256(entry.record).hexdigest() != entry.sha256:
            return None
        return msgspec.json.decode(entry.record, type=ChunkRecord)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def order_photos(photos: list[Photo], seed: int) -> list[Photo]:
    """Permute the photos once, so that every chunk is a random sample of them."""
    ordered = sorted(photos, key=lambda photo: photo.path)
    random.Random(seed).shuffle(ordered)
    return ordered


def digest_photos(photos: list[Photo]) -> str:
    """SHA-256 of the ordered source list (paths and sizes; contents are hashed as they are read)."""
    return hashlib.sha256(msgspec.json.encode(photos)).hexdigest()


def difference(asked: Contract, store: Contract) -> list[str]:
    """Say what differs between two contracts, one readable line for each field."""
    left, right = (_flatten(msgspec.json.decode(msgspec.json.encode(contract))) for contract in (asked, store))
    return [
        f"{key}: store {_shorten(right.get(key))}, asked {_shorten(left.get(key))}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]


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
