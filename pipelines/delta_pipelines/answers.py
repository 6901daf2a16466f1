"""A teacher's answers in the form a store keeps them."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from delta.feature_basis import FeatureBasis, resample_area
from delta.teacher import Teacher, TeacherOutput
from delta_cache.basis import TapBasis
from delta_cache.codec import jpeg_rows, round_mantissa
from delta_cache.schema import VIEW_COLUMNS, ArraySpec, Basis, Jpeg, Rounded, SampleRecord, Status
from delta_pipelines.cache_recipe import CacheRecipe
from delta_pipelines.views import DecodedPhoto, jpeg_limit

Bases = dict[str, FeatureBasis]
NOT_FINITE = "the teacher's answer holds NaN or numbers beyond float16"


def array_specs(recipe: CacheRecipe, side: int, probe: TeacherOutput) -> Iterator[ArraySpec]:
    """The arrays a recipe keeps of a teacher; `probe` is its answer to any image, for the shapes."""
    packing = {"compressor": recipe.compressor, "level": recipe.level}
    if recipe.image.kind == "jpeg":
        encoding = Jpeg(side_px=side, quality=recipe.image.quality)
        # JPEG files do not compress again; lz4 only takes the zeros behind them away
        yield ArraySpec(
            name="image", shape=(jpeg_limit(side),), dtype="uint8", axes=("byte",), encoding=encoding, compressor="lz4"
        )
    else:
        yield ArraySpec(name="image", shape=(side, side, 3), dtype="uint8", axes=("y", "x", "rgb"), **packing)
    rounded = Rounded(bits=recipe.disparity.bits)
    yield ArraySpec(name="disparity", shape=(side, side), dtype="float16", axes=("y", "x"), encoding=rounded, **packing)
    yield ArraySpec(name="view", shape=(len(VIEW_COLUMNS),), dtype="float32", axes=("view_column",), **packing)
    yield ArraySpec(name="status", shape=(), dtype="uint8", **packing)
    for tap, maps in (probe.features if recipe.features.kind != "none" else {}).items():
        yield _feature_spec(recipe, tap, maps, packing)
    for tap, maps in (probe.attention if recipe.attention.kind != "none" else {}).items():
        grid = _grid(recipe.attention.grid, maps)
        axes = (f"head_{tap}", f"attention_y_{tap}", f"attention_x_{tap}")
        yield ArraySpec(
            name=f"attention/{tap}", shape=(maps.shape[1], grid, grid), dtype="float16", axes=axes,
            encoding=Rounded(bits=recipe.attention.bits), **packing,
        )  # fmt: skip


def resampled_features(recipe: CacheRecipe, answer: TeacherOutput) -> dict[str, Tensor]:
    """Features on the grid the recipe keeps them on, float32 "b c g g"."""
    return {
        tap: resample_area(maps.float(), _grid(recipe.features.grid, maps), keep="mean")
        for tap, maps in answer.features.items()
    }


def ask(
    teacher: Teacher, recipe: CacheRecipe, bases: Bases, decoded: Sequence[DecodedPhoto], device: torch.device
) -> dict[str, Tensor]:
    """Ask about one batch and bring the answer to its stored form, on the teacher's device.

    Unreadable photos stay in as zeros, so that a batch's make-up never changes.
    """
    batch = torch.from_numpy(np.stack([photo.image for photo in decoded]))
    answer = teacher(batch.to(device).permute(0, 3, 1, 2).to(torch.float32) / 255)
    stored = {"disparity": answer.disparity.half()}
    if recipe.features.kind != "none":
        for tap, maps in resampled_features(recipe, answer).items():
            stored[f"features/{tap}"] = maps.half() if tap not in bases else maps
    if recipe.attention.kind != "none":
        for tap, maps in answer.attention.items():
            grid = _grid(recipe.attention.grid, maps)
            stored[f"attention/{tap}"] = resample_area(maps.float(), grid, keep="sum").half()
    finite = torch.stack([value.isfinite().flatten(1).all(dim=1) for value in stored.values()]).all(dim=0)
    for tap, basis in bases.items():
        stored[f"features/{tap}"] = basis.encode(stored[f"features/{tap}"].nan_to_num())
    return stored | {"finite": finite}


def stored_arrays(
    specs: Sequence[ArraySpec], decoded: Sequence[DecodedPhoto], answers: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], tuple[SampleRecord, ...]]:
    """Join photos and answers to the arrays of a chunk; samples without an answer are zeros and say why."""
    records = tuple(
        photo.record
        if photo.record.failure or finite
        else SampleRecord(path=photo.record.path, sha256=photo.record.sha256, failure=NOT_FINITE)
        for photo, finite in zip(decoded, answers["finite"], strict=True)
    )
    failed = np.array([bool(record.failure) for record in records])
    arrays = {}
    for spec in specs:
        values = _values(spec, decoded, answers, failed)
        if spec.name != "status":
            values[failed] = 0
        arrays[spec.name] = values
    return arrays, records


def torch_bases(bases: dict[str, TapBasis], device: torch.device) -> Bases:
    """A store's bases as tensors."""
    return {
        tap: FeatureBasis(
            **{name: torch.from_numpy(values.copy()).to(device) for name, values in basis.arrays().items()}
        )
        for tap, basis in bases.items()
    }


def _values(
    spec: ArraySpec, decoded: Sequence[DecodedPhoto], answers: dict[str, np.ndarray], failed: np.ndarray
) -> np.ndarray:
    if spec.name == "image":
        if isinstance(spec.encoding, Jpeg):
            return jpeg_rows([photo.jpeg for photo in decoded], spec.shape[0])
        return np.stack([photo.image for photo in decoded])
    if spec.name == "view":
        return np.stack([photo.view for photo in decoded])
    if spec.name == "status":
        return np.where(failed, Status.FAILED, Status.OK).astype(np.uint8)
    values = answers[spec.name]
    return round_mantissa(values, spec.encoding.bits) if isinstance(spec.encoding, Rounded) else values


def _feature_spec(recipe: CacheRecipe, tap: str, maps: Tensor, packing: dict) -> ArraySpec:
    channels, grid = maps.shape[1], _grid(recipe.features.grid, maps)
    axes = (f"feature_y_{tap}", f"feature_x_{tap}")
    if recipe.features.kind == "float16":
        shape = (channels, grid, grid)
        return ArraySpec(
            name=f"features/{tap}", shape=shape, dtype="float16", axes=(f"channel_{tap}", *axes), **packing
        )
    shape = (min(recipe.features.components or channels, channels), grid, grid)
    return ArraySpec(
        name=f"features/{tap}", shape=shape, dtype="int8", axes=(f"component_{tap}", *axes),
        encoding=Basis(channels=channels), **packing,
    )  # fmt: skip


def _grid(wanted: int, maps: Tensor) -> int:
    return min(wanted or maps.shape[-1], maps.shape[-1])
