"""What an ONNX graph costs on paper: multiplications and parameters, read off its shapes."""

from collections.abc import Iterator
from math import prod

import onnx

from delta.config import Config


class GraphCost(Config, frozen=True, kw_only=True):
    """Multiply-accumulates of convolutions and matrix products for one run, and the numbers in their weights."""

    macs: int
    parameters: int


def graph_cost(model: onnx.ModelProto) -> GraphCost:
    """Count; a quantized weight counts as the weight it stands for."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {value.name: _shape(value) for value in (*graph.value_info, *graph.input, *graph.output)}
    constants = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    shapes |= constants
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]]
    weights = {
        name: prod(constants[name])
        for node in graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul")
        for name in node.input[1:]
        if name in constants
    }
    return GraphCost(macs=sum(_macs(graph, shapes)), parameters=sum(weights.values()))


def _macs(graph: onnx.GraphProto, shapes: dict[str, list[int]]) -> Iterator[int]:
    for node in graph.node:
        if node.op_type == "Conv":  # each output is a sum over its group's channels and the kernel
            yield prod(shapes[node.output[0]]) * prod(shapes[node.input[1]][1:])
        elif node.op_type in ("MatMul", "Gemm"):  # Gemm may hold either side transposed
            left, out = shapes[node.input[0]], shapes[node.output[0]]
            yield prod(left) * out[-1]


def _shape(value: onnx.ValueInfoProto) -> list[int]:
    return [max(dim.dim_value, 1) for dim in value.type.tensor_type.shape.dim]
