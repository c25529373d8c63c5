"""The run that trained the large network, found in a checkpoint's history, and the scratch run made from it."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec

from prunecli.checkpoint import Checkpoint
from prunecli.errors import DamagedError, UsageError
from prunecli.options.scratch import ScratchOptions
from prunecli.retraining.budget import budget_epochs, budget_schedule
from prunecli.sidecar import Method, Optimizer, Sidecar, Training
from prunecli.training import recipe

Run = tuple[Training, Optimizer]
SCHEDULE_OPTIONS = ("schedule", "milestones", "step_size", "gamma", "period", "min_lr", "warmup")


def original(checkpoint: Checkpoint) -> Run:
    """The run of `train` that the history records, at its beginning with a fresh optimizer; else the sidecar's own run.

    Raises `UsageError` when there is none, `DamagedError` when the history's entry does not describe one.
    """
    sidecar = checkpoint.sidecar
    names = checkpoint.trained
    trained = [entry for entry in sidecar.history if entry.command == "train"]
    if trained:
        try:
            return recipe.recall(trained[-1].options, names)
        except (KeyError, TypeError, ValueError, msgspec.ValidationError) as error:
            raise DamagedError(
                f"{checkpoint.path}: the history's train step describes no run: {error}",
                "write the checkpoint again, or restore its sidecar",
            ) from error
    return begun(checkpoint)


def begun(checkpoint: Checkpoint) -> Run:
    """The run that the checkpoint is in, at its beginning with a fresh optimizer. Raises `UsageError` when in none."""
    training, optimizer = checkpoint.sidecar.training, checkpoint.sidecar.optimizer
    if training is None or optimizer is None:
        raise UsageError(
            f"{checkpoint.path}: records no training run", "start from a checkpoint that prunecli train wrote"
        )
    return at(training, 0), fresh(optimizer)


def at(training: Training, epoch: int) -> Training:
    """The same run at the beginning of `epoch`."""
    return msgspec.structs.replace(training, epoch=epoch, step=0, totals=[], rng={}, method=Method())


def fresh(optimizer: Optimizer) -> Optimizer:
    """The same optimizer without state."""
    return msgspec.structs.replace(optimizer, state={})


def scratch_run(options: ScratchOptions, source: Checkpoint, trained: list[str], ratio: float) -> Run:
    """The run that trained the large network, of parameters `trained` over the budget's epochs; options override it.

    `ratio`: the large network's MACs over the small one's. Raises `UsageError` when the budget has no epoch.
    """
    training, optimizer = original(source)
    epochs = options.epochs or budget_epochs(options.budget, training.epochs, ratio)
    if epochs < 1 and options.epochs is None:
        raise UsageError(
            f"--budget {options.budget}: the run of the large network has no epochs", "say how many: --epochs 40"
        )
    name = recipe.NAMES[options.optimizer] if options.optimizer else optimizer.name
    rate = training.lr if name == optimizer.name else recipe.DEFAULTS[name]["lr"]
    unscheduled: dict[str, Any] = dict.fromkeys(SCHEDULE_OPTIONS)  # what they describe is put in place below
    given = dataclasses.replace(options, epochs=epochs, lr=options.lr or rate, **unscheduled)
    base: Sidecar = msgspec.structs.replace(source.sidecar, training=training, optimizer=optimizer)
    run, settings = recipe.begin(given, trained, base)
    if any(getattr(options, name) is not None for name in SCHEDULE_OPTIONS):
        run.schedule = recipe.schedule(options, training.schedule.kind, run.lr)
    else:
        run.schedule = budget_schedule(options.budget, training.schedule, training.epochs, epochs)
    return run, settings
