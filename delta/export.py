"""A student becomes one ONNX file: one static float32 graph, one input, one output, its weights and its card inside."""

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch

from delta.errors import DeltaError
from delta.files import write_aside
from delta.onnx_model import FORMAT, FORMAT_VERSION, INPUT_NAME, METADATA_PREFIX, OUTPUT_NAME
from delta.student import SIDE_MULTIPLE, Student

OPSET = 18  # the oldest that torch's exporter writes without a conversion
IR_VERSION = 8  # what opset 18 came with; both are read by onnxruntime 1.14 (2023) and later
OWN_KEYS = ("format", "format_version", "height_px", "width_px")


def export_onnx(student: Student, path: Path, size_px: tuple[int, int], metadata: Mapping[str, str]) -> Path:
    """Write `student` as ONNX for images of `size_px` (height, width), and return `path`.

    Input `image`: float32 1x3xHxW, RGB in [0, 1]. Output `disparity`: float32 1xHxW, larger is nearer. `metadata`
    (encoder, teacher, commit, fingerprint, ...) is written under `delta.*` beside format and size.

    Raises:
        DeltaError: the sides are not positive multiples of 64, or `metadata` has a key that the format owns.
    """
    _require_valid_size(size_px)
    properties = _properties(size_px, metadata)
    model = _translate(eval_copy(student), size_px)
    _strip(model)
    model = check_graph(model, size_px)
    onnx.helper.set_model_props(model, properties)
    with write_aside(path) as aside:
        onnx.save_model(model, aside)
    return path


def eval_copy(student: Student) -> Student:
    """Copy a student to the CPU in float32 and eval mode: what is exported, and what parity compares with."""
    return copy.deepcopy(student).to("cpu", torch.float32).eval()


def check_graph(model: onnx.ModelProto, size_px: tuple[int, int]) -> onnx.ModelProto:
    """Return `model` with every shape inferred, or raise: a graph that is not as promised is a bug, not a mistake."""
    onnx.checker.check_model(model, full_check=True)
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    graph = model.graph
    ends = [(end.name, end.type.tensor_type.elem_type, _shape(end)) for end in (*graph.input, *graph.output)]
    expected = [
        (INPUT_NAME, onnx.TensorProto.FLOAT, [1, 3, *size_px]),
        (OUTPUT_NAME, onnx.TensorProto.FLOAT, [1, *size_px]),
    ]
    if ends != expected:
        raise RuntimeError(f"the exported graph has the ends {ends} instead of {expected}")
    dynamic = [value.name for value in graph.value_info if None in _shape(value)]
    if dynamic:
        raise RuntimeError(f"the exported graph has values of dynamic shape: {', '.join(dynamic)}")
    return model


def _translate(student: Student, size_px: tuple[int, int]) -> onnx.ModelProto:
    image = torch.zeros(1, 3, *size_px)
    with torch.no_grad(), _quiet_exporter():
        program = torch.onnx.export(
            student,
            (image,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            external_data=False,
            verbose=False,
        )
    assert program is not None  # it is None only without dynamo
    return program.model_proto


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hush what the exporter warns about in its own modules; a warning about Delta's code still comes through."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(torch|onnxscript|onnx_ir|copyreg)(\.|$)")
        yield


def _strip(model: onnx.ModelProto) -> None:
    """Drop what the exporter notes for its own developers, stack traces with the paths of this machine among it.

    Without these notes, which came with version 10, nothing in the file is newer than `IR_VERSION`.
    """
    model.ir_version = IR_VERSION
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _properties(size_px: tuple[int, int], metadata: Mapping[str, str]) -> dict[str, str]:
    taken = sorted(set(metadata) & set(OWN_KEYS))
    if taken:
        raise DeltaError(f"metadata may not set {', '.join(taken)}", "the export writes these itself")
    own = dict(zip(OWN_KEYS, (FORMAT, FORMAT_VERSION, *size_px), strict=True))
    return {f"{METADATA_PREFIX}{key}": str(value) for key, value in sorted((own | dict(metadata)).items())}


def _require_valid_size(size_px: tuple[int, int]) -> None:
    lower = [max(side // SIDE_MULTIPLE, 1) * SIDE_MULTIPLE for side in size_px]
    upper = [max(-(-side // SIDE_MULTIPLE), 1) * SIDE_MULTIPLE for side in size_px]
    if list(size_px) != lower:
        nearest = " or ".join(dict.fromkeys(f"{height}x{width}" for height, width in (lower, upper)))
        message = f"a graph of {size_px[0]}x{size_px[1]} px cannot be: sides are multiples of {SIDE_MULTIPLE}"
        raise DeltaError(message, f"the nearest sizes are {nearest}" if " or " in nearest else f"use {nearest}")


def _shape(value: onnx.ValueInfoProto) -> list[int | None]:
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]
