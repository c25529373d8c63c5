"""The two properties that every cut must have, for use by any test.

Removing dead units changes nothing; cutting equals masking. Both are checked in float64 on networks whose weights,
scales, shifts and statistics are random, so that a slice taken from the wrong place shows.
"""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm, layer_norm
from torch.utils._pytree import tree_leaves, tree_map_only

from prunecli import checkpoint as checkpoints
from prunecli.sidecar import Arch, Cost, Sidecar
from prunecli.surgery import Plan, Structure, apply, replay, trace
from prunecli.surgery.twin import all_tensors

TOLERANCE = 1e-9
TOLERANCES = {torch.float64: TOLERANCE, torch.float32: 1e-4}  # of the largest output


def half(structure: Structure, seed: int = 0) -> Plan:
    """A plan that keeps a random half of the units of every prunable group."""
    draw = random.Random(seed)
    groups = [group for group in structure.groups if group.prunable]
    return Plan({g.key: sorted(draw.sample(range(g.units), g.units - g.units // 2)) for g in groups})


def randomise(network: nn.Module, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A copy with random scales, shifts and statistics and without dropout."""
    network = copy.deepcopy(network).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            scale = 1.0 if tensor.ndim < 2 else (3 / max(1, tensor[0].numel())) ** 0.5
            tensor.data = noise + 0.5 if name.endswith("running_var") else (2 * noise - 1) * scale
            if name.endswith("running_var") is False and tensor.ndim == 1:
                tensor.data += 0.1
    for module in network.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and (name == "p" or "drop" in name):  # of layers and of code that drops itself
                setattr(module, name, 0.0)
    return network


def check_masking(network: nn.Module, inputs: tuple[Any, ...], plan: Plan | None = None, *, seed: int = 0) -> Structure:
    """Cutting equals masking: zeroing the weights that read the removed units, in eval and train mode."""
    network = randomise(network, seed)
    inputs = tree_map_only(Tensor, lambda x: x.double() if x.is_floating_point() else x, inputs)
    structure = trace(network, *inputs)
    plan = plan or half(structure, seed)
    masked, cut = mask(copy.deepcopy(network), structure, plan), copy.deepcopy(network)
    apply(cut, structure, plan)
    for train in (False, True):
        same(masked.train(train), cut.train(train), inputs)
    return structure


def check_dead(network: nn.Module, inputs: tuple[Any, ...], plan: Plan | None = None, *, seed: int = 0) -> Structure:
    """Removing units of zero weights, biases, scales, shifts and running means changes nothing, in either mode."""
    network = randomise(network, seed)
    inputs = tree_map_only(Tensor, lambda x: x.double() if x.is_floating_point() else x, inputs)
    structure = trace(network, *inputs)
    plan = plan or half(structure, seed)
    zero(network, structure, plan, ("out", "norm", "other"))
    cut = copy.deepcopy(network)
    apply(cut, structure, plan)
    for train in (False, True):
        same(network.train(train), cut.train(train), inputs)
    return structure


def check_saved(
    network: nn.Module, inputs: tuple[Any, ...], *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> nn.Module:
    """A cut network is the same after it was saved and loaded, and the record of the cut makes it of the dense one.

    Returns the network that was loaded.
    """
    network = randomise(network, seed, dtype)
    inputs = tree_map_only(Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, inputs)
    structure, cut, again = trace(network, *inputs), copy.deepcopy(network), copy.deepcopy(network)
    record = apply(cut, structure, half(structure, seed))
    replay(again, record)
    for tensor in network.parameters():  # so that what is loaded can only be that of the file
        tensor.data.zero_()
    _dense["network"] = network
    with TemporaryDirectory() as folder:
        sidecar = Sidecar(arch=Arch(name=f"{__name__}:dense"), cost=Cost(input=[1]), surgery=record)
        checkpoints.save(checkpoints.Checkpoint(cut.state_dict(), sidecar), Path(folder) / "cut.safetensors")
        loaded = checkpoints.build(checkpoints.load(Path(folder) / "cut.safetensors"), trust=[__name__])
    for train in (False, True):
        same(cut.train(train), again.train(train), inputs)
        same(cut.train(train), loaded.train(train), inputs)
    return loaded


_dense: dict[str, nn.Module] = {}


def dense() -> nn.Module:
    """The dense network of the checkpoint that is being checked."""
    return copy.deepcopy(_dense["network"])


_NOT_ZERO = ("running_var", "original1", "weight_v")  # variances, and directions of weights of which a norm is taken


def mask(network: nn.Module, structure: Structure, plan: Plan) -> nn.Module:
    """Zero what reads the removed units, in place; what makes them where nothing does."""
    read = {group.key for group in structure.groups if any(member.role == "in" for member in group.members)}
    zero(network, structure, Plan({key: kept for key, kept in plan.kept.items() if key in read}), ("in",))
    products = Plan({key: kept for key, kept in plan.kept.items() if key not in read})  # of activations, as q times k
    zero(network, structure, products, ("out", "other"))
    return network


def zero(network: nn.Module, structure: Structure, plan: Plan, roles: tuple[str, ...]) -> None:
    """Zero the slices of the removed units on the axes with these roles."""
    tensors = all_tensors(network)
    for key, kept in plan.kept.items():
        group = structure.by_key[key]
        gone = torch.ones(group.units + 1, dtype=torch.bool)
        gone[[*kept, -1]] = False
        for member in group.members:
            if member.role in roles and not member.tensor.endswith(_NOT_ZERO if member.role != "in" else "running_var"):
                places = gone[member.unit].nonzero()[:, 0]
                tensors[member.tensor].data.index_fill_(member.axis, places, 0.0)


def same(first: nn.Module, second: nn.Module, inputs: tuple[Any, ...], mode: Any = None) -> None:
    """Both networks give the same output, relative to its largest value; the first runs in `mode`."""
    first, second = copy.deepcopy(first), copy.deepcopy(second)
    with torch.no_grad():
        with mode or contextlib.nullcontext():
            a = tree_leaves(first(*inputs))
        b = tree_leaves(second(*inputs))
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        if isinstance(x, Tensor):
            assert x.shape == y.shape
            assert bool(x.isfinite().all() & y.isfinite().all()), "the output is not finite"
            assert x.abs().max() > 0, "the output is zero: this checks nothing"
            apart = float((x - y).abs().max() / x.abs().max())
            assert apart <= TOLERANCES[y.dtype], f"outputs differ by {apart:.1e} of the largest"


def over_what_is_left(network: nn.Module, keep: Mapping[tuple[str, int], Tensor]) -> nn.Module:
    """Let each layer or group norm that loses channels normalise over the others only, as it does after the cut.

    `keep` [axis length] by tensor and axis, as of `Structure.keep_masks`. Cutting equals masking then even where it
    changes the function, and for no other reason.
    """
    for name, module in network.named_modules():
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm)) and (f"{name}.weight", 0) in keep:
            kept = keep[f"{name}.weight", 0].nonzero()[:, 0]
            module.register_forward_hook(partial(_renormalise, kept=kept))
    return network


def _renormalise(module: nn.Module, args: tuple[Tensor], output: Tensor, *, kept: Tensor) -> Tensor:
    affine = [None if tensor is None else tensor[kept] for tensor in (module.weight, module.bias)]
    axis = -1 if isinstance(module, nn.LayerNorm) and "2d" not in type(module).__name__ else 1
    x = args[0].index_select(axis, kept)
    if isinstance(module, nn.GroupNorm):
        left = group_norm(x, module.num_groups, *affine, module.eps)
    else:
        left = layer_norm(x.movedim(axis, -1), kept.shape, *affine, module.eps).movedim(-1, axis)
    return torch.zeros_like(output).index_copy(axis, kept, left)
