"""`prune`: a checkpoint with units cut away or weights masked, in one shot or in rounds of pruning and fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import cast

from prunecli import checkpoint as checkpoints
from prunecli import files, training
from prunecli.allocate.counts import RoundSchedule
from prunecli.allocate.patterns import parse_ratios
from prunecli.allocate.widths import Scope
from prunecli.checkpoint import Checkpoint
from prunecli.commands.history import data_used, measured, scored, step
from prunecli.commands.pruned import PruneResult, sums
from prunecli.data import Dataset, Split
from prunecli.errors import PruneError, UsageError
from prunecli.methods import METHODS, units, weights
from prunecli.methods.outcome import Outcome
from prunecli.methods.presets import PRESETS
from prunecli.methods.targets import Target, in_rounds
from prunecli.methods.weights import Tensors
from prunecli.options import Execution, Recipe, parse_amount
from prunecli.options.prune import PruneOptions
from prunecli.progress import Say, silent
from prunecli.sidecar import Metrics, Score, Sidecar, Step

# where a result goes and how it is computed, not what it is
UNRECORDED = {f.name for f in fields(Execution)} | {
    "checkpoint", "output", "dry_run", "no_eval", "data", "data_arg", "resume",
}  # fmt: skip
ROUND = "prune_round"  # in the state of an unfinished fine-tuning: which round it belongs to


def run(options: PruneOptions, say: Say = silent) -> PruneResult:
    """Prune `options.checkpoint` and write `options.output`, or with `dry_run` only tell what would go.

    Raises `TargetError`, before any training, for a target that cannot be met, `UsageError` for options that mean
    nothing for this checkpoint, `Interrupted` after Ctrl-C or SIGTERM while fine-tuning, saved for `--resume`.
    """
    training.prepare(options)
    if not options.dry_run:
        files.check_folder(options.output)
    source = checkpoints.load(options.checkpoint)
    target = _target(options, source)
    outcome = _prune(source, options, target)  # whole at once: what cannot be met is refused here
    unscored: list[str] = []
    data = _data(options, source.sidecar, unscored)
    if data:
        source.sidecar.data = outcome.checkpoint.sidecar.data = data.info
    if options.rounds > 1 or options.finetune_epochs:
        outcome = _in_rounds(source, options, target, outcome, data, say)
    result = outcome.checkpoint
    if not options.finetune_epochs:
        result.sidecar.metrics = _score(result, options, data)
    entry = _entry(options, source, measured(result), outcome.notes)
    result.sidecar.history = [*source.sidecar.history, entry]
    result.sidecar.history = scored(result.sidecar)
    for note in (notes := [*outcome.notes, *unscored]):
        say(f"warning: {note}")
    if options.dry_run:
        return PruneResult(result, None, outcome.rows, sums(source), sums(result), notes)
    path = Path(options.output)
    result.path, result.sha256 = path, checkpoints.save(result, path)
    if options.finetune_epochs:
        files.remove(training.Saving(path).partial)
    return PruneResult(result, path, outcome.rows, sums(source), sums(result), notes)


def _target(options: PruneOptions, source: Checkpoint) -> Target:
    """The target in absolute numbers. Raises `UsageError` for a preset that is not made for this checkpoint."""
    now, sidecar = measured(source), source.sidecar
    if options.preset:
        if sidecar.surgery.axes:
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
    if METHODS[name].structure == "weights":
        masked = weights.Weights(name, scope, cast(Tensors, options.tensors), options.only, options.skip, options.seed)
        return weights.prune(checkpoint, masked, target)
    cut = units.Units(name, scope, options.round_to, options.only, options.skip, options.seed)
    return units.prune(checkpoint, cut, target, whole=whole, trust=options.trust)


def _in_rounds(
    source: Checkpoint, options: PruneOptions, target: Target, at_once: Outcome, data: Dataset | None, say: Say
) -> Outcome:
    """Prune to rising targets, each time followed by fine-tuning; `at_once` is the outcome without rounds."""
    now = measured(source)
    params = now["nonzero_params" if options.structure == "weights" else "params"]
    goals = in_rounds(target, options.rounds, cast(RoundSchedule, options.round_schedule), now["macs"], params)
    whole = {row.name: row.before for row in at_once.rows}
    saving = training.Saving(Path(options.output))
    current, first, notes, rows = source, 1, list[str](), at_once.rows
    unfinished = _unfinished(saving.partial, source, options, say) if options.resume else None
    if unfinished:
        current, first, notes = unfinished, _round(unfinished), list(unfinished.sidecar.history[-1].notes)
    for number, goal in enumerate(goals[first - 1 :], first):
        # The unfinished round is pruned already: pruning it again takes nothing, and tells its widths.
        outcome = _prune(current, options, goal, whole)
        rows = outcome.rows
        if current is not unfinished:
            current = outcome.checkpoint
            notes += [note for note in outcome.notes if note not in notes]
        if options.finetune_epochs:
            assert data is not None
            if current is not unfinished:
                current.sidecar.history = [*source.sidecar.history, _entry(options, source, {}, notes)]
                _begin(current, options, number)
            say(f"round {number} of {options.rounds}")
            current = training.fit(current, data, options, saving=saving, say=say)
            assert current.sidecar.training is not None
            current.sidecar.training.method.pop(ROUND)
    return Outcome(current, [replace(row, before=whole[row.name]) for row in rows], notes)


def _begin(checkpoint: Checkpoint, options: PruneOptions, number: int) -> None:
    """Let the fine-tuning of round `number` begin: the checkpoint's settings, its last rate, a fresh optimizer."""
    training.begin_again(checkpoint, Recipe(epochs=options.finetune_epochs, lr=options.finetune_lr)).method = {
        ROUND: number
    }


