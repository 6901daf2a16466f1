"""A store that is not what was asked for says so in one sentence, and a build that fails leaves one that resumes."""

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zarr

from delta.teacher import Teacher
from delta_cache.errors import CacheError, CorruptStore, NotAStore
from delta_cache.reader import Store, open_cache
from delta_cache.schema import open_entry, seal_entry
from delta_cache.storage import LocalStorage
from delta_cache.verify import verify
from delta_cache.writer import open_or_create, write_chunk
from delta_pipelines.build_cache import build_cache
from delta_pipelines.cache_recipe import CacheRecipe, FeatureRecipe

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
    change_contract(store, lambda delta: delta["contract"].update(version=3))
    with pytest.raises(CacheError, match=r"is a cache of format version 3; this Delta reads version 2$") as caught:
        Store.open(store)
    assert caught.value.hint == "build it again with this Delta, or install the Delta that made it"


def test_a_group_of_another_format_is_no_cache(store: Path) -> None:
    change_contract(store, lambda delta: delta["contract"].update(format="sea-surface"))
    with pytest.raises(NotAStore, match=r"holds 'sea-surface', not a delta-cache$"):
        Store.open(store)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda delta: delta["contract"]["teacher"].update(precision="float16"), "was changed after it was made"),
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


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"chunk":1}', b'{"record":{"chunk":"1"},"sha256":"0"}'])
def test_a_damaged_ledger_entry_names_itself(store: Path, content: bytes) -> None:
    entry = store / "ledger" / "00000001.json"
    entry.write_bytes(content)
    for ask in (Store.require_complete, Store.status, Store.failures, Store.missing_chunks, Store.bytes_on_disk):
        with pytest.raises(CorruptStore) as caught:
            ask(Store.open(store))
        assert str(caught.value) == f"ledger entry {entry} is damaged"
        assert caught.value.hint == f"`delta cache repair … {store}` rebuilds it"
    assert verify(Store.open(store)).bad_chunks == [1]


def test_a_ledger_entry_of_another_chunk_is_damage(store: Path) -> None:
    shutil.copy(store / "ledger" / "00000000.json", store / "ledger" / "00000001.json")
    with pytest.raises(CorruptStore, match=r"00000001\.json is damaged"):
        open_cache(store)


def test_a_ledger_entry_that_covers_too_little_is_damage_though_its_digest_is_right(store: Path) -> None:
    entry = store / "ledger" / "00000001.json"
    record = open_entry(entry.read_bytes())
    assert record is not None
    for lacking in ({"files": dict(list(record.files.items())[1:])}, {"samples": record.samples[1:]}):
        entry.write_bytes(seal_entry(msgspec.structs.replace(record, **lacking)))
        with pytest.raises(CorruptStore, match=r"00000001\.json is damaged"):
            open_cache(store)


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
    with pytest.raises(CorruptStore, match=r"^array features/block03 of .*store\.zarr cannot be opened: ") as caught:
        Store.open(store).array("features/block03")
    assert caught.value.hint == "`delta cache repair` writes it again"
    findings = verify(Store.open(store)).findings
    assert {finding.chunk for finding in findings} == {None}
    assert all("features/block03" in finding.what for finding in findings)
    assert len(findings) == 2  # it cannot be opened, and is not what the root says of it


def test_a_chunk_that_is_not_what_was_recorded_says_how_to_redo_it(store: Path) -> None:
    file = store / "disparity/c.2.0.0"
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(
        CorruptStore, match=r"^chunk 2 of .*store\.zarr: disparity/c\.2\.0\.0 is not what was"
    ) as caught:
        Store.open(store).read_chunk(2, ["disparity"])
    assert caught.value.hint == f"`delta cache repair … {store}` rebuilds it"


