"""Pictures keep what they show: sizes, places, order, and the same colors for the same numbers."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from delta.panel import INK, MUTED, PAPER, attention_colors, feature_colors, loss_curve, save_picture, side_by_side
from delta.typeface import Typeface

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def plain(height: int, width: int, color: tuple[int, int, int]) -> np.ndarray:
    return np.full((height, width, 3), color, dtype=np.uint8)


def box_of(picture: Image.Image, color: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, width and height of the pixels of one color."""
    rows, columns = np.nonzero((np.asarray(picture) == color).all(axis=2))
    return int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1


def has_ink(picture: Image.Image, box: tuple[int, int, int, int]) -> bool:
    return bool((np.asarray(picture.crop(box)) != 255).any())


def test_tiles_keep_their_aspect_and_share_columns_and_rows() -> None:
    rows = [[plain(40, 80, RED), plain(400, 800, GREEN)], [plain(300, 600, BLUE), plain(20, 40, (9, 9, 9))]]
    page = side_by_side(rows, ["left", "right"], tile_px=100)
    red, green, blue, dark = (box_of(page, color) for color in (RED, GREEN, BLUE, (9, 9, 9)))
    assert {box[2:] for box in (red, green, blue, dark)} == {(100, 50)}
    assert red[0] == blue[0] < green[0] == dark[0]
    assert red[1] == green[1] < blue[1] == dark[1]


def test_a_portrait_stands_in_the_middle_of_its_place() -> None:
    page = side_by_side([[plain(50, 100, RED)], [plain(100, 50, GREEN)]], ["photo"], tile_px=100)
    red, green = box_of(page, RED), box_of(page, GREEN)
    assert green[2:] == (50, 100)
    assert green[0] + green[2] / 2 == red[0] + red[2] / 2


def test_margins_are_even_and_paper_is_white() -> None:
    page = side_by_side([[plain(80, 80, RED)]], ["photo"], tile_px=200)
    left, top, width, height = box_of(page, RED)
    assert (width, height) == (200, 200)
    assert left == page.width - left - width == page.height - top - height
    assert page.getpixel((0, 0)) == (255, 255, 255)
    assert PAPER == "#ffffff"


def test_titles_stand_above_their_columns_and_captions_under_their_rows() -> None:
    rows = [[plain(100, 100, RED), plain(100, 100, GREEN)], [plain(100, 100, BLUE), plain(100, 100, BLUE)]]
    page = side_by_side(rows, ["", "teacher"], ["r 0.63", ""], tile_px=200)
    red, green, blue = (box_of(page, color) for color in (RED, GREEN, BLUE))
    assert not has_ink(page, (0, 0, red[0] + red[2], red[1]))
    assert has_ink(page, (green[0], 0, green[0] + green[2], green[1]))
    assert has_ink(page, (0, red[1] + red[3], page.width, blue[1]))
    assert not has_ink(page, (0, blue[1] + blue[3], page.width, page.height))


def test_a_long_caption_takes_more_lines_and_stays_on_the_page() -> None:
    image = plain(50, 100, RED)
    short = side_by_side([[image]], ["photo"], ["short"], tile_px=200)
    long = side_by_side([[image]], ["photo"], ["a caption of many words that does not fit " * 3], tile_px=200)
    assert long.width == short.width
    assert long.height > short.height
    margin = box_of(long, RED)[0]
    assert not has_ink(long, (long.width - margin, 0, long.width, long.height))


def test_text_can_be_read() -> None:
    for color in (INK, MUTED):  # WCAG AA asks for 4.5 to 1 on white
        channels = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)]) / 255
        luminance = (channels**2.2) @ [0.2126, 0.7152, 0.0722]
        assert 1.05 / (luminance + 0.05) > 4.5


