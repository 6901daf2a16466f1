"""Where a live frame's time goes in the web app, in a real browser with a fake camera, and how the seed spent it."""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from msgspec import Meta

from delta import colormaps
from delta.config import Config
from delta.errors import DeltaError
from delta_pipelines.app_browser import CAMERA, chromium, write_scene
from delta_pipelines.app_models import Choice, app_models, choices
from delta_pipelines.app_serve import serving
from delta_pipelines.app_site import build_site

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

STAGES = ("capture", "resize", "normalize", "infer", "color", "draw")
APART = "infer"  # the model's part; the rest is the app's
SEED_WAY = Path(__file__).with_name("app_seed_way.js")
COLLECT = """async ([skip, count, wait]) => {
    const frames = [];
    const done = new Promise((resolve) => document.addEventListener("delta:frame", function take({ detail }) {
        if (frames.push(detail) < skip + count) return;
        document.removeEventListener("delta:frame", take);
        resolve(true);
    }));
    const late = new Promise((resolve) => setTimeout(() => resolve(false), wait));
    if (document.body.dataset.source !== "live") document.querySelector("#live").click();
    await Promise.race([done, late]);
    document.querySelector("#live").click();
    return { frames: frames.slice(skip), body: { ...document.body.dataset } };
}"""
WAIT_MS = 240_000


class AppBenchRecipe(Config, frozen=True, kw_only=True):
    """How long is measured; recipes/app.toml explains each key."""

    rounds: Annotated[int, Meta(ge=1)]
    warmup: Annotated[int, Meta(ge=0)]
    frames: Annotated[int, Meta(ge=2)]
    seed_frames: Annotated[int, Meta(ge=1)]
    threads: tuple[Annotated[int, Meta(ge=0)], ...]


class FrameTime(Config, frozen=True, kw_only=True):
    """One stage of one model's frames, in milliseconds; `way` is the app's or the seed's."""

    model: str
    size_px: tuple[int, int]  # height, width
    threads: int
    way: str
    stage: str  # one of STAGES, "pre + post" (all but the model), or "frame": from one to the next
    median_ms: float
    p95_ms: float
    frames: int


def measure_app(
    recipe: AppBenchRecipe,
    models: Sequence[Path],
    *,
    precision: str = "",
    runtime: Path | None = None,
    on_step: Callable[[str], None] = lambda text: None,
) -> Iterator[FrameTime]:
    """Build the app for these models, play it a scene, and yield the rows of each model and number of threads.

    Raises:
        DeltaError: no browser, a model that cannot be used, or an app that does not get that far.
    """
    with tempfile.TemporaryDirectory(prefix="delta-bench-") as scratch:
        folder = Path(scratch)
        given = list(models) or list(_untrained_students(folder, on_step))
        on_step("build the app")
        build_site(given, folder / "site", precision=precision, runtime=runtime, webgpu=False)
        listed = app_models(given, precision)
        sizes = [entry.size_px for model in listed for entry in model.card.models]
        scene = write_scene(folder / "scene.mjpeg")
        camera = (*CAMERA, f"--use-file-for-fake-video-capture={scene}")
        with serving(folder / "site") as address, chromium(*camera) as browser:
            for choice, size_px in zip(choices(listed), sizes, strict=True):
                for threads in recipe.threads:
                    on_step(f"{choice.name}, {threads or 'all'} threads")
                    yield from _measure(recipe, browser, address, choice, size_px, threads)


def _measure(
    recipe: AppBenchRecipe, browser: "Browser", address: str, choice: Choice, size_px: tuple[int, int], threads: int
) -> Iterator[FrameTime]:
    page = browser.new_page(permissions=["camera"], service_workers="block")
    page.goto(f"{address}?view=depth&model={choice.id}&threads={threads or 'auto'}")
    page.locator('body[data-results="1"], body[data-state="error"]').wait_for(state="attached", timeout=WAIT_MS)
    ours: list[dict[str, float]] = []
    seeds: list[dict[str, float]] = []
    body: dict[str, str] = {}
    for _ in range(recipe.rounds):
        frames, body = _app_frames(page, recipe)
        ours += frames
        seeds += page.evaluate(SEED_WAY.read_text(encoding="utf-8"), _seed_options(recipe, size_px))
    page.close()
    used = int(body["threads"])
    for way, measured in (("app", ours), ("seed", seeds)):
        for stage, values in _stages(measured):
            yield FrameTime(
                model=choice.id,
                size_px=size_px,
                threads=used,
                way=way,
                stage=stage,
                median_ms=float(np.median(values)),
                p95_ms=float(np.percentile(values, 95)),
                frames=len(values),
            )


def _app_frames(page: "Page", recipe: AppBenchRecipe) -> tuple[list[dict[str, float]], dict[str, str]]:
    found = page.evaluate(COLLECT, [recipe.warmup, recipe.frames, WAIT_MS])
    frames, body = found["frames"], found["body"]
    if len(frames) < recipe.frames:
        state = body.get("error", body["state"])
        raise DeltaError(
            f"the app gave {len(frames)} frames of {recipe.frames}: {state}", "try fewer with --set frames=2"
        )
    between = np.diff([frame["at"] for frame in frames])
    for frame, ms in zip(frames[1:], between, strict=True):
        frame["frame"] = float(ms)
    return frames, body


def _seed_options(recipe: AppBenchRecipe, size_px: tuple[int, int]) -> dict[str, Any]:
    colors = json.loads(colormaps.TABLES_PATH.read_text(encoding="ascii"))["spectral"]
    return {"frames": recipe.seed_frames, "side": max(size_px), "colors": colors}


def _stages(measured: Sequence[dict[str, float]]) -> Iterator[tuple[str, list[float]]]:
    for stage in STAGES:
        values = [frame[stage] for frame in measured if stage in frame]
        if values:
            yield stage, values
    yield (
        "pre + post",
        [sum(frame[stage] for stage in STAGES if stage in frame and stage != APART) for frame in measured],
    )
    whole = [frame["frame"] for frame in measured if "frame" in frame]
    if whole:
        yield "frame", whole


def _untrained_students(folder: Path, on_step: Callable[[str], None]) -> Iterator[Path]:
    from delta.export import export_onnx
    from delta_pipelines.bench_latency import LatencyRecipe, untrained
    from delta_pipelines.recipe import load_recipe

    for preset in load_recipe(LatencyRecipe, "latency").students:
        on_step(f"export {preset.name}")
        yield export_onnx(
            untrained(preset.config), folder / f"{preset.name}.onnx", (preset.size_px, preset.size_px), {}
        )
