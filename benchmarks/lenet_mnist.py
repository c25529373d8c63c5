"""LeNet-5 on MNIST as in table 1 of Progressive Gradient Pruning: PGP, RPGP, PSFP and L1 at 30, 50 and 70 %.

    python benchmarks/lenet_mnist.py --mnist DIR --out DIR [--results FILE]     # goes on where it was stopped
    python benchmarks/lenet_mnist.py --out DIR --table                          # only the table of what is there

The paper's settings: SGD with learning rate 0.01 and momentum 0.9, no weight decay, batches of 64, 40 epochs, no
augmentation. L1 prunes a network that was trained so, in one shot, to the widths of the others. The paper fine-tunes
L1's network for 20 epochs and does not say whether others are too, so every network is scored before and after 20.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from mnist_table import main

import prunecli
from prunecli import checkpoint as checkpoints
from prunecli.checkpoint import Checkpoint
from prunecli.options.prune import PruneOptions
from prunecli.options.train import FinetuneOptions, TrainOptions
from prunecli.progress import Stderr

PAPER = {  # error in %, by method and rate
    ("rpgp", 30): 0.90, ("rpgp", 50): 1.25, ("rpgp", 70): 1.75,
    ("pgp", 30): 0.87, ("pgp", 50): 1.08, ("pgp", 70): 1.74,
    ("psfp", 30): 1.32, ("psfp", 50): 2.27, ("psfp", 70): 2.99,
    ("l1", 30): 0.90, ("l1", 50): 1.05, ("l1", 70): 2.22,
    ("base", 0): 0.84,
}  # fmt: skip
NAMES = {
    "base": "none", "rpgp": "RPGP, GN_S", "pgp": "PGP, GN_G", "psfp": "PSFP, PGP's curve", "l1": "L1, one-shot",
}  # fmt: skip
ARGUMENTS = {"rpgp": (), "pgp": (), "psfp": ("curve=pgp",)}
WIDTHS = {30: (5, 12, 84), 50: (3, 8, 60), 70: (2, 5, 36)}  # ceil(n (1 - t)) of 6, 16 and 120
RECIPE = {"lr": 0.01, "batch_size": 64, "threads": 1}
MORE = 20  # epochs of fine-tuning

Case = tuple[str, int, int]  # method, rate in %, seed
CASES: list[Case] = [
    *((method, rate, 0) for rate in (50, 70, 30) for method in ("rpgp", "psfp", "pgp", "l1")),
    *((method, 50, seed) for seed in (1, 2) for method in ("rpgp", "psfp")),
]


def at(folder: Path, case: Case) -> Path:
    """Where the checkpoint of a case is."""
    method, rate, seed = case
    return folder / f"{method}{rate}-seed{seed}.safetensors"


def trained(folder: Path, mnist: str, case: Case) -> Path:
    """The checkpoint of a method that trains, or of plain training."""
    method, rate, seed = case
    pruning = {"method": method, "sparsity": rate / 100, "method_arg": ARGUMENTS[method]} if rate else {}
    options = TrainOptions(
        arch="lenet5", data=f"mnist:{mnist}", epochs=40, momentum=0.9, weight_decay=0.0, schedule="constant",
        seed=seed, resume=True, output=str(at(folder, case)), **RECIPE, **pruning,
    )  # fmt: skip
    prunecli.train(options, Stderr())
    return at(folder, case)


def cut(folder: Path, mnist: str, case: Case) -> Path:
    """The checkpoint of a trained network of which L1 leaves the widths of the others."""
    _, rate, seed = case
    shares = ",".join(
        f"conv{i}={1 - kept / n - 1e-6:.9f}" for i, n, kept in zip((1, 2, 3), (6, 16, 120), WIDTHS[rate], strict=True)
    )
    base = trained(folder, mnist, ("base", 0, seed))
    prunecli.prune(
        PruneOptions(
            checkpoint=str(base), method="l1", ratios=shares, data=f"mnist:{mnist}", output=str(at(folder, case)),
            threads=1,
        )
    )  # fmt: skip
    return at(folder, case)


def make(folder: Path, mnist: str, case: Case) -> None:
    """Prune and fine-tune, as far as that is not done."""
    tuned = at(folder, case).with_suffix(".tuned.safetensors")
    if tuned.exists():
        return
    pruned = (cut if case[0] == "l1" else trained)(folder, mnist, case)
    prunecli.finetune(
        FinetuneOptions(
            checkpoint=str(pruned), data=f"mnist:{mnist}", epochs=MORE, seed=case[2], resume=True, output=str(tuned),
            **RECIPE,
        ),
        Stderr(),
    )  # fmt: skip


def error(found: list[Checkpoint]) -> str:
    """Error in % after the last epoch: the mean over seeds and, of several, the range."""
    values = [100 * (1 - c.sidecar.metrics.last.values["top1"]) for c in found if c.sidecar.metrics.last]
    if not values:
        return "–"
    return f"{statistics.mean(values):.2f}" + (
        f" ({min(values):.2f} to {max(values):.2f}, {len(values)} seeds)" if len(values) > 1 else ""
    )


def best(found: list[Checkpoint]) -> str:
    """Error in % of the best epoch, as papers have it that choose by test images; the mean over seeds."""
    values = [100 * (1 - c.sidecar.metrics.best.values["top1"]) for c in found if c.sidecar.metrics.best]
    return f"{statistics.mean(values):.2f}" if values else "–"


def table(folder: Path) -> str:
    """The results so far, in Markdown."""
    lines = [
        "# LeNet-5 on MNIST: Progressive Gradient Pruning's table 1",
        "",
        "    python benchmarks/lenet_mnist.py --mnist DIR --out DIR",
        "",
        "Test error in %: after the 40 epochs that prune (L1: right after the cut), after 20 epochs of fine-tuning",
        "(the last epoch, and the best as the paper has it), and the paper's. Parameters of the pruned network.",
        "",
        "| filters removed | method | parameters | after pruning | after fine-tuning | its best epoch | paper |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (method, rate), paper in sorted(PAPER.items(), key=lambda row: (row[0][1], list(NAMES).index(row[0][0]))):
        paths = [at(folder, (method, rate, seed)) for seed in (0, 1, 2)]
        pruned = [checkpoints.load(path) for path in paths if path.exists()]
        tuned = [checkpoints.load(t) for path in paths if (t := path.with_suffix(".tuned.safetensors")).exists()]
        count = sum(w.numel() for w in pruned[0].weights.values()) if pruned else 0
        size = f"{count:,}" if pruned else "–"
        cells = [f"{rate} %", NAMES[method], size, error(pruned), error(tuned), best(tuned), f"{paper:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(__file__, __doc__, CASES, make, table)
