"""What a camera gives: frames, which way up they are, and why there may be none. Knows no Flet."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import UInt8

from delta.errors import DeltaError

QUARTER_TURNS = {"portraitUp": 0, "landscapeLeft": 1, "portraitDown": 2, "landscapeRight": 3}  # of the device


class CameraTrouble(DeltaError):
    """Why there is no picture from a camera, and what a person can do about it."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """RGB pixels, upright, not mirrored; `encoded` is the JPEG they came as, where showing it again is cheaper."""

    pixels: UInt8[np.ndarray, "h w 3"]
    encoded: bytes = b""


@dataclass(frozen=True, kw_only=True)
class CameraInfo:
    """A camera that was opened, out of `count`; `mirrored` where people expect to see themselves as in a mirror."""

    name: str
    count: int
    mirrored: bool


class Camera(Protocol):
    """Where frames come from. All raise CameraTrouble."""

    async def open(self, index: int) -> CameraInfo:
        """Start the camera with this number, counted around where there are fewer."""
        ...

    async def frame(self) -> Frame:
        """Wait for a frame newer than the last one; those in between are dropped."""
        ...

    async def close(self) -> None:
        """Stop the camera; what is closed can be opened again."""
        ...


def turns_to_upright(sensor_orientation: int, device_orientation: str, front: bool) -> int:
    """Count the quarter turns clockwise that set a phone's raw frame upright.

    `sensor_orientation` is in degrees clockwise. After Android's Camera documentation: the device's own turn is
    subtracted for a back camera and added for a front camera.
    """
    device = QUARTER_TURNS.get(device_orientation, 0)
    return (sensor_orientation // 90 + (device if front else -device)) % 4


def upright(pixels: UInt8[np.ndarray, "h w 3"], turns: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Turn a frame clockwise by `turns` quarters."""
    return np.ascontiguousarray(np.rot90(pixels, -turns)) if turns else pixels


def trouble_of(message: str) -> CameraTrouble:
    """Say in one sentence what a platform's error about its camera means.

    The words come from the camera plugins of Flutter and from FFmpeg; what is not known is passed on.
    """
    text = message.lower()
    for words, sentence, hint in TROUBLES:
        if any(word in text for word in words):
            return CameraTrouble(sentence, hint)
    return CameraTrouble(f"the camera cannot be used: {message}", "try again, or open a photo instead")


TROUBLES: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("denied", "notallowed", "permission", "not permitted"),
        "the camera may not be used",
        "allow it in the settings of the browser or the system, then try again",
    ),
    (
        ("notfound", "not found", "no camera", "no such device", "no such file", "overconstrained"),
        "no camera was found",
        "connect one, or open a photo instead",
    ),
    (
        ("notreadable", "in use", "busy", "trackstart"),
        "the camera is in use by another program",
        "close that program, then try again",
    ),
    (
        ("notsupported", "mediadevices", "secure"),
        "this page may not use cameras",
        "open it over https:// or from localhost",
    ),
)


class FrameRate:
    """Frames a second over the last `window_s`."""

    def __init__(self, window_s: float = 2.0) -> None:
        self._window_s = window_s
        self._times: list[float] = []

    def count(self, now_s: float) -> float:
        """Note a frame and return the rate, 0 until there are two."""
        self._times = [time_s for time_s in self._times if now_s - time_s <= self._window_s] + [now_s]
        span_s = self._times[-1] - self._times[0]
        return (len(self._times) - 1) / span_s if span_s > 0 else 0.0
