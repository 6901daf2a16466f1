"""`delta evaluate` as a person calls it: any model beside any other, what is written, what is refused."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from delta import bundled
from delta.bundle import choose_model
from delta.checkpoint import WEIGHTS
from delta.random_teacher import SIZES, Size, random_teacher
from delta_pipelines import depth_models
from delta_pipelines.depth_models import load_models
from delta_pipelines.evaluate_recipe import TeacherView

MODEL = choose_model(bundled.STUDENT)
QUICK = ("--set", "bootstrap=200")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four bundled photos with depth that has something to do with them; not to be changed."""
    root = tmp_path_factory.mktemp("pairs") / "benchmark"
    for index, file in enumerate(sorted(bundled.PHOTOS.glob("*.jpg"))[:4]):
        with Image.open(file) as picture:
            photo = picture.convert("RGB").resize((128, 96))
        gray = np.asarray(photo.convert("L").resize((8, 6)).resize((128, 96)), np.float64)
        rows = np.linspace(9000, 1500, 96)[:, None]
        (root / "rgb").mkdir(parents=True, exist_ok=True)
        (root / "depth").mkdir(exist_ok=True)
        photo.save(root / "rgb" / f"scene{index}.png")
        Image.fromarray((rows + 5 * gray).astype(np.uint16)).save(root / "depth" / f"scene{index}.png")
    return root


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Depth-Anything of random weights, in hub layout."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teacher") / "random-tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", Size(24, 12, 2, (3, 6, 9, 12), (8, 8, 8, 8), 8))
        teacher = random_teacher("tiny", taps=(3, 12), device=torch.device("cpu"))
    teacher._model.save_pretrained(folder)
    return folder


