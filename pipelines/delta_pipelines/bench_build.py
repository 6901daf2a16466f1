"""`delta bench cache --photos …`: building beside the bare teacher, precisions beside float32."""

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import torch

from delta.feature_basis import mean_cosine
from delta.teacher import Teacher, TeacherOutput, load_teacher
from delta_pipelines.bench_cache import Row
from delta_pipelines.bench_views import first_views, join_answers
from delta_pipelines.build_cache import build_here, open_store
from delta_pipelines.cache_recipe import CacheRecipe
from delta_pipelines.chunk_builder import ChunkBuilder
from delta_pipelines.chunk_timing import work
from delta_pipelines.views import open_photos

FIT_PHOTOS = 8  # laying the store out is not what is timed


def bench_building(
    recipe: CacheRecipe, photos: str, place: Path, teacher: Teacher, device: torch.device, count: int, rounds: int = 3
) -> Iterator[Row]:
    """Photos a second of the bare teacher and of a whole build with writing, in turns, in the same batches."""
    features = msgspec.structs.replace(recipe.features, fit_photos=FIT_PHOTOS)
    limited = msgspec.structs.replace(recipe, limit=count, features=features)
    side = recipe.side(teacher.side_multiple)
    batch = first_views(limited, photos, side)[: recipe.batch_size].to(device)
    teacher(batch)
    bare, built, meters = [], [], []
    for turn in range(rounds):
        with tempfile.TemporaryDirectory(prefix=".delta-bench-", dir=place) as scratch:
            store = open_store(limited, photos, Path(scratch) / f"{turn}.zarr", teacher, device=device)
            began = time.perf_counter()
            for _ in range(0, count, len(batch)):
                teacher(batch).disparity.sum().item()
            bare.append(-(-count // len(batch)) * len(batch) / (time.perf_counter() - began))
            began = time.perf_counter()
            builder = ChunkBuilder(store, open_photos(photos), limited, teacher, device)
            build_here(builder, store)
            built.append(count / (time.perf_counter() - began))
            meters.append(work(list(store.records())).meter)
    rates = statistics.median(bare), statistics.median(built)
    yield Row(bench="build", name="teacher alone", value=rates[0], unit="photos/s", note=f"batch {len(batch)}")
    ratio = statistics.median(b / a for a, b in zip(bare, built, strict=True))
    yield Row(bench="build", name="with writing", value=rates[1], unit="photos/s", ratio=ratio, note="teacher alone")
    for stage, share in meters[-1].shares.items():
        yield Row(bench="build", name=f"{stage} busy", value=share, unit="of the time")


def bench_precision(recipe: CacheRecipe, photos: str, name: str, device: torch.device) -> Iterator[Row]:
    """How far faster ways of running the teacher are from float32 in batches of one, and how fast they are."""
    settings: dict[str, dict] = {
        "float32, batch 1": {"batch": 1},
        "float32": {},
        "bfloat16": {"precision": "bfloat16"},
        "float16": {"precision": "float16"},
        "float32, compiled": {"compiled": True},
    }
    if device.type == "cpu":
        del settings["float16"]  # emulated there: an order of magnitude slower than float32
    reference: TeacherOutput | None = None
    for label, setting in settings.items():
        teacher = load_teacher(
            name, taps=recipe.taps, precision=setting.get("precision", "float32"),
            compiled=setting.get("compiled", False), device=device,
        )  # fmt: skip
        side = recipe.side(teacher.side_multiple)
        views = first_views(recipe, photos, side).to(device)
        batches = views.split(setting.get("batch", recipe.batch_size))
        teacher(batches[0])
        began = time.perf_counter()
        answer = join_answers([teacher(batch) for batch in batches])
        yield Row(bench="precision", name=label, value=len(views) / (time.perf_counter() - began), unit="photos/s")
        reference = reference or answer
        error = (answer.disparity - reference.disparity).abs().mean() / reference.disparity.mean()
        yield Row(bench="precision", name=f"{label}: disparity", value=error.item(), unit="mean relative error")
        for tap, maps in answer.features.items():
            cosine = mean_cosine(maps, reference.features[tap])
            yield Row(bench="precision", name=f"{label}: features {tap}", value=cosine, unit="cosine")
