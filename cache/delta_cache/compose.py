"""Stores out of stores: merge two of one contract, or take a part of one. What is stored is copied, never decoded.

The photos of a store are in random order. So is a prefix of it, and so is a random riffle of two such orders: both are
made by reading the sources once, in order.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from delta_cache.errors import CacheError, ContractMismatch
from delta_cache.reader import Store
from delta_cache.schema import Contract, SampleRecord, difference, digest_photos
from delta_cache.writer import open_or_create, write_chunk

RIFFLE_SEED = 0
Source = tuple[int, int]  # number of a store, number of a photo in it


def merge(first: Store, second: Store, url: str | Path, on_chunk: Callable[[int], None] = lambda done: None) -> Store:
    """Write the photos of two stores of one contract to a third; a photo that both hold is taken from the first.

    Raises:
        ContractMismatch: something other than the photo list differs.
        CacheError: one path names two different photos, or a store is not complete.
    """
    stores = (first, second)
    _require_one_contract(first.require_complete().contract, second.require_complete().contract)
    known, seen = (dict(_identities(store)) for store in stores)
    for photo in second.photos:
        if known.get(photo.path, seen[photo.path]) != seen[photo.path]:
            raise CacheError(
                f"{first.url} and {second.url} hold different photos named {photo.path}",
                "build one of them from a folder above, so that its paths differ",
            )
    fresh = [number for number, photo in enumerate(second.photos) if photo.path not in known]
    kept: tuple[Sequence[int], ...] = (range(len(first.photos)), fresh)
    turns = np.repeat([0, 1], [len(kept[0]), len(kept[1])])
    np.random.default_rng(RIFFLE_SEED).shuffle(turns)
    taken = [iter(part) for part in kept]
    return _compose(stores, [(int(turn), next(taken[turn])) for turn in turns], None, url, on_chunk)


def subset(
    store: Store,
    url: str | Path,
    *,
    photos: int = 0,
    arrays: Collection[str] = (),
    on_chunk: Callable[[int], None] = lambda done: None,
) -> Store:
    """Write a part of a store to another: its first `photos` (a random sample; 0 for all) and some arrays.

    Args:
        arrays: names of arrays or of groups (`features`) to keep, none for all; `status` and `view` always stay.

    Raises:
        CacheError: an array that the store has not, or more photos than it holds.
    """
    store.require_complete()
    if photos > len(store.photos):
        raise CacheError(f"{store.url} holds {len(store.photos)} photos, {photos} were asked for", "ask for fewer")
    known = {spec.name for spec in store.contract.arrays}
    unknown = sorted(name for name in arrays if not any(_is_in(spec, {name}) for spec in known))
    if unknown:
        raise CacheError(f"{store.url} has no array {unknown[0]}", f"choose among {', '.join(sorted(known))}")
    sources = [(0, number) for number in range(photos or len(store.photos))]
    return _compose((store,), sources, set(arrays) | {"status", "view"} if arrays else None, url, on_chunk)


def _compose(
    stores: Sequence[Store],
    sources: list[Source],
    keep: set[str] | None,
    url: str | Path,
    on_chunk: Callable[[int], None],
) -> Store:
    origin = stores[0].contract
    photos = [stores[store].photos[number] for store, number in sources]
    specs = tuple(spec for spec in origin.arrays if keep is None or _is_in(spec.name, keep))
    bases = {tap: basis for tap, basis in stores[0].bases.items() if any(s.name == f"features/{tap}" for s in specs)}
    contract = msgspec.structs.replace(
        origin,
        arrays=specs,
        photos={"count": len(photos), "list_sha256": digest_photos(photos)},
        samples=len(photos) * len(origin.views),
        basis_sha256="",
    )
    provenance = {**stores[0].provenance, "composed_of": [store.contract.fingerprint for store in stores]}
    composed = open_or_create(url, contract, photos, provenance, lambda: bases)
    readers = [_SampleReader(store, [spec.name for spec in specs]) for store in stores]
    for chunk in composed.missing_chunks():
        picked = [_pick(readers, sources, contract, sample) for sample in contract.chunk_range(chunk)]
        data = {spec.name: np.stack([values[spec.name] for values, _ in picked]) for spec in specs}
        record = write_chunk(composed, chunk, data, tuple(record for _, record in picked))
        on_chunk(len(record.samples))
    composed.storage.remove_claims()
    return composed


class _SampleReader:
    """Samples of a store as they are stored, one chunk kept: cheap for whoever asks in ascending order."""

    def __init__(self, store: Store, names: list[str]) -> None:
        self.contract = store.contract
        self._store, self._names, self._chunk = store, names, -1

    def __call__(self, photo: int, view: int) -> tuple[dict[str, np.ndarray], SampleRecord]:
        sample = view * self.contract.photo_count + photo
        chunk, row = divmod(sample, self.contract.chunk_samples)
        if chunk != self._chunk:
            self._data = self._store.read_chunk(chunk, self._names, decoded=False)
            record = self._store.record(chunk)
            assert record is not None  # read_chunk would have said so
            self._records, self._chunk = record.samples, chunk
        return {name: values[row] for name, values in self._data.items()}, self._records[row]


def _pick(
    readers: Sequence[_SampleReader], sources: list[Source], contract: Contract, sample: int
) -> tuple[dict[str, np.ndarray], SampleRecord]:
    store, photo = sources[contract.photo_of(sample)]
    return readers[store](photo, contract.view_of(sample))


def _identities(store: Store) -> Iterator[tuple[str, tuple[int, str]]]:
    """Each photo's path, with its size and digest: what tells two photos of one name apart."""
    digests = {sample.path: sample.sha256 for record in store.records() for sample in record.samples}
    for photo in store.photos:
        yield photo.path, (photo.bytes, digests[photo.path])


def _require_one_contract(first: Contract, second: Contract) -> None:
    blank = {"photos": {}, "samples": 0}
    lines = difference(*(msgspec.structs.replace(contract, **blank) for contract in (second, first)))
    if lines:
        listing = "\n".join(f"  {line}" for line in lines)
        raise ContractMismatch(
            f"the stores were made under different contracts:\n{listing}",
            "build the second with the first one's recipe and `--basis FIRST`",
        )


def _is_in(name: str, keep: Collection[str]) -> bool:
    return name in keep or name.split("/")[0] in keep
