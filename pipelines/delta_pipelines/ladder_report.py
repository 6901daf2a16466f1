"""A ladder as people read it: a table of rungs, and a picture with a point for each run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.table import Table

from delta.files import write_text
from delta.panel import scatter
from delta_pipelines import console, markdown
from delta_pipelines.ladder import Step, gains, noise
from delta_pipelines.ladder_recipe import LadderRecipe
from delta_pipelines.provenance import commit

COLUMNS = (
    ("fidelity_delta1", "delta1 to teacher"),
    ("fidelity_r", "r to teacher"),
    ("abs_rel", "AbsRel"),
    ("delta1", "delta1"),
)
HEADS = ("", "rung", "kB a photo", *(label for _, label in COLUMNS), "change of AbsRel")
NOISES = 2.0  # a change within so many deviations of a difference of means is taken for noise


def write_ladder(recipe: LadderRecipe, steps: Sequence[Step], title: str, out: Path) -> Path:
    """Write `ladder.md`, `ladder.json` and the pictures into `out`; return the first."""
    document = {"recipe": recipe, "data": title, "commit": commit(), "steps": steps}
    write_text(out / "ladder.json", msgspec.json.format(msgspec.json.encode(document)).decode())
    names = [f"{index}" for index, _ in enumerate(steps)]
    pictures = []
    for metric, label in (
        ("abs_rel", f"AbsRel, {title}"),
        ("fidelity_delta1", "delta1 to the teacher, held-out photos"),
    ):
        points = {step.name: [getattr(run, metric) for run in step.runs] for step in steps}
        by_bytes = not recipe.cumulative
        places = [step.bytes_per_photo / 1000 for step in steps] if by_bytes else list(range(len(steps)))
        axis = "kB a photo in the store" if by_bytes else "rung"
        pictures.append(scatter(points, places, out / f"{metric}.png", xlabel=axis, ylabel=label, numbers=names))
    return write_text(out / "ladder.md", "\n".join(_lines(recipe, steps, title, pictures)))


def _lines(recipe: LadderRecipe, steps: Sequence[Step], title: str, pictures: Sequence[Path]) -> list[str]:
    runs = len(recipe.seeds)
    samples = steps[0].runs[0].samples
    what = "one change a rung, kept by those after it" if recipe.cumulative else "each changed alone"
    changes = [[str(index), _code(step.changes)] for index, step in enumerate(steps)]
    return [
        f"{runs} run{'s' if runs > 1 else ''} a rung of {samples:,} samples, from recipe `{recipe.start}`; {what}.",
        f"Depth: {title}. Numbers are means over seeds, ± their deviation.",
        "",
        *markdown.table(HEADS, table(recipe, steps), left=2),
        "",
        *(f"![{path.stem}]({path.name})" for path in pictures),
        "",
        *markdown.table(["", "what the rung changes"], changes, left=2),
        "",
        f"The budget of all: {_code((*recipe.budget, *recipe.store))}.",
        "",
    ]


def _code(entries: Sequence[str]) -> str:
    return ", ".join(f"`{entry}`" for entry in entries)


def table(recipe: LadderRecipe, steps: Sequence[Step]) -> list[list[str]]:
    """The rungs' cells, in order."""
    changed = [None, *gains(steps, "abs_rel")] if recipe.cumulative else [None] * len(steps)
    deviation = noise(steps, "abs_rel")
    rows = []
    for index, (step, gain) in enumerate(zip(steps, changed, strict=True)):
        cells = [_value(step, metric) for metric, _ in COLUMNS]
        rows.append(
            [str(index), step.name, f"{step.bytes_per_photo / 1000:.0f}", *cells, _verdict(gain, deviation, step)]
        )
    return rows


def _value(step: Step, metric: str) -> str:
    spread = noise([step], metric)
    return f"{step.mean(metric):.3f}" + ("" if spread is None else f" ± {spread:.3f}")


def _verdict(gain: float | None, deviation: float | None, step: Step) -> str:
    if gain is None or deviation is None:
        return "" if gain is None else f"{gain:+.3f}"
    pays = -gain > NOISES * deviation * (2 / len(step.runs)) ** 0.5
    return f"{gain:+.3f}, {'pays' if pays else 'does not pay'}"


def show(recipe: LadderRecipe, steps: Sequence[Step], report: Path) -> None:
    """Print the table, and where the report is."""
    shown = Table(*HEADS, box=None, padding=(0, 2, 0, 0), header_style="dim")
    for row in table(recipe, steps):
        shown.add_row(*row)
    console.out.print(shown)
    print(report)


def as_data(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """The same for a machine."""
    return [msgspec.to_builtins(step) for step in steps]
