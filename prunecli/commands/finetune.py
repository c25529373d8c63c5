"""`finetune`: a pruned, masked, rewound or plain checkpoint, trained on."""

from __future__ import annotations

from dataclasses import fields

from prunecli import checkpoint as checkpoints
from prunecli import training
from prunecli.commands import gradual
from prunecli.commands.running import Written, carry_out
from prunecli.options import Execution, Recipe
from prunecli.options.train import FinetuneOptions
from prunecli.progress import Say, silent
from prunecli.sidecar import Sidecar, Training

DATA_OPTIONS = {"data", "data_arg", "val"}
# options that describe a run; the others leave the run of the checkpoint what it is
DESCRIBING = [f.name for f in fields(Recipe) if f.name not in {g.name for g in fields(Execution)} | DATA_OPTIONS]


def run(options: FinetuneOptions, say: Say = silent) -> Written:
    """Continue `options.checkpoint` and write `options.output`, masks enforced on weights and optimizer state.

    A checkpoint whose schedule is unfinished (a snapshot, or what `rewind` writes) goes on from its position; a
    finished one, or any option that describes a run, begins a new run: by default 10 epochs at the last rate with a
    fresh optimizer (`carry` keeps the checkpoint's state).
    """
    training.prepare(options)
    base = checkpoints.load(options.checkpoint)
    data = training.open_data(base.sidecar.data, options, training.image_size(base.sidecar))
    base.sidecar.data = data.info
    described = [name for name in DESCRIBING if getattr(options, name) is not None]
    unfinished = _unfinished(base.sidecar)
    if unfinished and described:
        flags = ", ".join("--" + name.replace("_", "-") for name in described)
        say(f"a new run because of {flags}: the run at epoch {unfinished.epoch} of {unfinished.epochs} is left")
    if described or not unfinished:
        gradual.leave(base, say)
        training.begin_again(base, options, carry=options.carry)
    return carry_out("finetune", base, data, options, say)


def _unfinished(sidecar: Sidecar) -> Training | None:
    """The run that the checkpoint is in the middle of."""
    spec = sidecar.training
    return spec if spec and sidecar.optimizer is not None and spec.epoch < spec.epochs else None
