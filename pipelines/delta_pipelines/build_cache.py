"""Stage 1: photos -> teacher -> store. One chunk at a time, resumable, the next chunk decoded meanwhile."""

import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import torch
from msgspec import Meta

from delta import __version__, images
from delta.config import Config
from delta.errors import DeltaError
from delta.teacher import Teacher, TeacherOutput
from delta_cache.reader import Store
from delta_cache.schema import (
    VIEW_COLUMNS,
    ArraySpec,
    Contract,
    Photo,
    SampleRecord,
    Status,
    digest_photos,
    order_photos,
)
from delta_cache.writer import CacheWriter, open_writer
from delta_pipelines import provenance
from delta_pipelines.views import DecodedPhoto, decode_ahead, list_photos

TOOLS = ("torch", "transformers", "timm", "zarr", "numcodecs", "pillow", "numpy")


class CodecRecipe(Config, frozen=True, kw_only=True):
    """Blosc's compressor and level."""

    cname: Literal["zstd", "lz4"] = "zstd"
    clevel: Annotated[int, Meta(ge=0, le=9)] = 3


class CacheRecipe(Config, frozen=True, kw_only=True):
    """What the teacher is asked and what is kept; recipes/cache.toml explains each key."""

    size_px: Annotated[int, Meta(ge=64, le=2048)]
    taps: tuple[Annotated[int, Meta(ge=1)], ...]
    features: bool
    attention: bool
    teacher_dtype: Literal["float32", "bfloat16", "float16"]
    chunk_samples: Annotated[int, Meta(ge=1, le=4096)]
    batch_size: Annotated[int, Meta(ge=1, le=1024)]
    seed: int
    limit: Annotated[int, Meta(ge=0)] = 0
    codec: CodecRecipe


def build_cache(
    recipe: CacheRecipe,
    folder: Path,
    store: Path,
    teacher: Teacher,
    on_chunk: Callable[[int, int, tuple[SampleRecord, ...]], None] = lambda done, total, samples: None,
) -> Store:
    """Ask the teacher about every photo of a folder and write its answers to `store`; resume what is there.

    Args:
        on_chunk: called after each chunk with samples done, samples in all and the chunk's records (for a resumed
            store, once at the start with none).

    Raises:
        DeltaError: no photos, or none that can be read.
        CacheError: the store is of another contract, or being written by another build.
    """
    root = folder if folder.is_dir() else folder.parent
    photos, contract = plan_store(recipe, folder, teacher)
    with open_writer(store, contract, photos, _provenance()) as writer:
        pending = writer.pending
        done = contract.samples - sum(len(contract.chunk_range(chunk)) for chunk in pending)
        on_chunk(done, contract.samples, ())
        for chunk, decoded in decode_ahead(pending, contract, photos, root):
            answers = _ask(teacher, decoded, recipe.batch_size)
            samples = tuple(photo.record for photo in decoded)
            writer.write(chunk, _to_arrays(contract, decoded, answers), samples)
            done += len(decoded)
            on_chunk(done, contract.samples, samples)
        return _require_some_photo(writer)


def plan_store(recipe: CacheRecipe, folder: Path, teacher: Teacher) -> tuple[list[Photo], Contract]:
    """List and order the photos and work out the contract, without writing anything.

    Raises:
        DeltaError: no photos.
    """
    root = folder if folder.is_dir() else folder.parent
    photos = order_photos(list_photos(folder, root), recipe.seed)[: recipe.limit or None]
    return photos, _contract(recipe, photos, teacher)


