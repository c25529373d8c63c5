"""Building a network without values: on the meta device, and without drawing the random numbers that it starts with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

# Meta tensors take these too, but through torch's compiler, whose import alone takes as long as torch's own.
DRAWING = {
    Tensor.normal_, Tensor.uniform_, Tensor.erfinv_, Tensor.clamp_,
    init.normal_, init.uniform_, init.constant_, init.kaiming_uniform_,
}  # fmt: skip


@contextmanager
def unfilled() -> Iterator[None]:
    """New tensors are on the meta device, and their initialisers do nothing."""
    with torch.device("meta"), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in DRAWING and (tensor := args[0] if args else kwargs["tensor"]).is_meta:
            return tensor
        return func(*args, **kwargs)
