"""On a host that sends no special headers, below a sub path: installed, isolated, offline, updated."""

import functools
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytestmark = pytest.mark.app
BELOW = "some/where/delta/"


class PlainHost(SimpleHTTPRequestHandler):
    """What a host of static pages does, and no more."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript", ".js": "text/javascript"}

    def log_request(self, *args: object) -> None:
        self.server.asked.append(self.path)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Host:
    """A static host that can be stopped and started again at its address."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self.start()

    @property
    def address(self) -> str:
        return f"http://localhost:{self.port}/{BELOW}"

    def start(self) -> None:
        handler = functools.partial(PlainHost, directory=str(self.folder))
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self.asked = self.server.asked = []  # the paths that were fetched from here, since the start
        self.port = self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def host(site: Path, tmp_path: Path) -> Iterator[Host]:
    shutil.copytree(site, tmp_path / "host" / BELOW, symlinks=True)
    running = Host(tmp_path / "host")
    yield running
    running.stop()


@pytest.fixture
def visited(new_app, host: Host):
    """A page of `host` that has been visited once, its files saved."""
    app = new_app(at=host.address, service_workers="allow").open()
    app.until("body.offline === 'ready'")
    return app


def test_threads_work_from_the_second_visit(visited):
    assert visited.page.evaluate("crossOriginIsolated") is False
    assert visited.state()["threads"] == "1"
    visited.page.reload()
    state = visited.until("body.results === '1'")
    assert visited.page.evaluate("crossOriginIsolated") is True
    assert state["threads"] == str(min(4, os.cpu_count() or 1))
    assert visited.problems == []


def test_it_works_with_the_server_stopped(visited, host: Host, png_photo, tmp_path):
    host.stop()
    with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
        probe.connect(("127.0.0.1", host.port))
    visited.page.reload()
    visited.until("body.results === '1'")
    assert visited.show(png_photo)["state"] == "ready"
    assert visited.save("depth", tmp_path).stat().st_size > 1000
    assert visited.problems == []
    other = visited.page.locator("#model option").nth(1).get_attribute("value")
    visited.page.select_option("#model", other)  # which nobody has used: it was not saved
    visited.until("body.state === 'error'")
    assert visited.state()["error"] == "network"
    host.start()
    visited.page.click("#notice-retry")
    visited.until(f"body.model === '{other}' && body.state === 'ready'")


def test_a_model_that_was_used_once_is_there_offline(visited, host: Host):
    visited.page.reload()
    visited.until("body.results === '1'")
    other = visited.page.locator("#model option").nth(1).get_attribute("value")
    visited.page.select_option("#model", other)
    visited.until(f"body.model === '{other}' && body.state === 'ready' && Number(body.results) > 1")
    host.stop()
    visited.page.reload()
    assert visited.until("body.results === '1'")["model"] == other
    host.start()


def test_browsers_offer_to_install_it(visited):
    page = visited.page
    page.reload()
    visited.until("body.results === '1'")
    devtools = page.context.new_cdp_session(page)
    manifest = devtools.send("Page.getAppManifest")
    assert manifest["errors"] == []
    assert manifest["url"].endswith(f"{BELOW}manifest.webmanifest")
    errors = devtools.send("Page.getInstallabilityErrors")["installabilityErrors"]
    assert [error["errorId"] for error in errors if error["errorId"] != "in-incognito"] == []  # contexts are incognito


def test_a_new_build_is_offered_and_fetches_only_what_changed(visited, host: Host, app_bundle: Path):
    from delta_pipelines.app_site import build_site

    folder = host.folder / BELOW
    before = visited.page.evaluate(
        "caches.keys().then(([name]) => caches.open(name)).then((c) => c.keys()).then((k) => k.length)"
    )
    model = next((folder / "models").rglob("*.onnx"))
    build_site([model], folder, webgpu=False)
    host.asked.clear()
    visited.page.reload()
    with visited.page.expect_navigation():
        visited.page.locator("#toast-act", has_text="Reload").click()
    visited.until("body.results === '1' && document.querySelectorAll('#model option').length === 1")
    after = visited.page.evaluate(
        "caches.keys().then(([name]) => caches.open(name)).then((c) => c.keys()).then((k) => k.length)"
    )
    assert before > 20
    assert after > 20
    assert [path for path in host.asked if path.endswith("/sw.js")]
    assert not [path for path in host.asked if "/ort/" in path]
