"""The stage: the photo and its depth, compared in one of four ways; pixels go out, nothing is computed here."""

from collections.abc import Callable

import flet as ft
from PIL import Image

from delta_flet import look
from delta_flet.layout import Box, Places, places
from delta_flet.session import Comparison

INSET_PX = 16


class Stage:
    """Two pictures on a stack; `control` is what goes on the page."""

    def __init__(self, on_mix: Callable[[float], None]) -> None:
        self._on_mix = on_mix
        self._size, self._aspect = (0.0, 0.0), 1.0
        self._comparison, self._mix = Comparison.SIDE, 0.5
        self._places: Places | None = None
        self._photo, self._depth = ft.RawImage(fit=ft.BoxFit.FILL), ft.RawImage(fit=ft.BoxFit.FILL)
        clip = ft.ClipBehavior.ANTI_ALIAS
        self._photo_box = ft.Container(self._photo, border_radius=look.RADIUS, clip_behavior=clip)
        self._depth_box = ft.Container(self._depth, border_radius=look.RADIUS, clip_behavior=clip)
        self._window = ft.Stack([self._depth_box])
        self._line = ft.Container(_handle(), width=36, alignment=ft.Alignment.CENTER, ignore_interactions=True)
        self._labels = [look.pill(ft.Text(name, size=12, color="#ffffff")) for name in ("Photo", "Depth")]
        self._pictures = ft.Stack(
            [self._photo_box, self._window, self._line, *self._labels, self._touch()], opacity=0, expand=True
        )
        self.message = ft.Container(alignment=ft.Alignment.CENTER, expand=True, visible=False)
        self._busy = ft.Container(
            ft.ProgressRing(width=36, height=36, stroke_width=3), alignment=ft.Alignment.CENTER, visible=False
        )
        inside = ft.Stack([self._pictures, self.message, self._busy], fit=ft.StackFit.EXPAND, expand=True)
        self.control = ft.Container(
            ft.Container(inside, expand=True, on_size_change=self._resized, size_change_interval=50),
            expand=True,
            padding=INSET_PX,
            border_radius=look.RADIUS + 8,
            bgcolor=ft.Colors.SURFACE_CONTAINER,
        )

    def arrange(self, comparison: Comparison, mix: float) -> None:
        """Compare in another way."""
        self._comparison, self._mix = comparison, mix
        self._place()

    def set_busy(self, busy: bool) -> None:
        """Say that something is under way; what a picture is called is said when it is there."""
        self._busy.visible = busy
        for label in self._labels:
            label.opacity = 0 if busy else 1

    def set_pictures(self, visible: bool, mirrored: bool = False) -> None:
        """Show or hide the two pictures, as they are or as in a mirror.

        They stay on the page: what is taken off it while a picture is on its way would never say that it arrived.
        """
        self._pictures.opacity = 1 if visible else 0
        for box in (self._photo, self._depth):
            box.flip = ft.Flip(flip_x=mirrored)

    async def show_photo(self, photo: Image.Image, depth: Image.Image) -> None:
        """Show a still."""
        self._set_aspect(photo.width / photo.height)
        await self._photo.render(photo, premultiplied=True)
        await self._depth.render(depth, premultiplied=True)

    async def show_depth(self, depth: Image.Image) -> None:
        """Show the same still in other colors."""
        await self._depth.render(depth, premultiplied=True)

    async def show_live(self, photo: bytes | tuple[int, int, bytes], depth: bytes, aspect: float) -> None:
        """Show a live frame: the photo as the camera encoded it or as flat RGBA, the depth as `pictures.paint` made it.

        Returns when both are on the screen.
        """
        self._set_aspect(aspect)
        if self._comparison is not Comparison.DEPTH:
            if isinstance(photo, bytes):
                await self._photo.render_encoded(photo)
            else:
                await self._photo.render_rgba(*photo)
        await self._depth.render_encoded(depth)

    def _set_aspect(self, aspect: float) -> None:
        if abs(aspect - self._aspect) > 1e-3:
            self._aspect = aspect
            self._place()
            self.control.update()

    def _resized(self, event: ft.LayoutSizeChangeEvent) -> None:
        self._size = (event.width, event.height)
        self._place()
        self.control.update()

    def _place(self) -> None:
        if min(self._size) <= 0:
            return
        self._places = found = places(self._comparison, *self._size, self._aspect, self._mix)
        self._photo_box.opacity = 0 if found.photo is None else 1
        _put(self._photo_box, found.photo or found.depth)
        _put(self._window, found.window)
        inner = Box(found.depth.left - found.window.left, 0, found.depth.width, found.depth.height)
        _put(self._depth_box, inner)
        self._window.opacity = found.opacity
        self._place_marks(found)

    def _place_marks(self, found: Places) -> None:
        photo_label, depth_label = self._labels
        edge = found.window.left
        self._line.visible = self._comparison is Comparison.SLIDER
        self._line.left, self._line.top, self._line.height = edge - 18, found.window.top, found.window.height
        photo_label.visible = depth_label.visible = self._comparison is Comparison.SIDE
        if found.photo:
            photo_label.left, photo_label.top = found.photo.left + 10, found.photo.top + 10
        depth_label.left, depth_label.top = found.depth.left + 10, found.depth.top + 10

    def _touch(self) -> ft.GestureDetector:
        return ft.GestureDetector(
            content=ft.Container(expand=True),
            expand=True,
            drag_interval=30,
            exclude_from_semantics=True,
            on_tap_down=self._touched,
            on_horizontal_drag_update=self._touched,
        )

    def _touched(self, event: ft.TapEvent | ft.DragUpdateEvent) -> None:
        if self._comparison is Comparison.SLIDER and self._places and event.local_position:
            box = self._places.depth
            self._on_mix(min(max((event.local_position.x - box.left) / box.width, 0.0), 1.0))


def _put(control: ft.LayoutControl, box: Box) -> None:
    control.left, control.top, control.width, control.height = box.left, box.top, box.width, box.height


def _handle() -> ft.Stack:
    """The line between photo and depth, with a knob in its middle."""
    knob = ft.Container(
        ft.Icon(ft.Icons.UNFOLD_MORE_ROUNDED, size=18, color="#1c1b20", rotate=1.5708),
        width=32,
        height=32,
        border_radius=16,
        bgcolor="#ffffff",
        alignment=ft.Alignment.CENTER,
        shadow=ft.BoxShadow(blur_radius=8, color=ft.Colors.with_opacity(0.3, "#000000")),
    )
    return ft.Stack(
        [ft.Container(width=2, bgcolor="#ffffff", expand=True), knob], alignment=ft.Alignment.CENTER, expand=True
    )
