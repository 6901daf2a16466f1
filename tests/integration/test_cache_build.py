"""Stage 1 from folder to store: complete, resumable to the same bytes, and nothing lost on the way."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from delta.teacher import Teacher, load_teacher
from delta_cache.errors import ContractMismatch, CorruptStore, IncompleteStore
from delta_cache.reader import Store, open_cache
from delta_cache.schema import ChunkRecord, Status
from delta_cache.verify import verify
from delta_pipelines.answers import NOT_FINITE
from delta_pipelines.build_cache import Watcher, build_cache
from delta_pipelines.cache_recipe import AttentionRecipe, CacheRecipe, FeatureRecipe

FakeTeacher = Callable[..., Teacher]
Bytes = Callable[[Path], dict[str, bytes]]


@pytest.fixture(params=["exact", "compact"])
def recipe_and_store(request: pytest.FixtureRequest) -> tuple[CacheRecipe, Path]:
    """A recipe and the store of an uncut build by it: raw and float16, or JPEG and int8 in three views."""
    names = {"exact": ("tiny_cache_recipe", "small_store"), "compact": ("compact_cache_recipe", "compact_store")}
    recipe, store = (request.getfixturevalue(name) for name in names[request.param])
    return recipe, store


def stopping_at(stop: int, failure: type[BaseException]) -> Callable[[int], None]:
    def before(call: int) -> None:
        if call == stop:
            raise failure("the teacher stops here")

    return before


@pytest.mark.parametrize("stop", [0, 1, 3, 6, 11, 14])  # the question for shapes, photos fitted on, then batches
@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_cut_build_resumes_to_the_same_bytes(
    stop: int,
    failure: type[BaseException],
    recipe_and_store: tuple[CacheRecipe, Path],
    small_photos: Path,
    fake_teacher: FakeTeacher,
    tmp_path: Path,
    answers_under: Bytes,
) -> None:
    recipe, uncut = recipe_and_store
    store = tmp_path / "store.zarr"
    calls = 6 if recipe.features.kind == "float16" else 26  # shapes, (ten photos fitted on,) five or fifteen batches
    if stop < calls:
        with pytest.raises(failure):
            build_cache(recipe, small_photos, store, fake_teacher(before=stopping_at(stop, failure)))
    asked: list[int] = []
    batches, fit = (5, 0) if recipe.features.kind == "float16" else (15, 10)
    if (store / "zarr.json").exists():
        missing = Store.open(store).missing_chunks()
        with pytest.raises(IncompleteStore, match=rf"store\.zarr is incomplete: {len(missing)} of \d chunks") as caught:
            open_cache(store)
        assert caught.value.hint == f"`delta cache build … {store}` resumes it"
        chunks = [Store.open(store).contract.chunk_range(chunk) for chunk in missing]
        batches, fit = sum(-(-len(chunk) // recipe.batch_size) for chunk in chunks), 0
    build_cache(recipe, small_photos, store, fake_teacher(before=asked.append)).require_complete()
    assert answers_under(store) == answers_under(uncut)
    assert len(asked) == 1 + fit + batches  # no batch of a finished chunk is asked again, no basis fitted twice


def test_a_chunk_is_there_with_its_record_and_a_store_complete_with_its_last(
    small_photos: Path, tiny_cache_recipe: CacheRecipe, fake_teacher: FakeTeacher, tmp_path: Path
) -> None:
    begun, seen = [], set()

    def chunk(record: ChunkRecord) -> None:
        seen.add(record.chunk)
        status = Store.open(tmp_path / "store.zarr").status().reshape(-1)
        for number in seen:
            span = slice(4 * number, 4 * number + 4)
            assert (status[span] == Status.OK).all()

    watcher = Watcher(begin=lambda *counts: begun.append(counts), chunk=chunk)
    build_cache(tiny_cache_recipe, small_photos, tmp_path / "store.zarr", fake_teacher(), watcher=watcher)
    assert begun == [(0, 10)]
    assert seen == {0, 1, 2}
    assert open_cache(tmp_path / "store.zarr").mask.all()


def test_an_incomplete_store_is_read_only_by_whoever_asks_for_it(small_store: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(small_store, tmp_path / "store.zarr"))
    (path / "ledger" / "00000001.json").unlink()
    with pytest.raises(IncompleteStore, match=r"store\.zarr is incomplete: 1 of 3 chunks missing$"):
        open_cache(path)
    store = open_cache(path, incomplete=True)
    assert store.mask.tolist() == [sample not in (4, 5, 6, 7) for sample in range(10)]
    with pytest.raises(IncompleteStore, match=r"^chunk 1 of .*store\.zarr is missing$"):
        store.read_chunk(1, ["image"])
    assert {chunk for chunk, _ in store.chunks_in_order(seed=0, epoch=0)} == {0, 2}


def test_chunks_come_in_an_order_of_their_own_with_the_mask_of_their_samples(
    photo_folder: Callable[..., Path], tiny_cache_recipe: CacheRecipe, fake_teacher: FakeTeacher, tmp_path: Path
) -> None:
    folder = photo_folder(tmp_path / "photos")
    (folder / "001.png").write_text("not a photo")
    recipe = msgspec.structs.replace(tiny_cache_recipe, chunk_samples=1)
    store = build_cache(recipe, folder, tmp_path / "store.zarr", fake_teacher())
    (left_out,) = np.flatnonzero(~store.mask)
    for world_size in (1, 3):
        orders = [
            list(store.chunks_in_order(seed=0, epoch=1, rank=r, world_size=world_size)) for r in range(world_size)
        ]
        chunks = [chunk for order in orders for chunk, mask in order if mask.all()]
        assert sorted(chunks) == [chunk for chunk in range(10) if chunk != left_out]
    assert [c for c, _ in store.chunks_in_order(seed=0, epoch=1)] != [
        c for c, _ in store.chunks_in_order(seed=0, epoch=2)
    ]


def test_a_complete_store_is_left_as_it_is(
    small_store: Path, small_photos: Path, tiny_cache_recipe: CacheRecipe, fake_teacher: FakeTeacher, bytes_under: Bytes
) -> None:
    before, asked, told = bytes_under(small_store), [], []
    watcher = Watcher(begin=lambda *counts: told.append(counts), chunk=told.append)
    build_cache(tiny_cache_recipe, small_photos, small_store, fake_teacher(before=asked.append), watcher=watcher)
    assert asked == [0]
    assert told == [(10, 10)]
    assert bytes_under(small_store) == before


def test_nothing_but_the_store_is_left_beside_it(small_store: Path, compact_store: Path, bytes_under: Bytes) -> None:
    """No claim, no file aside."""
    for store in (small_store, compact_store):
        assert [entry.name for entry in store.parent.iterdir()] == ["store.zarr"]
        names = bytes_under(store)
        described = {"zarr.json", "photos.jsonl"} | {name for name in names if name.endswith("/zarr.json")}
        recorded = {name for record in Store.open(store).records() for name in record.files}
        ledger = {f"ledger/{chunk:08d}.json" for chunk in range(Store.open(store).contract.chunks)}
        bases = {name for name in names if name.startswith("basis/")}
        assert names.keys() == described | recorded | ledger | bases


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [truncate, Path.unlink])
@pytest.mark.parametrize("file", ["image/c.1.0.0.0", "status/c.1", "features/block12/c.1.0.0.0"])
def test_a_damaged_file_is_noticed_and_its_chunk_alone_is_done_again(
    damage: Callable[[Path], None],
    file: str,
    small_store: Path,
    small_photos: Path,
    tiny_cache_recipe: CacheRecipe,
    fake_teacher: FakeTeacher,
    tmp_path: Path,
    answers_under: Bytes,
) -> None:
    store = Path(shutil.copytree(small_store, tmp_path / "store.zarr"))
    damage(store / file)
    assert Store.open(store).missing_chunks() == [1]
    assert np.flatnonzero(Store.open(store).status() == Status.MISSING).tolist() == [4, 5, 6, 7]
    with pytest.raises(IncompleteStore, match="1 of 3 chunks missing"):
        open_cache(store)
    with pytest.raises(IncompleteStore, match=r"chunk 1 of .* is missing"):
        Store.open(store).read_chunk(1, [file.rpartition("/")[0]])
    asked = []
    build_cache(tiny_cache_recipe, small_photos, store, fake_teacher(before=asked.append))
    assert asked == [0, 1, 2]
    assert answers_under(store) == answers_under(small_store)


def test_a_lost_ledger_entry_is_a_chunk_that_is_done_again(
    small_store: Path,
    small_photos: Path,
    tiny_cache_recipe: CacheRecipe,
    fake_teacher: FakeTeacher,
    tmp_path: Path,
    answers_under: Bytes,
) -> None:
    store = Path(shutil.copytree(small_store, tmp_path / "store.zarr"))
    (store / "ledger" / "00000001.json").unlink()
    assert Store.open(store).missing_chunks() == [1]
    build_cache(tiny_cache_recipe, small_photos, store, fake_teacher())
    assert answers_under(store) == answers_under(small_store)


def test_a_flipped_bit_is_found_when_it_is_first_read(small_store: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(small_store, tmp_path / "store.zarr"))
    file = path / "image" / "c.2.0.0.0"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    store = open_cache(path)  # by length nothing is wrong
    assert verify(store).findings == ()
    assert verify(store, full=True).bad_chunks == [2]
    for _attempt in range(2):
        with pytest.raises(
            CorruptStore, match=r"chunk 2 of .*: image/c\.2\.0\.0\.0 is not what was recorded"
        ) as caught:
            store.read_chunk(2, ["disparity", "image"])
        assert caught.value.hint == f"`delta cache repair … {path}` rebuilds it"
    assert store.read_chunk(2, ["disparity"]).keys() == {"disparity"}


def test_the_ledger_knows_the_bytes_on_disk(small_store: Path, bytes_under: Bytes) -> None:
    sizes: dict[str, int] = {}
    for name, content in bytes_under(small_store).items():
        array, is_chunk, _ = name.rpartition("/c.")
        if is_chunk:
            sizes[array] = sizes.get(array, 0) + len(content)
    assert Store.open(small_store).bytes_on_disk() == sizes
    assert sum(sizes.values()) > 0


def test_a_limit_takes_the_same_photos_whatever_the_chunks(
    small_photos: Path, tiny_cache_recipe: CacheRecipe, fake_teacher: FakeTeacher, tmp_path: Path, small_store: Path
) -> None:
    recipe = msgspec.structs.replace(tiny_cache_recipe, limit=3, chunk_samples=2)
    store = build_cache(recipe, small_photos, tmp_path / "store.zarr", fake_teacher())
    assert store.photos == Store.open(small_store).photos[:3]


def test_only_what_the_recipe_asks_for_is_kept(
    small_photos: Path, tiny_cache_recipe: CacheRecipe, fake_teacher: FakeTeacher, tmp_path: Path, small_store: Path
) -> None:
    recipe = msgspec.structs.replace(
        tiny_cache_recipe, features=FeatureRecipe(kind="none"), attention=AttentionRecipe(kind="none")
    )
    lean = build_cache(recipe, small_photos, tmp_path / "store.zarr", fake_teacher())
    assert [spec.name for spec in lean.contract.arrays] == ["image", "disparity", "view", "status"]
    kept = ["image", "disparity", "view", "status"]
    for name, values in lean.read_chunk(2, kept).items():
        np.testing.assert_array_equal(values, Store.open(small_store).read_chunk(2, kept)[name])


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


def test_the_same_weights_by_another_name_are_the_same_contract(
    small_store: Path, small_photos: Path, tiny_cache_recipe: CacheRecipe, fake_teacher: FakeTeacher, bytes_under: Bytes
) -> None:
    before, teacher = bytes_under(small_store), fake_teacher()
    teacher.identity = msgspec.structs.replace(teacher.identity, name="moved")
    store = build_cache(tiny_cache_recipe, small_photos, small_store, teacher)
    assert store.teacher["name"] == "fake"
    assert bytes_under(small_store) == before


@pytest.mark.parametrize(("key", "value"), [("batch_size", 3), ("compile", True)])
def test_what_moves_the_last_bits_only_is_no_part_of_the_contract(
    key: str,
    value: object,
    small_store: Path,
    small_photos: Path,
    tiny_cache_recipe: CacheRecipe,
    fake_teacher: FakeTeacher,
    bytes_under: Bytes,
) -> None:
    before = bytes_under(small_store)
    build_cache(msgspec.structs.replace(tiny_cache_recipe, **{key: value}), small_photos, small_store, fake_teacher())
    assert bytes_under(small_store) == before


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"size_px": 84}, "  recipe.size_px: store 70, asked 84"),
        ({"taps": (3, 6)}, "  recipe.taps: store [3, 12], asked [3, 6]"),
        ({"seed": 1}, "  recipe.seed: store 0, asked 1"),
        ({"chunk_samples": 5}, "  chunk_samples: store 4, asked 5"),
        ({"compressor": "lz4"}, '  arrays.image.compressor: store "zstd", asked "lz4"'),
        ({"limit": 9}, "  photos.count: store 10, asked 9"),
        ({"features": FeatureRecipe(kind="int8")}, '  recipe.features.kind: store "float16", asked "int8"'),
    ],
)
def test_another_recipe_is_another_contract(
    changes: dict[str, Any],
    line: str,
    small_store: Path,
    small_photos: Path,
    tiny_cache_recipe: CacheRecipe,
    fake_teacher: FakeTeacher,
    bytes_under: Bytes,
) -> None:
    before = bytes_under(small_store)
    with pytest.raises(ContractMismatch) as caught:
        build_cache(msgspec.structs.replace(tiny_cache_recipe, **changes), small_photos, small_store, fake_teacher())
    assert line in str(caught.value).splitlines()
    assert bytes_under(small_store) == before


BAD_ANSWERS = [
    (kind, value, where)
    for kind in ("float16", "int8")
    for value in (float("nan"), float("inf"), 1e6)
    for where in ("disparity", "features", "attention")
    if (kind, value, where) != ("int8", 1e6, "features")  # a number that a basis holds, clipped as any other
]


@pytest.mark.parametrize(("kind", "value", "where"), BAD_ANSWERS)
def test_an_answer_that_is_no_number_is_its_samples_failure_and_no_others(
    kind: Any,
    value: float,
    where: str,
    small_photos: Path,
    tiny_cache_recipe: CacheRecipe,
    fake_teacher: FakeTeacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher = fake_teacher()
    answer_well = type(teacher).__call__

    def answer(self: Teacher, image: Any) -> Any:
        answer = answer_well(self, image)
        if len(image) == 2:  # a batch, neither the question for shapes nor a photo fitted on
            maps = answer.disparity if where == "disparity" else getattr(answer, where)["block12"]
            maps[1, 1, 3] = value
        return answer

    monkeypatch.setattr(type(teacher), "__call__", answer)
    recipe = msgspec.structs.replace(tiny_cache_recipe, features=FeatureRecipe(kind=kind, grid=0))
    store = build_cache(recipe, small_photos, tmp_path / "store.zarr", teacher)
    second = np.arange(10) % 2 == 1
    assert store.status().tolist() == np.where(second, Status.FAILED, Status.OK).tolist()
    assert set(store.failures().values()) == {NOT_FINITE}
    assert len(store.failures()) == 5
    data = store.read_chunk(0, [spec.name for spec in store.contract.arrays], decoded=False)
    assert all((values[second[:4]] == 0).all() for name, values in data.items() if name != "status")
    assert all(values[~second[:4]].any() for values in data.values())


def test_a_student_may_be_the_teacher(
    random_student: Path, small_photos: Path, tiny_cache_recipe: CacheRecipe, tmp_path: Path
) -> None:
    recipe = msgspec.structs.replace(tiny_cache_recipe, size_px=100)
    teacher = load_teacher(str(random_student), taps=recipe.taps)
    store = build_cache(recipe, small_photos, tmp_path / "store.zarr", teacher).require_complete()
    assert store.contract.recipe["size_px"] == 128  # the nearest multiple of 64
    assert store.teacher["name"] == "delta student mobilevitv2_050 of nobody"
    shapes = {spec.name: spec.shape for spec in store.contract.arrays}
    assert shapes["disparity"] == (128, 128)
    maps = {name: shape[1:] for name, shape in shapes.items() if "/" in name}
    assert maps == {f"features/stride{stride:02d}": (128 // stride,) * 2 for stride in (4, 8, 16, 32)}
    assert (store.read_chunk(0, ["disparity"])["disparity"] >= 0).all()
