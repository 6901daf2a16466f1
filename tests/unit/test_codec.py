"""Chunk bytes and back: what zarr itself would write, floats rounded within their bound, JPEG files in rows."""

import tempfile

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import LocalStore

from delta_cache.codec import compress, decode_jpeg, decompress, encode_jpeg, jpeg_rows, round_mantissa
from delta_cache.layout import compressors
from delta_cache.schema import ArraySpec

HALVES = st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=64).map(lambda bits: np.array(bits, np.uint16))
SPECS = st.builds(
    ArraySpec,
    name=st.just("a"),
    shape=st.lists(st.integers(1, 5), max_size=3).map(tuple),
    dtype=st.sampled_from(["uint8", "int8", "float16", "float32"]),
    compressor=st.sampled_from(["zstd", "lz4", "none"]),
    level=st.integers(0, 9),
)


@given(raw=HALVES, bits=st.integers(1, 10))
def test_rounding_errs_by_half_a_step_at_most_and_once_only(raw: np.ndarray, bits: int) -> None:
    values = raw.view(np.float16)
    rounded = round_mantissa(values, bits)
    assert rounded.dtype == np.float16
    np.testing.assert_array_equal(round_mantissa(rounded, bits), rounded)  # nothing is left to round
    odd = ~np.isfinite(values)
    assert rounded[odd].tobytes() == values[odd].tobytes()
    exact, near = values[~odd].astype(np.float64), rounded[~odd].astype(np.float64)
    grown = np.isinf(near)  # what rounds up beyond float16
    assert (np.abs(exact[grown]) >= 65504 * (1 - 2.0 ** -(bits + 1))).all()
    step = np.maximum(np.abs(exact), 2.0**-14) * 2.0 ** -(bits + 1)  # below 2^-14 steps stay those of 2^-14
    assert (np.abs(near - exact)[~grown] <= step[~grown]).all()


@given(raw=HALVES, bits=st.integers(1, 9))
def test_the_bits_that_are_dropped_are_zeros(raw: np.ndarray, bits: int) -> None:
    rounded = round_mantissa(raw.view(np.float16), bits)
    finite = np.isfinite(rounded)
    assert (rounded.view(np.uint16)[finite] % (1 << (10 - bits)) == 0).all()


def test_a_tie_goes_to_the_even_neighbor_and_rounding_has_no_drift() -> None:
    ties = np.array([1 + 1 / 16, 1 + 3 / 16, -1 - 1 / 16, 1 + 5 / 16], np.float16)  # halfway, at three bits
    assert round_mantissa(ties, 3).tolist() == [1.0, 1.25, -1.0, 1.25]
    values = np.random.default_rng(0).uniform(1, 2, 100_000).astype(np.float16)
    drift = (round_mantissa(values, 5).astype(np.float64) - values).mean()
    assert abs(drift) < 2.0**-6 / np.sqrt(3 * 100_000) * 4


def test_ten_bits_are_all_there_are() -> None:
    values = np.arange(2**16, dtype=np.uint16).view(np.float16)
    assert round_mantissa(values, 10).tobytes() == values.tobytes()


def random_values(spec: ArraySpec, samples: int) -> np.ndarray:
    width = np.dtype(spec.dtype).itemsize
    raw = np.random.default_rng(samples).bytes(samples * int(np.prod(spec.shape)) * width)
    return np.frombuffer(raw, spec.dtype).reshape(samples, *spec.shape)


@settings(max_examples=40)
@given(spec=SPECS, samples=st.integers(1, 5), missing=st.integers(0, 3))
def test_a_chunk_is_what_zarr_writes_and_reads(spec: ArraySpec, samples: int, missing: int) -> None:
    length, values = samples + missing, random_values(spec, samples)
    whole = np.concatenate([values, np.zeros((missing, *spec.shape), spec.dtype)])
    ours = compress(values, spec, length)
    assert decompress(ours, spec, length).tobytes() == whole.tobytes()
    with tempfile.TemporaryDirectory() as folder:
        array = zarr.create_array(
            LocalStore(folder),
            shape=whole.shape,
            chunks=whole.shape,
            dtype=spec.dtype,
            fill_value=0,
            compressors=compressors(spec),
            config={"write_empty_chunks": True},
        )
        array[...] = whole
        (path,) = [path for path in array.store.root.rglob("*") if path.is_file() and path.name != "zarr.json"]
        theirs = path.read_bytes()
        assert decompress(theirs, spec, length).tobytes() == whole.tobytes()
        path.write_bytes(ours)
        assert np.asarray(array[...]).tobytes() == whole.tobytes()


@pytest.mark.parametrize("compressor", ["zstd", "none"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"\xff" * 40])
def test_bytes_that_are_no_chunk_are_refused_by_the_arrays_name(compressor: str, content: bytes) -> None:
    spec = ArraySpec(name="disparity", shape=(3,), dtype="float32", compressor=compressor)
    with pytest.raises(ValueError, match=r"^disparity: "):
        decompress(content, spec, 2)


def picture(side: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((side // 4, side // 4, 1), np.uint8))


def test_jpeg_files_come_back_from_their_rows_zeros_and_all() -> None:
    files = [encode_jpeg(picture(32, seed), 95, 4096) for seed in range(3)]
    rows = jpeg_rows(files, 4096)
    assert rows.shape == (3, 4096)
    for row, content in zip(rows, files, strict=True):
        assert row[: len(content)].tobytes() == content
        assert not row[len(content) :].any()
        np.testing.assert_array_equal(decode_jpeg(row), decode_jpeg(content))


def test_a_jpeg_is_near_its_image_and_keeps_colors_at_full_resolution() -> None:
    """Red and blue pixels side by side: with chroma at half resolution they would be purple."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, ::2, 0], image[:, 1::2, 2] = 255, 255
    decoded = decode_jpeg(encode_jpeg(image, 95, 32 * 32 * 3)).astype(int)
    assert np.abs(decoded - image).mean() < 8


def test_an_image_too_busy_for_its_row_is_kept_at_a_lower_quality() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    free = encode_jpeg(noise, 95, 10**6)
    tight = encode_jpeg(noise, 95, len(free) * 2 // 3)
    assert len(tight) <= len(free) * 2 // 3
    assert decode_jpeg(tight).shape == noise.shape
    with pytest.raises(ValueError, match="no JPEG quality fits 100 bytes"):
        encode_jpeg(noise, 95, 100)
