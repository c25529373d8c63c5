"""The ledger of a trace: a node for every slice of every parameter axis, and which nodes must be cut together.

Node 0 stands for everything that cannot be cut: constants, padding, the network's own inputs and outputs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

FIXED = 0
Axis = tuple[str, int]  # name of a parameter or buffer, axis
Side = tuple[Tensor, int]  # a layer, and the axis along which it is counted
Reshapes = dict[tuple[int, int], tuple[tuple[Tensor, ...], tuple[int, ...]]]  # place -> layers and shape there


class ValuesAskedError(Exception):
    """The network decides by values, which a run on the meta device has not."""


class Ledger:
    """Records ties; whatever follows from them is worked out once, at the end, by `components`.

    `modes` are those in which the network ran, true for train mode. With `heads` attention loses whole heads, else the
    same positions of every head. `whole_groups` says the like of grouped convolutions, by layer, where it is known.
    """

    def __init__(self, *, heads: bool = False, whole_groups: Mapping[str, bool] | None = None) -> None:
        self.modes: tuple[bool, ...] = ()
        self.heads = heads
        self.sizes: dict[Axis, Tensor] = {}  # attribute of a module, item if it is a list: nodes
        self.follows = False  # are the places that the running function names sizes, or numbers written in the code?
        self.axes: dict[Axis, Tensor] = {}
        self.roles: dict[Axis, str] = {}
        self.called: set[str] = set()
        self.answers: list[object] = []  # values that the network asked for, in order
        self.rectangles: list[tuple[Tensor, str]] = []
        self.reshapes: Reshapes = {}
        self.expected: Reshapes = {}  # those of the whole network, in a run of a cut one
        self.block_numbers: dict[tuple[tuple[int, int], str, int, int], bool] = {}  # does a size count blocks there?
        self.place = 0, 0  # of the running operation: how many ran before, and its parts that did
        self.whole_groups = dict(whole_groups or {})  # layer -> does its grouped convolution lose whole groups?
        self._starts: list[int] = []
        self._owners: list[Axis] = []
        self._ties: list[tuple[Tensor, Tensor, str]] = []
        self._links: list[tuple[Side, Side, str]] = []
        self._changes: list[tuple[Tensor, str]] = []
        self._size = 1

    def axis(self, tensor: str, axis: int, length: int) -> Tensor:
        """Nodes [length] of a parameter axis, always the same ones: a layer called twice ties both calls."""
        return self._nodes(self.axes, (tensor, axis), length)

    def counts(self, attribute: str, item: int, value: int) -> bool:
        """Can this integer count units?"""
        return value > 1

    def size(self, attribute: str, item: int, value: int) -> Tensor:
        """Nodes [value] that an integer attribute counts, or an item of a list."""
        return self._nodes(self.sizes, (attribute, item), value)

    def _nodes(self, where: dict[Axis, Tensor], key: Axis, length: int) -> Tensor:
        if key not in where:
            where[key] = torch.arange(self._size, self._size + length)
            self._starts.append(self._size)
            self._owners.append(key)
            self._size += length
        return where[key]

    def answer(self, value: object) -> object:
        """A value that the network asks for, None on the meta device, which has none. Raises ValuesAskedError then."""
        if value is None:
            raise ValuesAskedError
        self.answers.append(value)
        return value

    def tie(self, first: Tensor, second: Tensor, why: str) -> None:
        """Nodes at equal places of two broadcastable tensors go together; a tie to node 0 fixes."""
        if first.shape != second.shape:
            first, second = torch.broadcast_tensors(first, second)
        self._ties.append((first.reshape(-1), second.reshape(-1), why))

    def fix(self, nodes: Tensor, why: str) -> None:
        """These nodes cannot be cut, and `why`."""
        self.tie(nodes, nodes.new_tensor(FIXED), why)

    def link(self, first: Side, second: Side, why: str) -> None:
        """As many units are left along one axis as along the other."""
        self._links.append((first, second, why))

    def change(self, nodes: Tensor, why: str) -> None:
        """Cutting these nodes changes what the network computes, beyond the removal itself."""
        self._changes.append((nodes.reshape(-1), why))

    def reshape(self, split: Sequence[Tensor], layers: Sequence[Tensor], shape: Sequence[int], why: str) -> None:
        """A tensor took this shape, with these layers; a cut leaves rectangles of `split`, it runs along one axis."""
        self.rectangles += [(nodes, why) for nodes in split]
        self.reshapes[self.place] = tuple(layers), tuple(shape)

    def mark(self, nodes: Tensor, role: str) -> None:
        """The parameter axes that own these nodes act as `role`; "out" and "in" win over anything else."""
        nodes = nodes.reshape(-1)
        for start in {bisect_right(self._starts, int(node)) - 1 for node in (nodes[0], nodes[-1])} - {-1}:
            owner = self._owners[start]
            if self.roles.get(owner) not in ("out", "in"):
                self.roles[owner] = role

    def tied(self) -> set[str]:
        """Names of the tensors that some operation tied to anything."""
        marks = torch.zeros(self._size, dtype=torch.bool)
        for first, second, _ in self._ties:
            marks[first] = True
            marks[second] = True
        return {tensor for (tensor, _), nodes in self.axes.items() if bool(marks[nodes].any())}

    def components(self) -> Components:
        """The units: connected components of all ties, rectangles and links enforced."""
        while True:
            result = Components(self._size, self._ties, self._changes)
            ties = [*self._rectangles(result)] or [*self._counts(result)]
            if not ties:
                return result
            for first, second, why in ties:
                self.tie(first, second, why)

    def _rectangles(self, parts: Components) -> Iterator[tuple[Tensor, Tensor, str]]:
        """Ties that a split axis still needs: the same positions in every block."""
        for nodes, why in self.rectangles:
            if not _is_rectangle(parts.unit[nodes]):
                last = max(d for d in range(nodes.ndim) if nodes.shape[d] > 1)
                moved = nodes.movedim(last, -1)
                yield moved, moved.reshape(-1, nodes.shape[last])[0], why

    def _counts(self, parts: Components) -> Iterator[tuple[Tensor, Tensor, str]]:
        """Ties that links still need: slice by slice, unless both sides have the same units in any order.

        None can be cut where only one side has units to lose.
        """
        for first, second, why in self._links:
            one, other = _slices(parts, *first), _slices(parts, *second)
            if one is None and other is None:
                continue
            if one is None or other is None:
                yield (first if other is None else second)[0], torch.tensor(FIXED), why
            elif not torch.equal(parts.unit[one].sort().values, parts.unit[other].sort().values):
                yield one, other, why


class Components:
    """Units of a finished trace: `unit[node]` is a representative node, 0 for whatever is fixed."""

    def __init__(self, size: int, ties: list[tuple[Tensor, Tensor, str]], changes: list[tuple[Tensor, str]]) -> None:
        empty = torch.zeros(0, dtype=torch.int64)
        first = torch.cat([empty, *(a for a, _, _ in ties)])
        second = torch.cat([empty, *(b for _, b, _ in ties)])
        source = torch.repeat_interleave(torch.tensor([len(a) for a, _, _ in ties], dtype=torch.int64))
        fixing = ((first == FIXED) ^ (second == FIXED)).nonzero()[:, 0]
        joining = (first != second) & (first != FIXED) & (second != FIXED)
        self.root = _connected(size, first[joining], second[joining])
        fixed_root = self.root[torch.maximum(first[fixing], second[fixing])]
        self.reasons: dict[int, str] = {}
        for root, number in zip(fixed_root.tolist(), source[fixing].tolist(), strict=True):
            self.reasons.setdefault(root, ties[number][2])
        self.unit = self.root.clone()
        self.unit[torch.isin(self.root, fixed_root)] = FIXED
        self.changes: dict[int, str] = {}
        for nodes, why in changes:
            for root in {*self.unit[nodes].tolist()}:
                self.changes.setdefault(root, why)

    def why_fixed(self, nodes: Tensor) -> str:
        """The first reason that fixed any of these nodes."""
        return next(self._reasons_of(nodes), "nothing consumes or produces it")

    def _reasons_of(self, nodes: Tensor) -> Iterator[str]:
        return (self.reasons[root] for root in self.root[nodes].tolist() if root in self.reasons)


def _connected(size: int, first: Tensor, second: Tensor) -> Tensor:
    """Smallest node of each node's connected component, by hooking roots and pointer jumping; [size]."""
    root = torch.arange(size)
    while True:
        a, b = root[first], root[second]
        if torch.equal(a, b):
            return root
        root.scatter_reduce_(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
        while not torch.equal(root, root[root]):
            root = root[root]


def _is_rectangle(units: Tensor) -> bool:
    """Do the cuttable units of a split axis vary along at most one of its axes?"""
    varying = [d for d in range(units.ndim) if not bool((units == units.narrow(d, 0, 1)).all())]
    return len(varying) <= 1


def _slices(parts: Components, layer: Tensor, axis: int) -> Tensor | None:
    """One node a slice of a layer along an axis, None where its units do not run along it."""
    units = parts.unit[layer]
    if bool((units == units.narrow(axis, 0, 1)).all()):
        return None
    return layer.movedim(axis, 0).reshape(layer.shape[axis], -1)[:, 0]
