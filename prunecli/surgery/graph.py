"""The operations of one run of a network: which values each reads and makes, of which parameters, in which module."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from prunecli.surgery.twin import META, inputs_on, twin_of
from prunecli.surgery.within import tensors_in


@dataclass(frozen=True)
class Op:
    """An operation: numbers of the values that it reads and makes, names of the parameters that it uses by argument."""

    name: str
    module: str
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    parameters: dict[str, str]


@dataclass
class CallOf:
    """One call of a module: its operations, from `start` to before `end`, and the value that it put out.

    There is none where it put out several tensors, or something else.
    """

    start: int
    end: int | None = None
    output: int | None = None


@dataclass
class Graph:
    """A run: its operations in order, and the calls of every module that was called.

    `readers` has the operations that read each value, and the number of all operations for what the network puts out;
    `makers` the one that made it, `users` those that use a parameter. `live` are the values that follow from the
    network's input, unlike those that are always the same. Operations of which nothing came are in `idle` alone.
    """

    ops: list[Op] = field(default_factory=list)
    calls: dict[str, list[CallOf]] = field(default_factory=dict)
    readers: dict[int, set[int]] = field(default_factory=dict)
    makers: dict[int, int] = field(default_factory=dict)
    users: dict[str, set[int]] = field(default_factory=dict)
    live: set[int] = field(default_factory=set)
    idle: set[int] = field(default_factory=set)


def graph_of(network: nn.Module, *inputs: Any) -> Graph:
    """The graph of a run in eval mode, on the meta device where the network can; it is left as it was.

    Raises whatever the network's own code raises on these inputs.
    """
    for device in (META, None):
        with torch.inference_mode():
            twin, values = twin_of(network, device).eval(), inputs_on(inputs, device)
            try:
                return _Recorder(twin, values).run()
            except Exception:  # of any kind: on the meta device there are no values
                if device is None:
                    raise
    raise AssertionError  # one of the two returns or raises


class _Recorder(TorchDispatchMode):
    """Gives every tensor a number, and another one when an operation has changed it in place."""

    def __init__(self, twin: nn.Module, inputs: tuple[Any, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.twin, self.inputs = twin, inputs
        self.graph = Graph()
        self._numbers: dict[int, int] = {}
        self._alive: list[Tensor] = []  # tensors are known by address: none may be reused
        self._names = {id(tensor): name for name, tensor in twin.named_parameters()}
        self._sources: dict[int, str] = {}  # of values made of one parameter alone
        self._stack: list[str] = []
        self._changing: set[int] = set()

    def run(self) -> Graph:
        for name, module in self.twin.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: self._enter(name))
            module.register_forward_hook(lambda module, _, output: self._leave(module, output))
        self.graph.live = {self._number(tensor) for tensor in tensors_in(self.inputs)}
        with self:
            output = self.twin(*self.inputs)
        for tensor in tensors_in(output):
            self.graph.readers.setdefault(self._number(tensor), set()).add(len(self.graph.ops))
        self._idle()
        return self.graph

    def _idle(self) -> None:
        """Find what nobody reads, as weights of attention; what works in place is not among it, views may show it."""
        readers = self.graph.readers
        for place, op in reversed([*enumerate(self.graph.ops)]):
            if place not in self._changing and not any(readers.get(value) for value in op.makes):
                self.graph.idle.add(place)
                for value in op.reads:
                    readers[value].discard(place)

    def _number(self, tensor: Tensor, *, anew: bool = False) -> int:
        if anew or id(tensor) not in self._numbers:
            self._numbers[id(tensor)] = len(self._alive)
            self._alive.append(tensor)
            if id(tensor) in self._names:
                self._sources[self._numbers[id(tensor)]] = self._names[id(tensor)]
        return self._numbers[id(tensor)]

    def _enter(self, name: str) -> None:
        self._stack.append(name)
        self.graph.calls.setdefault(name, []).append(CallOf(len(self.graph.ops)))

    def _leave(self, module: nn.Module, output: Any) -> None:
        if isinstance(module, nn.MultiheadAttention):  # beside which are the attention weights
            output = output[0]
        call = next(call for call in reversed(self.graph.calls[self._stack.pop()]) if call.end is None)
        call.end = len(self.graph.ops)
        call.output = self._number(output) if isinstance(output, Tensor) else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        reads = {name: [self._number(tensor) for tensor in tensors_in(value)] for name, value in given.items()}
        read = tuple(value for values in reads.values() for value in values)
        out = func(*args, **kwargs)
        live = not self.graph.live.isdisjoint(read)
        makes = tuple(self._number(tensor, anew=True) for tensor in tensors_in(out))
        sources = {name: self._sources[v] for name, values in reads.items() for v in values if v in self._sources}
        place = len(self.graph.ops)
        module = self._stack[-1] if self._stack else ""
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        self.graph.ops.append(Op(name, module, read, makes, sources))
        if func._schema.is_mutable:
            self._changing.add(place)
        for value in read:
            self.graph.readers.setdefault(value, set()).add(place)
        for value in makes:
            self.graph.makers[value] = place
            if live:
                self.graph.live.add(value)
            elif len({*sources.values()}) == 1:
                self._sources[value] = next(iter(sources.values()))
        for parameter in sources.values() if live else ():
            self.graph.users.setdefault(parameter, set()).add(place)
        return out
