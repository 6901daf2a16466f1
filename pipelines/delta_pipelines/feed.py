"""From store to batches: chunks read ahead by threads or processes, shuffled inside a window, augmented on the device.

The stream is a function of seed, step and shards alone: batch k is the same whether the run got there in one go or
resumed, and for any number of workers of any kind.
"""

import itertools
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from delta.augment import AugmentConfig
from delta.batch import Batch, Targets, draw, is_coded, make_batch
from delta.config import Config
from delta.distributed import ALONE, World
from delta.errors import DeltaError
from delta.feature_basis import FeatureBasis, resample_area
from delta.objective import LossConfig, TargetStatistics
from delta_cache.basis import TapBasis
from delta_cache.order import epoch_order
from delta_cache.reader import Store
from delta_pipelines.read_ahead import ChunkReader, Task, one_ahead, read_chunks
from delta_pipelines.train_recipe import FeedConfig

TeacherCall = Callable[[Tensor], Any]  # a delta.teacher.Teacher; training from the cache never imports one
STATISTICS_SAMPLES = 64  # chunks are random samples, so a few tell mean and deviation


class Split(Config, frozen=True, kw_only=True):
    """Sample numbers to train on and to hold out: the last photos, as their order in a store is random already."""

    train: np.ndarray
    holdout: np.ndarray


def split_store(store: Store, config: FeedConfig) -> Split:
    """Split the samples that have answers by photo; at least one photo lands on either side where there are two.

    Held-out samples are plain views; other views of a held-out photo are on neither side.
    """
    usable = np.flatnonzero(store.mask)
    photo_of = usable % store.contract.photo_count
    photos = np.unique(photo_of)
    count = min(config.holdout_max, max(1, round(config.holdout * len(photos))))
    cut = max(1, len(photos) - count)
    if cut == len(photos):
        return Split(train=usable, holdout=usable)
    held = np.isin(photo_of, photos[cut:])
    return Split(train=usable[~held], holdout=usable[held & (usable < store.contract.photo_count)])


def tap_names(store: Store, kind: str) -> list[str]:
    """The store's taps of a kind ("features" or "attention"), shallow to deep."""
    return [spec.name.removeprefix(f"{kind}/") for spec in store.contract.arrays if spec.name.startswith(f"{kind}/")]


def feature_names(store: Store) -> list[str]:
    """The store's taps of features, shallow to deep."""
    return tap_names(store, "features")


