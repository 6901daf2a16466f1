"""No bit of a store can turn without an error, a finding, or the same numbers as before: never silently others."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from delta_cache.errors import CacheError
from delta_cache.reader import open_cache
from delta_cache.verify import verify

SEED = 20261125
KINDS = {
    "chunk": "*/c.*",
    "chunk of a tap": "[fa]*/*/c.*",
    "ledger": "ledger/*.json",
    "basis": "basis/*/*/c.*",
    "basis description": "basis/*/*/zarr.json",
    "photos": "photos.jsonl",
    "description": "*/zarr.json",
    "tap description": "[fa]*/*/zarr.json",
    "root": "zarr.json",
}


def flip(content: bytes, generator: random.Random) -> bytes:
    position = generator.randrange(len(content))
    return content[:position] + bytes([content[position] ^ 1 << generator.randrange(8)]) + content[position + 1 :]


def truncate(content: bytes, generator: random.Random) -> bytes:
    return content[: generator.randrange(len(content))]


def read_all(path: Path) -> dict[str, Any]:
    """All that a reader is told: every number, which samples are there, which photos they show and what failed."""
    store = open_cache(path)
    names = [spec.name for spec in store.contract.arrays]
    chunks = [store.read_chunk(chunk, names) for chunk in range(store.contract.chunks)]
    told: dict[str, Any] = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in names}
    return told | {
        "contract": store.contract,
        "photos": store.photos,
        "mask": store.mask,
        "samples": [record.samples for record in store.records()],
        "failures": store.failures(),
    }


def differing(told: dict[str, Any], truth: dict[str, Any]) -> list[str]:
    def same(name: str) -> bool:
        ours, theirs = told[name], truth[name]
        if isinstance(theirs, np.ndarray):
            return ours.dtype == theirs.dtype and ours.shape == theirs.shape and ours.tobytes() == theirs.tobytes()
        return ours == theirs

    return [name for name in truth if name not in told or not same(name)]


@pytest.fixture
def store(compact_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(compact_store, tmp_path / "store.zarr"))


def reader_says(path: Path, truth: dict[str, Any]) -> str:
    """What a reader is told of a damaged store: "error", or "same numbers". Any error is a sentence of Delta's own."""
    try:
        told = read_all(path)
    except CacheError as error:
        return "error" if str(error) and error.hint else "an error without a way out"
    assert differing(told, truth) == []
    return "same numbers"


def verify_says(path: Path) -> str:
    try:
        return "finding" if verify(open_cache(path, incomplete=True), full=True).findings else "nothing"
    except CacheError:
        return "error"


def damage_and_look(
    store: Path, damage: Callable[[bytes, random.Random], bytes], times: int
) -> Counter[tuple[str, ...]]:
    """Damage one file of each kind in turn, look at the store, and put the file back."""
    truth, generator, seen = read_all(store), random.Random(SEED), Counter[tuple[str, ...]]()
    for number in range(times):
        kind = list(KINDS)[number % len(KINDS)]
        file = generator.choice(sorted(store.glob(KINDS[kind])))
        content = file.read_bytes()
        spoiled = damage(content, generator)
        file.write_bytes(spoiled)
        reader, check = reader_says(store, truth), verify_says(store)
        where = f"{file.relative_to(store)}, {sum(a != b for a, b in zip(content, spoiled, strict=False))} bytes differ"
        assert reader in ("error", "same numbers"), where
        if kind in ("chunk", "chunk of a tap", "ledger", "basis", "photos"):
            assert reader == "error", where
        if kind != "root":
            assert check != "nothing", where
        elif (reader, check) == ("same numbers", "nothing"):
            assert contract_in(spoiled) == contract_in(content), where
        seen[kind, reader, check] += 1
        file.write_bytes(content)
    assert differing(read_all(store), truth) == []
    return seen


def contract_in(root: bytes) -> Any:
    """What the root says of the answers; beside it are provenance and what only other readers look at."""
    delta = json.loads(root)["attributes"]["delta"]
    return delta["contract"], delta["fingerprint"]


def shown(seen: Counter[tuple[str, ...]], what: str) -> str:
    lines = [
        f"  {count:4d} in {kind}: reader {reader}, verify {check}" for (kind, reader, check), count in seen.items()
    ]
    return "\n".join([f"\n{seen.total()} {what}:", *sorted(lines)])


@pytest.mark.parametrize("damage", [flip, truncate])
def test_a_damaged_file_never_gives_other_numbers(store: Path, damage: Callable[..., bytes]) -> None:
    damage_and_look(store, damage, 3 * len(KINDS))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("damage", "what", "times"), [(flip, "bits flipped, one at a time", 450), (truncate, "files cut short", 180)]
)
def test_hundreds_of_damages_never_give_other_numbers(
    store: Path, damage: Callable[..., bytes], what: str, times: int, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = damage_and_look(store, damage, times)
    with capsys.disabled():
        print(shown(seen, what))
    assert seen.total() == times
