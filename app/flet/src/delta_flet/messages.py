"""What stands on the stage where there is no picture: a welcome, or what went wrong and the way out."""

from collections.abc import Callable, Mapping
from pathlib import Path

import flet as ft

from delta_flet import look
from delta_flet.session import Trouble

TITLES = {"model": "This model cannot be used", "photo": "This photo cannot be used", "camera": "No live picture"}
ICONS = {
    "model": ft.Icons.BROKEN_IMAGE_OUTLINED,
    "photo": ft.Icons.IMAGE_NOT_SUPPORTED_OUTLINED,
    "camera": ft.Icons.VIDEOCAM_OFF_OUTLINED,
}


def welcome(samples: list[tuple[Path, bytes]], on_sample: Callable[[Path], object]) -> ft.Control:
    """Say what the app does, and offer photos that came with it."""
    thumbs = [_sample(path, content, index, on_sample) for index, (path, content) in enumerate(samples)]
    return ft.Column(
        [
            ft.Image("icon.png", width=60, height=60, border_radius=15, exclude_from_semantics=True),
            ft.Text("See depth in a single photo", size=24, weight=ft.FontWeight.W_600, text_align=ft.TextAlign.CENTER),
            ft.Text(
                "Open photos or start the camera. The bar below tells near from far.",
                size=14,
                color=ft.Colors.ON_SURFACE_VARIANT,
                text_align=ft.TextAlign.CENTER,
            ),
            ft.Container(look.caption("Or try one of these"), margin=ft.Margin.only(top=16)),
            ft.Row(thumbs, spacing=10, run_spacing=10, wrap=True, alignment=ft.MainAxisAlignment.CENTER),
        ],
        horizontal_alignment=ft.CrossAxisAlignment.CENTER,
        alignment=ft.MainAxisAlignment.CENTER,
        spacing=8,
        scroll=ft.ScrollMode.AUTO,
    )


def trouble_card(trouble: Trouble, ways_out: Mapping[str, Callable[[], object]]) -> ft.Control:
    """Say what went wrong, in words, with buttons that lead out, the best way first."""
    kinds = [ft.FilledTonalButton, *[ft.TextButton] * len(ways_out)]
    buttons = [
        kind(name, on_click=lambda _, go=go: go()) for kind, (name, go) in zip(kinds, ways_out.items(), strict=False)
    ]
    return ft.Container(
        ft.Column(
            [
                ft.Icon(ICONS[trouble.part], size=40, color=ft.Colors.ON_ERROR_CONTAINER),
                ft.Text(TITLES[trouble.part], size=18, weight=ft.FontWeight.W_600, text_align=ft.TextAlign.CENTER),
                ft.Text(_sentence(trouble.message), size=14, text_align=ft.TextAlign.CENTER),
                ft.Text(
                    _sentence(trouble.hint),
                    size=14,
                    color=ft.Colors.ON_SURFACE_VARIANT,
                    text_align=ft.TextAlign.CENTER,
                ),
                ft.Row(buttons, alignment=ft.MainAxisAlignment.CENTER, wrap=True),
            ],
            horizontal_alignment=ft.CrossAxisAlignment.CENTER,
            tight=True,
            spacing=12,
        ),
        width=420,
        padding=28,
        border_radius=look.RADIUS + 4,
        bgcolor=ft.Colors.SURFACE_CONTAINER_LOW,
        border=ft.Border.all(1, ft.Colors.OUTLINE_VARIANT),
    )


def _sample(path: Path, content: bytes, index: int, on_sample: Callable[[Path], object]) -> ft.Control:
    picture = ft.Image(content, width=64, height=64, fit=ft.BoxFit.COVER, exclude_from_semantics=True)
    box = ft.Container(
        picture,
        border_radius=12,
        clip_behavior=ft.ClipBehavior.ANTI_ALIAS,
        ink=True,
        on_click=lambda _: on_sample(path),
    )
    return ft.Semantics(content=box, label=f"Sample photo {index + 1}", button=True, container=True)


def _sentence(text: str) -> str:
    """Begin with a capital and end with a stop, as a text on a screen does; a file keeps its name."""
    first = text.partition(" ")[0]
    return f"{text[:1].upper() if first.isalpha() else text[:1]}{text[1:].rstrip('.')}." if text else ""
