"""Chunks before they are needed: read by threads or worker processes, handed over in the order asked for."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from delta.batch import Targets
from delta.config import Config
from delta_cache.errors import CacheError
from delta_cache.reader import Store
from delta_pipelines.train_recipe import FeedConfig

Chunk = dict[str, Tensor]


class Task(Config, frozen=True, kw_only=True):
    """What to read of one chunk: `samples`, ascending; `first` is the number of the chunk's first."""

    chunk: int
    first: int
    samples: np.ndarray


class Failure(Config, frozen=True, kw_only=True):
    """What went wrong in a worker process, to be raised again where it can be read."""

    kind: type
    message: str
    hint: str


class ChunkReader(Dataset[Any]):
    """`reader[task]` reads a task's samples of the named arrays, "image" first; each process opens the store itself."""

    def __init__(self, url: str, names: tuple[str, ...]) -> None:
        self._url, self._names = url, names
        self._store: Store | None = None

    def __getitem__(self, task: Task) -> Chunk | Failure:
        try:
            return self.read(task)
        except CacheError as error:
            return Failure(kind=type(error), message=str(error), hint=error.hint)

    def read(self, task: Task) -> Chunk:
        """Read one chunk: photos as pixels, the teacher's answers as they are stored, to be decoded on the device.

        Raises:
            CacheError: it is missing or damaged.
        """
        if self._store is None:
            self._store = Store.open(self._url)
        rows = task.samples - task.first
        coded = self._store.read_chunk(task.chunk, self._names[1:], rows, decoded=False)
        photos = self._store.read_chunk(task.chunk, self._names[:1], rows)
        return {name: torch.from_numpy(values) for name, values in (photos | coded).items()}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_store": None}


def read_chunks(reader: ChunkReader, tasks: Iterator[Task], config: FeedConfig) -> Generator[Chunk, None, None]:
    """Yield each task's chunk in order; what is read, and in which order, does not depend on how.

    Raises:
        CacheError: a chunk is missing or damaged.
    """
    if config.workers == 0:
        yield from map(reader.read, tasks)
    elif config.method == "thread":
        yield from _by_threads(reader, tasks, config)
    else:
        yield from _by_processes(reader, tasks, config)


def _by_threads(reader: ChunkReader, tasks: Iterator[Task], config: FeedConfig) -> Generator[Chunk, None, None]:
    with ThreadPoolExecutor(max_workers=config.workers, thread_name_prefix="feed") as pool:
        depth = config.workers * config.ahead
        waiting: deque[Future[Chunk]] = deque(pool.submit(reader.read, task) for task in islice(tasks, depth))
        try:
            while waiting:
                chunk = waiting.popleft().result()
                waiting.extend(pool.submit(reader.read, task) for task in islice(tasks, 1))
                yield chunk
        finally:
            for future in waiting:
                future.cancel()


def _by_processes(reader: ChunkReader, tasks: Iterator[Task], config: FeedConfig) -> Generator[Chunk, None, None]:
    loader = DataLoader(
        reader,
        batch_size=None,
        sampler=tasks,
        num_workers=config.workers,
        prefetch_factor=config.ahead,
        multiprocessing_context=config.method,
        generator=torch.Generator(),  # or it would take a number from the run's
    )
    for chunk in loader:
        if isinstance(chunk, Failure):
            raise chunk.kind(chunk.message, chunk.hint)
        yield chunk


def one_ahead(targets: Generator[Targets, None, None], device: torch.device) -> Generator[Targets, None, None]:
    """Yield targets on the device, each gathered and copied in a thread while the one before is in use.

    On a GPU they travel from pinned memory on a stream of their own.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def make() -> tuple[Targets | None, Any]:
        made = next(targets, None)
        if made is None or stream is None:
            return made, None
        with torch.cuda.stream(stream):
            copied = made.each(lambda tensor: tensor.pin_memory().to(device, non_blocking=True))
            return copied, stream.record_event()

    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
    ahead = pool.submit(make)
    try:
        while True:
            made, ready = ahead.result()
            if made is None:
                return
            ahead = pool.submit(make)
            if ready is not None:
                _hand_over(made, ready, torch.cuda.current_stream(device))
            yield made
    finally:
        pool.shutdown(cancel_futures=True)  # waits for the one under way
        targets.close()


def _hand_over(targets: Targets, ready: torch.cuda.Event, stream: torch.cuda.Stream) -> None:
    """Let a stream use what another has copied, once it is there, and keep its memory until that is done."""

    def keep(tensor: Tensor) -> Tensor:
        tensor.record_stream(stream)
        return tensor

    stream.wait_event(ready)
    targets.each(keep)
