"""`delta cache verify` names what is wrong, `delta cache repair` rebuilds that alone and to the same bytes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from delta.errors import DeltaError
from delta.teacher import Teacher
from delta_cache.errors import CorruptStore
from delta_cache.reader import Store, open_cache
from delta_cache.schema import seal_entry
from delta_cache.verify import verify
from delta_cache.writer import write_chunk
from delta_pipelines.build_cache import build_cache
from delta_pipelines.cache_recipe import CacheRecipe, DisparityRecipe, FeatureRecipe
from delta_pipelines.check_cache import check_live, recipe_of, repair_cache

FakeTeacher = Callable[..., Teacher]
Bytes = Callable[[Path], dict[str, bytes]]
Damage = Callable[[Path], None]
CPU = torch.device("cpu")


@pytest.fixture
def store(compact_store: Path, tmp_path: Path) -> Path:
    """Thirty samples of three views in eight chunks, JPEG and int8; may be spoiled."""
    return Path(shutil.copytree(compact_store, tmp_path / "store.zarr"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


FILES = ["image/c.3.0", "disparity/c.3.0.0", "view/c.3.0", "status/c.3", "features/block12/c.3.0.0.0"]


def test_a_whole_store_has_no_findings(store: Path, bytes_under: Bytes) -> None:
    before, seen = bytes_under(store), []
    fast = verify(Store.open(store))
    full = verify(Store.open(store), full=True, threads=3, on_chunk=lambda size, total: seen.append((size, total)))
    assert (fast.depth, full.depth) == ("fast", "full")
    assert fast.findings == full.findings == ()
    assert fast.bytes == full.bytes == sum(Store.open(store).bytes_on_disk().values())
    assert sum(size for size, _ in seen) == full.bytes
    assert {total for _, total in seen} == {full.bytes}
    assert len(seen) == fast.chunks == 8
    assert bytes_under(store) == before


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("damage", "by_fast", "what"),
    [
        (Path.unlink, True, "{file} is missing"),
        (truncate, True, "{file} has {less} bytes, {size} were recorded"),
        (lengthen, True, "{file} has {more} bytes, {size} were recorded"),
        (flip, False, "{file} is not what was recorded"),
    ],
)
def test_a_damaged_file_is_named_with_its_chunk(
    file: str, damage: Damage, by_fast: bool, what: str, store: Path
) -> None:
    size = (store / file).stat().st_size
    damage(store / file)
    (finding,) = verify(Store.open(store), full=True).findings
    assert finding.chunk == 3
    assert finding.what == what.format(file=file, size=size, less=size - 1, more=size + 1)
    assert verify(Store.open(store)).bad_chunks == ([3] if by_fast else [])


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (Path.unlink, "it was never finished"),
        (truncate, "its ledger entry is damaged"),
        (flip, "its ledger entry is damaged"),
    ],
)
def test_a_ledger_entry_that_is_lost_or_damaged_is_a_bad_chunk(damage: Damage, what: str, store: Path) -> None:
    damage(store / "ledger" / "00000005.json")
    (finding,) = verify(Store.open(store)).findings
    assert (finding.chunk, finding.what) == (5, what)


def test_descriptions_that_contradict_the_contract_are_findings_of_no_chunk(store: Path) -> None:
    path = store / "disparity" / "zarr.json"
    path.write_text(path.read_text().replace('"float16"', '"float32"'))
    seen = verify(Store.open(store))
    assert seen.bad_chunks == []
    assert {finding.what for finding in seen.findings} == {
        "array disparity is not described as in the contract",
        "disparity/zarr.json is not what zarr.json says of it",
    }


def test_a_group_whose_description_is_lost_is_a_finding_and_mended(
    store: Path, compact_store: Path, small_photos: Path, fake_teacher: FakeTeacher, bytes_under: Bytes
) -> None:
    (store / "features" / "zarr.json").unlink()
    (finding,) = verify(Store.open(store)).findings
    assert finding.what == "features/zarr.json is not what zarr.json says of it"
    assert repair_cache(Store.open(store), small_photos, fake_teacher(), device=CPU) == []
    assert bytes_under(store) == bytes_under(compact_store)


@pytest.mark.parametrize("damage", [Path.unlink, flip])
@pytest.mark.parametrize(
    "file",
    [*FILES, "attention/block03/c.3.0.0.0", "ledger/00000003.json", "image/zarr.json", "basis/block03/zarr.json"],
)
def test_repair_rebuilds_what_is_bad_alone_and_to_the_same_bytes(
    file: str,
    damage: Damage,
    store: Path,
    compact_store: Path,
    small_photos: Path,
    fake_teacher: FakeTeacher,
    answers_under: Bytes,
) -> None:
    damage(store / file)
    assert verify(Store.open(store), full=True).findings
    asked: list[int] = []
    bad = repair_cache(Store.open(store), small_photos, fake_teacher(before=asked.append), device=CPU, threads=2)
    of_a_chunk = "zarr.json" not in file
    assert bad == ([3] if of_a_chunk else [])
    assert asked == ([0, 1] if of_a_chunk else [])  # two batches of two, and nothing else
    assert answers_under(store) == answers_under(compact_store)
    assert verify(Store.open(store), full=True).findings == ()


def test_repair_rebuilds_several_chunks_and_leaves_a_whole_store_alone(
    store: Path, compact_store: Path, small_photos: Path, fake_teacher: FakeTeacher, answers_under: Bytes
) -> None:
    flip(store / "image" / "c.0.0")
    (store / "disparity" / "c.6.0.0").unlink()
    (store / "ledger" / "00000007.json").write_bytes(b"{}")
    untouched = {path: path.stat().st_mtime_ns for path in store.rglob("*.0") if path.name.split(".")[1] not in "067"}
    assert repair_cache(Store.open(store), small_photos, fake_teacher(), device=CPU) == [0, 6, 7]
    assert answers_under(store) == answers_under(compact_store)
    assert all(path.stat().st_mtime_ns == when for path, when in untouched.items())
    asked: list[int] = []
    assert repair_cache(Store.open(store), small_photos, fake_teacher(before=asked.append), device=CPU) == []
    assert asked == []


def test_repair_refuses_another_teacher_and_takes_nothing_away(
    store: Path, small_photos: Path, fake_teacher: FakeTeacher, bytes_under: Bytes
) -> None:
    flip(store / "image" / "c.0.0")
    before = bytes_under(store)
    with pytest.raises(
        DeltaError, match=r"^fake is not the teacher of .*store\.zarr: weights_sha256 differ$"
    ) as caught:
        repair_cache(Store.open(store), small_photos, fake_teacher(gain=2.0), device=CPU)
    assert caught.value.hint == "name the teacher it was made with, fake"
    assert bytes_under(store) == before


@pytest.mark.parametrize("change", ["other size", "same size", "gone", "same size, entry damaged"])
def test_repair_refuses_photos_that_are_not_those_of_the_store_and_takes_nothing_away(
    change: str, store: Path, small_photos: Path, fake_teacher: FakeTeacher, tmp_path: Path, bytes_under: Bytes
) -> None:
    photos = Path(shutil.copytree(small_photos, tmp_path / "photos"))
    opened = Store.open(store)
    photo = photos / opened.photos[opened.contract.photo_of(opened.contract.chunk_range(1)[2])].path
    flip(store / "image" / "c.0.0")
    flip(store / "disparity" / "c.1.0.0")
    if change == "other size":
        photo.write_bytes(photo.read_bytes() + b"\0")
    elif change == "gone":
        photo.unlink()
    else:
        flip(photo)
    if change.endswith("damaged"):  # then the size alone tells
        flip(store / "ledger" / "00000001.json")
        photo.write_bytes(photo.read_bytes() + b"\0")
    before = bytes_under(store)
    with pytest.raises(DeltaError, match=r" is not the photo that .*store\.zarr was made of$") as caught:
        repair_cache(Store.open(store), photos, fake_teacher(), device=CPU)
    assert str(caught.value).startswith(photo.relative_to(photos).as_posix())
    assert bytes_under(store) == before


@pytest.mark.parametrize("file", ["photos.jsonl", "basis/block03/axes/c.0.0"])
def test_repair_says_what_it_cannot_mend(
    file: str, store: Path, small_photos: Path, fake_teacher: FakeTeacher, bytes_under: Bytes
) -> None:
    flip(store / file)
    flip(store / "image" / "c.0.0")
    before = bytes_under(store)
    with pytest.raises(CorruptStore, match=r"is not the list|are not those it was made with") as caught:
        repair_cache(Store.open(store), small_photos, fake_teacher(), device=CPU)
    assert caught.value.hint.startswith("build")
    assert bytes_under(store) == before


def test_the_recipe_of_a_store_is_the_one_it_was_made_by(
    compact_store: Path, small_store: Path, compact_cache_recipe: CacheRecipe, tiny_cache_recipe: CacheRecipe
) -> None:
    assert recipe_of(open_cache(compact_store)) == compact_cache_recipe
    assert recipe_of(open_cache(small_store)) == tiny_cache_recipe


def test_a_live_check_compares_every_kept_answer(
    compact_store: Path, small_store: Path, fake_teacher: FakeTeacher
) -> None:
    for store, gate in ((small_store, 0.999), (compact_store, None)):
        opened = open_cache(store)
        seen = check_live(opened, fake_teacher(), 6, CPU)
        assert (seen.samples, seen.passed) == (6, True)
        assert [row.name for row in seen.rows] == ["disparity", "features/block03", "features/block12"]
        for row in seen.rows[1:]:
            held_out = opened.bases[row.name.split("/")[1]].holdout_cosine - 0.005 if gate is None else gate
            assert (row.measure, row.gate) == ("cosine", held_out)
            assert row.gate <= row.value <= 1 + 1e-6
        assert (seen.rows[0].measure, seen.rows[0].gate) == ("relative error", 0.005)
        assert seen.rows[0].value <= 2**-8
    assert check_live(open_cache(small_store), fake_teacher(), 1000, CPU).samples == 10


def test_int8_without_a_transform_is_held_to_the_gate_of_exact_features(
    small_photos: Path, tiny_cache_recipe: CacheRecipe, fake_teacher: FakeTeacher, tmp_path: Path
) -> None:
    features = FeatureRecipe(kind="int8", transform="none", step=0, grid=0)
    recipe = msgspec.structs.replace(tiny_cache_recipe, features=features)
    store = build_cache(recipe, small_photos, tmp_path / "store.zarr", fake_teacher())
    seen = check_live(store, fake_teacher(), 10, CPU)
    assert [row.gate for row in seen.rows[1:]] == [0.999, 0.999]
    assert seen.passed


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("disparity", lambda values: values * np.float16(1.02)),
        ("features/block12", lambda values: np.roll(values, 1, axis=1)),
        ("features/block03", lambda values: values[:, :, ::-1]),
    ],
)
def test_a_live_check_fails_where_the_store_holds_other_answers(
    name: str, spoil: Callable[[np.ndarray], np.ndarray], small_store: Path, fake_teacher: FakeTeacher, tmp_path: Path
) -> None:
    """What no digest can tell: a store whose ledger is in order, and whose numbers another device or bug made."""
    store = Store.open(Path(shutil.copytree(small_store, tmp_path / "store.zarr")))
    for chunk in range(store.contract.chunks):
        data = store.read_chunk(chunk, [spec.name for spec in store.contract.arrays], decoded=False)
        record = store.record(chunk)
        assert record is not None
        write_chunk(store, chunk, data | {name: spoil(data[name])}, record.samples)
    assert verify(store, full=True).findings == ()
    seen = check_live(Store.open(store.url), fake_teacher(), 4, CPU)
    assert [row.name for row in seen.rows if not row.passed] == [name]


def test_a_live_check_refuses_another_teacher(compact_store: Path, fake_teacher: FakeTeacher) -> None:
    with pytest.raises(DeltaError, match=r"fake is not the teacher of .*store\.zarr: weights_sha256 differ"):
        check_live(open_cache(compact_store), fake_teacher(gain=3.0), 1, CPU)


@pytest.fixture
def by_command(
    delta: Callable[..., Any], fake_teacher: FakeTeacher, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """The command line, with the fake teacher wherever one is loaded."""
    monkeypatch.setattr("delta.teacher.load_teacher", lambda *_, **__: fake_teacher())
    return delta


def test_verify_says_what_it_saw_and_exits_0(by_command: Callable[..., Any], store: Path) -> None:
    ended = by_command("cache", "verify", store)
    assert ended.code == 0, ended.err
    assert ended.out.startswith(f"{store}: 8 of 8 chunks good by presence and size, ")
    ended = by_command("cache", "verify", store, "--full", "--threads", "2")
    assert (ended.code, "8 of 8 chunks good by digests" in ended.out) == (0, True)
    ended = by_command("cache", "verify", store, "--live", "2", "--device", "cpu")
    assert ended.code == 0, ended.err
    assert "teacher re-run on 2 samples" in ended.out
    assert "failed" not in ended.out


def test_verify_exits_3_and_names_the_bad_chunks_and_repair_mends_them(
    by_command: Callable[..., Any], store: Path, compact_store: Path, small_photos: Path, answers_under: Bytes
) -> None:
    flip(store / "image" / "c.2.0")
    (store / "disparity" / "c.6.0.0").unlink()
    ended = by_command("cache", "verify", store, "--full")
    assert ended.code == 3
    assert "chunk 2: image/c.2.0 is not what was recorded" in ended.out
    assert "chunk 6: disparity/c.6.0.0 is missing" in ended.out
    error, hint = ended.err.strip().splitlines()[-2:]
    assert error == f"error: {store} is not what was recorded; bad chunks: 2, 6"
    assert hint.removeprefix("hint:").strip() == f"`delta cache repair {store} PHOTOS` rebuilds them alone"
    facts = json.loads(by_command("cache", "verify", store, "--full", "--json").out)
    assert (facts["depth"], facts["chunks"], facts["bad_chunks"], facts["live"]) == ("full", 8, [2, 6], None)
    assert facts["findings"][0] == {"chunk": 6, "what": "disparity/c.6.0.0 is missing"}
    assert facts["seconds"] > 0
    ended = by_command("cache", "repair", store, small_photos, "--device", "cpu")
    assert (ended.code, ended.out) == (0, f"{store}: rebuilt chunks 2, 6\n"), ended.err
    assert answers_under(store) == answers_under(compact_store)
    ended = by_command("cache", "repair", store, small_photos, "--device", "cpu")
    assert (ended.code, ended.out) == (0, f"{store}: nothing to repair\n")
    assert by_command("cache", "verify", store, "--full").code == 0


def test_verify_exits_3_for_an_incomplete_store_and_for_damaged_descriptions(
    by_command: Callable[..., Any], store: Path
) -> None:
    (store / "features" / "block12" / "zarr.json").write_text("{}")
    ended = by_command("cache", "verify", store)
    assert ended.code == 3
    assert "bad chunks: none, but its descriptions" in ended.err
    assert "store: array features/block12" in ended.out
    (store / "ledger" / "00000000.json").unlink()
    ended = by_command("cache", "verify", store)
    assert (ended.code, "chunk 0: it was never finished" in ended.out) == (3, True)


def test_verify_live_exits_3_where_the_teacher_disagrees(
    by_command: Callable[..., Any], small_store: Path, tmp_path: Path
) -> None:
    store = Store.open(Path(shutil.copytree(small_store, tmp_path / "store.zarr")))
    for chunk in range(3):
        data = store.read_chunk(chunk, [spec.name for spec in store.contract.arrays], decoded=False)
        record = store.record(chunk)
        assert record is not None
        write_chunk(store, chunk, data | {"disparity": data["disparity"] * np.float16(2)}, record.samples)
    ended = by_command("cache", "verify", store.url, "--live", "3", "--device", "cpu", "--json")
    assert ended.code == 3
    assert f"{store.url} does not agree with its teacher: disparity" in ended.err
    live = json.loads(ended.out)["live"]
    assert live["samples"] == 3
    assert live["rows"][0]["value"] == pytest.approx(1, abs=0.02)


def test_many_bad_chunks_are_listed_up_to_a_limit_and_all_in_json(
    by_command: Callable[..., Any],
    small_photos: Path,
    tiny_cache_recipe: CacheRecipe,
    fake_teacher: FakeTeacher,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(24):
        Image.new("RGB", (40, 40), (number, 0, 0)).save(folder / f"{number}.png")
    recipe = msgspec.structs.replace(tiny_cache_recipe, chunk_samples=1, disparity=DisparityRecipe())
    store = build_cache(recipe, folder, tmp_path / "store.zarr", fake_teacher())
    for chunk in range(24):
        (tmp_path / "store.zarr" / "status" / f"c.{chunk}").unlink()
    ended = by_command("cache", "verify", store.url)
    assert "bad chunks: 0, 1, 2," in ended.err
    assert ", 19 …" in ended.err
    assert "… and 19 more; --json lists all" in ended.out
    assert json.loads(by_command("cache", "verify", store.url, "--json").out)["bad_chunks"] == list(range(24))


def test_an_entry_that_names_other_files_is_no_entry(store: Path) -> None:
    record = Store.open(store).record(3)
    assert record is not None
    elsewhere = {f"../{name}": value for name, value in record.files.items()}
    (store / "ledger" / "00000003.json").write_bytes(seal_entry(msgspec.structs.replace(record, files=elsewhere)))
    assert verify(Store.open(store)).bad_chunks == [3]
