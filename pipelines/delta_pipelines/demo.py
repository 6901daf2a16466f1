"""The whole chain in one go, on a dozen photos: cache, train, export, verify, see depth."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import torch

from delta import bundled, images
from delta.checkpoint import WEIGHTS, load_student
from delta.colormaps import colorize
from delta.config import Config
from delta.errors import DeltaError
from delta.files import file_sha256
from delta.metrics import Agreement
from delta.panel import save_picture, side_by_side
from delta.predict import DepthPredictor, normalize_for_display
from delta.teacher import DEFAULT_TEACHER, Teacher, load_teacher, teacher_name
from delta_cache.reader import Store
from delta_pipelines import console, provenance, report, report_cache, report_train
from delta_pipelines.build_cache import build_cache, plan_store
from delta_pipelines.cache_recipe import CacheRecipe
from delta_pipelines.distill import Summary, distill
from delta_pipelines.export_bundle import ExportRecipe, export_bundle
from delta_pipelines.feed import read_samples, split_store
from delta_pipelines.holdout import load_holdout
from delta_pipelines.recipe import load_recipe
from delta_pipelines.train_recipe import TrainRecipe
from delta_pipelines.verify import verify

PHOTOS_AT_MOST = 60
SAMPLES_SEEN = 360
VERIFIED_AT_MOST = 12
ROWS_SHOWN = 4
CACHE_SETTINGS = (f"limit={PHOTOS_AT_MOST}", "size_px=392", "chunk_samples=8", "taps=[9, 12]", "features.fit_photos=8")
TIMED_RUNS = 5


class DemoSummary(Config, frozen=True, kw_only=True):
    """What the demo ends with."""

    panel: Path
    teacher: str
    teacher_ms: float
    student_ms: float
    teacher_parameters: int
    student_parameters: int
    bytes_per_photo: float
    seconds: dict[str, float]
    student: Agreement
    start: Agreement
    mean_map: Agreement
    remarks: list[str]

    def facts(self) -> dict[str, str]:
        """Names and values for the closing table."""
        return {
            "teacher": f"{self.teacher}, {self.teacher_parameters / 1e6:.1f} M parameters",
            "student": f"{self.student_parameters / 1e6:.1f} M parameters",
            "teacher, a photo": f"{self.teacher_ms:.0f} ms",
            "student, a photo": f"{self.student_ms:.0f} ms ({self.teacher_ms / self.student_ms:.0f} times faster)",
            "cache": f"{console.size_text(self.bytes_per_photo)} a photo",
            **{f"time: {name}": f"{seconds:.1f} s" for name, seconds in self.seconds.items()},
        }

    def agreements(self) -> dict[str, Agreement]:
        """Rows of the closing table, best informed last."""
        return {
            "mean map of the training photos": self.mean_map,
            "delta-xs, before": self.start,
            "student, distilled here": self.student,
        }


def run_demo(out: Path, photos: Path | None, teacher: str | None, device: torch.device) -> DemoSummary:
    """Run every stage into a folder of `out` and draw photo, teacher and student side by side.

    Where the hub cannot be reached and no teacher was named, the bundled delta-xs acts as the teacher: any Delta
    checkpoint may (multi-stage distillation).
    """
    watch, remarks, folder = report.Stopwatch(), list[str](), photos or bundled.PHOTOS
    cache_recipe = load_recipe(CacheRecipe, "cache", CACHE_SETTINGS)
    train_recipe = load_recipe(TrainRecipe, "demo")
    with watch.stage("load the teacher"):
        loaded = _load_teacher(teacher, cache_recipe, device, remarks)
        place = out / _key(cache_recipe, train_recipe, folder, loaded, device)
    with watch.stage("cache the teacher's answers"), report_cache.building("store.zarr") as watcher:
        store = build_cache(cache_recipe, folder, place / "store.zarr", loaded, device=device, watcher=watcher)
    with watch.stage("train the student from the cache"), report_train.training_progress() as watcher:
        train_recipe = _scale(train_recipe, store)
        summary = distill(train_recipe, store.url, place / "run", device=device, watcher=watcher, recipe_name="demo")
    with watch.stage("export to ONNX and verify"):
        _export(store, place)
    with watch.stage("see depth"):
        panel = _draw(store, train_recipe, place / "bundle", place / "panel.png")
    return _summarize(place, store, train_recipe, loaded, summary, panel, watch.seconds, remarks)


def _key(
    cache_recipe: CacheRecipe, train_recipe: TrainRecipe, folder: Path, teacher: Teacher, device: torch.device
) -> str:
    """Name a subfolder by what decides the demo's numbers: the same demo resumes there, another has its own."""
    _photos, contract = plan_store(cache_recipe, folder, teacher, device)
    start = file_sha256(bundled.STUDENT / WEIGHTS)
    return provenance.fingerprint(contract.fingerprint, msgspec.to_builtins(train_recipe), start)[:8]


