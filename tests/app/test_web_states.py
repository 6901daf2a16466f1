"""Everything that can go wrong is told in words, with a way out, and leaves the rest of the app at work."""

import os
import re
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.app
IPHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148 Safari/604.1"
RUNTIME = re.compile(r"ort/ort\.wasm\.min\.mjs")
MODEL = re.compile(r"\.onnx$")


def told(app, code: str, title: str) -> None:
    """The app shows this trouble, as an alert, with a hint."""
    state = app.until("body.state === 'error'")
    assert state["error"] == code
    assert app.page.inner_text("#notice-text[role=alert] h2") == title
    assert len(app.page.inner_text("#notice-hint")) > 20


def test_no_camera(new_app, launch):
    app = new_app(launch()).open()
    app.page.click("#live")
    told(app, "camera-none", "No camera found")
    app.page.click("#notice-close")
    assert app.state()["state"] == "ready"


def test_a_camera_that_is_denied(new_app, launch, png_photo):
    app = new_app(launch("--use-fake-device-for-media-stream", "--deny-permission-prompts")).open()
    app.page.click("#live")
    told(app, "camera-denied", "The camera is blocked")
    assert app.show(png_photo)["state"] == "ready"
    assert app.page.is_hidden("#notice")


def test_a_page_that_is_not_secure(new_app, launch, address):
    browser = launch("--host-resolver-rules=MAP delta.test 127.0.0.1")
    app = new_app(browser, address.replace("localhost", "delta.test")).open()
    assert app.state()["digest"] == "unchecked"
    assert "Not a secure page" in app.page.inner_text("#toast")
    app.page.click("#live")
    told(app, "camera-insecure", "Browsers give the camera only to secure pages")


