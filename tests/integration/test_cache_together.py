"""Several builds of one store at once share its chunks out among them: each is built once, to the same bytes."""

import json
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from delta.teacher import Teacher
from delta_cache.reader import Store, open_cache
from delta_cache.schema import ChunkRecord
from delta_cache.storage import LocalStorage
from delta_pipelines.build_cache import Watcher, build_cache
from delta_pipelines.cache_recipe import CacheRecipe

FakeTeacher = Callable[..., Teacher]
Bytes = Callable[[Path], dict[str, bytes]]


class Both:
    """Teachers of two builds that each wait, at their first question about a photo, until the other is there too."""

    def __init__(self, fake_teacher: FakeTeacher, first_photo: int) -> None:
        self._meet, self.asked = threading.Barrier(2), Counter[str]()
        self._make, self._first_photo = fake_teacher, first_photo

    def teacher(self, name: str) -> Teacher:
        def before(call: int) -> None:
            self.asked[name] += call >= self._first_photo
            if call == self._first_photo:
                self._meet.wait(20)

        return self._make(before=before)


@pytest.mark.parametrize("kind", ["exact", "compact"])
def test_two_builds_share_the_chunks_out_and_write_the_same_bytes(
    kind: str,
    request: pytest.FixtureRequest,
    small_photos: Path,
    fake_teacher: FakeTeacher,
    tmp_path: Path,
    answers_under: Bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe: CacheRecipe = request.getfixturevalue("tiny_cache_recipe" if kind == "exact" else "compact_cache_recipe")
    recipe = msgspec.structs.replace(recipe, chunk_samples=1, batch_size=1)
    uncut = build_cache(recipe, small_photos, tmp_path / "uncut.zarr", fake_teacher())
    asked: list[int] = []
    writes, write = Counter[str](), LocalStorage.write

    def counted(self: LocalStorage, name: str, content: bytes) -> None:
        writes[name] += 1
        write(self, name, content)

    monkeypatch.setattr(LocalStorage, "write", counted)
    built: dict[str, list[int]] = {"a": [], "b": []}

    def build(name: str) -> Store:
        def chunk(record: ChunkRecord) -> None:
            built[name].append(record.chunk)

        teacher = fake_teacher(before=asked.append)
        return build_cache(recipe, small_photos, tmp_path / "store.zarr", teacher, watcher=Watcher(chunk=chunk))

    with ThreadPoolExecutor(2) as pool:
        stores = [future.result() for future in [pool.submit(build, name) for name in built]]
    assert [store.missing_chunks() for store in stores] == [[], []]
    assert answers_under(tmp_path / "store.zarr") == answers_under(Path(uncut.url))
    assert set(writes.values()) == {1}  # each file once, the descriptions too
    assert set(built["a"]) | set(built["b"]) == set(range(uncut.contract.chunks))
    fitted = 10 if kind == "compact" else 0
    assert len(asked) == 2 + fitted + uncut.contract.chunks  # shapes twice, bases once, each sample once


def test_both_builds_work_while_there_is_work(
    small_photos: Path, tiny_cache_recipe: CacheRecipe, fake_teacher: FakeTeacher, tmp_path: Path
) -> None:
    recipe = msgspec.structs.replace(tiny_cache_recipe, chunk_samples=1, batch_size=1)
    both = Both(fake_teacher, first_photo=1)
    with ThreadPoolExecutor(2) as pool:
        ends = [
            pool.submit(build_cache, recipe, small_photos, tmp_path / "store.zarr", both.teacher(name)) for name in "ab"
        ]
        for end in ends:
            end.result().require_complete()
    assert both.asked.total() == 10
    assert min(both.asked.values()) >= 1


def test_a_build_waits_for_the_chunk_that_another_holds_and_takes_it_when_the_other_is_gone(
    small_photos: Path,
    tiny_cache_recipe: CacheRecipe,
    fake_teacher: FakeTeacher,
    small_store: Path,
    tmp_path: Path,
    answers_under: Bytes,
) -> None:
    path, built = tmp_path / "store.zarr", []
    waiting, storage = threading.Event(), LocalStorage(path)

    def chunk(record: ChunkRecord) -> None:
        built.append(record.chunk)
        if len(built) == 2:
            waiting.set()

    with ThreadPoolExecutor(1) as pool:
        with storage.claim("ledger-00000001.json") as ours:
            assert ours
            teacher, watcher = fake_teacher(), Watcher(chunk=chunk)
            future = pool.submit(build_cache, tiny_cache_recipe, small_photos, path, teacher, watcher=watcher)
            assert waiting.wait(60)
            assert sorted(built) == [0, 2]
            assert not future.done()
        future.result().require_complete()
    assert built[-1] == 1
    assert answers_under(path) == answers_under(small_store)


HOLD = """
import sys
from pathlib import Path
from delta_cache.storage import LocalStorage
with LocalStorage(Path(sys.argv[1])).claim("ledger-00000001.json") as ours:
    print(ours, flush=True)
    sys.stdin.readline()
"""


def test_a_dead_processs_claim_is_void(tmp_path: Path, python: Callable[..., subprocess.Popen[str]]) -> None:
    process = python(HOLD, tmp_path)
    assert process.stdout
    assert process.stdout.readline() == "True\n"
    with LocalStorage(tmp_path).claim("ledger-00000001.json") as held:
        assert held is False
    process.kill()
    process.communicate()
    with LocalStorage(tmp_path).claim("ledger-00000001.json") as held:
        assert held is True


BUILD = """
import json, sys, time
from delta.teacher import load_teacher
from delta_pipelines.build_cache import Watcher, build_cache
from delta_pipelines.cache_recipe import CacheRecipe
from delta_pipelines.recipe import load_recipe
photos, store, teacher, go = sys.argv[1:5]
recipe = load_recipe(CacheRecipe, "cache", sys.argv[5:])
loaded = load_teacher(teacher)
class Slow:  # a chunk takes a while, as it does with a real teacher
    identity, side_multiple, parameters = loaded.identity, loaded.side_multiple, loaded.parameters
    def __call__(self, image):
        time.sleep(0.3)
        return loaded(image)
print("ready", flush=True)
sys.stdin.readline()
mine = []
build_cache(recipe, photos, store, Slow(), watcher=Watcher(chunk=lambda record: mine.append(record.times.worker)))
print(json.dumps(mine), flush=True)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_three_processes_share_one_store(
    photo_folder: Callable[..., Path],
    random_student: Path,
    tmp_path: Path,
    answers_under: Bytes,
    python: Callable[..., subprocess.Popen[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos = photo_folder(tmp_path / "photos", count=30)
    settings = ("size_px=64", "chunk_samples=1", "batch_size=1", "features.fit_photos=4")

    def run(processes: int, store: Path) -> None:
        started = [
            python(BUILD, photos, store, random_student, "go", *settings, OMP_NUM_THREADS="1") for _ in range(processes)
        ]
        for process in started:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
        for process in started:
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in started:
            out, err = process.communicate(timeout=300)
            assert process.returncode == 0, err
            assert json.loads(out)

    run(1, tmp_path / "uncut.zarr")
    run(3, tmp_path / "store.zarr")
    assert answers_under(tmp_path / "store.zarr") == answers_under(tmp_path / "uncut.zarr")
    workers = Counter(record.times.worker for record in open_cache(tmp_path / "store.zarr").records())
    with capsys.disabled():
        print(f"\nchunks built by three processes of one store: {sorted(workers.values())}")
    assert len(workers) == 3
