"""The controls around the stage. They show the session's state and call back; nothing is decided here."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import flet as ft

from delta.colormaps import COLORMAPS
from delta_flet import pictures, pieces
from delta_flet.pieces import STRETCH, call, named
from delta_flet.session import Comparison, Phase, Saving, Session

MIX_LABELS = {
    Comparison.OVERLAY: "How strongly the depth covers the photo",
    Comparison.SLIDER: "Where the photo ends and the depth begins",
}


@dataclass(frozen=True, kw_only=True)
class Actions:
    """What the controls ask for."""

    open: Callable[[], object]
    live: Callable[[], object]
    still: Callable[[], object]
    switch_camera: Callable[[], object]
    mirror: Callable[[], object]
    save: Callable[[Saving], object]
    colormap: Callable[[str], object]
    comparison: Callable[[Comparison], object]
    mix: Callable[[float], object]
    model: Callable[[int], object]
    theme: Callable[[ft.ThemeMode], object]
    show: Callable[[int], object]
    remove: Callable[[int], object]


class Panel:
    """Every control once; `wide` and `narrow` lay them out around the stage."""

    def __init__(self, actions: Actions) -> None:
        self._actions = actions
        self._is_narrow = False
        self._swatches = {name: pieces.swatch(name, actions.colormap) for name in COLORMAPS}
        self._compare = pieces.compare_switch(actions.comparison)
        self._mix = pieces.mix_slider(actions.mix)
        self._mix_row = ft.Semantics(content=self._mix)
        self._open = ft.FilledButton("Open photos", ft.Icons.ADD_PHOTO_ALTERNATE_OUTLINED, on_click=call(actions.open))
        self._live = ft.FilledTonalButton("Live camera", ft.Icons.VIDEOCAM_OUTLINED, on_click=call(actions.live))
        self._still = ft.FilledButton("Take photo", ft.Icons.CAMERA_ALT_OUTLINED, on_click=call(actions.still))
        self._switch = ft.IconButton(
            named(ft.Icons.CAMERASWITCH_OUTLINED, "Switch camera"), on_click=call(actions.switch_camera)
        )
        self._mirror = ft.IconButton(
            named(ft.Icons.FLIP_OUTLINED, "Mirror"), selected=False, on_click=call(actions.mirror)
        )
        self._camera_tools = ft.Row(
            [self._switch, self._mirror], spacing=0, tight=True, alignment=ft.MainAxisAlignment.CENTER, visible=False
        )
        self._save = pieces.save_menu(actions.save)
        self._model_name = ft.Text("", size=14, expand=True)
        self._model_arrow = ft.Icon(ft.Icons.ARROW_DROP_DOWN_ROUNDED, size=20)
        self._model = ft.PopupMenuButton(**pieces.MENU, content=pieces.field(self._model_name, self._model_arrow))
        self._models_shown: object = None
        self._theme = pieces.theme_menu(actions.theme)
        self._times = ft.Text("", size=13, color=ft.Colors.ON_SURFACE_VARIANT)
        self._strip = ft.Row([], spacing=8, scroll=ft.ScrollMode.AUTO, visible=False)
        self._strip_shown: object = None
        self._legend = pieces.legend(COLORMAPS[0])

    def refresh(self, session: Session, cameras: int, mirrored: bool, theme: ft.ThemeMode) -> None:
        """Show the state of the session."""
        live = session.phase is Phase.LIVE
        for name, swatch in self._swatches.items():
            chosen = name == session.colormap
            swatch.selected = chosen
            face = swatch.content
            assert isinstance(face, ft.Container)
            face.border = ft.Border.all(2, ft.Colors.PRIMARY if chosen else ft.Colors.TRANSPARENT)
        self._compare.selected = [session.comparison.value]
        self._mix.value = session.mix
        self._mix_row.visible = session.comparison in MIX_LABELS
        self._mix_row.label = MIX_LABELS.get(session.comparison)
        self._live.content = "Stop" if live else "Live" if self._is_narrow else "Live camera"
        self._live.icon = ft.Icons.STOP_ROUNDED if live else ft.Icons.VIDEOCAM_OUTLINED
        self._open.content = "Photos" if self._is_narrow else "Open photos"
        self._still.content = "Take" if self._is_narrow else "Take photo"
        self._open.visible, self._still.visible = not live, live
        self._camera_tools.visible, self._switch.visible = live, cameras > 1
        self._mirror.selected = mirrored
        self._save.disabled = session.answer is None or live
        self._save.visible = not (live and self._is_narrow)  # its room is the camera's
        self._save.opacity = 0.4 if self._save.disabled else 1
        self._live.disabled = self._open.disabled = not session.ready
        self._refresh_models(session)
        self._theme.icon = pieces.theme_icon(theme)
        self._legend.src = pictures.gradient_png(session.colormap)
        self._refresh_strip(session, live)
        self.refresh_times(session)

    def refresh_times(self, session: Session) -> None:
        """Show how long the last picture took."""
        times, (height, width) = session.times, session.size_px
        parts = [f"{times.infer_ms:.0f} ms"] if times.infer_ms else []
        if session.phase is Phase.LIVE and times.frames_per_s:
            parts.append(f"{times.frames_per_s:.1f} frames/s")
        if parts:
            parts.append(f"{width} × {height} px")
        self._times.value, self._times.visible = "  ·  ".join(parts), bool(parts)

    def wide(self, stage: ft.Control) -> ft.Control:
        """Stand beside the stage."""
        self._is_narrow = False
        side = ft.Column(
            [
                ft.Column([self._open, self._still, self._live], spacing=10, horizontal_alignment=STRETCH),
                self._camera_tools,
                pieces.group("Compare", self._compare, self._mix_row),
                pieces.group("Colors", *self._swatch_rows(2)),
                pieces.group("Model", self._model, self._times),
                self._save,
            ],
            spacing=22,
            horizontal_alignment=STRETCH,
            scroll=ft.ScrollMode.AUTO,
        )
        left = ft.Column([stage, self._legend_row(), self._strip], spacing=12, expand=True)
        body = ft.Row(
            [left, ft.Container(side, width=300)],
            spacing=28,
            expand=True,
            vertical_alignment=ft.CrossAxisAlignment.STRETCH,
        )
        return ft.Container(
            ft.Column([self._title(None), body], spacing=12, expand=True),
            padding=ft.Padding.only(left=28, top=16, right=28, bottom=24),
            expand=True,
        )

    def narrow(self, stage: ft.Control) -> ft.Control:
        """Stand below the stage."""
        self._is_narrow = True
        actions = ft.Row(
            [self._open, self._still, self._live, self._camera_tools, self._save],
            alignment=ft.MainAxisAlignment.CENTER,
            spacing=8,
        )
        rows = [
            self._title(self._times),
            stage,
            self._legend_row(),
            self._strip,
            self._compare,
            self._mix_row,
            *self._swatch_rows(4),
            self._model,
            actions,
        ]
        return ft.Container(
            ft.Column(rows, spacing=10, expand=True, horizontal_alignment=STRETCH),
            padding=ft.Padding.only(left=14, top=8, right=14, bottom=14),
            expand=True,
        )

    def _title(self, under: ft.Control | None) -> ft.Control:
        name = ft.Text("Delta", size=20, weight=ft.FontWeight.W_700)
        return ft.Row(
            [
                ft.Image("icon.png", width=32, height=32, border_radius=8, exclude_from_semantics=True),
                ft.Column([name, under], spacing=0, tight=True, expand=True) if under else ft.Row([name], expand=True),
                self._theme,
            ],
            spacing=12,
            height=48,
        )

    def _legend_row(self) -> ft.Control:
        small = {"size": 12, "color": ft.Colors.ON_SURFACE_VARIANT}
        return ft.Row(
            [ft.Text("far", **small), ft.Container(self._legend, expand=True), ft.Text("near", **small)], spacing=10
        )

    def _swatch_rows(self, columns: int) -> list[ft.Control]:
        swatches = list(self._swatches.values())
        return [ft.Row([*swatches[start : start + columns]], spacing=8) for start in range(0, len(swatches), columns)]

    def _refresh_models(self, session: Session) -> None:
        several = len(session.choices) > 1
        self._model_name.value = session.choice.label if session.choice else "No model"
        self._model.disabled, self._model_arrow.visible = not several, several
        self._model.visible = several or not self._is_narrow
        if self._models_shown != (shown := (session.choices, session.choice)):
            self._models_shown = shown
            self._model.items = [self._model_item(session, index) for index in range(len(session.choices))]

    def _model_item(self, session: Session, index: int) -> ft.PopupMenuItem:
        """Flutter's own checked items do not react to screen readers on the web, so that the check is an icon."""
        check, choice = ft.Icons.CHECK_ROUNDED, session.choices[index]
        icon = check if choice == session.choice else ft.Icon(check, opacity=0)
        return ft.PopupMenuItem(choice.label, icon=icon, on_click=call(self._actions.model, index))

    def _refresh_strip(self, session: Session, live: bool) -> None:
        """What is pressed while it is being replaced does nothing, so that only a change replaces it."""
        self._strip.visible = len(session.shots) > 1 and not live
        if self._strip_shown != (shown := (tuple(session.shots), session.current)):
            self._strip_shown = shown
            self._strip.controls = [self._thumb(session, index) for index in range(len(session.shots))]

    def _thumb(self, session: Session, index: int) -> ft.Control:
        show, remove = partial(self._actions.show, index), partial(self._actions.remove, index)
        return pieces.thumb(session.shots[index], index == session.current, show, remove)
