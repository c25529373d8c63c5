"""The rule of recurrent layers: they are left alone, and so is what feeds them."""

from __future__ import annotations

from prunecli.surgery.call import Call, labels_of, tensors_in
from prunecli.surgery.layers import Layers, along, vector


def recurrent(call: Call) -> list[Layers]:
    """LSTM, GRU and simple recurrent layers and cells: everything that they read is fixed, and so is what they make.

    Their outputs have the (fixed) labels of a weight's columns, so that whatever is tied to them names this layer as
    the reason.
    """
    why = f"{call.why}: recurrent layers are left alone"
    for tensor in call.tensors():
        for layer in labels_of(tensor).layers:
            call.ledger.fix(layer, why)
    weight = [tensor for tensor in call.tensors() if tensor.ndim == 2 and labels_of(tensor).own][-1]
    columns = vector(call.ledger, labels_of(weight).layers, 1, weight.shape[1], why)
    call.ledger.mark(columns, "out")
    outputs = [*tensors_in((call.out,))]
    sizes = [tensor.shape[-1] for tensor in outputs]
    repeated = [columns.repeat(-(-size // len(columns)))[:size] for size in sizes]
    return [along(nodes, -1, tensor.ndim) for nodes, tensor in zip(repeated, outputs, strict=True)]
