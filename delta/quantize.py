"""Smaller forms of an exported graph: weights or all in half precision, and 8 bits where the convolutions bear it.

int8 is static QDQ: the input and output of each convolution get one scale from photos, its weights one a channel.
Nothing else is touched, since norms, softmax and gates break MobileViT when they are rounded. Where that is still too
much, the convolutions that cost the most stay in float32.
"""

import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from jaxtyping import Float32
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from delta.bundle import PRECISIONS
from delta.errors import DeltaError
from delta.files import write_aside
from delta.metrics import Agreement, agreement
from delta.onnx_model import INPUT_NAME, METADATA_PREFIX, OUTPUT_NAME

Pixels = Float32[np.ndarray, "3 h w"]
RANKING_IMAGES = 4  # enough to tell the convolutions that cost most from the others
PACKED_FROM = 256  # numbers in a tensor: below it a cast costs more than it saves
HALF_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True, kw_only=True)
class Int8Result:
    """An int8 graph, its convolutions left in float32, and its agreement with the float32 graph on the probes."""

    model: onnx.ModelProto
    excluded: tuple[str, ...]
    agreement: Agreement


def in_precision(
    model: onnx.ModelProto, precision: str, pixels: Callable[[], Sequence[Pixels]], *, search: int, max_change: float
) -> onnx.ModelProto:
    """Return a float32 graph in one of `bundle.PRECISIONS`; int8 alone asks for `pixels`, and for the rest.

    Raises:
        DeltaError: there is no such precision, or what the precision's own function says.
    """
    if precision == "fp32":
        return model
    if precision == "packed":
        return pack_weights(model)
    if precision == "fp16":
        return to_float16(model)
    if precision == "int8":
        return to_int8(model, pixels(), search=search, max_change=max_change).model
    raise DeltaError(f"there is no precision {precision!r}", f"use {', '.join(PRECISIONS)}")


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model` in half precision inside; its input and output stay float32.

    Written here because onnxruntime's converter casts the scales of Resize back and forth, which are then no longer
    constants for CoreML, and names two such casts alike.

    Raises:
        DeltaError: a weight is beyond what half precision holds.
    """
    half = _copy(model)
    graph = half.graph
    kept = {name for node in graph.node if node.op_type == "Resize" for name in node.input[1:]}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in kept:
            _halve(tensor)
    _rename(graph, {INPUT_NAME: "half_image", OUTPUT_NAME: "half_disparity"})
    graph.node.insert(0, helper.make_node("Cast", [INPUT_NAME], ["half_image"], to=TensorProto.FLOAT16))
    graph.node.append(helper.make_node("Cast", ["half_disparity"], [OUTPUT_NAME], to=TensorProto.FLOAT))
    del graph.value_info[:]
    half = onnx.shape_inference.infer_shapes(half, check_type=True, strict_mode=True, data_prop=True)
    return _stamped(half, precision="fp16")


def pack_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model` with its large weights in half precision, cast back as the file is loaded: half the bytes.

    Runtimes fold a cast of a constant once, so that the arithmetic is float32's and as fast.

    Raises:
        DeltaError: a weight is beyond what half precision holds.
    """
    packed, casts = _copy(model), []
    for tensor in packed.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and prod(tensor.dims) >= PACKED_FROM:
            name = tensor.name
            _halve(tensor)
            tensor.name = f"{name}_half"
            casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *packed.graph.node]
    del packed.graph.node[:]
    packed.graph.node.extend(nodes)
    return _stamped(packed, precision="packed")


def to_int8(model: onnx.ModelProto, pixels: Sequence[Pixels], *, search: int, max_change: float) -> Int8Result:
    """Quantize the convolutions of `model`, calibrated on `pixels`, and keep in float32 those that cost too much.

    Each convolution is quantized alone, to rank them by the AbsRel it causes for each weight it would save; then the
    fewest of the worst are left out that keep 1 - delta1 against the float32 graph within `max_change` on the first
    `search` images.

    Raises:
        DeltaError: no images.
    """
    if not pixels:
        raise DeltaError("int8 needs photos to be calibrated on", "name a folder of photos or a store")
    ranges, probes = _calibrate(model, pixels), pixels[:search]
    expected = _run(model, probes)
    sizes = {tensor.name: prod(tensor.dims) for tensor in model.graph.initializer}
    weights = {node.name: sizes[node.input[1]] for node in model.graph.node if node.op_type == "Conv"}

    def attempt(excluded: Sequence[str], images: int = search) -> Int8Result:
        quantized = _quantize(model, ranges, excluded)
        found = agreement(_run(quantized, probes[:images]), expected[:images])
        return Int8Result(model=quantized, excluded=tuple(excluded), agreement=found)

    def fits(result: Int8Result) -> bool:
        return 1 - result.agreement.delta1 <= max_change

    whole = attempt(())
    if fits(whole):
        return whole
    alone = {
        name: attempt([other for other in weights if other != name], RANKING_IMAGES).agreement.abs_rel
        for name in weights
    }
    worst_first = sorted(weights, key=lambda name: -alone[name] / weights[name])
    low, high, best = 1, len(weights), attempt(worst_first)
    while low < high:  # more left out is never worse, but for noise
        middle = (low + high) // 2
        result = attempt(worst_first[:middle])
        if fits(result):
            high, best = middle, result
        else:
            low = middle + 1
    return best


class _Images(CalibrationDataReader):
    def __init__(self, pixels: Sequence[Pixels]) -> None:
        self._remaining = iter(pixels)

    def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        image = next(self._remaining, None)
        return None if image is None else {INPUT_NAME: image[None]}


def _calibrate(model: onnx.ModelProto, pixels: Sequence[Pixels]) -> TensorsData:
    """Find the smallest and largest value that each convolution reads and writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save_model(model, path)
        calibrator = create_calibrator(
            path,
            ["Conv"],
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=CalibrationMethod.MinMax,
        )
        calibrator.collect_data(_Images(pixels))
        return calibrator.compute_data()


