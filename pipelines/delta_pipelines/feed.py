"""From store to batches: chunks read ahead in a thread, shuffled inside a window, augmented on the device.

The stream is a function of seed and step alone: batch k is the same whether the run got there in one go or resumed.
"""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import numpy as np
import torch
from msgspec import Meta

from delta.batch import AugmentConfig, Batch, make_batch
from delta.config import Config
from delta.objective import TargetStatistics
from delta_cache.order import epoch_order
from delta_cache.reader import Store

Window = dict[str, np.ndarray]
STATISTICS_SAMPLES = 64  # chunks are random samples, so a few tell mean and deviation


class FeedConfig(Config, frozen=True, kw_only=True):
    """How the store is read: chunks in memory at once; share of photos held out, at most `holdout_max`."""

    window_chunks: Annotated[int, Meta(ge=1)] = 4
    holdout: Annotated[float, Meta(gt=0, lt=1)] = 0.06
    holdout_max: Annotated[int, Meta(ge=1)] = 256


class Split(Config, frozen=True, kw_only=True):
    """Sample numbers to train on and to hold out: the last ones, as the order of a store is random already."""

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


def feature_names(store: Store) -> list[str]:
    """The store's taps, shallow to deep."""
    return [spec.name.removeprefix("features/") for spec in store.contract.arrays if spec.name.startswith("features/")]


def read_samples(store: Store, samples: np.ndarray, names: list[str]) -> Window:
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


def measure_targets(store: Store, split: Split, *, with_features: bool) -> TargetStatistics:
    """Measure the constants of a store on its first training samples."""
    taps = feature_names(store) if with_features else []
    samples = split.train[:STATISTICS_SAMPLES]
    data = read_samples(store, samples, ["disparity", *(f"features/{tap}" for tap in taps)])
    features = {tap: torch.from_numpy(data[f"features/{tap}"].astype(np.float32)) for tap in taps}
    return TargetStatistics(
        disparity_scale=max(float(data["disparity"].astype(np.float64).mean()), 1e-6),
        feature_mean={tap: value.mean(dim=(0, 2, 3)) for tap, value in features.items()},
        feature_std={tap: value.std(dim=(0, 2, 3)).clamp(min=1e-6) for tap, value in features.items()},
    )


class Feed:
    """An endless stream of batches from `first_step` on."""

    def __init__(
        self, store: Store, split: Split, taps: list[str], *, config: FeedConfig, batch_size: int, seed: int
    ) -> None:
        self._store, self._train, self._taps = store, split.train, taps
        self._config, self._batch_size, self._seed = config, batch_size, seed
        self._names = ["image", "disparity", *(f"features/{tap}" for tap in taps)]

    def batches(
        self, first_step: int, augment: AugmentConfig, size_px: Callable[[int], int], device: torch.device
    ) -> Iterator[Batch]:
        """Yield the batch of step `first_step`, `first_step` + 1, …; steps count from 0."""
        rows = self._rows(first_step * self._batch_size)
        for step in itertools.count(first_step):
            chosen = list(itertools.islice(rows, self._batch_size))
            stacked = {name: np.stack([window[name][row] for window, row in chosen]) for name in self._names}
            generator = torch.Generator().manual_seed(_mix(self._seed, step))
            yield make_batch(
                torch.from_numpy(stacked["image"]).to(device),
                torch.from_numpy(stacked["disparity"]).to(device),
                {tap: torch.from_numpy(stacked[f"features/{tap}"]).to(device) for tap in self._taps},
                size_px=size_px(step),
                config=augment,
                generator=generator,
            )

    def _rows(self, skip: int) -> Iterator[tuple[Window, int]]:
        """Yield (window, row in it) in stream order, one window read ahead; whole skipped windows are not read."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="feed") as pool:
            plan = self._plan(skip)
            ahead = pool.submit(self._read, next(plan))
            for following in plan:
                window = ahead.result()
                ahead = pool.submit(self._read, following)
                yield from ((window, row) for row in range(len(window["image"])))

    def _plan(self, skip: int) -> Iterator[np.ndarray]:
        """Yield each window's samples in order, epoch after epoch, without the first `skip`."""
        size, chunks = self._store.contract.chunk_samples, self._config.window_chunks
        for epoch in itertools.count():
            order = epoch_order(self._train, size, window_chunks=chunks, seed=self._seed, epoch=epoch)
            for samples in order:
                if skip < len(samples):
                    yield samples[skip:]
                skip = max(0, skip - len(samples))

    def _read(self, samples: np.ndarray) -> Window:
        return read_samples(self._store, samples, self._names)


def _mix(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)
