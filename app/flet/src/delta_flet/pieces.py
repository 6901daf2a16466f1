"""What the controls are made of: each function draws one, from what it says and what it calls."""

from collections.abc import Callable
from typing import Any

import flet as ft

from delta_flet import look, pictures
from delta_flet.session import Comparison, Saving, Shot

COMPARISONS = {
    Comparison.SIDE: ("Side by side", ft.Icons.VERTICAL_SPLIT_OUTLINED),
    Comparison.SLIDER: ("Slider", ft.Icons.COMPARE_OUTLINED),
    Comparison.OVERLAY: ("Overlay", ft.Icons.LAYERS_OUTLINED),
    Comparison.DEPTH: ("Depth only", ft.Icons.GRADIENT),
}
SAVINGS = {
    Saving.DEPTH: "Depth, in colors",
    Saving.DEPTH16: "Depth, 16-bit gray",
    Saving.SIDE: "Photo and depth side by side",
}
THEMES = {
    ft.ThemeMode.SYSTEM: ("System theme", ft.Icons.BRIGHTNESS_AUTO_OUTLINED),
    ft.ThemeMode.LIGHT: ("Light theme", ft.Icons.LIGHT_MODE_OUTLINED),
    ft.ThemeMode.DARK: ("Dark theme", ft.Icons.DARK_MODE_OUTLINED),
}
MENU: dict[str, Any] = {
    "tooltip": "",  # it would say what the button says already
    "bgcolor": ft.Colors.SURFACE_CONTAINER_HIGH,
    "menu_position": ft.PopupMenuPosition.UNDER,
    "shape": ft.RoundedRectangleBorder(radius=12),
}
STRETCH = ft.CrossAxisAlignment.STRETCH


def call(action: Callable[..., object], *arguments: object) -> Callable[[object], object]:
    """Leave the event out."""
    return lambda _: action(*arguments)


def named(icon: ft.IconData, name: str) -> ft.Icon:
    """An icon that screen readers can name; a tooltip would name what is around the button, not the button."""
    return ft.Icon(icon, semantics_label=name)


def group(title: str, *controls: ft.Control) -> ft.Column:
    """Controls under a caption."""
    return ft.Column([look.caption(title), *controls], spacing=8, horizontal_alignment=STRETCH)


def field(*controls: ft.Control) -> ft.Container:
    """A frame like a text field's."""
    return ft.Container(
        ft.Row([*controls]),
        height=44,
        padding=ft.Padding.only(left=14, right=10),
        border=ft.Border.all(1, ft.Colors.OUTLINE_VARIANT),
        border_radius=10,
    )


def compare_switch(on_change: Callable[[Comparison], object]) -> ft.SegmentedButton:
    """One of the four ways to compare."""
    return ft.SegmentedButton(
        segments=[
            ft.Segment(value=value.value, icon=icon, tooltip=text) for value, (text, icon) in COMPARISONS.items()
        ],
        selected=[Comparison.SIDE.value],
        show_selected_icon=False,
        on_change=lambda event: on_change(Comparison(event.control.selected[0])),
    )


def mix_slider(on_change: Callable[[float], object]) -> ft.Slider:
    """How the two pictures mix, in [0, 1]."""
    return ft.Slider(
        min=0,
        max=1,
        value=0.5,
        padding=ft.Padding.symmetric(horizontal=8),
        on_change=lambda event: on_change(float(event.control.value or 0)),
    )


def save_menu(on_choice: Callable[[Saving], object]) -> ft.PopupMenuButton:
    """What can be saved."""
    items = [ft.PopupMenuItem(text, on_click=call(on_choice, saving)) for saving, text in SAVINGS.items()]
    return ft.PopupMenuButton(**MENU, content=_save_face(), items=items)


def theme_menu(on_choice: Callable[[ft.ThemeMode], object]) -> ft.PopupMenuButton:
    """Light, dark, or as the system."""
    items = [ft.PopupMenuItem(text, icon=icon, on_click=call(on_choice, mode)) for mode, (text, icon) in THEMES.items()]
    return ft.PopupMenuButton(**MENU, icon=theme_icon(ft.ThemeMode.SYSTEM), items=items)


def theme_icon(mode: ft.ThemeMode) -> ft.Icon:
    """What stands for a theme."""
    return named(THEMES[mode][1], "Theme")


def legend(colormap: str) -> ft.Image:
    """The colors from far to near, as a thin line."""
    return _strip_of(colormap, height=6, radius=3)


def swatch(colormap: str, on_choice: Callable[[str], object]) -> ft.Semantics:
    """A colormap to press."""
    text = ft.Text(look.NAMES[colormap], size=12)
    strip = _strip_of(colormap, height=22, radius=6)
    face = ft.Container(
        ft.Column([strip, text], spacing=4, horizontal_alignment=STRETCH, tight=True),
        padding=6,
        border_radius=10,
        ink=True,
        on_click=call(on_choice, colormap),
    )
    return ft.Semantics(content=face, button=True, container=True, expand=True)


def thumb(shot: Shot, chosen: bool, on_show: Callable[[], object], on_remove: Callable[[], object]) -> ft.Control:
    """A photo to press; the one on the stage has a cross that takes it out."""
    face = ft.Container(
        ft.Image(shot.thumbnail, width=52, height=52, fit=ft.BoxFit.COVER, exclude_from_semantics=True),
        border=ft.Border.all(2, ft.Colors.PRIMARY if chosen else ft.Colors.TRANSPARENT),
        border_radius=10,
        clip_behavior=ft.ClipBehavior.ANTI_ALIAS,
        on_click=call(on_show),
    )
    photo = ft.Semantics(content=face, label=shot.name, button=True, selected=chosen, container=True)
    cross = ft.Container(
        ft.Icon(ft.Icons.CLOSE_ROUNDED, size=14, color="#ffffff", semantics_label=f"Remove {shot.name}"),
        bgcolor=ft.Colors.with_opacity(0.62, "#121116"),
        border_radius=12,
        padding=5,
        on_click=call(on_remove),
    )
    corner = ft.Container(ft.Semantics(content=cross, button=True, container=True), right=4, top=4)
    return ft.Stack([photo, corner] if chosen else [photo], width=56, height=56)


def _strip_of(colormap: str, height: int, radius: int) -> ft.Image:
    picture = pictures.gradient_png(colormap)
    return ft.Image(picture, height=height, fit=ft.BoxFit.FILL, border_radius=radius, exclude_from_semantics=True)


def _save_face() -> ft.Container:
    color = ft.Colors.PRIMARY
    return ft.Container(
        ft.Row(
            [ft.Icon(ft.Icons.DOWNLOAD_ROUNDED, size=18, color=color), ft.Text("Save", color=color)],
            alignment=ft.MainAxisAlignment.CENTER,
            spacing=8,
            tight=True,
        ),
        height=40,
        padding=ft.Padding.symmetric(horizontal=16),
        border=ft.Border.all(1, ft.Colors.OUTLINE),
        border_radius=20,
    )
