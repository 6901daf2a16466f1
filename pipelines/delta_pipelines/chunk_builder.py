"""One chunk from photos to ledger entry. Several threads may build chunks at once: their stages then overlap.

While one chunk is in the teacher's hands, the next is decoded and the one before is compressed and written. A lock
lets one chunk at a time to the teacher, and one at a time to the disk.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime

import numpy as np
import torch

from delta.teacher import Teacher
from delta_cache.layout import ledger_file
from delta_cache.reader import Store
from delta_cache.schema import ChunkRecord, Times
from delta_cache.storage import Storage
from delta_cache.writer import write_chunk
from delta_pipelines.answers import ask, stored_arrays, torch_bases
from delta_pipelines.cache_recipe import CacheRecipe
from delta_pipelines.views import DecodedPhoto, decode_view

STAGES = 3  # chunks in a process at once: one decoded, one with the teacher, one on its way to the disk


class Stopped(Exception):
    """The build was told to stop; the chunk at hand is not recorded."""


class ChunkBuilder:
    """Builds any chunk of one store. A chunk that another process holds is left to it."""

    def __init__(
        self, store: Store, photos: Storage, recipe: CacheRecipe, teacher: Teacher, device: torch.device
    ) -> None:
        self._store, self._photos, self._recipe, self._teacher, self._device = store, photos, recipe, teacher, device
        self._bases = torch_bases(store.bases, device)
        self._decoders = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")
        self._asking, self._writing = threading.Lock(), threading.Lock()
        self._stop = threading.Event()
        self._last = time.perf_counter()
        self._worker = f"{socket.gethostname()}:{os.getpid()}"

    def stop(self) -> None:
        """Let no chunk go on beyond the batch at hand."""
        self._stop.set()
        self._decoders.shutdown(wait=False, cancel_futures=True)

    def build(self, chunk: int) -> ChunkRecord | None:
        """Build a chunk and return its record; that which is there, where it is whole; None where another builds it.

        Raises:
            OSError: the disk is full or failing; the chunk stays to be built.
            Stopped: `stop` was called.
        """
        with self._store.storage.claim(ledger_file(chunk).replace("/", "-")) as ours:
            if not ours:
                return None
            if self._store.is_whole(chunk):
                return self._store.record(chunk)
            return self._build(chunk)

    def _build(self, chunk: int) -> ChunkRecord:
        spent: dict[str, float] = {}
        with _stopwatch(spent, "decode_s"):
            decoded = self._decode(self._store.contract.chunk_range(chunk))
        with self._asking, _stopwatch(spent, "teacher_s"):
            answers = self._ask(decoded)
        with self._writing:
            self._go_on()
            began = time.perf_counter()
            arrays, samples = stored_arrays(self._store.contract.arrays, decoded, answers)
            return write_chunk(self._store, chunk, arrays, samples, lambda: self._times(spent, began))

    def _decode(self, samples: range) -> list[DecodedPhoto]:
        contract, side = self._store.contract, self._store.contract.recipe["size_px"]
        self._go_on()
        photos = [self._store.photos[contract.photo_of(sample)] for sample in samples]
        names = [contract.views[contract.view_of(sample)] for sample in samples]
        return list(
            self._decoders.map(
                lambda photo, name: decode_view(self._photos, photo, name, self._recipe, side), photos, names
            )
        )

    def _ask(self, decoded: Sequence[DecodedPhoto]) -> dict[str, np.ndarray]:
        parts = []
        for first in range(0, len(decoded), self._recipe.batch_size):
            self._go_on()
            batch = decoded[first : first + self._recipe.batch_size]
            answer = ask(self._teacher, self._recipe, self._bases, batch, self._device)
            parts.append({name: value.cpu() for name, value in answer.items()})
        return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}

    def _times(self, spent: dict[str, float], writing_since: float) -> Times:
        now = time.perf_counter()
        total, self._last = now - self._last, now
        finished = datetime.now(UTC).isoformat(timespec="milliseconds")
        seconds = spent | {"write_s": now - writing_since, "total_s": total}
        rounded = {name: round(value, 4) for name, value in seconds.items()}
        return Times(finished=finished, worker=self._worker, **rounded)

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise Stopped


@contextmanager
def _stopwatch(into: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    into[name] = time.perf_counter() - start
