"""Start Delta's app: `flet run app/flet`, or `python app/flet/src/main.py [BUNDLE]`."""

import os
import secrets
import tempfile
from pathlib import Path

import flet as ft

from delta_flet.app import DeltaApp


def run() -> None:
    """Open a window, or serve the web; there, photos wait in a folder until they are read, and it goes in the end."""
    os.environ.setdefault("FLET_SECRET_KEY", secrets.token_hex())  # signs the addresses that photos are sent to
    with tempfile.TemporaryDirectory(prefix="delta-") as folder:

        async def main(page: ft.Page) -> None:
            await DeltaApp(page, Path(folder)).start()

        ft.run(main, assets_dir="assets", upload_dir=folder, no_cdn=True)


if __name__ == "__main__":
    run()
