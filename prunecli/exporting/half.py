"""Half precision: weights and arithmetic of an ONNX model in float16, its inputs and outputs in float32 as before.

Every float32 tensor, type and cast inside the graph becomes float16; casts are put behind the inputs and before the
outputs. Weights beyond float16's range are clipped to +-65504; whether the model still computes the same is for the
verification to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prunecli.exporting.needed import need
from prunecli.exporting.walk import walk

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

FLOAT, FLOAT16 = 1, 10  # onnx.TensorProto.DataType
LARGEST = float(np.finfo(np.float16).max)
FLOAT_INPUTS = {"Resize": (1, 2)}  # inputs that an operator wants in float32 whatever its data: region and scales
Constants = dict[str, "TensorProto"]


def halve(model: ModelProto) -> None:
    """Rewrite `model` in place."""
    nodes = [message for message in walk(model) if message.DESCRIPTOR.full_name == "onnx.NodeProto"]
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    spared: Constants = {}
    for node in nodes:
        if node.op_type == "BatchNormalization":
            _normalise(node, constants)
        elif node.op_type == "ConstantOfShape" and not node.attribute:  # its default is a float32 zero
            onnx = need("onnx")
            zero = onnx.numpy_helper.from_array(np.zeros(1, np.float32))
            node.attribute.append(onnx.helper.make_attribute("value", zero))
        for position in FLOAT_INPUTS.get(node.op_type, ()):
            if position < len(node.input) and node.input[position] in constants:
                original = constants[node.input[position]]
                node.input[position] = original.name + "_fp32"
                spared[node.input[position]] = _copy(original, node.input[position])
    used = {name for node in nodes for name in node.input}
    kept = [_copy(tensor, name) for name, tensor in constants.items() if name in used]
    model.graph.ClearField("initializer")
    model.graph.initializer.extend(kept)
    _retype(model)
    model.graph.initializer.extend(spared.values())
    _cast_ends(model, nodes)


def _retype(model: ModelProto) -> None:
    """float32 to float16, in tensors, declared types and casts."""
    helper = need("onnx").numpy_helper
    for message in walk(model):
        kind = message.DESCRIPTOR.full_name
        if kind == "onnx.TensorProto" and message.data_type == FLOAT:
            values = helper.to_array(message)
            values = np.where(np.isfinite(values), np.clip(values, -LARGEST, LARGEST), values)  # an infinity stays one
            message.CopyFrom(helper.from_array(values.astype(np.float16), message.name))
        elif kind == "onnx.TypeProto.Tensor" and message.elem_type == FLOAT:
            message.elem_type = FLOAT16
        elif kind == "onnx.AttributeProto" and message.name in ("to", "dtype") and message.i == FLOAT:
            message.i = FLOAT16


def _cast_ends(model: ModelProto, nodes: list[NodeProto]) -> None:
    """Inputs and outputs back to float32, with casts between them and the graph."""
    graph = model.graph
    body = list(graph.node)
    inputs = [v for v in graph.input if v.type.tensor_type.elem_type == FLOAT16]
    outputs = [v for v in graph.output if v.type.tensor_type.elem_type == FLOAT16]
    inner = {value.name: value.name + "_fp16" for value in [*inputs, *outputs]}
    for value in [*inputs, *outputs]:
        value.type.tensor_type.elem_type = FLOAT
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = [inner.get(name, name) for name in names]
    make = need("onnx").helper.make_node
    body = [
        *(make("Cast", [v.name], [inner[v.name]], f"cast_{v.name}", to=FLOAT16) for v in inputs),
        *graph.node,
        *(make("Cast", [inner[v.name]], [v.name], f"cast_{v.name}", to=FLOAT) for v in outputs),
    ]
    graph.ClearField("node")
    graph.node.extend(body)


def _normalise(node: NodeProto, constants: Constants) -> None:
    """Move a batch normalisation's statistics, which float16 holds badly, into its scale and shift.

    gamma (x - mean) / sqrt(var + eps) + beta is the same node with mean 0, variance 1,
    scale gamma sqrt((1 + eps) / (var + eps)) and shift beta - mean gamma / sqrt(var + eps).
    """
    helper = need("onnx").numpy_helper
    if not all(name in constants for name in node.input[1:5]):
        return
    eps = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
    gamma, beta, mean, var = (helper.to_array(constants[name]).astype(np.float64) for name in node.input[1:5])
    scale = gamma / np.sqrt(var + eps)
    values = (scale * np.sqrt(1 + eps), beta - mean * scale, np.zeros_like(mean), np.ones_like(var))
    for position, (part, value) in enumerate(zip(("scale", "shift", "mean", "var"), values, strict=True), start=1):
        name = f"{node.output[0]}_{part}"
        constants[name] = helper.from_array(value.astype(np.float32), name)
        node.input[position] = name


def _copy(tensor: TensorProto, name: str) -> TensorProto:
    copy = type(tensor)()
    copy.CopyFrom(tensor)
    copy.name = name
    return copy
