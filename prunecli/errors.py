"""The errors of prunecli: each is one `error:` line, one `hint:` line and an exit code.

The library raises them; only the boundary in `prunecli.cli` prints them. An exception of any other class is a bug.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PruneError(Exception):
    """Something that the user or the environment must put right.

    `message` names the file, layer or option and what is wrong with it; `hint` says the way out.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(PruneError):
    """An option, or a combination of options, that means nothing."""

    exit_code = 2


class DamagedError(PruneError):
    """A checkpoint or data set that is missing, damaged, or not what it claims to be."""

    exit_code = 3


class TargetError(PruneError):
    """A target (sparsity, budget) that no plan can meet."""

    exit_code = 4


class VerificationError(PruneError):
    """An output that was checked and found wrong, such as an ONNX file that disagrees with PyTorch."""

    exit_code = 5


class GateError(PruneError):
    """A gate (`report --fail-under`, `--fail-over`) that was not met."""

    exit_code = 6


class Interrupted(PruneError):
    """Ctrl-C or SIGTERM, after a resumable checkpoint was written where a run was in progress."""

    def __init__(self, message: str, hint: str, signal_number: int) -> None:
        super().__init__(message, hint)
        self.exit_code = 128 + signal_number


def nearest(word: str, choices: Iterable[str]) -> str:
    """A hint that names the choices closest to `word`, or all of them when none is close and they fit on a screen."""
    choices = sorted(choices)
    close = difflib.get_close_matches(word, choices, n=3, cutoff=0.5 if len(choices) <= 200 else 0.0)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "choose one of " + ", ".join(choices) if choices else "there is nothing to choose from"
