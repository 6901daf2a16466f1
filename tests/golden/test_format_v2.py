"""A store written by the first Delta that had format version 2 stays readable, with or without Delta."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

from delta_cache.errors import CacheError
from delta_cache.reader import Store, open_cache
from delta_cache.schema import Basis, Jpeg, Photo, Plain, Rounded, Status, order_photos
from delta_cache.verify import verify

STORE = Path(__file__).parent / "store_v2.zarr"
FINGERPRINT = "83a984dcd474a599e4b5167acb5f9d062fde32533af4ca9d9001b9887399ecd9"
ORDER = [2, 1, 0, 4, 3]
OK = np.array([1, 1, 1, 0, 1] * 2, bool)
ARRAYS = {
    "image": ((1024,), "uint8", Jpeg(side_px=16, quality=95)),
    "disparity": ((16, 16), "float16", Rounded(bits=7)),
    "view": ((7,), "float32", Plain()),
    "status": ((), "uint8", Plain()),
    "features/block03": ((2, 2, 2), "int8", Basis(channels=4)),
    "features/block12": ((4, 2, 2), "float16", Plain()),
    "attention/block03": ((2, 2, 2), "float16", Rounded(bits=7)),
}
NUMBERS = [name for name in ARRAYS if name != "image"]
MEAN, SCALE = np.array([1, 2, 3, 4], np.float32), np.array([0.5, 0.25], np.float32)
AXES = np.array([[0.5, 0.5, 0.5, 0.5], [0.5, -0.5, 0.5, -0.5]], np.float32)


@pytest.fixture
def store() -> Store:
    return open_cache(STORE)


def expected(name: str) -> np.ndarray:
    """The formula of regenerate_store.py: arange % 16 / 4 + sample (whole steps for codes), zeros where it failed."""
    shape, dtype, _ = ARRAYS[name]
    if name == "status":
        return np.where(OK, 1, 2).astype(dtype)
    steps = np.arange(np.prod(shape)) % 16 * (1 if dtype == "int8" else 0.25)
    values = np.stack([(steps + sample).reshape(shape).astype(dtype) for sample in range(10)])
    values[~OK] = 0
    return values


def expected_features() -> np.ndarray:
    """mean + (code * scale) @ axes, spelled out."""
    codes = expected("features/block03").astype(np.float32)
    values = np.zeros((10, 4, 2, 2), np.float32)
    for component in range(2):
        for channel in range(4):
            values[:, channel] += codes[:, component] * SCALE[component] * AXES[component, channel]
    return values + MEAN[:, None, None]


def read(store: Store, names: list[str], *, decoded: bool) -> dict[str, np.ndarray]:
    chunks = [store.read_chunk(chunk, names, decoded=decoded) for chunk in range(3)]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in names}


def test_the_contract_reads_as_it_was_written(store: Store) -> None:
    assert store.contract.fingerprint == FINGERPRINT
    assert (store.contract.format, store.contract.version) == ("delta-cache", 2)
    assert (store.contract.samples, store.contract.chunk_samples, store.contract.chunks) == (10, 4, 3)
    assert (store.contract.views, store.contract.photo_count) == (("plain", "mirrored"), 5)
    assert store.contract.teacher["architecture"] == "formula"
    assert store.contract.recipe["taps"] == [3, 12]
    assert {spec.name: (spec.shape, spec.dtype, spec.encoding) for spec in store.contract.arrays} == ARRAYS
    assert [spec.compressor for spec in store.contract.arrays] == ["lz4", *["zstd"] * 4, "none", "zstd"]
    assert store.provenance == {"teacher": "formula", "tools": {"delta": "0.1.0"}}
    assert store.teacher["name"] == "formula"


def test_the_answers_read_as_they_were_written(store: Store) -> None:
    for name, values in read(store, NUMBERS, decoded=False).items():
        np.testing.assert_array_equal(values, expected(name), err_msg=name)
        assert values.dtype == expected(name).dtype


def test_codes_become_features_and_rows_images(store: Store) -> None:
    data = read(store, [*ARRAYS], decoded=True)
    np.testing.assert_array_equal(data["features/block03"], expected_features())
    np.testing.assert_array_equal(data["features/block12"], expected("features/block12"))
    assert data["image"].shape == (10, 16, 16, 3)
    grays = np.where(OK, 20 * np.arange(10), 0)[:, None, None, None]
    assert np.abs(data["image"].astype(int) - grays).max() <= 1  # decoders may round otherwise


def test_the_ledger_reads_as_it_was_written(store: Store) -> None:
    assert store.status().tolist() == [Status.OK if ok else Status.FAILED for ok in OK]
    assert store.mask.tolist() == OK.tolist()
    assert store.failures() == {store.photos[3].path: "it cannot be decoded: golden"}
    seen = verify(store, full=True)
    assert (seen.chunks, seen.findings) == (3, ())
    times = [record.times for record in store.records()]
    assert [(t.decode_s, t.teacher_s, t.write_s, t.total_s) for t in times] == [(0.5, 1.5, 0.25, 2.0)] * 3


def test_the_basis_reads_as_it_was_written(store: Store) -> None:
    (basis,) = store.bases.values()
    np.testing.assert_array_equal(basis.axes, AXES)
    assert basis.std.tolist() == [1, 1, 2, 2]
    assert basis.holdout_cosine == 0.875


def test_the_photos_keep_their_order(store: Store) -> None:
    """The shuffle of seed 0: a Python that shuffled otherwise would resume stores in another order."""
    photos = [Photo(path=f"below/{number}.jpg", bytes=1000 + number) for number in range(5)]
    assert store.photos == [photos[number] for number in ORDER]
    assert order_photos(photos, seed=0) == store.photos


def test_any_reader_of_zarr_v3_opens_the_arrays_and_the_basis() -> None:
    group = zarr.open_group(str(STORE), mode="r")
    for name in NUMBERS:
        array = group[name]
        assert isinstance(array, zarr.Array)
        assert (array.metadata.zarr_format, array.shape[0]) == (3, 10)
        np.testing.assert_array_equal(np.asarray(array[:]), expected(name), err_msg=name)
    basis = {name: np.asarray(group[f"basis/block03/{name}"][:]) for name in ("mean", "axes", "scale")}
    codes = np.asarray(group["features/block03"][:])
    values = np.einsum("kc,nkyx->ncyx", basis["axes"] * basis["scale"][:, None], codes) + basis["mean"][:, None, None]
    np.testing.assert_array_equal(values, expected_features())


def test_any_reader_of_jpeg_opens_a_row_zeros_and_all() -> None:
    rows = np.asarray(zarr.open_group(str(STORE), mode="r")["image"][:])
    assert [row.any() for row in rows] == OK.tolist()
    for sample in np.flatnonzero(OK):
        with Image.open(io.BytesIO(rows[sample].tobytes())) as image:
            assert (image.format, image.size) == ("JPEG", (16, 16))
            assert np.abs(np.asarray(image).astype(int) - 20 * sample).max() <= 1


def test_the_documented_files_are_there() -> None:
    """The names in cache/README.md, read with nothing but json."""
    delta = json.loads((STORE / "zarr.json").read_text())["attributes"]["delta"]
    assert delta.keys() == {"contract", "fingerprint", "provenance"}
    assert delta["fingerprint"] == FINGERPRINT
    lines = (STORE / "photos.jsonl").read_text().splitlines()
    assert [json.loads(line).keys() for line in lines] == [{"path", "bytes"}] * 5
    text = (STORE / "ledger" / "00000001.json").read_text()
    entry = json.loads(text)
    assert entry.keys() == {"record", "sha256"}
    inner = text.removeprefix('{"record":').rpartition(',"sha256"')[0]
    assert hashlib.sha256(inner.encode()).hexdigest() == entry["sha256"]
    assert entry["record"].keys() == {"chunk", "files", "samples", "times"}
    assert [sample.keys() for sample in entry["record"]["samples"]] == [{"path", "sha256", "failure"}] * 4
    for name, (size, digest) in entry["record"]["files"].items():
        content = (STORE / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (size, digest)
    arrays = {name: json.loads((STORE / name / "zarr.json").read_text()) for name in ARRAYS}
    assert arrays["disparity"]["attributes"]["encoding"] == {"kind": "rounded", "bits": 7}
    assert arrays["disparity"]["dimension_names"] == ["sample", "y", "x"]


def test_a_store_of_version_1_is_refused_in_a_sentence() -> None:
    with pytest.raises(CacheError, match=r"is a cache of format version 1; this Delta reads version 2$") as caught:
        Store.open(Path(__file__).parent / "store_v1.zarr")
    assert caught.value.hint == "build it again with this Delta, or install the Delta that made it"
