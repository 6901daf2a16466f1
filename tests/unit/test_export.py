"""The exported file is one static graph that carries everything and betrays nothing."""

import copy
import logging
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional

import delta.export
from delta.errors import DeltaError
from delta.export import check_graph, export_onnx
from delta.predict import read_model_card
from delta.student import Student, StudentConfig

CARD = {"encoder": "mobilevitv2_050", "teacher": "tiny", "commit": "c0ffee", "fingerprint": "0123", "note": "ä 1"}


class TinyInfo:
    """What timm tells of a pyramid: here one map of stride 4, said to be four."""

    def reduction(self) -> list[int]:
        return [4, 8, 16, 32]

    def channels(self) -> list[int]:
        return [4] * 4


class TinyEncoder(nn.Module):
    feature_info = TinyInfo()

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=4, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [functional.silu(self.norm(self.stem(x)))] * 4


class TinyDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        return functional.interpolate(self.head(levels[0]), scale_factor=4, mode="bilinear", align_corners=False)


def tiny_student() -> Student:
    torch.manual_seed(0)
    return Student(StudentConfig(), TinyEncoder(), TinyDecoder())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(tiny_student(), tmp_path_factory.mktemp("export") / "tiny.onnx", (64, 128), CARD)


@pytest.fixture(scope="module")
def model(exported: Path) -> onnx.ModelProto:
    return onnx.load(exported, load_external_data=False)


def ends(values: list[onnx.ValueInfoProto]) -> list[tuple[str, int, list[int]]]:
    return [
        (value.name, value.type.tensor_type.elem_type, [dim.dim_value for dim in value.type.tensor_type.shape.dim])
        for value in values
    ]


def test_there_is_one_input_and_one_output_of_fixed_shape(model: onnx.ModelProto) -> None:
    assert ends(list(model.graph.input)) == [("image", TensorProto.FLOAT, [1, 3, 64, 128])]
    assert ends(list(model.graph.output)) == [("disparity", TensorProto.FLOAT, [1, 64, 128])]


def test_every_value_inside_has_a_fixed_shape(model: onnx.ModelProto) -> None:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    shapes = {value.name: value.type.tensor_type.shape.dim for value in inferred.graph.value_info}
    made = {name for node in model.graph.node for name in node.output} - {"disparity"}
    assert made <= set(shapes)
    assert all(dim.dim_value > 0 for dims in shapes.values() for dim in dims)


def test_old_runtimes_can_read_it(model: onnx.ModelProto) -> None:
    assert model.ir_version == 8
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    onnx.checker.check_model(model, full_check=True)


def test_the_weights_are_inside(exported: Path, model: onnx.ModelProto) -> None:
    assert [path.name for path in exported.parent.iterdir()] == ["tiny.onnx"]
    assert all(tensor.data_location == TensorProto.DEFAULT for tensor in model.graph.initializer)
    assert sum(tensor.dims[0] for tensor in model.graph.initializer if len(tensor.dims) == 4) >= 5


def test_the_card_is_inside(exported: Path) -> None:
    card = read_model_card(exported)
    assert card.format_version == 1
    assert card.size_px == (64, 128)
    assert (card.encoder, card.teacher, card.commit, card.fingerprint) == ("mobilevitv2_050", "tiny", "c0ffee", "0123")
    assert card.extra == {"note": "ä 1"}


def test_no_path_and_no_code_of_this_machine_is_inside(exported: Path) -> None:
    content = exported.read_bytes()
    for trace in (str(Path(torch.__file__).parent), str(Path(__file__).parent), ".py", "stack_trace", "TinyEncoder"):
        assert trace.encode() not in content


