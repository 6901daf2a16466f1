"""How each command shows its progress and its result; knows no torch, so that prediction stays light."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.table import Table

from delta_pipelines import console

if TYPE_CHECKING:
    from delta.metrics import Agreement
    from delta_pipelines.demo import DemoSummary


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
