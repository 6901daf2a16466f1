"""How `delta evaluate` shows its progress and its result."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from delta_pipelines import console
from delta_pipelines.benchmark import METRICS
from delta_pipelines.evaluate import Evaluation
from delta_pipelines.evaluation_files import (
    alignments,
    difference_table,
    leading,
    number,
    parameters_text,
    remarks,
)


@contextmanager
def progress(models: int) -> Iterator[Callable[[int, int, str], None]]:
    """A bar that counts images, and a line for each that is left out."""
    with console.progress("images") as bar:
        task = bar.add_task(f"evaluate {models} model{'' if models == 1 else 's'}", total=None, note="")

        def on_image(count: int, total: int, skipped: str) -> None:
            bar.update(task, total=total, advance=count)
            if skipped:
                console.say(f"left out {skipped}")

        yield on_image


def evaluated(evaluation: Evaluation, paths: Sequence[Path]) -> None:
    """Show the tables, what has to be known to read them, and what was written."""
    for alignment in alignments(evaluation):
        title = f"{evaluation.title}, {evaluation.images} images, aligned by {alignment.replace('_', ' ')}"
        _show(title, *_side_by_side(evaluation, alignment))
        if evaluation.differences:
            _show("differences, image by image", *difference_table(evaluation, alignment))
    for model in evaluation.models:
        if model.failure:
            console.out.print(f"{model.name} {model.failure}", markup=False, style="red", soft_wrap=True)
    for line in remarks(evaluation):
        console.out.print(line, markup=False, highlight=False, soft_wrap=True)
    for path in paths:
        print(path)


def _side_by_side(evaluation: Evaluation, alignment: str) -> tuple[list[str], list[list[str]]]:
    """A column for each model; under the leading metrics their intervals."""
    good = [model for model in evaluation.models if not model.failure]
    rows = [["sees [px]", *(model.sees for model in good)]]
    if any(model.parameters for model in good):
        rows.append(["M parameters", *(parameters_text(model) for model in good)])
    for key in evaluation.metrics:
        found = [model.scores[alignment][key] for model in good]
        rows.append([METRICS[key].label, *(number(key, each.mean) for each in found)])
        if key in leading(evaluation.metrics):
            rows.append(["", *(f"[{number(key, each.low)}, {number(key, each.high)}]" for each in found)])
    return ["", *(model.name for model in good)], rows


def _show(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    console.out.print(title, markup=False, style="italic", soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for index, head in enumerate(heads):
        table.add_column(head, justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row), style="dim" if not row[0] else "")
    console.out.print(table)
