"""`delta bench cache`: bytes, codec rates, and reading beside the formats that others use, in one run."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np

from delta.config import Config
from delta_cache.codec import compress, decode_jpeg, decompress
from delta_cache.compose import subset
from delta_cache.reader import Store, open_cache
from delta_cache.schema import ArraySpec, Basis, Jpeg
from delta_cache.writer import open_or_create, write_chunk
from delta_pipelines import bench_peers

ROUNDS = 5
SAMPLES = 512  # read at most: enough for a steady rate, and to hold in memory
READ_GROUPS = ("image", "disparity", "features")


class Row(Config, frozen=True, kw_only=True):
    """One measured number and its unit; `ratio` is to what `note` says."""

    bench: str
    name: str
    value: float
    unit: str
    ratio: float | None = None
    note: str = ""


def bench_bytes(store: Store) -> Iterator[Row]:
    """Bytes a photo of each array, beside those of the plain numbers in it."""
    photos = int(store.mask.sum()) / len(store.contract.views)
    for name, size in store.bytes_on_disk().items():
        plain = _plain_bytes(store.contract.spec(name))
        each = size / photos
        yield Row(bench="bytes", name=name, value=each, unit="B/photo", ratio=each / plain, note="plain numbers")


def bench_codecs(store: Store) -> Iterator[Row]:
    """Samples a second that one core packs, unpacks and decodes, array by array."""
    chunk = int(np.flatnonzero(store.whole_chunks())[0])
    for spec in store.contract.arrays:
        if spec.name in ("view", "status"):
            continue
        values = store.read_chunk(chunk, [spec.name], decoded=False)[spec.name]
        for name, seconds in _codec_seconds(store, spec, values):
            yield Row(bench=name, name=spec.name, value=len(values) / seconds, unit="samples/s a core")


def bench_reading(store: Store, place: Path, rounds: int = ROUNDS) -> Iterator[Row]:
    """Samples a second of whole epochs, from the same numbers in every format.

    All formats hold images, disparity and features as Delta stores them, of the store's first samples. They take turns,
    so that a noisy machine is noisy for all; the median counts, without the first round, which fills the page cache.

    Raises:
        DeltaError: a peer's package is not installed.
    """
    with tempfile.TemporaryDirectory(prefix=".delta-bench-", dir=place) as scratch:
        formats, samples = _write_formats(store, Path(scratch))
        rates: dict[str, list[float]] = {name: [] for name in formats}
        for turn in range(rounds + 1):
            for name, (read, _) in formats.items():
                began = time.perf_counter()
                count = read(turn)
                rates[name].append(count / (time.perf_counter() - began))
        medians = {name: statistics.median(values[1:]) for name, values in rates.items()}
        for name, (_, size) in formats.items():
            yield Row(
                bench="read", name=name, value=medians[name], unit="samples/s",
                ratio=medians[name] / medians["raw memmap"], note=f"memmap; {size / samples / 1000:.0f} kB a sample",
            )  # fmt: skip


def _write_formats(store: Store, scratch: Path) -> tuple[dict[str, tuple[bench_peers.Read, int]], int]:
    names = [spec.name for spec in store.contract.arrays if spec.name.split("/")[0] in READ_GROUPS]
    photos = min(SAMPLES // len(store.contract.views) or 1, len(store.photos))
    own = subset(store, scratch / "delta.zarr", photos=photos, arrays=names)
    records = _records(own, names)
    formats = {"raw memmap": (bench_peers.memmap(records, scratch / "memmap.npy", own.contract.chunk_samples))}
    plain = _uncompressed(own, scratch / "plain.zarr")
    formats["delta, uncompressed"] = _reader(plain, names)
    formats["delta"] = _reader(own, names)
    formats["delta, digests checked"] = lambda turn: _reader(open_cache(own.url), names)(turn)
    places = {"raw memmap": "memmap.npy", "delta, uncompressed": "plain.zarr"}
    for number, (name, peer) in enumerate(bench_peers.PEERS.items()):
        formats[name] = peer(records, scratch / f"peer{number}")
        places[name] = f"peer{number}"
    sizes = {name: _bytes_under(scratch / places.get(name, "delta.zarr")) for name in formats}
    return {name: (read, sizes[name]) for name, read in formats.items()}, own.contract.samples


def _reader(store: Store, names: list[str]) -> bench_peers.Read:
    def read(epoch: int) -> int:
        order = store.chunks_in_order(seed=0, epoch=epoch)
        return sum(len(store.read_chunk(chunk, names, decoded=False)[names[0]]) for chunk, _ in order)

    return read


def _records(store: Store, names: list[str]) -> np.ndarray:
    """All samples as one array of records, as they are stored."""
    fields = [(spec.name, spec.dtype, spec.shape) for spec in map(store.contract.spec, names)]
    records = np.zeros(store.contract.samples, np.dtype(fields))
    for chunk in range(store.contract.chunks):
        span = store.contract.chunk_range(chunk)
        for name, values in store.read_chunk(chunk, names, decoded=False).items():
            records[name][span.start : span.stop] = values
    return records


def _uncompressed(store: Store, path: Path) -> Store:
    """The same store without a compressor."""
    arrays = tuple(msgspec.structs.replace(spec, compressor="none") for spec in store.contract.arrays)
    contract = msgspec.structs.replace(store.contract, arrays=arrays, basis_sha256="")
    plain = open_or_create(path, contract, store.photos, store.provenance, lambda: store.bases)
    for chunk in range(contract.chunks):
        record = store.record(chunk)
        assert record is not None  # a subset is complete
        write_chunk(plain, chunk, store.read_chunk(chunk, [s.name for s in arrays], decoded=False), record.samples)
    return plain


def _codec_seconds(store: Store, spec: ArraySpec, values: np.ndarray) -> Iterator[tuple[str, float]]:
    length = store.contract.chunk_samples
    packed = compress(values, spec, length)
    yield "pack", _seconds(lambda: compress(values, spec, length))
    yield "unpack", _seconds(lambda: decompress(packed, spec, length))
    if isinstance(spec.encoding, Jpeg):
        yield "decode", _seconds(lambda: [decode_jpeg(row) for row in values if row[0]])
    if isinstance(spec.encoding, Basis):
        basis = store.bases[spec.name.split("/")[1]]
        yield "decode", _seconds(lambda: basis.decode(values))


def _seconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _plain_bytes(spec: ArraySpec) -> int:
    """Bytes of the numbers themselves: u8 pixels, float16 values; features at their own channels and grid."""
    if isinstance(spec.encoding, Jpeg):
        return spec.encoding.side_px**2 * 3
    if isinstance(spec.encoding, Basis):
        return spec.encoding.channels * spec.shape[1] * spec.shape[2] * 2
    return int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize


def _bytes_under(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
