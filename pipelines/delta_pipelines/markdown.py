"""Tables in Markdown."""

from collections.abc import Iterator, Sequence


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> Iterator[str]:
    """Lines of a table; columns after the first `left` are aligned right, a bar in a cell stays one."""
    yield _row(heads)
    yield "|" + "|".join(["---"] * left + ["---:"] * (len(heads) - left)) + "|"
    yield from map(_row, rows)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
