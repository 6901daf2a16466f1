"""An evaluation as files: evaluation.json, table.md, images.csv, and a panel for each model."""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from delta.bootstrap import Estimate
from delta.errors import DeltaError
from delta.files import write_aside, write_text
from delta.panel import save_picture, side_by_side
from delta_pipelines import markdown
from delta_pipelines.benchmark import METRICS, Benchmark
from delta_pipelines.depth_models import DepthModel
from delta_pipelines.evaluate import Evaluation, ModelScore, Rows

RESULT, TABLE, IMAGES, PANEL = "evaluation.json", "table.md", "images.csv", "panel_{}.png"
FULL = 2  # leading metrics that are written with their interval
TILE_PX = 400


def require_place(out: Path) -> None:
    """Check that a folder may be written to: new, empty, or of an earlier evaluation.

    Raises:
        DeltaError: it is a file, or holds something else.
    """
    if out.is_dir() and (not any(out.iterdir()) or (out / RESULT).is_file()):
        return
    if out.exists():
        raise DeltaError(f"{out} is not empty and no evaluation's folder", "name a new folder by -o")


def write_all(
    evaluation: Evaluation, rows: Rows, benchmark: Benchmark, models: Sequence[DepthModel], out: Path
) -> list[Path]:
    """Write every file of an evaluation into `out`; panels of an earlier one there are taken away."""
    out.mkdir(parents=True, exist_ok=True)
    for stale in out.glob(PANEL.format("*")):
        stale.unlink()
    return [
        write_json(evaluation, out / RESULT),
        write_markdown(evaluation, out / TABLE),
        write_csv(rows, benchmark.metrics, out / IMAGES),
        *(draw_panel(rows, benchmark, model, out) for model in models if model.name not in rows.failures),
    ]


def write_json(evaluation: Evaluation, path: Path) -> Path:
    """Write everything that was found; what is not a number becomes null."""
    with write_aside(path) as aside:
        aside.write_bytes(msgspec.json.format(msgspec.json.encode(evaluation), indent=2) + b"\n")
    return path


def write_markdown(evaluation: Evaluation, path: Path) -> Path:
    """Write the tables as Markdown, with what has to be known to read them."""
    lines = [f"# {evaluation.title}: {evaluation.images} images", ""]
    for alignment in alignments(evaluation):
        lines += [f"Aligned by {alignment.replace('_', ' ')}.", "", *_markdown(score_table(evaluation, alignment)), ""]
        if evaluation.differences:
            lines += ["Differences, image by image:", "", *_markdown(difference_table(evaluation, alignment)), ""]
    lines += [f"- {line}" for line in remarks(evaluation)]
    return write_text(path, "\n".join(lines) + "\n")


def write_csv(rows: Rows, metrics: Sequence[str], path: Path) -> Path:
    """Write a line for each model, alignment and image; a metric that an image does not define is left empty."""
    with write_aside(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("model", "alignment", "image", "weight", *metrics))
        for model, scores in rows.scores.items():
            for name, weight, score in zip(rows.names, rows.weights, scores, strict=False):
                for alignment, values in score.items():
                    numbers = ("" if np.isnan(values[key]) else repr(values[key]) for key in metrics)
                    writer.writerow((model, alignment, name, f"{weight:g}", *numbers))
    return path


def draw_panel(rows: Rows, benchmark: Benchmark, model: DepthModel, out: Path) -> Path:
    """Draw the images that a model answers best, in the middle and worst."""
    cases = {case.name: case for case in benchmark.cases}
    pictures, captions = [], []
    for place, index in _best_median_worst(rows, benchmark, model.name):
        case = cases[rows.names[index]]
        photo = case.photo()
        pictures.append(benchmark.tiles(photo, model.disparity(photo), case.target()))
        values = next(iter(rows.scores[model.name][index].values()))
        numbers = (f"{METRICS[key].label} {number(key, values[key])}" for key in leading(benchmark.metrics))
        captions.append(f"{place} of {len(rows.names)}: {case.name}, {', '.join(numbers)}")
    name = re.sub(r"[^\w.-]+", "_", model.name)
    return save_picture(side_by_side(pictures, benchmark.columns, captions, TILE_PX), out / PANEL.format(name))


