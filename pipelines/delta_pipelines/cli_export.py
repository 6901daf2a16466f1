"""The commands after training: export, verify, predict, and the latency bench. Jobs are imported when called."""

from pathlib import Path
from typing import Annotated

import typer

from delta_pipelines.cli_bench import bench
from delta_pipelines.options import Json, Overrides, Teacher

PhotosForCheck = Annotated[
    Path | None,
    typer.Option(help="Folder or store to calibrate and check on [default: the dozen that ship with Delta]."),
]
Recipe = Annotated[str, typer.Option(help="TOML file, or the name of a shipped recipe.")]
Provider = Annotated[str, typer.Option(help="cpu, cuda, tensorrt, or a name of onnxruntime's.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (export, verify, predict):
        app.command()(command)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A training run, or its .safetensors file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the bundle.")],
    photos: PhotosForCheck = None,
    size: Annotated[
        list[str] | None, typer.Option(help="HEIGHTxWIDTH of a graph; repeatable [default: as trained].")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32, packed, fp16 or int8; repeatable [default: all but packed].")
    ] = None,
    dynamic_batch: Annotated[
        bool, typer.Option("--dynamic-batch", help="Any number of images a run: for servers.")
    ] = False,
    recipe: Recipe = "export",
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Export a student to a bundle of ONNX files, each checked against it; a file that differs is not left behind."""
    from delta.bundle import USUAL_PRECISIONS
    from delta.bundled import PHOTOS
    from delta_pipelines import console, report_export
    from delta_pipelines.export_bundle import ExportRecipe, export_bundle, parse_size
    from delta_pipelines.recipe import load_recipe

    card = export_bundle(
        load_recipe(ExportRecipe, recipe, overrides or []),
        run,
        out,
        photos or PHOTOS,
        sizes=[parse_size(text) for text in size or []],
        precisions=precision or USUAL_PRECISIONS,
        dynamic_batch=dynamic_batch,
        on_start=lambda name: console.say(f"making {name}"),
        on_file=report_export.compared,
    )
    console.show_json(card) if as_json else report_export.exported(out, card)


def verify(
    model: Annotated[Path, typer.Argument(metavar="BUNDLE|MODEL.onnx", help="What is in question.")],
    reference: Annotated[
        Path, typer.Argument(metavar="RUN|MODEL.onnx", help="What it should be: a run, a file, a bundle.")
    ],
    photos: Annotated[Path, typer.Argument(metavar="PHOTOS", help="Folder or store of at least 64 photos.")],
    provider: Annotated[
        list[str] | None, typer.Option(help="cpu, cuda, tensorrt, or a name of onnxruntime's; repeatable.")
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(metavar="DEPTHS", help="Measured depth: 16-bit PNG in mm, named as the photos are.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Write report.json, histogram and worst photos."),
    ] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE.xml", help="Write a JUnit report for CI.")] = None,
    stamp: Annotated[
        bool, typer.Option("--stamp", help="Write what was measured into the files, where all passed.")
    ] = False,
    recipe: Recipe = "export",
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Compare a bundle, or any two of run, ONNX and ONNX, on real photos; exit 3 when they differ."""
    from delta_pipelines import console, report_export, verify_report
    from delta_pipelines.export_bundle import ExportRecipe
    from delta_pipelines.recipe import load_recipe
    from delta_pipelines.verify import Worst
    from delta_pipelines.verify import verify as run_verification

    worst: list[Worst] = []
    report = run_verification(
        load_recipe(ExportRecipe, recipe, overrides or []),
        model,
        reference,
        photos,
        providers=provider or ["cpu"],
        truth=truth,
        stamp=stamp,
        on_row=report_export.compared,
        on_worst=worst.append,
    )
    if junit:
        verify_report.write_junit(report, junit)
    console.show_json(verify_report.as_plain(report)) if as_json else report_export.verified(report)
    if output:
        paths = verify_report.write_all(report, worst, output)
        if not as_json:
            print("\n".join(map(str, paths)))
    report.require()


def predict(
    model: Annotated[Path, typer.Argument(metavar="BUNDLE|MODEL.onnx", help="An exported student.")],
    source: Annotated[Path, typer.Argument(metavar="PHOTO|FOLDER|VIDEO", help="What to see depth in.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Folder for what is written.")],
    colormap: Annotated[str, typer.Option(help="spectral, inferno, viridis or gray.")] = "spectral",
    depth_only: Annotated[bool, typer.Option("--depth-only", help="Leave the photo out of the picture.")] = False,
    png16: Annotated[bool, typer.Option("--png16", help="Also write the disparity as 16-bit PNG.")] = False,
    npy: Annotated[bool, typer.Option("--npy", help="Also write the disparity as float32 .npy.")] = False,
    ply: Annotated[bool, typer.Option("--ply", help="Also write a colored point cloud.")] = False,
    view: Annotated[bool, typer.Option("--view", help="Also draw the scene from another side.")] = False,
    precision: Annotated[str, typer.Option(help="Which file of a bundle: fp32, packed, fp16 or int8.")] = "",
    provider: Provider = "cpu",
    batch: Annotated[int, typer.Option(min=1, max=256, help="Photos a run; pays with a graph of dynamic batch.")] = 1,
) -> None:
    """See depth in photos or in a video with an exported student."""
    from delta.bundle import choose_model
    from delta.predict import DepthPredictor
    from delta_pipelines import console, report_export
    from delta_pipelines.predict_photos import Wanted, predict_photos
    from delta_pipelines.predict_video import is_video, predict_video

    wanted = Wanted(colormap=colormap, depth_only=depth_only, png16=png16, npy=npy, ply=ply, view=view)
    predictor = DepthPredictor.open(choose_model(model, precision), providers=(provider,))
    if is_video(source):
        with report_export.prediction_progress("frames") as on_frame:
            video, took = predict_video(predictor, source, output, wanted, batch=batch, on_frame=on_frame)
        paths = [video]
    else:
        with report_export.prediction_progress("images") as on_photo:
            paths, took = predict_photos(predictor, source, output, wanted, batch=batch, on_photo=on_photo)
    console.say(report_export.throughput(took))
    for path in paths:
        print(path)


@bench.command("latency")
def bench_latency(
    models: Annotated[
        list[Path] | None, typer.Argument(metavar="[MODEL|RUN]...", help="ONNX files, bundles, runs or their weights.")
    ] = None,
    teacher: Teacher = None,
    recipe: Recipe = "latency",
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line a model.")] = False,
) -> None:
    """Time student sizes and precisions, the seed's graph and the teacher in turns, against the goals."""
    from delta_pipelines import console, report_export
    from delta_pipelines.bench_latency import LatencyRecipe, measure_latency
    from delta_pipelines.recipe import load_recipe

    settings = load_recipe(LatencyRecipe, recipe, overrides or [])
    rows, remarks = measure_latency(settings, models or [], teacher, on_step=console.say)
    report_export.latency_lines(rows, remarks) if as_json else report_export.latencies(rows, remarks)
