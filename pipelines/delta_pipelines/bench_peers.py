"""The formats that others keep training samples in, each written from one record array and read in its own best way.

A reader is a function of the epoch's number that brings every sample into memory once and returns how many there were.
"""

import tarfile
from collections.abc import Callable, Iterator
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from delta.errors import DeltaError

SHARD_SAMPLES = 64
SHUFFLE_BUFFER = 128
Read = Callable[[int], int]
Peer = Callable[[np.ndarray, Path], Read]


def memmap(records: np.ndarray, path: Path, chunk_samples: int) -> Read:
    """A memory map copied in runs of a chunk, in random order: the limit of what this machine gives."""
    np.save(path, _bytes(records))
    mapped = np.load(path, mmap_mode="r")
    starts = np.arange(0, len(records), chunk_samples)

    def read(epoch: int) -> int:
        shuffled = np.random.default_rng(epoch).permutation(starts)
        return sum(len(np.array(mapped[first : first + chunk_samples])) for first in shuffled)

    return read


def npy_files(records: np.ndarray, path: Path) -> Read:
    """A .npy file a sample, in random order."""
    path.mkdir()
    for number, content in enumerate(_bytes(records)):
        np.save(path / f"{number}.npy", content)
    return lambda epoch: sum(1 for n in _shuffled(records, epoch) if np.load(path / f"{n}.npy").size)


def zarr_shards(records: np.ndarray, path: Path) -> Read:
    """Zarr shards of 64 samples, a sample an inner chunk with Blosc's zstd, read sample by sample in random order."""
    group = zarr.open_group(str(path), mode="w")
    for name in records.dtype.names or ():
        values = records[name]
        array = group.create_array(
            name, shape=values.shape, dtype=values.dtype, chunks=(1, *values.shape[1:]),
            shards=(SHARD_SAMPLES, *values.shape[1:]), compressors=BloscCodec(cname="zstd", clevel=3),
        )  # fmt: skip
        whole = len(values) // SHARD_SAMPLES * SHARD_SAMPLES
        array[:whole] = values[:whole]
        array[whole:] = values[whole:]
    opened: Any = zarr.open_group(str(path), mode="r")
    arrays = [opened[name] for name in records.dtype.names or ()]
    return lambda epoch: sum(1 for n in _shuffled(records, epoch) if [np.asarray(array[int(n)]) for array in arrays])


def hdf5(records: np.ndarray, path: Path) -> Read:
    """HDF5 datasets in chunks of one sample, shuffled bytes and lzf (its fast filter), in random order."""
    h5py = _package("h5py")
    with h5py.File(path, "w") as file:
        for name in records.dtype.names or ():
            values = records[name]
            file.create_dataset(name, data=values, chunks=(1, *values.shape[1:]), compression="lzf", shuffle=True)
    opened = h5py.File(path, "r")
    datasets = [opened[name] for name in records.dtype.names or ()]
    return lambda epoch: sum(1 for n in _shuffled(records, epoch) if [dataset[int(n)] for dataset in datasets])


def webdataset(records: np.ndarray, path: Path) -> Read:
    """Tar files of 64 samples by WebDataset, read in order through its shuffle buffer."""
    package = _package("webdataset")
    path.mkdir()
    for first in range(0, len(records), SHARD_SAMPLES):
        with tarfile.open(path / f"{first // SHARD_SAMPLES:06d}.tar", "w") as tar:
            for number, record in enumerate(records[first : first + SHARD_SAMPLES], first):
                content = record.tobytes()
                entry = tarfile.TarInfo(f"{number:08d}.bin")
                entry.size = len(content)
                tar.addfile(entry, BytesIO(content))
    shards = [str(file) for file in sorted(path.iterdir())]

    def read(epoch: int) -> int:
        samples = package.WebDataset(shards, shardshuffle=False, empty_check=False).shuffle(SHUFFLE_BUFFER, seed=epoch)
        return sum(len(np.frombuffer(bytearray(sample["bin"]), records.dtype)) for sample in samples)

    return read


PEERS: dict[str, Peer] = {
    "zarr shards, by sample": zarr_shards,
    "npy file a sample": npy_files,
    "hdf5, by sample": hdf5,
    "webdataset": webdataset,
}


def _bytes(records: np.ndarray) -> np.ndarray:
    """Records as rows of bytes, which numpy copies at once instead of field by field: (n, bytes a record)."""
    return records.view(np.uint8).reshape(len(records), -1)


def _shuffled(records: np.ndarray, epoch: int) -> Iterator[int]:
    yield from np.random.default_rng(epoch).permutation(len(records))


def _package(name: str) -> Any:

    try:
        return import_module(name)
    except ImportError:
        message = f"{name} is not installed, which this benchmark compares with"
        raise DeltaError(message, "pip install 'delta-depth[bench]'") from None
