"""Write tests/golden/store_v2.zarr anew. Only when the format changes: in its own commit, with the reason.

    PYTHONPATH=.:cache:pipelines python tests/golden/regenerate_store.py

Every number follows from the formulas below, which test_format_v2.py repeats; no photo and no teacher is needed.
Every encoding is in it: JPEG rows, rounded floats, codes in a basis, plain floats, and two views of each photo.
"""

import shutil
from pathlib import Path

import numpy as np

from delta_cache.basis import TapBasis
from delta_cache.codec import encode_jpeg, jpeg_rows
from delta_cache.schema import (
    ArraySpec,
    Basis,
    Contract,
    Jpeg,
    Photo,
    Rounded,
    SampleRecord,
    Status,
    Times,
    digest_photos,
    order_photos,
)
from delta_cache.writer import open_or_create, write_chunk

STORE = Path(__file__).parent / "store_v2.zarr"
PHOTOS, VIEWS, CHUNK, FAILED = 5, ("plain", "mirrored"), 4, (3, 8)  # the fourth photo, in both views
SPECS = (
    ArraySpec(
        name="image", shape=(1024,), dtype="uint8", axes=("byte",),
        encoding=Jpeg(side_px=16, quality=95), compressor="lz4",
    ),
    ArraySpec(name="disparity", shape=(16, 16), dtype="float16", axes=("y", "x"), encoding=Rounded(bits=7)),
    ArraySpec(name="view", shape=(7,), dtype="float32", axes=("view_column",)),
    ArraySpec(name="status", shape=(), dtype="uint8"),
    ArraySpec(
        name="features/block03", shape=(2, 2, 2), dtype="int8",
        axes=("component_block03", "feature_y_block03", "feature_x_block03"), encoding=Basis(channels=4),
    ),
    ArraySpec(
        name="features/block12", shape=(4, 2, 2), dtype="float16",
        axes=("channel_block12", "feature_y_block12", "feature_x_block12"), compressor="none",
    ),
    ArraySpec(
        name="attention/block03", shape=(2, 2, 2), dtype="float16",
        axes=("head_block03", "attention_y_block03", "attention_x_block03"), encoding=Rounded(bits=7),
    ),
)  # fmt: skip
BASIS = TapBasis(
    mean=np.array([1, 2, 3, 4], np.float32),
    std=np.array([1, 1, 2, 2], np.float32),
    axes=np.array([[0.5, 0.5, 0.5, 0.5], [0.5, -0.5, 0.5, -0.5]], np.float32),
    scale=np.array([0.5, 0.25], np.float32),
    holdout_cosine=0.875,
)


def main() -> None:
    """Build the store where it belongs."""
    photos = order_photos([Photo(path=f"below/{n}.jpg", bytes=1000 + n) for n in range(PHOTOS)], seed=0)
    contract = Contract(
        teacher={
            "weights_sha256": "0" * 64,
            "architecture": "formula",
            "preprocessing": "none",
            "precision": "float32",
        },
        recipe={"size_px": 16, "taps": [3, 12], "seed": 0},
        views=VIEWS,
        photos={"count": PHOTOS, "list_sha256": digest_photos(photos)},
        arrays=SPECS,
        chunk_samples=CHUNK,
        samples=PHOTOS * len(VIEWS),
    )
    shutil.rmtree(STORE, ignore_errors=True)
    provenance = {"teacher": "formula", "tools": {"delta": "0.1.0"}}
    store = open_or_create(STORE, contract, photos, provenance, lambda: {"block03": BASIS})
    for chunk in range(contract.chunks):
        members = contract.chunk_range(chunk)
        data = {spec.name: np.stack([formula(spec, sample) for sample in members]) for spec in SPECS}
        records = tuple(
            SampleRecord(
                path=photos[contract.photo_of(sample)].path,
                sha256=f"{contract.photo_of(sample):064x}",
                failure="it cannot be decoded: golden" if sample in FAILED else "",
            )
            for sample in members
        )
        times = Times(decode_s=0.5, teacher_s=1.5, write_s=0.25, total_s=2.0, finished="2026-11-25T00:00:00.000+00:00")
        write_chunk(store, chunk, data, records, lambda times=times: times)
    store.storage.remove_claims()


def formula(spec: ArraySpec, sample: int) -> np.ndarray:
    """The values of one sample as they are stored; zeros where it failed.

    Floats are quarters that seven bits of mantissa hold exactly, codes and bytes count up; the image is of one gray.
    """
    if spec.name == "status":
        return np.array(Status.FAILED if sample in FAILED else Status.OK, spec.dtype)
    if sample in FAILED:
        return np.zeros(spec.shape, spec.dtype)
    if spec.name == "image":
        gray = np.full((16, 16, 3), 20 * sample, np.uint8)
        return jpeg_rows([encode_jpeg(gray, 95, 1024)], 1024)[0]
    step = 1 if spec.dtype == "int8" else 0.25
    values = np.arange(int(np.prod(spec.shape))) % 16 * step + sample
    return values.reshape(spec.shape).astype(spec.dtype)


if __name__ == "__main__":
    main()
