"""`delta app build` and `delta app serve` without a browser: what is written, what is refused, what is served."""

import base64
import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tarfile
import threading
from io import BytesIO
from pathlib import Path

import msgspec
import pytest
import tree_sitter
import tree_sitter_javascript
from PIL import Image

from delta import colormaps
from delta.bundle import read_bundle_card
from delta_pipelines import app_runtime, app_site, npm_package
from delta_pipelines.app_models import AppModel, choices
from delta_pipelines.app_serve import open_server
from delta_pipelines.npm_package import Release

WEB = Path(__file__).parents[2] / "app" / "web"


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the runtime's tarball, pinned as the real one is."""
    path = tmp_path / "runtime.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name in (*app_runtime.WASM_FILES, *app_runtime.WEBGPU_FILES):
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(name)
            archive.addfile(entry, BytesIO(name.encode()))
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    monkeypatch.setattr(app_runtime, "RUNTIME", Release("onnxruntime-web", "1.30.0", f"sha512-{digest}"))
    return path


@pytest.fixture
def site(delta, runtime: Path, tiny_bundle: Path, tmp_path: Path) -> Path:
    ended = delta("app", "build", tiny_bundle, "-o", tmp_path / "site", "--runtime", runtime)
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[-1] == str(tmp_path / "site")
    return tmp_path / "site"


def refused(ended) -> tuple[str, str]:
    assert ended.code == 2, ended.err
    error, hint = ended.err.split("error:", 1)[1].split("hint:")
    return error.strip(), hint.strip()


def test_a_site_holds_the_app_the_runtime_and_a_smaller_bundle(site, tiny_bundle):
    for name in ("index.html", "app.js", "resample.wasm", "sw.js", "manifest.webmanifest", "ort/LICENSE.txt"):
        assert (site / name).stat().st_size > 0
    assert not list(site.rglob("*.wat"))
    card = read_bundle_card(next((site / "models").iterdir()))
    assert [model.precision for model in card.models] == ["fp32"]
    listed = json.loads((site / "models.json").read_text())["models"]
    assert [(site / entry["card"]).is_file() for entry in listed] == [True]
    assert [entry["name"] for entry in listed] == [tiny_bundle.name]


def test_the_picker_names_a_file_by_what_tells_it_from_the_others(tiny_bundle, tmp_path):
    card = read_bundle_card(tiny_bundle)
    one = AppModel(folder="one", card=msgspec.structs.replace(card, models=card.models[:1]), source=tiny_bundle)
    wide, tall = (msgspec.structs.replace(card.models[0], size_px=size) for size in ((192, 256), (256, 256)))
    two = AppModel(folder="two", card=msgspec.structs.replace(card, models=(wide, tall)), source=tiny_bundle)
    assert [choice.name for choice in choices([one])] == ["one"]
    assert [choice.name for choice in choices([two])] == ["256 × 192 px", "256 px"]
    assert [choice.name for choice in choices([one, two])] == ["one", "two · 256 × 192 px", "two · 256 px"]


def test_the_app_is_below_100_kb_without_the_runtime_models_and_pictures(site):
    apart = ("ort/", "models/", "examples/", "icons/")
    there = {path.relative_to(site).as_posix(): path.stat().st_size for path in site.rglob("*") if path.is_file()}
    of_the_app = {name: size for name, size in there.items() if not name.startswith(apart) and name != "build.json"}
    assert {"index.html", "app.js", "colormaps.json", "resample.wasm"} <= set(of_the_app)
    assert sum(of_the_app.values()) < 100_000


def test_the_service_worker_lists_every_file_with_its_digest(site):
    text = (site / "sw.js").read_text()
    build = json.loads(re.search(r"const BUILD=(.*?);", text).group(1))
    listed = build["core"] | build["later"]
    there = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    assert set(listed) == there - {"sw.js", "_headers", ".nojekyll", "build.json"}
    for path, digest in listed.items():
        assert base64.b64encode(hashlib.sha256((site / path).read_bytes()).digest()).decode() == digest
    assert set(build["later"]) == {f"ort/{name}" for name in app_runtime.WEBGPU_FILES}


@pytest.mark.parametrize("path", sorted(WEB.glob("*.js")), ids=lambda path: path.name)
def test_a_compacted_script_is_the_same_program(path):
    compacted = app_site.compact(path)
    assert isinstance(compacted, bytes)
    assert syntax(compacted) == syntax(path.read_bytes())


