"""The command line: a command parses, calls one job and prints. Jobs are imported when called, so help is quick.

Exit codes: 0 done, 1 bug, 2 something a person can mend, 3 a check failed, 130 interrupted.
"""

import errno
import sys
from pathlib import Path
from typing import Annotated

import typer

from delta import __version__
from delta_pipelines import cli_evaluate, cli_export, cli_train
from delta_pipelines.cli_app import app_commands
from delta_pipelines.cli_bench import bench
from delta_pipelines.cli_cache import cache
from delta_pipelines.options import Device, Teacher

app = typer.Typer(
    name="delta",
    help="Run a depth teacher once, keep its answers, and train fast students from them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(cache, name="cache")
app.add_typer(bench, name="bench")
app.add_typer(app_commands, name="app")
cli_train.register(app)
cli_evaluate.register(app)
cli_export.register(app)

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
INTERRUPTED = 130
MENDABLE = (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the store, run, model and panel go.")] = Path("demo"),
    photos: Annotated[Path | None, typer.Option(help="Your photos [default: the dozen that ship with Delta].")] = None,
    teacher: Teacher = None,
    device: Device = "auto",
) -> None:
    """Run the whole chain: cache, train, export, verify, see depth. A few minutes on two cores."""
    from delta.device import choose_device
    from delta_pipelines import report
    from delta_pipelines.demo import run_demo

    report.demo(run_demo(out, photos, teacher, choose_device(device)))


def _print_version(wanted: bool) -> bool:
    if wanted:
        print(f"delta {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; what a person can mend becomes one sentence and an exit code."""
    from delta.errors import DeltaError
    from delta_cache.errors import CacheError
    from delta_pipelines.console import complain

    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            complain("interrupted", "run the same command to go on; what is done is kept")
        raise
    except (DeltaError, CacheError) as error:
        complain(str(error), error.hint)
        sys.exit(error.exit_code)
    except MENDABLE as error:
        complain(f"{error.filename}: {error.strerror}", "check the path and its permissions")
        sys.exit(2)
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        complain(
            f"no space left on the disk for {error.filename or 'the output'}",
            "free some and run the same command; what is done is kept",
        )
        sys.exit(2)
