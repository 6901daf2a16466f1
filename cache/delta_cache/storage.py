"""Where a store's files lie: a folder, or any URL that fsspec knows. A file is there whole or not at all.

Names are relative with forward slashes. This module knows bytes, not what they mean.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import filelock
import fsspec
import numpy as np

from delta_cache.errors import CacheError

CLAIMS = ".claims"
ASIDE = ".aside"  # the end of the name of a file that is still being written


@runtime_checkable  # the tests check every type at run time
class Storage(Protocol):
    """Named files that are written whole."""

    url: str

    def read(self, name: str) -> bytes:
        """Read a file.

        Raises:
            FileNotFoundError: there is none.
        """
        ...

    def read_array(self, name: str) -> np.ndarray:
        """Read a large file into memory of its own: u8 (bytes,).

        Raises:
            FileNotFoundError: there is none.
        """
        ...

    def read_many(self, names: list[str]) -> dict[str, bytes]:
        """Read the files that are there, many at a time."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Put a file in place, durably and at once; on an error nothing of it is there."""
        ...

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Bytes of every finished file below a folder, by name."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""
        ...

    def exists(self) -> bool:
        """Whether anything is at the URL."""
        ...

    def claim(self, name: str) -> AbstractContextManager[bool]:
        """Whether this process alone holds `name` inside the context; a dead holder's claim is void."""
        ...

    def remove_claims(self) -> None:
        """Tidy up, when there is nothing left to claim."""
        ...


def open_storage(url: str | Path) -> Storage:
    """Choose the storage for a path or URL.

    Raises:
        CacheError: no such protocol, or its package is not installed.
    """
    text = str(url)
    if "://" not in text or text.startswith("file://"):
        return LocalStorage(Path(text.removeprefix("file://")))
    try:
        system, root = fsspec.url_to_fs(text)
    except (ImportError, ValueError) as error:
        hint = "pip install 'delta-depth[s3]' for s3:// URLs"
        raise CacheError(f"{text} cannot be reached: {error}", hint) from error
    return RemoteStorage(text.rstrip("/"), system, root.rstrip("/"))


class LocalStorage:
    """A folder. Files are written aside, flushed to the disk, and renamed."""

    def __init__(self, root: Path) -> None:
        self.root, self.url = root, str(root)
        self._folders: set[Path] = set()

    def read(self, name: str) -> bytes:
        """Read a file."""
        return (self.root / name).read_bytes()

    def read_array(self, name: str) -> np.ndarray:
        """Read a file; numpy asks for huge pages, which halves the time that tens of megabytes take by `read`."""
        return np.fromfile(self.root / name, np.uint8)

    def read_many(self, names: list[str]) -> dict[str, bytes]:
        """Read the files that are there."""
        found = {}
        for name in names:
            try:
                found[name] = self.read(name)
            except FileNotFoundError:
                continue
        return found

    def write(self, name: str, content: bytes) -> None:
        """Write aside, flush, check the length, rename, flush the folder."""
        path = self.root / name
        if path.parent not in self._folders:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._folders.add(path.parent)
        aside = path.with_name(path.name + ASIDE)  # whoever writes it holds the claim, so a leftover is overwritten
        try:
            with aside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                length = os.fstat(file.fileno()).st_size
            if length != len(content):
                raise OSError(f"short write to {path}: {length} of {len(content)} bytes")
            os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        _flush_folder(path.parent)

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        (self.root / name).unlink(missing_ok=True)

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Bytes of every finished file below a folder."""
        top = self.root / folder
        return {path: size for path, size in _scan(top, folder) if not path.endswith(ASIDE)} if top.is_dir() else {}

    def size(self, name: str) -> int | None:
        """Bytes of a file."""
        try:
            return (self.root / name).stat().st_size
        except FileNotFoundError:
            return None

    def exists(self) -> bool:
        """Whether there is a file, or a folder that is not empty."""
        return self.root.is_file() or (self.root.is_dir() and any(self.root.iterdir()))

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Hold a lock file; the operating system releases a dead process's."""
        folder = self.root / CLAIMS
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / name, timeout=0, thread_local=False)
        try:
            lock.acquire()
        except filelock.Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def remove_claims(self) -> None:
        """Take the lock files away, when every chunk is there."""
        shutil.rmtree(self.root / CLAIMS, ignore_errors=True)


class RemoteStorage:
    """An object store by fsspec, where an upload appears whole when it ends."""

    def __init__(self, url: str, system: Any, root: str) -> None:
        self.url, self._system, self._root = url, system, root

    def read(self, name: str) -> bytes:
        """Read an object."""
        with self._reaching():
            return self._system.cat_file(self._path(name))

    def read_array(self, name: str) -> np.ndarray:
        """Read an object."""
        return np.frombuffer(bytearray(self.read(name)), np.uint8)

    def read_many(self, names: list[str]) -> dict[str, bytes]:
        """Read the objects that are there, concurrently where the protocol can."""
        paths = {self._path(name): name for name in names}
        found = self._system.cat(list(paths), on_error="omit") if paths else {}
        return {name: found[path] for path, name in paths.items() if path in found}

    def write(self, name: str, content: bytes) -> None:
        """Upload an object and check the length it has there."""
        path = self._path(name)
        with self._reaching():
            self._system.pipe_file(path, content)
            length = self._system.info(path)["size"]
        if length != len(content):
            raise OSError(f"short write to {path}: {length} of {len(content)} bytes")

    def delete(self, name: str) -> None:
        """Remove an object, if it is there."""
        try:
            self._system.rm_file(self._path(name))
        except FileNotFoundError:
            return

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Bytes of every object below a folder."""
        self._system.invalidate_cache()
        found = self._system.find(self._path(folder) if folder else self._root, detail=True)
        return {path[len(self._root) + 1 :]: info["size"] for path, info in found.items()}

    def size(self, name: str) -> int | None:
        """Bytes of an object."""
        try:
            self._system.invalidate_cache()
            return self._system.info(self._path(name))["size"]
        except FileNotFoundError:
            return None

    def exists(self) -> bool:
        """Whether any object is below the URL."""
        return bool(self.sizes())

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Object stores have no locks: two builds of one store may do a chunk twice, to the same bytes."""
        del name
        yield True

    def remove_claims(self) -> None:
        """Nothing to take away."""

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Turn a line that is down, whose exceptions are as many as protocols, into a sentence that ends the build."""
        try:
            yield
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:
            message = f"{self.url} cannot be reached: {str(error) or type(error).__name__}"
            raise CacheError(message, "run the same command again; what is done is kept") from error


def _scan(folder: Path, prefix: str) -> Iterator[tuple[str, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{prefix}/{entry.name}" if prefix else entry.name
            if entry.is_dir(follow_symlinks=False):
                if entry.name != CLAIMS:
                    yield from _scan(Path(entry.path), name)
                continue
            try:
                yield name, entry.stat().st_size
            except FileNotFoundError:  # renamed into place meanwhile
                continue


def _flush_folder(path: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there; NTFS journals the rename
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
