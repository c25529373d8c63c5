"""Label layers: which node each element of a tensor belongs to, in a form that broadcasts to the tensor's shape.

A layer is an int64 tensor with as many axes as its tensor and size 1 along each axis on which it does not depend; the
axes of larger size are its support. A tensor carries one layer for each independent way in which it can be cut: a
convolution's weight two (its outputs, its inputs), a feature map one, an unlabelled tensor none.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise, product

import torch
from torch import Tensor

from prunecli.surgery.ledger import FIXED, Ledger

Layers = tuple[Tensor, ...]
Operand = tuple[Sequence[int], Layers]  # shape of a tensor and its layers


def support(layer: Tensor) -> set[int]:
    """Axes along which a layer varies."""
    return {d for d, size in enumerate(layer.shape) if size > 1}


def along(nodes: Tensor, axis: int, ndim: int) -> Layers:
    """The layer of a tensor of `ndim` axes whose slices along `axis` are `nodes` [length]; none for a single slice."""
    if len(nodes) == 1 or not bool(nodes.any()):
        return ()
    return (nodes.view([-1 if d == axis % ndim else 1 for d in range(ndim)]),)


def compact(layer: Tensor) -> Tensor:
    """Drop the axes along which a layer turns out to be constant."""
    for d in support(layer):
        first = layer.narrow(d, 0, 1)
        if bool((layer == first).all()):
            layer = first
    return layer


def unite(ledger: Ledger, operands: Sequence[Operand], why: str) -> Layers:
    """Layers of an element-wise result: operands broadcast, and what varies along common axes of several is tied.

    An operand of size 1 along such an axis is broadcast whatever the cut; one of full size without labels is constant
    there, and no cut may run along that axis.
    """
    ndim = max(len(shape) for shape, _ in operands)
    shapes = [(1,) * (ndim - len(shape)) + tuple(shape) for shape, _ in operands]
    aligned = [tuple(x.view((1,) * (ndim - x.ndim) + tuple(x.shape)) for x in layers) for _, layers in operands]
    clusters: list[tuple[set[int], list[tuple[int, Tensor]]]] = []
    for number, layers in enumerate(_uncrossed(ledger, aligned, why)):
        for layer in layers:
            axes, members = support(layer), [(number, layer)]
            for cluster in [c for c in clusters if c[0] & axes]:
                axes, members = axes | cluster[0], cluster[1] + members
                clusters.remove(cluster)
            clusters.append((axes, members))
    result: list[Tensor] = []
    for axes, members in clusters:
        left: Layers = tuple(layer for _, layer in members)
        labelled = {number for number, _ in members}
        if len(labelled) > 1:
            left = tuple(
                x for number in sorted(labelled) for x in _main(ledger, [y for n, y in members if n == number], why)
            )
            chosen = min(left, key=Tensor.numel)
            for layer in left:
                if layer is not chosen:
                    ledger.tie(chosen, layer, why)
            left = (chosen,)
        for number in set(range(len(shapes))) - labelled:
            for axis in (d for d in axes if shapes[number][d] > 1):
                left = rigid(ledger, left, axis, why)
        result.extend(left)
    return tuple(result)


def _uncrossed(ledger: Ledger, operands: Sequence[Layers], why: str) -> Sequence[Layers]:
    """Where layers of several operands cross, as [heads, width] and [heads, other width] do, cuts run along one axis.

    Either every head loses the same positions, and the two are independent, or both lose the same heads.
    """
    axes: set[int] = set()
    for one, other in combinations(operands, 2):
        for a, b in product(map(support, one), map(support, other)):
            if a & b and a - b and b - a:
                axes |= a ^ b if ledger.heads else a & b
    for axis in axes:
        operands = [
            tuple(y for x in layers for y in (rigid(ledger, (x,), axis, why) if support(x) - axes else (x,)))
            for layers in operands
        ]
    return operands


def _main(ledger: Ledger, layers: Sequence[Tensor], why: str) -> Layers:
    """Of several layers along the same axes (channels and window of a flattened kernel) only the first may be cut."""
    first: dict[frozenset[int], Tensor] = {}
    for layer in layers:
        if first.setdefault(frozenset(support(layer)), layer) is not layer:
            ledger.fix(layer, why)
    return tuple(first.values())


def vector(ledger: Ledger, layers: Layers, axis: int, length: int, why: str) -> Tensor:
    """One node a slice along `axis`, [length]: all that a slice holds is tied. Fixed where nothing is labelled."""
    chosen = None
    for layer in layers:
        if layer.shape[axis] > 1:
            if layer.numel() == length:
                nodes = layer.reshape(-1)
            else:
                slices = layer.movedim(axis, 0).reshape(length, -1)
                nodes = slices[:, 0]
                ledger.tie(slices, nodes[:, None], why)
            if chosen is not None:
                ledger.tie(chosen, nodes, why)
            chosen = nodes if chosen is None else chosen
    return torch.full([length], FIXED) if chosen is None else chosen


def fix_support(ledger: Ledger, layers: Layers, axes: set[int], why: str) -> Layers:
    """Fix the layers that vary along any of `axes`; return the others."""
    for layer in layers:
        if support(layer) & axes:
            ledger.fix(layer, why)
    return tuple(layer for layer in layers if not support(layer) & axes)


def rigid(ledger: Ledger, layers: Layers, axis: int, why: str) -> Layers:
    """The code depends on places along `axis`, so no cut may run along it; layers without that axis come back."""
    result = []
    for layer in layers:
        if support(layer) == {axis}:
            ledger.fix(layer, why)
        elif axis in support(layer):
            ledger.tie(layer, layer.narrow(axis, 0, 1), why)
            result.append(layer.narrow(axis, 0, 1))
        else:
            result.append(layer)
    return tuple(result)


def reshape(ledger: Ledger, layers: Layers, before: Sequence[int], after: Sequence[int], why: str) -> Layers:
    """Layers of a tensor of shape `before` seen in shape `after`, same elements in the same order.

    Axes are split into the parts that both shapes are made of, then joined; where there are none, layers are fixed.
    """
    runs = _runs(before, after)
    sizes = [size for _, parts, _ in runs for size in parts]
    split: list[Tensor] = []
    for layer in layers:
        touched = [
            (old, parts, new) if support(layer) & {*old} else ([], [1] * len(parts), []) for old, parts, new in runs
        ]
        if any(len(parts) < max(len(old), len(new)) for old, parts, new in touched):
            ledger.fix(layer, why)
            continue
        whole = layer.expand([n if any(d in old for old, _, _ in touched) else 1 for d, n in enumerate(before)])
        split.append(compact(whole.reshape([size for _, parts, _ in touched for size in parts])))
    result = tuple(_joined(layer, sizes, after) for layer in split)
    ledger.reshape(split, result, after, why)
    return tuple(layer for layer in result if support(layer))


def _joined(layer: Tensor, sizes: Sequence[int], after: Sequence[int]) -> Tensor:
    """A layer of a tensor of shape `sizes` seen in shape `after`, each of whose axes joins some of these."""
    shape, joined, start = list(layer.shape), [1] * len(after), 0
    for d, length in enumerate(after):
        end, left = start, length
        while left > 1:
            left //= sizes[end]
            end += 1
        if any(size > 1 for size in shape[start:end]):
            shape[start:end] = sizes[start:end]
            joined[d] = length
        start = end
    return layer.expand(shape).reshape(joined)


Run = tuple[list[int], list[int], list[int]]


def _runs(before: Sequence[int], after: Sequence[int]) -> list[Run]:
    """Smallest runs of axes, sizes 1 left out, that hold the same number of elements on both sides.

    Between the axes of each run stand the sizes of the parts of which both are made, one part if there is no such.
    """
    old = [d for d, size in enumerate(before) if size != 1]
    new = [d for d, size in enumerate(after) if size != 1]
    runs, i, j = [], 0, 0
    while i < len(old) and j < len(new):
        first, second = i, j
        a, b = before[old[i]], after[new[j]]
        ends = {a, b}
        while a != b:
            if a < b:
                i += 1
                a *= before[old[i]]
            else:
                j += 1
                b *= after[new[j]]
            ends |= {a, b}
        i, j = i + 1, j + 1
        cuts = [1, *sorted(ends)]
        exact = all(n % m == 0 for m, n in pairwise(cuts))
        runs.append((old[first:i], [n // m for m, n in pairwise(cuts)] if exact else [a], new[second:j]))
    return runs


def concatenate(ledger: Ledger, operands: Sequence[Operand], axis: int, why: str) -> Layers:
    """Layers of a concatenation: places of unlabelled operands along `axis` are fixed."""
    shapes = [[1 if d == axis else size for d, size in enumerate(shape)] for shape, _ in operands]
    others = [tuple(layer for layer in layers if layer.shape[axis] == 1) for _, layers in operands]
    across = unite(ledger, list(zip(shapes, others, strict=True)), why)
    pieces = []
    for shape, layers in operands:
        hits = [layer for layer in layers if layer.shape[axis] > 1]
        for other in hits[1:]:
            ledger.tie(hits[0], other, why)
        pieces.append(hits[0] if hits else torch.full([shape[d] if d == axis else 1 for d in range(len(shape))], FIXED))
    if not any(bool(piece.any()) for piece in pieces):
        return across
    common = [max(sizes) for sizes in zip(*(piece.shape for piece in pieces), strict=True)]
    joined = torch.cat([p.expand([p.shape[d] if d == axis else n for d, n in enumerate(common)]) for p in pieces], axis)
    return (joined, *across)
