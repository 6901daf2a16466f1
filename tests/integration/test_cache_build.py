"""Stage 1 from folder to store: complete, resumable to the same bytes, and nothing lost on the way."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from delta.errors import DeltaError
from delta.teacher import Teacher, load_teacher
from delta_cache.errors import CacheError, ContractMismatch, IncompleteStore
from delta_cache.reader import Store
from delta_cache.schema import SampleRecord, Status
from delta_pipelines.build_cache import CacheRecipe, build_cache

FakeTeacher = Callable[..., Teacher]
Bytes = Callable[[Path], dict[str, bytes]]


@pytest.fixture(autouse=True)
def same_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores are compared byte by byte, and somebody may commit between two builds."""
    monkeypatch.setattr("delta_pipelines.provenance.commit", lambda: "c0ffee")


@pytest.fixture(scope="module")
def uncut(small_photos: Path, tiny_cache_recipe: CacheRecipe, fake_teacher: FakeTeacher, tmp_path_factory: Any) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("delta_pipelines.provenance.commit", lambda: "c0ffee")
        store = tmp_path_factory.mktemp("uncut") / "store.zarr"
        return build_cache(tiny_cache_recipe, small_photos, store, fake_teacher()).path


def stopping_at(stop: int, failure: type[BaseException]) -> Callable[[int], None]:
    def before(call: int) -> None:
        if call == stop:
            raise failure("the teacher stops here")

    return before


@pytest.mark.parametrize("stop", range(6))  # the question for shapes, then the batches: two, two and one
@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_cut_build_resumes_to_the_same_bytes(
    stop: int,
    failure: type[BaseException],
    uncut: Path,
    small_photos: Path,
    tiny_cache_recipe: CacheRecipe,
    fake_teacher: FakeTeacher,
    tmp_path: Path,
    bytes_under: Bytes,
) -> None:
    store = tmp_path / "store.zarr"
    with pytest.raises(failure):
        build_cache(tiny_cache_recipe, small_photos, store, fake_teacher(before=stopping_at(stop, failure)))
    asked = []
    if store.exists():
        todo = 3 - (stop - 1) // 2
        assert Store.open(store).missing_chunks() == list(range(3 - todo, 3))
        with pytest.raises(IncompleteStore, match=rf"store\.zarr is incomplete: {todo} of 3 chunks missing") as caught:
            Store.open(store).require_complete()
        assert caught.value.hint == f"`delta cache build … {store}` resumes it"
    build_cache(tiny_cache_recipe, small_photos, store, fake_teacher(before=asked.append)).require_complete()
    assert bytes_under(store) == bytes_under(uncut)
    assert len(asked) == {0: 6, 1: 6, 2: 6, 3: 4, 4: 4, 5: 2}[stop]  # no batch of a finished chunk is asked again


def test_a_store_is_complete_with_its_last_chunk_and_not_before(
    small_photos: Path, tiny_cache_recipe: CacheRecipe, fake_teacher: FakeTeacher, tmp_path: Path
) -> None:
    seen = []

    def on_chunk(done: int, total: int, samples: tuple[SampleRecord, ...]) -> None:
        store = Store.open(tmp_path / "store.zarr")
        status = store.status()
        assert (status[:done] == Status.OK).all()
        assert (status[done:] == Status.MISSING).all()
        if done < total:
            with pytest.raises(IncompleteStore):
                store.require_complete()
            with pytest.raises(IncompleteStore, match=rf"chunk {done // 4} of .* is missing"):
                store.read_chunk(done // 4, ["image"])
        seen.append((done, total, len(samples)))

    build_cache(tiny_cache_recipe, small_photos, tmp_path / "store.zarr", fake_teacher(), on_chunk).require_complete()
    assert seen == [(0, 10, 0), (4, 10, 4), (8, 10, 4), (10, 10, 2)]


def test_a_complete_store_is_left_as_it_is(
    uncut: Path, small_photos: Path, tiny_cache_recipe: CacheRecipe, fake_teacher: FakeTeacher, bytes_under: Bytes
) -> None:
    before, asked, told = bytes_under(uncut), [], []
    build_cache(
        tiny_cache_recipe, small_photos, uncut, fake_teacher(before=asked.append), lambda *news: told.append(news)
    )
    assert asked == [0]
    assert told == [(10, 10, ())]
    assert bytes_under(uncut) == before


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [truncate, Path.unlink])
@pytest.mark.parametrize(
    "file",
    ["image/c/1/0/0/0", "disparity/c/1/0/0", "status/c/1", "features/block12/c/1/0/0/0", "ledger/00000001.json"],
)
def test_a_damaged_file_is_noticed_and_its_chunk_alone_is_done_again(
    damage: Callable[[Path], None],
    file: str,
    uncut: Path,
    small_photos: Path,
    tiny_cache_recipe: CacheRecipe,
    fake_teacher: FakeTeacher,
    tmp_path: Path,
    bytes_under: Bytes,
) -> None:
    store = Path(shutil.copytree(uncut, tmp_path / "store.zarr"))
    damage(store / file)
    if file.startswith("ledger") and damage is truncate:
        with pytest.raises(CacheError, match="is damaged") as caught:
            Store.open(store).require_complete()
        assert caught.value.hint == "delete it; the build redoes that chunk"
        (store / file).unlink()
    assert Store.open(store).missing_chunks() == [1]
    assert np.flatnonzero(Store.open(store).status() == Status.MISSING).tolist() == [4, 5, 6, 7]
    with pytest.raises(IncompleteStore, match="1 of 3 chunks missing"):
        Store.open(store).require_complete()
    asked = []
    build_cache(tiny_cache_recipe, small_photos, store, fake_teacher(before=asked.append))
    assert asked == [0, 1, 2]
    assert bytes_under(store) == bytes_under(uncut)


