"""Time students, the seed's graph and the teacher by onnxruntime in one run, in turns, so that their ratios hold."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import onnxruntime
import torch
from msgspec import Meta
from torch import Tensor, nn

from delta import bundle, bundled
from delta.checkpoint import is_student, load_student
from delta.config import Config
from delta.errors import DeltaError
from delta.export import export_graph, export_onnx
from delta.onnx_cost import graph_cost
from delta.onnx_model import read_model_card
from delta.quantize import in_precision, save
from delta.student import Student, StudentConfig, build_student
from delta.teacher import Teacher, load_teacher, teacher_name
from delta_pipelines.sample_photos import sample_photos, to_pixels

CALIBRATION_PHOTOS = 4  # ranges do not change how long a graph takes
MEMORY_PROBE = """
import sys
import numpy, onnxruntime

def peak():  # getrusage would count what the process was forked from
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

options = onnxruntime.SessionOptions()
options.log_severity_level, options.intra_op_num_threads = 4, 1
before = peak()
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
image = session.get_inputs()[0]
session.run(None, {image.name: numpy.zeros([d if isinstance(d, int) else 1 for d in image.shape], numpy.float32)})
print(peak() - before)
"""


class Preset(Config, frozen=True, kw_only=True):
    """A student by name: its shape and its side."""

    name: str
    size_px: Annotated[int, Meta(ge=64, multiple_of=64)]
    config: StudentConfig


class Goal(Config, frozen=True, kw_only=True):
    """The largest share of the seed's and the teacher's time that a student may take."""

    name: str
    to_seed: float
    to_teacher: float


class LatencyRecipe(Config, frozen=True, kw_only=True):
    """What is timed and how often; recipes/latency.toml explains each key."""

    seed_px: Annotated[int, Meta(ge=64, multiple_of=64)]
    teacher_px: Annotated[int, Meta(ge=0)]
    precisions: tuple[str, ...]
    warmup: Annotated[int, Meta(ge=0)]
    rounds: Annotated[int, Meta(ge=1)]
    students: tuple[Preset, ...]
    goals: tuple[Goal, ...]


class Latency(Config, frozen=True, kw_only=True):
    """One model's row: milliseconds of one thread and of all, ratios of the one-thread medians."""

    name: str
    ms: float
    p95_ms: float
    all_threads_ms: float
    all_threads_p95_ms: float
    ratio_to_seed: float | None
    ratio_to_teacher: float | None
    gmac: float
    parameters: int
    file_bytes: int
    peak_memory_bytes: int  # above a process that has only loaded onnxruntime; 0 where it cannot be told


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A graph to time."""

    name: str
    path: Path
    parameters: int = 0  # 0: what its graph multiplies with


def measure_latency(
    recipe: LatencyRecipe,
    models: Sequence[Path],
    teacher: str | None = None,
    on_step: Callable[[str], None] = lambda text: None,
) -> tuple[list[Latency], list[str]]:
    """Time the recipe's students, `models` (ONNX files, bundles, runs), the seed and the teacher.

    Returns:
        A row a model, and remarks: which goals are met, and what could not be timed.

    Raises:
        DeltaError: a model that is not Delta's.
    """
    remarks: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        contenders = list(_contenders(recipe, models, teacher, Path(folder), remarks, on_step))
        on_step(f"timing {len(contenders)} models, {recipe.warmup} + {recipe.rounds} rounds")
        times = {threads: _take_turns(contenders, recipe, threads) for threads in (1, os.cpu_count() or 1)}
        rows = [_row(contender, times) for contender in contenders]
    return rows, [*remarks, *_judge(recipe.goals, rows)]


def _contenders(
    recipe: LatencyRecipe,
    models: Sequence[Path],
    teacher: str | None,
    folder: Path,
    remarks: list[str],
    on_step: Callable[[str], None],
) -> Iterator[Contender]:
    for path in models:
        yield from _given(path, recipe.precisions, folder)
    for preset in recipe.students:
        on_step(f"export {preset.name}")
        student = untrained(preset.config)
        yield from _in_precisions(student, preset.name, (preset.size_px, preset.size_px), recipe.precisions, folder)
    on_step("export the seed")
    seed = untrained(StudentConfig(encoder="mobilevit_xs", decoder="seed"))
    path = export_onnx(seed, folder / "seed.onnx", (recipe.seed_px, recipe.seed_px), {}, mobile=False)
    yield Contender(name="seed", path=path, parameters=_count(seed))
    if recipe.teacher_px:
        on_step("export the teacher")
        try:
            yield _teacher(teacher_name(teacher), recipe.teacher_px, folder)
        except DeltaError as error:
            remarks.append(f"the teacher was not timed: {error}")


def _given(path: Path, precisions: Sequence[str], folder: Path) -> Iterator[Contender]:
    if is_student(path):
        student, card = load_student(path)
        yield from _in_precisions(student, path.stem, (card.size_px, card.size_px), precisions, folder)
        return
    files = [path / model.file for model in bundle.read_bundle_card(path).models] if path.is_dir() else [path]
    for file in files:
        read_model_card(file)
        yield Contender(name=f"{path.name}/{file.name}" if path.is_dir() else file.name, path=file)


def _in_precisions(
    student: Student, name: str, size_px: tuple[int, int], precisions: Sequence[str], folder: Path
) -> Iterator[Contender]:
    fp32 = onnx.load_model(export_onnx(student, folder / f"{name}_fp32.onnx", size_px, {}))
    for precision in precisions:
        path = save(
            in_precision(
                fp32,
                precision,
                lambda: to_pixels(sample_photos(bundled.PHOTOS, CALIBRATION_PHOTOS).images, size_px),
                search=1,
                max_change=1,
            ),
            folder / f"{name}_{precision}.onnx",
        )
        yield Contender(name=f"{name} {precision}", path=path, parameters=_count(student))


def untrained(config: StudentConfig) -> Student:
    """Build a student with the same random weights every time: time does not know what a weight means."""
    torch.manual_seed(0)
    return build_student(config).eval()


class _TeacherGraph(nn.Module):
    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self._teacher = teacher

    def forward(self, image: Tensor) -> Tensor:
        return self._teacher(image).disparity


def _teacher(name: str, side_px: int, folder: Path) -> Contender:
    teacher = load_teacher(name)
    path = save(export_graph(_TeacherGraph(teacher).eval(), (side_px, side_px)), folder / "teacher.onnx")
    return Contender(name="teacher", path=path, parameters=teacher.parameters)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _take_turns(contenders: list[Contender], recipe: LatencyRecipe, threads: int) -> dict[str, list[float]]:
    """Milliseconds of every round; each round runs every model once, so that a busy minute slows them all."""
    sessions = {contender.name: _session(contender.path, threads) for contender in contenders}
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(recipe.warmup + recipe.rounds):
        for name, (session, feed) in sessions.items():
            start = time.perf_counter()
            session.run(None, feed)
            taken[name].append(1000 * (time.perf_counter() - start))
    return {name: values[recipe.warmup :] for name, values in taken.items()}


def _session(path: Path, threads: int) -> tuple[onnxruntime.InferenceSession, dict[str, np.ndarray]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, threads
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # idle models must not disturb the one timed
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    image = session.get_inputs()[0]
    shape = [dim if isinstance(dim, int) else 1 for dim in image.shape]
    return session, {image.name: np.random.default_rng(0).random(shape, dtype=np.float32)}


def _row(contender: Contender, times: dict[int, dict[str, list[float]]]) -> Latency:
    one, every = times[1], times[max(times)]
    cost = graph_cost(onnx.load_model(contender.path))
    own = one[contender.name]

    def ratio(other: str) -> float | None:
        return float(np.median(own) / np.median(one[other])) if other in one else None

    return Latency(
        name=contender.name,
        ms=float(np.median(own)),
        p95_ms=float(np.percentile(own, 95)),
        all_threads_ms=float(np.median(every[contender.name])),
        all_threads_p95_ms=float(np.percentile(every[contender.name], 95)),
        ratio_to_seed=ratio("seed"),
        ratio_to_teacher=ratio("teacher"),
        gmac=cost.macs / 1e9,
        parameters=contender.parameters or cost.parameters,
        file_bytes=contender.path.stat().st_size,
        peak_memory_bytes=_peak_memory(contender.path),
    )


def _peak_memory(path: Path) -> int:
    """Load and run a model in a process of its own; only Linux tells a peak that is the process's alone."""
    done = subprocess.run([sys.executable, "-c", MEMORY_PROBE, str(path)], capture_output=True, text=True, check=False)
    return int(done.stdout) * 1024 if done.returncode == 0 else 0


def _judge(goals: Sequence[Goal], rows: Sequence[Latency]) -> Iterator[str]:
    for goal in goals:
        for row in (row for row in rows if row.name == f"{goal.name} fp32"):
            for other, ratio, limit in (
                ("seed", row.ratio_to_seed, goal.to_seed),
                ("teacher", row.ratio_to_teacher, goal.to_teacher),
            ):
                if ratio is not None:
                    verdict = "met" if ratio <= limit else "MISSED"
                    yield f"goal {verdict}: {row.name} takes {ratio:.3f} of the {other}'s time, at most {limit:g}"
