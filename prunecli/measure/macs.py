"""Multiply-adds of a network, counted in one run on the meta device, where tensors have shapes and no data.

A network that asks for values runs once more with its own, and what the path for those inputs multiplies is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from prunecli.errors import PruneError
from prunecli.sidecar import Cost

aten = torch.ops.aten

# Where the two factors are among the arguments of an operation that multiplies and adds.
FACTORS = {
    aten.convolution.default: (0, 1), aten.mm.default: (0, 1), aten.bmm.default: (0, 1), aten.mv.default: (0, 1),
    aten.dot.default: (0, 1), aten.addmm.default: (1, 2), aten.addmv.default: (1, 2), aten.baddbmm.default: (1, 2),
    aten._trilinear.default: (0, 1),
}  # fmt: skip


def cost(network: nn.Module, *inputs: Tensor) -> Cost:
    """Positions per weight, MACs of activation products and buffers of `network`, for one example in evaluation mode.

    A tied parameter counts once: its second name in the `state_dict` is listed among the buffers.
    `inputs` have the batch first; their values matter where the network asks for some. The network is neither moved
    nor changed. Raises `PruneError` when it does not run on them.
    """
    modes = {module: module.training for module in network.modules()}
    parameters = dict(network.named_parameters())
    network.eval()
    try:
        try:
            counter = _counted(network, inputs, _meta)
        except Exception:  # of any kind: it is the network's own code that asks for what the meta device has not
            counter = _counted(network, inputs, _copy)
    except Exception as error:
        raise PruneError(
            f"{type(network).__name__} cannot be measured: {type(error).__name__}: {error}",
            "its forward must accept one example of the data set's shape",
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    return Cost(
        input=list(inputs[0].shape[1:]),
        positions={name: round(macs / parameters[name].numel()) for name, macs in counter.macs.items()},
        other_macs=counter.other,
        buffers=[name for name in network.state_dict() if name not in parameters],
    )


def _counted(network: nn.Module, inputs: Sequence[Tensor], stand_in: Callable[[Any], Any]) -> MacCounter:
    """A counter after a run of `network` on its first example, with stand-ins for all tensors."""
    parameters = {name: stand_in(tensor) for name, tensor in network.named_parameters()}
    buffers = {name: stand_in(tensor) for name, tensor in network.named_buffers()}
    device = next((tensor.device for tensor in parameters.values()), None)
    examples = [stand_in(tensor[:1]).to(device) for tensor in inputs]
    counter = MacCounter(parameters, examples)
    tensors = _by_module(network, parameters | buffers)
    with torch.no_grad(), _attention_in_products(), counter:
        torch.func.functional_call(network, tensors, tuple(examples), tie_weights=False)
    return counter


@contextmanager
def _attention_in_products() -> Iterator[None]:
    """Attention runs as the products that it is made of, as it does on the meta device."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class MacCounter(TorchDispatchMode):
    """Sums MACs by the parameter that a factor comes from.

    Views share a parameter's storage; what is computed from parameters alone (casts, masked or normalised weights)
    counts as the largest of them.
    """

    def __init__(self, parameters: Mapping[str, Tensor], inputs: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs: dict[str, int] = {}
        self.other = 0
        self.size = {name: tensor.numel() for name, tensor in parameters.items()}
        self.source = {_storage(tensor): name for name, tensor in parameters.items()}
        self.active = {_storage(tensor) for tensor in inputs}  # storages that depend on the example
        self.on_meta = any(tensor.is_meta for tensor in inputs)
        self.alive: list[Tensor] = [*parameters.values(), *inputs]  # storages are known by address: none may be reused

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.on_meta:  # constants that the code makes without naming a device are not
            args, kwargs = tree_map(_meta, (args, kwargs))
        result = function(*args, **kwargs)
        if function in FACTORS:
            factors = [args[position] for position in FACTORS[function]]
            self._count(_macs(function, args, result, factors), factors)
        self._derive(
            [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)],
            [t for t in tree_leaves(result) if isinstance(t, Tensor)],
        )
        return result

    def _count(self, macs: int, factors: list[Tensor]) -> None:
        names = [self.source[key] for key in map(_storage, reversed(factors)) if key in self.source]
        if names:
            self.macs[names[0]] = self.macs.get(names[0], 0) + macs
        else:
            self.other += macs

    def _derive(self, operands: list[Tensor], results: list[Tensor]) -> None:
        self.alive += results
        keys = [_storage(tensor) for tensor in operands]
        active = any(key in self.active for key in keys)
        names = {self.source[key] for key in keys if key in self.source}
        for key in map(_storage, results):
            if active and key not in self.source:
                self.active.add(key)
            elif names and not active:
                self.source[key] = max(sorted(names), key=self.size.__getitem__)


def _macs(function: Callable[..., Any], args: tuple[Any, ...], result: Tensor, factors: list[Tensor]) -> int:
    left, right = factors
    if function is aten.convolution.default:
        transposed = args[6]
        places = left if transposed else result  # each weight acts once at every place of this map
        return right.numel() * places.shape[0] * math.prod(places.shape[2:])
    if function is aten._trilinear.default:
        return left.shape[0] * right.numel()
    return int(result.numel() * left.shape[-1])


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _by_module(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stand-ins by the name of each tensor in each module, modules of two names once, else they would stay."""
    first = {id(t): tensors[name] for name, t in (*network.named_parameters(), *network.named_buffers())}
    return {
        f"{prefix}.{name}" if prefix else name: first[id(tensor)]
        for prefix, module in network.named_modules()
        for name, tensor in (module._parameters | module._buffers).items()
        if tensor is not None
    }


def _meta(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.is_meta:
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()
