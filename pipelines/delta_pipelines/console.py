"""What people see: progress on stderr, tables and results on stdout, errors as a sentence and a way out."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

out = Console()
err = Console(stderr=True)


class RateColumn(ProgressColumn):
    """Items a second, measured on what this process did."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """Show the recent speed."""
        return Text(f"{task.speed:.2f} {self._unit}/s" if task.speed else f"– {self._unit}/s", style="cyan")


@contextmanager
def progress(unit: str) -> Iterator[Progress]:
    """A progress bar with rate and time left, on stderr."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(unit),
        TextColumn("[dim]left"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=err, speed_estimate_period=120) as bar:
        yield bar


@contextmanager
def byte_progress() -> Iterator[Progress]:
    """A progress bar of bytes, with their rate, on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=err) as bar:
        yield bar


def say(text: str) -> None:
    """Tell a person something on stderr."""
    err.print(escape(text), highlight=False)


def complain(message: str, hint: str = "") -> None:
    """Say what went wrong and the way out."""
    err.print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    if hint:
        err.print(f"[dim]hint:[/]  {escape(hint)}", highlight=False, soft_wrap=True)


def show_json(value: Any) -> None:
    """Print one JSON document for a machine; what is not finite becomes null, which JSON has."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def json_line(row: Any) -> None:
    """Print a row as one line of JSON, at once."""
    print(msgspec.json.encode(row).decode(), flush=True)


def facts(title: str, pairs: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> None:
    """Print a two-column table of names and values."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in dict(pairs).items():
        table.add_row(name, escape(str(value)))
    out.print(table)


def size_text(count: float) -> str:
    """Write a number of bytes as a person reads it (decimal units)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
