"""How training, its benches and the list of runs show their progress and results."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from delta_pipelines import console
from delta_pipelines.report import agreement_table

if TYPE_CHECKING:
    import torch

    from delta.metrics import Agreement
    from delta.train import StepReport
    from delta_pipelines.bench_equivalence import Equivalence
    from delta_pipelines.bench_train import BenchRow
    from delta_pipelines.distill import Summary, Watcher
    from delta_pipelines.run_report import RunFacts
    from delta_pipelines.train_recipe import TrainRecipe

SMOOTHING = 0.9  # of the numbers beside the bar, a step


class _Recent:
    """Running means of a run's losses and times, for the line beside the bar."""

    def __init__(self) -> None:
        self._means: dict[str, float] = {}

    def note(self, report: "StepReport") -> str:
        """Take a step in and say where things stand: loss and its parts, speed, waiting."""
        fresh = report.terms | {"images": float(report.images), "step_s": report.step_s, "wait_s": report.wait_s}
        for name, value in fresh.items():
            self._means[name] = SMOOTHING * self._means.get(name, value) + (1 - SMOOTHING) * value
        means = self._means
        parts = ", ".join(f"{name} {means[name]:.3f}" for name in report.terms if name != "total")
        speed = (
            f"{means['images'] / means['step_s']:.1f} images/s, waits {100 * means['wait_s'] / means['step_s']:.0f} %"
        )
        return f"loss {means['total']:.3f} ({parts}); {speed}"


@contextmanager
def training_progress() -> "Iterator[Watcher]":
    """A bar that counts steps with loss parts, images/s, waiting and time left, and a line for each evaluation."""
    from delta_pipelines.distill import Watcher

    columns = (TextColumn("train"), BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn("[dim]left"))
    with Progress(*columns, TimeRemainingColumn(), TextColumn("[dim]{task.fields[note]}"), console=console.err) as bar:
        task, recent = bar.add_task("train", total=None, note=""), _Recent()

        def step(report: "StepReport", total: int) -> None:
            if bar.tasks[0].total is None:
                bar.update(task, total=total, completed=report.step - 1)
            bar.update(task, advance=1, note=recent.note(report))

        def evaluation(step: int, agreement: "Agreement") -> None:
            console.say(f"step {step}: held-out r {agreement.pearson_r:.3f}, delta1 {agreement.delta1:.3f}")

        yield Watcher(say=console.say, step=step, evaluation=evaluation)


def training_done(run: Path, summary: "Summary") -> None:
    """Show how the student agrees with its teacher, beside the mean map."""
    rows = {
        f"student (step {summary.best_step} of {summary.steps})": summary.student,
        "mean map of training": summary.mean_map,
    }
    console.out.print(agreement_table(f"agreement with the teacher, {summary.student.n} held-out photos", rows))
    for name in ("student.safetensors", "samples.png", "loss.png", "report.md"):
        print(run / name)


def runs(facts: "Sequence[RunFacts]", as_json: bool) -> None:
    """Show runs side by side, and in which entries of their recipes they differ."""
    from delta_pipelines.run_report import COLUMNS, columns, compare_runs, facts_as_data

    if as_json:
        console.show_json(facts_as_data(facts))
        return
    table = Table(*COLUMNS, box=None, padding=(0, 2, 0, 0), header_style="dim")
    for run in facts:
        table.add_row(*columns(run))
    console.out.print(table)
    differing = compare_runs(facts)
    if differing:
        names = [Path(run.run).name for run in facts]
        below = Table("what differs", *names, box=None, padding=(0, 2, 0, 0), header_style="dim")
        for key, values in differing.items():
            below.add_row(key, *("–" if value is None else str(value) for value in values))
        console.out.print(below)


@contextmanager
def bench_progress() -> "Iterator[Callable[[str, int], None]]":
    """A line on stderr with how many steps of each kind are timed."""
    counts: dict[str, int] = {}
    with console.err.status("bench: building") as status:

        def watch(name: str, steps: int) -> None:
            counts[name] = steps
            status.update("bench: " + ", ".join(f"{kind} {count}" for kind, count in counts.items()) + " steps")

        yield watch


def bench_rows(rows: "Sequence[BenchRow]", recipe: "TrainRecipe", device: "torch.device", as_json: bool) -> None:
    """Show what a step takes by kind of feed: a JSON line a row, or a table."""
    if as_json:
        for row in rows:
            console.json_line(row)
        return
    student = f"{recipe.student.encoder}, {recipe.batch_size} images of {recipe.size_px} px on {device}"
    heads = ("", "step [ms]", "quartiles [ms]", "waits [ms]", "images/s", "x memory", "steps")
    table = Table(*heads, title=student, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.step_ms:.0f}",
            f"{row.low_ms:.0f}–{row.high_ms:.0f}",
            f"{row.wait_ms:.0f}",
            f"{row.images_per_s:.1f}",
            f"{row.ratio_to_memory:.2f}",
            str(row.steps),
        )
    console.out.print(table)


def equivalence(result: "Equivalence", picture: Path, as_json: bool) -> None:
    """Show how far training from the cache is from training with the teacher in the loop."""
    if as_json:
        console.show_json(msgspec.to_builtins(result))
        return
    console.facts(
        f"from the cache against live, {result.steps} steps",
        {
            "first step, same weights": ", ".join(f"{name} {gap:.2%}" for name, gap in result.first_step.items()),
            "whole curve, loss": f"{result.curve:.2%} apart on average",
            "another seed": f"{result.other_seed:.2%} apart on average",
            "codec, as the store states it": ", ".join(f"{name} {error:.2%}" for name, error in result.codec.items()),
            "held-out delta1": f"cached {result.cached.delta1:.4f}, live {result.live.delta1:.4f}",
        },
    )
    print(picture)
