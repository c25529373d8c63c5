"""Options of `train` and `finetune`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from prunecli.errors import UsageError
from prunecli.methods.gradual import GRADUAL
from prunecli.options.fields import argument, check, check_output, choice, option
from prunecli.options.gradual import SHARED, MethodOptions
from prunecli.options.shared import Recipe
from prunecli.options.values import parse_numbers

INPUTS = ("checkpoint", "to", "guide", "init")  # options that name checkpoints, where a command has them


@dataclass(frozen=True, kw_only=True)
class RunOptions(Recipe):
    """What `train` and `finetune` share: where the result and the snapshots of a run go."""

    example: ClassVar[str] = "base.safetensors"

    output: str = option(
        "", "Checkpoint to write, OUT.safetensors with its sidecar OUT.json.", flag="-o/--output", metavar="FILE"
    )
    keep: str = option(
        "", "Epochs whose snapshots OUT.epochN.safetensors are written too (0: before training).", metavar="N,N"
    )
    resume: bool = option(False, "Continue the interrupted run in OUT.partial.safetensors, if there is one.")
    save_every: int | None = option(
        None, "Steps between two saves of OUT.partial (default: an epoch).", metavar="STEPS"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.writes:
            check_output(self.output, self.example)
        given = [getattr(self, name, None) for name in INPUTS]
        if self.resume and any(Path(self.output).resolve() == Path(name).resolve() for name in given if name):
            raise UsageError(
                f"--resume: {self.output} is an input, too, so that a finished run could not be told from one to begin",
                f"give the output another name: -o {self.example}",
            )
        check(self.save_every is None or self.save_every >= 1, "--save-every", self.save_every, "1 or more")
        check(all(e == int(e) for e in parse_numbers(self.keep, "--keep")), "--keep", self.keep, "whole epochs: 0,10")

    @property
    def writes(self) -> bool:
        """Is a checkpoint written?"""
        return True

    @property
    def kept_epochs(self) -> list[int]:
        """The epochs of `--keep`."""
        return [int(e) for e in parse_numbers(self.keep, "--keep")]


@dataclass(frozen=True, kw_only=True)
class TrainOptions(MethodOptions, RunOptions):
    """Train a network from new or given weights, with --method pruning it on the way."""

    arch: str = option(
        "", "Network: a built-in name, torchvision:NAME, timm:NAME, or package.module:function.", metavar="ARCH"
    )
    arch_arg: tuple[str, ...] = option((), "Argument of the network. Repeatable.", metavar="KEY=VALUE")
    image_size: int | None = option(None, "Height and width of the images (default: the network's).", metavar="PIXELS")
    method: str | None = option(None, "Prune while training: " + ", ".join(GRADUAL) + ".", metavar="METHOD")
    init: str | None = option(None, "Start from these weights (.safetensors, .pt, .pth; weights only).", metavar="FILE")

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self.method, "--method", GRADUAL)
        alone = [name for name in (*SHARED, "method_arg") if getattr(self, name) not in (None, ())]
        if self.method is None and alone:
            flag = "--" + alone[0].replace("_", "-")
            raise UsageError(f"{flag} means nothing without --method", f"add --method swd, or drop {flag}")
        check(self.image_size is None or 1 <= self.image_size <= 4096, "--image-size", self.image_size, "1 to 4096")
        for flag, value, example in (("--arch", self.arch, "lenet5"), ("--data", self.data, "digits")):
            if not value:
                raise UsageError(f"{flag} is missing", f"say what to train: {flag} {example}")


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(RunOptions):
    """Continue a checkpoint: an unfinished schedule from its position, a finished one at its last rate."""

    example: ClassVar[str] = "small.safetensors"

    checkpoint: str = argument("Checkpoint to continue.")
    carry: bool = option(False, "Begin a new run with the checkpoint's optimizer state, instead of a fresh one.")
