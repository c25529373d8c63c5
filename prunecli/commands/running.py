"""What every command that trains does around the loop: history, resuming, writing, telling."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from prunecli import checkpoint as checkpoints
from prunecli import files, training
from prunecli.checkpoint import Checkpoint
from prunecli.commands.gradual import by_content, known
from prunecli.commands.history import data_used, measured, scored, step
from prunecli.data import Dataset
from prunecli.errors import PruneError, UsageError
from prunecli.methods import gradual
from prunecli.options import Recipe
from prunecli.options.gradual import MethodOptions
from prunecli.options.prune import ONE_SHOT
from prunecli.options.train import RunOptions
from prunecli.progress import Say
from prunecli.sidecar import Sidecar

# how and where a run is carried out, or what its description in the history says already
UNRECORDED = {f.name for f in (*fields(Recipe), *fields(MethodOptions))} | ONE_SHOT | {
    "output", "keep", "resume", "save_every", "checkpoint", "method",
}  # fmt: skip


@dataclass(frozen=True)
class Written:
    """A checkpoint that a command has written."""

    checkpoint: Checkpoint
    notes: tuple[str, ...] = ()

    def data(self) -> dict[str, Any]:
        """The result for programs: MACs are multiply-adds of one example, scores are on `split`."""
        metrics = self.checkpoint.sidecar.metrics
        return {
            "checkpoint": str(self.checkpoint.path),
            "sha256": self.checkpoint.sha256,
            **measured(self.checkpoint),
            "split": metrics.split,
            "last": metrics.last.values if metrics.last else None,
            "best": metrics.best.values if metrics.best else None,
            "test": metrics.test.values if metrics.test else None,
            "notes": list(self.notes),
        }

    def text(self) -> str:
        """The result for people."""
        data, metrics = self.data(), self.checkpoint.sidecar.metrics
        lines = [f"{data['checkpoint']}: {data['params']:,} parameters, {data['macs']:,} MACs"]
        if data["nonzero_params"] != data["params"]:
            lines.append(
                f"  masked: {data['nonzero_params']:,} parameters left, {data['effective_macs']:,} effective MACs"
            )
        scores = (
            ("last", metrics.split, metrics.last),
            ("best", metrics.split, metrics.best),
            ("last", "test", metrics.test),
        )
        for name, split, score in scores:
            if score:
                shown = ", ".join(f"{key} {value:.4f}" for key, value in score.values.items())
                lines.append(f"  {name} (epoch {score.epoch}, {split}): {shown}")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def carry_out(command: str, initial: Checkpoint, data: Dataset, options: RunOptions, say: Say) -> Written:
    """Train `initial` to the end of its schedule, from the interrupted run where `--resume` finds one, and write it."""
    sidecar = initial.sidecar
    assert sidecar.training is not None and sidecar.optimizer is not None  # noqa: PT018  # the callers begin runs
    recorded = {f.name: getattr(options, f.name) for f in fields(options) if f.name not in UNRECORDED}
    run = training.describe(sidecar.training, sidecar.optimizer)
    method = sidecar.training.method
    hook = gradual.hook(method)
    sidecar.training.method = method = by_content(method) if getattr(options, "method", None) else known(method)
    if method.name:
        run |= {"method": method.name, "settings": method.settings, "settings_changed": gradual.changed(method)}
    run["data"] = data_used(data.info)
    entry = step(command, recorded | run, parent=initial.sha256, measured=measured(initial))
    sidecar.history = [*sidecar.history, entry]
    saving = training.Saving(Path(options.output), options.kept_epochs, options.save_every)
    late = [epoch for epoch in options.kept_epochs if epoch > sidecar.training.epochs]
    if late:
        raise UsageError(
            f"--keep {late[0]}: the run ends with epoch {sidecar.training.epochs}", "keep epochs of the run"
        )
    files.check_folder(saving.output)
    start = _resumed(saving.partial, sidecar, say) if options.resume else None
    if not options.resume and files.exists(saving.partial):
        say(f"warning: {saving.partial}, an interrupted run, is begun again; --resume would go on with it")
    if options.resume and start is None and (done := _finished(saving.output, sidecar, say)):
        return Written(done, ("already complete: nothing to resume",))
    result = training.fit(start or initial, data, options, saving=saving, hook=hook, say=say)
    result.sidecar.history = scored(result.sidecar)
    result.path, result.sha256 = saving.output, checkpoints.save(result, saving.output)
    files.remove(saving.partial)
    assert result.sidecar.training is not None
    ended = result.sidecar.training.epochs
    missed = [
        f"--keep {epoch}: no snapshot, the run ended early with epoch {ended}" for epoch in saving.keep if epoch > ended
    ]
    return Written(result, tuple(missed))


def _resumed(partial: Path, wanted: Sidecar, say: Say) -> Checkpoint | None:
    """The interrupted run, or None when there is none. Raises `UsageError` when it is another run."""
    if not files.exists(partial):
        return None
    found = checkpoints.load(partial)
    if difference := _difference(found.sidecar, wanted):
        raise UsageError(
            f"--resume: {partial} is a run with other options: {difference}",
            "give the options of that run, or leave --resume out to start again",
        )
    assert found.sidecar.training is not None
    say(f"resuming {partial} at epoch {found.sidecar.training.epoch + 1}, step {found.sidecar.training.step}")
    return found


def _finished(output: Path, wanted: Sidecar, say: Say) -> Checkpoint | None:
    """The run's result where it is there already; one of other options is replaced, and a line says so."""
    try:
        found = checkpoints.load(output)
    except PruneError:
        return None
    if difference := _difference(found.sidecar, wanted):
        say(f"--resume: {output} is of a run with other options ({difference}); a new run begins")
        return None
    return found


def _difference(found: Sidecar, wanted: Sidecar) -> str:
    """What differs between the run that `found` is part of and the one that `wanted` begins; empty if nothing does."""
    commands = [sidecar.history[-1].command if sidecar.history else "nothing" for sidecar in (found, wanted)]
    if commands[0] != commands[1]:
        return f"{commands[0]} there, {commands[1]} now"
    prunes = wanted.training is not None and wanted.training.method.name is not None  # then these change on the way
    for name in ["arch", "data"] + ["surgery", "masks"] * (not prunes):
        if getattr(found, name) != getattr(wanted, name):
            return name
    if len(found.history) != len(wanted.history):
        return "the steps before it"
    for old, new in zip(found.history, wanted.history, strict=True):
        if (old.command, old.parent) != (new.command, new.parent):
            return f"{old.command} of other weights"
        for key in sorted(old.options | new.options):
            if difference := _unlike(key, old.options.get(key), new.options.get(key)):
                return difference
    return ""


def _unlike(key: str, old: Any, new: Any) -> str:
    """The first value that differs, named as deep inside as both have it; empty if none does."""
    if isinstance(old, dict) and isinstance(new, dict):
        return next(filter(None, (_unlike(name, old.get(name), new.get(name)) for name in sorted(old | new))), "")
    return "" if old == new else f"{key} {old} there, {new} now"
