"""Files are there whole or not at all, wherever they lie; a line that is down is one sentence."""

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import msgspec
import pytest

from delta_cache.errors import CacheError, CorruptStore
from delta_cache.reader import Store
from delta_cache.schema import Photo, digest_photos
from delta_cache.storage import LocalStorage, RemoteStorage, Storage, open_storage


@pytest.fixture(params=["folder", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    yield open_storage(tmp_path / "store" if request.param == "folder" else "memory://bucket/store")
    fsspec.filesystem("memory").store.clear()


def test_a_file_is_read_as_it_was_written_and_listed_with_its_size(storage: Storage) -> None:
    assert not storage.exists()
    storage.write("a/b/c.0", b"first")
    storage.write("a/b/c.0", b"second!")
    storage.write("ledger/1.json", b"{}")
    assert storage.exists()
    assert storage.read("a/b/c.0") == b"second!"
    assert storage.size("a/b/c.0") == 7
    assert storage.sizes() == {"a/b/c.0": 7, "ledger/1.json": 2}
    assert storage.sizes("a") == {"a/b/c.0": 7}
    assert storage.read_many(["ledger/1.json", "ledger/2.json"]) == {"ledger/1.json": b"{}"}


def test_what_is_not_there_is_said_so_and_deleting_it_is_no_error(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read("nothing")
    storage.delete("nothing")
    assert storage.size("nothing") is None
    assert storage.sizes("nowhere") == {}


def test_a_claim_keeps_another_out_until_it_is_given_back(tmp_path: Path) -> None:
    first, second = LocalStorage(tmp_path), LocalStorage(tmp_path)
    with first.claim("chunk") as ours:
        assert ours
        with second.claim("chunk") as theirs, second.claim("other") as other:
            assert (theirs, other) == (False, True)
    with second.claim("chunk") as ours:
        assert ours


def test_a_short_write_leaves_what_stood_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, whole = LocalStorage(tmp_path), os.fstat

    def short(descriptor: int) -> os.stat_result:
        seen = list(whole(descriptor))
        seen[6] -= 1  # st_size
        return os.stat_result(seen)

    storage.write("file", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", short)
        with pytest.raises(OSError, match=r"short write to .*file: 3 of 4 bytes"):
            storage.write("file", b"new!")
    assert storage.read("file") == b"old"
    assert storage.sizes() == {"file": 3}


def test_a_line_that_is_down_is_one_sentence() -> None:
    class Down:
        def cat_file(self, path: str) -> bytes:
            raise ConnectionResetError("the peer hung up")

    storage = RemoteStorage("s3://bucket/store", Down(), "bucket/store")
    with pytest.raises(CacheError, match=r"^s3://bucket/store cannot be reached: the peer hung up$") as caught:
        storage.read("zarr.json")
    assert caught.value.hint == "run the same command again; what is done is kept"


def test_a_protocol_that_does_not_exist_is_one_sentence() -> None:
    with pytest.raises(CacheError, match=r"^zz9://bucket cannot be reached: Protocol not known: zz9$"):
        open_storage("zz9://bucket")


def test_a_store_from_elsewhere_cannot_name_photos_outside_its_folder(small_store: Path, tmp_path: Path) -> None:
    store = Store.open(small_store)
    for path in ("../../etc/passwd", "below/../../passwd", "/etc/passwd"):
        photos = [Photo(path=path, bytes=1)]
        contract = msgspec.structs.replace(store.contract, photos={"count": 1, "list_sha256": digest_photos(photos)})

        class Forged(LocalStorage):
            def read(self, name: str, line: bytes = msgspec.json.encode(photos[0])) -> bytes:
                return line if name == "photos.jsonl" else super().read(name)

        with pytest.raises(CorruptStore, match="is not the list the store was made of"):
            _ = Store(Forged(small_store), contract, store.provenance).photos
