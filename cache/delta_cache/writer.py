"""Write a store chunk by chunk, so that a kill at any instant loses at most the chunks in flight.

Order of events for a chunk: its arrays are compressed and digested in memory; each file is written aside, flushed and
renamed; only then its ledger entry is, in the same way. A chunk without an entry does not exist.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from delta_cache.basis import TapBasis, digest_bases
from delta_cache.codec import compress
from delta_cache.errors import CacheError, ContractMismatch
from delta_cache.layout import BASIS, PHOTOS, ROOT, chunk_file, copied_descriptions, ledger_file, metadata
from delta_cache.reader import Store
from delta_cache.schema import ChunkRecord, Contract, Photo, SampleRecord, Times, difference, seal_entry
from delta_cache.storage import ASIDE, CLAIMS, Storage, open_storage

Bases = dict[str, TapBasis]
BUSY_S = 0.2  # how long to wait before a store is looked at again that another process is laying out


def open_or_create(
    url: str | Path,
    contract: Contract,
    photos: list[Photo],
    provenance: Mapping[str, Any],
    make_bases: Callable[[], Bases] = dict,
) -> Store:
    """Create the store at `url`, or open the one of the same contract that is there.

    Args:
        contract: without `basis_sha256`, which is filled in; a store that is there keeps its own bases.
        make_bases: called once, when the store is new, for the bases of its int8 features.

    Raises:
        ContractMismatch: the store there was made under another contract.
        CacheError: something else is there.
    """
    storage = open_storage(url)
    while storage.size(ROOT) is None:
        _require_room(storage, contract)
        with storage.claim("create") as ours:
            if ours and storage.size(ROOT) is None:
                _create(storage, contract, photos, provenance, make_bases())
        if not ours:
            time.sleep(BUSY_S)
    store = Store.open(storage)
    asked = msgspec.structs.replace(contract, basis_sha256=store.contract.basis_sha256)
    lines = difference(asked, store.contract)
    if lines:
        listing = "\n".join(f"  {line}" for line in lines)
        raise ContractMismatch(
            f"{store.url} was made under another contract:\n{listing}",
            "repeat the build as the store was made, or name another store",
        )
    return store


def write_chunk(
    store: Store,
    chunk: int,
    data: Mapping[str, np.ndarray],
    samples: tuple[SampleRecord, ...],
    times: Callable[[], Times] = Times,
) -> ChunkRecord:
    """Write one chunk; `data` holds for every array of the contract its samples as they are stored.

    Args:
        times: asked for when the data is on disk, so that it can tell how long that took.

    Raises:
        OSError: the disk is full or failing; nothing is recorded and the chunk stays pending.
    """
    contract = store.contract
    if len(samples) != len(contract.chunk_range(chunk)) or data.keys() != {spec.name for spec in contract.arrays}:
        raise ValueError(f"chunk {chunk} needs {len(contract.chunk_range(chunk))} samples of {sorted(data)}")
    store.storage.delete(ledger_file(chunk))
    files = {}
    for spec in contract.arrays:
        values = data[spec.name]
        if values.shape != (len(samples), *spec.shape) or values.dtype != spec.dtype:
            raise ValueError(f"{spec.name}: got {values.dtype}{values.shape} for {spec.dtype}{spec.shape}")
        content = compress(values, spec, contract.chunk_samples)
        files[chunk_file(spec, chunk)] = (len(content), hashlib.sha256(content).hexdigest())
        store.storage.write(chunk_file(spec, chunk), content)
    record = ChunkRecord(chunk=chunk, files=files, samples=samples, times=times())
    store.storage.write(ledger_file(chunk), seal_entry(record))
    return record


def discard(store: Store, chunk: int) -> None:
    """Take a chunk back: without its ledger entry it is to be built again."""
    store.storage.delete(ledger_file(chunk))


def restore_metadata(store: Store) -> None:
    """Write every file that describes the store's arrays again, as its contract says.

    Raises:
        CorruptStore: the bases or the photo list are damaged, which only a new build can mend.
    """
    for name, content in metadata(store.contract, store.bases, store.provenance).items():
        there = store.storage.read_many([name]).get(name, b"{}")
        pair = (there, content) if name != ROOT else (copied_descriptions(there), copied_descriptions(content))
        if pair[0] != pair[1]:
            store.storage.write(name, content)


def _require_room(storage: Storage, contract: Contract) -> None:
    """Refuse a place that holds anything but what a build of this contract may have left there at its start."""
    files = {PHOTOS, *metadata(contract, {}, {})}
    strangers = {
        name
        for name in storage.sizes()
        if name.removesuffix(ASIDE) not in files and name.split("/")[0] not in (BASIS, CLAIMS)
    }
    if strangers:
        raise CacheError(
            f"{storage.url} is not empty and not a Delta cache: it holds {min(strangers)}",
            "name a new folder for the store",
        )


def _create(
    storage: Storage, contract: Contract, photos: list[Photo], provenance: Mapping[str, Any], bases: Bases
) -> None:
    """Lay out an empty store; the root's zarr.json comes last, and with it the store is there."""
    whole = msgspec.structs.replace(contract, basis_sha256=digest_bases(bases))
    files = {PHOTOS: b"".join(msgspec.json.encode(photo) + b"\n" for photo in photos)}
    files |= metadata(whole, bases, dict(provenance))
    for name in sorted(files, key=lambda name: name == ROOT):
        storage.write(name, files[name])
