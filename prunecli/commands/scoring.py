"""What `prune` does with data beside training: scores of the result, and batch-norm statistics."""

from __future__ import annotations

from prunecli import checkpoint as checkpoints
from prunecli import training
from prunecli.checkpoint import Checkpoint
from prunecli.data import Dataset, Split
from prunecli.errors import PruneError
from prunecli.options import Recipe
from prunecli.options.prune import PruneOptions
from prunecli.sidecar import Metrics, Score, Sidecar
from prunecli.training.recipe import BATCH_SIZE


def data_for(options: PruneOptions, sidecar: Sidecar, notes: list[str]) -> Dataset | None:
    """The data that fine-tuning, statistics or the score need; None, with a note, where a score alone misses it."""
    needed = options.finetune_epochs or (options.recalibrate and not options.dry_run)
    if not needed and (options.dry_run or options.no_eval or not (sidecar.data or options.data)):
        return None
    recipe = Recipe(data=options.data, data_arg=options.data_arg, trust=options.trust)
    try:
        return training.open_data(sidecar.data, recipe, training.image_size(sidecar))
    except PruneError as error:
        if needed or options.data:
            raise
        notes.append(f"not scored: {error.message}")
        return None


def score(checkpoint: Checkpoint, options: PruneOptions, data: Dataset | None) -> Metrics:
    """Metrics of the pruned weights: those of the weights before hold no longer."""
    sidecar = checkpoint.sidecar
    if data is None or options.no_eval:
        return Metrics(split=sidecar.metrics.split)
    network = checkpoints.build(checkpoint, device=options.device, trust=options.trust)
    training.check_output(network, data.info, options.device)
    epoch = sidecar.training.epoch if sidecar.training else 0

    def on(split: Split) -> Score:
        return Score(epoch=epoch, values=training.evaluate(network, split, device=options.device, task=sidecar.task))

    last = on(data.val or data.test)
    test = on(data.test) if data.val else None
    return Metrics(split="val" if data.val else "test", last=last, best=last, test=test)


def recalibrate(checkpoint: Checkpoint, options: PruneOptions, data: Dataset) -> Metrics:
    """Compute batch-norm statistics anew; returns the metrics of before, empty with `--no-eval`."""
    before = score(checkpoint, options, data)
    network = checkpoints.build(checkpoint, device=options.device, trust=options.trust)
    recorded = checkpoint.sidecar.training
    training.recalibrate(
        network,
        data.train,
        options.recalibrate,
        batch_size=recorded.batch_size if recorded else BATCH_SIZE,
        seed=options.seed or 0,
        device=options.device,
    )
    checkpoint.weights |= {
        name: tensor.detach().cpu() for name, tensor in network.named_buffers() if name in checkpoint.weights
    }
    return before
