"""Options that several commands share, meaning the same everywhere."""

from __future__ import annotations

from dataclasses import dataclass

from prunecli.options.fields import check, choice, option
from prunecli.options.values import parse_numbers

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "step", "multistep", "cosine", "exponential")


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Where and how a command runs."""

    device: str = option("cpu", "Device: cpu, cuda, cuda:1.", metavar="DEVICE")
    threads: int | None = option(None, "CPU threads (default: all cores).", metavar="N")
    trust: tuple[str, ...] = option(
        (), "Python module whose code a checkpoint may import. Repeatable.", metavar="MODULE"
    )

    def __post_init__(self) -> None:
        check(self.threads is None or self.threads >= 1, "--threads", self.threads, "a number of at least 1")
        check(
            self.device == "cpu" or self.device.split(":")[0] in ("cuda", "mps"), "--device", self.device, "cpu or cuda"
        )


@dataclass(frozen=True, kw_only=True)
class Recipe(Execution):
    """How a network is trained. None means: the command's default, or what the input checkpoint says."""

    epochs: int | None = option(
        None, "Length of the run in epochs (default: 10; scratch: as --budget says).", metavar="N"
    )
    batch_size: int | None = option(None, "Examples a step (default: the checkpoint's, or 64).", metavar="N")
    optimizer: str | None = option(None, "Optimizer (default: the checkpoint's, or sgd).", metavar="|".join(OPTIMIZERS))
    lr: float | None = option(
        None,
        "Base learning rate (train: sgd 0.05, adam and adamw 0.001; finetune, prune: the last rate, after a cosine a "
        "tenth; scratch: the dense network's; greg1, greg2: 0.001).",
        metavar="RATE",
    )
    momentum: float | None = option(None, "Momentum of sgd (default: the checkpoint's, or 0.9).", metavar="M")
    nesterov: bool | None = option(None, "Nesterov momentum.")
    weight_decay: float | None = option(
        None, "Weight decay (default: the checkpoint's, or sgd 5e-4, adam 0, adamw 0.01).", metavar="WD"
    )
    clip_grad: float | None = option(
        None,
        "Scale the loss' gradient down to this 2-norm where it is longer; 0: never (default: the checkpoint's, or 0).",
        metavar="NORM",
    )
    betas: str | None = option(None, "Betas of adam and adamw (default: 0.9,0.999).", metavar="B1,B2")
    schedule: str | None = option(
        None,
        "Learning-rate schedule (train: cosine; finetune, prune, greg: constant; scratch: the dense network's).",
        metavar="|".join(SCHEDULES),
    )
    milestones: str | None = option(None, "Epochs at which `multistep` multiplies the rate by gamma.", metavar="E,E")
    step_size: float | None = option(None, "Epochs between two drops of `step`.", metavar="EPOCHS")
    gamma: float | None = option(None, "Factor of step, multistep (default 0.1) and exponential.", metavar="FACTOR")
    period: float | None = option(None, "Epochs between warm restarts of `cosine` (default: none).", metavar="EPOCHS")
    min_lr: float | None = option(None, "Rate at the end of `cosine`.", metavar="RATE")
    warmup: float | None = option(None, "Epochs of linear warm-up.", metavar="EPOCHS")
    augment: bool | None = option(None, "Pad, crop and flip training images as the data source defines.")
    precision: str | None = option(
        None, "Arithmetic: fp32, or bf16 for mixed precision (default: the checkpoint's, or fp32).", metavar="fp32|bf16"
    )
    seed: int | None = option(
        None, "Seed of initialisation, order and augmentation (default: the checkpoint's, or 0).", metavar="N"
    )
    data: str | None = option(
        None,
        "Data source: digits, mnist:DIR, fashion-mnist:DIR, cifar10:DIR, cifar100:DIR, folder:DIR, "
        "package.module:function (default: the checkpoint's).",
        metavar="NAME[:DIR]",
    )
    data_arg: tuple[str, ...] = option((), "Argument of the data source. Repeatable.", metavar="KEY=VALUE")
    val: float | None = option(None, "Share of the training split held out; scores are then on it.", metavar="SHARE")

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self.optimizer, "--optimizer", OPTIMIZERS)
        choice(self.schedule, "--schedule", SCHEDULES)
        choice(self.precision, "--precision", ("fp32", "bf16"))
        for name, low, high, expected in (
            ("epochs", 0, 10**6, "0 or more"), ("batch_size", 1, 10**7, "1 or more"),
            ("lr", 1e-12, 1e6, "a positive rate"), ("momentum", 0, 0.9999999, "0 or more, below 1"),
            ("weight_decay", 0, 1e6, "0 or more"), ("clip_grad", 0, 1e6, "0 or more"),
            ("step_size", 1e-9, 1e9, "a positive number"),
            ("gamma", 1e-12, 1, "above 0, at most 1"), ("period", 1e-9, 1e9, "a positive number"),
            ("min_lr", 0, 1e6, "0 or more"), ("warmup", 0, 1e6, "0 or more"),
            ("seed", 0, 2**63 - 1, "0 or more"), ("val", 0, 0.9, "a share from 0 to 0.9"),
        ):  # fmt: skip
            value = getattr(self, name)
            check(value is None or low <= value <= high, "--" + name.replace("_", "-"), value, expected)
        if self.milestones is not None:
            parse_numbers(self.milestones, "--milestones")
        if self.betas is not None:
            betas = parse_numbers(self.betas, "--betas")
            check(
                len(betas) == 2 and all(b < 1 for b in betas), "--betas", self.betas, "two numbers below 1: 0.9,0.999"
            )