def _quantize(model: onnx.ModelProto, ranges: TensorsData, excluded: Collection[str]) -> onnx.ModelProto:
    quantizer = QDQQuantizer(
        _copy(model),
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=[],
        nodes_to_exclude=list(excluded),
        op_types_to_quantize=["Conv"],
        extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()  # it appends the new nodes; ONNX wants them in order
    quantized = quantizer.model.model
    assert quantized is not None
    _compact(quantized.graph)
    return _stamped(quantized, precision="int8", convolutions_in_float32=", ".join(excluded))


def _compact(graph: onnx.GraphProto) -> None:
    """Share equal constants and give short names: they would be a tenth of the file."""
    del graph.value_info[:]
    first: dict[tuple[object, ...], str] = {}
    short = {INPUT_NAME: INPUT_NAME, OUTPUT_NAME: OUTPUT_NAME, "": ""}
    kept = []
    for tensor in graph.initializer:
        content = (tensor.data_type, *tensor.dims, numpy_helper.to_array(tensor).tobytes())
        if content not in first:
            first[content] = f"{len(short):x}"
            kept.append(tensor)
        short[tensor.name] = first[content]
    for tensor in kept:
        tensor.name = short[tensor.name]
    tensors = [tensor.SerializeToString() for tensor in kept]
    del graph.initializer[:]
    for tensor in tensors:
        graph.initializer.add().ParseFromString(tensor)
    for node in graph.node:
        node.name = ""
        for name in node.output:
            short.setdefault(name, f"{len(short):x}")
    _rename(graph, short)


def _run(model: onnx.ModelProto, pixels: Sequence[Pixels]) -> torch.Tensor:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # many short sessions: do not busy-wait
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(
        np.concatenate([np.asarray(session.run([OUTPUT_NAME], {INPUT_NAME: image[None]})[0]) for image in pixels])
    )


def _halve(tensor: onnx.TensorProto) -> None:
    values = numpy_helper.to_array(tensor)
    largest = float(np.abs(values).max(initial=0))
    if largest > HALF_MAX:
        raise DeltaError(f"weight {tensor.name} reaches {largest:.3g}, half precision ends at {HALF_MAX:.0f}")
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), tensor.name))


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    for node in graph.node:
        for ends in (node.input, node.output):
            ends[:] = [names.get(name, name) for name in ends]


def _stamped(model: onnx.ModelProto, **properties: str) -> onnx.ModelProto:
    known = {entry.key: entry.value for entry in model.metadata_props}
    added = {f"{METADATA_PREFIX}{key}": text for key, text in properties.items() if text}
    helper.set_model_props(model, dict(sorted((known | added).items())))
    return model


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def save(model: onnx.ModelProto, path: Path) -> Path:
    """Write a graph, aside first."""
    with write_aside(path) as aside:
        onnx.save_model(model, aside)
    return path
