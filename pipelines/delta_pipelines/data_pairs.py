"""Folders of RGB and depth files: as Delta's own index lists them, in two folders, or side by side."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from delta.depth_protocol import DIODE, KITTI, NYU, PAIRS, DepthProtocol
from delta.errors import DeltaError
from delta.images import SUFFIXES
from delta_pipelines.benchmark import Benchmark, depth_benchmark, file_case, stems
from delta_pipelines.evaluate_recipe import EvaluateRecipe

INDEX = "index.json"
PHOTO_FOLDERS, DEPTH_FOLDERS = ("rgb", "images", "image", "photos", "color"), ("depth", "depths", "depth_gt", "gt")
DEPTH_SUFFIXES = (".png", ".npy")
INDEX_LOOKED_FOR = f"{INDEX} with datasets and entries"
LOOKED_FOR = (
    "rgb/ and depth/ with files of the same names; rgb_*.jpg beside sync_depth_*.png; NAME.jpg beside NAME_depth.png"
)
PROTOCOLS = {each.name: each for each in (NYU, KITTI, DIODE, PAIRS)}
SHOWN = 3  # names of files in a complaint

Pair = tuple[str, Path, Path]


class Entry(msgspec.Struct, frozen=True):
    """One pair of an index; other fields are not read."""

    id: str
    dataset: str
    rgb: str
    depth: str


class Index(msgspec.Struct, frozen=True):
    """A folder's index.json: what its datasets are, and their pairs. Depth is 16-bit PNG in millimetres."""

    datasets: dict[str, dict[str, Any]]
    entries: list[Entry]
    primary: str = ""


def is_index(path: Path) -> bool:
    """Whether a folder's index.json lists pairs."""
    try:
        content = msgspec.json.decode((path / INDEX).read_bytes())
    except (OSError, msgspec.DecodeError):
        return False
    return isinstance(content, dict) and {"datasets", "entries"} <= content.keys()


def open_index(path: Path, recipe: EvaluateRecipe) -> Benchmark:
    """Open one dataset of an index; its protocol is told by its name.

    Raises:
        DeltaError: no such dataset, a damaged index, or files that it lists and that are not there.
    """
    try:
        index = msgspec.json.decode((path / INDEX).read_bytes(), type=Index)
    except msgspec.MsgspecError as error:
        raise DeltaError(f"{path / INDEX} is damaged: {error}", "download the folder again") from None
    name = recipe.dataset or index.primary or next(iter(index.datasets), "")
    if name not in index.datasets:
        raise DeltaError(f"{path / INDEX} has no dataset {name!r}", f"it has {', '.join(index.datasets)}")
    protocol = _protocol_named(name, index.datasets[name], recipe)
    entries = [entry for entry in index.entries if entry.dataset == name]
    pairs = [(entry.id, path / entry.rgb, path / entry.depth) for entry in entries]
    _require_files(path, (file for pair in pairs for file in pair[1:]))
    levels = recipe.levels_per_m or 1000.0
    cases = [file_case(*pair, levels) for pair in pairs]
    return depth_benchmark(protocol, path, cases, recipe, levels_per_m=levels, notes=(f"dataset {name}",))


def has_pairs(path: Path) -> bool:
    """Whether there are photos and depth maps in one of the layouts, complete or not."""
    return path.is_dir() and _layout(path) is not None


def open_pairs(path: Path, recipe: EvaluateRecipe) -> Benchmark:
    """Open a folder of pairs; 16-bit PNGs are millimetres, .npy files metres. A named protocol gives crop and range.

    Raises:
        DeltaError: a photo without depth, or depth without a photo.
    """
    photos, depths = _layout(path) or ({}, {})
    pairs = _matched(path, photos, depths)
    levels = recipe.levels_per_m or (1.0 if pairs[0][2].suffix == ".npy" else 1000.0)
    cases = [file_case(*pair, levels) for pair in pairs]
    return depth_benchmark(PROTOCOLS.get(recipe.protocol, PAIRS), path, cases, recipe, levels_per_m=levels)


def _protocol_named(name: str, about: dict[str, Any], recipe: EvaluateRecipe) -> DepthProtocol:
    if recipe.protocol in PROTOCOLS:
        return PROTOCOLS[recipe.protocol]
    for key in (NYU.name, KITTI.name, DIODE.name):
        if key in name.lower():
            return PROTOCOLS[key]
    farthest = about.get("max_depth_m")
    return msgspec.structs.replace(PAIRS, farthest_m=float(farthest)) if farthest else PAIRS


def _layout(path: Path) -> tuple[dict[str, Path], dict[str, Path]] | None:
    """Photos and depth maps by a name that they share, in the first layout that has both."""
    found = (layout(path) for layout in (_two_folders, _prefixed, _suffixed))
    return next(((photos, depths) for photos, depths in found if photos and depths), None)


def _two_folders(path: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    folders = [next((path / n for n in names if (path / n).is_dir()), None) for names in (PHOTO_FOLDERS, DEPTH_FOLDERS)]
    photos, depths = folders
    return (stems(photos, SUFFIXES), stems(depths, DEPTH_SUFFIXES)) if photos and depths else ({}, {})


def _prefixed(path: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    return _by_name(path, lambda n: n.removeprefix("rgb_") if n.startswith("rgb_") else None, "sync_depth_", "")


def _suffixed(path: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    return _by_name(path, lambda name: None if name.endswith("_depth") else name, "", "_depth")


def _by_name(
    path: Path, photo_key: Callable[[str], str | None], prefix: str, suffix: str
) -> tuple[dict[str, Path], dict[str, Path]]:
    photos: dict[str, Path] = {}
    depths: dict[str, Path] = {}
    for file in sorted(path.rglob("*")):
        kind, name = file.suffix.lower(), file.stem
        folder = file.parent.relative_to(path)
        if kind in DEPTH_SUFFIXES and name.startswith(prefix) and name.endswith(suffix) and prefix + suffix:
            depths[(folder / name.removeprefix(prefix).removesuffix(suffix)).as_posix()] = file
        elif kind in SUFFIXES and (key := photo_key(name)) is not None:
            photos[(folder / key).as_posix()] = file
    return photos, depths


def _matched(path: Path, photos: dict[str, Path], depths: dict[str, Path]) -> list[Pair]:
    for what, have, lack in (("photo", photos, depths), ("depth map", depths, photos)):
        alone = sorted(have.keys() - lack.keys())
        if alone:
            other = "no depth" if what == "photo" else "no photo"
            first = ", ".join(str(have[name]) for name in alone[:SHOWN]) + (", …" if len(alone) > SHOWN else "")
            raise DeltaError(
                f"{len(alone)} of {len(have)} {what}s in {path} have {other} of the same name: {first}",
                "add what is missing, or move them out of the folder",
            )
    return [(name, photos[name], depths[name]) for name in sorted(photos)]


def _require_files(path: Path, files: Iterable[Path]) -> None:
    listed = list(files)
    missing = [file for file in listed if not file.is_file()]
    if missing:
        first = ", ".join(str(file) for file in missing[:SHOWN]) + (", …" if len(missing) > SHOWN else "")
        raise DeltaError(f"{len(missing)} of {len(listed)} files of {path} are missing: {first}", "download it again")
