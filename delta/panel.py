"""Pictures that people look at: images side by side, features and attention as colors, loss curves.

Knows numpy and Pillow; matplotlib is imported only to draw a curve.
"""

import colorsys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from delta.files import write_aside
from delta.typeface import Typeface

PAPER, INK, MUTED = "#ffffff", "#1f2328", "#59636e"
CRISP_ZOOM = 4  # from this enlargement on pixels stay squares: a grid of patches is meant to be seen as one
FIRST_HUE = 0.08  # of the first attention head, orange; the others follow around the circle
LINE_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito, told apart by all
MANY_POINTS = 200  # above it a curve is drawn thin, and its running median bold


def side_by_side(
    rows: Sequence[Sequence[UInt8[np.ndarray, "_ _ 3"]]],
    titles: Sequence[str],
    captions: Sequence[str] | None = None,
    tile_px: int = 320,
) -> Image.Image:
    """Lay images out as a table on white: a title over each column, a caption under each row.

    Images keep their aspect and fit into a square of `tile_px`; text and margins grow with it.
    """
    _require_table(rows, titles, captions)
    tiles = [[_fit(image, tile_px) for image in row] for row in rows]
    widths = [max(tile.width for tile in column) for column in zip(*tiles, strict=True)]
    gap_px = round(tile_px * 0.0375)
    strips = [_title_strip(titles, widths, gap_px, Typeface(tile_px * 0.05))]
    for row, caption in zip(tiles, captions or [""] * len(tiles), strict=True):
        strips.append(_row_strip(row, caption, widths, gap_px, Typeface(tile_px * 0.044)))
    return _stack(strips, gap_px * 2 if any(captions or ()) else gap_px, margin_px=round(tile_px * 0.075))


def save_picture(image: Image.Image | UInt8[np.ndarray, "h w 3"], path: Path) -> Path:
    """Write a picture in the format that the suffix of `path` names, and return `path`."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    with write_aside(path) as aside:
        picture.save(aside)
    return path


def feature_colors(features: Float[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 3"]:
    """Show a grid of features as colors: its first three principal components as red, green and blue.

    Each component is stretched between its 2nd and 98th percentile; its sign makes the strongest channel positive, so
    the same features have the same colors everywhere. A component without extent is middle gray.
    """
    height, width, channels = features.shape
    flat = features.reshape(-1, channels).astype(np.float64)
    flat = flat - flat.mean(axis=0)
    _, strengths, axes = np.linalg.svd(flat, full_matrices=False)
    axes = axes[:3] * (strengths[:3, None] > 1e-9 * max(strengths[0], 1e-30))
    strongest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    components = flat @ (axes * np.where(strongest < 0, -1, 1)).T
    colors = np.full((height, width, 3), 0.5)
    colors[..., : len(axes)] = _stretch(components, 2, 98).reshape(height, width, -1)
    return _to_u8(colors)


def attention_colors(attention: Float[np.ndarray, "heads h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Show where each head looks: the hue tells which head looks hardest, the brightness how hard.

    Each head is scaled by its own 99th percentile; black is where none looks.
    """
    heads = len(attention)
    peaks = np.percentile(attention, 99, axis=(1, 2), keepdims=True).astype(np.float64)
    weights = np.clip(attention / np.where(peaks > 0, peaks, 1), 0, 1)
    hues = np.array([colorsys.hsv_to_rgb((FIRST_HUE + head / heads) % 1, 0.85, 1) for head in range(heads)])
    votes = weights**4  # the strongest head decides the hue, ties mix
    mixed = np.einsum("khw,kc->hwc", votes, hues) / np.maximum(votes.sum(axis=0), 1e-12)[..., None]
    return _to_u8(mixed * weights.max(axis=0)[..., None])


def loss_curve(
    steps: Sequence[float], series: Mapping[str, Sequence[float]], path: Path, *, ylabel: str = "loss"
) -> Path:
    """Draw each series over the steps, on a log scale where every value is positive, and return `path`.

    A long series is drawn thin, with its running median bold. Values that are not finite leave a gap.
    """
    figure, axes = _figure()
    for index, (name, values) in enumerate(series.items()):
        _draw_series(axes, steps, values, name, LINE_COLORS[index % len(LINE_COLORS)])
    _set_scale(axes, np.concatenate([np.asarray(values, dtype=float) for values in series.values()]))
    _style_axes(axes, ylabel)
    return _save(figure, path)


def scatter(
    groups: Mapping[str, Sequence[float]],
    places: Sequence[float],
    path: Path,
    *,
    xlabel: str,
    ylabel: str,
    numbers: Sequence[str],
) -> Path:
    """Draw each group's values over its place, its number beside their mean, and return `path`."""
    figure, axes = _figure()
    for index, (place, (name, values), number) in enumerate(zip(places, groups.items(), numbers, strict=True)):
        color = LINE_COLORS[index % len(LINE_COLORS)]
        mean = sum(values) / len(values)
        axes.plot([place] * len(values), values, "o", color=color, markersize=5, label=f"{number}  {name}")
        axes.annotate(number, (place, mean), xytext=(9, 0), textcoords="offset points", va="center", color=INK)
    _style_axes(axes, ylabel, xlabel)
    axes.margins(x=0.06)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return _save(figure, path)


def _figure() -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and only curves need it
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _save(figure: Any, path: Path) -> Path:
    with write_aside(path) as aside:
        figure.savefig(aside)
    return path


