"""`delta bench cache --photos …`: building beside the bare teacher, precisions beside float32, what views lose."""

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from delta import images
from delta.feature_basis import mean_cosine
from delta.metrics import align
from delta.teacher import Teacher, TeacherOutput, load_teacher
from delta_pipelines.bench_cache import Row
from delta_pipelines.build_cache import build_here, open_store
from delta_pipelines.cache_recipe import CacheRecipe
from delta_pipelines.chunk_builder import ChunkBuilder
from delta_pipelines.chunk_timing import work
from delta_pipelines.views import decode_view, list_photos, open_photos

CROP = 0.7  # side of the crop that features are replayed under
PHOTOS = 16


def bench_building(
    recipe: CacheRecipe, photos: str, place: Path, teacher: Teacher, device: torch.device, count: int, rounds: int = 3
) -> Iterator[Row]:
    """Photos a second of the bare teacher and of a whole build with writing, in turns, in the same batches."""
    limited = msgspec.structs.replace(recipe, limit=count)
    side = recipe.side(teacher.side_multiple)
    batch = _views(limited, photos, side)[: recipe.batch_size].to(device)
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
        views = _views(recipe, photos, side).to(device)
        batches = views.split(setting.get("batch", recipe.batch_size))
        teacher(batches[0])
        began = time.perf_counter()
        answer = _join([teacher(batch) for batch in batches])
        yield Row(bench="precision", name=label, value=len(views) / (time.perf_counter() - began), unit="photos/s")
        reference = reference or answer
        error = (answer.disparity - reference.disparity).abs().mean() / reference.disparity.mean()
        yield Row(bench="precision", name=f"{label}: disparity", value=error.item(), unit="mean relative error")
        for tap, maps in answer.features.items():
            cosine = mean_cosine(maps, reference.features[tap])
            yield Row(bench="precision", name=f"{label}: features {tap}", value=cosine, unit="cosine")


def bench_views(recipe: CacheRecipe, photos: str, teacher: Teacher, device: torch.device) -> Iterator[Row]:
    """What is lost when answers to the plain view are warped to another, beside the teacher's answer to that view.

    Features: mean cosine. Disparity: mean relative difference after least-squares alignment.
    """
    side = recipe.side(teacher.side_multiple)
    views = _views(recipe, photos, side).to(device)
    plain = _join([teacher(view[None]) for view in views])
    edge = (1 - CROP) / 2
    box = slice(round(edge * side), round((1 - edge) * side))
    crop = functional.interpolate(views[:, :, box, box], (side, side), mode="bicubic", antialias=True).clamp(0, 1)
    warps = {"mirrored": (views.flip(-1), lambda maps: maps.flip(-1)), f"crop of {CROP} of the side": (crop, _zoom)}
    for name, (seen, warp) in warps.items():
        live = _join([teacher(view[None]) for view in seen])
        for tap, maps in live.features.items():
            cosine = mean_cosine(warp(plain.features[tap]), maps)
            yield Row(bench="views", name=f"{name}: features {tap}", value=cosine, unit="cosine")
        error = _aligned_error(warp(plain.disparity[:, None])[:, 0], live.disparity)
        yield Row(bench="views", name=f"{name}: disparity", value=error, unit="mean relative difference")


def _views(recipe: CacheRecipe, photos: str, side: int) -> Tensor:
    """The plain views of the first photos that can be read, as the teacher is shown them: "b 3 s s"."""
    storage = open_photos(photos)
    decoded = (decode_view(storage, photo, "plain", recipe, side) for photo in list_photos(photos)[: 2 * PHOTOS])
    usable = [images.to_tensor_layout(each.image) for each in decoded if not each.record.failure][:PHOTOS]
    return torch.from_numpy(np.stack(usable))


def _zoom(maps: Tensor) -> Tensor:
    """Cut the middle out of maps and bring it to their size, as training replays a crop."""
    matrix = torch.tensor([[CROP, 0.0, 0.0], [0.0, CROP, 0.0]], device=maps.device).expand(len(maps), 2, 3)
    grid = functional.affine_grid(matrix, list(maps.shape), align_corners=False)
    return functional.grid_sample(maps.float(), grid, padding_mode="border", align_corners=False)


def _join(answers: list[TeacherOutput]) -> TeacherOutput:
    return TeacherOutput(
        disparity=torch.cat([answer.disparity for answer in answers]),
        features={tap: torch.cat([answer.features[tap] for answer in answers]) for tap in answers[0].features},
        attention={},
    )


def _aligned_error(ours: Tensor, theirs: Tensor) -> float:
    scale, shift = align(ours, theirs, torch.ones_like(theirs, dtype=torch.bool))
    aligned = ours * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    return ((aligned - theirs).abs().mean(dim=(1, 2)) / theirs.mean(dim=(1, 2))).mean().item()
