"""Half precision keeps the numbers, int8 leaves out the convolutions that it would spoil."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from delta.errors import DeltaError
from delta.onnx_cost import graph_cost
from delta.quantize import pack_weights, save, to_float16, to_int8

SIZE = 32


def convolution(name: str, source: str, target: str, weight: np.ndarray) -> tuple[list, list]:
    tensor = numpy_helper.from_array(weight.astype(np.float32), f"{name}_weight")
    pad = weight.shape[-1] // 2
    return [helper.make_node("Conv", [source, tensor.name], [target], name=name, pads=[pad] * 4)], [tensor]


def small_model(*, spoiled: bool = False) -> onnx.ModelProto:
    """Two convolutions, a mean and a Resize; where `spoiled`, one channel in between is 10,000 times the others."""
    rng = np.random.default_rng(0)
    first, second = rng.uniform(0.1, 0.5, (8, 3, 3, 3)), rng.uniform(0.1, 0.5, (4, 8, 1, 1))
    if spoiled:  # the second convolution reads a range that its other channels vanish in, and cancels it
        first[0] *= 10_000
        first[1] = first[0]
        second[:, 1] = -second[:, 0]
    nodes_a, weights_a = convolution("first", "image", "middle", first)
    nodes_b, weights_b = convolution("second", "middle", "late", second)
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [1], [1]),
        helper.make_tensor("roi", TensorProto.FLOAT, [0], []),
        helper.make_tensor("scales", TensorProto.FLOAT, [4], [1, 1, 2, 2]),
    ]
    nodes = [
        *nodes_a,
        *nodes_b,
        helper.make_node("Resize", ["late", "roi", "scales"], ["large"], name="resize", mode="linear"),
        helper.make_node("ReduceMean", ["large", "axes"], ["disparity"], name="mean", keepdims=0),
    ]
    ends = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIZE, SIZE]),
        helper.make_tensor_value_info("disparity", TensorProto.FLOAT, [1, 2 * SIZE, 2 * SIZE]),
    ]
    graph = helper.make_graph(nodes, "small", ends[:1], ends[1:], [*weights_a, *weights_b, *constants])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(model, {"delta.format": "delta-onnx", "delta.precision": "fp32"})
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def scenes(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    ramp = np.linspace(0.1, 0.9, SIZE, dtype=np.float32)
    return [(ramp * rng.uniform(0.5, 1, (3, SIZE, 1))).astype(np.float32) for _ in range(count)]


def run(model: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image[None]})[0]


def properties(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def test_half_precision_keeps_ends_scales_and_three_digits() -> None:
    model, (image,) = small_model(), scenes(1)
    half = to_float16(model)
    onnx.checker.check_model(half, full_check=True)
    kinds = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    assert kinds["first_weight"] == TensorProto.FLOAT16
    assert kinds["scales"] == TensorProto.FLOAT  # Resize takes no other
    assert [end.type.tensor_type.elem_type for end in (*half.graph.input, *half.graph.output)] == [
        TensorProto.FLOAT
    ] * 2
    assert sum(node.op_type == "Cast" for node in half.graph.node) == 2
    np.testing.assert_allclose(run(half, image), run(model, image), rtol=5e-3)
    assert properties(half) == {"delta.format": "delta-onnx", "delta.precision": "fp16"}
    assert properties(model)["delta.precision"] == "fp32"  # the source is left alone


def test_a_weight_beyond_half_precision_is_refused() -> None:
    model = small_model()
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "first_weight")
    weight.CopyFrom(numpy_helper.from_array(np.full((8, 3, 3, 3), 1e5, np.float32), "first_weight"))
    with pytest.raises(DeltaError, match=r"weight first_weight reaches 1e\+05, half precision ends at 65504"):
        to_float16(model)


def test_int8_quantizes_convolutions_a_scale_a_channel_and_nothing_else() -> None:
    model, images = small_model(), scenes(6)
    result = to_int8(model, images, search=4, max_change=0.02)
    assert result.excluded == ()
    onnx.checker.check_model(result.model, full_check=True)
    kinds = [node.op_type for node in result.model.graph.node]
    assert (kinds.count("Conv"), kinds.count("Resize"), kinds.count("ReduceMean")) == (2, 1, 1)
    tensors = {tensor.name: tensor for tensor in result.model.graph.initializer}
    scales = {
        node.output[0]: tuple(tensors[node.input[1]].dims)
        for node in result.model.graph.node
        if node.op_type == "DequantizeLinear"
    }
    weights = [scales[node.input[1]] for node in result.model.graph.node if node.op_type == "Conv"]
    assert weights == [(8,), (4,)]
    np.testing.assert_allclose(run(result.model, images[5]), run(model, images[5]), rtol=0.05)
    assert properties(result.model)["delta.precision"] == "int8"
    assert graph_cost(result.model) == graph_cost(model)  # a quantized weight is still that weight


def test_the_search_leaves_out_the_convolution_that_8_bits_would_spoil() -> None:
    model, images = small_model(spoiled=True), scenes(4)
    careless = to_int8(model, images, search=4, max_change=1)
    assert careless.excluded == ()
    assert careless.agreement.delta1 < 0.9
    careful = to_int8(model, images, search=4, max_change=0.02)
    assert "second" in careful.excluded
    assert careful.agreement.delta1 >= 0.98
    assert properties(careful.model)["delta.convolutions_in_float32"] == ", ".join(careful.excluded)


def test_int8_without_photos_is_refused() -> None:
    with pytest.raises(DeltaError, match="int8 needs photos"):
        to_int8(small_model(), [], search=1, max_change=1)


def test_the_cost_of_a_graph_is_what_a_pencil_gives(tmp_path: Path) -> None:
    cost = graph_cost(onnx.load(save(small_model(), tmp_path / "small.onnx")))
    assert cost.macs == SIZE * SIZE * (8 * 3 * 9 + 4 * 8)
    assert cost.parameters == 8 * 3 * 9 + 4 * 8
    product = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [2, 5, 7])],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, [2, 5, 3])],
        [helper.make_tensor("b", TensorProto.FLOAT, [7, 3], [0.0] * 21)],
    )
    found = graph_cost(helper.make_model(product, opset_imports=[helper.make_opsetid("", 18)]))
    assert (found.macs, found.parameters) == (2 * 5 * 7 * 3, 21)


def test_packed_weights_are_half_the_file_and_float32_arithmetic(tmp_path: Path) -> None:
    model = small_model()
    rng = np.random.default_rng(2)
    shapes = {"first_weight": (64, 3, 3, 3), "second_weight": (4, 64, 1, 1)}
    for tensor in model.graph.initializer:
        if tensor.name in shapes:
            values = rng.normal(size=shapes[tensor.name]).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    del model.graph.value_info[:]
    packed = pack_weights(model)
    assert (
        save(packed, tmp_path / "packed.onnx").stat().st_size
        < 0.7 * save(model, tmp_path / "plain.onnx").stat().st_size
    )
    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    for tensor in rounded.graph.initializer:
        if tensor.name.endswith("_weight"):
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16).astype(np.float32), tensor.name))
    outputs = [
        onnxruntime.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"image": scenes(1)[0][None]}
        )[0]
        for each in (packed, rounded)
    ]
    assert np.array_equal(*outputs)