def test_the_same_student_gives_the_same_bytes_in_silence(
    exported: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        again = export_onnx(tiny_student(), tmp_path / "again.onnx", (64, 128), dict(reversed(CARD.items())))
    assert again.read_bytes() == exported.read_bytes()
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []  # and a Python warning would have been an error


def test_the_callers_student_stays_as_it_was(tmp_path: Path) -> None:
    student = tiny_student().to(torch.bfloat16).train()
    student.get_submodule("encoder.norm").eval()  # frozen by its owner
    student.get_parameter("decoder.head.weight").requires_grad_(False)
    weights = copy.deepcopy(student.state_dict())
    modes = {name: module.training for name, module in student.named_modules()}
    grads = {name: parameter.requires_grad for name, parameter in student.named_parameters()}
    random_state = torch.get_rng_state()

    export_onnx(student, tmp_path / "tiny.onnx", (64, 64), {})

    assert {name: module.training for name, module in student.named_modules()} == modes
    assert {name: parameter.requires_grad for name, parameter in student.named_parameters()} == grads
    assert torch.equal(torch.get_rng_state(), random_state)
    assert student.state_dict().keys() == weights.keys()
    for name, tensor in student.state_dict().items():
        assert tensor.dtype == weights[name].dtype
        assert torch.equal(tensor, weights[name])
    assert ends(list(onnx.load(tmp_path / "tiny.onnx").graph.output))[0][1] == TensorProto.FLOAT


@pytest.mark.parametrize(
    ("size_px", "hint"),
    [
        ((100, 128), "the nearest sizes are 64x128 or 128x128"),
        ((384, 500), "the nearest sizes are 384x448 or 384x512"),
        ((300, 400), "the nearest sizes are 256x384 or 320x448"),
        ((63, 1), "use 64x64"),
        ((0, 64), "use 64x64"),
        ((-64, 128), "use 64x128"),
    ],
)
def test_a_size_that_cannot_be_names_the_nearest(tmp_path: Path, size_px: tuple[int, int], hint: str) -> None:
    with pytest.raises(DeltaError, match="sides are multiples of 64") as caught:
        export_onnx(tiny_student(), tmp_path / "tiny.onnx", size_px, {})
    assert f"{size_px[0]}x{size_px[1]} px" in str(caught.value)
    assert caught.value.hint == hint
    assert list(tmp_path.iterdir()) == []


def test_metadata_cannot_overrule_the_format(tmp_path: Path) -> None:
    with pytest.raises(DeltaError, match="metadata may not set format_version, width_px"):
        export_onnx(tiny_student(), tmp_path / "tiny.onnx", (64, 64), {"width_px": "1", "format_version": "9"})


def test_a_failed_export_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(b"old")

    def fail(model: onnx.ModelProto, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(delta.export, "export_graph", lambda student, size_px: graph())  # it is the slow part
    monkeypatch.setattr(onnx, "save_model", fail)
    with pytest.raises(OSError, match="no space left"):
        export_onnx(tiny_student(), path, (64, 64), {})
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny.onnx"]


def graph(*, source: str = "image", height: int | str = 64, extra_output: bool = False) -> onnx.ModelProto:
    outputs = [helper.make_tensor_value_info("disparity", TensorProto.FLOAT, [1, height, 64])]
    nodes = [helper.make_node("ReduceMean", [source, "axes"], ["disparity"], keepdims=0)]
    if extra_output:
        nodes.append(helper.make_node("Relu", ["disparity"], ["features"]))
        outputs.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, height, 64]))
    inputs = [helper.make_tensor_value_info(source, TensorProto.FLOAT, [1, 3, height, 64])]
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    built = helper.make_graph(nodes, "graph", inputs, outputs, [axes])
    return helper.make_model(built, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_a_sound_graph_passes_the_check() -> None:
    assert check_graph(graph(), (64, 64)).graph.output[0].name == "disparity"


@pytest.mark.parametrize(
    "unsound", [graph(source="pixels"), graph(height="height"), graph(extra_output=True), graph(height=128)]
)
def test_a_graph_with_other_ends_is_a_bug(unsound: onnx.ModelProto) -> None:
    with pytest.raises(RuntimeError, match="the exported graph has the ends"):
        check_graph(unsound, (64, 64))


def test_a_graph_with_a_dynamic_value_inside_is_a_bug() -> None:
    model = graph()
    model.graph.node.insert(0, helper.make_node("NonZero", ["image"], ["where"]))
    with pytest.raises(RuntimeError, match="values of dynamic shape: where"):
        check_graph(model, (64, 64))