def test_a_small_grid_stays_a_grid_and_a_photo_is_smoothed() -> None:
    checkers = np.indices((8, 8)).sum(axis=0) % 2 * 255
    grid = np.repeat(checkers[..., None], 3, axis=2).astype(np.uint8)
    page = side_by_side([[grid]], [""], tile_px=160)
    assert set(np.unique(np.asarray(page))) == {0, 255}
    photo = np.random.default_rng(0).integers(0, 256, (500, 500, 3), dtype=np.uint8)
    small = np.asarray(side_by_side([[photo]], [""], tile_px=50).crop((4, 5, 53, 53)))
    assert small.std() < photo.std() / 2


@pytest.mark.parametrize(
    ("rows", "titles", "captions", "message"),
    [
        ([], ["a"], None, "at least one row"),
        ([[]], [], None, "at least one row and one column"),
        ([[plain(9, 9, RED)], []], ["a"], None, "row 1 has 0 images for 1 titles"),
        ([[plain(9, 9, RED)]], ["a"], ["x", "y"], "2 captions for 1 rows"),
    ],
)
def test_a_table_that_does_not_add_up_is_refused(
    rows: list[list[np.ndarray]], titles: list[str], captions: list[str] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        side_by_side(rows, titles, captions)


def test_letters_that_the_typeface_lacks_are_spelled() -> None:
    typeface = Typeface(14)
    assert typeface.wrap("768×512 px → δ1 0.66 ± 0.01 café 深度", 1000) == ["768x512 px -> delta1 0.66 ± 0.01 cafe ??"]


def test_every_letter_that_is_written_exists() -> None:
    typeface = Typeface(20)
    absent = drawn(typeface, "\uffff")  # the box that stands for any missing letter
    letters = [chr(code) for code in range(33, 127)] + ["±", "°", "·"]
    assert [letter for letter in letters if drawn(typeface, letter) == absent] == []


def drawn(typeface: Typeface, letter: str) -> bytes:
    canvas = Image.new("L", (40, 40))
    typeface.write(ImageDraw.Draw(canvas), letter, 5, 20, "white")
    return canvas.tobytes()


def test_lines_are_as_wide_as_they_are_drawn_and_as_asked() -> None:
    typeface = Typeface(16)
    text = "AbsRel 0.197 and delta1 0.663 on 218 images"
    lines = typeface.wrap(text, 120)
    assert " ".join(lines) == text
    assert len(lines) > 1
    for line in lines:
        canvas = Image.new("L", (200, 40))
        typeface.write(ImageDraw.Draw(canvas), line, 0, 20, "white")
        box = canvas.getbbox()
        assert box is not None
        assert box[2] == pytest.approx(typeface.width(line), abs=3)  # letters have bearings
        assert typeface.width(line) <= 120
    assert typeface.wrap("", 120) == []
    assert typeface.wrap("mobilevitv2_050_light_decoder", 10) == ["mobilevitv2_050_light_decoder"]


def features() -> np.ndarray:
    """Three directions of falling strength, each varying along another pattern."""
    random = np.random.default_rng(0)
    patterns = random.normal(size=(12, 10, 3)) * [9, 4, 2]
    directions = np.linalg.qr(random.normal(size=(32, 3)))[0].T
    return (patterns @ directions + random.normal(size=32) + 0.01 * random.normal(size=(12, 10, 32))).astype(np.float32)


def test_features_show_their_strongest_components_in_order() -> None:
    grid = features()
    colors = feature_colors(grid).reshape(-1, 3).astype(float)
    flat = (grid - grid.mean(axis=(0, 1))).reshape(-1, 32)
    values, vectors = np.linalg.eigh(flat.T @ flat)
    for channel in range(3):
        strongest = flat @ vectors[:, values.argsort()[-1 - channel]]
        assert abs(np.corrcoef(strongest, colors[:, channel])[0, 1]) > 0.98  # not 1: percentiles clip


def test_features_have_the_same_colors_wherever_they_stand() -> None:
    grid = features()
    colors = feature_colors(grid)
    np.testing.assert_array_equal(feature_colors(grid[::-1]), colors[::-1])
    np.testing.assert_allclose(feature_colors(grid * 3 + 5), colors, atol=1)  # float32 rounds grid * 3 + 5


def test_components_that_do_not_exist_are_gray() -> None:
    assert (feature_colors(np.ones((4, 5, 8), dtype=np.float32)) == 128).all()
    lone = feature_colors(np.arange(20, dtype=np.float32).reshape(4, 5, 1))
    assert (lone[..., 1:] == 128).all()
    assert np.ptp(lone[..., 0]) == 255
    rank_one = np.arange(20, dtype=np.float32).reshape(4, 5, 1) * np.array([1, 2, -1, 0.5], dtype=np.float32)
    assert (feature_colors(rank_one)[..., 1:] == 128).all()


def test_each_head_has_its_own_hue_where_it_looks() -> None:
    attention = np.zeros((6, 20, 20), dtype=np.float32)
    for head in range(6):
        attention[head, 3 * head : 3 * head + 3, 5:10] = 0.01 * (head + 1)  # heads are scaled apart
    colors = attention_colors(attention)
    hues = {tuple(colors[3 * head + 1, 6]) for head in range(6)}
    assert len(hues) == 6
    assert all(max(hue) == 255 for hue in hues)
    assert (colors[:, 15:] == 0).all()


def test_attention_to_nothing_is_black() -> None:
    assert (attention_colors(np.zeros((3, 4, 5), dtype=np.float32)) == 0).all()


def test_a_curve_is_a_picture_and_leaves_matplotlib_as_it_was(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    before = dict(matplotlib.rcParams)
    path = loss_curve(range(300), {"total": np.geomspace(3, 0.1, 300).tolist()}, tmp_path / "loss.png")
    with Image.open(path) as picture:
        assert picture.size == (1280, 720)
        assert has_color(picture, (0x00, 0x72, 0xB2))
    assert dict(matplotlib.rcParams) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["loss.png"]


def has_color(picture: Image.Image, color: tuple[int, int, int]) -> bool:
    return bool((np.asarray(picture.convert("RGB")) == color).all(axis=2).any())


def test_each_series_has_its_own_color(tmp_path: Path) -> None:
    series = {"total": [3.0, 2.0, 1.0], "gradient": [0.5, 0.4, 0.3]}
    with Image.open(loss_curve([0, 10, 20], series, tmp_path / "loss.png")) as picture:
        assert has_color(picture, (0x00, 0x72, 0xB2))
        assert has_color(picture, (0xD5, 0x5E, 0x00))


@pytest.mark.parametrize("values", [[1.0, 0.0, -1.0], [1.0, float("nan"), 0.5], [float("nan")] * 3, [0.2, 0.2, 0.2]])
def test_a_curve_survives_zeros_gaps_and_flat_lines(tmp_path: Path, values: list[float]) -> None:
    assert loss_curve([1, 2, 3], {"loss": values}, tmp_path / "loss.png").stat().st_size > 0


def test_a_long_curve_with_a_gap_is_drawn(tmp_path: Path) -> None:
    values = [float("nan")] * 150 + np.linspace(2, 1, 150).tolist()
    assert loss_curve(range(300), {"loss": values}, tmp_path / "loss.svg").read_text().lstrip().startswith("<?xml")


def test_a_picture_is_saved_in_the_format_of_its_name(tmp_path: Path) -> None:
    for name, kind in (("a.png", "PNG"), ("b.jpg", "JPEG"), ("c.webp", "WEBP")):
        with Image.open(save_picture(plain(40, 50, RED), tmp_path / name)) as picture:
            assert (picture.format, picture.size) == (kind, (50, 40))
    save_picture(side_by_side([[plain(9, 9, RED)]], [""]), tmp_path / "panel.png")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.png", "b.jpg", "c.webp", "panel.png"]


def test_panels_need_no_matplotlib() -> None:
    code = "import sys, delta.panel; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
