"""Write a store chunk by chunk, so that a kill at any instant loses at most the chunk in flight.

Order of events for a chunk: its array files are written aside and renamed (by zarr), hashed from disk and fsynced;
only then its ledger record is written aside, fsynced and renamed. A chunk without a record does not exist.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import msgspec
import numpy as np
import zarr
from zarr.codecs import BloscCodec

from delta_cache.errors import CacheError, ContractMismatch
from delta_cache.reader import LEDGER, PHOTOS, Store, chunk_file, ledger_name
from delta_cache.schema import ChunkRecord, Contract, Photo, SampleRecord, difference


class CacheWriter:
    """Create or resume a store; `pending` lists the chunks still to be written."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._arrays = {spec.name: store.array(spec.name, mode="r+") for spec in store.contract.arrays}

    @property
    def pending(self) -> list[int]:
        """Chunks without a ledger record, or whose files are not those recorded."""
        return [chunk for chunk in range(self.store.contract.chunks) if not self.store.is_whole(chunk)]

    def write(self, chunk: int, data: Mapping[str, np.ndarray], samples: tuple[SampleRecord, ...]) -> ChunkRecord:
        """Write one chunk; `data` holds for every array of the contract its samples, whole.

        Raises:
            OSError: the disk is full or failing; nothing is recorded and the chunk stays pending.
        """
        members = self.store.contract.chunk_range(chunk)
        if len(samples) != len(members) or data.keys() != self._arrays.keys():
            raise ValueError(f"chunk {chunk} needs {len(members)} samples of {sorted(self._arrays)}")
        (self.store.path / LEDGER / ledger_name(chunk)).unlink(missing_ok=True)
        files = {}
        for name, values in data.items():
            array = self._arrays[name]
            if values.shape != (len(members), *array.shape[1:]) or values.dtype != array.dtype:
                raise ValueError(f"{name}: got {values.dtype}{values.shape} for {array.dtype}{array.shape}")
            array[members.start : members.stop] = values
            relative = chunk_file(name, len(array.shape), chunk)
            files[relative] = _seal(self.store.path / relative)
        record = ChunkRecord(chunk=chunk, files=files, samples=samples)
        _write_durably(self.store.path / LEDGER / ledger_name(chunk), msgspec.json.encode(record))
        return record


@contextmanager
def open_writer(
    path: Path, contract: Contract, photos: list[Photo], provenance: Mapping[str, Any]
) -> Iterator[CacheWriter]:
    """Create the store at `path`, or resume one of the same contract, holding its lock meanwhile.

    Raises:
        ContractMismatch: the store there was made under another contract.
        CacheError: something else is there, or another build is writing it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.absolute()  # "." has no name of its own
    lock = filelock.FileLock(whole.with_name(f".{whole.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise CacheError(f"another build is writing {path}", "wait for it, or name another store") from None
    try:
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            _create(whole, contract, photos, provenance)
        store = Store.open(path)
        lines = difference(contract, store.contract)
        if lines:
            listing = "\n".join(f"  {line}" for line in lines)
            raise ContractMismatch(
                f"{path} was made under another contract:\n{listing}",
                "repeat the build as the store was made, or name another store",
            )
        _sweep(path)
        yield CacheWriter(store)
    finally:
        lock.release()


def _sweep(path: Path) -> None:
    """Remove what a killed build left half-written: zarr writes to NAME.partial and renames."""
    for leftover in path.rglob("*.partial"):
        leftover.unlink()


def _create(path: Path, contract: Contract, photos: list[Photo], provenance: Mapping[str, Any]) -> None:
    """Lay out an empty store aside and rename it, so that a store is there as a whole or not at all."""
    aside = path.with_name(f".{path.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    group = zarr.open_group(str(aside), mode="w", zarr_format=3)
    for spec in contract.arrays:
        group.create_array(
            spec.name,
            shape=(contract.samples, *spec.shape),
            chunks=(contract.chunk_samples, *spec.shape),
            dtype=spec.dtype,
            fill_value=0,
            compressors=[_compressor(contract.codec, spec.dtype)],
            config={"write_empty_chunks": True},
        )
    group.attrs["delta"] = {
        "contract": msgspec.to_builtins(contract),
        "fingerprint": contract.fingerprint,
        "provenance": dict(provenance),
    }
    (aside / LEDGER).mkdir()
    _write_durably(aside / PHOTOS, b"".join(msgspec.json.encode(photo) + b"\n" for photo in photos))
    if path.exists():
        path.rmdir()
    os.rename(aside, path)
    _sync_folder(path.parent)


def _compressor(codec: Mapping[str, Any], dtype: str) -> BloscCodec:
    shuffle = "noshuffle" if dtype == "uint8" else "bitshuffle"
    return BloscCodec(cname=codec["cname"], clevel=codec["clevel"], shuffle=shuffle, typesize=np.dtype(dtype).itemsize)


def _seal(path: Path) -> tuple[int, str]:
    """Flush a written file to the disk; return its length and SHA-256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size, digest


def _write_durably(path: Path, content: bytes) -> None:
    aside = path.with_name(f".{path.name}.new")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there; NTFS journals the rename
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