def test_a_model_with_one_wrong_byte_is_not_loaded(new_app, app_bundle):
    app = new_app()

    def damage(route):
        body = bytearray(route.fetch().body())
        body[len(body) // 2] ^= 1
        route.fulfill(body=bytes(body))

    app.page.route(MODEL, damage)
    app.open()
    told(app, "digest", "The model file is damaged")
    app.page.unroute(MODEL)
    app.page.click("#notice-retry")
    app.until("body.results === '1' && body.state === 'ready'")


@pytest.mark.parametrize("cut", [-7, 7])
def test_a_model_of_another_length_is_not_loaded(new_app, cut):
    app = new_app()

    def change(route):
        body = route.fetch().body()
        route.fulfill(body=body[:cut] if cut < 0 else body + bytes(cut))

    app.page.route(MODEL, change)
    told(app.open(), "digest", "The model file is damaged")


def test_a_model_that_cannot_be_fetched(new_app):
    app = new_app()
    app.page.route(MODEL, lambda route: route.abort())
    told(app.open(), "network", "A file could not be fetched")
    app.page.unroute(MODEL)
    app.page.click("#notice-retry")
    app.until("body.results === '1'")


@pytest.mark.parametrize(
    ("message", "code", "title"),
    [
        ("WebAssembly.Memory(): could not allocate memory", "memory", "Not enough memory"),
        ("Aborted(OOM): out of memory", "memory", "Not enough memory"),
        ("something else", "model", "The model cannot be loaded"),
    ],
)
def test_an_engine_that_fails_says_why(new_app, message, code, title):
    runtime = f"""export const env = {{ wasm: {{}} }};
        export const InferenceSession = {{ create() {{ throw new RangeError({message!r}); }} }};"""
    app = new_app()
    app.page.route(RUNTIME, lambda route: route.fulfill(body=runtime, content_type="text/javascript"))
    told(app.open(), code, title)


def test_an_engine_that_does_not_load(new_app):
    app = new_app()
    app.page.route(RUNTIME, lambda route: route.abort())
    told(app.open(), "runtime", "The engine did not load")


def test_an_engine_that_never_starts_is_given_up(new_app):
    hangs = "export const env = { wasm: {} }; export const InferenceSession = { create: () => new Promise(() => {}) };"
    app = new_app()
    app.page.clock.install()
    app.page.route(RUNTIME, lambda route: route.fulfill(body=hangs, content_type="text/javascript"))
    app.page.goto(app.address + "?threads=1")
    app.page.locator("#state", has_text="Preparing the model").wait_for()
    app.page.clock.fast_forward(61_000)
    app.page.locator("body[data-state=error]").wait_for(state="attached")
    told(app, "timeout", "The engine did not start in time")


def test_a_browser_without_simd(new_app):
    app = new_app()
    app.page.add_init_script("WebAssembly.validate = () => false;")
    told(app.open(), "simd", "This browser is too old")


def test_webgpu_that_does_not_work_falls_back_to_the_processor(new_app):
    app = new_app()
    app.page.add_init_script(
        "Object.defineProperty(navigator, 'gpu', { value: { requestAdapter: async () => null } });"
    )
    app.open("?engine=webgpu")
    state = app.state()
    assert state["engine"] == "wasm"
    assert state["fellBack"] == "webgpu"
    assert "WebGPU does not work here" in app.page.inner_text("#toast")


def test_webgpu_that_hangs_falls_back_in_time(new_app):
    hangs = "export const env = { wasm: {} }; export const InferenceSession = { create: () => new Promise(() => {}) };"
    app = new_app()
    app.page.add_init_script(
        "Object.defineProperty(navigator, 'gpu', { value: { requestAdapter: async () => ({}) } });"
    )
    app.page.route(
        re.compile(r"ort/ort\.webgpu"), lambda route: route.fulfill(body=hangs, content_type="text/javascript")
    )
    app.page.clock.install()
    app.page.goto(app.address + "?engine=webgpu")
    app.page.locator("#state", has_text="Preparing the model").wait_for()
    app.page.clock.fast_forward(31_000)
    app.page.clock.resume()
    state = app.until("body.results === '1'")
    assert (state["engine"], state["fellBack"]) == ("wasm", "webgpu")


def test_threads_where_the_page_is_isolated(app):
    state = app.state()
    assert state["threads"] == str(min(4, os.cpu_count() or 1))
    app.page.click("#more")
    app.page.select_option("#threads", "1")
    app.page.keyboard.press("Escape")
    app.until("body.threads === '1' && body.state === 'ready' && body.result === 'shown'")


def test_one_thread_by_default_on_ios(new_app):
    assert new_app(user_agent=IPHONE).open().state()["threads"] == "1"


def test_a_file_that_is_no_picture(app, tmp_path):
    (tmp_path / "notes.png").write_text("no picture")
    app.show(tmp_path / "notes.png")
    told(app, "photo-unreadable", "This file is not a picture the browser can read")


def test_a_picture_that_is_too_small(app, tmp_path):
    Image.new("RGB", (31, 200)).save(tmp_path / "small.png")
    app.show(tmp_path / "small.png")
    told(app, "photo-small", "This picture is too small")


def test_a_picture_of_many_megapixels_is_scaled_down_and_shown(app, tmp_path):
    Image.linear_gradient("L").resize((5000, 3000)).convert("RGB").save(tmp_path / "large.jpg", quality=60)
    assert app.show(tmp_path / "large.jpg")["state"] == "ready"
    assert app.saved("depth16", tmp_path).shape == (2458, 4096)


def test_nothing_is_asked_of_any_other_host(app, png_photo, address: str):
    asked: list[str] = []
    app.page.on("request", lambda request: asked.append(request.url))
    app.page.reload()
    app.until("body.results === '1'")
    app.show(png_photo)
    assert asked
    assert {url for url in asked if not url.startswith((address, "blob:"))} == set()


def test_a_site_without_its_models_says_so(new_app):
    app = new_app()
    app.page.route(re.compile(r"models\.json"), lambda route: route.fulfill(status=404))
    told(app.open(), "network", "A file could not be fetched")


def test_both_models_of_the_bundle_can_be_picked(app, app_bundle: Path):
    names = app.page.locator("#model option").all_inner_texts()
    assert len(names) == 2
    first, second = (option.get_attribute("value") for option in app.page.locator("#model option").all())
    assert app.state()["model"] == first
    results = int(app.state()["results"])
    app.page.select_option("#model", second)
    app.until(f"body.model === '{second}' && Number(body.results) > {results}")
    app.page.reload()
    app.until("body.results === '1'")
    assert app.state()["model"] == second
