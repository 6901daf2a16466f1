"""Prediction needs an ONNX file, a photo and nothing of torch; what goes wrong is said in one sentence."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from PIL import Image

from delta.errors import DeltaError, UnreadablePhoto
from delta.predict import (
    DepthPredictor,
    ModelCard,
    as_photo,
    load_disparity_png16,
    normalize_for_display,
    read_model_card,
    save_disparity_png16,
    save_npy,
)

METADATA = {
    "delta.format": "delta-onnx",
    "delta.format_version": "1",
    "delta.height_px": "64",
    "delta.width_px": "128",
    "delta.encoder": "mean of RGB",
    "delta.teacher": "nobody",
    "delta.commit": "c0ffee",
    "delta.fingerprint": "0123abcd",
    "delta.precision": "fp16",
    "delta.note": "by hand",
}


def mean_model(metadata: dict[str, str] = METADATA, **names: Any) -> onnx.ModelProto:
    """A graph whose disparity is the mean of the three colors."""
    shape = names.get("shape", [64, 128])
    source, target = names.get("source", "image"), names.get("target", "disparity")
    node = helper.make_node("ReduceMean", [source, "axes"], [target], keepdims=0)
    graph = helper.make_graph(
        [node],
        "mean",
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, [1, 3, *shape])],
        [helper.make_tensor_value_info(target, TensorProto.FLOAT, [1, *shape])],
        [helper.make_tensor("axes", TensorProto.INT64, [1], [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(model, metadata)
    return model


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    path = tmp_path / "mean.onnx"
    onnx.save_model(mean_model(), path)
    return path


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)


def smooth_photo(height: int, width: int) -> np.ndarray:
    ramp = np.linspace(0, 250, height)[:, None] + np.linspace(0, 5, width)[None]
    return np.repeat(ramp[..., None], 3, axis=2).astype(np.uint8)


def altered(path: Path, **changes: str | None) -> Path:
    metadata = METADATA | {f"delta.{key}": value for key, value in changes.items() if value is not None}
    for key in (key for key, value in changes.items() if value is None):
        del metadata[f"delta.{key}"]
    onnx.save_model(mean_model(metadata), path)
    return path


def test_a_prediction_is_the_graphs_answer(model_path: Path, photo: np.ndarray) -> None:
    disparity = DepthPredictor.open(model_path).predict(photo)
    np.testing.assert_allclose(disparity, photo.mean(axis=2) / 255, atol=1e-6)  # sums of three floats


@pytest.mark.parametrize("size", [(48, 200), (300, 100), (640, 512), (64, 128), (33, 33)])
def test_a_prediction_has_the_photos_own_size(model_path: Path, size: tuple[int, int]) -> None:
    photo = smooth_photo(*size)
    disparity = DepthPredictor.open(model_path).predict(photo)
    assert disparity.shape == size
    assert disparity.dtype == np.float32
    np.testing.assert_allclose(disparity, photo.mean(axis=2) / 255, atol=0.03)  # two resizings of a ramp


def test_pixels_a_picture_and_a_path_give_the_same(model_path: Path, photo: np.ndarray, tmp_path: Path) -> None:
    predictor = DepthPredictor.open(str(model_path), threads=1)
    path = tmp_path / "photo.png"
    Image.fromarray(photo).save(path)
    expected = predictor.predict(photo)
    for image in (Image.fromarray(photo), path, str(path)):
        np.testing.assert_array_equal(predictor.predict(image), expected)


def test_a_picture_is_turned_as_its_camera_was(photo: np.ndarray, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter
    path = tmp_path / "turned.png"
    Image.fromarray(photo).save(path, exif=exif)
    with Image.open(path) as picture:
        turned = as_photo(picture)
    assert turned.shape == (128, 64, 3)
    np.testing.assert_array_equal(turned, as_photo(path))


def test_gray_and_transparent_pictures_become_rgb() -> None:
    assert as_photo(Image.new("L", (40, 50), 7)).shape == (50, 40, 3)
    assert as_photo(Image.new("RGBA", (40, 50), (1, 2, 3, 4)))[0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("thing", "found"),
    [
        (np.zeros((4, 5, 3), dtype=np.float32), "float32 (4, 5, 3)"),
        (np.zeros((4, 5), dtype=np.uint8), "uint8 (4, 5)"),
        (np.zeros((3, 4, 5), dtype=np.uint8), "uint8 (3, 4, 5)"),
        (17, "int"),
    ],
)
def test_what_is_no_photo_is_named(thing: object, found: str) -> None:
    with pytest.raises(DeltaError) as caught:
        as_photo(thing)
    assert str(caught.value) == f"{found} is no photo"
    assert "uint8 (height, width, 3)" in caught.value.hint


def test_a_photo_that_cannot_be_read_is_named(model_path: Path, tmp_path: Path) -> None:
    predictor = DepthPredictor.open(model_path)
    with pytest.raises(DeltaError, match="there is no photo"):
        predictor.predict(tmp_path / "absent.jpg")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    with pytest.raises(UnreadablePhoto, match=r"broken\.jpg cannot be used: it is not an image"):
        predictor.predict(broken)


def test_pixels_of_another_size_are_refused_before_the_graph(model_path: Path) -> None:
    with pytest.raises(DeltaError, match="the image is 64x64 px, the graph takes 64x128"):
        DepthPredictor.open(model_path).infer(np.zeros((3, 64, 64), dtype=np.float32))


def test_the_card_says_what_the_metadata_says(model_path: Path) -> None:
    expected = ModelCard(
        format_version=1,
        size_px=(64, 128),
        encoder="mean of RGB",
        teacher="nobody",
        commit="c0ffee",
        fingerprint="0123abcd",
        precision="fp16",
        extra={"note": "by hand"},
    )
    assert read_model_card(model_path) == expected
    assert DepthPredictor.open(model_path).card == expected


@pytest.mark.parametrize("read", [DepthPredictor.open, read_model_card])
class TestRefusals:
    """Every way in says the same."""

    def test_a_missing_file(self, read: Any, tmp_path: Path) -> None:
        with pytest.raises(DeltaError, match=r"there is no model .*absent\.onnx") as caught:
            read(tmp_path / "absent.onnx")
        assert caught.value.hint == "`delta export` writes such files"

    def test_a_folder(self, read: Any, tmp_path: Path) -> None:
        with pytest.raises(DeltaError, match=r"there is no model|is no bundle: it has no delta\.json"):
            read(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\x00" * 300, b"\xff" * 300])
    def test_what_is_not_onnx(self, read: Any, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "other.onnx"
        path.write_bytes(content)
        with pytest.raises(DeltaError, match=r"other\.onnx is (damaged or not an ONNX model|ONNX, but no export)"):
            read(path)

    def test_onnx_of_somebody_else(self, read: Any, tmp_path: Path) -> None:
        path = tmp_path / "foreign.onnx"
        onnx.save_model(mean_model({"author": "somebody"}), path)
        with pytest.raises(DeltaError, match=r"foreign\.onnx is ONNX, but no export of Delta's"):
            read(path)

    def test_a_newer_format(self, read: Any, tmp_path: Path) -> None:
        path = altered(tmp_path / "new.onnx", format_version="2")
        with pytest.raises(DeltaError, match=r"has format version 2; this Delta reads version 1") as caught:
            read(path)
        assert caught.value.hint == "pip install --upgrade delta-depth"

    @pytest.mark.parametrize("change", [{"height_px": None}, {"width_px": "wide"}, {"format_version": None}])
    def test_metadata_without_version_or_size(self, read: Any, tmp_path: Path, change: dict[str, str | None]) -> None:
        with pytest.raises(DeltaError, match="is damaged: its metadata gives no version and size"):
            read(altered(tmp_path / "m.onnx", **change))

    @pytest.mark.parametrize("change", [{"source": "pixels"}, {"target": "depth"}, {"shape": [64, 64]}])
    def test_a_graph_that_does_not_fit_its_metadata(self, read: Any, tmp_path: Path, change: dict[str, Any]) -> None:
        path = tmp_path / "misfit.onnx"
        onnx.save_model(mean_model(**change), path)
        with pytest.raises(DeltaError, match=r"does not fit its metadata: it has .* instead of .*disparity"):
            read(path)


def test_no_damage_escapes_as_a_raw_exception(tmp_path: Path) -> None:
    whole = mean_model().SerializeToString()
    cut = [whole[:end] for end in range(0, len(whole), 29)]
    flipped = [whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :] for at in range(0, len(whole), 5)]
    path = tmp_path / "damaged.onnx"
    messages = [message_for(path, content) for content in cut + flipped]
    assert all(message.startswith(str(path)) for message in messages if message)
    assert all(messages[: len(cut)])


def message_for(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    try:
        DepthPredictor.open(path, threads=1).infer(np.zeros((3, 64, 128), dtype=np.float32))
    except DeltaError as error:
        return str(error)
    return ""


def test_a_graph_that_fails_while_it_runs_is_named(tmp_path: Path) -> None:
    nodes = [  # looks up row 1000 * image[0, 0, 0, 0], which only a black image has
        helper.make_node("Mul", ["image", "thousand"], ["large"]),
        helper.make_node("Cast", ["large"], ["index"], to=TensorProto.INT64),
        helper.make_node("Slice", ["index", "starts", "ends"], ["one"]),
        helper.make_node("Reshape", ["one", "scalar"], ["row"]),
        helper.make_node("Gather", ["image", "row"], ["answer"], axis=1),
        helper.make_node("Identity", ["answer"], ["disparity"]),
    ]
    constants = [
        helper.make_tensor("thousand", TensorProto.FLOAT, [1], [1000]),
        helper.make_tensor("starts", TensorProto.INT64, [4], [0, 0, 0, 0]),
        helper.make_tensor("ends", TensorProto.INT64, [4], [1, 1, 1, 1]),
        helper.make_tensor("scalar", TensorProto.INT64, [0], []),
    ]
    model = mean_model()
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(constants)
    path = tmp_path / "fails.onnx"
    onnx.save_model(model, path)
    predictor = DepthPredictor.open(path)
    assert predictor.infer(np.zeros((3, 64, 128), dtype=np.float32)).shape == (64, 128)
    with pytest.raises(DeltaError, match=r"fails\.onnx failed on CPUExecutionProvider: the file is damaged"):
        predictor.infer(np.ones((3, 64, 128), dtype=np.float32))


def test_a_provider_that_this_onnxruntime_lacks_is_refused(model_path: Path) -> None:
    with pytest.raises(DeltaError, match="this onnxruntime has no QuantumExecutionProvider") as caught:
        DepthPredictor.open(model_path, providers=("QuantumExecutionProvider",))
    assert "CPUExecutionProvider" in caught.value.hint
    with pytest.raises(DeltaError, match="no execution provider was named"):
        DepthPredictor.open(model_path, providers=())


def test_a_provider_that_gives_way_to_another_is_refused(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = onnxruntime.InferenceSession

    def fall_back(path: str, options: Any, providers: list[str], **more: Any) -> Any:  # as CUDA does without cuDNN
        return real(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", fall_back)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["FastExecutionProvider"])
    with pytest.raises(
        DeltaError, match=r"FastExecutionProvider was asked for, but .* would run on CPUExecutionProvider"
    ):
        DepthPredictor.open(model_path, providers=("FastExecutionProvider",))


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_predicting_imports_no_torch_and_says_nothing(model_path: Path, photo: np.ndarray) -> None:
    code = f"""
