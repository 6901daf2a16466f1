"""Photos that a person picks, as bytes, wherever the files are.

A desktop reads them from its disk and a phone from where its picker put them; a browser sends them, one request a file,
because the connection that carries the screen ends at messages of 16 MB.
"""

import asyncio
import contextlib
import shutil
from pathlib import Path
from uuid import uuid4

import flet as ft

LIFETIME_S = 600  # of the address that a browser sends a file to


class PhotoPicker:
    """A file dialog; `uploads` is the folder that the web server puts files into."""

    def __init__(self, page: ft.Page, uploads: Path | None) -> None:
        self._page, self._uploads = page, uploads
        self._picker = ft.FilePicker(on_upload=self._note)
        self._arrived: asyncio.Queue[ft.FilePickerUploadEvent] = asyncio.Queue()

    async def pick(self) -> list[tuple[str, bytes | None]]:
        """Let a person pick photos: names and contents, in the order of the dialog; None where one cannot be read."""
        files = await self._picker.pick_files(
            dialog_title="Open photos", file_type=ft.FilePickerFileType.IMAGE, allow_multiple=True
        )
        if self._page.web and files:
            return await self._receive(files)
        return [(file.name, _content(Path(file.path or ""))) for file in files]

    async def save(self, name: str, content: bytes) -> bool:
        """Let a person say where a file goes, and write it; a browser downloads it."""
        where = await self._picker.save_file(file_name=name, src_bytes=content)
        return bool(where) or self._page.web

    async def _receive(self, files: list[ft.FilePickerFile]) -> list[tuple[str, bytes | None]]:
        assert self._uploads
        folder = self._uploads / uuid4().hex
        places = [f"{folder.name}/{index}" for index in range(len(files))]
        requests = [
            ft.FilePickerUploadFile(upload_url=self._page.get_upload_url(place, LIFETIME_S), id=file.id)
            for place, file in zip(places, files, strict=True)
        ]
        try:
            await self._picker.upload(requests)
            with contextlib.suppress(TimeoutError):  # the page is gone
                for _ in files:
                    await asyncio.wait_for(self._arrived.get(), LIFETIME_S)
            return [(file.name, _content(self._uploads / place)) for place, file in zip(places, files, strict=True)]
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _note(self, event: ft.FilePickerUploadEvent) -> None:
        if event.error or event.progress == 1:
            self._arrived.put_nowait(event)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