def syntax(script: bytes) -> list[tuple[str, bytes]]:
    """The nodes of a script's tree with the text of its leaves, comments left out."""
    root = tree_sitter.Parser(tree_sitter.Language(tree_sitter_javascript.language())).parse(script).root_node
    assert not root.has_error
    nodes, found = [root], []
    while nodes:
        node = nodes.pop()
        if node.type != "comment":
            found.append((node.type, b"" if node.child_count else node.text))
            nodes += reversed(node.children)
    return found


def test_the_colormaps_are_pythons(site):
    tables = json.loads((site / "colormaps.json").read_text())
    for name in colormaps.COLORMAPS:
        assert base64.b64decode(tables[name]) == colormaps.color_table(name).tobytes()


def test_the_icons_are_what_the_manifest_says(site):
    manifest = json.loads((site / "manifest.webmanifest").read_text())
    assert {icon["sizes"] for icon in manifest["icons"]} == {"192x192", "512x512"}
    assert {icon["purpose"] for icon in manifest["icons"]} == {"any", "maskable"}
    for icon in manifest["icons"]:
        with Image.open(site / icon["src"]) as drawn:
            assert "x".join(map(str, drawn.size)) == icon["sizes"]


def test_the_policy_of_the_page_and_of_the_server_are_one(site):
    page = (site / "index.html").read_text()
    policy = page.split('http-equiv="Content-Security-Policy" content="')[1].split('"')[0]
    assert f"{policy}; frame-ancestors 'none'" == app_site.CSP
    assert "unsafe-inline" not in policy
    assert "unsafe-eval" not in policy.replace("wasm-unsafe-eval", "")


def test_building_again_replaces_what_it_wrote_and_nothing_else(delta, site, runtime, tiny_model):
    (site / "CNAME").write_text("depth.example")
    ended = delta("app", "build", tiny_model, "-o", site, "--runtime", runtime, "--no-webgpu", "--json")
    assert ended.code == 0, ended.err
    assert (site / "CNAME").read_text() == "depth.example"
    assert not (site / "ort" / app_runtime.WEBGPU_FILES[0]).exists()
    models = [path.relative_to(site).as_posix() for path in site.rglob("*.onnx")]
    assert models == ["models/depth-64x128-fp32/depth_64x128_fp32.onnx"]
    assert set(json.loads(ended.out)["files"]) >= set(models)


def test_two_builds_of_the_same_are_the_same(delta, site, runtime, tiny_bundle, tmp_path, bytes_under):
    delta("app", "build", tiny_bundle, "-o", tmp_path / "again", "--runtime", runtime)
    assert bytes_under(tmp_path / "again") == bytes_under(site)


def test_a_folder_of_something_else_is_left_alone(delta, runtime, tiny_bundle, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("x")
    error, _ = refused(delta("app", "build", tiny_bundle, "-o", tmp_path / "thesis", "--runtime", runtime))
    assert error == f"{tmp_path / 'thesis'} holds something else than the app"
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]


def test_a_build_list_that_points_outside_deletes_nothing(delta, site, runtime, tiny_bundle, tmp_path):
    (tmp_path / "keep.txt").write_text("x")
    built = json.loads((site / "build.json").read_text())
    built["files"]["../keep.txt"] = built["files"][str(tmp_path / "keep.txt")] = [1, "0"]
    (site / "build.json").write_text(json.dumps(built))
    assert delta("app", "build", tiny_bundle, "-o", site, "--runtime", runtime).code == 0
    assert (tmp_path / "keep.txt").exists()


def test_a_model_that_is_not_what_its_card_says_is_refused(delta, runtime, tiny_bundle, tmp_path):
    copy = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    model = copy / "depth_64x128_fp32.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    error, hint = refused(delta("app", "build", copy, "-o", tmp_path / "out", "--runtime", runtime))
    assert error == f"{model} is not the file that delta.json describes"
    assert "delta export" in hint
    assert not (tmp_path / "out").exists()


def test_a_precision_the_bundle_lacks_is_refused(delta, runtime, tiny_bundle, tmp_path):
    given = ("--runtime", runtime, "--precision", "int4")
    error, hint = refused(delta("app", "build", tiny_bundle, "-o", tmp_path / "out", *given))
    assert error == f"{tiny_bundle} has no int4 file"
    assert hint == "it has fp32, fp16, int8"


def test_another_runtime_than_the_pinned_one_is_refused(delta, tiny_bundle, tmp_path):
    (tmp_path / "other.tgz").write_bytes(b"other")
    given = ("-o", tmp_path / "out", "--runtime", tmp_path / "other.tgz")
    error, hint = refused(delta("app", "build", tiny_bundle, *given))
    assert error == f"{tmp_path / 'other.tgz'} is not onnxruntime-web@1.30.0 as it was published"
    assert "npm pack onnxruntime-web@1.30.0" in hint


