"""Rules of the operations that compute: element-wise, products, normalisations, reductions, windows."""

from __future__ import annotations

from torch import Tensor

from prunecli.surgery.call import Call, labels_of
from prunecli.surgery.layers import Layers, Operand, along, fix_support, support


def elementwise(call: Call) -> Layers:
    """Operands that vary along common axes are tied: residual additions, gates, scales, position embeddings."""
    return call.unite([(tuple(t.shape), labels_of(t).layers) for t in call.tensors()])


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
    passed = _only_before(call, "input", channel)
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


def linear(call: Call) -> Layers:
    """x [..., k] times weight [n, k] transposed, plus bias [n]."""
    (x_shape, x), (w_shape, w) = call.operand("input"), call.operand("weight")
    return _product(call, (x_shape, x), (w_shape, w), call.args.get("bias"), ("input", "weight"))


def matmul_2d(call: Call) -> Layers:
    """mm and addmm: [m, k] times [k, n], plus a broadcast `self`."""
    left, right = ("mat1", "mat2") if "mat1" in call.args else ("self", "mat2")
    bias = call.args["self"] if left == "mat1" else None
    return _product(call, call.operand(left), _transposed(call.operand(right)), bias, (left, right))


def matmul_batched(call: Call) -> Layers:
    """bmm and baddbmm: [b, m, k] times [b, k, n], plus a broadcast `self`."""
    left, right = ("batch1", "batch2") if "batch1" in call.args else ("self", "mat2")
    bias = call.args["self"] if left == "batch1" else None
    return _product(call, call.operand(left), _transposed(call.operand(right)), bias, (left, right))


def _transposed(operand: Operand) -> Operand:
    shape, layers = operand
    return (*shape[:-2], shape[-1], shape[-2]), tuple(layer.transpose(-1, -2) for layer in layers)


def _product(call: Call, a: Operand, b: Operand, bias: Tensor | None, names: tuple[str, str]) -> Layers:
    """a [..., m, k] times b [..., n, k] transposed: seen as [..., m, n, k], tied along k, summed over k."""
    for operand, name in zip((a, b), names, strict=True):
        for layer in operand[1]:
            call.mark(name, layer, "in" if layer.shape[-1] > 1 else "out")
    left = (*a[0][:-1], 1, a[0][-1]), tuple(layer.unsqueeze(-2) for layer in a[1])
    right = (*b[0][:-2], 1, *b[0][-2:]), tuple(layer.unsqueeze(-3) for layer in b[1])
    summed = [(shape, tuple(x for x in layers if x.shape[-1] > 1)) for shape, layers in (left, right)]
    call.unite(summed)
    rest = [(shape[:-1], tuple(x.squeeze(-1) for x in layers if x.shape[-1] == 1)) for shape, layers in (left, right)]
    result = call.unite(rest)
    if len(call.shape) < len(rest[0][0]):  # a vector times a matrix
        result = tuple(layer.squeeze(-2) for layer in result)
    if bias is None:
        return result
    return call.unite([(call.shape, result), (tuple(bias.shape), labels_of(bias).layers)])


def embedding(call: Call) -> Layers:
    """Rows are looked up by index and stay; columns start a labelling."""
    call.ledger.fix(call.nodes("weight", 0), f"{call.why}: rows are looked up by index")
    columns = call.nodes("weight", 1)
    call.mark("weight", columns, "out")
    return along(columns, -1, len(call.shape))


def batch_norm(call: Call) -> Layers:
    """Ties scale, shift and running statistics to the channels; exact, each channel is normalised alone."""
    ndim = call.args["input"].ndim
    layers = fix_support(call.ledger, call.layers("input"), set(range(ndim)) - {1}, call.why)
    return _tie_affine(call, layers, 1, ("weight", "bias", "running_mean", "running_var"))


def group_norm(call: Call) -> Layers:
    """Channels of one group are normalised together: the same positions of every group, and the function changes."""
    channels = call.nodes("input", 1)
    groups = call.args["num_groups"] if "num_groups" in call.args else call.args["group"]
    if groups < len(channels):
        blocks = channels.view(groups, -1)
        call.ledger.tie(blocks, blocks[0], call.why)
        call.ledger.change(channels, f"{call.why} normalises over channels that are cut")
    layers = fix_support(call.ledger, call.layers("input"), set(range(call.args["input"].ndim)) - {1}, call.why)
    return _tie_affine(call, layers, 1, ("weight", "bias"))


def layer_norm(call: Call) -> Layers:
    """Ties scale and shift; normalises over the cut axis, so that the function changes."""
    shape, layers = call.operand("input")
    normalised = set(range(len(shape) - len(call.args["normalized_shape"]), len(shape)))
    for layer in layers:
        if support(layer) & normalised:
            call.ledger.change(layer, f"{call.why} normalises over channels that are cut")
    return elementwise(call)


def _tie_affine(call: Call, layers: Layers, axis: int, names: tuple[str, ...]) -> Layers:
    ndim = call.args["input"].ndim
    operands: list[Operand] = [(call.shape, layers)]
    for name in names:
        if call.args.get(name) is not None:
            nodes = call.nodes(name, 0)
            call.mark(name, nodes, "norm")
            operands.append(([len(nodes) if d == axis else 1 for d in range(ndim)], along(nodes, axis, ndim)))
    return call.unite(operands)


def reduction(call: Call) -> Layers:
    """Sums, means, extrema over axes without labels; labelled axes that are reduced are fixed."""
    shape, layers = call.operand("self" if "self" in call.args else "input")
    axes = call.axes("dim", len(shape))
    layers = fix_support(call.ledger, layers, axes, f"{call.why} reduces over channels")
    if len(call.shape) == len(shape):
        return layers
    kept = [d for d in range(len(shape)) if d not in axes]
    return tuple(layer.reshape([layer.shape[d] for d in kept]) for layer in layers)


def along_axis(call: Call) -> Layers:
    """Soft-max, cumulative sums, sorting: same shape, but values mix along `dim`."""
    shape, layers = call.operand("self")
    return fix_support(call.ledger, layers, call.axes("dim", len(shape)), f"{call.why} mixes channels")


def pool_1d(call: Call) -> Layers:
    """Pooling, resampling, padding by what is there: mixes positions along the last axis and none before it."""
    return _window(call, 1)


def pool_2d(call: Call) -> Layers:
    """The same along the last two axes."""
    return _window(call, 2)


def pool_3d(call: Call) -> Layers:
    """The same along the last three axes."""
    return _window(call, 3)


def _window(call: Call, positions: int) -> Layers:
    shape, layers = call.operand("self" if "self" in call.args else "input")
    return fix_support(call.ledger, layers, set(range(len(shape) - positions, len(shape))), call.why)


def _only_before(call: Call, name: str, channel: int) -> Layers:
    """Layers of an argument that a convolution hands through: those along the axes before the channels."""
    shape, layers = call.operand(name)
    layers = tuple(layer for layer in layers if layer.shape[channel] == 1)
    return fix_support(call.ledger, layers, set(range(channel, len(shape))), call.why)


def fresh(call: Call) -> Layers:
    """A new tensor that takes only its type and device from the argument: no channels of it."""
    return ()
