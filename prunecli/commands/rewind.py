"""`rewind`: a pruned network put back to an earlier moment of its training, so that `finetune` trains it from there.

| regime        | weights     | optimizer                        | position in the original schedule  |
|---------------|-------------|----------------------------------|------------------------------------|
| finetune      | as pruned   | fresh (`carry`: as pruned)       | a run of its own at the last rate  |
| lr-rewind     | as pruned   | fresh (`carry`: as pruned)       | the beginning of `from_epoch`      |
| weight-rewind | snapshot's  | the snapshot's (`fresh`: fresh)  | the snapshot's                     |
| lottery       | snapshot's  | fresh                            | the beginning                      |

Renda et al. 2020, *Comparing Rewinding and Fine-tuning in Neural Network Pruning*; Frankle and Carbin 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from prunecli import checkpoint as checkpoints
from prunecli.checkpoint import Checkpoint
from prunecli.commands.gradual import leave
from prunecli.commands.history import measured, step
from prunecli.commands.running import Written
from prunecli.errors import UsageError
from prunecli.options.rewind import RewindOptions
from prunecli.progress import Say, silent
from prunecli.retraining.recipe import Run, at, begun, fresh, original
from prunecli.retraining.snapshot import at_start, cut_snapshot, label, left, other_run
from prunecli.sidecar import Metrics, Optimizer, Schedule, Training
from prunecli.training.recipe import last_rate


@dataclass(frozen=True)
class Rewound(Written):
    """A checkpoint at an earlier moment, not trained any further."""

    regime: str = ""

    @property
    def training(self) -> Training:
        """The run that the checkpoint is in."""
        assert self.checkpoint.sidecar.training is not None
        return self.checkpoint.sidecar.training

    def data(self) -> dict[str, Any]:
        """The result for programs."""
        return super().data() | {
            "regime": self.regime,
            "epoch": self.training.epoch,
            "step": self.training.step,
            "epochs": self.training.epochs,
        }

    def text(self) -> str:
        """The result for people."""
        run = self.training
        where = f"epoch {run.epoch}" + (f", step {run.step}" if run.step else "")
        return super().text() + f"\n  {self.regime}: at {where} of {run.epochs}, to be continued with finetune"


def run(options: RewindOptions, say: Say = silent) -> Rewound:
    """Rewind `options.checkpoint` and write `options.output`. Nothing is trained.

    A snapshot of another run is noted. Raises `UsageError` when it is of another network, lacks something that the
    pruned network has, or is not at the moment that the regime needs, and `DamagedError` for damaged checkpoints.
    """
    pruned = checkpoints.load(options.checkpoint)
    snapshot = checkpoints.load(options.to) if options.to else None
    regime = options.resolved
    weights, sidecar = pruned.weights, pruned.sidecar
    if regime in ("weight-rewind", "lottery"):
        assert snapshot is not None  # the options see to it
        leave(snapshot, say)
        weights, optimizer = cut_snapshot(pruned, snapshot)
        training, optimizer = _earlier(snapshot, optimizer, regime, options.fresh)
    else:
        leave(pruned, say)
        training, optimizer = _as_trained(pruned, snapshot, options)
    result = Checkpoint(
        weights,
        msgspec.structs.replace(
            sidecar, training=training, optimizer=optimizer, metrics=Metrics(split=sidecar.metrics.split)
        ),
    )
    recorded = {
        "regime": regime, "to": snapshot.sha256 if snapshot else None, "from_epoch": options.from_epoch,
        "epochs": options.epochs, "fresh": options.fresh, "carry": options.carry,
    }  # fmt: skip
    notes = other_run(pruned, snapshot) if snapshot else ()
    for note in notes:
        say(f"warning: {note}")
    entry = step("rewind", recorded, parent=pruned.sha256, measured=measured(result), notes=notes)
    result.sidecar.history = [*sidecar.history, entry]
    result.sha256, result.path = checkpoints.save(result, options.output), Path(options.output)
    return Rewound(result, notes, regime)


def _earlier(snapshot: Checkpoint, optimizer: Optimizer | None, regime: str, start_fresh: bool) -> Run:
    """Where the snapshot was; `optimizer` is its own, cut. Raises `UsageError` when nothing can go on from there."""
    training = snapshot.sidecar.training
    if training is None or optimizer is None:
        raise UsageError(
            f"{label(snapshot)}: records no training run to go back into", "name a snapshot that train --keep wrote"
        )
    if regime == "lottery":
        at_start(snapshot, "--regime lottery")
        return at(training, 0), fresh(optimizer)
    if training.epoch >= training.epochs:
        raise UsageError(
            f"{label(snapshot)}: its run is over, nothing is left of the schedule to go on with",
            "name an earlier snapshot (train --keep 0,2), or use --regime lr-rewind",
        )
    if start_fresh:
        return training, fresh(optimizer)
    if (training.epoch, training.step) != (0, 0) and not any(optimizer.state.values()) and _has_state(optimizer):
        raise UsageError(
            f"{label(snapshot)}: at epoch {training.epoch}, but without the optimizer's state",
            "add --fresh to begin with a fresh optimizer",
        )
    return training, optimizer


def _has_state(optimizer: Optimizer) -> bool:
    return optimizer.name != "SGD" or any(group.options.get("momentum") for group in optimizer.groups)


def _as_trained(pruned: Checkpoint, snapshot: Checkpoint | None, options: RewindOptions) -> Run:
    """The trained weights' run: at an epoch of the original schedule, or a new one at that schedule's last rate."""
    training, optimizer = begun(snapshot) if snapshot else original(pruned)
    optimizer = left(optimizer, pruned.sidecar.surgery)
    epoch = options.from_epoch or 0
    if snapshot and snapshot.sidecar.training and options.from_epoch is None:
        epoch = snapshot.sidecar.training.epoch
    if options.resolved == "finetune":
        length = options.epochs or max(training.epochs - epoch, 1)
        training = msgspec.structs.replace(training, epochs=length, lr=last_rate(training), schedule=Schedule())
    elif epoch >= training.epochs:
        raise UsageError(
            f"--regime lr-rewind: at epoch {epoch} the original run of {training.epochs} epochs is over",
            "go back to an earlier epoch: --from-epoch 0",
        )
    else:
        training = at(training, epoch)
    return training, _carried(pruned, optimizer) if options.carry else optimizer


def _carried(pruned: Checkpoint, optimizer: Optimizer) -> Optimizer:
    """The original run's optimizer with the pruned checkpoint's state."""
    own = pruned.sidecar.optimizer
    if own is None or own.name != optimizer.name or not any(own.state.values()):
        raise UsageError(f"--carry: {label(pruned)} has no state of {optimizer.name}", "leave --carry out")
    return msgspec.structs.replace(optimizer, state=own.state)
