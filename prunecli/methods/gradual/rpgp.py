"""Progressive gradient pruning without a further pass: the gradients of training itself make the scores.

Nguyen-Meidine et al. 2019 (RPGP), as `pgp` but for when scores are gathered: after each backward pass of the epoch (the
authors' code reads gradients in a module's backward hook, where they may be those of the step before). L1 and L2 are
norms at the end of the epoch (the code sums them over steps).
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

from msgspec import Meta

from prunecli.methods.gradual import pgp
from prunecli.methods.gradual.gathered import Criterion
from prunecli.training import Run


class Settings(pgp.Settings, frozen=True, kw_only=True):
    """Those of PGP, with another criterion."""

    criterion: Annotated[Criterion, Meta(description="what is weak: gn_g, gn_s, tw, taylor, l1 or l2")] = "gn_s"


class Method(pgp.Method):
    """Scores gather from step to step, and are saved with the run."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.step = ExitStack()

    def before_forward(self, run: Run) -> None:
        self.step.enter_context(self.gathered.listening(run.network))

    def after_backward(self, run: Run) -> None:
        self.step.close()
        self.gathered.add()

    def gather(self, run: Run) -> None:
        """The steps of the epoch have gathered all."""
