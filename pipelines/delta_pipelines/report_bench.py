"""How benchmarks show their rows: a table, or one JSON document a line."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.table import Table

from delta_pipelines import console
from delta_pipelines.bench_cache import Row


@contextmanager
def rows(as_json: bool) -> Iterator[Callable[[Iterable[Row]], None]]:
    """Take rows as they come: JSON lines at once, a table at the end; progress is told on stderr."""
    table = Table("", "what", "value", "unit", "ratio", "to", box=None, padding=(0, 2, 0, 0), header_style="dim")

    def show(measured: Iterable[Row]) -> None:
        for row in measured:
            console.say(f"{row.bench}: {row.name}")
            if as_json:
                console.json_line(row)
            ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
            table.add_row(row.bench, row.name, f"{row.value:.4g}", row.unit, ratio, row.note)

    yield show
    if not as_json:
        console.out.print(table)
