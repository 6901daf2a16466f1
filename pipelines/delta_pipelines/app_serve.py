"""`delta app serve`: a built site on this machine, or by https, with a certificate of its own, for phones."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

from delta.errors import DeltaError
from delta_pipelines.app_site import HEADERS, LIST, Site

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".wasm": "application/wasm",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".txt": "text/plain; charset=utf-8",
}
ANYWHERE = "0.0.0.0"
SOMEWHERE_ELSE = ("192.0.2.1", 9)  # a documentation address: nothing is sent, but the system picks its own address


class SiteServer(ThreadingHTTPServer):
    """Serves the files that a build lists, and nothing else: a path is looked up, never joined to a folder."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], folder: Path) -> None:
        site = msgspec.json.decode((folder / LIST).read_bytes(), type=Site)
        self.files = {f"/{path}": (folder / path, digest) for path, (_, digest) in site.files.items()}
        self.files["/"] = self.files["/index.html"]
        super().__init__(address, SiteHandler)


class SiteHandler(BaseHTTPRequestHandler):
    """Answers GET and HEAD, with the headers that isolate the page and an ETag that is the file's digest."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "delta", ""

    def do_GET(self) -> None:
        """Send a file of the site."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Send its headers."""
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: what went wrong is seen in the page."""

    def _answer(self, *, with_body: bool) -> None:
        assert isinstance(self.server, SiteServer)
        found = self.server.files.get(unquote(urlsplit(self.path).path))
        if found is None:
            self._head(HTTPStatus.NOT_FOUND, {"Content-Length": "0"})
            return
        path, digest = found
        etag = f'"{digest}"'
        if self.headers.get("If-None-Match") == etag:
            self._head(HTTPStatus.NOT_MODIFIED, {"ETag": etag})
            return
        content = path.read_bytes()
        kind = TYPES.get(path.suffix, "application/octet-stream")
        self._head(HTTPStatus.OK, {"Content-Type": kind, "Content-Length": str(len(content)), "ETag": etag})
        if with_body:
            self.wfile.write(content)

    def _head(self, status: HTTPStatus, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (HEADERS | {"Cache-Control": "no-cache"} | headers).items():
            self.send_header(name, value)
        self.end_headers()


def open_server(folder: Path, *, port: int, https: bool) -> tuple[SiteServer, str]:
    """Bind a server for a built site and return it with its address; by https it listens on the whole network.

    Raises:
        DeltaError: the port is taken, or a package for https is missing.
    """
    host = _lan_address() if https else "localhost"
    try:
        server = SiteServer((ANYWHERE if https else "127.0.0.1", port), folder)
    except OSError as error:
        raise DeltaError(f"port {port} cannot be used: {error.strerror}", "name another with --port") from None
    if https:
        server.socket = _certificate_for(host).wrap_socket(server.socket, server_side=True)
    return server, f"{'https' if https else 'http'}://{host}:{server.server_port}/"


def serve(server: SiteServer, on_ready: Callable[[], None]) -> None:
    """Serve until interrupted."""
    with server:
        on_ready()
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            return


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a built site on a free port, in a thread, until the block ends; yields its address."""
    server, address = open_server(folder, port=0, https=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield address
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _certificate_for(host: str) -> ssl.SSLContext:
    """Make a certificate for this run; its key is never on a disk that outlives it."""
    try:
        import trustme
    except ImportError:
        raise DeltaError("https needs the package trustme", "pip install 'delta-depth[app]'") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA(organization_name="Delta").issue_cert("localhost", "127.0.0.1", host).configure_cert(context)
    return context


def _lan_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(SOMEWHERE_ELSE)
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"
