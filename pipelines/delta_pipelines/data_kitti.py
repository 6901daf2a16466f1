"""KITTI as it is downloaded: raw drives, data_depth_annotated, and a file that lists Eigen's test images."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from delta.depth_protocol import KITTI
from delta.errors import DeltaError
from delta_pipelines.benchmark import Benchmark, depth_benchmark, file_case
from delta_pipelines.evaluate_recipe import EvaluateRecipe

ANNOTATED, TRUTH = "data_depth_annotated", "proj_depth/groundtruth"
RAW_FOLDERS = ("", "raw", "raw_data", "kitti_raw", "kitti_raw_data", "rgb")
SPLITS = ("eigen_test_files*.txt", "*eigen*test*.txt", "test_files*.txt", "splits/eigen*/test_files.txt")
CAMERAS = {"l": "image_02", "r": "image_03", "2": "image_02", "3": "image_03"}
TEST_IMAGES = 652  # of Eigen's 697 test images, those with annotated depth
LOOKED_FOR = f"{ANNOTATED}/ with *_sync/{TRUTH}/, beside the raw drives 2011_*/*_sync/image_02/data/"


class Frame(NamedTuple):
    """An image of a drive: day and drive are folders, the camera image_02 or image_03, the number has ten digits."""

    drive: str
    camera: str
    number: str

    @property
    def name(self) -> str:
        """A name that tells the frame."""
        return f"{self.drive}/{self.camera}/{self.number}"


def is_kitti(path: Path) -> bool:
    """Whether annotated depth lies there in KITTI's folders."""
    return next(_depth_drives(path), None) is not None


def open_kitti(path: Path, recipe: EvaluateRecipe) -> Benchmark:
    """Open the listed images that have annotated depth; without a list all that have it, which a note says.

    Raises:
        DeltaError: no annotated depth, a list that is none, or a listed photo that is not there.
    """
    drives = {drive.name: drive for drive in _depth_drives(path)}
    if not drives:
        raise DeltaError(f"{path} holds no annotated KITTI depth", f"looked for {LOOKED_FOR}")
    split = _find_split(path, recipe)
    frames = list(_listed(split) if split else _annotated(drives))
    found = [(frame, _depth(drives, frame)) for frame in frames]
    annotated = [(frame, depth) for frame, depth in found if depth]
    levels = recipe.levels_per_m or KITTI.levels_per_m
    cases = [file_case(frame.name, _photo(path, frame), depth, levels) for frame, depth in annotated]
    return depth_benchmark(KITTI, path, cases, recipe, levels_per_m=levels, notes=_notes(split, frames, len(cases)))


def _notes(split: Path | None, frames: list[Frame], count: int) -> tuple[str, ...]:
    if split is None:
        return (f"no list of test images found: all {count} annotated images, not Eigen's {TEST_IMAGES}",)
    without = f"{len(frames) - count} of {len(frames)} in {split.name} have no annotated depth"
    return (without,) if count == TEST_IMAGES else (without, f"Eigen's test has {TEST_IMAGES} with it")


def _depth_drives(path: Path) -> Iterator[Path]:
    """Folders NAME_sync that hold annotated depth, in one part or in train/ and val/."""
    for root in (path / ANNOTATED, path):
        for pattern in ("*_sync", "*/*_sync"):
            yield from (drive for drive in sorted(root.glob(pattern)) if (drive / TRUTH).is_dir())


def _find_split(path: Path, recipe: EvaluateRecipe) -> Path | None:
    if recipe.split == "all":
        return None
    if recipe.split:
        if not Path(recipe.split).is_file():
            raise DeltaError(
                f"there is no list of images {recipe.split}", "name a text file; split=all takes every one"
            )
        return Path(recipe.split)
    return next((file for pattern in SPLITS for file in sorted(path.glob(pattern))), None)


def _listed(split: Path) -> Iterator[Frame]:
    """Read a list: `DAY/DRIVE NUMBER l|r`, or a path of the image (what follows it on the line is not read)."""
    for number, line in enumerate(split.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        parts = Path(words[0]).with_suffix("").parts
        drive = next((part for part in parts if part.endswith("_sync")), "")
        if drive and len(words) == 3 and words[2] in CAMERAS and words[1].isdecimal():
            yield Frame(drive, CAMERAS[words[2]], words[1].zfill(10))
        elif drive and parts[-1].isdecimal() and (camera := next((p for p in parts if p in CAMERAS.values()), "")):
            yield Frame(drive, camera, parts[-1])
        else:
            raise DeltaError(
                f"line {number} of {split} names no KITTI image: {line[:60]!r}",
                "lines are `DAY/DRIVE NUMBER l`, or begin with DAY/DRIVE/image_02/data/NUMBER.png",
            )


def _annotated(drives: dict[str, Path]) -> Iterator[Frame]:
    for name, drive in sorted(drives.items()):
        for file in sorted((drive / TRUTH / "image_02").glob("*.png")):
            yield Frame(name, "image_02", file.stem)


def _depth(drives: dict[str, Path], frame: Frame) -> Path | None:
    file = drives.get(frame.drive, Path("none")) / TRUTH / frame.camera / f"{frame.number}.png"
    return file if file.is_file() else None


def _photo(path: Path, frame: Frame) -> Path:
    day = frame.drive[:10]
    below = Path(day, frame.drive, frame.camera, "data", frame.number)
    for folder in RAW_FOLDERS:
        for suffix in (".png", ".jpg"):
            file = (path / folder / below).with_suffix(suffix)
            if file.is_file():
                return file
    raise DeltaError(
        f"{frame.name} has annotated depth, but no photo {below}.png under {path}",
        "unpack the raw drive there, or move its depth away",
    )
