"""Options that several commands share."""

from typing import Annotated

import typer

Teacher = Annotated[
    str | None,
    typer.Option(help="Hub id, local folder in hub layout, or a Delta run [default: $DELTA_TEACHER, then the hub's]."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …; auto takes a GPU where there is one.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one entry of the recipe; repeatable.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a machine.")]
