"""Where an artifact comes from: the commit, and fingerprints of what decided it."""

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import msgspec


def commit() -> str:
    """The commit of the checkout this package runs from, with "+" when it is changed; empty outside a checkout."""
    folder = Path(__file__).parent
    try:
        _git(folder, "ls-files", "--error-unmatch", Path(__file__).name)
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
        return _git(folder, "rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def fingerprint(*parts: Any) -> str:
    """SHA-256 in hex over plain data as canonical JSON."""
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
