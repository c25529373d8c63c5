"""`finetune`: a pruned, masked, rewound or plain checkpoint, trained on."""

from __future__ import annotations

from dataclasses import fields

from prunecli import checkpoint as checkpoints
from prunecli import training
from prunecli.commands.running import Written, carry_out
from prunecli.options import Execution, Recipe
from prunecli.options.train import FinetuneOptions
from prunecli.progress import Say, silent
from prunecli.sidecar import Sidecar

# options that leave the run of the checkpoint what it is
HARMLESS = {f.name for f in fields(Execution)} | {"data", "data_arg", "val"}


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
    if not _goes_on(base.sidecar, options):
        training.begin_again(base, options, carry=options.carry)
    return carry_out("finetune", base, data, options, say)


def _goes_on(sidecar: Sidecar, options: FinetuneOptions) -> bool:
    described = [f.name for f in fields(Recipe) if f.name not in HARMLESS and getattr(options, f.name) is not None]
    spec = sidecar.training
    return spec is not None and sidecar.optimizer is not None and spec.epoch < spec.epochs and not described
