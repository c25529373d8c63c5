"""What a pruning method may do in the training loop."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from torch import Tensor

from prunecli.progress import Say

if TYPE_CHECKING:
    from prunecli.training.run import Run


class State(Struct, forbid_unknown_fields=True):
    """Numbers that a method keeps from step to step: it adds fields with defaults."""


class Hook:
    """A pruning method at work in a run. This one does nothing; methods override what they need.

    What a step changes must be in `state` (numbers) or `tensors` (by kind, then by parameter name): both are written
    with every save of the run, and are back before `begin` when it goes on. Tensors of a parameter's shape are cut
    along with it by `Run.shrink`. All else must follow from the settings and the position in the run.
    """

    State: type[State] = State

    def __init__(self) -> None:
        self.state: Any = self.State()
        self.tensors: dict[str, dict[str, Tensor]] = {}

    def epochs(self, steps: int) -> int | None:
        """How many epochs of so many steps the method takes; None where it goes by the length of the run."""
        return None

    def begin(self, run: Run, say: Say) -> None:
        """Before the first step, and when a run goes on.

        Raises `UsageError` or `TargetError` where the network or the recipe lacks what the method needs.
        """

    def before_forward(self, run: Run) -> None:
        """A step begins: weights may be put aside for others that the forward pass is to see."""

    def after_backward(self, run: Run) -> None:
        """Gradients are there: penalties may be added to them."""

    def after_step(self, run: Run) -> None:
        """The optimizer has moved the weights."""

    def after_epoch(self, run: Run) -> None:
        """An epoch is over and not yet scored: shapes and masks may change."""

    def evaluating(self, run: Run) -> AbstractContextManager[None]:
        """Holds while the network is scored."""
        return nullcontext()

    def end(self, run: Run) -> None:
        """The run is over, and its last epoch scored: what was chosen goes for good."""

    def numbers(self, run: Run) -> dict[str, float]:
        """What the log of an epoch tells beside sums and scores: penalties, bounds; `name/layer` for single layers.

        Names of one word are in the line about the epoch too.
        """
        return {}

    def status(self, run: Run) -> str:
        """A few words for the line that shows progress."""
        return ""
