"""Depth of photos from an exported student, by onnxruntime and numpy alone."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from delta import images
from delta.colormaps import color_table, colorize
from delta.config import Config
from delta.errors import DeltaError, UnreadablePhoto
from delta.panel import save_picture, side_by_side
from delta.point_cloud import draw_view, save_ply, to_point_cloud
from delta.predict import DepthPredictor, normalize_for_display, save_disparity_png16, save_npy

FILE_THREADS = 2  # decode ahead and encode behind the graph


class Wanted(Config, frozen=True, kw_only=True):
    """What is written for each photo or frame."""

    colormap: str = "spectral"
    depth_only: bool = False  # else the photo stands beside it
    png16: bool = False
    npy: bool = False
    ply: bool = False
    view: bool = False

    def __post_init__(self) -> None:
        color_table(self.colormap)


class Throughput(Config, frozen=True, kw_only=True):
    """How many were predicted, and how long the graph and everything took."""

    count: int
    graph_s: float
    wall_s: float
    provider: str


def predict_photos(
    predictor: DepthPredictor,
    photos: Path,
    out: Path,
    wanted: Wanted,
    *,
    batch: int = 1,
    on_photo: Callable[[int, int, str], None] = lambda count, total, failure: None,
) -> tuple[list[Path], Throughput]:
    """Predict a photo or a folder of photos; write `NAME_depth.png` and what else is wanted for each under `out`.

    Folders below `photos` are kept.

    Args:
        on_photo: called after each photo with 1, the count of photos, and why it was left out (or "").

    Raises:
        DeltaError: no photo that can be read, or the model fails.
    """
    found, start, graph_s = images.find_photos(photos), time.perf_counter(), 0.0
    targets = _targets(found, photos if photos.is_dir() else photos.parent, out)
    written, failures, writing = [], [], list[Future[Path]]()
    with ThreadPoolExecutor(FILE_THREADS, thread_name_prefix="photos") as pool:
        for group in _read_ahead(found, batch, pool):
            read: list[tuple[Path, np.ndarray]] = []
            for photo, future in group:
                failure = ""
                try:
                    read.append((photo, future.result()))
                except UnreadablePhoto as error:
                    failure = f"{photo}: {error}"
                    failures.append(failure)
                on_photo(1, len(found), failure)
            began = time.perf_counter()
            answers = predictor.predict_batch([image for _, image in read])
            graph_s += time.perf_counter() - began
            written += [future.result() for future in writing]  # at most one batch is kept in memory
            writing = [
                pool.submit(_write, image, disparity, targets[photo], wanted)
                for (photo, image), disparity in zip(read, answers, strict=True)
            ]
        written += [future.result() for future in writing]
    if not written:
        raise DeltaError(f"none of {len(found)} photos can be used; {failures[0]}", "name readable photos")
    wall_s = time.perf_counter() - start
    return written, Throughput(count=len(written), graph_s=graph_s, wall_s=wall_s, provider=predictor.provider)


def write_maps(image: np.ndarray, disparity: np.ndarray, target: Path, wanted: Wanted) -> None:
    """Write what is wanted besides the picture: `TARGET_disparity.png`, `.npy`, `TARGET.ply`, `TARGET_view.png`."""
    if wanted.png16:
        save_disparity_png16(target.with_name(f"{target.name}_disparity.png"), disparity)
    if wanted.npy:
        save_npy(target.with_name(f"{target.name}_disparity.npy"), disparity)
    if wanted.ply or wanted.view:
        cloud = to_point_cloud(image, disparity)
        if wanted.ply:
            save_ply(cloud, target.with_name(f"{target.name}.ply"))
        if wanted.view:
            save_picture(draw_view(cloud, *disparity.shape), target.with_name(f"{target.name}_view.png"))


def _targets(found: list[Path], root: Path, out: Path) -> dict[Path, Path]:
    """Choose each photo's name; two that differ in their suffix alone keep it, so that neither picture is lost."""
    twins = Counter(photo.with_suffix("") for photo in found)
    return {
        photo: out
        / photo.relative_to(root).parent
        / (photo.stem if twins[photo.with_suffix("")] == 1 else photo.name.replace(".", "_"))
        for photo in found
    }


def _read_ahead(
    found: Iterable[Path], batch: int, pool: ThreadPoolExecutor
) -> Iterator[list[tuple[Path, Future[np.ndarray]]]]:
    """Yield batches of photos that are being decoded, one batch ahead."""
    photos, ahead = list(found), deque[list[tuple[Path, Future[np.ndarray]]]]()
    for start in range(0, len(photos), batch):
        ahead.append([(photo, pool.submit(images.read_photo, photo)) for photo in photos[start : start + batch]])
        if len(ahead) > 1:
            yield ahead.popleft()
    yield from ahead


def _write(image: np.ndarray, disparity: np.ndarray, target: Path, wanted: Wanted) -> Path:
    picture = target.with_name(f"{target.name}_depth.png")
    colored = colorize(normalize_for_display(disparity), wanted.colormap, vmin=0.0, vmax=1.0)
    beside = side_by_side([[image, colored]], ["photo", "depth"], tile_px=max(image.shape[:2]))
    save_picture(colored if wanted.depth_only else beside, picture)
    write_maps(image, disparity, target, wanted)
    return picture
