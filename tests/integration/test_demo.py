"""The bundled student is what it says, and the demo runs from photos to panel, with the real teacher and without."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from delta import bundled
from delta.bundle import choose_model
from delta.checkpoint import load_student
from delta.images import find_photos, read_photo
from delta.onnx_model import read_model_card
from delta.parity import compare, onnx_side, torch_side
from delta_pipelines.recipe import load_recipe
from delta_pipelines.train_recipe import TrainRecipe

DEMO = """
from delta_pipelines.cli import main
main()
"""
MOST_BYTES = {"delta-xs": 9_000_000, "delta-s": 31_000_000}  # a clone and a wheel carry them for everybody


@pytest.fixture(params=bundled.STUDENTS)
def shipped(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_shipped_student_is_small(shipped: str) -> None:
    files = list(bundled.STUDENTS[shipped].iterdir())
    assert sum(file.stat().st_size for file in files) <= MOST_BYTES[shipped]
    if shipped == "delta-xs":
        assert all(file.stat().st_size <= 6_000_000 for file in files)


def test_a_shipped_export_is_the_shipped_student(shipped: str) -> None:
    student, card = load_student(Path(shipped))
    model = choose_model(Path(shipped))
    exported = read_model_card(model)
    assert (exported.fingerprint, exported.encoder) == (card.fingerprint, card.config.encoder)
    photos = [read_photo(photo) for photo in find_photos(bundled.PHOTOS)[:2]]
    report = compare(torch_side(student), onnx_side(model), photos)
    report.require()
    assert report.n_images == 2


def test_the_demo_starts_from_a_student_of_the_recipes_shape() -> None:
    recipe = load_recipe(TrainRecipe, "demo")
    _, card = load_student(Path(recipe.init))
    assert card.config == recipe.student
    assert card.size_px == recipe.size_px


def test_a_shipped_student_comes_from_the_recipe_of_its_name_and_says_how_well_it_agrees(shipped: str) -> None:
    _, card = load_student(Path(shipped))
    assert card.config == load_recipe(TrainRecipe, shipped).student
    assert "Depth-Anything-V2-Small" in card.teacher
    assert card.step > 0
    assert card.agreement["n"] > 0
    assert 0.5 < card.agreement["pearson_r"] <= 1


def test_what_lies_on_the_disk_wins_over_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert bundled.find(Path("delta-xs")) == bundled.STUDENT
    (tmp_path / "delta-xs").mkdir()
    assert bundled.find(Path("delta-xs")) == Path("delta-xs")


def test_every_bundled_photo_can_be_read_and_has_its_credit():
    photos = find_photos(bundled.PHOTOS)
    credits = (bundled.PHOTOS / "CREDITS.md").read_text(encoding="utf-8")
    assert len(photos) == 12
    assert all(min(read_photo(photo).shape[:2]) >= 256 for photo in photos)
    assert [photo.name for photo in photos if photo.name.split("_")[0] not in credits.lower()] == []


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out, err


def assert_panel(out: str, folder: Path) -> None:
    """The last line names a panel of rows of three pictures that are not blank."""
    panel = Path(out.splitlines()[-1].removeprefix("panel: "))
    assert panel.is_relative_to(folder)
    with Image.open(panel) as picture:
        pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    assert min(pixels.shape[:2]) > 600
    for column in np.array_split(pixels, 3, axis=1):
        assert column.std() > 20


@pytest.mark.slow
def test_the_demo_distills_from_the_real_teacher(tmp_path: Path, teacher_dir: Path, python: Callable) -> None:
    out, err = ended(python(DEMO, "demo", "--out", tmp_path, DELTA_TEACHER=str(teacher_dir)))
    assert_panel(out, tmp_path)
    assert "depth-anything/Depth-Anything-V2-Small-hf, 24.8 M parameters" in out
    assert "delta-xs, before" in out
    assert "student, distilled here" in out
    assert "delta-xs acted as the teacher" not in err
    stages = ("load the teacher", "cache the teacher's answers", "train the student", "export to ONNX", "see depth")
    assert all(f"── {stage}" in err for stage in stages)
    assert len(list(tmp_path.glob("*/bundle/delta.json"))) == 1


@pytest.mark.slow
def test_the_demo_without_a_teacher_takes_the_bundled_student_and_says_so(tmp_path: Path, python: Callable) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty"), "DELTA_TEACHER": ""}
    out, err = ended(python(DEMO, "demo", "--out", tmp_path / "out", **offline))
    assert_panel(out, tmp_path / "out")
    assert "delta student tf_efficientnet_lite0 of" in out
    assert "delta-xs acted as the teacher" in " ".join(err.split())
    again, second = ended(python(DEMO, "demo", "--out", tmp_path / "out", **offline))
    assert_panel(again, tmp_path / "out")
    assert "resuming at step" in second  # what is done is kept
    assert len(list((tmp_path / "out").glob("*/bundle/delta.json"))) == 1
    assert os.listdir(tmp_path / "out") == [next((tmp_path / "out").glob("*/bundle")).parent.name]
