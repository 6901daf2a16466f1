"""Stores out of stores: what is merged or taken apart is bit for bit what was stored, in a store like any other."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
import torch

from delta.errors import DeltaError
from delta.teacher import Teacher
from delta_cache.compose import merge, subset
from delta_cache.errors import CacheError, ContractMismatch, IncompleteStore
from delta_cache.reader import Store, open_cache
from delta_cache.schema import SampleRecord
from delta_cache.verify import verify
from delta_pipelines.build_cache import build_cache
from delta_pipelines.cache_recipe import CacheRecipe
from delta_pipelines.check_cache import check_live

FakeTeacher = Callable[..., Teacher]
Bytes = Callable[[Path], dict[str, bytes]]
CPU = torch.device("cpu")


class Pair(NamedTuple):
    """Two stores of one contract, of ten photos and of seven, two of which are the same; one photo is no photo."""

    first: Store
    second: Store
    second_photos: Path


@pytest.fixture(scope="module")
def pair(
    compact_store: Path,
    small_photos: Path,
    photo_folder: Callable[..., Path],
    compact_cache_recipe: CacheRecipe,
    fake_teacher: FakeTeacher,
    tmp_path_factory: pytest.TempPathFactory,
) -> Pair:
    folder = tmp_path_factory.mktemp("second")
    photos = folder / "photos"
    (photos / "more").mkdir(parents=True)
    for number, source in enumerate(sorted(photo_folder(folder / "all", count=15).rglob("*1*.*"))):
        shutil.copy(source, photos / "more" / f"{number}{source.suffix}")
    (photos / "more" / "poem.png").write_text("not a photo")
    for name in ("001.png", "003.jpg"):
        shutil.copy(small_photos / name, photos / name)
    store = build_cache(compact_cache_recipe, photos, folder / "store.zarr", fake_teacher(), basis=compact_store)
    return Pair(open_cache(compact_store), store.require_complete(), photos)


Samples = dict[tuple[str, int], tuple[dict[str, np.ndarray], SampleRecord]]


def samples_of(store: Store, names: list[str] | None = None) -> Samples:
    """Everything stored of each sample, by its photo's path and its view."""
    found: Samples = {}
    names = names or [spec.name for spec in store.contract.arrays]
    for chunk in range(store.contract.chunks):
        data, record = store.read_chunk(chunk, names, decoded=False), store.record(chunk)
        assert record is not None
        for row, sample in enumerate(store.contract.chunk_range(chunk)):
            path = store.photos[store.contract.photo_of(sample)].path
            stored = {name: values[row] for name, values in data.items()}
            found[path, store.contract.view_of(sample)] = stored, record.samples[row]
    return found


def assert_same_samples(ours: Samples, theirs: Samples) -> None:
    assert ours.keys() == theirs.keys()
    for key, (stored, record) in ours.items():
        assert record == theirs[key][1]
        assert stored.keys() == theirs[key][0].keys()
        assert all(stored[name].tobytes() == theirs[key][0][name].tobytes() for name in stored)


def paths(store: Store) -> list[str]:
    return [photo.path for photo in store.photos]


def test_a_merged_store_holds_every_sample_of_both_bit_for_bit(pair: Pair, tmp_path: Path) -> None:
    done: list[int] = []
    merged = merge(pair.first, pair.second, tmp_path / "c.zarr", done.append)
    shared = set(paths(pair.first)) & set(paths(pair.second))
    assert shared == {"001.png", "003.jpg"}
    assert len(merged.photos) == len(pair.first.photos) + len(pair.second.photos) - 2
    assert_same_samples(samples_of(merged), samples_of(pair.second) | samples_of(pair.first))
    assert sum(done) == merged.contract.samples == 3 * len(merged.photos)
    assert merged.failures().keys() == {"more/poem.png"}


def test_a_merged_order_is_a_riffle_that_keeps_both_orders(pair: Pair, tmp_path: Path) -> None:
    merged = paths(merge(pair.first, pair.second, tmp_path / "c.zarr"))
    first = set(paths(pair.first))
    assert [path for path in merged if path in first] == paths(pair.first)
    rest = [path for path in merged if path not in first]
    assert rest == [path for path in paths(pair.second) if path not in first]
    turns = [path in first for path in merged]
    assert turns not in (sorted(turns), sorted(turns, reverse=True))  # mixed, not one behind the other


def test_a_merged_store_is_a_store_like_any_other(
    pair: Pair, fake_teacher: FakeTeacher, tmp_path: Path, bytes_under: Bytes
) -> None:
    before = [bytes_under(Path(store.url)) for store in (pair.first, pair.second)]
    merged = open_cache(merge(pair.first, pair.second, tmp_path / "c.zarr").url)
    assert verify(merged, full=True).findings == ()
    assert check_live(merged, fake_teacher(), 5, CPU).passed
    assert merged.contract.views == ("plain", "mirrored", "crop1")
    assert merged.contract.basis_sha256 == pair.first.contract.basis_sha256
    assert merged.provenance["composed_of"] == [s.contract.fingerprint for s in (pair.first, pair.second)]
    assert not (tmp_path / "c.zarr" / ".claims").exists()
    again = subset(merged, tmp_path / "part.zarr", photos=4)
    assert paths(again) == paths(merged)[:4]
    assert [bytes_under(Path(store.url)) for store in (pair.first, pair.second)] == before


