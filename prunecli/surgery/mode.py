"""The dispatch mode of a trace: every operation runs, and its rule carries the labels from arguments to results."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from prunecli.surgery.call import Call, Labels, labels_of, set_labels, tensors_in
from prunecli.surgery.compute import elementwise
from prunecli.surgery.layers import Layers, along
from prunecli.surgery.ledger import Ledger
from prunecli.surgery.movement import view
from prunecli.surgery.quick import quick
from prunecli.surgery.rules import RULES, Rule
from prunecli.surgery.twin import META, own_tensors

_COPIES = {"aten::clone", "aten::contiguous"}  # whether these run depends on the sizes: they count for no step
_VALUES = {"item", "is_nonzero", "_local_scalar_dense", "nonzero"}


def label(network: nn.Module, ledger: Ledger) -> None:
    """Give every parameter and buffer a layer of labels along each of its axes; buffers not saved are no weights."""
    saved = network.state_dict(keep_vars=True)
    for name, tensor in own_tensors(network).items():
        layers: Layers = ()
        for axis, length in enumerate(tensor.shape):
            layers += along(ledger.axis(name, axis, length), axis, tensor.ndim)
        set_labels(tensor, Labels(layers, own=name in saved))


class _Known(NamedTuple):
    """What is known of an operation before it is called."""

    op: str
    rule: Rule | None
    in_place: bool
    names: tuple[str, ...]
    defaults: dict[str, Any]


@cache
def _known(func: Any) -> _Known:
    schema = func._schema
    name = schema.name.removeprefix("aten::")
    op = name.rstrip("_") if schema.is_mutable else name
    return _Known(
        op,
        RULES.get(op, elementwise if torch.Tag.pointwise in func.tags else None),
        schema.is_mutable,
        tuple(argument.name for argument in schema.arguments),
        {a.name: a.default_value for a in schema.arguments if a.has_default_value()},
    )


class LabelMode(TorchDispatchMode):
    """Runs every operation and lets the rule of each carry the labels from its arguments to its results."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ledger = ledger
        self._stack: list[str] = []
        self._op = "start"
        self._inside = 0  # how many operations are being taken apart
        self._reaching: list[Tensor] = []

    def follow(self, network: nn.Module) -> None:
        """Keep track of which module is running and which ones ever did."""
        for name, module in network.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: self._enter(name))
            module.register_forward_hook(lambda *_: self._leave())

    def _enter(self, name: str) -> None:
        self.ledger.called.add(name)
        self._stack.append(name)

    def _leave(self) -> None:
        self._stack.pop()

    @property
    def layer(self) -> str:
        """Name of the module that is running."""
        return self._stack[-1] if self._stack else ""

    def failure(self, error: Exception) -> tuple[Tensor, str]:
        """The nodes that reached the last operation, and the error with operation and layer."""
        nodes = [layer.reshape(-1) for tensor in self._reaching for layer in labels_of(tensor).layers]
        said, _, _ = str(error).partition("\n")
        where = f"{self._op} in {self.layer or 'the network itself'}: {type(error).__name__}: {said}"
        return torch.cat([torch.zeros(0, dtype=torch.int64), *nodes]), where

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        step, part = self.ledger.place
        known = _known(func)
        self._op = known.op
        if func._schema.name not in _COPIES:
            self.ledger.place = (step, part + 1) if self._inside else (step + 1, 0)
        if known.op in _VALUES:
            return self._value(func, args[0])
        if known.op == "index":
            args = (args[0], self._places(args[1]))
        tensors = [*tensors_in((*args, *kwargs.values()))]
        if len({x.device for x in tensors if x.ndim}) > 1:  # constants that the code makes without naming a device
            args, kwargs = tree_map_only(Tensor, lambda x: x if x.is_meta else x.to(META), (args, kwargs))
        if not any(labels_of(x).layers for x in tensors):
            out = func(*args, **kwargs)
            if known.rule is view and self.ledger.place in self.ledger.expected:  # in a trial, of a lone unit
                self.ledger.reshape((), (), tuple(out.shape), f"{known.op} in {self.layer or 'the network itself'}")
            return out
        self._reaching = tensors
        if known.rule is None:
            self._inside += 1
            with self:
                parts = func.decompose(*args, **kwargs)
            self._inside -= 1
            if parts is not NotImplemented:
                return parts
        named = known.defaults | dict(zip(known.names, args, strict=False)) | kwargs
        if known.rule is view and known.in_place:  # the rule reads the shape that its argument had
            named["self"] = args[0].detach()
            set_labels(named["self"], labels_of(args[0]))
        out = quick(known.op, named, in_place=known.in_place)
        if out is None:
            out = func(*args, **kwargs)
        call = Call(self.ledger, known.op, named, out, self.layer)
        self._carry(call, known.rule or _refuse, tensors)
        return out

    def _carry(self, call: Call, rule: Rule, tensors: list[Tensor]) -> None:
        result = rule(call)
        own = all(labels_of(x).own or x.numel() == 1 for x in tensors)
        for i, tensor in enumerate(tensors_in((call.out,))):
            set_labels(tensor, Labels(result[i] if isinstance(result, list) else result, own))

    def _value(self, func: Any, x: Tensor) -> Any:
        """A value that the network asks for: the true one in a run with values, the same one in the trial after it."""
        for layer in labels_of(x).layers:
            self.ledger.fix(layer, f"{self.layer or 'the network itself'} asks where its channels are not zero")
        return self.ledger.answer(None if x.is_meta else func(x))

    def _places(self, indices: Any) -> list[Tensor | None]:
        """The indices of `x[indices]`, masks as the places where they are true."""
        result: list[Tensor | None] = []
        for one in indices:
            if one is not None and one.dtype in (torch.bool, torch.uint8):
                with self:
                    result += one.nonzero().unbind(1)
            else:
                result.append(one)
        return result


def _refuse(call: Call) -> Layers:
    """No rule means refusal, not a guess."""
    for tensor in call.tensors():
        for layer in labels_of(tensor).layers:
            call.ledger.fix(layer, f"{call.why} has no rule")
    return ()
