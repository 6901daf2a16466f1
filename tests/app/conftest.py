"""The web app in a real Chromium: a bundle, the site built from it, a server to stop, and pages to drive."""

import base64
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from delta import bundled
from delta.bundle import BundleCard, ModelFile, choose_model, write_bundle_card
from delta.errors import DeltaError
from delta.images import read_photo
from delta_pipelines import app_browser
from delta_pipelines.app_browser import CAMERA, find_chromium, write_scene

SIZES = ((128, 128), (64, 128))
WAIT_S = 60


@pytest.fixture(scope="session")
def app_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled student as a bundle of two small sizes, by the job of `delta export`; or $DELTA_APP_BUNDLE."""
    if "DELTA_APP_BUNDLE" in os.environ:
        return Path(os.environ["DELTA_APP_BUNDLE"])
    from delta_pipelines.export_bundle import ExportRecipe, export_bundle
    from delta_pipelines.recipe import load_recipe

    folder = tmp_path_factory.mktemp("app") / "tiny"
    recipe = load_recipe(ExportRecipe, "export", ["verify_photos=3", "calibration_photos=3", "search_photos=3"])
    export_bundle(recipe, bundled.STUDENT, folder, bundled.PHOTOS, sizes=SIZES, precisions=("fp32",))
    return folder


@pytest.fixture(scope="session")
def site(app_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The app built from `app_bundle`; not to be changed."""
    from delta_pipelines.app_site import build_site

    folder = tmp_path_factory.mktemp("app") / "site"
    build_site([app_bundle], folder)
    return folder


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    """Where `site` is served."""
    from delta_pipelines.app_serve import serving

    with serving(site) as address:
        yield address


@pytest.fixture(scope="session")
def camera_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A moving scene for the fake camera."""
    return write_scene(tmp_path_factory.mktemp("camera") / "scene.mjpeg")


@pytest.fixture(scope="session")
def playwright() -> Iterator[Any]:
    """Playwright, where there is a Chromium for it to drive."""
    try:
        find_chromium()
    except DeltaError as error:
        pytest.skip(f"NOT TESTED: {error}: {error.hint}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="session")
def launch(playwright: Any) -> Iterator[Callable[..., Any]]:
    """`launch(*arguments)` starts a Chromium, or returns the one that already runs with these."""
    running: dict[Sequence[str], Any] = {}

    def start(*arguments: str) -> Any:
        if arguments not in running:
            running[arguments] = app_browser.launch(playwright, *arguments)
        return running[arguments]

    yield start
    for browser in running.values():
        browser.close()


@pytest.fixture(scope="session")
def browser(launch: Callable[..., Any], camera_file: Path) -> Any:
    """A Chromium with a fake camera that shows `camera_file`, which may be used without asking."""
    return launch(*CAMERA, f"--use-file-for-fake-video-capture={camera_file}")


class App:
    """A page of the app: what a test does to it and waits for."""

    def __init__(self, page: Any, address: str) -> None:
        self.page = page
        self.address = address
        self.problems: list[str] = []  # what the console or the page complained about
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda line: line.type == "error" and self.problems.append(line.text))

    def open(self, query: str = "") -> "App":
        """Load the page and wait for the depth of the first example, or for an error."""
        self.page.goto(self.address + query)
        self.until("body.results === '1' || body.state === 'error'")
        return self

    def state(self) -> dict[str, str]:
        """What the page says about itself: the data attributes of its body."""
        return self.page.evaluate("() => ({ ...document.body.dataset })")

    def until(self, condition: str, seconds: float = WAIT_S) -> dict[str, str]:
        """Wait until `condition`, of `body` (its data attributes) and `find(selector)`, holds."""
        script = f"""async deadline => {{
            const body = document.body.dataset, find = (selector) => document.querySelector(selector);
            for (const end = performance.now() + deadline; performance.now() < end; ) {{
                if ({condition}) return true;
                await new Promise((resolve) => setTimeout(resolve, 20));
            }}
            return false;
        }}"""
        held = self.page.evaluate(script, seconds * 1000)
        state = self.state()
        assert held, f"waited {seconds} s in vain for {condition}: {state} {self.problems}"
        return state

    def show(self, photo: Path) -> dict[str, str]:
        """Choose a photo from a file and wait for its depth."""
        before = int(self.state()["results"])
        self.page.set_input_files("#file", photo)
        return self.until(f"Number(body.results) > {before} && body.source === 'photo' || body.state === 'error'")

    def choose(self, group: str, value: str) -> None:
        """Choose a view or colors."""
        self.page.check(f"#{group} [value={value}]", force=True)

    def save(self, kind: str, folder: Path) -> Path:
        """Save by the menu; returns the file."""
        self.page.click("#save")
        with self.page.expect_download() as download:
            self.page.click(f"[data-save={kind}]")
        path = folder / download.value.suggested_filename
        download.value.save_as(path)
        return path

    def saved(self, kind: str, folder: Path) -> np.ndarray:
        """Save by the menu; returns the pixels of the file."""
        with Image.open(self.save(kind, folder)) as image:
            return np.asarray(image)

    def pixels(self, selector: str) -> np.ndarray:
        """RGB of a canvas."""
        width, height, data = self.page.evaluate(
            """selector => {
                const canvas = document.querySelector(selector);
                const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
                copy.drawImage(canvas, 0, 0);
                const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
                let text = "";
                for (let i = 0; i < data.length; i += 8192) text += String.fromCharCode(...data.subarray(i, i + 8192));
                return [canvas.width, canvas.height, btoa(text)];
            }""",
            selector,
        )
        return np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4)[..., :3]


@pytest.fixture
def new_app(browser: Any, address: str) -> Iterator[Callable[..., App]]:
    """`new_app(browser=…, address=…, **context options)` is a page in a context of its own, not opened yet."""
    contexts = []

    def make(in_browser: Any = None, at: str = address, **options: Any) -> App:
        context = (in_browser or browser).new_context(**{"service_workers": "block"} | options)
        contexts.append(context)
        return App(context.new_page(), at)

    yield make
    for context in contexts:
        context.close()


@pytest.fixture
def app(new_app: Callable[..., App]) -> App:
    """An opened page that has shown its first example; its service worker is blocked."""
    return new_app().open()


@pytest.fixture(scope="session")
def png_photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo without loss, so that browser and Python decode the same pixels."""
    path = tmp_path_factory.mktemp("photo") / "a lighthouse.png"
    Image.fromarray(read_photo(bundled.PHOTOS / "kodak_0013.jpg")).resize((300, 200)).save(path)
    return path


@pytest.fixture
def two_models(tmp_path: Path) -> Path:
    """A bundle that costs nothing: the bundled student twice, the larger one listed first. Its sizes are made up."""
    content, folder = choose_model(bundled.STUDENT).read_bytes(), tmp_path / "two"
    folder.mkdir()
    facts: dict[str, Any] = {
        "precision": "fp32",
        "batch": 1,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "receipt": {},
    }
    models = []
    for file, size_px in {"large.onnx": (256, 256), "small.onnx": (128, 192)}.items():
        (folder / file).write_bytes(content)
        models.append(ModelFile(file=file, size_px=size_px, **facts))
    card = BundleCard(student={}, teacher="nobody", licence="Apache-2.0", models=tuple(models), made_with={})
    write_bundle_card(folder, card)
    return folder