def _require_table(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], captions: Sequence[str] | None) -> None:
    if not rows or not titles:
        raise ValueError("a panel needs at least one row and one column")
    ragged = [index for index, row in enumerate(rows) if len(row) != len(titles)]
    if ragged:
        raise ValueError(f"row {ragged[0]} has {len(rows[ragged[0]])} images for {len(titles)} titles")
    if captions is not None and len(captions) != len(rows):
        raise ValueError(f"{len(captions)} captions for {len(rows)} rows")


def _fit(image: UInt8[np.ndarray, "_ _ 3"], tile_px: int) -> Image.Image:
    height, width = image.shape[:2]
    zoom = tile_px / max(height, width)
    size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
    resampling = Image.Resampling.NEAREST if zoom >= CRISP_ZOOM else Image.Resampling.LANCZOS
    return Image.fromarray(image).resize(size, resampling)


def _title_strip(titles: Sequence[str], widths: Sequence[int], gap_px: int, typeface: Typeface) -> Image.Image:
    texts = [typeface.wrap(title, width) for title, width in zip(titles, widths, strict=True)]
    n_lines = max(len(lines) for lines in texts)
    strip = Image.new("RGB", (_inner_width(widths, gap_px), n_lines * typeface.line_px), PAPER)
    draw = ImageDraw.Draw(strip)
    for lines, left, width in zip(texts, _lefts(widths, gap_px), widths, strict=True):
        for row, line in enumerate(lines, start=n_lines - len(lines)):  # short titles stand on the last line
            typeface.write(draw, line, left + (width - typeface.width(line)) / 2, (row + 0.5) * typeface.line_px, INK)
    return strip


def _row_strip(
    tiles: Sequence[Image.Image], caption: str, widths: Sequence[int], gap_px: int, typeface: Typeface
) -> Image.Image:
    inner, height = _inner_width(widths, gap_px), max(tile.height for tile in tiles)
    lines = typeface.wrap(caption, inner)
    space = gap_px // 2 if lines else 0
    strip = Image.new("RGB", (inner, height + space + len(lines) * typeface.line_px), PAPER)
    for tile, left, width in zip(tiles, _lefts(widths, gap_px), widths, strict=True):
        strip.paste(tile, (left + (width - tile.width) // 2, (height - tile.height) // 2))
    draw = ImageDraw.Draw(strip)
    for row, line in enumerate(lines):
        typeface.write(draw, line, 0, height + space + (row + 0.5) * typeface.line_px, MUTED)
    return strip


def _stack(strips: Sequence[Image.Image], gap_px: int, margin_px: int) -> Image.Image:
    """Put the title and the rows under each other, the title close to what it names."""
    heights = [strip.height for strip in strips]
    title_gap_px = margin_px // 4
    height = 2 * margin_px + sum(heights) + title_gap_px + gap_px * (len(strips) - 2)
    page = Image.new("RGB", (strips[0].width + 2 * margin_px, height), PAPER)
    top = margin_px
    for index, strip in enumerate(strips):
        page.paste(strip, (margin_px, top))
        top += strip.height + (title_gap_px if index == 0 else gap_px)
    return page


def _lefts(widths: Sequence[int], gap_px: int) -> list[int]:
    return [sum(widths[:column]) + column * gap_px for column in range(len(widths))]


def _inner_width(widths: Sequence[int], gap_px: int) -> int:
    return sum(widths) + gap_px * (len(widths) - 1)


def _stretch(components: Float[np.ndarray, "n c"], low: float, high: float) -> Float[np.ndarray, "n c"]:
    bottom, top = np.percentile(components, [low, high], axis=0)
    extent = top - bottom
    return np.where(extent > 0, (components - bottom) / np.where(extent > 0, extent, 1), 0.5)


def _to_u8(colors: Float[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    return np.rint(colors.clip(0, 1) * 255).astype(np.uint8)


# Below, `axes` is a matplotlib Axes, a type that is not imported until a curve is drawn.


def _draw_series(axes: Any, steps: Sequence[float], values: Sequence[float], name: str, color: str) -> None:
    points = np.where(np.isfinite(values), values, np.nan)
    if len(points) <= MANY_POINTS:
        axes.plot(steps, points, color=color, linewidth=1.8, label=name)
        return
    axes.plot(steps, points, color=color, linewidth=0.6, alpha=0.3)
    axes.plot(steps, _running_median(points, len(points) // 50 * 2 + 1), color=color, linewidth=1.8, label=name)


def _running_median(points: Float[np.ndarray, " n"], window: int) -> Float[np.ndarray, " n"]:
    padded = np.pad(points, window // 2, constant_values=np.nan)  # towards the ends the window shrinks
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice encountered", RuntimeWarning)  # such a stretch is a gap
        return np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, window), axis=-1)


def _set_scale(axes: Any, values: Float[np.ndarray, " n"]) -> None:
    from matplotlib import ticker

    finite = values[np.isfinite(values)]
    if finite.size == 0 or finite.min() <= 0:
        return
    axes.set_yscale("log")
    narrow = finite.max() < 10 * finite.min()
    axes.yaxis.set_major_locator(
        ticker.MaxNLocator(8, steps=[1, 2, 5, 10]) if narrow else ticker.LogLocator(subs=(1, 2, 5))
    )
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(ticker.NullLocator())


def _style_axes(axes: Any, ylabel: str, xlabel: str = "step") -> None:
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.grid(True, color="#d8dee4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#8c959f")
    axes.tick_params(colors=MUTED, labelsize=9)
    axes.margins(x=0.01)
    axes.legend(frameon=False, labelcolor=INK, fontsize=10)
