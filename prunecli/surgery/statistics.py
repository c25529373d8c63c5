"""Rules of statistics: normalisations, reductions, and what mixes values along an axis."""

from __future__ import annotations

from prunecli.surgery.call import Call, labels_of
from prunecli.surgery.compute import elementwise
from prunecli.surgery.layers import Layers, fix_support, rigid, support

# of slices that hold zeros these are what they are without the slices, as a product with ones would be
_SUMS = {"sum", "nansum", "linalg_vector_norm", "norm", "count_nonzero", "any"}
_AVERAGES = {"mean", "var", "std", "var_mean", "std_mean"}


def batch_norm(call: Call) -> Layers:
    """Ties scale, shift and running statistics to the channels; each is normalised alone, over the other axes."""
    _normalised(call, set(range(call.args["input"].ndim)) - {1})
    return _tie_affine(call, ("weight", "bias", "running_mean", "running_var"))


def group_norm(call: Call) -> Layers:
    """Channels of one group are normalised together: the same positions of every group, and the function changes."""
    channels = call.nodes("input", 1)
    groups = call.args["num_groups"] if "num_groups" in call.args else call.args["group"]
    if groups < len(channels):
        blocks = channels.view(groups, -1)
        call.ledger.tie(blocks, blocks[0], call.why)
    _normalised(call, set(range(1 if groups < len(channels) else 2, call.args["input"].ndim)))
    return _tie_affine(call, ("weight", "bias"))


def layer_norm(call: Call) -> Layers:
    """Layer and RMS norm: tie scale and shift; the function changes if they normalise over the cut axis."""
    ndim = call.args["input"].ndim
    _normalised(call, set(range(ndim - len(call.args["normalized_shape"]), ndim)))
    return elementwise(call)


def weight_norm(call: Call) -> list[Layers]:
    """v g / |v|, the norm over all axes but `dim`, and that norm."""
    v, g = call.operand("v"), call.operand("g")
    axes = {d for d in range(len(v[0])) if d != call.args["dim"] % len(v[0])}
    for layer in (layer for layer in v[1] if support(layer) & axes):
        call.ledger.change(layer, f"{call.why} divides by a norm over channels that are cut")
    return [call.unite([v, g]), g[1]]


def _normalised(call: Call, axes: set[int]) -> None:
    """The input is divided by statistics over these axes, which a cut along them changes."""
    for layer in call.layers("input"):
        if support(layer) & axes:
            call.ledger.change(layer, f"{call.why} normalises over channels that are cut")


def _tie_affine(call: Call, names: tuple[str, ...]) -> Layers:
    """Ties these arguments, one value a channel, to axis 1 of the input."""
    channels = call.nodes("input", 1)
    for name in names:
        if call.args.get(name) is not None:
            nodes = call.nodes(name, 0)
            call.mark(name, nodes, "norm")
            call.ledger.tie(channels, nodes, call.why)
    return call.layers("input")


def reduction(call: Call) -> Layers:
    """Sums, averages and extrema over some axes.

    Over a labelled axis of activations a sum is exact where units that are cut leave zeros in it; a sum of weights
    changes, since those of a unit that is cut are not zero, and so do averages, whatever is cut; extrema fix the axis.
    """
    shape, layers = call.operand("self" if "self" in call.args else "input")
    axes = call.axes("dim", len(shape))
    result: Layers = ()
    for layer in layers:
        inside = support(layer) & axes
        if not _follows(call):
            result += fix_support(call.ledger, (layer,), axes, f"{call.why} reduces over channels")
            continue
        if inside and inside != support(layer):  # of [heads, width]: the same positions of every head, or whole heads
            positions = call.op in _SUMS and not call.ledger.heads
            for axis in support(layer) - inside if positions else inside:
                layer = rigid(call.ledger, (layer,), axis, call.why)[0]
        if not support(layer) <= axes:
            result += (layer,)
        elif call.op in _AVERAGES or all(labels_of(tensor).own for tensor in call.tensors()):
            call.ledger.change(layer, f"{call.why} reduces over channels that are cut")
    if len(call.shape) == len(shape):
        return result
    kept = [d for d in range(len(shape)) if d not in axes]
    return tuple(layer.reshape([layer.shape[d] for d in kept]) for layer in result)


def _follows(call: Call) -> bool:
    """Is there a value of this reduction after a cut that has to do with the value before it?"""
    order = call.args.get("ord", call.args.get("p"))
    return call.op in _AVERAGES or (call.op in _SUMS and (order is None or order > 0))


def extremum(call: Call) -> Layers:
    """max and min, of one tensor over an axis or of two tensors."""
    return elementwise(call) if "other" in call.args else reduction(call)


def along_axis(call: Call) -> Layers:
    """Soft-max, cumulative sums, sorting: values mix along `dim`, where all places stay or go together."""
    shape, layers = call.operand("self")
    for axis in call.axes("dim", len(shape)):
        layers = rigid(call.ledger, layers, axis, f"{call.why} mixes channels")
    return layers
