"""Rules of the operations that compute place by place: element-wise ones, convolutions, windows of positions."""

from __future__ import annotations

from torch import Tensor

from prunecli.surgery.call import Call
from prunecli.surgery.layers import Layers, along, fix_support, rigid


def elementwise(call: Call) -> Layers:
    """Operands that vary along common axes are tied: residual additions, gates, scales, position embeddings."""
    return call.unite([call.broadcast(tensor) for tensor in call.tensors()])


def gated(call: Call) -> Layers:
    """One half of an axis gates the other: the same positions of both."""
    shape, layers = call.operand("self")
    (axis,) = call.axes("dim", len(shape))
    size = shape[axis] // 2
    halves = [tuple(x.narrow(axis, n * size, size) if x.shape[axis] > 1 else x for x in layers) for n in (0, 1)]
    return call.unite([(call.shape, half) for half in halves])


def convolution(call: Call) -> Layers:
    """Convolutions of any dimension, grouped and transposed: input channels end here, output channels start."""
    x, weight, groups = call.args["input"], call.args["weight"], call.args.get("groups", 1)
    transposed = call.args.get("transposed", "transpose" in call.op)
    channel = x.ndim - weight.ndim + 1
    passed = _passed(call, channel)
    inputs = call.nodes("input", channel)
    first, second = call.nodes("weight", 0), call.nodes("weight", 1)
    own_in, own_out = (first, second) if transposed else (second, first)
    if groups == 1:
        call.ledger.tie(inputs, own_in, call.why)
        outputs = own_out
    elif call.ledger.whole_groups.setdefault(call.layer, groups >= len(inputs) // groups):
        outputs = _whole_groups(call, inputs.view(groups, -1), first.view(groups, -1), second, transposed)
    else:
        outputs = _same_positions(call, inputs.view(groups, -1), first.view(groups, -1), second, transposed)
    if groups == 1 or groups < len(inputs):  # a depthwise convolution hands channels on, it makes none
        call.mark("weight", own_in, "in")
        call.mark("weight", own_out, "out")
    result = passed + along(outputs, channel, x.ndim)
    if call.args.get("bias") is None:
        return result
    shape = [n if d == channel else 1 for d, n in enumerate(call.shape)]
    bias = along(call.nodes("bias", 0), channel, x.ndim)
    return call.unite([(call.shape[: channel + 1] + (1,) * (x.ndim - channel - 1), result), (shape, bias)])


def _whole_groups(call: Call, inputs: Tensor, first: Tensor, second: Tensor, transposed: bool) -> Tensor:
    """Only whole groups may go. `inputs` and `first` (the weight's axis 0) are [groups, channels of a group]."""
    group = first[:, 0]
    call.ledger.tie(inputs, group[:, None], call.why)
    call.ledger.tie(first, group[:, None], call.why)
    call.ledger.fix(second, f"{call.why}: the inside of a group")
    return group.repeat_interleave(len(second)) if transposed else first.reshape(-1)


def _same_positions(call: Call, inputs: Tensor, first: Tensor, second: Tensor, transposed: bool) -> Tensor:
    """The same positions of every group go together. Shapes as in `_whole_groups`."""
    call.ledger.tie(first, first[0], call.why)
    call.ledger.tie(inputs, first[0] if transposed else second, call.why)
    return second.repeat(len(first)) if transposed else first.reshape(-1)


def pool_1d(call: Call) -> Layers:
    """Pooling, resampling, padding by what is there: mixes positions along the last axis and none before it."""
    return _window(call, 1)


def pool_2d(call: Call) -> Layers:
    """The same along the last two axes."""
    return _window(call, 2)


def pool_3d(call: Call) -> Layers:
    """The same along the last three axes."""
    return _window(call, 3)


def pad_around(call: Call) -> Layers:
    """Padding by what is at the other end, along as many of the last axes as it names."""
    return _window(call, len(call.args["pad"]) // 2)


def unpool(call: Call) -> Layers:
    """Values go back to the places from which the pooling took them; `output_size` names all positions."""
    positions = set(range(call.args["self"].ndim - len(call.args["output_size"]), call.args["self"].ndim))
    return fix_support(call.ledger, elementwise(call), positions, call.why)


def sample(call: Call) -> Layers:
    """Values at the positions [n, ..., 2] that a grid names; the grid's own axes are positions too."""
    grid = fix_support(call.ledger, call.layers("grid"), set(range(1, call.args["grid"].ndim)), call.why)
    x = fix_support(call.ledger, call.layers("input"), set(range(2, call.args["input"].ndim)), call.why)
    return call.unite([(call.shape, x), (call.shape[:1] + (1,) * (len(call.shape) - 1), grid)])


def _window(call: Call, positions: int) -> Layers:
    shape, layers = call.operand("self" if "self" in call.args else "input")
    return fix_support(call.ledger, layers, set(range(len(shape) - positions, len(shape))), call.why)


def _passed(call: Call, channel: int) -> Layers:
    """Layers of its input that a convolution hands through: those along other axes than the channels'.

    Positions that it slides over may be cut if there are as many after it; it then reads other neighbours.
    """
    shape, layers = call.operand("input")
    layers = tuple(layer for layer in layers if layer.shape[channel] == 1)
    kernel, stride = call.args["weight"].shape[2:], {*call.args["stride"]}
    for axis, size in zip(range(channel + 1, len(shape)), kernel, strict=True):
        if call.shape[axis] != shape[axis] or stride != {1}:
            layers = rigid(call.ledger, layers, axis, call.why)
        elif size > 1:
            for layer in (layer for layer in layers if layer.shape[axis] > 1):
                call.ledger.change(layer, f"{call.why} slides over channels that are cut")
    return layers


def fresh(call: Call) -> Layers:
    """A new tensor that takes only its type and device from the argument: no channels of it."""
    return ()
