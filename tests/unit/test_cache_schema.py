"""The contract is plain data: one fingerprint for one set of answers, and a readable line for every difference."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_cache.reader import chunk_file, ledger_name
from delta_cache.schema import ArraySpec, ChunkRecord, Contract, Photo, SampleRecord, difference, digest_photos


def contract(**changes: Any) -> Contract:
    fields: dict[str, Any] = {
        "teacher": {"name": "fake", "weights_sha256": "a" * 64, "dtype": "float32"},
        "recipe": {"size_px": 70, "taps": [3, 12], "view": "largest centered square"},
        "photos": {"count": 10, "list_sha256": "b" * 64},
        "arrays": (ArraySpec(name="image", shape=(70, 70, 3), dtype="uint8"),),
        "codec": {"cname": "zstd", "clevel": 3},
        "chunk_samples": 4,
        "samples": 10,
    }
    return Contract(**fields | changes)


@given(samples=st.integers(1, 500), chunk_samples=st.integers(1, 70))
def test_chunks_cut_the_samples_without_gap_or_overlap(samples: int, chunk_samples: int) -> None:
    cut = contract(samples=samples, chunk_samples=chunk_samples)
    members = [sample for chunk in range(cut.chunks) for sample in cut.chunk_range(chunk)]
    assert members == list(range(samples))
    lengths = [len(cut.chunk_range(chunk)) for chunk in range(cut.chunks)]
    assert set(lengths[:-1]) <= {chunk_samples}
    assert 1 <= lengths[-1] <= chunk_samples


def test_the_fingerprint_survives_json_and_the_order_of_keys() -> None:
    ours = contract()
    read_back = msgspec.json.decode(msgspec.json.encode(ours), type=Contract)
    assert read_back.fingerprint == ours.fingerprint
    assert contract(codec={"clevel": 3, "cname": "zstd"}).fingerprint == ours.fingerprint
    assert len(ours.fingerprint) == 64


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, []),
        ({"samples": 11}, ["samples: store 11, asked 10"]),
        (
            {"teacher": {"name": "other", "weights_sha256": "c" * 64, "dtype": "float32"}},
            [
                'teacher.name: store "other", asked "fake"',
                f'teacher.weights_sha256: store "{"c" * 23}…{"c" * 7}", asked "{"a" * 23}…{"a" * 7}"',
            ],
        ),
        (
            {"recipe": {"size_px": 70, "taps": [3, 6, 12]}},
            [
                "recipe.taps: store [3, 6, 12], asked [3, 12]",
                'recipe.view: store nothing, asked "largest centered square"',
            ],
        ),
        (
            {"arrays": (ArraySpec(name="image", shape=(84, 84, 3), dtype="uint8"),)},
            ["arrays.image.shape: store [84, 84, 3], asked [70, 70, 3]"],
        ),
        (
            {"arrays": ()},
            [
                "arrays: store [], asked nothing",
                'arrays.image.dtype: store nothing, asked "uint8"',
                'arrays.image.name: store nothing, asked "image"',
                "arrays.image.shape: store nothing, asked [70, 70, 3]",
            ],
        ),
    ],
)
def test_every_difference_is_one_readable_line(changes: dict[str, Any], lines: list[str]) -> None:
    assert difference(contract(), contract(**changes)) == lines


@given(
    field=st.sampled_from(["teacher", "recipe", "photos", "codec"]),
    key=st.text("abc", min_size=1),
    value=st.one_of(st.integers(-5, 5), st.booleans(), st.text("xyz", max_size=5), st.lists(st.integers(), max_size=3)),
)
def test_contracts_differ_exactly_when_their_fingerprints_do(field: str, key: str, value: Any) -> None:
    ours = contract()
    theirs = contract(**{field: getattr(ours, field) | {key: value}})
    assert bool(difference(ours, theirs)) == (ours.fingerprint != theirs.fingerprint)


def test_the_photo_lists_digest_minds_order_names_and_sizes() -> None:
    first, second = Photo(path="a.jpg", bytes=1), Photo(path="b.jpg", bytes=2)
    lists = [[], [first], [second], [first, second], [second, first], [Photo(path="a.jpg", bytes=3)]]
    assert len({digest_photos(photos) for photos in lists}) == len(lists)


def test_chunks_have_the_file_names_that_zarr_gives_them() -> None:
    assert chunk_file("status", 1, 7) == "status/c/7"
    assert chunk_file("features/block03", 4, 12) == "features/block03/c/12/0/0/0"
    assert ledger_name(12) == "00000012.json"


def test_records_refuse_what_they_do_not_know() -> None:
    record = ChunkRecord(chunk=0, files={"a/c/0": (3, "ff")}, samples=(SampleRecord(path="a.jpg", sha256=""),))
    assert msgspec.json.decode(msgspec.json.encode(record), type=ChunkRecord) == record
    with pytest.raises(msgspec.ValidationError, match="unknown field `color`"):
        msgspec.json.decode(b'{"path":"a","bytes":1,"color":2}', type=Photo)
    with pytest.raises(msgspec.ValidationError, match="Invalid enum value 'float64'"):
        msgspec.json.decode(b'{"name":"a","shape":[],"dtype":"float64"}', type=ArraySpec)
