"""The app's colors and measures: paper by day, ink by night, as the web app's, so that the two look related."""

import flet as ft

WIDE_PX = 900  # from this page width on the controls stand beside the stage
RADIUS = 14

NAMES = {"spectral": "Spectral", "inferno": "Inferno", "viridis": "Viridis", "gray": "Gray"}

LIGHT = ft.ColorScheme(
    primary="#b5361c",
    on_primary="#ffffff",
    primary_container="#f7ddd5",
    on_primary_container="#4a1408",
    secondary="#b5361c",
    secondary_container="#e9e7e1",
    on_secondary_container="#15171c",
    surface="#f3f2ee",
    on_surface="#15171c",
    on_surface_variant="#565b66",
    surface_container_lowest="#ffffff",
    surface_container_low="#ffffff",
    surface_container="#e9e7e1",
    surface_container_high="#ffffff",
    surface_container_highest="#dedbd3",
    outline="#8a8d95",
    outline_variant="#d9d6cd",
    error="#b3261e",
    error_container="#fbe6e3",
    on_error_container="#8c1d18",
    inverse_surface="#22252d",
    on_inverse_surface="#eff1f5",
    surface_tint="#00000000",
)

DARK = ft.ColorScheme(
    primary="#ff8d63",
    on_primary="#220c04",
    primary_container="#54291b",
    on_primary_container="#ffd9cb",
    secondary="#ff8d63",
    secondary_container="#2c303a",
    on_secondary_container="#eff1f5",
    surface="#0d0e12",
    on_surface="#eff1f5",
    on_surface_variant="#a4abb8",
    surface_container_lowest="#17191f",
    surface_container_low="#1b1e25",
    surface_container="#17191f",
    surface_container_high="#22252d",
    surface_container_highest="#2c303a",
    outline="#747b88",
    outline_variant="#2c303a",
    error="#f2b8b5",
    error_container="#4a2422",
    on_error_container="#f2b8b5",
    inverse_surface="#eff1f5",
    on_inverse_surface="#15171c",
    surface_tint="#00000000",
)


def theme(scheme: ft.ColorScheme) -> ft.Theme:
    """Make a theme of a color scheme."""
    return ft.Theme(
        color_scheme=scheme,
        visual_density=ft.VisualDensity.STANDARD,
        slider_theme=ft.SliderTheme(track_height=3),
        scaffold_bgcolor=scheme.surface,
    )


def caption(text: str) -> ft.Text:
    """Write what a group of controls is for."""
    return ft.Text(text, size=12, weight=ft.FontWeight.W_600, color=ft.Colors.ON_SURFACE_VARIANT)


def pill(text: ft.Text) -> ft.Container:
    """Lay a text over a picture so that it reads on any color."""
    return ft.Container(
        text,
        bgcolor=ft.Colors.with_opacity(0.62, "#121116"),
        border_radius=20,
        padding=ft.Padding.symmetric(horizontal=10, vertical=4),
    )


def notice(text: str, wide: bool) -> ft.SnackBar:
    """Tell in passing what was done, above the row of buttons where the page is narrow."""
    return ft.SnackBar(
        text,
        behavior=ft.SnackBarBehavior.FLOATING,
        width=340 if wide else None,
        margin=None if wide else ft.Margin.only(left=14, right=14, bottom=66),
        duration=ft.Duration(seconds=3),
        shape=ft.RoundedRectangleBorder(radius=12),
    )
