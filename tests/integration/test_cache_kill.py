"""Real signals to a real `delta cache build`: whatever the instant, the same command ends with the same bytes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from delta_cache.layout import chunk_file
from delta_cache.reader import Store, open_cache
from delta_cache.verify import verify

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="no such signals there"),
    pytest.mark.timeout(1200),
]
ROOT = Path(__file__).parents[2]
PHOTOS, WAIT_S, KILLS, SEED = 40, 300, 100, 20261125
SETTINGS = ("size_px=64", "chunk_samples=1", "batch_size=1", "features.fit_photos=8")
Answers = Callable[[Path], dict[str, bytes]]

# A Python that has imported everything and forks itself for every command it reads: each is a process of its own,
# killed as any other, that does not spend five seconds on imports first. No thread and no kernel runs before the fork.
# A child is waited for when its end is asked for, so that until then its number is no other process's.
WARM = """
import json, os, sys
import delta.teacher, delta_pipelines.build_cache, delta_pipelines.cli, delta_pipelines.report_cache, timm, zarr
print(0, flush=True)
for line in sys.stdin:
    command = json.loads(line)
    child = os.fork()
    if not child:
        log = os.open(command["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        sys.argv = ["delta", *command["arguments"]]
        code = 1
        try:
            delta_pipelines.cli.main()
        except SystemExit as end:
            code = end.code or 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    print(child, flush=True)
    sys.stdin.readline()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def command_line(photos: Path, store: Path, teacher: Path) -> list[str]:
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    return ["cache", "build", str(photos), str(store), "--teacher", str(teacher), "--device", "cpu", *settings]


class Warm:
    """Starts `delta` commands as processes forked from one that has done its imports."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "log"
        rooms = os.pathsep.join(str(ROOT / room) for room in (".", "cache", "pipelines"))
        self._parent = subprocess.Popen(
            [sys.executable, "-c", WARM],
            env=os.environ | {"PYTHONPATH": rooms, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._line() == 0

    def start(self, arguments: list[str]) -> int:
        """Start a command; its process id."""
        self._say(json.dumps({"arguments": arguments, "log": str(self._log)}))
        return self._line()

    def end(self) -> tuple[int, str]:
        """Wait for the command's end: exit code (negative for a signal) and what was said."""
        self._say("end")
        return self._line(), self._log.read_text()

    def stop(self) -> None:
        assert self._parent.stdin
        assert self._parent.stdout
        self._parent.stdin.close()
        assert self._parent.wait(WAIT_S) == 0
        self._parent.stdout.close()

    def _say(self, line: str) -> None:
        assert self._parent.stdin
        self._parent.stdin.write(line + "\n")
        self._parent.stdin.flush()

    def _line(self) -> int:
        assert self._parent.stdout
        line = self._parent.stdout.readline()
        assert line, "the parent of the builds has died"
        return int(line)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    started = Warm(tmp_path_factory.mktemp("warm"))
    yield started
    started.stop()


@pytest.fixture(scope="module")
def photos(photo_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photo_folder(tmp_path_factory.mktemp("many") / "photos", count=PHOTOS)


class Uncut(msgspec.Struct, frozen=True):
    """A store built in one go; how long it took until its first record, and then for each."""

    store: Path
    first_s: float
    chunk_s: float


@pytest.fixture(scope="module")
def uncut(warm: Warm, photos: Path, random_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Uncut:
    store = tmp_path_factory.mktemp("uncut") / "store.zarr"
    began = time.perf_counter()
    warm.start(command_line(photos, store, random_student))
    while not (store / "ledger" / "00000000.json").exists():
        assert time.perf_counter() < began + WAIT_S
        time.sleep(0.005)
    first = time.perf_counter() - began
    code, said = warm.end()
    assert code == 0, said
    return Uncut(store, first, (time.perf_counter() - began - first) / PHOTOS)


class Left(msgspec.Struct, frozen=True):
    """What a kill left: ledger entries, chunks with files but no entry (all files or some), files aside."""

    entries: dict[int, bytes]
    unrecorded: frozenset[int]
    begun: frozenset[int]
    aside: int


def look(store: Path) -> Left:
    """Read what is there, whatever state it is in; what is recorded is whole, what is not says so."""
    aside = len(list(store.rglob("*.aside")))
    if not (store / "zarr.json").exists():
        return Left({}, frozenset(), frozenset(), aside)
    opened = Store.open(store)
    entries = {int(path.stem): path.read_bytes() for path in (store / "ledger").glob("*.json")}
    seen = verify(opened, full=True)
    assert {finding.what for finding in seen.findings} <= {"it was never finished"}
    assert seen.bad_chunks == opened.missing_chunks() == sorted(set(range(PHOTOS)) - entries.keys())
    files = {
        chunk: [(store / chunk_file(spec, chunk)).exists() for spec in opened.contract.arrays]
        for chunk in set(range(PHOTOS)) - entries.keys()
    }
    return Left(
        entries,
        frozenset(chunk for chunk, there in files.items() if all(there)),
        frozenset(chunk for chunk, there in files.items() if any(there)),
        aside,
    )


def wait_for_a_random_instant(store: Path, generator: random.Random, uncut: Uncut) -> None:
    """Let a build that has just begun go on: somewhere into its start, or to some record of its own and a bit more."""
    records = generator.randrange(-1, 4)
    if records < 0:
        time.sleep(generator.uniform(0, uncut.first_s))
        return
    before, deadline = recorded(store), time.monotonic() + WAIT_S
    while recorded(store) < min(before + records, PHOTOS):
        assert time.monotonic() < deadline, "the build stands still"
        time.sleep(0.001)
    time.sleep(generator.uniform(0, uncut.chunk_s if records else uncut.first_s))


def recorded(store: Path) -> int:
    return len(list((store / "ledger").glob("*.json")))


class Toll(msgspec.Struct):
    """What the kills cost, added up."""

    kills: int = 0
    before_the_store: int = 0
    redone: int = 0
    begun: int = 0
    aside: int = 0
    stores: int = 0

    def count(self, before: Left, after: Left) -> None:
        """Nothing recorded was lost or built again, and at most one chunk was on its way to the disk."""
        self.kills += 1
        for chunk, entry in before.entries.items():
            assert after.entries[chunk] == entry  # built again, it would have other times
        assert len(after.begun - before.begun) <= 1
        assert after.aside <= before.aside + 1
        self.redone += len(after.unrecorded - before.unrecorded)
        self.begun += len(after.begun - before.begun)
        self.aside += after.aside > before.aside


def test_a_build_killed_at_a_hundred_random_instants_ends_with_the_same_bytes(
    warm: Warm,
    photos: Path,
    uncut: Uncut,
    random_student: Path,
    tmp_path: Path,
    answers_under: Answers,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected, generator, toll = answers_under(uncut.store), random.Random(SEED), Toll()
    left = None
    while toll.kills < KILLS or left is not None:
        if left is None:
            toll.stores += 1
            store = tmp_path / f"{toll.stores}.zarr"
            left = look(store)
        process = warm.start(command_line(photos, store, random_student))
        if toll.kills < KILLS:
            wait_for_a_random_instant(store, generator, uncut)
            os.kill(process, signal.SIGKILL)
        code, said = warm.end()
        assert code in (0, -signal.SIGKILL), said
        if code == 0:
            assert answers_under(store) == expected
            left = None
            continue
        now = look(store)
        toll.before_the_store += not (store / "zarr.json").exists()
        toll.count(left, now)
        left = now
    with capsys.disabled():
        print(
            f"\n{toll.kills} kills at random instants, {toll.stores} stores of {PHOTOS} chunks: "
            f" {toll.before_the_store} before the store was laid out, {toll.begun} with a chunk on its "
            f"way to the disk, {toll.redone} with a chunk finished and not yet recorded, {toll.aside} with a file "
            "aside; recorded chunks lost, damaged or built twice: 0; bytes equal to an uncut build's: all"
        )
    assert toll.kills >= KILLS


class Build:
    """`delta cache build` as a person starts it."""

    def __init__(self, photos: Path, store: Path, teacher: Path) -> None:
        self.store = store
        rooms = os.pathsep.join(str(ROOT / room) for room in (".", "cache", "pipelines"))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "delta_pipelines", *command_line(photos, store, teacher)],
            env=os.environ | {"PYTHONPATH": rooms, "OMP_NUM_THREADS": "1"},  # as `uncut`: sums have one order
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            preexec_fn=_listen,
        )

    def signal_after(self, chunks: int, number: int) -> None:
        """Send a signal when so many chunks are done."""
        deadline = time.monotonic() + WAIT_S
        while recorded(self.store) < chunks and self._process.poll() is None:
            assert time.monotonic() < deadline, "the build stands still"
            time.sleep(0.002)
        self._process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Wait for the end: exit code and what was said."""
        _, err = self._process.communicate(timeout=WAIT_S)
        return self._process.returncode, err


def _listen() -> None:
    """Take Ctrl-C as a terminal's child would: a background job's children are started deaf to it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_to_the_command_as_a_person_starts_it_loses_nothing_that_was_recorded(
    number: int, photos: Path, uncut: Uncut, random_student: Path, tmp_path: Path, answers_under: Answers
) -> None:
    build = Build(photos, tmp_path / "store.zarr", random_student)
    build.signal_after(3, number)
    code, said = build.end()
    assert code == (130 if number == signal.SIGINT else -signal.SIGKILL), said
    assert "Traceback" not in said
    left = look(build.store)
    assert 3 <= len(left.entries) < PHOTOS
    code, said = Build(photos, build.store, random_student).end()
    assert code == 0, said
    assert all(
        (build.store / f"ledger/{chunk:08d}.json").read_bytes() == entry for chunk, entry in left.entries.items()
    )
    assert answers_under(build.store) == answers_under(uncut.store)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"NOT TESTED: a disk that is full; mount says {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_a_disk_that_is_full_is_said_so_and_the_same_command_goes_on_when_there_is_room(
    warm: Warm, photos: Path, uncut: Uncut, random_student: Path, small_disk: Path, answers_under: Answers
) -> None:
    expected, store, ballast = answers_under(uncut.store), small_disk / "store.zarr", small_disk / "ballast"
    command = command_line(photos, store, random_student)
    ends: list[int] = []
    left = look(store)
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    need = sum(-(-len(content) // 4096) * 4096 for content in expected.values())
    pytest.importorskip("resource")
    assert need < free, "the whole store fits; it is the ballast that fills the disk"
    for room in (need // 20, need // 3, need // 2, 2 * need // 3, need - 40_000):
        held = os.statvfs(small_disk).f_blocks * os.statvfs(small_disk).f_frsize - room
        taken = sum(-(-path.stat().st_size // 4096) * 4096 for path in store.rglob("*") if path.is_file())
        ballast.write_bytes(bytes(max(0, held - taken)))
        warm.start(command)
        code, said = warm.end()
        ends.append(code)
        if code:
            assert (code, "Traceback" in said) == (2, False), said
            assert "error: no space left on the disk for " in said
            assert "hint:  free some and run the same command; what is done is kept" in said
            now = look(store)
            assert not now.aside
            assert all(now.entries[chunk] == entry for chunk, entry in left.entries.items())
            left = now
        ballast.unlink()
    assert ends.count(2) >= 3
    assert left.entries
    warm.start(command)
    code, said = warm.end()
    assert code == 0, said
    assert answers_under(store) == expected
    assert open_cache(store).mask.all()
