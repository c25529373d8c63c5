"""Seeds and the states of torch's random generators."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from prunecli.checkpoint import to_array, to_tensor
from prunecli.errors import DamagedError


def derived_seed(seed: int, *purpose: object) -> int:
    """A seed for one purpose, independent of the seeds for others."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of torch's random generators (dropout draws from them)."""
    states = {"cpu": to_array(torch.get_rng_state())}
    if device.type == "cuda":
        states["cuda"] = to_array(torch.cuda.get_rng_state(device))
    return states


def restore_random_state(states: dict[str, Any], device: torch.device) -> None:
    """Put the generators where `random_state` saw them. Raises `DamagedError` for what is no state of theirs."""
    try:
        if "cpu" in states:
            torch.set_rng_state(to_tensor(states["cpu"]))
        if "cuda" in states and device.type == "cuda":
            torch.cuda.set_rng_state(to_tensor(states["cuda"]), device)
    except (RuntimeError, TypeError) as error:
        raise DamagedError(
            f"training: its random state is none of this torch's: {error}", "begin the run again"
        ) from error
