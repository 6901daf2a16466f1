"""export, verify and predict as a person calls them: what is written, what is printed, what is refused."""

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from delta import bundled
from delta.bundle import choose_model
from delta.checkpoint import WEIGHTS, load_student, save_student
from delta.files import file_sha256
from delta.images import find_photos
from delta.predict import DepthPredictor, load_disparity_png16
from delta.receipt import Receipt, read_receipt
from delta_pipelines import export_bundle as job

HEAVY = {"torch", "torchvision", "timm", "transformers", "onnx", "onnxscript"}
REPORT_LOADED = """
import json, sys
from delta_pipelines.cli import main
try:
    main()
finally:
    print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})), file=sys.stderr)
"""


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
def shipped() -> Path:
    """The weights that ship with Delta, which `tiny_bundle` is made of."""
    return bundled.STUDENT


@pytest.fixture
def other_run(tmp_path: Path, shipped: Path) -> Path:
    """A run of the same student that says it was trained otherwise."""
    student, card = load_student(shipped)
    otherwise = msgspec.structs.replace(card, fingerprint="f" * 64)
    save_student(tmp_path / "other" / "student.safetensors", student, otherwise)
    return tmp_path / "other"


FEW = ("--set", "verify_photos=3")
PRECISIONS = ("fp32", "fp16", "int8")


def test_export_writes_a_bundle_that_predicts_and_says_what_it_is(shipped, tiny_export):
    bundle, out = tiny_export
    card = strict_json(out)
    assert card == strict_json((bundle / "delta.json").read_text(encoding="utf-8"))
    names = [f"depth_64x128_{precision}.onnx" for precision in PRECISIONS]
    assert sorted(entry.name for entry in bundle.iterdir()) == sorted(["README.md", "delta.json", *names])
    assert [(model["file"], model["size_px"], model["batch"]) for model in card["models"]] == [
        (name, [64, 128], 1) for name in names
    ]
    for model in card["models"]:
        file = bundle / model["file"]
        assert (model["bytes"], model["sha256"]) == (file.stat().st_size, file_sha256(file))
        (measured,) = model["receipt"]["measured"]
        assert (measured["passed"], measured["n_images"], measured["provider"]) == (True, 3, "CPUExecutionProvider")
        assert read_receipt(file) == msgspec.convert(model["receipt"], Receipt)
    student = load_student(shipped)[1]
    assert (card["teacher"], card["student"]["fingerprint"]) == (student.teacher, student.fingerprint)
    assert card["licence"] == "Apache-2.0"  # that of Depth-Anything-V2-Small
    predictor = DepthPredictor.open(bundle)
    assert (predictor.card.size_px, predictor.card.precision) == ((64, 128), "fp32")
    assert predictor.card.extra["agreement_delta1"] == f"{student.agreement['delta1']:.6g}"


def test_the_readme_of_a_bundle_runs_as_written(tiny_bundle, few_photos, tmp_path, python):
    """Its Python lines are what somebody without Delta has."""
    page = (tiny_bundle / "README.md").read_text(encoding="utf-8")
    (code,) = [part.split("```")[0] for part in page.split("```python\n")[1:]]
    for file in tiny_bundle.glob("*.onnx"):
        assert file.name in page
        shutil.copy(file, tmp_path)
    photo = next(few_photos.rglob("*.png"))
    shutil.copy(photo, tmp_path / "photo.jpg")
    process = python(f"import os; os.chdir({str(tmp_path)!r})\n{code}\nprint(disparity.shape)")
    out, err = process.communicate()
    assert (out.strip(), process.returncode) == ("(64, 128)", 0), err


def test_half_and_int8_files_are_small_and_predict_nearly_the_same(tiny_bundle):
    photo = find_photos(bundled.PHOTOS)[0]
    sizes = {precision: (tiny_bundle / f"depth_64x128_{precision}.onnx").stat().st_size for precision in PRECISIONS}
    assert sizes["fp16"] < 0.55 * sizes["fp32"]
    assert sizes["int8"] < 0.30 * sizes["fp32"]
    expected = DepthPredictor.open(tiny_bundle).predict(photo)
    for precision in ("fp16", "int8"):
        found = DepthPredictor.open(choose_model(tiny_bundle, precision)).predict(photo)
        assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99
        assert not np.array_equal(found, expected)


def test_export_without_a_run_says_so(delta, tmp_path):
    ended = delta("export", tmp_path / "none", tmp_path / "bundle")
    assert ended.complaint() == f"there is no student at {tmp_path / 'none'}"
    assert "delta train" in ended.err