def _round(unfinished: Checkpoint) -> int:
    number = unfinished.sidecar.training.method.get(ROUND) if unfinished.sidecar.training else None
    return number if isinstance(number, int) else 0


def _unfinished(partial: Path, source: Checkpoint, options: PruneOptions, say: Say) -> Checkpoint | None:
    """The interrupted fine-tuning of this very command, if there is one. Raises `UsageError` if it is another's."""
    if not files.exists(partial):
        return None
    found = checkpoints.load(partial)
    notes = found.sidecar.history[-1].notes if found.sidecar.history else []
    history = [*source.sidecar.history, _entry(options, source, {}, notes)]
    if _round(found) not in range(1, options.rounds + 1) or found.sidecar.history != history:
        raise UsageError(
            f"--resume: {partial} is not an interrupted run of this command", "give its options, or leave --resume out"
        )
    say(f"resuming {partial} in round {_round(found)}")
    return found


def _entry(options: PruneOptions, source: Checkpoint, cost: dict[str, int], notes: list[str]) -> Step:
    recorded = {f.name: getattr(options, f.name) for f in fields(options) if f.name not in UNRECORDED}
    if options.ratios:  # as they are, not the name of the file that they came from
        recorded["ratios"] = ",".join(f"{pattern}={share:g}" for pattern, share in parse_ratios(options.ratios).items())
    if options.finetune_epochs and source.sidecar.data:
        recorded["data"] = data_used(source.sidecar.data)
    return step("prune", recorded, parent=source.sha256, measured=cost, notes=tuple(notes))


def _data(options: PruneOptions, sidecar: Sidecar, notes: list[str]) -> Dataset | None:
    """The data that fine-tuning or the score needs; None, with a note, where a score alone would need it in vain."""
    unwanted = options.dry_run or options.no_eval or not (sidecar.data or options.data)
    if unwanted and not options.finetune_epochs:
        return None
    recipe = Recipe(data=options.data, data_arg=options.data_arg, trust=options.trust)
    try:
        return training.open_data(sidecar.data, recipe, training.image_size(sidecar))
    except PruneError as error:
        if options.finetune_epochs or options.data:
            raise
        notes.append(f"not scored: {error.message}")
        return None


def _score(checkpoint: Checkpoint, options: PruneOptions, data: Dataset | None) -> Metrics:
    """Metrics of the pruned weights: those of the weights before hold no longer."""
    sidecar = checkpoint.sidecar
    if data is None:
        return Metrics(split=sidecar.metrics.split)
    network = checkpoints.build(checkpoint, device=options.device, trust=options.trust)
    training.check_output(network, data.info, options.device)
    epoch = sidecar.training.epoch if sidecar.training else 0

    def score(split: Split) -> Score:
        return Score(epoch=epoch, values=training.evaluate(network, split, device=options.device, task=sidecar.task))

    last = score(data.val or data.test)
    test = score(data.test) if data.val else None
    return Metrics(split="val" if data.val else "test", last=last, best=last, test=test)