@pytest.mark.parametrize("name", ["mean", "std", "axes", "scale"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(bytes(path.stat().st_size))])
def test_a_basis_that_is_not_the_stores_own_is_refused(
    name: str, damage: Callable[[Path], None], compact_store: Path, tmp_path: Path
) -> None:
    store = Path(shutil.copytree(compact_store, tmp_path / "store.zarr"))
    (file,) = (store / "basis" / "block12" / name).glob("c.*")
    damage(file)
    with pytest.raises(
        CorruptStore, match=r"^the feature bases of .*store\.zarr are not those it was made with$"
    ) as caught:
        Store.open(store).read_chunk(0, ["features/block03"])
    assert caught.value.hint == "build it again"
    assert Store.open(store).read_chunk(0, ["features/block03"], decoded=False)
    (finding,) = verify(Store.open(store)).findings
    assert "feature bases" in finding.what


def test_what_a_killed_build_left_does_not_stand_in_the_way(
    small_photos: Path,
    tiny_cache_recipe: CacheRecipe,
    fake_teacher: FakeTeacher,
    tmp_path: Path,
    small_store: Path,
    answers_under: Callable[[Path], dict[str, bytes]],
) -> None:
    """Claims of the dead, files aside, descriptions without a root."""
    store = tmp_path / "store.zarr"
    for name in (".claims/create", ".claims/ledger-00000000.json", "image/zarr.json.aside", "image/zarr.json"):
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).touch()
    build_cache(tiny_cache_recipe, small_photos, store, fake_teacher()).require_complete()
    assert answers_under(store) == answers_under(small_store)


