"""One operation of a trace, as a rule sees it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from prunecli.surgery.layers import Layers, Operand, unite, vector
from prunecli.surgery.ledger import Ledger


class Labels(NamedTuple):
    """What rides along with a tensor: its layers, and whether it was made of the network's own tensors alone."""

    layers: Layers = ()
    own: bool = False


NONE = Labels()


def labels_of(tensor: Any) -> Labels:
    """The labels of a tensor of a trace; none for anything else."""
    return getattr(tensor, "_prunecli_labels", NONE)


def set_labels(tensor: Tensor, labels: Labels) -> None:
    """Let labels ride along with this tensor, views and later operations read them."""
    tensor._prunecli_labels = labels  # type: ignore[attr-defined]


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Every tensor among the arguments or results of an operation, lists of them included."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


@dataclass
class Call:
    """An operation with its arguments by name, its result, and the layer that called it."""

    ledger: Ledger
    op: str
    args: dict[str, Any]
    out: Any
    layer: str

    @property
    def why(self) -> str:
        """How a reason names this operation."""
        return f"{self.op} in {self.layer or 'the network itself'}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first result."""
        return tuple(next(tensors_in((self.out,))).shape)

    def tensors(self) -> list[Tensor]:
        """Every tensor among the arguments."""
        return [*tensors_in(self.args.values())]

    def operand(self, name: str) -> Operand:
        """Shape and layers of an argument."""
        return tuple(self.args[name].shape), labels_of(self.args[name]).layers

    def broadcast(self, tensor: Tensor) -> Operand:
        """The same of a tensor; where it was expanded it counts as what is still to be broadcast, of size 1."""
        sizes = zip(tensor.shape, tensor.stride(), strict=True)
        return tuple(1 if stride == 0 else size for size, stride in sizes), labels_of(tensor).layers

    def layers(self, name: str) -> Layers:
        """Layers of an argument."""
        return labels_of(self.args[name]).layers

    def axes(self, name: str, ndim: int) -> set[int]:
        """An argument that names one axis, several, or (None, empty) all of them, counted from the front."""
        value = self.args.get(name)
        if value is None or value == []:
            return set(range(ndim))
        return {d % ndim for d in ([value] if isinstance(value, int) else value)}

    def nodes(self, name: str, axis: int) -> Tensor:
        """One node a slice of an argument along `axis`, whatever each slice holds tied."""
        tensor = self.args[name]
        return vector(self.ledger, labels_of(tensor).layers, axis % tensor.ndim, tensor.shape[axis], self.why)

    def unite(self, operands: Sequence[Operand]) -> Layers:
        """Tie broadcast operands, see `layers.unite`."""
        return unite(self.ledger, operands, self.why)

    def mark(self, name: str, nodes: Tensor, role: str) -> None:
        """If this argument is the network's own tensor, these nodes of it act as `role`."""
        if labels_of(self.args[name]).own:
            self.ledger.mark(nodes, role)
