"""What the Flet app is made of: live colors, places on the stage, cameras, the copy for phones, imports."""

import asyncio
import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from delta import bundled
from delta.bundle import choose_model
from delta.colormaps import COLORMAPS, color_table, colorize
from delta_flet.desktop_camera import DesktopCamera
from delta_flet.frames import CameraTrouble, FrameRate, trouble_of, turns_to_upright, upright
from delta_flet.layout import Box, places
from delta_flet.pictures import depth_for_screen, for_screen, paint
from delta_flet.session import Comparison

ROOT = Path(__file__).parent.parent.parent
APP = ROOT / "app" / "flet"


def painted(disparity: np.ndarray, colormap: str, low: float, high: float) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(paint(disparity, colormap, low, high))).convert("RGB"))


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    low=st.floats(-100, 100),
    extent=st.floats(1e-3, 100),
)
def test_live_colors_are_at_most_one_level_from_the_exact_ones(seed, shape, low, extent):
    disparity = np.random.default_rng(seed).uniform(low - extent, low + 2 * extent, shape).astype(np.float32)
    exact = colorize(disparity, "gray", low, low + extent).astype(int)
    assert np.abs(painted(disparity, "gray", low, low + extent) - exact).max() <= 1


@pytest.mark.parametrize("colormap", COLORMAPS)
def test_every_color_of_a_table_is_reached_live(colormap):
    levels = np.arange(256, dtype=np.float32)[None]
    np.testing.assert_array_equal(painted(levels, colormap, 0, 255)[0], color_table(colormap))


def test_a_flat_live_map_gets_the_middle_color_and_what_is_not_finite_the_far_one():
    flat = np.full((2, 3), 7, dtype=np.float32)
    assert (painted(flat, "viridis", 7, 7) == color_table("viridis")[128]).all()
    broken = np.array([[np.nan, np.inf, -np.inf, 1]], dtype=np.float32)
    np.testing.assert_array_equal(painted(broken, "gray", 0, 1)[0, :, 0], [0, 0, 0, 255])


def test_what_goes_to_the_screen_is_no_larger_than_a_screen_and_keeps_its_aspect():
    large = np.zeros((3000, 4000, 3), dtype=np.uint8)
    assert for_screen(large).size == (1280, 960)
    assert depth_for_screen(np.zeros((3000, 4000), dtype=np.float32), "gray").size == (1280, 960)
    assert for_screen(large[:30, :40]).size == (40, 30)


sides = st.floats(40, 4000)


@given(st.sampled_from(Comparison), sides, sides, st.floats(0.3, 3), st.floats(0, 1))
def test_pictures_stay_on_the_stage_and_keep_their_aspect(comparison, width, height, aspect, mix):
    found = places(comparison, width, height, aspect, mix)
    for box in filter(None, (found.photo, found.depth)):
        assert box.width / box.height == pytest.approx(aspect)
    for box in filter(None, (found.photo, found.depth, found.window)):
        assert min(box.left, box.top) >= -1e-6
        assert box.left + box.width <= width + 1e-6
        assert box.top + box.height <= height + 1e-6


@given(sides, sides, st.floats(0.3, 3))
def test_side_by_side_does_not_overlap_and_takes_the_larger_of_two_arrangements(width, height, aspect):
    found = places(Comparison.SIDE, width, height, aspect, 0.5)
    photo, depth = found.photo, found.depth
    assert (photo.width, photo.height) == pytest.approx((depth.width, depth.height))
    beside, above = depth.left >= photo.left + photo.width, depth.top >= photo.top + photo.height
    assert beside or above
    best = max(min((width - 12) / 2, height * aspect), min(width, (height - 12) / 2 * aspect))
    assert photo.width == pytest.approx(best)


def test_the_slider_shows_the_photo_up_to_it_and_the_depth_beyond():
    found = places(Comparison.SLIDER, 400, 200, 2.0, 0.25)
    assert found.photo == found.depth == Box(0, 0, 400, 200)
    assert found.window == Box(100, 0, 300, 200)


def test_the_rate_is_of_the_last_two_seconds():
    rate = FrameRate(window_s=2.0)
    assert rate.count(0.0) == 0
    assert rate.count(0.5) == pytest.approx(2)
    for index in range(40):
        found = rate.count(10 + index / 10)
    assert found == pytest.approx(10)


