"""Parity passes for the student's own file, and for no other."""

from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from delta.errors import CheckFailed, DeltaError
from delta.export import export_onnx
from delta.parity import compare, compare_maps, onnx_side, torch_side
from delta.parity_report import GATE_RELATIVE, Gate, ParityReport
from delta.student import Student, StudentConfig

SIZE_PX = (64, 128)


class TinyInfo:
    """What timm tells of a pyramid: here one map of stride 4, said to be four."""

    def reduction(self) -> list[int]:
        return [4, 8, 16, 32]

    def channels(self) -> list[int]:
        return [8] * 4


class TinyEncoder(nn.Module):
    feature_info = TinyInfo()

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [functional.silu(self.norm(self.stem(x)))] * 4


class TinyDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(8, 1, 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        return functional.interpolate(self.head(levels[0]), scale_factor=4, mode="bilinear", align_corners=False)


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    return Student(StudentConfig(), TinyEncoder(), TinyDecoder()).train()


@pytest.fixture(scope="module")
def onnx_path(student: Student, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(student, tmp_path_factory.mktemp("parity") / "tiny.onnx", SIZE_PX, {})


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((64, 128), (200, 90), (50, 333))]


def measure(student: Student, path: Path, images: Iterable[np.ndarray], gate: Gate | None = None) -> ParityReport:
    return compare(torch_side(student), onnx_side(path), images, gate=gate)


def altered(source: Path, target: Path, change: Callable[[np.ndarray], None]) -> Path:
    """Copy an ONNX file with its largest weight tensor changed."""
    model = onnx.load(source)
    tensor = max(model.graph.initializer, key=lambda tensor: numpy_helper.to_array(tensor).size)
    weights = numpy_helper.to_array(tensor).copy()
    change(weights)
    tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    onnx.save_model(model, target)
    return target


def test_a_students_own_file_passes(student: Student, onnx_path: Path, images: list[np.ndarray]) -> None:
    report = measure(student, onnx_path, iter(images))
    assert report.passed
    report.require()
    assert report.n_images == len(report.images) == 3
    assert [image.index for image in report.images] == [0, 1, 2]
    assert report.size_px == SIZE_PX
    assert report.provider == "CPUExecutionProvider"
    assert report.gate.max_relative == GATE_RELATIVE
    assert report.file_bytes == onnx_path.stat().st_size
    assert report.max_relative == max(image.max_relative for image in report.images)
    assert report.min_pearson > 0.999999
    assert all(image.reference_range > 0.01 for image in report.images)


def test_the_student_is_compared_in_eval_mode_and_left_alone(
    student: Student, onnx_path: Path, images: list[np.ndarray]
) -> None:
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    assert measure(student, onnx_path, images).passed
    assert student.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_one_changed_weight_fails(student: Student, onnx_path: Path, images: list[np.ndarray], tmp_path: Path) -> None:
    def nudge(weights: np.ndarray) -> None:
        weights.flat[0] += 0.001

    report = measure(student, altered(onnx_path, tmp_path / "nudged.onnx", nudge), images)
    assert not report.passed
    worst = max(report.images, key=lambda image: image.max_relative)
    with pytest.raises(CheckFailed) as caught:
        report.require()
    message = str(caught.value)
    assert f"image {worst.index} of 3 differs by {worst.max_relative:.2e} of its range" in message
    assert f"({worst.max_absolute:.2e} of {worst.reference_range:.2e}, r {worst.pearson:.6f})" in message
    assert message.endswith("the gate is 1e-05")
    assert caught.value.exit_code == 3


def test_a_wider_gate_lets_the_same_file_through(
    student: Student, onnx_path: Path, images: list[np.ndarray], tmp_path: Path
) -> None:
    def nudge(weights: np.ndarray) -> None:
        weights.flat[0] += 0.001

    path = altered(onnx_path, tmp_path / "nudged.onnx", nudge)
    assert measure(student, path, images, gate=Gate(max_relative=0.1)).passed


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_is_not_finite_fails_under_any_gate(
    student: Student, onnx_path: Path, images: list[np.ndarray], tmp_path: Path, poison: float
) -> None:
    def spoil(weights: np.ndarray) -> None:
        weights.flat[0] = poison

    report = measure(student, altered(onnx_path, tmp_path / "spoiled.onnx", spoil), images, gate=Gate(max_relative=1e9))
    assert not report.passed
    with pytest.raises(CheckFailed, match="differs by inf of its range"):
        report.require()


def test_another_students_file_fails(student: Student, images: list[np.ndarray], onnx_path: Path) -> None:
    torch.manual_seed(1)
    other = Student(StudentConfig(), TinyEncoder(), TinyDecoder())
    assert not measure(other, onnx_path, images).passed


def test_without_images_there_is_no_verdict(student: Student, onnx_path: Path) -> None:
    with pytest.raises(DeltaError, match="there is no image to compare on"):
        measure(student, onnx_path, [])


def test_a_file_with_other_ends_is_refused(student: Student, onnx_path: Path, tmp_path: Path) -> None:
    model = onnx.load(onnx_path)
    model.graph.node[-1].output[0] = "depth"
    model.graph.output[0].name = "depth"
    onnx.save_model(model, tmp_path / "renamed.onnx")
    with pytest.raises(DeltaError, match="does not fit its metadata"):
        measure(student, tmp_path / "renamed.onnx", [])


def as_map(*values: float) -> np.ndarray:
    return np.array([values], dtype=np.float32)


def test_errors_are_measured_as_defined() -> None:
    parity = compare_maps(as_map(10, 12, 14, 18), as_map(10, 12, 14, 17), index=7)
    assert parity.index == 7
    assert parity.max_absolute == 1
    assert parity.reference_range == 8
    assert parity.max_relative == 1 / 8
    assert parity.p99_absolute == pytest.approx(np.percentile([0, 0, 0, 1], 99))
    assert parity.pearson == pytest.approx(np.corrcoef([10, 12, 14, 18], [10, 12, 14, 17])[0, 1])
    dot, norms = 10 * 10 + 12 * 12 + 14 * 14 + 18 * 17, np.sqrt(764) * np.sqrt(729)
    assert parity.cosine == pytest.approx(dot / norms)


def test_scale_and_shift_do_not_move_the_relative_error() -> None:
    random = np.random.default_rng(0)
    expected = random.integers(0, 64, (8, 9)).astype(np.float32)
    found = expected + random.integers(0, 2, (8, 9)).astype(np.float32)
    # Powers of two and integers: float32 holds all of them exactly.
    assert (
        compare_maps(expected, found, 0).max_relative
        == compare_maps(expected * 1024 + 2048, found * 1024 + 2048, 0).max_relative
    )


def test_an_inverted_map_has_correlation_minus_one() -> None:
    parity = compare_maps(as_map(1, 2, 3), as_map(3, 2, 1), 0)
    assert parity.pearson == pytest.approx(-1)


def test_flat_maps_are_equal_or_not() -> None:
    same = compare_maps(as_map(5, 5), as_map(5, 5), 0)
    assert (same.max_relative, same.cosine, same.pearson) == (0, 1, 1)
    other = compare_maps(as_map(5, 5), as_map(5, 6), 0)
    assert (other.max_relative, other.pearson) == (float("inf"), 0)


@pytest.mark.parametrize("side", [0, 1])
def test_nan_on_either_side_is_an_infinite_error(side: int) -> None:
    maps = [as_map(1, 2), as_map(1, 2)]
    maps[side][0, 1] = np.nan
    parity = compare_maps(*maps, index=0)
    assert (parity.max_absolute, parity.max_relative, parity.pearson) == (float("inf"), float("inf"), 0)


def test_maps_of_different_shape_are_refused() -> None:
    with pytest.raises(DeltaError, match=r"the reference answers \(1, 2\) where the candidate answers \(1, 3\)"):
        compare_maps(as_map(1, 2), as_map(1, 2, 3), 0)


def test_a_report_survives_json(student: Student, onnx_path: Path, images: list[np.ndarray]) -> None:
    report = measure(student, onnx_path, images[:1])
    assert msgspec.json.decode(msgspec.json.encode(report), type=ParityReport) == report
