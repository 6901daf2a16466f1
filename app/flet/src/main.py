"""Start Delta's app: `flet run app/flet`, or `python app/flet/src/main.py [BUNDLE]`."""

import flet as ft

from delta_flet.app import DeltaApp


async def main(page: ft.Page) -> None:
    """Fill a window, or a browser tab."""
    await DeltaApp(page).start()


if __name__ == "__main__":
    ft.run(main, assets_dir="assets")
