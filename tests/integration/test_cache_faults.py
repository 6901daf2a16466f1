"""A store that is not what was asked for says so in one sentence, and a build that fails leaves one that resumes."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from delta.teacher import Teacher
from delta_cache.errors import CacheError, CorruptStore, IncompleteStore, NotAStore
from delta_cache.reader import Store
from delta_cache.schema import SampleRecord
from delta_cache.writer import open_writer
from delta_pipelines.build_cache import CacheRecipe, build_cache

FakeTeacher = Callable[..., Teacher]


@pytest.fixture
def store(small_store: Path, tmp_path: Path) -> Path:
    """A complete store that may be spoiled."""
    return Path(shutil.copytree(small_store, tmp_path / "store.zarr"))


def change_contract(store: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = store / "zarr.json"
    document = json.loads(path.read_text())
    change(document["attributes"]["delta"])
    path.write_text(json.dumps(document))


def test_nothing_there_and_something_else_there_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotAStore, match=r"^there is no cache at .*store\.zarr$") as missing:
        Store.open(tmp_path / "store.zarr")
    assert missing.value.hint == "`delta cache build PHOTOS STORE` makes one"
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "zarr.json").write_text("{oops")
    zarr.open_group(str(tmp_path / "group"), mode="w", zarr_format=3)
    zarr.open_group(str(tmp_path / "older"), mode="w", zarr_format=2)
    zarr.create_array(str(tmp_path / "array"), shape=(3,), dtype="u1")
    for name in ("file", "folder", "group", "older", "array"):
        with pytest.raises(NotAStore, match=rf"{name} is not a Delta cache$") as other:
            Store.open(tmp_path / name)
        assert other.value.hint == "`delta cache build PHOTOS STORE` makes one elsewhere"


def test_a_store_of_another_version_says_which_and_the_way_out(store: Path) -> None:
    change_contract(store, lambda delta: delta["contract"].update(version=2))
    with pytest.raises(CacheError, match=r"is a cache of format version 2; this Delta reads version 1$") as caught:
        Store.open(store)
    assert caught.value.hint == "build it again with this Delta, or install the Delta that made it"


def test_a_group_of_another_format_is_no_cache(store: Path) -> None:
    change_contract(store, lambda delta: delta["contract"].update(format="sea-surface"))
    with pytest.raises(NotAStore, match=r"holds 'sea-surface', not a delta-cache$"):
        Store.open(store)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda delta: delta["contract"]["teacher"].update(dtype="float16"), "was changed after it was made"),
        (lambda delta: delta["contract"].update(chunk_samples=5), "was changed after it was made"),
        (lambda delta: delta.update(fingerprint="0" * 64), "was changed after it was made"),
        (lambda delta: delta.pop("fingerprint"), "was changed after it was made"),
        (lambda delta: delta["contract"].update(samples="ten"), "is damaged: Expected `int`, got `str`"),
        (lambda delta: delta["contract"].pop("teacher"), "is damaged: Object missing required field `teacher`"),
    ],
)
def test_a_contract_that_was_changed_is_refused(store: Path, change: Callable[[Any], None], message: str) -> None:
    change_contract(store, change)
    with pytest.raises(CorruptStore, match=message) as caught:
        Store.open(store)
    assert caught.value.hint == "build the store again"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"chunk":1}', b'{"chunk":"1","files":{},"samples":[]}'])
def test_a_damaged_ledger_entry_names_itself(store: Path, content: bytes) -> None:
    entry = store / "ledger" / "00000001.json"
    entry.write_bytes(content)
    for ask in (Store.require_complete, Store.status, Store.failures, Store.missing_chunks, Store.bytes_on_disk):
        with pytest.raises(CorruptStore) as caught:
            ask(Store.open(store))
        assert str(caught.value) == f"ledger entry {entry} is damaged"
        assert caught.value.hint == "delete it; the build redoes that chunk"


def test_a_ledger_entry_of_another_chunk_is_damage(store: Path) -> None:
    shutil.copy(store / "ledger" / "00000000.json", store / "ledger" / "00000001.json")
    with pytest.raises(CorruptStore, match=r"00000001\.json is damaged"):
        Store.open(store).require_complete()


def test_a_ledger_entry_that_covers_too_little_is_damage(store: Path) -> None:
    entry = store / "ledger" / "00000001.json"
    record = json.loads(entry.read_text())
    for lacking in ({"files": dict(list(record["files"].items())[1:])}, {"samples": record["samples"][1:]}):
        entry.write_text(json.dumps(record | lacking))
        with pytest.raises(CorruptStore, match=r"00000001\.json is damaged"):
            Store.open(store).require_complete()


@pytest.mark.parametrize("content", [None, b"", b'{"path":"a.jpg","bytes":1}\n', b"{oops\n"])
def test_a_photo_list_that_is_not_the_stores_own_is_refused(store: Path, content: bytes | None) -> None:
    (store / "photos.jsonl").unlink()
    if content is not None:
        (store / "photos.jsonl").write_bytes(content)
    with pytest.raises(CorruptStore, match=r"photos\.jsonl is not the list the store was made of"):
        _ = Store.open(store).photos


@pytest.mark.parametrize("content", [None, "{oops", "{}", '{"zarr_format":3,"node_type":"array"}'])
def test_an_array_whose_description_is_gone_or_damaged_is_named(store: Path, content: str | None) -> None:
    (store / "features" / "block03" / "zarr.json").unlink()
    if content is not None:
        (store / "features" / "block03" / "zarr.json").write_text(content)
    with pytest.raises(CorruptStore, match=r"^array features/block03 of .*store\.zarr cannot be opened: "):
        Store.open(store).read_chunk(0, ["features/block03"])


def test_a_chunk_that_cannot_be_decoded_says_how_to_redo_it(store: Path) -> None:
    file = store / "disparity/c/2/0/0"
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(CorruptStore, match=r"^chunk 2 of .*store\.zarr cannot be decoded: ") as caught:
        Store.open(store).read_chunk(2, ["disparity"])
    assert caught.value.hint == f"delete {store / 'ledger' / '00000002.json'}; the build redoes that chunk"


def test_a_second_build_at_the_same_time_is_refused_and_the_first_goes_on(
    small_photos: Path, tiny_cache_recipe: CacheRecipe, fake_teacher: FakeTeacher, tmp_path: Path
) -> None:
    store, refusals = tmp_path / "store.zarr", []

    def build_as_well(done: int, total: int, samples: tuple[SampleRecord, ...]) -> None:
        with pytest.raises(CacheError) as caught:
            build_cache(tiny_cache_recipe, small_photos, store, fake_teacher())
        refusals.append((str(caught.value), caught.value.hint))

    build_cache(tiny_cache_recipe, small_photos, store, fake_teacher(), build_as_well).require_complete()
    assert refusals == [(f"another build is writing {store}", "wait for it, or name another store")] * 4
    build_cache(tiny_cache_recipe, small_photos, store, fake_teacher())  # the lock is free again


def test_the_lock_file_of_a_killed_build_does_not_stand_in_the_way(
    small_photos: Path, tiny_cache_recipe: CacheRecipe, fake_teacher: FakeTeacher, tmp_path: Path
) -> None:
    (tmp_path / ".store.zarr.lock").touch()
    build_cache(tiny_cache_recipe, small_photos, tmp_path / "store.zarr", fake_teacher()).require_complete()


def test_what_a_build_killed_at_its_start_left_does_not_stand_in_the_way(
    small_photos: Path, tiny_cache_recipe: CacheRecipe, fake_teacher: FakeTeacher, tmp_path: Path
) -> None:
    (tmp_path / ".store.zarr.new" / "image").mkdir(parents=True)
    (tmp_path / "store.zarr").mkdir()  # as by a person who made the folder first
    build_cache(tiny_cache_recipe, small_photos, tmp_path / "store.zarr", fake_teacher()).require_complete()
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.suffix != ".lock") == ["store.zarr"]


def test_something_else_at_the_path_is_not_overwritten(
    small_photos: Path, tiny_cache_recipe: CacheRecipe, fake_teacher: FakeTeacher, tmp_path: Path
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("once")
    (tmp_path / "notes.txt").write_text("upon")
    for name in ("thesis", "notes.txt"):
        with pytest.raises(NotAStore, match=rf"{name} is not a Delta cache"):
            build_cache(tiny_cache_recipe, small_photos, tmp_path / name, fake_teacher())
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "once"
    assert (tmp_path / "notes.txt").read_text() == "upon"


@pytest.mark.parametrize("full_after", range(0, 50, 7))
def test_a_full_disk_loses_at_most_the_chunk_in_flight(
    full_after: int,
    small_photos: Path,
    tiny_cache_recipe: CacheRecipe,
    fake_teacher: FakeTeacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the disk fills up at any rename of Zarr's: of the descriptions (10 of them) or of the 24 chunk files."""
    left, replace = full_after, Path.replace

    def fill_up(path: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return replace(path, target)

    store = tmp_path / "store.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fill_up)
        if full_after < 34:
            with pytest.raises(OSError, match="No space left on device"):
                build_cache(tiny_cache_recipe, small_photos, store, fake_teacher())
    if store.exists() and full_after < 34:
        whole = (full_after - 10) // 8
        assert Store.open(store).missing_chunks() == list(range(whole, 3))
        with pytest.raises(IncompleteStore):
            Store.open(store).require_complete()
    build_cache(tiny_cache_recipe, small_photos, store, fake_teacher()).require_complete()
    assert not [path for path in store.rglob("*") if path.suffix in (".partial", ".new")]


def test_a_writer_takes_whole_chunks_of_the_contracts_shapes_alone(small_store: Path, tmp_path: Path) -> None:
    source = Store.open(small_store)
    names = [spec.name for spec in source.contract.arrays]
    data, record = source.read_chunk(0, names), source.record(0)
    assert record is not None
    with open_writer(tmp_path / "store.zarr", source.contract, source.photos, {}) as writer:
        for wrong in (
            {name: data[name] for name in names[1:]},
            data | {"image": data["image"][:3]},
            data | {"image": data["image"].astype(np.float16)},
            data | {"depth": data["disparity"]},
        ):
            with pytest.raises(ValueError, match=r"chunk 0 needs 4 samples|got "):
                writer.write(0, wrong, record.samples)
        with pytest.raises(ValueError, match="chunk 0 needs 4 samples"):
            writer.write(0, data, record.samples[1:])
        assert writer.pending == [0, 1, 2]
        assert writer.write(0, data, record.samples) == record
        assert writer.pending == [1, 2]


def test_a_folder_named_by_a_dot_is_refused_as_any_other_that_is_no_store(
    tmp_path, small_photos, tiny_cache_recipe, fake_teacher, monkeypatch
):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine.txt").write_text("not yours")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(NotAStore):
        build_cache(tiny_cache_recipe, small_photos, Path(), fake_teacher())
    assert (tmp_path / "here" / "mine.txt").read_text() == "not yours"
