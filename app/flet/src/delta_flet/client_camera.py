"""The camera of a phone or browser, by the flet-camera extension: JPEG is all that it hands out.

Phones stream frames; a browser has no stream, so that stills are taken as fast as they come.
"""

import asyncio
import contextlib
from io import BytesIO

import flet as ft
import flet_camera as fc

from delta.errors import DeltaError
from delta.images import read_photo
from delta_flet.frames import CameraInfo, CameraTrouble, Frame, trouble_of, turns_to_upright, upright

WAIT_S = 10.0  # for a frame


class ClientCamera:
    """Frames from where the screen is. The device is in use for as long as a control stands in `holder`."""

    def __init__(self, turns_frames: bool) -> None:
        self.holder = ft.Stack([], width=1, height=1)
        self._control: fc.Camera | None = None
        self._turns_frames = turns_frames  # Android's stream is as the sensor lies
        self._description: fc.CameraDescription | None = None
        self._orientation = ""
        self._streams = False
        self._newest: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)
        self._taking: asyncio.Task[bytes] | None = None

    async def open(self, index: int) -> CameraInfo:
        """Start the camera with this number, counted around where there are fewer."""
        self._control = fc.Camera(
            preview_enabled=False, on_stream_image=self._arrive, on_state_change=self._note_orientation
        )
        self._hold([self._control])
        try:
            return await self._start(self._control, index)
        except RuntimeError as error:  # what went wrong in the client
            raise await self._closed(trouble_of(str(error))) from error
        except CameraTrouble as trouble:
            raise await self._closed(trouble) from None

    async def frame(self) -> Frame:
        """Wait for a frame newer than the last one."""
        try:
            encoded = await asyncio.wait_for(self._encoded(), WAIT_S)
            pixels = await asyncio.to_thread(read_photo, BytesIO(encoded))
        except TimeoutError:
            raise CameraTrouble(f"no frame came for {WAIT_S:g} s", "start the camera again") from None
        except (RuntimeError, DeltaError) as error:
            raise trouble_of(str(error)) from error
        turns = self._turns()
        return Frame(pixels=upright(pixels, turns), encoded=b"" if turns else encoded)

    async def close(self) -> None:
        """Stop the camera, once the still that is under way is there."""
        if self._taking:  # an answer to a control that is gone would end Flet's connection
            with contextlib.suppress(RuntimeError, TimeoutError):
                await asyncio.wait_for(self._taking, WAIT_S)
        self._taking = None
        if self._control and self._streams:
            with contextlib.suppress(RuntimeError, TimeoutError):  # the client is gone, and its camera with it
                await self._control.stop_image_stream()
        self._streams, self._control = False, None
        self._hold([])

    async def _closed(self, trouble: CameraTrouble) -> CameraTrouble:
        await self.close()
        return trouble

    async def _start(self, control: fc.Camera, index: int) -> CameraInfo:
        cameras = await control.get_available_cameras()
        if not cameras:
            raise trouble_of("no camera")
        self._description = cameras[index % len(cameras)]
        await control.initialize(
            self._description,
            fc.ResolutionPreset.LOW,
            enable_audio=False,
            image_format_group=fc.ImageFormatGroup.JPEG,
        )
        self._streams = await control.supports_image_streaming()
        if self._streams:
            await control.start_image_stream()
        return CameraInfo(name=self._description.name, count=len(cameras), mirrored=self._front)

    async def _encoded(self) -> bytes:
        if self._streams:
            return await self._newest.get()
        if self._control is None:
            raise CameraTrouble("the camera was stopped", "start it again")
        self._taking = asyncio.create_task(self._control.take_picture())
        return await asyncio.shield(self._taking)

    def _hold(self, controls: list[ft.Control]) -> None:
        self.holder.controls = controls
        with contextlib.suppress(RuntimeError):  # the page is gone
            self.holder.update()

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
