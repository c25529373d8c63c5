"""Both properties of a cut of any network, for the tests and benchmarks that go through whole families of networks.

Cutting equals masking: the cut network computes what the whole one does with the removed slices missing (missing.py),
which is what zeros in their place give, too, unless something averages over them; exactly then a group must have said
that its cut changes the function. Dead units change nothing: of the groups that do not say so.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import missing
import oracle
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from prunecli.surgery import Plan, Structure, apply, trace

Prepare = Callable[[nn.Module, nn.Module], object]
LOUD = ("talking_head1", "proj_l")  # layers whose units a soft-max reads: they are not dead when all of them is zero


def check(
    network: nn.Module, inputs: tuple[Any, ...], dtype: torch.dtype = torch.float64, prepare: Prepare | None = None
) -> Structure:
    """Trace, cut a random half of every group and check both properties, `prepare` as below."""
    network = oracle.randomise(network, dtype=dtype)
    inputs = tree_map_only(Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, inputs)
    structure = trace(network, *inputs)
    plan = oracle.half(structure)
    check_masking(network, structure, plan, inputs, prepare)
    check_dead(network, structure, plan, inputs)
    return structure


def check_masking(
    network: nn.Module, structure: Structure, plan: Plan, inputs: tuple[Any, ...], prepare: Prepare | None = None
) -> None:
    """The cut network is the whole one with slices missing, and the function changes where the groups say so.

    `prepare` is given both before they are compared.
    """
    whole, cut = copy.deepcopy(network), copy.deepcopy(network)
    apply(cut, structure, plan)
    if prepare is not None:
        prepare(whole, cut)
    with scaled_by_what_is_there() as counted:
        mixing = missing.compare(whole, structure, plan, cut, inputs)
    said = {key: structure.by_key[key].changes_function for key in plan.kept if structure.by_key[key].changes_function}
    assert bool(mixing or counted or prepare) == bool(said), f"{mixing} mix what was cut; what groups say: {said}"


def check_dead(network: nn.Module, structure: Structure, plan: Plan, inputs: tuple[Any, ...]) -> None:
    """Removing units of zero weights, biases, scales, shifts and running means changes nothing, in either mode."""
    unchanged = {key: kept for key, kept in plan.kept.items() if not structure.by_key[key].changes_function}
    silent = {key: kept for key, kept in unchanged.items() if not key.endswith(LOUD)}
    dead = copy.deepcopy(network)
    for name, parameter in dead.named_parameters():
        if parameter.numel() == 1 and name.endswith("bias"):  # a shift that all channels share would not be zero
            parameter.data.zero_()
    oracle.zero(dead, structure, Plan(silent), ("out", "norm", "other"))
    cut = copy.deepcopy(dead)
    apply(cut, structure, Plan(silent))
    for train in (False, True):
        oracle.same(dead.train(train), cut.train(train), inputs)


@contextmanager
def scaled_by_what_is_there() -> Iterator[list[int]]:
    """Attention without a scale of its own divides by the root of the heads' width: of what is there of it.

    Yields a list, of the widths of which something was missing.
    """
    attention, widths = F.scaled_dot_product_attention, list[int]()

    def scaled(query: Tensor, *args: Any, scale: float | None = None, **options: Any) -> Tensor:
        width = int((~query.isnan()).flatten(0, -2).any(0).sum())
        if scale is None and width < query.shape[-1]:
            widths.append(width)
            scale = max(width, 1) ** -0.5
        return attention(query, *args, scale=scale, **options)

    with mock.patch.object(F, "scaled_dot_product_attention", scaled):
        yield widths


def scaled_by_its_channels(whole: nn.Module, cut: nn.Module) -> None:
    """Swin of torchvision divides by the root of its channels a head: let the whole network use those of the cut."""
    for name, module in cut.named_modules():
        if hasattr(module, "relative_position_bias_table") and not hasattr(module, "logit_scale"):
            attention = whole.get_submodule(name)
            widths = [m.qkv.in_features // m.num_heads for m in (attention, module)]
            for tensor in (attention.qkv.weight, attention.qkv.bias):
                tensor.data[: len(tensor) // 3] *= (widths[0] / widths[1]) ** 0.5