@pytest.mark.parametrize(
    ("size", "nearest"), [("300x300", "256x256 or 320x320"), ("64x100", "64x64 or 64x128"), ("0x64", "64x64")]
)
def test_export_of_a_size_that_cannot_be_names_the_nearest(delta, tmp_path, shipped, few_photos, size, nearest):
    ended = delta("export", shipped, tmp_path / "b", "--photos", few_photos, "--size", "64x64", "--size", size)
    assert ended.complaint() == f"a graph of {size} px cannot be: sides are multiples of 64"
    assert nearest in ended.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", ["big", "256", "256x", "-64x64", "64x64x3", "6.4x64"])
def test_export_of_what_is_no_size_says_how_to_write_one(delta, tmp_path, shipped, few_photos, size):
    ended = delta("export", shipped, tmp_path / "bundle", "--photos", few_photos, f"--size={size}")
    assert ended.complaint() == f"{size!r} is not a size"
    assert "HEIGHTxWIDTH" in ended.err


@pytest.mark.slow  # it tries every convolution alone
def test_an_int8_file_that_cannot_be_small_and_right_is_refused_and_the_others_kept(
    delta, tmp_path, random_student, few_photos
):
    """Random weights answer nearly the same everywhere: in 8 bits little is left of it."""
    arguments = ("--photos", few_photos, "--size", "64x64", "--set", "search_change=0", "--set", "search_photos=1")
    ended = delta("export", random_student, tmp_path / "bundle", *arguments)
    assert ended.code == 3
    assert "depth_64x64_int8.onnx" in ended.err
    assert [path.name for path in sorted((tmp_path / "bundle").glob("*.onnx"))] == [
        "depth_64x64_fp16.onnx",
        "depth_64x64_fp32.onnx",
    ]


def test_export_in_a_precision_that_does_not_exist_names_those_that_do(delta, tmp_path, shipped, few_photos):
    ended = delta("export", shipped, tmp_path / "bundle", "--photos", few_photos, "--precision", "int4")
    assert ended.complaint() == "there is no precision 'int4'"
    assert "fp32, packed, fp16, int8" in ended.err


def test_export_onto_something_else_leaves_it_alone(delta, tmp_path, shipped, few_photos):
    (tmp_path / "thesis.tex").write_text("years of work")
    error = delta("export", shipped, tmp_path, "--photos", few_photos).complaint()
    assert error == f"{tmp_path} holds thesis.tex, which is no part of a bundle"
    error = delta("export", shipped, tmp_path / "thesis.tex", "--photos", few_photos).complaint()
    assert error == f"{tmp_path / 'thesis.tex'} is a file, not a folder"
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_export_without_a_usable_photo_writes_nothing(delta, tmp_path, shipped):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "broken.jpg").write_bytes(b"no photo")
    error = delta("export", shipped, tmp_path / "bundle", "--photos", photos).complaint()
    assert error.startswith(f"no photo at {photos} can be used; {photos / 'broken.jpg'}: ")
    assert not (tmp_path / "bundle").exists()


def test_a_file_that_is_not_the_student_is_not_left_in_the_bundle(
    delta, tmp_path, shipped, tiny_model, few_photos, monkeypatch
):
    sizes = []

    def export_badly(_student: object, path: Path, size_px: tuple[int, int], _metadata: object, **_: object) -> Path:
        sizes.append(size_px)
        return perturbed(tiny_model, path)

    monkeypatch.setattr(job, "export_onnx", export_badly)
    arguments = ("--photos", few_photos, "--precision", "fp32")
    ended = delta("export", shipped, tmp_path / "bundle", *arguments)
    assert sizes == [(256, 256)]  # as trained, where no size is asked for
    assert ended.code == 3
    assert "no file agrees with its student: depth_256x256_fp32.onnx: image" in ended.err
    assert "Traceback" not in ended.err
    assert list((tmp_path / "bundle").iterdir()) == []


def test_a_second_export_takes_the_place_of_the_first(delta, tmp_path, shipped, tiny_bundle, few_photos):
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    ended = delta("export", shipped, bundle, "--photos", few_photos, "--precision", "fp32", "--dynamic-batch")
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[-1] == str(bundle)
    assert sorted(entry.name for entry in bundle.iterdir()) == ["README.md", "delta.json", "depth_256x256_fp32.onnx"]
    predictor = DepthPredictor.open(bundle)
    assert predictor.card.dynamic_batch
    photos = sorted(few_photos.rglob("*.png"))
    together = predictor.predict_batch(photos)
    for photo, disparity in zip(photos, together, strict=True):
        np.testing.assert_allclose(disparity, predictor.predict(photo), rtol=1e-4)


def test_int8_can_be_calibrated_on_a_store(delta, tmp_path, shipped, tiny_store):
    ended = delta(
        "export",
        shipped,
        tmp_path / "bundle",
        "--photos",
        tiny_store,
        "--precision",
        "int8",
        "--size",
        "64x64",
        "--set",
        "search_change=1",
    )
    assert ended.code == 0, ended.err
    card = strict_json((tmp_path / "bundle" / "delta.json").read_text())
    assert card["models"][0]["receipt"]["measured"][0]["n_images"] == 12


