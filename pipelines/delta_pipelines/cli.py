"""The command line: a command parses, calls one job and prints. Jobs are imported when called, so help is quick.

Exit codes: 0 done, 1 bug, 2 something a person can mend, 3 a check failed, 130 interrupted.
"""

import errno
import sys
from pathlib import Path
from typing import Annotated

import typer

from delta import __version__
from delta_pipelines import cli_export

app = typer.Typer(
    name="delta",
    help="Run a depth teacher once, keep its answers, and train fast students from them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
cache = typer.Typer(help="Build and look at teacher caches.", no_args_is_help=True)
app.add_typer(cache, name="cache")
cli_export.register(app)

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
INTERRUPTED = 130
MENDABLE = (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)

Store = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of the cache.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the training run.")]
Teacher = Annotated[
    str | None,
    typer.Option(help="Hub id, local folder in hub layout, or a Delta run [default: $DELTA_TEACHER, then the hub's]."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …; auto takes a GPU where there is one.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one entry of the recipe; repeatable.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a machine.")]


@cache.command("build")
def cache_build(
    photos: Annotated[Path, typer.Argument(metavar="PHOTOS", help="Folder of photos, searched recursively.")],
    store: Store,
    teacher: Teacher = None,
    recipe: Annotated[str, typer.Option(help="TOML file, or the name of a shipped recipe.")] = "cache",
    overrides: Overrides = None,
    device: Device = "auto",
) -> None:
    """Ask the teacher about every photo and keep its answers in a Zarr store. Run again to resume."""
    from delta.device import choose_device
    from delta.images import find_photos
    from delta.teacher import load_teacher, teacher_name
    from delta_pipelines import report
    from delta_pipelines.build_cache import CacheRecipe, build_cache
    from delta_pipelines.recipe import load_recipe

    settings = load_recipe(CacheRecipe, recipe, overrides or [])
    find_photos(photos)  # a folder without any is said before the teacher is fetched
    loaded = load_teacher(
        teacher_name(teacher), taps=settings.taps, dtype=settings.teacher_dtype, device=choose_device(device)
    )
    with report.cache_progress(store) as on_chunk:
        built = build_cache(settings, photos, store, loaded, on_chunk)
    report.cache_built(built)


@cache.command("info")
def cache_info(store: Store, as_json: Json = False) -> None:
    """Say what a store holds: contract, progress, bytes, failures."""
    from delta_cache.reader import Store as CacheStore
    from delta_pipelines import report

    report.cache_info(CacheStore.open(store), as_json)


@cache.command("show")
def cache_show(
    store: Store,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PANEL.png", help="Where to draw.")],
    samples: Annotated[int, typer.Option(min=1, max=64, help="Photos to show.")] = 4,
) -> None:
    """Draw what a store holds: photo, disparity, features as PCA colors, attention."""
    from delta_pipelines.show_cache import show_cache

    print(show_cache(store, output, samples))


@app.command()
def train(
    store: Store,
    run: Run,
    recipe: Annotated[str, typer.Option(help="TOML file, or a shipped recipe: student, seed.")] = "student",
    overrides: Overrides = None,
    device: Device = "auto",
) -> None:
    """Train a student from a store alone. Run again to resume."""
    from delta.device import choose_device
    from delta_pipelines import report
    from delta_pipelines.distill import TrainRecipe, distill
    from delta_pipelines.recipe import load_recipe

    settings = load_recipe(TrainRecipe, recipe, overrides or [])
    with report.training_progress() as watcher:
        summary = distill(settings, store, run, device=choose_device(device), watcher=watcher)
    report.training_done(run, summary)


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
