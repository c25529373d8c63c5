"""Rules of the operations that only move data: the same move is made on the labels."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import pad as pad_nodes

from prunecli.surgery.call import Call, labels_of
from prunecli.surgery.layers import Layers, Operand, concatenate, fix_support, reshape, rigid, support
from prunecli.surgery.ledger import FIXED

PerOutput = list[Layers]


def same(call: Call) -> Layers:
    """Copies, casts and mirror images along labelled axes that keep their order."""
    return call.layers("self" if "self" in call.args else "input")


def permute(call: Call) -> Layers:
    """Axes change places."""
    layers = call.layers("self")
    ndim = call.args["self"].ndim
    match call.op:
        case "permute" | "movedim":
            if call.op == "movedim":
                return tuple(x.movedim(call.args["source"], call.args["destination"]) for x in layers)
            return tuple(x.permute(call.args["dims"]) for x in layers)
        case "transpose" | "swapaxes" | "swapdims":
            first, second = (v for k, v in call.args.items() if k != "self")
            return tuple(x.transpose(first, second) for x in layers)
        case "mT":
            return tuple(x.mT for x in layers)
    return tuple(x.permute(*reversed(range(ndim))) for x in layers)


def flip(call: Call) -> Layers:
    """A mirror image, of the labels too."""
    return tuple(layer.flip(call.args["dims"]) for layer in call.layers("self"))


def view(call: Call) -> Layers:
    """Same elements in the same order under another shape."""
    shape, layers = call.operand("self")
    return reshape(call.ledger, layers, shape, call.shape, call.why)


def expand(call: Call) -> Layers:
    """Axes of size 1 are repeated; new ones appear in front."""
    ndim = len(call.shape)
    return tuple(x.view((1,) * (ndim - x.ndim) + tuple(x.shape)) for x in call.layers("self"))


def repeat(call: Call) -> Layers:
    """Whole axes are repeated, with whatever is cut missing from each copy."""
    times = call.args["repeats"] if "repeats" in call.args else call.args["dims"]
    result = []
    for layer in call.layers("self"):
        layer = layer.view((1,) * (len(call.shape) - layer.ndim) + tuple(layer.shape))
        counts = [1] * (layer.ndim - len(times)) + list(times)
        result.append(layer.repeat([n if d in support(layer) else 1 for d, n in enumerate(counts)]))
    return tuple(result)


def pick(call: Call) -> Layers | PerOutput:
    """Slices, selections and rolls: where places along the axis are numbers in the code, no cut may run along it."""
    shape, layers = call.operand("self")
    axes = call.axes("dim" if "dim" in call.args else "dims", len(shape))
    if call.op == "slice" and call.shape == shape:
        return layers
    if call.op in ("slice", "narrow") and call.ledger.follows:
        (axis,) = axes
        start, end = call.args["start"], call.args.get("end")
        places = slice(start, end if call.op == "slice" else start + call.args["length"], call.args.get("step"))
        return tuple(x[(slice(None),) * axis + (places,)] if axis in support(x) else x for x in layers)
    for axis in axes:
        layers = rigid(call.ledger, layers, axis, f"{call.why} names places along the channels")
    if call.op in ("select", "unbind"):
        layers = tuple(layer.squeeze(min(axes)) for layer in layers)
    return layers


def split(call: Call) -> PerOutput:
    """Equal parts keep the same positions each; unequal ones need sizes that follow a cut."""
    shape, layers = call.operand("self")
    (axis,) = call.axes("dim", len(shape))
    if call.op == "split_with_sizes" and call.ledger.follows:
        return list(zip(*(_parts(layer, call.args["split_sizes"], axis) for layer in layers), strict=True))
    sizes = {part.shape[axis] for part in call.out}
    if len(sizes) > 1:
        return [rigid(call.ledger, layers, axis, f"{call.why} in unequal parts")] * len(call.out)
    (size,) = sizes
    if size == 1:
        return [rigid(call.ledger, layers, axis, f"{call.why} takes channels one by one")] * len(call.out)
    result: Layers = ()
    for layer in layers:
        parts = torch.split(layer, size, axis) if axis in support(layer) else (layer,)
        for part in parts[1:]:
            call.ledger.tie(parts[0], part, call.why)
        result += (parts[0],)
    return [result] * len(call.out)


def _parts(layer: Tensor, sizes: list[int], axis: int) -> Sequence[Tensor]:
    return torch.split(layer, sizes, axis) if axis in support(layer) else [layer] * len(sizes)


def pad(call: Call) -> Layers:
    """What is padded to a labelled axis is fixed; a pad that crops names places."""
    shape, layers = call.operand("self")
    amounts = call.args["pad"]
    for i, (before, after) in enumerate(zip(amounts[::2], amounts[1::2], strict=True)):
        axis = len(shape) - 1 - i
        if min(before, after) < 0:
            layers = fix_support(call.ledger, layers, {axis}, call.why)
        else:
            widen = [0, 0] * i + [before, after]
            layers = tuple(pad_nodes(x, widen, value=FIXED) if axis in support(x) else x for x in layers)
    return layers


def cat(call: Call) -> Layers:
    """Labels are concatenated; operands without labels are fixed in their places."""
    tensors: list[Tensor] = [t for t in call.args["tensors"] if t.numel() or t.ndim > 1]
    operands: list[Operand] = [(tuple(t.shape), labels_of(t).layers) for t in tensors]
    (axis,) = call.axes("dim", len(call.shape))
    return concatenate(call.ledger, operands, axis, call.why)


def stack(call: Call) -> Layers:
    """Tensors of one shape along a new axis: what varies along common axes is tied."""
    layers = call.unite([(tuple(t.shape), labels_of(t).layers) for t in call.args["tensors"]])
    (axis,) = call.axes("dim", len(call.shape))
    return tuple(layer.unsqueeze(axis) for layer in layers)


def pixel_shuffle(call: Call) -> Layers:
    """Blocks of factor² channels become pixels: whole blocks are cut."""
    shape, layers = call.operand("self")
    factor = call.args["upscale_factor"]
    blocks = (*shape[:-3], shape[-3] // factor**2, factor**2, *shape[-2:])
    layers = rigid(call.ledger, reshape(call.ledger, layers, shape, blocks, call.why), len(shape) - 2, call.why)
    result = tuple(layer.squeeze(len(shape) - 2) for layer in layers)
    return fix_support(call.ledger, result, {len(shape) - 1, len(shape) - 2}, call.why)


def pixel_unshuffle(call: Call) -> Layers:
    """Pixels become blocks of factor² channels that hold the same unit."""
    factor = call.args["downscale_factor"]
    ndim = call.args["self"].ndim
    layers = fix_support(call.ledger, call.layers("self"), {ndim - 1, ndim - 2}, call.why)
    return tuple(x.repeat_interleave(factor**2, ndim - 3) if x.shape[ndim - 3] > 1 else x for x in layers)


def channel_shuffle(call: Call) -> Layers:
    """Channels of every group are dealt out in turn: the same positions of every group."""
    groups = call.args["groups"]
    result = []
    for layer in call.layers("self"):
        if layer.shape[1] > 1:
            blocks = layer.unflatten(1, (groups, -1))
            call.ledger.tie(blocks, blocks[:, :1], call.why)
            layer = blocks.transpose(1, 2).flatten(1, 2)
        result.append(layer)
    return tuple(result)


def rot90(call: Call) -> Layers:
    """A rotation, of the labels too."""
    return tuple(layer.rot90(call.args["k"], call.args["dims"]) for layer in call.layers("self"))


def windows(call: Call) -> Layers:
    """`x.unfold`: overlapping windows of one axis, along a new last one."""
    layers = rigid(call.ledger, call.layers("self"), call.args["dimension"] % call.args["self"].ndim, call.why)
    return tuple(layer.unsqueeze(-1) for layer in layers)


def unfold(call: Call) -> Layers:
    """im2col: the pixels of a window become blocks of channels that hold the same unit."""
    ndim = call.args["self"].ndim
    layers = fix_support(call.ledger, call.layers("self"), {ndim - 1, ndim - 2}, call.why)
    pixels = prod(call.args["kernel_size"])
    return tuple(x.repeat_interleave(pixels, -3)[..., 0] if x.shape[-3] > 1 else x[..., 0] for x in layers)


def fold(call: Call) -> Layers:
    """col2im: blocks of channels become the pixels of a window: whole blocks are cut."""
    shape, layers = call.operand("self")
    pixels, axis = prod(call.args["kernel_size"]), len(shape) - 1
    layers = fix_support(call.ledger, layers, {axis}, call.why)
    blocks = (*shape[:-2], shape[-2] // pixels, pixels, shape[-1])
    return rigid(call.ledger, reshape(call.ledger, layers, shape, blocks, call.why), axis, call.why)


def triangle(call: Call) -> Layers:
    """Which elements of a matrix stay depends on both of their places."""
    layers, ndim = call.layers("self"), call.args["self"].ndim
    for axis in (ndim - 2, ndim - 1):
        layers = rigid(call.ledger, layers, axis, f"{call.why} names places along the channels")
    return layers


def as_complex(call: Call) -> Layers:
    """The last axis becomes real and imaginary part: both stay or go."""
    layers = rigid(call.ledger, call.layers("self"), call.args["self"].ndim - 1, call.why)
    return tuple(layer.squeeze(-1) for layer in layers)


def as_real(call: Call) -> Layers:
    """Real and imaginary part, along a new last axis."""
    return tuple(layer.unsqueeze(-1) for layer in call.layers("self"))
