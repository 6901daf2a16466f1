"""Runs of one budget, one change a rung, each judged by its teacher's held-out photos and by measured depth."""

import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
import torch

from delta.config import Config
from delta.remembering_teacher import RememberingTeacher
from delta.teacher import Teacher, load_teacher
from delta_cache.errors import IncompleteStore, NotAStore
from delta_cache.reader import Store, open_cache
from delta_pipelines.benchmark import Benchmark
from delta_pipelines.build_cache import build_cache
from delta_pipelines.cache_recipe import CacheRecipe
from delta_pipelines.depth_models import load_models
from delta_pipelines.distill import Summary, distill
from delta_pipelines.evaluate import evaluate
from delta_pipelines.evaluate_recipe import EvaluateRecipe
from delta_pipelines.ladder_recipe import LadderRecipe
from delta_pipelines.provenance import fingerprint
from delta_pipelines.report_cache import store_facts

ALIGNMENT = "affine_disparity"


class Climbed(Config, frozen=True, kw_only=True):
    """One run of a rung: agreement with the teacher on held-out photos, and errors against measured depth."""

    run: str
    seed: int
    samples: int
    fidelity_r: float
    fidelity_delta1: float
    abs_rel: float
    delta1: float


class Step(Config, frozen=True, kw_only=True):
    """A rung: means over its seeds, bytes a photo of its store, and what it changed of the rung before."""

    name: str
    runs: tuple[Climbed, ...]
    bytes_per_photo: float
    changes: tuple[str, ...]

    def mean(self, metric: str) -> float:
        """The mean of one of the runs' numbers."""
        return statistics.fmean(getattr(run, metric) for run in self.runs)


def climb(
    recipe: LadderRecipe,
    photos: str,
    benchmark: Benchmark,
    out: Path,
    *,
    teacher: str,
    device: torch.device,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Step, ...]:
    """Train and measure every rung of a ladder into the folder `out`; stores and runs that are there are kept.

    Raises:
        DeltaError: a recipe does not fit, or `out` holds runs of another ladder.
        CacheError: a store in `out` is of another contract.
    """
    stores = _Stores(photos, out / "stores", teacher, device)
    summaries: dict[tuple[int, int], Summary] = {}
    bytes_per_photo: list[float] = []
    for index, rung in enumerate(recipe.rungs):
        store = stores.of(recipe.caching(index))
        bytes_per_photo.append(store_facts(store)["bytes_per_photo_total"])
        for seed in recipe.seeds:
            say(f"rung {index + 1} of {len(recipe.rungs)}: {rung.name}, seed {seed}")
            training, run = recipe.training(index, seed), _run(out, index, seed)
            summaries[index, seed] = distill(training, store.url, run, device=device, recipe_name=f"rung {index}")
    say(f"measuring {len(summaries)} students on {benchmark.title}")
    errors = _errors([_run(out, *key) for key in summaries], benchmark, device)
    return tuple(
        Step(
            name=rung.name,
            runs=tuple(
                _climbed(_run(out, index, seed), seed, recipe, index, summaries[index, seed], errors)
                for seed in recipe.seeds
            ),
            bytes_per_photo=bytes_per_photo[index],
            changes=(*rung.train, *rung.cache),
        )
        for index, rung in enumerate(recipe.rungs)
    )


def noise(steps: Sequence[Step], metric: str) -> float | None:
    """The deviation between seeds, pooled over the rungs; None where each has one run."""
    spreads = [statistics.variance(getattr(run, metric) for run in step.runs) for step in steps if len(step.runs) > 1]
    return statistics.fmean(spreads) ** 0.5 if spreads else None


def gains(steps: Sequence[Step], metric: str) -> list[float]:
    """What each rung after the first changed of the mean of `metric`."""
    return [after.mean(metric) - before.mean(metric) for before, after in pairwise(steps)]


class _Stores:
    """The stores of a ladder, one for each cache recipe; the teacher is asked once about each photo."""

    def __init__(self, photos: str, folder: Path, teacher: str, device: torch.device) -> None:
        self._photos, self._folder, self._name, self._device = photos, folder, teacher, device
        self._teachers: dict[tuple, Teacher] = {}

    def of(self, recipe: CacheRecipe) -> Store:
        path = self._folder / f"{fingerprint(msgspec.to_builtins(recipe))[:16]}.zarr"
        try:
            return open_cache(path)
        except (NotAStore, IncompleteStore):
            return build_cache(recipe, self._photos, path, self._teacher(recipe), device=self._device)

    def _teacher(self, recipe: CacheRecipe) -> Teacher:
        key = recipe.taps, recipe.precision
        if key not in self._teachers:
            teacher = load_teacher(self._name, taps=recipe.taps, precision=recipe.precision, device=self._device)
            self._teachers[key] = RememberingTeacher(teacher)
        return self._teachers[key]


def _run(out: Path, index: int, seed: int) -> Path:
    return out / "runs" / f"{index:02d}-{seed}"


def _errors(runs: Sequence[Path], benchmark: Benchmark, device: torch.device) -> dict[str, dict[str, float]]:
    settings = EvaluateRecipe(alignments=(ALIGNMENT,))
    models = load_models([f"{run.name}={run}" for run in runs], settings.teacher, device)
    evaluation, _ = evaluate(settings, models, benchmark)
    evaluation.require()
    return {
        model.name: {metric: found.mean for metric, found in model.scores[ALIGNMENT].items()}
        for model in evaluation.models
    }


def _climbed(
    run: Path, seed: int, recipe: LadderRecipe, index: int, summary: Summary, errors: dict[str, dict[str, float]]
) -> Climbed:
    return Climbed(
        run=run.name,
        seed=seed,
        samples=summary.steps * recipe.training(index, seed).batch_size,
        fidelity_r=summary.student.pearson_r,
        fidelity_delta1=summary.student.delta1,
        abs_rel=errors[run.name]["abs_rel"],
        delta1=errors[run.name]["delta1"],
    )
