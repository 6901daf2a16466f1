"""Check a store: fast (presence and size of every file), or full (every byte against its digest)."""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np

from delta_cache.errors import CorruptStore
from delta_cache.layout import ROOT, copied_descriptions, describes
from delta_cache.reader import Store
from delta_cache.schema import ChunkRecord


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong; `chunk` is None where it concerns the store's descriptions."""

    chunk: int | None
    what: str


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What a check saw: `bytes` of recorded files, and whether their contents were digested."""

    depth: str
    chunks: int
    bytes: int
    findings: tuple[Finding, ...]

    @property
    def bad_chunks(self) -> list[int]:
        """Chunks to be rebuilt, ascending."""
        return sorted({finding.chunk for finding in self.findings if finding.chunk is not None})


def verify(
    store: Store,
    *,
    full: bool = False,
    threads: int = 1,
    on_chunk: Callable[[int, int], None] = lambda size, total: None,
) -> Verification:
    """Compare a store with its ledger.

    Args:
        full: read every file and compare its SHA-256; otherwise presence and size.
        threads: files digested at once (hashlib and reading release the interpreter).
        on_chunk: told the bytes of each chunk that was digested, and of all.
    """
    damaged: list[int] = []
    records = {record.chunk: record for record in store.records(damaged=damaged)}
    sizes = store.listed_sizes()
    findings = _check_descriptions(store)
    findings += [Finding(chunk=chunk, what="its ledger entry is damaged") for chunk in damaged]
    lacking = set(range(store.contract.chunks)) - records.keys() - set(damaged)
    findings += [Finding(chunk=chunk, what="it was never finished") for chunk in sorted(lacking)]
    whole = []
    for record in records.values():
        faults = [_size_fault(name, size, sizes.get(name)) for name, (size, _) in record.files.items()]
        found = [Finding(chunk=record.chunk, what=fault) for fault in faults if fault]
        findings += found
        whole += [] if found else [record]
    total = sum(size for record in records.values() for size, _ in record.files.values())
    if full:
        with ThreadPoolExecutor(threads, thread_name_prefix="verify") as pool:
            for record, found in zip(whole, pool.map(lambda record: _digest_faults(store, record), whole), strict=True):
                findings += found
                on_chunk(sum(size for size, _ in record.files.values()), total)
    return Verification(
        depth="full" if full else "fast", chunks=store.contract.chunks, bytes=total, findings=tuple(findings)
    )


def _check_descriptions(store: Store) -> list[Finding]:
    findings = []
    for spec in store.contract.arrays:
        try:
            array = store.array(spec.name)
        except CorruptStore as error:
            findings.append(Finding(chunk=None, what=str(error)))
        else:
            if not describes(array, spec, store.contract):
                findings.append(Finding(chunk=None, what=f"array {spec.name} is not described as in the contract"))
    for name, copy in copied_descriptions(store.storage.read(ROOT)).items():
        try:
            own = json.loads(store.storage.read(f"{name}/{ROOT}"))
        except (FileNotFoundError, ValueError):
            own = None
        if own != copy:
            findings.append(Finding(chunk=None, what=f"{name}/{ROOT} is not what {ROOT} says of it"))
    for part in ("photos", "bases"):
        try:
            getattr(store, part)
        except CorruptStore as error:
            findings.append(Finding(chunk=None, what=str(error)))
    return findings


def _size_fault(name: str, recorded: int, there: int | None) -> str:
    if there is None:
        return f"{name} is missing"
    return "" if there == recorded else f"{name} has {there} bytes, {recorded} were recorded"


def _digest_faults(store: Store, record: ChunkRecord) -> list[Finding]:
    findings = []
    for name, (_, digest) in record.files.items():
        try:
            content = store.storage.read_array(name)
        except FileNotFoundError:
            content = np.empty(0, np.uint8)
        if hashlib.sha256(content.data).hexdigest() != digest:
            findings.append(Finding(chunk=record.chunk, what=f"{name} is not what was recorded"))
    return findings
