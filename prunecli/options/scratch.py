"""Options of `scratch`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from prunecli.errors import UsageError
from prunecli.options.fields import argument, choice, option
from prunecli.options.train import RunOptions

BUDGETS = ("E", "B", "B-imagenet")
INITS = ("random", "sparse", "sparse-unscaled", "ticket")
SHAPES = ("same", "uniform", "guided", "transferred", "thin")


@dataclass(frozen=True, kw_only=True)
class ScratchOptions(RunOptions):
    """Train the pruned architecture, or one of the same size, from new weights: the baseline that pruning must beat.

    The recipe is the one that trained the dense network; training options override it. --epochs 0 writes the initial
    checkpoint only.
    """

    example: ClassVar[str] = "scratch.safetensors"

    checkpoint: str = argument("Pruned or masked checkpoint.")
    budget: str = option(
        "E",
        "Length: E the dense network's epochs, B its computation, B-imagenet the same from 90 epochs to 180.",
        metavar="|".join(BUDGETS),
    )
    init: str = option(
        "random",
        "First weights: random; sparse N(0, 2/n) by what a mask keeps, or unscaled; ticket, those of --to.",
        metavar="|".join(INITS),
    )
    to: str | None = option(None, "Snapshot of the original initialisation, for --init ticket.", metavar="SNAPSHOT")
    shape: str = option(
        "same",
        "same: as pruned; uniform: the same share everywhere; guided: as pruned, averaged over each stage; "
        "transferred: stages as in --guide; thin: every width times the root of the size ratio.",
        metavar="|".join(SHAPES),
    )
    guide: str | None = option(None, "Pruned checkpoint whose stages --shape transferred copies.", metavar="CHECKPOINT")
    match: str = option("params", "What --shape uniform makes as large as the pruned network's.", metavar="params|macs")

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self.budget, "--budget", BUDGETS)
        choice(self.init, "--init", INITS)
        choice(self.shape, "--shape", SHAPES)
        choice(self.match, "--match", ("params", "macs"))
        for flag, given, other, wanted, example in (
            ("--to", self.to, "--init ticket", self.init == "ticket", "--to base.epoch0.safetensors"),
            ("--guide", self.guide, "--shape transferred", self.shape == "transferred", "--guide other.safetensors"),
        ):
            if wanted and given is None:
                raise UsageError(f"{other} without {flag}", f"name the checkpoint: {example}")
            if given is not None and not wanted:
                raise UsageError(f"{flag} means nothing without {other}", f"add {other}, or drop {flag}")
