"""How export, verification, prediction and the latency bench show their progress and results; knows no torch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from delta_pipelines import console

if TYPE_CHECKING:
    from delta.bundle import BundleCard
    from delta.parity_report import ParityReport
    from delta_pipelines.bench_latency import Latency
    from delta_pipelines.predict_photos import Throughput
    from delta_pipelines.verify import VerifyReport


def compared(row: "ParityReport") -> None:
    """Say how one comparison went, as soon as it did."""
    verdict = "ok" if row.passed else "FAILED"
    console.say(
        f"{verdict}  {row.candidate} on {row.provider}: error {row.max_relative:.1e} of the range, "
        f"delta1 changes by {row.delta1_change:.2%}"
    )


def exported(out: Path, card: "BundleCard") -> None:
    """Say what the bundle holds."""
    table = Table("file", "size", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for model in card.models:
        count = len(model.convolutions_in_float32)
        kept = f", {count} convolution{'' if count == 1 else 's'} in float32" if count else ""
        table.add_row(model.file, f"{console.size_text(model.bytes)}{kept}")
    console.out.print(table)
    print(out)


def verified(report: "VerifyReport") -> None:
    """Show every comparison, then what else there is to know."""
    verdict = "[green]passed[/]" if report.passed else "[red]failed[/]"
    table = Table(title=f"verification on {len(report.photos)} photos: {verdict}", title_justify="left", box=None)
    table.add_column("file", no_wrap=True)
    table.add_column("provider", no_wrap=True)
    for name in ("max rel", "p99 rel", "max abs", "p99 abs", "cosine", "delta1 change", "AbsRel", "bytes", ""):
        table.add_column(name, justify="right")
    for row in report.rows:
        table.add_row(
            escape(row.candidate),
            row.provider.removesuffix("ExecutionProvider"),
            *(f"{value:.1e}" for value in (row.max_relative, row.p99_relative, row.max_absolute, row.p99_absolute)),
            f"{row.min_cosine:.6f}",
            f"{row.delta1_change:.3%}",
            f"{row.abs_rel_change:.1e}",
            console.size_text(row.file_bytes),
            "ok" if row.passed else "[red]failed[/]",
        )
    console.out.print(table)
    _show_truth(report)
    for line in (*report.problems, *report.notes):
        console.out.print(line, markup=False, highlight=False, soft_wrap=True)


def _show_truth(report: "VerifyReport") -> None:
    measured = [row for row in report.rows if row.truth]
    if not measured:
        return
    table = Table(title="against measured depth: reference, candidate", title_justify="left", box=None)
    for name in ("file", "provider", "AbsRel", "delta1"):
        table.add_column(name, justify="left" if name in ("file", "provider") else "right")
    for row in measured:
        truth = row.truth
        assert truth is not None
        table.add_row(
            escape(row.candidate),
            row.provider.removesuffix("ExecutionProvider"),
            f"{truth.reference.abs_rel:.4f}, {truth.candidate.abs_rel:.4f}",
            f"{truth.reference.delta1:.4f}, {truth.candidate.delta1:.4f}",
        )
    console.out.print(table)


@contextmanager
def prediction_progress(unit: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar that counts photos or frames, and a line for what is left out."""
    with console.progress(unit) as bar:
        task = bar.add_task("predict", total=None, note="")

        def on_done(count: int, total: int, failure: str = "") -> None:
            bar.update(task, total=total or None, advance=count)
            if failure:
                console.say(f"left out {failure}")

        yield on_done


def throughput(took: "Throughput") -> str:
    """Say how fast it went: the graph alone, and with reading and writing."""
    rates = [took.count / seconds if seconds > 0 else float("inf") for seconds in (took.graph_s, took.wall_s)]
    return (
        f"{took.count} in {took.wall_s:.1f} s on {took.provider}: {rates[0]:.1f} a second through the model, "
        f"{rates[1]:.1f} a second with reading and writing"
    )


def latency_lines(rows: "Sequence[Latency]", remarks: Sequence[str]) -> None:
    """Print one JSON line a model; the goals go to stderr."""
    for row in rows:
        console.json_line(row)
    for line in remarks:
        console.say(line)


def latencies(rows: "Sequence[Latency]", remarks: Sequence[str]) -> None:
    """Show the latency table and which goals are met."""
    columns = ("ms", "p95", "all cores ms", "p95", "/ seed", "/ teacher", "GMAC", "M params", "file", "peak memory")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("model", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            escape(row.name),
            *(f"{value:.1f}" for value in (row.ms, row.p95_ms, row.all_threads_ms, row.all_threads_p95_ms)),
            _ratio(row.ratio_to_seed),
            _ratio(row.ratio_to_teacher),
            f"{row.gmac:.2f}",
            f"{row.parameters / 1e6:.2f}",
            console.size_text(row.file_bytes),
            console.size_text(row.peak_memory_bytes),
        )
    console.out.print(table)
    for line in remarks:
        console.out.print(line, markup=False, highlight=False, soft_wrap=True)


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