def test_a_flipped_bit_is_found_by_the_digests(uncut: Path, tmp_path: Path) -> None:
    store = Store.open(Path(shutil.copytree(uncut, tmp_path / "store.zarr")))
    file = store.path / "image/c/2/0/0/0"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert [store.is_whole(chunk) for chunk in range(3)] == [True, True, True]
    assert [store.is_whole(chunk, digests=True) for chunk in range(3)] == [True, True, False]


def test_the_ledger_knows_the_bytes_on_disk(uncut: Path, bytes_under: Bytes) -> None:
    sizes: dict[str, int] = {}
    for name, content in bytes_under(uncut).items():
        array, is_chunk, _ = name.rpartition("/c/")
        if is_chunk:
            sizes[array] = sizes.get(array, 0) + len(content)
    assert Store.open(uncut).bytes_on_disk() == sizes
    assert sum(sizes.values()) > 0


def test_a_limit_takes_the_same_photos_whatever_the_chunks(
    small_photos: Path, tiny_cache_recipe: CacheRecipe, fake_teacher: FakeTeacher, tmp_path: Path, uncut: Path
) -> None:
    recipe = msgspec.structs.replace(tiny_cache_recipe, limit=3, chunk_samples=2)
    store = build_cache(recipe, small_photos, tmp_path / "store.zarr", fake_teacher())
    assert store.photos == Store.open(uncut).photos[:3]


def test_only_what_the_recipe_asks_for_is_kept(
    small_photos: Path, tiny_cache_recipe: CacheRecipe, fake_teacher: FakeTeacher, tmp_path: Path, uncut: Path
) -> None:
    recipe = msgspec.structs.replace(tiny_cache_recipe, features=False, attention=False)
    lean = build_cache(recipe, small_photos, tmp_path / "store.zarr", fake_teacher())
    assert [spec.name for spec in lean.contract.arrays] == ["image", "disparity", "view", "status"]
    kept = ["image", "disparity", "view", "status"]
    for name, values in lean.read_chunk(2, kept).items():
        np.testing.assert_array_equal(values, Store.open(uncut).read_chunk(2, kept)[name])


def test_a_changed_photo_or_teacher_is_another_contract(
    photo_folder: Callable[..., Path], tiny_cache_recipe: CacheRecipe, fake_teacher: FakeTeacher, tmp_path: Path
) -> None:
    folder, store = photo_folder(tmp_path / "photos", count=3), tmp_path / "store.zarr"
    build_cache(tiny_cache_recipe, folder, store, fake_teacher())
    with pytest.raises(ContractMismatch) as caught:
        build_cache(tiny_cache_recipe, folder, store, fake_teacher(gain=2.0))
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{store} was made under another contract:"
    assert [line.split(":")[0] for line in lines[1:]] == ["  teacher.weights_sha256"]
    assert caught.value.hint == "repeat the build as the store was made, or name another store"
    (folder / "001.png").write_bytes((folder / "002.png").read_bytes() + b"more")
    with pytest.raises(ContractMismatch, match=r"photos\.list_sha256: store .*, asked "):
        build_cache(tiny_cache_recipe, folder, store, fake_teacher())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_answers_that_are_not_numbers_are_refused_and_what_was_done_is_kept(
    value: float,
    small_photos: Path,
    tiny_cache_recipe: CacheRecipe,
    fake_teacher: FakeTeacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    teacher = fake_teacher(before=calls.append)
    answer_well = type(teacher).__call__

    def answer(self: Teacher, image: Any) -> Any:
        answer = answer_well(self, image)
        if len(calls) == 5:  # the second chunk's second batch
            answer.features["block12"][1, 2, 3, 4] = value
        return answer

    monkeypatch.setattr(type(teacher), "__call__", answer)
    with pytest.raises(DeltaError, match="the teacher's features/block12 holds NaN or numbers beyond float16"):
        build_cache(tiny_cache_recipe, small_photos, tmp_path / "store.zarr", teacher)
    assert Store.open(tmp_path / "store.zarr").missing_chunks() == [1, 2]


def test_a_student_may_be_the_teacher(
    random_student: Path, small_photos: Path, tiny_cache_recipe: CacheRecipe, tmp_path: Path
) -> None:
    recipe = msgspec.structs.replace(tiny_cache_recipe, size_px=100)
    teacher = load_teacher(str(random_student), taps=recipe.taps)
    store = build_cache(recipe, small_photos, tmp_path / "store.zarr", teacher).require_complete()
    assert store.contract.recipe["size_px"] == 128  # the nearest multiple of 64
    assert store.contract.teacher["name"] == "delta student mobilevitv2_050 of nobody"
    shapes = {spec.name: spec.shape for spec in store.contract.arrays}
    assert shapes["disparity"] == (128, 128)
    maps = {name: shape[1:] for name, shape in shapes.items() if "/" in name}
    assert maps == {f"features/stride{stride:02d}": (128 // stride,) * 2 for stride in (4, 8, 16, 32)}
    assert (store.read_chunk(0, ["disparity"])["disparity"] >= 0).all()
