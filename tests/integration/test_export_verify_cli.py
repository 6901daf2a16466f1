"""export, verify and predict as a person calls them: what is written, what is printed, what is refused."""

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from delta.checkpoint import load_student, save_student
from delta.predict import DepthPredictor, load_disparity_png16
from delta_pipelines import export_model as job

HEAVY = {"torch", "torchvision", "timm", "transformers", "onnx", "onnxscript"}
REPORT_LOADED = """
import json, sys
from delta_pipelines.cli import main
try:
    main()
finally:
    print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})), file=sys.stderr)
"""


def complaint(ended) -> str:
    assert ended.code == 2, ended.err
    assert ended.out == ""
    assert "Traceback" not in ended.err
    error, hint = ended.err.split("error:", 1)[1].split("hint:")
    assert error.strip()
    assert hint.strip()
    return error.strip()


def strict_json(text: str) -> dict:
    """What any JSON reader reads: NaN and Infinity are no JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def perturbed(model: Path, path: Path, factor: float = 1.01) -> Path:
    """The same export with one weight a little, or not at all, a number of its student's."""
    graph = onnx.load(model)
    largest = max(graph.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    changed = numpy_helper.to_array(largest).copy()
    changed *= factor
    largest.CopyFrom(numpy_helper.from_array(changed, largest.name))
    onnx.save(graph, path)
    return path


@pytest.fixture
def other_run(tmp_path: Path, tiny_run: Path) -> Path:
    """A run of the same student that says it was trained otherwise."""
    student, card = load_student(tiny_run)
    otherwise = msgspec.structs.replace(card, fingerprint="f" * 64)
    save_student(tmp_path / "other" / "student.safetensors", student, otherwise)
    return tmp_path / "other"


def test_export_writes_one_file_that_predicts_and_prints_its_parity_as_json(tiny_run, tiny_export):
    model, out = tiny_export
    report = strict_json(out)
    assert (report["passed"], report["n_images"], report["size_px"]) == (True, 3, [64, 128])
    assert 0 < report["max_relative"] <= report["gate_relative"]
    assert report["file_bytes"] == model.stat().st_size
    assert [entry.name for entry in model.parent.iterdir()] == ["model.onnx"]
    card, predictor = load_student(tiny_run)[1], DepthPredictor.open(model)
    assert predictor.card.size_px == (64, 128)
    assert (predictor.card.fingerprint, predictor.card.teacher) == (card.fingerprint, "noise")
    assert predictor.card.extra["agreement_delta1"] == f"{card.agreement['delta1']:.6g}"


def test_export_without_a_run_says_so(delta, tmp_path):
    ended = delta("export", tmp_path / "none", tmp_path / "model.onnx")
    assert complaint(ended) == f"there is no student at {tmp_path / 'none'}"
    assert "delta train" in ended.err


@pytest.mark.parametrize(
    ("size", "nearest"), [("300x300", "256x256 or 320x320"), ("64x100", "64x64 or 64x128"), ("0x64", "64x64")]
)
def test_export_of_a_size_that_cannot_be_names_the_nearest(delta, tmp_path, tiny_run, few_photos, size, nearest):
    ended = delta("export", tiny_run, tmp_path / "model.onnx", "--photos", few_photos, "--size", size)
    assert complaint(ended) == f"a graph of {size} px cannot be: sides are multiples of 64"
    assert nearest in ended.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", ["big", "256", "256x", "-64x64", "64x64x3", "6.4x64"])
def test_export_of_what_is_no_size_says_how_to_write_one(delta, tmp_path, tiny_run, few_photos, size):
    ended = delta("export", tiny_run, tmp_path / "model.onnx", "--photos", few_photos, f"--size={size}")
    assert complaint(ended) == f"{size!r} is not a size"
    assert "HEIGHTxWIDTH" in ended.err


def test_export_onto_a_folder_says_so(delta, tmp_path, tiny_run, few_photos):
    error = complaint(delta("export", tiny_run, tmp_path, "--photos", few_photos))
    assert error == f"{tmp_path} is a folder, not a file"


def test_export_without_a_usable_photo_writes_nothing(delta, tmp_path, tiny_run):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "broken.jpg").write_bytes(b"no photo")
    error = complaint(delta("export", tiny_run, tmp_path / "model.onnx", "--photos", photos))
    assert error.startswith(f"no photo at {photos} can be used; {photos / 'broken.jpg'}: ")
    assert not (tmp_path / "model.onnx").exists()