# A back camera is mounted at 90 degrees and a front camera at 270 in nearly every phone.
@pytest.mark.parametrize(
    ("sensor", "device", "front", "turns"),
    [
        (90, "portraitUp", False, 1),
        (90, "landscapeLeft", False, 0),
        (90, "portraitDown", False, 3),
        (90, "landscapeRight", False, 2),
        (270, "portraitUp", True, 3),
        (270, "landscapeLeft", True, 0),
        (0, "unknown", False, 0),
    ],
)
def test_a_phones_frame_is_turned_upright(sensor, device, front, turns):
    assert turns_to_upright(sensor, device, front) == turns


def test_turning_is_clockwise():
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3, 1).repeat(3, axis=2)
    assert upright(pixels, 1)[..., 0].tolist() == [[3, 0], [4, 1], [5, 2]]
    assert upright(pixels, 0) is pixels


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("CameraException(CameraAccessDenied, NotAllowedError)", "the camera may not be used"),
        ("PlatformException(notFound, Requested device not found)", "no camera was found"),
        ("[Errno 2] No such file or directory: '/dev/video0'", "no camera was found"),
        ("[Errno 16] Device or resource busy", "the camera is in use by another program"),
        ("cameraNotReadable, Could not start video source", "the camera is in use by another program"),
        ("navigator.mediaDevices is undefined", "this page may not use cameras"),
        ("a new kind of error", "the camera cannot be used: a new kind of error"),
    ],
)
def test_a_cameras_error_becomes_a_sentence_and_a_way_out(message, sentence):
    trouble = trouble_of(message)
    assert str(trouble) == sentence
    assert trouble.hint


def test_a_desktop_camera_gives_its_newest_frame_and_can_be_opened_again():
    pytest.importorskip("av", reason="NOT TESTED: PyAV is not installed")

    async def look() -> None:
        camera = DesktopCamera("lavfi", ["testsrc=size=64x48:rate=200"])
        for _ in range(2):
            info = await camera.open(3)
            assert (info.count, info.mirrored) == (1, True)
            first, second = (await camera.frame()).pixels, (await camera.frame()).pixels
            assert first.shape == (48, 64, 3)
            assert first.std() > 10
            assert second.shape == first.shape
            await camera.close()

    asyncio.run(look())


@pytest.mark.parametrize("devices", [[], ["/dev/video99"]])
def test_a_desktop_without_a_camera_is_told_so(devices):
    pytest.importorskip("av", reason="NOT TESTED: PyAV is not installed")
    with pytest.raises(CameraTrouble, match=r"^no camera was found$"):
        asyncio.run(DesktopCamera("v4l2", devices).open(0))


def test_a_desktop_without_pyav_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(CameraTrouble, match="a desktop's camera needs PyAV, which is not installed") as error:
        asyncio.run(DesktopCamera().open(0))
    assert error.value.hint == "pip install 'delta-depth[video]'"


def test_a_camera_that_ends_says_so():
    pytest.importorskip("av", reason="NOT TESTED: PyAV is not installed")

    async def look() -> None:
        camera = DesktopCamera("lavfi", ["testsrc=size=64x48:rate=200:duration=0.02"])
        await camera.open(0)
        try:
            for _ in range(9):
                await camera.frame()
        finally:
            await camera.close()

    with pytest.raises(CameraTrouble, match="the camera gives no more frames"):
        asyncio.run(look())


def test_a_browsers_camera_leaves_the_page_only_after_the_still_that_is_under_way():
    pytest.importorskip("flet_camera", reason="NOT TESTED: flet is not installed: pip install 'delta-depth[flet]'")
    from delta_flet.client_camera import ClientCamera

    async def look() -> list[str]:
        order, asked, answer = [], asyncio.Event(), asyncio.Event()

        async def take_picture() -> bytes:
            asked.set()
            await answer.wait()
            order.append("still")
            return b""

        camera = ClientCamera(turns_frames=False)
        camera._control = SimpleNamespace(take_picture=take_picture)
        camera._hold = lambda _: order.append("gone")
        frame = asyncio.create_task(camera.frame())
        await asked.wait()
        frame.cancel()
        closing = asyncio.create_task(camera.close())
        await asyncio.sleep(0.01)
        assert order == []
        answer.set()
        await closing
        return order

    assert asyncio.run(look()) == ["still", "gone"]


