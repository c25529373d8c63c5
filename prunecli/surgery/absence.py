"""Taking modules away as a whole: from a live network with its optimizer, and again from a dense one as recorded."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec
import torch
from torch import Tensor, nn

from prunecli.models.absent import leave_out
from prunecli.sidecar import Gone, Surgery
from prunecli.surgery.branches import outermost


def take_away(
    network: nn.Module,
    modules: Collection[str],
    positions: Mapping[str, int],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    along: Sequence[dict[str, Tensor]] = (),
    record: Surgery | None = None,
) -> Surgery:
    """Take modules of a live network away, in place, and return the record of all that was cut.

    The optimizer forgets their parameters, and what goes `along` by parameter name does too. `positions` are those of
    `Cost`, for the MACs that are gone. Raises AttributeError for a name that is none of a module.
    """
    before = dict(network.named_parameters())
    leave_out(network, outermost(modules))
    left = dict(network.named_parameters())
    lost = {name: parameter for name, parameter in before.items() if name not in left}
    for name in lost:
        for entries in along:
            entries.pop(name, None)
    if optimizer is not None:
        _forget(optimizer, {id(parameter) for parameter in lost.values()})
    sizes = {name: list(parameter.shape) for name, parameter in lost.items()}
    return _recorded(record or Surgery(), outermost(modules), sizes, positions)


def _forget(optimizer: torch.optim.Optimizer, lost: set[int]) -> None:
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in lost]
    for parameter in [parameter for parameter in optimizer.state if id(parameter) in lost]:
        del optimizer.state[parameter]


def _recorded(
    earlier: Surgery, modules: Sequence[str], lost: Mapping[str, list[int]], positions: Mapping[str, int]
) -> Surgery:
    """The record after modules with the parameters `lost` are gone: of those nothing else needs to be said."""
    dense = earlier.gone
    for name, shape in lost.items():
        for axis, number in earlier.axes.get(name, {}).items():
            shape[int(axis)] = earlier.index[number].of
        dense[name] = Gone(shape=shape, positions=positions.get(name, 0))
    absent: dict[str, dict[str, Gone]] = {name: {} for name in outermost({*earlier.absent, *modules})}
    found = Surgery(absent=absent)
    for name, gone in dense.items():
        module = found.without(name)
        assert module is not None  # what is gone was in one of these
        absent[module][name.removeprefix(f"{module}.")] = gone
    return msgspec.structs.replace(
        earlier,
        axes={name: axes for name, axes in earlier.axes.items() if not found.without(name)},
        attributes={name: values for name, values in earlier.attributes.items() if not found.without(name)},
        absent=absent,
    )
