"""Read a store: whole chunks, with a mask for the samples that have no answers.

A chunk without a ledger record does not exist. Missing samples are masked, never returned as zeros to learn from.
"""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import zarr

from delta_cache.errors import CacheError, CorruptStore, IncompleteStore, NotAStore
from delta_cache.schema import FORMAT, VERSION, ChunkRecord, Contract, Photo, Status, digest_photos

LEDGER, PHOTOS = "ledger", "photos.jsonl"


class Store:
    """A cache on disk, complete or not; `require_complete` says which."""

    def __init__(self, path: Path, contract: Contract, provenance: dict[str, Any]) -> None:
        self.path = path
        self.contract = contract
        self.provenance = provenance

    @classmethod
    def open(cls, path: Path) -> "Store":
        """Open the store at `path`.

        Raises:
            NotAStore: nothing there, or not a Delta cache.
            CacheError: a store of another format version.
            CorruptStore: the contract does not match its fingerprint.
        """
        attributes = _read_attributes(path)
        version = attributes["contract"].get("version")
        if version != VERSION:
            raise CacheError(
                f"{path} is a cache of format version {version}; this Delta reads version {VERSION}",
                "build it again with this Delta, or install the Delta that made it",
            )
        try:
            contract = msgspec.convert(attributes["contract"], Contract)
        except msgspec.ValidationError as error:
            raise CorruptStore(f"the contract of {path} is damaged: {error}", "build the store again") from error
        if contract.fingerprint != attributes.get("fingerprint"):
            raise CorruptStore(f"the contract of {path} was changed after it was made", "build the store again")
        return cls(path, contract, attributes.get("provenance", {}))

    @cached_property
    def photos(self) -> list[Photo]:
        """The source photos in sample order.

        Raises:
            CorruptStore: the list is gone or not the one in the contract.
        """
        try:
            lines = (self.path / PHOTOS).read_bytes().splitlines()
            photos = [msgspec.json.decode(line, type=Photo) for line in lines]
        except (FileNotFoundError, msgspec.DecodeError):
            photos = []
        if digest_photos(photos) != self.contract.photos.get("list_sha256"):
            raise CorruptStore(f"{self.path / PHOTOS} is not the list the store was made of", "build the store again")
        return photos

    def array(self, name: str, mode: Any = "r") -> zarr.Array:
        """Open one array, by its name in the contract.

        Raises:
            CorruptStore: its description is gone or damaged.
        """
        try:
            opened = zarr.open_array(str(self.path / name), mode=mode, zarr_format=3)
        except (FileNotFoundError, KeyError, TypeError, ValueError) as error:
            message = f"array {name} of {self.path} cannot be opened: {error}"
            raise CorruptStore(message, "build the store again") from error
        return opened.with_config({"write_empty_chunks": True})

    def record(self, chunk: int) -> ChunkRecord | None:
        """The ledger's entry for a chunk; None when the chunk was never finished.

        Raises:
            CorruptStore: the entry is damaged or another chunk's.
        """
        path = self.path / LEDGER / ledger_name(chunk)
        try:
            record = msgspec.json.decode(path.read_bytes(), type=ChunkRecord)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError:
            record = None
        if record is None or not self._is_of(record, chunk):
            raise CorruptStore(f"ledger entry {path} is damaged", "delete it; the build redoes that chunk")
        return record

    def is_whole(self, chunk: int, *, digests: bool = False) -> bool:
        """Whether a chunk is recorded and its files have the recorded lengths (and digests)."""
        record = self.record(chunk)
        return record is not None and all(
            self._file_is_whole(name, size, digest if digests else None)
            for name, (size, digest) in record.files.items()
        )

    def missing_chunks(self) -> list[int]:
        """Chunks that are not whole, by presence and size."""
        return [chunk for chunk in range(self.contract.chunks) if not self.is_whole(chunk)]

    def require_complete(self) -> "Store":
        """Return the store, or say what it lacks.

        Raises:
            IncompleteStore: chunks are missing or cut short.
            CacheError: no photo in it could be read.
        """
        missing = self.missing_chunks()
        if missing:
            raise IncompleteStore(
                f"cache {self.path} is incomplete: {len(missing)} of {self.contract.chunks} chunks missing",
                f"`delta cache build … {self.path}` resumes it",
            )
        if not (self.status() == Status.OK).any():
            raise CacheError(f"cache {self.path} holds no readable photo", "build it from other photos")
        return self

    def status(self) -> np.ndarray:
        """Per-sample status, u8 of length `contract.samples`; samples of unfinished chunks are MISSING."""
        status = np.full(self.contract.samples, Status.MISSING, dtype=np.uint8)
        for chunk in range(self.contract.chunks):
            record = self.record(chunk)
            if record is not None and self.is_whole(chunk):
                span = self.contract.chunk_range(chunk)
                status[span.start : span.stop] = [Status.FAILED if s.failure else Status.OK for s in record.samples]
        return status

    def failures(self) -> dict[str, str]:
        """The photos left out, with the reason for each."""
        records = (self.record(chunk) for chunk in range(self.contract.chunks))
        return {s.path: s.failure for record in records if record for s in record.samples if s.failure}

    def read_chunk(self, chunk: int, names: tuple[str, ...] | list[str]) -> dict[str, np.ndarray]:
        """Read the named arrays of one chunk whole: name -> (samples of the chunk, *sample shape).

        Raises:
            IncompleteStore: the chunk is not in the store, or a file of it is cut short.
            CorruptStore: a file of it has the right length and cannot be decoded.
        """
        if not self.is_whole(chunk):
            raise IncompleteStore(
                f"chunk {chunk} of {self.path} is missing", f"`delta cache build … {self.path}` resumes it"
            )
        span = self.contract.chunk_range(chunk)
        arrays = self._arrays
        try:
            return {name: np.asarray(arrays[name][span.start : span.stop]) for name in names}
        except RuntimeError as error:  # Blosc's
            entry = self.path / LEDGER / ledger_name(chunk)
            hint = f"delete {entry}; the build redoes that chunk"
            raise CorruptStore(f"chunk {chunk} of {self.path} cannot be decoded: {error}", hint) from error

    def bytes_on_disk(self) -> dict[str, int]:
        """Recorded bytes for each array."""
        totals = {spec.name: 0 for spec in self.contract.arrays}
        for chunk in range(self.contract.chunks):
            record = self.record(chunk)
            for name, (size, _digest) in (record.files if record else {}).items():
                totals[name.rsplit("/c/", 1)[0]] += size
        return totals

    @cached_property
    def _arrays(self) -> dict[str, zarr.Array]:
        return {spec.name: self.array(spec.name) for spec in self.contract.arrays}

    def _is_of(self, record: ChunkRecord, chunk: int) -> bool:
        files = {chunk_file(spec.name, 1 + len(spec.shape), chunk) for spec in self.contract.arrays}
        samples = len(self.contract.chunk_range(chunk))
        return record.chunk == chunk and len(record.samples) == samples and record.files.keys() == files

    def _file_is_whole(self, name: str, size: int, digest: str | None) -> bool:
        path = self.path / name
        try:
            if path.stat().st_size != size:
                return False
        except FileNotFoundError:
            return False
        if digest is None:
            return True
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest


def ledger_name(chunk: int) -> str:
    """File name of a chunk's ledger entry."""
    return f"{chunk:08d}.json"


def chunk_file(array: str, dimensions: int, chunk: int) -> str:
    """Path of an array's chunk file inside the store (Zarr v3 default chunk keys)."""
    return f"{array}/c/{chunk}" + "/0" * (dimensions - 1)


def _read_attributes(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise NotAStore(f"there is no cache at {path}", "`delta cache build PHOTOS STORE` makes one")
    try:
        delta: Any = zarr.open_group(str(path), mode="r", zarr_format=3).attrs["delta"]
    except (FileNotFoundError, NotADirectoryError, KeyError, ValueError):
        delta = None
    if not isinstance(delta, dict) or not isinstance(delta.get("contract"), dict):
        raise NotAStore(f"{path} is not a Delta cache", "`delta cache build PHOTOS STORE` makes one elsewhere")
    if delta["contract"].get("format") != FORMAT:
        raise NotAStore(f"{path} holds {delta['contract'].get('format')!r}, not a {FORMAT}", "name another folder")
    return delta
