"""What was written is what is read, whatever the shapes, the chunks and the instant of a cut."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from delta.images import read_photo, to_tensor_layout
from delta.teacher import Teacher
from delta_cache.layout import chunk_file
from delta_cache.reader import Store
from delta_cache.schema import ArraySpec, Contract, Photo, SampleRecord, Status, digest_photos
from delta_cache.verify import verify
from delta_cache.writer import open_or_create, write_chunk
from delta_pipelines.build_cache import build_cache
from delta_pipelines.cache_recipe import CacheRecipe, ViewsRecipe
from delta_pipelines.views import choose_view, cut_view

SPECS = st.lists(
    st.builds(
        ArraySpec,
        name=st.sampled_from(["image", "features/block03", "features/block12", "view", "status"]),
        shape=st.lists(st.integers(1, 4), max_size=3).map(tuple),
        dtype=st.sampled_from(["uint8", "int8", "float16", "float32"]),
        compressor=st.sampled_from(["zstd", "lz4", "none"]),
        level=st.integers(0, 9),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda spec: spec.name,
)


def make_contract(samples: int, chunk_samples: int, arrays: tuple[ArraySpec, ...]) -> Contract:
    return Contract(
        teacher={"name": "nobody"},
        recipe={},
        photos={"count": samples, "list_sha256": digest_photos(photos_of(samples))},
        arrays=arrays,
        chunk_samples=chunk_samples,
        samples=samples,
    )


def photos_of(samples: int) -> list[Photo]:
    return [Photo(path=f"{sample}.jpg", bytes=sample) for sample in range(samples)]


def answers_for(contract: Contract) -> dict[str, np.ndarray]:
    """Random bytes seen as each dtype: NaNs with payloads, infinities and zeros of both signs among the floats."""
    generator = np.random.default_rng(contract.samples)
    arrays = {}
    for spec in contract.arrays:
        shape = (contract.samples, *spec.shape)
        width = np.dtype(spec.dtype).itemsize
        raw = generator.bytes(int(np.prod(shape)) * width)
        arrays[spec.name] = np.frombuffer(raw, spec.dtype).reshape(shape)
    return arrays


def write(store: Store, chunk: int, answers: dict[str, np.ndarray]) -> None:
    members = store.contract.chunk_range(chunk)
    records = tuple(
        SampleRecord(path=f"{sample}.jpg", sha256=f"{sample:064d}", failure="it broke" if sample % 3 == 2 else "")
        for sample in members
    )
    write_chunk(store, chunk, {name: values[members.start : members.stop] for name, values in answers.items()}, records)


@settings(max_examples=20)
@given(samples=st.integers(1, 9), chunk_samples=st.integers(1, 5), arrays=SPECS.map(tuple), data=st.data())
def test_what_is_written_is_read_bit_for_bit_in_whatever_order(
    samples: int, chunk_samples: int, arrays: tuple[ArraySpec, ...], data: st.DataObject
) -> None:
    contract = make_contract(samples, chunk_samples, arrays)
    order = data.draw(st.permutations(range(contract.chunks)))
    answers = answers_for(contract)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.zarr"
        made = open_or_create(path, contract, photos_of(contract.samples), {"by": "a test"})
        assert made.missing_chunks() == sorted(order)
        for chunk in order:
            write(made, chunk, answers)
        assert made.missing_chunks() == []
        store = Store.open(path)
        assert store.contract == contract
        assert store.provenance == {"by": "a test"}
        assert store.photos == photos_of(contract.samples)
        assert_holds(store, answers)
        assert_plain_zarr_holds(path, answers)


def assert_holds(store: Store, answers: dict[str, np.ndarray]) -> None:
    read = [store.read_chunk(chunk, list(answers)) for chunk in range(store.contract.chunks)]
    for name, expected in answers.items():
        values = np.concatenate([chunk[name] for chunk in read])
        assert values.dtype == expected.dtype
        assert values.shape == expected.shape
        assert values.tobytes() == expected.tobytes()
    failed = [sample for sample in range(store.contract.samples) if sample % 3 == 2]
    assert np.flatnonzero(store.status() == Status.FAILED).tolist() == failed
    assert store.failures() == {f"{sample}.jpg": "it broke" for sample in failed}
    assert store.missing_chunks() == []
    assert verify(store, full=True).findings == ()


def assert_plain_zarr_holds(path: Path, answers: dict[str, np.ndarray]) -> None:
    for name, expected in answers.items():
        values = np.asarray(zarr.open_array(str(path / name), mode="r")[...])
        assert values.dtype == expected.dtype
        assert values.tobytes() == expected.tobytes()


class Killed(BaseException):
    """Stands for SIGKILL: no handler may tidy up after it."""


class Guillotine:
    """Lets the first `left` renames pass and kills before the next; whoever would tidy up then is dead already."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        monkeypatch.setattr(os, "replace", self._guard(os.replace))
        monkeypatch.setattr(Path, "unlink", self._unless_dead(Path.unlink))

    def _guard(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise Killed
            return real(*arguments, **options)

        return call

    def _unless_dead(self, real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments, **options: None if self.left < 0 else real(*arguments, **options)


ARRAYS = (
    ArraySpec(name="image", shape=(2, 2), dtype="uint8"),
    ArraySpec(name="features/block03", shape=(3,), dtype="float16"),
    ArraySpec(name="status", shape=(), dtype="uint8"),
)


def write_all(path: Path, contract: Contract, answers: dict[str, np.ndarray]) -> None:
    store = open_or_create(path, contract, photos_of(contract.samples), {})
    for chunk in store.missing_chunks():
        write(store, chunk, answers)
    store.storage.remove_claims()


def test_a_kill_before_any_rename_resumes_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_under: Callable[[Path], dict[str, bytes]]
) -> None:
    contract = make_contract(5, 2, ARRAYS)
    answers = answers_for(contract)
    write_all(tmp_path / "uncut.zarr", contract, answers)
    expected = bytes_under(tmp_path / "uncut.zarr")
    guillotine = Guillotine(monkeypatch)
    kills = 0
    while True:
        path = tmp_path / f"cut-{kills}" / "store.zarr"
        guillotine.left = kills
        try:
            write_all(path, contract, answers)
            break
        except Killed:
            left = bytes_under(path)
            assert sum(name.endswith(".aside") for name in left) == 1  # nobody tidied up
            kills += 1
        if "zarr.json" in left:
            assert_is_part_of_a_store(path, answers)
        guillotine.left = 10**9
        write_all(path, contract, answers)
        assert bytes_under(path) == expected, f"killed before rename {kills}"
        assert_holds(Store.open(path), answers)
    assert kills == len(expected)  # before each file once, and one by one: no file is written twice


def assert_is_part_of_a_store(path: Path, answers: dict[str, np.ndarray]) -> None:
    """Whatever a killed build left is a store, and what it claims to hold it holds."""
    store = Store.open(path)
    missing = store.missing_chunks()
    assert verify(store, full=True).bad_chunks == missing
    for chunk in set(range(store.contract.chunks)) - set(missing):
        members = store.contract.chunk_range(chunk)
        for name, values in store.read_chunk(chunk, list(answers)).items():
            assert values.tobytes() == answers[name][members.start : members.stop].tobytes()


def test_a_new_store_is_there_with_its_root_description_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, replace, seen = tmp_path / "store.zarr", os.replace, []

    def watch(source: Path, target: Path) -> None:
        if target == path / "zarr.json":
            seen.append((target.exists(), sorted(p.name for p in path.iterdir())))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    contract = make_contract(5, 2, ARRAYS)
    open_or_create(path, contract, photos_of(5), {})
    arrays = sorted({spec.name.split("/")[0] for spec in ARRAYS})
    assert seen == [(False, sorted([".claims", *arrays, "photos.jsonl", "zarr.json.aside"]))]
    assert Store.open(path).missing_chunks() == [0, 1, 2]


def test_a_chunk_that_is_written_again_is_unrecorded_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record never stands beside files that it was not made for."""
    contract = make_contract(5, 2, ARRAYS)
    answers = answers_for(contract)
    write_all(tmp_path / "store.zarr", contract, answers)
    store, replace, recorded = Store.open(tmp_path / "store.zarr"), os.replace, []

    def watch(source: Path, target: Path) -> None:
        recorded.append(store.record(1) is not None)
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    write(store, 1, answers)
    assert recorded == [False] * 4
    assert store.record(1) is not None


def test_the_files_of_a_chunk_have_the_names_in_its_record(tmp_path: Path) -> None:
    contract = make_contract(5, 2, ARRAYS)
    write_all(tmp_path / "store.zarr", contract, answers_for(contract))
    for record in Store.open(tmp_path / "store.zarr").records():
        assert list(record.files) == [chunk_file(spec, record.chunk) for spec in ARRAYS]
        assert all((tmp_path / "store.zarr" / name).stat().st_size == size for name, (size, _) in record.files.items())


@settings(max_examples=8)
@given(
    count=st.integers(1, 10),
    chunk_samples=st.integers(1, 11),
    batch_size=st.integers(1, 4),
    seed=st.integers(0, 99),
    views=st.builds(ViewsRecipe, mirrored=st.booleans(), crops=st.integers(0, 2)),
)
def test_what_the_teacher_answered_is_what_the_reader_returns(
    small_photos: Path,
    tiny_cache_recipe: CacheRecipe,
    fake_teacher: Callable[[], Teacher],
    count: int,
    chunk_samples: int,
    batch_size: int,
    seed: int,
    views: ViewsRecipe,
) -> None:
    """Up to the rounding to float16, for any number of photos, views, chunk and batch size."""
    recipe = msgspec.structs.replace(
        tiny_cache_recipe, limit=count, chunk_samples=chunk_samples, batch_size=batch_size, seed=seed, views=views
    )
    with tempfile.TemporaryDirectory() as folder:
        store = build_cache(recipe, small_photos, Path(folder) / "store.zarr", fake_teacher()).require_complete()
        assert store.contract.samples == count * len(views.names)
        names = [spec.name for spec in store.contract.arrays]
        for chunk in range(store.contract.chunks):
            data = store.read_chunk(chunk, names)
            for row, sample in enumerate(store.contract.chunk_range(chunk)):
                read = {name: values[row] for name, values in data.items()}
                photo = store.photos[store.contract.photo_of(sample)].path
                source = read_photo(small_photos / photo)
                name = views.names[store.contract.view_of(sample)]
                view = choose_view(name, photo, source.shape[1], source.shape[0], views, seed)
                assert_is_the_answer(read, cut_view(source, view, 70), fake_teacher())


def assert_is_the_answer(read: dict[str, np.ndarray], view: np.ndarray, teacher: Teacher) -> None:
    import torch

    answer = teacher(torch.from_numpy(to_tensor_layout(view))[None])
    expected = {"image": view, "disparity": answer.disparity, "status": np.uint8(Status.OK)}
    expected |= {f"features/{tap}": value for tap, value in answer.features.items()}
    expected |= {f"attention/{tap}": value for tap, value in answer.attention.items()}
    for name, value in expected.items():
        plain = value[0].half().numpy() if isinstance(value, torch.Tensor) else value
        np.testing.assert_array_equal(read[name], plain, err_msg=name)
    assert read.keys() == expected.keys() | {"view"}
