"""A student becomes one ONNX file: one float32 graph, one input, one output, its weights and its card inside."""

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from torch import nn

from delta.errors import DeltaError
from delta.files import write_aside
from delta.mobile import to_mobile
from delta.onnx_model import DYNAMIC_BATCH, FORMAT, FORMAT_VERSION, INPUT_NAME, METADATA_PREFIX, OUTPUT_NAME
from delta.student import SIDE_MULTIPLE, Student

OPSET = 18  # the oldest that torch's exporter writes without a conversion
IR_VERSION = 8  # what opset 18 came with; both are read by onnxruntime 1.14 (2023) and later
OWN_KEYS = ("format", "format_version", "height_px", "width_px", "batch", "precision")


def export_onnx(
    student: Student,
    path: Path,
    size_px: tuple[int, int],
    metadata: Mapping[str, str],
    *,
    dynamic_batch: bool = False,
    mobile: bool = True,
) -> Path:
    """Write `student` as ONNX for images of `size_px` (height, width), and return `path`.

    Input `image`: float32 1x3xHxW, RGB in [0, 1]. Output `disparity`: float32 1xHxW, larger is nearer. `metadata`
    (encoder, teacher, commit, fingerprint, ...) is written under `delta.*` beside format, size, batch and precision.
    `dynamic_batch` leaves the number of images open, for servers; mobile accelerators want it fixed.
    Without `mobile` the graph is as torch writes it, to measure against.

    Raises:
        DeltaError: the sides are not positive multiples of 64, or `metadata` has a key that the format owns.
    """
    require_valid_size(size_px)
    batch = DYNAMIC_BATCH if dynamic_batch else 1
    properties = _properties(size_px, batch, metadata)
    copied = eval_copy(student)
    model = export_graph(to_mobile(copied) if mobile else copied, size_px)
    if mobile:
        _name_every_input(model)
    if dynamic_batch:
        _open_batch(model)
    model = check_graph(model, size_px, batch)
    onnx.helper.set_model_props(model, properties)
    with write_aside(path) as aside:
        onnx.save_model(model, aside)
    return path


def eval_copy(student: Student) -> Student:
    """Copy a student to the CPU in float32 and eval mode: what is exported, and what parity compares with."""
    return copy.deepcopy(student).to("cpu", torch.float32).eval()


def check_graph(model: onnx.ModelProto, size_px: tuple[int, int], batch: int | str = 1) -> onnx.ModelProto:
    """Return `model` with every shape inferred, or raise: a graph that is not as promised is a bug, not a mistake.

    A `batch` that is a name may leave the first dimension of a value open, and no other.
    """
    onnx.checker.check_model(model, full_check=True)
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    graph = model.graph
    ends = [(end.name, end.type.tensor_type.elem_type, _shape(end)) for end in (*graph.input, *graph.output)]
    expected = [
        (INPUT_NAME, onnx.TensorProto.FLOAT, [batch, 3, *size_px]),
        (OUTPUT_NAME, onnx.TensorProto.FLOAT, [batch, *size_px]),
    ]
    if ends != expected:
        raise RuntimeError(f"the exported graph has the ends {ends} instead of {expected}")
    fixed = 0 if batch == 1 else 1  # the first dimension that has to be a number
    dynamic = [
        value.name for value in graph.value_info if any(not isinstance(dim, int) for dim in _shape(value)[fixed:])
    ]
    if dynamic:
        raise RuntimeError(f"the exported graph has values of dynamic shape: {', '.join(dynamic)}")
    return model


def export_graph(module: nn.Module, size_px: tuple[int, int]) -> onnx.ModelProto:
    """Translate any module of one image of `size_px` and one answer, without notes about this machine."""
    image = torch.zeros(1, 3, *size_px)
    with torch.no_grad(), _quiet_exporter():
        program = torch.onnx.export(
            module,
            (image,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            external_data=False,
            verbose=False,
        )
    assert program is not None  # it is None only without dynamo
    model = program.model_proto
    _strip(model)
    return model


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


def _name_every_input(model: onnx.ModelProto) -> None:
    """Name the inputs that Resize leaves out: onnxruntime's mobile checker takes an unnamed one for a dynamic shape."""
    omitted = [node for node in model.graph.node if node.op_type == "Resize" and not node.input[1]]
    if not omitted:
        return
    model.graph.initializer.append(onnx.helper.make_tensor("roi", onnx.TensorProto.FLOAT, [0], []))
    for node in omitted:
        node.input[1] = "roi"


def _open_batch(model: onnx.ModelProto) -> None:
    """Let the number of images vary: the first entry of every Reshape is then what is left over."""
    graph = model.graph
    targets = {node.input[1] for node in graph.node if node.op_type == "Reshape"}
    for tensor in graph.initializer:
        if tensor.name in targets:
            shape = onnx.numpy_helper.to_array(tensor).copy()
            shape[0] = -1
            tensor.CopyFrom(onnx.numpy_helper.from_array(shape, tensor.name))
    for end in (*graph.input, *graph.output):
        end.type.tensor_type.shape.dim[0].dim_param = DYNAMIC_BATCH
    del graph.value_info[:]  # inferred anew by `check_graph`


def _properties(size_px: tuple[int, int], batch: int | str, metadata: Mapping[str, str]) -> dict[str, str]:
    taken = sorted(set(metadata) & set(OWN_KEYS))
    if taken:
        raise DeltaError(f"metadata may not set {', '.join(taken)}", "the export writes these itself")
    own = dict(zip(OWN_KEYS, (FORMAT, FORMAT_VERSION, *size_px, batch, "fp32"), strict=True))
    return {f"{METADATA_PREFIX}{key}": str(value) for key, value in sorted((own | dict(metadata)).items())}


def require_valid_size(size_px: tuple[int, int]) -> None:
    """Refuse a size that MobileViT would resize inside.

    Raises:
        DeltaError: the sides are not positive multiples of 64; the hint names the nearest that are.
    """
    lower = [max(side // SIDE_MULTIPLE, 1) * SIDE_MULTIPLE for side in size_px]
    upper = [max(-(-side // SIDE_MULTIPLE), 1) * SIDE_MULTIPLE for side in size_px]
    if list(size_px) != lower:
        nearest = " or ".join(dict.fromkeys(f"{height}x{width}" for height, width in (lower, upper)))
        message = f"a graph of {size_px[0]}x{size_px[1]} px cannot be: sides are multiples of {SIDE_MULTIPLE}"
        raise DeltaError(message, f"the nearest sizes are {nearest}" if " or " in nearest else f"use {nearest}")


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in dims]
