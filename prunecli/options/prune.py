"""Options of `prune`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from functools import partial
from typing import ClassVar

from prunecli.allocate.patterns import parse_ratios, parse_share
from prunecli.errors import TargetError, UsageError
from prunecli.methods import METHODS
from prunecli.methods.gradual import GRADUAL
from prunecli.methods.presets import PRESETS
from prunecli.options.fields import argument, check, choice, option
from prunecli.options.gradual import MethodOptions
from prunecli.options.shared import Execution
from prunecli.options.train import RunOptions
from prunecli.options.values import parse_amount

# what only methods that train take, and what only the others do
TRAINING = {f.name for f in fields(RunOptions)} - {f.name for f in fields(Execution)} - {
    "output", "resume", "data", "data_arg", "seed",
} | {"method_arg"}  # fmt: skip
ONE_SHOT = {
    "scope", "preset", "max_layer_sparsity", "round_to", "skip_inputs", "heads", "tensors", "rounds", "round_schedule",
    "finetune_epochs", "finetune_lr", "compensate", "recalibrate", "no_eval", "dry_run",
}  # fmt: skip
TARGETS = ("sparsity", "ratios", "max_macs", "max_params", "preset")


@dataclass(frozen=True, kw_only=True)
class PruneOptions(MethodOptions, RunOptions):
    """Remove units (channels, neurons, heads) or mask single weights: in one shot, in rounds, or while training on.

    Patterns name layers: --only 'layer1.*', --skip conv1. Layers that share their units (a residual stage) are pruned
    together or not at all; --dry-run lists them, and which layers read them.
    """

    example: ClassVar[str] = "cut.safetensors"

    checkpoint: str = argument("Checkpoint to prune.")
    method: str | None = option(
        None,
        f"What is unimportant: {', '.join(METHODS)}; or how to prune while training on: {', '.join(GRADUAL)}.",
        metavar="METHOD",
    )
    scope: str | None = option(
        None, "Rank scores in each layer or in all (default: the method's).", metavar="local|global"
    )
    preset: str | None = option(None, "A published configuration: " + ", ".join(PRESETS) + ".", metavar="NAME")
    max_layer_sparsity: float | None = option(
        None,
        "Largest share that any one layer may lose, whatever the target: 0.8 or 80%.",
        metavar="SHARE",
        parse=partial(parse_share, flag="--max-layer-sparsity "),
    )
    round_to: int = option(
        1, "Keep a multiple of this many channels; a layer without such a width stays whole.", metavar="N"
    )
    skip_inputs: tuple[str, ...] = option(
        (),
        "Leave what layers of this name pattern read alone: --skip-inputs fc keeps all that fc sees. Repeatable.",
        metavar="PATTERN",
    )
    heads: bool = option(
        False, "Attention loses whole heads, not the same channels of every head: --heads --only '*.attn.*'."
    )
    tensors: str = option(
        "all", "Which weights masks may be on: of convolutions, or of linear layers too.", metavar="all|conv"
    )
    rounds: int = option(1, "Reach the target in this many rounds.", metavar="N")
    round_schedule: str = option(
        "linear", "Targets of the rounds: T/N ... T, or the same share of survivors each.", metavar="linear|geometric"
    )
    finetune_epochs: int = option(0, "Epochs of fine-tuning after each round.", metavar="N")
    finetune_lr: float | None = option(None, "Its learning rate (default: the checkpoint's last).", metavar="RATE")
    compensate: bool = option(
        False,
        "Fold removed units that are constant (batch-norm scale 0) into the layers that read them: --method bn-scale "
        "--compensate.",
    )
    recalibrate: int = option(
        0,
        "Compute batch-norm statistics anew from this many batches of training data: --recalibrate 20.",
        metavar="BATCHES",
    )
    no_eval: bool = option(False, "Do not score the result on its data.")
    dry_run: bool = option(False, "Print what would go and write nothing.")

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self.method, "--method", [*METHODS, *GRADUAL])
        self._refuse(TRAINING if self.method not in GRADUAL else ONE_SHOT)
        if self.method in GRADUAL:
            return
        self._check_choices()
        self._check_target()
        check(self.round_to >= 1, "--round-to", self.round_to, "1 or more")
        check(self.recalibrate >= 0, "--recalibrate", self.recalibrate, "a number of batches")
        check(self.rounds >= 1, "--rounds", self.rounds, "1 or more")
        check(self.finetune_epochs >= 0, "--finetune-epochs", self.finetune_epochs, "0 or more")
        check(self.finetune_lr is None or self.finetune_lr > 0, "--finetune-lr", self.finetune_lr, "a positive rate")
        if self.recalibrate and self.finetune_epochs:
            raise UsageError(
                "--recalibrate: fine-tuning renews the statistics itself", "drop --recalibrate or --finetune-epochs"
            )
        if self.dry_run and self.rounds > 1 and self.finetune_epochs:
            raise UsageError(
                "--dry-run: later rounds depend on the fine-tuning before", "drop --rounds or --finetune-epochs"
            )

    def _refuse(self, names: Collection[str]) -> None:
        """Raise `UsageError` for options that mean nothing with this method."""
        for field in fields(self):
            if field.name in names and getattr(self, field.name) != field.default:
                flag = "--" + field.name.replace("_", "-")
                if self.method in GRADUAL:
                    hint = f"drop {flag}, or choose one of {', '.join(METHODS)}"
                else:
                    hint = f"drop {flag}; fine-tuning has --finetune-epochs, and these train: {', '.join(GRADUAL)}"
                raise UsageError(f"{flag} means nothing with --method {self.method or 'of a preset'}", hint)

    def _check_choices(self) -> None:
        choice(self.preset, "--preset", PRESETS)
        choice(self.scope, "--scope", ("local", "global"))
        choice(self.tensors, "--tensors", ("all", "conv"))
        choice(self.round_schedule, "--round-schedule", ("linear", "geometric"))
        if self.method is None and self.preset is None:
            raise UsageError("--method is missing", "say what is unimportant: --method l1, --method magnitude")
        if self.structure == "weights":
            for flag, given in (
                ("--max-macs", self.max_macs is not None),
                ("--round-to", self.round_to > 1),
                ("--skip-inputs", bool(self.skip_inputs)),
                ("--heads", self.heads),
                ("--compensate", self.compensate),
            ):
                if given:
                    raise UsageError(
                        f"{flag}: --method {self.method} masks single weights and changes no width",
                        "use --max-params or --sparsity, or a structured method such as l1",
                    )
        elif self.tensors != "all":
            raise UsageError(
                f"--tensors: --method {self.method} removes whole units", "use --only or --skip with layer names"
            )

    def _check_target(self) -> None:
        given = {name: "--" + name.replace("_", "-") for name in TARGETS if getattr(self, name) is not None}
        if not given:
            raise UsageError("no target", "say how much: --sparsity 0.5, --ratios, --max-macs 50%, --max-params 1.5M")
        if len(given) > 1 and set(given) != {"max_macs", "max_params"}:
            raise UsageError(f"{' and '.join(given.values())} are different targets", "give one of them")
        if self.scope and ("ratios" in given or "preset" in given):
            raise UsageError(f"--scope means nothing beside {' '.join(given.values())}", "drop --scope")
        given_too = (self.only, self.skip, self.skip_inputs, self.round_to > 1, self.max_layer_sparsity is not None)
        if self.preset and (any(given_too) or self.method not in (None, PRESETS[self.preset].method)):
            raise UsageError(
                "--preset says method, layers and widths itself",
                "drop --method, --only, --skip, --skip-inputs, --round-to and --max-layer-sparsity",
            )
        ratios = parse_ratios(self.ratios) if self.ratios is not None else {}
        limit = (
            None if self.max_layer_sparsity is None else parse_share(self.max_layer_sparsity, "--max-layer-sparsity ")
        )
        shares = {f"--ratios {pattern}=": share for pattern, share in ratios.items()}
        if self.sparsity is not None:
            shares["--sparsity "] = parse_share(self.sparsity, "--sparsity ")
        for flag, share in shares.items():
            if limit is not None and share > limit:
                raise TargetError(
                    f"{flag}{share:g} cannot be met: no layer may lose more than --max-layer-sparsity {limit:g}",
                    f"ask for at most {limit:g}, or raise --max-layer-sparsity"
                    if limit
                    else "raise --max-layer-sparsity",
                )
        for flag, amount in (("--max-macs", self.max_macs), ("--max-params", self.max_params)):
            if amount is not None:
                parse_amount(amount, flag)

    @property
    def writes(self) -> bool:
        """Is a checkpoint written?"""
        return not self.dry_run

    @property
    def method_name(self) -> str:
        """The method, the preset's where none is named."""
        return self.method or PRESETS[self.preset or ""].method

    @property
    def structure(self) -> str:
        """What the method removes: "units" or "weights"."""
        return METHODS[self.method_name].structure
