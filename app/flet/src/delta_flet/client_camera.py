"""The camera of a phone or browser, by the flet-camera extension: JPEG is all that it hands out.

Phones stream frames; a browser has no stream, so that stills are taken as fast as they come.
"""

import asyncio
from io import BytesIO

import flet_camera as fc

from delta.errors import DeltaError
from delta.images import read_photo
from delta_flet.frames import CameraInfo, CameraTrouble, Frame, trouble_of, turns_to_upright, upright

WAIT_S = 10.0  # for a frame, and for a person to answer the question for permission


class ClientCamera:
    """Frames from where the screen is; `control` must be on the page, and shows nothing itself."""

    def __init__(self, turns_frames: bool) -> None:
        self.control = fc.Camera(
            preview_enabled=False,
            width=1,
            height=1,
            on_stream_image=self._arrive,
            on_state_change=self._note_orientation,
        )
        self._turns_frames = turns_frames  # Android's stream is as the sensor lies
        self._description: fc.CameraDescription | None = None
        self._orientation = ""
        self._streams = False
        self._newest: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)

    async def open(self, index: int) -> CameraInfo:
        """Start the camera with this number, counted around where there are fewer."""
        try:
            cameras = await self.control.get_available_cameras()
            if not cameras:
                raise trouble_of("no camera")
            self._description = cameras[index % len(cameras)]
            await self.control.initialize(
                self._description,
                fc.ResolutionPreset.LOW,
                enable_audio=False,
                image_format_group=fc.ImageFormatGroup.JPEG,
            )
            self._streams = await self.control.supports_image_streaming()
            if self._streams:
                await self.control.start_image_stream()
        except (RuntimeError, TimeoutError) as error:
            raise trouble_of(str(error)) from error
        return CameraInfo(name=self._description.name, count=len(cameras), mirrored=self._front)

    async def frame(self) -> Frame:
        """Wait for a frame newer than the last one."""
        try:
            encoded = (
                await asyncio.wait_for(self._newest.get(), WAIT_S)
                if self._streams
                else await asyncio.wait_for(self.control.take_picture(), WAIT_S)
            )
            pixels = await asyncio.to_thread(read_photo, BytesIO(encoded))
        except TimeoutError:
            raise CameraTrouble(f"no frame came for {WAIT_S:g} s", "start the camera again") from None
        except (RuntimeError, DeltaError) as error:
            raise trouble_of(str(error)) from error
        turns = self._turns()
        return Frame(pixels=upright(pixels, turns), encoded=b"" if turns else encoded)

    async def close(self) -> None:
        """Stop the camera."""
        try:
            if self._streams:
                await self.control.stop_image_stream()
        except RuntimeError:
            pass  # it was gone already
        self._streams = False

    @property
    def _front(self) -> bool:
        return bool(self._description) and self._description.lens_direction is fc.CameraLensDirection.FRONT

    def _turns(self) -> int:
        if not (self._streams and self._turns_frames and self._description):
            return 0
        return turns_to_upright(self._description.sensor_orientation, self._orientation, self._front)

    def _arrive(self, event: fc.CameraImageEvent) -> None:
        if self._newest.full():
            self._newest.get_nowait()
        self._newest.put_nowait(event.bytes)

    def _note_orientation(self, event: fc.CameraStateEvent) -> None:
        self._orientation = event.device_orientation.value if event.device_orientation else ""
