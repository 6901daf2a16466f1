"""DIODE as it is downloaded (Vasiljevic et al., 2019): NAME.png, NAME_depth.npy and NAME_depth_mask.npy."""

from pathlib import Path

import numpy as np

from delta.depth_protocol import DIODE
from delta.errors import DeltaError
from delta.images import read_photo
from delta_pipelines.benchmark import Benchmark, Case, depth_benchmark, read_depth, read_npy
from delta_pipelines.evaluate_recipe import EvaluateRecipe

DEPTH, MASK = "_depth.npy", "_depth_mask.npy"
LOOKED_FOR = f"NAME.png with NAME{DEPTH} and NAME{MASK}, in folders below"


def is_diode(path: Path) -> bool:
    """Whether there is a depth map with its mask."""
    return path.is_dir() and next(path.rglob(f"*{MASK}"), None) is not None


def open_diode(path: Path, recipe: EvaluateRecipe) -> Benchmark:
    """Open every image below; `dataset` = indoors or outdoors takes those alone.

    Raises:
        DeltaError: no image, or one without its photo or mask.
    """
    files = [file for file in sorted(path.rglob(f"*{DEPTH}")) if recipe.dataset in ("", *file.relative_to(path).parts)]
    if not files:
        part = f" in {recipe.dataset}" if recipe.dataset else ""
        raise DeltaError(f"{path} holds no DIODE image{part}", f"looked for {LOOKED_FOR}")
    trios = [(file, _beside(file, ".png"), _beside(file, MASK)) for file in files]
    missing = [str(other) for trio in trios for other in trio if not other.is_file()]
    if missing:
        raise DeltaError(f"{path} lacks {len(missing)} files: {', '.join(missing[:3])}", "unpack the whole archive")
    levels = recipe.levels_per_m or 1.0
    cases = [_case(path, *trio, levels) for trio in trios]
    return depth_benchmark(DIODE, path, cases, recipe, levels_per_m=levels)


def _beside(depth: Path, ending: str) -> Path:
    return depth.with_name(depth.name.removesuffix(DEPTH) + ending)


def _case(root: Path, depth: Path, photo: Path, mask: Path, levels_per_m: float) -> Case:
    def target() -> np.ndarray:
        depth_m, valid = read_depth(depth, levels_per_m), read_npy(mask)
        if depth_m.shape != valid.shape:
            raise DeltaError(f"{mask} is {valid.shape}, its depth {depth_m.shape}", "download it again")
        return np.where(valid > 0, depth_m, np.float32(0))

    name = photo.relative_to(root).with_suffix("").as_posix()
    return Case(name=name, photo=lambda: read_photo(photo), target=target)
