"""The live camera: frames that flow, one at a time, steady and unencoded, seen in every view, taken and saved."""

import numpy as np
import pytest

from delta.predict import DepthPredictor, load_disparity_png16

pytestmark = pytest.mark.app
# Counts what a live frame must not do, and how many frames wait for the worker at once.
WATCH = """
window.watched = { encoded: 0, waiting: 0, most: 0, sent: 0 };
for (const name of ["toBlob", "toDataURL"]) {
    const original = HTMLCanvasElement.prototype[name];
    HTMLCanvasElement.prototype[name] = function (...given) { watched.encoded++; return original.apply(this, given); };
}
const Original = window.Worker;
window.Worker = class extends Original {
    constructor(...given) {
        super(...given);
        this.addEventListener("message", ({ data }) => { if ("id" in data) watched.waiting--; });
    }
    postMessage(...given) {
        watched.most = Math.max(watched.most, ++watched.waiting);
        watched.sent++;
        super.postMessage(...given);
    }
};
"""


@pytest.fixture
def live(new_app):
    app = new_app(permissions=["camera"])
    app.page.add_init_script(WATCH)
    app.open()
    app.page.click("#live")
    app.until("Number(body.frames) >= 8 || body.state === 'error'")
    return app


def test_frames_flow_and_are_timed(live):
    state = live.state()
    assert state["state"] == "live"
    assert state["source"] == "live"
    live.until("find('#readout').textContent.includes('fps')")
    live.page.click("#more")
    live.page.locator("dialog[open]").wait_for()
    rows = live.page.locator("#times tr").all_inner_texts()
    assert [row.split()[0] for row in rows] == ["capture", "resize", "normalize", "infer", "color", "draw"]
    assert live.problems == []


def test_a_frame_is_neither_queued_nor_encoded(live):
    watched = live.page.evaluate("watched")
    assert watched["sent"] > 8
    assert watched["most"] == 1
    assert watched["encoded"] == 0


def test_the_picture_moves(live):
    first = live.pixels("#depth").astype(int)
    frames = int(live.state()["frames"])
    live.until(f"Number(body.frames) >= {frames + 3}")
    assert np.abs(first - live.pixels("#depth")).mean() > 1


@pytest.mark.parametrize("view", ["depth", "side", "overlay", "slider", "relief"])
def test_every_view_goes_on_while_frames_flow(live, view):
    live.choose("views", view)
    frames = int(live.state()["frames"])
    state = live.until(f"Number(body.frames) >= {frames + 2} || body.state === 'error'")
    assert state["view"] == view
    opacity = live.page.evaluate("getComputedStyle(document.querySelector('#video')).opacity")
    assert opacity == ("1" if view == "side" else "0")
    assert live.problems == []


def test_the_preview_is_mirrored_and_the_saved_picture_is_not(live, app_bundle, tmp_path):
    assert "mirrored" in live.page.get_attribute("#scene", "class")
    live.page.click("#freeze")
    live.until("body.source === 'photo' && body.result === 'shown' && body.state === 'ready'")
    pair = live.saved("pair", tmp_path)
    photo = pair[:, : pair.shape[1] // 2]
    found = load_disparity_png16(live.save("depth16", tmp_path))
    expected = DepthPredictor.open(app_bundle).predict(np.ascontiguousarray(photo))
    assert np.abs(found - expected).max() <= 2e-4 * np.ptp(expected)


def test_a_frame_can_be_saved_while_the_camera_runs(live, app_bundle, tmp_path):
    pair = live.saved("pair", tmp_path)
    assert pair.shape == (480, 1280, 3)
    assert live.state()["state"] == "live"
    left, right = pair[:, :640].astype(int), pair[:, 640:].astype(int)
    assert left.std() > 10
    assert right.std() > 10


def test_the_camera_stops_when_it_is_told_to(live):
    live.page.click("#live")
    state = live.until("body.source === 'example' && body.result === 'shown'")
    assert state["state"] == "ready"
    assert live.page.evaluate("document.querySelector('#video').srcObject") is None


def test_a_camera_that_is_unplugged_is_told_and_can_be_started_again(live):
    live.page.evaluate(
        """() => document.querySelector("#video").srcObject.getVideoTracks()[0].dispatchEvent(new Event("ended"))"""
    )
    assert live.until("body.state === 'error'")["error"] == "camera-lost"
    live.page.click("#notice-retry")
    live.until("body.state === 'live' && Number(body.frames) >= 2")


def test_space_takes_the_picture_and_c_starts_the_camera(new_app):
    app = new_app(permissions=["camera"]).open()
    app.page.keyboard.press("c")
    app.until("Number(body.frames) >= 2")
    app.page.keyboard.press(" ")
    app.until("body.source === 'photo' && body.result === 'shown'")
