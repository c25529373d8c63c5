"""What a run does, resolved: options over the base checkpoint's values over defaults."""

from __future__ import annotations

from typing import Any

import msgspec

from prunecli.checkpoint import Checkpoint
from prunecli.errors import UsageError
from prunecli.options import Recipe
from prunecli.options.values import parse_numbers
from prunecli.sidecar import Metrics, Optimizer, ParamGroup, Schedule, Sidecar, Training
from prunecli.training.schedule import factor

NAMES = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}
DEFAULTS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.05, "momentum": 0.9, "nesterov": False, "weight_decay": 5e-4},
    "Adam": {"lr": 1e-3, "betas": [0.9, 0.999], "weight_decay": 0.0},
    "AdamW": {"lr": 1e-3, "betas": [0.9, 0.999], "weight_decay": 1e-2},
}
EPOCHS, BATCH_SIZE = 10, 64
# what these options describe; with anything else they would be without effect, and are refused
SCHEDULES_OF = {
    "milestones": ("multistep",),
    "step_size": ("step",),
    "gamma": ("step", "multistep", "exponential"),
    "period": ("cosine",),
    "min_lr": ("cosine",),
}
OPTIMIZERS_OF = {"momentum": ("sgd",), "nesterov": ("sgd",), "betas": ("adam", "adamw")}


def begin(options: Recipe, names: list[str], base: Sidecar | None = None) -> tuple[Training, Optimizer]:
    """A run at its beginning, over parameters `names`, with a fresh optimizer.

    Without `base`: the defaults above and a cosine schedule. With `base`, a checkpoint to fine-tune: its batch size,
    seed, precision and optimizer settings, at the constant `last_rate`. Raises `UsageError` for Nesterov momentum of 0
    and for options that would be without effect.
    """
    before = base.training if base else None
    old = base.optimizer if base else None
    name = NAMES[options.optimizer] if options.optimizer else old.name if old else "SGD"
    _effective(options, "optimizer", name.lower(), OPTIMIZERS_OF)
    settings = dict(DEFAULTS[name])
    if old and old.name == name:
        settings |= {key: value for key, value in old.groups[0].options.items() if key in settings}
    if before:
        settings["lr"] = last_rate(before)
    given = {"lr": options.lr, "weight_decay": options.weight_decay}
    if name == "SGD":
        given |= {"momentum": options.momentum, "nesterov": options.nesterov}
    elif options.betas:
        given["betas"] = parse_numbers(options.betas, "--betas")  # type: ignore[assignment]
    settings |= {key: value for key, value in given.items() if value is not None}
    if settings.get("nesterov") and not settings["momentum"]:
        raise UsageError("--nesterov: there is no momentum to look ahead with", "give one: --momentum 0.9")
    lr = float(settings["lr"])
    training = Training(
        epochs=EPOCHS if options.epochs is None else options.epochs,
        batch_size=options.batch_size or (before.batch_size if before else BATCH_SIZE),
        seed=_first(options.seed, before.seed if before else None, 0),
        lr=lr,
        schedule=schedule(options, "constant" if base else "cosine", lr),
        augment=_first(options.augment, before.augment if before else None, False),
        precision=options.precision or (before.precision if before else "fp32"),  # type: ignore[arg-type]
        clip_grad=_first(options.clip_grad, before.clip_grad if before else None, 0.0),
    )
    return training, Optimizer(name=name, groups=[ParamGroup(params=names, options=settings)])  # type: ignore[arg-type]


def begin_again(checkpoint: Checkpoint, options: Recipe, *, carry: bool = False) -> Training:
    """Turn `checkpoint` into the beginning of a new run, and return that; `carry` keeps its optimizer's state."""
    sidecar = checkpoint.sidecar
    old = sidecar.optimizer
    sidecar.training, sidecar.optimizer = begin(options, checkpoint.trained, sidecar)
    if carry and old and old.name == sidecar.optimizer.name:
        sidecar.optimizer.state = old.state
    sidecar.metrics = Metrics(split=sidecar.metrics.split)
    return sidecar.training


def schedule(options: Recipe, kind: str, lr: float) -> Schedule:
    """The schedule that the options describe, `kind` when they name none.

    Raises `UsageError` for options that would be without effect, and when `kind` needs one that is not there.
    """
    kind = options.schedule or kind
    _effective(options, "schedule", kind, SCHEDULES_OF)
    for needing, name in (("multistep", "milestones"), ("step", "step_size")):
        if kind == needing and getattr(options, name) is None:
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"--schedule {kind}: {flag} is missing", f"say when the rate changes: {flag} 30")
    default = Schedule()
    return Schedule(
        kind=kind,  # type: ignore[arg-type]
        milestones=parse_numbers(options.milestones, "--milestones") if options.milestones else [],
        step_size=options.step_size,
        gamma=_first(options.gamma, default.gamma),
        period=options.period,
        min_factor=min((options.min_lr or 0.0) / lr, 1.0),
        warmup=options.warmup or 0.0,
    )


def _effective(options: Recipe, what: str, chosen: str, users: dict[str, tuple[str, ...]]) -> None:
    for name, choices in users.items():
        if getattr(options, name) is not None and chosen not in choices:
            flag = "--" + name.replace("_", "-")
            raise UsageError(
                f"{flag} means nothing with --{what} {chosen}", f"add --{what} {choices[0]}, or drop {flag}"
            )


def last_rate(training: Training) -> float:
    """The rate with which the last epoch of a run began; after a cosine, which ends at nothing, a tenth of its base.

    In 12 digits, so that it can be given as it is shown.
    """
    if training.schedule.kind == "cosine":
        rate = training.lr * max(0.1, training.schedule.min_factor)
    else:
        rate = training.lr * factor(training.schedule, training.epochs, max(training.epochs - 1, 0))
    return float(f"{rate:.12g}")


def describe(training: Training, optimizer: Optimizer) -> dict[str, Any]:
    """A run as the history records it: what it takes to do it again. `recall` reads it back."""
    plain: dict[str, Any] = msgspec.to_builtins(training)
    for key in ("epoch", "step", "totals", "rng", "method"):
        plain.pop(key)
    return {"training": plain, "optimizer": {"name": optimizer.name, **optimizer.groups[0].options}}


def recall(options: dict[str, Any], names: list[str]) -> tuple[Training, Optimizer]:
    """The run that a history entry's options record, at its beginning, over parameters `names`.

    Raises `msgspec.ValidationError` or `KeyError` when the entry records none.
    """
    training = msgspec.convert(options["training"], Training)
    settings = dict(options["optimizer"])
    return training, msgspec.convert(
        {"name": settings.pop("name"), "groups": [{"params": names, "options": settings}]}, Optimizer
    )


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)