class Picked:
    """Flet's file dialog, as it answers: two files, of which a browser fails to send the second."""

    def __init__(self, folder: Path) -> None:
        import flet as ft

        self.folder, self.note = folder, None
        self.files = [
            ft.FilePickerFile(name=name, size=3, id=index, path=str(folder / name))
            for index, name in enumerate(["a.jpg", "gone.jpg"])
        ]

    async def pick_files(self, **_: object) -> list:
        return self.files

    async def upload(self, requests: list) -> None:
        (self.folder / requests[0].upload_url).parent.mkdir()
        (self.folder / requests[0].upload_url).write_bytes(b"sent")
        self.note(SimpleNamespace(error=None, progress=0.5))
        self.note(SimpleNamespace(error=None, progress=1))
        self.note(SimpleNamespace(error="the connection broke", progress=None))


@pytest.mark.parametrize(("web", "content"), [(False, b"disk"), (True, b"sent")])
def test_picked_photos_are_read_where_they_are_and_one_that_cannot_be_is_none(tmp_path, web, content):
    pytest.importorskip("flet", reason="NOT TESTED: flet is not installed: pip install 'delta-depth[flet]'")
    from delta_flet.picking import PhotoPicker

    page = SimpleNamespace(web=web, get_upload_url=lambda place, _: place)
    picker, dialog = PhotoPicker(page, tmp_path), Picked(tmp_path)
    dialog.note, picker._picker = picker._note, dialog
    (tmp_path / "a.jpg").write_bytes(b"disk")
    assert asyncio.run(picker.pick()) == [("a.jpg", content), ("gone.jpg", None)]
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]  # what was sent does not stay


def modules_after(statement: str, *paths: Path, python: tuple[str, ...] = ()) -> dict:
    """Run a statement in a fresh interpreter that finds Delta only under `paths`."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(
        [sys.executable, *python, "-c", code], cwd=paths[0], env=environment, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


HEAVY = {"torch", "torchvision", "transformers", "timm", "zarr", "dask", "matplotlib", "onnx", "pandas", "scipy"}


def test_importing_the_app_loads_nothing_that_a_phone_lacks():
    if importlib.util.find_spec("flet") is None or importlib.util.find_spec("flet_camera") is None:
        pytest.skip("NOT TESTED: flet is not installed: pip install 'delta-depth[flet]'")
    loaded = modules_after("import delta_flet.app, delta_flet.client_camera", APP / "src", ROOT)
    assert "delta.predict" in loaded
    assert not HEAVY & set(loaded)


def test_the_logic_of_the_app_loads_no_flet():
    logic = "import delta_flet.session, delta_flet.layout, delta_flet.desktop_camera"
    assert not {"flet", "av"} & set(modules_after(logic, APP / "src", ROOT))


def test_the_copy_for_phones_predicts_without_delta_being_installed(tmp_path):
    stage = subprocess.run(
        [sys.executable, APP / "stage.py", tmp_path / "copy"], capture_output=True, encoding="utf-8", check=False
    )
    assert stage.returncode == 0, stage.stderr
    source = tmp_path / "copy" / "src"
    assert not list(source.rglob("train*.py"))
    predict = f"""
import importlib.abc
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
from delta import bundled
from delta_flet.models import find_models
from delta_flet.session import Session
assert bundled.__file__.startswith({str(source)!r}), bundled.__file__
session = Session(find_models([], {{}}), threads=1)
assert len(session.choices) == 2
photo = sorted(bundled.PHOTOS.glob("*.jpg"))[0]
assert session.add_photo(photo.name, photo.read_bytes()) and session.show(0), session.troubles
"""
    assert "onnxruntime" in modules_after(predict, source)


def test_the_apps_own_dependencies_are_what_the_copy_imports():
    import tomllib

    listed = tomllib.loads((APP / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    names = {line.partition(">")[0] for line in listed}
    assert names == {"flet", "flet-camera", "jaxtyping", "msgspec", "numpy", "onnxruntime", "pillow"}


@pytest.mark.parametrize("student", bundled.STUDENTS.values(), ids=lambda path: path.name)
def test_the_shipped_students_are_old_enough_for_the_onnxruntime_of_phones(student):
    """Theirs is 1.27; opset 21 and IR 10 are read since 1.20."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(choose_model(student), load_external_data=False)
    assert model.ir_version <= 10
    assert max(entry.version for entry in model.opset_import) <= 21
