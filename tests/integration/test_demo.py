"""The bundled student is what it says, and the demo runs from photos to panel, with the real teacher and without."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from delta import bundled
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
MOST_BYTES = 10_000_000  # a clone and a wheel carry it for everybody


def test_the_bundled_student_and_its_export_are_there_and_small():
    assert bundled.STUDENT.is_file()
    assert bundled.MODEL.is_file()
    assert bundled.STUDENT.stat().st_size + bundled.MODEL.stat().st_size <= MOST_BYTES


def test_the_bundled_export_is_the_bundled_student():
    student, card = load_student(bundled.STUDENT)
    exported = read_model_card(bundled.MODEL)
    assert (exported.fingerprint, exported.encoder) == (card.fingerprint, card.config.encoder)
    assert exported.size_px == (card.size_px, card.size_px)
    photos = [read_photo(photo) for photo in find_photos(bundled.PHOTOS)[:2]]
    report = compare(torch_side(student), onnx_side(bundled.MODEL), photos)
    report.require()
    assert report.n_images == 2


def test_the_demo_starts_from_a_student_of_the_bundled_shape():
    _, card = load_student(bundled.STUDENT)
    recipe = load_recipe(TrainRecipe, "demo")
    assert recipe.init == "bundled"
    assert card.config == recipe.student
    assert card.size_px == recipe.size_px


def test_the_bundled_student_says_who_taught_it_and_how_well_it_agrees():
    _, card = load_student(bundled.STUDENT)
    assert "Depth-Anything-V2-Small" in card.teacher
    assert card.step > 0
    assert card.agreement["n"] > 0
    assert 0 < card.agreement["pearson_r"] <= 1


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
    assert "bundled student, before" in out
    assert "student, distilled here" in out
    assert "the bundled student acted as the teacher" not in err
    stages = ("load the teacher", "cache the teacher's answers", "train the student", "export to ONNX", "see depth")
    assert all(f"── {stage}" in err for stage in stages)
    assert len(list(tmp_path.glob("*/bundle/delta.json"))) == 1


@pytest.mark.slow
def test_the_demo_without_a_teacher_takes_the_bundled_student_and_says_so(tmp_path: Path, python: Callable) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty"), "DELTA_TEACHER": ""}
    out, err = ended(python(DEMO, "demo", "--out", tmp_path / "out", **offline))
    assert_panel(out, tmp_path / "out")
    assert "delta student mobilevitv2_050 of" in out
    assert "the bundled student acted as the teacher" in " ".join(err.split())
    again, second = ended(python(DEMO, "demo", "--out", tmp_path / "out", **offline))
    assert_panel(again, tmp_path / "out")
    assert "resuming at step" in second  # what is done is kept
    assert len(list((tmp_path / "out").glob("*/bundle/delta.json"))) == 1
    assert os.listdir(tmp_path / "out") == [next((tmp_path / "out").glob("*/bundle")).parent.name]
