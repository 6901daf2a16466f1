"""The commands of stage 2: train and runs, and the benches of training."""

from pathlib import Path
from typing import Annotated

import typer

from delta_pipelines.cli_bench import bench
from delta_pipelines.cli_cache import Store
from delta_pipelines.options import Device, Json, Overrides, Teacher

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the training run.")]
Recipe = Annotated[str, typer.Option(help="TOML file, or a shipped recipe: student, smoke, cpu-small, gpu-full, seed.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(train)
    app.command()(runs)


def train(
    store: Store,
    run: Run,
    recipe: Recipe = "student",
    overrides: Overrides = None,
    device: Device = "auto",
    teacher: Teacher = None,
) -> None:
    """Train a student from a store alone (with feed.live from the teacher itself). Run again to resume.

    Several processes: torchrun --nproc-per-node N -m delta_pipelines train …
    """
    from contextlib import nullcontext

    from delta.device import choose_device
    from delta.distributed import join
    from delta_pipelines import report_train
    from delta_pipelines.distill import distill
    from delta_pipelines.recipe import load_recipe
    from delta_pipelines.train_recipe import TrainRecipe

    settings = load_recipe(TrainRecipe, recipe, overrides or [])
    with join(choose_device(device)) as (world, place):
        live = None
        if settings.feed.live:
            from delta_pipelines.live import load_live_teacher

            live = load_live_teacher(teacher, store, place)
        with report_train.training_progress() if world.leads else nullcontext() as watcher:
            summary = distill(
                settings,
                store,
                run,
                device=place,
                watcher=watcher,
                world=world,
                recipe_name=Path(recipe).stem,
                teacher=live,
            )
        if world.leads:
            report_train.training_done(run, summary)


def runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder that holds runs.")] = Path(),
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="REPORT.md", help="Also write them as Markdown, with curves."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List runs side by side: agreement, loss, speed, and what their recipes differ in."""
    from delta_pipelines import report_train
    from delta_pipelines.run_report import find_runs, read_run, write_comparison

    facts = [read_run(run) for run in find_runs(folder)]
    report_train.runs(facts, as_json)
    if output:
        print(write_comparison(facts, output))


@bench.command("train")
def bench_train(
    store: Store,
    recipe: Recipe = "cpu-small",
    overrides: Overrides = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of all kinds: a step of each teacher in the loop.")] = 3,
    sizes: Annotated[str, typer.Option(help="Teachers in the loop, of vits, vitb and vitl; empty for none.")] = (
        "vits,vitb,vitl"
    ),
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Time a training step with targets in memory, from the cache, and with a teacher in the loop."""
    from delta.device import choose_device
    from delta_pipelines import report_train
    from delta_pipelines.bench_train import bench_train, parse_sizes
    from delta_pipelines.recipe import load_recipe
    from delta_pipelines.train_recipe import TrainRecipe

    settings, place, chosen = (
        load_recipe(TrainRecipe, recipe, overrides or []),
        choose_device(device),
        parse_sizes(sizes),
    )
    with report_train.bench_progress() as watch:
        rows = bench_train(settings, store, device=place, rounds=rounds, sizes=chosen, watch=watch)
    report_train.bench_rows(rows, settings, place, as_json)


@bench.command("equivalence")
def bench_equivalence(
    store: Store,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="CURVES.png", help="Where to draw the curves.")],
    teacher: Teacher = None,
    recipe: Recipe = "smoke",
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each of the three trainings.")] = 100,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train one student from the cache and one with the store's teacher in the loop, and lay their curves together."""
    from delta.device import choose_device
    from delta_pipelines import report_train
    from delta_pipelines.bench_equivalence import bench_equivalence
    from delta_pipelines.live import load_live_teacher
    from delta_pipelines.recipe import load_recipe
    from delta_pipelines.train_recipe import TrainRecipe

    settings, place = load_recipe(TrainRecipe, recipe, overrides or []), choose_device(device)
    live = load_live_teacher(teacher, store, place)
    with report_train.bench_progress() as watch:
        result = bench_equivalence(settings, store, live, output, device=place, steps=steps, watch=watch)
    report_train.equivalence(result, output, as_json)
