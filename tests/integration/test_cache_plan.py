"""`delta cache plan` measures before anything is spent, and `info` holds what happened against it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from delta.errors import DeltaError
from delta.teacher import Teacher
from delta_pipelines.build_cache import build_cache, plan_store
from delta_pipelines.cache_recipe import CacheRecipe, ViewsRecipe
from delta_pipelines.chunk_timing import STAGES
from delta_pipelines.forecast import read_forecast
from delta_pipelines.plan_cache import Plan, plan_cache
from delta_pipelines.report_cache import store_facts

FakeTeacher = Callable[..., Teacher]
CPU = torch.device("cpu")
PHOTOS = 12


@pytest.fixture(scope="module")
def photos(photo_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photo_folder(tmp_path_factory.mktemp("plan") / "photos", count=PHOTOS)


class Planned(msgspec.Struct, frozen=True):
    """A plan, the store it was made for, and the facts of that store when it was built."""

    plan: Plan
    store: Path
    facts: dict[str, Any]


@pytest.fixture(scope="module")
def planned(
    photos: Path, compact_cache_recipe: CacheRecipe, fake_teacher: FakeTeacher, tmp_path_factory: Any
) -> Planned:
    store = tmp_path_factory.mktemp("planned") / "new" / "store.zarr"
    plan = plan_cache(compact_cache_recipe, photos, store, fake_teacher(), device=CPU)
    beside = sorted(path.name for path in store.parent.iterdir())
    assert beside == ["store.zarr.plan.json"]  # nothing else: no store yet, no scratch files
    built = build_cache(compact_cache_recipe, photos, store, fake_teacher())
    return Planned(plan, store, store_facts(built))


def test_a_plan_counts_what_the_store_will_have(planned: Planned) -> None:
    plan, contract = planned.plan, planned.facts["contract"]
    assert (plan.photos, plan.samples) == (PHOTOS, 3 * PHOTOS)
    chunk_files = [path for path in planned.store.rglob("c.*") if "basis" not in path.parts]
    assert plan.files == len(chunk_files) + len(list((planned.store / "ledger").iterdir()))
    assert plan.bytes_per_photo == pytest.approx(plan.bytes / PHOTOS, rel=0.01)
    assert contract["samples"] == plan.samples
    # Chunks of the sample are as small as a batch, which packs a little worse; photos here are tiny and differ much.
    assert plan.bytes == pytest.approx(sum(planned.facts["bytes"].values()), rel=0.3)


def test_a_plan_holds_rates_that_fit_together(planned: Planned) -> None:
    plan = planned.plan
    assert plan.seconds == pytest.approx(plan.samples / plan.samples_per_s + plan.fit_s)
    assert plan.samples_per_s > 0
    assert plan.teacher_per_s >= plan.samples_per_s  # alone it is no slower than with all else around it
    assert min(plan.decode_per_s, plan.read_per_s, plan.disk_bytes_per_s) > 0
    assert plan.free_bytes > 0
    assert plan.break_even_epochs > 0
    assert plan.meter.shares.keys() == set(STAGES)
    assert plan.meter.bottleneck == max(plan.meter.shares, key=lambda stage: plan.meter.shares[stage])
    assert all(0 < share <= 1 for share in plan.meter.shares.values())
    assert plan.device == f"cpu, {os.cpu_count()} CPU cores"
    assert plan.measured_samples == 3 * PHOTOS  # all of them: fewer than would be taken at most
    assert plan.fit_s > 0


def test_a_build_takes_the_forecast_along_and_info_holds_it_against_what_happened(planned: Planned) -> None:
    forecast = planned.facts["provenance"]["forecast"]
    assert forecast == msgspec.json.decode(msgspec.json.encode(planned.plan))
    compared = planned.facts["forecast"]
    assert compared.keys() == {"seconds", "gigabytes"}
    happened = {
        "seconds": planned.facts["build"]["seconds"] + planned.facts["provenance"]["fit_s"],
        "gigabytes": sum(planned.facts["bytes"].values()) / 1e9,
    }
    for name, row in compared.items():
        assert row["planned"] == forecast["seconds" if name == "seconds" else "bytes"] / (
            1 if name == "seconds" else 1e9
        )
        assert row["happened"] == pytest.approx(happened[name])
        assert row["off"] == pytest.approx(row["planned"] / row["happened"] - 1)


def test_info_shows_the_comparison_once_the_store_is_complete(
    planned: Planned, delta: Callable[..., Any], tmp_path: Path
) -> None:
    facts = json.loads(delta("cache", "info", planned.store, "--json").out)
    assert facts["forecast"].keys() == {"seconds", "gigabytes"}
    assert all(row.keys() == {"planned", "happened", "off"} for row in facts["forecast"].values())
    table = delta("cache", "info", planned.store).out
    assert "forecast" in table
    assert "gigabytes" in table
    half = Path(shutil.copytree(planned.store, tmp_path / "half.zarr"))
    (half / "ledger" / "00000003.json").unlink()
    assert json.loads(delta("cache", "info", half, "--json").out)["forecast"] == {}


def test_a_forecast_of_another_contract_is_left_alone(
    planned: Planned, photos: Path, compact_cache_recipe: CacheRecipe, fake_teacher: FakeTeacher, tmp_path: Path
) -> None:
    _, contract = plan_store(compact_cache_recipe, photos, fake_teacher())
    assert read_forecast(planned.store, contract)["forecast"]["photos"] == PHOTOS
    other = msgspec.structs.replace(compact_cache_recipe, views=ViewsRecipe())
    _, contract = plan_store(other, photos, fake_teacher())
    assert read_forecast(planned.store, contract) == {}
    for content in (b"", b"{", b"[]", b'{"fingerprint": 3}'):
        (tmp_path / "s.zarr.plan.json").write_bytes(content)
        assert read_forecast(tmp_path / "s.zarr", contract) == {}
    assert read_forecast(tmp_path / "nowhere" / "s.zarr", contract) == {}


def test_a_plan_without_a_store_writes_nothing(
    photos: Path,
    tiny_cache_recipe: CacheRecipe,
    fake_teacher: FakeTeacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = plan_cache(tiny_cache_recipe, photos, None, fake_teacher(), device=CPU)
    assert plan.fit_s == 0
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_a_plan_for_people_and_for_machines(
    delta: Callable[..., Any], random_student: Path, small_photos: Path, tmp_path: Path
) -> None:
    settings = ("--set", "size_px=64", "--set", "batch_size=2", "--device", "cpu")
    command = ("cache", "plan", small_photos, tmp_path / "store.zarr", "--teacher", random_student, *settings)
    ended = delta(*command)
    assert ended.code == 0, ended.err
    for words in ("plan for 10 samples of 10 photos", "bottleneck", "-bound (", "pays for itself", "free", "GB in"):
        assert words in ended.out
    facts = json.loads(delta(*command, "--json").out)
    assert facts.keys() == set(Plan.__struct_fields__)
    assert delta("cache", "build", small_photos, tmp_path / "store.zarr", *command[4:]).code == 0
    assert json.loads(delta("cache", "info", tmp_path / "store.zarr", "--json").out)["forecast"].keys() == {
        "seconds",
        "gigabytes",
    }


def test_a_plan_of_a_folder_without_a_readable_photo_is_one_clear_error(
    tiny_cache_recipe: CacheRecipe, fake_teacher: FakeTeacher, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(DeltaError, match=r"^none of the 1 photos can be used"):
        plan_cache(tiny_cache_recipe, tmp_path / "photos", tmp_path / "s.zarr", fake_teacher(), device=CPU)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_forecast_of_a_few_hundred_photos_is_near_what_happens_in_bytes(
    photo_folder: Callable[..., Path], random_student: Path, tmp_path: Path
) -> None:
    """Bytes alone: a test may run beside others, which time would tell and bytes do not."""
    from delta.teacher import load_teacher
    from delta_pipelines.recipe import load_recipe

    folder = photo_folder(tmp_path / "photos", count=300)
    recipe = load_recipe(CacheRecipe, "cache", ["size_px=128"])
    teacher = load_teacher(str(random_student))
    plan_cache(recipe, folder, tmp_path / "store.zarr", teacher, device=CPU)
    facts = store_facts(build_cache(recipe, folder, tmp_path / "store.zarr", teacher))
    assert abs(facts["forecast"]["gigabytes"]["off"]) < 0.15
