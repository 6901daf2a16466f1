"""`delta app build`: the app's files, the pinned runtime and the models become a folder that any host can serve."""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import rcssmin
import rjsmin
from PIL import Image

from delta import bundled, colormaps
from delta.config import Config
from delta.errors import DeltaError
from delta.files import write_aside
from delta_pipelines import app_runtime
from delta_pipelines.app_icons import icon_png
from delta_pipelines.app_models import AppModel, app_models, choices

FORMAT = "delta-site"
LIST = "build.json"
INSTALLED, CHECKOUT = Path(__file__).with_name("web"), Path(__file__).parents[2] / "app" / "web"
LEFT_OUT = (".wat", ".txt")  # sources and what is copied elsewhere
COMPACT: dict[str, Callable[[str], Any]] = {  # text to text; the minifiers' own types say bytes too
    ".js": lambda text: rjsmin.jsmin(text, keep_bang_comments=True),
    ".css": rcssmin.cssmin,
    ".html": lambda text: "\n".join(line.strip() for line in text.splitlines()),
}
EXAMPLES = {  # of the bundled photos: what the app shows before anyone has chosen a picture
    "budgie_0016.jpg": "Red gates along a path",
    "budgie_0021.jpg": "A kitten in the grass",
    "kodak_0012.jpg": "A propeller plane",
}
EXAMPLE_PX, THUMB_PX = 720, 220
ICONS = {"icon-180.png": (180, True), "icon-192.png": (192, False), "icon-512.png": (512, False)}
MASKABLE = {"icon-maskable-512.png": (512, True)}
CSP = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self'; "
    "img-src 'self' blob:; media-src 'self' blob:; style-src 'self'; manifest-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": CSP,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Site(Config, frozen=True, kw_only=True):
    """What was built: `files` maps each path below the site to its bytes and SHA-256."""

    format: str = FORMAT
    version: str
    files: dict[str, tuple[int, str]]

    def bytes_of(self, *starts: str) -> int:
        """Sum up the files whose path starts with one of these."""
        return sum(size for path, (size, _) in self.files.items() if path.startswith(starts))

    @property
    def app_bytes(self) -> int:
        """Sum up what is code: neither runtime, models, examples nor icons."""
        apart = ("ort/", "models/", "examples/", "icons/")
        return sum(size for path, (size, _) in self.files.items() if not path.startswith(apart))


def build_site(
    models: Sequence[Path], out: Path, *, precision: str = "", runtime: Path | None = None, webgpu: bool = True
) -> Site:
    """Write the app for these bundles or ONNX files to the folder `out`; files that others put there stay.

    Raises:
        DeltaError: a model that cannot be used, no runtime, or a folder of something else.
    """
    previous = _previous(out)
    content, site = site_files(app_models(models, precision), runtime=runtime, webgpu=webgpu)
    for path, source in sorted(content.items(), key=lambda item: item[0] == "sw.js"):  # the worker announces the rest
        with write_aside(out / path) as aside:
            aside.write_bytes(_read(source))
    with write_aside(out / LIST) as aside:
        aside.write_bytes(msgspec.json.format(msgspec.json.encode(site), indent=1))
    for path in set(previous) - set(site.files):
        (out / path).unlink(missing_ok=True)
    return site


def site_files(
    models: Sequence[AppModel], *, runtime: Path | None, webgpu: bool
) -> tuple[dict[str, bytes | Path], Site]:
    """Return every file of the site, its path and its bytes or the file they are in, and the list of them."""
    files: dict[str, bytes | Path] = {**_app_files(), **_icons(), **_examples()}
    names = app_runtime.WASM_FILES + (app_runtime.WEBGPU_FILES if webgpu else ())
    files |= {f"ort/{name}": content for name, content in app_runtime.runtime_files(names, runtime).items()}
    files["ort/LICENSE.txt"] = web_folder() / "runtime-license.txt"
    tables = {name: base64.b64encode(colormaps.color_table(name).tobytes()).decode() for name in colormaps.COLORMAPS}
    files["colormaps.json"] = json.dumps(tables).encode()
    for model in models:
        files[model.sidecar] = msgspec.json.encode(model.card)
        files |= dict(model.files())
    listed = choices(models)
    files["models.json"] = msgspec.json.encode({"models": listed, "webgpu": webgpu})
    files["manifest.webmanifest"] = json.dumps(_manifest(), ensure_ascii=False, indent=1).encode()
    files["_headers"] = _headers_file()
    files[".nojekyll"] = b""
    first = next(iter(listed))
    kept = {first.card, first.card.rpartition("/")[0] + "/" + first.file}
    worker = _read(files.pop("sw.js")).decode()
    digests = {path: _size_and_digest(source) for path, source in sorted(files.items())}
    files["sw.js"] = _service_worker(worker, digests, kept)
    digests["sw.js"] = _size_and_digest(files["sw.js"])
    return files, Site(version=_version(digests), files=dict(sorted(digests.items())))


