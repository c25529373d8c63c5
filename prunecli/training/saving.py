"""Where a run is saved while it is under way: the partial checkpoint and the snapshots."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from prunecli import checkpoint as checkpoints
from prunecli import files
from prunecli.errors import UsageError
from prunecli.training.run import Run

SECONDS = 15.0  # between two saves of an unfinished run
EPOCH_SECONDS = 2.0  # the same at the end of an epoch, a better moment


@dataclass
class Saving:
    """Saves a run that will end in `output`: at `OUT.partial.safetensors` while it lasts, at `OUT.epochN.safetensors`
    for the epochs in `keep`. With `every`, the partial checkpoint is written each so many steps; else now and then.
    """

    output: Path
    keep: Collection[int] = ()
    every: int | None = None
    last: float = field(default_factory=time.monotonic)

    @property
    def partial(self) -> Path:
        """The checkpoint of the unfinished run."""
        return self.output.with_suffix(".partial.safetensors")

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the output for this process. Raises `UsageError` where another one is at work on it."""
        lock = self.output.with_suffix(".lock")
        while True:
            with lock.open("ab") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    problem = f"{self.output}: another process is at work on it, whose run is in {self.partial.name}"
                    raise UsageError(problem, "wait until it is done, or choose another --output") from None
                except OSError:  # a file system without locks: one writer at a time is up to the user
                    pass
                if not files.is_current(file, lock):
                    continue
                try:
                    yield
                finally:
                    lock.unlink(missing_ok=True)
                return

    def tick(self, run: Run, *, epoch_over: bool = False) -> None:
        """Save the partial checkpoint when it is time to."""
        since = time.monotonic() - self.last
        if self.every:
            due = run.training.step % self.every == 0 and run.training.step > 0
        else:
            due = since >= (EPOCH_SECONDS if epoch_over else SECONDS)
        if due and run.training.epoch < run.training.epochs:
            self.save(run)

    def save(self, run: Run) -> None:
        """Write the partial checkpoint now."""
        checkpoints.save(run.checkpoint(), self.partial)
        self.last = time.monotonic()

    def snapshot(self, run: Run) -> None:
        """Write the snapshot of this epoch, if it is one to keep."""
        if run.training.epoch in self.keep:
            checkpoints.save(run.checkpoint(), self.output.with_suffix(f".epoch{run.training.epoch}.safetensors"))