def test_something_else_at_the_path_is_neither_overwritten_nor_asked_about(
    small_photos: Path, tiny_cache_recipe: CacheRecipe, fake_teacher: FakeTeacher, tmp_path: Path
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("once")
    (tmp_path / "notes.txt").write_text("upon")
    asked: list[int] = []
    recipe = msgspec.structs.replace(tiny_cache_recipe, features=FeatureRecipe(kind="int8"))
    with pytest.raises(
        CacheError, match=r"thesis is not empty and not a Delta cache: it holds chapter1\.txt$"
    ) as caught:
        build_cache(recipe, small_photos, tmp_path / "thesis", fake_teacher(before=asked.append))
    assert caught.value.hint == "name a new folder for the store"
    assert asked == [0]  # the shapes; no basis was fitted in vain
    with pytest.raises(NotADirectoryError):
        build_cache(tiny_cache_recipe, small_photos, tmp_path / "notes.txt", fake_teacher())
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter1.txt"]
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "once"
    assert (tmp_path / "notes.txt").read_text() == "upon"


def test_a_folder_named_by_a_dot_is_refused_as_any_other_that_is_no_store(
    tmp_path, small_photos, tiny_cache_recipe, fake_teacher, monkeypatch
):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine.txt").write_text("not yours")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(CacheError, match=r"is not empty and not a Delta cache"):
        build_cache(tiny_cache_recipe, small_photos, Path(), fake_teacher())
    assert [path.name for path in Path().iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("full_after", range(0, 44, 5))
def test_a_full_disk_loses_the_chunks_in_flight_and_nothing_recorded(
    full_after: int,
    small_photos: Path,
    tiny_cache_recipe: CacheRecipe,
    fake_teacher: FakeTeacher,
    tmp_path: Path,
    small_store: Path,
    answers_under: Callable[[Path], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the disk fills up at any file: of the descriptions (12 of them), of the 24 chunk files, or of the ledger."""
    left, fsync = full_after, os.fsync
    store = tmp_path / "store.zarr"
    files = len([path for path in small_store.rglob("*") if path.is_file()])
    assert files == 12 + 24 + 3

    def fill_up(descriptor: int) -> None:
        nonlocal left
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fill_up)
        full = pytest.raises(OSError, match="No space left on device")
        with full if full_after < files else nullcontext():
            build_cache(tiny_cache_recipe, small_photos, store, fake_teacher())
    assert not list(store.rglob("*.aside"))
    if full_after >= 12:
        recorded = len(list((store / "ledger").glob("*"))) if (store / "ledger").exists() else 0
        assert recorded == min(3, (full_after - 12) // 9)
        seen = verify(Store.open(store), full=True)
        assert len(seen.bad_chunks) == 3 - recorded
        assert {finding.what for finding in seen.findings} <= {"it was never finished"}
    build_cache(tiny_cache_recipe, small_photos, store, fake_teacher()).require_complete()
    assert answers_under(store) == answers_under(small_store)


def test_a_short_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that came out shorter than what was written (a full network disk may only tell so) is not put in place."""
    storage, real = LocalStorage(tmp_path / "store"), os.fstat
    storage.write("image/c.0", b"before")

    def short(descriptor: int) -> os.stat_result:
        os.ftruncate(descriptor, 3)
        return real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", short)
        with pytest.raises(OSError, match=r"^short write to .*c\.0: 3 of 6 bytes$"):
            storage.write("image/c.0", b"behind")
    assert storage.read("image/c.0") == b"before"
    assert storage.sizes() == {"image/c.0": 6}
    assert [path.name for path in (tmp_path / "store" / "image").iterdir()] == ["c.0"]


def test_a_short_write_ends_the_build_and_records_nothing(
    small_photos: Path,
    tiny_cache_recipe: CacheRecipe,
    fake_teacher: FakeTeacher,
    tmp_path: Path,
    small_store: Path,
    answers_under: Callable[[Path], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, write = tmp_path / "store.zarr", LocalStorage.write

    def shorten(self: LocalStorage, name: str, content: bytes) -> None:
        if name == "features/block12/c.1.0.0.0":
            real = os.fstat
            with monkeypatch.context() as patch:
                patch.setattr(os, "fstat", lambda descriptor: os.ftruncate(descriptor, 1) or real(descriptor))
                return write(self, name, content)
        return write(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "write", shorten)
        with pytest.raises(OSError, match=r"^short write to .*features/block12/c\.1\.0\.0\.0: 1 of \d+ bytes$"):
            build_cache(tiny_cache_recipe, small_photos, store, fake_teacher())
    assert 1 in Store.open(store).missing_chunks()
    assert all("was never finished" in finding.what for finding in verify(Store.open(store), full=True).findings)
    build_cache(tiny_cache_recipe, small_photos, store, fake_teacher())
    assert answers_under(store) == answers_under(small_store)


def test_a_writer_takes_whole_chunks_of_the_contracts_shapes_alone(small_store: Path, tmp_path: Path) -> None:
    source = Store.open(small_store)
    names = [spec.name for spec in source.contract.arrays]
    data, record = source.read_chunk(0, names, decoded=False), source.record(0)
    assert record is not None
    store = open_or_create(tmp_path / "store.zarr", source.contract, source.photos, {})
    for wrong in (
        {name: data[name] for name in names[1:]},
        data | {"image": data["image"][:3]},
        data | {"image": data["image"].astype(np.float16)},
        data | {"depth": data["disparity"]},
    ):
        with pytest.raises(ValueError, match=r"chunk 0 needs 4 samples|got "):
            write_chunk(store, 0, wrong, record.samples)
    with pytest.raises(ValueError, match="chunk 0 needs 4 samples"):
        write_chunk(store, 0, data, record.samples[1:])
    assert store.missing_chunks() == [0, 1, 2]
    written = write_chunk(store, 0, data, record.samples)
    assert (written.files, written.samples) == (record.files, record.samples)
    assert store.missing_chunks() == [1, 2]


@pytest.mark.parametrize("url", ["nowhere://bucket/store.zarr"])
def test_a_url_of_no_known_protocol_is_one_clear_error(url: str) -> None:
    with pytest.raises(CacheError, match=r"^nowhere://bucket/store\.zarr cannot be reached: ") as caught:
        open_cache(url)
    assert caught.value.hint == "pip install 'delta-depth[s3]' for s3:// URLs"