def test_models_of_every_kind_stand_side_by_side(
    delta, pairs, tiny_run, random_student, tiny_bundle, teacher_folder, tmp_path
):
    models = (tiny_run, random_student, MODEL, tiny_bundle, f"the teacher={teacher_folder}")
    out = tmp_path / "report"
    ended = delta("evaluate", *models, pairs, "-o", out, *QUICK, "--set", "teacher.size_px=70", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found == json.loads((out / "evaluation.json").read_text())
    assert (found["protocol"], found["images"], found["skipped"]) == ("pairs", 4, {})
    names = [model["name"] for model in found["models"]]
    assert names == ["run", random_student.parent.name, MODEL.stem, "bundle", "the teacher"]
    kinds = [model["kind"] for model in found["models"]]
    assert kinds == ["run", "checkpoint", "ONNX packed", "ONNX fp32", "teacher"]
    for model in found["models"]:
        for metric, estimate in model["scores"]["affine_disparity"].items():
            assert metric in found["metrics"]
            assert estimate["low"] <= estimate["mean"] <= estimate["high"]
    assert len(found["differences"]) == 5 * 4 / 2
    assert found["recipe"]["bootstrap"] == 200


def test_what_is_written_tells_the_same_as_what_is_printed(delta, pairs, random_student, tmp_path):
    out = tmp_path / "report"
    pair = (f"random={random_student}", f"shipped={MODEL}")
    ended = delta(
        "evaluate", *pair, pairs, "-o", out, *QUICK, "--set", 'alignments=["affine_disparity","median_scale"]'
    )
    assert ended.code == 0, ended.err
    names = ["evaluation.json", "images.csv", "panel_random.png", "panel_shipped.png", "table.md"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert set(map(str, out.iterdir())) <= set(ended.out.split())
    found = json.loads((out / "evaluation.json").read_text())
    with (out / "images.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 2 * 4
    table = (out / "table.md").read_text(encoding="utf-8")
    for model in found["models"]:
        for alignment, scores in model["scores"].items():
            own = [line for line in lines if (line["model"], line["alignment"]) == (model["name"], alignment)]
            assert [line["image"] for line in own] == [f"scene{index}" for index in range(4)]
            for metric in ("abs_rel", "rmse", "delta1"):
                mean = np.mean([float(line[metric]) for line in own])
                assert scores[metric]["mean"] == pytest.approx(mean, rel=1e-12)
            number = f"{scores['abs_rel']['mean']:.4f}"
            assert number in ended.out
            assert number in table
    for name in ("panel_random.png", "panel_shipped.png"):
        with Image.open(out / name) as panel:
            assert panel.width > 3 * 300
            assert np.asarray(panel.convert("L")).std() > 20
    assert "4 images, aligned by median scale" in ended.out
    assert "200 bootstrap draws, seed 0" in table


def test_the_same_command_gives_the_same_bytes_and_takes_away_old_panels(delta, pairs, random_student, tmp_path):
    out = tmp_path / "report"
    command = ("evaluate", f"a={random_student}", f"b={MODEL}", pairs, "-o", out, *QUICK)
    assert delta(*command).code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert delta(*command).code == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert delta("evaluate", f"a={random_student}", pairs, "-o", out, *QUICK).code == 0
    assert not (out / "panel_b.png").exists()


def test_an_exported_student_scores_as_its_run_does(delta, pairs, tmp_path):
    """Same preprocessing on both sides: what differs is that folded weights are rounded to half precision."""
    out = tmp_path / "report"
    ended = delta("evaluate", bundled.STUDENT / WEIGHTS, MODEL, pairs, "-o", out, *QUICK, "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert [model["name"] for model in found["models"]] == [bundled.STUDENT.name, MODEL.stem]
    for metric, difference in found["differences"][0]["scores"]["affine_disparity"].items():
        score = found["models"][0]["scores"]["affine_disparity"][metric]["mean"]
        assert difference["mean"] == pytest.approx(0, abs=1e-3 * max(1, score)), metric


def test_names_are_told_apart_by_file_then_folder_then_number(tmp_path, random_student):
    copies = [tmp_path / place / "student.safetensors" for place in ("a/x", "b/x")]
    for copy in copies:
        copy.parent.mkdir(parents=True)
        shutil.copy(random_student, copy)
    folders = [str(copy.parent) for copy in copies]
    view, cpu = TeacherView(), torch.device("cpu")
    assert [model.name for model in load_models(folders, view, cpu)] == ["a/x", "b/x"]
    twice = [model.name for model in load_models([folders[0], folders[0]], view, cpu)]
    assert twice == ["a/x (1)", "a/x (2)"]
    assert [model.name for model in load_models([f"mine={folders[0]}", folders[1]], view, cpu)] == ["mine", "x"]


def test_a_teacher_sees_whole_patches_with_the_photos_aspect_and_a_square_where_told(teacher_folder, monkeypatch):
    shown = []
    asked = depth_models.to_tensor_layout
    monkeypatch.setattr(depth_models, "to_tensor_layout", lambda image: shown.append(image.shape[:2]) or asked(image))
    photo = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    for resize in ("short_side", "square"):
        (model,) = load_models([str(teacher_folder)], TeacherView(size_px=70, resize=resize), torch.device("cpu"))
        assert model.disparity(photo).shape == (48, 64)
    assert shown == [(70, 98), (70, 70)]  # 93.3 is nearest to seven patches


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("{pairs}",), "{pairs} alone is not enough: a model is missing"),
        (("nothing", "{pairs}"), "there is no model nothing"),
        (("{pairs}", "{pairs}"), "{pairs} is no model: neither a run, a checkpoint, an ONNX file, a bundle nor"),
        (("{onnx}", "{pairs}/none"), "there is no data at {pairs}/none"),
        (("{onnx}", "{pairs}", "--set", "protocol=sintel"), "recipe evaluate: Invalid enum value 'sintel'"),
        (("{onnx}", "{pairs}", "--set", 'alignments=["affine"]'), "recipe evaluate: Invalid enum value 'affine'"),
        (("{onnx}", "{pairs}", "--set", "alignment=median_scale"), "recipe evaluate: there is no key alignment"),
        (("{onnx}", "{pairs}", "-o", "{pairs}"), "{pairs} is not empty and no evaluation's folder"),
        (("{onnx}", "{pairs}", "-o", "{onnx}"), "{onnx} is not empty and no evaluation's folder"),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence(delta, pairs, tmp_path, arguments, error, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = {"pairs": pairs, "onnx": MODEL}
    ended = delta("evaluate", *(word if "[" in word else word.format(**words) for word in arguments))
    assert ended.complaint().startswith(error.format(**words))
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_of_a_size_that_is_no_whole_patches_is_refused(delta, pairs, teacher_folder, tmp_path):
    ended = delta("evaluate", teacher_folder, pairs, "-o", tmp_path / "o", "--set", "teacher.size_px=100")
    assert ended.complaint() == "the teacher's side is a multiple of 14 px, not 100"


def test_nan_ends_with_3_after_everything_else_was_written(delta, pairs, random_student, tmp_path):
    state = load_file(random_student)
    name = next(key for key in state if key.startswith("decoder") and key.endswith("weight"))
    state[name] = state[name] * float("nan")
    with safe_open(random_student, framework="pt") as file:
        metadata = file.metadata()
    save_file(state, tmp_path / "broken.safetensors", metadata=metadata)
    ended = delta("evaluate", tmp_path / "broken.safetensors", MODEL, pairs, "-o", tmp_path / "out", *QUICK)
    assert ended.code == 3
    assert "broken answers 12288 of 12288 pixels of scene0 with NaN or infinity" in ended.err
    assert "broken answers 12288" in ended.out
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [bool(model["failure"]) for model in found["models"]] == [True, False]
    assert "failed: answers" in (tmp_path / "out" / "table.md").read_text()
    assert not (tmp_path / "out" / "panel_broken.png").exists()


def test_left_out_images_are_said_counted_and_named(delta, pairs, random_student, tmp_path):
    data = Path(shutil.copytree(pairs, tmp_path / "data"))
    (data / "rgb" / "scene1.png").write_bytes(b"no photo")
    Image.fromarray(np.zeros((96, 128), np.uint16)).save(data / "depth" / "scene2.png")
    ended = delta("evaluate", random_student, data, "-o", tmp_path / "out", *QUICK)
    assert ended.code == 0, ended.err
    assert "left out scene1: it is not an image in a known format" in ended.err
    assert "left out 2 of 4: scene1: it is not an image" in ended.out
    assert "2 images, aligned by" in ended.out
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert list(found["skipped"]) == ["scene1", "scene2"]


def test_fidelity_of_a_run_to_another_run_as_teacher(delta, pairs, tiny_run, tmp_path):
    """Multi-stage distillation: a Delta run stands where a teacher is asked for."""
    command = ("evaluate", tiny_run, MODEL, pairs / "rgb", "--teacher", tiny_run, "-o", tmp_path / "o", *QUICK)
    ended = delta(*command, "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert (found["protocol"], found["images"]) == ("fidelity", 4)
    itself, other = (model["scores"]["affine_disparity"]["delta1"]["mean"] for model in found["models"])
    assert itself == pytest.approx(1)
    assert other < 0.999
    assert "to run, live" in found["notes"][0]


def test_a_bundle_is_evaluated_by_its_first_file(tiny_bundle):
    (model,) = load_models([str(tiny_bundle)], TeacherView(), torch.device("cpu"))
    assert (model.name, model.kind) == ("bundle", "ONNX fp32")
    (file,) = load_models([str(choose_model(tiny_bundle, "int8"))], TeacherView(), torch.device("cpu"))
    assert (file.name, file.kind) == ("depth_64x128_int8", "ONNX int8")
