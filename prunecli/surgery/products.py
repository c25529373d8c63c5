"""Rules of products: linear layers, matrix products, attention, bilinear layers."""

from __future__ import annotations

from torch import Tensor

from prunecli.surgery.call import Call, labels_of
from prunecli.surgery.layers import Layers, Operand, along, fix_support, support


def linear(call: Call) -> Layers:
    """x [..., k] times weight [n, k] transposed, plus bias [n]."""
    return _product(call, ("input", "weight"), call.operand("weight"), call.args.get("bias"))


def matmul_2d(call: Call) -> Layers:
    """mm and addmm: [m, k] times [k, n], plus a broadcast `self`."""
    names = ("mat1", "mat2") if "mat1" in call.args else ("self", "mat2")
    return _product(call, names, _transposed(call.operand("mat2")), _addend(call, names))


def matmul_batched(call: Call) -> Layers:
    """bmm and baddbmm: [b, m, k] times [b, k, n], plus a broadcast `self`."""
    names = ("batch1", "batch2") if "batch1" in call.args else ("self", "mat2")
    return _product(call, names, _transposed(call.operand(names[1])), _addend(call, names))


def vector(call: Call) -> Layers:
    """mv, addmv and dot: [m, k] or [k] times [k], plus a broadcast `self`.

    What the network works out of its own weights so, such as a spectral norm, changes when they are cut.
    """
    names = ("mat", "vec") if "mat" in call.args else ("self", {"mv": "vec", "dot": "tensor", "vdot": "other"}[call.op])
    for name in names:
        if all(labels_of(call.args[other]).own for other in names):
            for layer in (layer for layer in call.layers(name) if layer.shape[-1] > 1):
                call.ledger.change(layer, f"{call.why} sums over weights that are cut")
    return _product(call, names, call.operand(names[1]), _addend(call, names))


def bilinear(call: Call) -> Layers:
    """y [..., n] = a [..., i] times weight [n, i, j] times b [..., j], plus bias [n]."""
    passed: list[Operand] = []
    for name, axis in (("input1", 1), ("input2", 2)):
        own = call.nodes("weight", axis)
        call.ledger.tie(call.nodes(name, -1), own, call.why)
        call.mark("weight", own, "in")
        shape, layers = call.operand(name)
        passed.append(((*shape[:-1], 1), tuple(layer for layer in layers if layer.shape[-1] == 1)))
    outputs = call.nodes("weight", 0)
    call.mark("weight", outputs, "out")
    result = call.unite(passed) + along(outputs, -1, len(call.shape))
    bias = call.args.get("bias")
    if bias is None:
        return result
    return call.unite([(call.shape, result), (tuple(bias.shape), labels_of(bias).layers)])


def attention(call: Call) -> Layers:
    """softmax(scale q kᵀ + mask) v of q [..., l, k], k [..., s, k], v [..., s, n]; `enable_gqa` repeats heads."""
    query, key, value = (call.operand(name) for name in ("query", "key", "value"))
    if call.args.get("scale") is None and not call.ledger.heads:
        for layer in (*query[1], *key[1]):
            if layer.shape[-1] > 1:
                call.ledger.change(layer, f"{call.why} divides by the root of a head's width, which is cut")
    if call.args.get("enable_gqa"):
        key, value = (_repeated_heads(operand, query[0][-3] // operand[0][-3]) for operand in (key, value))
    scores = _contract(call, query, key, single=True)
    shape = (*query[0][:-1], key[0][-2])
    mask = call.args.get("attn_mask")
    if mask is not None:
        scores = call.unite([(shape, scores), (tuple(mask.shape), labels_of(mask).layers)])
    mixed = {len(shape) - 1, len(shape) - 2} if call.args.get("is_causal") else {len(shape) - 1}
    scores = fix_support(call.ledger, scores, mixed, f"{call.why} mixes channels")
    return _contract(call, (shape, scores), _transposed(value), single=True)


def _repeated_heads(operand: Operand, times: int) -> Operand:
    shape, layers = operand
    repeated = tuple(x.repeat_interleave(times, -3) if x.shape[-3] > 1 else x for x in layers)
    return (*shape[:-3], shape[-3] * times, *shape[-2:]), repeated


def _transposed(operand: Operand) -> Operand:
    shape, layers = operand
    return (*shape[:-2], shape[-1], shape[-2]), tuple(layer.transpose(-1, -2) for layer in layers)


def _addend(call: Call, names: tuple[str, str]) -> Tensor | None:
    return None if names[0] == "self" else call.args["self"]


def _product(call: Call, names: tuple[str, str], right: Operand, bias: Tensor | None) -> Layers:
    """The argument names[0], [..., m, k], times `right` [..., n, k], which the argument names[1] is, plus a bias."""
    left, right = _rows(call.operand(names[0])), _rows(right)
    for name, (_, layers) in zip(names, (left, right), strict=True):
        for layer in layers:
            call.mark(name, layer, "in" if layer.shape[-1] > 1 else "out")
    result = _contract(call, left, right, single=not any(labels_of(call.args[name]).own for name in names))
    for axis, name in ((-1, names[1]), (-2, names[0])):
        if call.args[name].ndim == 1:
            result = tuple(layer.squeeze(axis) for layer in result)
    if bias is None:
        return result
    return call.unite([(call.shape, result), (tuple(bias.shape), labels_of(bias).layers)])


def _whole_heads(call: Call, layers: Layers, single: bool) -> Layers:
    """Of a batch of matrices that are heads, whole ones are cut; nothing of one that is the `single` head."""
    result = []
    for layer in layers:
        for axis in (layer.ndim - 2, layer.ndim - 1):
            if axis in support(layer) and (single or min(support(layer)) < layer.ndim - 2):
                call.ledger.tie(layer, layer.narrow(axis, 0, 1), call.why)
                layer = layer.narrow(axis, 0, 1)
        if support(layer):
            result.append(layer)
    return tuple(result)


def _rows(operand: Operand) -> Operand:
    """A vector as a matrix of one row."""
    shape, layers = operand
    return operand if len(shape) > 1 else ((1, *shape), tuple(layer[None] for layer in layers))


def _contract(call: Call, a: Operand, b: Operand, *, single: bool) -> Layers:
    """a [..., m, k] times b [..., n, k] transposed: seen as [..., m, n, k], tied along k, summed over k.

    `single`: both are made by the network, so that matrices which are no batch are one head.
    """
    if call.ledger.heads:
        a, b = ((shape, _whole_heads(call, layers, single)) for shape, layers in (a, b))
    left = (*a[0][:-1], 1, a[0][-1]), tuple(layer.unsqueeze(-2) for layer in a[1])
    right = (*b[0][:-2], 1, *b[0][-2:]), tuple(layer.unsqueeze(-3) for layer in b[1])
    call.unite([(shape, tuple(x for x in layers if x.shape[-1] > 1)) for shape, layers in (left, right)])
    rest = [(shape[:-1], tuple(x.squeeze(-1) for x in layers if x.shape[-1] == 1)) for shape, layers in (left, right)]
    return call.unite(rest)
