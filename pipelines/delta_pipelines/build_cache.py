"""Stage 1: photos -> teacher -> store. Resumable at any chunk, by any number of processes at once."""

import platform
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import torch

from delta import __version__
from delta.config import Config
from delta.errors import DeltaError
from delta.teacher import Teacher
from delta_cache.basis import TapBasis
from delta_cache.reader import Store, open_cache
from delta_cache.schema import ChunkRecord, Contract, Photo, digest_photos, order_photos
from delta_cache.writer import open_or_create
from delta_pipelines import provenance
from delta_pipelines.answers import array_specs
from delta_pipelines.cache_recipe import CacheRecipe
from delta_pipelines.chunk_builder import STAGES, ChunkBuilder
from delta_pipelines.fit_bases import fit_bases
from delta_pipelines.forecast import read_forecast
from delta_pipelines.views import list_photos, open_photos

TOOLS = ("torch", "transformers", "timm", "zarr", "numcodecs", "pillow", "numpy")
ELSEWHERE = ("size_px", "precision", "batch_size", "compile", "limit", "chunk_samples", "compressor", "level")
BUSY_S = 0.2  # how long to wait where all chunks that are left are held by other processes


class Watcher(Config, frozen=True, kw_only=True):
    """Whom a build tells of its progress; by default nobody.

    `fitting` is told photos done and in all; `begin` samples there already and in all; `chunk` each record.
    """

    fitting: Callable[[int, int], None] = lambda done, total: None
    begin: Callable[[int, int], None] = lambda done, total: None
    chunk: Callable[[ChunkRecord], None] = lambda record: None


def build_cache(
    recipe: CacheRecipe,
    photos: str | Path,
    store: str | Path,
    teacher: Teacher,
    *,
    device: torch.device | None = None,
    basis: str | Path | None = None,
    watcher: Watcher | None = None,
) -> Store:
    """Ask the teacher about every photo of a folder and write its answers to `store`; resume what is there.

    Args:
        device: where batches go, the teacher's.
        basis: another store, whose feature bases this one is to share instead of fitting its own.

    Raises:
        DeltaError: no photos, or none that can be read.
        CacheError: the store is of another contract.
    """
    watcher, device = watcher or Watcher(), device or torch.device("cpu")
    opened = open_store(recipe, photos, store, teacher, device=device, basis=basis, on_fit=watcher.fitting)
    build_here(ChunkBuilder(opened, open_photos(photos), recipe, teacher, device), opened, watcher)
    return finish(opened)


def open_store(
    recipe: CacheRecipe,
    photos: str | Path,
    store: str | Path,
    teacher: Teacher,
    *,
    device: torch.device,
    basis: str | Path | None = None,
    on_fit: Callable[[int, int], None] = lambda done, total: None,
) -> Store:
    """Create the store with its contract and feature bases, or open the one of the same contract that is there.

    Raises:
        DeltaError: no photos, or none that can be read.
        CacheError: the store, or `basis`, is of another contract.
    """
    listed, contract = plan_store(recipe, photos, teacher, device)

    origin = _provenance(recipe, teacher) | read_forecast(store, contract)

    def make_bases() -> dict[str, TapBasis]:
        if recipe.features.kind != "int8":
            return {}
        if basis is not None:
            return _borrow(open_cache(basis, incomplete=True), contract)
        began = time.perf_counter()
        bases = fit_bases(recipe, listed, open_photos(photos), teacher, contract.recipe["size_px"], device, on_fit)
        origin["fit_s"] = round(time.perf_counter() - began, 3)
        return bases

    return open_or_create(store, contract, listed, origin, make_bases)