import sys, numpy as np
from delta.predict import DepthPredictor
import delta.panel
DepthPredictor.open({str(model_path)!r}).predict(np.zeros((99, 77, 3), dtype=np.uint8))
print(sorted(set(sys.modules) & {{"torch", "timm", "transformers", "onnx", "matplotlib", "zarr"}}))
"""
    done = run_python(code)
    assert (done.stdout, done.stderr, done.returncode) == ("[]\n", "", 0)


def test_cuda_without_a_driver_is_refused_in_one_sentence(model_path: Path) -> None:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA")
    code = f"""
import sys
from delta.errors import DeltaError
from delta.predict import DepthPredictor
try:
    predictor = DepthPredictor.open({str(model_path)!r}, providers=("CUDAExecutionProvider",))
    print("runs on", predictor.provider)
except DeltaError as error:
    print(error)
"""
    done = run_python(code)
    if done.stdout == "runs on CUDAExecutionProvider\n":
        pytest.skip("there is a CUDA device")
    assert done.stdout == "CUDAExecutionProvider was asked for, but there is no NVIDIA driver here\n"
    assert done.stderr == ""


def test_the_display_stretches_between_percentiles() -> None:
    disparity = np.arange(1001, dtype=np.float32).reshape(7, 143)
    shown = normalize_for_display(disparity, low_percentile=10, high_percentile=90).ravel()
    assert (shown[:101] == 0).all()
    assert (shown[900:] == 1).all()
    assert shown[500] == pytest.approx(0.5)


def test_the_display_does_not_know_scale_and_shift() -> None:
    disparity = np.random.default_rng(1).normal(size=(20, 30)).astype(np.float32)
    np.testing.assert_allclose(
        normalize_for_display(disparity * 7 + 3),
        normalize_for_display(disparity),
        atol=1e-6,  # float32 rounds disparity * 7 + 3
    )


def test_the_display_keeps_gaps_and_survives_flat_maps() -> None:
    disparity = np.full((3, 4), 5, dtype=np.float32)
    disparity[0, 0], disparity[2, 3] = np.nan, np.inf
    shown = normalize_for_display(disparity)
    assert np.isnan(shown[[0, 2], [0, 3]]).all()
    assert (np.delete(shown.ravel(), [0, 11]) == 0.5).all()
    assert np.isnan(normalize_for_display(np.full((2, 2), np.nan, dtype=np.float32))).all()


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.5, 0.25), (1e-8, 3e-8), (1e30, 2e30)])
def test_a_16_bit_png_can_be_undone_to_half_a_level(tmp_path: Path, low: float, high: float) -> None:
    disparity = np.random.default_rng(2).uniform(low, high, (37, 53)).astype(np.float32)
    path = tmp_path / "depth.png"
    save_disparity_png16(path, disparity)
    with Image.open(path) as image:
        assert image.mode == "I;16"
        assert image.getextrema() == (0, 65535)
        assert float(image.info["delta.disparity_max"]) == disparity.max()
    half_a_level = np.ptp(disparity.astype(np.float64)) / 65535 / 2
    rounding = np.spacing(np.abs(disparity).max())
    assert np.abs(load_disparity_png16(path) - disparity.astype(np.float64)).max() <= half_a_level + rounding


def test_a_flat_map_survives_its_png(tmp_path: Path) -> None:
    disparity = np.full((4, 5), 0.1, dtype=np.float32)
    save_disparity_png16(tmp_path / "flat.png", disparity)
    np.testing.assert_array_equal(load_disparity_png16(tmp_path / "flat.png"), disparity)


def test_a_png_holds_no_nan(tmp_path: Path) -> None:
    disparity = np.zeros((4, 5), dtype=np.float32)
    disparity[1, 2] = np.nan
    with pytest.raises(DeltaError, match="1 of 20 disparities are not finite"):
        save_disparity_png16(tmp_path / "depth.png", disparity)
    assert list(tmp_path.iterdir()) == []


def test_another_png_is_not_read_as_disparity(tmp_path: Path) -> None:
    Image.new("L", (40, 40)).save(tmp_path / "photo.png")
    with pytest.raises(DeltaError, match=r"photo\.png is no disparity PNG of Delta's"):
        load_disparity_png16(tmp_path / "photo.png")
    with pytest.raises(DeltaError, match="is no disparity PNG"):
        load_disparity_png16(tmp_path / "absent.png")


@pytest.mark.parametrize("name", ["depth.npy", "depth.raw"])
def test_npy_keeps_every_bit(tmp_path: Path, name: str) -> None:
    disparity = np.array([[np.nan, -0.0], [1e-40, np.inf]], dtype=np.float32)
    save_npy(tmp_path / name, disparity)
    assert np.load(tmp_path / name).tobytes() == disparity.tobytes()
    assert [path.name for path in tmp_path.iterdir()] == [name]
