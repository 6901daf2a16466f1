"""NYUv2 as its authors publish it: nyu_depth_v2_labeled.mat (HDF5) and splits.mat beside it."""

from pathlib import Path
from typing import Any

import numpy as np

from delta.depth_protocol import NYU
from delta.errors import DeltaError
from delta_pipelines.benchmark import Benchmark, Case, depth_benchmark
from delta_pipelines.evaluate_recipe import EvaluateRecipe

LABELED, SPLITS, TEST = "nyu_depth_v2_labeled.mat", "splits.mat", "testNdxs"
FIELD = "depths"  # in-painted; `rawDepths` are Kinect's own, with holes
LOOKED_FOR = f"{LABELED} and {SPLITS}"
INSTALL = "pip install 'delta-depth[evaluate]'"
HDF5_SIGNATURE, HDF5_AT = b"\x89HDF\r\n\x1a\n", 512  # MATLAB writes a header of its own before it


def is_labeled(path: Path) -> bool:
    """Whether `path` is the labeled .mat file, or a folder that holds it."""
    return _labeled(path).is_file()


def open_labeled(path: Path, recipe: EvaluateRecipe) -> Benchmark:
    """Open the test images of the labeled file: the in-painted depth, or with dataset=rawDepths Kinect's own.

    Raises:
        DeltaError: h5py or scipy is not installed, a file is missing or damaged.
    """
    file, field = _labeled(path), recipe.dataset or FIELD
    numbers = _test_numbers(file, recipe)
    h5py = _import("h5py")
    try:
        with h5py.File(file, "r") as content:
            known = [name for name in ("depths", "rawDepths") if name in content]
            if field not in known or "images" not in content:
                raise DeltaError(
                    f"{file} has no {field}", f"it has {', '.join(known) or 'no depth'}: download it again"
                )
            count = len(content["images"])
    except OSError as error:
        raise DeltaError(f"{file} is damaged: {error}", "download it again") from None
    if not numbers:
        numbers = list(range(1, count + 1))
    if max(numbers) > count:
        raise DeltaError(f"{SPLITS} names image {max(numbers)}, {file} has {count}", "download both again")
    cases = [_case(file, field, number, recipe.levels_per_m or 1.0) for number in numbers]
    notes = (f"field {field}", *(["all images, not the test split"] if recipe.split == "all" else []))
    return depth_benchmark(NYU, path, cases, recipe, notes=notes)


def _labeled(path: Path) -> Path:
    return path / LABELED if path.is_dir() else path if path.name == LABELED else path / "none"


def _case(file: Path, field: str, number: int, levels_per_m: float) -> Case:
    """MATLAB stores columns first: images are (n, 3, width, height), depths (n, width, height) in metres."""
    return Case(
        name=f"{number:04d}",
        photo=lambda: np.ascontiguousarray(_read(file, "images", number).transpose(2, 1, 0), dtype=np.uint8),
        target=lambda: np.ascontiguousarray(_read(file, field, number).T, dtype=np.float32) / np.float32(levels_per_m),
    )


def _read(file: Path, field: str, number: int) -> np.ndarray:
    with _import("h5py").File(file, "r") as content:
        return np.asarray(content[field][number - 1])


def _test_numbers(file: Path, recipe: EvaluateRecipe) -> list[int]:
    """Numbers of the test images, from 1; nothing for all."""
    if recipe.split == "all":
        return []
    splits = Path(recipe.split) if recipe.split else file.with_name(SPLITS)
    if not splits.is_file():
        raise DeltaError(
            f"there is no {splits}, which tells the 654 test images of {file.name}",
            "put it beside that file, or name it by --set split=FILE; --set split=all takes every image",
        )
    try:
        return [int(number) for number in _read_variable(splits, TEST).ravel()]
    except DeltaError:
        raise
    except Exception as error:  # scipy's and h5py's share no narrower base
        raise DeltaError(f"{splits} tells no {TEST}: {error}", "download it again") from None


def _read_variable(path: Path, name: str) -> np.ndarray:
    """Read a variable of a .mat file: HDF5 since MATLAB 7.3, MATLAB's own format before."""
    with path.open("rb") as file:
        start = file.read(HDF5_AT + len(HDF5_SIGNATURE))
    if HDF5_SIGNATURE in (start[: len(HDF5_SIGNATURE)], start[HDF5_AT:]):
        with _import("h5py").File(path, "r") as content:
            return np.asarray(content[name])
    return np.asarray(_import("scipy.io").loadmat(path, variable_names=[name])[name])


def _import(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        raise DeltaError(f"reading .mat files needs {name.split('.')[0]}, which is not installed", INSTALL) from None
