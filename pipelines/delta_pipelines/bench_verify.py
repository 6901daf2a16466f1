"""`delta bench cache`, its part on checking: how quickly a large store is listed, and bytes are digested."""

import hashlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from delta_cache.layout import LEDGER, chunk_file, ledger_file
from delta_cache.reader import Store
from delta_cache.schema import ArraySpec, ChunkRecord, Contract, Photo, SampleRecord, Status, digest_photos, seal_entry
from delta_cache.verify import verify
from delta_cache.writer import open_or_create
from delta_pipelines.bench_cache import Row

SAMPLES, CHUNK = 100_000, 32
TAPS = [f"{kind}/block{number:02d}" for kind in ("features", "attention") for number in (3, 6, 9, 12)]
ARRAYS = ("image", "disparity", "view", "status", *TAPS)


def bench_digests(store: Store) -> Iterator[Row]:
    """Bytes a second that `verify --full` reads and digests on one core, from the page cache."""
    verify(store, full=True)
    began = time.perf_counter()
    seen = verify(store, full=True)
    rate = seen.bytes / (time.perf_counter() - began) / 1e9
    yield Row(bench="verify", name="full, one core", value=rate, unit="GB/s", note=f"{seen.bytes / 1e9:.2f} GB")


def bench_listing(place: Path, samples: int = SAMPLES) -> Iterator[Row]:
    """Seconds that the fast check takes on 100,000 samples, with as many files as the default recipe makes."""
    with tempfile.TemporaryDirectory(prefix=".delta-bench-", dir=place) as scratch:
        store = _large_store(Path(scratch) / "large.zarr", samples)
        began = time.perf_counter()
        seen = verify(store)
        seconds = time.perf_counter() - began
        assert not seen.findings
        files = store.contract.chunks * (len(ARRAYS) + 1)
        yield Row(bench="verify", name=f"fast, {samples} samples", value=seconds, unit="s", note=f"{files} files")


def _large_store(path: Path, samples: int) -> Store:
    photos = [Photo(path=f"{number:08d}.jpg", bytes=1) for number in range(samples)]
    contract = Contract(
        teacher={"weights_sha256": "0" * 64},
        recipe={},
        photos={"count": samples, "list_sha256": digest_photos(photos)},
        arrays=tuple(ArraySpec(name=name, shape=(), dtype="uint8", compressor="none") for name in ARRAYS),
        chunk_samples=CHUNK,
        samples=samples,
    )
    store = open_or_create(path, contract, photos, {})
    content = np.full(CHUNK, Status.OK, np.uint8).tobytes()
    sealed = (len(content), hashlib.sha256(content).hexdigest())
    (path / LEDGER).mkdir()
    for chunk in range(contract.chunks):  # files as a build writes them, without its flushing, which takes minutes here
        records = tuple(SampleRecord(path=photos[n].path, sha256="0" * 64) for n in contract.chunk_range(chunk))
        names = [chunk_file(spec, chunk) for spec in contract.arrays]
        for name in names:
            (path / name).write_bytes(content)
        record = ChunkRecord(chunk=chunk, files=dict.fromkeys(names, sealed), samples=records)
        (path / ledger_file(chunk)).write_bytes(seal_entry(record))
    return store
