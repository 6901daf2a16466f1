"""A ladder trains what its rungs say and nothing else, asks its teacher once, keeps what is done, and tells noise."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from delta import teacher as teachers
from delta.checkpoint import StudentCard, load_student, save_student
from delta.errors import DeltaError
from delta.images import read_photo
from delta.remembering_teacher import RememberingTeacher
from delta.student import StudentConfig, build_student
from delta.teacher import load_teacher
from delta_pipelines.evaluate_recipe import EvaluateRecipe
from delta_pipelines.ladder import Climbed, Step, climb, gains, noise
from delta_pipelines.ladder_recipe import LadderRecipe
from delta_pipelines.ladder_report import table, write_ladder
from delta_pipelines.open_benchmark import open_benchmark
from delta_pipelines.recipe import load_recipe
from delta_pipelines.train_recipe import TrainRecipe

RECIPE = """
start = "smoke"
cumulative = {cumulative}
seeds = [0, 1]
budget = ["epochs=1", "batch_size=3", "feed.holdout=0.25"]
store = ["size_px=64", "attention.kind=none", "features.fit_photos=8", "chunk_samples=4"]

[[rungs]]
name = "as it is"

[[rungs]]
name = "with features"
train = ["loss.features=0.5"]

[[rungs]]
name = "float16"
cache = ["features.kind=float16"]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., LadderRecipe]:
    def write(*, cumulative: bool = True) -> LadderRecipe:
        path = tmp_path / "ladder.toml"
        path.write_text(RECIPE.format(cumulative=str(cumulative).lower()), encoding="utf-8")
        return load_recipe(LadderRecipe, str(path))

    return write


@pytest.fixture
def small_teacher(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = StudentConfig(encoder="mobilevitv2_050", width=16)
    card = StudentCard(config=config, size_px=64, teacher="nobody", fingerprint="0")
    return save_student(tmp_path / "teacher.safetensors", build_student(config), card)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for folder, suffix in (("rgb", "jpg"), ("depth", "png")):
        (tmp_path / "pairs" / folder).mkdir(parents=True)
        for index in range(3):
            depth = np.asarray(Image.fromarray(rng.integers(900, 4000, (4, 4), dtype=np.int32)).resize((64, 64)))
            pixels = depth.astype(np.uint16) if folder == "depth" else (depth / 16).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pairs" / folder / f"{index}.{suffix}")
    return tmp_path / "pairs"


def test_the_shipped_ladder_ends_at_delta_xs_and_changes_something_at_every_rung() -> None:
    ladder = load_recipe(LadderRecipe, "ladder")
    trainings = [ladder.training(index, seed=0).decisive() for index in range(len(ladder.rungs))]
    assert trainings[-1] == load_recipe(TrainRecipe, "delta-xs", list(ladder.budget)).decisive()
    assert all(before != after for before, after in pairwise(trainings))


def test_the_shipped_curve_changes_nothing_but_the_features_of_the_store() -> None:
    curve = load_recipe(LadderRecipe, "curve")
    trainings = [curve.training(index, seed=0).decisive() for index in range(len(curve.rungs))]
    stores = {repr(curve.caching(index)) for index in range(len(curve.rungs))}
    assert len(stores) == len(curve.rungs)
    for training in trainings[1:]:
        assert training == trainings[1]
    assert trainings[0] == {**trainings[1], "loss": {**trainings[1]["loss"], "features": 0.0}}


def test_a_ladder_is_climbed_once_and_resumed(
    recipe: Callable, small_teacher: Path, pairs: Path, photo_folder: Callable, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    photos, asked = photo_folder(tmp_path / "photos", count=12, size=(90, 70)), []
    answer = teachers.StudentTeacher.__call__
    monkeypatch.setattr(
        teachers.StudentTeacher, "__call__", lambda self, image: (asked.append(len(image)), answer(self, image))[1]
    )
    ladder, device = recipe(), torch.device("cpu")
    benchmark = open_benchmark(pairs, EvaluateRecipe(), None, device)
    arguments = (ladder, str(photos), benchmark, tmp_path / "out")
    steps = climb(*arguments, teacher=str(small_teacher), device=device)
    assert sum(asked) == 12 + 1  # each photo once, for two stores, and the gray image that tells the shapes
    assert [step.name for step in steps] == ["as it is", "with features", "float16"]
    assert [(run.run, run.seed) for run in steps[1].runs] == [("01-0", 0), ("01-1", 1)]
    assert steps[0].bytes_per_photo == steps[1].bytes_per_photo < steps[2].bytes_per_photo
    assert load_student(tmp_path / "out/runs/02-1")[1].recipe["loss"]["features"] == 0.5
    assert len({run.abs_rel for step in steps for run in step.runs}) > 3
    assert climb(*arguments, teacher="nobody/there", device=device) == steps  # nothing is left for a teacher to do
    report = write_ladder(ladder, steps, benchmark.title, tmp_path / "out")
    assert "| 2 | float16 |" in report.read_text(encoding="utf-8")
    assert json.loads((tmp_path / "out/ladder.json").read_bytes())["steps"][0]["name"] == "as it is"
    assert all(read_photo(tmp_path / "out" / name).shape[1] > 800 for name in ("abs_rel.png", "fidelity_delta1.png"))


def test_a_remembering_teacher_answers_as_the_teacher_does(small_teacher: Path) -> None:
    plain = load_teacher(str(small_teacher))
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found, expected = RememberingTeacher(plain)(images), plain(images)
    assert torch.allclose(found.disparity, expected.disparity, atol=1e-5)
    assert found.features.keys() == expected.features.keys()


def step(name: str, *abs_rels: float) -> Step:
    runs = tuple(
        Climbed(run=name, seed=seed, samples=1, fidelity_r=0.5, fidelity_delta1=0.5, abs_rel=abs_rel, delta1=0.5)
        for seed, abs_rel in enumerate(abs_rels)
    )
    return Step(name=name, runs=runs, bytes_per_photo=1000, changes=())


def test_a_change_pays_only_beyond_what_seeds_do(recipe: Callable) -> None:
    steps = [step("a", 0.30, 0.32), step("b", 0.29, 0.31), step("c", 0.20, 0.22)]
    assert noise(steps, "abs_rel") == pytest.approx(0.0002**0.5)
    assert gains(steps, "abs_rel") == pytest.approx([-0.01, -0.09])
    assert [row[-1] for row in table(recipe(), steps)] == ["", "-0.010, does not pay", "-0.090, pays"]
    alone = [step("a", 0.30), step("b", 0.29)]
    assert noise(alone, "abs_rel") is None
    assert [row[-1] for row in table(recipe(), alone)] == ["", "-0.010"]
    assert [row[-1] for row in table(recipe(cumulative=False), steps)] == ["", "", ""]


def test_another_ladder_in_the_same_folder_is_refused(
    recipe: Callable, small_teacher: Path, pairs: Path, photo_folder: Callable, tmp_path: Path
) -> None:
    photos, device = photo_folder(tmp_path / "photos", count=12, size=(90, 70)), torch.device("cpu")
    benchmark = open_benchmark(pairs, EvaluateRecipe(), None, device)
    first = msgspec.structs.replace(recipe(), seeds=(0,), rungs=recipe().rungs[:1])
    other = msgspec.structs.replace(first, budget=(*first.budget, "loss.raw=0.2"))
    climb(first, str(photos), benchmark, tmp_path / "out", teacher=str(small_teacher), device=device)
    with pytest.raises(DeltaError, match=r"loss\.raw"):
        climb(other, str(photos), benchmark, tmp_path / "out", teacher=str(small_teacher), device=device)
