"""Photos and stores at s3:// URLs, on a real S3 server process: the same bytes, also after a kill in mid-upload."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from delta_cache.errors import NotAStore
from delta_cache.reader import Store, open_cache
from delta_cache.storage import RemoteStorage, open_storage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
PHOTOS, WAIT_S = 24, 240
SETTINGS = ("size_px=64", "chunk_samples=2", "batch_size=2", "features.fit_photos=16")
Answers = Callable[[Path], dict[str, bytes]]


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """moto's S3 server in a process of its own; the standard environment variables lead every client to it."""
    pytest.importorskip("s3fs", reason="NOT TESTED: pip install 'delta-depth[s3]'")
    pytest.importorskip("moto", reason="NOT TESTED: pip install 'moto[server]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("s3") / "log"
    with log.open("wb") as said, pytest.MonkeyPatch.context() as patch:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=said, stderr=said
        )
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        _wait_for(lambda: _answers(port), process, log)
        yield f"http://127.0.0.1:{port}"
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait_for(what: Callable[[], object], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while not what():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def bucket() -> str:
    """A bucket, made by name through fsspec."""
    storage = open_storage("s3://photos-and-stores")
    assert isinstance(storage, RemoteStorage)
    storage._system.mkdir("photos-and-stores")
    return "s3://photos-and-stores"


@pytest.fixture(scope="module")
def photos(photo_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photo_folder(tmp_path_factory.mktemp("remote") / "photos", count=PHOTOS)


@pytest.fixture(scope="module")
def remote_photos(bucket: str, photos: Path) -> str:
    storage = open_storage(f"{bucket}/photos")
    for path in photos.rglob("*.*"):
        storage.write(path.relative_to(photos).as_posix(), path.read_bytes())
    return f"{bucket}/photos"


def build(photos: str | Path, store: str | Path, teacher: Path, log: Path) -> subprocess.Popen[bytes]:
    rooms = os.pathsep.join(str(ROOT / room) for room in (".", "cache", "pipelines"))
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    command = ["-m", "delta_pipelines", "cache", "build", photos, store, "--teacher", teacher, "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": rooms, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as said:
        return subprocess.Popen(
            [sys.executable, *map(str, command), *settings], env=environment, stdout=said, stderr=said
        )


@pytest.fixture(scope="module")
def local(photos: Path, random_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is built from local photos into a local folder."""
    folder = tmp_path_factory.mktemp("local")
    process = build(photos, folder / "store.zarr", random_student, folder / "log")
    assert process.wait(WAIT_S) == 0, (folder / "log").read_text()
    return folder / "store.zarr"


def fetched(url: str, folder: Path) -> Path:
    """Copy a remote store into a folder, file by file."""
    shutil.rmtree(folder, ignore_errors=True)
    storage = open_storage(url)
    for name in storage.sizes():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(storage.read(name))
    return folder


def test_a_store_built_from_s3_to_s3_holds_the_bytes_of_a_local_one(
    bucket: str, remote_photos: str, local: Path, random_student: Path, tmp_path: Path, answers_under: Answers
) -> None:
    url = f"{bucket}/one/store.zarr"
    process = build(remote_photos, url, random_student, tmp_path / "log")
    assert process.wait(WAIT_S) == 0, (tmp_path / "log").read_text()
    assert answers_under(fetched(url, tmp_path / "copy")) == answers_under(local)
    ours, theirs = open_cache(url), open_cache(local)
    for chunk in range(theirs.contract.chunks):
        for name, values in theirs.read_chunk(chunk, ["image", "disparity"]).items():
            assert (ours.read_chunk(chunk, [name])[name] == values).all()


@pytest.mark.skipif(os.name != "posix", reason="the worker is killed by a signal")
def test_a_build_killed_in_mid_upload_resumes_to_the_same_bytes(
    bucket: str, photos: Path, local: Path, random_student: Path, tmp_path: Path, answers_under: Answers
) -> None:
    url = f"{bucket}/killed/store.zarr"
    storage = open_storage(url)
    for kill in range(3):
        before = len(storage.sizes("ledger")) if kill else 0
        process = build(photos, url, random_student, tmp_path / "log")
        _wait_for(lambda seen=before: _uploading(storage, seen + 1), process, tmp_path / "log")
        process.send_signal(signal.SIGKILL)
        assert process.wait(WAIT_S) == -signal.SIGKILL
        left = Store.open(url)
        assert left.missing_chunks()
        for record in left.records():
            left.read_chunk(record.chunk, [spec.name for spec in left.contract.arrays])  # checks every digest
    process = build(photos, url, random_student, tmp_path / "log")
    assert process.wait(WAIT_S) == 0, (tmp_path / "log").read_text()
    assert answers_under(fetched(url, tmp_path / "copy")) == answers_under(local)


def _uploading(storage: RemoteStorage, finished: int) -> bool:
    """Whether so many chunks are recorded and the files of a further one have begun to arrive."""
    names = storage.sizes()
    recorded = sum(name.startswith("ledger/") for name in names)
    return recorded >= finished and sum(name.startswith("image/c.") for name in names) > recorded


def test_nothing_at_a_url_is_said_so(bucket: str) -> None:
    with pytest.raises(NotAStore, match=r"^there is no cache at s3://photos-and-stores/nowhere$"):
        Store.open(f"{bucket}/nowhere")
