"""`delta evaluate`: models side by side on a benchmark. The job is imported when called."""

from pathlib import Path
from typing import Annotated

import typer

from delta_pipelines.options import Device, Json, Overrides, Teacher


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(evaluate)


def evaluate(
    models_and_data: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL... DATA",
            help="Runs, checkpoints, ONNX files, bundles, teachers (each may be NAME=MODEL); last, the benchmark's "
            "folder, or for fidelity to a teacher a folder of photos or a cache.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the report.")] = Path(
        "evaluation"
    ),
    teacher: Teacher = None,
    recipe: Annotated[str, typer.Option(help="TOML file, or the name of a shipped recipe.")] = "evaluate",
    overrides: Overrides = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure depth: NYUv2, KITTI, DA-2K, DIODE, RGB-D pairs, or fidelity to a teacher; exit 3 when a model fails."""
    from delta.device import choose_device
    from delta.errors import DeltaError
    from delta_pipelines import console, evaluation_files, report_evaluate
    from delta_pipelines.depth_models import load_models
    from delta_pipelines.evaluate import evaluate as run_evaluation
    from delta_pipelines.evaluate_recipe import EvaluateRecipe
    from delta_pipelines.open_benchmark import open_benchmark
    from delta_pipelines.recipe import load_recipe

    *sources, data = models_and_data
    if not sources:
        raise DeltaError(f"{data} alone is not enough: a model is missing", "delta evaluate MODEL... DATA")
    settings, place = load_recipe(EvaluateRecipe, recipe, overrides or []), choose_device(device)
    evaluation_files.require_place(output)
    benchmark = open_benchmark(Path(data), settings, teacher, place)
    models = load_models(sources, settings.teacher, place)
    with report_evaluate.progress(len(models)) as on_image:
        evaluation, rows = run_evaluation(settings, models, benchmark, on_image)
    paths = evaluation_files.write_all(evaluation, rows, benchmark, models, output)
    console.show_json(evaluation) if as_json else report_evaluate.evaluated(evaluation, paths)
    evaluation.require()
