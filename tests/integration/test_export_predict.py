"""A real student goes to disk, to ONNX, to a prediction, and is still the same student."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from delta.checkpoint import StudentCard, load_student, save_student
from delta.errors import CheckFailed
from delta.export import export_onnx
from delta.images import read_photo
from delta.parity import compare, onnx_side, torch_side
from delta.parity_report import ParityReport
from delta.predict import DepthPredictor, load_disparity_png16, save_disparity_png16
from delta.student import Student, StudentConfig, build_student

SIDE_PX = 128
PHOTOS = 6


def scenes(count: int) -> list[np.ndarray]:
    """Images with edges, gradients and texture: a flat one is no fair test, see `delta.parity_report.GATE_RELATIVE`."""
    random = np.random.default_rng(0)
    images = []
    for _ in range(count):
        height, width = (int(side) for side in random.integers(90, 300, 2))
        image = np.linspace(0, 150, width)[None, :, None] + random.uniform(0, 60, 3) + np.zeros((height, width, 3))
        top, left = random.integers(0, height // 2), random.integers(0, width // 2)
        image[top : top + height // 3, left : left + width // 3] = random.uniform(0, 255, 3)
        images.append((image + random.normal(0, 12, image.shape)).clip(0, 255).astype(np.uint8))
    return images


def seen(encoder: str) -> Student:
    """A student with random weights whose batch norms have met images, as a trained one's have."""
    torch.manual_seed(0)
    student = build_student(StudentConfig(encoder=encoder)).train()
    with torch.no_grad():
        for _ in range(3):
            student(torch.rand(2, 3, SIDE_PX, SIDE_PX))
    return student


def export_and_compare(encoder: str, folder: Path, images: list[np.ndarray]) -> tuple[Path, Student, ParityReport]:
    card = StudentCard(
        config=StudentConfig(encoder=encoder), size_px=SIDE_PX, teacher="t", fingerprint="ab", commit="c"
    )
    student, card = load_student(save_student(folder / "student.safetensors", seen(encoder), card))
    metadata = {"encoder": encoder, "teacher": card.teacher, "fingerprint": card.fingerprint, "commit": card.commit}
    path = export_onnx(student, folder / f"{encoder}.onnx", (SIDE_PX, 2 * SIDE_PX), metadata)
    return path, student, compare(torch_side(student), onnx_side(path), images)


def test_a_student_survives_disk_onnx_and_prediction(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    images = scenes(PHOTOS)
    path, student, report = export_and_compare("mobilevitv2_050", tmp_path, images)
    report.require()
    assert report.n_images == PHOTOS
    assert report.min_pearson > 0.999999999
    assert capfd.readouterr() == ("", "")

    predictor = DepthPredictor.open(path, threads=1)
    assert predictor.card.encoder == "mobilevitv2_050"
    assert predictor.card.fingerprint == "ab"
    disparity = predictor.predict(images[0])
    assert disparity.shape == images[0].shape[:2]
    assert np.isfinite(disparity).all()
    save_disparity_png16(tmp_path / "depth.png", disparity)
    level = np.ptp(disparity) / 65535
    np.testing.assert_allclose(load_disparity_png16(tmp_path / "depth.png"), disparity, atol=level)

    with pytest.raises(CheckFailed, match=f"of {PHOTOS} differs by"):
        compare(torch_side(student), onnx_side(with_one_weight_off_by_a_percent(path)), images).require()


def with_one_weight_off_by_a_percent(path: Path) -> Path:
    model = onnx.load(path)
    tensor = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)  # of the stem
    weights = numpy_helper.to_array(tensor).copy()
    weights.flat[np.abs(weights).argmax()] *= 1.01
    tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    onnx.save_model(model, path.with_stem("off"))
    return path.with_stem("off")


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["mobilevitv2_050", "mobilevit_xs"])
def test_exports_keep_the_gate_on_real_photos(encoder: str, tmp_path: Path, photos_dir: Path) -> None:
    photos = [read_photo(path) for path in sorted((photos_dir / "images").glob("*.jpg"))[::50]]
    _, _, report = export_and_compare(encoder, tmp_path, photos)
    report.require()
