"""Is training from the cache training with the teacher in the loop? The same student, seed and stream, both ways."""

import itertools
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import torch

from delta.config import Config
from delta.metrics import Agreement
from delta.panel import loss_curve
from delta.train import fit
from delta_cache.reader import Store, open_cache
from delta_cache.schema import Rounded
from delta_pipelines.distill import start_state
from delta_pipelines.feed import Feed, TeacherCall, split_store
from delta_pipelines.holdout import load_holdout
from delta_pipelines.train_recipe import TrainRecipe

Curve = list[dict[str, float]]


class Equivalence(Config, frozen=True, kw_only=True):
    """How far apart the two trainings are, as shares of the live one's loss.

    `first_step` is by term and of equal weights: what the codec does to the loss, and nothing else. `curve` is the mean
    gap over the steps, and `other_seed` that to the same training from another seed, in weights and in stream. `codec`
    is the error that the store states: relative for disparity, 1 - cosine for each tap kept as codes.
    """

    steps: int
    first_step: dict[str, float]
    curve: float
    other_seed: float
    codec: dict[str, float]
    cached: Agreement
    live: Agreement


def bench_equivalence(
    recipe: TrainRecipe,
    store_path: str | Path,
    teacher: TeacherCall,
    picture: Path,
    *,
    device: torch.device,
    steps: int,
    watch: Callable[[str, int], None] = lambda name, steps: None,
) -> Equivalence:
    """Train from the cache, with `teacher` in the loop, and from the cache with another seed; draw the three curves.

    Raises:
        CacheError: the store is missing or incomplete.
    """
    store = open_cache(store_path)
    other = msgspec.structs.replace(recipe, seed=recipe.seed + 1)
    kinds = {"cached": (recipe, None), "live": (recipe, teacher), "another seed": (other, None)}
    curves: dict[str, Curve] = {}
    agreements: dict[str, Agreement] = {}
    for name, (settings, live) in kinds.items():
        curves[name], agreements[name] = _train(
            settings, store, live, device, steps, lambda step, name=name: watch(name, step)
        )
    series = {name: [terms["total"] for terms in curve] for name, curve in curves.items()}
    loss_curve(list(range(1, steps + 1)), series, picture)
    return Equivalence(
        steps=steps,
        first_step={name: _gap([curves["cached"][0][name]], [value]) for name, value in curves["live"][0].items()},
        curve=_gap(series["cached"], series["live"]),
        other_seed=_gap(series["another seed"], series["live"]),
        codec=codec_errors(store),
        cached=agreements["cached"],
        live=agreements["live"],
    )


def codec_errors(store: Store) -> dict[str, float]:
    """What the store says its codec loses: the largest relative error of disparity, 1 - cosine of features."""
    encoding = store.contract.spec("disparity").encoding
    errors = {"disparity": 2.0 ** -(encoding.bits + 1) if isinstance(encoding, Rounded) else 2.0**-11}
    return errors | {f"features/{tap}": 1 - basis.holdout_cosine for tap, basis in store.bases.items()}


def _train(
    recipe: TrainRecipe,
    store: Store,
    teacher: TeacherCall | None,
    device: torch.device,
    steps: int,
    watch: Callable[[int], None],
) -> tuple[Curve, Agreement]:
    split = split_store(store, recipe.feed)
    state = start_state(recipe, store, split, device)
    feed = Feed(
        store,
        split,
        state.objective.arrays,
        config=recipe.feed,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        teacher=teacher,
    )
    curve: Curve = []
    with closing(feed.batches(0, recipe.augment, lambda step: recipe.size_at(step, steps), device)) as batches:
        for report in itertools.islice(fit(state, batches, recipe.optimizer, steps), steps):
            curve.append(report.terms)
            watch(report.step)
    return curve, load_holdout(store, split, recipe.size_px).measure(state.best_student, device)


def _gap(ours: list[float], theirs: list[float]) -> float:
    a, b = np.array(ours), np.array(theirs)
    return float(np.mean(np.abs(a - b) / np.abs(b).clip(min=1e-12)))
