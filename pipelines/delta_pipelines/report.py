"""How each command shows its progress and its result; knows no torch, so that prediction stays light."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.table import Table

from delta_pipelines import console

if TYPE_CHECKING:
    from delta.metrics import Agreement
    from delta.parity import ParityReport
    from delta_pipelines.demo import DemoSummary


def parity(report: "ParityReport", model: Path, as_json: bool) -> None:
    """Show how far an ONNX file is from its student."""
    if as_json:
        console.show_json(msgspec.to_builtins(report))
        return
    verdict = "[green]passed[/]" if report.passed else "[red]failed[/]"
    console.facts(
        f"parity of {model}: {verdict}",
        {
            "photos": f"{report.n_images} at {report.size_px[0]}x{report.size_px[1]}",
            "max relative error": f"{report.max_relative:.2e} (gate {report.gate_relative:.0e})",
            "max / p99 absolute": f"{report.max_absolute:.2e} / {report.p99_absolute:.2e}",
            "min cosine": f"{report.min_cosine:.9f}",
            "provider": report.provider,
            "file": console.size_text(report.file_bytes),
        },
    )


@contextmanager
def prediction_progress() -> Iterator[Callable[[Path, str, int], None]]:
    """A bar that counts photos, and a line for each that is left out."""
    with console.progress("images") as bar:
        task = bar.add_task("predict", total=None, note="")

        def on_photo(photo: Path, failure: str, total: int) -> None:
            bar.update(task, total=total, advance=1)
            if failure:
                console.say(f"left out {photo}: {failure}")

        yield on_photo


def demo(summary: "DemoSummary") -> None:
    """End the demo: two tables and the panel's path."""
    console.facts("what it took", summary.facts())
    console.out.print(
        agreement_table(f"agreement with the teacher, {summary.student.n} held-out photos", summary.agreements())
    )
    for line in summary.remarks:
        console.say(line)
    print(f"panel: {summary.panel}")


class Stopwatch:
    """Wall time of named stages, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage and take its time."""
        console.say(f"── {name}")
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def agreement_table(title: str, rows: "dict[str, Agreement]") -> Table:
    """Rows of Pearson r, delta1 and AbsRel."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("")
    for name in ("Pearson r", "delta1", "AbsRel"):
        table.add_column(name, justify="right")
    for name, value in rows.items():
        table.add_row(name, f"{value.pearson_r:.3f}", f"{value.delta1:.3f}", f"{value.abs_rel:.3f}")
    return table
