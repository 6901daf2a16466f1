"""Which benchmark is in a folder? Told by its layout, or by the recipe."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from delta.errors import DeltaError
from delta_pipelines import data_pairs
from delta_pipelines.benchmark import Benchmark
from delta_pipelines.evaluate_recipe import EvaluateRecipe


class Layout(NamedTuple):
    """A benchmark's layout: how it is recognized, opened, and what is said where it is not there."""

    protocol: str
    recognize: Callable[[Path], bool]
    open: Callable[[Path, EvaluateRecipe], Benchmark]
    looked_for: str


def open_benchmark(path: Path, recipe: EvaluateRecipe, teacher: str | None, device: torch.device) -> Benchmark:
    """Open the benchmark at `path`.

    Raises:
        DeltaError: nothing there, a layout that is not known or not the named one, or a damaged benchmark.
    """
    if not path.exists():
        raise DeltaError(f"there is no data at {path}", "name a folder with a benchmark, or one of photos")
    return data_pairs.open_index(path, recipe)
