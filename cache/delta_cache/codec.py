"""Samples to chunk bytes and back: Blosc as Zarr v3 writes it, float16 with fewer bits, JPEG rows.

A chunk file is exactly what Zarr would have written; a test opens every store with plain zarr. Doing it here, on bytes,
is what lets a chunk be digested, written once and renamed, and read with one copy.
"""

import io

import numpy as np
from numcodecs import blosc  # pyright: ignore[reportAttributeAccessIssue] # a compiled module
from PIL import Image

from delta_cache.schema import ArraySpec

SHUFFLES = {"noshuffle": blosc.NOSHUFFLE, "bitshuffle": blosc.BITSHUFFLE}
MANTISSA_BITS = 10
HEADER_SIZE = slice(4, 8)  # where Blosc keeps the length of what it packed


def compress(values: np.ndarray, spec: ArraySpec, chunk_samples: int) -> bytes:
    """Pack the samples of one chunk; a short last chunk is filled up with zeros, as Zarr's grid asks."""
    if len(values) < chunk_samples:
        filled = np.zeros((chunk_samples, *spec.shape), spec.dtype)
        filled[: len(values)] = values
        values = filled
    values = np.ascontiguousarray(values)
    if spec.compressor == "none":
        return values.tobytes()
    return blosc.compress(values, spec.compressor.encode(), spec.level, SHUFFLES[spec.shuffle])


def decompress(content: bytes | np.ndarray, spec: ArraySpec, chunk_samples: int) -> np.ndarray:
    """Unpack one chunk: (chunk_samples, *shape), in memory of its own where it was compressed.

    Raises:
        ValueError: the bytes are not such a chunk.
    """
    try:
        if spec.compressor == "none":
            return np.frombuffer(content, spec.dtype).reshape(chunk_samples, *spec.shape)
        values = np.empty((chunk_samples, *spec.shape), spec.dtype)
        if int.from_bytes(bytes(content[HEADER_SIZE]), "little") != values.nbytes:
            raise ValueError(f"it does not hold {chunk_samples} samples")
        blosc.decompress(content, values)
        return values
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{spec.name}: {error}") from error


def round_mantissa(values: np.ndarray, bits: int) -> np.ndarray:
    """Round float16 to `bits` mantissa bits, half to even: at most 2^-(bits+1) relative error, many equal bit planes.

    Infinities and NaN stay what they are; what would round beyond float16 becomes infinite.
    """
    drop = MANTISSA_BITS - bits
    if drop <= 0:
        return values
    raw = values.view(np.uint16).astype(np.uint32)
    rounded = (raw + (1 << (drop - 1)) - 1 + ((raw >> drop) & 1)) >> drop << drop
    return np.where(np.isfinite(values), rounded.astype(np.uint16).view(np.float16), values)


def jpeg_rows(files: list[bytes], width: int) -> np.ndarray:
    """Lay JPEG files out as rows of `width` bytes, zeros behind each (n, width)."""
    rows = np.zeros((len(files), width), np.uint8)
    for row, content in zip(rows, files, strict=True):
        row[: len(content)] = np.frombuffer(content, np.uint8)
    return rows


def encode_jpeg(image: np.ndarray, quality: int, limit: int) -> bytes:
    """Encode u8 (h, w, 3) without chroma subsampling, at a lower quality where `limit` bytes would not do."""
    for attempt in range(quality, 0, -5):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=attempt, subsampling=0)
        if buffer.tell() <= limit:
            return buffer.getvalue()
    raise ValueError(f"no JPEG quality fits {limit} bytes")


def decode_jpeg(row: np.ndarray | bytes) -> np.ndarray:
    """Decode a JPEG file, zeros behind it or not, to u8 (h, w, 3)."""
    with Image.open(io.BytesIO(bytes(row))) as image:
        return np.asarray(image.convert("RGB"))
