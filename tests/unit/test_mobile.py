"""The mobile form of a student is the student, and phones take its graph whole."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.tools.mobile_helpers import usability_checker
from onnxruntime.tools.onnx_model_utils import ModelProtoWithShapeInfo, optimize_model

from delta.export import eval_copy, export_onnx
from delta.mobile import to_mobile
from delta.student import Student, StudentConfig, build_student

# Float32 sums in another order; measured 4e-7 to 3e-6 on students whose output varies.
RELATIVE = 1e-5
CONFIGS = {
    "mobilevitv2_050": StudentConfig(encoder="mobilevitv2_050", width=16),
    "mobilevit_xxs": StudentConfig(encoder="mobilevit_xxs", width=16),
    "mobilevitv2_075": StudentConfig(encoder="mobilevitv2_075", width=16),
    "mobilevit_xs": StudentConfig(encoder="mobilevit_xs", width=16),
    "delta-xs": StudentConfig(encoder="tf_efficientnet_lite0", context=(16,), stage32="mobilevit", width=16),
}
EXPORTED = ["mobilevitv2_050", "mobilevit_xxs", "delta-xs"]
REFUSED = {"Expand", "Shape", "Gather", "BatchNormalization", "Pow"}
MLPROGRAM = "coreml_supported_mlprogram_ops.md"


def seen(name: str) -> Student:
    """Random weights, batch norms that have met images, group norms whose gain and offset do something."""
    torch.manual_seed(0)
    student = build_student(CONFIGS[name]).train()
    with torch.no_grad():
        for module in student.modules():
            if isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm):
                module.weight.uniform_(0.5, 2)
                module.bias.uniform_(-1, 1)
        for block in student.context.blocks.values():
            block.conv_proj.bn.weight.fill_(1)  # pyright: ignore
        for _ in range(3):
            student(torch.rand(2, 3, 64, 128))
    return student.eval()


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / (expected.max() - expected.min()))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", [(64, 64), (128, 192)])
@torch.inference_mode()
def test_the_mobile_form_gives_the_students_numbers(name: str, size: tuple[int, int]) -> None:
    student, image = seen(name), torch.rand(2, 3, *size)
    expected = student(image)
    assert relative_error(to_mobile(eval_copy(student))(image), expected) < RELATIVE
    assert torch.equal(student(image), expected)  # the student itself is left alone


@torch.inference_mode()
def test_a_normalization_that_changes_something_is_kept() -> None:
    student = seen("mobilevitv2_050")
    student.mean.fill_(0.4)
    student.std.fill_(0.25)
    image = torch.rand(1, 3, 64, 64)
    assert relative_error(to_mobile(eval_copy(student))(image), student(image)) < RELATIVE


def test_a_block_that_is_built_otherwise_is_not_guessed_at() -> None:
    student = seen("mobilevit_xxs")
    block = next(module for module in student.modules() if type(module).__name__ == "MobileVitBlock")
    block.conv_fusion = None
    with pytest.raises(RuntimeError, match="without fusion"):
        to_mobile(eval_copy(student))


@pytest.fixture(scope="module", params=EXPORTED)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Student, Path]:
    student = seen(request.param)
    return student, export_onnx(student, tmp_path_factory.mktemp("mobile") / "student.onnx", (64, 128), {})


def test_no_operation_is_one_that_phones_refuse(exported: tuple[Student, Path]) -> None:
    model = onnx.load(exported[1])
    assert {node.op_type for node in model.graph.node} & REFUSED == set()
    ranks = [len(value.type.tensor_type.shape.dim) for value in model.graph.value_info]
    assert ranks
    assert max(ranks) <= 4
    assert all(all(node.input) for node in model.graph.node)  # an input left out reads as a dynamic shape
    assert model.ir_version <= 10


def test_coreml_takes_the_whole_graph(exported: tuple[Student, Path], tmp_path: Path) -> None:
    """By onnxruntime's own checker, before and after the optimization it does for phones."""
    optimized = tmp_path / "optimized.onnx"
    optimize_model(exported[1], optimized)
    for path in (exported[1], optimized):
        shaped = ModelProtoWithShapeInfo(path).model_with_shape_info
        found = usability_checker.check_coreml_partitions(shaped, True, MLPROGRAM)
        assert (found.num_partitions, found.num_supported_nodes) == (1, found.num_nodes)


@pytest.mark.slow
def test_the_plain_graph_would_come_back_in_pieces(tmp_path: Path) -> None:
    """What the rewrite is for; the checker does see the difference."""
    plain = export_onnx(seen("mobilevitv2_050"), tmp_path / "plain.onnx", (64, 128), {}, mobile=False)
    shaped = ModelProtoWithShapeInfo(plain).model_with_shape_info
    found = usability_checker.check_coreml_partitions(shaped, True, MLPROGRAM)
    assert found.num_partitions > 10
    assert found.num_supported_nodes < found.num_nodes


def test_a_dynamic_batch_answers_each_image_as_one_alone(tmp_path: Path) -> None:
    student = seen("mobilevitv2_050")
    path = export_onnx(student, tmp_path / "batch.onnx", (64, 128), {}, dynamic_batch=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = torch.rand(5, 3, 64, 128)
    with torch.inference_mode():
        expected = student(images)
    for count in (1, 2, 5):
        (found,) = session.run(["disparity"], {"image": images[:count].numpy()})
        assert np.shape(found) == (count, 64, 128)
        assert relative_error(torch.from_numpy(found), expected[:count]) < RELATIVE
