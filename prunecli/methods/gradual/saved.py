"""What a method reads back of its own tensors: a sidecar may say anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prunecli.errors import DamagedError

HINT = "the sidecar was changed by hand, or belongs to other weights"


def check(kind: str, saved: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], dtype: torch.dtype) -> None:
    """Raise `DamagedError` where a tensor of this kind is none of the method's, or of another shape or type."""
    for name, tensor in saved.items():
        if name not in shapes:
            raise DamagedError(f"training: {kind} of {name}, which has none", HINT)
        if tuple(tensor.shape) != tuple(shapes[name]) or tensor.dtype != dtype:
            found, wanted = (f"{d} {[*s]}" for d, s in ((tensor.dtype, tensor.shape), (dtype, shapes[name])))
            raise DamagedError(f"training: {kind} of {name} is {found}, not {wanted}", HINT)


def check_all(kind: str, saved: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], dtype: torch.dtype) -> None:
    """As `check`, and also where one is missing."""
    check(kind, saved, shapes, dtype)
    if missing := [name for name in shapes if name not in saved]:
        raise DamagedError(f"training: {kind} of {missing[0]} is missing", HINT)
