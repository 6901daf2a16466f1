"""Names inside a store, and the Zarr v3 metadata that lets any reader open it."""

import json
from typing import Any

import msgspec
import numpy as np
import zarr
from zarr.codecs import BloscCodec
from zarr.storage import MemoryStore

from delta_cache.basis import TapBasis
from delta_cache.schema import ArraySpec, Contract

ROOT, PHOTOS, LEDGER, BASIS = "zarr.json", "photos.jsonl", "ledger", "basis"
BASIS_AXES = {"mean": ("channel",), "std": ("channel",), "axes": ("component", "channel"), "scale": ("component",)}
FLAT: Any = {"name": "default", "separator": "."}  # a file a chunk in one folder: quick to list


def chunk_file(spec: ArraySpec, chunk: int) -> str:
    """Name of an array's chunk file: Zarr's default chunk key with "." between."""
    return f"{spec.name}/c.{chunk}" + ".0" * len(spec.shape)


def ledger_file(chunk: int) -> str:
    """Name of a chunk's ledger entry."""
    return f"{LEDGER}/{chunk:08d}.json"


def metadata(contract: Contract, bases: dict[str, TapBasis], provenance: dict[str, Any]) -> dict[str, bytes]:
    """Make every file of an empty store but the photo list: groups, arrays, and the bases with their numbers."""
    files: dict[str, Any] = {}
    group = zarr.open_group(MemoryStore(files), mode="w", zarr_format=3)
    for spec in contract.arrays:
        group.create_array(
            spec.name,
            shape=(contract.samples, *spec.shape),
            chunks=(contract.chunk_samples, *spec.shape),
            dtype=spec.dtype,
            fill_value=0,
            compressors=compressors(spec),
            chunk_key_encoding=FLAT,
            dimension_names=("sample", *_axes(spec)),
            attributes={"encoding": msgspec.to_builtins(spec.encoding)},
        )
    for tap, basis in bases.items():
        for name, values in basis.arrays().items():
            group.create_array(
                f"{BASIS}/{tap}/{name}",
                data=values,
                chunks=values.shape,
                compressors=None,
                chunk_key_encoding=FLAT,
                dimension_names=BASIS_AXES[name],
                attributes={"holdout_cosine": basis.holdout_cosine},
            )
    group.attrs["delta"] = {
        "contract": msgspec.to_builtins(contract),
        "fingerprint": contract.fingerprint,
        "provenance": provenance,
    }
    written = {name: value.to_bytes() for name, value in files.items()}
    return written | {ROOT: _with_copies(written)}


def _with_copies(files: dict[str, bytes]) -> bytes:
    """The root's description with a copy of all others (Zarr's consolidated metadata): opening takes no listing.

    Zarr's own function does the same and warns, of what Zarr's specification has not yet; no switch tells it not to.
    """
    names = sorted(name for name in files if name.endswith(f"/{ROOT}"))
    copies = {name.removesuffix(f"/{ROOT}"): json.loads(files[name]) for name in names}
    consolidated = {"kind": "inline", "must_understand": False, "metadata": copies}
    return json.dumps(json.loads(files[ROOT]) | {"consolidated_metadata": consolidated}, indent=2).encode()


def copied_descriptions(root: bytes) -> dict[str, Any]:
    """The copies of all arrays' and groups' descriptions in the root's (Zarr's consolidated metadata), by name."""
    copies = json.loads(root).get("consolidated_metadata")
    found = copies.get("metadata") if isinstance(copies, dict) else None
    return found if isinstance(found, dict) else {}


def compressors(spec: ArraySpec) -> list[BloscCodec] | None:
    """The codec behind Zarr's bytes codec, as `codec.compress` applies it."""
    if spec.compressor == "none":
        return None
    typesize = np.dtype(spec.dtype).itemsize
    return [BloscCodec(cname=spec.compressor, clevel=spec.level, shuffle=spec.shuffle, typesize=typesize)]


def describes(array: zarr.Array[Any], spec: ArraySpec, contract: Contract) -> bool:
    """Whether an opened array's metadata says what the contract says."""
    return (
        array.shape == (contract.samples, *spec.shape)
        and array.chunks == (contract.chunk_samples, *spec.shape)
        and array.dtype == np.dtype(spec.dtype)
        and array.compressors == tuple(compressors(spec) or ())
    )


def _axes(spec: ArraySpec) -> tuple[str, ...]:
    return spec.axes or tuple(f"{spec.name.replace('/', '_')}_{index}" for index in range(len(spec.shape)))