def test_export_of_a_file_that_is_not_the_student_fails_and_leaves_what_was_there(
    delta, tmp_path, tiny_run, tiny_model, few_photos, monkeypatch
):
    model = tmp_path / "model.onnx"
    model.write_bytes(b"the former model")
    sizes = []

    def export_badly(_student: object, path: Path, size_px: tuple[int, int], _metadata: object) -> None:
        sizes.append(size_px)
        perturbed(tiny_model, path)

    monkeypatch.setattr(job, "export_onnx", export_badly)
    ended = delta("export", tiny_run, model, "--photos", few_photos)
    assert sizes == [(64, 64)]  # as trained, where no size is asked for
    assert ended.code == 3
    assert "the ONNX file is not the student" in ended.err
    assert "Traceback" not in ended.err
    assert model.read_bytes() == b"the former model"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]


def test_verify_of_an_export_passes_as_table_and_as_json(delta, tiny_run, tiny_model, few_photos):
    ended = delta("verify", tiny_model, tiny_run, few_photos)
    assert ended.code == 0
    assert "passed" in ended.out
    assert "max relative error" in ended.out
    ended = delta("verify", tiny_model, tiny_run, few_photos, "--json")
    assert ended.code == 0
    report = strict_json(ended.out)
    assert report["passed"]
    assert len(report["images"]) == report["n_images"] == 3


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_verify_of_a_file_that_is_not_the_student_ends_with_3_and_still_reports(
    delta, tmp_path, tiny_run, tiny_model, few_photos, factor
):
    model = perturbed(tiny_model, tmp_path / "model.onnx", factor)
    ended = delta("verify", model, tiny_run, few_photos, "--json")
    assert ended.code == 3
    assert "the ONNX file is not the student" in ended.err
    assert "the gate is 1e-05" in ended.err
    report = strict_json(ended.out)
    assert not report["passed"]
    assert report["max_relative"] is None if np.isnan(factor) else report["max_relative"] > report["gate_relative"]
    assert "failed" in delta("verify", model, tiny_run, few_photos).out


def test_verify_with_another_run_says_whose_the_model_is(delta, tiny_run, tiny_model, other_run, few_photos):
    error = complaint(delta("verify", tiny_model, other_run, few_photos))
    ours = load_student(tiny_run)[1].fingerprint
    assert error == f"{tiny_model} was exported from training {ours[:12]}, {other_run} is training {'f' * 12}"


@pytest.mark.parametrize("missing", ["model", "run", "photos"])
def test_verify_without_one_of_the_three_names_it(delta, tmp_path, tiny_run, tiny_model, few_photos, missing):
    paths = {"model": tiny_model, "run": tiny_run, "photos": few_photos} | {missing: tmp_path / "none"}
    error = complaint(delta("verify", paths["model"], paths["run"], paths["photos"]))
    assert error.startswith("there is no ")
    assert str(tmp_path / "none") in error


def foreign_onnx(path: Path) -> Path:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 64, 64]) for name in ("image", "disparity")]
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["disparity"])], "foreign", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def text_named_onnx(path: Path) -> Path:
    path.write_text("weights, honestly")
    return path


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (foreign_onnx, "is ONNX, but no export of Delta's"),
        (text_named_onnx, "is damaged or not an ONNX model"),
        (lambda path: path, "there is no model"),
    ],
)
@pytest.mark.parametrize("command", ["predict", "verify"])
def test_a_model_that_is_not_deltas_is_refused(delta, tmp_path, tiny_run, few_photos, make, named, command):
    model = make(tmp_path / "model.onnx")
    rest = {"predict": (few_photos, "-o", tmp_path / "out"), "verify": (tiny_run, few_photos)}[command]
    error = complaint(delta(command, model, *rest))
    assert named in error
    assert str(model) in error
    assert not (tmp_path / "out").exists()


