"""`prunecli.load`: a checkpoint as a network that is ready to run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from prunecli import checkpoint as checkpoints
from prunecli.checkpoint import Checkpoint


def load(path: str | Path, *, device: str = "cpu", trust: Sequence[str] = ()) -> tuple[nn.Module, Checkpoint]:
    """The network of a checkpoint, cut to its widths, masks folded in, in eval mode; and the checkpoint itself.

    `trust` names Python modules whose code the checkpoint may import, where its architecture is a user's own.
    Raises `DamagedError` when the checkpoint is missing or damaged, `UsageError` when it needs a module not trusted.
    """
    loaded = checkpoints.load(path)
    return checkpoints.build(loaded, device=device, trust=tuple(trust)), loaded
