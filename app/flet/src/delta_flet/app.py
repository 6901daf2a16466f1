"""The app: what a person does reaches the session, what the session holds reaches the screen."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from functools import cache
from pathlib import Path

import flet as ft

from delta.images import read_photo
from delta_flet import look, messages, pictures
from delta_flet.desktop_camera import DesktopCamera
from delta_flet.frames import Camera
from delta_flet.live import LiveView
from delta_flet.models import find_models
from delta_flet.panel import Actions, Panel
from delta_flet.picking import PhotoPicker
from delta_flet.session import Comparison, Phase, Saving, Session, Trouble
from delta_flet.stage import Stage

PHONE_THREADS = 2  # more would reach a phone's slow cores, which the others then wait for


class DeltaApp:
    """One window, or one browser tab."""

    def __init__(self, page: ft.Page, uploads: Path | None = None) -> None:
        self.page = page
        self.picker = PhotoPicker(page, uploads)
        self.threads = PHONE_THREADS if _is_phone(page) else 0
        self.stage = Stage(self.set_mix)
        self.panel = Panel(self._actions())
        self._camera, camera_control = _camera_of(page)
        self._work = asyncio.Lock()  # one prediction at a time
        self._wide: bool | None = None
        self._root = ft.Container(ft.ProgressRing(), expand=True, alignment=ft.Alignment.CENTER)
        page.title, page.padding = "Delta", 0
        page.theme, page.dark_theme = look.theme(look.LIGHT), look.theme(look.DARK)
        page.theme_mode = ft.ThemeMode.SYSTEM
        page.add(ft.SafeArea(ft.Stack([self._root, *camera_control], expand=True), expand=True))

    async def start(self) -> None:
        """Load the model, then show the welcome."""
        self.session = await asyncio.to_thread(Session, find_models(sys.argv[1:], os.environ), self.threads)
        self.live = LiveView(self._camera, self.session, self.stage, self._work)
        self.live.on_change, self.live.on_times, self.live.on_end = self._refresh, self._tell_times, self._show_answer
        self.page.on_resize = lambda _: self._arrange()
        self.page.on_disconnect = self.page.on_close = self._forget
        self._arrange()

    async def open_photos(self) -> None:
        """Let a person pick photos, and show the first of them that can be read."""
        await self._add(await self.picker.pick())

    async def open_sample(self, path: Path) -> None:
        """Show a photo that came with Delta."""
        await self._add([(path.name, path.read_bytes())])

    async def show(self, index: int) -> None:
        """Put a photo on the stage."""
        self.session.forget_trouble("photo")
        async with self._working():
            await asyncio.to_thread(self.session.show, index)
        await self._show_answer()

    async def remove(self, index: int) -> None:
        """Take a photo away."""
        async with self._working():
            await asyncio.to_thread(self.session.remove, index)
        await self._show_answer()

    async def choose_model(self, index: int) -> None:
        """Load another size; the camera waits meanwhile."""
        was_live = self.session.phase is Phase.LIVE
        await self.live.stop()
        async with self._working():
            opened = await asyncio.to_thread(self.session.choose_model, self.session.choices[index])
        await self._show_answer()
        if was_live and opened:
            await self.live.start()

    async def set_colormap(self, name: str) -> None:
        """Paint in other colors."""
        self.session.colormap = name
        self._refresh()
        if self.session.answer and self.session.phase is Phase.PHOTO:
            with contextlib.suppress(TimeoutError):
                await self.stage.show_depth(pictures.depth_for_screen(self.session.answer.disparity, name))

    def set_comparison(self, comparison: Comparison) -> None:
        """Compare in another way."""
        self.session.comparison = comparison
        self._refresh()

    def set_mix(self, mix: float) -> None:
        """Move the slider, or the overlay's opacity."""
        self.session.mix = mix
        self._refresh()

    def set_theme(self, mode: ft.ThemeMode) -> None:
        """Go light, dark, or with the system."""
        self.page.theme_mode = mode
        self._refresh()

    async def save(self, saving: Saving) -> None:
        """Encode, then let a person say where it goes."""
        async with self._working():
            name, content = await asyncio.to_thread(self.session.file_to_save, saving)
        if await self.picker.save(name, content):
            self.page.show_dialog(look.notice(f"Saved {name}", bool(self._wide)))

    async def take_still(self) -> None:
        """Keep what the camera sees as a photo."""
        if self.session.take_still(self.live.mirrored):
            await self.live.stop()
            await self.show(len(self.session.shots) - 1)

    async def _add(self, files: Sequence[tuple[str, bytes | None]]) -> None:
        await self.live.stop()
        self.session.forget_trouble("photo")
        first = len(self.session.shots)
        async with self._working():
            for name, content in files:
                await asyncio.to_thread(self.session.add_photo, name, content)
            if len(self.session.shots) > first:
                await asyncio.to_thread(self.session.show, first)
        await self._show_answer()

    async def _forget(self, _: object) -> None:
        """Stop the camera when the window or tab is gone."""
        if self.session.phase is Phase.LIVE:
            self.session.stop_live()

    def _tell_times(self) -> None:
        self.panel.refresh_times(self.session)
        self.page.update()

    async def _show_answer(self) -> None:
        answer = self.session.answer
        showing = answer is not None and self.session.phase is Phase.PHOTO
        self.stage.set_busy(showing)
        self._refresh()
        if answer and showing:
            photo = await asyncio.to_thread(pictures.for_screen, answer.photo)
            depth = await asyncio.to_thread(pictures.depth_for_screen, answer.disparity, self.session.colormap)
            with contextlib.suppress(TimeoutError):  # a window that is hidden gets the picture when it is back
                await self.stage.show_photo(photo, depth)
            self.stage.set_busy(False)
            self.page.update()

    def _arrange(self) -> None:
        wide = (self.page.width or 0) >= look.WIDE_PX
        if wide != self._wide:
            self._wide = wide
            self._root.content = self.panel.wide(self.stage.control) if wide else self.panel.narrow(self.stage.control)
            self._root.alignment = None
            self._refresh()

    def _refresh(self) -> None:
        session = self.session
        live = session.phase is Phase.LIVE
        self.panel.refresh(
            session,
            self.live.cameras,
            self.live.mirrored,
            self.page.theme_mode or ft.ThemeMode.SYSTEM,
        )
        self.stage.arrange(session.comparison, session.mix)
        self._refresh_message()
        self.stage.set_pictures(
            not self.stage.message.visible and session.phase is not Phase.EMPTY, live and self.live.mirrored
        )
        self.page.update()

    def _refresh_message(self) -> None:
        session, message = self.session, self.stage.message
        trouble = next(iter(session.troubles.values()), None)
        message.visible = True
        if trouble:
            message.content = messages.trouble_card(trouble, self._ways_out(trouble))
        elif session.phase is Phase.EMPTY and not self.live.starting:
            message.content = messages.welcome(_samples(), self._sample_chosen)
        else:
            message.visible = False

    def _sample_chosen(self, path: Path) -> None:
        self.page.run_task(self.open_sample, path)

    def _ways_out(self, trouble: Trouble) -> dict[str, Callable[[], object]]:
        run, session = self.page.run_task, self.session

        def close() -> None:
            session.forget_trouble(trouble.part)
            self._refresh()

        if trouble.part == "camera":
            return {"Try again": lambda: run(self.live.toggle), "Close": close}
        if trouble.part == "model" and session.choice:
            index = session.choices.index(session.choice)
            return {"Try again": lambda: run(self.choose_model, index)}
        return {"Close": close}

    @contextlib.asynccontextmanager
    async def _working(self) -> AsyncIterator[None]:
        """Hold the one place for predictions, and say on the stage that something is under way."""
        async with self._work:
            self.stage.set_busy(True)
            self.page.update()
            try:
                yield
            finally:
                self.stage.set_busy(False)

    def _actions(self) -> Actions:
        run = self.page.run_task
        return Actions(
            open=lambda: run(self.open_photos),
            live=lambda: run(self.live.toggle),
            still=lambda: run(self.take_still),
            switch_camera=lambda: run(self.live.switch_camera),
            mirror=lambda: self.live.toggle_mirror(),
            save=lambda saving: run(self.save, saving),
            colormap=lambda name: run(self.set_colormap, name),
            comparison=self.set_comparison,
            mix=self.set_mix,
            model=lambda index: run(self.choose_model, index),
            theme=self.set_theme,
            show=lambda index: run(self.show, index),
            remove=lambda index: run(self.remove, index),
        )


def _is_phone(page: ft.Page) -> bool:
    return not page.web and page.platform in (ft.PagePlatform.ANDROID, ft.PagePlatform.IOS)


def _camera_of(page: ft.Page) -> tuple[Camera, list[ft.Control]]:
    """Choose what gives frames here: the client's camera on phones and in browsers, PyAV on desktops."""
    if page.web or _is_phone(page):
        from delta_flet.client_camera import ClientCamera

        camera = ClientCamera(turns_frames=not page.web and page.platform is ft.PagePlatform.ANDROID)
        return camera, [camera.holder]
    return DesktopCamera(), []


@cache
def _samples() -> list[tuple[Path, bytes]]:
    return [(path, pictures.thumbnail(read_photo(path))) for path in pictures.sample_photos()]
