"""A benchmark under evaluation: its images, what each is scored against, and how. The data_*.py modules make them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np

from delta.depth_protocol import DepthProtocol
from delta.errors import DeltaError
from delta.images import find_photos, read_photo
from delta.truth import Alignment, read_depth_png
from delta_pipelines.evaluate_recipe import EvaluateRecipe
from delta_pipelines.evaluation_tiles import depth_tiles
from delta_pipelines.sample_photos import spread

UNIT_SAMPLE = 8  # depth maps whose medians tell the unit
UNITS = {"metres": 1, "centimetres": 100, "1/256 m": 256, "millimetres": 1000, "1/5000 m": 5000}

T = TypeVar("T")
Scores = dict[str, dict[str, float]]  # alignment -> metric -> value


class Metric(NamedTuple):
    """How a metric is written, and which way is better."""

    label: str
    better: str  # "lower" or "higher"
    digits: int = 4


METRICS = {
    "abs_rel": Metric("AbsRel", "lower"),
    "sq_rel": Metric("SqRel", "lower"),
    "rmse": Metric("RMSE", "lower"),
    "rmse_log": Metric("RMSElog", "lower"),
    "log10": Metric("log10", "lower"),
    "silog": Metric("SILog", "lower", 2),
    "delta1": Metric("delta1", "higher"),
    "delta2": Metric("delta2", "higher"),
    "delta3": Metric("delta3", "higher"),
    "boundary_f1": Metric("boundary F1", "higher", 3),
    "pearson_r": Metric("Pearson r", "higher"),
    "accuracy": Metric("accuracy", "higher"),
}
DEPTH_METRICS = (*list(METRICS)[:9], "boundary_f1")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One image, read when it is its turn: the photo u8 (h, w, 3), and what it is scored against."""

    name: str
    photo: Callable[[], np.ndarray]
    target: Callable[[], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Images and how they are scored.

    `score` takes a disparity of the photo's size and the target; `unusable` says why an image, by its name, photo and
    target, cannot be scored, or ""; it raises where photo and target do not belong together.
    `weight` is what an image counts in the mean. `tiles` draws, under `columns`, a photo, what is right and what a
    model says; `rank` is the metric that orders the images from best to worst.
    """

    protocol: str
    title: str
    data: str
    cases: Sequence[Case]
    metrics: tuple[str, ...]
    rank: str
    score: Callable[[np.ndarray, np.ndarray], Scores]
    unusable: Callable[[str, np.ndarray, np.ndarray], str]
    tiles: Callable[[np.ndarray, np.ndarray, np.ndarray], list[np.ndarray]]
    columns: tuple[str, ...]
    weight: Callable[[np.ndarray], float] = lambda target: 1.0
    notes: tuple[str, ...] = ()


def take(items: Sequence[T], limit: int) -> list[T]:
    """Take up to `limit` items, spread evenly; all for 0."""
    return spread(list(items), limit)[:limit] if limit else list(items)


def depth_benchmark(
    protocol: DepthProtocol,
    data: Path,
    cases: Sequence[Case],
    recipe: EvaluateRecipe,
    *,
    levels_per_m: float = 1.0,
    notes: tuple[str, ...] = (),
) -> Benchmark:
    """Score against measured depth: `target` of each case is metres, 0 where there is none.

    Args:
        levels_per_m: what the files count in, to say it where the unit is wrong.

    Raises:
        DeltaError: no cases, or depth that is in another unit.
    """
    if not cases:
        raise DeltaError(f"{data} holds no image for {protocol.title}", "name a folder that does")
    protocol = _with_range(protocol, recipe)
    taken = take(cases, recipe.limit)
    if not recipe.levels_per_m:
        _require_unit(protocol, taken, levels_per_m)

    def score(disparity: np.ndarray, depth_m: np.ndarray) -> Scores:
        return {each: protocol.score(disparity, depth_m, each) for each in recipe.alignments}

    def unusable(name: str, photo: np.ndarray, depth_m: np.ndarray) -> str:
        _require_same_size(name, photo, depth_m)
        enough = np.count_nonzero(protocol.counted(depth_m)) >= 2
        return "" if enough else f"no depth between {protocol.nearest_m:g} and {protocol.farthest_m:g} m is measured"

    first: Alignment = recipe.alignments[0]
    return Benchmark(
        protocol=protocol.name,
        title=protocol.title,
        data=str(data),
        cases=taken,
        metrics=DEPTH_METRICS,
        rank="abs_rel",
        score=score,
        unusable=unusable,
        tiles=lambda photo, disparity, depth_m: depth_tiles(
            photo, protocol.depth(disparity, depth_m, first), depth_m, protocol.counted(depth_m)
        ),
        columns=("photo", "measured depth", "predicted, aligned", "error |z - gt| / gt, brightest from 0.5"),
        notes=notes,
    )


def file_case(name: str, photo: Path, depth: Path, levels_per_m: float) -> Case:
    """A case of a photo's file and a 16-bit PNG or .npy of depth."""
    return Case(name=name, photo=lambda: read_photo(photo), target=lambda: read_depth(depth, levels_per_m))


def read_depth(path: Path, levels_per_m: float) -> np.ndarray:
    """Read depth as metres, float32 (h, w), 0 where there is none.

    Raises:
        DeltaError: missing, damaged, or no map.
    """
    if path.suffix != ".npy":
        return read_depth_png(path, levels_per_m)
    values = read_npy(path) / np.float32(levels_per_m)
    return np.where(np.isfinite(values), values, np.float32(0))


def read_npy(path: Path) -> np.ndarray:
    """Read a map of numbers as float32 (h, w); one channel is dropped.

    Raises:
        DeltaError: missing, damaged, or no map.
    """
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DeltaError(f"{path} cannot be read: {str(error).splitlines()[0]}", "download it again") from None
    values = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
    if values.ndim != 2 or values.dtype.kind not in "fiub":
        raise DeltaError(f"{path} is no depth map: {values.dtype} {values.shape}", "a map has two sides")
    return values.astype(np.float32)


def stems(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files below a folder by their relative name without the suffix."""
    found = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in suffixes and path.is_file())
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in found}


def holds_photos(folder: Path) -> bool:
    """Whether there is a photo in a folder or below."""
    try:
        return bool(find_photos(folder))
    except DeltaError:
        return False


def _with_range(protocol: DepthProtocol, recipe: EvaluateRecipe) -> DepthProtocol:
    nearest, farthest = recipe.nearest_m or protocol.nearest_m, recipe.farthest_m or protocol.farthest_m
    if nearest >= farthest:
        raise DeltaError(f"nothing is between {nearest:g} and {farthest:g} m", "mend nearest_m or farthest_m")
    return msgspec.structs.replace(protocol, nearest_m=nearest, farthest_m=farthest)


def _require_same_size(name: str, photo: np.ndarray, depth_m: np.ndarray) -> None:
    if depth_m.shape != photo.shape[:2]:
        (height, width), (photo_height, photo_width) = depth_m.shape, photo.shape[:2]
        raise DeltaError(
            f"{name}: the photo is {photo_width}x{photo_height} px, its depth {width}x{height}",
            "depth has to be registered to the photo, pixel by pixel",
        )


def _require_unit(protocol: DepthProtocol, cases: Sequence[Case], levels_per_m: float) -> None:
    """Refuse depth whose median no such benchmark has, and say which unit would make sense of it."""
    maps = [case.target() for case in take(cases, UNIT_SAMPLE)]
    medians = [float(np.median(depth[depth > 0])) for depth in maps if (depth > 0).any()]
    if not medians:
        return
    median_m, (low, high) = float(np.median(medians)), protocol.typical_m
    if low <= median_m <= high:
        return
    level = median_m * levels_per_m
    fitting = {name: per_m for name, per_m in UNITS.items() if low <= level / per_m <= high}
    expected = {per_m: name for name, per_m in UNITS.items()}.get(round(levels_per_m), f"1/{levels_per_m:g} m")
    if not fitting:
        raise DeltaError(
            f"median depth {level:.3g}, expected {expected}: in no unit is that a {protocol.title} scene",
            f"their medians are {low:g} to {high:g} m; if it is right, say so by --set levels_per_m={levels_per_m:g}",
        )
    raise DeltaError(
        f"median depth {level:.3g} looks like {' or '.join(fitting)}, expected {expected}",
        f"if so, --set levels_per_m={next(iter(fitting.values()))}; "
        f"if it is right as it is, --set levels_per_m={levels_per_m:g}",
    )
