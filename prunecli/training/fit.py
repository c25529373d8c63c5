"""The one training loop: continues a checkpoint to the end of its schedule."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor

from prunecli.checkpoint import Checkpoint
from prunecli.data import Dataset, Order, Split
from prunecli.errors import Interrupted, PruneError
from prunecli.options import Execution
from prunecli.progress import Say, short, silent
from prunecli.sidecar import EpochLog, Method, Score
from prunecli.training.evaluate import autocast, evaluate, first_outputs
from prunecli.training.hook import Hook
from prunecli.training.interrupt import Signals
from prunecli.training.run import Run, start
from prunecli.training.saving import Saving
from prunecli.training.schedule import factor


def fit(
    checkpoint: Checkpoint,
    data: Dataset,
    execution: Execution,
    *,
    saving: Saving | None = None,
    hook: Hook | None = None,
    say: Say = silent,
) -> Checkpoint:
    """Train `checkpoint` from its position to the end of its schedule and return the result (the caller writes it).

    `hook` is the pruning method at work. What it takes away at the end is scored once more: the learning curve ends
    with the score before, `metrics.last` is the one after.

    With `saving`, the unfinished run is written as it goes, so that a killed process loses little, and snapshots are
    written at the epochs that it names. Raises `Interrupted` after Ctrl-C or SIGTERM, once the run is saved,
    `UsageError` where another process is at work on the same output, and `PruneError` when the loss turns non-finite,
    with nothing of that state written.
    """
    run = start(checkpoint, data, execution, hook or Hook())
    training = run.training
    if run.masks:
        run.enforce_masks()
    devices = [run.device] if run.device.type == "cuda" else []
    with torch.random.fork_rng(devices):  # numbers that tracing draws are not the run's
        run.hook.begin(run, say)
    with saving.alone() if saving else nullcontext(), Signals() as signals:
        if saving and (training.epoch, training.step) == (0, 0):
            saving.snapshot(run)
        while training.epoch < training.epochs:
            for progress in _epoch(run):
                say.status(progress)
                if signals.received:
                    raise _interrupted(run, saving, signals.received)
                if saving:
                    saving.tick(run)
            say(_score(run))
            if saving:
                saving.snapshot(run)
                saving.tick(run, epoch_over=True)
            if signals.received:
                raise _interrupted(run, saving, signals.received)
    if hook:
        _end(run, say)
    if run.data.val:
        run.metrics.test = Score(epoch=training.epoch, values=_evaluate(run, run.data.test))
    return run.checkpoint()


def _epoch(run: Run) -> Iterator[str]:
    """Train what is left of the current epoch; after each step the position has moved on and a status is yielded."""
    training = run.training
    steps = run.data.train.steps(training.batch_size)
    loss_sum, seen = training.totals or (0.0, 0.0)
    order = Order(training.seed, training.epoch, training.augment)
    batches = run.data.train.batches(training.batch_size, order=order, start=training.step, device=str(run.device))
    for x, y in batches:
        rate = training.lr * factor(training.schedule, training.epochs, training.epoch + training.step / steps)
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        run.optimizer.zero_grad()
        run.hook.before_forward(run)
        with autocast(training.precision, str(run.device)):
            loss = run.task.loss(run.network(x), y)
        value = loss.item()
        if not math.isfinite(value):
            raise PruneError(
                f"loss is {value} at step {training.step + 1} of epoch {training.epoch + 1}, learning rate {rate:g}",
                "lower --lr, or add --warmup or --clip-grad; what was saved before is kept",
            )
        loss.backward()
        if training.clip_grad:  # before what methods add, which is no more of the loss than weight decay is
            run.clip(training.clip_grad)
        run.hook.after_backward(run)
        run.optimizer.step()
        if run.masks:
            run.enforce_masks()
        run.hook.after_step(run)
        loss_sum, seen = loss_sum + value * len(y), seen + len(y)
        training.step, training.totals = training.step + 1, [loss_sum, seen]
        place = f"epoch {training.epoch + 1}/{training.epochs}  step {training.step}/{steps}"
        yield f"{place}  loss {loss_sum / seen:.4f}  {run.hook.status(run)}"


def _score(run: Run) -> str:
    """Close the epoch: hooks, scores, learning curve; the position moves to the next epoch. Returns a line about it."""
    training, metrics = run.training, run.metrics
    run.hook.after_epoch(run)
    scores = _evaluate(run, run.data.val or run.data.test)
    loss_sum, seen = training.totals or (0.0, 1.0)
    rate = run.optimizer.param_groups[0]["lr"]
    metrics.split = "val" if run.data.val else "test"
    told = {key: float(value) for key, value in run.told().items()}  # as they are read back
    log = EpochLog(epoch=training.epoch + 1, lr=rate, train={"loss": loss_sum / max(seen, 1.0)}, score=scores)
    log.method = told
    metrics.curve.append(log)
    metrics.last = Score(epoch=training.epoch + 1, values=scores)
    if metrics.best is None or run.task.better(scores, metrics.best.values):
        metrics.best = metrics.last
    training.epoch, training.step, training.totals = training.epoch + 1, 0, []
    line = f"epoch {training.epoch}/{training.epochs}  lr {rate:.3g}  train loss {loss_sum / max(seen, 1.0):.4f}  "
    line += f"{metrics.split} " + "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
    names = [name for name in told if name.isalpha() and name != "params"]  # of which the sparsity is the share
    return "  ".join([line, *(f"{name} {short(told[name])}" for name in names)])


def _end(run: Run, say: Say) -> None:
    """Let the method finish its work, and score what is left: the best epoch was of another network."""
    whole = _outputs(run)
    before = run.metrics.last.values if run.metrics.last else _evaluate(run, run.data.val or run.data.test)
    run.hook.end(run)
    run.hook, run.training.method = Hook(), Method()
    scores = _evaluate(run, run.data.val or run.data.test)
    run.metrics.last = run.metrics.best = Score(epoch=run.training.epoch, values=scores)
    shown = "  ".join(f"{name} {before[name]:.4f} -> {value:.4f}" for name, value in scores.items())
    apart = 100 * float((_outputs(run) - whole).abs().max() / whole.abs().max())
    change = f"outputs within {f'{apart:.0f}' if apart >= 10 else f'{apart:.2g}'}%"
    say("  ".join(["pruned", shown, change, *(f"{name} {short(value)}" for name, value in run.sums().items())]))


def _outputs(run: Run) -> Tensor:
    """What the network, as it is scored, makes of some held-out examples."""
    with run.hook.evaluating(run):
        split, device = run.data.val or run.data.test, str(run.device)
        return first_outputs(run.network, split, device=device, precision=run.training.precision)


def _evaluate(run: Run, split: Split) -> dict[str, float]:
    """Scores of the run's network. Raises `PruneError` when they are not finite."""
    precision, task = run.training.precision, run.source.sidecar.task
    with run.hook.evaluating(run):
        scores = evaluate(run.network, split, device=str(run.device), precision=precision, task=task)
    for name, value in scores.items():
        if not math.isfinite(value):
            rate, epoch = run.optimizer.param_groups[0]["lr"], min(run.training.epoch + 1, run.training.epochs)
            raise PruneError(
                f"{name} is {value} on held-out examples after epoch {epoch}, learning rate {rate:g}",
                "lower --lr, or add --warmup or --clip-grad; what was saved before is kept",
            )
    return scores


def _interrupted(run: Run, saving: Saving | None, number: int) -> Interrupted:
    training = run.training
    over = training.epoch == training.epochs
    where = f"the end of epoch {training.epoch}" if over else f"epoch {training.epoch + 1}, step {training.step}"
    if saving is None:
        return Interrupted(f"interrupted at {where}", "nothing was written; run the command again", number)
    saving.save(run)
    return Interrupted(f"interrupted at {where}", f"{saving.partial} is saved; add --resume to go on", number)
