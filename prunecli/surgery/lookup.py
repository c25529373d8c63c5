"""Rules of looking up and writing by index: `x[i]`, gather, scatter, embeddings.

The places that are looked up are written in tensors that no cut renumbers, so nothing may be cut along them. Fewer
places may be looked up, though.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunecli.surgery.call import Call, labels_of
from prunecli.surgery.layers import Layers, Operand, along, reshape, rigid, support


def index(call: Call) -> Layers:
    """`x[i, :, j]`, its indices broadcast against each other."""
    return _look_up(call, "self", call.args["indices"])


def index_select(call: Call) -> Layers:
    """Slices along one axis. Channels looked up at places that the network itself keeps are units of their own.

    Those places are then what a cut shortens; the channels that they are looked up among stay.
    """
    (axis,) = call.axes("dim", call.args["self"].ndim)
    if call.args["index"].ndim and any(axis in support(layer) for layer in call.layers("self")):
        call.mark("index", call.nodes("index", 0), "out")
    return _look_up(call, "self", [None] * axis + [call.args["index"]])


def embedding(call: Call) -> Layers:
    """Rows of a table; its columns start a labelling."""
    call.mark("weight", call.nodes("weight", 1), "out")
    return _look_up(call, "weight", [call.args["indices"]])


def embedding_bag(call: Call) -> Layers:
    """Sums or means of rows of a table; its columns start a labelling."""
    call.ledger.fix(call.nodes("weight", 0), _why(call))
    columns = call.nodes("weight", 1)
    call.mark("weight", columns, "out")
    return along(columns, -1, len(call.shape))


def index_put(call: Call) -> Layers:
    """`x[i, :, j] = values`: what is written goes with what it is written over."""
    indices, values = call.args["indices"], call.args["values"]
    first, count = _placed(indices)
    kept = _rigid(call, call.args["self"], {d for d, i in enumerate(indices) if i is not None})
    layers = tuple(layer[_anywhere(indices, count)] for layer in kept)
    sizes = [n for d, n in enumerate(call.shape) if indices[d : d + 1] in ([], [None])]
    shape = [*sizes[:first], *[1] * count, *sizes[first:]]
    places = {d - len(shape) + values.ndim for d in range(first, first + count)}
    call.unite([(shape, layers), _stiff(call, values, {d for d in places if d >= 0})])
    return kept


def gather(call: Call) -> Layers:
    """`out[i, j] = x[i, index[i, j]]` along `dim`; take_along_dim broadcasts, and without `dim` it flattens."""
    table, index = call.args["self"], call.args["index" if "index" in call.args else "indices"]
    if call.args["dim"] is None:
        return reshape(call.ledger, _rigid(call, table, set(range(table.ndim))), table.shape, call.shape, call.why)
    used = call.axes("dim", table.ndim) | {d for d, n in enumerate(table.shape) if n != call.shape[d]}
    return call.unite([_stiff(call, table, used), call.broadcast(index)])


def scatter(call: Call) -> Layers:
    """`x[i, index[i, j]] = source[i, j]` along `dim`, or sums, or one value; also whole slices, index [j]."""
    (axis,) = call.axes("dim", call.args["self"].ndim)
    tensors = [call.args.get(name) for name in ("self", "index", "src", "source")]
    found = [t for t in tensors if isinstance(t, Tensor) and t.ndim == len(call.shape)]
    used = {axis} | {d for d, sizes in enumerate(zip(*(t.shape for t in found), strict=True)) if len({*sizes}) > 1}
    return call.unite([_stiff(call, t, used) for t in found])


def _look_up(call: Call, name: str, indices: Sequence[Tensor | None]) -> Layers:
    """The places looked up must all stay; where the indices themselves have labels, the result has them too."""
    first, count = _placed(indices)
    kept = _rigid(call, call.args[name], {d for d, i in enumerate(indices) if i is not None})
    layers = tuple(layer[_anywhere(indices, count)] for layer in kept)
    end = len(call.shape) - first - count
    shape = [1 if first <= d < first + count else n for d, n in enumerate(call.shape)]
    operands: list[Operand] = [(shape, layers)]
    for i in (i for i in indices if i is not None):
        own = tuple(x.view([1] * (first + count - i.ndim) + list(x.shape) + [1] * end) for x in labels_of(i).layers)
        operands.append(([1] * (first + count - i.ndim) + list(i.shape) + [1] * end, own))
    return call.unite(operands)


def _placed(indices: Sequence[Tensor | None]) -> tuple[int, int]:
    """The first axis of a result of `x[indices]` that comes from the indices, and how many do."""
    places = [d for d, i in enumerate(indices) if i is not None]
    adjacent = places[-1] - places[0] < len(places)
    return places[0] if adjacent else 0, max(i.ndim for i in indices if i is not None)


def _anywhere(indices: Sequence[Tensor | None], count: int) -> tuple[slice | Tensor, ...]:
    """Indices of the same form into a layer that has but one place along those axes."""
    place = torch.zeros([1] * count, dtype=torch.int64)
    return tuple(slice(None) if i is None else place for i in indices)


def _stiff(call: Call, tensor: Tensor, axes: set[int]) -> Operand:
    """A tensor as seen along all axes but these, along which it must stay."""
    shape, _ = call.broadcast(tensor)
    return [1 if d in axes else n for d, n in enumerate(shape)], _rigid(call, tensor, axes)


def _rigid(call: Call, tensor: Tensor, axes: set[int]) -> Layers:
    layers = labels_of(tensor).layers
    for axis in axes:
        layers = rigid(call.ledger, layers, axis, _why(call))
    return layers


def _why(call: Call) -> str:
    return f"{call.why} looks up places along the channels"
