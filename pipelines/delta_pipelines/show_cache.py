"""A picture of what a store holds: photo, disparity, features as colors, attention."""

from pathlib import Path

import numpy as np

from delta.colormaps import colorize
from delta.panel import attention_colors, feature_colors, save_picture, side_by_side
from delta_cache.reader import open_cache
from delta_pipelines.feed import feature_names, read_samples


def show_cache(store_path: str | Path, picture: Path, samples: int = 4) -> Path:
    """Draw the first `samples` cached photos of a store, one a row.

    Raises:
        CacheError: the store is missing, or has no photo with answers yet.
    """
    store = open_cache(store_path, incomplete=True)
    chosen = np.flatnonzero(store.mask)[:samples]
    if not len(chosen):
        store.require_complete()
    taps = feature_names(store)
    attention = [spec.name for spec in store.contract.arrays if spec.name.startswith("attention/")][-1:]
    data = read_samples(store, chosen, ["image", "disparity", *(f"features/{tap}" for tap in taps), *attention])
    rows = []
    for index in range(len(chosen)):
        row = [data["image"][index], colorize(data["disparity"][index].astype(np.float32))]
        row += [feature_colors(_last(data[f"features/{tap}"][index])) for tap in taps]
        row += [attention_colors(data[name][index].astype(np.float32)) for name in attention]
        rows.append(row)
    titles = ["photo", "disparity", *taps, *(f"attention {name.split('/')[1]}" for name in attention)]
    captions = [Path(store.photos[store.contract.photo_of(sample)].path).name for sample in chosen.tolist()]
    return save_picture(side_by_side(rows, titles, captions), picture)


def _last(features: np.ndarray) -> np.ndarray:
    return np.moveaxis(features.astype(np.float32), 0, -1)
