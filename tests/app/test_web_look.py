"""Themes, sizes, keys and screen readers: what a person sees, reaches and hears."""

import re

import numpy as np
import pytest
from PIL import Image

from delta import bundled
from delta_pipelines.npm_package import Release, read_files

pytestmark = pytest.mark.app
AXE = Release(
    "axe-core",
    "4.14.1",
    "sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
)
SCREENS = {"phone": (390, 844), "tablet": (834, 1112), "desktop": (1440, 900), "small": (320, 568)}
DARK, LIGHT = "rgb(13, 14, 18)", "rgb(243, 242, 238)"


@pytest.fixture(scope="session")
def axe() -> str:
    return read_files(AXE, ["axe.min.js"])["axe.min.js"].decode()


def violations(app, axe: str) -> list[str]:
    app.page.evaluate(axe)  # in the page's world, past its policy, which refuses foreign scripts
    found = app.page.evaluate(
        """async () => (await axe.run(document, { resultTypes: ["violations"] })).violations
            .map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(" ")}`)"""
    )
    return [line[:300] for line in found]


def background(app) -> str:
    return app.page.evaluate("getComputedStyle(document.body).backgroundColor")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_in_any_state(new_app, axe, theme):
    app = new_app(color_scheme=theme, reduced_motion="reduce", permissions=["camera"]).open()
    assert violations(app, axe) == []
    for view in ("side", "overlay", "relief"):
        app.choose("views", view)
        assert violations(app, axe) == []
    app.page.click("#save")
    assert violations(app, axe) == []
    app.page.keyboard.press("Escape")
    app.page.click("#more")
    assert violations(app, axe) == []
    app.page.keyboard.press("Escape")
    app.page.click("#live")
    app.until("Number(body.frames) >= 2")
    assert violations(app, axe) == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_where_something_went_wrong(new_app, axe, theme):
    app = new_app(color_scheme=theme)
    app.page.route(re.compile(r"\.onnx$"), lambda route: route.abort())
    app.open()
    assert violations(app, axe) == []


def test_the_theme_follows_the_system_until_it_is_chosen(new_app):
    app = new_app(color_scheme="dark").open()
    assert background(app) == DARK
    app.page.emulate_media(color_scheme="light")
    assert background(app) == LIGHT
    app.page.click("#theme")
    assert app.page.get_attribute("#theme", "aria-label") == "Theme: light"
    app.page.click("#theme")
    assert background(app) == DARK
    app.page.reload()
    app.until("body.results === '1'")
    assert background(app) == DARK


@pytest.mark.parametrize("name", SCREENS)
def test_everything_fits_and_can_be_hit(new_app, name):
    width, height = SCREENS[name]
    app = new_app(viewport={"width": width, "height": height}).open()
    page = app.page
    page.evaluate("document.querySelector('#model').options[0].text = 'a-student-with-a-long-name · 256 px'")
    outside = page.evaluate(
        """() => [...document.querySelectorAll("button, select, fieldset label")]
            .filter((element) => element.checkVisibility({ visibilityProperty: true }))
            .map((element) => [element.outerHTML.slice(0, 80), element.getBoundingClientRect()])
            .filter(([, box]) => box.left < 0 || box.top < 0 || box.right > innerWidth || box.bottom > innerHeight)
            .map(([html]) => html)"""
    )
    assert outside == []
    assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
    small = page.evaluate(
        """() => [...document.querySelectorAll("button, select, fieldset label, input[type=range]")]
            .filter((element) => element.checkVisibility({ visibilityProperty: true }))
            .map((element) => [element.outerHTML.slice(0, 80), element.getBoundingClientRect()])
            .filter(([, { width, height }]) => width < 44 || height < 44).map(([html]) => html)"""
    )
    assert small == []
    box = page.locator("#depth-pane").bounding_box()
    assert box["width"] >= min(200, width * 0.55)


def test_the_keys_reach_views_colors_and_theme(app):
    for key, view in zip("12345", ("slider", "depth", "side", "overlay", "relief"), strict=True):
        app.page.keyboard.press(key)
        assert app.state()["view"] == view
    app.page.keyboard.press("m")
    assert app.state()["map"] == "viridis"
    app.page.keyboard.press("t")
    assert app.page.get_attribute("html", "data-theme") == "light"


