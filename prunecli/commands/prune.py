"""`prune`: a checkpoint with units cut away or weights masked, in one shot or in rounds of pruning and fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from prunecli import checkpoint as checkpoints
from prunecli import files, training
from prunecli.allocate.patterns import parse_ratios
from prunecli.allocate.widths import Scope
from prunecli.checkpoint import Checkpoint
from prunecli.commands import gradual, rounds, scoring
from prunecli.commands.history import measured, scored
from prunecli.commands.pruned import PruneResult, saved, sums
from prunecli.commands.running import Written, carry_out
from prunecli.errors import UsageError
from prunecli.methods import METHODS, units, weights
from prunecli.methods.gradual import GRADUAL
from prunecli.methods.outcome import Outcome
from prunecli.methods.presets import PRESETS
from prunecli.methods.targets import Target, Units
from prunecli.methods.weights import Tensors
from prunecli.options import parse_amount
from prunecli.options.prune import PruneOptions
from prunecli.progress import Say, silent


def run(options: PruneOptions, say: Say = silent) -> PruneResult | Written:
    """Prune `options.checkpoint` and write `options.output`, or with `dry_run` only tell what would go.

    A method of `methods.gradual` does so in a training run of its own.

    Raises `TargetError`, before any training, for a target that cannot be met, `UsageError` for options that mean
    nothing for this checkpoint, `Interrupted` after Ctrl-C or SIGTERM while fine-tuning, saved for `--resume`.
    """
    training.prepare(options)
    if options.method in GRADUAL:
        return _while_training(options, say)
    if not options.dry_run:
        files.check_folder(options.output)
    source = checkpoints.load(options.checkpoint)
    gradual.leave(source, say)
    target = _target(options, source)
    outcome = _prune(source, options, target)  # whole at once: what cannot be met is refused here
    unscored: list[str] = []
    data = scoring.data_for(options, source.sidecar, unscored)
    if data:
        source.sidecar.data = outcome.checkpoint.sidecar.data = data.info
    if options.rounds > 1 or options.finetune_epochs:
        outcome = rounds.carry_out(source, options, target, outcome, data, _prune, say)
    result, uncalibrated = outcome.checkpoint, None
    if not options.finetune_epochs:
        if options.recalibrate and data:
            uncalibrated = scoring.recalibrate(result, options, data)
        result.sidecar.metrics = scoring.score(result, options, data)
    entry = rounds.entry(options, source, measured(result), outcome.warnings)
    result.sidecar.history = [*source.sidecar.history, entry]
    result.sidecar.history = scored(result.sidecar)
    for note in (notes := [*outcome.warnings, *unscored]):
        say(f"warning: {note}")
    path = None if options.dry_run else Path(options.output)
    if path:
        result.path, result.sha256 = path, checkpoints.save(result, path)
    if path and options.finetune_epochs:
        files.remove(training.Saving(path).partial)
    return PruneResult(
        result,
        path,
        outcome.rows,
        sums(source),
        sums(result),
        notes,
        outcome.unpruned,
        outcome.folded,
        uncalibrated,
        {row.name: saved(source, row) for row in outcome.rows if row.after < row.before and row.members},
    )


def _while_training(options: PruneOptions, say: Say) -> Written:
    source = checkpoints.load(options.checkpoint)
    gradual.leave(source, say)
    data = training.open_data(source.sidecar.data, options, training.image_size(source.sidecar))
    source.sidecar.data = data.info
    method, options = gradual.chosen(options, measured(source), data)
    training.begin_again(source, options).method = method
    return carry_out("prune", source, data, options, say)


def _target(options: PruneOptions, source: Checkpoint) -> Target:
    """The target in absolute numbers. Raises `UsageError` for a preset that is not made for this checkpoint."""
    now, sidecar = measured(source), source.sidecar
    if options.preset:
        if sidecar.surgery.axes or sidecar.surgery.absent:
            raise UsageError(f"--preset {options.preset}: this checkpoint is already cut", "give the dense checkpoint")
        convs = [name.rpartition(".")[0] for name in sidecar.cost.positions if source.weights[name].ndim == 4]
        return Target(ratios=PRESETS[options.preset].ratios(options.preset, sidecar.arch.name, convs))
    return Target(
        share=options.sparsity,
        ratios=parse_ratios(options.ratios) if options.ratios else {},
        macs=parse_amount(options.max_macs, "--max-macs").of(now["macs"]) if options.max_macs else None,
        params=parse_amount(options.max_params, "--max-params").of(now["params"]) if options.max_params else None,
    )


def _prune(
    checkpoint: Checkpoint, options: PruneOptions, target: Target, whole: Mapping[str, int] | None = None
) -> Outcome:
    """One step: units or weights of `checkpoint`, to `target`."""
    name = options.method_name
    scope = cast(Scope, options.scope) or METHODS[name].scope
    limit, only, skip, seed = options.max_layer_sparsity, options.only, options.skip, options.seed or 0
    if METHODS[name].structure == "weights":
        masked = weights.Weights(name, scope, cast(Tensors, options.tensors), limit, only, skip, seed)
        return weights.prune(checkpoint, masked, target)
    cut = Units(
        name, scope, options.round_to, limit, only, skip, options.skip_inputs, options.heads, options.compensate,
        seed,
    )  # fmt: skip
    return units.prune(checkpoint, cut, target, whole=whole, trust=options.trust)
