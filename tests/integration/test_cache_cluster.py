"""A store built by a real Dask cluster is the one a single process builds, whoever dies on the way."""

import contextlib
import os
import re
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
    pytest.mark.skipif(os.name != "posix", reason="processes are killed by signals"),
    pytest.mark.timeout(900),
]
ROOT = Path(__file__).parents[2]
PHOTOS, WAIT_S = 48, 240
SETTINGS = ("size_px=64", "chunk_samples=2", "batch_size=2", "features.fit_photos=16")
Answers = Callable[[Path], dict[str, bytes]]


def start(*command: str | Path, log: Path) -> subprocess.Popen[bytes]:
    rooms = os.pathsep.join(str(ROOT / room) for room in (".", "cache", "pipelines"))
    environment = os.environ | {"PYTHONPATH": rooms, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    with log.open("wb") as said:
        return subprocess.Popen([sys.executable, *map(str, command)], env=environment, stdout=said, stderr=said)


def build(photos: Path, store: Path, teacher: Path, log: Path, *options: str) -> subprocess.Popen[bytes]:
    """`delta cache build` in a process of its own."""
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    command = ["-m", "delta_pipelines", "cache", "build", photos, store, "--teacher", teacher, "--device", "cpu"]
    return start(*command, *settings, *options, log=log)


def wait_for(what: Callable[[], object], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while not what():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def ended(process: subprocess.Popen[bytes], log: Path) -> None:
    assert process.wait(WAIT_S) == 0, log.read_text()


def chunks_done(store: Path) -> int:
    return len(list((store / "ledger").glob("*.json")))


@pytest.fixture(scope="module")
def photos(photo_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photo_folder(tmp_path_factory.mktemp("cluster") / "photos", count=PHOTOS)


@pytest.fixture(scope="module")
def alone(photos: Path, random_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a single process builds."""
    folder = tmp_path_factory.mktemp("alone")
    ended(build(photos, folder / "store.zarr", random_student, folder / "log"), folder / "log")
    return folder / "store.zarr"


class Cluster:
    """A scheduler and three workers of two threads, each a process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.scheduler = start(
            "-m", "dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", log=folder / "scheduler"
        )  # fmt: skip
        wait_for(self._address, self.scheduler, folder / "scheduler")
        self.address = self._address()
        self.workers = [self._worker(number) for number in range(3)]

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()

    def _address(self) -> str:
        found = re.search(r"tcp://127\.0\.0\.1:\d+", (self._folder / "scheduler").read_text())
        return found[0] if found else ""

    def _worker(self, number: int) -> subprocess.Popen[bytes]:
        return start(
            "-m", "dask", "worker", self.address, "--nthreads", "2", "--no-nanny", "--no-dashboard",
            "--local-directory", self._folder / f"scratch{number}", log=self._folder / f"worker{number}",
        )  # fmt: skip


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    running = Cluster(tmp_path)
    yield running
    running.close()


def test_a_worker_killed_in_mid_run_changes_no_byte(
    cluster: Cluster, photos: Path, alone: Path, random_student: Path, tmp_path: Path, answers_under: Answers
) -> None:
    store, log = tmp_path / "store.zarr", tmp_path / "log"
    building = build(photos, store, random_student, log, "--scheduler", cluster.address)
    wait_for(lambda: chunks_done(store) >= 4, building, log)
    cluster.workers[0].send_signal(signal.SIGKILL)
    left = PHOTOS // 2 - chunks_done(store)
    ended(building, log)
    assert left > 0, "the worker was killed too late to matter"
    records = list(Store.open(store).require_complete().records())
    assert len({record.times.worker for record in records}) > 1
    assert answers_under(store) == answers_under(alone)


def test_two_schedulers_may_build_one_store(
    cluster: Cluster, photos: Path, alone: Path, random_student: Path, tmp_path: Path, answers_under: Answers
) -> None:
    (tmp_path / "second").mkdir()
    second = Cluster(tmp_path / "second")
    try:
        store = tmp_path / "store.zarr"
        addresses = (cluster.address, second.address)
        logs = [tmp_path / f"log{number}" for number in range(2)]
        both = [
            build(photos, store, random_student, log, "--scheduler", address)
            for log, address in zip(logs, addresses, strict=True)
        ]
        for process, log in zip(both, logs, strict=True):
            ended(process, log)
    finally:
        second.close()
    assert answers_under(store) == answers_under(alone)


def test_workers_of_this_machine_build_the_same_store(
    photos: Path, alone: Path, random_student: Path, tmp_path: Path, answers_under: Answers
) -> None:
    ended(build(photos, tmp_path / "s.zarr", random_student, tmp_path / "log", "--workers", "2"), tmp_path / "log")
    assert answers_under(tmp_path / "s.zarr") == answers_under(alone)
    assert "2 worker(s)" in _info(tmp_path / "s.zarr", tmp_path / "info")


def test_a_scheduler_that_is_not_there_is_one_sentence(photos: Path, random_student: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = build(photos, tmp_path / "s.zarr", random_student, log, "--scheduler", "tcp://127.0.0.1:9")
    assert process.wait(WAIT_S) == 2
    assert "there is no Dask scheduler at tcp://127.0.0.1:9" in log.read_text()
    assert "Traceback" not in log.read_text()


def _info(store: Path, log: Path) -> str:
    ended(start("-m", "delta_pipelines", "cache", "info", store, log=log), log)
    return log.read_text()
