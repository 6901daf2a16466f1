"""A Chromium to drive the app with, and a scene for its fake camera: what the bench and the tests share."""

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from delta import bundled
from delta.errors import DeltaError

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-unsafe-swiftshader",  # WebGL without a GPU
)
CAMERA = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
SCENE_PX, SCENE_FRAMES, PHOTO_PX = (640, 480), 24, (960, 640)


def find_chromium() -> str:
    """Name the browser: $DELTA_CHROMIUM, or the first on PATH.

    Raises:
        DeltaError: there is none.
    """
    for name in filter(None, (os.environ.get("DELTA_CHROMIUM"), *NAMES)):
        found = shutil.which(name)
        if found:
            return found
    raise DeltaError("there is no Chromium on PATH", "apt-get install chromium, or name one with DELTA_CHROMIUM")


def launch(playwright: "Playwright", *arguments: str) -> "Browser":
    """Start a Chromium without a window."""
    return playwright.chromium.launch(executable_path=find_chromium(), args=[*ARGUMENTS, *arguments])


@contextmanager
def chromium(*arguments: str) -> Iterator["Browser"]:
    """Drive a Chromium until the block ends.

    Raises:
        DeltaError: no Chromium, or Playwright is not installed.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise DeltaError("driving a browser needs Playwright", "pip install 'delta-depth[app]'") from None
    with sync_playwright() as playwright:
        browser = launch(playwright, *arguments)
        try:
            yield browser
        finally:
            browser.close()


def write_scene(path: Path) -> Path:
    """Write a moving scene as Motion JPEG, what Chromium's fake camera reads: a window that wanders over a photo."""
    with Image.open(bundled.PHOTOS / "kodak_0012.jpg") as file:
        photo = file.convert("RGB").resize(PHOTO_PX)
    (width, height), (across, down) = SCENE_PX, (PHOTO_PX[0] - SCENE_PX[0], PHOTO_PX[1] - SCENE_PX[1])
    with path.open("wb") as film:
        for index in range(SCENE_FRAMES):
            turn = 2 * math.pi * index / SCENE_FRAMES
            left, top = round(across * (1 + math.sin(turn)) / 2), round(down * (1 + math.cos(turn)) / 2)
            photo.crop((left, top, left + width, top + height)).save(film, "JPEG", quality=85)
    return path
