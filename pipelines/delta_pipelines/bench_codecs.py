"""`delta bench cache --photos …`, its part on codecs: bytes against what is lost, on a teacher's real answers."""

import io
import time
from collections.abc import Iterator

import msgspec
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from delta.feature_basis import fit_basis, mean_cosine, resample_area
from delta.teacher import Teacher
from delta_cache.codec import compress, decompress, round_mantissa
from delta_cache.schema import ArraySpec
from delta_pipelines.bench_cache import Row
from delta_pipelines.bench_views import first_views
from delta_pipelines.cache_recipe import CacheRecipe, ImageRecipe

PHOTOS, HELD_OUT = 48, 12
GRID = 24
FEATURE_CODECS: dict[str, dict] = {
    "PCA-64, scaled": {"transform": "pca", "components": 64},
    "PCA-128, scaled": {"transform": "pca", "components": 128},
    "PCA-256, scaled": {"transform": "pca", "components": 256},
    "all axes, step 1": {"transform": "pca", "step": 1.0},
    "all axes, step 0.5": {"transform": "pca", "step": 0.5},
    "all axes, step 0.25": {"transform": "pca", "step": 0.25},
    "no transform, scaled": {"transform": "none"},
}


def bench_codecs(recipe: CacheRecipe, photos: str, teacher: Teacher, device: torch.device) -> Iterator[Row]:
    """Bytes a photo of every way to keep images, disparity and features, and what comes back.

    Bases are fitted on 36 photos and measured on 12 others.
    """
    recipe = msgspec.structs.replace(recipe, image=ImageRecipe(kind="raw"))
    views = first_views(recipe, photos, recipe.side(teacher.side_multiple), PHOTOS)
    answers = [teacher(view[None].to(device)) for view in views]
    yield from _images((views[-HELD_OUT:] * 255).round().byte().permute(0, 2, 3, 1).numpy())
    yield from _disparity(torch.cat([answer.disparity for answer in answers[-HELD_OUT:]]).half().cpu().numpy())
    for tap in answers[0].features:
        yield from _features(tap, torch.cat([answer.features[tap].half().cpu() for answer in answers]).float())


def _images(pixels: np.ndarray) -> Iterator[Row]:
    for quality in (95, 90):
        files = [_jpeg(image, quality) for image in pixels]
        began = time.perf_counter()
        decoded = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
        rate = len(files) / (time.perf_counter() - began)
        error = np.abs(np.stack(decoded).astype(int) - pixels).mean()
        note = f"{rate:.0f} decoded a second and core, mean error {error:.2f} of 255"
        yield Row(bench="codec", name=f"image, JPEG {quality}", value=_mean_length(files), unit="B/photo", note=note)
    for compressor in ("zstd", "lz4"):
        yield _blosc(f"image, u8 behind {compressor}", pixels, compressor, "")


def _disparity(disparity: np.ndarray) -> Iterator[Row]:
    for bits in (10, 8, 7, 6):
        rounded = round_mantissa(disparity, bits)
        error = np.abs(rounded.astype(np.float64) - disparity).mean() / disparity.astype(np.float64).mean()
        yield _blosc(f"disparity, {bits} bits", rounded, "zstd", f"mean error {error:.2%}")


def _features(tap: str, maps: Tensor) -> Iterator[Row]:
    held = maps[-HELD_OUT:]
    yield _blosc(f"{tap}, float16, own grid", held.half().numpy(), "zstd", "cosine 1.0000")
    grids = {"own grid": maps, f"grid {GRID}": resample_area(maps, min(GRID, maps.shape[-1]), keep="mean")}
    for grid, values in grids.items():
        fitted, seen = values[:-HELD_OUT], values[-HELD_OUT:]
        vectors = fitted.permute(0, 2, 3, 1).flatten(0, 2)
        for name, setting in FEATURE_CODECS.items():
            if grid == "own grid" and setting["transform"] == "pca":
                continue
            basis = fit_basis(vectors, **setting)
            codes = basis.encode(seen)
            cosine = mean_cosine(basis.decode(codes), seen)
            yield _blosc(f"{tap}, {name}, {grid}", codes.numpy(), "zstd", f"cosine {cosine:.4f}")


def _blosc(name: str, values: np.ndarray, compressor: str, note: str) -> Row:
    spec = ArraySpec(name=name, shape=values.shape[1:], dtype=values.dtype.name, compressor=compressor)  # pyright: ignore
    packed = compress(values, spec, len(values))
    began = time.perf_counter()
    decompress(packed, spec, len(values))
    rate = f"{len(values) / (time.perf_counter() - began):.0f} unpacked a second"
    note = f"{note}, {rate}" if note else rate
    return Row(bench="codec", name=name, value=len(packed) / len(values), unit="B/photo", note=note)


def _jpeg(image: np.ndarray, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def _mean_length(files: list[bytes]) -> float:
    return sum(map(len, files)) / len(files)