def test_verify_of_a_bundle_passes_as_table_and_as_json(delta, shipped, tiny_bundle, few_photos):
    ended = delta("verify", tiny_bundle, shipped, few_photos, *FEW)
    assert ended.code == 0, ended.err
    assert "verification on 3 photos: passed" in ended.out
    assert "as fast as fp32 on this machine" in ended.out or "int8 is not faster than fp32" in ended.out
    ended = delta("verify", tiny_bundle, shipped, few_photos, *FEW, "--json")
    assert ended.code == 0
    report = strict_json(ended.out)
    assert report["passed"]
    assert [row["precision"] for row in report["rows"]] == list(PRECISIONS)
    assert all(len(row["images"]) == row["n_images"] == 3 for row in report["rows"])
    assert all(sum(row["histogram"]) == 3 * 64 * 128 for row in report["rows"])
    assert report["rows"][0]["max_relative"] <= 1e-5 < report["rows"][2]["max_relative"]


def test_verify_writes_pictures_junit_and_json(delta, tmp_path, shipped, tiny_bundle, few_photos):
    ended = delta("verify", tiny_bundle, shipped, few_photos, *FEW, "-o", tmp_path, "--junit", tmp_path / "ci.xml")
    assert ended.code == 0, ended.err
    for name in ("histogram.png", "worst.png"):
        with Image.open(tmp_path / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 10
    assert strict_json((tmp_path / "report.json").read_text())["passed"]
    for name in ("junit.xml", "ci.xml"):
        suite = ElementTree.parse(tmp_path / name).getroot()
        assert (suite.get("tests"), suite.get("failures")) == ("4", "0")
        assert {case.get("classname") for case in suite} >= {"depth_64x128_int8.onnx", "files"}


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_verify_of_a_file_that_is_not_the_student_ends_with_3_and_still_reports(
    delta, tmp_path, shipped, tiny_model, few_photos, factor
):
    model = perturbed(tiny_model, tmp_path / "model.onnx", factor)
    ended = delta("verify", model, shipped, few_photos, *FEW, "--json", "--junit", tmp_path / "ci.xml")
    assert ended.code == 3
    assert "model.onnx on CPUExecutionProvider: image" in ended.err
    assert "the gate is 1e-05" in ended.err
    report = strict_json(ended.out)
    (row,) = report["rows"]
    assert not report["passed"]
    assert row["max_relative"] is None if np.isnan(factor) else row["max_relative"] > 1e-5
    assert len(ElementTree.parse(tmp_path / "ci.xml").getroot().findall("testcase/failure")) == 2  # and its digest
    assert "failed" in delta("verify", model, shipped, few_photos, *FEW).out


def test_verify_says_that_a_file_was_changed_since_its_receipt(delta, tmp_path, shipped, tiny_bundle, few_photos):
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    with (bundle / "depth_64x128_fp16.onnx").open("ab") as file:
        file.write(onnx.ModelProto(doc_string="harmless").SerializeToString())
    ended = delta("verify", bundle, shipped, few_photos, *FEW)
    assert ended.code == 3
    assert "was changed after it was verified" in ended.out
    assert "delta.json says" in ended.out
    assert ended.out.count("failed") == 1  # the numbers are still right, the verdict is not


def test_verify_stamps_what_it_measured_when_asked(delta, tmp_path, shipped, tiny_bundle, few_photos):
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    before = {file.name: file.read_bytes() for file in bundle.iterdir()}
    assert delta("verify", bundle, shipped, few_photos, "--set", "verify_photos=2").code == 0
    assert {file.name: file.read_bytes() for file in bundle.iterdir()} == before
    assert delta("verify", bundle, shipped, few_photos, "--set", "verify_photos=2", "--stamp").code == 0
    assert read_receipt(bundle / "depth_64x128_int8.onnx").measured[0].n_images == 2
    assert "2 photos" in (bundle / "README.md").read_text()
    assert delta("verify", bundle, shipped, few_photos, *FEW).code == 0  # digests agree again
    assert read_receipt(tiny_bundle / "depth_64x128_int8.onnx").measured[0].n_images == 3


def test_any_two_of_run_and_files_can_be_compared(delta, shipped, tiny_bundle, tiny_model, few_photos):
    half = tiny_bundle / "depth_64x128_fp16.onnx"
    for pair in ((half, tiny_model), (shipped, half), (half, tiny_bundle), (shipped, tiny_bundle)):
        ended = delta("verify", *pair, few_photos, *FEW, "--json")
        assert ended.code == 0, ended.err
        assert any(row["precision"] == "fp16" for row in strict_json(ended.out)["rows"])
    error = delta("verify", shipped, shipped, few_photos, *FEW).complaint()
    assert error == f"{shipped} is a run, and so is the other: nothing to compare"


def test_verify_against_measured_depth_shows_the_change(delta, tmp_path, shipped, tiny_model, few_photos):
    for index, photo in enumerate(sorted(few_photos.rglob("*.*"))):
        depth = np.random.default_rng(index).integers(500, 9000, (70, 90)).astype(np.uint16)
        target = (tmp_path / photo.relative_to(few_photos)).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(depth).save(target)
    ended = delta("verify", tiny_model, shipped, few_photos, *FEW, "--truth", tmp_path, "--json")
    assert ended.code == 0, ended.err
    truth = strict_json(ended.out)["rows"][0]["truth"]
    assert truth["n"] == 3
    assert truth["candidate"]["abs_rel"] == pytest.approx(truth["reference"]["abs_rel"], abs=1e-4)
    ended = delta("verify", tiny_model, shipped, few_photos, *FEW, "--truth", tmp_path / "none")
    assert ended.complaint().startswith(f"there is no depth map {tmp_path / 'none'}")


def test_verify_asks_for_enough_photos(delta, shipped, tiny_model, few_photos):
    ended = delta("verify", tiny_model, shipped, few_photos)
    assert ended.complaint() == f"{few_photos} has 3 usable photos, a verification asks for 64"
    assert "--set verify_photos=3" in ended.err


def test_verify_with_a_provider_that_is_not_there_says_so(delta, shipped, tiny_model, few_photos):
    ended = delta("verify", tiny_model, shipped, few_photos, *FEW, "--provider", "QuantumExecutionProvider")
    assert ended.complaint() == "this onnxruntime has no QuantumExecutionProvider"


def test_verify_with_another_run_says_whose_the_model_is(delta, shipped, tiny_model, other_run, few_photos):
    error = delta("verify", tiny_model, other_run, few_photos, *FEW).complaint()
    ours = load_student(shipped)[1].fingerprint
    assert error == f"{tiny_model} was exported from training {ours[:12]}, {other_run} is training {'f' * 12}"


@pytest.mark.parametrize("missing", ["model", "run", "photos"])
def test_verify_without_one_of_the_three_names_it(delta, tmp_path, shipped, tiny_model, few_photos, missing):
    paths = {"model": tiny_model, "run": shipped, "photos": few_photos} | {missing: tmp_path / "none"}
    error = delta("verify", paths["model"], paths["run"], paths["photos"], *FEW).complaint()
    assert error.startswith("there is no ")
    assert str(tmp_path / "none") in error


@pytest.mark.parametrize("command", ["predict", "verify"])
def test_a_bundle_without_its_sidecar_says_so(delta, tmp_path, shipped, tiny_bundle, few_photos, command):
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    rest = {"predict": (few_photos, "-o", tmp_path / "out"), "verify": (shipped, few_photos)}[command]
    (bundle / "depth_64x128_int8.onnx").unlink()
    error = delta(command, bundle, *rest).complaint()
    assert error == f"{bundle} lacks depth_64x128_int8.onnx, which delta.json lists"
    (bundle / "delta.json").unlink()
    assert delta(command, bundle, *rest).complaint() == f"{bundle} is no bundle: it has no delta.json"


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
def test_a_model_that_is_not_deltas_is_refused(delta, tmp_path, shipped, few_photos, make, named, command):
    model = make(tmp_path / "model.onnx")
    rest = {"predict": (few_photos, "-o", tmp_path / "out"), "verify": (shipped, few_photos)}[command]
    error = delta(command, model, *rest).complaint()
    assert named in error
    assert str(model) in error
    assert not (tmp_path / "out").exists()


def test_predict_on_a_folder_without_photos_says_what_was_looked_for(delta, tmp_path, tiny_model):
    (tmp_path / "notes.txt").write_text("no photo")
    error = delta("predict", tiny_model, tmp_path, "-o", tmp_path / "out").complaint()
    assert error.startswith(f"no photos in {tmp_path}: looked for .jpg")
    error = delta("predict", tiny_model, tmp_path / "none", "-o", tmp_path / "out").complaint()
    assert error == f"there is no folder {tmp_path / 'none'}"


def test_predict_with_a_colormap_that_does_not_exist_names_those_that_do(delta, tmp_path, tiny_model, few_photos):
    ended = delta("predict", tiny_model, few_photos, "-o", tmp_path / "out", "--colormap", "jet")
    assert ended.complaint() == "there is no colormap 'jet'"
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


def test_a_student_copied_elsewhere_is_exported_from_there(delta, tmp_path, shipped, tiny_model, few_photos):
    copy = Path(shutil.copy(shipped / WEIGHTS, tmp_path / "moved.safetensors"))
    assert delta("verify", tiny_model, copy, few_photos, *FEW).code == 0
