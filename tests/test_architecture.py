"""Who may import whom, what an import may cost, and what the wheel and the repository may hold."""

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
SOURCE_ROOTS = [str(ROOT), str(ROOT / "cache"), str(ROOT / "pipelines"), str(ROOT / "app" / "flet" / "src")]

# Also what an untracked file would be blamed for once it is committed.
REPOSITORY_FILES = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
# A path under one of these belongs to one person's machine, unless it is the end of a longer path or address.
MACHINE_PATH = re.compile(
    r"(?<![\w.})>])(?:/(?:home|root|Users|work|workspace|opt|mnt|srv|scratch)/|[A-Z]:\\+Users\\+)[\w.~-]"
)
REGISTRY = re.compile(
    r"(?:pypi|pythonhosted|npmjs)\.(?:org|io|com)|deb\.debian\.|--(?:extra-)?index-url|--find[-]links"
)

PLATFORMS = [
    ("linux", "x86_64", "onnxruntime-gpu"),
    ("linux", "aarch64", "onnxruntime"),
    ("linux", "armv7l", "onnxruntime"),
    ("win32", "AMD64", "onnxruntime-gpu"),
    ("win32", "ARM64", "onnxruntime"),
    ("darwin", "x86_64", "onnxruntime"),
    ("darwin", "arm64", "onnxruntime"),
    ("freebsd14", "amd64", "onnxruntime"),
]


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter that sees the three rooms, installed or not."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(SOURCE_ROOTS)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", check=False
    )


def modules_loaded_by(statement: str) -> set[str]:
    """Run `statement` in a fresh interpreter and return the names of all modules it left loaded."""
    report = f"""
import contextlib, io, json, sys
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    {statement}
print(json.dumps(sorted(sys.modules)))
"""
    done = run_python("-c", report)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_imports_follow_the_drawing_of_the_rooms():
    done = run_python("-c", "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))")
    assert done.returncode == 0, done.stdout + done.stderr


IMPORTED_BY_THE_FLET_APP = """
import grimp, json
graph = grimp.build_graph("delta_flet", "delta", cache_dir=None)
found = [graph.find_modules_directly_imported_by(name) for name in graph.find_descendants("delta_flet")]
print(json.dumps(sorted(name for name in set().union(*found) if name.partition(".")[0] == "delta")))
"""


def test_the_flet_app_imports_of_delta_only_what_predicting_needs():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    predicting = next(found for found in settings["contracts"] if found["name"].startswith("Predicting"))
    done = run_python("-c", IMPORTED_BY_THE_FLET_APP)
    assert done.returncode == 0, done.stderr
    imported = set(json.loads(done.stdout))
    assert "delta.predict" in imported
    assert imported <= set(predicting["source_modules"])


def test_importing_the_predictor_loads_neither_torch_nor_transformers():
    loaded = modules_loaded_by("import delta.predict")
    assert "delta.predict" in loaded
    assert not loaded & {"torch", "torchvision", "transformers", "timm"}


def test_asking_for_help_loads_neither_torch_nor_zarr_nor_transformers():
    loaded = modules_loaded_by(
        "import runpy; sys.argv = ['delta', '--help']; runpy.run_module('delta_pipelines', run_name='__main__')"
    )
    assert "delta_pipelines.cli" in loaded
    assert not loaded & {"torch", "torchvision", "transformers", "timm", "zarr"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    done = run_python("-c", f"import hatchling.build; print(hatchling.build.build_wheel({str(folder)!r}))")
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(folder / done.stdout.split()[-1]) as archive:
        yield archive


def test_the_wheel_holds_three_packages_and_nothing_else(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"delta", "delta_cache", "delta_pipelines"}


def test_the_wheel_holds_every_file_of_the_packages(wheel):
    listed = subprocess.run(REPOSITORY_FILES, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    rooms = ("delta/", "cache/delta_cache/", "pipelines/delta_pipelines/")
    ours = {name for name in listed if name.startswith(rooms) and (ROOT / name).is_file()}
    inside = {name.removeprefix("cache/").removeprefix("pipelines/") for name in ours}
    assert "delta/py.typed" in inside
    assert inside <= set(wheel.namelist())


@pytest.mark.parametrize(("sys_platform", "platform_machine", "expected"), PLATFORMS)
def test_every_platform_gets_exactly_one_onnxruntime(wheel, sys_platform, platform_machine, expected):
    environment = {"sys_platform": sys_platform, "platform_machine": platform_machine, "extra": ""}
    metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    fields = HeaderParser().parsestr(wheel.read(metadata).decode())
    requirements = map(Requirement, fields.get_all("Requires-Dist"))
    chosen = [
        requirement.name
        for requirement in requirements
        if requirement.name.startswith("onnxruntime") and requirement.marker.evaluate(environment)
    ]
    assert chosen == [expected]


def test_no_file_names_a_path_of_one_machine_or_a_package_registry():
    named = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
        for path, text in texts_in_the_repository()
        for number, line in enumerate(text.splitlines(), 1)
        if MACHINE_PATH.search(line) or REGISTRY.search(line)
    ]
    assert named == []


@pytest.mark.parametrize(
    "line", ["see /" + "home/ann/x", "-v /" + "root/.cache", r"C:\Users" + r"\ann", "https://py" + "pi.org/simple"]
)
def test_a_path_or_registry_would_be_found(line):
    assert MACHINE_PATH.search(line) or REGISTRY.search(line)


def texts_in_the_repository():
    """Yield (path, text) of every file git tracks or would track, without the binary ones."""
    listed = subprocess.run(REPOSITORY_FILES, cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip(f"NOT TESTED: {ROOT} is not a git checkout")
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = ROOT / name
        content = path.read_bytes() if path.is_file() else b"\0"
        if b"\0" not in content:
            yield path, content.decode("utf-8", errors="replace")
