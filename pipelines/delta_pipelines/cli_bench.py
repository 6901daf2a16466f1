"""`delta bench …`: each prints one JSON line a row with --json, a table without."""

from pathlib import Path
from typing import Annotated

import typer

from delta_pipelines.options import Device, Json, Overrides, Teacher

bench = typer.Typer(help="Measure on this machine, side by side in one run.", no_args_is_help=True)


@bench.command("cache")
def cache(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A complete cache, read from.")],
    photos: Annotated[
        str | None, typer.Option(metavar="PHOTOS", help="Also measure building, precisions and views on these.")
    ] = None,
    teacher: Teacher = None,
    overrides: Overrides = None,
    device: Device = "auto",
    build_photos: Annotated[int, typer.Option(min=1, help="Photos of each build that is timed.")] = 64,
    place: Annotated[Path, typer.Option(help="Folder for scratch files; its disk is the one measured.")] = Path(),
    as_json: Json = False,
) -> None:
    """Measure bytes a photo, codec rates and reading against other formats; with --photos, building too."""
    from delta_cache.reader import open_cache
    from delta_pipelines import bench_cache, bench_verify, report_bench

    opened = open_cache(store)
    with report_bench.rows(as_json) as show:
        show(bench_cache.bench_bytes(opened))
        show(bench_cache.bench_codecs(opened))
        show(bench_cache.bench_reading(opened, place))
        show(bench_verify.bench_digests(opened))
        show(bench_verify.bench_listing(place))
        if photos:
            from delta.device import choose_device
            from delta.teacher import load_teacher, teacher_name
            from delta_pipelines import bench_build, bench_codecs, bench_views
            from delta_pipelines.cache_recipe import CacheRecipe
            from delta_pipelines.recipe import load_recipe

            recipe, chosen = load_recipe(CacheRecipe, "cache", overrides or []), choose_device(device)
            name = teacher_name(teacher)
            loaded = load_teacher(name, taps=recipe.taps, precision=recipe.precision, device=chosen)
            show(bench_codecs.bench_codecs(recipe, photos, loaded, chosen))
            show(bench_views.bench_views(recipe, photos, loaded, chosen))
            show(bench_build.bench_building(recipe, photos, place, loaded, chosen, build_photos))
            show(bench_build.bench_precision(recipe, photos, name, chosen))


@bench.command("ladder")
def ladder(
    photos: Annotated[str, typer.Argument(metavar="PHOTOS", help="Photos to distil on.")],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A benchmark with measured depth, as for evaluate.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Stores, runs and the report.")],
    recipe: Annotated[str, typer.Option(help="TOML file, or a shipped ladder: ladder, curve, stages.")] = "ladder",
    teacher: Teacher = None,
    overrides: Overrides = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train students that differ in one thing a rung on one budget, and measure them. Run again to resume."""
    from delta.device import choose_device
    from delta.teacher import teacher_name
    from delta_pipelines import console, ladder_report
    from delta_pipelines.evaluate_recipe import EvaluateRecipe
    from delta_pipelines.ladder import climb
    from delta_pipelines.ladder_recipe import LadderRecipe
    from delta_pipelines.open_benchmark import open_benchmark
    from delta_pipelines.recipe import load_recipe

    settings, place = load_recipe(LadderRecipe, recipe, overrides or []), choose_device(device)
    benchmark = open_benchmark(data, EvaluateRecipe(), None, place)
    name = teacher_name(teacher)
    steps = climb(settings, photos, benchmark, output, teacher=name, device=place, say=console.say)
    report = ladder_report.write_ladder(settings, steps, benchmark.title, output)
    console.show_json(ladder_report.as_data(steps)) if as_json else ladder_report.show(settings, steps, report)
