"""No ground truth: how far a student agrees with a teacher, live over photos, or as a cache kept its answers."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from delta.boundary import boundary_f1
from delta.errors import DeltaError
from delta.images import find_photos, read_photo
from delta.metrics import FLOOR_SHARE, agreement_per_image, align
from delta.teacher import teacher_name
from delta_cache.layout import ROOT
from delta_cache.reader import Store
from delta_pipelines.benchmark import Benchmark, Case, Scores, take
from delta_pipelines.depth_models import load_models
from delta_pipelines.evaluate_recipe import EvaluateRecipe
from delta_pipelines.evaluation_tiles import disparity_tiles
from delta_pipelines.feed import read_samples, split_store
from delta_pipelines.train_recipe import FeedConfig

LOOKED_FOR = "a folder of photos, or a cache of Delta's"
ALIGNMENT = "affine_disparity"


def is_store(path: Path) -> bool:
    """Whether a cache lies there."""
    return (path / ROOT).is_file()


def open_live(path: Path, recipe: EvaluateRecipe, teacher: str | None, device: torch.device) -> Benchmark:
    """Compare with a teacher that is asked about each photo in a folder, at the photo's own size.

    Raises:
        DeltaError: no photo there, or no teacher to be had.
    """
    root = path if path.is_dir() else path.parent
    photos = take(find_photos(path), recipe.limit)
    (reference,) = load_models([teacher_name(teacher)], recipe.teacher, device)

    def case(photo: Path) -> Case:
        name = photo.relative_to(root).as_posix()
        return Case(name=name, photo=lambda: read_photo(photo), target=lambda: reference.disparity(read_photo(photo)))

    return _benchmark(path, [case(photo) for photo in photos], f"to {reference.name}, live, {reference.sees} px")


def open_store(path: Path, recipe: EvaluateRecipe) -> Benchmark:
    """Compare with the answers that a cache holds, on its plain views; see `holdout` of the recipe.

    Raises:
        CacheError: the store is incomplete or damaged.
        DeltaError: `holdout` of a store with too few photos.
    """
    store = Store.open(path).require_complete()
    plain = np.flatnonzero(store.mask[: store.contract.photo_count])
    note = f"to {store.teacher['name']}, as {path.name} keeps it, {store.contract.recipe['size_px']} px"
    if recipe.holdout:
        plain = split_store(store, FeedConfig(holdout=recipe.holdout)).holdout
        note += f", held-out photos of feed.holdout={recipe.holdout:g}"
    cases = [_stored(store, int(sample)) for sample in plain]
    return _benchmark(path, take(cases, recipe.limit), note)


def score(disparity: np.ndarray, teacher: np.ndarray) -> Scores:
    """Pearson's r, delta1 and AbsRel as `delta.metrics` defines them, and the boundary F1 of the aligned disparity."""
    ours, theirs = _tensor(disparity), _tensor(teacher)
    found = agreement_per_image(ours, theirs)
    floor = FLOOR_SHARE * max(float(teacher.max()), 0.0)
    aligned, counted = np.maximum(_aligned(disparity, teacher), floor), teacher > floor
    return {
        ALIGNMENT: {
            "pearson_r": float(found.pearson_r),
            "delta1": float(found.delta1),
            "abs_rel": float(found.abs_rel),
            "boundary_f1": boundary_f1(aligned, teacher.astype(np.float64), counted),
        }
    }


def _benchmark(path: Path, cases: Sequence[Case], note: str) -> Benchmark:
    if not cases:
        raise DeltaError(f"{path} holds nothing to compare on", f"looked for {LOOKED_FOR}")
    return Benchmark(
        protocol="fidelity",
        title="fidelity to the teacher",
        data=str(path),
        cases=cases,
        metrics=("abs_rel", "delta1", "pearson_r", "boundary_f1"),
        rank="abs_rel",
        score=score,
        unusable=lambda name, photo, teacher: "" if (teacher > 0).any() else "the teacher sees no disparity above 0",
        tiles=lambda photo, disparity, teacher: disparity_tiles(photo, _aligned(disparity, teacher), teacher),
        columns=("photo", "teacher", "model, aligned", "error |a - t| / t, brightest from 0.5"),
        notes=(note,),
    )


def _stored(store: Store, sample: int) -> Case:
    def read(name: str) -> Callable[[], np.ndarray]:
        return lambda: read_samples(store, np.array([sample]), [name])[name][0]

    disparity = read("disparity")
    return Case(
        name=store.photos[store.contract.photo_of(sample)].path,
        photo=read("image"),
        target=lambda: disparity().astype(np.float32),
    )


def _aligned(disparity: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Scale and shift the whole map onto the teacher's where the teacher sees something, float64."""
    counted = teacher > FLOOR_SHARE * max(float(teacher.max()), 0.0)
    scale, shift = align(_tensor(disparity), _tensor(teacher), torch.from_numpy(counted[None]))
    return disparity.astype(np.float64) * float(scale) + float(shift)


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float32))[None]
