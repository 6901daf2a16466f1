"""onnxruntime-web for the app: one pinned release, which is never committed."""

from collections.abc import Sequence
from pathlib import Path

from delta_pipelines.npm_package import Release, read_files

RUNTIME = Release(
    "onnxruntime-web",
    "1.30.0",
    "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
)
WASM_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
WEBGPU_FILES = (
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)


def runtime_files(names: Sequence[str], tarball: Path | None = None) -> dict[str, bytes]:
    """Read files of the runtime from `tarball` (what `npm pack` gives), or from the cache, which npm fills once.

    Raises:
        DeltaError: as `read_files` does.
    """
    found = read_files(RUNTIME, [f"dist/{name}" for name in names], tarball)
    return {name.removeprefix("dist/"): content for name, content in found.items()}
