"""What `delta app` and `delta bench app` print."""

import itertools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from delta_pipelines import console
from delta_pipelines.app_site import Site

if TYPE_CHECKING:
    from delta_pipelines.bench_app import FrameTime


def built(folder: Path, site: Site) -> None:
    """Show the site's parts and their sizes, then its folder."""
    parts = {
        "app": console.size_text(site.app_bytes),
        "runtime": console.size_text(site.bytes_of("ort/")),
        "models": console.size_text(site.bytes_of("models/")),
        "examples and icons": console.size_text(site.bytes_of("examples/", "icons/")),
        "version": site.version,
    }
    console.facts("the app", parts)
    print(folder)


def serving(address: str, site: Site, https: bool) -> None:
    """Show where the app is; for phones as a QR code too."""
    if https:
        _show_code(address)
        console.say("The certificate was made for this run, so the browser asks once whether to go on.")
    console.say(f"Delta {site.version}, until Ctrl-C:")
    print(address, flush=True)


def _show_code(address: str) -> None:
    try:
        import segno
    except ImportError:
        console.say("(pip install 'delta-depth[app]' shows a QR code here)")
        return
    segno.make(address, error="m").terminal(out=sys.stderr, compact=True)


def frame_lines(rows: "Iterable[FrameTime]") -> None:
    """Print one JSON line a row, as they come."""
    for row in rows:
        console.json_line(row)


def frame_times(rows: "Sequence[FrameTime]") -> None:
    """Print a table a model and number of threads: the app's milliseconds beside the seed's."""
    for (model, threads), group in itertools.groupby(rows, key=lambda row: (row.model, row.threads)):
        console.out.print(_frame_table(f"{model}, {threads} thread{'s' if threads > 1 else ''}", list(group)))


def _frame_table(title: str, rows: "Sequence[FrameTime]") -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("ms a frame")
    for name in ("app", "p95", "seed's way", "p95"):
        table.add_column(name, justify="right")
    for stage in dict.fromkeys(row.stage for row in rows):
        cells = []
        for way in ("app", "seed"):
            found = next((row for row in rows if (row.way, row.stage) == (way, stage)), None)
            cells += [f"{found.median_ms:.2f}", f"{found.p95_ms:.2f}"] if found else ["", ""]
        table.add_row(stage, *cells)
    whole = next(row for row in rows if (row.way, row.stage) == ("app", "frame"))
    table.add_row("frames a second", f"{1000 / whole.median_ms:.1f}", "", "", "")
    return table