def _load_teacher(name: str | None, recipe: CacheRecipe, device: torch.device, remarks: list[str]) -> Teacher:
    wanted = teacher_name(name)
    try:
        return load_teacher(wanted, taps=recipe.taps, precision=recipe.precision, device=device)
    except DeltaError as error:
        if wanted != DEFAULT_TEACHER:
            raise
        remarks.append(f"{error}; delta-xs acted as the teacher. DELTA_TEACHER names a real one.")
        console.say(remarks[-1])
        return load_teacher(str(bundled.STUDENT), device=device)


def _scale(recipe: TrainRecipe, store: Store) -> TrainRecipe:
    count = len(split_store(store, recipe.feed).train)
    return msgspec.structs.replace(recipe, epochs=max(1.0, SAMPLES_SEEN / count))


def _export(store: Store, place: Path) -> None:
    """Write the bundle, in float32 only as this is a demo, and compare it with its student on cached photos."""
    usable, photos = int(store.mask.sum()), Path(store.url)
    recipe = load_recipe(ExportRecipe, "export", [f"verify_photos={min(usable, VERIFIED_AT_MOST)}"])
    export_bundle(recipe, place / "run", place / "bundle", photos, precisions=["fp32"])
    verify(recipe, place / "bundle", place / "run", photos).require()


def _draw(store: Store, recipe: TrainRecipe, model: Path, path: Path) -> Path:
    """Held-out photos first, then others: photo, the teacher's cached answer, the exported student's."""
    split, predictor = split_store(store, recipe.feed), DepthPredictor.open(model)
    chosen = np.concatenate([split.holdout, split.train])[:ROWS_SHOWN]
    data = read_samples(store, chosen, ["image", "disparity"])
    rows, captions = [], []
    for sample, photo, disparity in zip(chosen, data["image"], data["disparity"], strict=True):
        maps = (disparity.astype(np.float32), predictor.predict(photo))
        rows.append([photo, *(colorize(normalize_for_display(each), "spectral", vmin=0.0, vmax=1.0) for each in maps)])
        captions.append("held out" if sample in split.holdout else "trained on")
    return save_picture(side_by_side(rows, ["photo", "teacher", "student (ONNX)"], captions), path)


def _summarize(
    place: Path,
    store: Store,
    recipe: TrainRecipe,
    teacher: Teacher,
    summary: Summary,
    panel: Path,
    seconds: dict[str, float],
    remarks: list[str],
) -> DemoSummary:
    student, _ = load_student(place / "run")
    before, _ = load_student(bundled.STUDENT)
    holdout = load_holdout(store, split_store(store, recipe.feed), recipe.size_px)
    teacher_ms, student_ms = _time_both(
        teacher, DepthPredictor.open(place / "bundle"), store.contract.recipe["size_px"]
    )
    return DemoSummary(
        panel=panel,
        teacher=teacher.identity.name,
        teacher_ms=teacher_ms,
        student_ms=student_ms,
        teacher_parameters=teacher.parameters,
        student_parameters=sum(p.numel() for p in student.parameters()),
        bytes_per_photo=sum(store.bytes_on_disk().values()) / store.contract.samples,
        seconds=seconds,
        student=summary.student,
        start=holdout.measure(before, torch.device("cpu")),
        mean_map=summary.mean_map,
        remarks=remarks,
    )


def _time_both(teacher: Teacher, student: DepthPredictor, side_px: int) -> tuple[float, float]:
    """Median milliseconds of one photo through each, turn by turn after a warm-up, at the sizes they were used at."""
    view = np.full((side_px, side_px, 3), 128, np.uint8)
    image = torch.from_numpy(images.to_tensor_layout(view))[None]
    times = [
        (_milliseconds(lambda: teacher(image)), _milliseconds(lambda: student.predict(view)))
        for _ in range(TIMED_RUNS + 1)
    ]
    return statistics.median(pair[0] for pair in times[1:]), statistics.median(pair[1] for pair in times[1:])


def _milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000
