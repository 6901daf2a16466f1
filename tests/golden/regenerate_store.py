"""Write tests/golden/store_v1.zarr anew. Only when the format changes: in its own commit, with the reason.

    PYTHONPATH=.:cache:pipelines python tests/golden/regenerate_store.py

Every number follows from the formulas below, which test_format_v1.py repeats; no photo and no teacher is needed.
"""

import shutil
from pathlib import Path

import numpy as np

from delta_cache.schema import ArraySpec, Contract, Photo, SampleRecord, Status, digest_photos, order_photos
from delta_cache.writer import open_writer

STORE = Path(__file__).parent / "store_v1.zarr"
SAMPLES, CHUNK, FAILED = 5, 2, 3
SHAPES = {
    "image": ((8, 8, 3), "uint8"),
    "disparity": ((8, 8), "float16"),
    "view": ((7,), "float32"),
    "status": ((), "uint8"),
    "features/block03": ((4, 2, 2), "float16"),
    "attention/block03": ((2, 2, 2), "float16"),
}


def main() -> None:
    """Build the store where it belongs."""
    photos = order_photos([Photo(path=f"below/{n}.jpg", bytes=1000 + n) for n in range(SAMPLES)], seed=0)
    contract = Contract(
        teacher={
            "name": "formula",
            "revision": "1",
            "weights_sha256": "0" * 64,
            "preprocessing": "",
            "dtype": "float32",
        },
        recipe={"size_px": 8, "taps": [3], "view": "largest centered square", "seed": 0},
        photos={"count": SAMPLES, "list_sha256": digest_photos(photos)},
        arrays=tuple(ArraySpec(name=name, shape=shape, dtype=dtype) for name, (shape, dtype) in SHAPES.items()),
        codec={"cname": "zstd", "clevel": 3},
        chunk_samples=CHUNK,
        samples=SAMPLES,
    )
    shutil.rmtree(STORE, ignore_errors=True)
    with open_writer(STORE, contract, photos, {"tools": {"delta": "0.1.0"}}) as writer:
        for chunk in writer.pending:
            members = contract.chunk_range(chunk)
            data = {name: np.stack([formula(name, sample) for sample in members]) for name in SHAPES}
            samples = tuple(
                SampleRecord(
                    path=photos[sample].path,
                    sha256=f"{sample:064x}",
                    failure="it cannot be decoded: golden" if sample == FAILED else "",
                )
                for sample in members
            )
            writer.write(chunk, data, samples)
    STORE.with_name(f".{STORE.name}.lock").unlink(missing_ok=True)


def formula(name: str, sample: int) -> np.ndarray:
    """The values of one sample: quarters that every dtype holds exactly; zeros where the sample failed."""
    shape, dtype = SHAPES[name]
    if name == "status":
        return np.array(Status.FAILED if sample == FAILED else Status.OK, dtype)
    count = int(np.prod(shape))
    step = 1 if dtype == "uint8" else 0.25
    values = (np.arange(count) * step + sample).reshape(shape).astype(dtype)
    return np.zeros_like(values) if sample == FAILED else values


if __name__ == "__main__":
    main()
