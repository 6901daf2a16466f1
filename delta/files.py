"""How a file reaches the disk: written aside, flushed, then renamed, so that no reader ever meets half of it."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from delta.errors import DeltaError

STEM_CHARACTERS = 64  # of the final name that a temporary keeps; file systems stop at 255 bytes


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """Yield a hidden sibling of `path` to write to; it becomes `path` on success and vanishes on any exception.

    The sibling keeps the suffix, which image and ONNX writers look at, and does not exist yet. Missing parent
    folders are made. What stood at `path` stays whole until the rename.

    Raises:
        DeltaError: `path` is a folder.
    """
    if path.is_dir():
        raise DeltaError(f"{path} is a folder, not a file", "name a file inside it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem[:STEM_CHARACTERS]}.{uuid4().hex}{path.suffix}")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    except BaseException:  # an interrupt leaves nothing behind either
        temporary.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def write_text(path: Path, text: str) -> Path:
    """Write `text` aside, in UTF-8, and return `path`."""
    with write_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")
    return path


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    if os.name != "posix":  # Windows opens no folders, and makes its renames durable by itself
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Digest a whole file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
