"""What was written is what is read, whatever the shapes, the chunks and the instant of a cut."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delta.images import read_photo, resize_box, to_tensor_layout
from delta.teacher import Teacher
from delta_cache.reader import Store
from delta_cache.schema import ArraySpec, Contract, Photo, SampleRecord, Status, digest_photos
from delta_cache.writer import CacheWriter, open_writer
from delta_pipelines.build_cache import CacheRecipe, build_cache
from delta_pipelines.views import center_square

SPECS = st.lists(
    st.builds(
        ArraySpec,
        name=st.sampled_from(["image", "features/block03", "features/block12", "view", "status"]),
        shape=st.lists(st.integers(1, 4), max_size=3).map(tuple),
        dtype=st.sampled_from(["uint8", "float16", "float32"]),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda spec: spec.name,
)


def make_contract(samples: int, chunk_samples: int, arrays: tuple[ArraySpec, ...], cname: str = "zstd") -> Contract:
    return Contract(
        teacher={"name": "nobody"},
        recipe={},
        photos={"count": samples, "list_sha256": digest_photos(photos_of(samples))},
        arrays=arrays,
        codec={"cname": cname, "clevel": 1},
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


def write_chunk(writer: CacheWriter, chunk: int, answers: dict[str, np.ndarray]) -> None:
    members = writer.store.contract.chunk_range(chunk)
    records = tuple(
        SampleRecord(path=f"{sample}.jpg", sha256=f"{sample:064d}", failure="it broke" if sample % 3 == 2 else "")
        for sample in members
    )
    writer.write(chunk, {name: values[members.start : members.stop] for name, values in answers.items()}, records)


@settings(max_examples=20)
@given(
    samples=st.integers(1, 9),
    chunk_samples=st.integers(1, 5),
    arrays=SPECS.map(tuple),
    cname=st.sampled_from(["zstd", "lz4"]),
    data=st.data(),
)
def test_what_is_written_is_read_bit_for_bit_in_whatever_order(
    samples: int, chunk_samples: int, arrays: tuple[ArraySpec, ...], cname: str, data: st.DataObject
) -> None:
    contract = make_contract(samples, chunk_samples, arrays, cname)
    order = data.draw(st.permutations(range(contract.chunks)))
    answers = answers_for(contract)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.zarr"
        with open_writer(path, contract, photos_of(contract.samples), {"by": "a test"}) as writer:
            assert writer.pending == sorted(order)
            for chunk in order:
                write_chunk(writer, chunk, answers)
            assert writer.pending == []
        store = Store.open(path)
        assert store.contract == contract
        assert store.provenance == {"by": "a test"}
        assert store.photos == photos_of(contract.samples)
        assert_holds(store, answers)


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
    assert all(store.is_whole(chunk, digests=True) for chunk in range(store.contract.chunks))


class Killed(BaseException):
    """Stands for SIGKILL: no handler may tidy up after it."""


class Guillotine:
    """Lets the first `left` renames pass, of zarr's files and of ours, and kills before the next."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        for owner, name in ((os, "replace"), (os, "rename"), (Path, "replace")):
            monkeypatch.setattr(owner, name, self._guard(getattr(owner, name)))

    def _guard(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self.left <= 0:
                raise Killed
            self.left -= 1
            return real(*arguments, **options)

        return call


ARRAYS = (
    ArraySpec(name="image", shape=(2, 2), dtype="uint8"),
    ArraySpec(name="features/block03", shape=(3,), dtype="float16"),
    ArraySpec(name="status", shape=(), dtype="uint8"),
)


def write_all(path: Path, contract: Contract, answers: dict[str, np.ndarray]) -> None:
    with open_writer(path, contract, photos_of(contract.samples), {}) as writer:
        for chunk in writer.pending:
            write_chunk(writer, chunk, answers)


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
            kills += 1
        if path.is_dir():
            assert_is_part_of_a_store(path, answers)
        guillotine.left = 10**9
        write_all(path, contract, answers)
        assert bytes_under(path) == expected, f"killed before rename {kills}"
        assert_holds(Store.open(path), answers)
    assert kills > 3 * 4  # three chunks of three arrays and a ledger entry, beside the making of the store


def test_a_new_store_appears_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rename, seen = tmp_path / "store.zarr", os.rename, []

    def watch(source: Path, target: Path) -> None:
        seen.append((path.exists(), Store.open(Path(source)).missing_chunks(), Path(target) == path))
        rename(source, target)

    monkeypatch.setattr(os, "rename", watch)
    contract = make_contract(5, 2, ARRAYS)
    write_all(path, contract, answers_for(contract))
    assert seen == [(False, [0, 1, 2], True)]


def assert_is_part_of_a_store(path: Path, answers: dict[str, np.ndarray]) -> None:
    """Whatever a killed build left is a store, and what it claims to hold it holds."""
    store = Store.open(path)
    for chunk in set(range(store.contract.chunks)) - set(store.missing_chunks()):
        assert store.is_whole(chunk, digests=True)
        members = store.contract.chunk_range(chunk)
        for name, values in store.read_chunk(chunk, list(answers)).items():
            assert values.tobytes() == answers[name][members.start : members.stop].tobytes()


@settings(max_examples=8)
@given(
    count=st.integers(1, 10), chunk_samples=st.integers(1, 11), batch_size=st.integers(1, 4), seed=st.integers(0, 99)
)
def test_what_the_teacher_answered_is_what_the_reader_returns(
    small_photos: Path,
    tiny_cache_recipe: CacheRecipe,
    fake_teacher: Callable[[], Teacher],
    count: int,
    chunk_samples: int,
    batch_size: int,
    seed: int,
) -> None:
    """Up to the rounding to float16, for any number of photos, chunk and batch size."""
    recipe = msgspec.structs.replace(
        tiny_cache_recipe, limit=count, chunk_samples=chunk_samples, batch_size=batch_size, seed=seed
    )
    with tempfile.TemporaryDirectory() as folder:
        store = build_cache(recipe, small_photos, Path(folder) / "store.zarr", fake_teacher()).require_complete()
        assert store.contract.samples == count
        names = [spec.name for spec in store.contract.arrays]
        for chunk in range(store.contract.chunks):
            data = store.read_chunk(chunk, names)
            for row, sample in enumerate(store.contract.chunk_range(chunk)):
                read = {name: values[row] for name, values in data.items()}
                assert_is_the_answer(read, small_photos / store.photos[sample].path, fake_teacher())


def assert_is_the_answer(read: dict[str, np.ndarray], photo: Path, teacher: Teacher) -> None:
    import torch

    source = read_photo(photo)
    view = resize_box(source, center_square(source.shape[1], source.shape[0]), 70)
    answer = teacher(torch.from_numpy(to_tensor_layout(view))[None])
    expected = {"image": view, "disparity": answer.disparity, "status": np.uint8(Status.OK)}
    expected |= {f"features/{tap}": value for tap, value in answer.features.items()}
    expected |= {f"attention/{tap}": value for tap, value in answer.attention.items()}
    for name, value in expected.items():
        plain = value[0].half().numpy() if isinstance(value, torch.Tensor) else value
        np.testing.assert_array_equal(read[name], plain, err_msg=name)
    assert read.keys() == expected.keys() | {"view"}
