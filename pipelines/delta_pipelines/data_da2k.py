"""DA-2K: which of two points is nearer (Yang et al., "Depth Anything V2", 2024); annotations.json beside images/."""

from pathlib import Path

import msgspec
import numpy as np

from delta.errors import DeltaError
from delta.images import read_photo
from delta_pipelines.benchmark import Benchmark, Case, Scores, take
from delta_pipelines.evaluate_recipe import EvaluateRecipe
from delta_pipelines.evaluation_tiles import points_tiles

ANNOTATIONS = "annotations.json"
LOOKED_FOR = f"{ANNOTATIONS}, which maps an image to pairs of points with closer_point"
ORDER = "nothing, order alone counts"


class Pair(msgspec.Struct, frozen=True):
    """Two points as (row, column), and which is nearer to the camera: "point1" or "point2"."""

    point1: tuple[float, float]
    point2: tuple[float, float]
    closer_point: str


def is_da2k(path: Path) -> bool:
    """Whether the folder has DA-2K's annotations."""
    return (path / ANNOTATIONS).is_file()


def open_da2k(path: Path, recipe: EvaluateRecipe) -> Benchmark:
    """Open DA-2K. The accuracy is that over pairs: an image counts as many times as it has pairs.

    Raises:
        DeltaError: no annotations or damaged ones, or images that they name and that are not there.
    """
    file = path / ANNOTATIONS
    if not file.is_file():
        raise DeltaError(f"{path} is no DA-2K: it has no {ANNOTATIONS}", f"looked for {LOOKED_FOR}")
    try:
        annotations = msgspec.json.decode(file.read_bytes(), type=dict[str, list[Pair]])
    except msgspec.MsgspecError as error:
        raise DeltaError(f"{file} is damaged: {error}", "download it again") from None
    missing = [name for name in annotations if not (path / name).is_file()]
    if missing or not annotations:
        raise DeltaError(
            f"{len(missing)} of {len(annotations)} images that {file} names are missing: {', '.join(missing[:3])}",
            "unpack the whole archive",
        )
    cases = [_case(path, name, pairs) for name, pairs in sorted(annotations.items())]
    return Benchmark(
        protocol="da2k",
        title="DA-2K",
        data=str(path),
        cases=take(cases, recipe.limit),
        metrics=("accuracy",),
        rank="accuracy",
        score=score,
        unusable=_unusable,
        weight=lambda points: float(len(points)),
        tiles=_tiles,
        columns=("pairs: green is right", "predicted disparity"),
        notes=(f"{sum(map(len, annotations.values()))} pairs on {len(annotations)} images",),
    )


def score(disparity: np.ndarray, points: np.ndarray) -> Scores:
    """Share of pairs (n, 2, 2), the nearer point first, whose nearer point has the larger disparity; ties are wrong."""
    return {ORDER: {"accuracy": float(_is_right(disparity, points).mean())}}


def _is_right(disparity: np.ndarray, points: np.ndarray) -> np.ndarray:
    near, far = (disparity[points[:, end, 0], points[:, end, 1]] for end in (0, 1))
    return near > far


def _case(path: Path, name: str, pairs: list[Pair]) -> Case:
    return Case(
        name=Path(name).as_posix(),
        photo=lambda: read_photo(path / name),
        target=lambda: _points(name, pairs),
    )


def _points(name: str, pairs: list[Pair]) -> np.ndarray:
    """Rows and columns int (n, 2, 2), the nearer point of each pair first."""
    ordered = []
    for pair in pairs:
        if pair.closer_point not in ("point1", "point2"):
            raise DeltaError(f"{name} says closer_point {pair.closer_point!r}", "it is point1 or point2")
        ends = (pair.point1, pair.point2)
        ordered.append(ends if pair.closer_point == "point1" else ends[::-1])
    return np.array(ordered, dtype=np.float64).reshape(-1, 2, 2).astype(np.intp)


def _unusable(name: str, photo: np.ndarray, points: np.ndarray) -> str:
    height, width = photo.shape[:2]
    if (points < 0).any() or (points >= (height, width)).any():
        raise DeltaError(f"{name} has a point outside its {width}x{height} px", "points are (row, column)")
    return "" if len(points) else "it has no pair of points"


def _tiles(photo: np.ndarray, disparity: np.ndarray, points: np.ndarray) -> list[np.ndarray]:
    right = _is_right(disparity, points)
    pairs = [
        ((int(near[0]), int(near[1])), (int(far[0]), int(far[1])), bool(ok))
        for (near, far), ok in zip(points, right, strict=True)
    ]
    return points_tiles(photo, disparity, pairs)
