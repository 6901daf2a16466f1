"""The Flet app in web mode, driven in Chromium through what a screen reader gets; Flutter draws on a canvas."""

import importlib.util
import io
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from delta import bundled
from delta.colormaps import color_table, colorize
from delta.predict import DepthPredictor, load_disparity_png16, normalize_for_display

pytestmark = pytest.mark.app

ROOT = Path(__file__).parent.parent.parent
WAIT_S = 60
HERE = "http://127.0.0.1:"
DESKTOP, PHONE = (1440, 900), (390, 844)
FAKE_CAMERA = ("--use-fake-device-for-media-stream",)
GRANTED = "--use-fake-ui-for-media-stream"


@contextmanager
def serving(log: Path, model: Path | None = None) -> Iterator[str]:
    """Serve the app as `flet run --web` does, in a process of its own; yields its address."""
    if not all(map(importlib.util.find_spec, ("flet", "flet_web", "flet_camera"))):
        pytest.skip("NOT TESTED: flet is not installed: pip install 'delta-depth[flet]'")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "FLET_FORCE_WEB_SERVER": "true",
        "FLET_SERVER_IP": "127.0.0.1",
        "FLET_SERVER_PORT": str(port),
        "DELTA_MODEL": str(model or ""),
    }
    command = [sys.executable, str(ROOT / "app" / "flet" / "src" / "main.py")]
    with log.open("wb") as output, subprocess.Popen(command, env=environment, stdout=output, stderr=output) as server:
        try:
            address = f"{HERE}{port}"
            until(lambda: answers(address) or server.poll() is not None, f"a server: {log.read_text()}")
            assert server.poll() is None, log.read_text()
            yield address
        finally:
            server.terminate()
    # Flet itself logs a traceback where a page goes away amid a frame.
    assert f"delta_flet{os.sep}" not in log.read_text(), log.read_text()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except OSError:
        return False


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until `condition` holds, and return what it gave."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited {WAIT_S} s in vain for {what}")


@pytest.fixture(scope="module")
def flet_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app with the bundled student."""
    with serving(tmp_path_factory.mktemp("flet") / "log") as address:
        yield address


class FletApp:
    """A page of the app, by the names that a screen reader reads."""

    def __init__(self, page: Any) -> None:
        self.page = page
        page.set_default_timeout(WAIT_S * 1000)

    def open(self, address: str, text: str = "See depth in a single photo") -> "FletApp":
        """Load the page, ask Flutter for its semantics, and wait for a text."""
        self.page.goto(address)
        self.page.wait_for_selector("flt-semantics-placeholder", state="attached")
        self.page.evaluate("document.querySelector('flt-semantics-placeholder').click()")
        self.read(text)
        return self

    def press(self, name: str, role: str = "button") -> None:
        """Activate a control as assistive technology does; the pointer would meet Flutter's tooltips."""
        self.page.get_by_role(role, name=name).first.dispatch_event("click")

    def read(self, text: str | re.Pattern[str]) -> str:
        """Wait for a text, and return all of it."""
        found = self.page.get_by_text(text).first
        found.wait_for(state="attached")
        return found.inner_text()

    def pick(self, *photos: Path, button: str = "Open photos") -> None:
        """Choose photos from files, and wait for the time that the last one took."""
        with self.page.expect_file_chooser() as chooser:
            self.press(button)
        chooser.value.set_files(photos)

    def save(self, what: str, folder: Path) -> Path:
        """Save by the menu; returns the file."""
        self.press("Save")
        with self.page.expect_download() as download:
            self.press(what, role="menuitem")
        path = folder / download.value.suggested_filename
        download.value.save_as(path)
        return path

    def pixels(self) -> np.ndarray:
        """What a person sees, as RGB."""
        return np.asarray(Image.open(io.BytesIO(self.page.screenshot())).convert("RGB"))

    def share_of(self, colors: np.ndarray) -> float:
        """How much of the stage is within 3 levels of one of these colors."""
        stage = self.pixels()[80:760:4, 40:1060:4].reshape(-1, 3).astype(int)
        near = np.abs(stage[:, None] - np.asarray(colors, dtype=int)[None]).max(axis=2) <= 3
        return float(near.any(axis=1).mean())


