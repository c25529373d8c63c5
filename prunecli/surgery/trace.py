"""The trace: one run of a network on the meta device, with labels riding along, tells which slices go together."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from prunecli.errors import UsageError
from prunecli.surgery.call import Call, Labels, labels_of, set_labels
from prunecli.surgery.compute import elementwise
from prunecli.surgery.grouping import own_tensors, structure_of
from prunecli.surgery.layers import Layers, along
from prunecli.surgery.ledger import Ledger
from prunecli.surgery.rules import RULES, Rule
from prunecli.surgery.structure import Structure


def trace(network: nn.Module, *inputs: Any, train: bool = False) -> Structure:
    """Which slices of which parameters and buffers can be cut together; the network is left as it was.

    Nothing is computed: a copy runs on the meta device, in eval mode, and once more in train mode if `train`, so that
    heads which exist only there are seen. A network that decides by its data runs once on its real weights instead.
    Raises UsageError, naming the layer, when the network does not run on these inputs.
    """
    ledger = Ledger()
    for mode in (False, True) if train else (False,):
        try:
            _run(network, inputs, mode, torch.device("meta"), ledger)
        except (NotImplementedError, RuntimeError):  # values were asked for, which the meta device has not
            _run(network, inputs, mode, None, ledger)
    return structure_of(network, ledger)


def _run(
    network: nn.Module, inputs: tuple[Any, ...], train: bool, device: torch.device | None, ledger: Ledger
) -> None:
    """Run a copy of the network, on `device` without values or where it is with them, and fill the ledger."""
    with torch.inference_mode():
        twin = _copy(network, device, ledger).train(train)
        inputs = tree_map_only(Tensor, lambda x: x.clone() if device is None else torch.empty_like(x, device=device), inputs)
        mode = _LabelMode(ledger)
        mode.follow(twin)
        try:
            with mode:
                output = twin(*inputs)
        except Exception as error:
            raise _cannot_trace(error, mode.layer, device) from error
        for tensor in tree_leaves(output):
            for layer in labels_of(tensor).layers:
                ledger.fix(layer, "its channels are outputs of the network")


def _cannot_trace(error: Exception, layer: str, device: torch.device | None) -> Exception:
    if device is not None and isinstance(error, NotImplementedError | RuntimeError):
        return error
    return UsageError(
        f"the network cannot be traced: layer {layer or '(top)'}: {type(error).__name__}: {error}",
        "give example inputs on which the network runs",
    )


def _copy(network: nn.Module, device: torch.device | None, ledger: Ledger) -> nn.Module:
    """A copy of the module tree whose parameters and buffers are on `device` and labelled by name; tied ones stay tied."""
    memo: dict[int, Any] = {}
    for module in network.modules():
        for tensor in vars(module).values():
            if isinstance(tensor, Tensor):
                memo[id(tensor)] = _stand_in(tensor, device)
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        memo[id(tensor)] = _stand_in(tensor, device)
    for name, tensor in own_tensors(network).items():
        layers: Layers = ()
        for axis, length in enumerate(tensor.shape):
            layers += along(ledger.axis(name, axis, length), axis, tensor.ndim)
        set_labels(memo[id(tensor)], Labels(layers, own=True))
    return copy.deepcopy(network, memo)


def _stand_in(tensor: Tensor, device: torch.device | None) -> Tensor:
    twin = tensor.detach().clone() if device is None else torch.empty_like(tensor, device=device)
    return nn.Parameter(twin, requires_grad=False) if isinstance(tensor, nn.Parameter) else twin


class _LabelMode(TorchDispatchMode):
    """Runs every operation and lets the rule of each carry the labels from its arguments to its results."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger
        self._stack: list[str] = []

    @property
    def layer(self) -> str:
        """Name of the module that is running."""
        return self._stack[-1] if self._stack else ""

    def follow(self, network: nn.Module) -> None:
        """Keep track of which module is running and which ones ever did."""

        def enter(name: str) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                self.ledger.called.add(name)
                self._stack.append(name)

            return hook

        for name, module in network.named_modules():
            module.register_forward_pre_hook(enter(name))
            module.register_forward_hook(lambda *_: (self._stack.pop(), None)[1])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if not any(labels_of(x).layers for x in tensors):
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        op = name.rstrip("_") if func._schema.is_mutable else name
        rule = RULES.get(op, elementwise if torch.Tag.pointwise in func.tags else None)
        if rule is None:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        shapes = [x.shape for x in tensors]
        out = func(*args, **kwargs)
        names = [argument.name for argument in func._schema.arguments]
        defaults = {a.name: a.default_value for a in func._schema.arguments if a.has_default_value()}
        call = Call(self.ledger, op, defaults | dict(zip(names, args, strict=False)) | kwargs, out, self.layer)
        self._label(call, rule or _refuse, tensors)
        return out

    def _label(self, call: Call, rule: Rule, tensors: list[Tensor]) -> None:
        result = rule(call)
        outputs = [x for x in tree_leaves(call.out) if isinstance(x, Tensor)]
        own = all(labels_of(x).own or x.numel() == 1 for x in tensors)
        for i, tensor in enumerate(outputs):
            layers = result[i] if isinstance(result, list) else result
            set_labels(tensor, Labels(layers, own))


def _refuse(call: Call) -> Layers:
    """No rule means refusal, not a guess."""
    for tensor in call.tensors():
        for layer in labels_of(tensor).layers:
            call.ledger.fix(layer, f"{call.why} has no rule")
    return ()