def test_without_npm_the_way_out_is_said(delta, tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.setattr(npm_package.shutil, "which", lambda name: None)
    monkeypatch.setattr(npm_package.importlib.util, "find_spec", lambda name: None)
    error, hint = refused(delta("app", "build", tiny_bundle, "-o", tmp_path / "out"))
    assert error == "onnxruntime-web@1.30.0 is needed once, and there is no npm to fetch it"
    assert f"put the file into {tmp_path / 'cache' / 'delta'}" in hint


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for npm is a shell script")
def test_npm_is_asked_once_and_its_failure_is_told(delta, runtime, tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text("#!/bin/sh\necho 'npm error network is down' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}{os.pathsep}{os.environ['PATH']}")
    error, _ = refused(delta("app", "build", tiny_bundle, "-o", tmp_path / "out"))
    assert error == "npm could not fetch onnxruntime-web@1.30.0: npm error network is down"
    npm.write_text(f'#!/bin/sh\necho x >> {tmp_path}/asked\ncp {runtime} "$5/onnxruntime-web-1.30.0.tgz"\n')
    for _ in range(2):
        assert delta("app", "build", tiny_bundle, "-o", tmp_path / "out").code == 0
    assert (tmp_path / "asked").read_text() == "x\n"


def test_the_kernel_is_what_its_source_says():
    wasmtime = pytest.importorskip("wasmtime")
    assert wasmtime.wat2wasm((WEB / "resample.wat").read_text()) == (WEB / "resample.wasm").read_bytes()


@pytest.fixture
def served(site: Path):
    def serve(*, https: bool):
        server, address = open_server(site, port=0, https=https)
        running.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return server, address

    running: list = []
    yield serve
    for server in running:
        server.shutdown()
        server.server_close()


def ask(server, path: str, method: str = "GET", secure: bool = False, **headers: str) -> http.client.HTTPResponse:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    options = {"context": context} if secure else {}
    connection = connect("127.0.0.1", server.server_port, timeout=20, **options)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    answer.content = answer.read()
    connection.close()
    return answer


def test_the_server_isolates_the_page_and_answers_by_digest(site, served):
    server, address = served(https=False)
    assert address.startswith("http://localhost:")
    answer = ask(server, "/?view=side")
    assert answer.content == (site / "index.html").read_bytes()
    assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert ask(server, "/", **{"If-None-Match": answer.headers["ETag"]}).status == 304
    head = ask(server, "/resample.wasm", "HEAD")
    assert (head.status, head.content, head.headers["Content-Type"]) == (200, b"", "application/wasm")


@pytest.mark.parametrize(
    "path",
    [
        "/../keep.txt",
        "/%2e%2e/keep.txt",
        "/..%2fkeep.txt",
        "//etc/passwd",
        "/models/",
        "/build.json/..",
        "/\\..\\keep.txt",
    ],
)
def test_nothing_but_the_sites_files_is_served(site, served, path):
    (site.parent / "keep.txt").write_text("secret")
    server, _ = served(https=False)
    answer = ask(server, path)
    assert (answer.status, answer.content) == (404, b"")


def test_by_https_it_has_a_certificate_of_its_own(site, served):
    pytest.importorskip("trustme")
    server, address = served(https=True)
    assert address.startswith("https://")
    answer = ask(server, "/", secure=True)
    assert answer.content == (site / "index.html").read_bytes()


def test_a_port_that_is_taken_is_said(delta, runtime, tiny_bundle, served):
    server, _ = served(https=False)
    given = ("--runtime", runtime, "--port", server.server_port)
    error, hint = refused(delta("app", "serve", tiny_bundle, *map(str, given)))
    assert error.startswith(f"port {server.server_port} cannot be used")
    assert hint == "name another with --port"


def test_the_wheel_carries_the_app_and_builds_it_without_the_checkout(tmp_path):
    build = f"import hatchling.build; print(hatchling.build.build_wheel({str(tmp_path)!r}))"
    wheel = subprocess.run(
        [sys.executable, "-c", build], cwd=WEB.parents[1], capture_output=True, text=True, check=True
    ).stdout.split()[-1]
    shutil.unpack_archive(tmp_path / wheel, tmp_path / "installed", "zip")
    code = "from delta_pipelines.app_site import web_folder; print(web_folder())"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert Path(found) == tmp_path / "installed" / "delta_pipelines" / "web"
    ours = {path.relative_to(WEB).as_posix(): path.read_bytes() for path in WEB.rglob("*") if path.is_file()}
    theirs = {
        path.relative_to(found).as_posix(): path.read_bytes() for path in Path(found).rglob("*") if path.is_file()
    }
    assert theirs == ours
