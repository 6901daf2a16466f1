"""Read a store: whole chunks, with a mask for the samples that have no answers.

A chunk without a ledger record does not exist. Missing samples are masked, never returned as zeros to learn from.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import zarr

from delta_cache.basis import ARRAYS, TapBasis, digest_bases
from delta_cache.codec import decode_jpeg, decompress
from delta_cache.errors import CacheError, CorruptStore, IncompleteStore, NotAStore
from delta_cache.layout import BASIS, PHOTOS, ROOT, chunk_file, ledger_file
from delta_cache.order import chunk_order
from delta_cache.schema import (
    FORMAT,
    VERSION,
    ArraySpec,
    Basis,
    ChunkRecord,
    Contract,
    Jpeg,
    Photo,
    Status,
    digest_photos,
    open_entry,
)
from delta_cache.storage import Storage, open_storage

BUILD_HINT = "`delta cache build PHOTOS STORE` makes one"


def open_cache(url: str | Path, *, incomplete: bool = False) -> "Store":
    """Open a store to read from.

    Args:
        url: a folder, or a URL such as s3://bucket/store.zarr.
        incomplete: also take a store that lacks chunks; `mask` says which samples are there.

    Raises:
        NotAStore: nothing there, or not a Delta cache.
        IncompleteStore: chunks are missing or cut short.
        CorruptStore: contract, photo list or basis are damaged.
        CacheError: a store of another format version, or without a single answer.
    """
    store = Store.open(url)
    return store if incomplete else store.require_complete()


class Store:
    """A cache, complete or not; `require_complete` says which."""

    def __init__(self, storage: Storage, contract: Contract, provenance: dict[str, Any]) -> None:
        self.storage = storage
        self.url = storage.url
        self.contract = contract
        self.provenance = provenance
        self._checked: set[tuple[str, str]] = set()

    @classmethod
    def open(cls, url: str | Path | Storage) -> "Store":
        """Open the store at `url`, complete or not; see `open_cache` for the errors."""
        storage = open_storage(url) if isinstance(url, str | Path) else url
        delta = _read_attributes(storage)
        version = delta["contract"].get("version")
        if version != VERSION:
            raise CacheError(
                f"{storage.url} is a cache of format version {version}; this Delta reads version {VERSION}",
                "build it again with this Delta, or install the Delta that made it",
            )
        try:
            contract = msgspec.convert(delta["contract"], Contract)
        except msgspec.ValidationError as error:
            message = f"the contract of {storage.url} is damaged: {error}"
            raise CorruptStore(message, "build the store again") from error
        if contract.fingerprint != delta.get("fingerprint"):
            raise CorruptStore(f"the contract of {storage.url} was changed after it was made", "build the store again")
        return cls(storage, contract, delta.get("provenance", {}))

    @property
    def teacher(self) -> dict[str, Any]:
        """The teacher, as the contract has it, and by the name it was called."""
        return {"name": self.provenance.get("teacher", "unnamed"), **self.contract.teacher}

    @cached_property
    def photos(self) -> list[Photo]:
        """The source photos in order; sample s shows photo s modulo their number.

        Raises:
            CorruptStore: the list is gone or not the one in the contract.
        """
        try:
            lines = self.storage.read(PHOTOS).splitlines()
            photos = [msgspec.json.decode(line, type=Photo) for line in lines]
        except (FileNotFoundError, UnicodeDecodeError, msgspec.DecodeError):
            photos = []
        safe = all(".." not in photo.path.split("/") and not photo.path.startswith("/") for photo in photos)
        if not safe or digest_photos(photos) != self.contract.photos.get("list_sha256"):
            message = f"{self.url}/{PHOTOS} is not the list the store was made of"
            raise CorruptStore(message, "build the store again")
        return photos

    @cached_property
    def bases(self) -> dict[str, TapBasis]:
        """The basis of each tap that is kept as int8.

        Raises:
            CorruptStore: they are gone or not those in the contract.
        """
        taps = [s.name.split("/")[1] for s in self.contract.arrays if isinstance(s.encoding, Basis)]
        try:
            bases = {tap: self._read_basis(tap) for tap in taps}
        except (FileNotFoundError, KeyError, TypeError, ValueError):
            bases = {}
        if digest_bases(bases) != self.contract.basis_sha256:
            raise CorruptStore(f"the feature bases of {self.url} are not those it was made with", "build it again")
        return bases

    def array(self, name: str) -> zarr.Array[Any]:
        """Open one array, as it is stored, with plain zarr.

        Raises:
            CorruptStore: its description is gone or damaged.
        """
        try:
            return zarr.open_array(f"{self.url}/{name}", mode="r", zarr_format=3)
        except (FileNotFoundError, KeyError, TypeError, ValueError) as error:
            message = f"array {name} of {self.url} cannot be opened: {error}"
            raise CorruptStore(message, "`delta cache repair` writes it again") from error

    def record(self, chunk: int) -> ChunkRecord | None:
        """The ledger's entry for a chunk; None when the chunk was never finished.

        Raises:
            CorruptStore: the entry is damaged or another chunk's.
        """
        try:
            content = self.storage.read(ledger_file(chunk))
        except FileNotFoundError:
            return None
        return self._parse(chunk, content)

    def records(self, *, damaged: list[int] | None = None) -> Iterator[ChunkRecord]:
        """Yield the ledger's entries in order.

        Args:
            damaged: collects the chunks whose entry is damaged; without it such an entry is an error.

        Raises:
            CorruptStore: an entry is damaged.
        """
        for part in _slices(range(self.contract.chunks), 256):
            found = self.storage.read_many([ledger_file(chunk) for chunk in part])
            for chunk in part:
                content = found.get(ledger_file(chunk))
                if content is None:
                    continue
                try:
                    record = self._parse(chunk, content)
                except CorruptStore:
                    if damaged is None:
                        raise
                    damaged.append(chunk)
                else:
                    yield record

    def is_whole(self, chunk: int) -> bool:
        """Whether a chunk is recorded and its files have the recorded lengths."""
        record = self.record(chunk)
        return record is not None and all(self.storage.size(n) == size for n, (size, _) in record.files.items())

    def whole_chunks(self) -> np.ndarray:
        """Which chunks are recorded with files of the recorded lengths, bool (chunks,)."""
        whole = np.zeros(self.contract.chunks, bool)
        for record in self._whole_records():
            whole[record.chunk] = True
        return whole

    def missing_chunks(self) -> list[int]:
        """Chunks that are not whole, by presence and size."""
        return np.flatnonzero(~self.whole_chunks()).tolist()

    def require_complete(self) -> "Store":
        """Return the store, or say what it lacks.

        Raises:
            IncompleteStore: chunks are missing or cut short.
            CacheError: no photo in it could be read.
        """
        missing = self.missing_chunks()
        if missing:
            raise IncompleteStore(
                f"cache {self.url} is incomplete: {len(missing)} of {self.contract.chunks} chunks missing",
                f"`delta cache build … {self.url}` resumes it",
            )
        if not self.mask.any():
            raise CacheError(f"cache {self.url} holds no readable photo", "build it from other photos")
        return self

    def status(self) -> np.ndarray:
        """Per-sample status, u8 (samples,), as it is now; samples of chunks that are not whole are MISSING."""
        status = np.full(self.contract.samples, Status.MISSING, dtype=np.uint8)
        for record in self._whole_records():
            span = self.contract.chunk_range(record.chunk)
            status[span.start : span.stop] = [Status.FAILED if s.failure else Status.OK for s in record.samples]
        return status

    @cached_property
    def mask(self) -> np.ndarray:
        """Which samples have answers, bool (samples,), as the ledger was when first asked."""
        return self.status() == Status.OK

    def failures(self) -> dict[str, str]:
        """The photos left out, with the reason for each."""
        return {s.path: s.failure for record in self.records() for s in record.samples if s.failure}

    def read_chunk(
        self, chunk: int, names: Sequence[str], rows: np.ndarray | None = None, *, decoded: bool = True
    ) -> dict[str, np.ndarray]:
        """Read the named arrays of one chunk: name -> (samples of the chunk, *sample shape).

        Args:
            rows: take these samples of the chunk alone, in this order.
            decoded: JPEG rows become images u8 (n, s, s, 3) and codes become features float32 (n, c, g, g); otherwise
                arrays come as they are stored.

        A chunk's digests are checked at its first reading in a process.

        Raises:
            IncompleteStore: the chunk is not in the store, or a file of it is cut short.
            CorruptStore: a file of it is not what was recorded.
        """
        record = self.record(chunk)
        if record is None:
            raise IncompleteStore(self._missing(chunk), f"`delta cache build … {self.url}` resumes it")
        span = self.contract.chunk_range(chunk)
        arrays = {}
        for name in names:
            spec = self.contract.spec(name)
            values = self._read_array(spec, record)[: len(span)]
            values = values if rows is None else values[rows]
            arrays[name] = self._decode(spec, values) if decoded else values
        return arrays

    def chunks_in_order(
        self, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (chunk, mask of its samples) in the epoch's order for one rank; a chunk without answers is left out."""
        chunk_of = np.arange(self.contract.samples) // self.contract.chunk_samples
        usable = np.unique(chunk_of[self.mask])
        for chunk in chunk_order(usable, seed=seed, epoch=epoch, rank=rank, world_size=world_size):
            span = self.contract.chunk_range(int(chunk))
            yield int(chunk), self.mask[span.start : span.stop]

    def bytes_on_disk(self) -> dict[str, int]:
        """Recorded bytes for each array."""
        totals = {spec.name: 0 for spec in self.contract.arrays}
        for record in self.records():
            for name, (size, _digest) in record.files.items():
                totals[name.rsplit("/", 1)[0]] += size
        return totals

    def listed_sizes(self) -> dict[str, int]:
        """Bytes of every file below the arrays' folders, in a listing or two."""
        sizes: dict[str, int] = {}
        for folder in {spec.name.split("/")[0] for spec in self.contract.arrays}:
            sizes |= self.storage.sizes(folder)
        return sizes

    def _whole_records(self) -> Iterator[ChunkRecord]:
        """Entries whose files are there with the recorded lengths, by one listing."""
        sizes = self.listed_sizes()
        for record in self.records():
            if all(sizes.get(name) == size for name, (size, _) in record.files.items()):
                yield record

    def _read_array(self, spec: ArraySpec, record: ChunkRecord) -> np.ndarray:
        name = chunk_file(spec, record.chunk)
        size, digest = record.files[name]
        try:
            content = self.storage.read_array(name)
        except FileNotFoundError:
            content = np.empty(0, np.uint8)
        if len(content) != size:
            raise IncompleteStore(self._missing(record.chunk), f"`delta cache build … {self.url}` resumes it")
        if (name, digest) not in self._checked:
            if hashlib.sha256(content.data).hexdigest() != digest:
                raise CorruptStore(
                    f"chunk {record.chunk} of {self.url}: {name} is not what was recorded",
                    f"`delta cache repair … {self.url}` rebuilds it",
                )
            self._checked.add((name, digest))
        return decompress(content, spec, self.contract.chunk_samples)

    def _decode(self, spec: ArraySpec, values: np.ndarray) -> np.ndarray:
        if isinstance(spec.encoding, Basis):
            return self.bases[spec.name.split("/")[1]].decode(values)
        if isinstance(spec.encoding, Jpeg):
            side = spec.encoding.side_px
            empty = np.zeros((side, side, 3), np.uint8)  # a sample that was left out has no file
            images = [decode_jpeg(row) if row[0] else empty for row in values]
            return np.stack(images) if images else np.zeros((0, side, side, 3), np.uint8)
        return values

    def _read_basis(self, tap: str) -> TapBasis:
        opened = {name: zarr.open_array(f"{self.url}/{BASIS}/{tap}/{name}", mode="r", zarr_format=3) for name in ARRAYS}
        cosine: Any = opened["mean"].attrs["holdout_cosine"]
        return TapBasis(**{name: np.asarray(array[:]) for name, array in opened.items()}, holdout_cosine=float(cosine))

    def _parse(self, chunk: int, content: bytes) -> ChunkRecord:
        record = open_entry(content)
        if record is None or not self._is_of(record, chunk):
            entry = f"{self.url}/{ledger_file(chunk)}"
            raise CorruptStore(f"ledger entry {entry} is damaged", f"`delta cache repair … {self.url}` rebuilds it")
        return record

    def _is_of(self, record: ChunkRecord, chunk: int) -> bool:
        files = {chunk_file(spec, chunk) for spec in self.contract.arrays}
        samples = len(self.contract.chunk_range(chunk))
        return record.chunk == chunk and len(record.samples) == samples and record.files.keys() == files

    def _missing(self, chunk: int) -> str:
        return f"chunk {chunk} of {self.url} is missing"


def _slices(values: range, length: int) -> Iterator[range]:
    for first in range(0, len(values), length):
        yield values[first : first + length]


def _read_attributes(storage: Storage) -> dict[str, Any]:
    try:
        content = storage.read(ROOT)
    except NotADirectoryError:
        content = b""
    except FileNotFoundError:
        if not storage.exists():
            raise NotAStore(f"there is no cache at {storage.url}", BUILD_HINT) from None
        content = b""
    try:
        delta = msgspec.json.decode(content)["attributes"]["delta"]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        delta = None
    if not isinstance(delta, dict) or not isinstance(delta.get("contract"), dict):
        raise NotAStore(f"{storage.url} is not a Delta cache", f"{BUILD_HINT} elsewhere")
    if delta["contract"].get("format") != FORMAT:
        message = f"{storage.url} holds {delta['contract'].get('format')!r}, not a {FORMAT}"
        raise NotAStore(message, "name another folder")
    return delta
