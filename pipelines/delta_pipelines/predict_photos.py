"""Depth of photos from an exported student, by onnxruntime and numpy alone."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from delta import images
from delta.colormaps import colorize
from delta.errors import DeltaError, UnreadablePhoto
from delta.panel import save_picture, side_by_side
from delta.predict import DepthPredictor, normalize_for_display, save_disparity_png16, save_npy


def predict_photos(
    model: Path,
    photos: Path,
    out: Path,
    *,
    colormap: str,
    png16: bool,
    npy: bool,
    on_photo: Callable[[Path, str, int], None] = lambda photo, failure, total: None,
) -> list[Path]:
    """Predict a photo or a folder of photos; write `NAME_depth.png` (photo beside depth) for each under `out`.

    Folders below `photos` are kept. `png16` and `npy` add the disparity itself at the photo's own size.

    Args:
        on_photo: called after each photo with its path, why it was left out (or ""), and the count of photos.

    Raises:
        DeltaError: a model that is not Delta's, or no photo that can be read.
    """
    predictor = DepthPredictor.open(model)
    found = images.find_photos(photos)
    root = photos if photos.is_dir() else photos.parent
    twins = Counter(photo.with_suffix("") for photo in found)
    written, failures = [], []
    for photo in found:
        failure = ""
        try:
            image = images.read_photo(photo)
        except UnreadablePhoto as error:
            failure = str(error)
            failures.append(f"{photo}: {failure}")
        else:
            # two photos that differ in their suffix alone keep it, so that neither picture is lost
            name = photo.stem if twins[photo.with_suffix("")] == 1 else photo.name.replace(".", "_")
            target = out / photo.relative_to(root).parent / name
            written.append(_write(image, predictor.predict(image), target, colormap, png16, npy))
        on_photo(photo, failure, len(found))
    if not written:
        raise DeltaError(f"none of {len(found)} photos can be used; {failures[0]}", "name readable photos")
    return written


def _write(image: np.ndarray, disparity: np.ndarray, target: Path, colormap: str, png16: bool, npy: bool) -> Path:
    picture = target.with_name(f"{target.name}_depth.png")
    colored = colorize(normalize_for_display(disparity), colormap, vmin=0.0, vmax=1.0)
    save_picture(side_by_side([[image, colored]], ["photo", "depth"], tile_px=max(image.shape[:2])), picture)
    if png16:
        save_disparity_png16(target.with_name(f"{target.name}_disparity.png"), disparity)
    if npy:
        save_npy(target.with_name(f"{target.name}_disparity.npy"), disparity)
    return picture
