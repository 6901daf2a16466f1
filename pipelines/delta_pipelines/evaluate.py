"""Models against a benchmark, image by image: each photo is read once and shown to every model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from delta.bootstrap import Estimate, bootstrap_means, estimate, weighted_means
from delta.config import Config
from delta.errors import CheckFailed, DeltaError, UnreadablePhoto
from delta_pipelines.benchmark import Benchmark, Case, Scores
from delta_pipelines.depth_models import DepthModel
from delta_pipelines.evaluate_recipe import EvaluateRecipe
from delta_pipelines.provenance import commit

FORMAT, VERSION = "delta-evaluation", 1

Estimates = dict[str, dict[str, Estimate]]  # alignment -> metric -> mean and interval


class ModelScore(Config, frozen=True, kw_only=True):
    """One model's row; `failure` says why it has no scores."""

    name: str
    source: str
    kind: str
    sees: str
    sha256: str
    parameters: int
    failure: str = ""
    scores: Estimates = {}


class Difference(Config, frozen=True, kw_only=True):
    """The first model's mean less the second's, image by image, with its paired interval."""

    first: str
    second: str
    scores: Estimates


class Evaluation(Config, frozen=True, kw_only=True):
    """What an evaluation found: means over `images` images; `skipped` names those that could not be scored, and why."""

    format: str = FORMAT
    version: int = VERSION
    protocol: str
    title: str
    data: str
    images: int
    skipped: dict[str, str]
    metrics: tuple[str, ...]
    models: tuple[ModelScore, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]
    recipe: dict[str, Any]
    commit: str

    def require(self) -> None:
        """Raise where a model failed.

        Raises:
            CheckFailed: names each such model and its reason.
        """
        failed = [f"{model.name} {model.failure}" for model in self.models if model.failure]
        if failed:
            raise CheckFailed("; ".join(failed), "mend the model: an answer that is no number is never left out")


@dataclass
class Rows:
    """Scores as they come: for each image its weight, and for each model its scores."""

    names: list[str] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    scores: dict[str, list[Scores]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def table(self, model: str, alignment: str, metrics: Sequence[str]) -> np.ndarray:
        """Values of a model, float64 (images, metrics); NaN where a metric is not defined."""
        return np.array([[row[alignment][metric] for metric in metrics] for row in self.scores[model]], np.float64)


def evaluate(
    recipe: EvaluateRecipe,
    models: Sequence[DepthModel],
    benchmark: Benchmark,
    on_image: Callable[[int, int, str], None] = lambda done, total, skipped: None,
) -> tuple[Evaluation, Rows]:
    """Score every model on every image.

    Images that cannot be read or hold nothing to score against are left out for all models, counted and named. A model
    that answers with what is not a number fails and is asked no more.

    Args:
        on_image: called after each image with 1, the count of images, and why it was left out (or "").

    Raises:
        DeltaError: not one image could be scored.
    """
    rows = Rows(scores={model.name: [] for model in models})
    for case in benchmark.cases:
        reason = _score_case(case, benchmark, models, rows)
        if reason:
            rows.skipped[case.name] = reason
        on_image(1, len(benchmark.cases), f"{case.name}: {reason}" if reason else "")
    if not rows.names:
        name, reason = next(iter(rows.skipped.items()))
        raise DeltaError(
            f"none of {len(rows.skipped)} images of {benchmark.data} can be scored; {name}: {reason}",
            "name a folder with readable photos and measured depth",
        )
    return _summarize(recipe, models, benchmark, rows), rows


def _score_case(case: Case, benchmark: Benchmark, models: Sequence[DepthModel], rows: Rows) -> str:
    """Ask every model that has not failed; return why the image is left out, or ""."""
    try:
        photo = case.photo()
    except UnreadablePhoto as error:
        return str(error)
    target = case.target()
    reason = benchmark.unusable(case.name, photo, target)
    if reason:
        return reason
    rows.names.append(case.name)
    rows.weights.append(benchmark.weight(target))
    for model in models:
        if model.name in rows.failures:
            continue
        disparity = model.disparity(photo)
        bad = int(np.count_nonzero(~np.isfinite(disparity)))
        if bad:
            rows.failures[model.name] = f"answers {bad} of {disparity.size} pixels of {case.name} with NaN or infinity"
            continue
        rows.scores[model.name].append(benchmark.score(disparity, target))
    return ""


def _summarize(recipe: EvaluateRecipe, models: Sequence[DepthModel], benchmark: Benchmark, rows: Rows) -> Evaluation:
    good = [model.name for model in models if model.name not in rows.failures]
    estimates, differences = _estimate(recipe, good, benchmark.metrics, rows)
    return Evaluation(
        protocol=benchmark.protocol,
        title=benchmark.title,
        data=benchmark.data,
        images=len(rows.names),
        skipped=rows.skipped,
        metrics=benchmark.metrics,
        models=tuple(
            ModelScore(
                **{key: getattr(model, key) for key in ("name", "source", "kind", "sees", "sha256", "parameters")},
                failure=rows.failures.get(model.name, ""),
                scores=estimates.get(model.name, {}),
            )
            for model in models
        ),
        differences=differences,
        notes=benchmark.notes,
        recipe=msgspec.to_builtins(recipe),
        commit=commit(),
    )


def _estimate(
    recipe: EvaluateRecipe, names: Sequence[str], metrics: Sequence[str], rows: Rows
) -> tuple[dict[str, Estimates], tuple[Difference, ...]]:
    """Means and intervals of each model, and of each pair's difference; all from the same draws of images."""
    if not names:
        return {}, ()
    keys = [(name, alignment) for name in names for alignment in rows.scores[names[0]][0]]
    weights = np.array(rows.weights)
    values = np.concatenate([rows.table(*key, metrics) for key in keys], axis=1)
    means = weighted_means(values, weights).reshape(len(keys), len(metrics))
    draws = bootstrap_means(values, weights, draws=recipe.bootstrap, seed=recipe.seed)
    draws = draws.reshape(len(draws), len(keys), len(metrics))
    place = {key: index for index, key in enumerate(keys)}

    def scores(name: str, less: str = "") -> Estimates:
        found: Estimates = {}
        for alignment in rows.scores[names[0]][0]:
            i = place[name, alignment]
            mean, drawn = means[i], draws[:, i]
            if less:
                mean, drawn = mean - means[place[less, alignment]], drawn - draws[:, place[less, alignment]]
            found[alignment] = {
                metric: estimate(float(mean[k]), drawn[:, k], recipe.confidence) for k, metric in enumerate(metrics)
            }
        return found

    pairs = ((one, other) for i, one in enumerate(names) for other in names[i + 1 :])
    differences = tuple(Difference(first=a, second=b, scores=scores(a, b)) for a, b in pairs)
    return {name: scores(name) for name in names}, differences
