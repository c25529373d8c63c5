"""Optimizers: built from, and written back to, the sidecar's plain description."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from prunecli import sidecar
from prunecli.checkpoint import to_array, to_tensor
from prunecli.errors import DamagedError

CLASSES: dict[str, type[torch.optim.Optimizer]] = {
    "SGD": torch.optim.SGD, "Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW,
}  # fmt: skip


def build(spec: sidecar.Optimizer, network: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that `spec` describes, over `network`'s parameters, with its state.

    Fused kernels are used: one pass over a parameter instead of one an operation. State takes the parameter's device
    and memory format. Raises `DamagedError` when `spec` names parameters that the network does not have.
    """
    parameters = dict(network.named_parameters())
    unknown = [name for group in spec.groups for name in group.params if name not in parameters]
    if unknown:
        raise DamagedError(
            f"optimizer: no parameter {unknown[0]!r} in the network", "the sidecar belongs to other weights"
        )
    groups: list[dict[str, Any]] = [
        {"params": [parameters[name] for name in group.params]} | _options(group.options) for group in spec.groups
    ]
    fusable = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters.values())
    for group in spec.groups:
        _check_options(spec.name, group)
    optimizer = CLASSES[spec.name](groups, fused=fusable)  # type: ignore[call-arg]
    for name, state in spec.state.items():
        wanted = _state_names(spec, name)
        if name not in parameters or (state and not state.keys() >= wanted):
            raise DamagedError(
                f"optimizer: state {', '.join(sorted(state))} of {name!r}, expected {', '.join(sorted(wanted))}",
                "the sidecar belongs to other weights",
            )
        optimizer.state[parameters[name]] = {key: _like(to_tensor(a), parameters[name]) for key, a in state.items()}
    return optimizer


def _check_options(name: str, group: sidecar.ParamGroup) -> None:
    """Raise `DamagedError` for options that torch refuses, which it does not look at in groups."""
    try:
        CLASSES[name]([torch.zeros(1)], **_options(group.options))
    except (ValueError, TypeError, IndexError) as error:
        raise DamagedError(
            f"optimizer: wrong options for {name}: {error}", "the sidecar was changed by hand"
        ) from error


def _state_names(spec: sidecar.Optimizer, parameter: str) -> set[str]:
    """The names of the state tensors that the optimizer keeps for a parameter."""
    if spec.name == "SGD":
        return {"momentum_buffer"}
    amsgrad = any(group.options.get("amsgrad") for group in spec.groups if parameter in group.params)
    return {"step", "exp_avg", "exp_avg_sq"} | ({"max_exp_avg_sq"} if amsgrad else set())


def capture(optimizer: torch.optim.Optimizer, network: nn.Module) -> sidecar.Optimizer:
    """`optimizer` as plain data, keyed by parameter name; tensors are copied."""
    names = {id(p): name for name, p in network.named_parameters()}
    groups = [
        sidecar.ParamGroup(
            params=[names[id(p)] for p in group["params"]],
            options={key: _plain(value) for key, value in group.items() if key in OPTIONS},
        )
        for group in optimizer.param_groups
    ]
    state = {
        names[id(p)]: {key: to_array(torch.as_tensor(value)) for key, value in entries.items() if value is not None}
        for p, entries in optimizer.state.items()
    }
    name = type(optimizer).__name__
    ordered = {key: state[key] for key in names.values() if key in state}
    return sidecar.Optimizer(name=name, groups=groups, state=ordered)  # type: ignore[arg-type]


OPTIONS = ("lr", "momentum", "dampening", "nesterov", "weight_decay", "betas", "eps", "amsgrad")


def _options(options: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in options.items() if key in OPTIONS}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _like(tensor: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    if tensor.shape != parameter.shape:  # a step counter, which fused kernels want beside the parameter
        return tensor.to(parameter.device)
    return torch.empty_like(parameter, requires_grad=False).copy_(tensor)
