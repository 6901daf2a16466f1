"""The camera of a desktop, by PyAV: FFmpeg's own capture devices, nothing encoded on the way. Knows no Flet."""

import asyncio
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from delta_flet.frames import CameraInfo, CameraTrouble, Frame, trouble_of

WAIT_S = 5.0  # for a frame, before the camera is given up
SIZE = "640x480"  # what nearly every camera has; the graph takes less
FORMATS = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}


class DesktopCamera:
    """Frames of a capture device; a thread takes them all, and only the newest is converted and handed out."""

    def __init__(self, format_name: str = FORMATS.get(sys.platform, "v4l2"), devices: list[str] | None = None) -> None:
        self._format, self._devices = format_name, devices
        self._container: Any = None
        self._thread: threading.Thread | None = None
        self._newest: Any = None
        self._broken: CameraTrouble | None = None
        self._arrived = threading.Condition()
        self._stopping = False

    async def open(self, index: int) -> CameraInfo:
        """Start the camera with this number, counted around where there are fewer."""
        return await asyncio.to_thread(self._open, index)

    async def frame(self) -> Frame:
        """Wait for a frame newer than the last one."""
        return await asyncio.to_thread(self._next)

    async def close(self) -> None:
        """Stop the camera."""
        await asyncio.to_thread(self._close)

    def _open(self, index: int) -> CameraInfo:
        av = _av()
        devices = self._devices if self._devices is not None else _list_devices(av, self._format)
        if not devices:
            raise trouble_of("no camera")
        name = devices[index % len(devices)]
        try:
            self._container = _open_device(av, name, self._format)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise trouble_of(str(error)) from error
        self._stopping, self._newest, self._broken = False, None, None
        self._thread = threading.Thread(target=self._read, args=(av,), name="camera", daemon=True)
        self._thread.start()
        return CameraInfo(name=name, count=len(devices), mirrored=True)  # it looks at the person before the screen

    def _read(self, av: Any) -> None:
        try:
            for frame in self._container.decode(video=0):
                with self._arrived:
                    self._newest = frame
                    self._arrived.notify_all()
                if self._stopping:
                    return
            raise EOFError("the camera gives no more frames")
        except (av.error.FFmpegError, OSError, EOFError) as error:
            with self._arrived:
                self._broken = trouble_of(str(error))
                self._arrived.notify_all()

    def _next(self) -> Frame:
        with self._arrived:
            arrived = self._arrived.wait_for(lambda: self._newest is not None or self._broken or self._stopping, WAIT_S)
            frame, self._newest = self._newest, None
            broken = self._broken
        if frame is None:
            raise broken or trouble_of("the camera was stopped" if arrived else f"no frame came for {WAIT_S:g} s")
        return Frame(pixels=np.ascontiguousarray(frame.to_ndarray(format="rgb24")))

    def _close(self) -> None:
        self._stopping = True
        with self._arrived:
            self._arrived.notify_all()
        if self._thread:
            self._thread.join(WAIT_S)
        if self._container:
            self._container.close()
        self._container = self._thread = None


def _av() -> Any:
    try:
        import av.logging  # not needed on phones and in browsers, and not in every installation
    except ImportError:
        raise CameraTrouble(
            "a desktop's camera needs PyAV, which is not installed", "pip install 'delta-depth[video]'"
        ) from None
    av.logging.set_level(None)  # what goes wrong comes back as an exception, and is said once
    return av


def _list_devices(av: Any, format_name: str) -> list[str]:
    if format_name == "v4l2":
        return [str(path) for path in sorted(Path("/dev").glob("video*"))]
    devices = [device for device in av.enumerate_input_devices(format_name) if "video" in device.media_types]
    return [f"video={device.name}" if format_name == "dshow" else device.name for device in devices]


def _open_device(av: Any, name: str, format_name: str) -> Any:
    """Open at `SIZE` where the camera has it, else as it likes."""
    try:
        return av.open(name, format=format_name, options={"video_size": SIZE, "framerate": "30"})
    except ValueError:
        return av.open(name, format=format_name)