def test_the_same_merge_gives_the_same_bytes(pair: Pair, tmp_path: Path, bytes_under: Bytes) -> None:
    for name in ("one", "two"):
        merge(pair.first, pair.second, tmp_path / name)
    assert bytes_under(tmp_path / "one") == bytes_under(tmp_path / "two")


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [1, 4])
def test_a_merge_that_was_cut_goes_on_to_the_same_bytes(
    after: int, pair: Pair, tmp_path: Path, bytes_under: Bytes
) -> None:
    def stop(_samples: int) -> None:
        done.append(1)
        if len(done) == after:
            raise Stop

    done: list[int] = []
    merge(pair.first, pair.second, tmp_path / "uncut.zarr")
    with pytest.raises(Stop):
        merge(pair.first, pair.second, tmp_path / "cut.zarr", stop)
    cut = Store.open(tmp_path / "cut.zarr")
    assert cut.missing_chunks() == list(range(after, cut.contract.chunks))
    rest: list[int] = []
    merge(pair.first, pair.second, tmp_path / "cut.zarr", rest.append)
    assert len(rest) == cut.contract.chunks - after
    assert bytes_under(tmp_path / "cut.zarr") == bytes_under(tmp_path / "uncut.zarr")


@pytest.mark.parametrize("difference", ["size", "content"])
def test_one_path_that_names_two_photos_is_refused(
    difference: str,
    pair: Pair,
    compact_cache_recipe: CacheRecipe,
    compact_store: Path,
    fake_teacher: FakeTeacher,
    tmp_path: Path,
) -> None:
    photos = Path(shutil.copytree(pair.second_photos, tmp_path / "photos"))
    content = bytearray((photos / "003.jpg").read_bytes())
    content[-20] ^= 1
    (photos / "003.jpg").write_bytes(bytes(content) + (b"\0" if difference == "size" else b""))
    other = build_cache(compact_cache_recipe, photos, tmp_path / "s.zarr", fake_teacher(), basis=compact_store)
    with pytest.raises(CacheError, match=r"hold different photos named 003\.jpg$") as caught:
        merge(pair.first, other, tmp_path / "c.zarr")
    assert caught.value.hint == "build one of them from a folder above, so that its paths differ"
    assert not (tmp_path / "c.zarr").exists()


def test_stores_with_bases_of_their_own_are_refused_and_the_way_out_is_told(
    pair: Pair, compact_cache_recipe: CacheRecipe, fake_teacher: FakeTeacher, tmp_path: Path
) -> None:
    other = build_cache(compact_cache_recipe, pair.second_photos, tmp_path / "s.zarr", fake_teacher())
    with pytest.raises(ContractMismatch) as caught:
        merge(pair.first, other, tmp_path / "c.zarr")
    lines = str(caught.value).splitlines()
    assert lines[0] == "the stores were made under different contracts:"
    assert [line.split(":")[0] for line in lines[1:]] == ["  basis_sha256"]
    assert caught.value.hint == "build the second with the first one's recipe and `--basis FIRST`"
    assert not (tmp_path / "c.zarr").exists()


def test_stores_of_other_recipes_are_refused_with_what_differs(pair: Pair, small_store: Path, tmp_path: Path) -> None:
    with pytest.raises(ContractMismatch) as caught:
        merge(pair.first, open_cache(small_store), tmp_path / "c.zarr")
    for line in ('  recipe.image.kind: store "jpeg", asked "raw"', '  views: store ["plain", "mirrored", "crop1"], '):
        assert line in str(caught.value)
    assert "photos" not in str(caught.value)


def test_an_incomplete_store_is_neither_merged_nor_taken_apart(pair: Pair, compact_store: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(compact_store, tmp_path / "store.zarr"))
    (path / "ledger" / "00000002.json").unlink()
    for compose in (
        lambda: merge(pair.second, Store.open(path), tmp_path / "c.zarr"),
        lambda: subset(Store.open(path), tmp_path / "c.zarr", photos=1),
    ):
        with pytest.raises(IncompleteStore, match="1 of 8 chunks missing"):
            compose()


def test_a_bad_chunk_is_not_carried_over(pair: Pair, compact_store: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(compact_store, tmp_path / "store.zarr"))
    content = bytearray((path / "disparity" / "c.2.0.0").read_bytes())
    content[-1] ^= 1
    (path / "disparity" / "c.2.0.0").write_bytes(content)
    with pytest.raises(CacheError, match=r"disparity/c\.2\.0\.0 is not what was recorded"):
        merge(open_cache(path), pair.second, tmp_path / "c.zarr")