def _contract(recipe: CacheRecipe, photos: list[Photo], teacher: Teacher) -> Contract:
    """Fill in the contract: the teacher answers once on a gray image to tell its shapes."""
    side = max(1, round(recipe.size_px / teacher.side_multiple)) * teacher.side_multiple
    probe = teacher(torch.full((1, 3, side, side), 0.5))
    kept = msgspec.to_builtins(recipe)
    for key in (
        "batch_size",
        "codec",
        "chunk_samples",
        "limit",
        "teacher_dtype",
    ):  # elsewhere in the contract, or no matter
        del kept[key]
    return Contract(
        teacher=msgspec.to_builtins(teacher.identity),
        recipe=kept | {"size_px": side, "view": "largest centered square"},
        photos={"count": len(photos), "list_sha256": digest_photos(photos)},
        arrays=tuple(_array_specs(recipe, side, probe)),
        codec=msgspec.to_builtins(recipe.codec),
        chunk_samples=recipe.chunk_samples,
        samples=len(photos),
    )


def _array_specs(recipe: CacheRecipe, side: int, probe: TeacherOutput) -> Iterator[ArraySpec]:
    yield ArraySpec(name="image", shape=(side, side, 3), dtype="uint8")
    yield ArraySpec(name="disparity", shape=(side, side), dtype="float16")
    yield ArraySpec(name="view", shape=(len(VIEW_COLUMNS),), dtype="float32")
    yield ArraySpec(name="status", shape=(), dtype="uint8")
    for group, maps in _kept_maps(recipe.features, recipe.attention, probe):
        for tap, value in maps.items():
            yield ArraySpec(name=f"{group}/{tap}", shape=tuple(value.shape[1:]), dtype="float16")


def _kept_maps(features: bool, attention: bool, answer: TeacherOutput) -> list[tuple[str, dict[str, torch.Tensor]]]:
    return [("features", answer.features if features else {}), ("attention", answer.attention if attention else {})]


def _ask(teacher: Teacher, decoded: list[DecodedPhoto], batch_size: int) -> list[TeacherOutput]:
    """Ask batch by batch; unreadable photos stay in as zeros, so that a batch's make-up never changes."""
    answers = []
    for first in range(0, len(decoded), batch_size):
        batch = np.stack([images.to_tensor_layout(photo.image) for photo in decoded[first : first + batch_size]])
        answers.append(teacher(torch.from_numpy(batch)))
    return answers


def _to_arrays(contract: Contract, decoded: list[DecodedPhoto], answers: list[TeacherOutput]) -> dict[str, np.ndarray]:
    failed = np.array([bool(photo.record.failure) for photo in decoded])
    arrays: dict[str, np.ndarray] = {
        "image": np.stack([photo.image for photo in decoded]),
        "disparity": _join("disparity", [answer.disparity for answer in answers]),
        "view": np.stack([photo.view for photo in decoded]),
        "status": np.where(failed, Status.FAILED, Status.OK).astype(np.uint8),
    }
    for group in ("features", "attention"):
        for tap in getattr(answers[0], group):
            name = f"{group}/{tap}"
            arrays[name] = _join(name, [getattr(answer, group)[tap] for answer in answers])
    for name, values in arrays.items():
        if name != "status":
            values[failed] = 0
    return {spec.name: arrays[spec.name] for spec in contract.arrays}


def _join(name: str, parts: list[torch.Tensor]) -> np.ndarray:
    values = torch.cat(parts).to("cpu", torch.float16)
    if not values.isfinite().all():
        raise DeltaError(
            f"the teacher's {name} holds NaN or numbers beyond float16",
            "set teacher_dtype=float32 where it is not, or leave that array out of the recipe",
        )
    return values.numpy()


def _provenance() -> dict[str, Any]:
    tools = {"delta": __version__} | {name: version(name) for name in TOOLS}
    return {
        "tools": tools | {"python": platform.python_version()},
        "machine": platform.machine(),
        "commit": provenance.commit(),
    }


def _require_some_photo(writer: CacheWriter) -> Store:
    failures = writer.store.failures()
    if len(failures) == writer.store.contract.samples:
        path, reason = next(iter(failures.items()))
        raise DeltaError(
            f"none of the {len(failures)} photos can be used; the first, {path}: {reason}",
            "name a folder with readable JPEG, PNG or WebP files",
        )
    return writer.store.require_complete()
