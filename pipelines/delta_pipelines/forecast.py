"""The forecast of a build, kept beside its store-to-be, so that the build can take it along and be held against it."""

from pathlib import Path
from typing import Any

import msgspec

from delta_cache.schema import Contract
from delta_cache.storage import Storage, open_storage

SUFFIX = ".plan.json"


def write_forecast(store: str | Path, contract: Contract, forecast: dict[str, Any]) -> str:
    """Write a forecast beside a store's place; return where."""
    folder, name = _place(store)
    content = {"fingerprint": contract.fingerprint, "forecast": forecast}
    folder.write(name, msgspec.json.format(msgspec.json.encode(content)))
    return f"{folder.url}/{name}"


def read_forecast(store: str | Path, contract: Contract) -> dict[str, Any]:
    """{"forecast": ...} where one of this contract was made, else nothing."""
    folder, name = _place(store)
    try:
        there = msgspec.json.decode(folder.read(name))
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return {}
    if not isinstance(there, dict) or there.get("fingerprint") != contract.fingerprint:
        return {}
    return {"forecast": there["forecast"]}


def _place(store: str | Path) -> tuple[Storage, str]:
    text = str(store).rstrip("/")
    if "://" in text:
        parent, _, name = text.rpartition("/")
        return open_storage(parent), name + SUFFIX
    path = Path(text).absolute()
    return open_storage(path.parent), path.name + SUFFIX
