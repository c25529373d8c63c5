"""What a network costs: multiply-adds, parameters, sparsity, bytes, latency. 1 MAC = 1 multiply-add; FLOPs = 2 x MACs.

`cost` runs a network, `totals` turns its result and tensor shapes into sums, `latency` takes the time. What needs torch
is imported on first use: sums of a checkpoint do not need it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prunecli.measure.size import disk_sizes
from prunecli.measure.sums import Layer, Totals, totals

if TYPE_CHECKING:
    from prunecli.measure.macs import cost
    from prunecli.measure.timing import latency

__all__ = ["Layer", "Totals", "cost", "disk_sizes", "latency", "totals"]


def __getattr__(name: str) -> Any:
    if name in ("cost", "latency"):
        return getattr(import_module("prunecli.measure." + {"cost": "macs", "latency": "timing"}[name]), name)
    raise AttributeError(f"module 'prunecli.measure' has no attribute {name!r}")
