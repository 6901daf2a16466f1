"""The camera, live: frames go through the session onto the stage, one at a time; those in between are dropped."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from delta.errors import DeltaError
from delta_flet import pictures
from delta_flet.frames import Camera, CameraTrouble, Frame
from delta_flet.session import Phase, Session
from delta_flet.stage import Stage

TIMES_EVERY_S = 0.5  # numbers that change faster cannot be read


class LiveView:
    """Starts, shows and stops the camera; `work` is held while a frame is predicted."""

    on_change: Callable[[], None]  # the screen has to be drawn anew
    on_times: Callable[[], None]  # the times have
    on_end: Callable[[], Awaitable[None]]  # the photo comes back

    def __init__(self, camera: Camera, session: Session, stage: Stage, work: asyncio.Lock) -> None:
        self.cameras, self.mirrored, self.starting = 0, False, False
        self._camera, self._session, self._stage, self._work = camera, session, stage, work
        self._index, self._times_shown_s = 0, 0.0
        self._task: asyncio.Task[None] | None = None

    async def toggle(self) -> None:
        """Start the camera, or stop it; it is started once, however long a person thinks about allowing it."""
        if self._session.phase is Phase.LIVE:
            await self.stop()
        elif not self.starting:
            await self.start()

    async def switch_camera(self) -> None:
        """Look through the next camera."""
        self.starting = True
        await self.stop()
        self._index += 1
        await self.start()

    def toggle_mirror(self) -> None:
        """Show the camera as in a mirror, or as others see it."""
        self.mirrored = not self.mirrored
        self.on_change()

    async def start(self) -> None:
        """Open the camera and begin; what hinders it becomes a trouble of the session."""
        self.starting = True
        self._stage.set_busy(True)
        self.on_change()
        try:
            info = await self._camera.open(self._index)
        except CameraTrouble as trouble:
            self._session.stop_live(trouble)
        else:
            self.cameras, self.mirrored = info.count, info.mirrored
            self._session.go_live()
            self._task = asyncio.create_task(self._run())
        self.starting = False
        self._stage.set_busy(False)
        self.on_change()

    async def stop(self) -> None:
        """Stop, where it runs, and wait until the camera is free."""
        if self._session.phase is Phase.LIVE:
            self._session.stop_live()
        if self._task:
            await self._task
        self._task = None

    async def _run(self) -> None:
        """Predict and show frame after frame; the next is fetched meanwhile, the screen is waited for."""
        upcoming = asyncio.create_task(self._camera.frame())
        try:
            while self._session.phase is Phase.LIVE:
                frame, upcoming = await upcoming, asyncio.create_task(self._camera.frame())
                await self._show(frame)
        except DeltaError as trouble:
            self._session.stop_live(trouble)
        except TimeoutError:  # nobody has seen the last frame for long: the window is gone
            self._session.stop_live()
        finally:
            await _abandon(upcoming)
            await self._camera.close()
        await self.on_end()

    async def _show(self, frame: Frame) -> None:
        async with self._work:
            depth = await asyncio.to_thread(self._session.live, frame, time.perf_counter())
        start, (height, width) = time.perf_counter(), frame.pixels.shape[:2]
        photo = frame.encoded or (width, height, pictures.as_rgba(frame.pixels))
        await self._stage.show_live(photo, depth, width / height)
        now_s = time.perf_counter()
        self._session.shown((now_s - start) * 1000, now_s)
        if now_s - self._times_shown_s > TIMES_EVERY_S:
            self._times_shown_s = now_s
            self.on_times()


async def _abandon(task: asyncio.Task[Frame]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, DeltaError):
        await task