def read_samples(store: Store, samples: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    """Read samples (in the order given) of the named arrays, chunk by chunk."""
    size = store.contract.chunk_samples
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    chunk_of = samples // size
    for chunk in np.unique(chunk_of):
        data = store.read_chunk(int(chunk), names, samples[chunk_of == chunk] - chunk * size)
        for name in names:
            parts[name].append(data[name])
    back = np.argsort(np.argsort(chunk_of, kind="stable"), kind="stable")
    return {name: np.concatenate(values)[back] for name, values in parts.items()}


def measure_targets(store: Store, split: Split, loss: LossConfig) -> TargetStatistics:
    """Measure the constants of a store that a loss needs, on its first training samples.

    Features that are kept in a basis have theirs in the store already, of all photos it was fitted on.
    """
    taps = feature_names(store) if loss.uses_features else []
    measured = [tap for tap in taps if tap not in store.bases]
    samples = split.train[:STATISTICS_SAMPLES]
    data = read_samples(store, samples, ["disparity", *(f"features/{tap}" for tap in measured)])
    features = {tap: torch.from_numpy(data[f"features/{tap}"].astype(np.float32)) for tap in measured}
    known = {tap: (torch.tensor(basis.mean), torch.tensor(basis.std)) for tap, basis in store.bases.items()}
    known |= {tap: (value.mean(dim=(0, 2, 3)), value.std(dim=(0, 2, 3))) for tap, value in features.items()}
    heads = {tap: store.contract.spec(f"attention/{tap}").shape[0] for tap in tap_names(store, "attention")}
    return TargetStatistics(
        disparity_scale=max(float(data["disparity"].astype(np.float64).mean()), 1e-6),
        feature_mean={tap: known[tap][0] for tap in taps},
        feature_std={tap: known[tap][1].clamp(min=1e-6) for tap in taps},
        heads=heads if loss.uses_attention else {},
    )


class Feed:
    """An endless stream of batches from `first_step` on, for one process of a world.

    `arrays` names what is read beside image and disparity: "features/block09", "attention/block12". With a `teacher`
    the images alone are read, and it answers for them: the same stream with a teacher in the loop.

    Raises:
        DeltaError: fewer chunks than shards.
    """

    def __init__(
        self,
        store: Store,
        split: Split,
        arrays: list[str],
        *,
        config: FeedConfig,
        batch_size: int,
        seed: int,
        world: World = ALONE,
        teacher: TeacherCall | None = None,
    ) -> None:
        self._store, self._train, self._arrays = store, split.train, arrays
        self._config, self._batch_size, self._seed = config, batch_size, seed
        self._world, self._teacher = world, teacher
        self._shards = config.shards or world.size
        chunks = len(np.unique(self._train // store.contract.chunk_samples))
        if chunks < self._shards:
            raise DeltaError(
                f"{chunks} chunks to train on cannot be dealt to {self._shards} processes or shards",
                "use fewer, or build the cache with a smaller chunk_samples",
            )
        self._names = ["image"] if teacher else ["image", "disparity", *arrays]
        self._bases = {tap: basis for tap, basis in store.bases.items() if f"features/{tap}" in self._names}
        self._decode: dict[torch.device, dict[str, Callable[[Tensor], Tensor]]] = {}

    def batches(
        self, first_step: int, augment: AugmentConfig, size_px: Callable[[int], int], device: torch.device
    ) -> Generator[Batch, None, None]:
        """Yield the batch of step `first_step`, `first_step` + 1, …; steps count from 0."""
        return self.augmented(self.targets(first_step, device), first_step, augment, size_px)

    def augmented(
        self,
        stored: Generator[Targets, None, None],
        first_step: int,
        augment: AugmentConfig,
        size_px: Callable[[int], int],
    ) -> Generator[Batch, None, None]:
        """Make each step's batch of stored views: drawn for all processes at once, so that they agree."""
        count, rank = self._batch_size * self._world.size, self._world.rank
        mine = slice(rank * self._batch_size, (rank + 1) * self._batch_size)
        with closing(stored):
            for step, targets in enumerate(stored, start=first_step):
                generator = torch.Generator().manual_seed(_mix(self._seed, step))
                draws, answered = draw(count, augment, generator).rows(mine), self._answer(targets)
                decode = self._decoders(targets.image.device)
                yield make_batch(answered, draws, size_px=size_px(step), config=augment, decode=decode)

    def decoded(self, targets: Targets) -> Targets:
        """Turn the codes of features into what they stand for; these are not to be decoded again."""
        decode = self._decoders(targets.image.device)
        return msgspec.structs.replace(
            targets, features={tap: decode[tap](f) if is_coded(f) else f for tap, f in targets.features.items()}
        )

    def targets(self, first_step: int, device: torch.device) -> Generator[Targets, None, None]:
        """Yield the stored views of each step, on the device, without augmentation; the next is made meanwhile."""
        return one_ahead(self._collate(first_step), device)

    def _collate(self, first_step: int) -> Generator[Targets, None, None]:
        per_process = self._shards // self._world.size
        mine = range(self._world.rank * per_process, (self._world.rank + 1) * per_process)
        each = self._batch_size // per_process
        streams = [self._rows(shard, first_step * each) for shard in mine]
        while True:
            yield self._stack([row for rows in streams for row in itertools.islice(rows, each)])

    def _stack(self, rows: list[tuple[int, dict[str, Tensor], int]]) -> Targets:
        stacked = {name: torch.stack([chunk[name][row] for _, chunk, row in rows]) for name in self._names}
        return Targets(
            image=stacked["image"],
            disparity=stacked.get("disparity", torch.empty(0)),
            features=_of_kind("features", stacked),
            attention=_of_kind("attention", stacked),
            samples=torch.tensor([sample for sample, _, _ in rows]),
        )

    def _rows(self, shard: int, skip: int) -> Iterator[tuple[int, dict[str, Tensor], int]]:
        """Yield (sample, its chunk's data, row in it) in stream order; whole skipped windows are not read."""
        plan, tasks = itertools.tee(self._plan(shard, skip))
        reader = ChunkReader(self._store.url, tuple(self._names))
        chunks = read_chunks(reader, (task for _, window in tasks for task in window), self._config)
        for samples, window in plan:
            data = dict(zip((task.chunk for task in window), itertools.islice(chunks, len(window)), strict=True))
            places = {int(sample): (task.chunk, row) for task in window for row, sample in enumerate(task.samples)}
            for sample in samples.tolist():
                chunk, row = places[sample]
                yield sample, data[chunk], row

    def _plan(self, shard: int, skip: int) -> Iterator[tuple[np.ndarray, list[Task]]]:
        """Yield each window's samples in order and what to read for them, epoch after epoch, but the first `skip`."""
        size, chunks = self._store.contract.chunk_samples, self._config.window_chunks
        for epoch in itertools.count():
            order = epoch_order(
                self._train,
                size,
                window_chunks=chunks,
                seed=self._seed,
                epoch=epoch,
                rank=shard,
                world_size=self._shards,
            )
            for samples in order:
                if skip < len(samples):
                    left = samples[skip:]
                    yield left, [_task(int(chunk), left, size) for chunk in np.unique(left // size)]
                skip = max(0, skip - len(samples))

    def _decoders(self, device: torch.device) -> dict[str, Callable[[Tensor], Tensor]]:
        if device not in self._decode:
            self._decode[device] = {tap: _on_device(basis, device).decode for tap, basis in self._bases.items()}
        return self._decode[device]

    def _answer(self, targets: Targets) -> Targets:
        """Let the teacher in the loop answer, where there is one."""
        if self._teacher is None:
            return targets
        output = self._teacher(targets.image.permute(0, 3, 1, 2).to(torch.float32) / 255)
        maps = {f"features/{tap}": value for tap, value in output.features.items()}
        maps |= {f"attention/{tap}": value for tap, value in output.attention.items()}
        answers = {name: self._on_grid(name, maps[name]) for name in self._arrays}
        return msgspec.structs.replace(
            targets,
            disparity=output.disparity,
            features=_of_kind("features", answers),
            attention=_of_kind("attention", answers),
        )

    def _on_grid(self, name: str, maps: Tensor) -> Tensor:
        """Bring maps to the grid that the store keeps them on, as its build does."""
        keep = "mean" if name.startswith("features/") else "sum"
        return resample_area(maps.float(), self._store.contract.spec(name).shape[-1], keep=keep)


def _task(chunk: int, samples: np.ndarray, size: int) -> Task:
    return Task(chunk=chunk, first=chunk * size, samples=np.sort(samples[samples // size == chunk]))


def _on_device(basis: TapBasis, device: torch.device) -> FeatureBasis:
    return FeatureBasis(**{name: torch.tensor(values, device=device) for name, values in basis.arrays().items()})


def _of_kind(kind: str, stacked: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.split("/")[1]: value for name, value in stacked.items() if name.startswith(f"{kind}/")}


def _mix(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)
