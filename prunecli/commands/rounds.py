"""Rounds of `prune`: rising targets, fine-tuning after each, going on after an interruption."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import cast

from prunecli import checkpoint as checkpoints
from prunecli import files, training
from prunecli.allocate.counts import RoundSchedule
from prunecli.allocate.patterns import parse_ratios
from prunecli.checkpoint import Checkpoint
from prunecli.commands.history import data_used, measured, step
from prunecli.data import Dataset
from prunecli.errors import UsageError
from prunecli.methods.outcome import Outcome, Row
from prunecli.methods.targets import Target, in_rounds
from prunecli.options import Execution, Recipe
from prunecli.options.prune import TRAINING, PruneOptions
from prunecli.progress import Say
from prunecli.sidecar import Method, Step
from prunecli.surgery.compensate import Folded

# where a result goes and how it is computed, not what it is
UNRECORDED = {f.name for f in fields(Execution)} | {
    "checkpoint", "output", "dry_run", "no_eval", "data", "data_arg", "resume", *TRAINING,
}  # fmt: skip
ROUND = "prune_round"  # in the state of an unfinished fine-tuning: which round it belongs to

Prune = Callable[[Checkpoint, PruneOptions, Target, Mapping[str, int] | None], Outcome]


def carry_out(
    source: Checkpoint,
    options: PruneOptions,
    target: Target,
    at_once: Outcome,
    data: Dataset | None,
    prune: Prune,
    say: Say,
) -> Outcome:
    """Prune to rising targets, each time followed by fine-tuning; `at_once` is the outcome without rounds."""
    now = measured(source)
    params = now["nonzero_params" if options.structure == "weights" else "params"]
    goals = in_rounds(target, options.rounds, cast(RoundSchedule, options.round_schedule), now["macs"], params)
    whole = {row.name: row.before for row in at_once.rows}
    saving = training.Saving(Path(options.output))
    current, first, notes, outcome = source, 1, list[str](), at_once
    folded: Folded | None = None
    unfinished = _unfinished(saving.partial, source, options, say) if options.resume else None
    if unfinished:
        current, first, notes = unfinished, _round(unfinished), list(unfinished.sidecar.history[-1].notes)
    for number, goal in enumerate(goals[first - 1 :], first):
        # The unfinished round is pruned already: pruning it again takes nothing, and tells its widths.
        outcome = prune(current, options, goal, whole)
        if current is not unfinished:
            current = outcome.checkpoint
            notes += [note for note in outcome.notes if note not in notes]
            folded = outcome.folded and outcome.folded.after(folded)
        if options.finetune_epochs:
            assert data is not None
            if current is not unfinished:
                current.sidecar.history = [*source.sidecar.history, entry(options, source, {}, notes)]
                _begin(current, options, source, number)
            say(f"round {number} of {options.rounds}")
            current = training.fit(current, data, options, saving=saving, say=say)
            assert current.sidecar.training is not None
            current.sidecar.training.method = Method()
    last = {row.name: row for row in outcome.rows}
    rows = [_since(row, last.get(row.name), current) for row in at_once.rows]
    cut = {layer for row in rows if row.after < row.before for layer in row.layers}
    unpruned = {layer: why for layer, why in outcome.unpruned.items() if layer not in cut}
    return replace(outcome, checkpoint=current, rows=rows, notes=notes, unpruned=unpruned, folded=folded)


def _since(first: Row, last: Row | None, checkpoint: Checkpoint) -> Row:
    """A row from before the first round to after the `last` one, None where the group is down to one unit."""
    found = checkpoint.weights
    members = [replace(m, after=found[m.tensor].shape[m.axis]) if m.tensor in found else m for m in first.members]
    after = last.after if last else 1
    return replace(first, after=after, members=members, why=last.why if last and after == first.before else None)


def _begin(checkpoint: Checkpoint, options: PruneOptions, source: Checkpoint, number: int) -> None:
    """Let the fine-tuning of round `number` begin: the checkpoint's settings, its last rate, a fresh optimizer.

    Each round sees the data in an order of its own, the first one in that of a fine-tuning without rounds.
    """
    seed = source.sidecar.training.seed if source.sidecar.training else 0
    if number > 1:
        seed = training.derived_seed(seed, "round", number)
    recipe = Recipe(epochs=options.finetune_epochs, lr=options.finetune_lr, seed=seed)
    training.begin_again(checkpoint, recipe).method = Method(state={ROUND: number})


def _round(unfinished: Checkpoint) -> int:
    number = unfinished.sidecar.training.method.state.get(ROUND) if unfinished.sidecar.training else None
    return number if isinstance(number, int) else 0


def _unfinished(partial: Path, source: Checkpoint, options: PruneOptions, say: Say) -> Checkpoint | None:
    """The interrupted fine-tuning of this very command, if there is one. Raises `UsageError` if it is another's."""
    if not files.exists(partial):
        return None
    found = checkpoints.load(partial)
    notes = found.sidecar.history[-1].notes if found.sidecar.history else []
    history = [*source.sidecar.history, entry(options, source, {}, notes)]
    if _round(found) not in range(1, options.rounds + 1) or found.sidecar.history != history:
        raise UsageError(
            f"--resume: {partial} is not an interrupted run of this command", "give its options, or leave --resume out"
        )
    say(f"resuming {partial} in round {_round(found)}")
    return found


def entry(options: PruneOptions, source: Checkpoint, cost: dict[str, int], notes: list[str]) -> Step:
    """The entry of this command in the history of its output."""
    recorded = {f.name: getattr(options, f.name) for f in fields(options) if f.name not in UNRECORDED}
    recorded["seed"] = options.seed or 0
    if options.ratios:  # as they are, not the name of the file that they came from
        recorded["ratios"] = ",".join(f"{pattern}={share:g}" for pattern, share in parse_ratios(options.ratios).items())
    if (options.finetune_epochs or options.recalibrate) and source.sidecar.data:
        recorded["data"] = data_used(source.sidecar.data)
    return step("prune", recorded, parent=source.sha256, measured=cost, notes=tuple(notes))
