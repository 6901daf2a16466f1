"""A store written by the first Delta that had format version 1 stays readable, with or without Delta."""

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from delta_cache.reader import Store
from delta_cache.schema import ArraySpec, Photo, Status, order_photos

STORE = Path(__file__).parent / "store_v1.zarr"
FINGERPRINT = "c60938cee5d9b2a6a24ad265fb5f7452cac4d9348fee472f8abc4fd134fb9bf3"
ORDER = [2, 1, 0, 4, 3]
ARRAYS = {
    "image": ((8, 8, 3), "uint8"),
    "disparity": ((8, 8), "float16"),
    "view": ((7,), "float32"),
    "status": ((), "uint8"),
    "features/block03": ((4, 2, 2), "float16"),
    "attention/block03": ((2, 2, 2), "float16"),
}


@pytest.fixture
def store() -> Store:
    return Store.open(STORE).require_complete()


def expected(name: str) -> np.ndarray:
    """The formula of regenerate_store.py: arange / 4 + sample (arange + sample for u8), zeros for sample 3."""
    shape, dtype = ARRAYS[name]
    if name == "status":
        return np.array([1, 1, 1, 2, 1], dtype)
    steps = np.arange(np.prod(shape)) * (1 if dtype == "uint8" else 0.25)
    values = np.stack([(steps + sample).reshape(shape).astype(dtype) for sample in range(5)])
    values[3] = 0
    return values


def test_the_contract_reads_as_it_was_written(store: Store) -> None:
    assert store.contract.fingerprint == FINGERPRINT
    assert (store.contract.format, store.contract.version) == ("delta-cache", 1)
    assert (store.contract.samples, store.contract.chunk_samples, store.contract.chunks) == (5, 2, 3)
    assert store.contract.teacher["name"] == "formula"
    assert store.contract.recipe["taps"] == [3]
    assert store.contract.arrays == tuple(
        ArraySpec(name=name, shape=shape, dtype=dtype) for name, (shape, dtype) in ARRAYS.items()
    )
    assert store.provenance == {"tools": {"delta": "0.1.0"}}


def test_the_answers_read_as_they_were_written(store: Store) -> None:
    chunks = [store.read_chunk(chunk, list(ARRAYS)) for chunk in range(3)]
    for name in ARRAYS:
        np.testing.assert_array_equal(np.concatenate([chunk[name] for chunk in chunks]), expected(name), err_msg=name)


def test_the_ledger_reads_as_it_was_written(store: Store) -> None:
    assert store.status().tolist() == [Status.OK, Status.OK, Status.OK, Status.FAILED, Status.OK]
    assert store.failures() == {store.photos[3].path: "it cannot be decoded: golden"}
    assert all(store.is_whole(chunk, digests=True) for chunk in range(3))


def test_the_photos_keep_their_order(store: Store) -> None:
    """The shuffle of seed 0: a Python that shuffled otherwise would resume stores in another order."""
    photos = [Photo(path=f"below/{number}.jpg", bytes=1000 + number) for number in range(5)]
    assert store.photos == [photos[number] for number in ORDER]
    assert order_photos(photos, seed=0) == store.photos


def test_any_reader_of_zarr_v3_opens_the_arrays() -> None:
    group = zarr.open_group(str(STORE), mode="r")
    for name in ARRAYS:
        array = group[name]
        assert isinstance(array, zarr.Array)
        assert (array.metadata.zarr_format, array.shape[0]) == (3, 5)
        np.testing.assert_array_equal(np.asarray(array[:]), expected(name), err_msg=name)


def test_the_documented_files_are_there() -> None:
    """The names in cache/README.md, read with nothing but json."""
    delta = json.loads((STORE / "zarr.json").read_text())["attributes"]["delta"]
    assert delta.keys() == {"contract", "fingerprint", "provenance"}
    assert delta["fingerprint"] == FINGERPRINT
    lines = (STORE / "photos.jsonl").read_text().splitlines()
    assert [json.loads(line).keys() for line in lines] == [{"path", "bytes"}] * 5
    record = json.loads((STORE / "ledger" / "00000001.json").read_text())
    assert record.keys() == {"chunk", "files", "samples"}
    assert [sample.keys() for sample in record["samples"]] == [{"path", "sha256", "failure"}] * 2
    for name, (size, digest) in record["files"].items():
        assert (STORE / name).stat().st_size == size
        assert len(digest) == 64
