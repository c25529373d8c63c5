"""Options of `prune`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from prunecli.allocate.patterns import parse_ratios, parse_share
from prunecli.errors import TargetError, UsageError
from prunecli.methods import METHODS
from prunecli.methods.presets import PRESETS
from prunecli.options.fields import argument, check, check_output, choice, option
from prunecli.options.shared import Execution
from prunecli.options.values import parse_amount

TARGETS = ("sparsity", "ratios", "max_macs", "max_params", "preset")


@dataclass(frozen=True, kw_only=True)
class PruneOptions(Execution):
    """Remove units (channels, neurons, heads) or mask single weights: one target, in one shot or in rounds.

    Patterns name layers: --only 'layer1.*', --skip conv1. Layers that share their units (a residual stage) are pruned
    together or not at all; --dry-run lists them, and which layers read them.
    """

    checkpoint: str = argument("Checkpoint to prune.")
    output: str = option(
        "", "Checkpoint to write, OUT.safetensors with its sidecar OUT.json.", flag="-o/--output", metavar="FILE"
    )
    method: str | None = option(None, "What is unimportant: " + ", ".join(METHODS) + ".", metavar="METHOD")
    sparsity: float | None = option(
        None,
        "Share to remove, 0.5 or 50%, of each layer or (--scope global) of all.",
        metavar="SHARE",
        parse=partial(parse_share, flag="--sparsity "),
    )
    scope: str | None = option(
        None, "Rank scores in each layer or in all (default: the method's).", metavar="local|global"
    )
    ratios: str | None = option(
        None, "Share to remove by layer: 'layer1.*=0.6,layer2.*=0.3', or a .toml or .json table.", metavar="TABLE"
    )
    max_macs: str | None = option(
        None, "Largest network within this many MACs: 50% of the input's, or 20M.", metavar="AMOUNT"
    )
    max_params: str | None = option(
        None, "Largest network within this many parameters (masks: non-zero ones): 50% or 1.5M.", metavar="AMOUNT"
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
    only: tuple[str, ...] = option((), "Prune only layers of this name pattern. Repeatable.", metavar="PATTERN")
    skip: tuple[str, ...] = option(
        (), "Leave what layers of this name pattern write alone: --skip 'layer4.*'. Repeatable.", metavar="PATTERN"
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
    resume: bool = option(False, "Continue the interrupted fine-tuning in OUT.partial.safetensors, if there is one.")
    data: str | None = option(None, "Data source (default: the one that the checkpoint records).", metavar="NAME[:DIR]")
    data_arg: tuple[str, ...] = option((), "Argument of the data source. Repeatable.", metavar="KEY=VALUE")
    no_eval: bool = option(False, "Do not score the result on its data.")
    dry_run: bool = option(False, "Print what would go and write nothing.")
    seed: int = option(0, "Seed of random methods.", metavar="N")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choices()
        self._check_target()
        check(self.round_to >= 1, "--round-to", self.round_to, "1 or more")
        check(self.recalibrate >= 0, "--recalibrate", self.recalibrate, "a number of batches")
        check(self.rounds >= 1, "--rounds", self.rounds, "1 or more")
        check(self.finetune_epochs >= 0, "--finetune-epochs", self.finetune_epochs, "0 or more")
        check(self.finetune_lr is None or self.finetune_lr > 0, "--finetune-lr", self.finetune_lr, "a positive rate")
        check(0 <= self.seed < 2**63, "--seed", self.seed, "0 or more")
        if not self.dry_run:
            check_output(self.output, "cut.safetensors")
        if self.recalibrate and self.finetune_epochs:
            raise UsageError(
                "--recalibrate: fine-tuning renews the statistics itself", "drop --recalibrate or --finetune-epochs"
            )
        if self.dry_run and self.rounds > 1 and self.finetune_epochs:
            raise UsageError(
                "--dry-run: later rounds depend on the fine-tuning before", "drop --rounds or --finetune-epochs"
            )

    def _check_choices(self) -> None:
        choice(self.method, "--method", METHODS)
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
                    f"ask for at most {limit:g}, or raise --max-layer-sparsity",
                )
        for flag, amount in (("--max-macs", self.max_macs), ("--max-params", self.max_params)):
            if amount is not None:
                parse_amount(amount, flag)

    @property
    def method_name(self) -> str:
        """The method, the preset's where none is named."""
        return self.method or PRESETS[self.preset or ""].method

    @property
    def structure(self) -> str:
        """What the method removes: "units" or "weights"."""
        return METHODS[self.method_name].structure
