"""Which benchmark is in a folder? Told by its layout, or by the recipe."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from delta.errors import DeltaError
from delta_pipelines import data_da2k, data_diode, data_fidelity, data_kitti, data_nyu, data_pairs
from delta_pipelines.benchmark import Benchmark, holds_photos
from delta_pipelines.evaluate_recipe import EvaluateRecipe


class Layout(NamedTuple):
    """How a benchmark lies on a disk: the protocols it serves, how it is recognized and opened."""

    protocols: tuple[str, ...]
    is_there: Callable[[Path], bool]
    open: Callable[[Path, EvaluateRecipe], Benchmark]
    looked_for: str


# The first that is there is taken, so the more special stand before the more general.
LAYOUTS = (
    Layout(("nyu", "kitti", "diode", "pairs"), data_pairs.is_index, data_pairs.open_index, data_pairs.INDEX_LOOKED_FOR),
    Layout(("nyu",), data_nyu.is_labeled, data_nyu.open_labeled, data_nyu.LOOKED_FOR),
    Layout(("kitti",), data_kitti.is_kitti, data_kitti.open_kitti, data_kitti.LOOKED_FOR),
    Layout(("da2k",), data_da2k.is_da2k, data_da2k.open_da2k, data_da2k.LOOKED_FOR),
    Layout(("diode",), data_diode.is_diode, data_diode.open_diode, data_diode.LOOKED_FOR),
    Layout(("fidelity",), data_fidelity.is_store, data_fidelity.open_store, "a cache of Delta's"),
    Layout(("pairs", "nyu", "kitti"), data_pairs.has_pairs, data_pairs.open_pairs, data_pairs.LOOKED_FOR),
)


def open_benchmark(path: Path, recipe: EvaluateRecipe, teacher: str | None, device: torch.device) -> Benchmark:
    """Open the benchmark at `path`; photos without any measured depth are compared with `teacher`.

    Raises:
        DeltaError: nothing there, no layout that is known or of the named protocol, or a damaged benchmark.
        CacheError: a cache that is incomplete or damaged.
    """
    if not path.exists():
        raise DeltaError(f"there is no data at {path}", "name a folder with a benchmark, or one of photos")
    wanted = recipe.protocol
    fitting = [layout for layout in LAYOUTS if wanted in ("auto", *layout.protocols)]
    for layout in fitting:
        if layout.is_there(path):
            return layout.open(path, recipe)
    asked = wanted == "fidelity" or (wanted == "auto" and bool(teacher or os.environ.get("DELTA_TEACHER")))
    if asked and holds_photos(path):
        return data_fidelity.open_live(path, recipe, teacher, device)
    looked_for = [layout.looked_for for layout in fitting]
    if wanted in ("auto", "fidelity"):
        looked_for.append("photos, to compare with a --teacher")
    what = "benchmark that Delta knows" if wanted == "auto" else f"{wanted} benchmark"
    raise DeltaError(f"{path} holds no {what}", f"looked for {'; '.join(looked_for)}")