@pytest.fixture
def new_flet(launch: Callable[..., Any]) -> Iterator[Callable[..., FletApp]]:
    """`new_flet(*chromium_arguments, size=…, **context options)` is a page that reaches nothing but this machine."""
    contexts = []

    def make(*arguments: str, size: tuple[int, int] = DESKTOP, **options: Any) -> FletApp:
        width, height = size
        context = launch(*arguments).new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        context.route(lambda url: not url.startswith((HERE, "blob:", "data:")), lambda route: route.abort())
        return FletApp(context.new_page())

    yield make
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def lossless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo whose pixels are the same wherever it is decoded."""
    path = tmp_path_factory.mktemp("flet") / "a lighthouse.png"
    Image.open(bundled.PHOTOS / "kodak_0013.jpg").resize((300, 200)).save(path)
    return path


def test_a_photo_is_saved_with_the_depth_that_python_predicts(new_flet, flet_address, lossless, tmp_path):
    app = new_flet().open(flet_address)
    app.pick(lossless)
    app.read(re.compile(r"\d+ ms"))
    disparity = DepthPredictor.open(bundled.STUDENT).predict(lossless)
    saved = load_disparity_png16(app.save("Depth, 16-bit gray", tmp_path))
    half_level = (disparity.max() - disparity.min()) / 65535 / 2
    # Threads add up in another order: the app has its own session, with what it finds of cores.
    np.testing.assert_allclose(saved, disparity, rtol=0, atol=half_level + 1e-4)
    colors = colorize(normalize_for_display(disparity), "spectral", vmin=0.0, vmax=1.0).astype(int)
    beside = np.asarray(Image.open(app.save("Photo and depth side by side", tmp_path))).astype(int)
    np.testing.assert_array_equal(beside[:, :300], np.asarray(Image.open(lossless).convert("RGB")))
    assert np.abs(beside[:, 300:] - colors).max() <= 4  # one step of the table
    assert {path.name for path in tmp_path.iterdir()} == {
        "a lighthouse_disparity.png",
        "a lighthouse_side_by_side.png",
    }


def test_other_colors_are_seen_and_saved(new_flet, flet_address, lossless, tmp_path):
    app = new_flet().open(flet_address)
    app.pick(lossless)
    app.read(re.compile(r"\d+ ms"))
    app.press("Depth only")
    until(lambda: app.share_of(color_table("spectral")) > 0.5, "a stage in Spectral")
    assert app.share_of(color_table("viridis")) < 0.2
    app.press("Viridis")
    until(lambda: app.share_of(color_table("viridis")) > 0.5, "a stage in Viridis")
    saved = np.asarray(Image.open(app.save("Depth, in colors", tmp_path)))
    table = {tuple(color) for color in color_table("viridis").tolist()}
    assert {tuple(color) for color in saved.reshape(-1, 3).tolist()} <= table


def test_the_theme_follows_the_system_until_one_is_chosen(new_flet, flet_address):
    dark = new_flet(color_scheme="dark").open(flet_address)
    until(lambda: dark.pixels()[3, 3].max() < 40, "a dark page")
    dark.press("Theme")
    dark.press("Light theme", role="menuitem")
    until(lambda: dark.pixels()[3, 3].min() > 220, "a light page")
    light = new_flet(color_scheme="light").open(flet_address)
    until(lambda: light.pixels()[3, 3].min() > 220, "a light page")


def test_several_photos_stand_in_a_strip_and_a_file_that_is_none_is_named(new_flet, flet_address, lossless, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no photo at all")
    app = new_flet().open(flet_address)
    app.pick(lossless, bundled.PHOTOS / "kodak_0014.jpg", broken)
    app.read("broken.jpg cannot be used: it is not an image in a known format.")
    app.press("Close")
    app.press("kodak_0014.jpg")
    saved = app.save("Depth, 16-bit gray", tmp_path)
    assert saved.name == "kodak_0014_disparity.png"
    app.press("Remove kodak_0014.jpg")
    assert app.save("Depth, 16-bit gray", tmp_path).name == "a lighthouse_disparity.png"


def test_photos_above_what_one_message_may_weigh_are_sent(new_flet, flet_address, tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (2400, 2600, 3), dtype=np.uint8))
    noise.save(tmp_path / "noise.png", compress_level=0)
    assert (tmp_path / "noise.png").stat().st_size > 2**24
    app = new_flet().open(flet_address)
    app.pick(tmp_path / "noise.png")
    app.read(re.compile(r"\d+ ms"))
    with Image.open(app.save("Depth, 16-bit gray", tmp_path)) as saved:
        assert saved.size == noise.size


def test_the_photo_on_the_stage_is_predicted_again_by_the_student_that_is_chosen(
    new_flet, flet_address, lossless, tmp_path
):
    app = new_flet().open(flet_address)
    app.pick(lossless)
    app.read(re.compile(r"\d+ ms"))
    app.press("delta-xs · 256 px")
    app.press("delta-s · 256 px", role="menuitem")
    app.page.get_by_role("button", name="delta-s · 256 px").wait_for(state="attached")
    saved = load_disparity_png16(app.save("Depth, 16-bit gray", tmp_path))
    disparity = DepthPredictor.open(bundled.STUDENTS["delta-s"]).predict(lossless)
    half_level = (disparity.max() - disparity.min()) / 65535 / 2
    np.testing.assert_allclose(saved, disparity, rtol=0, atol=half_level + 1e-4)


def test_a_corrupt_model_is_refused_and_another_one_works(new_flet, lossless, two_models, tmp_path):
    content = bytearray((two_models / "small.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (two_models / "small.onnx").write_bytes(content)
    with serving(tmp_path / "log", two_models) as address:
        app = new_flet().open(address, "This model cannot be used")
        app.read("small.onnx is not the file that its bundle describes")
        app.press("192×128 px")
        app.press("256 px", role="menuitem")
        app.read("See depth in a single photo")
        app.pick(lossless)
        app.read(re.compile(r"\d+ ms"))


def test_no_camera_and_no_permission_are_told_apart(new_flet, flet_address):
    without = new_flet(GRANTED).open(flet_address)
    without.press("Live camera")
    without.read("No camera was found.")
    without.press("Close")
    without.read("See depth in a single photo")
    denied = new_flet(*FAKE_CAMERA, "--deny-permission-prompts").open(flet_address)
    denied.press("Live camera")
    denied.read("The camera may not be used.")


def test_the_camera_is_live_and_a_still_of_it_becomes_a_photo(new_flet, flet_address, camera_file, tmp_path):
    app = new_flet(GRANTED, *FAKE_CAMERA, f"--use-file-for-fake-video-capture={camera_file}").open(flet_address)
    app.press("Live camera")
    app.read(re.compile(r"\d+ ms +· +\d+\.\d frames/s"))
    first = app.pixels()
    until(lambda: (np.abs(app.pixels().astype(int) - first)[80:760, 40:1060] > 40).mean() > 0.02, "another frame")
    app.press("Take photo")
    app.read("Open photos")
    saved = Image.open(app.save("Photo and depth side by side", tmp_path))
    assert saved.width == 2 * (saved.width // 2)
    photo = np.asarray(saved)[:, : saved.width // 2]
    assert photo.std() > 20
    assert load_disparity_png16(app.save("Depth, 16-bit gray", tmp_path)).shape == photo.shape[:2]


def names_on_the_screen(app: FletApp, *names: str) -> None:
    """Each of these buttons lies wholly on the page."""
    size = app.page.viewport_size
    for name in names:
        button = app.page.get_by_role("button", name=name).first
        button.wait_for(state="attached")
        box = button.bounding_box()
        assert box, name
        assert min(box["x"], box["y"]) >= 0, (name, box)
        assert box["x"] + box["width"] <= size["width"], (name, box)
        assert box["y"] + box["height"] <= size["height"], (name, box)


def test_a_phone_has_every_control(new_flet, flet_address, lossless):
    app = new_flet(size=PHONE, has_touch=True).open(flet_address)
    app.pick(lossless, button="Photos")
    app.read(re.compile(r"\d+ ms"))
    names_on_the_screen(app, "Photos", "Live", "Save", "Slider", "Overlay", "Gray", "Theme", "delta-xs")


def test_a_small_phone_has_every_control_of_two_cameras(new_flet, flet_address):
    app = new_flet(GRANTED, f"{FAKE_CAMERA[0]}=device-count=2", size=(360, 640), has_touch=True).open(flet_address)
    app.press("Live")
    app.read(re.compile(r"frames/s"))
    names_on_the_screen(app, "Take", "Stop", "Switch camera", "Mirror", "Gray", "Theme")
    app.press("Switch camera")
    app.page.get_by_role("button", name="Live").wait_for(state="attached")
    app.page.get_by_role("button", name="Stop").wait_for(state="attached")
    app.read(re.compile(r"frames/s"))
    app.press("Stop")
    app.read("See depth in a single photo")
