"""`delta app …`: the web app, built into a folder or served from here. Jobs are imported when called."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from delta_pipelines.cli_bench import bench
from delta_pipelines.options import Json, Overrides

app_commands = typer.Typer(help="The web app: depth on the device, live, from exported models.", no_args_is_help=True)

Models = Annotated[
    list[Path], typer.Argument(metavar="BUNDLE|MODEL.onnx...", help="What the app offers; it starts with the first.")
]
Precision = Annotated[str, typer.Option(help="Which files of a bundle: fp32, fp16 or int8 [default: fp32].")]
Runtime = Annotated[
    Path | None, typer.Option(metavar="FILE.tgz", help="The pinned onnxruntime-web [default: npm fetches it once].")
]
NoWebgpu = Annotated[bool, typer.Option("--no-webgpu", help="Leave the WebGPU engine out: 27 MB less to host.")]


@app_commands.command("build")
def build(
    models: Models,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="SITE", help="Folder to write the site to.")],
    precision: Precision = "",
    runtime: Runtime = None,
    no_webgpu: NoWebgpu = False,
    as_json: Json = False,
) -> None:
    """Write the app as a folder of static files that any host can serve, from any path."""
    from delta_pipelines import console, report_app
    from delta_pipelines.app_site import build_site

    site = build_site(models, output, precision=precision, runtime=runtime, webgpu=not no_webgpu)
    console.show_json(site) if as_json else report_app.built(output, site)


@app_commands.command("serve")
def serve(
    models: Models,
    https: Annotated[
        bool, typer.Option("--https", help="For phones: on the network, with a certificate made for this run.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    precision: Precision = "",
    runtime: Runtime = None,
    no_webgpu: NoWebgpu = False,
) -> None:
    """Build the app into a temporary folder and serve it until Ctrl-C."""
    from delta_pipelines import report_app
    from delta_pipelines.app_serve import open_server
    from delta_pipelines.app_serve import serve as run
    from delta_pipelines.app_site import build_site

    with tempfile.TemporaryDirectory(prefix="delta-app-") as folder:
        site = build_site(models, Path(folder), precision=precision, runtime=runtime, webgpu=not no_webgpu)
        server, address = open_server(Path(folder), port=port, https=https)
        run(server, lambda: report_app.serving(address, site, https))


@bench.command("app")
def bench_app(
    models: Annotated[
        list[Path] | None, typer.Argument(metavar="[BUNDLE|MODEL.onnx]...", help="Exported students.")
    ] = None,
    precision: Precision = "",
    runtime: Runtime = None,
    recipe: Annotated[str, typer.Option(help="TOML file, or the name of a shipped recipe.")] = "app",
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line a row.")] = False,
) -> None:
    """Time the stages of a live frame in a real browser, beside the seed's way, in one run."""
    from delta_pipelines import console, report_app
    from delta_pipelines.bench_app import AppBenchRecipe, measure_app
    from delta_pipelines.recipe import load_recipe

    settings = load_recipe(AppBenchRecipe, recipe, overrides or [])
    rows = measure_app(settings, models or [], precision=precision, runtime=runtime, on_step=console.say)
    report_app.frame_lines(rows) if as_json else report_app.frame_times(list(rows))
