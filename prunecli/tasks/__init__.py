"""What a network is for. A task says how an output is judged; everything else is the same for all tasks."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from prunecli.errors import DamagedError, nearest
from prunecli.tasks.classification import Classification


class Task(Protocol):
    """How outputs are judged. `totals` are sums over examples that `scores` turns into means; both are plain floats."""

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """The mean training loss of a batch, differentiable."""
        ...

    def totals(self, output: Any, target: Tensor) -> Tensor:
        """Sums over a batch, one float64 vector that can be added to those of other batches."""
        ...

    def scores(self, totals: list[float]) -> dict[str, float]:
        """Named scores of summed totals."""
        ...

    def better(self, scores: dict[str, float], than: dict[str, float]) -> bool:
        """Whether `scores` beat those of another epoch."""
        ...


TASKS: dict[str, type[Task]] = {"classification": Classification}


def get(name: str) -> Task:
    """The task named `name`. Raises `DamagedError` for a task that this version does not have."""
    if name not in TASKS:
        raise DamagedError(f"task: unknown task {name!r}", nearest(name, TASKS))
    return TASKS[name]()
