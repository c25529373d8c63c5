"""Options of `rewind`."""

from __future__ import annotations

from dataclasses import dataclass

from prunecli.errors import UsageError
from prunecli.options.fields import argument, check, check_output, choice, option

REGIMES = ("finetune", "lr-rewind", "weight-rewind", "lottery")


@dataclass(frozen=True, kw_only=True)
class RewindOptions:
    """Set a pruned network back to an earlier moment of its training; `finetune` then trains it from there.

    weight-rewind and lottery take the weights of --to, lr-rewind and finetune keep the trained ones.
    """

    checkpoint: str = argument("Pruned or masked checkpoint.")
    output: str = option(
        "", "Checkpoint to write, OUT.safetensors with its sidecar OUT.json.", flag="-o/--output", metavar="FILE"
    )
    to: str | None = option(None, "Snapshot of the dense network to rewind to (from train --keep).", metavar="SNAPSHOT")
    regime: str | None = option(
        None, "What to rewind (default: weight-rewind with --to, else lr-rewind).", metavar="|".join(REGIMES)
    )
    from_epoch: int | None = option(
        None, "lr-rewind: epoch of the schedule to go back to (default: that of --to, else 0).", metavar="K"
    )
    epochs: int | None = option(None, "finetune: length at the last rate (default: the whole run's).", metavar="N")
    fresh: bool = option(False, "weight-rewind: a fresh optimizer instead of the snapshot's state.")
    carry: bool = option(False, "finetune, lr-rewind: carry the optimizer's state instead of a fresh one.")

    def __post_init__(self) -> None:
        choice(self.regime, "--regime", REGIMES)
        check_output(self.output, "ticket.safetensors")
        if self.to is None and self.resolved in ("weight-rewind", "lottery"):
            raise UsageError(
                f"--regime {self.resolved}: no snapshot to take weights from", "name one: --to base.epoch0.safetensors"
            )
        check(self.from_epoch is None or self.from_epoch >= 0, "--from-epoch", self.from_epoch, "0 or more")
        check(self.epochs is None or self.epochs >= 1, "--epochs", self.epochs, "1 or more")
        for flag, given, regimes in (
            ("--from-epoch", self.from_epoch is not None, ("lr-rewind",)),
            ("--epochs", self.epochs is not None, ("finetune",)),
            ("--fresh", self.fresh, ("weight-rewind",)),
            ("--carry", self.carry, ("finetune", "lr-rewind")),
        ):
            if given and self.resolved not in regimes:
                raise UsageError(
                    f"{flag} means nothing with --regime {self.resolved}", f"use it with {' or '.join(regimes)}"
                )

    @property
    def resolved(self) -> str:
        """The regime, after its default."""
        return self.regime or ("lr-rewind" if self.to is None else "weight-rewind")
