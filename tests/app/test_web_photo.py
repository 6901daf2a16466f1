"""A photo in the web app: its depth is Python's, in every color and every file that is saved."""

import numpy as np
import pytest
from PIL import Image

from delta.colormaps import COLORMAPS, color_table, colorize
from delta.images import read_photo
from delta.predict import DepthPredictor, load_disparity_png16, normalize_for_display

pytestmark = pytest.mark.app
# WebAssembly and onnxruntime's own kernels round differently; of the disparity's range:
DISPARITY_TOLERANCE = 2e-4
COLOR_TOLERANCE = 3  # two neighbors in a table are up to 3 apart


@pytest.fixture
def expected(app_bundle, png_photo) -> np.ndarray:
    return DepthPredictor.open(app_bundle).predict(png_photo)


def test_a_photo_becomes_depth_without_a_complaint(app, png_photo):
    state = app.show(png_photo)
    assert state["state"] == "ready"
    assert state["engine"] == "wasm"
    assert state["digest"] == "checked"
    assert "Depth of a lighthouse.png in" in app.page.inner_text("#state")
    assert app.problems == []


def test_the_saved_16_bit_depth_is_what_python_predicts(app, png_photo, expected, tmp_path):
    app.show(png_photo)
    path = app.save("depth16", tmp_path)
    assert path.name == "a-lighthouse-depth-16bit.png"
    with Image.open(path) as image:
        assert image.mode == "I;16"
    found = load_disparity_png16(path)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= DISPARITY_TOLERANCE * np.ptp(expected)


@pytest.mark.parametrize("name", COLORMAPS)
def test_the_saved_depth_has_pythons_colors(app, png_photo, expected, tmp_path, name):
    app.choose("maps", name)
    app.show(png_photo)
    saved = app.saved("depth", tmp_path)
    painted = colorize(normalize_for_display(expected), name, 0, 1)
    assert saved.shape == painted.shape
    assert np.abs(saved.astype(int) - painted).max() <= COLOR_TOLERANCE
    assert (saved == painted).mean() > 0.97
    rows = {tuple(row) for row in color_table(name).tolist()}
    assert {tuple(color) for color in saved.reshape(-1, 3).tolist()} <= rows


def test_side_by_side_holds_the_photo_and_its_depth(app, png_photo, expected, tmp_path):
    app.show(png_photo)
    saved = app.saved("pair", tmp_path)
    photo = read_photo(png_photo)
    np.testing.assert_array_equal(saved[:, : photo.shape[1]], photo)
    painted = colorize(normalize_for_display(expected), "spectral", 0, 1)
    assert np.abs(saved[:, photo.shape[1] :].astype(int) - painted).max() <= COLOR_TOLERANCE