def test_predict_on_a_folder_without_photos_says_what_was_looked_for(delta, tmp_path, tiny_model):
    (tmp_path / "notes.txt").write_text("no photo")
    error = complaint(delta("predict", tiny_model, tmp_path, "-o", tmp_path / "out"))
    assert error.startswith(f"no photos in {tmp_path}: looked for .jpg")
    error = complaint(delta("predict", tiny_model, tmp_path / "none", "-o", tmp_path / "out"))
    assert error == f"there is no folder {tmp_path / 'none'}"


def test_predict_with_a_colormap_that_does_not_exist_names_those_that_do(delta, tmp_path, tiny_model, few_photos):
    ended = delta("predict", tiny_model, few_photos, "-o", tmp_path / "out", "--colormap", "jet")
    assert complaint(ended) == "there is no colormap 'jet'"
    assert "spectral, inferno, viridis, gray" in ended.err
    assert not (tmp_path / "out").exists()


def test_predict_writes_panel_png16_and_npy_at_the_size_of_each_photo(delta, tmp_path, tiny_model):
    photos, out = tmp_path / "photos", tmp_path / "out"
    (photos / "below").mkdir(parents=True)
    rng = np.random.default_rng(0)
    sizes = {"wide.png": (131, 57), "below/tall.jpg": (40, 90)}
    for name, size in sizes.items():
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(photos / name)
    (photos / "broken.png").write_bytes(b"no photo")
    ended = delta("predict", tiny_model, photos, "-o", out, "--png16", "--npy")
    assert ended.code == 0
    assert "broken.png" in ended.err.replace("\n", "")  # a long path is broken at the edge
    assert sorted(ended.out.split()) == sorted(map(str, out.rglob("*_depth.png")))
    assert len(list(out.rglob("*_depth.png"))) == 2
    for name, (width, height) in sizes.items():
        target = out / Path(name).with_suffix("")
        disparity = np.load(target.with_name(f"{target.name}_disparity.npy"))
        assert (disparity.shape, disparity.dtype) == ((height, width), np.float32)
        expected = DepthPredictor.open(tiny_model).predict(photos / name)
        np.testing.assert_array_equal(disparity, expected)
        png = target.with_name(f"{target.name}_disparity.png")
        with Image.open(png) as picture:
            assert (picture.size, picture.mode) == ((width, height), "I;16")
        step = np.ptp(disparity) / 65535
        np.testing.assert_allclose(load_disparity_png16(png), disparity, atol=step)
        with Image.open(target.with_name(f"{target.name}_depth.png")) as panel:
            assert panel.width > 2 * width  # photo and depth side by side


def test_predict_of_one_photo_writes_one_panel_only(delta, tmp_path, tiny_model, few_photos):
    photo = next(few_photos.glob("*.png"))
    ended = delta("predict", tiny_model, photo, "-o", tmp_path, "--colormap", "gray")
    assert ended.code == 0
    assert [entry.name for entry in tmp_path.iterdir()] == [f"{photo.stem}_depth.png"]


def test_predict_needs_neither_torch_nor_transformers_nor_onnx(tmp_path, tiny_model, few_photos, python):
    process = python(REPORT_LOADED, "predict", tiny_model, few_photos, "-o", tmp_path / "out", "--png16", "--npy")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert len(out.split()) == 3
    loaded = set(json.loads(err.splitlines()[-1]))
    assert {"onnxruntime", "numpy", "delta"} <= loaded
    assert not loaded & HEAVY


def test_a_student_copied_elsewhere_is_exported_from_there(delta, tmp_path, tiny_run, tiny_model, few_photos):
    copy = Path(shutil.copy(tiny_run / "student.safetensors", tmp_path / "moved.safetensors"))
    assert delta("verify", tiny_model, copy, few_photos).code == 0
