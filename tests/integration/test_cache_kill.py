"""Real signals to a real `delta cache build`: whatever the instant, the same command ends with the same bytes."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from delta_cache.reader import Store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="no such signals there"),
    pytest.mark.timeout(1200),
]
ROOT = Path(__file__).parents[2]
PHOTOS, WAIT_S = 24, 300


class Build:
    """`delta cache build` in a process of its own, one photo a chunk."""

    def __init__(self, photos: Path, store: Path, teacher: Path) -> None:
        self.store = store
        settings = ("size_px=64", "chunk_samples=1", "batch_size=1")
        command = [sys.executable, "-m", "delta_pipelines", "cache", "build", photos, store, "--teacher", teacher]
        rooms = os.pathsep.join(str(ROOT / room) for room in (".", "cache", "pipelines"))
        self._process = subprocess.Popen(
            [*command, "--device", "cpu", *(word for setting in settings for word in ("--set", setting))],
            env=os.environ | {"PYTHONPATH": rooms},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            preexec_fn=_listen,
        )

    def chunks_done(self) -> int:
        return len(list((self.store / "ledger").glob("*.json")))

    def signal_after(self, chunks: int, wait_s: float, number: int) -> None:
        """Send a signal when so many chunks are done, and a moment later."""
        deadline = time.monotonic() + WAIT_S
        while self.chunks_done() < chunks and self._process.poll() is None:
            assert time.monotonic() < deadline, "the build stands still"
            time.sleep(0.002)
        time.sleep(wait_s)
        self._process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Wait for the end: exit code and what was said."""
        _, err = self._process.communicate(timeout=WAIT_S)
        return self._process.returncode, err


def _listen() -> None:
    """Take Ctrl-C as a terminal's child would: a background job's children are started deaf to it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="module")
def photos(photo_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photo_folder(tmp_path_factory.mktemp("many") / "photos", count=PHOTOS)


@pytest.fixture(scope="module")
def uncut(photos: Path, random_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("uncut") / "store.zarr"
    code, said = Build(photos, store, random_student).end()
    assert code == 0, said
    return store


def without_provenance(files: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """All files; of the group's description what does not tell the commit, which may be made between two builds."""
    for name, content in files.items():
        yield name, content.partition(b'"provenance"')[0] if name == "zarr.json" else content


@pytest.mark.parametrize("seed", [1, 2])
def test_a_build_killed_again_and_again_ends_with_the_same_bytes(
    seed: int,
    photos: Path,
    uncut: Path,
    random_student: Path,
    tmp_path: Path,
    bytes_under: Callable[[Path], dict[str, bytes]],
) -> None:
    generator = random.Random(seed)
    store, done = tmp_path / "store.zarr", 0
    for _kill in range(3):
        build = Build(photos, store, random_student)
        build.signal_after(done + generator.randint(1, 6), generator.uniform(0, 0.05), signal.SIGKILL)
        code, said = build.end()
        assert code == -signal.SIGKILL, said
        assert build.chunks_done() >= done  # nothing finished is lost
        done = build.chunks_done()
        left = Store.open(store)
        assert len(left.missing_chunks()) == PHOTOS - done
        assert all(left.is_whole(chunk, digests=True) for chunk in range(PHOTOS) if left.record(chunk))
    assert done < PHOTOS
    code, said = Build(photos, store, random_student).end()
    assert code == 0, said
    assert dict(without_provenance(bytes_under(store))) == dict(without_provenance(bytes_under(uncut)))


def test_ctrl_c_exits_130_without_a_traceback_and_the_same_command_goes_on(
    photos: Path,
    uncut: Path,
    random_student: Path,
    tmp_path: Path,
    bytes_under: Callable[[Path], dict[str, bytes]],
) -> None:
    build = Build(photos, tmp_path / "store.zarr", random_student)
    build.signal_after(3, 0, signal.SIGINT)
    code, said = build.end()
    assert code == 130, said
    assert "Traceback" not in said
    assert 0 < len(Store.open(build.store).missing_chunks()) <= PHOTOS - 3
    code, said = Build(photos, build.store, random_student).end()
    assert code == 0, said
    assert dict(without_provenance(bytes_under(build.store))) == dict(without_provenance(bytes_under(uncut)))