def web_folder() -> Path:
    """Find the app's sources: inside the installed package, or in the checkout that this file is part of."""
    for folder in (INSTALLED, CHECKOUT):
        if (folder / "index.html").is_file():
            return folder
    raise DeltaError("the web app's files are not installed", "pip install delta-depth again, or work in a checkout")


def _app_files() -> dict[str, bytes | Path]:
    root = web_folder()
    paths = [path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix not in LEFT_OUT]
    return {path.relative_to(root).as_posix(): compact(path) for path in paths}


def compact(path: Path) -> bytes | Path:
    """Drop comments and the space that means nothing; comments that begin with /*! stay."""
    if path.suffix not in COMPACT:
        return path
    return COMPACT[path.suffix](path.read_text(encoding="utf-8")).encode()


def _icons() -> dict[str, bytes | Path]:
    return {f"icons/{name}": icon_png(side, maskable=maskable) for name, (side, maskable) in (ICONS | MASKABLE).items()}


def _examples() -> dict[str, bytes | Path]:
    files: dict[str, bytes | Path] = {}
    listed = []
    for name, title in EXAMPLES.items():
        entry = {"file": f"examples/{name}", "thumb": f"examples/small-{name}", "title": title}
        with Image.open(bundled.PHOTOS / name) as photo:
            files[entry["file"]] = _jpeg(photo.convert("RGB"), EXAMPLE_PX)
            files[entry["thumb"]] = _jpeg(photo.convert("RGB"), THUMB_PX)
        listed.append(entry)
    files["examples/examples.json"] = json.dumps(listed).encode()
    return files


def _jpeg(photo: Image.Image, longest_px: int) -> bytes:
    photo.thumbnail((longest_px, longest_px), Image.Resampling.LANCZOS)
    content = BytesIO()
    photo.save(content, "JPEG", quality=84, optimize=True)
    return content.getvalue()


def _manifest() -> dict[str, Any]:
    icons = [
        {"src": f"icons/{name}", "sizes": f"{side}x{side}", "type": "image/png", "purpose": purpose}
        for group, purpose in ((ICONS, "any"), (MASKABLE, "maskable"))
        for name, (side, _) in group.items()
        if side != 180
    ]
    return {
        "id": "./",
        "name": "Delta",
        "short_name": "Delta",
        "description": "See how near and far things are, in a photo or live, on this device.",
        "start_url": "./",
        "scope": "./",
        "display": "standalone",
        "background_color": "#0d0e12",
        "theme_color": "#0d0e12",
        "categories": ["photo", "utilities"],
        "icons": icons,
    }


def _headers_file() -> bytes:
    """Headers for the hosts that read them from a file of this name; elsewhere the service worker adds them."""
    return ("/*\n" + "".join(f"  {name}: {value}\n" for name, value in HEADERS.items())).encode()


def _service_worker(text: str, digests: Mapping[str, tuple[int, str]], models_kept: set[str]) -> bytes:
    """Write into the service worker what it keeps from the start, and what once it is asked for."""
    core, later = {}, {}
    for path, (_, digest) in digests.items():
        if path in ("_headers", ".nojekyll"):
            continue
        is_later = path.startswith("models/") and path not in models_kept
        is_later |= path.startswith("ort/") and path.removeprefix("ort/") in app_runtime.WEBGPU_FILES
        (later if is_later else core)[path] = base64.b64encode(bytes.fromhex(digest)).decode()
    build = {"version": _version(core | later), "core": core, "later": later}
    return re.sub(r"/\*! BUILD \*/\{.*?\};", lambda _: json.dumps(build) + ";", text, count=1).encode()


def _previous(out: Path) -> dict[str, Any]:
    """List the files of an earlier build, which may be replaced."""
    if not out.is_dir() or not any(out.iterdir()):
        return {}
    try:
        found = msgspec.json.decode((out / LIST).read_bytes(), type=Site)
    except (OSError, msgspec.MsgspecError):
        raise DeltaError(f"{out} holds something else than the app", "name a new or an empty folder") from None
    return {path: entry for path, entry in found.files.items() if _stays_below(path)}


def _stays_below(path: str) -> bool:
    return not Path(path).is_absolute() and ".." not in Path(path).parts


def _read(source: bytes | Path) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()


def _size_and_digest(source: bytes | Path) -> tuple[int, str]:
    content = _read(source)
    return len(content), hashlib.sha256(content).hexdigest()


def _version(digests: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:12]
