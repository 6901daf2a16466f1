"""Colors are matplotlib's, without matplotlib, whatever the disparity holds."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from delta.colormaps import (
    COLORMAPS,
    INVALID_RGB,
    TABLES_PATH,
    color_table,
    colorize,
    matplotlib_table,
    write_tables,
)
from delta.errors import DeltaError


def ramp() -> np.ndarray:
    return np.linspace(2, 7, 256, dtype=np.float32).reshape(1, 256)


@pytest.mark.parametrize("name", COLORMAPS)
def test_a_table_is_matplotlibs(name: str) -> None:
    pytest.importorskip("matplotlib")
    np.testing.assert_array_equal(color_table(name), matplotlib_table(name))


def test_regeneration_gives_the_shipped_bytes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_tables(tmp_path / "colormaps.json")
    assert (tmp_path / "colormaps.json").read_bytes() == TABLES_PATH.read_bytes()


def test_near_is_bright_in_inferno_and_red_in_spectral() -> None:
    assert color_table("inferno")[-1].sum() > color_table("inferno")[0].sum()
    red, _, blue = color_table("spectral")[-1].astype(int)
    assert red > blue
    assert color_table("gray").tolist() == [[level] * 3 for level in range(256)]


def test_painting_needs_no_matplotlib() -> None:
    code = "import sys, numpy as np; from delta.colormaps import colorize; colorize(np.eye(3, dtype=np.float32));"
    code += "sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_table_cannot_be_changed_by_accident() -> None:
    with pytest.raises(ValueError, match="read-only"):
        color_table("gray")[0] = 7


@pytest.mark.parametrize("name", COLORMAPS)
def test_a_ramp_walks_through_the_whole_table(name: str) -> None:
    np.testing.assert_array_equal(colorize(ramp(), name)[0], color_table(name))


def test_limits_clip_and_make_two_maps_comparable() -> None:
    painted = colorize(ramp(), "gray", vmin=3, vmax=4)[0, :, 0]
    assert painted[0] == 0
    assert painted[-1] == 255
    lone = colorize(np.array([[3.5]], dtype=np.float32), "gray", vmin=3, vmax=4)
    assert lone[0, 0, 0] == 128


def test_one_limit_beyond_the_map_leaves_one_color() -> None:
    assert (colorize(ramp(), "gray", vmin=3, vmax=3) == 128).all()
    assert (colorize(ramp(), "gray", vmin=100) == 128).all()
    assert (colorize(ramp(), "gray", vmax=-100) == 128).all()


@pytest.mark.parametrize("value", [0.0, -3.0, 1e30])
def test_a_constant_map_gets_the_middle_color(value: float) -> None:
    assert (colorize(np.full((4, 5), value, dtype=np.float32), "gray") == 128).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_painted_apart_and_moves_no_limit(bad: float) -> None:
    disparity = ramp()
    expected = colorize(disparity, "inferno")
    expected[0, 100] = INVALID_RGB
    disparity[0, 100] = bad
    np.testing.assert_array_equal(colorize(disparity, "inferno"), expected)


def test_a_map_of_nan_alone_is_all_invalid() -> None:
    assert (colorize(np.full((2, 3), np.nan, dtype=np.float32)) == INVALID_RGB).all()


def test_the_widest_range_of_float32_does_not_overflow() -> None:
    largest = np.finfo(np.float32).max
    painted = colorize(np.array([[-largest, 0, largest]], dtype=np.float32), "gray")
    assert painted[0, :, 0].tolist() == [0, 128, 255]


def test_the_input_is_left_alone() -> None:
    disparity = ramp()
    disparity[0, 3] = np.nan
    before = disparity.copy()
    colorize(disparity)
    np.testing.assert_array_equal(disparity, before)


def test_an_unknown_colormap_names_the_known_ones() -> None:
    with pytest.raises(DeltaError, match="there is no colormap 'jet'") as caught:
        colorize(ramp(), "jet")
    assert caught.value.hint == "use one of spectral, inferno, viridis, gray"


def test_crossed_limits_are_refused() -> None:
    with pytest.raises(DeltaError, match="vmin 4 is above vmax 3"):
        colorize(ramp(), vmin=4, vmax=3)
