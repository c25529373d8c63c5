"""Sparse storage: weights that are mostly zeros written as their non-zero values and indices.

ONNX wants 64-bit indices, so float32 weights shrink from 2/3 zeros on and float16 weights from 4/5 on. Only the file
gets smaller: onnxruntime makes the weights dense again when it loads them, and zeros also compress well (gzip, zstd).

They are written as `Constant` nodes with a `sparse_value`, whose output is an ordinary tensor. Sparse initialisers
proper fail the type check of `onnx.checker`, for no operator is defined on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prunecli.exporting.needed import need

if TYPE_CHECKING:
    from onnx import ModelProto

INDEX_BYTES = 8
NODE_BYTES = 64  # about what a node costs beside its tensor


def sparsify(model: ModelProto) -> None:
    """Rewrite in place every floating-point initialiser of `model` that gets smaller by it."""
    onnx = need("onnx")
    graph = model.graph
    dense, nodes = [], []
    for tensor in graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        where = np.flatnonzero(values)
        smaller = len(where) * (INDEX_BYTES + values.itemsize) + NODE_BYTES < values.nbytes
        if not smaller or values.dtype.kind != "f" or not len(where):
            dense.append(tensor)
            continue
        sparse = onnx.helper.make_sparse_tensor(
            onnx.numpy_helper.from_array(values.reshape(-1)[where], tensor.name),
            onnx.numpy_helper.from_array(where.astype(np.int64), ""),
            values.shape,
        )
        nodes.append(onnx.helper.make_node("Constant", [], [tensor.name], tensor.name, sparse_value=sparse))
    body = [*nodes, *graph.node]
    graph.ClearField("initializer")
    graph.initializer.extend(dense)
    graph.ClearField("node")
    graph.node.extend(body)