def alignments(evaluation: Evaluation) -> list[str]:
    """How scores were aligned, the first as the protocol says."""
    return next((list(model.scores) for model in evaluation.models if model.scores), [])


def score_table(evaluation: Evaluation, alignment: str) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of models by metrics: the leading metrics with their intervals."""
    heads = ["model", "sees", "M params", *(METRICS[key].label for key in evaluation.metrics)]
    rows = []
    for model in evaluation.models:
        about = [model.name, model.sees, parameters_text(model)]
        if model.failure:
            rows.append([*about, f"failed: {model.failure}", *[""] * (len(evaluation.metrics) - 1)])
            continue
        found = model.scores[alignment]
        full = leading(evaluation.metrics)
        rows.append([*about, *(_estimate(key, found[key], full=key in full) for key in evaluation.metrics)])
    return heads, rows


def parameters_text(model: ModelScore) -> str:
    """Millions of parameters; a file of ONNX does not tell."""
    return f"{model.parameters / 1e6:.2f}" if model.parameters else "–"


def difference_table(evaluation: Evaluation, alignment: str) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of pairs of models by the leading metrics, with the paired interval and who is better."""
    keys = leading(evaluation.metrics)
    heads = ["first – second", *(METRICS[key].label for key in keys), "better, beyond the interval"]
    rows = []
    for each in evaluation.differences:
        found = each.scores[alignment]
        verdicts = {_better(key, found[key], each.first, each.second) for key in keys}
        verdict = verdicts.pop() if len(verdicts) == 1 else "mixed"
        estimates = (_estimate(key, found[key], full=True, sign="+") for key in keys)
        rows.append([f"{each.first} – {each.second}", *estimates, verdict])
    return heads, rows


def remarks(evaluation: Evaluation) -> Iterator[str]:
    """What else has to be known: the data, the interval, who was left out."""
    recipe = evaluation.recipe
    yield f"data: {evaluation.data}" + "".join(f", {note}" for note in evaluation.notes)
    yield (
        f"means over images; [low, high] is the {recipe['confidence']:.0%} interval of {recipe['bootstrap']} "
        f"bootstrap draws, seed {recipe['seed']}"
    )
    if evaluation.skipped:
        shown = "; ".join(f"{name}: {reason}" for name, reason in list(evaluation.skipped.items())[:3])
        more = "; …" if len(evaluation.skipped) > 3 else ""
        yield f"left out {len(evaluation.skipped)} of {len(evaluation.skipped) + evaluation.images}: {shown}{more}"
    yield f"commit {evaluation.commit or 'unknown'}"


def leading(metrics: Sequence[str]) -> list[str]:
    """The two that are looked at first: an error and delta1, or what there is."""
    return [key for key in metrics if key in ("abs_rel", "delta1", "accuracy", "pearson_r")][:FULL]


def _best_median_worst(rows: Rows, benchmark: Benchmark, model: str) -> Iterator[tuple[str, int]]:
    alignment = next(iter(rows.scores[model][0]))
    values = rows.table(model, alignment, [benchmark.rank])[:, 0]
    order = np.argsort(values if METRICS[benchmark.rank].better == "lower" else -values, kind="stable")
    places = {"best": 0, "median": (len(order) - 1) // 2, "worst": len(order) - 1}
    for place in list(places)[: len(order)] if len(order) < 3 else places:
        yield place, int(order[places[place]])


def _better(key: str, found: Estimate, first: str, second: str) -> str:
    if not (found.low > 0 or found.high < 0):
        return "–"
    return first if (found.mean < 0) == (METRICS[key].better == "lower") else second


def _estimate(key: str, found: Estimate, *, full: bool, sign: str = "") -> str:
    text = number(key, found.mean, sign)
    return f"{text} [{number(key, found.low, sign)}, {number(key, found.high, sign)}]" if full else text


def number(key: str, value: float, sign: str = "") -> str:
    """Write a value with its metric's digits; what is not defined is a dash."""
    return "–" if np.isnan(value) else f"{value:{sign}.{METRICS[key].digits}f}"


def _markdown(content: tuple[list[str], list[list[str]]]) -> Iterator[str]:
    heads, rows = content
    return markdown.table(heads, rows, left=len(heads))
