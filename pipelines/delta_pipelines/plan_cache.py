"""What a cache build will take, measured before GPU hours are spent: a small build of its recipe, and a write probe."""

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from delta.config import Config
from delta.teacher import Teacher
from delta_cache.reader import Store
from delta_cache.storage import LocalStorage, open_storage
from delta_pipelines.build_cache import Watcher, build_cache, plan_store
from delta_pipelines.cache_recipe import CacheRecipe
from delta_pipelines.chunk_timing import Meter, work
from delta_pipelines.forecast import write_forecast

PHOTOS = (32, 256, 1024)  # photos measured on: more where the first were done too quickly to tell
ENOUGH_S = 10.0
FIT_PHOTOS = 16
TRAINED_ON = ("image", "disparity", "features")
PROBE_FILES, PROBE_BYTES = 16, 8_000_000


class Plan(Config, frozen=True, kw_only=True):
    """A forecast for one worker, and what it rests on.

    `bytes` and `files` are of the whole store; `seconds` includes `fit_s`, fitting the feature bases. `decode_per_s` is
    of all this machine's threads; `read_per_s` is reading back and decoding on one. `break_even_epochs` is after how
    many epochs the build has cost less than a teacher asked again in each.
    """

    photos: int
    samples: int
    bytes: int
    bytes_per_photo: float
    files: int
    seconds: float
    fit_s: float
    samples_per_s: float
    decode_per_s: float
    teacher_per_s: float
    read_per_s: float
    disk_bytes_per_s: float
    free_bytes: int
    break_even_epochs: float
    meter: Meter
    device: str
    measured_samples: int


def plan_cache(
    recipe: CacheRecipe,
    photos: str | Path,
    store: str | Path | None,
    teacher: Teacher,
    *,
    device: torch.device,
    watcher: Watcher | None = None,
) -> Plan:
    """Measure this disk, decoder and device on a sample of the photos and forecast a build of all of them.

    Args:
        store: where the store is to be; its disk is the one probed, and the forecast is kept beside it for
            `cache info`. Without it the current folder's disk is probed and nothing is kept.

    Raises:
        DeltaError: no photos, or none of the sample can be read.
    """
    listed, contract = plan_store(recipe, photos, teacher, device)
    place = _disk(store)
    with tempfile.TemporaryDirectory(prefix=".delta-plan-", dir=place) as scratch:
        sample = _measure(recipe, photos, Path(scratch), teacher, device, watcher or Watcher(), len(listed))
        records = list(sample.records())
        disk = _probe_disk(Path(scratch))
        read_per_s = _read_rate(sample)
        per_sample = sum(sample.bytes_on_disk().values()) / sample.contract.samples
    done = work(records)
    fit_s = _fit_seconds(recipe, len(listed), sample)
    rate = done.samples / done.seconds
    teacher_per_s = done.samples / sum(record.times.teacher_s for record in records)
    seconds = contract.samples / rate + fit_s
    made = Plan(
        photos=len(listed),
        samples=contract.samples,
        bytes=round(per_sample * contract.samples),
        bytes_per_photo=per_sample * len(contract.views),
        files=contract.chunks * (len(contract.arrays) + 1),
        seconds=seconds,
        fit_s=fit_s,
        samples_per_s=rate,
        decode_per_s=done.samples / sum(record.times.decode_s for record in records),
        teacher_per_s=teacher_per_s,
        read_per_s=read_per_s,
        disk_bytes_per_s=disk,
        free_bytes=shutil.disk_usage(place).free,
        break_even_epochs=_break_even(seconds / contract.samples, 1 / teacher_per_s, 1 / read_per_s),
        meter=done.meter,
        device=f"{device}, {os.cpu_count()} CPU cores",
        measured_samples=done.samples,
    )
    if store is not None:
        write_forecast(store, contract, msgspec.to_builtins(made))
    return made


def _measure(
    recipe: CacheRecipe,
    photos: str | Path,
    scratch: Path,
    teacher: Teacher,
    device: torch.device,
    watcher: Watcher,
    available: int,
) -> Store:
    """Build small stores of the same recipe until one took long enough to tell."""
    small = msgspec.structs.replace(
        recipe,
        chunk_samples=min(recipe.chunk_samples, recipe.batch_size),
        features=msgspec.structs.replace(
            recipe.features, fit_photos=min(FIT_PHOTOS, available, recipe.features.fit_photos)
        ),
    )
    for count in PHOTOS:
        limited = msgspec.structs.replace(small, limit=min(count, available))
        store = build_cache(limited, photos, scratch / f"{count}.zarr", teacher, device=device, watcher=watcher)
        if count >= min(available, PHOTOS[-1]) or work(list(store.records())).seconds > ENOUGH_S:
            return store
    raise AssertionError("the last count always returns")


def _fit_seconds(recipe: CacheRecipe, photos: int, sample: Store) -> float:
    """What fitting takes, scaled from the sample's own fit."""
    fitted = min(sample.contract.recipe["features"]["fit_photos"], sample.contract.photo_count)
    return sample.provenance.get("fit_s", 0.0) * min(recipe.features.fit_photos, photos) / fitted


def _break_even(build_s: float, teacher_s: float, read_s: float) -> float:
    """Epochs after which building (s a sample, once) and reading (each epoch) have cost less than asking each epoch."""
    return build_s / max(teacher_s - read_s, 1e-9)


def _read_rate(store: Store) -> float:
    names = [spec.name for spec in store.contract.arrays if spec.name.split("/")[0] in TRAINED_ON]
    chunks = range(store.contract.chunks)
    began = time.perf_counter()
    for chunk in chunks:
        store.read_chunk(chunk, names)
    return store.contract.samples / (time.perf_counter() - began)


def _probe_disk(folder: Path) -> float:
    """Bytes a second that this disk takes in files of a chunk's size, flushed as a build flushes them."""
    storage, content = LocalStorage(folder), np.random.default_rng(0).bytes(PROBE_BYTES)
    began = time.perf_counter()
    for number in range(PROBE_FILES):
        storage.write(f"probe/{number}", content)
    return PROBE_FILES * PROBE_BYTES / (time.perf_counter() - began)


def _disk(store: str | Path | None) -> Path:
    """The folder whose disk is probed: the nearest there is of a local store's place, else the current one."""
    storage: Any = open_storage(store) if store is not None else None
    if not isinstance(storage, LocalStorage):
        return Path.cwd()
    folder = storage.root.absolute().parent
    while not folder.is_dir():
        folder = folder.parent
    return folder
