"""Stage 1 on a Dask cluster: chunk numbers go out, ledger entries come back; never the model, never pixels.

Each worker loads the teacher itself, once, and reads photos and writes chunks by their paths or URLs, which must mean
the same to all of them. The store's own ledger and claims keep retries, lost workers and second schedulers harmless.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from distributed import Client, LocalCluster, get_worker

from delta.config import Config
from delta.device import choose_device
from delta.errors import DeltaError
from delta.teacher import Teacher, load_teacher
from delta_cache.reader import Store
from delta_cache.schema import ChunkRecord
from delta_pipelines.build_cache import Watcher, finish, open_store, run_chunks
from delta_pipelines.cache_recipe import CacheRecipe
from delta_pipelines.chunk_builder import STAGES, ChunkBuilder
from delta_pipelines.views import open_photos

RETRIES = 3
CONNECT_S = "20s"

_loading = threading.Lock()  # the threads of a worker share one teacher


class Job(Config, frozen=True, kw_only=True):
    """All that a worker needs to know, as plain text and numbers."""

    recipe: CacheRecipe
    photos: str
    store: str
    teacher: str
    device: str = "auto"
    basis: str | None = None


def absolute(place: str) -> str:
    """Make a path absolute, since a worker's current folder is its own; a URL stays what it is."""
    return place if "://" in place else str(Path(place).absolute())


def build_on_cluster(job: Job, client: Client, watcher: Watcher) -> Store:
    """Have the workers of a running cluster build a store; resume what is there.

    Raises:
        DeltaError: no photos, or none that can be read.
        CacheError: the store is of another contract.
    """
    threads: Any = client.nthreads()
    if not threads:
        raise DeltaError("the cluster has no workers", "start some: dask worker SCHEDULER_ADDRESS --nthreads 3")
    with client.get_executor(pure=False, retries=RETRIES) as executor:
        executor.submit(_prepare, job).result()
        store = Store.open(job.store)
        build = partial(_build, job, store.contract.fingerprint)
        run_chunks(store, executor, build, sum(threads.values()) + len(threads), watcher)
    return finish(store)


@contextmanager
def local_cluster(workers: int) -> Iterator[Client]:
    """Start worker processes on this machine: a GPU each where there are several, and an equal share of the cores."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    with (
        LocalCluster(n_workers=workers, threads_per_worker=STAGES, processes=True, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextmanager
def connect(address: str) -> Iterator[Client]:
    """Connect to a running scheduler.

    Raises:
        DeltaError: nobody answers there.
    """
    try:
        client = Client(address, timeout=CONNECT_S)
    except (OSError, TimeoutError, ValueError) as error:
        raise DeltaError(
            f"there is no Dask scheduler at {address}: {str(error) or type(error).__name__}",
            "start one with `dask scheduler`, or leave --scheduler out",
        ) from None
    with client:
        yield client


def _prepare(job: Job) -> None:
    """Create the store; on a worker, since it takes a teacher."""
    with _loading:
        teacher, device = _load(job)
    open_store(job.recipe, job.photos, job.store, teacher, device=device, basis=job.basis)


def _build(job: Job, fingerprint: str, chunk: int) -> ChunkRecord | None:
    with _loading:
        builder = _builder(job, fingerprint)
    return builder.build(chunk)


@lru_cache(maxsize=1)
def _builder(job: Job, fingerprint: str) -> ChunkBuilder:
    """One for each store: `fingerprint` tells a store from its successor at the same place."""
    del fingerprint
    teacher, device = _load(job)
    return ChunkBuilder(Store.open(job.store), open_photos(job.photos), job.recipe, teacher, device)


@lru_cache(maxsize=1)
def _load(job: Job) -> tuple[Teacher, torch.device]:
    device = _own_device(job.device)
    recipe = job.recipe
    teacher = load_teacher(
        job.teacher, taps=recipe.taps, precision=recipe.precision, compiled=recipe.compile, device=device
    )
    return teacher, device


def _own_device(name: str) -> torch.device:
    """The device asked for; on "auto" and several GPUs, a worker that is a number takes the GPU of that number."""
    number = str(get_worker().name)
    if name == "auto" and torch.cuda.device_count() > 1 and number.isdecimal():
        return torch.device("cuda", int(number) % torch.cuda.device_count())
    return choose_device(name)