def plan_store(
    recipe: CacheRecipe, photos: str | Path, teacher: Teacher, device: torch.device | None = None
) -> tuple[list[Photo], Contract]:
    """List and order the photos and work out the contract (but its bases), without writing anything.

    The teacher answers once, on a gray image, to tell its shapes.

    Raises:
        DeltaError: no photos.
    """
    listed = order_photos(list_photos(photos), recipe.seed)[: recipe.limit or None]
    side = recipe.side(teacher.side_multiple)
    probe = teacher(torch.full((1, 3, side, side), 0.5, device=device))
    written = msgspec.json.decode(msgspec.json.encode(recipe))  # as a store's own contract reads: lists, no tuples
    kept = {key: value for key, value in written.items() if key not in ELSEWHERE}
    identity = {key: value for key, value in msgspec.to_builtins(teacher.identity).items() if key != "name"}
    return listed, Contract(
        teacher=identity,
        recipe=kept | {"size_px": side},
        views=recipe.views.names,
        photos={"count": len(listed), "list_sha256": digest_photos(listed)},
        arrays=tuple(array_specs(recipe, side, probe)),
        chunk_samples=recipe.chunk_samples,
        samples=len(listed) * len(recipe.views.names),
    )


def build_here(
    builder: ChunkBuilder, store: Store, watcher: Watcher | None = None, chunks: Iterable[int] | None = None
) -> None:
    """Build chunks in threads of this process; by default those that are missing."""
    with ThreadPoolExecutor(STAGES, thread_name_prefix="chunk") as threads:
        try:
            run_chunks(store, threads, builder.build, STAGES, watcher or Watcher(), chunks)
        finally:
            builder.stop()


def run_chunks(
    store: Store,
    executor: Executor,
    build: Callable[[int], ChunkRecord | None],
    slots: int,
    watcher: Watcher,
    chunks: Iterable[int] | None = None,
) -> None:
    """Have chunks built that are not whole, `slots` at a time; those that another process holds are asked about again.

    Args:
        build: called in the executor with a chunk's number; None means that another process holds it.
    """
    missing = store.missing_chunks() if chunks is None else list(chunks)
    waiting, running, held = deque(missing), dict[Future[ChunkRecord | None], int](), set[int]()
    lacking = sum(len(store.contract.chunk_range(chunk)) for chunk in missing)
    watcher.begin(store.contract.samples - lacking, store.contract.samples)
    try:
        while waiting or running:
            while waiting and len(running) < slots:
                chunk = waiting.popleft()
                running[executor.submit(build, chunk)] = chunk
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                chunk, record = running.pop(future), future.result()
                if record is None:
                    waiting.append(chunk)
                    held.add(chunk)
                    if held.issuperset(waiting):  # every one that is left
                        time.sleep(BUSY_S)
                        held.clear()
                else:
                    watcher.chunk(record)
    except BaseException:
        for future in running:
            future.cancel()
        raise


def finish(store: Store) -> Store:
    """Open what was built afresh and tidy up; say so where it holds no photo at all.

    Raises:
        DeltaError: none of the photos can be used.
    """
    fresh = Store.open(store.storage)
    failures = fresh.failures()
    if len(failures) == len(fresh.photos):
        path, reason = next(iter(failures.items()))
        raise DeltaError(
            f"none of the {len(failures)} photos can be used; the first, {path}: {reason}",
            "name a folder with readable JPEG, PNG or WebP files",
        )
    fresh.require_complete()
    fresh.storage.remove_claims()
    return fresh


def _borrow(other: Store, contract: Contract) -> dict[str, TapBasis]:
    for key in ("teacher", "recipe"):
        ours, theirs = getattr(contract, key), getattr(other.contract, key)
        differing = sorted(name for name in ours if ours[name] != theirs.get(name))
        if differing:
            raise DeltaError(
                f"{other.url} is of another {key}: {', '.join(differing)} differ, so its bases do not fit",
                "repeat its recipe and teacher, or leave --basis out",
            )
    return other.bases


def _provenance(recipe: CacheRecipe, teacher: Teacher) -> dict[str, Any]:
    tools = {"delta": __version__} | {name: version(name) for name in TOOLS}
    return {
        "teacher": teacher.identity.name,
        "tools": tools | {"python": platform.python_version()},
        "machine": platform.machine(),
        "commit": provenance.commit(),
        "batch_size": recipe.batch_size,
        "compile": recipe.compile,
    }
