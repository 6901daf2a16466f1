"""How long a training step takes with its targets in memory, from the cache, and with a teacher in the loop.

All kinds take turns within one run, on the same student, recipe and samples: their ratios are what counts.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import msgspec
import torch

from delta.batch import Batch, Targets
from delta.config import Config
from delta.errors import DeltaError
from delta.objective import TargetStatistics
from delta.random_teacher import SIZES, random_teacher
from delta.train import fit
from delta_cache.reader import Store, open_cache
from delta_pipelines.distill import start_state
from delta_pipelines.feed import Feed, TeacherCall, measure_targets, split_store
from delta_pipelines.live import kept_blocks
from delta_pipelines.train_recipe import TrainRecipe

MEMORY, CACHED = "memory", "cached"
QUICK_TURNS = 3  # steps of the quick kinds for each of a teacher in the loop
MEMORY_BATCHES = 4
FOREVER = 10**9


class BenchRow(Config, frozen=True, kw_only=True):
    """One kind of feed: the median step over `steps` steps, its quartiles, and what of it was waiting for data."""

    name: str
    step_ms: float
    ratio_to_memory: float
    low_ms: float
    high_ms: float
    wait_ms: float
    images_per_s: float
    steps: int


class _Runner:
    """A student in training on one kind of feed, a step at a time."""

    def __init__(
        self, name: str, recipe: TrainRecipe, store: Store, device: torch.device, statistics: TargetStatistics | None,
        teacher: TeacherCall | None,
    ) -> None:  # fmt: skip
        split = split_store(store, recipe.feed)
        state = start_state(recipe, store, split, device, statistics=statistics)
        feed = Feed(
            store,
            split,
            state.objective.arrays,
            config=recipe.feed,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            teacher=teacher,
        )
        self.times: list[float] = []
        self.waits: list[float] = []
        self._device = device
        self._batches = _batches(name, feed, recipe, device)
        self._steps = fit(state, self._batches, recipe.optimizer, FOREVER)

    def step(self, *, counted: bool = True) -> None:
        """Take one step and its time, until the device has done with it."""
        start = time.perf_counter()
        report = next(self._steps)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        if counted:
            self.times.append(time.perf_counter() - start)
            self.waits.append(report.wait_s)

    def close(self) -> None:
        """Stop the threads or processes that read."""
        self._batches.close()

    def row(self, name: str, memory_s: float, batch_size: int) -> BenchRow:
        """Sum up, beside the median step from memory."""
        median = statistics.median(self.times)
        low, _, high = statistics.quantiles(self.times, n=4) if len(self.times) > 1 else [median] * 3
        return BenchRow(
            name=name,
            step_ms=1000 * median,
            ratio_to_memory=median / memory_s,
            low_ms=1000 * low,
            high_ms=1000 * high,
            wait_ms=1000 * statistics.median(self.waits),
            images_per_s=batch_size / median,
            steps=len(self.times),
        )


def bench_train(
    recipe: TrainRecipe,
    store_path: str | Path,
    *,
    device: torch.device,
    rounds: int,
    sizes: tuple[str, ...] = tuple(SIZES),
    watch: Callable[[str, int], None] = lambda name, steps: None,
) -> list[BenchRow]:
    """Time steps in turns: in each round a few of the quick kinds and one of each teacher in the loop.

    "memory" learns from samples that are decoded and on the device; "cached" reads the store. Both draw and apply the
    augmentation anew at each step. The teachers have random weights, which take as long as any.

    Args:
        sizes: of the teachers in the loop, among `delta.random_teacher.SIZES`.
        watch: told each kind and how many steps of it are timed.

    Raises:
        CacheError: the store is missing or incomplete.
    """
    store = open_cache(store_path)
    runners: dict[str, _Runner] = {}
    try:
        for name in (MEMORY, CACHED):
            runners[name] = _Runner(name, recipe, store, device, None, None)
        for size in sizes:
            name, teacher = f"live-{size}", random_teacher(size, taps=kept_blocks(store), device=device)
            runners[name] = _Runner(name, recipe, store, device, _probe(teacher, recipe, store, device), teacher)
        for name, runner in runners.items():  # the first steps make buffers and start threads
            for _ in range(1 if name.startswith("live-") else 3):
                runner.step(counted=False)
            watch(name, 0)
        for _ in range(rounds):
            for name in _turns(list(runners)):
                runners[name].step()
                watch(name, len(runners[name].times))
    finally:
        for runner in runners.values():
            runner.close()
    memory_s = statistics.median(runners[MEMORY].times)
    return [runner.row(name, memory_s, recipe.batch_size) for name, runner in runners.items()]


def parse_sizes(text: str) -> tuple[str, ...]:
    """Read teachers' sizes, comma-separated.

    Raises:
        DeltaError: there is no such size.
    """
    sizes = tuple(size.strip() for size in text.split(",") if size.strip())
    for size in sizes:
        if size not in SIZES:
            raise DeltaError(f"there is no teacher of size {size!r}", f"choose among {', '.join(SIZES)}")
    return sizes


def _turns(names: list[str]) -> Iterator[str]:
    live = [name for name in names if name.startswith("live-")]
    for name in live or [""]:
        yield from itertools.chain.from_iterable(itertools.repeat((MEMORY, CACHED), QUICK_TURNS))
        if name:
            yield name


def _batches(name: str, feed: Feed, recipe: TrainRecipe, device: torch.device) -> Generator[Batch, None, None]:
    if name != MEMORY:
        return feed.batches(0, recipe.augment, lambda step: recipe.size_px, device)
    stored = feed.targets(0, device)
    kept = [feed.decoded(targets) for targets in itertools.islice(stored, MEMORY_BATCHES)]
    stored.close()
    return feed.augmented(_again(kept), 0, recipe.augment, lambda step: recipe.size_px)


def _again(kept: list[Targets]) -> Generator[Targets, None, None]:
    yield from itertools.cycle(kept)


def _probe(teacher: TeacherCall, recipe: TrainRecipe, store: Store, device: torch.device) -> TargetStatistics:
    """Statistics in the shapes of another teacher's features; the numbers of a single gray image do."""
    known = measure_targets(store, split_store(store, recipe.feed), recipe.loss)
    side = store.contract.spec("disparity").shape[-1]
    answer = teacher(torch.full((1, 3, side, side), 0.5, device=device))
    features = {tap: answer.features[tap].float().cpu() for tap in known.feature_mean}
    return msgspec.structs.replace(
        known,
        feature_mean={tap: value.mean(dim=(0, 2, 3)) for tap, value in features.items()},
        feature_std={tap: value.std(dim=(0, 2, 3)).clamp(min=1e-6) for tap, value in features.items()},
        heads={tap: answer.attention[tap].shape[1] for tap in known.heads},
    )
