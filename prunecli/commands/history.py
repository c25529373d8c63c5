"""History entries: one a step of the pipeline, with everything it takes to see what was done."""

from __future__ import annotations

from typing import Any

import msgspec
import torch

import prunecli
from prunecli.checkpoint import Checkpoint
from prunecli.measure import totals
from prunecli.sidecar import Data, Sidecar, Step


def step(
    command: str, options: dict[str, Any], *, parent: str | None, measured: dict[str, int], notes: tuple[str, ...] = ()
) -> Step:
    """The history entry of `command`. `options` must not hold output paths or times: equal work gives equal bytes."""
    return Step(
        command=command,
        options={key: list(value) if isinstance(value, tuple) else value for key, value in options.items()},
        versions={"prunecli": prunecli.__version__, "torch": str(torch.__version__)},
        parent=parent,
        cost={key: float(value) for key, value in measured.items()},
        notes=list(notes),
    )


def data_used(data: Data) -> dict[str, Any]:
    """The data that a step trains on, as its options record it."""
    return {"name": data.name, "dir": data.dir, "args": data.args, "val": data.val}


def scored(sidecar: Sidecar) -> list[Step]:
    """The history with the scores that its last step ended with."""
    *before, last = sidecar.history
    score = sidecar.metrics.last
    return [*before, msgspec.structs.replace(last, score=score.values if score else {})]


def measured(checkpoint: Checkpoint) -> dict[str, int]:
    """Parameters and MACs of a checkpoint, as they are and with masked weights left out."""
    sidecar = checkpoint.sidecar
    sums = totals(sidecar.cost, {name: tuple(t.shape) for name, t in checkpoint.weights.items()}, sidecar.masks)
    return {
        "params": sums.params,
        "nonzero_params": sums.nonzero_params,
        "macs": sums.macs,
        "effective_macs": sums.effective_macs,
    }
