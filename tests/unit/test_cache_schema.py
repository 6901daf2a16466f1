"""The contract is plain data: one fingerprint for one set of answers, and a readable line for every difference."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_cache.layout import chunk_file, ledger_file
from delta_cache.schema import (
    ArraySpec,
    Basis,
    ChunkRecord,
    Contract,
    Jpeg,
    Photo,
    Plain,
    Rounded,
    SampleRecord,
    Times,
    difference,
    digest_photos,
    open_entry,
    seal_entry,
)


def contract(**changes: Any) -> Contract:
    fields: dict[str, Any] = {
        "teacher": {"architecture": "fake", "weights_sha256": "a" * 64, "precision": "float32"},
        "recipe": {"size_px": 70, "taps": [3, 12], "image": {"kind": "jpeg", "quality": 95}},
        "photos": {"count": 10, "list_sha256": "b" * 64},
        "arrays": (ArraySpec(name="image", shape=(70, 70, 3), dtype="uint8"),),
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
    assert contract(photos={"list_sha256": "b" * 64, "count": 10}).fingerprint == ours.fingerprint
    assert len(ours.fingerprint) == 64


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, []),
        ({"samples": 11}, ["samples: store 11, asked 10"]),
        (
            {"teacher": {"architecture": "other", "weights_sha256": "c" * 64, "precision": "float32"}},
            [
                'teacher.architecture: store "other", asked "fake"',
                f'teacher.weights_sha256: store "{"c" * 23}…{"c" * 7}", asked "{"a" * 23}…{"a" * 7}"',
            ],
        ),
        (
            {"recipe": {"size_px": 70, "taps": [3, 6, 12]}},
            [
                'recipe.image.kind: store nothing, asked "jpeg"',
                "recipe.image.quality: store nothing, asked 95",
                "recipe.taps: store [3, 6, 12], asked [3, 12]",
            ],
        ),
        (
            {"arrays": (ArraySpec(name="image", shape=(84, 84, 3), dtype="uint8"),)},
            ["arrays.image.shape: store [84, 84, 3], asked [70, 70, 3]"],
        ),
        (
            {"arrays": (ArraySpec(name="image", shape=(70, 70, 3), dtype="uint8", encoding=Rounded(bits=7)),)},
            [
                "arrays.image.encoding.bits: store 7, asked nothing",
                'arrays.image.encoding.kind: store "rounded", asked "plain"',
            ],
        ),
        ({"views": ("plain", "mirrored")}, ['views: store ["plain", "mirrored"], asked ["plain"]']),
        (
            {"arrays": ()},
            [
                "arrays: store [], asked nothing",
                "arrays.image.axes: store nothing, asked []",
                'arrays.image.compressor: store nothing, asked "zstd"',
                'arrays.image.dtype: store nothing, asked "uint8"',
                'arrays.image.encoding.kind: store nothing, asked "plain"',
                "arrays.image.level: store nothing, asked 3",
                'arrays.image.name: store nothing, asked "image"',
                "arrays.image.shape: store nothing, asked [70, 70, 3]",
            ],
        ),
    ],
)
def test_every_difference_is_one_readable_line(changes: dict[str, Any], lines: list[str]) -> None:
    assert difference(contract(), contract(**changes)) == lines


@given(
    field=st.sampled_from(["teacher", "recipe", "photos"]),
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
    assert chunk_file(ArraySpec(name="status", shape=(), dtype="uint8"), 7) == "status/c.7"
    tap = ArraySpec(name="features/block03", shape=(6, 5, 5), dtype="float16")
    assert chunk_file(tap, 12) == "features/block03/c.12.0.0.0"
    assert ledger_file(12) == "ledger/00000012.json"


@given(photos=st.integers(1, 40), views=st.integers(1, 5), chunk_samples=st.integers(1, 9))
def test_every_photo_is_a_sample_in_every_view(photos: int, views: int, chunk_samples: int) -> None:
    names = tuple(f"view{number}" for number in range(views))
    cut = contract(samples=photos * views, chunk_samples=chunk_samples, views=names)
    seen = [(cut.photo_of(sample), cut.view_of(sample)) for sample in range(cut.samples)]
    assert cut.photo_count == photos
    assert seen == [(photo, view) for view in range(views) for photo in range(photos)]


RECORDS = st.builds(
    ChunkRecord,
    chunk=st.integers(0, 9),
    files=st.dictionaries(
        st.text("abc/.", min_size=1), st.tuples(st.integers(0, 2**40), st.text("0123456789abcdef")), max_size=3
    ),
    samples=st.lists(st.builds(SampleRecord, path=st.text(), sha256=st.text("0f"), failure=st.text())).map(tuple),
    times=st.builds(Times, decode_s=st.floats(0, 1e6), finished=st.just("2026-01-01T00:00:00.000+00:00")),
)


@given(record=RECORDS)
def test_a_sealed_entry_opens_to_its_record(record: ChunkRecord) -> None:
    assert open_entry(seal_entry(record)) == record


@given(record=RECORDS, data=st.data())
def test_an_entry_with_a_bit_flipped_does_not_open_as_another_record(record: ChunkRecord, data: st.DataObject) -> None:
    sealed = bytearray(seal_entry(record))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert open_entry(bytes(sealed)) is None


@given(record=RECORDS, data=st.data())
def test_an_entry_cut_short_does_not_open(record: ChunkRecord, data: st.DataObject) -> None:
    sealed = seal_entry(record)
    assert open_entry(sealed[: data.draw(st.integers(0, len(sealed) - 1))]) is None


def test_encodings_are_told_apart_by_their_kind() -> None:
    specs = [
        ArraySpec(name="a", shape=(3,), dtype="uint8", encoding=encoding)
        for encoding in (Plain(), Rounded(bits=7), Jpeg(side_px=8, quality=95), Basis(channels=6))
    ]
    kinds = [msgspec.to_builtins(spec)["encoding"]["kind"] for spec in specs]
    assert kinds == ["plain", "rounded", "jpeg", "basis"]
    assert msgspec.json.decode(msgspec.json.encode(specs), type=list[ArraySpec]) == specs


def test_records_refuse_what_they_do_not_know() -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field `color`"):
        msgspec.json.decode(b'{"path":"a","bytes":1,"color":2}', type=Photo)
    with pytest.raises(msgspec.ValidationError, match="Invalid enum value 'float64'"):
        msgspec.json.decode(b'{"name":"a","shape":[],"dtype":"float64"}', type=ArraySpec)