def test_the_comparison_moves_by_keys_and_by_pointer(app):
    app.page.focus("#split-at")
    app.page.keyboard.press("End")
    assert (
        app.page.evaluate("find => getComputedStyle(document.querySelector('#scene')).getPropertyValue('--split')")
        == "100%"
    )
    box = app.page.locator("#split").bounding_box()
    app.page.mouse.click(box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2)
    assert float(app.page.input_value("#split-at")) == pytest.approx(25, abs=4)


def test_the_relief_turns_by_drag_and_by_keys(new_app):
    app = new_app(reduced_motion="reduce").open("?view=relief")
    canvas = app.page.locator("#relief")
    app.until("find('#relief').dataset.turn === '0.000 0.000'")
    straight = app.pixels("#relief").astype(int)
    box = canvas.bounding_box()
    app.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    app.page.mouse.down()
    app.page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] / 2, steps=3)
    app.page.mouse.up()
    app.until("parseFloat(find('#relief').dataset.turn) > 0.1")
    assert np.abs(app.pixels("#relief").astype(int) - straight).mean() > 3
    turn = app.page.get_attribute("#relief", "data-turn")
    canvas.focus()
    app.page.keyboard.press("ArrowLeft")
    app.until(f"find('#relief').dataset.turn !== '{turn}'")


def test_straight_ahead_the_relief_is_the_photo(new_app, png_photo):
    app = new_app(reduced_motion="reduce").open("?view=relief")
    app.show(png_photo)
    app.until("find('#relief').dataset.turn === '0.000 0.000'")
    photo, relief = app.pixels("#photo"), app.pixels("#relief")
    assert photo.shape == relief.shape
    height, width, _ = photo.shape
    cut = 0.5 - 0.5 / 1.03  # it is enlarged by this, to hide its edges
    inner = (cut * width, cut * height, (1 - cut) * width, (1 - cut) * height)
    enlarged = np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BILINEAR, inner))
    assert np.corrcoef(enlarged.ravel(), relief.ravel())[0, 1] > 0.97


@pytest.mark.parametrize("renderer", ["webgl2", "2d"])
def test_both_painters_show_what_is_saved(new_app, png_photo, tmp_path, renderer):
    app = new_app().open(f"?renderer={renderer}&view=depth")
    assert app.state()["painter"] == renderer
    app.show(png_photo)
    shown = app.pixels("#depth").astype(int)
    saved = app.saved("depth", tmp_path).astype(int)
    assert shown.shape == saved.shape
    difference = np.abs(shown - saved)
    assert difference.mean() < 1  # the range on the screen is the map's, in the file the picture's
    assert np.percentile(difference, 99) <= 8


def test_a_photo_can_be_dropped_and_pasted(app):
    photo = (bundled.PHOTOS / "kodak_0010.jpg").read_bytes()
    for kind, field in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        results = int(app.state()["results"])
        app.page.evaluate(
            """([kind, field, bytes]) => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], `${kind}.jpg`, { type: "image/jpeg" }));
                const event = new Event(kind, { bubbles: true, cancelable: true });
                Object.defineProperty(event, field, { value: data });
                document.body.dispatchEvent(event);
            }""",
            [kind, field, list(photo)],
        )
        app.until(f"Number(body.results) > {results} && body.source === 'photo'")
        assert f"Depth of {kind}.jpg" in app.page.inner_text("#state")


def test_the_picture_is_described_for_those_who_do_not_see_it(app):
    label = app.page.get_attribute("#depth", "aria-label")
    assert re.fullmatch(r"Depth map: nearest at the [a-z ]+, farthest at the [a-z ]+", label)
    assert label.removeprefix("Depth map: ") in app.page.inner_text("#state")
    assert app.page.get_attribute("#state", "aria-live") == "polite"


def test_sharing_hands_over_the_file_where_the_system_can(new_app):
    app = new_app()
    app.page.add_init_script(
        """navigator.canShare = () => true;
        navigator.share = async ({ files }) => { window.shared = [files[0].name, files[0].type, files[0].size]; };"""
    )
    app.open()
    app.page.click("#save")
    app.page.click("[data-save=share]")
    app.until("window.shared")
    name, kind, size = app.page.evaluate("shared")
    assert name.endswith("photo-and-depth.png")
    assert kind == "image/png"
    assert size > 1000
