"""Colors for disparities: four tables of 256 RGB rows in `colormaps.json`, shared with the web app.

Knows numpy only. The tables come from matplotlib, which only their regeneration needs:
`python -c "from delta.colormaps import write_tables; write_tables()"`.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from delta.errors import DeltaError
from delta.files import write_aside

TABLES_PATH = Path(__file__).with_name("colormaps.json")
MATPLOTLIB_NAMES = {"spectral": "Spectral_r", "inferno": "inferno", "viridis": "viridis", "gray": "gray"}
COLORMAPS = tuple(MATPLOTLIB_NAMES)  # low disparity (far) first; `spectral` runs from blue (far) to red (near)
INVALID_RGB = (128, 128, 128)  # what NaN and infinity look like


@cache
def color_table(colormap: str) -> UInt8[np.ndarray, "256 3"]:
    """Load one table, read-only, low values first.

    Raises:
        DeltaError: there is no colormap of that name.
    """
    if colormap not in COLORMAPS:
        raise DeltaError(f"there is no colormap {colormap!r}", f"use one of {', '.join(COLORMAPS)}")
    colors = json.loads(TABLES_PATH.read_text(encoding="ascii"))[colormap]
    table = np.frombuffer(bytes.fromhex("".join(color.removeprefix("#") for color in colors)), dtype=np.uint8)
    return table.reshape(256, 3)


def colorize(
    disparity: Float32[np.ndarray, "h w"],
    colormap: str = "inferno",
    vmin: float | None = None,
    vmax: float | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Paint a disparity map; `vmin` and below get the first color, `vmax` and above the last.

    Unset limits are the finite extremes of this map. A map without extent gets the middle color, and what is not
    finite gets `INVALID_RGB`.

    Raises:
        DeltaError: unknown colormap, or `vmin` above `vmax`.
    """
    table = color_table(colormap)
    finite = np.isfinite(disparity)
    low, high = _limits(disparity[finite], vmin, vmax)
    if low > high:
        raise DeltaError(f"vmin {low:g} is above vmax {high:g}", "swap them, or leave one of them out")
    wide = np.where(finite, disparity, low).astype(np.float64)  # float32 would overflow on extreme ranges
    share = (wide - low) / (high - low) if high > low else np.full_like(wide, 0.5)
    colors = table[np.rint(share.clip(0, 1) * 255).astype(np.intp)]
    colors[~finite] = INVALID_RGB
    return colors


def write_tables(path: Path = TABLES_PATH) -> None:
    """Write the tables again from matplotlib, eight colors a line so that a difference can be read."""
    entries = [f'"{name}": [\n{_rows(matplotlib_table(name))}\n]' for name in COLORMAPS]
    with write_aside(path) as aside:
        aside.write_text("{\n" + ",\n".join(entries) + "\n}\n", encoding="ascii", newline="\n")


def matplotlib_table(colormap: str) -> UInt8[np.ndarray, "256 3"]:
    """Sample matplotlib's colormap at 256 places, rounded to the nearest u8."""
    import matplotlib  # only regeneration and its test need it

    rgba = matplotlib.colormaps[MATPLOTLIB_NAMES[colormap]](np.arange(256))
    return np.rint(np.asarray(rgba)[:, :3] * 255).astype(np.uint8)


def _limits(finite_values: np.ndarray, vmin: float | None, vmax: float | None) -> tuple[float, float]:
    if finite_values.size == 0:
        finite_values = np.zeros(1, dtype=np.float32)
    low = float(finite_values.min()) if vmin is None else vmin
    high = float(finite_values.max()) if vmax is None else vmax
    if vmin is None and vmax is not None:  # a limit that was asked for wins over an extreme beyond it
        low = min(low, high)
    if vmax is None and vmin is not None:
        high = max(low, high)
    return low, high


def _rows(table: UInt8[np.ndarray, "256 3"]) -> str:
    colors = [f'"#{red:02x}{green:02x}{blue:02x}"' for red, green, blue in table]
    return ",\n".join(", ".join(colors[start : start + 8]) for start in range(0, 256, 8))