@pytest.mark.parametrize(
    ("changes", "key"), [({"size_px": 84}, "size_px"), ({"seed": 1}, "seed"), ({"taps": (3, 6)}, "taps")]
)
def test_a_basis_is_borrowed_only_from_a_store_of_the_same_recipe(
    changes: dict[str, Any],
    key: str,
    compact_store: Path,
    small_photos: Path,
    compact_cache_recipe: CacheRecipe,
    fake_teacher: FakeTeacher,
    tmp_path: Path,
) -> None:
    recipe = msgspec.structs.replace(compact_cache_recipe, **changes)
    with pytest.raises(DeltaError, match=rf"is of another recipe: {key} differ, so its bases do not fit$") as caught:
        build_cache(recipe, small_photos, tmp_path / "s.zarr", fake_teacher(), basis=compact_store)
    assert caught.value.hint == "repeat its recipe and teacher, or leave --basis out"
    with pytest.raises(DeltaError, match=r"is of another teacher: weights_sha256 differ"):
        build_cache(
            compact_cache_recipe, small_photos, tmp_path / "s.zarr", fake_teacher(gain=2.0), basis=compact_store
        )


def test_a_borrowed_basis_is_not_fitted_again(pair: Pair, compact_store: Path) -> None:
    assert "fit_s" not in pair.second.provenance
    assert "fit_s" in pair.first.provenance
    for tap, basis in pair.second.bases.items():
        np.testing.assert_array_equal(basis.axes, pair.first.bases[tap].axes)


@pytest.mark.parametrize("photos", [1, 4, 10])
def test_a_subset_of_photos_is_the_first_of_them_bit_for_bit(photos: int, pair: Pair, tmp_path: Path) -> None:
    part = subset(pair.first, tmp_path / "part.zarr", photos=photos)
    assert paths(part) == paths(pair.first)[:photos]
    kept = {key: value for key, value in samples_of(pair.first).items() if key[0] in paths(part)}
    assert_same_samples(samples_of(part), kept)
    assert part.contract.samples == 3 * photos
    assert verify(part, full=True).findings == ()


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        (["disparity"], ["disparity", "view", "status"]),
        (["image", "features/block12"], ["image", "view", "status", "features/block12"]),
        (["features"], ["view", "status", "features/block03", "features/block12"]),
    ],
)
def test_a_subset_of_arrays_is_those_arrays_bit_for_bit(
    asked: list[str], kept: list[str], pair: Pair, tmp_path: Path
) -> None:
    part = open_cache(subset(pair.first, tmp_path / "part.zarr", arrays=asked).url)
    assert [spec.name for spec in part.contract.arrays] == kept
    assert_same_samples(samples_of(part), samples_of(pair.first, kept))
    taps = [name.split("/")[1] for name in kept if name.startswith("features/")]
    assert sorted(part.bases) == taps
    assert (tmp_path / "part.zarr" / "basis").exists() == bool(taps)
    for name in kept:
        np.testing.assert_array_equal(part.read_chunk(1, [name])[name], pair.first.read_chunk(1, [name])[name])
    assert verify(part, full=True).findings == ()


def test_a_subset_that_cannot_be_is_refused(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"has no array depth$") as caught:
        subset(pair.first, tmp_path / "part.zarr", arrays=["image", "depth"])
    assert caught.value.hint.startswith("choose among attention/block03, attention/block12, disparity, ")
    with pytest.raises(CacheError, match=r"holds 10 photos, 11 were asked for$"):
        subset(pair.first, tmp_path / "part.zarr", photos=11)
    assert not (tmp_path / "part.zarr").exists()


def test_a_place_that_holds_another_store_is_refused(pair: Pair, tmp_path: Path) -> None:
    subset(pair.first, tmp_path / "part.zarr", photos=3)
    with pytest.raises(ContractMismatch):
        subset(pair.first, tmp_path / "part.zarr", photos=4)


def test_the_commands_say_what_they_wrote(delta: Callable[..., Any], pair: Pair, tmp_path: Path) -> None:
    ended = delta("cache", "merge", pair.first.url, pair.second.url, "-o", tmp_path / "c.zarr")
    assert ended.code == 0, ended.err
    count = 3 * (len(pair.first.photos) + len(pair.second.photos) - 3)  # two are in both, one is no photo
    assert ended.out.startswith(f"{tmp_path / 'c.zarr'}: {count} samples in 3 views, ")
    assert ", 3 left out" in ended.out
    assert "composed from other stores" in delta("cache", "info", tmp_path / "c.zarr").out
    ended = delta(
        "cache",
        "subset",
        tmp_path / "c.zarr",
        "-o",
        tmp_path / "d.zarr",
        "--photos",
        "2",
        "--arrays",
        "image, disparity",
    )
    assert ended.code == 0, ended.err
    part = open_cache(tmp_path / "d.zarr")
    assert ([spec.name for spec in part.contract.arrays], len(part.photos)) == (
        ["image", "disparity", "view", "status"],
        2,
    )
    ended = delta("cache", "subset", tmp_path / "c.zarr", "-o", tmp_path / "e.zarr", "--arrays", "depth")
    assert (ended.code, "has no array depth" in ended.err) == (2, True)
    ended = delta("cache", "merge", pair.first.url, tmp_path / "d.zarr", "-o", tmp_path / "e.zarr")
    assert (ended.code, "made under different contracts" in ended.err) == (2, True)
